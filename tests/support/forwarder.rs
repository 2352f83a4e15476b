//! A Unix socket in front of Postgres that can be cut.

use std::path::PathBuf;

use sqlx::postgres::PgConnectOptions;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// Forwards connections to a server's socket, while it is not cut.
pub struct Forwarder {
    directory: tempfile::TempDir,
    open: watch::Sender<bool>,
    database: PgConnectOptions,
}

impl Forwarder {
    /// In front of the server of these options, which name a socket's directory.
    pub fn start(database: PgConnectOptions) -> Forwarder {
        let directory = tempfile::tempdir().expect("a directory");
        let name = format!(".s.PGSQL.{}", database.get_port());
        let server: PathBuf = database.get_socket().expect("a server on a Unix socket").join(&name);
        let listener = UnixListener::bind(directory.path().join(&name)).expect("a socket");
        let (open, state) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, server.clone(), state.clone()));
            }
        });
        Forwarder { directory, open, database }
    }

    /// How to connect by way of it.
    pub fn options(&self) -> PgConnectOptions {
        self.database.clone().socket(self.directory.path())
    }

    /// Ends all connections, and every new one at once.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn mend(&self) {
        self.open.send_replace(true);
    }
}

async fn forward(mut client: UnixStream, server: PathBuf, mut open: watch::Receiver<bool>) {
    if !*open.borrow() {
        return;
    }
    let Ok(mut server) = UnixStream::connect(server).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        _ = open.wait_for(|open| !open) => {}
    }
}
