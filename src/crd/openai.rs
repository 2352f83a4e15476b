//! The part of an Agent that the adapter `OpenAI` reads: the model server, the model, and how they are asked.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::guardrails::SecretKeyRef;

/// A server with OpenAI's chat completions API, and the model to ask.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "self.baseURL.startsWith('http://') || self.baseURL.startsWith('https://')",
    "baseURL must be an http or https URL"
))]
pub struct OpenAi {
    /// The root URL of the API, such as http://localhost:8000/v1. The server may be the container agent of the same pod; then
    /// turns wait until it is ready.
    #[serde(rename = "baseURL")]
    #[schemars(length(min = 1, max = 2048))]
    pub base_url: String,
    /// The name of the model, as the server knows it.
    #[schemars(length(min = 1, max = 256))]
    pub model: String,
    /// A system prompt, sent ahead of the messages of each conversation. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub system_prompt: Option<String>,
    /// The key of a Secret in the agent's namespace that holds the API key. Default: no key is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
    /// Further headers of each request. One that is named here replaces Lastword's own of that name, such as Authorization.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub headers: Vec<ModelHeader>,
    /// The key of a Secret in the agent's namespace that holds certificates of authorities (PEM). Default: the server's
    /// certificate must be from an authority that the system trusts; with it, from one of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// Seconds that a connection to the server may take to be made; default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 300))]
    pub connect_seconds: Option<u32>,
    /// Seconds that the server may say nothing, before its answer or within it; default 120. After that the turn fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub silence_seconds: Option<u32>,
    /// Seconds that a whole completion may take, new tries and pauses included; default 900. After that the turn fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604800))]
    pub completion_seconds: Option<u32>,
    /// How often a server that could not be reached or is overloaded is asked again before the first byte of an answer; default 1.
    /// A pause that the server asks for (Retry-After) is kept, if the turn lasts longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 5))]
    pub retries: Option<u32>,
    /// How many past turns of the conversation are sent along; default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub history_turns: Option<u32>,
}

/// A header of each request to a model server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.value) != has(self.valueSecretRef)", "set exactly one of value and valueSecretRef"),
    validation = ("self.name.matches('^[A-Za-z0-9._-]+$')", "name must be of A-Z, a-z, 0-9, ., _ and -"),
    validation = (
        "!self.name.matches('(?i)^(connection|content-length|content-type|host|te|trailer|transfer-encoding|upgrade)$')",
        "the header is Lastword's own to set"
    ),
    validation = ("!has(self.value) || self.value.matches('^[ -~]+$')", "value must be of printable ASCII characters")
)]
pub struct ModelHeader {
    /// The header's name.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// The header's value. Set either this or valueSecretRef.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub value: Option<String>,
    /// The key of a Secret in the agent's namespace that holds the header's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_secret_ref: Option<SecretKeyRef>,
}
