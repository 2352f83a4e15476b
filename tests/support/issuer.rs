//! A real OpenID Connect issuer as a process of its own: `oidc-provider` from npm (`tests/issuer`).

use std::process::Stdio;

use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::wait::within;
use super::{repository, skipped};

/// The audience that tokens are asked for.
pub const AUDIENCE: &str = "urn:lastword";

/// The issuer. It ends with this value.
pub struct TestIssuer {
    process: Child,
    pub url: String,
    http: Client,
}

impl TestIssuer {
    /// Installs and starts one; `None` is told as a skip.
    pub async fn start() -> Option<TestIssuer> {
        let installed = Command::new(repository("scripts/oidc-issuer")).status().await;
        if !installed.is_ok_and(|status| status.success()) {
            skipped("the OpenID Connect issuer cannot be installed");
            return None;
        }
        Some(TestIssuer::on("0").await)
    }

    async fn on(port: &str) -> TestIssuer {
        super::crypto();
        let mut process = Command::new("node")
            .arg(repository(".cache/issuer/issuer.mjs"))
            .arg(port)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("node starts");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let url = within("the issuer's address", lines.next_line()).await.expect("a line").expect("an address");
        let http = Client::builder().no_proxy().build().expect("a client");
        TestIssuer { process, url, http }
    }

    /// It goes away.
    pub async fn stop(&mut self) {
        within("the issuer's end", self.process.kill()).await.expect("ends");
    }

    /// It comes back where it was, with new keys.
    pub async fn start_again(&mut self) {
        let port = self.url.rsplit(':').next().expect("a port").to_owned();
        *self = TestIssuer::on(&port).await;
    }

    /// Changes it, see `tests/issuer/issuer.mjs`.
    pub async fn control(&self, change: Value) {
        let sent = self.http.post(format!("{}/control", self.url)).body(change.to_string()).send();
        let answer = within("the issuer's answer", sent).await.expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.status());
    }

    /// Logs a client in, and answers with its access token.
    pub async fn token(&self, client: &str) -> String {
        self.token_for(client, AUDIENCE).await
    }

    /// The same for another audience.
    pub async fn token_for(&self, client: &str, audience: &str) -> String {
        let form = format!(
            "grant_type=client_credentials&client_id={client}&client_secret={client}-secret&scope=chat&resource={audience}"
        );
        let request = self.http.post(format!("{}/token", self.url));
        let sent = request.header("content-type", "application/x-www-form-urlencoded").body(form).send();
        let answer = within("a token", sent).await.expect("an answer");
        let answer: Value = answer.json().await.expect("JSON");
        answer["access_token"].as_str().unwrap_or_else(|| panic!("no token: {answer}")).to_owned()
    }

    /// The issuer's public keys.
    pub async fn public_keys(&self) -> Value {
        let answer = within("the keys", self.http.get(format!("{}/jwks", self.url)).send()).await.expect("an answer");
        answer.json().await.unwrap_or(json!({}))
    }
}
