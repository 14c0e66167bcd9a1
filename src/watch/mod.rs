//! Watched tables: clip_watch, its trigger, the queue, the background worker.

mod arguments;
pub mod backfill;
mod checks;
pub mod citus;
mod columns;
pub mod define;
pub mod dropped;
mod embed_entries;
pub mod existing_groups;
mod grouping;
mod legacy;
mod notices;
pub mod partitions;
pub mod query;
mod queue;
pub mod reembed;
mod rows;
mod setting;
mod shared_memory;
mod source;
mod swap;
mod tag_column;
mod tags;
mod trigger;
pub mod unwatch;
pub mod worker;
