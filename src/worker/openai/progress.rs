//! How far one turn's completion has come: shared by who asks for it, who reads it, and who may end it.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;

/// How far a completion has come.
#[derive(Debug)]
pub(super) struct AnswerProgress {
    /// When the completion has to be over.
    pub until: Instant,
    answered: AtomicBool,
    whole: AtomicBool,
}

impl AnswerProgress {
    pub(super) fn until(until: Instant) -> Self {
        AnswerProgress { until, answered: AtomicBool::new(false), whole: AtomicBool::new(false) }
    }

    /// The model has begun to answer.
    pub(super) fn note_answer(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// The answer is whole: nothing makes it a failure any more.
    pub(super) fn note_whole(&self) {
        self.whole.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }
}
