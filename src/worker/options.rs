//! Flags that all adapters have.

use reqwest::header::HeaderValue;
use url::Url;

use super::WorkerError;
use super::run::Settings;
use crate::wire::env;

/// How to reach Lastword, and how much to take. The credential comes from LASTWORD_CREDENTIAL alone: a flag would show
/// in the process list.
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
    pub(super) fn settings(&self, history: u32, together: bool) -> Result<Settings, WorkerError> {
        let credential = std::env::var(env::CREDENTIAL).unwrap_or_default();
        if credential.is_empty() {
            return Err(WorkerError::NoCredential(env::CREDENTIAL));
        }
        let mut authorization = HeaderValue::from_str(&format!("Bearer {credential}"))
            .map_err(|_| WorkerError::BadCredential(env::CREDENTIAL))?;
        authorization.set_sensitive(true);
        for url in &self.gateway {
            if !matches!(url.scheme(), "http" | "https") {
                return Err(WorkerError::BadGateway(url.clone()));
            }
        }
        Ok(Settings {
            gateways: self.gateway.clone(),
            authorization,
            capacity: self.turns_per_worker,
            history,
            together,
            drain_seconds: self.drain_seconds,
        })
    }
}
