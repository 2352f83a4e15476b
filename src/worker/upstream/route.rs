//! The way to the server: the HTTP clients, what they trust, and when they use a proxy.
//!
//! A proxy of the environment (`HTTP_PROXY` and its like) is for the way out of the network. What is on this machine or in the
//! cluster is reached directly, whether or not `NO_PROXY` names it: the proxy does not know `localhost` of this pod.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, ClientBuilder, Method, RequestBuilder, redirect};
use url::{Host, Url};

use crate::egress::is_internal;
use crate::tls::{self, Authorities};
use crate::worker::error::WorkerError;

/// How long an address may be looked up for the choice of the way; the request looks it up again.
const LOOK_UP: Duration = Duration::from_secs(2);
/// Variables that name a proxy, each also in lower case.
const PROXIES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
/// The ends of names that only this machine or its network knows.
const LOCAL_NAMES: [&str; 5] = [".localhost", ".svc", ".cluster.local", ".local", ".internal"];

/// Where a server is, and what it is shown.
#[derive(Debug)]
pub struct RouteOptions<'a> {
    pub base: &'a Url,
    /// How long a connection may take to be made, in seconds.
    pub connect_timeout: u64,
    /// The environment variable that holds the key to send as a bearer's.
    pub api_key_env: Option<&'a str>,
    /// Further headers, `NAME=VARIABLE`.
    pub header_env: &'a [String],
    /// The environment variable that holds the certificates to trust in place of the system's.
    pub ca_env: Option<&'a str>,
    /// Whether a connection serves one request alone. One that is used again may be closed by the server in that moment, and then
    /// nobody knows whether the request was taken.
    pub fresh_connections: bool,
}

/// Makes requests to a server.
pub struct ServerRoute {
    base: Url,
    headers: HeaderMap,
    direct: Client,
    /// Where the environment names a proxy.
    proxied: Option<Client>,
}

impl ServerRoute {
    /// Reads what the flags name: the key, the headers and the authorities.
    pub fn new(options: &RouteOptions<'_>) -> Result<Self, WorkerError> {
        let authorities = match options.ca_env {
            None => None,
            Some(name) => Some(Authorities::parse(name, secret(name)?.into_bytes())?),
        };
        let builder = || -> ClientBuilder {
            let builder = match &authorities {
                Some(authorities) => tls::http_trusting(authorities),
                None if options.base.scheme() == "https" => tls::http(),
                // Without TLS, the system's authorities need not be read; an image may lack them.
                None => Client::builder().tls_certs_only([]),
            };
            builder
                .connect_timeout(Duration::from_secs(options.connect_timeout))
                .tcp_keepalive(Duration::from_secs(15))
                .pool_max_idle_per_host(if options.fresh_connections { 0 } else { usize::MAX })
                // A redirected POST would become a GET, and the key would go to another server.
                .redirect(redirect::Policy::none())
                .user_agent(concat!("lastword/", env!("CARGO_PKG_VERSION")))
        };
        let has_proxy = PROXIES.iter().any(|name| {
            [name.to_string(), name.to_lowercase()]
                .iter()
                .any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()))
        });
        Ok(ServerRoute {
            base: options.base.clone(),
            headers: headers(options)?,
            direct: builder().no_proxy().build()?,
            proxied: if has_proxy { Some(builder().build()?) } else { None },
        })
    }

    /// A request for what lies at `path` below the base URL; for that URL itself, if the path is empty.
    pub async fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        if !path.is_empty() {
            url.set_path(&format!("{}/{path}", url.path().trim_end_matches('/')));
        }
        self.client().await.request(method, url).headers(self.headers.clone())
    }

    async fn client(&self) -> &Client {
        let Some(proxied) = &self.proxied else { return &self.direct };
        match self.base.host() {
            Some(Host::Ipv4(address)) if is_internal(address.into()) => &self.direct,
            Some(Host::Ipv6(address)) if is_internal(address.into()) => &self.direct,
            Some(Host::Domain(name)) if is_local(name) || leads_inside(name).await => &self.direct,
            _ => proxied,
        }
    }

    /// The base URL as it may be told: without what may be secret in it.
    pub fn told(&self) -> String {
        told(&self.base)
    }
}

/// A URL without user, password and query.
pub fn told(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// Whether only this machine or its network can know the name: one of a Service, or one without a dot.
fn is_local(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    !name.contains('.') || LOCAL_NAMES.iter().any(|end| name.ends_with(end))
}

/// Whether the name leads to addresses of this machine or of private networks alone, as `SERVICE.NAMESPACE` does. A name that
/// cannot be looked up here is left to the proxy.
async fn leads_inside(name: &str) -> bool {
    let found = tokio::time::timeout(LOOK_UP, tokio::net::lookup_host((name, 0))).await;
    let Ok(Ok(addresses)) = found else { return false };
    let addresses: Vec<IpAddr> = addresses.map(|address| address.ip()).collect();
    !addresses.is_empty() && addresses.into_iter().all(is_internal)
}

/// The headers of every request. Those that an Agent names come last, so that they may replace ours.
fn headers(options: &RouteOptions<'_>) -> Result<HeaderMap, WorkerError> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, application/json"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(name) = options.api_key_env {
        headers.insert(AUTHORIZATION, hidden(name, format!("Bearer {}", secret(name)?.trim()))?);
    }
    for given in options.header_env {
        let bad = || WorkerError::BadHeader(given.clone());
        let (name, variable) = given.split_once('=').ok_or_else(bad)?;
        let name: HeaderName = name.parse().map_err(|_| bad())?;
        headers.insert(name, hidden(variable, secret(variable)?.trim().to_owned())?);
    }
    Ok(headers)
}

/// A header's value, which is not to be logged. `name` is the variable that it is from.
fn hidden(name: &str, value: String) -> Result<HeaderValue, WorkerError> {
    let mut value = HeaderValue::from_str(&value).map_err(|_| WorkerError::NoValue(name.into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The value of a variable, which holds something.
fn secret(name: &str) -> Result<String, WorkerError> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty()).ok_or_else(|| WorkerError::NoValue(name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_near_is_known_by_its_name_or_its_address() {
        for (name, near) in [
            ("localhost", true),
            ("LocalHost.", true),
            ("model.localhost", true),
            ("vllm", true),
            ("vllm.models.svc", true),
            ("vllm.models.svc.cluster.local.", true),
            ("api.example.com", false),
            ("vllm.models", false),
            ("svc.example.com", false),
        ] {
            assert_eq!(is_local(name), near, "{name}");
        }
        assert!(leads_inside("localhost").await, "by its address");
        assert!(!leads_inside("no-such-name.invalid").await);
    }

    #[test]
    fn a_url_is_told_without_its_secrets() {
        let url = Url::parse("https://user:password@example.com:8443/v1?key=secret#x").expect("a URL");
        assert_eq!(told(&url), "https://example.com:8443/v1");
    }
}
