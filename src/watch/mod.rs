//! Watched tables: clip_watch, its trigger, the queue, the background worker.

pub mod backfill;
mod checks;
mod columns;
pub mod define;
pub mod dropped;
mod grouping;
mod hard_limit;
mod queue;
pub mod reembed;
mod rows;
mod setting;
mod source;
mod swap;
mod trigger;
mod wakeup;
pub mod worker;
