//! Makes a cluster with `initdb`, starts its server, waits until that is ready, and creates the database in it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::time::sleep;

use super::directory::DataDir;
use super::error::{PostgresError, at};
use super::options::{DATABASE, Options, USER};
use super::process::{OnDrop, PostgresProcess};
use super::user::ServerUser;
use crate::store::ConnectOptions;
use crate::store::server::{ServerConnection, by_socket};

/// How long initdb may take: a second as a rule, but its fsyncs may take minutes on a slow disk.
const INITDB: Duration = Duration::from_secs(300);
/// How long a server may not answer before it is given up. One that answers that it is starting up may take any time.
const READY: Duration = Duration::from_secs(60);
/// The pause between two attempts to connect to a server that is starting.
const TRY: Duration = Duration::from_millis(10);
/// How often it is logged that a server is waited for.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// A cluster in its locked data directory, and what is needed to start its server, once or again.
pub(super) struct Cluster {
    pub(super) options: Options,
    pub(super) data_dir: Arc<DataDir>,
    /// The directory of the programs.
    pub(super) bin: PathBuf,
    /// The user that the programs run as.
    pub(super) user: ServerUser,
}

impl Cluster {
    /// Makes the cluster if there is none: under another name, which it loses when it is complete and on disk.
    pub(super) async fn initialise(&self) -> Result<(), PostgresError> {
        if self.data_dir.cluster_major().is_some() {
            return Ok(());
        }
        tracing::info!("creating a Postgres cluster in {}", self.data_dir.cluster().display());
        let fresh = self.data_dir.root.join("postgres.new");
        fs::DirBuilder::new().mode(0o700).create(&fresh).map_err(at("create", &fresh))?;
        self.user.own(&fresh)?;
        let mut command = self.command("initdb");
        command.arg("-D").arg(&fresh).arg(format!("--username={USER}"));
        command.args(["--locale=C", "--encoding=UTF8", "--auth=trust"]);
        if self.options.ephemeral {
            command.arg("--no-sync");
        }
        // At SIGTERM, initdb removes what it has made.
        let (initdb, log_start) = self.run(command, Signal::TERM, Signal::TERM)?;
        match initdb.ended_within(INITDB).await {
            Some(status) if status.success() => {}
            Some(status) => return Err(self.failed("initdb", format!("failed ({status})"), log_start)),
            None => return Err(self.failed("initdb", format!("did not end within {INITDB:?}"), log_start)),
        }
        let cluster = self.data_dir.cluster();
        fs::rename(&fresh, &cluster).map_err(at("create", &cluster))?;
        let root = &self.data_dir.root;
        let synced = File::open(root).and_then(|directory| directory.sync_all());
        synced.map_err(at("write to disk", root))
    }

    /// Starts the server, and waits until it takes connections and has the database.
    pub(super) async fn start(&self) -> Result<PostgresProcess, PostgresError> {
        self.data_dir.clear_leftovers().await?;
        self.user.own(&self.data_dir.cluster())?;
        self.user.own(&self.data_dir.socket_dir)?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data_dir.cluster());
        for setting in self.settings() {
            command.arg("-c").arg(setting);
        }
        let at_drop = if self.options.ephemeral { Signal::QUIT } else { Signal::INT };
        let (server, log_start) = self.run(command, Signal::INT, at_drop)?;
        let mut connection = self.ready(&server, log_start).await?;
        connection.ensure_database(DATABASE).await.map_err(PostgresError::Database)?;
        connection.close().await;
        Ok(server)
    }

    /// How to connect to a database of the server.
    pub(super) fn connect_options(&self, database: &str) -> ConnectOptions {
        by_socket(&self.data_dir.socket_dir, USER, database)
    }

    /// The settings of the server, as `name=value`.
    fn settings(&self) -> Vec<OsString> {
        let mut settings: Vec<OsString> = vec![socket_setting(&self.data_dir.socket_dir)];
        let mut set = |name: &str, value: &str| settings.push(format!("{name}={value}").into());
        set("listen_addresses", "");
        set("port", "5432");
        set("max_connections", &self.options.max_connections.to_string());
        set("shared_buffers", "128MB");
        set("max_wal_size", "1GB");
        set("timezone", "UTC");
        set("log_timezone", "UTC");
        set("jit", "off");
        set("log_checkpoints", "off");
        set("autovacuum_naptime", "10s");
        if self.options.ephemeral {
            set("fsync", "off");
            set("full_page_writes", "off");
        } else {
            set("fsync", "on");
        }
        for (name, value) in &self.options.extra_settings {
            set(name, value);
        }
        settings
    }

    /// The command of one of the programs.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.current_dir(&self.data_dir.root);
        // Variables such as PGDATA and PGPORT, if there are any, are meant for another server.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C");
        command
    }

    /// Starts a program, with its output in the log. Also gives the byte at which its part of the log begins.
    fn run(
        &self,
        mut command: Command,
        on_our_death: Signal,
        at_drop: Signal,
    ) -> Result<(PostgresProcess, u64), PostgresError> {
        let (log, start) = self.data_dir.open_log()?;
        let errors = log.try_clone().map_err(at("open", self.data_dir.log()))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let program = PathBuf::from(command.get_program());
        let on_drop = OnDrop { signal: at_drop, wait: self.options.ephemeral };
        let data_dir = Arc::clone(&self.data_dir);
        let process = PostgresProcess::start(self.user, command, on_our_death, on_drop, data_dir);
        Ok((process.map_err(at("start", program))?, start))
    }

    /// Tries to connect until that succeeds, the server ends, or it does not answer for too long.
    async fn ready(&self, server: &PostgresProcess, log_start: u64) -> Result<ServerConnection, PostgresError> {
        let options = self.connect_options("postgres");
        let (mut silent_since, mut logged) = (Instant::now(), Instant::now());
        loop {
            let not_up = match ServerConnection::open(&options, READY).await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            if let Some(status) = server.status() {
                return Err(self.failed("postgres", format!("ended at its start ({status})"), log_start));
            }
            if not_up.answers {
                silent_since = Instant::now();
            } else if silent_since.elapsed() > READY {
                let what = format!("was not ready within {READY:?} ({not_up})");
                return Err(self.failed("postgres", what, log_start));
            }
            if logged.elapsed() > LOG_EVERY {
                tracing::info!("waiting for Postgres to be ready: {not_up}");
                logged = Instant::now();
            }
            sleep(TRY).await;
        }
    }

    /// The error of a program that has failed, with the last lines of its log.
    fn failed(&self, program: &'static str, what: String, log_start: u64) -> PostgresError {
        PostgresError::Failed { program, what, log: self.data_dir.log(), tail: self.data_dir.log_tail(log_start) }
    }
}

/// The setting of the socket's directory. It is a comma-separated list, so the one path in it is quoted.
fn socket_setting(directory: &Path) -> OsString {
    let mut setting = b"unix_socket_directories=\"".to_vec();
    for byte in directory.as_os_str().as_bytes() {
        setting.push(*byte);
        if *byte == b'"' {
            setting.push(b'"');
        }
    }
    setting.push(b'"');
    OsString::from_vec(setting)
}

/// Percent-encodes text for a URL: all but letters, digits, `-`, `.`, `_` and `~`, which are RFC 3986's unreserved characters.
pub(super) fn percent_encoded(text: &OsStr) -> String {
    let encode = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(*byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.as_bytes().iter().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_survive_the_setting_and_the_url() {
        let setting = socket_setting(Path::new("/a, b/\"c\""));
        assert_eq!(setting, "unix_socket_directories=\"/a, b/\"\"c\"\"\"");
        assert_eq!(percent_encoded(OsStr::new("/a b")), "%2Fa%20b");
    }
}
