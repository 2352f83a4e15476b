use std::path::Path;

use axum::Router;
use axum::routing::get;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::edge::{PortLimits, serve};
use crate::tls;

const BOUND: Duration = Duration::from_secs(20);

fn limits() -> PortLimits {
    PortLimits {
        connections: 100,
        header_timeout: Duration::from_secs(10),
        header_bytes: 16 * 1024,
        shutdown_grace: Duration::from_secs(5),
        http2: true,
        reader_patience: Some(Duration::from_millis(500)),
        know_users: false,
    }
}

/// A port within these bounds: its address.
async fn port(router: Router, limits: PortLimits, tls: bool) -> String {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name);
    let pair = tls.then(|| tls::server(&file("first.crt"), &file("first.key"), tls::HTTP2).expect("a pair"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move { serve(listener, router, &limits, pair, CancellationToken::new()).await });
    address
}

/// A connection of HTTP/2 over this stream.
async fn connected(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> h2::client::SendRequest<Bytes> {
    // A client that lets one stream stall the others would have a smaller window for the connection.
    let mut client = h2::client::Builder::new();
    client.initial_connection_window_size(1024 * 1024);
    let (sender, connection) = client.handshake(stream).await.expect("a handshake");
    tokio::spawn(connection);
    sender.ready().await.expect("ready")
}

async fn ask(sender: &mut h2::client::SendRequest<Bytes>, url: &str) -> (axum::http::response::Parts, h2::RecvStream) {
    let request = axum::http::Request::get(url).body(()).expect("a request");
    let (answer, _) = sender.send_request(request, true).expect("sent");
    timeout(BOUND, answer).await.expect("in time").expect("an answer").into_parts()
}

/// A stream of pieces without end, and how many such bodies there are.
fn endless(open: Arc<AtomicUsize>) -> Router {
    let endless = move || {
        let open = CountedStream::new(open.clone());
        async move {
            Body::from_stream(async_stream::stream! {
                let _open = open;
                loop {
                    yield Ok::<_, io::Error>(Bytes::from_static(&[b'x'; 16 * 1024]));
                    tokio::task::yield_now().await;
                }
            })
        }
    };
    Router::new().route("/endless", get(endless)).route("/", get(|| async { "whole" }))
}

async fn until_none(open: &AtomicUsize) {
    let waiting = async {
        while open.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(BOUND, waiting).await.expect("all streams end in time");
}

/// By prior knowledge and by ALPN; and a stream that breaks off is reset, which no client takes for its end.
#[tokio::test]
async fn http2_is_spoken_and_a_stream_that_breaks_off_is_reset() {
    let breaks = Arc::new(Notify::new());
    let here = breaks.clone();
    let broken = || async move {
        Body::from_stream(async_stream::stream! {
            yield Ok(Bytes::from("the beginning"));
            here.notified().await;
            yield Err(io::Error::other("no terminal"));
        })
    };
    let host = |request: Request| async move {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("none");
        format!("{:?} {host}", request.version())
    };
    let router = Router::new().route("/broken", get(broken)).route("/", get(host));
    let file = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name);
    for tls in [false, true] {
        let address = port(router.clone(), limits(), tls).await;
        let stream = TcpStream::connect(&address).await.expect("connects");
        let mut sender = if tls {
            let mut roots = rustls::RootCertStore::empty();
            let authority = std::fs::read(file("first-ca.crt")).expect("a file");
            let authorities = rustls::pki_types::pem::PemObject::pem_slice_iter(&authority);
            roots.add_parsable_certificates(authorities.map(|one| one.expect("a certificate")));
            let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
            let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("TLS");
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            connected(stream).await
        } else {
            connected(stream).await
        };
        let (head, mut body) = ask(&mut sender, "http://chat.example.com/").await;
        assert_eq!(head.version, Version::HTTP_2);
        let text = body.data().await.expect("a body").expect("all of it");
        assert_eq!(text, "HTTP/2.0 chat.example.com");
        let (_, mut broken) = ask(&mut sender, "http://localhost/broken").await;
        assert_eq!(broken.data().await.expect("something").expect("what came"), "the beginning");
        breaks.notify_one();
        let reset = timeout(BOUND, broken.data()).await.expect("in time").expect("no end").expect_err("no end");
        assert!(reset.is_reset() && reset.is_remote(), "{reset}");
        // The connection goes on.
        assert_eq!(ask(&mut sender, "http://localhost/").await.0.status, 200);
    }
}

/// Of two streams of one connection the one that is not read is cut, and the other goes on.
#[tokio::test]
async fn a_stalled_stream_of_http2_is_reset_and_its_neighbour_goes_on() {
    let open = Arc::new(AtomicUsize::new(0));
    let address = port(endless(open.clone()), limits(), false).await;
    let mut sender = connected(TcpStream::connect(&address).await.expect("connects")).await;
    let (_, mut read) = ask(&mut sender, "http://localhost/endless").await;
    let (_, mut stalled) = ask(&mut sender, "http://localhost/endless").await;
    let begun = Instant::now();
    let mut cut = false;
    while begun.elapsed() < Duration::from_secs(2) {
        let piece = timeout(BOUND, read.data()).await.expect("in time").expect("no end").expect("no break");
        read.flow_control().release_capacity(piece.len()).expect("released");
        cut = cut || open.load(Ordering::Relaxed) == 1;
        // The window of the connection is for both.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(cut, "the stalled one was cut while the other went on");
    let ended = async {
        loop {
            match stalled.data().await {
                Some(Ok(_)) => {}
                other => return other,
            }
        }
    };
    let ended = timeout(BOUND, ended).await.expect("in time");
    assert!(ended.expect("no clean end").expect_err("a reset").is_reset());
    drop((read, stalled, sender));
    until_none(&open).await;
}

/// The same over HTTP/1.1, where a stream has the connection for itself.
#[tokio::test]
async fn a_stalled_connection_of_http1_is_cut() {
    let open = Arc::new(AtomicUsize::new(0));
    let address = port(endless(open.clone()), limits(), false).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut stalled = socket.connect(address.parse().expect("an address")).await.expect("connects");
    stalled.write_all(b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("written");
    let opened = async {
        while open.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(BOUND, opened).await.expect("it is served");
    until_none(&open).await;
}

/// What says nothing, whatever it speaks, does not keep its place.
#[tokio::test]
async fn an_idle_connection_is_closed() {
    let limits = PortLimits { header_timeout: Duration::from_millis(200), ..limits() };
    let address = port(endless(Arc::default()), limits, false).await;
    // Nothing, the half of what HTTP/2 begins with, all of it, a request's half.
    for begin in [&b""[..], &PREFACE[..10], PREFACE, b"GET / HT"] {
        let mut stream = TcpStream::connect(&address).await.expect("connects");
        stream.write_all(begin).await.expect("written");
        let mut said = Vec::new();
        let closed = timeout(BOUND, stream.read_to_end(&mut said)).await;
        assert!(closed.is_ok(), "{begin:?} is closed");
    }
    // One that has had its answer.
    let mut sender = connected(TcpStream::connect(&address).await.expect("connects")).await;
    assert_eq!(ask(&mut sender, "http://localhost/").await.0.status, 200);
    let gone = async {
        while sender.clone().ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await
        }
    };
    timeout(BOUND, gone).await.expect("it is told to go");
}
