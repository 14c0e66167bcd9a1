//! Watches of distributed tables of Citus.
//!
//! The watch of a distributed table is a row of clip_search.watch_setting on the coordinator, and its triggers are
//! created there. Citus creates the triggers on the shards, and on the new server when a shard moves. The second
//! argument of the first trigger has the settings: on the server of a shard, an event trigger stores them as the watch
//! of that shard (`shards`). That watch is like any other: its rows are embedded, queued and listed as failed on its
//! server. The groups are on the coordinator (`group`).

pub mod distribute;
pub mod group;
pub mod shards;
