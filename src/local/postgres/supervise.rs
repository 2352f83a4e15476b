//! The server's life: initdb once, postgres, readiness, the database in it, shutdown.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use tokio::time::{sleep, timeout};

use super::directory::DataDir;
use super::error::{PostgresError, at};
use super::identity::ServerUser;
use super::process::Process;
use super::{DATABASE, Options, USER};

/// initdb takes a second; on a slow disk, its fsyncs take long.
const INITDB: Duration = Duration::from_secs(300);
/// How long a server may be silent before it is ready; one that says "starting up" may take any time.
const READY: Duration = Duration::from_secs(60);
/// How often a server that starts is tried.
const TRY: Duration = Duration::from_millis(10);
/// SQLSTATE cannot_connect_now: the server is starting up, recovering or shutting down.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// Everything that a start has found out; enough to start the server again.
pub(super) struct Plan {
    pub(super) options: Options,
    pub(super) claim: Arc<DataDir>,
    pub(super) bin: PathBuf,
    pub(super) identity: ServerUser,
}

impl Plan {
    /// Makes the cluster if there is none. A crash on the way leaves nothing that looks like one.
    pub(super) async fn initialise(&self) -> Result<(), PostgresError> {
        if self.claim.cluster_major().is_some() {
            return Ok(());
        }
        tracing::info!("creating a Postgres cluster in {}", self.claim.cluster().display());
        let fresh = self.claim.root.join("postgres.new");
        fs::DirBuilder::new().mode(0o700).create(&fresh).map_err(at("create", &fresh))?;
        self.identity.own(&fresh)?;
        let mut command = self.command("initdb");
        command.arg("-D").arg(&fresh).arg(format!("--username={USER}"));
        command.args(["--locale=C", "--encoding=UTF8", "--auth=trust"]);
        if self.options.ephemeral {
            command.arg("--no-sync");
        }
        // initdb removes what it made when it is terminated.
        let (initdb, log_start) = self.run(command, Signal::TERM, Signal::TERM)?;
        match initdb.ended_within(INITDB).await {
            Some(status) if status.success() => {}
            Some(status) => return Err(self.failed("initdb", format!("failed ({status})"), log_start)),
            None => return Err(self.failed("initdb", format!("did not end within {INITDB:?}"), log_start)),
        }
        let cluster = self.claim.cluster();
        fs::rename(&fresh, &cluster).map_err(at("create", &cluster))?;
        let root = &self.claim.root;
        let synced = File::open(root).and_then(|directory| directory.sync_all());
        synced.map_err(at("write to disk", root))
    }

    /// Starts the server and waits until it takes connections and has our database.
    pub(super) async fn start(&self) -> Result<Process, PostgresError> {
        self.claim.clear_leftovers().await?;
        self.identity.own(&self.claim.cluster())?;
        self.identity.own(&self.claim.socket_dir)?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.claim.cluster());
        for setting in self.settings() {
            command.arg("-c").arg(setting);
        }
        let at_drop = if self.options.ephemeral { Signal::QUIT } else { Signal::INT };
        let (server, log_start) = self.run(command, Signal::INT, at_drop)?;
        let mut connection = self.ready(&server, log_start).await?;
        create_database(&mut connection).await.map_err(PostgresError::Database)?;
        // Closing politely is a courtesy: the server notices anyway.
        let _ = connection.close().await;
        Ok(server)
    }

    /// How to connect to one of the server's databases.
    pub(super) fn connect_options(&self, database: &str) -> PgConnectOptions {
        connect_options(&self.claim.socket_dir, database)
    }

    fn settings(&self) -> Vec<OsString> {
        let mut settings: Vec<OsString> = vec![socket_setting(&self.claim.socket_dir)];
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

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        // A terminal's Ctrl-C is for us: the server stops when we say so.
        command.current_dir(&self.claim.root).process_group(0);
        // Variables such as PGDATA and PGPORT are meant for another server.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C");
        command
    }

    /// Starts a program with its output in the log; also where its part of the log begins.
    fn run(
        &self,
        mut command: Command,
        on_our_death: Signal,
        at_drop: Signal,
    ) -> Result<(Process, u64), PostgresError> {
        let (log, start) = self.claim.open_log()?;
        let errors = log.try_clone().map_err(at("open", self.claim.log()))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let program = PathBuf::from(command.get_program());
        let on_drop = (at_drop, self.options.ephemeral);
        let claim = Arc::clone(&self.claim);
        let process = Process::start(self.identity, command, on_our_death, on_drop, claim);
        Ok((process.map_err(at("start", program))?, start))
    }

    /// Tries to connect until it succeeds, the server ends, or it is silent for too long.
    async fn ready(&self, server: &Process, log_start: u64) -> Result<PgConnection, PostgresError> {
        let options = self.connect_options("postgres").disable_statement_logging();
        let (mut silent_since, mut logged) = (Instant::now(), Instant::now());
        loop {
            let last = match timeout(READY, PgConnection::connect_with(&options)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => error,
                Err(_) => sqlx::Error::from(io::Error::from(io::ErrorKind::TimedOut)),
            };
            if let Some(status) = server.status() {
                return Err(self.failed("postgres", format!("ended at its start ({status})"), log_start));
            }
            if is_starting(&last) {
                silent_since = Instant::now();
            } else if silent_since.elapsed() > READY {
                let what = format!("was not ready within {READY:?} ({last})");
                return Err(self.failed("postgres", what, log_start));
            }
            if logged.elapsed() > Duration::from_secs(5) {
                tracing::info!("waiting for Postgres to be ready: {last}");
                logged = Instant::now();
            }
            sleep(TRY).await;
        }
    }

    fn failed(&self, program: &'static str, what: String, log_start: u64) -> PostgresError {
        PostgresError::Failed { program, what, log: self.claim.log(), tail: self.claim.log_tail(log_start) }
    }
}

fn is_starting(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.as_deref() == Some(CANNOT_CONNECT_NOW)
}

async fn create_database(connection: &mut PgConnection) -> sqlx::Result<()> {
    let there: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(DATABASE)
        .fetch_one(&mut *connection)
        .await?;
    if !there {
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {DATABASE}"))).execute(connection).await?;
    }
    Ok(())
}

/// The setting is a comma-separated list, so the one path in it is quoted.
/// How to connect through a server's socket.
pub(super) fn connect_options(socket_dir: &Path, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host("localhost")
        .port(5432)
        .socket(socket_dir)
        .username(USER)
        .database(database)
        .ssl_mode(PgSslMode::Disable)
}

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

/// Percent-encodes all but letters, digits, `-`, `.`, `_` and `~`.
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
