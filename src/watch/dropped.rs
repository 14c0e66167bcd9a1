//! Removes the entries of dropped tables: the settings, queue and failures of their watches, and the collections whose
//! members they contained.
//!
//! An event trigger calls this for every command that drops a watched table: DROP TABLE, DROP SCHEMA … CASCADE or DROP
//! OWNED. clip_watch and the worker call it, too, for entries that the command left because another transaction had
//! locked them.

use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::cluster::collection::drop_whole;
use crate::cluster::statements;
use crate::cluster::tables::Store;
use crate::pg::error::SqlResult;
use crate::pg::spi::get;
use crate::pg::spi::spi;
use crate::pg::transaction::run_on_latest;
use crate::watch::partitions::tell_of_dropped;

/// Removes the entries with the extension's privileges. If another transaction is using the collection, the collection
/// and its watch remain until the next call: this function never waits.
pub fn forget_dropped(client: &mut SpiClient<'_>, store: &Store) -> SqlResult<()> {
    let query = "SELECT w.id, CASE WHEN w.added_collection THEN w.collection END FROM clip_search.watch_setting w \
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = w.relation::oid) \
             OR pg_catalog.to_jsonb(w) -> 'home' ? 'parent' AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t \
                 WHERE t.tgrelid = w.relation::oid AND t.tgtype & 1 = 1 AND pg_catalog.starts_with(t.tgname::text, 'zz_clip_watch_')) FOR UPDATE OF w SKIP LOCKED";
    let gone = client
        .update(query, None, &[])
        .map_err(spi)?
        .map(|row| Ok((get::<i64>(&row, 1)?.unwrap_or_default(), get::<String>(&row, 2)?)))
        .collect::<SqlResult<Vec<_>>>()?;
    for (watch, collection) in gone {
        if let Some(collection) = &collection {
            if !store.lock_exclusive(collection, false) {
                continue;
            }
            statements::clear_latest(collection)?;
            drop_whole(client, store, collection)?;
        }
        let query = "DELETE FROM clip_search.watch_setting WHERE id = $1";
        client.update(query, None, &[watch.into()]).map_err(spi)?;
    }
    // Collections whose tables were no longer watched, or never were. Without this, a new table of the same name would
    // inherit the groups.
    let gone = client
        .update(include_str!("sql/dropped_members.sql"), None, &[])
        .map_err(spi)?
        .map(|row| Ok(get::<String>(&row, 1)?.unwrap_or_default()))
        .collect::<SqlResult<Vec<_>>>()?;
    for collection in gone {
        if store.lock_exclusive(&collection, false) {
            statements::clear_latest(&collection)?;
            drop_whole(client, store, &collection)?;
        }
    }
    tell_of_dropped(client)?;
    // Entries of these watches, and entries that other sessions had locked when clip_unwatch was called.
    for table in ["watch_queue", "watch_failure"] {
        run_on_latest(
            &format!(
                "DELETE FROM clip_search.{table} WHERE ctid = ANY (ARRAY(SELECT l.ctid FROM clip_search.{table} l \
                 WHERE NOT EXISTS (SELECT FROM clip_search.watch_setting w WHERE w.id = l.watch) FOR UPDATE OF l SKIP LOCKED))"
            ),
            &[],
        )?;
    }
    Ok(())
}

#[pg_schema]
pub mod clip_search {
    use super::*;
    use crate::pg::user_context::as_extension;

    /// Called by the event trigger. Every role may call it, because it removes only entries without a table.
    #[pg_extern(volatile, parallel_unsafe)]
    fn forget_dropped_tables() -> SqlResult<()> {
        let store = Store::open(c"forget_dropped_tables()");
        as_extension(|client| forget_dropped(client, &store))
    }
}
