//! Watches of distributed tables of Citus.
//!
//! The watch of a distributed table is a row of clip_search.watch_setting on the coordinator, and its triggers are created
//! there; Citus takes them to the shards, and along when a shard moves. The first trigger's second argument has the
//! settings: on the server of a shard an event trigger stores them as the watch of that shard (`shards`), which is then
//! like any other: its rows are embedded, queued and listed as failed there. The groups are on the coordinator (`group`).

pub mod distribute;
pub mod group;
pub mod shards;
