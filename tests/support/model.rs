//! A model server that does byte by byte what a test says.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct ModelRequest {
    /// The request line and the headers.
    pub head: String,
    pub body: Value,
    pub at: Instant,
    /// The number of its connection, from 0.
    pub connection: usize,
}

impl ModelRequest {
    /// What the person said last.
    pub fn message(&self) -> &str {
        self.messages().last().map_or("", |message| message["content"].as_str().unwrap_or_default())
    }

    /// The messages that it holds.
    pub fn messages(&self) -> &[Value] {
        self.body["messages"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let of = |line: &'_ str| line.split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case(name)).is_some();
        self.head.lines().find(|line| of(line)).and_then(|line| line.split_once(':')).map(|(_, value)| value.trim())
    }
}

/// What is answered to a request.
#[derive(Debug, Clone)]
pub struct ModelAnswer {
    pub bytes: Vec<u8>,
    pub then: Then,
}

/// What becomes of the connection behind an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It ends.
    Eof,
    /// It breaks, once the test has seen what came before: see [`ModelServer::reset`].
    Reset,
    /// It stays open, and nothing more comes.
    Held,
    /// It takes the next request.
    KeepAlive,
}

/// One answer after another.
pub fn answer(bytes: impl Into<Vec<u8>>, then: Then) -> ModelAnswer {
    ModelAnswer { bytes: bytes.into(), then }
}

/// A whole answer with this status, further header lines and body.
pub fn status(status: &str, headers: &str, body: &str) -> ModelAnswer {
    let length = body.len();
    answer(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n{body}"), Then::KeepAlive)
}

/// A whole completion of this text.
pub fn said(text: &str) -> ModelAnswer {
    let chunk = |delta: Value, finish: Value| {
        format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))
    };
    let body = chunk(json!({"content": text}), Value::Null) + &chunk(json!({}), json!("stop")) + "data: [DONE]\n\n";
    status("200 OK", "Content-Type: text/event-stream\r\n", &body)
}

type Script = Arc<dyn Fn(&ModelRequest) -> ModelAnswer + Send + Sync>;

/// A server on loopback. It answers every `GET` with an empty list of models.
pub struct ModelServer {
    pub port: u16,
    /// The base URL of its API.
    pub base: String,
    requests: Arc<Mutex<Vec<ModelRequest>>>,
    break_now: Arc<Notify>,
}

impl ModelServer {
    /// Serves by plain HTTP.
    pub async fn start(script: impl Fn(&ModelRequest) -> ModelAnswer + Send + Sync + 'static) -> Self {
        Self::serve(None, script).await
    }

    /// Serves by TLS with this configuration, as `localhost`.
    pub async fn with_tls(
        tls: Arc<rustls::ServerConfig>,
        script: impl Fn(&ModelRequest) -> ModelAnswer + Send + Sync + 'static,
    ) -> Self {
        Self::serve(Some(tls.into()), script).await
    }

    async fn serve(
        tls: Option<tokio_rustls::TlsAcceptor>,
        script: impl Fn(&ModelRequest) -> ModelAnswer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let base = match tls {
            None => format!("http://127.0.0.1:{port}/v1"),
            Some(_) => format!("https://localhost:{port}/v1"),
        };
        let server = ModelServer { port, base, requests: Arc::default(), break_now: Arc::default() };
        let (requests, break_now, script) = (server.requests.clone(), server.break_now.clone(), Arc::new(script));
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let served = Served {
                    requests: requests.clone(),
                    script: script.clone(),
                    break_now: break_now.clone(),
                    connection,
                };
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => served.plain(stream).await,
                        Some(tls) => {
                            if let Ok(mut stream) = tls.accept(stream).await {
                                served.requests(&mut stream).await;
                                let _ = stream.shutdown().await;
                            }
                        }
                    }
                });
            }
        });
        server
    }

    /// The POSTs that it took so far.
    pub fn requests(&self) -> Vec<ModelRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// The POSTs with this message so far.
    pub fn asked(&self, message: &str) -> Vec<ModelRequest> {
        self.requests().into_iter().filter(|request| request.message() == message).collect()
    }

    /// Breaks a connection that waits for it.
    pub fn reset(&self) {
        self.break_now.notify_one();
    }
}

/// One connection.
struct Served {
    requests: Arc<Mutex<Vec<ModelRequest>>>,
    script: Script,
    break_now: Arc<Notify>,
    connection: usize,
}

impl Served {
    async fn plain(self, mut stream: TcpStream) {
        if self.requests(&mut stream).await == Then::Reset {
            self.break_now.notified().await;
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("set");
        }
    }

    /// Answers requests until the connection is to end, or to break.
    async fn requests(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Then {
        while let Some((head, body)) = request(stream).await {
            if head.starts_with("GET") {
                let models = status("200 OK", "Content-Type: application/json\r\n", r#"{"data": []}"#);
                let _ = stream.write_all(&models.bytes).await;
                continue;
            }
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let request = ModelRequest { head, body, at: Instant::now(), connection: self.connection };
            self.requests.lock().unwrap().push(request.clone());
            let answer = (self.script)(&request);
            let _ = stream.write_all(&answer.bytes).await;
            let _ = stream.flush().await;
            match answer.then {
                Then::KeepAlive => {}
                Then::Held => std::future::pending().await,
                then => return then,
            }
        }
        Then::Eof
    }
}

/// Reads one request; `None` when no more come.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let mut body = bytes.split_off(end + 4);
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            let missing = length.unwrap_or(0).saturating_sub(body.len());
            let mut rest = vec![0; missing];
            stream.read_exact(&mut rest).await.ok()?;
            body.extend(rest);
            return Some((head, body));
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece).await {
            Ok(count) if count > 0 => bytes.extend_from_slice(&piece[..count]),
            _ => return None,
        }
    }
}
