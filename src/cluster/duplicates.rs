//! Members that nearly equal an earlier member.

use clip::clustering::agglomerative::{Linkage, agglomerate};
use clip::clustering::regroup::Rows;
use clip::memory::{self, Reserve};
use clip::vector::{ROUNDING, cosine};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::cluster::access::Privilege;
use crate::cluster::members::{self, Members};
use crate::guc;
use crate::pg::error::{SqlResult, report};
use crate::pg::regclass::Regclass;
use crate::pg::spi::get;
use crate::pg::text::{Key, Returned, Text};
use crate::pg::user_context::current_role;

/// 0.99 is immich's current threshold: with 0.97 and 0.985 it showed similar photos as duplicates (its issues 9781 and
/// 10703).
#[pg_extern(stable, parallel_restricted, cost = 100000, name = "clip_duplicates")]
#[allow(clippy::type_complexity)]
fn clip_duplicates_of(
    collection: Option<Text<'_>>,
    threshold: default!(Option<f64>, "0.99"),
    members: default!(Option<Regclass>, "NULL"),
) -> Result<TableIterator<'static, (name!(original, Key), name!(duplicate, Key), name!(cosine, f64))>, ErrorReport> {
    let collection = collection.map(Text::str);
    let (Some(collection), Some(threshold)) = (collection, threshold) else {
        return Ok(TableIterator::new(Vec::new()));
    };
    let found = Members::known(collection, current_role(), Privilege::Select)?;
    let mut keys = Vec::new();
    let rows = found.read(members.map(|Regclass(oid)| oid), |client| {
        let (vector, embedding, key, table) = (found.vector(), &found.embedding, &found.key, client.name());
        let query =
            format!("SELECT {vector}, t.{key}::text FROM {table} AS t WHERE {embedding} IS NOT NULL ORDER BY t.{key}");
        members::read(client.cursor(&query)?, |row| {
            let key = get::<Returned>(row, 2)?.map(|Returned(key)| key).unwrap_or_default();
            memory::push(&mut keys, key).map_err(report)
        })
    })?;
    // For each row: two copies of its key, and 256 bytes for the other values.
    let bytes = keys.iter().map(|key: &String| 2 * key.len() + 256).sum();
    let found = duplicates(&rows, threshold)?;
    let reserve = Reserve::new(bytes).map_err(report)?;
    let named = found.into_iter().map(|(a, b, cosine)| (Key(keys[a].clone()), Key(keys[b].clone()), cosine));
    let named = named.collect::<Vec<_>>();
    reserve.finish().map_err(report)?;
    Ok(TableIterator::new(named))
}

/// The declaration in the SQL of 0.2.0, which this library supports until ALTER EXTENSION … UPDATE.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn clip_duplicates(
    collection: Text<'_>,
    threshold: f64,
) -> Result<TableIterator<'static, (name!(original, Key), name!(duplicate, Key), name!(cosine, f64))>, ErrorReport> {
    clip_duplicates_of(Some(collection), Some(threshold), None)
}

/// (original, duplicate, cosine): in the order of the rows, each row is an original unless an earlier original is
/// within the threshold; then it is a duplicate of the nearest one. Matches are therefore not transitive.
fn duplicates(rows: &Rows, threshold: f64) -> SqlResult<Vec<(usize, usize, f64)>> {
    // Rows within the threshold of each other are always in the same single-linkage group.
    let labels = agglomerate(rows.view(), threshold, Linkage::Single, guc::threads(), &mut members::report_progress())
        .map_err(report)?;
    let reserve = Reserve::new(rows.len() * 256).map_err(report)?;
    let mut originals: Vec<Vec<usize>> = Vec::new();
    let mut found = Vec::new();
    for (row, label) in labels.into_iter().enumerate() {
        pgrx::check_for_interrupts!();
        let label = label as usize;
        if label == originals.len() {
            originals.push(Vec::new());
        }
        let near = originals[label]
            .iter()
            .map(|&original| (cosine(rows.row(original), rows.row(row)), original))
            .filter(|(cosine, _)| cosine + ROUNDING >= threshold)
            .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        match near {
            Some((cosine, original)) => found.push((original, row, cosine)),
            None => originals[label].push(row),
        }
    }
    found.sort_by_key(|&(original, duplicate, _)| (original, duplicate));
    reserve.finish().map_err(report)?;
    Ok(found)
}
