//! Input guardrails and platforms of an `Agent`.

use std::time::Duration;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::turn::defaults;

/// Rules of whatever has a URL. Expression and message.
const ONE_SOURCE: (&str, &str) = ("has(self.url) != has(self.urlSecretRef)", "set exactly one of url and urlSecretRef");
const HTTP_URL: (&str, &str) = (
    "!has(self.url) || self.url.startsWith('http://') || self.url.startsWith('https://')",
    "url must be an http or https URL",
);

/// What a message must pass before the agent sees it.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Guardrails {
    /// Asked in this order; the first rejection wins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub input: Vec<Guardrail>,
}

/// One check of a message: a CEL expression or a webhook.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.cel) != has(self.webhook)", "set exactly one of cel and webhook"))]
pub struct Guardrail {
    /// A CEL expression; true lets the message pass. Variables: message, user, conversation, platform,
    /// metadata, size (bytes).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub cel: Option<String>,
    /// A service that is asked over HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
    /// What the client is told on a rejection; a webhook's own message wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
    /// What follows if the check itself fails: Fail (default) rejects the message, Ignore lets it pass.
    #[serde(default)]
    pub failure_policy: FailurePolicy,
}

/// What follows if a check itself fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FailurePolicy {
    /// The message is rejected.
    #[default]
    Fail,
    /// The message passes.
    Ignore,
}

/// A service that decides on messages.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ONE_SOURCE, validation = HTTP_URL)]
pub struct Webhook {
    /// The service's URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// The key of a Secret in the agent's namespace that holds the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,
    /// Seconds to wait for the whole answer; default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 30))]
    pub timeout_seconds: Option<u32>,
}

impl Webhook {
    /// How long the whole exchange may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.unwrap_or(defaults::WEBHOOK_TIMEOUT_SECONDS).into())
    }
}

/// A key of a Secret in the same namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key within it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A place where replies are sent besides the API. A client may name it, never its URL.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.webhook) != has(self.slack)", "set exactly one of webhook and slack"),
    validation = ("!(self.name in ['api', 'kubernetes'])", "the names api and kubernetes are taken")
)]
pub struct Platform {
    /// The name by which clients choose it.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// POSTs the terminal as JSON, signed as Standard Webhooks say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<SignedDestination>,
    /// Posts the text to a Slack incoming webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slack: Option<Destination>,
}

/// Where a platform's messages go, and how the receiver knows that they are ours.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ONE_SOURCE, validation = HTTP_URL)]
pub struct SignedDestination {
    /// The URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// The key of a Secret in the agent's namespace that holds the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,
    /// The key of a Secret in the agent's namespace that holds the signing secret, whsec_ and 24 to 64 bytes as base64;
    /// several, separated by white space, while it is changed.
    pub signing_secret_ref: SecretKeyRef,
}

/// Where a platform's messages go.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ONE_SOURCE, validation = HTTP_URL)]
pub struct Destination {
    /// The URL. Better in a Secret if whoever knows it can post.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// The key of a Secret in the agent's namespace that holds the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,
}
