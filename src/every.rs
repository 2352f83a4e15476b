//! Background work: the one loop that every such task is, and what becomes of a task that panics.
//!
//! - [`Every`] makes passes: one a period, and one at each wake-up, until the shutdown. Wake-ups during a pass lead to one
//!   pass more. A pass that found more than it may do at once is followed by the next without a pause.
//! - [`Outage`] says once that something is away, and once that it is back, however many passes fail in between.
//! - [`supervised`] spawns a task that must not end unseen: a panic in it ends the process, so that whoever supervises the
//!   process (Kubernetes, systemd, a person) starts a whole one. A process whose sweep or delivery loop died would look
//!   healthy and do half of its work.

use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

/// The exit code of a process that ends because one of its tasks panicked: `EX_SOFTWARE` of sysexits.h.
pub const EXIT_PANICKED: u8 = 70;

/// What follows a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// The next pass comes with the period, or with a wake-up.
    Later,
    /// There is more to do: the next pass follows at once.
    AtOnce,
}

/// What a pass was begun for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The period, or the pass before it found more to do.
    Period,
    /// A wake-up.
    WakeUp,
}

/// A loop of passes, until the shutdown.
///
/// ```ignore
/// let mut passes = Every::new("the sweep", period).at_once();
/// while let Some(cause) = passes.next(&shutdown).await {
///     passes.ended(pass(cause).await);
/// }
/// ```
///
/// [`run`](Self::run) is the same loop around a closure. In a task that is spawned, the closure must own all that it uses
/// (`async move`): of one that borrows, the compiler does not see that its future is `Send` (rust-lang/rust#110338).
#[derive(Debug)]
pub struct Every<'a> {
    period: Duration,
    at_once: bool,
    wake: Option<&'a Notify>,
    outage: Outage,
    /// Begins to count with the first pass that is waited for.
    ticks: Option<Interval>,
    again: Again,
}

impl<'a> Every<'a> {
    /// Passes of `work` (as in "the sweep", for the log), one a period; the first one a period from now.
    pub fn new(work: &'static str, period: Duration) -> Self {
        Every { period, at_once: false, wake: None, outage: Outage::new(work), ticks: None, again: Again::Later }
    }

    /// The same with the first pass at once.
    pub fn at_once(self) -> Self {
        Every { at_once: true, ..self }
    }

    /// The same, and a pass whenever `wake` is notified.
    pub fn woken_by(self, wake: &'a Notify) -> Self {
        Every { wake: Some(wake), ..self }
    }

    /// Waits until the next pass is to be made; `None` at the shutdown.
    pub async fn next(&mut self, shutdown: &CancellationToken) -> Option<Cause> {
        let ticks = self.ticks.get_or_insert_with(|| {
            let first = if self.at_once { Instant::now() } else { Instant::now() + self.period };
            let mut ticks = interval_at(first, self.period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        match std::mem::replace(&mut self.again, Again::Later) {
            Again::AtOnce => (!shutdown.is_cancelled()).then_some(Cause::Period),
            Again::Later => tokio::select! {
                biased;
                () = shutdown.cancelled() => None,
                _ = ticks.tick() => Some(Cause::Period),
                () = notified(self.wake) => Some(Cause::WakeUp),
            },
        }
    }

    /// Says how the pass went that [`next`](Self::next) asked for. One that failed is said once in the log, see [`Outage`],
    /// and is followed by the next one after the period.
    pub fn ended<E: Display>(&mut self, pass: Result<Again, E>) {
        match pass {
            Ok(again) => {
                self.outage.is_over();
                self.again = again;
            }
            Err(error) => self.outage.goes_on(&error),
        }
    }

    /// Makes passes until `shutdown`; one that has begun is finished.
    pub async fn run<E: Display>(
        mut self,
        shutdown: &CancellationToken,
        mut pass: impl AsyncFnMut(Cause) -> Result<Again, E>,
    ) {
        while let Some(cause) = self.next(shutdown).await {
            self.ended(pass(cause).await);
        }
    }
}

async fn notified(wake: Option<&Notify>) {
    match wake {
        Some(wake) => wake.notified().await,
        None => std::future::pending().await,
    }
}

/// Whether something that some work needs (the database, the API server) is away; each change is logged once.
#[derive(Debug)]
pub struct Outage {
    work: &'static str,
    away: bool,
}

impl Outage {
    /// Nothing is away yet. `work` is the subject of the log's sentences, as in "the sweep".
    pub fn new(work: &'static str) -> Self {
        Outage { work, away: false }
    }

    /// The work failed: a warning the first time, then no more than a debug line.
    pub fn goes_on(&mut self, error: &dyn Display) {
        let work = self.work;
        if std::mem::replace(&mut self.away, true) {
            tracing::debug!(%error, "{work} still waits: {error}");
        } else {
            tracing::warn!(%error, "{work} waits, and goes on when this is over: {error}");
        }
    }

    /// The work was done: what was away is back.
    pub fn is_over(&mut self) {
        if std::mem::take(&mut self.away) {
            tracing::info!("{} goes on again", self.work);
        }
    }

    /// Whether the last try failed.
    pub fn is_on(&self) -> bool {
        self.away
    }
}

/// Spawns a task whose panic ends the process with [`EXIT_PANICKED`]. `work` names it in the log.
pub fn supervised<T: Send + 'static>(
    work: &'static str,
    task: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    tokio::spawn(watched(work, task))
}

/// The same guard around a task that somebody else spawns, into a set say.
pub async fn watched<T>(work: &'static str, task: impl Future<Output = T>) -> T {
    // Nothing of the task is looked at after a panic: the process ends.
    match AssertUnwindSafe(task).catch_unwind().await {
        Ok(done) => done,
        Err(_) => {
            tracing::error!("{work} panicked, a bug in Lastword; the process ends, so that it is started whole");
            std::process::exit(EXIT_PANICKED.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;

    const PERIOD: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn wake_ups_during_a_pass_lead_to_one_more() {
        let (wake, shutdown) = (Notify::new(), CancellationToken::new());
        let passes = Cell::new(0);
        Every::new("a test", LONG)
            .at_once()
            .woken_by(&wake)
            .run(&shutdown, async |cause| {
                passes.set(passes.get() + 1);
                match passes.get() {
                    1 => {
                        assert_eq!(cause, Cause::Period);
                        (0..10).for_each(|_| wake.notify_one());
                    }
                    _ => {
                        assert_eq!(cause, Cause::WakeUp);
                        shutdown.cancel();
                    }
                }
                Ok::<_, Infallible>(Again::Later)
            })
            .await;
        assert_eq!(passes.get(), 2);
    }

    #[tokio::test]
    async fn a_pass_that_found_more_is_followed_by_the_next_at_once() {
        let shutdown = CancellationToken::new();
        let passes = Cell::new(0);
        Every::new("a test", LONG)
            .at_once()
            .run(&shutdown, async |_| {
                passes.set(passes.get() + 1);
                if passes.get() == 3 {
                    shutdown.cancel();
                }
                Ok::<_, Infallible>(Again::AtOnce)
            })
            .await;
        assert_eq!(passes.get(), 3);
    }

    #[tokio::test]
    async fn a_pass_that_failed_is_made_again_after_the_period() {
        let shutdown = CancellationToken::new();
        let (passes, begun) = (Cell::new(0), Instant::now());
        Every::new("a test", PERIOD)
            .run(&shutdown, async |_| {
                passes.set(passes.get() + 1);
                if passes.get() == 2 {
                    shutdown.cancel();
                }
                Err("away")
            })
            .await;
        assert!(begun.elapsed() >= 2 * PERIOD, "{:?}", begun.elapsed());
    }

    /// Named in the environment, this test is the process that is to end.
    const PANIC: &str = "EVERY_TEST_PANICS";

    #[test]
    fn a_task_that_panics_takes_the_process_down() {
        if std::env::var_os(PANIC).is_some() {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                let task = supervised("a test", async { panic!("on purpose") });
                let () = task.await.expect("the process ended");
            });
            unreachable!("the process ended");
        }
        let this = std::env::current_exe().expect("this binary");
        let ended = std::process::Command::new(this)
            .args(["--exact", "every::tests::a_task_that_panics_takes_the_process_down"])
            .env(PANIC, "1")
            .output()
            .expect("a child");
        assert_eq!(ended.status.code(), Some(i32::from(EXIT_PANICKED)), "{ended:?}");
    }
}
