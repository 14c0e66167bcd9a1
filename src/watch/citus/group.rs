//! clip_group: the groups of a distributed table, which are on the coordinator.
//!
//! One call takes the rows that the shards' triggers have noted out of their groups, and assigns rows without a group.
//! The changes of the groups and of the shards are in one transaction, which Citus commits in two phases. If a row
//! changes in the meantime, its group is not written, and the row leaves the group that it has just joined.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::{quote_identifier, quote_literal};

use crate::cluster::assign::{assign, leave};
use crate::cluster::collection::Collection;
use crate::cluster::distributed::{commit_in_two_phases, hash_of};
use crate::cluster::statements;
use crate::cluster::tables::{Store, check_writable};
use crate::pg::catalog::Lock;
use crate::pg::error::{SqlResult, counted, report, sql_error, warn};
use crate::pg::owners_table::OwnersTable;
use crate::pg::regclass::Regclass;
use crate::pg::spi::{get, spi};
use crate::pg::text::Text;
use crate::pg::user_context::{UserContext, as_extension, key_form};
use crate::pg::vector::{self, Vector};
use crate::watch::backfill::key_of;
use crate::watch::citus::distribute::key_types;
use crate::watch::setting::{Watch, table_of};

/// The number of rows of one statement: 3 MB of vectors of 768 dimensions.
const BATCH: i64 = 1000;
/// How long a call waits for another call, and how often it checks whether that has ended.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

#[pg_extern(volatile, parallel_unsafe, cost = 1000000)]
fn clip_group(
    relation: Option<Regclass>,
    most: default!(Option<i32>, "10000"),
    embedding: default!(Option<Text<'_>>, "NULL"),
) -> SqlResult<i64> {
    check_writable(c"clip_group()");
    let most = most.filter(|most| *most > 0).ok_or_else(|| {
        let most = most.map_or("NULL".to_owned(), |most| most.to_string());
        report(Error::new(Kind::InvalidInput, format!("most {most} is not at least 1")))
    })?;
    let oid = table_of(relation)?;
    let mut done = 0;
    for watch in Watch::of_table(oid, embedding.map(Text::str))? {
        let of_one = watch.home.is_none() || watch.cluster.is_none();
        if of_one && embedding.is_none() && watch.cluster.is_none() {
            continue;
        }
        if of_one {
            let what = format!("clip_group is for distributed tables of Citus with groups, unlike {}", watch.name());
            return Err(sql_error(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, what)
                .set_detail("Rows of other tables join and leave groups when they are written or embedded.")
                .set_hint(format!("CALL clip_backfill({}) groups rows from before.", quote_literal(watch.name()))));
        }
        let watch = watch.locked(Lock::AccessShare)?;
        lock_watch(&watch, PATIENCE)?;
        done += run(&watch, i64::from(most))?;
        tell_of_others(&watch)?;
    }
    Ok(done)
}

/// Waits for another call for the same watch to end. The waiting call holds no lock that other transactions could wait
/// for, so Citus can't mistake the wait for a deadlock.
fn lock_watch(watch: &Watch, patience: Duration) -> SqlResult<()> {
    let start = Instant::now();
    while !try_lock_watch(watch)? {
        pgrx::check_for_interrupts!();
        if start.elapsed() >= patience {
            let what = format!("another session is grouping rows of {}", watch.name());
            return Err(sql_error(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, what)
                .set_detail(format!(
                    "It has been for {} s, and may wait for a row that this transaction has changed.",
                    patience.as_secs()
                ))
                .set_hint("Call clip_group first in a transaction, or alone, and try again."));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Locks the watch until the end of the transaction, unless another session has locked it. Returns whether it is
/// locked.
pub fn try_lock_watch(watch: &Watch) -> SqlResult<bool> {
    as_extension(|client| {
        let query = "SELECT 1 FROM clip_search.watch_setting WHERE id = $1 FOR NO KEY UPDATE SKIP LOCKED";
        Ok(!client.update(query, Some(1), &[watch.id.into()]).map_err(spi)?.is_empty())
    })
}

/// Takes up to `most` rows out of groups and assigns up to `most` rows; returns the total. The caller has locked the
/// watch ([`try_lock_watch`]).
pub fn run(watch: &Watch, most: i64) -> SqlResult<i64> {
    let Some(collection) = &watch.collection else { return Ok(0) };
    let mut done = 0;
    let mut left = most;
    while left > 0 {
        let count = drain(watch, collection, left.min(BATCH))?;
        if count == 0 {
            break;
        }
        done += count;
        left -= count;
    }
    left = most;
    while left > 0 {
        let (found, joined) = assign_open(watch, collection, left.min(BATCH))?;
        done += joined;
        left -= found;
        // No such row is left, or other sessions are changing the remaining ones.
        if found == 0 || joined == 0 {
            break;
        }
    }
    if done > 0 {
        commit_in_two_phases(watch.relation, &departures(watch)?)?;
    }
    Ok(done)
}

fn departures(watch: &Watch) -> SqlResult<OwnersTable> {
    let name = watch.home.as_ref().and_then(|home| home.departures.as_deref()).unwrap_or_default();
    OwnersTable::named(name, watch.owner)?.ok_or_else(|| {
        sql_error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!(
                "table {name}, which receives what leaves groups of {}, is gone or has another owner",
                watch.name()
            ),
        )
        .set_hint("Give it the owner of the other; or call clip_watch again, then clip_recluster.")
    })
}

/// Takes the rows that the shards have noted as departed out of their groups.
fn drain(watch: &Watch, collection: &str, most: i64) -> SqlResult<i64> {
    let table = departures(watch)?;
    let gone: Vec<(Option<i64>, Option<Vector>)> = table.as_owner(|client| {
        let query = format!(include_str!("sql/drain.sql"), table = client.name(), most = most);
        let rows = client.update(&query, None, &[])?;
        rows.map(|row| Ok((get(&row, 1)?, get(&row, 2)?))).collect()
    })?;
    let count = gone.len() as i64;
    if gone.iter().any(|(cluster, _)| cluster.is_none()) {
        // A TRUNCATE is noted. It removed rows that the groups count, so all groups are dropped, and rows that were
        // inserted since are assigned again.
        let column = quote_identifier(watch.cluster.as_deref().unwrap_or_default());
        watch.as_owner(|client| {
            let query = format!("UPDATE {} SET {column} = NULL WHERE {column} IS NOT NULL", watch.table);
            client.update(&query, None, &[]).map(drop)
        })?;
        table.as_owner(|client| client.update(&format!("DELETE FROM {}", table.shown()), None, &[]).map(drop))?;
        let store = Store::open(c"clip_group()");
        let _user_context = UserContext::of_extension();
        store.lock_exclusive(collection, true);
        statements::clear_latest(collection)?;
        return Ok(count);
    }
    for (cluster, vector) in gone {
        pgrx::check_for_interrupts!();
        if let (Some(cluster), Some(vector)) = (cluster, vector) {
            leave(cluster, vector, Some(collection), Some(watch.owner))?;
        }
    }
    Ok(count)
}

/// The dimensions of a collection's vectors, if it has any.
fn dimensions_of(collection: &str) -> SqlResult<Option<i32>> {
    let _user_context = UserContext::of_extension();
    Ok(Collection::find(&Store::open(c"clip_group()"), collection)?.dimensions)
}

/// A condition on a column: the vector can be grouped. Shards accept any vector that a user writes.
fn groupable(embedding: &str, dimensions: Option<i32>) -> String {
    let schema = vector::schema();
    let dimensions = dimensions
        .map_or_else(String::new, |known| format!(" AND {schema}.vector_dims({embedding}::{schema}.vector) = {known}"));
    format!("{embedding} IS NOT NULL AND {schema}.vector_norm({embedding}::{schema}.vector) > 0{dimensions}")
}

/// Warns of rows whose vectors can't be grouped.
fn tell_of_others(watch: &Watch) -> SqlResult<()> {
    let Some(collection) = &watch.collection else { return Ok(()) };
    let (embedding, column) =
        (quote_identifier(&watch.embedding), quote_identifier(watch.cluster.as_deref().unwrap_or_default()));
    let dimensions = dimensions_of(collection)?;
    let query = format!(
        "SELECT pg_catalog.count(*) FROM {} WHERE {column} IS NULL AND {embedding} IS NOT NULL AND NOT ({})",
        watch.table,
        groupable(&embedding, dimensions)
    );
    let count =
        watch.as_owner(|client| get::<i64>(&client.update(&query, Some(1), &[])?.next().expect("a count"), 1))?;
    let count = count.unwrap_or_default();
    if count > 0 {
        let of = dimensions.map_or_else(String::new, |known| format!(", or do not have {known} dimensions"));
        let what = format!("{} of {} can't be grouped", counted(count, "row"), watch.name());
        let hint =
            format!("If {embedding} is set to NULL, CALL clip_backfill({}) embeds them.", quote_literal(watch.name()));
        warn(Error::new(Kind::InvalidInput, what).detail(format!("Their vectors are zero{of}.")).hint(hint));
    }
    Ok(())
}

/// Assigns rows that have no group. Returns the numbers of rows found and of rows assigned.
fn assign_open(watch: &Watch, collection: &str, most: i64) -> SqlResult<(i64, i64)> {
    let (embedding, column) =
        (quote_identifier(&watch.embedding), quote_identifier(watch.cluster.as_deref().unwrap_or_default()));
    let key = key_of(watch);
    let groupable = groupable(&embedding, dimensions_of(collection)?);
    let found: Vec<(String, Vector, i64)> = watch.as_owner(|client| {
        key_form();
        let query = format!(
            "SELECT {key}, {embedding}::{}.vector, {} FROM {} WHERE {column} IS NULL AND {groupable} LIMIT {most}",
            vector::schema(),
            hash_of(&embedding),
            watch.table
        );
        let rows = client.update(&query, None, &[])?;
        let missing = || report(Error::new(Kind::Internal, "a row has no key or embedding"));
        rows.map(|row| {
            Ok((
                get(&row, 1)?.ok_or_else(missing)?,
                get(&row, 2)?.ok_or_else(missing)?,
                get(&row, 3)?.ok_or_else(missing)?,
            ))
        })
        .collect()
    })?;
    if found.is_empty() {
        return Ok((0, 0));
    }
    let mut clusters = Vec::with_capacity(found.len());
    for (_, vector, _) in &found {
        pgrx::check_for_interrupts!();
        clusters.push(assign(vector.clone(), collection, watch.owner)?);
    }
    let types = {
        let _user_context = UserContext::of_caller();
        Spi::connect(|client| key_types(client, watch))?
    };
    let values: Vec<String> = (1..)
        .zip(&types)
        .map(|(number, (_, kind))| format!("(u.key::pg_catalog.text[])[{number}]::{kind} AS clip_key_{number}"))
        .collect();
    let same: Vec<String> =
        (1..).zip(&types).map(|(number, (name, _))| format!("t.{name} = a.clip_key_{number}")).collect();
    // The key columns as the shards return them. The coordinator formats them, because format() is not immutable.
    let returned: Vec<String> =
        (1..).zip(&types).map(|(number, (name, _))| format!("t.{name} AS clip_key_{number}")).collect();
    let keys: Vec<String> =
        (1..=types.len()).map(|number| format!("pg_catalog.format('%s', clip_key_{number})")).collect();
    let query = format!(
        include_str!("sql/assigned.sql"),
        values = values.join(", "),
        same = same.join(" AND "),
        table = watch.table,
        column = column,
        hash = hash_of(&format!("t.{embedding}")),
        returned = returned.join(", "),
        key = keys.join(", ")
    );
    let written: HashSet<String> = watch.as_owner(|client| {
        key_form();
        let keys: Vec<String> = found.iter().map(|(key, ..)| key.clone()).collect();
        let hashes: Vec<i64> = found.iter().map(|(.., hash)| *hash).collect();
        let rows = client.update(&query, None, &[keys.into(), clusters.clone().into(), hashes.into()])?;
        rows.map(|row| Ok(get::<String>(&row, 1)?.unwrap_or_default())).collect()
    })?;
    let count = found.len() as i64;
    for ((key, vector, _), cluster) in found.into_iter().zip(clusters) {
        if !written.contains(&key) {
            leave(cluster, vector, Some(collection), Some(watch.owner))?;
        }
    }
    Ok((count, written.len() as i64))
}
