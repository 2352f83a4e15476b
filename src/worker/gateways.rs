//! The gateways: where they are, which one is tried next, and the way to one of them.
//!
//! A URL may stand for several gateways, by a name with several addresses (a headless Service). Each try resolves the name anew
//! and goes to one of its addresses, over connections of its own: what was open to a gateway that was left is not used again.
//! All addresses of a URL are tried before the next URL.

use std::net::SocketAddr;
use std::time::Duration;

use rand::seq::IndexedRandom;
use tokio::net::lookup_host;
use tokio::time::timeout;
use url::{Host, Url};

use crate::tls::{self, Authorities};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the address that a gateway names for itself may take to answer; it is in the same network.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The way to one gateway. Cheap to clone; its clones share connections.
#[derive(Debug, Clone)]
pub(super) struct GatewayRoute {
    /// Base URL of the worker port.
    pub url: Url,
    pub http: reqwest::Client,
    /// Where all connections go, whatever else the URL's name stands for.
    address: SocketAddr,
}

impl GatewayRoute {
    /// The URL of a call of the worker protocol.
    pub(super) fn endpoint(&self, call: &str) -> Url {
        let mut url = self.url.clone();
        let base = url.path().trim_end_matches('/').to_string();
        url.set_path(&format!("{base}/worker/v1/{call}"));
        url
    }
}

/// The gateways that a worker was told of.
#[derive(Debug, Clone)]
pub struct Gateways {
    /// Base URLs of worker ports; at least one, each `http` or `https` with a host.
    urls: Vec<Url>,
    /// What is trusted at `https` gateways; `None`: what the system trusts.
    authorities: Option<Authorities>,
}

impl Gateways {
    /// Each URL must be `http` or `https`; there must be one.
    pub(super) fn new(urls: Vec<Url>, authorities: Option<Authorities>) -> Self {
        Gateways { urls, authorities }
    }

    /// The tries of one gateway after the other, from the first URL on.
    pub(super) fn tries(&self) -> Tries {
        Tries { gateways: self.clone(), round: Round::default() }
    }

    /// The way to this address. At an `https` URL the certificate must be for the URL's host.
    fn way(&self, url: Url, address: SocketAddr) -> Result<GatewayRoute, reqwest::Error> {
        let builder = match &self.authorities {
            Some(authorities) => tls::http_trusting(authorities),
            None if url.scheme() == "https" => tls::http(),
            // The system's authorities need not be read; an image may lack them.
            None => reqwest::Client::builder().tls_certs_only([]),
        };
        let builder = match url.host() {
            Some(Host::Domain(name)) => builder.resolve(name, address),
            _ => builder,
        };
        let http = builder
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(15))
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            // Gateways are in the same network. A proxy in the environment is there for the agent program.
            .no_proxy()
            .build()?;
        Ok(GatewayRoute { url, http, address })
    }

    /// The way to the gateway that says on a stream that its worker port is at `address`, `HOST:PORT`. Behind the stream's own
    /// way there may be a load balancer, which leads further connections to other gateways. `None`: the stream's way leads
    /// there already, or no other does from here.
    pub(super) async fn direct(&self, stream: &GatewayRoute, address: &str) -> Option<GatewayRoute> {
        let address = timeout(ANSWER_TIMEOUT, lookup_host(address)).await.ok()?.ok()?.next()?;
        if address == stream.address {
            return None;
        }
        let mut url = stream.url.clone();
        url.set_path("");
        url.set_port(Some(address.port())).ok()?;
        match (url.host()?, url.scheme()) {
            (Host::Domain(_), _) => {}
            (_, "http") => url.set_ip_host(address.ip()).ok()?,
            // A certificate is for the URL's host, which is another address.
            _ => return None,
        }
        let way = self.way(url, address).ok()?;
        // Whatever it answers, it is there, and its certificate is verified.
        match way.http.get(way.endpoint("")).timeout(ANSWER_TIMEOUT).send().await {
            Ok(_) => Some(way),
            Err(error) => {
                tracing::debug!(%address, %error, "the gateway's own address does not answer here");
                None
            }
        }
    }
}

/// Tries one gateway after the other.
pub(super) struct Tries {
    gateways: Gateways,
    round: Round,
}

impl Tries {
    /// The next gateway to try. `None` when all have been tried; the next call begins a new round.
    pub(super) async fn next(&mut self) -> Option<GatewayRoute> {
        while let Some(url) = self.gateways.urls.get(self.round.url) {
            if let Some(address) = self.round.pick(&resolve(url).await) {
                match self.gateways.way(url.clone(), address) {
                    Ok(gateway) => return Some(gateway),
                    Err(error) => tracing::error!(gateway = %url, "no HTTP client: {error}"),
                }
            }
        }
        self.round = Round::default();
        None
    }

    /// The next gateway to try, over and over. `None`: none is found now.
    pub(super) async fn next_of_any_round(&mut self) -> Option<GatewayRoute> {
        match self.next().await {
            Some(gateway) => Some(gateway),
            None => self.next().await,
        }
    }

    /// Begins a new round, in which the gateway that was left is tried behind all others of its URL.
    pub(super) fn leave(&mut self, left: &GatewayRoute) {
        self.round = Round { left: Some(left.address), ..Round::default() };
    }
}

/// How far the tries of one gateway after the other have come.
#[derive(Debug, Default)]
struct Round {
    /// The URL at hand, by its place in the list.
    url: usize,
    /// The addresses of that URL that were tried.
    tried: Vec<SocketAddr>,
    /// The address that was left, which is the last to be tried.
    left: Option<SocketAddr>,
}

impl Round {
    /// Any of these addresses, so that the workers of a gateway that is lost spread over all others. When all of them were
    /// tried: `None`, and the next URL is at hand.
    fn pick(&mut self, addresses: &[SocketAddr]) -> Option<SocketAddr> {
        let untried = || addresses.iter().filter(|address| !self.tried.contains(address));
        let others: Vec<&SocketAddr> = untried().filter(|address| self.left != Some(**address)).collect();
        let picked = others.choose(&mut rand::rng()).copied().or_else(|| untried().next()).copied();
        match picked {
            Some(address) => self.tried.push(address),
            None => *self = Round { url: self.url + 1, left: self.left, ..Round::default() },
        }
        picked
    }
}

/// The addresses that a URL stands for now.
async fn resolve(url: &Url) -> Vec<SocketAddr> {
    let port = url.port_or_known_default().unwrap_or_default();
    let name = match url.host() {
        None => return Vec::new(),
        Some(Host::Ipv4(address)) => return vec![(address, port).into()],
        Some(Host::Ipv6(address)) => return vec![(address, port).into()],
        Some(Host::Domain(name)) => name,
    };
    match timeout(RESOLVE_TIMEOUT, lookup_host((name, port))).await {
        Ok(Ok(addresses)) => {
            let mut addresses: Vec<SocketAddr> = addresses.collect();
            addresses.sort();
            addresses.dedup();
            addresses
        }
        Ok(Err(error)) => {
            tracing::warn!(gateway = %url, %error, "{name} is not found: {error}");
            Vec::new()
        }
        Err(_) => {
            tracing::warn!(gateway = %url, "{name} is not found in time");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(last: &[u8]) -> Vec<SocketAddr> {
        last.iter().map(|&last| ([10, 0, 0, last], 8081).into()).collect()
    }

    /// What is picked of a name that always has these addresses, until the next URL is at hand.
    fn picked(round: &mut Round, of: &[SocketAddr]) -> Vec<SocketAddr> {
        let url = round.url;
        let picked: Vec<_> = std::iter::from_fn(|| round.pick(of)).collect();
        assert_eq!(round.url, url + 1);
        picked
    }

    #[test]
    fn every_address_is_tried_once_and_the_one_that_was_left_at_last() {
        let all = addresses(&[1, 2, 3]);
        for _ in 0..20 {
            let mut round = Round { left: Some(all[1]), ..Round::default() };
            for _ in 0..2 {
                let mut picked = picked(&mut round, &all);
                assert_eq!(picked.last(), Some(&all[1]));
                picked.sort();
                assert_eq!(picked, all);
            }
        }
    }

    #[test]
    fn the_only_address_is_tried_again() {
        let only = addresses(&[1]);
        let mut round = Round { left: Some(only[0]), ..Round::default() };
        assert_eq!(picked(&mut round, &only), only);
    }

    #[test]
    fn an_address_that_a_name_gets_meanwhile_is_tried_and_one_that_it_loses_is_not() {
        let mut round = Round::default();
        let first = round.pick(&addresses(&[1])).expect("one");
        assert_eq!(first, addresses(&[1])[0]);
        assert_eq!(round.pick(&addresses(&[1, 4])), Some(addresses(&[4])[0]));
        assert_eq!(round.pick(&addresses(&[4])), None);
        assert_eq!(round.url, 1);
    }

    #[test]
    fn workers_spread_over_the_addresses() {
        let all = addresses(&[1, 2, 3, 4]);
        let firsts: std::collections::BTreeSet<_> = (0..200).filter_map(|_| Round::default().pick(&all)).collect();
        assert_eq!(firsts.into_iter().collect::<Vec<_>>(), all);
    }
}
