//! What loads the machine: `tests/run` runs these tests last, one at a time.

mod chaos;
