//! PostgreSQL extension: CLIP image and text embeddings on the CPU inside the backend, for pgvector.
//!
//! Only what touches PostgreSQL is here; the engine is `crates/clip`.

use pgrx::prelude::*;

mod cluster;
mod embed;
mod guc;
mod model;
mod pg;
mod watch;

::pgrx::pg_module_magic!(name, version);

/// Lets libraries' work on images fail with an error where memory runs out; see [`clip::memory`].
#[global_allocator]
static ALLOCATOR: clip::memory::Allocator = clip::memory::Allocator(std::alloc::System);

extension_sql_file!("../sql/bootstrap.sql", bootstrap);
extension_sql_file!(
    "../sql/watch.sql",
    name = "watch",
    requires = [
        watch::define::clip_watch,
        watch::define::clip_unwatch,
        watch::queue::clip_retry,
        watch::queue::clip_search::backfill_begin,
        watch::queue::clip_search::backfill_claim,
        watch::queue::clip_search::backfill_work,
        watch::reembed::clip_search::reembed_begin,
        watch::reembed::clip_search::reembed_goes_on,
        watch::reembed::clip_search::reembed_finish
    ]
);
extension_sql_file!("../sql/finalize.sql", finalize);

/// Runs when a process loads the library. Models are loaded by the first call that needs one, or by a
/// postmaster that is told to preload them; a postmaster starts the background worker, too.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    guc::register();
    model::stats::register();
    model::preload::run();
    watch::worker::register();
}
