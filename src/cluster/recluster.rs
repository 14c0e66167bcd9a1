//! Grouping a whole collection anew: exact agglomerative clustering, and what changes by it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use clip::clustering::agglomerative::{Linkage, Progress, agglomerate};
use clip::clustering::centroid::{Sum, normalise};
use clip::{Error, Kind};
use ndarray::ArrayView2;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiCursor, SpiHeapTupleData};

use crate::cluster::assign::{ROUNDING, write_anew};
use crate::cluster::collection::{Members, get, spi};
use crate::cluster::tables::{AsOwner, Store};
use crate::guc;
use crate::pg::error::{SqlResult, report, with_sqlstate};
use crate::pg::vector::Vector;

/// Between two messages about the progress.
const REPORT: Duration = Duration::from_secs(5);
/// Rows fetched at a time: 20 MB of 512 dimensions.
const FETCH: i64 = 10_000;

/// Unit vectors, one after another.
pub struct Rows {
    values: Vec<f32>,
    dimensions: usize,
}

impl Rows {
    pub fn view(&self) -> ArrayView2<'_, f32> {
        ArrayView2::from_shape((self.len(), self.dimensions), &self.values).expect("rows are of one length")
    }

    fn len(&self) -> usize {
        self.values.len().checked_div(self.dimensions).unwrap_or(0)
    }

    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dimensions..][..self.dimensions]
    }
}

/// Reads the vectors in the first column of a query's result, and has the other columns visited.
pub fn read(
    mut cursor: SpiCursor<'_>,
    mut visit: impl FnMut(&SpiHeapTupleData<'_>) -> SqlResult<()>,
) -> SqlResult<Rows> {
    let mut rows = Rows { values: Vec::new(), dimensions: 0 };
    loop {
        pgrx::check_for_interrupts!();
        let fetched = cursor.fetch(FETCH).map_err(spi)?;
        if fetched.is_empty() {
            return Ok(rows);
        }
        for row in fetched {
            let Some(Vector(mut vector)) = get::<Vector>(&row, 1)? else { continue };
            normalise(&mut vector).map_err(report)?;
            if rows.dimensions == 0 {
                rows.dimensions = vector.len();
            } else if rows.dimensions != vector.len() {
                return Err(with_sqlstate(
                    PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
                    Error::new(
                        Kind::InvalidInput,
                        format!("different vector dimensions {} and {}", rows.dimensions, vector.len()),
                    ),
                ));
            }
            rows.values.extend_from_slice(&vector);
            visit(&row)?;
        }
    }
}

/// Lets a cancel act, and tells how far the work is.
pub fn pulse() -> impl FnMut(Progress) {
    let mut last = Instant::now();
    move |progress| {
        pgrx::check_for_interrupts!();
        if last.elapsed() >= REPORT {
            last = Instant::now();
            let percent = 100 * progress.done / progress.total.max(1);
            pgrx::notice!("clip_search: {}, {percent} %", progress.stage);
        }
    }
}

/// Where a member is.
struct Place {
    table: pg_sys::Oid,
    tid: pg_sys::ItemPointerData,
    cluster: Option<i64>,
}

/// A change that is reported.
type Change = (i64, String, Vec<i64>, i64, i64);

#[pg_extern(volatile, strict, parallel_unsafe, cost = 1000000)]
#[allow(clippy::type_complexity)]
fn clip_recluster(
    collection: &str,
    linkage: default!(&str, "'average'"),
) -> Result<
    TableIterator<
        'static,
        (name!(cluster, i64), name!(change, String), name!(sources, Vec<i64>), name!(size, i64), name!(moved, i64)),
    >,
    ErrorReport,
> {
    let linkage = match linkage {
        "average" => Linkage::Average,
        "single" => Linkage::Single,
        other => {
            return Err(report(
                Error::new(Kind::InvalidInput, format!("linkage \"{other}\" is unknown"))
                    .hint("Use 'average' or 'single'."),
            ));
        }
    };
    // What this transaction has assigned and then not written is no member.
    crate::cluster::pending::settle()?;
    let store = Store::open(c"clip_recluster()");
    let changes = Spi::connect_mut(|client| {
        let members = Members::known(client, collection)?;
        without_row_security(client, |client| recluster(client, &store, collection, &members, linkage))
    })?;
    Ok(TableIterator::new(changes))
}

/// Members that a policy hides would be taken for gone: an error, instead.
fn without_row_security<T>(
    client: &mut SpiClient<'_>,
    f: impl FnOnce(&mut SpiClient<'_>) -> SqlResult<T>,
) -> SqlResult<T> {
    const SET: &str =
        "SELECT pg_catalog.current_setting('row_security'), pg_catalog.set_config('row_security', $1, true)";
    let before = client.update(SET, None, &["off".into()]).map_err(spi)?.first().get::<String>(1).map_err(spi)?;
    let result = f(client)?;
    client.update(SET, None, &[before.into()]).map_err(spi)?;
    Ok(result)
}

/// A cursor that may change data takes a snapshot of its own.
fn fresh<'conn>(client: &mut SpiClient<'conn>, query: &str) -> SqlResult<SpiCursor<'conn>> {
    client.try_open_cursor_mut(query, &[]).map_err(spi)
}

fn recluster(
    client: &mut SpiClient<'_>,
    store: &Store,
    collection: &str,
    members: &Members,
    linkage: Linkage,
) -> SqlResult<Vec<Change>> {
    let Members { table, embedding, cluster, .. } = members;
    let vector = members.vector();
    // The long part locks nothing.
    let rows =
        read(fresh(client, &format!("SELECT {vector} FROM {table} WHERE {embedding} IS NOT NULL"))?, |_| Ok(()))?;
    let labels = agglomerate(rows.view(), members.threshold, linkage, guc::threads(), &mut pulse()).map_err(report)?;

    // From here on nobody writes members; those that have come, gone or changed meanwhile are seen to.
    lock(store, collection, members);
    let mut places = Vec::new();
    let query =
        format!("SELECT {vector}, tableoid, ctid, {cluster}::bigint FROM {table} WHERE {embedding} IS NOT NULL");
    let now = read(fresh(client, &query)?, |row| {
        let missing = || report(Error::new(Kind::Internal, "a member has no place"));
        let tid = get(row, 3)?.ok_or_else(missing)?;
        places.push(Place { table: get(row, 2)?.ok_or_else(missing)?, tid, cluster: get(row, 4)? });
        Ok(())
    })?;
    let (labels, groups) = regroup(&rows, &labels, &now, members.threshold);
    drop(rows);

    let known: HashMap<i64, i64> = {
        let query = "SELECT id, size FROM clip_search.cluster WHERE collection OPERATOR(pg_catalog.=) $1";
        let found = client.update(query, None, &[collection.into()]).map_err(spi)?;
        found
            .into_iter()
            .map(|row| Ok((get(&row, 1)?.unwrap_or_default(), get(&row, 2)?.unwrap_or_default())))
            .collect::<SqlResult<_>>()?
    };
    let old: Vec<Option<i64>> = places.iter().map(|place| place.cluster.filter(|id| known.contains_key(id))).collect();
    let kept = keep_ids(&labels, &old, groups.len());
    let ids = {
        let _owner = AsOwner::new(store);
        let new = kept.iter().filter(|id| id.is_none()).count();
        let mut fresh = fresh_ids(client, new)?.into_iter();
        kept.iter().map(|id| id.or_else(|| fresh.next())).map(|id| id.unwrap_or_default()).collect::<Vec<i64>>()
    };
    let changes = compare(&labels, &old, &ids);

    // The members, as the caller.
    let mut moves: HashMap<pg_sys::Oid, (Vec<pg_sys::ItemPointerData>, Vec<i64>)> = HashMap::new();
    for (place, label) in places.iter().zip(&labels) {
        let id = ids[*label as usize];
        if place.cluster != Some(id) {
            let (tids, new) = moves.entry(place.table).or_default();
            tids.push(place.tid);
            new.push(id);
        }
    }
    for (oid, (tids, new)) in moves {
        let name = client
            .update("SELECT pg_catalog.format('%I.%I', n.nspname, r.relname) FROM pg_catalog.pg_class r \
                     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) r.relnamespace WHERE r.oid OPERATOR(pg_catalog.=) $1", Some(1), &[oid.into()])
            .map_err(spi)?
            .first()
            .get::<String>(1)
            .map_err(spi)?
            .unwrap_or_default();
        let update = format!(
            "UPDATE ONLY {name} AS t SET {cluster} = n.id FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS n (tid, id) \
             WHERE t.ctid OPERATOR(pg_catalog.=) n.tid"
        );
        for (tids, new) in tids.chunks(FETCH as usize).zip(new.chunks(FETCH as usize)) {
            pgrx::check_for_interrupts!();
            let done = client.update(&update, None, &[tids.to_vec().into(), new.to_vec().into()]).map_err(spi)?.len();
            if done != tids.len() {
                return Err(with_sqlstate(
                    PgSqlErrorCode::ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
                    Error::new(Kind::InvalidInput, format!("{} of {} members could not be moved", tids.len() - done, tids.len()))
                        .detail(format!("A trigger or a rule on {name} keeps its rows from being updated."))
                        .hint("Triggers that embed should fire for changes of the image only: BEFORE INSERT OR UPDATE OF data."),
                ));
            }
        }
    }

    let _owner = AsOwner::new(store);
    write_anew(client, collection, &ids, &groups)?;
    let count = |what: &str| changes.iter().filter(|change| change.1 == what).count();
    pgrx::notice!(
        "clip_search: {} members in {} clusters, {} before: {} merged, {} split, {} moved, {} new",
        labels.len(),
        ids.len(),
        known.len(),
        count("merged"),
        count("split"),
        count("moved"),
        count("new")
    );
    Ok(changes)
}

/// Locks the members against writers, and the collection against assignment.
///
/// Who has assigned and not committed yet holds both. As long as somebody does, neither lock is kept, so that others go
/// on; after ten seconds of trying it queues up.
fn lock(store: &Store, collection: &str, members: &Members) {
    const TRIES: u32 = 100;
    for _ in 0..TRIES {
        if store.try_lock(members.oid, collection) {
            return;
        }
        pgrx::check_for_interrupts!();
        std::thread::sleep(Duration::from_millis(100));
    }
    pgrx::notice!("clip_search: waiting for transactions that are writing members of collection \"{collection}\"");
    store.lock_members(members.oid, collection);
}

/// The labels of the members as they are now, numbered by first appearance, and the groups' sums. A vector that was
/// among those grouped has the label of its equals; one that was not joins the nearest group at the threshold, or is
/// one of its own.
fn regroup(rows: &Rows, labels: &[u32], now: &Rows, threshold: f64) -> (Vec<u32>, Vec<Sum>) {
    let hash = |vector: &[f32]| {
        let mut hasher = DefaultHasher::new();
        vector.iter().for_each(|value| value.to_bits().hash(&mut hasher));
        hasher.finish()
    };
    let mut by_hash: HashMap<u64, Vec<u32>> = HashMap::new();
    for index in 0..rows.len() {
        let same = by_hash.entry(hash(rows.row(index))).or_default();
        if !same.iter().any(|&other| rows.row(other as usize) == rows.row(index)) {
            same.push(index as u32);
        }
    }
    let grouped = |vector: &[f32]| {
        by_hash
            .get(&hash(vector))?
            .iter()
            .find(|&&row| rows.row(row as usize) == vector)
            .map(|&row| labels[row as usize])
    };
    let mut numbers: HashMap<u32, u32> = HashMap::new();
    let mut sums: Vec<Sum> = Vec::new();
    let mut result = vec![0; now.len()];
    let mut strangers = Vec::new();
    for (index, place) in result.iter_mut().enumerate() {
        let vector = now.row(index);
        match grouped(vector) {
            Some(label) => {
                let number = *numbers.entry(label).or_insert_with(|| {
                    sums.push(Sum::new(vector.len()));
                    sums.len() as u32 - 1
                });
                sums[number as usize].add(vector, None, 1);
                *place = number;
            }
            None => strangers.push(index),
        }
    }
    for index in strangers {
        pgrx::check_for_interrupts!();
        let vector = now.row(index);
        let near = sums.iter().zip(0..).map(|(sum, number)| (sum.cosine(vector), number));
        let best = near.max_by(|a: &(f64, u32), b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        let number = match best {
            Some((cosine, number)) if cosine + ROUNDING >= threshold => number,
            _ => {
                sums.push(Sum::new(vector.len()));
                sums.len() as u32 - 1
            }
        };
        sums[number as usize].add(vector, None, 1);
        result[index] = number;
    }
    (result, sums)
}

/// For each group the id of the cluster that it has most members of, each id for one group only: the pairs with most in
/// common choose first.
fn keep_ids(labels: &[u32], old: &[Option<i64>], groups: usize) -> Vec<Option<i64>> {
    let mut common: HashMap<(u32, i64), i64> = HashMap::new();
    for (label, id) in labels.iter().zip(old) {
        if let Some(id) = id {
            *common.entry((*label, *id)).or_default() += 1;
        }
    }
    let mut pairs: Vec<((u32, i64), i64)> = common.into_iter().collect();
    pairs.sort_by_key(|&((label, id), count)| (-count, id, label));
    let mut kept = vec![None; groups];
    let mut taken = std::collections::HashSet::new();
    for ((label, id), _) in pairs {
        if kept[label as usize].is_none() && taken.insert(id) {
            kept[label as usize] = Some(id);
        }
    }
    kept
}

/// What has become of the clusters: for each whose members have changed, from which they came.
fn compare(labels: &[u32], old: &[Option<i64>], ids: &[i64]) -> Vec<Change> {
    let mut sources: Vec<HashMap<i64, i64>> = vec![HashMap::new(); ids.len()];
    let mut sizes = vec![0i64; ids.len()];
    let mut targets: HashMap<i64, i64> = HashMap::new();
    for (label, id) in labels.iter().zip(old) {
        sizes[*label as usize] += 1;
        if let Some(id) = id {
            let count = sources[*label as usize].entry(*id).or_default();
            *count += 1;
            // In how many groups the members of a cluster are now.
            *targets.entry(*id).or_default() += i64::from(*count == 1);
        }
    }
    let mut changes = Vec::new();
    for ((sources, size), id) in sources.into_iter().zip(sizes).zip(ids) {
        let whole = sources.keys().all(|source| targets[source] == 1);
        let moved = size - sources.get(id).copied().unwrap_or(0);
        let change = match (sources.len(), whole) {
            (0, _) => "new",
            (1, true) if moved == 0 => continue,
            (1, true) => "moved",
            (1, false) => "split",
            (_, true) => "merged",
            (_, false) => "moved",
        };
        let mut from: Vec<i64> = sources.into_keys().collect();
        from.sort_unstable();
        changes.push((*id, change.to_owned(), from, size, moved));
    }
    changes.sort_by_key(|change| change.0);
    changes
}

fn fresh_ids(client: &mut SpiClient<'_>, count: usize) -> SqlResult<Vec<i64>> {
    let query = "SELECT pg_catalog.nextval('clip_search.cluster_id_seq') FROM pg_catalog.generate_series(1, $1)";
    let rows = client.update(query, None, &[(count as i64).into()]).map_err(spi)?;
    rows.into_iter().map(|row| Ok(get(&row, 1)?.unwrap_or_default())).collect()
}
