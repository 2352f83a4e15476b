//! Serves one port: accepts connections, each within the same bounds, by HTTP/1.1 or HTTP/2.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::AddExtension;
use axum::{Extension, Router};
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
use tower::Layer;

use super::answers::answering;
use super::http2::{self, StreamExecutor, speaks_http2};
use super::patience::PatientStream;
use super::peer::{PeerUser, user_of_peer};
use crate::tls::Renewed;

/// The bounds of a port.
#[derive(Debug, Clone)]
pub struct PortLimits {
    /// How many connections there may be at once; further ones wait in the kernel's queue.
    pub connections: usize,
    /// How long a request's header may take to come, and before that the TLS handshake; also how long a connection may be
    /// idle.
    pub header_timeout: Duration,
    /// The largest header of a request, in bytes, 8 KiB at least. A connection holds no more than that of what it was sent
    /// and has not been asked for.
    pub header_bytes: usize,
    /// How long requests may take to be answered after the shutdown began.
    pub shutdown_grace: Duration,
    /// Whether the port speaks HTTP/2 too.
    pub http2: bool,
    /// How long a reader may have no room for what it is sent before its stream is cut; `None`: for ever.
    pub reader_patience: Option<Duration>,
    /// Whether requests carry the [`PeerUser`] of their connection, which is asked for when it is accepted.
    pub know_users: bool,
}

/// Longer than any connection lasts.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);
/// How long a connection of HTTP/2 without requests is open after it was told to go.
const GOODBYE: Duration = Duration::from_secs(1);

/// The routes as one connection is served them.
type ConnectionService = TowerToHyperService<AddExtension<Router, PeerUser>>;

/// Serves a port until `shutdown`, and then for the grace until its requests are answered. With `tls`, the port speaks HTTPS
/// alone.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: &PortLimits,
    tls: Option<Renewed<Arc<ServerConfig>>>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let router = answering(router);
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(limits.connections));
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
        let user = PeerUser(if limits.know_users { user_of(&stream) } else { None });
        let service = TowerToHyperService::new(Extension(user).layer(router.clone()));
        let tls = tls.as_ref().map(|tls| TlsAcceptor::from(tls.borrow().clone()));
        let connection = ServedConnection { service, limits: limits.clone(), shutdown: shutdown.clone() };
        connections.spawn(async move {
            let _permit = permit;
            match tls {
                None => connection.speak(stream).await,
                Some(tls) => {
                    if let Some(stream) = connection.shake_hands(tls, stream).await {
                        connection.speak(stream).await;
                    }
                }
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(limits.shutdown_grace, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "{} connections were cut off at shutdown", connections.len());
    }
    Ok(())
}

/// The user of this machine who has connected.
fn user_of(stream: &TcpStream) -> Option<u32> {
    let asked = stream.local_addr().and_then(|ours| user_of_peer(ours, stream.peer_addr()?));
    asked.unwrap_or_else(|error| {
        tracing::warn!(%error, "the kernel does not tell who has connected ({error}); that caller needs a key");
        None
    })
}

/// What a connection is served, and within which bounds.
struct ServedConnection {
    service: ConnectionService,
    limits: PortLimits,
    shutdown: CancellationToken,
}

impl ServedConnection {
    /// Does the TLS handshake; `None` if it fails, is not done in time, or the shutdown comes first.
    async fn shake_hands(&self, tls: TlsAcceptor, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(self.limits.header_timeout, tls.accept(stream)) => shaken,
            () = self.shutdown.cancelled() => return None,
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

    /// Serves HTTP until the connection ends; after the shutdown, until the requests that are open on it are answered.
    async fn speak(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let patience = self.limits.reader_patience.unwrap_or(FOR_EVER);
        let stream = PatientStream::new(stream, patience);
        if !self.limits.http2 {
            return self.speak_http1(stream).await;
        }
        // What has not begun to speak in time is closed without a word, as a connection that is idle.
        let read = tokio::select! {
            read = tokio::time::timeout(self.limits.header_timeout, speaks_http2(stream)) => read,
            () = self.shutdown.cancelled() => return,
        };
        match read {
            Ok(Ok((true, stream))) => self.speak_http2(stream, patience).await,
            Ok(Ok((false, stream))) => self.speak_http1(stream).await,
            Ok(Err(error)) => tracing::trace!(%error, "a connection ended before it spoke"),
            Err(_) => tracing::trace!("a connection did not speak in time"),
        }
    }

    /// Serves HTTP/2. A connection on which no request has been open for a while is told to go.
    async fn speak_http2(self, stream: impl AsyncRead + AsyncWrite + Unpin, patience: Duration) {
        let streams = StreamExecutor::new(patience);
        let connection = http2::builder(streams.clone(), self.limits.header_bytes)
            .serve_connection(TokioIo::new(stream), self.service);
        tokio::pin!(connection);
        let idle = async {
            let mut looks = tokio::time::interval(self.limits.header_timeout);
            looks.tick().await;
            let mut was_idle = false;
            loop {
                looks.tick().await;
                let is_idle = streams.open() == 0;
                if was_idle && is_idle {
                    return;
                }
                was_idle = is_idle;
            }
        };
        tokio::select! {
            ended = &mut connection => return trace_end(ended),
            () = self.shutdown.cancelled() => {}
            () = idle => {}
        }
        connection.as_mut().graceful_shutdown();
        if streams.open() > 0 {
            return trace_end(connection.await);
        }
        // Nobody waits for an answer. The goodbye has a moment to go out.
        if let Ok(ended) = tokio::time::timeout(GOODBYE, connection).await {
            trace_end(ended);
        }
    }

    async fn speak_http1(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_buf_size(self.limits.header_bytes)
            .serve_connection(TokioIo::new(stream), self.service);
        tokio::pin!(connection);
        tokio::select! {
            ended = &mut connection => return trace_end(ended),
            () = self.shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        trace_end(connection.await);
    }
}

fn trace_end(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::trace!(%error, "a connection ended");
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
