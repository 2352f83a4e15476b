//! The flags that tell a command where its gateway is.

use std::time::Duration;

use url::Url;

use super::client::{ApiClient, is_loopback};
use super::client_file::{self, SavedGateway};
use super::error::ClientError;

/// The gateway of `lastword dev`.
pub(super) const LOCAL_GATEWAY: &str = "http://127.0.0.1:8080";

/// How a command finds its gateway.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientArgs {
    /// The gateway's URL [default: that of the user's own file, ~/.config/lastword/client.env, else http://127.0.0.1:8080].
    #[arg(long, env = "LASTWORD_GATEWAY_URL", value_name = "URL")]
    pub gateway: Option<Url>,
    /// The API key (`lwk_…`) [default: that of the user's own file, if it is for this gateway]; none for a gateway with
    /// `--auth none`.
    #[arg(long, env = "LASTWORD_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Send the key and the messages in cleartext (http) to another machine. Whoever is on the way can read and use the key.
    #[arg(long, env = "LASTWORD_ALLOW_CLEARTEXT")]
    pub allow_cleartext: bool,
    /// How long to go on trying while the gateway cannot be reached, in seconds.
    #[arg(long, env = "LASTWORD_RETRY_SECONDS", value_name = "SECONDS", default_value_t = 30)]
    pub retry_seconds: u64,
}

impl ClientArgs {
    /// The client that these flags and the user's own file describe.
    ///
    /// # Errors
    /// If the URL or the key is none that a gateway could have, if the key would go to another machine in cleartext, or if the
    /// file is needed and may not be trusted.
    pub fn client(&self) -> Result<ApiClient, ClientError> {
        let saved = match (&self.gateway, &self.api_key, client_file::path()) {
            // Nothing is left to look up.
            (Some(_), Some(_), _) | (_, _, None) => None,
            (_, _, Some(file)) => client_file::read(&file)?,
        };
        let (gateway, api_key) = self.choose(saved.as_ref())?;
        if api_key.is_some() && gateway.scheme() == "http" && !is_loopback(&gateway) && !self.allow_cleartext {
            let why = "the API key would be sent to another machine in cleartext";
            return Err(ClientError::Invalid(format!(
                "{why}: use https:// in place of {gateway}, or allow it with --allow-cleartext (LASTWORD_ALLOW_CLEARTEXT)"
            )));
        }
        let client = ApiClient::new(gateway, api_key)?;
        Ok(client.with_patience(Duration::from_secs(self.retry_seconds)))
    }

    fn choose(&self, saved: Option<&SavedGateway>) -> Result<(Url, Option<String>), ClientError> {
        let gateway = match self.gateway.clone().or_else(|| Some(saved?.gateway.clone())) {
            Some(gateway) => gateway,
            None => LOCAL_GATEWAY.parse().map_err(|error| ClientError::Invalid(format!("{LOCAL_GATEWAY}: {error}")))?,
        };
        let api_key = self.api_key.clone().filter(|key| !key.is_empty()).or_else(|| saved?.key_for(&gateway));
        Ok((gateway, api_key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(gateway: Option<&str>, api_key: Option<&str>, allow_cleartext: bool) -> ClientArgs {
        let gateway = gateway.map(|url| url.parse().unwrap());
        ClientArgs { gateway, api_key: api_key.map(str::to_owned), allow_cleartext, retry_seconds: 1 }
    }

    #[test]
    fn a_key_goes_to_another_machine_only_encrypted_or_when_that_is_allowed() {
        for (gateway, key, allowed, may) in [
            ("https://h", Some("k"), false, true),
            ("http://h", Some("k"), false, false),
            ("http://h", Some("k"), true, true),
            ("http://h", None, false, true),
            ("http://10.0.0.1:8080", Some("k"), false, false),
            ("http://[fe80::1]", Some("k"), false, false),
            ("http://localhost.example", Some("k"), false, false),
            ("http://127.0.0.1:8080", Some("k"), false, true),
            ("http://[::1]:8080", Some("k"), false, true),
            ("http://localhost", Some("k"), false, true),
        ] {
            // A gateway is named, and so is a key or its lack, so that no file is looked for.
            let client = args(Some(gateway), key.or(Some("")), allowed).client();
            assert_eq!(client.is_ok(), may, "{gateway} {key:?} {allowed}");
            if let Err(error) = client {
                assert!(error.to_string().contains("--allow-cleartext"), "{error}");
            }
        }
    }

    #[test]
    fn what_is_named_wins_over_the_file_and_the_files_key_stays_with_its_gateway() {
        let saved = SavedGateway { gateway: "https://saved/".parse().unwrap(), api_key: Some("of-file".into()) };
        let choose = |gateway, key, saved| {
            let (gateway, key) = args(gateway, key, false).choose(saved).unwrap();
            (gateway.to_string(), key)
        };
        let some = |key: &str| Some(key.to_owned());
        assert_eq!(choose(None, None, None), (format!("{LOCAL_GATEWAY}/"), None));
        assert_eq!(choose(None, None, Some(&saved)), ("https://saved/".into(), some("of-file")));
        assert_eq!(choose(None, Some("k"), Some(&saved)), ("https://saved/".into(), some("k")));
        assert_eq!(choose(Some("https://saved"), None, Some(&saved)), ("https://saved/".into(), some("of-file")));
        assert_eq!(choose(Some("https://other"), None, Some(&saved)), ("https://other/".into(), None));
    }
}
