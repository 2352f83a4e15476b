//! The HTTP client that keeps the rules.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, RequestBuilder, Url, redirect};
use url::Host;

use super::rules::{Egress, Reach, Refused};
use super::service;

/// The connection must be made within this time; the request's own timeout bounds the rest.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// An HTTP client that keeps the rules. Cheap to clone.
#[derive(Clone)]
pub struct Outbound {
    public: Pair,
    /// For names of Services that may be asked.
    services: Pair,
    egress: Arc<Egress>,
    reach: Reach,
}

/// A client for https and one for http. Each has its own resolver, since what an address may be hangs on the scheme.
#[derive(Clone)]
struct Pair {
    secure: Client,
    plain: Client,
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").field("egress", &self.egress).field("reach", &self.reach).finish_non_exhaustive()
    }
}

impl Outbound {
    /// A client for requests of one kind. It follows no redirects and uses no proxy of the environment, since both would
    /// connect to what was not checked. The process must have installed a rustls provider before.
    ///
    /// # Errors
    /// If the TLS backend cannot be initialised.
    pub fn new(egress: Egress, reach: Reach) -> Result<Self, reqwest::Error> {
        let egress = Arc::new(egress);
        let pair = |reach| {
            let client = |plain| {
                crate::tls::http()
                    .redirect(redirect::Policy::none())
                    .no_proxy()
                    .user_agent(concat!("lastword/", env!("CARGO_PKG_VERSION")))
                    .connect_timeout(CONNECT_TIMEOUT)
                    .dns_resolver(Arc::new(Filtered { egress: egress.clone(), reach, plain }))
                    .build()
            };
            Ok::<_, reqwest::Error>(Pair { secure: client(false)?, plain: client(true)? })
        };
        Ok(Outbound { public: pair(Reach::Public)?, services: pair(Reach::Cluster)?, egress, reach })
    }

    /// A POST to this URL for an Agent of this namespace. An address in the URL is judged here. A name is judged when it is
    /// resolved, on sending: see [`refusal`].
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn post(&self, url: &Url, namespace: &str) -> Result<RequestBuilder, Refused> {
        let plain = match url.scheme() {
            "https" => false,
            "http" => true,
            _ => return Err(Refused::NoHost),
        };
        let pair = match url.host().ok_or(Refused::NoHost)? {
            Host::Domain(name) if self.may_ask(name, namespace) => &self.services,
            Host::Domain(_) => &self.public,
            // The resolver, which judges the addresses of names, is not asked for these.
            Host::Ipv4(address) => self.egress.check(address.into(), Reach::Public, plain).map(|()| &self.public)?,
            Host::Ipv6(address) => self.egress.check(address.into(), Reach::Public, plain).map(|()| &self.public)?,
        };
        let client = if plain { &pair.plain } else { &pair.secure };
        Ok(client.post(url.clone()))
    }

    /// Whether a name is that of a Service that an Agent of this namespace may ask.
    fn may_ask(&self, name: &str, namespace: &str) -> bool {
        let Some(of) = service::namespace_of(name).filter(|_| self.reach == Reach::Cluster) else { return false };
        of == namespace || self.egress.namespaces.iter().any(|allowed| allowed == of)
    }
}

/// The rule by which a request was refused, if that is why it failed.
pub fn refusal(error: &reqwest::Error) -> Option<Refused> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return Some(*refused);
        }
        cause = error.source();
    }
    None
}

/// The text of an error with its causes, but without the URL, which may be a secret.
pub fn explain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The system's resolver, whose answers lack the addresses that are refused. What it answers is what is connected to.
struct Filtered {
    egress: Arc<Egress>,
    reach: Reach,
    plain: bool,
}

impl Filtered {
    /// The addresses that may be connected to.
    fn permitted(&self, found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        let mut permitted = Vec::new();
        let mut refused = None;
        for address in found {
            match self.egress.check(address.ip(), self.reach, self.plain) {
                Ok(()) => permitted.push(address),
                Err(why) => refused = Some(why),
            }
        }
        match refused {
            Some(why) if permitted.is_empty() => Err(why),
            _ => Ok(permitted),
        }
    }
}

impl Resolve for Filtered {
    fn resolve(&self, name: Name) -> Resolving {
        let this = Filtered { egress: self.egress.clone(), ..*self };
        Box::pin(async move {
            let found: Vec<SocketAddr> = match this.reach {
                Reach::Public => tokio::net::lookup_host((name.as_str(), 0)).await?.collect(),
                Reach::Cluster => {
                    let found = service::lookup(name.as_str()).await?;
                    if !found.is_itself(name.as_str()) {
                        return Err(Refused::Alias.into());
                    }
                    found.addresses
                }
            };
            Ok(Box::new(this.permitted(found.into_iter())?.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses in URLs in every spelling, and names, before anything is connected to.
    #[tokio::test]
    async fn a_url_into_a_refused_range_is_refused() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let outbound = Outbound::new(Egress::default(), Reach::Public).expect("a client");
        for (url, expected) in [
            ("https://127.0.0.1/", Refused::Special),
            ("https://2130706433/", Refused::Special),
            ("https://0x7f.1/", Refused::Special),
            ("https://0177.0.0.1/", Refused::Special),
            ("https://[::1]/", Refused::Special),
            ("https://[::ffff:169.254.169.254]/", Refused::Special),
            ("https://user@10.0.0.1:443/", Refused::Private),
            ("http://1.1.1.1/", Refused::Plain),
            ("ftp://1.1.1.1/", Refused::NoHost),
        ] {
            let url = Url::parse(url).expect("a URL");
            assert_eq!(outbound.post(&url, "team").err(), Some(expected), "{url}");
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        for scheme in ["http", "https"] {
            let url = Url::parse(&format!("{scheme}://localhost:{port}/")).expect("a URL");
            let failed = outbound.post(&url, "team").expect("a name").send().await.expect_err("refused");
            assert_eq!(refusal(&failed), Some(Refused::Special), "{failed:?}");
        }
        listener.set_nonblocking(true).expect("set");
        assert!(listener.accept().is_err(), "nobody connected");
    }

    /// Which of the two resolvers judges a name, shown by what each says of a name that leads to this machine.
    #[tokio::test]
    async fn only_services_of_the_own_namespace_and_of_allowed_ones_are_in_reach() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let egress = Egress { namespaces: vec!["shared".into()], ..Egress::default() };
        let guardrails = Outbound::new(egress.clone(), Reach::Cluster).expect("a client");
        let platforms = Outbound::new(egress, Reach::Public).expect("a client");
        for (name, may) in [
            ("rail.team.svc", true),
            ("RAIL.TEAM.SVC", true),
            ("rail.team.svc.cluster.local", true),
            ("rail.team.svc.", true),
            ("pod-0.rail.team.svc", true),
            ("rail.shared.svc", true),
            ("rail.other.svc", false),
            ("team.other.svc", false),
            ("rail.team.svc.evil.example", false),
            ("rail.team", false),
            ("team.svc", false),
            ("rail", false),
            ("rail.kube-system.svc", false),
        ] {
            let url = Url::parse(&format!("http://{name}/")).expect("a URL");
            let host = url.host_str().expect("a host");
            assert_eq!(guardrails.may_ask(host, "team"), may, "{name}");
            assert!(!platforms.may_ask(host, "team"), "{name}");
        }
        // A private address in a URL names no namespace.
        let url = Url::parse("http://10.0.0.1/").expect("a URL");
        assert_eq!(guardrails.post(&url, "team").err(), Some(Refused::Private));
    }

    /// The name is resolved once, and what was checked is what is connected to.
    #[test]
    fn a_service_may_have_a_private_address_and_no_name_an_inner_one() {
        let address = |text: &str| SocketAddr::new(text.parse().expect("an address"), 0);
        let of = |reach, texts: &[&str]| {
            Filtered { egress: Arc::default(), reach, plain: true }.permitted(texts.iter().map(|text| address(text)))
        };
        assert_eq!(of(Reach::Cluster, &["10.96.3.4"]), Ok(vec![address("10.96.3.4")]));
        assert_eq!(of(Reach::Public, &["10.96.3.4"]), Err(Refused::Private));
        for reach in [Reach::Cluster, Reach::Public] {
            assert_eq!(of(reach, &["127.0.0.1"]), Err(Refused::Special));
            assert_eq!(of(reach, &["169.254.169.254"]), Err(Refused::Special));
        }
        assert_eq!(of(Reach::Cluster, &["127.0.0.1", "10.96.3.4"]), Ok(vec![address("10.96.3.4")]));
    }
}
