//! Watched tables: clip_watch, its trigger, the queue, the background worker.

pub mod backfill;
mod checks;
pub mod citus;
mod columns;
pub mod define;
pub mod dropped;
pub mod former;
mod grouping;
mod legacy;
mod notices;
pub mod partitions;
pub mod query;
mod queue;
pub mod reembed;
mod rows;
mod setting;
mod source;
mod swap;
mod tag_column;
mod tags;
mod trigger;
pub mod unwatch;
mod wakeup;
mod wanted;
mod work;
pub mod worker;
