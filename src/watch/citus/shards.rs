//! The watches of shards, on the servers that have them.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, quote_literal};

use crate::cluster::tables;
use crate::pg::catalog::{Lock, Table, lock};
use crate::pg::citus;
use crate::pg::error::SqlResult;
use crate::pg::regclass::Regclass;
use crate::pg::spi::{get, own_schema, spi};
use crate::pg::text::Text;
use crate::pg::user_context::{UserContext, as_extension, current_role, has_rights_of, owner_of_table};
use crate::watch::backfill::{enqueue_existing, enqueue_missing};
use crate::watch::queue;
use crate::watch::setting::{Watch, table_of};
use crate::watch::shared_memory;

/// A trigger of clip_watch that carries settings for shards.
struct FoundTrigger {
    table: pg_sys::Oid,
    settings: String,
}

fn find_trigger(client: &mut SpiClient<'_>, trigger: pg_sys::Oid) -> SqlResult<Option<FoundTrigger>> {
    let query = format!(
        "SELECT t.tgrelid, pg_catalog.convert_from(pg_catalog.substr(t.tgargs, z.n + 1, pg_catalog.length(t.tgargs) - z.n - 1), 'UTF8') \
         FROM pg_catalog.pg_trigger t CROSS JOIN LATERAL (SELECT position(pg_catalog.decode('00', 'hex') IN t.tgargs)) AS z (n) \
         WHERE t.oid = $1 AND t.tgnargs = 2 AND t.tgfoid = {}::regprocedure::oid",
        quote_literal(format!("{}.clip_watch_row()", own_schema(client)?))
    );
    let rows = client.update(&query, Some(1), &[trigger.into()]).map_err(spi)?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    let found = get::<pg_sys::Oid>(&row, 1)?.zip(get::<String>(&row, 2)?);
    Ok(found.map(|(table, settings)| FoundTrigger { table, settings }))
}

/// Stores the settings that the trigger of a shard carries as the watch of that shard.
fn adopt(trigger: pg_sys::Oid) -> SqlResult<()> {
    // Every CREATE TRIGGER in the database runs this. Without Citus it costs one cached look-up and no query.
    if !citus::is_installed() {
        return Ok(());
    }
    let found = {
        let _user_context = UserContext::of_caller();
        Spi::connect_mut(|client| {
            let Some(found) = find_trigger(client, trigger)? else { return Ok::<_, ErrorReport>(None) };
            Ok(citus::shard(client, found.table)?.map(|(_, shard)| (found, shard)))
        })?
    };
    // The table is not a shard: it is distributed, or a restored dump has created it without shards. clip_watch handles
    // it.
    let Some((FoundTrigger { table, settings }, shard)) = found else { return Ok(()) };
    // Any role with the privilege to create triggers can create this one, but the settings must come from the owner.
    Table::describe(table)?.check_owner()?;
    let (id, is_here, existing, made_by) = as_extension(|client| {
        let is_here = citus::is_active_here(client, shard)?;
        let arguments = [table.into(), settings.as_str().into(), is_here.into()];
        let rows = client.update(include_str!("sql/adopt.sql"), None, &arguments).map_err(spi)?;
        let id = rows.first().get::<i64>(1).map_err(spi)?.unwrap_or_default();
        let query = "SELECT $1::jsonb ->> 'existing', $1::jsonb ->> 'made_by'";
        let rows = client.update(query, None, &[settings.as_str().into()]).map_err(spi)?;
        let (existing, made_by) = rows.first().get_two::<String, String>().map_err(spi)?;
        Ok::<_, ErrorReport>((id, is_here, existing, made_by))
    })?;
    shared_memory::wake_at_commit();
    let Some(watch) = Watch::by_id(id)?.filter(|_| is_here) else { return Ok(()) };
    match existing.as_deref() {
        Some("keep") => queue::keep_existing(id)?,
        Some(_) => drop(enqueue_existing(&watch, made_by.as_deref())?),
        None => {}
    }
    if watch.queued {
        enqueue_missing(&watch)?;
    }
    Ok(())
}

/// Queues the rows without an embedding of shards that Citus has moved here: the queue and the failures of the former
/// server don't move. Returns whether other shards are still being moved.
pub fn settle_arrived() -> SqlResult<bool> {
    let arriving: Vec<(i64, pg_sys::Oid)> = as_extension(|client| {
        let query = "SELECT w.id, w.relation::oid FROM clip_search.watch_setting w \
             WHERE (pg_catalog.to_jsonb(w) -> 'home' ->> 'arriving')::boolean ORDER BY w.id";
        let rows = client.update(query, None, &[]).map_err(spi)?;
        rows.map(|row| Ok((get(&row, 1)?.unwrap_or_default(), get(&row, 2)?.unwrap_or(pg_sys::Oid::INVALID)))).collect()
    })?;
    let mut waits = false;
    for (id, table) in arriving {
        let is_here = as_extension(|client| match citus::shard(client, table)? {
            Some((_, shard)) => citus::is_active_here(client, shard),
            None => Ok(false),
        })?;
        if !is_here {
            waits = true;
            continue;
        }
        lock(table, Lock::AccessShare);
        let Some(watch) = Watch::by_id(id)? else { continue };
        enqueue_missing(&watch)?;
        as_extension(|client| {
            let query =
                "UPDATE clip_search.watch_setting SET home = home - 'arriving' || '{\"moved\": true}' WHERE id = $1";
            client.update(query, None, &[id.into()]).map(drop).map_err(spi)
        })?;
    }
    Ok(waits)
}

/// The distributed table of a shard.
fn distributed_table_of(shard: pg_sys::Oid) -> SqlResult<Option<pg_sys::Oid>> {
    let _user_context = UserContext::of_caller();
    Ok(Spi::connect(|client| citus::shard(client, shard))?.map(|(table, _)| table))
}

#[pg_schema]
pub mod clip_search {
    use super::*;

    /// Called by the event trigger on CREATE TRIGGER.
    #[pg_extern(volatile, strict, parallel_unsafe)]
    fn adopt_shard(trigger: pg_sys::Oid) -> SqlResult<()> {
        adopt(trigger)
    }

    /// Whether Citus sends queries on a watched shard to this server.
    #[pg_extern(volatile, strict, parallel_unsafe)]
    fn is_placed_here(relation: Regclass) -> SqlResult<bool> {
        let _user_context = UserContext::of_caller();
        Spi::connect(|client| match citus::shard(client, relation.0)? {
            Some((_, shard)) => citus::is_active_here(client, shard),
            None => Ok(false),
        })
    }

    /// The shards of a distributed table's watch that are on this server and that the caller owns.
    #[pg_extern(volatile, strict, parallel_unsafe)]
    fn shards_here(
        parent: i64,
        distributed: Regclass,
    ) -> Result<
        TableIterator<'static, (name!(watch, i64), name!(relation, pg_sys::Oid), name!(embedding, String))>,
        ErrorReport,
    > {
        let watches =
            as_extension(|client| Watch::find(client, "(h.home ->> 'parent')::bigint = $1", &[parent.into()]))?;
        let mut found = Vec::new();
        for watch in watches {
            let owner = owner_of_table(watch.relation);
            // A trigger on a shard of another table may claim to belong to the same watch.
            if owner.is_some_and(|owner| has_rights_of(current_role(), owner))
                && distributed_table_of(watch.relation)? == Some(distributed.0)
                && watch.is_worked_on_here()?
            {
                found.push((watch.id, watch.relation, watch.embedding));
            }
        }
        Ok(TableIterator::new(found))
    }

    /// Deletes the queue and the failures of a shard before all of its rows are removed. Does nothing unless the caller
    /// owns the shard.
    #[pg_extern(volatile, strict, parallel_unsafe)]
    fn forget_rows(shard: Regclass) -> SqlResult<bool> {
        tables::check_writable(c"TRUNCATE");
        if !is_owned(shard) {
            return Ok(false);
        }
        as_extension(|client| {
            let watches =
                Watch::find(client, "w.relation::oid = $1 AND h.home ->> 'parent' IS NOT NULL", &[shard.0.into()])?;
            watches.iter().try_for_each(|watch| queue::forget_lists(client, watch.id))
        })?;
        Ok(true)
    }

    /// The watches of a distributed table that the caller owns. If there are any, the call fails inside a transaction
    /// block.
    #[pg_extern(volatile, parallel_unsafe)]
    fn distributed_watches(relation: Option<Regclass>, embedding: Option<Text<'_>>) -> SqlResult<Vec<i64>> {
        if !citus::is_installed() {
            return Ok(Vec::new());
        }
        let watches = Watch::of_table(table_of(relation)?, embedding.map(Text::str))?;
        let found: Vec<i64> = watches.iter().filter(|watch| watch.is_distributed()).map(|watch| watch.id).collect();
        if !found.is_empty() {
            tables::check_may_commit("clip_backfill()")?;
        }
        Ok(found)
    }

    /// Whether the current role has the privileges of a table's owner. Citus hides shards in pg_class.
    #[pg_extern(stable, strict, parallel_safe)]
    fn is_owned(relation: Regclass) -> bool {
        owner_of_table(relation.0).is_some_and(|owner| has_rights_of(current_role(), owner))
    }

    /// The owner of a table. Citus hides shards in pg_class.
    #[pg_extern(stable, strict, parallel_safe, sql = false)]
    fn owner_of(relation: Regclass) -> Option<pg_sys::Oid> {
        owner_of_table(relation.0)
    }

    /// The distributed table of a shard.
    #[pg_extern(volatile, strict, parallel_unsafe)]
    fn distributed_table(relation: Regclass) -> SqlResult<Option<pg_sys::Oid>> {
        distributed_table_of(relation.0)
    }

    /// For the shard of a table that Citus keeps on the coordinator: that table, which users name. Any other table is
    /// returned unchanged.
    #[pg_extern(stable, strict, parallel_unsafe)]
    fn shown_as(relation: Regclass) -> SqlResult<Option<Regclass>> {
        if !citus::is_installed() {
            return Ok(Some(relation));
        }
        let _user_context = UserContext::of_caller();
        Spi::connect(|client| match citus::shard(client, relation.0)? {
            Some((table, _)) if citus::place(client, table)? == Some(citus::Place::Coordinator) => {
                Ok(Some(Regclass(table)))
            }
            _ => Ok(Some(relation)),
        })
    }
}
