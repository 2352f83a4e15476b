//! The room for the bodies of requests.
//!
//! A body is read by the handler that its request was routed to, after the handler knows who calls. Its length is reserved
//! whole before its first byte is read: of what the caller may have at once, and of what all callers may have. What does
//! not fit is refused at once, so nobody waits while holding room, and no order of arrival can block all. The room is given
//! back when the handler drops the [`WholeBody`], which is after it has done with the content.
//!
//! The extractors of the HTTP framework that read a body know none of this, so the ports refuse them any
//! (`DefaultBodyLimit::max(0)`): a handler takes [`Body`], which is not read yet, and calls [`Bodies::whole`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::StatusCode;
use bytes::BytesMut;
use futures::StreamExt;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// How long the rest of a refused body is read and thrown away, so that its sender gets to see the refusal. A connection
/// that is closed while its peer still sends is reset, and the answer is lost.
const DISCARD_WITHIN: Duration = Duration::from_secs(1);

/// Bounds on one kind of body, all in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyLimits {
    /// The longest body.
    pub body: usize,
    /// All bodies of one account at a time.
    pub account: usize,
    /// All bodies of this kind at a time.
    pub total: usize,
}

/// The room for one kind of body. Clones share it.
#[derive(Debug, Clone)]
pub struct Bodies {
    limits: BodyLimits,
    /// How long a body may take to come, once it has its room.
    within: Duration,
    taken: Arc<Mutex<TakenRoom>>,
}

#[derive(Debug, Default)]
struct TakenRoom {
    total: usize,
    by_account: HashMap<String, usize>,
}

impl Bodies {
    /// Empty room within these limits. A body may take as long as `within` to come.
    pub fn new(limits: BodyLimits, within: Duration) -> Self {
        Bodies { limits, within, taken: Arc::default() }
    }

    /// Reads a body whole, at the expense of an account: a name that stands for whoever sends it.
    ///
    /// # Errors
    /// 411 without a length, 413 beyond the limit of one body, 503 where its room is taken, 408 if it does not come in time,
    /// 400 if it breaks off.
    pub async fn whole(&self, account: &str, body: Body) -> Result<WholeBody, Problem> {
        let reserved = match self.length(&body).and_then(|length| self.reserve(account, length)) {
            Ok(reserved) => reserved,
            Err(problem) => {
                tokio::spawn(tokio::time::timeout(DISCARD_WITHIN, discard(body)));
                return Err(problem);
            }
        };
        let bytes = match tokio::time::timeout(self.within, read(body, reserved.length)).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(Problem::bad_request("the body broke off")),
            Err(_) => return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
        };
        Ok(WholeBody { bytes, _reserved: reserved })
    }

    /// How long a body is, as its request says.
    fn length(&self, body: &Body) -> Result<usize, Problem> {
        let length = body.size_hint().exact().ok_or_else(|| {
            Problem::new(
                StatusCode::LENGTH_REQUIRED,
                "say how long the body is (Content-Length); it is not read without",
            )
        })?;
        let most = self.limits.body;
        usize::try_from(length).ok().filter(|length| *length <= most).ok_or_else(|| {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has {length} bytes; {most} are allowed"))
        })
    }

    fn reserve(&self, account: &str, length: usize) -> Result<Reserved, Problem> {
        let full = |whose: &str| {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("{whose} fill the room for bodies; try again")))
        };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by_account.get(account).copied().unwrap_or_default();
        if own + length > self.limits.account {
            return full("requests of yours that are under way");
        }
        if taken.total + length > self.limits.total {
            return full("other requests");
        }
        taken.total += length;
        taken.by_account.insert(account.to_owned(), own + length);
        Ok(Reserved { account: account.to_owned(), length, taken: self.taken.clone() })
    }

    /// How many bytes are reserved now.
    pub fn reserved(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

/// A part of the room, given back when it is dropped.
#[derive(Debug)]
struct Reserved {
    account: String,
    length: usize,
    taken: Arc<Mutex<TakenRoom>>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= self.length;
        if let Some(own) = taken.by_account.get_mut(&self.account) {
            *own -= self.length;
            if *own == 0 {
                taken.by_account.remove(&self.account);
            }
        }
    }
}

/// A body that was read, with its room: to be kept until its content is done with.
#[derive(Debug)]
pub struct WholeBody {
    bytes: Bytes,
    _reserved: Reserved,
}

impl WholeBody {
    /// The body as it was sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The body as JSON of this form.
    ///
    /// # Errors
    /// 400, with what is wrong and where.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.bytes).map_err(|e| Problem::bad_request(format!("the body is malformed: {e}")))
    }
}

/// Reads a body of this length; `None` if it breaks off.
async fn read(body: Body, length: usize) -> Option<Bytes> {
    let mut bytes = BytesMut::with_capacity(length);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece.ok()?);
    }
    (bytes.len() == length).then(|| bytes.freeze())
}

/// Reads a body to its end and keeps nothing of it.
async fn discard(body: Body) {
    let mut pieces = body.into_data_stream();
    while let Some(Ok(_)) = pieces.next().await {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BodyLimits = BodyLimits { body: 4, account: 6, total: 10 };

    fn bodies() -> Bodies {
        Bodies::new(LIMITS, Duration::from_secs(9))
    }

    #[tokio::test]
    async fn a_body_is_within_its_own_bound_its_accounts_and_everybodys() {
        let bodies = bodies();
        let read = async |account: &str, text: &'static str| {
            bodies.whole(account, Body::from(text)).await.map_err(|problem| problem.status().as_u16())
        };
        let first = read("ada", "1234").await.expect("room");
        assert_eq!(read("ada", "12345").await.err(), Some(413));
        assert_eq!(read("ada", "123").await.err(), Some(503), "beyond what one account may have");
        let second = read("bob", "1234").await.expect("room of another account");
        assert_eq!(read("eve", "123").await.err(), Some(503), "beyond what all may have");
        let third = read("eve", "12").await.expect("what is left");
        assert_eq!(
            (bodies.reserved(), read("", "").await.map(|b| b.bytes.len())),
            (10, Ok(0)),
            "nothing needs no room"
        );
        drop((first, second, third));
        assert_eq!(bodies.reserved(), 0);
        assert!(bodies.taken.lock().expect("nobody panicked").by_account.is_empty(), "no account is kept for ever");
        read("eve", "1234").await.expect("room again");
    }

    #[tokio::test]
    async fn a_body_that_stalls_has_its_room_until_its_time_is_over_and_one_without_a_length_has_none() {
        let bodies = Bodies::new(LIMITS, Duration::from_millis(100));
        let endless = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let refused = bodies.whole("ada", endless).await.expect_err("no length");
        assert_eq!((refused.status(), bodies.reserved()), (StatusCode::LENGTH_REQUIRED, 0));
        let stalled = Body::new(Stalled);
        let reading = tokio::spawn({
            let bodies = bodies.clone();
            async move { bodies.whole("ada", stalled).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(bodies.reserved(), 3, "reserved whole before a byte came");
        let refused = reading.await.expect("no panic").expect_err("too late");
        assert_eq!((refused.status(), bodies.reserved()), (StatusCode::REQUEST_TIMEOUT, 0));
    }

    /// A body of three bytes that never come.
    struct Stalled;

    impl HttpBody for Stalled {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
            std::task::Poll::Pending
        }

        fn size_hint(&self) -> hyper::body::SizeHint {
            hyper::body::SizeHint::with_exact(3)
        }
    }
}
