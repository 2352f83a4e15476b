//! What is made of files that others replace while we run: cert-manager renews certificates, the kubelet brings them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use super::TlsError;
use super::pem::Pem;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The latest good value.
pub type Renewed<T> = watch::Receiver<T>;

/// A value that stays.
pub fn never_renewed<T>(value: T) -> Renewed<T> {
    watch::channel(value).1
}

/// Makes a value of files, and again whenever their content is another, for as long as somebody holds it. Files of which
/// none can be made are logged once, and the value before stays.
pub(super) fn renewed<T: Send + Sync + 'static, const N: usize>(
    files: [&Path; N],
    make: impl Fn(&[Pem; N]) -> Result<T, TlsError> + Send + 'static,
) -> Result<Renewed<T>, TlsError> {
    let mut files = Files::read(files);
    let (tell, renewed) = watch::channel(make(&files.last)?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = tell.closed() => return,
            }
            match files.look().map(&make) {
                None => {}
                Some(Ok(value)) => {
                    tracing::info!("{} was renewed", files.last[0]);
                    tell.send_replace(value);
                }
                Some(Err(error)) => tracing::error!("{error}; what was read before serves on"),
            }
        }
    });
    Ok(renewed)
}

/// Files, and what they held at the last look. They are small, and of a local file system: reading them is no wait.
pub(super) struct Files<const N: usize> {
    paths: [PathBuf; N],
    last: [Pem; N],
}

impl<const N: usize> Files<N> {
    pub(super) fn read(paths: [&Path; N]) -> Self {
        Files { paths: paths.map(Path::to_owned), last: paths.map(Pem::read) }
    }

    /// What they hold now, if that is not what it was.
    pub(super) fn look(&mut self) -> Option<&[Pem; N]> {
        let now = self.paths.each_ref().map(|path| Pem::read(path));
        if now == self.last {
            return None;
        }
        self.last = now;
        Some(&self.last)
    }
}
