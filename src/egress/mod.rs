//! Where requests may go whose URL the author of an Agent gave. Such a URL must not lead to what only Lastword's own process
//! or node can reach, nor to what belongs to others in the same cluster.
//!
//! The addresses that are really connected to are checked, not the URL. So a name that points to an inner address does not
//! get past, and neither does one that changes its address between the check and the connection.
//!
//! | address | platforms ([`Reach::Public`]) | guardrails ([`Reach::Cluster`]) |
//! |---|---|---|
//! | loopback, link-local, unspecified, multicast, reserved, cloud metadata | refused | refused |
//! | private: 10/8, 172.16/12, 192.168/16, 100.64/10, 198.18/15, fc00::/7, fec0::/10 | refused | refused, but for a Service of the Agent's own namespace, or of one in `--egress-namespaces`: http and https |
//! | all others | https | https |
//! | in `--egress-deny`, and the API server's | refused | refused |
//! | in `--egress-allow`, and not in `--egress-deny` | http and https | http and https |
//!
//! Guardrails reach Services of their own namespace, since they are services beside the Agent as a rule, and whoever writes an
//! Agent runs pods in that namespace anyway. A Service is known by its name (`NAME.NAMESPACE.svc`): the namespace stands in it,
//! the cluster's DNS alone answers for `svc`, and one that is an alias of another name (`ExternalName`) is refused. An IPv6
//! address that stands for an IPv4 address is judged as that one.
//!
//! - `rules`: the tables, and the operator's lists
//! - `service`: the names of Services, and what they resolve to
//! - `outbound`: the client that keeps the rules

mod outbound;
mod rules;
mod service;

pub use outbound::{Outbound, explain, refusal};
pub use rules::{Egress, EgressArgs, Reach, Refused, is_internal};
