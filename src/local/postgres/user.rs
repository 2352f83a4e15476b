//! The user that the server runs as. An ordinary user runs it as itself; but Postgres refuses to run as root, so root needs
//! another user for it.
//!
//! Root tries these, and takes the first that works with this data directory and these programs:
//! 1. another user: the owner of an existing cluster, else `postgres`, else `nobody`;
//! 2. itself, in a user namespace in which it has another uid. This also works below directories that no other user may
//!    enter, such as root's home; but some containers forbid it.
//!
//! A cluster that root owns was made the second way; there the order is reversed.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::directory::DataDir;
use super::error::{PostgresError, at};
use crate::child::spawn::{SpawnTerms, Spawner, UserNamespace};

/// The uid and gid of `nobody`, if /etc/passwd does not name it.
const NOBODY: (u32, u32) = (65534, 65534);

/// The user that the server's programs run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerUser {
    /// The user of this process.
    Ourselves,
    /// Another user; this process is root.
    User { uid: u32, gid: u32 },
    /// Root, in a user namespace in which it has another uid.
    Namespaced,
}

impl ServerUser {
    /// Finds a user that can run `bin/postgres` in the data directory. Also gives that program's major version.
    pub(super) fn find(data_dir: &DataDir, bin: &Path) -> Result<(ServerUser, u32), PostgresError> {
        let mut reasons = Vec::new();
        let candidates = candidates(data_dir);
        for user in &candidates {
            match user.probe(&data_dir.root, bin) {
                Ok(major) => return Ok((*user, major)),
                Err(error) => reasons.push(format!("{user:?}: {error}")),
            }
        }
        let reason = reasons.join("; ");
        if candidates == [ServerUser::Ourselves] {
            return Err(at("run", bin.join("postgres"))(io::Error::other(reason)));
        }
        Err(PostgresError::Root { directory: data_dir.root.clone(), reason })
    }

    /// Runs `postgres --version` as this user, with the data directory as the working directory. That shows whether the user
    /// may enter the directory, and read and run the programs and their libraries.
    fn probe(self, directory: &Path, bin: &Path) -> io::Result<u32> {
        let mut command = Command::new(bin.join("postgres"));
        command.arg("--version").current_dir(directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let namespace = self.assume(&mut command);
        let output = Spawner::global().output(command, SpawnTerms { namespace, ..SpawnTerms::new(Signal::KILL) })?;
        let text = String::from_utf8_lossy(&output.stdout);
        // "postgres (PostgreSQL) 18.6", with a distribution's name behind it; "19beta1" before a release.
        let version = text.split_whitespace().nth(2).unwrap_or_default();
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().map_err(|_| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            io::Error::other(format!("{} {}", output.status, stderr.trim()))
        })
    }

    /// Makes `command` run as this user, if it is started in the user namespace that this returns.
    pub(super) fn assume(self, command: &mut Command) -> UserNamespace {
        match self {
            ServerUser::Ourselves => UserNamespace::Ours,
            ServerUser::User { uid, gid } => {
                command.uid(uid).gid(gid);
                UserNamespace::Ours
            }
            // Any uid but root's 0 would do.
            ServerUser::Namespaced => UserNamespace::New { shown_as: 1000 },
        }
    }

    /// Gives a directory and all in it to this user, if it is not theirs yet. Symbolic links are not followed.
    pub(super) fn own(self, path: &Path) -> Result<(), PostgresError> {
        let (uid, gid) = match self {
            ServerUser::Ourselves => return Ok(()),
            ServerUser::User { uid, gid } => (uid, gid),
            ServerUser::Namespaced => (0, 0),
        };
        let metadata = fs::symlink_metadata(path).map_err(at("read", path))?;
        // The directory itself comes last: if this is interrupted, it still has its old owner, and the next run does it again.
        if metadata.uid() != uid {
            chown_tree(path, uid, gid).map_err(at("change the owner of", path))?;
        }
        Ok(())
    }
}

/// The users to try, best first.
fn candidates(data_dir: &DataDir) -> Vec<ServerUser> {
    if !rustix::process::geteuid().is_root() {
        return vec![ServerUser::Ourselves];
    }
    let other = |(uid, gid)| ServerUser::User { uid, gid };
    let system = other(user("postgres").or_else(|| user("nobody")).unwrap_or(NOBODY));
    match fs::metadata(data_dir.cluster()) {
        Ok(cluster) if cluster.uid() == 0 => vec![ServerUser::Namespaced, system],
        Ok(cluster) => vec![other((cluster.uid(), cluster.gid())), ServerUser::Namespaced],
        Err(_) => vec![system, ServerUser::Namespaced],
    }
}

/// The uid and gid of a user in /etc/passwd.
fn user(name: &str) -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Changes the owner of a directory and all in it, from the leaves up.
fn chown_tree(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            chown_tree(&entry?.path(), uid, gid)?;
        }
    }
    lchown(path, Some(uid), Some(gid))
}
