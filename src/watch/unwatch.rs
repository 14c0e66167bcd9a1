//! clip_unwatch.

use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, quote_identifier, quote_literal};

use crate::cluster::collection::drop_rows;
use crate::cluster::tables::{self, Store};
use crate::pg::catalog::{self, Lock, Table};
use crate::pg::citus;
use crate::pg::error::{SqlResult, given, report};
use crate::pg::regclass::Regclass;
use crate::pg::spi::get;
use crate::pg::spi::spi;
use crate::pg::text::Text;
use crate::pg::user_context::{UserContext, as_extension};
use crate::pg::vector_column::Storage;
use crate::watch::citus::distribute;
use crate::watch::columns::alter;
use crate::watch::queue;
use crate::watch::setting::{Watch, is_shard, refuse_worker, table_of};
use crate::watch::trigger::install::{drop_stale, drop_triggers, stale};

#[pg_extern(volatile, parallel_unsafe, name = "clip_unwatch")]
fn end_watch(
    relation: Option<Regclass>,
    embedding: default!(Option<Text<'_>>, "NULL"),
    keep_columns: default!(Option<bool>, "NULL"),
    drop_columns: default!(Option<bool>, "false"),
) -> SqlResult<()> {
    let embedding = embedding.map(Text::str);
    let drop_columns = given("drop_columns", drop_columns)?;
    if let Some(keep_columns) = keep_columns {
        report(
            Error::new(Kind::InvalidInput, "argument \"keep_columns\" is deprecated and goes in the next version")
                .hint("Columns, index and collection stay unless you say drop_columns => true."),
        )
        .report(PgLogLevel::NOTICE);
        if drop_columns && keep_columns {
            return Err(report(Error::new(Kind::InvalidInput, "both keep_columns and drop_columns are true")));
        }
    }
    call(relation, embedding, drop_columns || keep_columns == Some(false))
}

pub fn call(relation: Option<Regclass>, embedding: Option<&str>, drops: bool) -> SqlResult<()> {
    tables::check_writable(c"clip_unwatch()");
    let oid = table_of(relation)?;
    let watch = match Watch::one_of_table(oid, embedding) {
        // A table that was restored without its watch still has the triggers.
        Err(_) if !Watch::is_any_of(oid)? && !stale(oid)?.is_empty() => {
            // On a worker of Citus the triggers are needed: the coordinator has their watch.
            refuse_worker(&Table::describe(oid)?)?;
            return drop_stale(&Table::locked(oid, Lock::AccessExclusive)?);
        }
        watch => watch?,
    };
    if watch.home.as_ref().is_some_and(|home| home.parent.is_some()) {
        let shard = {
            let _user_context = UserContext::of_caller();
            Spi::connect(|client| citus::shard(client, watch.relation))?
        };
        if let Some((parent, _)) = shard {
            return Err(is_shard(watch.name(), parent));
        }
    }
    // Wait here for sessions that write the table: no lock is held yet that they could wait for.
    let watch = watch.locked(Lock::AccessExclusive)?;
    drop_stale(&Table::describe(watch.relation)?)?;
    // First drop the column with which clip_reembed was to replace it.
    if let Some(replacement) = Watch::replacing(watch.id)? {
        unwatch(&replacement, true)?;
    }
    // The objects that clip_reembed has created are useless without the watch.
    unwatch(&watch, drops || watch.replaces.is_some())
}

/// Ends a watch. `drops`: also drops the columns, index and collection that it added.
pub fn unwatch(watch: &Watch, drops: bool) -> SqlResult<()> {
    let store = Store::open(c"clip_unwatch()");
    let _session = watch.is_distributed().then(distribute::session);
    // If Citus keeps the table on the coordinator, the table is altered and not its shard: Citus passes definitions on
    // from a table to its shards, but not back.
    let kept = {
        let _user_context = UserContext::of_caller();
        Spi::connect(|client| citus::kept(client, watch.relation))?
    };
    let table = Table::locked(kept.map_or(watch.relation, |(_, parent)| parent), Lock::AccessExclusive)?;
    let Added { columns, index, collection } = forget_setting(watch)?;
    if drops && columns.is_empty() && index.is_none() && !collection {
        nothing_is_dropped(watch, &table);
    }
    {
        let _caller = UserContext::of_caller();
        Spi::connect_mut(|client| {
            drop_triggers(client, table.oid, &table.name, watch.id)?;
            if !drops {
                return Ok(());
            }
            if let Some(index) = index {
                drop_index(client, &table, &index)?;
            }
            columns.iter().try_for_each(|column| drop_column(client, &table, watch, column))
        })?;
    }
    distribute::drop_departures(watch)?;
    if let Some(name) = watch.collection.as_deref().filter(|_| collection && drops) {
        let _user_context = UserContext::of_extension();
        store.lock_exclusive(name, true);
        Spi::connect_mut(|client| drop_rows(client, name))?;
        pgrx::notice!("clip_search: collection \"{name}\" is dropped");
    }
    tell_of_collections(&table)
}

/// The objects that `clip_watch` created for a watch.
struct Added {
    columns: Vec<String>,
    index: Option<String>,
    collection: bool,
}

/// Deletes the settings of a watch, its queue and its failures. Returns what it had added.
fn forget_setting(watch: &Watch) -> SqlResult<Added> {
    as_extension(|client| {
        let query = "DELETE FROM clip_search.watch_setting WHERE id = $1 \
                 RETURNING added_columns::text[], added_index::text, added_collection";
        let rows = client.update(query, None, &[watch.id.into()]).map_err(spi)?;
        let row = rows.into_iter().next();
        let added = match &row {
            Some(row) => Added {
                columns: get::<Vec<Option<String>>>(row, 1)?.unwrap_or_default().into_iter().flatten().collect(),
                index: get::<String>(row, 2)?,
                collection: get::<bool>(row, 3)?.unwrap_or_default(),
            },
            None => Added { columns: Vec::new(), index: None, collection: false },
        };
        queue::forget_lists(client, watch.id)?;
        Ok(added)
    })
}

/// Says that `drop_columns` drops nothing, because every object existed before the watch.
fn nothing_is_dropped(watch: &Watch, table: &Table) {
    let found: Vec<String> = kept_columns(watch).map(|c| format!("\"{c}\"")).collect();
    let (noun, them) = if found.len() == 1 { ("column", "it") } else { ("columns", "them") };
    let drops: Vec<String> = kept_columns(watch).map(|c| format!("DROP COLUMN {}", quote_identifier(c))).collect();
    let message = format!(
        "clip_search: nothing of {} is dropped: clip_watch found {noun} {} and did not create {them}",
        table.name,
        found.join(", ")
    );
    report(Error::new(Kind::InvalidInput, message).hint(format!(
        "ALTER TABLE {} {}; drops {them}.",
        table.name,
        drops.join(", ")
    )))
    .report(PgLogLevel::NOTICE);
}

fn drop_index(client: &mut SpiClient<'_>, table: &Table, index: &str) -> SqlResult<()> {
    let query = "SELECT c.oid FROM pg_catalog.pg_index i \
         JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = $1 AND c.relname = $2";
    let find = |client: &mut SpiClient<'_>| -> SqlResult<Option<pg_sys::Oid>> {
        let rows = client.update(query, Some(1), &[table.oid.into(), index.into()]).map_err(spi)?;
        Ok(rows.into_iter().next().map(|row| get::<pg_sys::Oid>(&row, 1)).transpose()?.flatten())
    };
    let Some(found) = find(client)? else { return Ok(()) };
    // An index can be renamed while its table is locked.
    catalog::lock(found, Lock::AccessExclusive);
    if find(client)? == Some(found)
        && let Some(name) = catalog::qualified_name(found)
    {
        table.define(client, &format!("DROP INDEX {name}"))?;
        pgrx::notice!("clip_search: index {name} is dropped");
    }
    Ok(())
}

/// Drops a column that the watch added, unless another column has its name by now.
fn drop_column(client: &mut SpiClient<'_>, table: &Table, watch: &Watch, column: &String) -> SqlResult<()> {
    let Some(there) = table.column(client, column)? else { return Ok(()) };
    let ours = match *column == watch.embedding {
        true => Storage::of(there.kind).is_some(),
        false if Some(column) == watch.tags.as_ref() => there.kind == pg_sys::TEXTARRAYOID,
        false => there.kind == pg_sys::INT8OID,
    };
    if there.generated || !ours {
        pgrx::warning!("column \"{column}\" of {} is not the one that was added, and stays", table.name);
    } else {
        alter(client, table, &format!("DROP COLUMN {}", quote_identifier(column)))?;
        pgrx::notice!("clip_search: column \"{column}\" of {} is dropped", table.name);
    }
    Ok(())
}

/// The columns that a watch writes.
fn kept_columns(watch: &Watch) -> impl Iterator<Item = &String> {
    [Some(&watch.embedding), watch.cluster.as_ref(), watch.tags.as_ref()].into_iter().flatten()
}

/// Reports collections whose members are in columns of the table that no watch keeps in sync, such as after
/// `reset => '{cluster}'`.
/// Their clusters do not follow the rows.
fn tell_of_collections(table: &Table) -> SqlResult<()> {
    let _user_context = UserContext::of_extension();
    let names = Spi::connect_mut(|client| {
        let query = "SELECT s.name FROM clip_search.collection_setting s WHERE s.members::oid = $1 \
             AND NOT EXISTS (SELECT FROM clip_search.watch_setting w WHERE w.collection = s.name) ORDER BY s.name";
        let rows = client.update(query, None, &[table.oid.into()]).map_err(spi)?;
        rows.map(|row| Ok(get::<String>(&row, 1)?.unwrap_or_default())).collect::<SqlResult<Vec<_>>>()
    })?;
    let Some(first) = names.first() else { return Ok(()) };
    let shown: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let (noun, stays) = if names.len() == 1 { ("collection", "stays") } else { ("collections", "stay") };
    report(
        Error::new(
            Kind::InvalidInput,
            format!("{noun} {} of {} {stays}, but will not follow the rows any more", shown.join(", "), table.name),
        )
        .hint(format!(
            "SELECT clip_drop_collection({}) drops it; clip_watch with the same columns takes it up again.",
            quote_literal(first)
        )),
    )
    .report(PgLogLevel::NOTICE);
    Ok(())
}
