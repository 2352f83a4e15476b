//! Why a turn ended without a reply. Every part of Lastword that ends a turn asks here; nothing else picks a [`Reason`].
//!
//! The callers read (an exit status, a pod, a row) and write (a report, a terminal); the functions here only turn what was
//! read, as plain numbers, words and enums, into a [`Failure`]: the reason that a client is told, and the detail for
//! operators. `tests.rs` holds one table over all of them.
//!
//! | what has happened | who asks | answered by |
//! |---|---|---|
//! | the agent program, or a model server, ended | the adapter in the worker | [`program`] |
//! | a worker called a turn done that has no output | the worker port | [`program::reply`] |
//! | a worker process ended | the runtime `process`, which reaps it | [`process`] |
//! | a container or pod ended, or is being stopped | the operator, which watches pods | [`container`], [`pod`] |
//! | a start is held up, was refused, or cannot be made | both runtimes, the operator | [`pod`], [`start`] |
//! | a lease ran out, or a worker left, or its death has no cause yet | the sweep, the store, the fleet | [`lease`] |
//! | somebody stops a worker on purpose or by a signal | the fleet, the operator, the worker itself | [`stop`] |
//! | a person, a limit or a rule ends the turn, or refuses it | gateway, operator, guard, store | [`rule`] |
//!
//! Several of them may speak about one death. The first whose word is committed ends the turn; which reason it writes is
//! ranked twice. **What one pod tells** ([`container::end`]), the first that applies:
//!
//! | | knowledge | reason |
//! |---|---|---|
//! | 1 | the kubelet says that the kernel killed it for want of memory, or that it never started it | `OutOfMemory`, `StartFailed` |
//! | 2 | the pod is being stopped: deleted, evicted, preempted, its node shuts down | the stop's, since the container's end is its doing |
//! | 3 | the adapter's own words in the termination log | theirs: the exit code is only the adapter's, the words are of the program |
//! | 4 | an exit code or a signal alone | `WorkerExited`: nobody knows more |
//!
//! **What the lease has on record** against what its ender found, such as a pod's telling ([`lease::known_better`]):
//!
//! | | the lease's record | reason |
//! |---|---|---|
//! | 1 | a stop that its author recorded | the stop's: what a worker leaves behind after it was told to stop is the stop's doing |
//! | 2 | a stop that the worker only guessed from a signal, and a proof of more than a mere exit | the proof's: a proof beats a guess |
//! | 3 | a stop that the worker guessed, and nothing but an exit or silence | the guess: it is all that is known of the signal |
//! | 4 | the worker never connected, and all that was found is an exit | `StartFailed`: there was nobody who could have exited |
//! | 5 | the worker never connected within its time | what held its start up, if that was noted |
//! | 6 | nothing of these | what was found: the proof's, or for silence `LeaseLapsed` or `StartFailed` |
//!
//! A worker's own word on its turn stands as it says, that of a worker which somebody else wrote too. There is one exception:
//! that its program was killed by a signal is, while the worker is being stopped, that stop's doing ([`stop::explained`]).

mod signal;

pub mod container;
pub mod lease;
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
