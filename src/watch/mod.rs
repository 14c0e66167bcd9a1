//! Watched tables: clip_watch, its trigger, the queue, the background worker.

pub mod define;
pub mod queue;
pub mod reembed;
pub mod trigger;
pub mod worker;
