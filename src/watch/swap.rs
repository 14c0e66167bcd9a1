//! The swap at the end of clip_reembed: the new column takes the old one's place, name, indexes and groups.

use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, quote_identifier, quote_literal};

use crate::cluster::collection::drop_rows;
use crate::cluster::statements;
use crate::cluster::tables::Store;
use crate::model::loaded;
use crate::pg::catalog::{self, Lock, Table};
use crate::pg::error::{SqlResult, report, sql_error};
use crate::pg::spi::get;
use crate::pg::spi::spi;
use crate::pg::user_context::{UserContext, as_extension};
use crate::watch::backfill::enqueue_missing;
use crate::watch::embed_entries::{Terms, embed_entries};
use crate::watch::queue;
use crate::watch::setting::Watch;
use crate::watch::trigger::install::drop_triggers;

/// The maximum number of rows that are embedded while the table is locked for the swap. CLIP ViT-B/32 takes two seconds
/// for them.
const LAST_ROWS: usize = 16;

/// The pairs of columns that are swapped: the old column's name and the new column's.
fn pairs<'a>(watch: &'a Watch, next: &'a Watch) -> Vec<(&'a str, &'a str)> {
    let mut pairs = vec![(watch.embedding.as_str(), next.embedding.as_str())];
    pairs.extend(watch.cluster.as_deref().zip(next.cluster.as_deref()));
    pairs.extend(watch.tags.as_deref().zip(next.tags.as_deref()));
    pairs
}

/// Refuses the swap if other objects depend on a column that will be dropped: they would be dropped as well, or prevent
/// it.
pub fn check_dependents(watch: &Watch) -> SqlResult<()> {
    let _user_context = UserContext::of_caller();
    Spi::connect_mut(|client| {
        let query = include_str!("sql/dependents.sql");
        let columns: Vec<String> = [Some(&watch.embedding), watch.cluster.as_ref(), watch.tags.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let rows = client.update(query, None, &[watch.relation.into(), columns.into()]).map_err(spi)?;
        let found = rows
            .map(|row| Ok((get::<String>(&row, 1)?.unwrap_or_default(), get::<String>(&row, 2)?)))
            .collect::<SqlResult<Vec<_>>>()?;
        let Some((first, _)) = found.first() else { return Ok(()) };
        // The objects that must be created again, in PostgreSQL's words.
        let defined = found.iter().map(|(name, definition)| match definition {
            Some(definition) => format!("{name}: {definition}"),
            None => name.clone(),
        });
        Err(sql_error(
            PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
            format!("the embedding or cluster column of {} can't be replaced: {first} depends on it", watch.name()),
        )
        .set_detail(defined.collect::<Vec<_>>().join("; "))
        .set_hint(
            "Drop it, call clip_reembed, and create it again; an index on the column alone, without an expression or \
             a condition, can stay.",
        ))
    })
}

/// An index: its name, its definition with %I in place of the column, and its comment.
type Index = (String, String, Option<String>);

/// Indexes of a column.
fn indexes(client: &mut SpiClient<'_>, relation: pg_sys::Oid, column: &str) -> SqlResult<Vec<Index>> {
    let query = include_str!("sql/indexes.sql");
    let rows = client.update(query, None, &[relation.into(), column.into()]).map_err(spi)?;
    rows.map(|row| Ok((get(&row, 1)?.unwrap_or_default(), get(&row, 2)?.unwrap_or_default(), get(&row, 3)?))).collect()
}

/// Locks the table's indexes: an index can be renamed while its table is locked.
fn lock_indexes(client: &mut SpiClient<'_>, relation: pg_sys::Oid) -> SqlResult<()> {
    let query = "SELECT indexrelid FROM pg_catalog.pg_index WHERE indrelid = $1 ORDER BY indexrelid";
    let rows = client.update(query, None, &[relation.into()]).map_err(spi)?;
    let found = rows.map(|row| get::<pg_sys::Oid>(&row, 1)).collect::<SqlResult<Vec<_>>>()?;
    found.into_iter().flatten().for_each(|index| catalog::lock(index, Lock::AccessExclusive));
    Ok(())
}

/// The indexes of the old columns that the new columns lack, with the names of the old indexes.
fn missing_indexes(client: &mut SpiClient<'_>, watch: &Watch, next: &Watch) -> SqlResult<Vec<(String, String)>> {
    let mut missing = Vec::new();
    for (old, new) in pairs(watch, next) {
        let mut there: Vec<String> = indexes(client, watch.relation, new)?.into_iter().map(|index| index.1).collect();
        for (name, shape, _) in indexes(client, watch.relation, old)? {
            match there.iter().position(|other| *other == shape) {
                Some(place) => drop(there.remove(place)),
                None => missing.push((name, shape.replacen("%I", &quote_identifier(new), 1))),
            }
        }
    }
    Ok(missing)
}

/// Creates these indexes while the new column is empty, so that no writer has to wait for a build.
pub fn make_indexes(watch: &Watch, next: &Watch) -> SqlResult<()> {
    let table = Table::describe(watch.relation)?;
    let _user_context = UserContext::of_caller();
    Spi::connect_mut(|client| {
        for (_, shape) in missing_indexes(client, watch, next)? {
            table.define(client, &format!("CREATE INDEX ON {} {shape}", table.name))?;
        }
        Ok(())
    })
}

/// Completes clip_reembed if the last rows can be embedded now. Otherwise returns false, and writers continue until the
/// next call. The table is locked against writers.
pub fn finish(watch: &Watch, next: &Watch) -> SqlResult<bool> {
    let store = Store::open(c"clip_reembed()");
    let table = Table::describe(watch.relation)?;
    if !embed_last_rows(next)? {
        return Ok(false);
    }
    check_dependents(watch)?;
    {
        let _caller = UserContext::of_caller();
        Spi::connect_mut(|client| swap_columns(client, &table, watch, next))?;
    }
    let _extension = UserContext::of_extension();
    swap_settings(&store, watch, next)?;
    tell_of_model(&table, watch, next);
    Ok(true)
}

/// Embeds the remaining rows if they are few. Returns false if they are too many, or if the worker is embedding some of
/// them and waits for the table.
fn embed_last_rows(next: &Watch) -> SqlResult<bool> {
    enqueue_missing(next)?;
    let left = || {
        as_extension(|client| {
            let query = "SELECT id FROM clip_search.watch_queue WHERE watch = $1 LIMIT $2";
            let rows = client.update(query, None, &[next.id.into(), (LAST_ROWS as i64 + 1).into()]).map_err(spi)?;
            rows.map(|row| Ok(get(&row, 1)?.unwrap_or_default())).collect::<SqlResult<Vec<i64>>>()
        })
    };
    let last = left()?;
    if last.len() > LAST_ROWS {
        return Ok(false);
    }
    if let Some(failure) = embed_entries(&last, Terms::ALL)?.stuck.into_values().next() {
        return Err(failure.into_report());
    }
    Ok(left()?.is_empty())
}

/// Gives the new columns the old ones' names, indexes and properties. The old columns are dropped.
fn swap_columns(client: &mut SpiClient<'_>, table: &Table, watch: &Watch, next: &Watch) -> SqlResult<()> {
    if let Some((name, _)) = missing_indexes(client, watch, next)?.into_iter().next() {
        return Err(sql_error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("index \"{name}\" has no like on the new column"),
        )
        .set_hint("It was made meanwhile. Call clip_reembed again, which makes it."));
    }
    drop_triggers(client, watch.relation, &table.name, next.id)?;
    lock_indexes(client, watch.relation)?;
    let schema = table.name.split_at(table.name.len() - quote_identifier(&table.plain_name).len()).0;
    for (old, new) in pairs(watch, next) {
        let indexes = indexes(client, watch.relation, old)?;
        let twins = twins(client, watch.relation, old, new)?;
        let properties = like(client, table, watch.relation, old)?;
        let (name, column, other) = (&table.name, quote_identifier(old), quote_identifier(new));
        let mut statements = vec![
            format!("ALTER TABLE {name} DROP COLUMN {column}"),
            format!("ALTER TABLE {name} RENAME COLUMN {other} TO {column}"),
        ];
        statements.extend(properties);
        for ((name, _, comment), twin) in indexes.iter().zip(&twins) {
            let (name, twin) = (quote_identifier(name), quote_identifier(twin));
            statements.push(format!("ALTER INDEX {schema}{twin} RENAME TO {name}"));
            if let Some(comment) = comment {
                statements.push(format!("COMMENT ON INDEX {schema}{name} IS {}", quote_literal(comment)));
            }
        }
        for statement in statements {
            table.define(client, &statement)?;
        }
    }
    Ok(())
}

/// The old watch takes over the new one's model, failures and clusters. The new watch is dropped.
fn swap_settings(store: &Store, watch: &Watch, next: &Watch) -> SqlResult<()> {
    let names = watch.collection.as_deref().zip(next.collection.as_deref());
    if let Some((old, new)) = names {
        store.lock_exclusive(old, true);
        store.lock_exclusive(new, true);
    }
    Spi::connect_mut(|client| {
        let run = |client: &mut SpiClient<'_>, query: &str| {
            client.update(query, None, &[watch.id.into(), next.id.into()]).map(drop).map_err(spi)
        };
        queue::forget_all(client, watch.id)?;
        run(client, "DELETE FROM clip_search.watch_failure WHERE watch = $1 AND $2 > 0")?;
        run(client, "UPDATE clip_search.watch_failure SET watch = $1 WHERE watch = $2")?;
        run(
            client,
            "UPDATE clip_search.watch_setting w SET model = n.model FROM clip_search.watch_setting n WHERE w.id = $1 AND n.id = $2",
        )?;
        run(client, "DELETE FROM clip_search.watch_setting WHERE id = $2 AND $1 > 0")?;
        if let Some((old, new)) = names {
            statements::clear(client, old)?;
            for part in ["cluster_sum", "cluster_change", "cluster_code"] {
                let query = format!("UPDATE clip_search.{part} SET collection = $1 WHERE collection = $2");
                client.update(&query, None, &[old.into(), new.into()]).map_err(spi)?;
            }
            let query = "UPDATE clip_search.collection_setting o SET dimensions = n.dimensions, model = n.model \
                 FROM clip_search.collection_setting n WHERE o.name = $1 AND n.name = $2";
            client.update(query, None, &[old.into(), new.into()]).map_err(spi)?;
            drop_rows(client, new)?;
        }
        Ok::<_, ErrorReport>(())
    })
}

fn tell_of_model(table: &Table, watch: &Watch, next: &Watch) {
    let model = loaded::base_name(&next.model);
    let message = format!("column \"{}\" of {} holds vectors of model \"{model}\" now", watch.embedding, table.name);
    report(Error::new(Kind::InvalidInput, message).detail("Searches must embed their queries by that model.").hint(
        format!(
            "Search by clip_embed_text_for({}, …), which knows the model, or set the default: \
                 ALTER DATABASE … SET clip_search.model = {}, or ALTER ROLE.",
            quote_literal(&table.name),
            quote_literal(&next.model)
        ),
    ))
    .report(PgLogLevel::NOTICE);
}

/// For each index of the old column, the new column's index with the same definition.
fn twins(client: &mut SpiClient<'_>, relation: pg_sys::Oid, old: &str, new: &str) -> SqlResult<Vec<String>> {
    let mut there = indexes(client, relation, new)?;
    let mut twins = Vec::new();
    for (_, shape, _) in indexes(client, relation, old)? {
        if let Some(place) = there.iter().position(|other| other.1 == shape) {
            twins.push(there.remove(place).0);
        }
    }
    Ok(twins)
}

/// Statements that give the new column, once it has the old one's name, the old one's comment, storage, compression,
/// statistics target, NOT NULL, grants and n_distinct.
fn like(client: &mut SpiClient<'_>, table: &Table, relation: pg_sys::Oid, column: &str) -> SqlResult<Vec<String>> {
    let query = include_str!("sql/column_properties.sql");
    let rows =
        client.update(query, None, &[relation.into(), column.into(), table.name.as_str().into()]).map_err(spi)?;
    rows.map(|row| Ok(get::<String>(&row, 1)?.unwrap_or_default())).collect()
}
