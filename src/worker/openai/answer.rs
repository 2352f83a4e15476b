//! Reads a model server's answer with status 200: a stream of events, one JSON document, or something else.
//!
//! Which of them it is, its first character says; servers send the wrong `Content-Type` for errors.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use reqwest::Response;
use serde::de::IgnoredAny;
use tokio::time::{Instant, timeout, timeout_at};

use super::SERVER;
use super::completion::{Completion, CompletionEvent, ServerWords};
use super::progress::AnswerProgress;
use crate::event_stream::{ReadError, ServerEvents, Strangers};
use crate::turn::cause::model::{self, ModelRefusal};
use crate::turn::frame::Frame;
use crate::turn::terminal::cut;
use crate::worker::adapter::OutputSink;
use crate::worker::upstream::body::{AnswerBody, AnswerError, body};
use crate::worker::upstream::fault::{Fault, WORDS_BYTES};

/// The longest event of a model's stream, in bytes.
const EVENT_BYTES: usize = 1024 * 1024;
/// The longest completion in one document, in bytes.
const DOCUMENT_BYTES: usize = 4 * 1024 * 1024;
/// How long more is waited for once a completion is whole: usage figures and `[DONE]` follow at once, if at all, and some
/// servers keep the connection open for minutes.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// What is left of the time for the completion, when that is nearly over, to pass on a whole one.
const LAST_MOMENT: Duration = Duration::from_millis(200);

/// Passes the answer's completion on, as it comes. `idle`: how long the server may say nothing; a comment is something.
pub(super) async fn pass_on(
    response: Response,
    idle: Duration,
    progress: &AnswerProgress,
    out: &OutputSink,
) -> Result<(), Fault> {
    let mut answer = AnswerReader { completion: Completion::default(), progress, out, ignored: None };
    let mut body = body(SERVER, response, idle);
    let (first, head) = head(&mut body).await?;
    let bytes: AnswerBody = Box::pin(stream::iter([Ok(head)]).chain(body));
    let passed = match first {
        '{' | '[' => answer.document(bytes).await,
        '<' => {
            let page = beginning(bytes).await;
            let detail = format!(
                "the model server answered with a page in place of a completion; does the base URL lead to an API? {page}"
            );
            Err(Fault::Refused { refusal: ModelRefusal::ForGood, detail, again: None })
        }
        _ => answer.events(bytes).await,
    };
    if let Some(reason) = answer.completion.finish_reason() {
        out.finish_reason(reason);
    }
    passed
}

/// The answer's first character that is not blank, and the piece that it was found in. Blank lines before an answer are a
/// server's way to say that it works.
async fn head(body: &mut AnswerBody) -> Result<(char, Bytes), Fault> {
    let mut is_first = true;
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| match error {
            AnswerError::Broken(..) if is_first => Fault::no_byte(error.to_string()),
            error => Fault::refused(ModelRefusal::MayPass, error.to_string()),
        })?;
        is_first &= piece.is_empty();
        let text = String::from_utf8_lossy(&piece);
        if let Some(first) = text.trim_start_matches('\u{feff}').trim_start().chars().next() {
            return Ok((first, piece));
        }
    }
    let empty = "the model server's answer is empty";
    Err(if is_first { Fault::no_byte(empty) } else { Fault::refused(ModelRefusal::MayPass, empty) })
}

/// The beginning of an answer, for operators.
async fn beginning(mut bytes: AnswerBody) -> String {
    let mut text = Vec::new();
    while text.len() < WORDS_BYTES
        && let Some(Ok(piece)) = bytes.next().await
    {
        text.extend_from_slice(&piece);
    }
    cut(String::from_utf8_lossy(&text).trim().to_owned(), WORDS_BYTES)
}

/// Reads one answer.
struct AnswerReader<'a> {
    completion: Completion,
    progress: &'a AnswerProgress,
    out: &'a OutputSink,
    /// What came that is not understood, after the completion was whole.
    ignored: Option<String>,
}

impl AnswerReader<'_> {
    async fn events(&mut self, bytes: AnswerBody) -> Result<(), Fault> {
        let mut events = ServerEvents::new(bytes, EVENT_BYTES, Strangers::Told);
        let mut until = None;
        loop {
            let next = match until {
                None => events.next().await,
                Some(until) => timeout_at(until, events.next()).await.unwrap_or(None),
            };
            let taken = match next {
                Some(Ok(event)) => self.completion.event(&event.name, &event.data.unwrap_or_default()),
                None | Some(Err(_)) if self.completion.is_whole() => return self.end().await,
                None => return Err(self.broken_off("the model's stream ended before the completion did".into())),
                Some(Err(ReadError::Bytes(error))) => return Err(self.broken_off(error.to_string())),
                Some(Err(error)) => Err(ServerWords { code: None, words: error.to_string() }),
            };
            match taken {
                Ok(CompletionEvent::Frames(frames)) => self.send(frames).await?,
                Ok(CompletionEvent::Done) => return self.end().await,
                Err(words) if self.completion.is_whole() => self.ignored = Some(words.words),
                Err(words) => return Err(self.failed(words)),
            }
            if self.completion.is_whole() {
                until.get_or_insert_with(|| {
                    let latest = self.progress.until.checked_sub(LAST_MOMENT).unwrap_or(self.progress.until);
                    latest.min(Instant::now() + AFTERWARDS)
                });
            }
        }
    }

    /// Takes a whole document. One behind which the connection stays open is read when no more comes for a while; one behind
    /// which it breaks is no less whole.
    async fn document(&mut self, mut bytes: AnswerBody) -> Result<(), Fault> {
        let mut document = Vec::new();
        let is_json = |document: &[u8]| serde_json::from_slice::<IgnoredAny>(document).is_ok();
        loop {
            match timeout(AFTERWARDS, bytes.next()).await {
                Ok(Some(Ok(piece))) => document.extend_from_slice(&piece),
                Ok(None) => break,
                Ok(Some(Err(_))) | Err(_) if is_json(&document) => break,
                Ok(Some(Err(error))) => return Err(Fault::refused(ModelRefusal::MayPass, error.to_string())),
                Err(_) => {}
            }
            if document.len() > DOCUMENT_BYTES {
                return Err(Fault::refused(
                    ModelRefusal::ForGood,
                    format!("an answer of more than {DOCUMENT_BYTES} bytes"),
                ));
            }
        }
        let document = String::from_utf8_lossy(&document);
        match self.completion.document(document.trim_start_matches('\u{feff}').trim()) {
            Ok(frames) => self.send(frames).await?,
            Err(words) => return Err(self.failed(words)),
        }
        self.end().await
    }

    /// The completion is over: passes on what is left of it, and says whether it is one.
    async fn end(&mut self) -> Result<(), Fault> {
        let rest = self.completion.rest();
        self.send(rest).await?;
        let how = self.completion.how_it_ended();
        if self.completion.is_empty() {
            let more = self.ignored.take().map(|words| format!("; then it said: {words}")).unwrap_or_default();
            return Err(Fault::Final(model::empty(format!("the completion is empty ({how}){more}"))));
        }
        match self.completion.is_whole() {
            true => Ok(()),
            false => Err(Fault::Final(model::broken_off(format!(
                "the model's stream ended without a proof that it is whole ({how})"
            )))),
        }
    }

    async fn send(&self, frames: Vec<Frame>) -> Result<(), Fault> {
        if self.completion.has_begun() {
            self.progress.note_answer();
        }
        if self.completion.is_whole() && !self.completion.is_empty() {
            self.progress.note_whole();
        }
        for frame in frames {
            self.out.send(frame).await.map_err(|stopped| Fault::Final(model::broken_off(stopped.to_string())))?;
        }
        Ok(())
    }

    /// The server said something else than the rest of the completion.
    fn failed(&self, said: ServerWords) -> Fault {
        if self.completion.has_begun() {
            return Fault::Final(model::broken_off(format!("an error in the model's stream: {}", said.words)));
        }
        let refusal = model::refusal(said.code, &said.words);
        Fault::refused(refusal, format!("the model server answered with status 200 and an error: {}", said.words))
    }

    /// Nothing more comes.
    fn broken_off(&self, why: String) -> Fault {
        match self.completion.has_begun() {
            true => Fault::Final(model::broken_off(why)),
            false => Fault::refused(ModelRefusal::MayPass, why),
        }
    }
}
