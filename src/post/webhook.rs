//! What is posted to the platform `webhook`: a terminal as JSON, signed as [Standard
//! Webhooks](https://www.standardwebhooks.com) say.
//!
//! `docs/api.md` describes the payload. A receiver recognises a repetition by the header `webhook-id`, which is the turn's id.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use serde_json::Value;
use sha2::Sha256;
use time::OffsetDateTime;

use crate::store::Record;
use crate::turn::keys::{ConversationId, TurnId};
use crate::turn::terminal::cut;

/// The longest reply that is posted, in bytes; a longer one is cut, and says so.
pub const MAX_REPLY_BYTES: usize = 1024 * 1024;
/// The length of a signing key in bytes, as Standard Webhooks demand.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// The most keys of one signing secret. There is more than one while a key is replaced.
const MAX_KEYS: usize = 4;

#[derive(Serialize)]
struct WebhookEvent<'a> {
    r#type: &'static str,
    #[serde(with = "time::serde::rfc3339::option")]
    timestamp: Option<OffsetDateTime>,
    data: WebhookData<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WebhookData<'a> {
    turn_id: TurnId,
    message_id: &'a str,
    conversation: &'a str,
    conversation_id: ConversationId,
    organization: &'a str,
    agent: &'a str,
    user: &'a str,
    platform: &'a str,
    platform_metadata: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<WebhookReply<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<WebhookError<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WebhookReply<'a> {
    /// Null if the log that held it is gone.
    text: Option<String>,
    truncated: bool,
    turn_ids: Vec<TurnId>,
    message_ids: Vec<&'a str>,
}

#[derive(Serialize)]
struct WebhookError<'a> {
    reason: &'static str,
    message: &'a str,
    retryable: bool,
}

/// The body that posts a terminal; the same for every attempt. Details for operators are not in it.
pub fn payload(record: &Record, platform: &str) -> Vec<u8> {
    let reply = record.reply.as_ref().map(|reply| WebhookReply {
        text: reply.text.clone().map(|text| cut(text, MAX_REPLY_BYTES)),
        truncated: reply.text.as_ref().is_some_and(|text| text.len() > MAX_REPLY_BYTES),
        turn_ids: reply.turns.iter().map(|t| t.0).collect(),
        message_ids: reply.turns.iter().map(|t| t.1.as_str()).collect(),
    });
    let error = record.failure.as_ref().map(|failure| WebhookError {
        reason: failure.reason.as_str(),
        message: &failure.message,
        retryable: failure.retryable(),
    });
    let event = WebhookEvent {
        r#type: if reply.is_some() { "turn.completed" } else { "turn.failed" },
        timestamp: record.ended_at,
        data: WebhookData {
            turn_id: record.turn_id,
            message_id: &record.message_id,
            conversation: &record.conversation,
            conversation_id: record.conversation_id,
            organization: &record.organization,
            agent: &record.agent,
            user: &record.user,
            platform,
            platform_metadata: &record.platform_metadata,
            reply,
            error,
        },
    };
    serde_json::to_vec(&event).unwrap_or_default() // strings and stored JSON always serialize
}

/// The keys of a signing secret. Each is base64, `whsec_` before it is optional; several are separated by white space.
///
/// # Errors
/// What is wrong with the secret; the text holds no part of it.
pub fn keys(secret: &str) -> Result<Vec<Vec<u8>>, &'static str> {
    let read = |word: &str| {
        let key = STANDARD.decode(word.strip_prefix("whsec_").unwrap_or(word)).map_err(|_| "it is not base64")?;
        if KEY_BYTES.contains(&key.len()) { Ok(key) } else { Err("a key must have 24 to 64 bytes") }
    };
    let keys = secret.split_whitespace().map(read).collect::<Result<Vec<_>, _>>()?;
    match keys.len() {
        0 => Err("it is empty"),
        n if n > MAX_KEYS => Err("it holds more than 4 keys"),
        _ => Ok(keys),
    }
}

/// The value of the header `webhook-signature`: a signature by each key. `id` is the header `webhook-id`, and `at` the Unix
/// time of the attempt in seconds.
pub fn signature(keys: &[Vec<u8>], id: &str, at: i64, body: &[u8]) -> String {
    let sign = |key: &Vec<u8>| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?; // takes keys of any length
        mac.update(format!("{id}.{at}.").as_bytes());
        mac.update(body);
        Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
    };
    keys.iter().filter_map(sign).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn it_signs_as_the_standard_has_it() {
        let keys = keys("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a key");
        let signed = signature(&keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn keys_are_read_and_refused() {
        let key = STANDARD.encode([7; 32]);
        for (secret, expected) in [
            (format!("whsec_{key}"), Ok(1)),
            (key.clone(), Ok(1)),
            (format!(" whsec_{key}\n whsec_{key} "), Ok(2)),
            (String::new(), Err("it is empty")),
            ("whsec_no base64".into(), Err("it is not base64")),
            (format!("whsec_{}", STANDARD.encode([7; 23])), Err("a key must have 24 to 64 bytes")),
            ([key.as_str(); 5].join(" "), Err("it holds more than 4 keys")),
        ] {
            assert_eq!(keys(&secret).map(|k| k.len()), expected, "{secret}");
        }
        let two = keys(&format!("{key} {key}")).expect("two");
        assert_eq!(signature(&two, "id", 1, b"x").matches("v1,").count(), 2);
    }
}
