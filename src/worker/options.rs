//! Flags that all adapters have.

use std::path::{Path, PathBuf};

use reqwest::header::HeaderValue;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::run::Settings;
use super::{WorkerError, client, identity};
use crate::tls::Authorities;
use crate::wire::env;

/// How to reach Lastword, and how much to take. The credential comes from LASTWORD_CREDENTIAL alone (a flag would show in the
/// process list), or, in a pod, for the token in LASTWORD_TOKEN_FILE.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Base URLs of the gateways' worker port; one is used, the next when it fails
    #[arg(
        long,
        env = env::GATEWAY,
        value_name = "URL,…",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8081"
    )]
    pub gateway: Vec<Url>,
    /// PEM file with the authorities to trust at https:// gateways, in place of the system's
    #[arg(long, env = env::GATEWAY_CA, value_name = "FILE")]
    pub gateway_ca: Option<PathBuf>,
    /// Turns that may run at once
    #[arg(
        long,
        env = env::CAPACITY,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub turns_per_worker: u32,
    /// Time to finish the turns in hand after SIGTERM; then their programs are killed
    #[arg(long, env = env::DRAIN_SECONDS, value_name = "SECONDS", default_value_t = 30)]
    pub drain_seconds: u32,
}

impl Common {
    /// Settings with the credential of the environment, or the one that the pod's token is exchanged for.
    pub(super) async fn settings(
        &self,
        history: u32,
        together: bool,
        shutdown: &CancellationToken,
    ) -> Result<Settings, WorkerError> {
        for url in &self.gateway {
            if !matches!(url.scheme(), "http" | "https") {
                return Err(WorkerError::BadGateway(url.clone()));
            }
        }
        let authorities = self.gateway_ca.as_deref().map(Authorities::read).transpose()?;
        let http = client::http_client(&self.gateway, authorities.as_ref())?;
        let given = std::env::var(env::CREDENTIAL).unwrap_or_default();
        let credential = match std::env::var_os(env::TOKEN_FILE).filter(|file| !file.is_empty()) {
            _ if !given.is_empty() => given,
            Some(file) => identity::exchange(&http, &self.gateway, Path::new(&file), shutdown).await?,
            None => return Err(WorkerError::NoCredential(env::CREDENTIAL)),
        };
        let mut authorization = HeaderValue::from_str(&format!("Bearer {credential}"))
            .map_err(|_| WorkerError::BadCredential(env::CREDENTIAL))?;
        authorization.set_sensitive(true);
        Ok(Settings {
            gateways: self.gateway.clone(),
            http,
            authorization,
            capacity: self.turns_per_worker,
            history,
            together,
            drain_seconds: self.drain_seconds,
        })
    }
}
