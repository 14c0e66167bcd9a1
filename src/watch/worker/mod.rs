//! The background worker, which embeds what is queued.
//!
//! One launcher for the server starts a worker in each database that has something for it. At the server's start it
//! looks into all of them; from then on a transaction that queues rows tells it, by shared memory. A worker ends when
//! its database has no queued watch any more, and when somebody wants to drop, rename or copy the database. Where there
//! are more databases than max_worker_processes leaves workers for, they take turns. It connects as the superuser that
//! the server was made with, and lends those rights to nobody: what touches a watched table runs as the table's owner
//! (`rights`).

mod database;
mod launcher;
mod process;
mod round;
mod shares;

use std::time::Duration;

pub use launcher::register;

/// Between two looks at the queue, should a message have been lost.
const NAP: Duration = Duration::from_secs(5);
