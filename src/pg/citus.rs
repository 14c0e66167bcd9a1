//! Tables of Citus, whose rows are in shards on several servers. The extension recognises Citus by its catalogue and
//! doesn't depend on it.
#![allow(unsafe_code)]

use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::pg::error::{SqlResult, sql_error};
use crate::pg::spi::{get, spi};

/// How Citus places a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// In shards, by the hash of this column; None: in a single shard.
    Shards(Option<String>),
    /// A reference table: each server has a copy.
    Copies,
    /// All rows are on the coordinator, in a table that Citus manages.
    Coordinator,
    /// By ranges, or in the order of loading ("append").
    Other,
}

/// Whether Citus is installed in this database.
pub fn is_installed() -> bool {
    // SAFETY: a look-up in the system cache, with a name that ends in NUL.
    let catalogue =
        unsafe { pg_sys::get_relname_relid(c"pg_dist_partition".as_ptr(), pg_sys::PG_CATALOG_NAMESPACE.into()) };
    catalogue != pg_sys::Oid::INVALID
}

/// How Citus places a table. None for shards, and for tables that Citus doesn't know.
pub fn place(client: &SpiClient<'_>, table: pg_sys::Oid) -> SqlResult<Option<Place>> {
    if !is_installed() {
        return Ok(None);
    }
    let query = "SELECT d.partmethod::pg_catalog.text, d.repmodel::pg_catalog.text, d.colocationid, \
             pg_catalog.column_to_column_name(d.logicalrelid, d.partkey) \
         FROM pg_catalog.pg_dist_partition AS d WHERE d.logicalrelid::pg_catalog.oid OPERATOR(pg_catalog.=) $1";
    let rows = client.select(query, Some(1), &[table.into()]).map_err(spi)?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    let (method, model) = (get::<String>(&row, 1)?.unwrap_or_default(), get::<String>(&row, 2)?.unwrap_or_default());
    let colocation = get::<i32>(&row, 3)?.unwrap_or_default();
    Ok(Some(match (method.as_str(), model.as_str()) {
        ("h", _) => Place::Shards(Some(get::<String>(&row, 4)?.unwrap_or_default())),
        ("n", "t") => Place::Copies,
        ("n", _) if colocation == 0 => Place::Coordinator,
        ("n", _) => Place::Shards(None),
        _ => Place::Other,
    }))
}

/// For a shard, which is recognised by its name: its distributed table and its number.
pub fn shard(client: &SpiClient<'_>, table: pg_sys::Oid) -> SqlResult<Option<(pg_sys::Oid, i64)>> {
    if !is_installed() {
        return Ok(None);
    }
    let rows = client.select(include_str!("sql/shard.sql"), Some(1), &[table.into()]).map_err(spi)?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    Ok(get::<pg_sys::Oid>(&row, 1)?.zip(get::<i64>(&row, 2)?))
}

/// For a table that Citus keeps on the coordinator, or for the shard that contains its rows: the shard, and the table.
pub fn kept(client: &SpiClient<'_>, table: pg_sys::Oid) -> SqlResult<Option<(pg_sys::Oid, pg_sys::Oid)>> {
    if !is_installed() {
        return Ok(None);
    }
    let parent = shard(client, table)?.map_or(table, |(parent, _)| parent);
    if place(client, parent)? != Some(Place::Coordinator) {
        return Ok(None);
    }
    let rows = client.select(include_str!("sql/kept.sql"), Some(1), &[parent.into()]).map_err(spi)?;
    let found = rows.into_iter().next().map(|row| get::<pg_sys::Oid>(&row, 1)).transpose()?.flatten();
    Ok(found.map(|shard| (shard, parent)))
}

/// Whether Citus sends queries on a shard to this server. During a move both servers have the shard.
pub fn is_active_here(client: &SpiClient<'_>, shard: i64) -> SqlResult<bool> {
    let query = "SELECT 1 FROM pg_catalog.pg_dist_placement AS p JOIN pg_catalog.pg_dist_local_group AS g \
             ON g.groupid OPERATOR(pg_catalog.=) p.groupid \
         WHERE p.shardid OPERATOR(pg_catalog.=) $1 AND p.shardstate OPERATOR(pg_catalog.=) 1";
    Ok(!client.select(query, Some(1), &[shard.into()]).map_err(spi)?.is_empty())
}

/// Refuses tables of Citus in functions that need the rows on this server.
pub fn refuse(client: &SpiClient<'_>, table: pg_sys::Oid, what: &str, detail: &str, hint: &str) -> SqlResult<()> {
    if !is_installed() {
        return Ok(());
    }
    let query = "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_dist_partition AS d \
         JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) d.logicalrelid::pg_catalog.oid \
         JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace WHERE c.oid OPERATOR(pg_catalog.=) $1";
    let rows = client.select(query, Some(1), &[table.into()]).map_err(spi)?;
    let Some(row) = rows.into_iter().next() else { return Ok(()) };
    let name = get::<String>(&row, 1)?.unwrap_or_default();
    Err(sql_error(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, format!("{name} is a table of Citus, so {what}"))
        .set_detail(detail)
        .set_hint(hint))
}

/// Whether this server is a worker of Citus.
pub fn is_worker() -> SqlResult<bool> {
    if !is_installed() {
        return Ok(false);
    }
    Spi::connect(|client| {
        let query = "SELECT 1 FROM pg_catalog.pg_dist_local_group WHERE groupid OPERATOR(pg_catalog.>) 0";
        Ok(!client.select(query, Some(1), &[]).map_err(spi)?.is_empty())
    })
}

/// Refuses to run on a worker of Citus: each worker would have its own groups, with the same ids as other workers'
/// groups. A function that a query on a distributed table calls may run on any worker.
pub fn refuse_worker(function: &str) -> SqlResult<()> {
    if !is_worker()? {
        return Ok(());
    }
    Err(sql_error(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, format!("{function} was called on a worker of Citus"))
        .set_detail("Groups are kept on the coordinator; those of a worker would miss the photos of the others.")
        .set_hint("Have it evaluated on the coordinator: in VALUES, or over a materialized CTE (docs/citus.md)."))
}
