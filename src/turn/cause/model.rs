//! Why a model gave no answer: by what its server said in place of one, or by why the server could not be asked.

use crate::turn::reason::Reason;
use crate::turn::terminal::Failure;

/// What a model server's refusal of a request means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelRefusal {
    /// The messages are more than the model can read at once. With fewer of them it may answer.
    TooLong,
    /// The same request is refused again until somebody changes something: a key, a name, a setting.
    ForGood,
    /// The server has trouble, or a limit of its rate is reached. That may pass.
    MayPass,
}

/// Words by which servers say that the messages are too long. Hardly two of them agree on a code.
const TOO_LONG: [&str; 22] = [
    "context_length",
    "context length",
    "context_size",
    "context size",
    "context_window",
    "context window",
    "context limit",
    "maximum context",
    "maximum model length",
    "max_model_len",
    "prompt is too long",
    "prompt too long",
    "input is too long",
    "input too long",
    "too many tokens",
    "maximum number of tokens",
    "tokens_limit_reached",
    "length of the messages",
    "string_above_max_length",
    "max_new_tokens` must be",
    "maximum allowed input length",
    "request_too_large",
];
/// Words of a limit that does not come back by itself, which are told with codes of limits that do.
const USED_UP: [&str; 4] = ["insufficient_quota", "billing", "credit balance", "insufficient credits"];
/// Words of refusals that are told without a code.
const FOR_GOOD: [&str; 17] = [
    "invalid_request",
    "invalid request",
    "bad_request",
    "bad request",
    "invalid_api_key",
    "api key",
    "authentication",
    "unauthorized",
    "permission",
    "forbidden",
    "not_found",
    "not found",
    "does not exist",
    "no such model",
    "unknown model",
    "unsupported",
    "not supported",
];

/// What a refusal means. `code` is the answer's HTTP status, or the code in an error that came with status 200; `words` is
/// all that the server said.
pub fn refusal(code: Option<u16>, words: &str) -> ModelRefusal {
    let words = words.to_lowercase();
    let says = |any: &[&str]| any.iter().any(|phrase| words.contains(phrase));
    match code {
        Some(429) if says(&USED_UP) => ModelRefusal::ForGood,
        Some(408 | 409 | 423 | 425 | 429) => ModelRefusal::MayPass,
        Some(413) => ModelRefusal::TooLong,
        _ if says(&TOO_LONG) => ModelRefusal::TooLong,
        Some(300..=499 | 501 | 505) => ModelRefusal::ForGood,
        Some(500..) => ModelRefusal::MayPass,
        _ if says(&USED_UP) || says(&FOR_GOOD) => ModelRefusal::ForGood,
        _ => ModelRefusal::MayPass,
    }
}

/// The failure of a turn whose request was refused. `alone`: the request held no message but the turn's own.
pub fn refused(refusal: ModelRefusal, alone: bool, detail: impl Into<String>) -> Failure {
    match refusal {
        ModelRefusal::TooLong if alone => {
            rejected(detail).with_message("This message is too long for the agent's model. Please send a shorter one.")
        }
        ModelRefusal::TooLong => rejected(detail)
            .with_message("This conversation is too long for the agent's model. Please start a new one."),
        ModelRefusal::ForGood => rejected(detail),
        ModelRefusal::MayPass => unavailable(detail),
    }
}

/// The model or its server will refuse the request until somebody changes something.
pub fn rejected(detail: impl Into<String>) -> Failure {
    Failure::detailed(Reason::ModelRejected, detail)
}

/// The model server could not be reached, or has trouble that may pass.
pub fn unavailable(detail: impl Into<String>) -> Failure {
    Failure::detailed(Reason::ModelUnavailable, detail)
}

/// The model began an answer, which did not become whole. `detail` says what came in place of the rest.
pub fn broken_off(detail: impl Into<String>) -> Failure {
    Failure::detailed(Reason::AgentError, detail)
}

/// The model's answer is whole, and holds neither text nor a tool call.
pub fn empty(detail: impl Into<String>) -> Failure {
    broken_off(detail).with_message("The agent gave no answer.")
}
