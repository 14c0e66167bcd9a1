//! Watched tables: clip_watch, its trigger, the queue, the background worker.

pub mod backfill;
mod checks;
mod columns;
pub mod define;
mod grouping;
mod queue;
pub mod reembed;
mod rows;
mod setting;
mod source;
mod swap;
mod trigger;
mod wakeup;
pub mod worker;
