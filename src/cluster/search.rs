//! The search for the cluster that a vector belongs to.
//!
//! The search uses binary codes of the centroids (`clip::clustering::binary_code`): it compares all codes of the
//! collection, and compares the clusters with the nearest codes exactly. pgvector's HNSW index is unsuitable: it
//! refuses dirty snapshots, and each join would move an entry.

use clip::clustering::binary_code::{self, Candidate, Code, Nearest};
use clip::clustering::centroid::Sum;
use clip::clustering::likelihood::Likelihood;
use clip::vector::{ROUNDING, cosine};

use pgrx::pg_sys;

use crate::cluster::collection::Collection;
use crate::cluster::columns::{change, code, sum};
use crate::cluster::session_state::{Packed, changes_of, merged_up_to, with_coder};
use crate::cluster::tables::{Condition, Index, RegisteredSnapshot, Row, Snapshot, Store};

/// Bits by which a stored code may differ from the current centroid's code. 12 of 256 is an angle of 8 degrees.
pub const MAX_CODE_DRIFT: u32 = 12;
/// The maximum number of nearest codes within reach that are ranked by likelihood.
const MAX_RANKED_CODES: usize = 8192;
/// The maximum number of clusters that are compared exactly. Each costs 2 µs, or 12 if its page has to be fetched from
/// the operating system.
const MAX_COMPARED: usize = 640;
/// The first batch of comparisons; each further batch is three times as large.
const FIRST_BATCH: usize = 16;
/// The minimum number of clusters that are compared, if their codes are within reach. The likelihood assumes that
/// clusters are not centred on the vector; among many clusters around the vector, the right one ranked up to 52nd of
/// 400.
const MIN_COMPARED: usize = 64;
/// Further clusters are compared while their scores are at most this far below the expected score: the right cluster
/// lies beyond it in fewer than one of 2,000 cases. The range contains 2 of 100,000 photo-like clusters, 20 of 5,000
/// clusters with a mean cosine of 0.78, and 240 of 5,000 with a mean cosine of 0.85.
const DEVIATIONS: f64 = 3.3;
/// Further clusters are also compared while the last batch came this close to the nearest cluster. The cosines of
/// vectors at one code distance have a standard deviation of 0.04.
const SPREAD: f64 = 0.05;
/// The amount by which the cosine to a centroid may exceed the cosine to the stored sum. Later changes have less weight
/// than the sum (see [`Cluster::wants_folding`]), and members are within about 20 degrees of their centroid.
const MAX_CENTROID_DRIFT: f64 = 0.1;
/// A cluster's changes are added to its sum once there are this many.
const MAX_CHANGES: usize = 16;
/// A cluster in its current state, including uncommitted changes of other transactions.
pub struct Cluster {
    pub id: i64,
    pub sum: Sum,
    /// The cosine to the query vector.
    pub cosine: f64,
    pub model: Option<String>,
    /// Whether searches find it through a row that only this transaction can remove.
    pub settled: bool,
    /// The numbers of sums and of changes, without rows that other transactions are writing.
    pub rows: (usize, usize),
    /// The members in these rows, and the members in the sums alone (`base`).
    pub members: i64,
    pub base: i64,
    /// Whether other transactions are adding or removing members.
    in_progress: bool,
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
            in_progress: false,
        }
    }

    /// Whether it has members, or may have.
    pub fn alive(&self) -> bool {
        self.members > 0 || self.in_progress
    }

    /// Whether to add the changes to the sum: at first with each doubling, so that the stored sum is never far from the
    /// centroid; later when reading the changes becomes expensive.
    pub fn wants_folding(&self) -> bool {
        self.rows.0 > 1 || self.rows.1 >= MAX_CHANGES || (self.rows.1 as i64) >= self.base.max(1)
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
        let reach = |cosine| binary_code::reach(cosine, MAX_CODE_DRIFT);
        let mut nearest = Nearest::new(self.code, reach(self.collection.threshold), MAX_RANKED_CODES);
        let conditions = [
            Condition::TextIs(code::COLLECTION, &self.collection.name),
            Condition::BigintOver(code::SEQUENCE_NUMBER, after),
        ];
        self.store.scan(Snapshot::Dirty, Index::CodeCollection, &conditions, |row| {
            nearest.scan(row.bigint(code::FIRST), row.bytes(code::ENTRIES).unwrap_or_default());
            true
        });
        let found: Vec<Candidate> = nearest.into_sorted().collect();
        let likelihood = Likelihood::new(&self.rotated, self.width, self.collection.threshold, &found);
        let mut left = likelihood.rank(found).into_iter().take(MAX_COMPARED);
        let (mut compared, mut count, mut promising) = (0, FIRST_BATCH, true);
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
            promising = compared < MIN_COMPARED || closest + SPREAD >= best.cosine();
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
            if let Some(place) = place(row.bigint(change::CLUSTER)) {
                changed[place] = true;
            }
            true
        };
        self.store.scan(
            Snapshot::Dirty,
            Index::ChangeCluster,
            &[Condition::BigintIn(change::CLUSTER, &others)],
            &mut visit,
        );
        for id in merged {
            self.store.scan(Snapshot::Dirty, Index::ChangeCluster, &changes_of(self.store, id), &mut visit);
        }
        let condition = [Condition::BigintIn(sum::CLUSTER, &ids)];
        let mut seen = vec![0; ids.len()];
        let mut near = Vec::with_capacity(ids.len());
        self.store.scan(Snapshot::Dirty, Index::SumCluster, &condition, |row| {
            let id = row.bigint(sum::CLUSTER);
            if let (Some(sum), Some(place)) = (row.vector(sum::SUM), place(id)) {
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
            if let Some(sum) = row.vector(sum::SUM) {
                let cosine = cosine(&sum, self.member);
                if cosine + MAX_CENTROID_DRIFT >= self.collection.threshold {
                    near.push(Near { id: row.bigint(sum::CLUSTER), cosine, moved: true });
                }
            }
            true
        };
        let (from, left_over) = Packed::known(self.store, &self.collection.name, after);
        let conditions = [
            Condition::TextIs(sum::COLLECTION, &self.collection.name),
            Condition::BigintOver(sum::SEQUENCE_NUMBER, from),
        ];
        for snapshot in [Snapshot::Dirty, Snapshot::Latest] {
            for &id in &left_over {
                self.store.scan(snapshot, Index::SumCluster, &[Condition::BigintIs(sum::CLUSTER, id)], &mut visit);
            }
            self.store.scan(snapshot, Index::SumRecent, &conditions, &mut visit);
        }
        self.recent.set((count / 2).max(self.recent.get()));
        near
    }

    /// A cluster with its committed members and the members that other transactions are adding or removing; None if it
    /// has no rows.
    ///
    /// The committed rows of both tables are read with one snapshot. If the tables were read one after the other, rows
    /// that are merged into the sum between the two scans would count twice; if most members had just left, the
    /// remaining members would seem to cancel out. Uncommitted rows are read before the snapshot is taken, and count if
    /// the snapshot still shows their transactions in progress. Only rows for single members count: merged rows, and
    /// rows that got a code, replace rows that count already.
    pub fn look_up(&self, id: i64) -> Option<Cluster> {
        let mut cluster = Cluster {
            sum: Sum::new(self.member.len()),
            settled: false,
            rows: (0, 0),
            members: 0,
            base: 0,
            ..Cluster::new(id)
        };
        let (mut coming, mut place) = (InProgress::default(), None);
        let of_cluster = [Condition::BigintIs(sum::CLUSTER, id)];
        // A transaction writes the row of a member's departure after the row of its arrival, so a scan that sees the
        // departure sees the arrival, here or in the sums.
        self.store.scan(Snapshot::Dirty, Index::ChangeCluster, &changes_of(self.store, id), |row| {
            cluster.in_progress |= row.inserting || row.deleting;
            coming.add(row);
            true
        });
        self.store.scan(Snapshot::Dirty, Index::SumCluster, &of_cluster, |row| {
            cluster.in_progress |= row.inserting || row.deleting;
            cluster.settled |= !row.inserting && !row.deleting;
            cluster.model = cluster.model.take().or_else(|| row.text(sum::MODEL));
            place = place.take().or_else(|| row.vector(sum::SUM).map(|sum| sum.to_vec()));
            coming.add(row);
            true
        });
        let now = RegisteredSnapshot::now();
        self.store.scan(Snapshot::Registered(&now), Index::ChangeCluster, &changes_of(self.store, id), |row| {
            cluster.members += row.bigint(sum::SIZE);
            cluster.rows.1 += 1;
            add(&mut cluster.sum, row);
            true
        });
        self.store.scan(Snapshot::Registered(&now), Index::SumCluster, &of_cluster, |row| {
            cluster.members += row.bigint(sum::SIZE);
            cluster.base += row.bigint(sum::SIZE);
            cluster.rows.0 += 1;
            cluster.model = cluster.model.take().or_else(|| row.text(sum::MODEL));
            add(&mut cluster.sum, row);
            place = place.take().or_else(|| row.vector(sum::SUM).map(|sum| sum.to_vec()));
            true
        });
        for (_, sum) in coming.0.iter().filter(|(writer, _)| now.is_in_progress(*writer)) {
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
struct InProgress(Vec<(pg_sys::TransactionId, Sum)>);

impl InProgress {
    /// Counts a row, if it is for one member.
    fn add(&mut self, row: &Row) {
        if !row.inserting || row.replaces || row.bigint(sum::SIZE).abs() != 1 || row.vector(sum::REMAINDER).is_some() {
            return;
        }
        let Some(vector) = row.vector(sum::SUM) else { return };
        let known = self.0.iter().rposition(|(writer, sum)| *writer == row.xmin && sum.dimensions() == vector.len());
        let place = known.unwrap_or_else(|| {
            self.0.push((row.xmin, Sum::new(vector.len())));
            self.0.len() - 1
        });
        self.0[place].1.add(&vector, None, row.bigint(sum::SIZE));
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
        if self.moved { self.cosine + MAX_CENTROID_DRIFT } else { self.cosine }
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
    if let Some(high) = row.vector(sum::SUM)
        && high.len() == sum.dimensions()
    {
        sum.add(&high, row.vector(sum::REMAINDER).as_deref(), row.bigint(sum::SIZE));
    }
}
