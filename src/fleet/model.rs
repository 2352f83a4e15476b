//! The command line and environment of the adapter `openai`, made from an Agent's spec: the same for pods and for processes of
//! one machine. Pure.

use crate::crd::{AgentSpec, OpenAi, SecretKeyRef};

/// The variable in which the adapter finds its API key.
const API_KEY: &str = "LASTWORD_OPENAI_API_KEY";
/// The variable in which it finds the system prompt, which would be too long for a command line that people read in `ps`.
const SYSTEM_PROMPT: &str = "LASTWORD_OPENAI_SYSTEM_PROMPT";
/// The variable in which it finds the authorities that it trusts.
const CA: &str = "LASTWORD_OPENAI_CA";
/// The beginning of the variables in which it finds the values of headers; a number follows.
const HEADER: &str = "LASTWORD_OPENAI_HEADER_VALUE_";
/// How much of `startSeconds` is left when the adapter gives up waiting for a model server, in seconds at the most: so it is
/// the adapter that says why the start failed, and not the start's deadline, which knows nothing of the server.
const LONGEST_MARGIN: u32 = 15;

/// What starts an adapter `openai`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelAdapter<'a> {
    /// Its flags. Each is one word with "=", so that a value which begins with "-" is not taken for a flag.
    pub flags: Vec<String>,
    /// Variables of its environment.
    pub variables: Vec<(String, ModelValue<'a>)>,
}

/// A variable's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelValue<'a> {
    Plain(&'a str),
    Secret {
        /// The field of the Agent that names the Secret, such as `spec.openai.apiKeySecretRef`.
        field: String,
        secret: &'a SecretKeyRef,
    },
}

/// The adapter of this Agent. `has_server`: its model server is started beside it, so it waits until that is ready.
pub fn model_adapter<'a>(spec: &AgentSpec, openai: &'a OpenAi, has_server: bool) -> ModelAdapter<'a> {
    let mut flags = vec![format!("--base-url={}", openai.base_url), format!("--model={}", openai.model)];
    let start = spec.timing.start_seconds();
    // A server elsewhere is not waited for: if it cannot be reached, the person hears of that, and not of a failed start.
    let wait = if has_server { start.saturating_sub((start / 4).clamp(1, LONGEST_MARGIN)).max(1) } else { 0 };
    flags.push(format!("--wait-ready={wait}"));
    for (flag, value) in [
        ("connect-timeout", openai.connect_seconds),
        ("idle-timeout", openai.silence_seconds),
        ("request-timeout", openai.completion_seconds),
        ("retries", openai.retries),
        ("history", openai.history_turns),
    ] {
        flags.extend(value.map(|value| format!("--{flag}={value}")));
    }
    let mut variables = Vec::new();
    if let Some(prompt) = &openai.system_prompt {
        variables.push((SYSTEM_PROMPT.to_owned(), ModelValue::Plain(prompt)));
    }
    for (flag, name, field, secret) in [
        ("api-key-env", API_KEY, "apiKeySecretRef", &openai.api_key_secret_ref),
        ("ca-env", CA, "caSecretRef", &openai.ca_secret_ref),
    ] {
        let Some(secret) = secret else { continue };
        flags.push(format!("--{flag}={name}"));
        variables.push((name.to_owned(), ModelValue::Secret { field: format!("spec.openai.{field}"), secret }));
    }
    for (number, header) in openai.headers.iter().enumerate() {
        let value = match (&header.value, &header.value_secret_ref) {
            (Some(value), _) => ModelValue::Plain(value),
            (None, Some(secret)) => {
                let field = format!("spec.openai.headers[{number}].valueSecretRef");
                ModelValue::Secret { field, secret }
            }
            (None, None) => continue,
        };
        flags.push(format!("--header-env={}={HEADER}{number}", header.name));
        variables.push((format!("{HEADER}{number}"), value));
    }
    ModelAdapter { flags, variables }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_field_becomes_a_flag() {
        let with = |openai: serde_json::Value, start: u32, has_server: bool| {
            let spec = json!({"adapter": "OpenAI", "openai": openai, "timing": {"startSeconds": start}});
            let spec: AgentSpec = serde_json::from_value(spec).expect("a spec");
            let adapter = model_adapter(&spec, spec.openai.as_ref().expect("there"), has_server);
            let secret = |value: &ModelValue| match value {
                ModelValue::Plain(text) => text.to_string(),
                ModelValue::Secret { field, secret } => format!("{field}: {}/{}", secret.name, secret.key),
            };
            let variables: Vec<_> = adapter.variables.iter().map(|(name, v)| format!("{name}={}", secret(v))).collect();
            (adapter.flags.join(" "), variables)
        };
        let (flags, variables) = with(json!({"baseURL": "http://m/v1", "model": "m"}), 120, false);
        assert_eq!((flags.as_str(), variables.len()), ("--base-url=http://m/v1 --model=m --wait-ready=0", 0));
        let openai = json!({
            "baseURL": "https://m/v1", "model": "-m", "systemPrompt": "Be brief.",
            "apiKeySecretRef": {"name": "a", "key": "k"}, "caSecretRef": {"name": "c", "key": "ca.crt"},
            "connectSeconds": 1, "silenceSeconds": 2, "completionSeconds": 3, "retries": 0, "historyTurns": 5,
            "headers": [{"name": "X-Team", "value": "red"}, {"name": "api-key", "valueSecretRef": {"name": "h", "key": "v"}}],
        });
        let (flags, variables) = with(openai, 120, true);
        assert_eq!(
            flags,
            "--base-url=https://m/v1 --model=-m --wait-ready=105 --connect-timeout=1 --idle-timeout=2 --request-timeout=3 \
             --retries=0 --history=5 --api-key-env=LASTWORD_OPENAI_API_KEY --ca-env=LASTWORD_OPENAI_CA \
             --header-env=X-Team=LASTWORD_OPENAI_HEADER_VALUE_0 --header-env=api-key=LASTWORD_OPENAI_HEADER_VALUE_1"
        );
        assert_eq!(
            variables,
            [
                "LASTWORD_OPENAI_SYSTEM_PROMPT=Be brief.",
                "LASTWORD_OPENAI_API_KEY=spec.openai.apiKeySecretRef: a/k",
                "LASTWORD_OPENAI_CA=spec.openai.caSecretRef: c/ca.crt",
                "LASTWORD_OPENAI_HEADER_VALUE_0=red",
                "LASTWORD_OPENAI_HEADER_VALUE_1=spec.openai.headers[1].valueSecretRef: h/v",
            ]
        );
        for (start, wait) in [(1, 1), (2, 1), (8, 6), (60, 45), (600, 585)] {
            let (flags, _) = with(json!({"baseURL": "http://m", "model": "m"}), start, true);
            assert!(flags.ends_with(&format!("--wait-ready={wait}")), "{start}: {flags}");
        }
    }
}
