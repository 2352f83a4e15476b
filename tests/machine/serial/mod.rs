//! What loads the machine, or measures how long something takes: `tests/run` runs these tests last, one at a time.

mod chaos;
pub mod failures;
mod readers;
