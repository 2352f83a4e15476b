//! Services of the cluster: their names, and what the cluster's DNS says of them.

use std::io;
use std::net::SocketAddr;

use dns_lookup::{AddrInfoHints, SockType};

/// `AI_CANONNAME` of getaddrinfo(3): tell the name that aliases end at.
const CANONICAL_NAME: i32 = 2;

/// The namespace of a Service, or of a pod behind a headless one, by its name in the cluster: `NAME.NAMESPACE.svc`, also with
/// `cluster.local` behind. `None` for any other name: a shorter one means something else in each pod.
pub(super) fn namespace_of(name: &str) -> Option<&str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let name = name.strip_suffix(".cluster.local").unwrap_or(name);
    let (service, namespace) = name.strip_suffix(".svc")?.rsplit_once('.')?;
    (!service.is_empty() && !namespace.is_empty()).then_some(namespace)
}

/// What a name resolves to.
#[derive(Debug)]
pub(super) struct Found {
    pub addresses: Vec<SocketAddr>,
    /// The name that aliases end at, and that the search path has completed.
    pub canonical: Option<String>,
}

impl Found {
    /// Whether the addresses are those of this name itself, and not of another that it is an alias of.
    pub(super) fn is_itself(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        let rest = self.canonical.as_deref().and_then(|canonical| {
            let head = canonical.get(..name.len())?;
            head.eq_ignore_ascii_case(name).then(|| &canonical[name.len()..])
        });
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// Asks the system's resolver.
///
/// # Errors
/// Those of the resolver.
pub(super) async fn lookup(name: &str) -> io::Result<Found> {
    let name = name.to_owned();
    tokio::task::spawn_blocking(move || {
        let hints =
            AddrInfoHints { flags: CANONICAL_NAME, socktype: SockType::Stream.into(), ..AddrInfoHints::default() };
        let answers = dns_lookup::getaddrinfo(Some(&name), None, Some(hints)).map_err(io::Error::from)?;
        let mut found = Found { addresses: Vec::new(), canonical: None };
        for answer in answers {
            let answer = answer?;
            found.addresses.push(answer.sockaddr);
            // The first answer alone has it.
            found.canonical = found.canonical.or(answer.canonname);
        }
        Ok(found)
    })
    .await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_stands_for_another_name_is_found_out() {
        let itself = |canonical: &str, name: &str| {
            Found { addresses: Vec::new(), canonical: Some(canonical.into()) }.is_itself(name)
        };
        assert!(itself("rail.team.svc.cluster.local", "rail.team.svc"));
        assert!(itself("rail.team.svc.cluster.local", "rail.team.svc.cluster.local."));
        assert!(itself("RAIL.team.svc.example.com", "rail.team.svc"));
        assert!(!itself("secret.other.svc.cluster.local", "rail.team.svc"));
        assert!(!itself("rail.team.svcx", "rail.team.svc"));
        assert!(!itself("rail", "rail.team.svc"));
        assert!(!Found { addresses: Vec::new(), canonical: None }.is_itself("rail.team.svc"));
    }

    #[tokio::test]
    async fn the_system_tells_the_canonical_name() {
        let found = lookup("localhost").await.expect("this machine has a name");
        assert!(found.is_itself("localhost") && !found.addresses.is_empty(), "{found:?}");
    }
}
