//! Places for work that an organization's Agents cause, shared fairly: there are so many in all, an organization has so many
//! of them at most, and a place that becomes free goes to the organizations that wait in turn, however many questions each
//! of them has waiting. So whoever asks a thousand questions delays another organization by one of them.
//!
//! The queue has no limit of its own: who waits here guards a turn, and turns are limited where they are submitted.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The places of one kind. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Places {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// The most places that one organization has at a time.
    each: usize,
    /// How many places an organization has; one without any has no entry.
    held: HashMap<String, usize>,
    /// The organizations that wait, in the order of their turn, each with those who ask for it. No entry is empty.
    waiting: VecDeque<(String, VecDeque<oneshot::Sender<Place>>)>,
}

/// A place; it is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    organization: String,
}

impl Places {
    /// `total` places, of which one organization has `each` at most.
    pub(super) fn new(total: usize, each: usize) -> Self {
        let state = State { free: total, each, held: HashMap::new(), waiting: VecDeque::new() };
        Places { state: Arc::new(Mutex::new(state)) }
    }

    /// Waits for a place. Whoever stops waiting (drops the future) leaves the queue.
    pub(super) async fn take(&self, organization: &str) -> Place {
        loop {
            let (grant, granted) = oneshot::channel();
            self.change(|state| state.enqueue(organization, grant));
            // A sender that was dropped ungranted does not occur; if it did, asking again would be right.
            if let Ok(place) = granted.await {
                return place;
            }
        }
    }

    /// Changes the state, then hands out what is free. The places are sent outside of the lock, since one whose taker has just
    /// gone is given back at once.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let granted = {
            let mut state = self.state();
            change(&mut state);
            state.grant()
        };
        for (organization, grant) in granted {
            drop(grant.send(Place { places: self.clone(), organization }));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn enqueue(&mut self, organization: &str, grant: oneshot::Sender<Place>) {
        match self.waiting.iter_mut().find(|(waiting, _)| waiting == organization) {
            Some((_, grants)) => {
                grants.retain(|grant| !grant.is_closed());
                grants.push_back(grant);
            }
            None => self.waiting.push_back((organization.to_owned(), VecDeque::from([grant]))),
        }
    }

    /// Counts out places as long as one is free and somebody may have it.
    fn grant(&mut self) -> Vec<(String, oneshot::Sender<Place>)> {
        let mut granted = Vec::new();
        while self.free > 0 {
            let may = |(organization, _): &(String, _)| self.held.get(organization).is_none_or(|n| *n < self.each);
            let Some(next) = self.waiting.iter().position(may) else { break };
            let Some((organization, mut grants)) = self.waiting.remove(next) else { break };
            let taker = loop {
                match grants.pop_front() {
                    Some(grant) if grant.is_closed() => {}
                    other => break other,
                }
            };
            let Some(grant) = taker else { continue };
            if !grants.is_empty() {
                // Behind all others: it has had its turn.
                self.waiting.push_back((organization.clone(), grants));
            }
            self.free -= 1;
            *self.held.entry(organization.clone()).or_default() += 1;
            granted.push((organization, grant));
        }
        granted
    }

    fn give_back(&mut self, organization: &str) {
        self.free += 1;
        if let Some(held) = self.held.get_mut(organization) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(organization);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.change(|state| state.give_back(&self.organization));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// The place, if there is one at once.
    fn at_once(places: &Places, organization: &str) -> Option<Place> {
        places.take(organization).now_or_never()
    }

    #[test]
    fn one_organization_never_has_all_places() {
        let places = Places::new(3, 2);
        let mine: Vec<Place> = (0..2).filter_map(|_| at_once(&places, "loud")).collect();
        assert_eq!(mine.len(), 2);
        assert!(at_once(&places, "loud").is_none());
        let other = at_once(&places, "quiet").expect("a place");
        assert!(at_once(&places, "third").is_none(), "all are taken");
        drop(other);
        assert!(at_once(&places, "loud").is_none(), "also if places are free");
        drop(mine);
        assert!(at_once(&places, "loud").is_some());
    }

    #[tokio::test]
    async fn organizations_come_in_turn_however_many_questions_each_has() {
        let places = Places::new(1, 1);
        let mut held = at_once(&places, "loud").expect("a place");
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let ask = |organization: &'static str| {
            let (places, tell) = (places.clone(), tell.clone());
            let mut asking = Box::pin(async move { drop(tell.send((organization, places.take(organization).await))) });
            assert!(asking.as_mut().now_or_never().is_none(), "it waits");
            tokio::spawn(asking)
        };
        let mut asking: Vec<_> = (0..50).map(|_| ask("loud")).collect();
        asking.push(ask("quiet"));
        asking.push(ask("quiet"));
        let mut order = Vec::new();
        for _ in 0..4 {
            drop(held);
            let (organization, place) = told.recv().await.expect("a place");
            order.push(organization);
            held = place;
        }
        assert_eq!(order, ["loud", "quiet", "loud", "quiet"]);
        asking.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[test]
    fn whoever_stops_waiting_keeps_no_place() {
        let places = Places::new(1, 1);
        let held = at_once(&places, "a").expect("a place");
        for _ in 0..10 {
            assert!(at_once(&places, "a").is_none() && at_once(&places, "b").is_none());
        }
        // One has been granted the place, and goes before it looks.
        let mut late = Box::pin(places.take("b"));
        assert!(late.as_mut().now_or_never().is_none());
        drop(held);
        drop(late);
        assert!(at_once(&places, "c").is_some());
        assert!(places.state().held.is_empty());
    }
}
