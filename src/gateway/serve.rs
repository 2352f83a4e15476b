//! Serves one port: accepts connections, each under the same limits of time and size, and makes every error that leaves the
//! process a problem detail.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;

use super::config::GatewayConfig;
use crate::framing::never_unframed;
use crate::problem::{self, Problem};
use crate::tls::Renewed;

/// The largest body that any port takes, in bytes; routes have smaller limits of their own.
const MAX_BODY: usize = crate::wire::MAX_BODY_BYTES;
/// The longest error text of the HTTP framework that is passed on, in bytes.
const MAX_REFUSAL: usize = 4096;

/// Serves a port until `shutdown`, and then for the configured grace until its requests are answered. With `tls`, the port
/// speaks HTTPS alone.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    config: &GatewayConfig,
    tls: Option<Renewed<Arc<ServerConfig>>>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let body_timeout = config.body_timeout;
    let bodies = middleware::from_fn(move |request, next| whole_body(body_timeout, request, next));
    let unframed = middleware::from_fn(never_unframed);
    let router = router.layer(bodies).layer(unframed).layer(middleware::map_response(as_problem));
    let router = router.layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
        tracing::error!("a handler panicked; this is a bug in Lastword");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "a fault of Lastword; it was logged").into_response()
    }));
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(config.max_connections));
    loop {
        let permit = tokio::select! {
            permit = room.clone().acquire_owned() => permit,
            () = shutdown.cancelled() => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // The process is out of file descriptors, or the client has gone already. Another try may succeed.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // SSE frames are small, and are to be sent without waiting for more (TCP_NODELAY).
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let tls = tls.as_ref().map(|tls| TlsAcceptor::from(tls.borrow().clone()));
        let (shutdown, header_timeout) = (shutdown.clone(), config.header_timeout);
        connections.spawn(async move {
            let _permit = permit;
            match tls {
                None => speak(stream, service, header_timeout, shutdown).await,
                Some(tls) => {
                    if let Some(stream) = shake_hands(tls, stream, header_timeout, &shutdown).await {
                        speak(stream, service, header_timeout, shutdown).await;
                    }
                }
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(config.shutdown_grace, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "{} connections were cut off at shutdown", connections.len());
    }
    Ok(())
}

/// Does the TLS handshake of a connection; `None` if it fails, is not done in time, or `shutdown` comes first.
async fn shake_hands(
    tls: TlsAcceptor,
    stream: TcpStream,
    within: Duration,
    shutdown: &CancellationToken,
) -> Option<TlsStream<TcpStream>> {
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(within, tls.accept(stream)) => shaken,
        () = shutdown.cancelled() => return None,
    };
    match shaken {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed: {error}");
            None
        }
        Err(_) => {
            tracing::debug!("a TLS handshake was not done in time");
            None
        }
    }
}

/// Serves HTTP on a connection until it ends; after `shutdown`, until the request that is open on it is answered.
async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: TowerToHyperService<Router>,
    header_timeout: Duration,
    shutdown: CancellationToken,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = &mut connection => return trace_end(ended),
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    trace_end(connection.await);
}

fn trace_end(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::trace!(%error, "a connection ended");
    }
}

/// Reads a request's whole body before the handler is called, within the limits of time and size.
async fn whole_body(within: Duration, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let limited = axum::body::to_bytes(body, MAX_BODY);
    let bytes = match tokio::time::timeout(within, limited).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            let too_large =
                std::error::Error::source(&error).is_some_and(|e| e.is::<http_body_util::LengthLimitError>());
            return if too_large {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large").into_response()
            } else {
                Problem::bad_request("the body could not be read").into_response()
            };
        }
        Err(_) => return Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time").into_response(),
    };
    next.run(Request::from_parts(parts, Body::from(bytes))).await
}

/// Makes a problem detail of an error response that is none: what the HTTP framework itself refuses (a query, a method, a
/// body's size) it answers in plain text.
async fn as_problem(response: Response) -> Response {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE).map(|v| v.as_bytes());
    if !(status.is_client_error() || status.is_server_error()) || kind == Some(problem::CONTENT_TYPE.as_bytes()) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let said = axum::body::to_bytes(body, MAX_REFUSAL).await.unwrap_or_default();
    let detail = match std::str::from_utf8(&said) {
        Ok(text) if !text.is_empty() => text,
        _ => status.canonical_reason().unwrap_or("refused"),
    };
    let mut answer = Problem::new(status, detail).into_response();
    // Headers such as `Allow` on 405 are kept.
    for (name, value) in &parts.headers {
        if ![header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
