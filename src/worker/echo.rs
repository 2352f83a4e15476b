//! The adapter `echo`: it replies with the message, word by word. It serves tests and first steps, and shows how little an
//! adapter needs.

use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::adapter::{OutputSink, TurnAdapter};
use super::error::WorkerError;
use super::options::CommonArgs;
use super::output_log::Stopped;
use super::start::{self, Wants};
use crate::turn::cause;
use crate::turn::frame::Frame;
use crate::turn::terminal::Outcome;
use crate::wire::TurnPush;

/// A message that begins with this is answered only after [`SLOW`]. `lastword worker conformance` sends it where it needs a
/// turn that lasts.
pub(super) const SLOW_MESSAGE: &str = "conformance-slow";
const SLOW: Duration = Duration::from_secs(3);

/// `lastword worker echo`
#[derive(Debug, Clone, clap::Args)]
pub struct EchoArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Time between two words
    #[arg(long, env = "LASTWORD_DELAY_MS", value_name = "MILLISECONDS", default_value_t = 0)]
    pub delay_ms: u64,
    /// Answer all turns of a conversation that wait with one reply
    #[arg(long, env = "LASTWORD_TOGETHER")]
    pub together: bool,
}

/// Serves turns until the worker ends.
pub(super) async fn run(args: EchoArgs, shutdown: CancellationToken) -> Result<ExitCode, WorkerError> {
    let wants = Wants { together: args.together, ..Wants::default() };
    let adapter = EchoAdapter { delay: Duration::from_millis(args.delay_ms) };
    start::serve(&args.common, wants, adapter, shutdown).await
}

struct EchoAdapter {
    /// The pause before each word but the first.
    delay: Duration,
}

impl EchoAdapter {
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

impl TurnAdapter for EchoAdapter {
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
