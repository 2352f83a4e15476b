//! What the client port is called by, and by whom: checks of a request's head that come before everything else.
//!
//! A browser sends requests for any web page that asks it to, to any host, loopback and private networks included. It says
//! for which page: `Origin`, and `Sec-Fetch-Site`. A page whose name was made to resolve to this port (DNS rebinding) is of
//! the same origin to the browser; it is known by its `Host`. So the port answers to hosts that it knows, and to no page
//! but those that it has served itself, and, on the routes of the API, those of origins that a flag allows one by one. What is
//! no browser sends one `Host` and nothing else of it.
//!
//! The worker port and the admin port are called by addresses that nobody can list (pods'), and have no such check: the
//! one shows nothing without a credential, the other nothing of anybody's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::problem::Problem;

/// The flag that lists hosts.
pub const FLAG: &str = "--hosts";
/// What pages of allowed origins may call: the API in all its dialects. The page of the gateway's own, and its logins, are not theirs.
const API_PATHS: [&str; 4] = ["/v1/", "/agui/", "/openai/", "/ui/"];
static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// A host that clients may call the gateway by, as a flag names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServedHost {
    /// `*`: any.
    Any,
    /// `*.example.com`: every name below this one, which is kept with its dot in front.
    Below(String),
    /// One name or address.
    One(String),
}

impl FromStr for ServedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no host; write chat.example.com, *.example.com, an IP address, or * for any");
        if text == "*" {
            return Ok(ServedHost::Any);
        }
        if let Some(name) = text.strip_prefix("*.") {
            return host_name(name).map(|name| ServedHost::Below(format!(".{name}"))).ok_or_else(wrong);
        }
        let bare: Option<Ipv6Addr> = text.parse().ok();
        let one = bare
            .map(|ip| format!("[{ip}]"))
            .or_else(|| Authority::parse(text).filter(|a| a.port.is_none()).map(|a| a.host));
        one.map(ServedHost::One).ok_or_else(wrong)
    }
}

/// An origin whose pages may call the API, as a flag names it: a scheme, a host, and a port where it is not the scheme's usual one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedOrigin(String);

impl AllowedOrigin {
    /// The origin as browsers write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AllowedOrigin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (scheme, authority) = text.split_once("://")?;
            let usual = usual_port(scheme)?;
            let Authority { host, port } = Authority::parse(authority)?;
            Some(match port.filter(|port| *port != usual) {
                Some(port) => format!("{scheme}://{host}:{port}"),
                None => format!("{scheme}://{host}"),
            })
        };
        read().map(AllowedOrigin).ok_or_else(|| {
            format!(
                "{text:?} is no origin; write it whole, without a path: https://app.example.com, http://localhost:3000"
            )
        })
    }
}

/// The page that a request was made for, if it was made for one. It stands among the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestOrigin {
    /// None that the browser names: no `Origin`. A browser names it with every request that may change something.
    Unnamed,
    /// A page that this gateway has served itself.
    Own,
    /// One of an origin that is allowed.
    Allowed,
}

/// The hosts that a gateway answers to, and the origins whose pages may call it.
#[derive(Debug, Clone)]
pub struct ServedHosts {
    listed: Vec<ServedHost>,
    addresses: bool,
    origins: Vec<AllowedOrigin>,
}

impl ServedHosts {
    /// The hosts in the list and those of loopback; with `addresses`, every IP address too. An address cannot be made to
    /// resolve to something else, so it is for callers who need a key anyway.
    pub fn new(listed: Vec<ServedHost>, addresses: bool) -> Self {
        ServedHosts { listed, addresses, origins: Vec::new() }
    }

    /// The same, answering the API to pages of these origins too.
    pub fn allowing(self, origins: Vec<AllowedOrigin>) -> Self {
        ServedHosts { origins, ..self }
    }

    fn serve(&self, host: &str) -> bool {
        let listed = |served: &ServedHost| match served {
            ServedHost::Any => true,
            ServedHost::Below(suffix) => host.ends_with(suffix.as_str()),
            ServedHost::One(name) => host == name,
        };
        let address = address(host);
        host == "localhost"
            || address.is_some_and(|ip| self.addresses || ip.is_loopback())
            || self.listed.iter().any(listed)
    }

    /// Whether a request with this head is to be answered at all; and for which page it was made.
    fn admit(&self, uri: &Uri, headers: &HeaderMap) -> Result<RequestOrigin, Problem> {
        let host = only(headers, &header::HOST)?.and_then(Authority::parse);
        let host = host.ok_or_else(|| Problem::bad_request("send one Host header, with a name or an address"))?;
        // A request to a proxy has the host in its target, too.
        if uri.authority().is_some_and(|target| Authority::parse(target.as_str()).as_ref() != Some(&host)) {
            return Err(Problem::bad_request("the target is for another host than the Host header"));
        }
        if !self.serve(&host.host) {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                format!(
                    "this gateway does not answer to the host {:?}; whoever runs it allows it by {FLAG}",
                    host.host
                ),
            ));
        }
        let (site, origin) = (only(headers, &SEC_FETCH_SITE)?, only(headers, &header::ORIGIN)?);
        let of = match origin {
            None => RequestOrigin::Unnamed,
            Some(origin) if self.allows(origin, uri.path()) => return Ok(RequestOrigin::Allowed),
            Some(origin) if is_origin_of(origin, &host) => RequestOrigin::Own,
            Some(_) => return Err(foreign()),
        };
        if site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
            return Err(foreign());
        }
        Ok(of)
    }

    /// Whether a flag allows pages of this origin to call this path.
    fn allows(&self, origin: &str, path: &str) -> bool {
        self.origins.iter().any(|allowed| allowed.as_str() == origin)
            && API_PATHS.iter().any(|api| path.starts_with(api))
    }
}

fn foreign() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "web pages of another origin are not answered; whoever runs this gateway allows one by --allow-origin",
    )
}

/// Answers a request, or refuses it for its head.
pub(super) async fn admit(State(hosts): State<ServedHosts>, mut request: Request, next: Next) -> Response {
    match hosts.admit(request.uri(), request.headers()) {
        Ok(of) => {
            request.extensions_mut().insert(of);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

/// The one value of a header, if the header is there. Of several, each reader on the way might believe another.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|value| value.to_str());
    match (first, values.next()) {
        (None, _) => Ok(None),
        (Some(Ok(value)), None) => Ok(Some(value)),
        _ => Err(Problem::bad_request(format!("send the header {name} once, in ASCII"))),
    }
}

/// Whether an `Origin` is that of pages at this host. A proxy may speak TLS for us, so the scheme is not compared.
fn is_origin_of(origin: &str, host: &Authority) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let Some(usual) = usual_port(scheme) else { return false };
    Authority::parse(authority)
        .is_some_and(|of| of.host == host.host && of.port.unwrap_or(usual) == host.port.unwrap_or(usual))
}

/// The port that an origin of this scheme has where it names none; `None`: pages have no such origin.
fn usual_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// A host in lower case, IPv6 in brackets, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Authority {
    host: String,
    port: Option<u16>,
}

impl Authority {
    /// Reads `host` or `host:port`, and nothing that others might read differently: no user, no empty port, no escapes.
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (ip, port) = rest.split_once(']')?;
                (format!("[{}]", ip.parse::<Ipv6Addr>().ok()?), port)
            }
            None => {
                let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                (host_name(name)?, port)
            }
        };
        let port = match port.strip_prefix(':') {
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
            Some(_) => return None,
            None if port.is_empty() => None,
            None => return None,
        };
        Some(Authority { host, port })
    }
}

/// A DNS name or an IPv4 address, in lower case.
fn host_name(name: &str) -> Option<String> {
    let ok = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    (name.len() <= 253 && name.split('.').all(ok)).then(|| name.to_ascii_lowercase())
}

/// The address that a host is, if it is one.
fn address(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(ip) => ip.parse().map(IpAddr::V6).ok(),
        None => host.parse::<Ipv4Addr>().map(IpAddr::V4).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(hosts: &ServedHosts, target: &str, headers: &[(&str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().expect("a name"), value.parse().expect("a value"));
        }
        hosts.admit(&target.parse().expect("a target"), &map).map_or_else(|p| p.status().as_u16(), |_| 200)
    }

    fn hosts(listed: &[&str], addresses: bool) -> ServedHosts {
        ServedHosts::new(listed.iter().map(|text| text.parse().expect("a host")).collect(), addresses)
    }

    #[test]
    fn one_strict_host_that_is_served() {
        let listed = ["chat.example.com", "*.apps.example.com", "fd00::7"];
        let (keyless, keyed) = (hosts(&[], false), hosts(&listed, true));
        for (host, without, with) in [
            ("localhost", 200, 200),
            ("LOCALHOST:8080", 200, 200),
            ("127.0.0.1:1", 200, 200),
            ("127.8.8.8", 200, 200),
            ("[::1]:65535", 200, 200),
            ("[0:0:0:0:0:0:0:1]", 200, 200),
            ("10.1.2.3:8080", 403, 200),
            ("[fd00::8]", 403, 200),
            ("chat.example.com", 403, 200),
            ("Chat.Example.com:443", 403, 200),
            ("a.b.apps.example.com", 403, 200),
            ("apps.example.com", 403, 403),
            ("evilapps.example.com", 403, 403),
            ("evil.example", 403, 403),
            ("localhost.evil.example", 403, 403),
            ("127.0.0.1.nip.io", 403, 403),
            ("127.1", 403, 403),
            ("0x7f000001", 403, 403),
            ("2130706433", 403, 403),
            ("", 400, 400),
            (":8080", 400, 400),
            ("localhost:", 400, 400),
            ("localhost:x", 400, 400),
            ("localhost:+80", 400, 400),
            ("localhost:65536", 400, 400),
            ("localhost:80:80", 400, 400),
            ("localhost.", 400, 400),
            ("evil@localhost", 400, 400),
            ("localhost@evil.example", 400, 400),
            ("localhost/", 400, 400),
            ("localhost, evil.example", 400, 400),
            ("localhost evil.example", 400, 400),
            ("[::1", 400, 400),
            ("[::1]x", 400, 400),
            ("[127.0.0.1]", 400, 400),
            ("::1", 400, 400),
            ("local%68ost", 400, 400),
        ] {
            assert_eq!(answer(&keyless, "/v1/turns", &[("host", host)]), without, "{host:?}, without keys");
            assert_eq!(answer(&keyed, "/v1/turns", &[("host", host)]), with, "{host:?}, with keys");
        }
        assert_eq!(answer(&keyed, "/", &[]), 400, "none");
        assert_eq!(answer(&keyed, "/", &[("host", "localhost"), ("host", "localhost")]), 400, "two");
        assert_eq!(answer(&keyed, "http://localhost/", &[("host", "localhost")]), 200);
        assert_eq!(answer(&keyed, "http://evil.example/", &[("host", "localhost")]), 400);
        assert_eq!(answer(&hosts(&["*"], true), "/", &[("host", "evil.example")]), 200, "whoever runs it wants any");
    }

    #[test]
    fn web_pages_of_other_origins_are_refused_and_programs_are_not() {
        let hosts = hosts(&["chat.example.com"], true);
        for (host, origin, wanted) in [
            ("localhost:8080", "http://localhost:8080", 200),
            ("localhost:8080", "https://localhost:8080", 200),
            ("chat.example.com", "https://chat.example.com", 200),
            ("chat.example.com:443", "https://chat.example.com", 200),
            ("chat.example.com", "https://CHAT.example.com:443", 200),
            ("localhost:8080", "http://localhost:3000", 403),
            ("localhost:8080", "http://localhost", 403),
            ("localhost:8080", "http://127.0.0.1:8080", 403),
            ("chat.example.com", "https://evil.example", 403),
            ("chat.example.com", "https://chat.example.com.evil.example", 403),
            ("chat.example.com", "null", 403),
            ("chat.example.com", "", 403),
            ("chat.example.com", "file://", 403),
            ("chat.example.com", "chrome-extension://chat.example.com", 403),
        ] {
            assert_eq!(answer(&hosts, "/", &[("host", host), ("origin", origin)]), wanted, "{origin} at {host}");
        }
        for (site, wanted) in [("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403), ("x", 403)]
        {
            assert_eq!(answer(&hosts, "/", &[("host", "localhost"), ("sec-fetch-site", site)]), wanted, "{site}");
        }
        let twice = [("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://localhost")];
        assert_eq!(answer(&hosts, "/", &twice), 400);
        let twice = [("host", "localhost"), ("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")];
        assert_eq!(answer(&hosts, "/", &twice), 400);
    }

    #[test]
    fn pages_of_an_allowed_origin_may_call_the_api_and_nothing_else() {
        let origins = ["https://app.example.com", "http://localhost:3000"].map(|o| o.parse().expect("an origin"));
        let hosts = hosts(&["chat.example.com"], true).allowing(origins.into());
        for (origin, path, wanted) in [
            ("https://app.example.com", "/v1/agents", 200),
            ("https://app.example.com", "/openai/v1/responses", 200),
            ("http://localhost:3000", "/agui/bot", 200),
            ("https://app.example.com", "/", 403),
            ("https://app.example.com", "/session", 403),
            ("https://app.example.com", "/openapi.json", 403),
            ("http://app.example.com", "/v1/agents", 403),
            ("https://app.example.com:444", "/v1/agents", 403),
            ("https://app.example.com.evil.example", "/v1/agents", 403),
            ("https://APP.example.com", "/v1/agents", 403),
            ("http://localhost", "/v1/agents", 403),
            ("null", "/v1/agents", 403),
        ] {
            let head = [("host", "chat.example.com"), ("origin", origin), ("sec-fetch-site", "cross-site")];
            assert_eq!(answer(&hosts, path, &head), wanted, "{origin} {path}");
        }
        let unnamed = [("host", "chat.example.com"), ("sec-fetch-site", "cross-site")];
        assert_eq!(answer(&hosts, "/v1/agents", &unnamed), 403, "an image of an allowed page names no origin");
    }

    #[test]
    fn a_flag_that_is_no_origin_is_refused() {
        for wrong in
            ["", "*", "null", "app.example.com", "https://app.example.com/", "https://*.example.com", "ftp://a"]
        {
            assert!(wrong.parse::<AllowedOrigin>().is_err(), "{wrong:?}");
        }
        let written = |text: &str| text.parse::<AllowedOrigin>().map(|origin| origin.0);
        assert_eq!(written("https://App.example.com:443"), Ok("https://app.example.com".into()));
        assert_eq!(written("http://[::1]:3000"), Ok("http://[::1]:3000".into()));
    }

    #[test]
    fn a_flag_that_is_no_host_is_refused() {
        for wrong in ["", "http://chat.example.com", "chat.example.com:80", "chat.example.com/", "*.", "a*.b", "**"] {
            assert!(wrong.parse::<ServedHost>().is_err(), "{wrong:?}");
        }
    }
}
