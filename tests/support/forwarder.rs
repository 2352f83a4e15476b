//! A Unix socket in front of Postgres that can be cut, or fall silent.

use std::path::PathBuf;

use sqlx::postgres::PgConnectOptions;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// What becomes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// They stay, and nothing that is sent arrives.
    #[expect(clippy::allow_attributes, reason = "what one target uses and another does not can be expected in neither")]
    #[allow(dead_code, reason = "the target `store` alone makes a network silent")]
    Silent,
    Cut,
}

/// Forwards connections to a server's socket, while it is not cut.
pub struct Forwarder {
    directory: tempfile::TempDir,
    state: watch::Sender<State>,
    database: PgConnectOptions,
}

impl Forwarder {
    /// In front of the server of these options, which name a socket's directory.
    pub fn start(database: PgConnectOptions) -> Forwarder {
        let directory = tempfile::tempdir().expect("a directory");
        let name = format!(".s.PGSQL.{}", database.get_port());
        let server: PathBuf = database.get_socket().expect("a server on a Unix socket").join(&name);
        let listener = UnixListener::bind(directory.path().join(&name)).expect("a socket");
        let (state, seen) = watch::channel(State::Open);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, server.clone(), seen.clone()));
            }
        });
        Forwarder { directory, state, database }
    }

    /// How to connect by way of it.
    pub fn options(&self) -> PgConnectOptions {
        self.database.clone().socket(self.directory.path())
    }

    /// Ends all connections, and every new one at once.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Swallows what is sent on all connections, and on every new one. Those that were open now never speak again.
    #[expect(clippy::allow_attributes, reason = "what one target uses and another does not can be expected in neither")]
    #[allow(dead_code, reason = "the target `store` alone makes a network silent")]
    pub fn silence(&self) {
        self.state.send_replace(State::Silent);
    }

    pub fn mend(&self) {
        self.state.send_replace(State::Open);
    }
}

async fn forward(mut client: UnixStream, server: PathBuf, mut state: watch::Receiver<State>) {
    let now = *state.borrow();
    if now == State::Open {
        let Ok(mut server) = UnixStream::connect(server).await else { return };
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
            _ = state.wait_for(|state| *state != State::Open) => {}
        }
    }
    // Whoever sends to it hears nothing, until it is cut.
    let _ = state.wait_for(|state| *state == State::Cut).await;
}
