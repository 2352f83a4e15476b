//! What loads the machine: `tests/run` runs these tests last, one at a time.

mod counted;
mod million;
mod plans;
mod scale;
