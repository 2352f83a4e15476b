//! Why a turn ended without a reply. Every part of Lastword that ends a turn asks here; nothing else picks a [`Reason`].
//!
//! The callers do the reading (of an exit status, a pod, a row) and the writing (of a report, a terminal). The
//! functions here take plain numbers, words and enums, and give a [`Failure`]: the reason that a client is told, and
//! the detail for operators. `tests.rs` holds one table over all of them.
//!
//! | what has happened | who asks | answered by |
//! |---|---|---|
//! | the agent program, or a model server, ended | the adapter in the worker | [`program`] |
//! | a model server refused a request, could not be asked, or gave no whole answer | the adapter in the worker | [`model`] |
//! | a worker called a turn done that has no output | the worker port | [`program::reply`] |
//! | a worker process ended | the runtime `process`, which reaps it | [`process`] |
//! | a container or pod ended, or is being stopped | the operator, which watches pods | [`container`], [`pod`] |
//! | a start is held up, was refused, or cannot be made | both runtimes, the operator | [`pod`], [`start`] |
//! | a lease ran out, or a worker left, or its death has no cause yet | the sweep, the store, the fleet | [`lease`] |
//! | somebody stops a worker on purpose or by a signal | the fleet, the operator, the worker itself | [`stop`] |
//! | a person, a limit or a rule ends the turn, or refuses it | gateway, operator, guard, store | [`rule`] |
//!
//! Several parts may report one death. The report that is committed first ends the turn. Its reason is picked by two
//! rankings. **By what one pod tells** ([`container::end`]); the first row that applies counts:
//!
//! | | knowledge | reason |
//! |---|---|---|
//! | 1 | the kubelet says that the kernel killed it for want of memory, or that it never started it | `OutOfMemory`, `StartFailed` |
//! | 2 | the pod is being stopped: deleted, evicted, preempted, its node shuts down | the stop's, since the stop made the container end |
//! | 3 | the failure that the adapter wrote to its termination log | that one's: it tells of the program, the exit code only of the adapter |
//! | 4 | an exit code or a signal alone | `WorkerExited`, since nobody knows more |
//!
//! **By what the lease has on record**, compared with what the caller that ends the lease has found, such as the
//! failure that a pod gives ([`lease::known_better`]); the first row that applies counts:
//!
//! | | the lease's record | reason |
//! |---|---|---|
//! | 1 | a stop, recorded by whoever stops the worker | the stop's, since the worker would have finished its turns otherwise |
//! | 2 | a stop that the worker only guessed from a signal; a proof was found that tells more than an exit | the proof's, since it beats a guess |
//! | 3 | a stop that the worker guessed; nothing but an exit or silence was found | the guessed one, since nobody knows more of the signal |
//! | 4 | the worker never connected; nothing but an exit was found | `StartFailed`, since no worker had begun to work |
//! | 5 | the worker did not connect within its time | that of what held its start up, if it was noted |
//! | 6 | anything else | that of what was found: the proof's; for silence `LeaseLapsed` or `StartFailed` |
//!
//! The reason that a worker reports for its turn is kept, also that of a worker which is not Lastword's own adapter.
//! There is one exception: a report that the program was killed, made while the worker is being stopped, gets the
//! stop's reason ([`stop::explained`]).

mod signal;

pub mod container;
pub mod lease;
pub mod model;
pub mod pod;
pub mod process;
pub mod program;
pub mod rule;
pub mod start;
pub mod stop;

#[cfg(test)]
mod tests;

#[cfg(doc)]
use super::{reason::Reason, terminal::Failure};
