//! The flags that tell a command where its gateway is.

use std::time::Duration;

use url::Url;

use super::client::ApiClient;
use super::error::ClientError;

/// How a command finds its gateway.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientArgs {
    /// The gateway's URL.
    #[arg(long, env = "LASTWORD_GATEWAY_URL", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub gateway: Url,
    /// The API key (`lwk_…`); none for a gateway with `--auth none`.
    #[arg(long, env = "LASTWORD_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// How long to go on trying while the gateway cannot be reached, in seconds.
    #[arg(long, env = "LASTWORD_RETRY_SECONDS", value_name = "SECONDS", default_value_t = 30)]
    pub retry_seconds: u64,
}

impl ClientArgs {
    /// The client that these flags describe.
    ///
    /// # Errors
    /// If the URL or the key is none that a gateway could have.
    pub fn client(&self) -> Result<ApiClient, ClientError> {
        let client = ApiClient::new(self.gateway.clone(), self.api_key.clone())?;
        Ok(client.with_patience(Duration::from_secs(self.retry_seconds)))
    }
}
