//! The table of worker processes: which run, and how those that ended came to their end.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};

use super::worker::WorkerProcess;
use crate::fleet::runtime::Death;
use crate::turn::keys::StartId;
use crate::turn::terminal::Failure;

/// The number of ended workers whose cause is remembered: for looks at workers whose death was already reported.
const MAX_REMEMBERED: usize = 1024;

/// Worker processes by their start. Shared by the runtime and the threads that reap.
pub(super) struct ProcessTable {
    workers: Mutex<HashMap<StartId, Arc<WorkerProcess>>>,
    causes: Mutex<Causes>,
    deaths: Mutex<Deaths>,
    /// The number of workers, for those who wait until none is left.
    count: watch::Sender<usize>,
}

/// Why the last workers ended, with the starts in the order of their end.
#[derive(Default)]
struct Causes {
    by_start: HashMap<StartId, Failure>,
    order: VecDeque<StartId>,
}

struct Deaths {
    sender: mpsc::UnboundedSender<Death>,
    /// The sender's own receiver, until the first subscriber has taken it: deaths before that are not lost.
    first: Option<mpsc::UnboundedReceiver<Death>>,
}

impl ProcessTable {
    pub fn new() -> Self {
        let (sender, first) = mpsc::unbounded_channel();
        ProcessTable {
            workers: Mutex::default(),
            causes: Mutex::default(),
            deaths: Mutex::new(Deaths { sender, first: Some(first) }),
            count: watch::Sender::new(0),
        }
    }

    /// Adds a worker, before anybody waits for its end.
    pub fn add(&self, start_id: StartId, worker: Arc<WorkerProcess>) {
        let mut workers = lock(&self.workers);
        workers.insert(start_id, worker);
        self.count.send_replace(workers.len());
    }

    /// Takes a worker out that was reaped, and pushes its death. The cause is remembered first, so that a look finds a
    /// worker among the running ones, or its cause, at any moment.
    pub fn remove(&self, start_id: StartId, cause: Failure) {
        let mut causes = lock(&self.causes);
        if causes.order.len() >= MAX_REMEMBERED
            && let Some(oldest) = causes.order.pop_front()
        {
            causes.by_start.remove(&oldest);
        }
        causes.order.push_back(start_id);
        causes.by_start.insert(start_id, cause.clone());
        drop(causes);
        // An error means that the fleet has ended, and that nobody receives deaths any more.
        let _ = lock(&self.deaths).sender.send(Death { start_id, cause: Some(cause) });
        let mut workers = lock(&self.workers);
        workers.remove(&start_id);
        self.count.send_replace(workers.len());
    }

    /// The worker of a start, if it is running.
    pub fn get(&self, start_id: StartId) -> Option<Arc<WorkerProcess>> {
        lock(&self.workers).get(&start_id).cloned()
    }

    /// Why the worker of a start ended, if it did and is remembered.
    pub fn cause_of(&self, start_id: StartId) -> Option<Failure> {
        lock(&self.causes).by_start.get(&start_id).cloned()
    }

    /// The running workers.
    pub fn all(&self) -> Vec<(StartId, Arc<WorkerProcess>)> {
        lock(&self.workers).iter().map(|(start_id, worker)| (*start_id, worker.clone())).collect()
    }

    /// The number of running workers, as it changes.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// The deaths from now on, and for the first caller those before. A later call ends the receiver of an earlier one.
    pub fn deaths(&self) -> mpsc::UnboundedReceiver<Death> {
        let mut deaths = lock(&self.deaths);
        deaths.first.take().unwrap_or_else(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            deaths.sender = sender;
            receiver
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
