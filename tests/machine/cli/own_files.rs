//! Which files commands read though nobody named them: their user's own, and never what others put into a directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::finish;
use super::stub::{Stub, complete, text};
use crate::support::{Db, LASTWORD};

crate::newest! { a_saved_key_is_used_for_its_gateway_alone }

/// A command in this working directory, of a user whose own files are in `home`.
fn lastword(directory: &Path, home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(LASTWORD);
    command.args(args).env_clear().env("XDG_CONFIG_HOME", home).env("LASTWORD_AGENT", "bc").current_dir(directory);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn run(command: &mut Command) -> (Option<i32>, String, String) {
    finish(command.spawn().unwrap()).await
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

async fn answering() -> Stub {
    Stub::start(vec![text("ok"), complete("reply")]).await
}

#[tokio::test]
async fn init_writes_what_other_commands_read() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let init = async |args: &[&str]| run(&mut lastword(dir.path(), home.path(), args)).await;
    let (code, stdout, stderr) = init(&["init", "--yes", "--gateway-listen", "0.0.0.0:1234"]).await;
    assert_eq!(code, Some(0), "{stderr}");
    let (file, own) = (dir.path().join("lastword.env"), home.path().join("lastword/client.env"));
    assert!(stdout.contains("client.env"), "{stdout}");
    let written = fs::read_to_string(&file).unwrap();
    assert!(written.contains("LASTWORD_DATABASE_URL=\"/") && written.contains("/.lastword\""), "{written}");
    assert_eq!((mode(&file), mode(&own)), (0o600, 0o600));
    assert_eq!(fs::read_to_string(&own).unwrap(), "LASTWORD_GATEWAY_URL=http://127.0.0.1:1234/\n");
    let (code, _, stderr) = init(&["init", "--yes"]).await;
    assert!(code == Some(1) && stderr.contains("--force"), "{stderr}");
    // The file of the clients may name another gateway by now: it stays.
    let stub = answering().await;
    fs::write(&own, format!("LASTWORD_GATEWAY_URL={}\n", stub.url())).unwrap();
    assert_eq!(init(&["init", "--embedded", "elsewhere", "--force"]).await.0, Some(0));
    assert!(fs::read_to_string(&file).unwrap().contains("/elsewhere\""));
    let (code, stdout, stderr) = init(&["chat", "x"]).await;
    assert_eq!((code, stdout.as_str()), (Some(0), "ok"), "{stderr}");
    assert_eq!(stub.submits().len(), 1);
}

/// A directory in which somebody else works: nothing in it tells a client where to go.
#[tokio::test]
async fn a_working_directory_tells_clients_nothing() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (evil, mine) = (answering().await, answering().await);
    let text = format!("LASTWORD_GATEWAY_URL={}\nLASTWORD_AGENT=evil\nLASTWORD_API_KEY=lwk_evil\n", evil.url());
    fs::write(dir.path().join("lastword.env"), &text).unwrap();
    chmod(&dir.path().join("lastword.env"), 0o644);
    fs::create_dir(home.path().join("lastword")).unwrap();
    let own = home.path().join("lastword/client.env");
    fs::write(&own, format!("LASTWORD_GATEWAY_URL={}\n", mine.url())).unwrap();
    chmod(&own, 0o600);
    for command in [&["chat", "x"][..], &["turns", "list"]] {
        let (code, _, stderr) =
            run(lastword(dir.path(), home.path(), command).env("LASTWORD_API_KEY", "lwk_secret")).await;
        assert_eq!(code, Some(0), "{command:?}: {stderr}");
    }
    assert_eq!(mine.submits()[0]["agent"], "bc");
    let key = Some("Bearer lwk_secret".to_owned());
    assert!(mine.keys().iter().all(|shown| *shown == key), "{:?}", mine.keys());
    assert!(evil.keys().is_empty(), "nothing was asked");
    // Without a file of one's own, it is the gateway of this machine, and still not that of the directory.
    fs::remove_file(&own).unwrap();
    let mut chat = lastword(dir.path(), home.path(), &["chat", "--retry-seconds", "0", "x"]);
    let _ = run(chat.env("LASTWORD_API_KEY", "lwk_secret")).await;
    assert!(evil.keys().is_empty(), "nothing was asked");
    // One that others may read is not used.
    fs::write(&own, format!("LASTWORD_GATEWAY_URL={}\n", mine.url())).unwrap();
    chmod(&own, 0o644);
    let (code, _, stderr) = run(&mut lastword(dir.path(), home.path(), &["chat", "x"])).await;
    assert!(code == Some(1) && stderr.contains("chmod 600"), "{stderr}");
}

/// A program that leaves a trace when it is run, as `postgres` and `initdb`.
fn trap(directory: &Path) -> (PathBuf, PathBuf) {
    let (bin, trace) = (directory.join("bin"), directory.join("trace"));
    fs::create_dir(&bin).unwrap();
    // Root's server runs as another user, who must get there.
    chmod(directory, 0o777);
    let script = format!("#!/bin/sh\necho run >> '{}'\necho 'postgres (PostgreSQL) 18.0'\n", trace.display());
    for name in ["postgres", "initdb"] {
        fs::write(bin.join(name), &script).unwrap();
        chmod(&bin.join(name), 0o755);
    }
    (bin, trace)
}

#[tokio::test]
async fn a_file_that_may_be_anothers_makes_no_role_do_anything() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (bin, trace) = trap(dir.path());
    let file = dir.path().join("lastword.env");
    let roles = ["migrate", "dev", "gateway", "controller", "keys list"];
    let refused = async |word: &str| {
        for role in roles {
            let args: Vec<&str> = role.split(' ').collect();
            let (code, _, stderr) = run(&mut lastword(dir.path(), home.path(), &args)).await;
            assert!(code == Some(1) && stderr.contains(word) && stderr.contains("lastword.env"), "{role}: {stderr}");
        }
        assert!(!trace.exists() && !dir.path().join(".lastword").exists(), "nothing was run or made: {word}");
    };
    // It is ours, and yet it names no programs.
    for variable in ["LASTWORD_POSTGRES_BIN", "LASTWORD_CACHE_DIR"] {
        fs::write(&file, format!("{variable}={}\n", bin.display())).unwrap();
        chmod(&file, 0o600);
        refused(variable).await;
    }
    fs::write(&file, "LASTWORD_DATABASE_URL=postgres://evil@127.0.0.1:1/x\n").unwrap();
    for bits in [0o620, 0o602, 0o666] {
        chmod(&file, bits);
        refused("chmod go-w").await;
    }
    if rustix::process::geteuid().is_root() {
        chmod(&file, 0o644);
        std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
        refused("belongs to another user").await;
    }
    fs::rename(&file, dir.path().join("other.env")).unwrap();
    symlink("other.env", &file).unwrap();
    refused("symbolic link").await;
    // Whoever does not own the directory does not look.
    let (code, _, stderr) = run(&mut lastword(dir.path(), home.path(), &["crds"])).await;
    assert_eq!(code, Some(0), "{stderr}");
}

#[tokio::test]
async fn a_data_directory_that_may_be_anothers_is_not_used() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (bin, trace) = trap(dir.path());
    let data = dir.path().join(".lastword");
    let bin = bin.display().to_string();
    let migrate = async || {
        let mut command = lastword(dir.path(), home.path(), &["migrate", "--postgres-bin", &bin]);
        run(&mut command).await
    };
    fs::create_dir(&data).unwrap();
    for bits in [0o770, 0o707, 0o1777] {
        chmod(&data, bits);
        let (code, _, stderr) = migrate().await;
        assert!(code == Some(1) && stderr.contains("chmod go-w"), "{bits:o}: {stderr}");
    }
    // A link in place of the lock is not written through.
    chmod(&data, 0o700);
    let precious = dir.path().join("precious");
    fs::write(&precious, "kept").unwrap();
    symlink(&precious, data.join("lock")).unwrap();
    let (code, _, stderr) = migrate().await;
    assert!(code == Some(1) && stderr.contains("symbolic link"), "{stderr}");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
    if rustix::process::geteuid().is_root() {
        fs::remove_file(data.join("lock")).unwrap();
        std::os::unix::fs::chown(&data, Some(12345), None).unwrap();
        let (code, _, stderr) = migrate().await;
        assert!(code == Some(1) && stderr.contains("another user"), "{stderr}");
    }
    assert!(!trace.exists(), "nothing was run");
    // What is made is private.
    fs::remove_dir_all(&data).unwrap();
    let _ = migrate().await;
    assert_eq!((mode(&data) & 0o066, mode(&data.join("lock"))), (0, 0o600));
    assert!(trace.exists(), "programs that were named on the command line are run");
}

/// Without a home, fetched programs are kept where everybody may put something.
#[tokio::test]
async fn programs_that_others_may_have_put_into_the_cache_are_not_run() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cache = dir.path().join("lastword");
    fs::create_dir(&cache).unwrap();
    chmod(&cache, 0o777);
    let mut command = lastword(dir.path(), home.path(), &["migrate"]);
    let (code, _, stderr) = run(command.env("TMPDIR", dir.path())).await;
    assert!(
        code == Some(1) && stderr.contains("chmod go-w") && stderr.contains("/lastword can be written"),
        "{stderr}"
    );
}

/// The default of `--agents` is found in the working directory, and says which programs to run.
#[tokio::test]
async fn agents_that_anybody_may_write_are_not_run_unnamed() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(dir.path().join("examples")).unwrap();
    let file = dir.path().join("examples/agents.yaml");
    fs::write(&file, "").unwrap();
    chmod(&file, 0o666);
    let ports = ["--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let args: Vec<&str> = ["dev"].into_iter().chain(ports).collect();
    let (code, _, stderr) = run(&mut lastword(dir.path(), home.path(), &args)).await;
    assert!(code == Some(1) && stderr.contains("chmod o-w examples/agents.yaml"), "{stderr}");
}

async fn a_saved_key_is_used_for_its_gateway_alone(db: Db) {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mine, other) = (answering().await, answering().await);
    let create = ["keys", "create", "ada", "--save", "--gateway", mine.url()];
    let mut command = lastword(dir.path(), home.path(), &create);
    let (code, stdout, stderr) = run(command.env("LASTWORD_DATABASE_URL", db.url())).await;
    assert_eq!((code, stdout.as_str()), (Some(0), ""), "{stderr}");
    let own = home.path().join("lastword/client.env");
    assert_eq!(mode(&own), 0o600);
    let saved = fs::read_to_string(&own).unwrap();
    let key = saved.lines().find_map(|line| line.strip_prefix("LASTWORD_API_KEY=")).expect("a key").to_owned();
    assert!(!stderr.contains(&key), "{stderr}");
    assert_eq!(run(&mut lastword(dir.path(), home.path(), &["chat", "x"])).await.0, Some(0));
    let elsewhere = ["chat", "--gateway", other.url(), "x"];
    assert_eq!(run(&mut lastword(dir.path(), home.path(), &elsewhere)).await.0, Some(0));
    assert!(mine.keys().iter().all(|shown| *shown == Some(format!("Bearer {key}"))), "{:?}", mine.keys());
    assert!(!other.keys().is_empty() && other.keys().iter().all(Option::is_none), "{:?}", other.keys());
    // Another key takes its place, for the same gateway.
    let mut command = lastword(dir.path(), home.path(), &["keys", "create", "bob", "--save"]);
    assert_eq!(run(command.env("LASTWORD_DATABASE_URL", db.url())).await.0, Some(0));
    let replaced = fs::read_to_string(&own).unwrap();
    assert!(replaced.starts_with(&format!("LASTWORD_GATEWAY_URL={}", mine.url())) && !replaced.contains(&key));
}
