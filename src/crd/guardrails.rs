//! Parts of the resource `Agent`: guardrails, which check messages, and platforms, which replies are sent to.

use std::time::Duration;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::turn::defaults;

/// CEL rules, as expression and message, of every type that has a URL.
const ONE_SOURCE: (&str, &str) = ("has(self.url) != has(self.urlSecretRef)", "set exactly one of url and urlSecretRef");
const HTTP_URL: (&str, &str) = (
    "!has(self.url) || self.url.startsWith('http://') || self.url.startsWith('https://')",
    "url must be an http or https URL",
);

/// Checks that a message must pass before the agent sees it.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Guardrails {
    /// The checks, in the order in which they are made. The first one that rejects the message ends the turn.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub input: Vec<Guardrail>,
}

/// One check of a message: a CEL expression, or a webhook.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.cel) != has(self.webhook)", "set exactly one of cel and webhook"))]
pub struct Guardrail {
    /// A CEL expression. The message passes if it is true. Its variables are message, user, conversation, platform, metadata,
    /// and size (of the message, in bytes).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub cel: Option<String>,
    /// A service that is asked over HTTP whether the message passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
    /// What the client is told when the message is rejected. A message that the webhook answers with takes its place. Default:
    /// a general sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub message: Option<String>,
    /// What becomes of the message if the check itself fails, because the webhook cannot be reached, say: Fail (default)
    /// rejects the message, Ignore lets it pass.
    #[serde(default)]
    pub failure_policy: FailurePolicy,
}

/// What becomes of a message if a check itself fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FailurePolicy {
    /// The message is rejected.
    #[default]
    Fail,
    /// The message passes.
    Ignore,
}

/// A service that decides whether messages pass.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ONE_SOURCE, validation = HTTP_URL)]
pub struct Webhook {
    /// The URL of the service. Set either this or urlSecretRef.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// The key of a Secret in the agent's namespace that holds the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,
    /// Seconds to wait for the whole answer; default 5. After that the check has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 30))]
    pub timeout_seconds: Option<u32>,
}

impl Webhook {
    /// How long the service may take, from the connection to the end of its answer.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.unwrap_or(defaults::WEBHOOK_TIMEOUT_SECONDS).into())
    }
}

/// A key of a Secret in the agent's namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in the Secret's data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A place besides the API where replies are sent. A client may choose it by its name, and cannot choose the URL.
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
    /// A webhook. Each turn's reply or error is sent as a POST with a JSON body, signed by the Standard Webhooks specification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<SignedDestination>,
    /// A Slack incoming webhook. The text of each turn's reply or error is posted to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slack: Option<Destination>,
}

/// Where a platform's messages are sent, and the secret that signs them.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ONE_SOURCE, validation = HTTP_URL)]
pub struct SignedDestination {
    /// The URL. Set either this or urlSecretRef.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// The key of a Secret in the agent's namespace that holds the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,
    /// The key of a Secret in the agent's namespace that holds the signing secret: whsec_ followed by 24 to 64 bytes in
    /// base64. While the secret is being changed it may hold several, separated by white space.
    pub signing_secret_ref: SecretKeyRef,
}

/// Where a platform's messages are sent.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ONE_SOURCE, validation = HTTP_URL)]
pub struct Destination {
    /// The URL. Set either this or urlSecretRef, which is better where everybody who knows the URL can post to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// The key of a Secret in the agent's namespace that holds the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,
}
