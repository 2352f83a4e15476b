//! Where requests may go whose URL the author of an Agent gave. Such a URL must not lead to what only Lastword's own process
//! or node can reach.
//!
//! The addresses that are really connected to are checked, not the URL. So a name that points to an inner address does not
//! get past, and neither does one that changes its address between the check and the connection.
//!
//! | address | platforms ([`Reach::Public`]) | guardrails ([`Reach::Cluster`]) |
//! |---|---|---|
//! | loopback, link-local, unspecified, multicast, reserved, cloud metadata | refused | refused |
//! | private: 10/8, 172.16/12, 192.168/16, 100.64/10, 198.18/15, fc00::/7, fec0::/10 | refused | http and https |
//! | all others | https | https |
//! | in `--egress-deny` | refused | refused |
//! | in `--egress-allow`, and not in `--egress-deny` | http and https | http and https |
//!
//! Guardrails reach further, since they are services in the cluster as a rule, and what they are asked is a decision that
//! their author may make anyway. The gateway's loopback and its node stay closed to them too. An IPv6 address that stands for
//! an IPv4 address is judged as that one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use clap::Args;
use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, RequestBuilder, Url, redirect};
use url::Host;

/// The connection must be made within this time; the request's own timeout bounds the rest.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// Loopback, which `dev` allows.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
/// Addresses that mean this machine or its link.
const LINK_LOCAL: [&str; 4] = ["0.0.0.0/32", "169.254.0.0/16", "::/128", "fe80::/10"];
/// Addresses at which no receiver is: this host, link-local, protocol assignments, multicast, reserved. The metadata services
/// of clouds are here, too. Most are link-local, and Oracle's is in 192.0.0.0/24; those of Alibaba and Azure, and over IPv6
/// those of AWS, Google and Oracle, have addresses of their own in this table.
const SPECIAL: [&str; 17] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "::/128",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::/32",
    "fd20:ce::254/128",
    "fd00:c1::a9fe:a9fe/128",
    "100::/64",
    "64:ff9b:1::/48",
];
/// The private ranges, which clusters and offices use.
const PRIVATE: [&str; 7] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7", "fec0::/10"];

/// How far requests of a kind may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// To public addresses alone.
    Public,
    /// To private addresses too.
    Cluster,
}

/// Where Agents' webhooks, Slack URLs and guardrails may be.
#[derive(Debug, Clone, Args)]
pub struct EgressArgs {
    /// Networks (CIDR) that Agents' URLs may lead to though they are loopback, link-local or private; http is taken there
    /// too. Guardrails may lead to private ones anyway. `dev` allows loopback.
    #[arg(long, env = "LASTWORD_EGRESS_ALLOW", value_name = "CIDR,…", value_delimiter = ',')]
    pub egress_allow: Vec<IpNet>,
    /// Networks (CIDR) that no Agent's URL may lead to; wins over --egress-allow.
    #[arg(long, env = "LASTWORD_EGRESS_DENY", value_name = "CIDR,…", value_delimiter = ',')]
    pub egress_deny: Vec<IpNet>,
}

impl EgressArgs {
    /// The lists as rules.
    pub fn egress(&self) -> Egress {
        Egress { allow: self.egress_allow.clone(), deny: self.egress_deny.clone() }
    }
}

/// The operator's lists; empty by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Egress {
    pub allow: Vec<IpNet>,
    /// An address in both lists is refused.
    pub deny: Vec<IpNet>,
}

/// An address that may not be connected to, and why. It names no URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the address is in a range that is refused by --egress-deny")]
    Denied,
    #[error("the address is loopback, link-local or otherwise never a peer's; allow it with --egress-allow")]
    Special,
    #[error("the address is in a private or cluster range; allow it with --egress-allow")]
    Private,
    #[error("http is refused but for destinations in --egress-allow; use https")]
    Plain,
    #[error("only http and https URLs with a host can be posted to")]
    NoHost,
}

impl Egress {
    /// The same, with loopback allowed: for `dev`, where receivers run on the same machine.
    pub fn with_loopback(mut self) -> Self {
        self.allow.extend(nets(&LOOPBACK));
        self
    }

    /// Whether this address may be connected to; `plain`: without TLS.
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn check(&self, address: IpAddr, reach: Reach, plain: bool) -> Result<(), Refused> {
        let address = canonical(address);
        if holds(&self.deny, address) {
            return Err(Refused::Denied);
        }
        if holds(&self.allow, address) {
            return Ok(());
        }
        if holds(nets(&SPECIAL), address) {
            return Err(Refused::Special);
        }
        match (holds(nets(&PRIVATE), address), reach) {
            (true, Reach::Public) => Err(Refused::Private),
            (true, Reach::Cluster) => Ok(()),
            (false, _) if plain => Err(Refused::Plain),
            (false, _) => Ok(()),
        }
    }
}

/// Whether an address is of this machine, or of a network that is not public, such as a cluster's.
pub fn is_internal(address: IpAddr) -> bool {
    let address = canonical(address);
    holds(nets(&LOOPBACK).chain(nets(&LINK_LOCAL)).chain(nets(&PRIVATE)), address)
}

/// The IPv4 address that an IPv6 one stands for (mapped, translated, compatible, NAT64, 6to4), or the address itself.
fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let s = v6.segments();
    let v4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if v6 != Ipv6Addr::LOCALHOST && v6 != Ipv6Addr::UNSPECIFIED => v4(high, low),
        _ => address,
    }
}

fn holds(nets: impl IntoIterator<Item = impl std::borrow::Borrow<IpNet>>, address: IpAddr) -> bool {
    nets.into_iter().any(|net| net.borrow().contains(&address))
}

/// The networks of a table. A test shows that every entry of our tables can be parsed, so none is left out here.
fn nets(table: &'static [&'static str]) -> impl Iterator<Item = IpNet> {
    table.iter().filter_map(|net| net.parse().ok())
}

/// An HTTP client that keeps the rules. Cheap to clone.
#[derive(Clone)]
pub struct Outbound {
    secure: Client,
    plain: Client,
    egress: Arc<Egress>,
    reach: Reach,
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
        let client = |plain| {
            crate::tls::http()
                .redirect(redirect::Policy::none())
                .no_proxy()
                .user_agent(concat!("lastword/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .dns_resolver(Arc::new(Filtered { egress: egress.clone(), reach, plain }))
                .build()
        };
        Ok(Outbound { secure: client(false)?, plain: client(true)?, egress, reach })
    }

    /// A POST to this URL. An address in the URL is judged here. A name is judged when it is resolved, on sending: see
    /// [`refusal`].
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn post(&self, url: &Url) -> Result<RequestBuilder, Refused> {
        let plain = match url.scheme() {
            "https" => false,
            "http" => true,
            _ => return Err(Refused::NoHost),
        };
        match url.host().ok_or(Refused::NoHost)? {
            Host::Domain(_) => {}
            // The resolver, which judges the addresses of names, is not asked for these.
            Host::Ipv4(address) => self.egress.check(address.into(), self.reach, plain)?,
            Host::Ipv6(address) => self.egress.check(address.into(), self.reach, plain)?,
        }
        let client = if plain { &self.plain } else { &self.secure };
        Ok(client.post(url.clone()))
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

/// The system's resolver, whose answers lack the addresses that are refused.
struct Filtered {
    egress: Arc<Egress>,
    reach: Reach,
    plain: bool,
}

impl Resolve for Filtered {
    fn resolve(&self, name: Name) -> Resolving {
        let (egress, reach, plain) = (self.egress.clone(), self.reach, self.plain);
        Box::pin(async move {
            let mut permitted = Vec::new();
            let mut refused = None;
            for address in tokio::net::lookup_host((name.as_str(), 0)).await? {
                match egress.check(address.ip(), reach, plain) {
                    Ok(()) => permitted.push(address),
                    Err(why) => refused = Some(why),
                }
            }
            match refused {
                Some(why) if permitted.is_empty() => Err(why.into()),
                _ => Ok(Box::new(permitted.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
#[path = "egress_tests.rs"]
mod tests;
