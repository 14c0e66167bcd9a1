//! PostgreSQL extension: CLIP image and text embeddings on the CPU inside the backend, for pgvector.
//!
//! Only what touches PostgreSQL is here; the engine is `crates/clip`.

use pgrx::prelude::*;

mod citus;
mod classify;
mod cluster;
mod collection;
mod embed;
mod engine;
mod error;
mod fill;
mod preload;
mod query;
mod recluster;
mod reembed;
mod relation;
mod rights;
mod settings;
mod statements;
mod stats;
mod store;
mod text;
mod trigger;
mod vector;
mod watch;
mod worker;

::pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/bootstrap.sql", bootstrap);
extension_sql_file!(
    "../sql/watch.sql",
    name = "watch",
    requires = [
        watch::clip_watch,
        watch::clip_unwatch,
        fill::clip_retry,
        fill::clip_search::backfill_begin,
        fill::clip_search::backfill_claim,
        fill::clip_search::backfill_work,
        reembed::clip_search::reembed_begin,
        reembed::clip_search::reembed_goes_on,
        reembed::clip_search::reembed_finish
    ]
);
extension_sql_file!("../sql/finalize.sql", finalize);

/// Runs when a process loads the library. Models are loaded by the first call that needs one, or by a
/// postmaster that is told to preload them; a postmaster starts the background worker, too.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::register();
    stats::register();
    preload::run();
    worker::register();
}
