//! Partitions of a watched table: the effect of TRUNCATE, DETACH, ATTACH and DROP of a single partition on groups.
//!
//! None of these fires a row trigger, so the rows would remain members of their groups. clip_search.watch_partition
//! lists the partitions. Each has a trigger for TRUNCATE; after each CREATE TABLE and ALTER TABLE, an event trigger
//! compares the table with the listed partitions.

use std::cell::Cell;

use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiHeapTupleData, quote_identifier};

use crate::cluster::assign::leave;
use crate::cluster::tables::check_writable;
use crate::pg::catalog::{self, Lock};
use crate::pg::error::{SqlResult, report, warn};
use crate::pg::owners_table::OwnersTable;
use crate::pg::restore;
use crate::pg::spi::{get, own_schema, spi};
use crate::pg::transaction::RollbackList;
use crate::pg::user_context::{as_extension, key_form};
use crate::pg::vector::{self, Vector};
use crate::watch::backfill::{enqueue_missing, key_of};
use crate::watch::setting::Watch;
use crate::watch::shared_memory;

/// The number of rows that are read at a time.
const ROWS: i64 = 1000;

thread_local! {
    /// Watches whose whole table the current TRUNCATE empties.
    static EMPTIED: RollbackList<i64> = RollbackList::new();
    /// The table whose rows are being removed from groups that never counted them.
    static UNCOUNTED: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::Oid::INVALID) };
}

/// Whether the database has the table, which 0.2.0 lacked.
fn is_known() -> bool {
    catalog::has_column(c"clip_search", c"watch_partition", c"watch")
}

/// The trigger on each partition, before TRUNCATE.
fn trigger_name(watch: i64) -> String {
    format!("zz_clip_partition_{watch}")
}

/// Whether rows of a table are leaving groups that never counted them.
pub fn is_uncounted(table: pg_sys::Oid) -> bool {
    UNCOUNTED.get() == table
}

/// Before TRUNCATE of a watched table, or of one of its partitions.
pub fn before_truncate(watch: &Watch, table: pg_sys::Oid) -> SqlResult<()> {
    if table == watch.relation {
        EMPTIED.with(|emptied| emptied.push(watch.id));
        return Ok(());
    }
    // The TRUNCATE of the whole table will empty the groups.
    let all = EMPTIED.with(|emptied| emptied.take(|id| *id == watch.id));
    match all {
        Some(id) => EMPTIED.with(|emptied| emptied.push(id)),
        None => forget_rows(watch, table)?,
    }
    Ok(())
}

/// After TRUNCATE of the whole table.
pub fn after_truncate(watch: i64) {
    EMPTIED.with(|emptied| emptied.retain(|id| *id != watch));
}

/// Removes the rows of a partition from their groups and from the list of failures.
fn forget_rows(watch: &Watch, table: pg_sys::Oid) -> SqlResult<()> {
    let Some(table) = OwnersTable::find_only(table) else { return Ok(()) };
    let name = table.shown();
    let embedding = quote_identifier(&watch.embedding);
    if let (Some(collection), Some(cluster)) = (&watch.collection, &watch.cluster) {
        let cluster = quote_identifier(cluster);
        let query = format!(
            "SELECT {cluster}, {embedding}::{}.vector FROM ONLY {name} WHERE {cluster} IS NOT NULL AND {embedding} IS NOT NULL",
            vector::schema()
        );
        table.as_owner(|client| {
            let member = |row: &SpiHeapTupleData<'_>| Ok(get::<i64>(row, 1)?.zip(get::<Vector>(row, 2)?));
            client.each_batch(&query, ROWS, member, |members| {
                for (cluster, vector) in members.into_iter().flatten() {
                    leave(cluster, vector, Some(collection), Some(watch.owner))?;
                }
                Ok(())
            })
        })?;
    }
    let query =
        format!("SELECT {} FROM ONLY {name} WHERE {embedding} IS NULL AND ({})", key_of(watch), watch.has_source());
    table.as_owner(|client| {
        key_form();
        let key = |row: &SpiHeapTupleData<'_>| get::<String>(row, 1);
        client.each_batch(&query, ROWS, key, |keys| {
            as_extension(|client| {
                let query = "DELETE FROM clip_search.watch_failure WHERE watch = $1 \
                     AND key IN (SELECT k.key::text[] FROM unnest($2::text[]) AS k (key))";
                client.update(query, None, &[watch.id.into(), keys.into()]).map(drop).map_err(spi)
            })
        })
    })
}

/// A partition in the catalogue and in the watch's list.
struct Partition {
    oid: pg_sys::Oid,
    is_known: bool,
    is_there: bool,
    has_trigger: bool,
}

/// Records that a watch lists its partitions, by a row for the table itself; returns whether the row is new. Watches of
/// 0.2.0 have no list.
fn adopt(watch: &Watch) -> SqlResult<bool> {
    as_extension(|client| {
        let query = "INSERT INTO clip_search.watch_partition (watch, relation) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING 1";
        Ok(!client.update(query, None, &[watch.id.into(), watch.relation.into()]).map_err(spi)?.is_empty())
    })
}

/// Whether a watch has a list of its partitions.
fn is_adopted(watch: &Watch) -> SqlResult<bool> {
    as_extension(|client| {
        let query = "SELECT 1 FROM clip_search.watch_partition WHERE watch = $1 AND relation = $2";
        let rows = client.update(query, Some(1), &[watch.id.into(), watch.relation.into()]).map_err(spi)?;
        Ok(!rows.is_empty())
    })
}

/// Updates a watch's list of partitions. A partition that is not listed was added since the last update, so no group
/// counts its rows.
pub fn settle(watch: &Watch) -> SqlResult<()> {
    if !is_known() {
        return Ok(());
    }
    // The dump itself contains the list of partitions and the triggers on them.
    if restore::is_restoring() && !is_adopted(watch)? {
        return Ok(());
    }
    let is_new = adopt(watch)?;
    let trigger = trigger_name(watch.id);
    let partitions = as_extension(|client| {
        let arguments = [watch.id.into(), watch.relation.into(), trigger.as_str().into()];
        let rows = client.update(include_str!("sql/partitions.sql"), None, &arguments).map_err(spi)?;
        rows.map(|row| {
            Ok(Partition {
                oid: get(&row, 1)?.unwrap_or(pg_sys::Oid::INVALID),
                is_known: get(&row, 2)?.unwrap_or_default(),
                is_there: get(&row, 3)?.unwrap_or_default(),
                has_trigger: get(&row, 4)?.unwrap_or_default(),
            })
        })
        .collect::<SqlResult<Vec<_>>>()
    })?;
    let mut attached = false;
    for Partition { oid, is_known, is_there, has_trigger } in partitions {
        if !is_there {
            catalog::lock(oid, Lock::AccessShare);
            forget_rows(watch, oid)?;
        } else if !is_known && !is_new {
            attached |= ungroup(watch, oid)?;
        }
        as_extension(|client| {
            let query = match (is_known, is_there) {
                (true, false) => "DELETE FROM clip_search.watch_partition WHERE watch = $1 AND relation = $2",
                (false, _) => "INSERT INTO clip_search.watch_partition (watch, relation) VALUES ($1, $2)",
                (true, true) => "",
            };
            if !query.is_empty() {
                client.update(query, None, &[watch.id.into(), oid.into()]).map_err(spi)?;
            }
            // A listed partition has its trigger, or a restore will create the trigger.
            let lock = match (is_there, has_trigger) {
                _ if is_known && is_there => return Ok(()),
                (false, true) => Lock::AccessExclusive,
                (true, false) => Lock::ShareRowExclusive,
                _ => return Ok(()),
            };
            catalog::lock(oid, lock);
            let Some(name) = catalog::qualified_name(oid) else { return Ok(()) };
            let statement = match is_there {
                false => format!("DROP TRIGGER {trigger} ON {name}"),
                true => format!(
                    "CREATE TRIGGER {trigger} BEFORE TRUNCATE ON {name} FOR EACH STATEMENT EXECUTE FUNCTION {}.clip_watch_row('{}')",
                    own_schema(client)?,
                    watch.id
                ),
            };
            catalog::define(client, oid, &name, &statement)
        })?;
    }
    if attached && watch.queued {
        enqueue_missing(watch)?;
        shared_memory::wake_at_commit();
    }
    Ok(())
}

/// Drops the triggers on partitions at the end of a watch.
pub fn forget(watch: i64) -> SqlResult<()> {
    if !is_known() {
        return Ok(());
    }
    let trigger = trigger_name(watch);
    as_extension(|client| {
        let query = "DELETE FROM clip_search.watch_partition WHERE watch = $1 RETURNING relation::oid";
        let rows = client.update(query, None, &[watch.into()]).map_err(spi)?;
        let partitions = rows.map(|row| get::<pg_sys::Oid>(&row, 1)).collect::<SqlResult<Vec<_>>>()?;
        for oid in partitions.into_iter().flatten() {
            let there = "SELECT 1 FROM pg_catalog.pg_trigger WHERE tgrelid = $1 AND tgname = $2";
            if !client.update(there, Some(1), &[oid.into(), trigger.as_str().into()]).map_err(spi)?.is_empty() {
                catalog::lock(oid, Lock::AccessExclusive);
                let Some(name) = catalog::qualified_name(oid) else { continue };
                catalog::define(client, oid, &name, &format!("DROP TRIGGER {trigger} ON {name}"))?;
            }
        }
        Ok(())
    })
}

/// Sets the group ids of a newly attached partition to NULL, because no group has counted its rows. Returns whether it
/// has rows to embed or to group.
fn ungroup(watch: &Watch, table: pg_sys::Oid) -> SqlResult<bool> {
    let Some(table) = OwnersTable::find_only(table) else { return Ok(false) };
    let name = table.shown();
    table.as_owner(|client| {
        let has_rows = !client.update(&format!("SELECT 1 FROM ONLY {name}"), Some(1), &[])?.is_empty();
        if has_rows {
            let query =
                format!("SELECT count(*) FROM ONLY {name} WHERE {} IS NOT NULL", quote_identifier(&watch.embedding));
            tell_of_vectors(name, client.update(&query, None, &[])?.first().get::<i64>(1).map_err(spi)?, watch);
        }
        let Some(cluster) = watch.cluster.as_deref().filter(|_| has_rows) else { return Ok(has_rows) };
        let column = quote_identifier(cluster);
        let query = format!("UPDATE ONLY {name} SET {column} = NULL WHERE {column} IS NOT NULL");
        let cleared = {
            let _uncounted = Uncounted::of(table.oid);
            client.update(&query, None, &[])?.len() as i64
        };
        if cleared > 0 {
            let message = match cleared {
                1 => format!("1 row of {name} had a cluster that did not count it"),
                _ => format!("{cleared} rows of {name} had a cluster that did not count them"),
            };
            report(Error::new(Kind::InvalidInput, message).detail(format!(
                "Column \"{cluster}\" is set to NULL; clip_backfill, or the background worker, groups such rows."
            )))
            .report(PgLogLevel::NOTICE);
        }
        Ok(true)
    })
}

/// Reports vectors of unknown origin, which are kept: partitions are detached and attached for maintenance, and it
/// would take hours to embed all rows again afterwards.
fn tell_of_vectors(name: &str, rows: Option<i64>, watch: &Watch) {
    let (have, they) = match rows {
        None | Some(0) => return,
        Some(1) => (format!("1 row of {name} has a vector from before, which is kept"), "it is"),
        Some(rows) => (format!("{rows} rows of {name} have vectors from before, which are kept"), "they are"),
    };
    report(Error::new(Kind::InvalidInput, have).hint(format!(
        "If {they} of another model, or the source has changed since: UPDATE {name} SET {} = NULL; clip_backfill embeds such rows.",
        quote_identifier(&watch.embedding)
    )))
    .report(PgLogLevel::NOTICE);
}

/// During its lifetime, rows of a table leave no group.
struct Uncounted(pg_sys::Oid);

impl Uncounted {
    fn of(table: pg_sys::Oid) -> Self {
        Self(UNCOUNTED.replace(table))
    }
}

impl Drop for Uncounted {
    fn drop(&mut self) {
        UNCOUNTED.set(self.0);
    }
}

/// Warns of collections that still count rows of dropped partitions; the vectors of these rows are lost, so they can't
/// be subtracted.
pub fn tell_of_dropped(client: &mut SpiClient<'_>) -> SqlResult<()> {
    if !is_known() {
        return Ok(());
    }
    let rows = client.update(include_str!("sql/dropped_partitions.sql"), None, &[]).map_err(spi)?;
    let collections = rows.map(|row| get::<String>(&row, 1)).collect::<SqlResult<Vec<_>>>()?;
    for collection in collections.into_iter().flatten() {
        warn(
            Error::new(
                Kind::InvalidInput,
                format!("clusters of collection \"{collection}\" still count the rows of a partition that has been dropped"),
            )
            .hint(format!(
                "SELECT FROM clip_recluster({}); counts them again. DETACH PARTITION before DROP TABLE takes the rows out of their clusters.",
                pgrx::spi::quote_literal(&collection)
            )),
        );
    }
    Ok(())
}

#[pg_schema]
pub mod clip_search {
    use super::*;

    /// Called by the event trigger with the watches whose tables a CREATE TABLE or ALTER TABLE has changed.
    #[pg_extern(volatile, strict, parallel_unsafe)]
    fn settle_partitions(watches: Vec<i64>) -> SqlResult<()> {
        check_writable(c"settle_partitions()");
        let watches = as_extension(|client| {
            let condition = "c.relkind = 'p' AND w.id = ANY ($1) AND w.id IN (SELECT id FROM clip_search.watch_live)";
            Watch::find(client, condition, &[watches.into()])
        })?;
        watches.iter().try_for_each(settle)
    }
}
