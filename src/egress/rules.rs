//! Which addresses requests may go to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::Args;
use ipnet::IpNet;

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
    /// To Services of the cluster too, in namespaces that are allowed.
    Cluster,
}

/// Where Agents' webhooks, Slack URLs and guardrails may be.
#[derive(Debug, Clone, Args)]
pub struct EgressArgs {
    /// Networks (CIDR) that Agents' URLs may lead to though they are loopback, link-local or private; http is taken there
    /// too. `dev` allows loopback.
    #[arg(long, env = "LASTWORD_EGRESS_ALLOW", value_name = "CIDR,…", value_delimiter = ',')]
    pub egress_allow: Vec<IpNet>,
    /// Networks (CIDR) that no Agent's URL may lead to; wins over --egress-allow.
    #[arg(long, env = "LASTWORD_EGRESS_DENY", value_name = "CIDR,…", value_delimiter = ',')]
    pub egress_deny: Vec<IpNet>,
    /// Namespaces whose Services the guardrails of every Agent may ask, beside those of the Agent's own namespace.
    #[arg(long, env = "LASTWORD_EGRESS_NAMESPACES", value_name = "NAMESPACE,…", value_delimiter = ',')]
    pub egress_namespaces: Vec<String>,
}

impl EgressArgs {
    /// The lists as rules. In a cluster the API server is refused too, which is a Service of the namespace `default`.
    pub fn egress(&self) -> Egress {
        let api_server = std::env::var("KUBERNETES_SERVICE_HOST").ok().and_then(|host| host.parse::<IpAddr>().ok());
        let deny = self.egress_deny.iter().copied().chain(api_server.map(IpNet::from)).collect();
        let namespaces = self.egress_namespaces.iter().filter(|name| !name.is_empty()).cloned().collect();
        Egress { allow: self.egress_allow.clone(), deny, namespaces }
    }
}

/// The operator's lists; empty by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Egress {
    pub allow: Vec<IpNet>,
    /// An address in both lists is refused.
    pub deny: Vec<IpNet>,
    /// Namespaces whose Services every guardrail may ask.
    pub namespaces: Vec<String>,
}

/// An address that may not be connected to, and why. It names no URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the address is in a range that is refused by --egress-deny")]
    Denied,
    #[error("the address is loopback, link-local or otherwise never a peer's; allow it with --egress-allow")]
    Special,
    #[error(
        "the address is in a private or cluster range; guardrails reach Services of their own namespace \
        (NAME.NAMESPACE.svc), others by --egress-namespaces or --egress-allow"
    )]
    Private,
    #[error("the Service is an alias of another name (ExternalName); name what it stands for")]
    Alias,
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
        // Whether a name with this address is that of a Service that may be asked was decided before: see `outbound`.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(allow: &[&str], deny: &[&str]) -> Egress {
        let parse = |list: &[&str]| list.iter().map(|n| n.parse().expect("a net")).collect();
        Egress { allow: parse(allow), deny: parse(deny), namespaces: Vec::new() }
    }

    #[test]
    fn every_range_of_our_own_is_readable() {
        assert_eq!(nets(&SPECIAL).count(), SPECIAL.len());
        assert_eq!(nets(&PRIVATE).count(), PRIVATE.len());
        assert_eq!(nets(&LOOPBACK).count(), LOOPBACK.len());
    }

    #[test]
    fn the_table_of_addresses() {
        use Refused::{Plain, Private, Special};
        // address; public names over https and http; Services over https and http
        let public = [Ok(()), Err(Plain), Ok(()), Err(Plain)];
        let private = [Err(Private), Err(Private), Ok(()), Ok(())];
        let own = [Err(Special); 4];
        for (address, expected) in [
            ("1.1.1.1", public),
            ("172.15.255.255", public),
            ("172.32.0.1", public),
            ("100.128.0.1", public),
            ("2606:4700::1111", public),
            ("::ffff:1.1.1.1", public),
            ("10.96.0.1", private),
            ("172.16.0.1", private),
            ("172.31.255.255", private),
            ("192.168.1.1", private),
            ("100.64.0.1", private),
            ("198.19.0.1", private),
            ("fd12::1", private),
            ("::ffff:10.0.0.1", private),
            ("64:ff9b::10.0.0.1", private),
            ("2002:0a00:0001::1", private),
            ("::10.0.0.1", private),
            ("::ffff:0:10.0.0.1", private),
            ("127.0.0.1", own),
            ("127.8.8.8", own),
            ("0.0.0.0", own),
            ("0.1.2.3", own),
            ("169.254.169.254", own),
            ("192.0.0.192", own),
            ("100.100.100.200", own),
            ("168.63.129.16", own),
            ("224.0.0.1", own),
            ("255.255.255.255", own),
            ("::", own),
            ("::1", own),
            ("fe80::1", own),
            ("ff02::1", own),
            ("fd00:ec2::254", own),
            ("fd20:ce::254", own),
            ("fd00:c1::a9fe:a9fe", own),
            ("::ffff:0:127.0.0.1", own),
            ("::ffff:0:169.254.169.254", own),
            ("::ffff:127.0.0.1", own),
            ("::ffff:169.254.169.254", own),
            ("64:ff9b::127.0.0.1", own),
            ("2002:7f00:0001::", own),
            ("::127.0.0.1", own),
        ] {
            let ip: IpAddr = address.parse().expect("an address");
            let none = Egress::default();
            let found =
                [(Reach::Public, false), (Reach::Public, true), (Reach::Cluster, false), (Reach::Cluster, true)]
                    .map(|(reach, plain)| none.check(ip, reach, plain));
            assert_eq!(found, expected, "{address}");
        }
    }

    #[test]
    fn lists_win_and_deny_wins_over_allow() {
        let lists = egress(&["10.1.0.0/16", "127.0.0.1/32", "1.1.1.0/24"], &["10.1.2.0/24", "8.8.8.8/32"]);
        for (address, expected) in [
            ("10.1.0.1", Ok(())),
            ("::ffff:10.1.0.1", Ok(())),
            ("10.1.2.3", Err(Refused::Denied)),
            ("::ffff:10.1.2.3", Err(Refused::Denied)),
            ("10.2.0.1", Err(Refused::Private)),
            ("127.0.0.1", Ok(())),
            ("127.0.0.2", Err(Refused::Special)),
            ("1.1.1.1", Ok(())),
            ("8.8.8.8", Err(Refused::Denied)),
        ] {
            let ip = address.parse().expect("an address");
            assert_eq!(lists.check(ip, Reach::Public, true), expected, "{address}");
        }
        let dev = Egress::default().with_loopback();
        assert_eq!(dev.check("::1".parse().expect("an address"), Reach::Public, true), Ok(()));
    }

    #[test]
    fn what_is_internal() {
        for (address, internal) in [
            ("127.8.8.8", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.96.0.1", true),
            ("172.31.0.1", true),
            ("100.64.0.1", true),
            ("fd12::1", true),
            ("fe80::1", true),
            ("0.0.0.0", true),
            ("1.1.1.1", false),
            ("172.32.0.1", false),
            ("2606:4700::1111", false),
        ] {
            assert_eq!(is_internal(address.parse().expect("an address")), internal, "{address}");
        }
    }
}
