//! `lastword worker install`: copies the running program into a volume, so that a container whose image lacks it can run it.
//! The init container of a worker pod does this.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::WorkerError;

/// `lastword worker install`
#[derive(Debug, Clone, clap::Args)]
pub struct InstallArgs {
    /// Directory that gets the file `lastword`; a volume that both containers mount
    #[arg(env = "LASTWORD_INSTALL_DIR")]
    pub dir: PathBuf,
}

/// Copies the program to `DIR/lastword`.
pub(super) fn run(args: &InstallArgs) -> Result<(), WorkerError> {
    let path = args.dir.join("lastword");
    copy(&args.dir, &path).map_err(|error| WorkerError::Install { path: path.clone(), error })?;
    tracing::info!("installed {}", path.display());
    Ok(())
}

/// Copies the program atomically: whoever starts `path` meanwhile starts the old file or the new one.
fn copy(dir: &Path, path: &Path) -> io::Result<()> {
    // The file that runs, not the one that is at its path by now: it may have been replaced.
    let mut running = fs::File::open("/proc/self/exe").or_else(|_| fs::File::open(std::env::current_exe()?))?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    io::copy(&mut running, &mut file)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o755))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
