//! Watches on Lastword's own resources. A watch outlives whatever the API server does: it lists again when it has lost its
//! place, and waits while the CRD is missing or the API server is away.
//!
//! Objects are read as plain JSON, so that one object that this version cannot parse hides none of the others.

use std::time::Duration;

use futures::stream::{BoxStream, select_all};
use futures::{Stream, StreamExt};
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};

use crate::backoff::doubled;
use crate::every::Outage;
use crate::metrics::METRICS;

/// The pause before a watch that failed is tried again, at first and at the most. The longest one is also how far statuses
/// lag behind after the API server came back; kube's own default grows to 30 s.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A resource's API in each of these namespaces, or one API for all namespaces if none is named.
pub fn apis<K: Resource<DynamicType = ()>>(client: &Client, namespaces: &[String]) -> Vec<Api<DynamicObject>> {
    let resource = ApiResource::erase::<K>(&());
    if namespaces.is_empty() {
        return vec![Api::all_with(client.clone(), &resource)];
    }
    namespaces.iter().map(|n| Api::namespaced_with(client.clone(), n, &resource)).collect()
}

/// Watches these APIs at once. Each event comes with the index of its API. The stream never ends.
pub fn watch(apis: Vec<Api<DynamicObject>>) -> impl Stream<Item = (usize, Event<DynamicObject>)> + Send {
    let streams = apis.into_iter().enumerate().map(|(index, api)| one(index, api));
    select_all(streams)
}

fn one(index: usize, api: Api<DynamicObject>) -> BoxStream<'static, (usize, Event<DynamicObject>)> {
    let url = api.resource_url().to_owned();
    // Lists are quorum reads (kube's default), not reads of a cache: an object that a list lacks does not exist.
    let events = watcher::watcher(api, watcher::Config::default()).backoff(WatchBackoff::default());
    let up = METRICS.watches_up.with_label_values(&[resource(&url)]);
    let mut outage = Outage::new("the watch on Lastword's resources");
    let heard = events.filter_map(move |event| {
        let event = match event {
            Ok(event) => {
                outage.is_over();
                up.set(1);
                Some((index, event.modify(|object| object.managed_fields_mut().clear())))
            }
            Err(error) => {
                // kube's watcher begins again by itself.
                up.set(0);
                outage.goes_on(&format_args!("{url}: {error}"));
                None
            }
        };
        std::future::ready(event)
    });
    heard.boxed()
}

/// The resource that a URL lists: its last segment. Watches of several namespaces count as one, which the last event decides.
fn resource(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

/// The pauses of a watch that fails: 200 ms, doubled after each failure up to 5 s, and from the start again after a success.
#[derive(Debug, Default)]
pub struct WatchBackoff {
    failures: u32,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        Some(doubled(FIRST_PAUSE, LONGEST_PAUSE, self.failures))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        *self = WatchBackoff::default();
    }
}
