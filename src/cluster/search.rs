//! The search for the cluster that a vector belongs to.
//!
//! The search uses binary codes of the centroids (`clip::clustering::binary_code`): it compares all codes of the
//! collection, and compares the clusters with the nearest codes exactly. pgvector's HNSW index is unsuitable: it
//! refuses dirty snapshots, and each join would move an entry.

use std::cell::RefCell;
use std::collections::HashMap;

use clip::clustering::binary_code::{self, Candidate, Code, Coder, Nearest};
use clip::clustering::centroid::{ROUNDING, Sum, cosine};
use clip::clustering::likelihood::Likelihood;

use pgrx::pg_sys;

use crate::cluster::collection::Collection;
use crate::cluster::tables::{self, Condition, Index, Moment, Row, Sees, Store};

/// Bits by which a stored code may differ from the current centroid's code. 12 of 256 is an angle of 8 degrees.
pub const DRIFT: u32 = 12;
/// The maximum number of nearest codes within reach that are ranked by likelihood.
const KEPT: usize = 8192;
/// The maximum number of clusters that are compared exactly. Each costs 2 µs, or 12 if its page has to be fetched from
/// the operating system.
const CANDIDATES: usize = 640;
/// The first batch of comparisons; each further batch is three times as large.
const FIRST: usize = 16;
/// The minimum number of clusters that are compared, if their codes are within reach. The likelihood assumes that
/// clusters are not centred on the vector; among many clusters around the vector, the right one ranked up to 52nd of
/// 400.
const SURE: usize = 64;
/// Further clusters are compared while their scores are at most this far below the expected score: the right cluster
/// lies beyond it in fewer than one of two thousand cases. Of 100,000 photo-like clusters two are within, of 5,000 with
/// a mean cosine of 0.78 20 are, and at 0.85 240.
const DEVIATIONS: f64 = 3.3;
/// Further clusters are also compared while the last batch came this close to the nearest cluster. The cosines of
/// vectors at one code distance have a standard deviation of 0.04.
const SPREAD: f64 = 0.05;
/// The amount by which the cosine to a centroid may exceed the cosine to the stored sum. Later changes have less weight
/// than the sum (see [`Cluster::wants_folding`]), and members are within about 20 degrees of their centroid.
const MOVED: f64 = 0.1;
/// The number of changes of a cluster that remain before they are added to its sum.
const CHANGES: usize = 16;
/// The number of clusters of other transactions that a session looks up one by one to avoid a longer scan.
pub const LEFT_OVER: usize = 64;

/// A cluster in its current state, including uncommitted changes of other transactions.
pub struct Cluster {
    pub id: i64,
    pub sum: Sum,
    /// The cosine to the query vector.
    pub cosine: f64,
    pub model: Option<String>,
    /// Searches find it through a row that only this transaction can remove.
    pub settled: bool,
    /// Rows that no other transaction is writing: sums and changes.
    pub rows: (usize, usize),
    /// Members in those rows, and in the sums alone.
    pub members: i64,
    pub base: i64,
    /// Other transactions are adding or removing members.
    under_way: bool,
}

impl Cluster {
    /// A new cluster.
    pub fn new(id: i64) -> Self {
        Self {
            id,
            sum: Sum::new(0),
            cosine: 1.0,
            model: None,
            settled: true,
            rows: (1, 0),
            members: 1,
            base: 1,
            under_way: false,
        }
    }

    /// Whether it has members, or may have.
    pub fn alive(&self) -> bool {
        self.members > 0 || self.under_way
    }

    /// At first with each doubling, so that the stored sum is never far from the centroid; later when reading the
    /// changes becomes expensive.
    pub fn wants_folding(&self) -> bool {
        self.rows.0 > 1 || self.rows.1 >= CHANGES || (self.rows.1 as i64) >= self.base.max(1)
    }
}

/// Searches the clusters of a collection for the cluster nearest to a vector.
pub struct Search<'a> {
    store: &'a Store,
    pub collection: &'a Collection,
    member: &'a [f32],
    code: Code,
    rotated: Vec<f32>,
    /// The width of the rotation.
    width: usize,
    /// Clusters without a code, as seen by the longest search.
    pub recent: std::cell::Cell<usize>,
}

impl<'a> Search<'a> {
    pub fn new(store: &'a Store, collection: &'a Collection, member: &'a [f32]) -> Self {
        let (code, rotated, width) =
            with_coder(member.len(), |coder| (coder.encode(member), coder.rotate(member), coder.width()));
        Self { store, collection, member, code, rotated, width, recent: std::cell::Cell::new(0) }
    }

    /// The nearest of the clusters that have rows with sequence numbers above `after`, unless all are clearly below the
    /// threshold.
    ///
    /// Sums without a code are scanned first, codes second, so a code that is created between the two scans is seen in
    /// at least one of them.
    pub fn nearest(&self, after: i64) -> Option<Cluster> {
        let mut best = Best { search: self, cluster: None };
        best.consider(self.recent(after));
        let reach = |cosine| binary_code::reach(cosine, DRIFT);
        let mut nearest = Nearest::new(self.code, reach(self.collection.threshold), KEPT);
        let conditions = [Condition::TextIs(1, &self.collection.name), Condition::BigintOver(3, after)];
        self.store.scan(Sees::Everything, Index::CodeCollection, &conditions, |row| {
            nearest.scan(row.bigint(2), row.bytes(4).unwrap_or_default());
            true
        });
        let found: Vec<Candidate> = nearest.into_sorted().collect();
        let likelihood = Likelihood::new(&self.rotated, self.width, self.collection.threshold, &found);
        let mut left = likelihood.rank(found).into_iter().take(CANDIDATES);
        let (mut compared, mut count, mut promising) = (0, FIRST, true);
        loop {
            // The better the best match so far, the fewer codes are within reach.
            let reach = reach(best.cosine());
            let batch: Vec<_> = left.by_ref().filter(|(_, near)| near.distance <= reach).take(count).collect();
            let Some((score, _)) = batch.first() else { break };
            if !promising && *score < -DEVIATIONS {
                break;
            }
            let near = self.sums(batch.iter().map(|(_, near)| near.id).collect());
            let closest = near.iter().map(|near| near.cosine).fold(-1.0, f64::max);
            best.consider(near);
            compared += batch.len();
            promising = compared < SURE || closest + SPREAD >= best.cosine();
            count *= 3;
        }
        best.cluster
    }

    /// Clusters by their sums.
    fn sums(&self, mut ids: Vec<i64>) -> Vec<Near> {
        ids.sort_unstable();
        ids.dedup();
        let place = |id| ids.binary_search(&id).ok();
        // Changes first: if changes are added to a sum in the meantime, the sum appears to have changed; in the
        // opposite order they would be missed.
        let mut changed = vec![false; ids.len()];
        let (merged, others): (Vec<i64>, Vec<i64>) = ids.iter().partition(|&&id| merged_up_to(self.store, id) > 0);
        let mut visit = |row: &Row| {
            if let Some(place) = place(row.bigint(2)) {
                changed[place] = true;
            }
            true
        };
        self.store.scan(Sees::Everything, Index::ChangeCluster, &[Condition::BigintIn(2, &others)], &mut visit);
        for id in merged {
            self.store.scan(Sees::Everything, Index::ChangeCluster, &changes_of(self.store, id), &mut visit);
        }
        let condition = [Condition::BigintIn(2, &ids)];
        let mut seen = vec![0; ids.len()];
        let mut near = Vec::with_capacity(ids.len());
        self.store.scan(Sees::Everything, Index::SumCluster, &condition, |row| {
            let id = row.bigint(2);
            if let (Some(sum), Some(place)) = (row.vector(4), place(id)) {
                seen[place] += 1;
                changed[place] |= row.inserting || row.deleting || seen[place] > 1;
                near.push(Near { id, cosine: cosine(&sum, self.member), moved: true });
            }
            true
        });
        near.iter_mut().for_each(|near| near.moved = place(near.id).is_none_or(|place| changed[place]));
        // Rows that were being replaced may have been missed; look them up again.
        let missed = ids.iter().zip(seen).filter(|(_, seen)| *seen == 0);
        near.extend(missed.map(|(&id, _)| Near { id, cosine: 1.0, moved: true }));
        near
    }

    /// Clusters by sums without a code that are not clearly below the threshold.
    fn recent(&self, after: i64) -> Vec<Near> {
        let (mut near, mut count) = (Vec::new(), 0);
        // Sums are replaced when changes are added to them, so both scans are needed (see `Store::scan`).
        let mut visit = |row: &Row| {
            count += 1;
            if let Some(sum) = row.vector(4) {
                let cosine = cosine(&sum, self.member);
                if cosine + MOVED >= self.collection.threshold {
                    near.push(Near { id: row.bigint(2), cosine, moved: true });
                }
            }
            true
        };
        let (from, left_over) = Packed::known(self.store, &self.collection.name, after);
        let conditions = [Condition::TextIs(1, &self.collection.name), Condition::BigintOver(10, from)];
        for sees in [Sees::Everything, Sees::Settled] {
            for &id in &left_over {
                self.store.scan(sees, Index::SumCluster, &[Condition::BigintIs(2, id)], &mut visit);
            }
            self.store.scan(sees, Index::SumRecent, &conditions, &mut visit);
        }
        self.recent.set((count / 2).max(self.recent.get()));
        near
    }

    /// A cluster with its committed members and the members that other transactions are adding or removing; None if it
    /// has no rows.
    ///
    /// The committed rows of both tables are read with one snapshot. Reading the tables one after the other counted
    /// rows twice that were merged into the sum between the two scans; if most members had just left, the rest seemed
    /// to cancel out. Uncommitted rows are read before the snapshot is taken, and count if the snapshot still shows
    /// their transactions in progress. Only rows for single members count: merged rows, and rows that got a code,
    /// replace rows that count already.
    pub fn look_up(&self, id: i64) -> Option<Cluster> {
        let mut cluster = Cluster {
            sum: Sum::new(self.member.len()),
            settled: false,
            rows: (0, 0),
            members: 0,
            base: 0,
            ..Cluster::new(id)
        };
        let (mut coming, mut place) = (UnderWay::default(), None);
        let of_cluster = [Condition::BigintIs(2, id)];
        // A transaction writes the row of a member's departure after the row of its arrival, so a scan that sees the
        // departure sees the arrival, here or in the sums.
        self.store.scan(Sees::Everything, Index::ChangeCluster, &changes_of(self.store, id), |row| {
            cluster.under_way |= row.inserting || row.deleting;
            coming.add(row);
            true
        });
        self.store.scan(Sees::Everything, Index::SumCluster, &of_cluster, |row| {
            cluster.under_way |= row.inserting || row.deleting;
            cluster.settled |= !row.inserting && !row.deleting;
            cluster.model = cluster.model.take().or_else(|| row.text(7));
            place = place.take().or_else(|| row.vector(4).map(|sum| sum.to_vec()));
            coming.add(row);
            true
        });
        let now = Moment::now();
        self.store.scan(Sees::At(&now), Index::ChangeCluster, &changes_of(self.store, id), |row| {
            cluster.members += row.bigint(3);
            cluster.rows.1 += 1;
            add(&mut cluster.sum, row);
            true
        });
        self.store.scan(Sees::At(&now), Index::SumCluster, &of_cluster, |row| {
            cluster.members += row.bigint(3);
            cluster.base += row.bigint(3);
            cluster.rows.0 += 1;
            cluster.model = cluster.model.take().or_else(|| row.text(7));
            add(&mut cluster.sum, row);
            place = place.take().or_else(|| row.vector(4).map(|sum| sum.to_vec()));
            true
        });
        for (_, sum) in coming.0.iter().filter(|(writer, _)| now.is_under_way(*writer)) {
            let (high, low) = sum.split();
            if high.len() == cluster.sum.dimensions() {
                cluster.sum.add(&high, Some(&low), sum.size);
            }
        }
        // If the last member is just leaving, use that member's position for the cluster.
        cluster.cosine = match (cluster.sum.direction(), place) {
            (Some(_), _) => cluster.sum.cosine(self.member),
            (None, Some(place)) => cosine(&place, self.member),
            (None, None) => return None,
        };
        Some(cluster)
    }
}

/// The members that other transactions are adding to a cluster or removing, by transaction.
#[derive(Default)]
struct UnderWay(Vec<(pg_sys::TransactionId, Sum)>);

impl UnderWay {
    /// Counts a row, if it is for one member.
    fn add(&mut self, row: &Row) {
        if !row.inserting || row.replaces || row.bigint(3).abs() != 1 || row.vector(5).is_some() {
            return;
        }
        let Some(vector) = row.vector(4) else { return };
        let known = self.0.iter().rposition(|(writer, sum)| *writer == row.writer && sum.dimensions() == vector.len());
        let place = known.unwrap_or_else(|| {
            self.0.push((row.writer, Sum::new(vector.len())));
            self.0.len() - 1
        });
        self.0[place].1.add(&vector, None, row.bigint(3));
    }
}

/// A cluster by one of its sums.
struct Near {
    id: i64,
    /// The cosine to the query vector; 1 if unknown.
    cosine: f64,
    /// The sum may not cover the whole cluster.
    moved: bool,
}

impl Near {
    /// The highest possible cosine to the cluster.
    fn at_most(&self) -> f64 {
        if self.moved { self.cosine + MOVED } else { self.cosine }
    }
}

/// The nearest cluster so far.
struct Best<'a> {
    search: &'a Search<'a>,
    cluster: Option<Cluster>,
}

impl Best<'_> {
    /// The cosine that another cluster must reach.
    fn cosine(&self) -> f64 {
        let threshold = self.search.collection.threshold;
        self.cluster.as_ref().map_or(threshold, |cluster| cluster.cosine.max(threshold))
    }

    /// Looks up the candidates that may be nearer.
    fn consider(&mut self, mut candidates: Vec<Near>) {
        candidates.sort_by(|a, b| b.at_most().total_cmp(&a.at_most()).then(a.id.cmp(&b.id)));
        candidates.dedup_by_key(|near| near.id);
        for near in candidates {
            if near.at_most() + ROUNDING < self.cosine() {
                break;
            }
            let found = self.search.look_up(near.id).filter(Cluster::alive);
            if let Some(found) = found
                && self.cluster.as_ref().is_none_or(|best| (found.cosine, best.id) > (best.cosine, found.id))
            {
                self.cluster = Some(found);
            }
        }
    }
}

fn add(sum: &mut Sum, row: &Row) {
    if let Some(high) = row.vector(4)
        && high.len() == sum.dimensions()
    {
        sum.add(&high, row.vector(5).as_deref(), row.bigint(3));
    }
}

thread_local! {
    /// By cluster: the sequence number up to which this transaction has merged all changes, and the subtransaction that
    /// merged them. The transaction's own rows up to that number are deleted but stay in the index until it ends.
    /// Without this list, 10,000 joins to one cluster took 0.3 ms each at the beginning and 2.3 ms at the end, because
    /// each search skipped the earlier rows.
    static MERGED: RefCell<HashMap<i64, (pg_sys::TransactionId, i64)>> = RefCell::default();
}

/// The valid changes of a cluster.
fn changes_of<'a>(store: &Store, cluster: i64) -> Vec<Condition<'a>> {
    match merged_up_to(store, cluster) {
        0 => vec![Condition::BigintIs(2, cluster)],
        sequence_number => vec![Condition::BigintIs(2, cluster), Condition::BigintOver(7, sequence_number)],
    }
}

/// The sequence number up to which no change of a cluster is valid any more; 0 if unknown.
pub fn merged_up_to(store: &Store, cluster: i64) -> i64 {
    if store.is_outdated() {
        return 0;
    }
    MERGED.with_borrow_mut(|all| match all.get(&cluster) {
        Some(&(writer, sequence_number)) if tables::is_own(writer) => sequence_number,
        // The transaction has ended, or a savepoint has undone the merge, so the rows are valid again.
        Some(_) => {
            all.remove(&cluster);
            0
        }
        None => 0,
    })
}

/// Records that this transaction has merged a cluster's changes up to sequence number `last`. The short lock keeps
/// other sessions from writing a change with a sequence number that they have drawn but not used yet.
pub fn remember_merged(store: &Store, collection: &str, cluster: i64, last: i64) {
    if store.is_outdated() {
        return;
    }
    let _lock = store.lock_shortly(collection, true);
    let mut first = None;
    store.scan(Sees::Everything, Index::ChangeCluster, &changes_of(store, cluster), |row| {
        first = Some(row.bigint(7));
        false
    });
    let sequence_number = first.map_or(last, |first| first - 1);
    MERGED.with_borrow_mut(|all| {
        if all.len() >= 1000 {
            all.retain(|_, (writer, _)| tables::is_own(*writer));
        }
        all.insert(cluster, (tables::writer(), sequence_number));
    });
}

/// The sequence number up to which this session has given codes to all sums of a collection, except the sums of the
/// listed clusters.
///
/// Rows that a transaction replaces stay in the index until it ends, and a search would skip each of them: a
/// transaction that creates 100,000 clusters would spend most of its time skipping dead rows.
pub struct Packed {
    /// The transaction that wrote the codes, and the sequence number of the last block.
    writer: pgrx::pg_sys::TransactionId,
    sequence_number: i64,
    left_over: Vec<i64>,
}

thread_local! {
    static PACKED: RefCell<HashMap<String, Packed>> = RefCell::default();
    static CODERS: RefCell<Vec<Coder>> = const { RefCell::new(Vec::new()) };
}

impl Packed {
    pub fn remember(collection: &str, sequence_number: i64, left_over: Vec<i64>) {
        PACKED.with_borrow_mut(|all| {
            if left_over.len() <= LEFT_OVER {
                all.insert(collection.to_owned(), Self { writer: tables::writer(), sequence_number, left_over });
            } else {
                all.remove(collection);
            }
        });
    }

    /// The sequence number from which rows without a code must be scanned, and the clusters to look up in addition. The
    /// block is looked up first: if it was rolled back, or has been replaced since, this information is invalid.
    fn known(store: &Store, collection: &str, after: i64) -> (i64, Vec<i64>) {
        PACKED.with_borrow_mut(|all| {
            let Some(packed) = all.get(collection).filter(|packed| packed.sequence_number > after) else {
                return (after, Vec::new());
            };
            let mut stands = false;
            let conditions = [Condition::TextIs(1, collection), Condition::BigintIs(3, packed.sequence_number)];
            store.scan(Sees::Everything, Index::CodeCollection, &conditions, |row| {
                stands = row.writer == packed.writer && !row.inserting && !row.deleting;
                !stands
            });
            if !stands {
                all.remove(collection);
                return (after, Vec::new());
            }
            (packed.sequence_number, packed.left_over.clone())
        })
    }
}

/// Runs `f` with the coder for vectors of this length; a session uses few lengths.
pub fn with_coder<T>(dimensions: usize, f: impl FnOnce(&Coder) -> T) -> T {
    CODERS.with_borrow_mut(|coders| {
        if !coders.iter().any(|coder| coder.dimensions() == dimensions) {
            coders.push(Coder::new(dimensions));
        }
        f(coders.iter().find(|coder| coder.dimensions() == dimensions).expect("just made"))
    })
}
