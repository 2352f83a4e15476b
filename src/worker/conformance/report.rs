//! What the checks found, printed line by line.

/// Counts the checks by their results, and prints a line for each.
#[derive(Default)]
pub(super) struct CheckReport {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
}

impl CheckReport {
    /// Enters a check that was made; the error says what was expected. Returns whether it passed.
    pub(super) fn tell(&mut self, name: &str, result: Result<(), String>) -> bool {
        match &result {
            Ok(()) => {
                self.passed += 1;
                println!("ok      {name}");
            }
            Err(expected) => {
                self.failed += 1;
                println!("FAILED  {name}: {expected}");
            }
        }
        result.is_ok()
    }

    /// Enters a check that was left out.
    pub(super) fn skip(&mut self, name: &str, why: &str) {
        self.skipped += 1;
        println!("SKIPPED {name}: {why}");
    }
}
