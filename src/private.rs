//! Files that are read although nobody named them, and that hold what decides: where the database is, which gateway is sent
//! a key. In a directory that others may write to, anybody can put such a file, or a link in its place. So one is read only
//! if it is a regular file of ours that nobody else may write, and written only as a new file that nobody else may read.
//!
//! "Ours" is this process's effective user; root's files are anybody's, since root needs no file to have its way.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// The largest such file, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Who may do what to a file besides its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// Nothing at all: it holds a secret.
    Nothing,
    /// Read it, and not write it.
    MayRead,
    /// Read it, and its group may write it; nobody else may.
    GroupMayWrite,
}

/// Why a file or directory was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    #[error("{path} belongs to another user (uid {owner}), and is not trusted; make one of your own")]
    Foreign { path: PathBuf, owner: u32 },
    #[error("{path} can be {doing} by others, and is not trusted; chmod {chmod} {path}")]
    Open { path: PathBuf, doing: &'static str, chmod: &'static str },
    #[error("{path} is a symbolic link or no {kind}, and is not followed")]
    Kind { path: PathBuf, kind: &'static str },
    #[error("{path} is larger than {MAX_BYTES} bytes")]
    TooLarge { path: PathBuf },
    #[error("cannot {doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrivateError {
    move |source| PrivateError::Io { doing, path: path.into(), source }
}

/// Reads a file of ours; `None` if there is none.
///
/// # Errors
/// If it may be somebody else's work, or cannot be read.
pub fn read(path: &Path, others: Others) -> Result<Option<String>, PrivateError> {
    // Without O_NONBLOCK, opening a pipe would wait for its writer.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if is_link(&error) => return Err(PrivateError::Kind { path: path.into(), kind: "regular file" }),
        Err(error) => return Err(failed("open", path)(error)),
    };
    // Of the opened file, which the path may no longer lead to.
    let metadata = file.metadata().map_err(failed("read", path))?;
    check(path, &metadata, others)?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed("read", path))?;
    if text.len() as u64 > MAX_BYTES { Err(PrivateError::TooLarge { path: path.into() }) } else { Ok(Some(text)) }
}

/// Whether a file that is opened by others later, by its path, is ours now; `Ok` also if there is none.
///
/// # Errors
/// As [`read`].
pub fn check_file(path: &Path, others: Others) -> Result<(), PrivateError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => check(path, &metadata, others),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn check(path: &Path, metadata: &Metadata, others: Others) -> Result<(), PrivateError> {
    if !metadata.is_file() {
        return Err(PrivateError::Kind { path: path.into(), kind: "regular file" });
    }
    check_owner(path, metadata)?;
    check_mode(path, metadata, others)
}

fn check_mode(path: &Path, metadata: &Metadata, others: Others) -> Result<(), PrivateError> {
    let open = |doing, chmod| Err(PrivateError::Open { path: path.into(), doing, chmod });
    match others {
        Others::Nothing if metadata.mode() & 0o077 != 0 => open("read or written", "600"),
        Others::MayRead if metadata.mode() & 0o022 != 0 => open("written", "go-w"),
        Others::GroupMayWrite if metadata.mode() & 0o002 != 0 => open("written", "o-w"),
        _ => Ok(()),
    }
}

fn check_owner(path: &Path, metadata: &Metadata) -> Result<(), PrivateError> {
    let owner = metadata.uid();
    if owner == rustix::process::geteuid().as_raw() || owner == 0 {
        return Ok(());
    }
    Err(PrivateError::Foreign { path: path.into(), owner })
}

/// Writes a file that only its owner may read, in a whole: an old one is replaced by a rename.
///
/// # Errors
/// If its directory cannot be written. The old file is then as it was.
pub fn write(path: &Path, text: &str) -> Result<(), PrivateError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let next = path.with_file_name(format!(".{name}.{}", uuid::Uuid::new_v4().simple()));
    let mut file = create(&next)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| fs::rename(&next, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&next);
        failed("write", path)(error)
    })
}

/// Makes a new file that only its owner may read. Whatever is there already, a link too, is an error.
///
/// # Errors
/// If there is something, or the directory cannot be written.
pub fn create(path: &Path) -> Result<File, PrivateError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    opened.map_err(failed("create", path))
}

/// Opens a file of ours for reading and writing, and makes it if there is none: for the owner alone, and never at the end of a
/// link. What is in it stays.
///
/// # Errors
/// If it may be somebody else's work, or cannot be opened.
pub fn open_or_create(path: &Path) -> Result<File, PrivateError> {
    open_with(path, OpenOptions::new().read(true).write(true).truncate(false))
}

/// The same for writing at its end alone.
///
/// # Errors
/// As [`open_or_create`].
pub fn open_to_append(path: &Path) -> Result<File, PrivateError> {
    open_with(path, OpenOptions::new().append(true))
}

fn open_with(path: &Path, options: &mut OpenOptions) -> Result<File, PrivateError> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file =
        options.create(true).mode(0o600).custom_flags(flags).open(path).map_err(|error| match is_link(&error) {
            true => PrivateError::Kind { path: path.into(), kind: "regular file" },
            false => failed("open", path)(error),
        })?;
    check(path, &file.metadata().map_err(failed("read", path))?, Others::MayRead)?;
    Ok(file)
}

/// Makes a directory, and those above it, if there is none; takes one that is ours, and of which others may do no more than
/// this. A new one is for us alone. Root's may be passed through by others, since servers that root starts run as other users.
///
/// # Errors
/// If it may be somebody else's work, or cannot be made. A link is followed only where it is ours itself.
pub fn directory(path: &Path, others: Others) -> Result<(), PrivateError> {
    let mode = if rustix::process::geteuid().is_root() { 0o711 } else { 0o700 };
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        fs::create_dir_all(above).map_err(failed("create", above))?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made.map_err(failed("create", path)),
    }
    let link = fs::symlink_metadata(path).map_err(failed("read", path))?;
    check_owner(path, &link)?;
    let metadata = fs::metadata(path).map_err(failed("read", path))?;
    if !metadata.is_dir() {
        return Err(PrivateError::Kind { path: path.into(), kind: "directory" });
    }
    check_owner(path, &metadata)?;
    check_mode(path, &metadata, others)
}

/// Whether O_NOFOLLOW is why a file was not opened.
fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_others_may_change_is_not_read() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        assert!(read(&file, Others::Nothing).unwrap().is_none());
        fs::write(&file, "x").unwrap();
        for (bits, nothing, may_read, group) in [
            (0o600, true, true, true),
            (0o640, false, true, true),
            (0o644, false, true, true),
            (0o664, false, false, true),
            (0o620, false, false, true),
            (0o602, false, false, false),
            (0o666, false, false, false),
        ] {
            mode(&file, bits);
            let taken = |others| read(&file, others).is_ok();
            let found = [Others::Nothing, Others::MayRead, Others::GroupMayWrite].map(taken);
            assert_eq!(found, [nothing, may_read, group], "{bits:o}");
        }
        mode(&file, 0o600);
        let link = root.path().join("link");
        symlink(&file, &link).unwrap();
        assert!(matches!(read(&link, Others::Nothing), Err(PrivateError::Kind { .. })));
        assert!(matches!(check_file(&link, Others::MayRead), Err(PrivateError::Kind { .. })));
        assert!(matches!(read(root.path(), Others::Nothing), Err(PrivateError::Kind { .. })));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
            assert!(matches!(read(&file, Others::MayRead), Err(PrivateError::Foreign { owner: 12345, .. })));
        }
    }

    #[test]
    fn no_link_is_written_through_and_what_is_written_is_private() {
        let root = tempfile::tempdir().unwrap();
        let (precious, link) = (root.path().join("precious"), root.path().join("link"));
        fs::write(&precious, "kept").unwrap();
        mode(&precious, 0o600);
        symlink(&precious, &link).unwrap();
        assert!(create(&link).is_err());
        assert!(matches!(open_or_create(&link), Err(PrivateError::Kind { .. })));
        write(&link, "new").unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
        assert_eq!(read(&link, Others::Nothing).unwrap().as_deref(), Some("new"), "the link was replaced");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2, "nothing is left over");
    }

    #[test]
    fn a_directory_is_made_private_and_that_of_others_is_not_taken() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        directory(&inner, Others::MayRead).unwrap();
        let made = fs::metadata(&inner).unwrap().permissions().mode() & 0o777;
        assert_eq!(made & 0o066, 0, "{made:o}");
        for (bits, may_read, group) in
            [(0o755, true, true), (0o770, false, true), (0o707, false, false), (0o1777, false, false)]
        {
            mode(&inner, bits);
            let taken = [Others::MayRead, Others::GroupMayWrite].map(|others| directory(&inner, others).is_ok());
            assert_eq!(taken, [may_read, group], "{bits:o}");
        }
        fs::write(root.path().join("file"), "").unwrap();
        assert!(directory(&root.path().join("file"), Others::GroupMayWrite).is_err());
    }
}
