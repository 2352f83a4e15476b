//! What an answer of a receiver means, and what follows from an attempt.

use std::time::Duration;

use reqwest::StatusCode;
use time::OffsetDateTime;

use crate::backoff::doubled;

/// The pause after the first attempt that failed; each further one doubles it, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// The longest pause that a receiver may ask for, in seconds.
const LONGEST_ASKED: u64 = 6 * 3600;
/// The most attempts. With the pauses above they last about 26 hours.
pub const MAX_ATTEMPTS: u32 = 36;
/// The most attempts if the receiver or the rules of egress refuse. They last about an hour, in which somebody may correct
/// a URL.
pub const MAX_REFUSALS: u32 = 12;

/// What came of an attempt. The problems are for operators; none holds a URL or a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PostOutcome {
    /// The terminal was posted, or nothing is to be posted.
    Done,
    /// A later attempt may succeed. `asked`: the pause that the receiver asks for, in seconds.
    Failed { problem: String, asked: Option<u64> },
    /// Attempts fail until somebody corrects something.
    Refused { problem: String },
    /// No attempt will succeed.
    Never { problem: String },
}

/// What becomes of the delivery row after an attempt.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum NextAttempt {
    /// None: the row is removed.
    Remove,
    /// After so many seconds.
    Later { seconds: f64, problem: String },
    /// None: the row is parked with the problem.
    GiveUp { problem: String },
}

/// Decides what follows from an attempt, the `attempts`th one of its row, counted from 1. `jitter` is from 0 to 1.
pub(super) fn next(outcome: PostOutcome, attempts: u32, jitter: f64) -> NextAttempt {
    let (problem, asked, most) = match outcome {
        PostOutcome::Done => return NextAttempt::Remove,
        PostOutcome::Never { problem } => return NextAttempt::GiveUp { problem },
        PostOutcome::Failed { problem, asked } => (problem, asked, MAX_ATTEMPTS),
        PostOutcome::Refused { problem } => (problem, None, MAX_REFUSALS),
    };
    if attempts >= most {
        return NextAttempt::GiveUp { problem };
    }
    // Between three quarters of it and five quarters, so that all that a receiver missed does not come to it at once.
    let pause = doubled(FIRST_PAUSE, LONGEST_PAUSE, attempts).as_secs_f64() * (0.75 + jitter / 2.0);
    NextAttempt::Later { seconds: pause.max(asked.unwrap_or(0).min(LONGEST_ASKED) as f64), problem }
}

/// What the status of an answer means. 410 says that nobody will listen again. Other 4xx say that something must be corrected,
/// but for those that are about the moment. Redirects are not followed, so they count as refusals too.
pub(super) fn judge(host: &str, status: StatusCode, asked: Option<u64>) -> PostOutcome {
    let problem = format!("{host} answered {}", status.as_u16());
    match status.as_u16() {
        200..=299 => PostOutcome::Done,
        410 => PostOutcome::Never { problem },
        408 | 409 | 425 | 429 => PostOutcome::Failed { problem, asked },
        300..=499 => PostOutcome::Refused { problem },
        _ => PostOutcome::Failed { problem, asked },
    }
}

/// The seconds that a header `Retry-After` asks for: it holds a number of seconds, or a date.
pub(super) fn retry_after(value: &str, now: OffsetDateTime) -> Option<u64> {
    let value = value.trim();
    value.parse().ok().or_else(|| {
        let at = jiff::fmt::rfc2822::parse(value).ok()?.timestamp().as_second();
        u64::try_from(at - now.unix_timestamp()).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(asked: Option<u64>) -> PostOutcome {
        PostOutcome::Failed { problem: String::new(), asked }
    }

    #[test]
    fn pauses_grow_and_end() {
        let seconds = |sent: PostOutcome, attempts, jitter| match next(sent, attempts, jitter) {
            NextAttempt::Later { seconds, .. } => Some(seconds),
            NextAttempt::GiveUp { .. } => None,
            NextAttempt::Remove => panic!("it failed"),
        };
        let refused = || PostOutcome::Refused { problem: String::new() };
        for (sent, attempts, jitter, expected) in [
            (failed(None), 1, 0.5, Some(1.0)),
            (failed(None), 1, 0.0, Some(0.75)),
            (failed(None), 1, 1.0, Some(1.25)),
            (failed(None), 5, 0.5, Some(16.0)),
            (failed(None), 12, 0.5, Some(2048.0)),
            (failed(None), 20, 0.5, Some(3600.0)),
            (failed(None), 35, 0.5, Some(3600.0)),
            (failed(None), 36, 0.5, None),
            (failed(Some(120)), 1, 0.5, Some(120.0)),
            (failed(Some(1)), 5, 0.5, Some(16.0)),
            (failed(Some(u64::MAX)), 1, 0.5, Some(21600.0)),
            (refused(), 11, 0.5, Some(1024.0)),
            (refused(), 12, 0.5, None),
            (PostOutcome::Never { problem: String::new() }, 1, 0.5, None),
        ] {
            assert_eq!(seconds(sent.clone(), attempts, jitter), expected, "{sent:?} after {attempts}");
        }
        assert_eq!(next(PostOutcome::Done, 1, 0.5), NextAttempt::Remove);
        let all: f64 = (1..MAX_ATTEMPTS).filter_map(|n| seconds(failed(None), n, 0.5)).sum();
        let refusals: f64 = (1..MAX_REFUSALS).filter_map(|n| seconds(refused(), n, 0.5)).sum();
        assert!((24.0..28.0).contains(&(all / 3600.0)), "about a day: {all}");
        assert!((1800.0..4000.0).contains(&refusals), "long enough to correct a URL: {refusals}");
    }

    #[test]
    fn answers_are_judged() {
        let judged = |status: u16| judge("h", StatusCode::from_u16(status).expect("a status"), Some(7));
        let problem = |status: u16| format!("h answered {status}");
        for (status, expected) in [
            (200, PostOutcome::Done),
            (204, PostOutcome::Done),
            (301, PostOutcome::Refused { problem: problem(301) }),
            (400, PostOutcome::Refused { problem: problem(400) }),
            (404, PostOutcome::Refused { problem: problem(404) }),
            (408, PostOutcome::Failed { problem: problem(408), asked: Some(7) }),
            (410, PostOutcome::Never { problem: problem(410) }),
            (429, PostOutcome::Failed { problem: problem(429), asked: Some(7) }),
            (500, PostOutcome::Failed { problem: problem(500), asked: Some(7) }),
            (503, PostOutcome::Failed { problem: problem(503), asked: Some(7) }),
        ] {
            assert_eq!(judged(status), expected);
        }
        let now = OffsetDateTime::from_unix_timestamp(1_445_412_440).expect("a time");
        for (value, expected) in [
            ("120", Some(120)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(40)),
            ("Wed, 21 Oct 2015 07:20:00 GMT", None),
            ("soon", None),
            ("-5", None),
        ] {
            assert_eq!(retry_after(value, now), expected, "{value}");
        }
    }
}
