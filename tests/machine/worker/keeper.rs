//! The promise: whatever a turn started is gone when the turn is, however it left its parent, and however the turn ends.
//!
//! The programs here work in a directory of their own, so that what is left of them is seen in /proc, whatever they did to
//! their environment, group and session.

use std::path::Path;
use std::time::Instant;

use rustix::process::{Signal, geteuid};

use super::*;
use crate::support::process::{children, inside, is_alive, signal};
use crate::support::wait::eventually;
use crate::support::{repository, skipped};

/// Ways to leave a parent, its process group, its session and its environment; each leaves a `sleep`.
const LEAVERS: &str = "
    sleep 300 < /dev/null > /dev/null 2>&1 &
    setsid sleep 301 < /dev/null > /dev/null 2>&1 &
    timeout 302 sleep 303 < /dev/null > /dev/null 2>&1 &
    setsid env -i sh -c 'nohup sleep 304 & exit' < /dev/null > /dev/null 2>&1
    python3 -c 'import os
os.fork() and os._exit(0)
os.setsid()
os.fork() and os._exit(0)
os.execvp(\"sleep\", [\"sleep\", \"305\"])' < /dev/null > /dev/null 2>&1
";
/// `LEAVERS` is done when this many are there: the sleeps, and `timeout`.
const LEFT: usize = 6;

struct Scene {
    bench: Bench,
    directory: tempfile::TempDir,
}

impl Scene {
    /// A worker whose program is this script, in a directory of its own.
    async fn new(flags: &[&str], script: &str) -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let script = format!("cd {} || exit 9\n{script}", directory.path().display());
        let words = [&["exec"], flags, &["--", "sh", "-c", &script]].concat();
        Scene { bench: Bench::start(&words).await, directory }
    }

    /// One of the cases, by the name of its file.
    async fn case(name: &str) -> Scene {
        Scene::new(&[], &format!("exec {}", repository(&format!("tests/programs/{name}")).display())).await
    }

    fn left(&self) -> Vec<u32> {
        inside(self.directory.path())
    }

    async fn are_there(&self, number: usize) {
        let what = format!("{number} processes of the program");
        eventually(&what, async || {
            let left = self.left();
            if left.len() >= number { Ok(()) } else { Err(commands(&left)) }
        })
        .await;
    }

    async fn none_left(&self) {
        eventually("nothing of the program is left", async || {
            let left = self.left();
            if left.is_empty() { Ok(()) } else { Err(commands(&left)) }
        })
        .await;
    }
}

fn commands(pids: &[u32]) -> String {
    format!("{:?}", pids.iter().map(|pid| command(*pid)).collect::<Vec<_>>())
}

fn command(pid: u32) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ")
}

#[tokio::test]
async fn nothing_is_left_of_a_turn_when_its_last_word_is_said() {
    for (end, reason) in [("echo done", None), ("exit 7", Some("AgentError")), ("kill -9 $$", Some("WorkerExited"))] {
        let wait =
            format!("until [ $(ls -l /proc/[0-9]*/cwd 2>/dev/null | grep -c \" $PWD$\") -ge {LEFT} ]; do :; done");
        let scene = Scene::new(&[], &format!("{LEAVERS}\n{wait}\n{end}")).await;
        let (_, outcome) = scene.bench.turn("m").await;
        assert_eq!(commands(&scene.left()), "[]", "{end}");
        let said = match outcome {
            Outcome::Reply => None,
            Outcome::Error(failure) => Some(failure.reason.to_string()),
        };
        assert_eq!(said.as_deref(), reason, "{end}");
    }
}

#[tokio::test]
async fn nothing_is_left_of_a_cancelled_turn() {
    let scene =
        Scene::new(&["--kill-seconds", "1"], &format!("trap '' TERM\n{LEAVERS}\nwhile :; do sleep 1; done")).await;
    let turn = scene.bench.gateway.push("m");
    scene.are_there(LEFT + 1).await;
    scene.bench.gateway.cancel(turn);
    scene.none_left().await;
}

#[tokio::test]
async fn nothing_is_left_of_a_worker_that_was_killed() {
    let mut scene = Scene::new(&[], &format!("{LEAVERS}\nwhile :; do sleep 1; done")).await;
    scene.bench.gateway.push("m");
    scene.are_there(LEFT + 1).await;
    scene.bench.worker.kill().await.unwrap();
    scene.none_left().await;
}

#[tokio::test]
async fn programs_that_run_others_under_timeout_or_in_a_session_leave_nothing() {
    for case in ["viatimeout.sh", "setsidchild.py"] {
        let scene = Scene::case(case).await;
        let turn = scene.bench.gateway.push("m");
        scene.are_there(2).await;
        scene.bench.gateway.cancel(turn);
        scene.none_left().await;
        let mut scene = Scene::case(case).await;
        scene.bench.gateway.push("m");
        scene.are_there(2).await;
        scene.bench.worker.kill().await.unwrap();
        scene.none_left().await;
    }
}

#[tokio::test]
async fn a_program_that_kills_or_stops_its_keeper_leaves_nothing_either() {
    for signal in ["KILL", "STOP", "TERM"] {
        let scene = Scene::new(&[], &format!("{LEAVERS}\nkill -{signal} $PPID; sleep 306")).await;
        let failure = failure(scene.bench.turn("m").await.1);
        assert_eq!(failure.reason.to_string(), "WorkerExited", "{signal}: {failure:?}");
        assert_eq!(scene.left(), Vec::<u32>::new(), "{signal}");
        // The worker is none the worse for it.
        let failure = super::failure(scene.bench.turn("m").await.1);
        assert_eq!(failure.reason.to_string(), "WorkerExited");
    }
}

/// Each generation leaves session and parent and is gone within a moment, so that no list of processes shows all.
#[tokio::test]
async fn a_chain_of_processes_that_flee_is_caught() {
    let chain = "import os, time\nend = time.time() + 60\nif os.fork(): print('done', flush=True); os._exit(0)\n\
        null = os.open('/dev/null', 2)\nfor fd in 0, 1, 2: os.dup2(null, fd)\n\
        while time.time() < end:\n if os.fork(): os._exit(0)\n os.setsid()";
    let scene = Scene::new(&[], &format!("exec python3 -c \"{chain}\"")).await;
    let (frames, outcome) = scene.bench.turn("m").await;
    assert_eq!((text(&frames).as_str(), outcome), ("done\n", Outcome::Reply));
    // One look may miss a process that changes its id all the time; a hundred do not.
    for _ in 0..100 {
        assert_eq!(scene.left(), Vec::<u32>::new());
    }
}

#[tokio::test]
async fn what_a_child_still_prints_after_its_program_belongs_to_the_reply() {
    let (frames, outcome) =
        Bench::start(&["exec", "--", "sh", "-c", "(sleep 0.1; echo late) & echo early"]).await.turn("m").await;
    assert_eq!((text(&frames).as_str(), outcome), ("early\nlate\n", Outcome::Reply));
}

#[tokio::test]
async fn detached_processes_live_on_until_the_worker_ends_if_the_agent_says_so() {
    let script = "
        if [ -e server ]; then kill -0 $(cat server) && echo still there; exit; fi
        setsid sh -c 'echo $$ > new; mv new server; exec sleep 300' < /dev/null > /dev/null 2>&1 &
        sleep 301 < /dev/null > /dev/null 2>&1 &
        until [ -e server ]; do :; done
        echo started";
    for kill in [true, false] {
        let mut scene = Scene::new(&["--keep-detached"], script).await;
        assert_eq!(text(&scene.bench.turn("m").await.0), "started\n");
        let server = std::fs::read_to_string(scene.directory.path().join("server")).unwrap().trim().parse().unwrap();
        assert_eq!(scene.left(), [server], "the server alone: what is not detached ends with its turn");
        assert_eq!(text(&scene.bench.turn("m").await.0), "still there\n");
        assert!(is_alive(server));
        match kill {
            true => scene.bench.worker.kill().await.unwrap(),
            false => {
                signal(scene.bench.worker.id().unwrap(), Signal::TERM);
                assert_eq!(scene.bench.exit_code().await, Some(0));
            }
        }
        scene.none_left().await;
    }
}

/// The worker has a terminal here, as one has that a developer starts.
#[tokio::test]
async fn a_program_that_asks_the_terminal_has_none_and_fails_at_once() {
    let case = repository("tests/programs/tty.sh");
    let terminal = "import pty, sys; pty.spawn(sys.argv[1:])";
    let words = ["python3", "-c", terminal, LASTWORD, "worker", "exec", "--", "sh", case.to_str().unwrap()];
    let bench = Bench::launch(&words, |_| {}).await;
    let (frames, outcome) = bench.turn("m").await;
    assert_eq!((text(&frames).as_str(), outcome), ("before the question\nno terminal\n", Outcome::Reply));
}

/// As in a container: what is orphaned falls to the worker, which is the first process, and the process table must not fill.
#[tokio::test]
async fn a_worker_that_is_the_first_process_reaps_every_child() {
    if !geteuid().is_root() {
        return skipped("a PID namespace with a /proc of its own needs root");
    }
    let script = "for i in 1 2 3; do setsid sh -c 'exit' & done; (sleep 0.01 &); echo done";
    let mut words = vec!["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", LASTWORD, "worker"];
    words.extend(["exec", "--", "sh", "-c", script]);
    let bench = Bench::launch(&words, |_| {}).await;
    for _ in 0..3 {
        assert_eq!(text(&bench.turn("m").await.0), "done\n");
    }
    let adapter = children(bench.worker.id().unwrap())[0].0;
    // What somebody runs in the container by `kubectl exec` is no turn's: it is reaped, and not killed.
    let target = adapter.to_string();
    let inside = ["--target", &target, "--pid", "--mount", "sh", "-c", "sleep 307 & sleep 0.05 & exit"];
    assert!(Command::new("nsenter").args(inside).status().await.unwrap().success());
    assert_eq!(text(&bench.turn("m").await.0), "done\n");
    eventually("only the stranger is left", async || match children(adapter).as_slice() {
        [(stranger, false)] if command(*stranger).starts_with("sleep 307") => Ok(()),
        others => Err(format!("{:?}", others.iter().map(|(pid, zombie)| (command(*pid), *zombie)).collect::<Vec<_>>())),
    })
    .await;
}

#[tokio::test]
async fn the_end_of_a_program_is_told_within_moments() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ended");
    let script = format!("echo done; exec date +%s%N > {}", file.display());
    let bench = Bench::start(&["exec", "--", "sh", "-c", &script]).await;
    let mut all = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        bench.turn("m").await;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        let ended: u128 = read(&file);
        all.push((now.saturating_sub(ended) / 1000, begun.elapsed().as_micros()));
    }
    all.sort_unstable();
    println!("from the program's end to its last word, and the whole turn, in µs: {all:?}");
}

fn read(file: &Path) -> u128 {
    std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
}
