//! The background worker, which embeds queued rows.
//!
//! One launcher per server starts a worker in each database that has queued rows. When the server starts, the launcher
//! checks every database; afterwards, a transaction that queues rows notifies it through shared memory. A worker ends
//! when its database has no queued watch left, and when DROP DATABASE, ALTER DATABASE … RENAME or CREATE DATABASE …
//! TEMPLATE waits for it. If max_worker_processes is too low for all databases, they take turns. The worker connects as
//! the bootstrap superuser and lends its privileges to no other code: every statement on a watched table runs as the
//! table's owner (`user_context`).

mod database;
mod launcher;
mod process;
mod round;
mod shares;

use std::time::Duration;

pub use launcher::register;

/// The time between two checks of the queue, in case a message was lost.
const NAP: Duration = Duration::from_secs(5);
