//! The notices and warnings of clip_watch.

use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::{quote_identifier, quote_literal};

use crate::guc;
use crate::pg::catalog::Table;
use crate::pg::error::{SqlResult, report, warn};
use crate::pg::user_context::UserContext;
use crate::watch::backfill::{any_missing, any_ungrouped};
use crate::watch::columns::has_index;
use crate::watch::setting::Watch;
use crate::watch::shared_memory;
use crate::watch::tags;

/// Warns that PostgreSQL empties an unlogged table after a crash, without any notification.
pub fn unlogged(watch: &Watch) {
    let Some(collection) = &watch.collection else { return };
    warn(
        Error::new(Kind::Unsupported, format!("{} is unlogged: after a crash it is empty", watch.name()))
            .detail(format!("The clusters of collection \"{collection}\" are logged, and would still count its rows."))
            .hint(format!("After a crash, SELECT FROM clip_recluster({}).", quote_literal(collection))),
    );
}

/// Reports that `index => false` drops no index, or that every search reads the whole table if there is no index.
pub fn index_stays(watch: &Watch) -> SqlResult<()> {
    let table = Table::describe(watch.relation)?;
    let has_index = {
        let _user_context = UserContext::of_caller();
        Spi::connect_mut(|client| has_index(client, &table, &watch.embedding))?
    };
    let (what, way_out) = match has_index {
        true => ("keeps its index: index => false drops none", "DROP INDEX drops it."),
        false => ("has no index, so each search reads the whole table", "clip_watch(…, index => true) creates one."),
    };
    let message = format!("column \"{}\" of {} {what}", watch.embedding, table.name);
    report(Error::new(Kind::InvalidInput, message).hint(way_out)).report(PgLogLevel::NOTICE);
    Ok(())
}

pub fn grouping_ends(table: &Table, column: &str, collection: &str) {
    report(
        Error::new(Kind::InvalidInput, format!("rows of {} are not grouped any more", table.name))
            .detail(format!("Column \"{column}\" and collection \"{collection}\" stay as they are."))
            .hint(format!(
                "If nobody uses them any more: SELECT clip_drop_collection({}); ALTER TABLE {} DROP COLUMN {};",
                quote_literal(collection),
                table.name,
                quote_identifier(column)
            )),
    )
    .report(PgLogLevel::NOTICE);
}

/// Reports that `on_error => 'raise'` has no effect in queued mode: the row is written before it is embedded.
pub fn no_statement_fails(table: &Table) {
    report(
        Error::new(Kind::InvalidInput, format!("on_error => 'raise' has no effect on {} in queued mode", table.name))
            .detail(
                "A row is embedded after its statement; one that can't be embedded is listed in clip_search.failure.",
            )
            .hint("mode => 'immediate' embeds in the statement, which then fails."),
    )
    .report(PgLogLevel::NOTICE);
}

/// Reports the number of rows with an older vector that will be replaced.
pub fn former_vectors(table: &Table, rows: i64, queued: bool) {
    let name = &table.name;
    let (have, them, they) = match rows {
        0 => return,
        1 => (format!("1 row of {name} has a vector from before, which counts as pending"), "it", "it is"),
        _ => (format!("{rows} rows of {name} have vectors from before, which count as pending"), "them", "they are"),
    };
    let call = match queued {
        true => String::new(),
        false => format!("CALL clip_backfill({}) replaces {them}; ", quote_literal(&table.name)),
    };
    report(
        Error::new(Kind::InvalidInput, have)
            .hint(format!("{call}clip_watch(…, existing => 'keep') takes {them} over as {they}.")),
    )
    .report(PgLogLevel::NOTICE);
}

/// As above, for a distributed table: its servers have queued the rows.
pub fn former_vectors_in_shards(table: &Table) {
    let message = format!("rows of {} have vectors from before, which count as pending", table.name);
    let call = format!("CALL clip_backfill({}) replaces them", quote_literal(&table.name));
    report(
        Error::new(Kind::InvalidInput, message)
            .hint(format!("{call}; clip_watch(…, existing => 'keep') takes them over as they are.")),
    )
    .report(PgLogLevel::NOTICE);
}

/// Warns that queued rows wait for a worker that this server does not run.
pub fn no_worker(table: &Table) {
    let (why, way_out) = match (shared_memory::is_preloaded(), guc::worker()) {
        (false, _) => (
            "clip_search is not in shared_preload_libraries, so the server has not started one.",
            "Add it there and restart the server",
        ),
        (true, false) => ("clip_search.worker is off.", "Set it to on and reload the server's configuration"),
        (true, true) => return,
    };
    let call = format!("CALL clip_backfill({})", quote_literal(&table.name));
    warn(
        Error::new(Kind::Unsupported, format!("no background worker will embed the rows of {}", table.name))
            .detail(why)
            .hint(format!("{way_out}; until then {call} embeds what is queued.")),
    );
}

/// Reports existing rows that have no embedding, no cluster or no tags.
pub fn missing(watch: &Watch, table: &Table, told_of_groups: bool) -> SqlResult<()> {
    let lacking = match any_missing(watch)? {
        true => "embedding",
        false if !told_of_groups && any_ungrouped(watch)? => "cluster",
        false if tags::any_missing(watch)? => "tags",
        false => return Ok(()),
    };
    pgrx::notice!(
        "existing rows of {} have no {lacking} yet: CALL clip_backfill({});",
        table.name,
        quote_literal(&table.name)
    );
    Ok(())
}
