//! Garbage and strangers. Whatever comes in is answered by a 4xx or a closed connection, and no turn is lost for it; and what
//! belongs to others does not exist.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::wait::within;

mod bodies;
mod browsers;
mod clients;
mod keys;
mod noise;
mod strangers;
mod tls;
mod tokens;
mod workers;

/// Sends bytes as they are and answers with all that comes back.
async fn raw(base: &str, request: &[u8]) -> String {
    let address = base.strip_prefix("http://").expect("http");
    let mut connection = TcpStream::connect(address).await.expect("connects");
    // The other side may hang up in the middle of it: that is an answer too.
    let _ = connection.write_all(request).await;
    let mut answer = Vec::new();
    let _ = within("an answer or the end", connection.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn refused(answer: &str, of: &str) {
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{of}: {answer}");
}
