//! A chat client that comes back: whatever breaks its stream, it goes on behind its last cursor until the turn has ended.

use std::time::{Duration, Instant};

use crate::support::api::{Api, End, Frame};
use crate::support::wait::{pause, try_eventually};

/// How a turn ended for such a client.
#[derive(Debug, Clone)]
pub struct Ended {
    /// `Succeeded`, or the error's reason.
    pub outcome: String,
    pub text: String,
    /// How often it was told that the turn is over: must be 1.
    pub endings: usize,
    /// How often its stream broke.
    pub breaks: usize,
}

/// Submits until it is known to be armed (the same messageId each time), then follows the turn to its end.
pub async fn ask(api: &Api, agent: &str, message: &str, bound: Duration) -> Result<Ended, String> {
    let begun = Instant::now();
    let (conversation, id) = (format!("f-{}", uuid::Uuid::new_v4().simple()), uuid::Uuid::new_v4().to_string());
    let armed = try_eventually(bound, async || {
        match api.try_submit(&conversation, agent, message, Some(&id)).await {
            Ok((200 | 202, body)) => {
                let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
                Ok(Ok((text("turnId"), text("cursor"))))
            }
            // Refused for good, or for now.
            Ok((status @ 400..500, body)) if status != 429 => Ok(Err(format!("{status}: {body}"))),
            Ok((status, body)) => Err(format!("{status}: {body}")),
            Err(error) => Err(error.to_string()),
        }
    });
    let (turn, cursor) = armed.await.map_err(|last| format!("not armed within {bound:?}: {last}"))??;
    follow(api, &conversation, &turn, cursor, bound.saturating_sub(begun.elapsed())).await
}

/// Follows a turn that is armed, from a cursor on, to its end.
pub async fn follow(
    api: &Api,
    conversation: &str,
    turn: &str,
    mut cursor: String,
    bound: Duration,
) -> Result<Ended, String> {
    let begun = Instant::now();
    let (mut frames, mut breaks) = (Vec::new(), 0);
    loop {
        let watched = api.session(conversation, Some(&cursor));
        let mut seen = 0;
        let look = try_eventually(bound.saturating_sub(begun.elapsed()), async || {
            // Asked first: what came before the end is among the frames then.
            let end = watched.end();
            let now = watched.frames();
            for frame in now[seen..].iter().filter(|f| f.event != "connected") {
                cursor = frame.id.clone();
                frames.push(frame.clone());
            }
            seen = now.len();
            match (ended(turn, &frames, breaks), end) {
                (Some(ended), _) => Ok(Some(ended)),
                (None, End::Open) => Err(format!("{frames:?}")),
                (None, _) => Ok(None),
            }
        });
        match look.await {
            Ok(Some(ended)) => return Ok(ended),
            Ok(None) => {}
            Err(seen) => return Err(format!("turn {turn} has not ended within {bound:?}: {seen}")),
        }
        breaks += 1;
        pause().await;
    }
}

fn ended(turn: &str, frames: &[Frame], breaks: usize) -> Option<Ended> {
    let completes =
        |f: &&Frame| f.event == "complete" && f.data["turnIds"].as_array().is_some_and(|t| t.iter().any(|t| t == turn));
    let endings = frames.iter().filter(completes).count();
    if endings == 0 {
        return None;
    }
    let mine = || frames.iter().filter(|f| f.data["turnId"] == turn);
    let error = mine().find(|f| f.event == "error").and_then(|f| f.data["reason"].as_str());
    let text = mine().filter(|f| f.event == "text").filter_map(|f| f.data["text"].as_str()).collect();
    let outcome = error.unwrap_or("Succeeded").to_owned();
    Some(Ended { outcome, text, endings, breaks })
}
