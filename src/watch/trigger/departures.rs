//! Rows of a shard that leave their clusters.
//!
//! The coordinator has the clusters of a distributed table. A trigger on a shard can't reach them, so it notes in another
//! distributed table what was counted there, in the shard beside its own. `clip_group` takes these notes.

use std::ffi::CString;

use pgrx::prelude::*;
use pgrx::spi::quote_identifier;

use crate::pg::catalog;
use crate::pg::citus;
use crate::pg::error::{SqlResult, sql_error};
use crate::pg::owners_table::OwnersTable;
use crate::pg::spi::{get, spi};
use crate::pg::user_context::{UserContext, key_form};
use crate::pg::vector::{self, Vector};
use crate::watch::trigger::plan::Plan;
use crate::watch::trigger::row::Tuple;

/// Whether Citus keeps a table's rows in shards, whose triggers note what TRUNCATE removes.
pub(super) fn is_elsewhere(table: pg_sys::Oid) -> SqlResult<bool> {
    let _user_context = UserContext::of_caller();
    Ok(Spi::connect(|client| citus::place(client, table))?.is_some())
}

/// Notes that a row has left its cluster: it is deleted, or has no cluster any more.
pub(super) fn note(plan: &Plan, old: &Tuple, new: Option<&Tuple>) -> SqlResult<()> {
    let Some((cluster, vector)) = old.assigned(plan) else { return Ok(()) };
    if new.is_some_and(|new| plan.assigned.is_some_and(|column| new.datum(column).is_some())) {
        return Ok(());
    }
    let Some(place) = Departures::beside(plan)? else { return Ok(()) };
    let shard_key = match &place.column {
        Some(column) => {
            let name = CString::new(column.as_str()).unwrap_or_default();
            let _user_context = UserContext::of_caller();
            key_form();
            old.text(catalog::column_number(plan.table, &name))?.map(str::to_owned)
        }
        None => None,
    };
    place.add(shard_key, Some(cluster), Some(Vector(vector)))
}

/// Notes that TRUNCATE removes all rows.
pub(super) fn note_all(plan: &Plan) -> SqlResult<()> {
    if plan.assigned.is_none() {
        return Ok(());
    }
    let Some(place) = Departures::beside(plan)? else { return Ok(()) };
    // A value that belongs to this shard; without one it is empty.
    let value = place.column.as_deref().map_or("NULL".to_owned(), quote_identifier);
    let found = plan.watch.as_owner(|client| {
        let query = format!("SELECT {value}::text FROM {}", plan.watch.table);
        client.update(&query, Some(1), &[])?.into_iter().next().map(|row| get::<String>(&row, 1)).transpose()
    })?;
    match found {
        Some(shard_key) => place.add(shard_key, None, None),
        None => Ok(()),
    }
}

/// The shard of the table of departures that is beside a watched shard.
struct Departures {
    table: OwnersTable,
    /// The column by which both tables are distributed, and its type.
    column: Option<String>,
    kind: String,
}

impl Departures {
    fn beside(plan: &Plan) -> SqlResult<Option<Self>> {
        let Some(name) = plan.watch.home.as_ref().and_then(|home| home.departures.as_deref()) else { return Ok(None) };
        let found = {
            let _user_context = UserContext::of_caller();
            Spi::connect(|client| {
                let query = include_str!("../sql/departures_shard.sql");
                let rows = client.select(query, Some(1), &[plan.table.into(), name.into()]).map_err(spi)?;
                let Some(row) = rows.into_iter().next() else { return Ok::<_, pg_sys::panic::ErrorReport>(None) };
                Ok(Some((get::<pg_sys::Oid>(&row, 1)?, get::<String>(&row, 2)?, get::<String>(&row, 3)?)))
            })?
        };
        let missing = || {
            sql_error(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("table {name} has no shard beside {}", plan.watch.name()),
            )
            .set_detail("It receives what leaves a group. It is missing, or the transaction that creates it has not ended.")
            .set_hint("Commit clip_watch first, or call it again.")
        };
        let Some((Some(oid), column, kind)) = found else { return Err(missing()) };
        let table = OwnersTable::find_only(oid).ok_or_else(missing)?;
        if table.owner != plan.watch.owner {
            return Err(sql_error(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("table {name} and {} have different owners", plan.watch.name()),
            )
            .set_hint("ALTER TABLE … OWNER TO gives both to one role."));
        }
        Ok(Some(Self { table, column, kind: kind.unwrap_or_default() }))
    }

    fn add(&self, shard_key: Option<String>, cluster: Option<i64>, vector: Option<Vector>) -> SqlResult<()> {
        self.table.as_owner(|client| {
            let (name, schema) = (client.name(), vector::schema());
            let (columns, values) = match &self.column {
                Some(column) => (format!("{}, ", quote_identifier(column)), format!("$3::text::{}, ", self.kind)),
                None => (String::new(), String::new()),
            };
            let query = format!(
                "INSERT INTO {name} ({columns}departed_id, departed_cluster, departed_embedding) \
                 VALUES ({values}pg_catalog.gen_random_uuid(), $1, $2::{schema}.vector)"
            );
            match &self.column {
                Some(_) => client.update(&query, None, &[cluster.into(), vector.into(), shard_key.into()]),
                None => client.update(&query, None, &[cluster.into(), vector.into()]),
            }
            .map(drop)
        })
    }
}
