//! Values that are made of files, and made again when the files change: cert-manager renews certificates, and the kubelet
//! writes them into pods that run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use super::TlsError;
use super::pem::Pem;
use crate::every::supervised;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A value that may change: the one made of the latest good files.
pub type Renewed<T> = watch::Receiver<T>;

/// A value that never changes.
pub fn never_renewed<T>(value: T) -> Renewed<T> {
    watch::channel(value).1
}

/// Makes a value of files, and makes it again whenever their content changes, for as long as somebody holds the value. Files
/// of which no value can be made are logged once; the value before them stays.
pub(super) fn renewed<T: Send + Sync + 'static, const N: usize>(
    files: [&Path; N],
    make: impl Fn(&[Pem; N]) -> Result<T, TlsError> + Send + 'static,
) -> Result<Renewed<T>, TlsError> {
    let mut files = Files::read(files);
    let (tell, renewed) = watch::channel(make(&files.last)?);
    supervised("the look at certificate files", async move {
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
                Some(Err(error)) => tracing::error!("{error}; what was read before stays in use"),
            }
        }
    });
    Ok(renewed)
}

/// Files, and what they held at the last look. They are small and on a local file system, so reading them blocks no task
/// for long.
pub(super) struct Files<const N: usize> {
    paths: [PathBuf; N],
    last: [Pem; N],
}

impl<const N: usize> Files<N> {
    pub(super) fn read(paths: [&Path; N]) -> Self {
        Files { paths: paths.map(Path::to_owned), last: paths.map(Pem::read) }
    }

    /// What the files hold now, if it changed since the last look.
    pub(super) fn look(&mut self) -> Option<&[Pem; N]> {
        let now = self.paths.each_ref().map(|path| Pem::read(path));
        if now == self.last {
            return None;
        }
        self.last = now;
        Some(&self.last)
    }
}
