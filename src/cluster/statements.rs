//! The statements that write the cluster tables. Each is planned once per session.

use std::collections::HashMap;

use clip::clustering::binary_code::Block;
use clip::clustering::centroid::Sum;
use clip::{Error, Kind};
use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiTupleTable};

use crate::cluster::session_state::merged_up_to;
use crate::cluster::tables::Store;
use crate::pg::error::{SqlResult, report};
use crate::pg::spi::{get, run, spi};
use crate::pg::transaction::run_on_latest;
use crate::pg::vector::Vector;

/// A sequence that was never used also returns 1.
const LAST_ID: &str = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM clip_search.cluster_id_seq";
const INSERT_CLUSTER: &str = "INSERT INTO clip_search.cluster_sum (collection, cluster, mark, size, sum, model) \
     SELECT $1, n, n, 1, $2, $3 FROM pg_catalog.nextval('clip_search.cluster_id_seq') AS n RETURNING cluster";
const INSERT_CLUSTER_ROW: &str =
    "INSERT INTO clip_search.cluster_sum (collection, cluster, size, sum, model) VALUES ($1, $2, 1, $3, $4)";
const CHANGE: &str = "INSERT INTO clip_search.cluster_change (collection, cluster, size, sum) VALUES ($1, $2, $3, $4)";
const MERGED: &str =
    "INSERT INTO clip_search.cluster_change (collection, cluster, size, sum, rest) VALUES ($1, $2, $3, $4, $5)";
/// A row that loses its code gets a new sequence number, because searches of rows without a code have not seen it.
const REPLACE: &str = "UPDATE clip_search.cluster_sum SET size = $2, sum = $3, rest = $4, code = $5, updated_at = pg_catalog.now(), \
         mark = CASE WHEN code IS NOT NULL AND $5 IS NULL THEN pg_catalog.nextval('clip_search.cluster_id_seq') ELSE mark END \
     WHERE ctid OPERATOR(pg_catalog.=) $1";
const DELETE_SUMS: &str = "DELETE FROM clip_search.cluster_sum WHERE ctid OPERATOR(pg_catalog.=) ANY ($1)";
const DELETE_CHANGES: &str = "DELETE FROM clip_search.cluster_change WHERE ctid OPERATOR(pg_catalog.=) ANY ($1)";
const LOCK_SUMS: &str = "SELECT ctid, cluster, size, sum, rest, code, mark FROM clip_search.cluster_sum \
     WHERE cluster OPERATOR(pg_catalog.=) $1 FOR UPDATE SKIP LOCKED";
/// The number of rows is limited, in case ten thousand rows have accumulated.
const LOCK_CHANGES: &str = include_str!("sql/lock_changes.sql");
/// As above, for the table of 0.2.0.
const LOCK_CHANGES_OF_0_2: &str = "SELECT ctid, cluster, size, sum, rest, NULL::bytea, 0::bigint FROM clip_search.cluster_change \
     WHERE cluster OPERATOR(pg_catalog.=) $1 LIMIT 1000 FOR UPDATE SKIP LOCKED";
const RECENT: &str = "SELECT ctid, cluster, size, sum, NULL, NULL::bytea, mark FROM clip_search.cluster_sum \
     WHERE collection OPERATOR(pg_catalog.=) $1 AND code IS NULL ORDER BY mark LIMIT $2 FOR UPDATE SKIP LOCKED";
const SET_CODES: &str = "UPDATE clip_search.cluster_sum s SET code = n.code \
     FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS n (tid, code) WHERE s.ctid OPERATOR(pg_catalog.=) n.tid";
const BLOCK: &str = "INSERT INTO clip_search.cluster_code (collection, first, mark, entries) VALUES ($1, $2, $3, $4)";

const NEXT_BLOCK: &str = "SELECT ctid, mark, first, entries FROM clip_search.cluster_code \
     WHERE collection OPERATOR(pg_catalog.=) $1 AND mark OPERATOR(pg_catalog.>) $2 ORDER BY mark LIMIT 1 FOR UPDATE SKIP LOCKED";
const CODED: &str = "SELECT ctid, cluster, code FROM clip_search.cluster_sum \
     WHERE cluster OPERATOR(pg_catalog.=) ANY ($1) AND code IS NOT NULL";
const LOCK_CODED: &str = "SELECT ctid, cluster, code FROM clip_search.cluster_sum \
     WHERE cluster OPERATOR(pg_catalog.=) ANY ($1) AND code IS NOT NULL FOR UPDATE SKIP LOCKED";
const FORGET_CODES: &str = "UPDATE clip_search.cluster_sum SET code = NULL, mark = pg_catalog.nextval('clip_search.cluster_id_seq') \
     WHERE ctid OPERATOR(pg_catalog.=) ANY ($1)";
const DELETE_BLOCK: &str = "DELETE FROM clip_search.cluster_code WHERE ctid OPERATOR(pg_catalog.=) $1";

const FOUNDINGS: &str = "SELECT cluster, pg_catalog.min(made_at), pg_catalog.min(model) FROM clip_search.cluster_sum \
     WHERE collection OPERATOR(pg_catalog.=) $1 GROUP BY cluster";
const CLEAR: [&str; 3] = [
    "DELETE FROM clip_search.cluster_sum WHERE collection OPERATOR(pg_catalog.=) $1",
    "DELETE FROM clip_search.cluster_change WHERE collection OPERATOR(pg_catalog.=) $1",
    "DELETE FROM clip_search.cluster_code WHERE collection OPERATOR(pg_catalog.=) $1",
];
const INSERT: &str = "INSERT INTO clip_search.cluster_sum (collection, cluster, mark, size, sum, rest, code, made_at, model) \
     VALUES ($1, $2, $2, $3, $4, $5, $6, coalesce($7, pg_catalog.now()), $8)";

/// When a cluster was created, and the model of its first vector.
pub type Founding = (Option<TimestampWithTimeZone>, Option<String>);

/// A row of the tables of sums or changes.
pub struct Stored {
    tid: pg_sys::ItemPointerData,
    pub cluster: i64,
    pub size: i64,
    pub high: Vec<f32>,
    pub low: Option<Vec<f32>>,
    pub code: Option<Vec<u8>>,
    pub sequence_number: i64,
}

fn first_bigint(rows: SpiTupleTable<'_>) -> SqlResult<i64> {
    let value = rows.first().get::<i64>(1).map_err(spi)?;
    value.ok_or_else(|| report(Error::new(Kind::Internal, "a cluster has no id")))
}

/// The last drawn id or sequence number.
pub fn last_id(client: &mut SpiClient<'_>) -> SqlResult<i64> {
    first_bigint(run(client, LAST_ID, &[])?)
}

/// Inserts a cluster with one member; returns its id.
pub fn insert_cluster(
    client: &mut SpiClient<'_>,
    collection: &str,
    member: &[f32],
    model: Option<&str>,
) -> SqlResult<i64> {
    first_bigint(run(client, INSERT_CLUSTER, &[collection.into(), Vector(member.to_vec()).into(), model.into()])?)
}

/// Inserts this transaction's own row for a cluster that another transaction has created and not committed.
pub fn insert_cluster_row(
    client: &mut SpiClient<'_>,
    collection: &str,
    cluster: i64,
    member: &[f32],
    model: Option<&str>,
) -> SqlResult<()> {
    let member = Vector(member.to_vec());
    run(client, INSERT_CLUSTER_ROW, &[collection.into(), cluster.into(), member.into(), model.into()]).map(drop)
}

/// Adds a member (1), or removes one (-1, with its vector negated).
pub fn change(client: &mut SpiClient<'_>, collection: &str, cluster: i64, size: i64, member: &[f32]) -> SqlResult<()> {
    let member = Vector(member.to_vec());
    run(client, CHANGE, &[collection.into(), cluster.into(), size.into(), member.into()]).map(drop)
}

/// Inserts several changes as one.
pub fn merged(client: &mut SpiClient<'_>, collection: &str, cluster: i64, total: &Sum) -> SqlResult<()> {
    let (high, low) = total.split();
    let arguments = [collection.into(), cluster.into(), total.size.into(), Vector(high).into(), Vector(low).into()];
    run(client, MERGED, &arguments).map(drop)
}

/// Replaces the sum in a row that this transaction has locked.
pub fn replace(client: &mut SpiClient<'_>, row: &Stored, total: &Sum, code: Option<&[u8]>) -> SqlResult<()> {
    let (high, low) = total.split();
    let arguments = [row.tid.into(), total.size.into(), Vector(high).into(), Vector(low).into(), code.into()];
    run(client, REPLACE, &arguments).map(drop)
}

/// Locks the sums of a cluster that no other transaction has locked.
pub fn lock_sums(client: &mut SpiClient<'_>, cluster: i64) -> SqlResult<Vec<Stored>> {
    stored(run(client, LOCK_SUMS, &[cluster.into()])?)
}

/// Locks the changes of a cluster that no other transaction has locked.
pub fn lock_changes(client: &mut SpiClient<'_>, store: &Store, cluster: i64) -> SqlResult<Vec<Stored>> {
    if store.is_outdated() {
        return stored(run(client, LOCK_CHANGES_OF_0_2, &[cluster.into()])?);
    }
    stored(run(client, LOCK_CHANGES, &[cluster.into(), merged_up_to(store, cluster).into()])?)
}

/// Locks the oldest sums without a code, except those that another transaction has locked.
pub fn lock_recent(client: &mut SpiClient<'_>, collection: &str, limit: usize) -> SqlResult<Vec<Stored>> {
    stored(run(client, RECENT, &[collection.into(), (limit as i64).into()])?)
}

fn stored(rows: SpiTupleTable<'_>) -> SqlResult<Vec<Stored>> {
    rows.into_iter()
        .map(|row| {
            let missing = || report(Error::new(Kind::Internal, "a row of the cluster tables has a NULL"));
            Ok(Stored {
                tid: row.get::<pg_sys::ItemPointerData>(1).map_err(spi)?.ok_or_else(missing)?,
                cluster: row.get::<i64>(2).map_err(spi)?.ok_or_else(missing)?,
                size: row.get::<i64>(3).map_err(spi)?.ok_or_else(missing)?,
                high: row.get::<Vector>(4).map_err(spi)?.ok_or_else(missing)?.0,
                low: row.get::<Vector>(5).map_err(spi)?.map(|low| low.0),
                code: row.get::<Vec<u8>>(6).map_err(spi)?,
                sequence_number: row.get::<i64>(7).map_err(spi)?.ok_or_else(missing)?,
            })
        })
        .collect()
}

pub fn delete_sums(client: &mut SpiClient<'_>, rows: &[Stored]) -> SqlResult<()> {
    delete(client, DELETE_SUMS, rows)
}

pub fn delete_changes(client: &mut SpiClient<'_>, rows: &[Stored]) -> SqlResult<()> {
    delete(client, DELETE_CHANGES, rows)
}

fn delete(client: &mut SpiClient<'_>, query: &'static str, rows: &[Stored]) -> SqlResult<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let tids: Vec<pg_sys::ItemPointerData> = rows.iter().map(|row| row.tid).collect();
    run(client, query, &[tids.into()]).map(drop)
}

/// Writes the codes of sums that this transaction has locked.
pub fn set_codes(client: &mut SpiClient<'_>, rows: &[Stored], codes: Vec<Vec<u8>>) -> SqlResult<()> {
    let tids: Vec<pg_sys::ItemPointerData> = rows.iter().map(|row| row.tid).collect();
    run(client, SET_CODES, &[tids.into(), codes.into()]).map(drop)
}

pub fn block(client: &mut SpiClient<'_>, collection: &str, block: Block) -> SqlResult<()> {
    run(client, BLOCK, &[collection.into(), block.first.into(), block.sequence_number.into(), block.entries.into()])
        .map(drop)
}

/// A stored block of codes.
pub struct StoredBlock {
    tid: pg_sys::ItemPointerData,
    pub sequence_number: i64,
    pub first: i64,
    pub entries: Vec<u8>,
}

/// Locks the first block whose sequence number is greater than `after` and that no other transaction has locked.
pub fn next_block(client: &mut SpiClient<'_>, collection: &str, after: i64) -> SqlResult<Option<StoredBlock>> {
    let mut rows = run(client, NEXT_BLOCK, &[collection.into(), after.into()])?;
    let Some(row) = rows.next() else { return Ok(None) };
    let missing = || report(Error::new(Kind::Internal, "a block of codes has a NULL"));
    Ok(Some(StoredBlock {
        tid: row.get::<pg_sys::ItemPointerData>(1).map_err(spi)?.ok_or_else(missing)?,
        sequence_number: row.get::<i64>(2).map_err(spi)?.ok_or_else(missing)?,
        first: row.get::<i64>(3).map_err(spi)?.ok_or_else(missing)?,
        entries: row.get::<Vec<u8>>(4).map_err(spi)?.ok_or_else(missing)?,
    }))
}

/// The location of a sum with a code, and the code.
pub struct Coded {
    tid: pg_sys::ItemPointerData,
    pub cluster: i64,
    pub code: Vec<u8>,
}

/// The sums of clusters that have a code; with `lock`, locks them and skips sums that another transaction has locked.
pub fn coded(client: &mut SpiClient<'_>, clusters: &[i64], lock: bool) -> SqlResult<Vec<Coded>> {
    let missing = || report(Error::new(Kind::Internal, "a row of the cluster tables has a NULL"));
    run(client, if lock { LOCK_CODED } else { CODED }, &[clusters.to_vec().into()])?
        .map(|row| {
            Ok(Coded {
                tid: row.get::<pg_sys::ItemPointerData>(1).map_err(spi)?.ok_or_else(missing)?,
                cluster: row.get::<i64>(2).map_err(spi)?.ok_or_else(missing)?,
                code: row.get::<Vec<u8>>(3).map_err(spi)?.ok_or_else(missing)?,
            })
        })
        .collect()
}

/// Removes the codes of sums and deletes the block that contains them. This transaction has locked both.
pub fn dissolve(client: &mut SpiClient<'_>, block: &StoredBlock, sums: &[Coded]) -> SqlResult<()> {
    if !sums.is_empty() {
        let tids: Vec<pg_sys::ItemPointerData> = sums.iter().map(|sum| sum.tid).collect();
        run(client, FORGET_CODES, &[tids.into()])?;
    }
    run(client, DELETE_BLOCK, &[block.tid.into()]).map(drop)
}

/// Deletes all clusters of a collection; returns the properties that a recluster keeps.
pub fn clear(client: &mut SpiClient<'_>, collection: &str) -> SqlResult<HashMap<i64, Founding>> {
    let known = run(client, FOUNDINGS, &[collection.into()])?
        .map(|row| {
            let id = row.get::<i64>(1).map_err(spi)?.unwrap_or_default();
            Ok((id, (row.get(2).map_err(spi)?, row.get(3).map_err(spi)?)))
        })
        .collect::<SqlResult<_>>()?;
    for query in CLEAR {
        run(client, query, &[collection.into()])?;
    }
    Ok(known)
}

/// Deletes all clusters of a collection, including those that were committed after this transaction's snapshot.
pub fn clear_latest(collection: &str) -> SqlResult<()> {
    CLEAR.iter().try_for_each(|query| run_on_latest(query, &[collection.into()]).map(drop))
}

/// Inserts a whole cluster.
pub fn insert(
    client: &mut SpiClient<'_>,
    collection: &str,
    cluster: i64,
    sum: &Sum,
    code: &[u8],
    founding: Option<&Founding>,
) -> SqlResult<()> {
    let (high, low) = sum.split();
    let (made_at, model) = founding.cloned().unwrap_or_default();
    let arguments = [
        collection.into(),
        cluster.into(),
        sum.size.into(),
        Vector(high).into(),
        Vector(low).into(),
        code.into(),
        made_at.into(),
        model.into(),
    ];
    run(client, INSERT, &arguments).map(drop)
}

/// The clusters of a collection with their sizes.
pub fn sizes(collection: &str) -> impl FnOnce(&mut SpiClient<'_>) -> SqlResult<HashMap<i64, i64>> {
    move |client| {
        let rows = client.update(include_str!("sql/sizes.sql"), None, &[collection.into()]).map_err(spi)?;
        rows.map(|row| Ok((get(&row, 1)?.unwrap_or_default(), get(&row, 2)?.unwrap_or_default()))).collect()
    }
}

/// Draws ids for new clusters.
pub fn fresh_ids(count: usize) -> impl FnOnce(&mut SpiClient<'_>) -> SqlResult<Vec<i64>> {
    const IDS: &str = "SELECT pg_catalog.nextval('clip_search.cluster_id_seq') FROM pg_catalog.generate_series(1, $1)";
    move |client| {
        let rows = client.update(IDS, None, &[(count as i64).into()]).map_err(spi)?;
        rows.map(|row| Ok(get(&row, 1)?.unwrap_or_default())).collect()
    }
}
