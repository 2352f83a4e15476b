//! Replies with the message, word by word: for tests, first steps, and as the shortest adapter.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::adapter::{Adapter, OutputSink, Stopped};
use super::options::Common;
use crate::turn::cause;
use crate::turn::frame::Frame;
use crate::turn::terminal::Outcome;
use crate::wire::TurnPush;

/// A message that begins with this is replied to slowly: what `lastword worker conformance` sends to see a turn last.
pub(super) const SLOW_MESSAGE: &str = "conformance-slow";
const SLOW: Duration = Duration::from_secs(3);

/// `lastword worker echo`
#[derive(Debug, Clone, clap::Args)]
pub struct EchoArgs {
    #[command(flatten)]
    pub common: Common,
    /// Time between two words
    #[arg(long, env = "LASTWORD_DELAY_MS", value_name = "MILLISECONDS", default_value_t = 0)]
    pub delay_ms: u64,
    /// Answer all turns of a conversation that wait with one reply
    #[arg(long, env = "LASTWORD_TOGETHER")]
    pub together: bool,
}

pub(super) struct Echo {
    delay: Duration,
}

impl Echo {
    pub(super) fn new(args: &EchoArgs) -> Self {
        Echo { delay: Duration::from_millis(args.delay_ms) }
    }

    async fn say(&self, message: &str, out: &OutputSink) -> Result<(), Stopped> {
        for (i, word) in message.split_inclusive(' ').enumerate() {
            if i > 0 && !self.delay.is_zero() {
                tokio::time::sleep(self.delay).await;
            }
            out.send(Frame::text(word)).await?;
        }
        Ok(())
    }
}

impl Adapter for Echo {
    async fn run(&self, turns: Vec<TurnPush>, out: OutputSink, cancel: CancellationToken) -> Outcome {
        let message = turns.iter().map(|turn| turn.message.as_str()).collect::<Vec<_>>().join("\n");
        let reply = async {
            if message.starts_with(SLOW_MESSAGE) {
                tokio::time::sleep(SLOW).await;
            }
            self.say(&message, &out).await
        };
        tokio::select! {
            said = reply => match said {
                Ok(()) if out.has_text() => Outcome::Reply,
                _ => Outcome::Error(cause::program::nothing_to_echo()),
            },
            () = cancel.cancelled() => Outcome::Error(cause::rule::cancelled()),
        }
    }
}
