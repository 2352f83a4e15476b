//! Reads Server-Sent Events: those of a gateway, in the commands for people, and those of model servers.
//!
//! The library `sse-stream` parses them, as the standard says. What it leaves to its caller is done here: an event has a
//! greatest length, invalid UTF-8 is replaced and does not end the stream, and [`Strangers`] says what becomes of what no
//! event stream holds.

use std::error::Error;
use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use sse_stream::{Error as ParseError, SseByteStream};

use crate::utf8::Decoder;

/// How much of a line that is no field is kept, in bytes.
const STRANGE_BYTES: usize = 4 * 1024;
/// The fields that the standard knows.
const FIELDS: [&str; 4] = ["data", "event", "id", "retry"];
/// What ends an event that its sender did not end.
const EVENT_END: &[u8] = b"\n\n";

/// What is done with what the standard makes no event of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strangers {
    /// As the standard says: lines that are no field are passed over, and an event that the end of the stream cuts off is
    /// dropped.
    Ignored,
    /// For servers that keep less to the standard. A line that cannot be a field, such as an error in JSON or a sentence,
    /// ends the stream with [`ReadError::Strange`]. An event that lacks its blank line when the stream ends is an event.
    Told,
}

/// One event, without what it may inherit from those before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerEvent {
    /// The field `event`; empty if there is none, which the standard calls `message`.
    pub name: String,
    /// The field `id`, if the event has one.
    pub id: Option<String>,
    /// The lines of the fields `data`, joined by line ends. `None`: the event has no such field.
    pub data: Option<String>,
}

/// Why a stream gives no further event.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E> {
    /// The bytes cannot be read any more.
    #[error("{0}")]
    Bytes(E),
    #[error("an event is longer than {0} bytes")]
    TooLong(usize),
    /// A line that is no part of an event stream; its beginning.
    #[error("no event stream: {0}")]
    Strange(String),
}

type Parsed = Pin<Box<dyn Stream<Item = Result<sse_stream::Sse, ParseError>> + Send>>;

/// The events of an answer's body.
pub struct ServerEvents<E> {
    parsed: Parsed,
    error: std::marker::PhantomData<fn() -> E>,
}

impl<E: Error + Send + Sync + 'static> ServerEvents<E> {
    /// Reads events of at most `longest` bytes.
    pub fn new<S>(bytes: S, longest: usize, strangers: Strangers) -> Self
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    {
        let mut lines = LineWatch { longest, strangers, ..LineWatch::default() };
        let checked = bytes
            .map(Some)
            .chain(stream::iter([None]))
            .scan(false, move |over, piece| {
                // `None` is the end of the bytes, which comes after an error too; what was cut off is not completed then.
                let passed = match piece {
                    _ if *over => return std::future::ready(None),
                    Some(Ok(bytes)) => lines.pass(&bytes),
                    Some(Err(error)) => vec![Err(ReadError::Bytes(error))],
                    None => lines.finish(),
                };
                *over = passed.iter().any(Result::is_err);
                std::future::ready(Some(stream::iter(passed)))
            })
            .flatten()
            .map(|passed| passed.map_err(Wrapped));
        ServerEvents { parsed: Box::pin(SseByteStream::new(Box::pin(checked))), error: std::marker::PhantomData }
    }

    /// The next event; `None` at the end of the stream. Nothing follows an error. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<ServerEvent, ReadError<E>>> {
        Some(match self.parsed.next().await? {
            Ok(event) => Ok(ServerEvent { name: event.event.unwrap_or_default(), id: event.id, data: event.data }),
            Err(ParseError::Body(error)) => Err(match error.downcast::<Wrapped<E>>() {
                Ok(error) => error.0,
                Err(error) => ReadError::Strange(error.to_string()),
            }),
            Err(error) => Err(ReadError::Strange(error.to_string())),
        })
    }
}

/// An error on its way through the library.
#[derive(Debug)]
struct Wrapped<E>(ReadError<E>);

impl<E: fmt::Display> fmt::Display for Wrapped<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<E: Error> Error for Wrapped<E> {}

/// Follows the lines of a stream before the library parses them.
struct LineWatch {
    decoder: Decoder,
    longest: usize,
    strangers: Strangers,
    /// Bytes of the event that is being received. A blank line ends an event.
    event: usize,
    /// The beginning of the line that is being received, and how long that is so far.
    line: String,
    length: usize,
    first_line: bool,
    /// The last character was a CR, to which a LF that follows belongs.
    after_cr: bool,
}

impl Default for LineWatch {
    fn default() -> Self {
        LineWatch {
            decoder: Decoder::default(),
            longest: usize::MAX,
            strangers: Strangers::Ignored,
            event: 0,
            line: String::new(),
            length: 0,
            first_line: true,
            after_cr: false,
        }
    }
}

impl LineWatch {
    /// The bytes to parse, as text; with the error that ends the stream, if they hold one.
    fn pass<E>(&mut self, bytes: &[u8]) -> Vec<Result<Bytes, ReadError<E>>> {
        let text = self.decoder.push(bytes);
        for (at, character) in text.char_indices() {
            if let Err(error) = self.take(character) {
                return vec![Ok(text[..at].to_owned().into()), Err(error)];
            }
        }
        vec![Ok(text.into())]
    }

    /// What follows the last bytes.
    fn finish<E>(&mut self) -> Vec<Result<Bytes, ReadError<E>>> {
        match self.strangers {
            Strangers::Ignored => Vec::new(),
            Strangers::Told => match self.strange() {
                Some(words) => vec![Err(ReadError::Strange(words))],
                None => vec![Ok(Bytes::from_static(EVENT_END))],
            },
        }
    }

    fn take<E>(&mut self, character: char) -> Result<(), ReadError<E>> {
        match character {
            '\n' if std::mem::take(&mut self.after_cr) => {}
            '\n' | '\r' => {
                self.after_cr = character == '\r';
                if let Some(words) = self.strange() {
                    return Err(ReadError::Strange(words));
                }
                if self.length == 0 {
                    self.event = 0;
                }
                self.line.clear();
                (self.length, self.first_line) = (0, false);
            }
            _ => {
                self.after_cr = false;
                self.event += character.len_utf8();
                self.length += character.len_utf8();
                if self.line.len() < STRANGE_BYTES {
                    self.line.push(character);
                }
                if self.event > self.longest {
                    return Err(ReadError::TooLong(self.longest));
                }
            }
        }
        Ok(())
    }

    /// The present line, if it is no field. A field's name is one word, and a word alone is a known name. `error` is the name
    /// of a field that no standard knows, and in which some servers say why the stream ends.
    fn strange(&self) -> Option<String> {
        if self.strangers == Strangers::Ignored {
            return None;
        }
        let line = match self.first_line {
            true => self.line.trim_start_matches('\u{feff}'),
            false => &self.line,
        };
        let is_word = |name: &str| name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
        let is_field = match line.split_once(':') {
            Some((name, _)) => is_word(name) && name != "error",
            None => FIELDS.contains(&line) || line.trim().is_empty(),
        };
        (!is_field).then(|| line.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// The events of these bytes, received in pieces of this size, and what ended them.
    async fn read(
        text: &[u8],
        size: usize,
        longest: usize,
        strangers: Strangers,
    ) -> (Vec<ServerEvent>, Option<String>) {
        let pieces: Vec<_> =
            text.chunks(size).map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece))).collect();
        let mut events = ServerEvents::new(stream::iter(pieces), longest, strangers);
        let mut found = Vec::new();
        loop {
            match events.next().await {
                None => return (found, None),
                Some(Ok(event)) => found.push(event),
                Some(Err(error)) => return (found, Some(error.to_string())),
            }
        }
    }

    fn data(text: &str) -> ServerEvent {
        ServerEvent { data: Some(text.into()), ..ServerEvent::default() }
    }

    #[tokio::test]
    async fn events_are_the_same_however_their_bytes_arrive() {
        let named = ServerEvent { name: "text".into(), id: Some("7".into()), data: Some("a\nb".into()) };
        for (text, expected) in [
            ("data: one\n\ndata:two\n\n", vec![data("one"), data("two")]),
            ("data: one\r\n\r\ndata: two\r\n\r\n", vec![data("one"), data("two")]),
            ("data: one\r\rdata: two\r\r", vec![data("one"), data("two")]),
            ("\u{feff}data: grüße 🙂\n\n", vec![data("grüße 🙂")]),
            (": a comment\n\n\n\nevent: text\nid: 7\ndata: a\ndata: b\nmood: good\n\n", vec![named]),
            ("data:\n\n", vec![data("")]),
        ] {
            for strangers in [Strangers::Ignored, Strangers::Told] {
                for size in 1..=text.len() {
                    let (found, error) = read(text.as_bytes(), size, 100, strangers).await;
                    assert_eq!((found, error), (expected.clone(), None), "{text:?} by {size}");
                }
            }
        }
    }

    #[tokio::test]
    async fn invalid_bytes_are_replaced_and_end_nothing() {
        let (found, error) = read(b"data: a\xffb\xf0\x9f\n\ndata: c\n\n", 3, 100, Strangers::Ignored).await;
        assert_eq!((found, error), (vec![data("a\u{fffd}b\u{fffd}"), data("c")], None));
    }

    #[tokio::test]
    async fn an_event_that_is_cut_off_is_dropped_or_taken() {
        for cut in ["data: one\n\ndata: tw", "data: one\n\ndata: tw\n", "data: one\r\n\r\ndata: tw\r"] {
            let (dropped, _) = read(cut.as_bytes(), 4, 100, Strangers::Ignored).await;
            assert_eq!(dropped, [data("one")], "{cut:?}");
            let (taken, _) = read(cut.as_bytes(), 4, 100, Strangers::Told).await;
            assert_eq!(taken, [data("one"), data("tw")], "{cut:?}");
        }
    }

    #[tokio::test]
    async fn a_line_that_is_no_field_is_passed_over_or_told() {
        for strange in [
            "{\"error\": \"boom\"}",
            "Internal Server Error",
            "<html>",
            "upstream error: gone",
            "error: {\"code\": 400}",
            "Unauthorized",
        ] {
            for end in ["", "\n", "\n\ndata: two\n\n"] {
                let text = format!("data: one\n\n{strange}{end}");
                for size in [1, 7, text.len()] {
                    let (found, error) = read(text.as_bytes(), size, 100, Strangers::Told).await;
                    let told = format!("no event stream: {strange}");
                    assert_eq!((found, error), (vec![data("one")], Some(told)), "{text:?} by {size}");
                }
                assert_eq!(read(text.as_bytes(), 5, 100, Strangers::Ignored).await.1, None);
            }
        }
    }

    #[tokio::test]
    async fn an_event_without_end_does_not_fill_the_memory() {
        let fits = format!("data: {}\n\n", "x".repeat(44));
        let long = format!("data: {}", "x".repeat(100));
        for size in [1, 9, 500] {
            let (found, error) = read((fits.repeat(3) + &long).as_bytes(), size, 50, Strangers::Ignored).await;
            assert_eq!((found.len(), error.as_deref()), (3, Some("an event is longer than 50 bytes")), "by {size}");
        }
        let lines = "data: x\n".repeat(20);
        assert!(read(lines.as_bytes(), 8, 50, Strangers::Told).await.1.is_some(), "lines add up");
        assert_eq!(read(": comment\n\n".repeat(20).as_bytes(), 8, 50, Strangers::Told).await.1, None);
    }
}
