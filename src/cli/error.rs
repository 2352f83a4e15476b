//! Why a command failed: a sentence, and where there is something to do about it, a hint.

use std::process::ExitCode;

use console::style;
use serde::Deserialize;

use crate::turn::objects::objects_only;

/// An error response of the gateway: RFC 9457 problem details.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[serde(remote = "Self")]
pub struct ApiProblem {
    pub title: String,
    /// The HTTP status of the response.
    pub status: u16,
    pub detail: Option<String>,
    pub reason: Option<String>,
    pub message_id: Option<String>,
    /// The response's `Retry-After`, in seconds.
    #[serde(skip)]
    pub retry_after: Option<u64>,
}

impl std::fmt::Display for ApiProblem {
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
    /// No gateway answered until the client's patience was over.
    #[error("cannot reach the gateway at {gateway}: {why}")]
    Unreachable { gateway: String, why: String },
    #[error("{0}")]
    Problem(ApiProblem),
    /// The answer is none that the API documents: probably something else than a gateway answered.
    #[error("unexpected answer of {gateway}: {why}")]
    Protocol { gateway: String, why: String },
    /// The request cannot be made.
    #[error("{0}")]
    Invalid(String),
}

impl ClientError {
    /// The HTTP status of the gateway's error response, if there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            ClientError::Problem(problem) => Some(problem.status),
            _ => None,
        }
    }

    /// What the person can do about it.
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
                // Other refusals say themselves what is to be done.
                403 if problem.detail.as_ref().is_some_and(|detail| detail.contains("operators")) => {
                    Some("this call needs an operator's key (`lastword keys create --role operator`)".into())
                }
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

/// Why a command failed.
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
    /// The command line asks for something that is not possible.
    #[error("{0}")]
    Usage(String),
    #[error("cannot {doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    /// What the person can do about it, where the error does not say it already.
    pub fn hint(&self) -> Option<String> {
        match self {
            CliError::Client(error) => error.hint(),
            _ => None,
        }
    }

    /// Whether the reader of the output has gone, as in `… | head`. This is no failure to report.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, CliError::Output(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

/// Prints a command's failure and its hint on stderr, and gives the exit code, 1.
pub fn report(error: &CliError) -> ExitCode {
    if !error.is_broken_pipe() {
        eprintln!("{} {error}", style("error:").for_stderr().red().bold());
        if let Some(hint) = error.hint() {
            eprintln!("{} {hint}", style("hint:").for_stderr().dim());
        }
    }
    ExitCode::FAILURE
}

objects_only!(read ApiProblem);
