//! Copies the running program to where a container without it can run it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::WorkerError;

/// `lastword worker install`
#[derive(Debug, Clone, clap::Args)]
pub struct InstallArgs {
    /// Directory that gets the file `lastword`; a volume that both containers mount
    #[arg(env = "LASTWORD_INSTALL_DIR")]
    pub dir: PathBuf,
}

pub(super) fn run(args: &InstallArgs) -> Result<(), WorkerError> {
    let path = args.dir.join("lastword");
    copy(&args.dir, &path).map_err(|error| WorkerError::Install { path: path.clone(), error })?;
    tracing::info!("installed {}", path.display());
    Ok(())
}

/// Atomically: whoever runs `path` meanwhile runs the old one or the new one.
fn copy(dir: &Path, path: &Path) -> io::Result<()> {
    // Not current_exe(): its path may lead to another file by now.
    let mut running = fs::File::open("/proc/self/exe").or_else(|_| fs::File::open(std::env::current_exe()?))?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    io::copy(&mut running, &mut file)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o755))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
