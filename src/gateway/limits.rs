//! What a principal (a user of an organization) may do here: requests a second, and streams at a time.
//!
//! Both are counted in this process alone, so a principal may do as much on each replica. What is kept in the database, open
//! turns and conversations, is counted there, for all replicas together (`store/principal.rs`).

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use crate::metrics::METRICS;
use crate::problem::Problem;
use crate::store::PrincipalLimits;
use crate::store::keys::Principal;
use crate::turn::cursor::{Cursor, CursorError};
use crate::turn::keys::ConversationId;

/// Principals whose rates are remembered; beyond it those are forgotten whose rates are as if they had never called.
const MAX_REMEMBERED: usize = 10_000;

/// What one principal may have; `None`: as much as it likes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrincipalQuotas {
    /// Requests a second, as many of them at once. A stream that is resumed is none.
    pub requests_per_second: Option<NonZeroU32>,
    /// Streams at a time on this replica.
    pub streams: Option<NonZeroU32>,
    /// Turns that are open at a time, on all replicas.
    pub open_turns: Option<NonZeroU32>,
    /// Conversations, on all replicas.
    pub conversations: Option<NonZeroU64>,
}

impl PrincipalQuotas {
    /// The limits that the store counts; `None` where it counts nothing.
    pub fn in_store(&self) -> Option<PrincipalLimits> {
        if self.open_turns.is_none() && self.conversations.is_none() {
            return None;
        }
        Some(PrincipalLimits {
            open_turns: self.open_turns.map_or(u32::MAX, NonZeroU32::get),
            conversations: self.conversations.map_or(u64::MAX, NonZeroU64::get),
            exact: false,
        })
    }
}

/// A principal's organization and user.
type Account = (String, String);
type Rates = RateLimiter<Account, HashMapStateStore<Account>, DefaultClock>;

/// Counts what principals do. Clones count together.
#[derive(Clone)]
pub struct PrincipalCounters {
    quotas: PrincipalQuotas,
    requests: Option<Arc<Rates>>,
    /// Streams that are resumed have a rate of their own: when a replica dies, a principal's streams all come back at once, and
    /// may have to again. As many a second as the principal may have in all.
    resumed: Option<Arc<Rates>>,
    streams: Arc<Mutex<HashMap<Account, u32>>>,
}

impl PrincipalCounters {
    pub fn new(quotas: PrincipalQuotas) -> Self {
        let rates = |limit: Option<NonZeroU32>| Some(Arc::new(RateLimiter::hashmap(Quota::per_second(limit?))));
        PrincipalCounters {
            quotas,
            requests: rates(quotas.requests_per_second),
            resumed: rates(quotas.requests_per_second.and(quotas.streams)),
            streams: Arc::default(),
        }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// 429, with the time after which the next one is served, if the principal has sent too many.
    pub fn count_request(&self, principal: &Principal, parts: &Parts) -> Result<(), Problem> {
        let (rates, what) = match resumes_stream(parts) {
            true => (&self.resumed, "resumed streams"),
            false => (&self.requests, "requests"),
        };
        let Some(rates) = rates else { return Ok(()) };
        if rates.len() >= MAX_REMEMBERED {
            rates.retain_recent();
        }
        rates.check_key(&account(principal)).map_err(|until| {
            let wait = until.wait_time_from(DefaultClock::default().now());
            let most = until.quota().burst_size();
            Problem::new(StatusCode::TOO_MANY_REQUESTS, format!("more than {most} {what} a second; try again later"))
                .with_retry_after(wait.as_secs() + 1)
        })
    }

    /// Counts a stream, which is open until the answer is dropped.
    ///
    /// # Errors
    /// 429 if the principal has as many as it may.
    pub fn open_stream(&self, principal: &Principal) -> Result<StreamPlace, Problem> {
        let account = account(principal);
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let open = streams.get(&account).copied().unwrap_or_default();
        if let Some(most) = self.quotas.streams.filter(|most| open >= most.get()) {
            return Err(Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("you have {most} open streams here, which is as many as a user may have; close some"),
            ));
        }
        streams.insert(account.clone(), open + 1);
        METRICS.client_streams.inc();
        Ok(StreamPlace { account, streams: self.streams.clone() })
    }

    /// The limits that the store counts.
    pub fn in_store(&self) -> Option<PrincipalLimits> {
        self.quotas.in_store()
    }
}

fn account(principal: &Principal) -> Account {
    (principal.organization.clone(), principal.user.clone())
}

/// Whether a request goes on with a stream that broke off: it names a cursor, and one that can be read.
fn resumes_stream(parts: &Parts) -> bool {
    if parts.method != Method::GET {
        return false;
    }
    let of_query = |wanted: &str| {
        let mut pairs = url::form_urlencoded::parse(parts.uri.query()?.as_bytes());
        pairs.find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned())
    };
    if parts.uri.path().starts_with("/openai/v1/responses/") {
        let number = of_query("starting_after").filter(|_| of_query("stream").as_deref() == Some("true"));
        return number.is_some_and(|number| number.parse::<u64>().is_ok());
    }
    if !parts.uri.path().ends_with("/events") {
        return false;
    }
    let header = parts.headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    let cursor = header.map(str::to_owned).or_else(|| of_query("after"));
    // Which conversation it belongs to is not known here, and found out later.
    cursor.is_some_and(|cursor| !matches!(Cursor::parse(&cursor, ConversationId::new()), Err(CursorError::Malformed)))
}

/// One open stream of a principal.
#[derive(Debug)]
pub struct StreamPlace {
    account: Account,
    streams: Arc<Mutex<HashMap<Account, u32>>>,
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        METRICS.client_streams.dec();
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = streams.get_mut(&self.account) {
            *open -= 1;
            if *open == 0 {
                streams.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;
    use crate::store::keys::KeyRole;

    fn user(name: &str) -> Principal {
        Principal { organization: "acme".into(), user: name.into(), role: KeyRole::User }
    }

    fn get(path: &str) -> Parts {
        Request::get(path).body(()).expect("a request").into_parts().0
    }

    fn counters() -> PrincipalCounters {
        PrincipalCounters::new(PrincipalQuotas {
            requests_per_second: NonZeroU32::new(2),
            streams: NonZeroU32::new(3),
            ..PrincipalQuotas::default()
        })
    }

    #[test]
    fn one_principals_rate_is_not_anothers() {
        let counters = counters();
        let ask = |name: &str| counters.count_request(&user(name), &get("/v1/agents"));
        assert!(ask("ada").is_ok() && ask("ada").is_ok());
        let refused = ask("ada").expect_err("the third within a second");
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(ask("eve").is_ok());
    }

    #[test]
    fn only_a_stream_with_a_cursor_is_resumed() {
        let cursor = Cursor::after(ConversationId::new(), 3).to_string();
        assert!(resumes_stream(&get(&format!("/v1/conversations/c/events?after={cursor}"))));
        let mut by_header = get("/v1/turns/t/events");
        by_header.headers.insert("last-event-id", cursor.parse().expect("a header"));
        assert!(resumes_stream(&by_header));
        assert!(!resumes_stream(&get("/v1/conversations/c/events")));
        assert!(!resumes_stream(&get("/v1/conversations/c/events?after=x")));
        assert!(!resumes_stream(&get(&format!("/v1/turns?after={cursor}"))));
        assert!(resumes_stream(&get("/openai/v1/responses/resp_1?stream=true&starting_after=7")));
        assert!(!resumes_stream(&get("/openai/v1/responses/resp_1?stream=true")));
        assert!(!resumes_stream(&get("/openai/v1/responses/resp_1?starting_after=7")));
    }

    #[test]
    fn a_stream_has_its_place_until_it_ends() {
        let counters = counters();
        let mut open: Vec<StreamPlace> = (0..3).map(|_| counters.open_stream(&user("ada")).expect("a place")).collect();
        assert!(counters.open_stream(&user("ada")).is_err());
        assert!(counters.open_stream(&user("eve")).is_ok());
        open.pop();
        open.push(counters.open_stream(&user("ada")).expect("a place again"));
        open.clear();
        assert!(counters.streams.lock().expect("not poisoned").is_empty());
    }
}
