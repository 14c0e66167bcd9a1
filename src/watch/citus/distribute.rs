//! The parts of clip_watch for a distributed table: the settings that go to the shards, and the table of departures,
//! which receives the rows that leave a group.

use std::panic::AssertUnwindSafe;

use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, quote_identifier, quote_literal};

use crate::pg::catalog::{Lock, Table, column_types, lock, qualified_name};
use crate::pg::citus::{self, Place};
use crate::pg::error::{SqlResult, report, sql_error};
use crate::pg::owners_table::{OwnersTable, TableClient};
use crate::pg::spi::{get, spi};
use crate::pg::user_context::{UserContext, as_extension, owner_of_table, role_name, set};
use crate::pg::vector;
use crate::watch::setting::{Watch, check_place};

/// Allows triggers on distributed tables, and uses one connection to each server, until the guard is dropped: Citus
/// refuses to change a table over one connection after it was changed over several.
pub fn session() -> UserContext {
    let guard = UserContext::of_caller();
    set(c"citus.enable_unsafe_triggers", c"on");
    set(c"citus.multi_shard_modify_mode", c"sequential");
    guard
}

/// The column by which a table is distributed; Some(None) if all rows are in one shard. None for other tables.
pub fn shard_key(table: &Table) -> SqlResult<Option<Option<String>>> {
    Ok(match check_place(table)? {
        Some(Place::Shards(column)) => Some(column),
        _ => None,
    })
}

/// Records that a watch is of a distributed table, and creates the table of departures if its rows are grouped.
pub fn prepare(table: &Table, watch: &Watch, shard_key: Option<&str>) -> SqlResult<()> {
    let departures = match watch.cluster {
        Some(_) => Some(create_departures(table, watch, shard_key)?),
        None => None,
    };
    as_extension(|client| {
        let query = "UPDATE clip_search.watch_setting SET home = pg_catalog.jsonb_build_object('departures', $2::text) WHERE id = $1";
        client.update(query, None, &[watch.id.into(), departures.into()]).map(drop).map_err(spi)
    })
}

/// Records that the table of a watch is no longer distributed.
pub fn clear_home(watch: &Watch) -> SqlResult<()> {
    as_extension(|client| {
        let query = "UPDATE clip_search.watch_setting SET home = NULL WHERE id = $1";
        client.update(query, None, &[watch.id.into()]).map(drop).map_err(spi)
    })
}

/// The oid of a table by its quoted name.
fn departures(client: &mut SpiClient<'_>, name: &str) -> SqlResult<Option<pg_sys::Oid>> {
    let rows = client.update("SELECT pg_catalog.to_regclass($1)::oid", Some(1), &[name.into()]).map_err(spi)?;
    rows.first().get::<pg_sys::Oid>(1).map_err(spi)
}

/// Revokes privileges that ALTER DEFAULT PRIVILEGES has granted on the table of departures: it contains the embeddings
/// of rows that other roles may not read, and its rows change groups.
fn revoke_defaults(client: &mut SpiClient<'_>, table: pg_sys::Oid, name: &str) -> SqlResult<()> {
    let query = "SELECT DISTINCT a.grantee FROM pg_catalog.pg_class c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS a \
         WHERE c.oid = $1 AND a.grantee <> c.relowner ORDER BY 1";
    let grantees: Vec<pg_sys::Oid> = client
        .update(query, None, &[table.into()])
        .map_err(spi)?
        .map(|row| Ok(get::<pg_sys::Oid>(&row, 1)?.unwrap_or(pg_sys::Oid::INVALID)))
        .collect::<SqlResult<_>>()?;
    for grantee in grantees {
        let grantee = match grantee {
            pg_sys::Oid::INVALID => "PUBLIC".to_owned(),
            role => quote_identifier(role_name(role)),
        };
        client.update(&format!("REVOKE ALL ON TABLE {name} FROM {grantee}"), None, &[]).map_err(spi)?;
    }
    Ok(())
}

fn create_departures(table: &Table, watch: &Watch, shard_key: Option<&str>) -> SqlResult<String> {
    let known = watch.home.as_ref().and_then(|home| home.departures.clone());
    let _caller = UserContext::of_caller();
    Spi::connect_mut(|client| {
        if let Some(name) = known
            && departures(client, &name)?.is_some()
        {
            return Ok(name);
        }
        let query = "SELECT pg_catalog.quote_ident(n.nspname) \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1";
        let rows = client.update(query, Some(1), &[table.oid.into()]).map_err(spi)?;
        let missing = || report(Error::new(Kind::Internal, "a table has no name"));
        let schema = rows.first().get::<String>(1).map_err(spi)?.ok_or_else(missing)?;
        // A name has at most 63 bytes: 30 of the table's name, 10 of "_departed_", up to 19 digits.
        let start = &table.plain_name[..table.plain_name.floor_char_boundary(30)];
        let name = format!("{schema}.{}", quote_identifier(format!("{start}_departed_{}", watch.id)));
        let (column, key) = match shard_key {
            Some(column) => {
                let kind = table.known_column(client, column)?.shown;
                let column = quote_identifier(column);
                (format!("{column} {kind} NOT NULL, "), format!("{column}, departed_id"))
            }
            None => (String::new(), "departed_id".to_owned()),
        };
        let query = format!(
            "CREATE TABLE {name} ({column}departed_id uuid NOT NULL, departed_cluster bigint, \
             departed_embedding {}.vector, PRIMARY KEY ({key}))",
            vector::schema()
        );
        client.update(&query, None, &[]).map_err(spi)?;
        let oid = departures(client, &name)?.ok_or_else(missing)?;
        revoke_defaults(client, oid, &name)?;
        // In a schema that Citus distributes as a whole, the new table is colocated already.
        if citus::place(client, oid)?.is_none() {
            let query = format!(
                "SELECT create_distributed_table({}, {}, colocate_with => {})",
                quote_literal(&name),
                shard_key.map_or("NULL".to_owned(), quote_literal),
                quote_literal(&table.name)
            );
            client.update(&query, None, &[]).map_err(spi)?;
        }
        let comment = format!("Rows of {} that have left their groups; clip_group takes them out", table.name);
        client.update(&format!("COMMENT ON TABLE {name} IS {}", quote_literal(comment)), None, &[]).map_err(spi)?;
        let owner = owner_of_table(table.oid);
        if owner_of_table(oid) != owner
            && let Some(owner) = owner
        {
            let query = format!("ALTER TABLE {name} OWNER TO {}", quote_identifier(role_name(owner)));
            client.update(&query, None, &[]).map_err(spi)?;
        }
        Ok(name)
    })
}

/// The settings of a watch for its shards. `existing`: the treatment of vectors that the shards contain; `made_by`: the
/// model of the previous watch.
pub fn settings(watch: &Watch, existing: Option<&str>, made_by: Option<&str>) -> SqlResult<String> {
    as_extension(|client| {
        let query = include_str!("sql/settings.sql");
        let rows = client.update(query, Some(1), &[watch.id.into(), existing.into(), made_by.into()]).map_err(spi)?;
        let missing = || report(Error::new(Kind::Internal, "a watch is gone at once"));
        rows.first().get::<String>(1).map_err(spi)?.ok_or_else(missing)
    })
}

/// Runs statements on the distributed table as its owner, in a transaction in which the caller has changed definitions.
fn as_owner<T>(watch: &Watch, work: impl FnOnce(&mut TableClient<'_, '_>) -> SqlResult<T>) -> SqlResult<T> {
    PgTryBuilder::new(AssertUnwindSafe(|| watch.as_owner(work)))
        .catch_when(PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION, |_| Err(one_role(watch.name(), watch.owner)))
        .execute()
}

/// The error for a transaction that would use shards both as the caller and as their owner. Citus refuses this, or the
/// connections of both roles wait for each other.
pub fn one_role(table: &str, owner: pg_sys::Oid) -> ErrorReport {
    sql_error(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!(
            "{table}, a table of Citus, belongs to {}, and rows of it have to be read as that role",
            role_name(owner)
        ),
    )
    .set_detail("Citus doesn't let two roles use a shard in one transaction if one of them changes it.")
    .set_hint(format!("SET ROLE {}, and try again.", quote_identifier(role_name(owner))))
}

/// Whether any row has a value in a column.
pub fn any_row_has(watch: &Watch, column: &str) -> SqlResult<bool> {
    as_owner(watch, |client| {
        let query = format!("SELECT 1 FROM {} WHERE {} IS NOT NULL LIMIT 1", watch.name(), quote_identifier(column));
        Ok(!client.update(&query, Some(1), &[])?.is_empty())
    })
}

/// Sets the column of clusters to NULL in a table that was not grouped before.
pub fn clear_clusters(watch: &Watch) -> SqlResult<()> {
    let Some(cluster) = &watch.cluster else { return Ok(()) };
    as_owner(watch, |client| {
        let column = quote_identifier(cluster);
        let query = format!("UPDATE {} SET {column} = NULL WHERE {column} IS NOT NULL", watch.name());
        let cleared = client.update(&query, None, &[])?.len();
        if cleared > 0 {
            pgrx::notice!(
                "clip_search: {cleared} rows of {} had a cluster from before, and will be grouped",
                watch.name()
            );
        }
        Ok(())
    })
}

/// Drops the table of departures. No trigger may write to it any more.
pub fn drop_departures(watch: &Watch) -> SqlResult<()> {
    let Some(name) = watch.home.as_ref().and_then(|home| home.departures.as_deref()) else { return Ok(()) };
    let _caller = session();
    Spi::connect_mut(|client| {
        let Some(oid) = departures(client, name)? else { return Ok(()) };
        lock(oid, Lock::AccessExclusive);
        match (OwnersTable::find_only(oid), qualified_name(oid)) {
            (Some(table), Some(current)) if table.owner == watch.owner && current == name => {
                client.update(&format!("DROP TABLE {name}"), None, &[]).map(drop).map_err(spi)
            }
            _ => Ok(()),
        }
    })
}

/// The key columns of a watched table with their types, for queries that find rows by key.
pub fn key_types(client: &SpiClient<'_>, watch: &Watch) -> SqlResult<Vec<(String, String)>> {
    column_types(client, watch.relation, watch.key.iter().map(quote_identifier).collect())
}
