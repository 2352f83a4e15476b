//! Debian's pgbouncer in transaction mode, in front of a test's Postgres.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sqlx::postgres::PgConnectOptions;
use uuid::Uuid;

use super::process::signal;
use super::{repository, skipped};

/// Installs it if need be; false, after a loud word, where that cannot be done.
pub fn installed(what: &str) -> bool {
    let install = Command::new(repository("tests/debian-packages")).arg("/usr/sbin/pgbouncer=pgbouncer").status();
    let there = install.is_ok_and(|status| status.success());
    if !there {
        skipped(&format!("pgbouncer is not installed and cannot be, so {what}"));
    }
    there
}

/// A pooler that lends a server's session for one transaction. It ends with this value.
pub struct PgBouncer {
    directory: PathBuf,
    server: PgConnectOptions,
    pid: u32,
}

impl PgBouncer {
    /// One for all databases of the server that `server` connects to by a socket. `sessions` are those that it has of the
    /// server for each database, `more` are lines of its configuration.
    pub fn start(server: &PgConnectOptions, sessions: u32, more: &str) -> PgBouncer {
        let socket = server.get_socket().expect("the test's Postgres has a socket");
        let directory = std::env::temp_dir().join(format!("lw-{}", &Uuid::new_v4().simple().to_string()[..12]));
        DirBuilder::new().mode(0o700).create(&directory).expect("a directory");
        let configuration = directory.join("pgbouncer.ini");
        let ours = directory.display();
        // Without an address it listens on the socket alone, which the port only names.
        let text = format!(
            "[databases]\n* = host={} port={} user={}\n[pgbouncer]\nlisten_addr =\nlisten_port = 6432\n\
             unix_socket_dir = {ours}\nauth_type = any\npool_mode = transaction\ndefault_pool_size = {sessions}\n\
             max_client_conn = 1000\nlogfile = {ours}/log\n{more}\n",
            socket.display(),
            server.get_port(),
            server.get_username(),
        );
        fs::write(&configuration, text).expect("a configuration");
        // Only the user that Postgres runs as reaches its socket, and pgbouncer refuses to run as root.
        let owner = fs::metadata(socket).expect("the socket's directory");
        for path in [&directory, &configuration] {
            chown(path, Some(owner.uid()), Some(owner.gid())).expect("given away");
        }
        let pid = spawn(&configuration, rustix::process::geteuid().is_root().then(|| (owner.uid(), owner.gid())));
        let bouncer = PgBouncer { directory, server: server.clone(), pid };
        let since = Instant::now();
        while !bouncer.directory.join(".s.PGSQL.6432").exists() {
            assert!(since.elapsed() < Duration::from_secs(20), "pgbouncer listens; its log:\n{}", bouncer.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        bouncer
    }

    /// How to connect through it to the database that `direct` connects to.
    pub fn options(&self, direct: &PgConnectOptions) -> PgConnectOptions {
        direct.clone().socket(&self.directory).port(6432)
    }

    /// The same as a URL.
    pub fn url(&self, direct: &PgConnectOptions) -> String {
        socket_url(&self.directory, 6432, direct)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The URL past it, of the database that `direct` connects to.
    pub fn direct_url(&self, direct: &PgConnectOptions) -> String {
        socket_url(self.server.get_socket().expect("a socket"), self.server.get_port(), direct)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        signal(self.pid, Signal::KILL);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn socket_url(directory: &Path, port: u16, options: &PgConnectOptions) -> String {
    let database = options.get_database().expect("a database");
    format!("postgres:///{database}?host={}&port={port}&user={}", directory.display(), options.get_username())
}

/// Runs it as another user, from a thread that lives as long as it: it ends when that thread does, so with this process.
fn spawn(configuration: &Path, user: Option<(u32, u32)>) -> u32 {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "/usr/sbin/pgbouncer", "--quiet"]).arg(configuration).current_dir("/");
    if let Some((user, group)) = user {
        command.uid(user).gid(group);
    }
    let (started, pid) = mpsc::channel();
    std::thread::spawn(move || {
        let mut child = command.spawn().expect("pgbouncer starts");
        started.send(child.id()).expect("the test waits");
        let _ = child.wait();
    });
    pid.recv().expect("it started")
}
