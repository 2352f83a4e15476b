//! HTTP/2 on a port that speaks HTTP/1.1 too, in cleartext by prior knowledge or over TLS by ALPN: which of both a connection speaks,
//! and what one connection may have of the process.
//!
//! One connection carries many streams, so what bounds a connection of HTTP/1.1 is said of each stream here, and a reader may stop
//! to read one stream while the others go on. hyper asks a stream's body for more only when the reader has room, so it cannot
//! notice that itself; each stream's task is watched for it ([`StreamExecutor`]). A stream that is cut is reset: its client never
//! takes that for its end.

use std::cell::Cell;
use std::future::Future;
use std::io::{self, Cursor};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use hyper::rt::Executor;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::metrics::METRICS;

/// What every connection of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Streams of one connection at a time. A browser opens one a tab, a proxy one a client.
const MAX_STREAMS: u32 = 250;
/// What a connection may have sent that was not asked for, in bytes: the least that the protocol knows.
const WINDOW: u32 = 65_535;
/// What waits to be sent on one stream, in bytes.
const SEND_BUFFER: usize = 32 * 1024;
/// Streams that the other side has reset and that were not yet taken note of; more end the connection (CVE-2023-44487).
const MAX_RESETS: usize = 20;
/// A connection from which nothing comes is asked this often whether it lives, and has as long to answer.
const PING: Duration = Duration::from_secs(20);

/// Reads as much of a connection as it takes to know what it speaks. Answers with that, and with the connection as it was.
pub(super) async fn speaks_http2<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
) -> io::Result<(bool, impl AsyncRead + AsyncWrite + Unpin)> {
    let mut begin = Vec::with_capacity(PREFACE.len());
    while begin.len() < PREFACE.len() && PREFACE.starts_with(&begin) {
        let left = PREFACE.len() - begin.len();
        if (&mut stream).take(left as u64).read_buf(&mut begin).await? == 0 {
            break;
        }
    }
    let is_http2 = begin == PREFACE;
    let (reader, writer) = tokio::io::split(stream);
    Ok((is_http2, tokio::io::join(Cursor::new(begin).chain(reader), writer)))
}

/// A builder of connections within the bounds. `header_bytes`: the largest header of a request.
pub(super) fn builder(executor: StreamExecutor, header_bytes: usize) -> Builder<StreamExecutor> {
    let mut builder = Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

/// Middleware of every port: HTTP/2 names the host in the request's target, and here every request has the header.
pub(super) async fn with_host(mut request: Request, next: Next) -> Response {
    if request.version() == Version::HTTP_2
        && !request.headers().contains_key(header::HOST)
        && let Some(host) = request.uri().authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok())
    {
        request.headers_mut().insert(header::HOST, host);
    }
    next.run(request).await
}

tokio::task_local! {
    /// When the stream whose task this is was given a piece that its reader has not had room for since.
    static GIVEN: Cell<Option<Instant>>;
}

/// Middleware of every port: notes when a body gives a piece, and when it is asked for the next.
pub(super) async fn noting(request: Request, next: Next) -> Response {
    let is_http2 = request.version() == Version::HTTP_2;
    let response = next.run(request).await;
    if is_http2 { response.map(|body| Body::new(NotingBody(body))) } else { response }
}

struct NotingBody(Body);

impl HttpBody for NotingBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.get_mut().0).poll_frame(context);
        let given = matches!(frame, Poll::Ready(Some(Ok(_)))).then(Instant::now);
        // Outside of a stream's task, in a test say, nobody watches.
        let _ = GIVEN.try_with(|noted| noted.set(given));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// Runs the streams of one connection, each in a task of its own, and ends one whose reader has had no room for so long.
#[derive(Clone)]
pub(super) struct StreamExecutor {
    patience: Duration,
    open: Arc<AtomicUsize>,
}

impl StreamExecutor {
    pub fn new(patience: Duration) -> Self {
        StreamExecutor { patience, open: Arc::default() }
    }

    /// How many streams are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        let (patience, open) = (self.patience, CountedStream::new(self.open.clone()));
        tokio::spawn(GIVEN.scope(Cell::new(None), async move {
            let _open = open;
            WatchedStream { stream: Box::pin(stream), patience, look: None }.await;
        }));
    }
}

/// Counts as open until it is dropped.
struct CountedStream(Arc<AtomicUsize>);

impl CountedStream {
    fn new(open: Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        CountedStream(open)
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that is dropped, which resets it, when its reader has had no room for what it was given.
struct WatchedStream<F> {
    stream: Pin<Box<F>>,
    patience: Duration,
    /// When it is looked again.
    look: Option<Pin<Box<Sleep>>>,
}

impl<F: Future> Future for WatchedStream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let Some(given) = GIVEN.with(Cell::get) else {
            this.look = None;
            return Poll::Pending;
        };
        let until = given + this.patience;
        let look = this.look.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if look.deadline() != until {
            look.as_mut().reset(until);
        }
        if look.as_mut().poll(context).is_ready() {
            METRICS.streams_cut.with_label_values(&["stalled"]).inc();
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

#[cfg(test)]
#[path = "http2_tests.rs"]
mod tests;
