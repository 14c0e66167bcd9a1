//! Grouping on insert: a vector joins the nearest cluster of its collection, or founds one.

use clip::cluster::{Centroid, normalise};
use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::error::{SqlResult, report, with_sqlstate};
use crate::settings;
use crate::vector::{self, Vector};

const DEFAULT_COLLECTION: &str = "default";

/// Equal vectors have a cosine of 1 but for rounding: the components are float4, whose last bit moves a
/// cosine by about 1e-15. With this much room a threshold of 1 means equal.
const ROUNDING: f64 = 1e-12;

#[pg_extern(volatile, strict, parallel_unsafe, security_definer, cost = 5000)]
#[search_path(pg_catalog, pg_temp)]
fn clip_assign_cluster(embedding: Vector) -> SqlResult<i64> {
    assign(embedding, DEFAULT_COLLECTION)
}

#[pg_extern(volatile, strict, parallel_unsafe, security_definer, cost = 5000, name = "clip_assign_cluster")]
#[search_path(pg_catalog, pg_temp)]
fn clip_assign_cluster_in(embedding: Vector, collection: &str) -> SqlResult<i64> {
    assign(embedding, collection)
}

fn assign(embedding: Vector, collection: &str) -> SqlResult<i64> {
    if collection.is_empty() {
        return Err(report(Error::new(Kind::InvalidInput, "collection name is empty")));
    }
    let Vector(mut member) = embedding;
    normalise(&mut member).map_err(report)?;
    Spi::connect_mut(|client| {
        lock_collection(client, collection, member.len())?;
        match nearest(client, collection, &member)? {
            Some((id, centroid)) if centroid.cosine(&member) + ROUNDING >= settings::cluster_threshold() => {
                join(client, id, &centroid, &member)?;
                Ok(id)
            }
            _ => found(client, collection, member),
        }
    })
}

/// Makes this transaction the only one that assigns in the collection, until it ends.
///
/// Two sessions that insert the same photo at once must end in one cluster, so the second has to see what
/// the first did, or that it was undone. The statements after this one see all that has been committed
/// (READ COMMITTED); under stricter isolation PostgreSQL raises 40001 here if a cluster was founded since
/// the snapshot, because the row has then changed.
fn lock_collection(client: &mut SpiClient<'_>, collection: &str, dimensions: usize) -> SqlResult<()> {
    const LOCK: &str = "SELECT dimensions FROM clip_search.collection WHERE name OPERATOR(pg_catalog.=) $1 FOR UPDATE";
    let mut known = first::<i32>(client, LOCK, &[collection.into()])?;
    if known.is_none() {
        run(
            client,
            "INSERT INTO clip_search.collection (name, dimensions) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
            &[collection.into(), (dimensions as i32).into()],
        )?;
        known = first::<i32>(client, LOCK, &[collection.into()])?;
    }
    match known {
        Some(known) if known as usize != dimensions => Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            Error::new(Kind::InvalidInput, format!("different vector dimensions {known} and {dimensions}"))
                .detail(format!(
                    "Collection \"{collection}\" holds vectors of {known} dimensions; this one has {dimensions}."
                ))
                .hint("Vectors of different models don't mix: use a collection for each."),
        )),
        _ => Ok(()),
    }
}

/// The cluster whose centroid has the highest cosine to `member`.
fn nearest(client: &mut SpiClient<'_>, collection: &str, member: &[f32]) -> SqlResult<Option<(i64, Centroid)>> {
    let distance = format!("OPERATOR({}.<=>)", vector::schema());
    let query = format!(
        "SELECT id, centroid, resultant, size FROM clip_search.cluster WHERE collection OPERATOR(pg_catalog.=) $1 \
         ORDER BY centroid {distance} $2, id LIMIT 1"
    );
    // An update, so that the statement takes a snapshot of its own, after the lock.
    let rows = client.update(&query, Some(1), &[collection.into(), Vector(member.to_vec()).into()]).map_err(spi)?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    let id = row.get::<i64>(1).map_err(spi)?;
    let direction = row.get::<Vector>(2).map_err(spi)?;
    let resultant = row.get::<f64>(3).map_err(spi)?;
    let size = row.get::<i64>(4).map_err(spi)?;
    Ok(match (id, direction, resultant, size) {
        (Some(id), Some(Vector(direction)), Some(resultant), Some(size)) => {
            Some((id, Centroid { direction, resultant, size: size as u64 }))
        }
        _ => None,
    })
}

fn join(client: &mut SpiClient<'_>, id: i64, centroid: &Centroid, member: &[f32]) -> SqlResult<()> {
    let Centroid { direction, resultant, size } = centroid.join(member).map_err(report)?;
    run(
        client,
        "UPDATE clip_search.cluster SET centroid = $2, resultant = $3, size = $4, updated_at = pg_catalog.now() \
         WHERE id OPERATOR(pg_catalog.=) $1",
        &[id.into(), Vector(direction).into(), resultant.into(), (size as i64).into()],
    )
}

fn found(client: &mut SpiClient<'_>, collection: &str, member: Vec<f32>) -> SqlResult<i64> {
    run(
        client,
        "UPDATE clip_search.collection SET clusters = clusters OPERATOR(pg_catalog.+) 1 WHERE name OPERATOR(pg_catalog.=) $1",
        &[collection.into()],
    )?;
    let Centroid { direction, resultant, size } = Centroid::found(member);
    let id = first::<i64>(
        client,
        "INSERT INTO clip_search.cluster (collection, centroid, resultant, size) VALUES ($1, $2, $3, $4) RETURNING id",
        &[collection.into(), Vector(direction).into(), resultant.into(), (size as i64).into()],
    )?;
    id.ok_or_else(|| report(Error::new(Kind::Internal, "the new cluster has no id")))
}

/// Runs a statement that changes something.
fn run(client: &mut SpiClient<'_>, query: &str, arguments: &[pgrx::datum::DatumWithOid<'_>]) -> SqlResult<()> {
    client.update(query, None, arguments).map(|_| ()).map_err(spi)
}

/// The first column of the first row, if there is one.
fn first<T: FromDatum + IntoDatum>(
    client: &mut SpiClient<'_>,
    query: &str,
    arguments: &[pgrx::datum::DatumWithOid<'_>],
) -> SqlResult<Option<T>> {
    let rows = client.update(query, Some(1), arguments).map_err(spi)?;
    match rows.into_iter().next() {
        Some(row) => row.get::<T>(1).map_err(spi),
        None => Ok(None),
    }
}

fn spi(error: pgrx::spi::Error) -> pgrx::pg_sys::panic::ErrorReport {
    report(Error::new(Kind::Internal, "the cluster tables could not be read or written").detail(error.to_string()))
}
