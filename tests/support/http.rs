//! Small servers on loopback.

use std::net::SocketAddr;

/// Serves these routes for as long as the test's runtime lives; the base URL.
pub async fn serve(router: axum::Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// An address on loopback that was free a moment ago: nobody listens there, and who takes it soon will get it.
pub fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound")
}
