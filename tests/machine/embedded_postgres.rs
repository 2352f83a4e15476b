//! The embedded Postgres, with real servers: what survives, who ends with whom, and who may not start.
//!
//! The first run fetches the archives (30 MB) into the target directory. Run as root, these tests also cover
//! the ways in which root's server becomes somebody else's; most of them then go through a user namespace,
//! because a temporary directory is closed to other users.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use lastword::local::postgres::{Embedded, Options, PostgresError, Shutdown, Version};
use rustix::process::Signal;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::support::db::cache;
use crate::support::process::{is_alive, signal};
use crate::support::wait::{eventually_within, throughout};

fn options(directory: &Path) -> Options {
    Options::new(directory, cache())
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

async fn connect(server: &Embedded) -> PgConnection {
    PgConnection::connect(&server.url()).await.expect("the URL connects")
}

async fn remember(connection: &mut PgConnection, word: &'static str) {
    sqlx::query("CREATE TABLE IF NOT EXISTS word (word text)").execute(&mut *connection).await.expect("create");
    sqlx::query("INSERT INTO word VALUES ($1)").bind(word).execute(connection).await.expect("insert");
}

async fn remembered(server: &Embedded) -> Vec<String> {
    sqlx::query_scalar("SELECT word FROM word").fetch_all(&mut connect(server).await).await.expect("select")
}

async fn major(server: &Embedded) -> String {
    let version: String =
        sqlx::query_scalar("SHOW server_version").fetch_one(&mut connect(server).await).await.expect("version");
    version.split('.').next().expect("a number").to_owned()
}

fn checkpointer_of(postmaster: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).expect("children");
    let is_it = |pid: &u32| {
        let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        title.contains("checkpointer")
    };
    let mut pids = children.split_whitespace().map(|pid| pid.parse().expect("a pid"));
    pids.find(is_it).expect("a checkpointer")
}

#[tokio::test]
async fn data_survive_a_stop_and_a_start() {
    let directory = temporary();
    let begun = Instant::now();
    let server = Embedded::start(options(directory.path())).await.expect("starts");
    println!("cold start {:?}", begun.elapsed());
    remember(&mut connect(&server).await, "first").await;
    let pid = server.pid();
    server.stop().await;
    assert!(!is_alive(pid));

    let begun = Instant::now();
    let server = Embedded::start(options(directory.path())).await.expect("starts again");
    println!("warm start {:?}", begun.elapsed());
    assert_eq!(remembered(&server).await, ["first"]);
    let fsync: String = sqlx::query_scalar("SHOW fsync").fetch_one(&mut connect(&server).await).await.expect("fsync");
    assert_eq!(fsync, "on");
    server.stop().await;
}

#[tokio::test]
async fn a_second_start_names_the_directory_and_the_holder() {
    let directory = temporary();
    let server = Embedded::start(options(directory.path())).await.expect("starts");
    let error = Embedded::start(options(directory.path())).await.err().expect("refused");
    assert!(matches!(error, PostgresError::Locked { .. }), "{error}");
    let text = error.to_string();
    let path = directory.path().canonicalize().expect("path");
    assert!(text.contains(path.to_str().expect("UTF-8")), "{text}");
    assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    // The first one is none the worse for it.
    remember(&mut connect(&server).await, "still here").await;
    server.stop().await;
}

#[tokio::test]
async fn a_killed_parent_takes_its_server_with_it_and_the_data_stay() {
    let directory = temporary();
    let mut parent = Parent::start(directory.path(), None);
    let mut connection = PgConnection::connect(&parent.url).await.expect("connects");
    remember(&mut connection, "before the kill").await;
    drop(connection);
    parent.process.kill().expect("SIGKILL");
    parent.process.wait().expect("reaped");
    let begun = Instant::now();
    let gone = async || !is_alive(parent.server);
    eventually_within(Duration::from_secs(5), "the server follows its parent", gone).await;
    println!("the server followed its parent after {:?}", begun.elapsed());
    assert!(!directory.path().join("postgres/postmaster.pid").exists(), "the shutdown was not clean");
    let server = Embedded::start(options(directory.path())).await.expect("recovers");
    assert_eq!(remembered(&server).await, ["before the kill"]);
    server.stop().await;
}

#[tokio::test]
async fn a_start_right_after_the_kill_waits_for_the_old_server() {
    let directory = temporary();
    let mut parent = Parent::start(directory.path(), None);
    let mut connection = PgConnection::connect(&parent.url).await.expect("connects");
    remember(&mut connection, "kept").await;
    // Without its checkpointer, the old server cannot finish its shutdown. (The postmaster itself cannot be
    // stopped for this: the kernel continues a stopped process group whose parent dies.)
    let checkpointer = checkpointer_of(parent.server);
    signal(checkpointer, Signal::STOP);
    parent.process.kill().expect("SIGKILL");
    parent.process.wait().expect("reaped");
    let start = tokio::spawn(Embedded::start(options(directory.path())));
    throughout(Duration::from_millis(300), "the start waits", async || !start.is_finished()).await;
    assert!(is_alive(parent.server));
    signal(checkpointer, Signal::CONT);
    let server = start.await.expect("no panic").expect("starts");
    assert_ne!(server.pid(), parent.server);
    assert_eq!(remembered(&server).await, ["kept"]);
    server.stop().await;
}

#[tokio::test]
async fn a_kill_of_both_is_recovered_from() {
    let directory = temporary();
    let mut parent = Parent::start(directory.path(), None);
    let mut connection = PgConnection::connect(&parent.url).await.expect("connects");
    remember(&mut connection, "committed").await;
    signal(parent.server, Signal::KILL);
    parent.process.kill().expect("SIGKILL");
    parent.process.wait().expect("reaped");
    let server = Embedded::start(options(directory.path())).await.expect("recovers");
    assert_eq!(remembered(&server).await, ["committed"]);
    server.stop().await;
}

#[tokio::test]
async fn a_stale_pid_file_that_names_another_program_is_no_obstacle() {
    let directory = temporary();
    let mut server = Embedded::start(options(directory.path())).await.expect("starts");
    let path = directory.path().join("postgres/postmaster.pid");
    let pid_file = fs::read_to_string(&path).expect("a pid file");
    server.halt(Shutdown::Fast).await;
    // Postgres itself refuses this file when it may signal the other program: seen as an ordinary user, while in
    // root's user namespace it starts anyway.
    let mut other = Command::new("sleep").arg("60").spawn().expect("sleep starts");
    let (_, rest) = pid_file.split_once('\n').expect("lines");
    let stale = format!("{}\n{rest}", other.id());
    fs::write(&path, &stale).expect("write");
    fs::write(directory.path().join("run/.s.PGSQL.5432.lock"), &stale).expect("write");
    server.resume().await.expect("starts");
    assert!(is_alive(other.id()), "a foreign process was ended");
    server.stop().await;
    other.kill().expect("kill");
    other.wait().expect("reaped");
}

#[tokio::test]
async fn the_oldest_version_starts_and_keeps_its_cluster() {
    let directory = temporary();
    let oldest = Options { version: Version::V15, ..options(directory.path()) };
    let server = Embedded::start(oldest).await.expect("15 starts");
    assert_eq!(major(&server).await, "15");
    server.stop().await;
    // A newer default serves the old cluster with its own version.
    let server = Embedded::start(options(directory.path())).await.expect("15 starts again");
    assert_eq!(major(&server).await, "15");
    server.stop().await;
}

#[tokio::test]
async fn the_newest_version_starts() {
    let directory = temporary();
    let server = Embedded::start(options(directory.path())).await.expect("18 starts");
    assert_eq!(major(&server).await, "18");
    server.stop().await;
}

#[tokio::test]
async fn a_deep_directory_gets_its_socket_elsewhere_and_leaves_nothing_there() {
    let directory = temporary();
    let deep = directory.path().join("deep".repeat(20)).join("deeper".repeat(10));
    let server = Embedded::start(options(&deep)).await.expect("starts");
    let socket = server.connect_options("lastword").get_socket().cloned().expect("a socket");
    assert!(!socket.starts_with(directory.path()));
    let mode = fs::metadata(&socket).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    remember(&mut connect(&server).await, "deep").await;
    server.stop().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_crash_is_told_and_resumed_on_the_same_url() {
    let directory = temporary();
    let mut server = Embedded::start(options(directory.path())).await.expect("starts");
    remember(&mut connect(&server).await, "before").await;
    let (url, exited) = (server.url(), server.exited());
    signal(server.pid(), Signal::KILL);
    let status = tokio::time::timeout(Duration::from_secs(5), exited).await.expect("told");
    assert!(!status.expect("a status").success());
    server.resume().await.expect("resumes");
    assert_eq!(server.url(), url);
    assert_eq!(remembered(&server).await, ["before"]);
    server.halt(Shutdown::Kill).await;
    server.resume().await.expect("resumes");
    assert_eq!(remembered(&server).await, ["before"]);
    server.stop().await;
}

#[tokio::test]
async fn an_ephemeral_cluster_is_gone_after_its_drop_and_nothing_else_is() {
    let directory = temporary();
    let root = directory.path().join("cluster");
    fs::create_dir(&root).expect("create");
    fs::write(root.join("mine"), "not Postgres'").expect("write");
    let ephemeral = Options { ephemeral: true, ..options(&root) };
    let server = Embedded::start(ephemeral).await.expect("starts");
    let pid = server.pid();
    drop(server);
    assert!(!is_alive(pid));
    let left: Vec<_> = fs::read_dir(&root).expect("kept").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(left, ["mine"]);
}

#[tokio::test]
async fn a_failed_start_shows_the_log_and_frees_the_directory() {
    let directory = temporary();
    let mut wrong = options(directory.path());
    wrong.extra_settings.push(("shared_buffers".into(), "nonsense".into()));
    let error = Embedded::start(wrong).await.err().expect("refused");
    assert!(error.to_string().contains("nonsense"), "{error}");
    let server = Embedded::start(options(directory.path())).await.expect("starts");
    server.stop().await;
}

#[tokio::test]
async fn root_gives_the_server_to_another_user_where_that_one_can_enter() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let directory = temporary();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), open).expect("chmod");
    let server = Embedded::start(options(directory.path())).await.expect("starts");
    let owner = |path: PathBuf| fs::metadata(path).expect("there").uid();
    let user = owner(format!("/proc/{}", server.pid()).into());
    assert_ne!(user, 0);
    remember(&mut connect(&server).await, "theirs").await;
    server.stop().await;
    assert_eq!(owner(directory.path().join("postgres")), user);
    // When that user may no longer enter, root serves it in a namespace, and the data are the same.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
    let server = Embedded::start(options(directory.path())).await.expect("starts");
    assert_eq!(owner(directory.path().join("postgres")), 0);
    assert_eq!(remembered(&server).await, ["theirs"]);
    server.stop().await;
}

#[tokio::test]
async fn an_ordinary_user_starts_it_as_itself() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return; // then every other test shows it
    }
    let directory = temporary();
    lchown(directory.path(), Some(NOBODY), Some(NOBODY)).expect("chown");
    let mut parent = Parent::start(directory.path(), Some(NOBODY));
    let owner = fs::metadata(format!("/proc/{}", parent.server)).expect("runs").uid();
    assert_eq!(owner, NOBODY);
    drop(parent.process.stdin.take()); // the helper stops its server and ends
    assert!(parent.process.wait().expect("reaped").success());
    assert!(!is_alive(parent.server));
}

/// Another process that owns a server: this test binary, run again.
struct Parent {
    process: Child,
    server: u32,
    url: String,
    /// Held open: the test harness in there prints a summary at its end.
    _output: BufReader<ChildStdout>,
}

impl Parent {
    fn start(directory: &Path, uid: Option<u32>) -> Parent {
        let mut command = Command::new(std::env::current_exe().expect("our path"));
        command.args(["--exact", "embedded_postgres::the_parent_of_a_server", "--nocapture"]);
        command.env("LASTWORD_TEST_PARENT_OF", directory).current_dir(directory);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let mut process = command.spawn().expect("starts itself");
        let mut output = BufReader::new(process.stdout.take().expect("piped"));
        let line = output
            .by_ref()
            .lines()
            .map(|line| line.expect("text"))
            .find(|line| line.contains("SERVER "))
            .expect("the helper tells its server");
        let words: Vec<_> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "SERVER").expect("found");
        Parent {
            process,
            server: words[at + 1].parse().expect("a pid"),
            url: words[at + 2].to_owned(),
            _output: output,
        }
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// No test by itself: what [`Parent`] runs. Serves until its standard input ends.
#[tokio::test]
async fn the_parent_of_a_server() {
    let Some(directory) = std::env::var_os("LASTWORD_TEST_PARENT_OF") else {
        return;
    };
    let server = Embedded::start(options(Path::new(&directory))).await.expect("starts");
    println!("SERVER {} {}", server.pid(), server.url());
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()))
        .await
        .expect("no panic")
        .expect("read");
    server.stop().await;
}
