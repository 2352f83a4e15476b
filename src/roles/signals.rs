//! When a process is to stop.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a process that a second signal ends: what shells report for SIGINT.
const INTERRUPTED: i32 = 130;

/// A token that the first SIGINT or SIGTERM cancels. A second signal ends the process at once.
pub(super) fn shutdown() -> CancellationToken {
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    if let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        tokio::spawn(async move {
            for again in [false, true] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if again {
                    std::process::exit(INTERRUPTED);
                }
                token.cancel();
            }
        });
    }
    shutdown
}
