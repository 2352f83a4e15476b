//! Clients who hold connections and do nothing for it: who read nothing of a long reply, and who send a header a byte at a time.
//! Whoever is cut comes back at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::Error;

/// A client of HTTP/1.1 that reads nothing comes back after this: longer than a gateway's patience.
const LEFT_AFTER: Duration = Duration::from_secs(40);

/// Those clients. They end with this value.
pub struct Disturbance {
    tasks: tokio::task::JoinSet<()>,
    clients: u64,
    begun: Arc<AtomicU64>,
    stalled_cut: Arc<AtomicU64>,
    slow_cut: Arc<AtomicU64>,
}

impl Disturbance {
    /// Waits until each of them has connected once.
    pub async fn is_under_way(&self) {
        while self.begun.load(Ordering::Relaxed) < self.clients && !self.tasks.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How often one that does not read was cut.
    pub fn stalled_cut(&self) -> u64 {
        self.stalled_cut.load(Ordering::Relaxed)
    }

    /// How often one that does not finish its header was cut.
    pub fn slow_cut(&self) -> u64 {
        self.slow_cut.load(Ordering::Relaxed)
    }
}

/// A turn whose reply is more than the kernel keeps for who does not read: the path of its stream.
pub async fn long_turn(client: &reqwest::Client, url: &str) -> Result<String, Error> {
    let body = serde_json::json!({"agent": "echo", "message": "long ".repeat(180_000)});
    let submit = client.post(format!("{url}/v1/conversations/long/turns")).json(&body);
    let submitted: serde_json::Value = submit.send().await?.error_for_status()?.json().await?;
    let path = format!("/v1/turns/{}/events", submitted["turnId"].as_str().ok_or("no turnId")?);
    let mut stream = client.get(format!("{url}{path}")).send().await?.error_for_status()?.bytes_stream();
    while let Some(part) = stream.next().await {
        part?;
    }
    Ok(path)
}

/// Begins them.
pub fn begin(url: &str, path: &str, stalled: usize, slow: usize) -> Disturbance {
    let address = url.trim_start_matches("http://").to_owned();
    let mut disturbance = Disturbance {
        tasks: tokio::task::JoinSet::new(),
        clients: (stalled + slow) as u64,
        begun: Arc::default(),
        stalled_cut: Arc::default(),
        slow_cut: Arc::default(),
    };
    for n in 0..stalled {
        let (address, path, begun) = (address.clone(), path.to_owned(), disturbance.begun.clone());
        let cut = disturbance.stalled_cut.clone();
        disturbance.tasks.spawn(async move {
            loop {
                let _ = match n % 2 {
                    0 => stall(&address, &path, &begun).await,
                    _ => stall_by_http2(&address, &path, &begun).await,
                };
                cut.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    for _ in 0..slow {
        let (address, begun, cut) = (address.clone(), disturbance.begun.clone(), disturbance.slow_cut.clone());
        disturbance.tasks.spawn(async move {
            loop {
                let _ = dawdle(&address, &begun).await;
                cut.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    disturbance
}

/// Asks for the stream, and reads nothing until the connection is gone.
async fn stall(address: &str, path: &str, begun: &AtomicU64) -> Result<(), Error> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut connection = socket.connect(address.parse()?).await?;
    connection.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await?;
    begun.fetch_add(1, Ordering::Relaxed);
    // Behind what is not read, its end does not come either. So it is left after a while, as by somebody who looks at last.
    tokio::time::sleep(LEFT_AFTER).await;
    Ok(())
}

/// The same by HTTP/2, where the reader has to say that it has room.
async fn stall_by_http2(address: &str, path: &str, begun: &AtomicU64) -> Result<(), Error> {
    let (sender, connection) = h2::client::handshake(TcpStream::connect(address).await?).await?;
    let connection = tokio::spawn(connection);
    let mut sender = sender.ready().await?;
    let request = axum::http::Request::get(format!("http://localhost{path}")).body(())?;
    let (answer, _) = sender.send_request(request, true)?;
    let mut body = answer.await?.into_body();
    begun.fetch_add(1, Ordering::Relaxed);
    while let Some(Ok(_)) = body.data().await {}
    connection.abort();
    Ok(())
}

/// Sends a header a byte at a time.
async fn dawdle(address: &str, begun: &AtomicU64) -> Result<(), Error> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nx-slow: ").await?;
    begun.fetch_add(1, Ordering::Relaxed);
    let mut byte = [0];
    loop {
        tokio::select! {
            read = connection.read(&mut byte) => { read?; return Ok(()) }
            () = tokio::time::sleep(Duration::from_millis(500)) => connection.write_all(b"x").await?,
        }
    }
}
