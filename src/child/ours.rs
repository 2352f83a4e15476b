//! The children that this process has started itself, and those that it got without asking.
//!
//! A process whose parent has ended becomes the child of the nearest *subreaper* above it (see prctl(2)), or of the first
//! process of its PID namespace. A worker in a container is the first process; elsewhere [`adopt_orphans`] makes this
//! process a subreaper. Such an orphan is nobody's turn any more:
//!
//! - One that has exited is reaped here, or the process table would fill up with zombies until nothing can be forked.
//! - One that runs is left alone, as long as every [keeper](super::keeper) is there: they end what is theirs themselves, and
//!   what somebody runs in the container by `kubectl exec` is none of ours. When a keeper did not end by itself, since the
//!   program that it kept has killed it, all of them are ended ([`end_orphans`]).
//!
//! The list of our own children is what tells the two apart. The lock of the list is held over a fork, so that no child is
//! seen before it is in the list.

use std::collections::BTreeMap;
use std::io;
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, getpid, kill_process, set_child_subreaper, waitid, waitpid,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use super::descendants::{self, ProcessEntry};
use crate::every::supervised;

/// How long [`end_orphans`] goes on with processes that do not end.
const ENDING: Duration = Duration::from_secs(5);
/// The pause of [`end_orphans`] before it looks whether those that it has killed are gone.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How long the owner of a child of ours may take to reap it, before the zombie is taken for an orphan's.
const OWNERS_REAP: Duration = Duration::from_millis(50);

static OURS: Mutex<BTreeMap<i32, ChildKind>> = Mutex::new(BTreeMap::new());

/// Tells that a child of ours was reaped.
static REAPED: Notify = Notify::const_new();

/// What a child is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildKind {
    /// A program that nobody but its owner looks after.
    Plain,
    /// A [keeper](super::keeper). A stopped one could not do its work, so it is killed.
    Keeper,
}

fn ours() -> MutexGuard<'static, BTreeMap<i32, ChildKind>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forks a child and enters it into the list, in one step for everybody else.
pub(super) fn enter(kind: ChildKind, fork: impl FnOnce() -> io::Result<Child>) -> io::Result<Child> {
    let mut ours = ours();
    let child = fork()?;
    ours.insert(Pid::from_child(&child).as_raw_nonzero().get(), kind);
    Ok(child)
}

/// Takes a child out of the list that was reaped.
pub(super) fn forget(child: Pid) {
    ours().remove(&child.as_raw_nonzero().get());
    REAPED.notify_one();
}

/// Makes this process the one to which its descendants fall when their parents end, and begins to look after them. To be
/// called once, in a Tokio runtime.
pub fn adopt_orphans() {
    if let Err(error) = set_child_subreaper(Some(getpid())) {
        tracing::warn!(%error, "a process that leaves its parent is not noticed: no subreaper");
    }
    match signal(SignalKind::child()) {
        Ok(mut ended) => {
            supervised("the reaping of orphans", async move {
                while ended.recv().await.is_some() {
                    end_stopped_keepers();
                    // A look at all processes takes milliseconds on a machine with many. Mostly it is one of our own
                    // that has exited, which its owner reaps within moments.
                    while has_zombie() {
                        if tokio::time::timeout(OWNERS_REAP, REAPED.notified()).await.is_err() {
                            let _ = tokio::task::spawn_blocking(reap_orphans).await;
                            break;
                        }
                    }
                }
            });
        }
        Err(error) => tracing::warn!(%error, "orphans are not reaped"),
    }
}

/// Kills keepers that were stopped (SIGSTOP): what they keep falls to us then, and is ended.
fn end_stopped_keepers() {
    let keepers: Vec<i32> =
        ours().iter().filter(|(_, kind)| **kind == ChildKind::Keeper).map(|(pid, _)| *pid).collect();
    for pid in keepers.into_iter().filter_map(Pid::from_raw) {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        if let Ok(Some(status)) = waitid(WaitId::Pid(pid), options)
            && status.stopped()
        {
            tracing::warn!(?pid, "a keeper was stopped by what it keeps, and is killed");
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Whether a child has exited and was not reaped, ours or an orphan.
fn has_zombie() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::All, options), Ok(Some(_)))
}

/// Reaps the orphans that have exited.
fn reap_orphans() {
    let ours = ours();
    for orphan in orphans(&ours, &descendants::all()).filter(|orphan| orphan.is_zombie) {
        let _ = waitpid(Some(orphan.pid), WaitOptions::NOHANG);
    }
}

/// The children of this process that are not in its list.
fn orphans<'a>(
    ours: &BTreeMap<i32, ChildKind>,
    all: &'a [ProcessEntry],
) -> impl Iterator<Item = &'a ProcessEntry> + use<'a> {
    let known: Vec<i32> = ours.keys().copied().collect();
    let us = getpid();
    all.iter().filter(move |p| p.parent == Some(us) && known.binary_search(&p.pid.as_raw_nonzero().get()).is_err())
}

/// Ends all orphans and what descends from them, and reaps them. Blocks until none is left, five seconds at most.
pub(super) fn end_orphans() {
    let begun = Instant::now();
    loop {
        // The list is locked over the look and the signals, so that no new child of ours is taken for an orphan.
        let ours = ours();
        let all = descendants::all();
        let mut left = Vec::new();
        for orphan in orphans(&ours, &all) {
            left.extend(descendants::of(orphan.pid, &all).into_iter().chain([*orphan]));
        }
        descendants::kill(&left);
        for orphan in orphans(&ours, &all) {
            let _ = waitpid(Some(orphan.pid), WaitOptions::NOHANG);
        }
        drop(ours);
        if left.is_empty() {
            return;
        }
        if begun.elapsed() > ENDING {
            tracing::warn!(processes = left.len(), "processes that a program left behind do not end");
            return;
        }
        thread::sleep(LOOK_AGAIN);
    }
}
