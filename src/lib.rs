//! PostgreSQL extension: CLIP image and text embeddings on the CPU inside the backend, for pgvector.
//!
//! This crate contains only code that uses PostgreSQL; the engine is `crates/clip`.

use pgrx::prelude::*;

mod answer;
mod cluster;
mod embed;
mod guc;
mod model;
mod pg;
mod watch;

::pgrx::pg_module_magic!(name, version);

/// Makes image libraries fail with an error when memory runs out; see [`clip::memory`].
#[global_allocator]
static ALLOCATOR: clip::memory::Allocator = clip::memory::Allocator(std::alloc::System);

extension_sql_file!("../sql/bootstrap.sql", bootstrap);
extension_sql_file!("../sql/key.sql", name = "key", creates = [Type(pg::text::Key)]);
extension_sql_file!(
    "../sql/watch.sql",
    name = "watch",
    requires = [
        pg::row_counts::clip_search::count_rows,
        watch::citus::group::clip_group,
        watch::citus::shards::clip_search::adopt_shard,
        watch::citus::shards::clip_search::distributed_table,
        watch::citus::shards::clip_search::distributed_watches,
        watch::citus::shards::clip_search::forget_rows,
        watch::citus::shards::clip_search::is_owned,
        watch::citus::shards::clip_search::is_placed_here,
        watch::citus::shards::clip_search::shards_here,
        watch::citus::shards::clip_search::shown_as,
        watch::define::set_watch,
        watch::unwatch::end_watch,
        watch::dropped::clip_search::forget_dropped_tables,
        watch::backfill::retry,
        watch::backfill::clip_search::backfill_begin,
        watch::backfill::clip_search::backfill_claim,
        watch::backfill::clip_search::backfill_failed,
        watch::backfill::clip_search::backfill_left,
        watch::backfill::clip_search::backfill_batch,
        watch::partitions::clip_search::settle_partitions,
        watch::query::clip_embed_text_for,
        watch::query::clip_embed_image_for,
        watch::reembed::clip_search::reembed_begin,
        watch::reembed::clip_search::reembed_goes_on,
        watch::reembed::clip_search::reembed_finish
    ]
);
extension_sql_file!("../sql/finalize.sql", finalize);

/// Runs when a process loads the library. The first call that needs a model loads it, or the postmaster preloads it;
/// the postmaster also starts the background worker.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    guc::leave_out_backtraces();
    guc::register();
    pg::register();
    model::stats::register();
    model::preload::run();
    watch::worker::register();
}
