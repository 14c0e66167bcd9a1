//! PostgreSQL extension: CLIP image and text embeddings on the CPU inside the backend, for pgvector.
//!
//! Only what touches PostgreSQL is here; the engine is `crates/clip`.

use pgrx::prelude::*;

mod classify;
mod cluster;
mod collection;
mod embed;
mod engine;
mod error;
mod preload;
mod query;
mod recluster;
mod settings;
mod statements;
mod stats;
mod store;
mod vector;

::pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/bootstrap.sql", bootstrap);
extension_sql_file!("../sql/finalize.sql", finalize);

/// Runs when a process loads the library. Models are loaded by the first call that needs one, or by a
/// postmaster that is told to preload them.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::register();
    stats::register();
    preload::run();
}
