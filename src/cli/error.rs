//! What a command says when it fails: a sentence, and where there is one, what to do.

use serde::Deserialize;

/// An answer of the gateway that is not the one hoped for (RFC 9457 problem details).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Problem {
    pub title: String,
    /// 0 when the body carries none; the client then fills in the response's.
    pub status: u16,
    pub detail: Option<String>,
    pub reason: Option<String>,
    pub message_id: Option<String>,
    /// From `Retry-After`, in seconds.
    #[serde(skip)]
    pub retry_after: Option<u64>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(reason) = &self.reason {
            write!(f, "{reason}: ")?;
        }
        match &self.detail {
            Some(detail) if detail.contains(&self.title) => write!(f, "{detail}"),
            Some(detail) => write!(f, "{}: {detail}", self.title),
            None => write!(f, "{}", self.title),
        }
    }
}

/// Why a call to the gateway failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing answered for as long as the client was willing to try.
    #[error("cannot reach the gateway at {gateway}: {why}")]
    Unreachable { gateway: String, why: String },
    #[error("{0}")]
    Problem(Problem),
    /// The answer is not what the API promises, so probably no gateway's.
    #[error("unexpected answer of {gateway}: {why}")]
    Protocol { gateway: String, why: String },
    #[error("{0}")]
    Invalid(String),
}

impl ClientError {
    /// The problem's HTTP status, if the gateway answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            ClientError::Problem(problem) => Some(problem.status),
            _ => None,
        }
    }

    /// What the caller can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            ClientError::Unreachable { .. } => {
                Some("is it running, and is --gateway (LASTWORD_GATEWAY_URL) right?".into())
            }
            ClientError::Protocol { .. } => {
                Some("is --gateway (LASTWORD_GATEWAY_URL) the URL of a Lastword gateway?".into())
            }
            ClientError::Invalid(_) => None,
            ClientError::Problem(problem) => match problem.status {
                401 => Some("set --api-key (LASTWORD_API_KEY); `lastword keys create` makes one".into()),
                403 => Some("this call needs an operator's key (`lastword keys create --role operator`)".into()),
                410 => Some("its turns are past their retention; start again without a cursor".into()),
                429 => Some(match problem.retry_after {
                    Some(seconds) => format!("send it again in {seconds} s"),
                    None => "send it again when a turn has ended".into(),
                }),
                503 => Some("it is not known whether the turn was armed; the same messageId finds out".into()),
                _ => None,
            },
        }
    }
}

/// Why a command failed. `main` prints it, and its [`hint`](CliError::hint), and exits 1.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Store(#[from] crate::store::keys::KeyError),
    #[error(transparent)]
    Probe(#[from] crate::store::probe::ProbeError),
    #[error(transparent)]
    EnvFile(#[from] super::env_file::EnvFileError),
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    #[error("cannot {doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    /// What the caller can do about it, if the error does not say it already.
    pub fn hint(&self) -> Option<String> {
        match self {
            CliError::Client(error) => error.hint(),
            _ => None,
        }
    }

    /// Whether whoever read our output is gone, as in `… | head`: nothing to say, and nobody to say it to.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, CliError::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}
