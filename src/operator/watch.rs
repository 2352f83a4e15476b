//! Watching our own resources: relists, a missing CRD and an API server that is away are all waited for.
//!
//! Objects are read as plain JSON, so that one that we cannot parse hides none of the others.

use std::time::Duration;

use futures::stream::{BoxStream, select_all};
use futures::{Stream, StreamExt};
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};

/// The longest pause before a watch is tried again: what statuses lag behind after an API server came back.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// A resource's API in each of these namespaces, or in all at once if none is named.
pub fn apis<K: Resource<DynamicType = ()>>(client: &Client, namespaces: &[String]) -> Vec<Api<DynamicObject>> {
    let resource = ApiResource::erase::<K>(&());
    if namespaces.is_empty() {
        return vec![Api::all_with(client.clone(), &resource)];
    }
    namespaces.iter().map(|n| Api::namespaced_with(client.clone(), n, &resource)).collect()
}

/// The objects of these APIs as they change; each event with the index of its API. It never ends.
pub fn watch(apis: Vec<Api<DynamicObject>>) -> impl Stream<Item = (usize, Event<DynamicObject>)> + Send {
    let streams = apis.into_iter().enumerate().map(|(index, api)| one(index, api));
    select_all(streams)
}

fn one(index: usize, api: Api<DynamicObject>) -> BoxStream<'static, (usize, Event<DynamicObject>)> {
    let what = api.resource_url().to_owned();
    // Lists are quorum reads (the default semantic): what is missing in one is gone.
    let events = watcher::watcher(api, watcher::Config::default()).backoff(Pause::default());
    let mut away = false;
    let heard = events.filter_map(move |event| {
        let event = match event {
            Ok(event) => {
                if std::mem::take(&mut away) {
                    tracing::info!("watching {what} again");
                }
                Some((index, event.modify(|object| object.managed_fields_mut().clear())))
            }
            Err(error) => {
                // Said once; the watch goes on by itself.
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!(%error, "cannot watch {what} now; trying again");
                }
                None
            }
        };
        std::future::ready(event)
    });
    heard.boxed()
}

/// Pauses between tries of a watch: from 200 ms doubled to 5 s, and from the start again after a success. (kube's default
/// grows to 30 s.)
pub struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Pause(FIRST_PAUSE)
    }
}

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        *self = Pause::default();
    }
}
