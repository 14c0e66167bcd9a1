//! Callbacks at regular intervals, in any stage of the work.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(20);

/// The progress of the work. `done` and `total` count within `stage`; a stage can occur more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// `reading` (counts rows), `comparing` (pairs) or `merging` (finished groups).
    pub stage: &'static str,
    pub done: u64,
    pub total: u64,
}

/// Calls back at regular intervals, in any stage of the work.
pub(super) struct Clock<'a> {
    pub(super) on_progress: &'a mut dyn FnMut(Progress),
    pub(super) last: Instant,
}

impl Clock<'_> {
    pub(super) fn tick(&mut self, stage: &'static str, done: usize, total: usize) {
        if self.last.elapsed() >= INTERVAL {
            (self.on_progress)(Progress { stage, done: done as u64, total: total as u64 });
            self.last = Instant::now();
        }
    }
}
