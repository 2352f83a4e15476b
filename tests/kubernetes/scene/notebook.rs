//! Where programs in pods write down that they began: an HTTP server of the test's own, which the pods reach.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Counts the paths that are asked for. Only on the local cluster do pods reach it.
pub struct Notebook {
    pub url: String,
    lines: Arc<Mutex<BTreeMap<String, usize>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Notebook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Notebook {
    /// `reachable` is the address of a node, which tells our own address there.
    pub async fn open(reachable: &str) -> Notebook {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let lines = Arc::new(Mutex::new(BTreeMap::new()));
        let task = tokio::spawn(serve(listener, lines.clone()));
        Notebook { url: format!("http://{}:{port}", own_address(reachable).await), lines, task }
    }

    /// A shell command that notes a turn's beginning; it fails aloud if it cannot.
    pub fn note(&self) -> String {
        format!("wget -q -O /dev/null {}/$LASTWORD_TURN_ID || echo 'the notebook is out of reach'", self.url)
    }

    /// How often this turn's program began.
    pub fn times(&self, turn: &str) -> usize {
        self.lines.lock().unwrap().get(turn).copied().unwrap_or_default()
    }

    /// No turn's program began more than once.
    pub fn none_twice(&self) {
        let lines = self.lines.lock().unwrap();
        let twice: Vec<_> = lines.iter().filter(|(_, n)| **n > 1).collect();
        assert!(twice.is_empty(), "begun more than once: {twice:?}");
    }
}

/// The address of ours from which that one is reached.
async fn own_address(reachable: &str) -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    let target: SocketAddr = format!("{reachable}:9").parse().expect("a node's address");
    socket.connect(target).await.unwrap();
    socket.local_addr().unwrap().ip().to_string()
}

async fn serve(listener: TcpListener, lines: Arc<Mutex<BTreeMap<String, usize>>>) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, lines.clone()));
        }
    }
}

async fn answer(mut stream: TcpStream, lines: Arc<Mutex<BTreeMap<String, usize>>>) {
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < 8192 {
        match stream.read_buf(&mut request).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    if let Some(path) = request.split_whitespace().nth(1) {
        *lines.lock().unwrap().entry(path.trim_start_matches('/').to_owned()).or_default() += 1;
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
}
