//! Why a worker does not start, and the exit codes by which a worker says why it ended.

use super::credential::ExchangeError;
use crate::tls::TlsError;

/// Exit code: the gateway says that this worker's lease is dead (410).
pub const EXIT_GONE: u8 = 3;
/// Exit code: the gateway refuses the credential (401, 403).
pub const EXIT_REFUSED: u8 = 4;
/// Exit code: the model server that the worker supervises ended, or was never ready.
pub const EXIT_BROKEN: u8 = 5;

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("{0} is not set; the runtime that starts a worker gives it its credential there")]
    NoCredential(&'static str),
    #[error("no credential for the pod's token: {0}")]
    Exchange(#[from] ExchangeError),
    #[error("{0} holds characters that no credential has")]
    BadCredential(&'static str),
    #[error("the gateway's URL {0} is neither http:// nor https://")]
    BadGateway(url::Url),
    #[error(transparent)]
    Authorities(#[from] TlsError),
    #[error("no HTTP client: {0}")]
    Http(#[from] reqwest::Error),
    #[error("cannot install into {path}: {error}; the directory must exist and be writable")]
    Install { path: std::path::PathBuf, error: std::io::Error },
    #[error("cannot start {program}: {error}")]
    Start { program: String, error: std::io::Error },
    #[error("the environment variable {0}, which a flag names, is not set, or holds what no header may have")]
    NoValue(String),
    #[error(
        "--header-env {0}: it has the form NAME=VARIABLE, with the header's name and that of an environment variable"
    )]
    BadHeader(String),
    #[error("the server at {url} was not ready within {seconds} s: {why}")]
    NotReady { url: String, seconds: u64, why: String },
    #[error("conformance needs a loopback port: {0}")]
    Listen(std::io::Error),
}
