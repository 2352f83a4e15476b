//! As whom the server runs. Postgres refuses root, so root has to find somebody else.
//!
//! An ordinary user runs it as itself. Root tries, and takes what works for this directory and these binaries:
//! 1. another user: the owner of an existing cluster, else `postgres`, else `nobody`;
//! 2. a user namespace in which our own user is shown as another one: this also works below directories that no
//!    other user may enter (such as root's home), but some containers forbid it.
//!
//! A cluster that root owns was made the second way, so there the order is reversed.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use super::directory::Claim;
use super::error::{Error, at};
use crate::child::spawn::{Spawner, UserNamespace};

/// The uid and gid of `nobody` where /etc/passwd does not tell.
const NOBODY: (u32, u32) = (65534, 65534);

/// As whom the server's programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// As we do.
    Ourselves,
    /// As another user; we are root.
    User { uid: u32, gid: u32 },
    /// As root, who is shown to the server as somebody else.
    Shown,
}

impl Identity {
    /// Finds one that can run `bin/postgres` in the claimed directory; also that program's major version.
    pub(super) fn find(claim: &Claim, bin: &Path) -> Result<(Identity, u32), Error> {
        let mut reasons = Vec::new();
        let candidates = candidates(claim);
        for identity in &candidates {
            match identity.probe(&claim.root, bin) {
                Ok(major) => return Ok((*identity, major)),
                Err(error) => reasons.push(format!("{identity:?}: {error}")),
            }
        }
        let reason = reasons.join("; ");
        if candidates == [Identity::Ourselves] {
            return Err(at("run", bin.join("postgres"))(io::Error::other(reason)));
        }
        Err(Error::Root { directory: claim.root.clone(), reason })
    }

    /// Runs `postgres --version` as this user, inside the data directory: that needs the right to enter it and
    /// to read and run the binaries and their libraries.
    fn probe(self, directory: &Path, bin: &Path) -> io::Result<u32> {
        let mut command = Command::new(bin.join("postgres"));
        command.arg("--version").current_dir(directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.spawn(command, Signal::KILL)?.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        // "postgres (PostgreSQL) 18.6", with a distribution's name behind it; "19beta1" before a release.
        let version = text.split_whitespace().nth(2).unwrap_or_default();
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().map_err(|_| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            io::Error::other(format!("{} {}", output.status, stderr.trim()))
        })
    }

    /// Starts a program as this user. Blocks for a moment.
    pub(super) fn spawn(self, mut command: Command, on_our_death: Signal) -> io::Result<Child> {
        let mut namespace = UserNamespace::Ours;
        match self {
            Identity::Ourselves => {}
            Identity::User { uid, gid } => {
                command.uid(uid).gid(gid);
            }
            Identity::Shown => namespace = UserNamespace::New { shown_as: 1000 },
        }
        Spawner::global().spawn_in(command, on_our_death, namespace)
    }

    /// Gives a tree to this user, if it is not theirs yet. Symbolic links are not followed.
    pub(super) fn own(self, path: &Path) -> Result<(), Error> {
        let (uid, gid) = match self {
            Identity::Ourselves => return Ok(()),
            Identity::User { uid, gid } => (uid, gid),
            Identity::Shown => (0, 0),
        };
        let metadata = fs::symlink_metadata(path).map_err(at("read", path))?;
        // The children first: an interrupted run leaves the top as it was, and the next one goes on.
        if metadata.uid() != uid {
            chown_tree(path, uid, gid).map_err(at("change the owner of", path))?;
        }
        Ok(())
    }
}

fn candidates(claim: &Claim) -> Vec<Identity> {
    if !rustix::process::geteuid().is_root() {
        return vec![Identity::Ourselves];
    }
    let other = |(uid, gid)| Identity::User { uid, gid };
    let system = other(user("postgres").or_else(|| user("nobody")).unwrap_or(NOBODY));
    match fs::metadata(claim.cluster()) {
        Ok(cluster) if cluster.uid() == 0 => vec![Identity::Shown, system],
        Ok(cluster) => vec![other((cluster.uid(), cluster.gid())), Identity::Shown],
        Err(_) => vec![system, Identity::Shown],
    }
}

/// The uid and gid of a local user.
fn user(name: &str) -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn chown_tree(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            chown_tree(&entry?.path(), uid, gid)?;
        }
    }
    lchown(path, Some(uid), Some(gid))
}
