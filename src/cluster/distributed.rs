//! Members in a distributed table of Citus, for clip_recluster: they are read and written by key.
//!
//! Sessions on other servers can't be kept from writing members. If a member has changed since it was read, it is not
//! written and the call fails. If a member leaves its group afterwards, this is noted as usual, for the member's new
//! group.

use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::{quote_identifier, quote_literal};

use crate::cluster::members::{FETCH, Members};
use crate::pg::catalog::column_types;
use crate::pg::citus::{self, Place};
use crate::pg::error::{SqlResult, report, sql_error};
use crate::pg::owners_table::OwnersTable;
use crate::pg::spi::spi;
use crate::pg::user_context::{UserContext, as_extension, key_form};

/// A member that moves to another cluster.
pub struct Moved {
    pub key: String,
    pub hash: i64,
    pub old: Option<i64>,
    pub id: i64,
}

/// The 64-bit hash by which an embedding is compared, so that the embedding need not be sent back to the shards.
pub fn hash_of(column: &str) -> String {
    format!("pg_catalog.hashtextextended({column}::text, 0)")
}

/// Access to the members of a distributed table.
pub struct Shards {
    /// The table of departures: it receives the members that leave a group.
    departures: OwnersTable,
    key: String,
    key_type: String,
}

impl Shards {
    pub fn of(members: &Members, collection: &str) -> SqlResult<Self> {
        let unwatched = || {
            let what = format!("{}, a distributed table of Citus, is not grouped by clip_watch", members.table.shown());
            sql_error(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, what)
                .set_detail("What leaves a group while it is computed has to be noted.")
                .set_hint(format!(
                    "SELECT clip_watch(…, collection => {}), then clip_recluster.",
                    quote_literal(collection)
                ))
        };
        let table = members.table.oid;
        let departures = as_extension(|client| {
            let query = "SELECT w.home ->> 'departures' FROM clip_search.watch_setting w \
                     WHERE w.relation::oid = $1 AND w.collection = $2 AND w.replaces IS NULL ORDER BY w.id";
            let rows = client.select(query, Some(1), &[table.into(), collection.into()]).map_err(spi)?;
            rows.into_iter().next().map(|row| row.get::<String>(1).map_err(spi)).transpose()
        })?;
        let departures = match departures.flatten() {
            Some(name) => OwnersTable::named(&name, members.table.owner)?,
            None => None,
        };
        let types = {
            let _user_context = UserContext::of_caller();
            Spi::connect(|client| column_types(client, table, vec![members.key.clone()]))?
        };
        let key_type = types.into_iter().next().map(|(_, kind)| kind);
        Ok(Self {
            departures: departures.ok_or_else(unwatched)?,
            key: members.key.clone(),
            key_type: key_type.ok_or_else(|| report(Error::new(Kind::Internal, "the key has no type")))?,
        })
    }

    /// The columns that are read of a member: its key, and a hash of its embedding.
    pub fn columns(&self, members: &Members) -> String {
        format!("{}::text, {}", self.key, hash_of(&members.embedding))
    }

    /// Refuses while members have left groups that still count them.
    pub fn check_no_departures(&self, members: &Members) -> SqlResult<()> {
        let any = self.departures.as_owner(|client| {
            Ok(!client.update(&format!("SELECT 1 FROM {} LIMIT 1", self.departures.shown()), Some(1), &[])?.is_empty())
        })?;
        if !any {
            return Ok(());
        }
        let table = members.table.shown();
        Err(sql_error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("rows of {table} have left groups that still count them"),
        )
        .set_hint(format!("SELECT clip_group({}) takes them out; then try again.", quote_literal(table))))
    }

    /// Writes the clusters of members. Fails if any of them has changed since it was read.
    pub fn move_members(&self, members: &Members, moved: Vec<Moved>) -> SqlResult<()> {
        let query = format!(
            include_str!("sql/move_by_key.sql"),
            table = members.table.shown(),
            cluster = members.cluster,
            key = self.key,
            kind = self.key_type,
            hash = hash_of(&format!("t.{}", members.embedding))
        );
        members.table.as_owner(|client| {
            key_form();
            for batch in moved.chunks(FETCH as usize) {
                pgrx::check_for_interrupts!();
                let keys: Vec<&str> = batch.iter().map(|one| one.key.as_str()).collect();
                let ids: Vec<i64> = batch.iter().map(|one| one.id).collect();
                let old: Vec<Option<i64>> = batch.iter().map(|one| one.old).collect();
                let hashes: Vec<i64> = batch.iter().map(|one| one.hash).collect();
                let rows = client.update(&query, Some(1), &[keys.into(), ids.into(), old.into(), hashes.into()])?;
                let done = rows.first().get::<i64>(1).map_err(spi)?.unwrap_or_default();
                if done != batch.len() as i64 {
                    let what =
                        format!("{} of {} members changed in the meantime", batch.len() as i64 - done, batch.len());
                    return Err(sql_error(PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE, what)
                        .set_detail("Sessions on other servers can't be kept from writing a distributed table.")
                        .set_hint("Try again; nothing was changed."));
                }
            }
            Ok(())
        })?;
        commit_in_two_phases(members.table.oid, &self.departures)
    }
}

/// Makes the transaction commit in two phases. With one shard, Citus would commit on the shard's server before the
/// coordinator commits, and the coordinator's changes could be lost in between. Citus uses two phases if a statement
/// changes several shards, or if rows come from the coordinator, even if their number is zero. This function therefore
/// inserts zero rows into the table of departures of `table`, which is `departures`.
pub fn commit_in_two_phases(table: pg_sys::Oid, departures: &OwnersTable) -> SqlResult<()> {
    let place = {
        let _user_context = UserContext::of_caller();
        Spi::connect(|client| citus::place(client, table))?
    };
    let (column, value) = match place {
        Some(Place::Shards(Some(column))) => (format!("{}, ", quote_identifier(column)), "NULL, "),
        _ => (String::new(), ""),
    };
    departures.as_owner(|client| {
        let query = format!(
            "INSERT INTO {} ({column}departed_id) SELECT {value}pg_catalog.gen_random_uuid() FROM pg_catalog.generate_series(1, 0)",
            client.name()
        );
        client.update(&query, None, &[]).map(drop)
    })
}
