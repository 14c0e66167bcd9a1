//! Rows of a shard that leave their clusters.
//!
//! The coordinator has the clusters of a distributed table, and a trigger on a shard can't reach them. It therefore
//! notes the cluster and the vector of a departed row in another distributed table, the table of departures, in the
//! shard that is colocated with its own. `clip_group` processes these notes.

use std::ffi::CString;

use pgrx::prelude::*;
use pgrx::spi::quote_identifier;

use crate::pg::catalog::{self, column_types};
use crate::pg::citus;
use crate::pg::error::{SqlResult, sql_error};
use crate::pg::owners_table::OwnersTable;
use crate::pg::spi::{get, spi};
use crate::pg::user_context::{UserContext, current_role, key_form};
use crate::pg::vector::{self, Vector};
use crate::watch::citus::distribute::one_role;
use crate::watch::setting::Watch;
use crate::watch::trigger::plan::Plan;
use crate::watch::trigger::row::Tuple;

/// Whether a table is a table of Citus, which users can name on any server. False for shards.
pub(super) fn is_citus_table(table: pg_sys::Oid) -> SqlResult<bool> {
    let _user_context = UserContext::of_caller();
    Ok(Spi::connect(|client| citus::place(client, table))?.is_some())
}

/// The shard of a table that Citus keeps on the coordinator.
pub(super) fn kept_shard(table: pg_sys::Oid) -> SqlResult<Option<pg_sys::Oid>> {
    if !citus::is_installed() {
        return Ok(None);
    }
    let _user_context = UserContext::of_caller();
    Ok(Spi::connect(|client| citus::kept(client, table))?.map(|(shard, _)| shard))
}

/// Whether a shard is not watched any more. When Citus moves a shard, it creates TRUNCATE triggers on it, which it
/// doesn't drop together with the triggers of the distributed table.
pub(super) fn is_left_over(id: i64, table: pg_sys::Oid) -> SqlResult<bool> {
    let is_shard = citus::is_installed() && {
        let _user_context = UserContext::of_caller();
        Spi::connect(|client| citus::shard(client, table))?.is_some()
    };
    Ok(is_shard && Watch::of_trigger(id, table)?.is_none())
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

/// Notes that TRUNCATE removes all rows of a distributed table; TRUNCATE can be run on any server. `settings`: the
/// watch's settings for the shards.
pub(super) fn note_all(table: pg_sys::Oid, settings: &str) -> SqlResult<()> {
    let (embedding, departures, column) = {
        let _user_context = UserContext::of_caller();
        Spi::connect(|client| {
            let query = "SELECT $1::jsonb ->> 'embedding', $1::jsonb ->> 'departures'";
            let rows = client.select(query, Some(1), &[settings.into()]).map_err(spi)?;
            let (embedding, departures) = rows.first().get_two::<String, String>().map_err(spi)?;
            let column = match citus::place(client, table)? {
                Some(citus::Place::Shards(column)) => column,
                _ => None,
            };
            Ok::<_, pg_sys::panic::ErrorReport>((embedding.unwrap_or_default(), departures, column))
        })?
    };
    let Some(table) = OwnersTable::find_only(table) else { return Ok(()) };
    if table.owner != current_role() {
        return Err(one_role(table.shown(), table.owner));
    }
    // Each server forgets which of its rows are queued or have failed. None of these rows has an embedding.
    let value = column.as_deref().map_or("NULL".to_owned(), quote_identifier);
    let found = table.as_owner(|client| {
        let query = format!(
            "SELECT pg_catalog.count(clip_search.forget_rows(tableoid::pg_catalog.regclass)) FROM {} WHERE {} IS NULL",
            client.name(),
            quote_identifier(&embedding)
        );
        client.update(&query, None, &[])?;
        let query = format!("SELECT {value}::text FROM {} LIMIT 1", client.name());
        client.update(&query, Some(1), &[])?.next().map(|row| get::<String>(&row, 1)).transpose()
    })?;
    let (Some(shard_key), Some(departures)) = (found, departures) else { return Ok(()) };
    let Some(place) = OwnersTable::named(&departures, table.owner)? else { return Ok(()) };
    let kind = match &column {
        Some(column) => {
            let _user_context = UserContext::of_caller();
            Spi::connect(|client| column_types(client, table.oid, vec![quote_identifier(column)]))?
                .pop()
                .map(|(_, kind)| kind)
        }
        None => None,
    };
    Departures { table: place, column, kind: kind.unwrap_or_default() }.add(shard_key, None, None)
}

/// The shard of the table of departures that is colocated with a watched shard.
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
            .set_detail(
                "It receives what leaves a group. It is missing, or the transaction that creates it has not ended.",
            )
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
