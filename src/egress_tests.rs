use super::*;

fn egress(allow: &[&str], deny: &[&str]) -> Egress {
    let parse = |list: &[&str]| list.iter().map(|n| n.parse().expect("a net")).collect();
    Egress { allow: parse(allow), deny: parse(deny) }
}

#[test]
fn every_range_of_our_own_is_readable() {
    assert_eq!(nets(&SPECIAL).count(), SPECIAL.len());
    assert_eq!(nets(&PRIVATE).count(), PRIVATE.len());
    assert_eq!(nets(&LOOPBACK).count(), LOOPBACK.len());
    assert_eq!(nets(&LINK_LOCAL).count(), LINK_LOCAL.len());
}

#[test]
fn the_table_of_addresses() {
    use Refused::{Plain, Private, Special};
    // address; platforms over https and http; guardrails over https and http
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
        let found = [(Reach::Public, false), (Reach::Public, true), (Reach::Cluster, false), (Reach::Cluster, true)]
            .map(|(reach, plain)| none.check(ip, reach, plain));
        assert_eq!(found, expected, "{address}");
    }
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
        assert_eq!(outbound.post(&url).err(), Some(expected), "{url}");
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    for scheme in ["http", "https"] {
        let url = Url::parse(&format!("{scheme}://localhost:{port}/")).expect("a URL");
        let failed = outbound.post(&url).expect("a name").send().await.expect_err("refused");
        assert_eq!(refusal(&failed), Some(Refused::Special), "{failed:?}");
    }
    listener.set_nonblocking(true).expect("set");
    assert!(listener.accept().is_err(), "nobody connected");
}
