//! From an adapter and its flags to a worker that serves turns, and to its exit code.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use reqwest::header::HeaderValue;
use tokio_util::sync::CancellationToken;

use super::adapter::TurnAdapter;
use super::client::CallError;
use super::credential::{self, ExchangeError};
use super::environment::hide_environment;
use super::error::{EXIT_BROKEN, EXIT_GONE, EXIT_REFUSED, WorkerError};
use super::gateways::Gateways;
use super::options::CommonArgs;
use super::run::{self, Settings, WorkerEnd};
use crate::tls::Authorities;
use crate::wire::env;

/// What an adapter needs to be pushed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wants {
    /// How many past turns of the conversation with each turn.
    pub history: u32,
    /// All waiting turns of a conversation together, for one reply.
    pub together: bool,
}

/// Serves turns with an adapter until the worker ends.
pub(super) async fn serve(
    common: &CommonArgs,
    wants: Wants,
    adapter: impl TurnAdapter,
    shutdown: CancellationToken,
) -> Result<ExitCode, WorkerError> {
    hide_environment();
    let settings = match settings(common, wants, &shutdown).await {
        Ok(settings) => settings,
        Err(WorkerError::Exchange(ExchangeError::Stopped)) => return Ok(ExitCode::SUCCESS),
        Err(WorkerError::Exchange(ExchangeError::Final(error))) => {
            tracing::error!("{error}: the worker stops");
            return Ok(exit_code(&error).into());
        }
        Err(error) => return Err(error),
    };
    let end = run::serve(settings, Arc::new(adapter), shutdown).await;
    Ok(match end {
        WorkerEnd::Drained => ExitCode::SUCCESS,
        WorkerEnd::Dead(error) => exit_code(&error).into(),
        WorkerEnd::Broken => EXIT_BROKEN.into(),
    })
}

/// The settings of the flags, with the credential of the environment or the one that the pod's token is exchanged for.
async fn settings(common: &CommonArgs, wants: Wants, shutdown: &CancellationToken) -> Result<Settings, WorkerError> {
    for url in &common.gateway {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(WorkerError::BadGateway(url.clone()));
        }
    }
    let authorities = common.gateway_ca.as_deref().map(Authorities::read).transpose()?;
    let gateways = Gateways::new(common.gateway.clone(), authorities);
    let given = std::env::var(env::CREDENTIAL).unwrap_or_default();
    let credential = match std::env::var_os(env::TOKEN_FILE).filter(|file| !file.is_empty()) {
        _ if !given.is_empty() => given,
        Some(file) => credential::exchange(&gateways, Path::new(&file), shutdown).await?,
        None => return Err(WorkerError::NoCredential(env::CREDENTIAL)),
    };
    let mut authorization = HeaderValue::from_str(&format!("Bearer {credential}"))
        .map_err(|_| WorkerError::BadCredential(env::CREDENTIAL))?;
    authorization.set_sensitive(true);
    Ok(Settings {
        gateways,
        authorization,
        capacity: common.turns_per_worker,
        history: wants.history,
        together: wants.together,
        drain_seconds: common.drain_seconds,
    })
}

/// The exit code of a worker whose incarnation the gateway has ended.
fn exit_code(error: &CallError) -> u8 {
    match error {
        CallError::Refused(_) => EXIT_REFUSED,
        _ => EXIT_GONE,
    }
}
