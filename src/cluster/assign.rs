//! Grouping on insert: a vector joins the nearest cluster of its collection, or founds one.
//!
//! Nobody waits for another transaction's end here, so nobody deadlocks. A cluster is a set of rows that each add to
//! its sum (sql/bootstrap.sql); who joins adds a row. Clusters that other transactions have founded and not committed
//! yet are seen by dirty scans ([`Store::scan`]) and joined like any other: if the founder rolls back, the cluster
//! consists of those who joined. Two who would found the same cluster at once are kept apart by a lock that is held
//! while one looks again and writes its row ([`Store::latch`]), not to the end of the transaction.
//!
//! The nearest cluster is found by binary codes of the centroids (`clip::code`): all codes of the collection are
//! compared, and those clusters whose codes are near are compared exactly. An HNSW index of pgvector would not do: it
//! refuses dirty snapshots, and each join would move an entry.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use clip::clustering::binary_code::{self, Block, Code, Coder, Entry, Nearest};
use clip::clustering::centroid::{Sum, cosine, normalise};
use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::cluster::statements;
use crate::cluster::tables::{self, Condition, Index, Row, Sees, Store};
use crate::guc;
use crate::model::loaded;
use crate::pg::citus;
use crate::pg::error::{SqlResult, report, warn, with_sqlstate};
use crate::pg::transaction::{Isolation, isolation};
use crate::pg::user_context;
use crate::pg::vector::Vector;

const DEFAULT_COLLECTION: &str = "default";

/// Equal vectors have a cosine of 1 but for rounding: the components are float4, whose last bit moves a
/// cosine by about 1e-15. With this much room a threshold of 1 means equal.
pub const ROUNDING: f64 = 1e-12;

/// Bits by which a stored code may differ from that of the centroid of today. 12 of 256 is an angle of 8 degrees.
const DRIFT: u32 = 12;
/// Clusters compared exactly, of those whose codes are near, at most. Each costs 2 µs, or 12 where its page has to be
/// fetched from the operating system.
const CANDIDATES: usize = 640;
/// So many of them at first, and always thrice as many after that.
const FIRST: usize = 16;
/// So many are always compared, as long as their codes are within reach. Among a million photo-like centroids the nearest
/// was never further down than the fifth (300 queries).
const SURE: usize = 64;
/// More are, while some come as close to the nearest as this. Vectors of one code distance have cosines with a standard
/// deviation of 0.04.
const SPREAD: f64 = 0.05;
/// By how much a cosine to a centroid may exceed the one to the sum that is searched. What has changed since has less
/// weight than the sum (see [`Cluster::wants_folding`]), and members are within some 20 degrees of their centroid.
const MOVED: f64 = 0.1;
/// Changes of a cluster that are left standing before they are added to its sum.
const CHANGES: usize = 16;
/// Clusters without a code before codes are made: searching two blocks' worth of sums costs 0.2 ms.
const RECENT: usize = 2 * binary_code::BLOCK;
/// Blocks that are looked over whenever two or three are written: more than are written, so that none grows old unseen.
const THINNED_BLOCKS: usize = 6;
/// Clusters of other transactions that a session looks up singly to spare itself a longer scan.
const LEFT_OVER: usize = 64;

#[pg_extern(volatile, strict, parallel_unsafe, security_definer, cost = 5000)]
#[search_path(pg_catalog, pg_temp)]
fn clip_assign_cluster(embedding: Vector) -> SqlResult<i64> {
    citus::refuse_worker("clip_assign_cluster()")?;
    assign(embedding, DEFAULT_COLLECTION)
}

#[pg_extern(volatile, strict, parallel_unsafe, security_definer, cost = 5000, name = "clip_assign_cluster")]
#[search_path(pg_catalog, pg_temp)]
fn clip_assign_cluster_in(embedding: Vector, collection: &str) -> SqlResult<i64> {
    citus::refuse_worker("clip_assign_cluster()")?;
    assign(embedding, collection)
}

#[pg_extern(volatile, strict, parallel_unsafe, security_definer, cost = 5000)]
#[search_path(pg_catalog, pg_temp)]
fn clip_leave_cluster(cluster: i64, embedding: Vector) -> SqlResult<bool> {
    citus::refuse_worker("clip_leave_cluster()")?;
    leave(cluster, embedding, None)
}

/// What is settled about a collection: by [`clip_create_collection`](crate::cluster::collection), else by its first cluster.
pub struct Collection {
    pub name: String,
    pub dimensions: Option<i32>,
    pub threshold: f64,
    model: Option<String>,
}

impl Collection {
    pub fn find(store: &Store, name: &str) -> SqlResult<Self> {
        check_name(name)?;
        let mut known =
            Self { name: name.to_owned(), dimensions: None, threshold: guc::cluster_threshold(), model: None };
        store.scan(Sees::Everything, Index::SettingName, &[Condition::TextIs(1, name)], |row| {
            if row.inserting {
                return true; // not a collection yet
            }
            known.dimensions = row.integer(2);
            known.threshold = row.double(3).unwrap_or(known.threshold);
            known.model = row.text(4);
            false
        });
        for sees in [Sees::Everything, Sees::Settled] {
            if known.dimensions.is_some() && known.model.is_some() {
                break;
            }
            store.scan(sees, Index::SumCollection, &[Condition::TextIs(1, name)], |row| {
                known.dimensions = known.dimensions.or_else(|| row.vector(4).map(|sum| sum.len() as i32));
                known.model = known.model.take().or_else(|| row.text(7));
                false
            });
        }
        if known.threshold <= -1.0 {
            return Err(report(
                Error::new(Kind::InvalidInput, format!("cluster threshold {} is not over -1", known.threshold))
                    .detail("Every vector has a cosine of at least -1 to every other, so all would be one cluster.")
                    .hint("Set clip_search.cluster_threshold to a value over -1, up to 1."),
            ));
        }
        Ok(known)
    }

    /// Vectors of several models, or lengths, can't be compared.
    fn check(&self, dimensions: usize, model: Option<&str>) -> SqlResult<()> {
        let name = &self.name;
        let mixed = |message: String, detail: String| {
            Err(with_sqlstate(
                PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
                Error::new(Kind::InvalidInput, message)
                    .detail(detail)
                    .hint("Vectors of different models don't mix: use a collection for each."),
            ))
        };
        match (self.dimensions, &self.model, model) {
            (Some(known), _, _) if known as usize != dimensions => mixed(
                format!("different vector dimensions {known} and {dimensions}"),
                format!("Collection \"{name}\" holds vectors of {known} dimensions; this one has {dimensions}."),
            ),
            (_, Some(known), Some(model)) if loaded::base_name(known) != loaded::base_name(model) => mixed(
                format!("collection \"{name}\" holds vectors of model \"{known}\", not of \"{model}\""),
                format!("This vector is what \"{model}\" has just returned in this session."),
            ),
            _ => Ok(()),
        }
    }
}

pub fn check_name(collection: &str) -> SqlResult<()> {
    // As long as PostgreSQL's own names. It stands in every row, and codes are stored in full pages.
    const LONGEST: usize = 63;
    let bad = |message: String, detail: String| Err(report(Error::new(Kind::InvalidInput, message).detail(detail)));
    match collection.len() {
        0 => bad("collection name is empty".to_owned(), "A name has 1 to 63 bytes.".to_owned()),
        1..=LONGEST => Ok(()),
        long => bad("collection name is too long".to_owned(), format!("It has {long} bytes; {LONGEST} are allowed.")),
    }
}

pub fn assign(embedding: Vector, collection: &str) -> SqlResult<i64> {
    let store = Store::open(c"clip_assign_cluster()");
    let model = loaded::model_of(&embedding.0);
    let Vector(mut member) = embedding;
    normalise(&mut member).map_err(report)?;
    store.hold(collection);
    let collection = Collection::find(&store, collection)?;
    collection.check(member.len(), model.as_deref())?;
    let search = Search::new(&store, &collection, &member);
    Spi::connect_mut(|client| {
        // Under the latch, since there is a moment between the giving of a mark and the writing of its row.
        let mark = {
            let _latch = store.latch(&collection.name, false);
            statements::last_id(client)?
        };
        let joins = |found: &Cluster| found.alive() && found.cosine + ROUNDING >= collection.threshold;
        let near = search.nearest(0).filter(joins).map(|found| found.id);
        let mut joined = None;
        if let Some(id) = near {
            let _latch = store.latch(&collection.name, false);
            // It may have moved, or gone, since it was found. What could yet be undone is joined below.
            joined = search.look_up(id).filter(|cluster| joins(cluster) && cluster.settled);
            if let Some(found) = &joined {
                join(client, &collection, found, &member)?;
            }
        }
        let mut founded = false;
        let cluster = match joined {
            Some(found) => found,
            None => {
                let _latch = store.latch(&collection.name, true);
                // Whoever had the latch before has written its rows. Only those that were written after the first look
                // can have been missed by it.
                let found = match near {
                    Some(id) => search.look_up(id).filter(joins).or_else(|| search.nearest(0).filter(joins)),
                    None => search.nearest(mark).filter(joins),
                };
                match found {
                    Some(found) => {
                        join(client, &collection, &found, &member)?;
                        found
                    }
                    None => {
                        founded = true;
                        Cluster::new(statements::found(client, &collection.name, &member, model.as_deref())?)
                    }
                }
            }
        };
        if cluster.wants_folding() {
            tidy(|| fold(client, &store, &collection, cluster.id))?;
        }
        if founded && search.recent.get() >= RECENT {
            tidy(|| pack(client, &store, &collection))?;
        }
        Ok(cluster.id)
    })
}

/// Adds a member to a cluster, under the latch: the exclusive one, unless the cluster is settled.
///
/// A cluster that is not can vanish at any time from the looks of others who search without the latch, and be back with
/// the row written here. The row's mark makes it one that they have not seen.
fn join(client: &mut SpiClient<'_>, collection: &Collection, cluster: &Cluster, member: &[f32]) -> SqlResult<()> {
    let mut sum = cluster.sum.clone();
    sum.add(member, None, 1);
    if sum.direction().is_none() {
        return Err(report(
            Error::new(Kind::InvalidInput, "the members of the cluster cancel out")
                .detail(format!("The mean of cluster {} with this vector has no direction.", cluster.id))
                .hint("Use a higher threshold."),
        ));
    }
    if cluster.settled {
        statements::change(client, &collection.name, cluster.id, 1, member)
    } else {
        // The row that searches find it by may yet be undone, so this transaction writes one of its own.
        statements::found_again(client, &collection.name, cluster.id, member, cluster.model.as_deref())
    }
}

/// Takes a member out of a cluster; false if there is no such cluster, as after its collection was dropped.
///
/// With `only` a cluster of another collection is let alone, and a vector that is no member is a warning: what somebody
/// has written into a row by hand must not keep the row from being deleted.
pub fn leave(id: i64, embedding: Vector, only: Option<&str>) -> SqlResult<bool> {
    let store = Store::open(c"clip_leave_cluster()");
    let Vector(mut member) = embedding;
    normalise(&mut member).map_err(report)?;
    let Some(name) = collection_of(&store, id) else { return Ok(false) };
    if only.is_some_and(|only| only != name) {
        return Ok(false);
    }
    store.hold(&name);
    let collection = Collection::find(&store, &name)?;
    if only.is_some() && collection.dimensions.is_some_and(|known| known as usize != member.len()) {
        return Ok(false);
    }
    collection.check(member.len(), None)?;
    Spi::connect_mut(|client| {
        let search = Search::new(&store, &collection, &member);
        let left = {
            let _latch = store.latch(&name, false);
            let Some(cluster) = search.look_up(id).filter(Cluster::alive) else { return Ok(false) };
            if !cluster.sum.may_hold(&member) {
                let error = Error::new(Kind::InvalidInput, format!("the vector is not a member of cluster {id}"))
                    .detail(format!(
                        "The cluster has size {}; its members can't add up to its centroid with this vector among them.",
                        cluster.sum.size
                    ));
                return match only {
                    None => Err(report(error.hint("Give the vector that was assigned, as it was then."))),
                    Some(_) => {
                        warn(error.hint(
                            "The embedding or the cluster was written by hand; clip_recluster counts the members anew.",
                        ));
                        Ok(false)
                    }
                };
            }
            statements::change(client, &name, id, -1, &member.iter().map(|v| -v).collect::<Vec<_>>())?;
            cluster.sum.size - 1
        };
        if left == 0 {
            tidy(|| forget(client, &store, &search, id))?;
        }
        Ok(true)
    })
}

/// The collection that a cluster belongs to.
fn collection_of(store: &Store, id: i64) -> Option<String> {
    let mut name = None;
    for sees in [Sees::Everything, Sees::Settled] {
        store.scan(sees, Index::SumCluster, &[Condition::BigintIs(2, id)], |row| {
            name = row.text(1);
            false
        });
        if name.is_some() {
            break;
        }
    }
    name
}

/// A cluster as it stands now, with what transactions under way have added.
struct Cluster {
    id: i64,
    sum: Sum,
    /// To the vector that is looked for.
    cosine: f64,
    model: Option<String>,
    /// It has a row that searches find and that can't vanish but by this transaction's own doing.
    settled: bool,
    /// Rows that no other transaction is writing: sums and changes.
    rows: (usize, usize),
    /// Members in those rows, and in the sums alone.
    members: i64,
    base: i64,
    /// Other transactions are adding to it or taking away.
    under_way: bool,
}

impl Cluster {
    /// One that has just been founded.
    fn new(id: i64) -> Self {
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
    fn alive(&self) -> bool {
        self.members > 0 || self.under_way
    }

    /// At first with each doubling, so that what searches compare is never far from the centroid; later when reading
    /// the changes begins to cost.
    fn wants_folding(&self) -> bool {
        self.rows.0 > 1 || self.rows.1 >= CHANGES || (self.rows.1 as i64) >= self.base.max(1)
    }
}

/// Looks for a vector among the clusters of a collection.
struct Search<'a> {
    store: &'a Store,
    collection: &'a Collection,
    member: &'a [f32],
    code: Code,
    /// Clusters without a code, as of the longest search.
    recent: std::cell::Cell<usize>,
}

impl<'a> Search<'a> {
    fn new(store: &'a Store, collection: &'a Collection, member: &'a [f32]) -> Self {
        let code = with_coder(member.len(), |coder| coder.encode(member));
        Self { store, collection, member, code, recent: std::cell::Cell::new(0) }
    }

    /// The nearest of the clusters with rows of marks above `after`, unless all are clearly below the threshold.
    ///
    /// Sums without a code come first, codes second: a code that is made between the two is then seen in one of them.
    fn nearest(&self, after: i64) -> Option<Cluster> {
        let mut best = Best { search: self, cluster: None };
        best.consider(self.recent(after));
        let reach = |cosine| binary_code::reach(cosine, DRIFT);
        let mut nearest = Nearest::new(self.code, reach(self.collection.threshold), CANDIDATES);
        let conditions = [Condition::TextIs(1, &self.collection.name), Condition::BigintOver(3, after)];
        self.store.scan(Sees::Everything, Index::CodeCollection, &conditions, |row| {
            nearest.scan(row.bigint(2), row.bytes(4).unwrap_or_default());
            true
        });
        let (mut left, mut count) = (nearest.into_sorted().peekable(), FIRST);
        let (mut compared, mut promising) = (0, true);
        while promising && left.peek().is_some_and(|(distance, _)| *distance <= reach(best.cosine())) {
            let near = self.sums(left.by_ref().take(count).map(|(_, id)| id).collect());
            let closest = near.iter().map(|near| near.cosine).fold(-1.0, f64::max);
            best.consider(near);
            compared += count;
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
        // Changes first: those that are added to a sum meanwhile make it look changed, but not the other way round.
        let mut changed = vec![false; ids.len()];
        let condition = [Condition::BigintIn(2, &ids)];
        self.store.scan(Sees::Everything, Index::ChangeCluster, &condition, |row| {
            if let Some(place) = place(row.bigint(2)) {
                changed[place] = true;
            }
            true
        });
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
        // What was just being replaced may have been missed; it is looked up again.
        let missed = ids.iter().zip(seen).filter(|(_, seen)| *seen == 0);
        near.extend(missed.map(|(&id, _)| Near { id, cosine: 1.0, moved: true }));
        near
    }

    /// Clusters by sums without a code that are not clearly below the threshold.
    fn recent(&self, after: i64) -> Vec<Near> {
        let (mut near, mut count) = (Vec::new(), 0);
        // Sums are replaced when changes are added to them, so both scans are needed; see there.
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

    /// A cluster with all that belongs to it, if anything does.
    fn look_up(&self, id: i64) -> Option<Cluster> {
        let seen = self.read(id, Sees::Everything);
        // A row that was just being replaced may have been missed.
        if seen.as_ref().is_some_and(|cluster| cluster.rows.0 > 0 && cluster.alive()) {
            seen
        } else {
            self.read(id, Sees::Settled).filter(Cluster::alive).or(seen)
        }
    }

    fn read(&self, id: i64, sees: Sees) -> Option<Cluster> {
        let mut cluster = Cluster {
            sum: Sum::new(self.member.len()),
            settled: false,
            rows: (0, 0),
            members: 0,
            base: 0,
            ..Cluster::new(id)
        };
        let (mut replaced, mut place) = (false, None);
        let condition = [Condition::BigintIs(2, id)];
        // Changes come first: what is moved from there to a sum meanwhile is counted twice, but not missed.
        self.store.scan(sees, Index::ChangeCluster, &condition, |row| {
            cluster.under_way |= row.inserting || row.deleting;
            if !row.inserting {
                cluster.members += row.bigint(3);
                cluster.rows.1 += 1;
            }
            add(&mut cluster.sum, row);
            true
        });
        self.store.scan(sees, Index::SumCluster, &condition, |row| {
            cluster.under_way |= row.inserting || row.deleting;
            replaced |= row.deleting;
            if !row.inserting {
                cluster.members += row.bigint(3);
                cluster.base += row.bigint(3);
                cluster.rows.0 += 1;
            }
            // Settled is also what another has replaced or deleted since the snapshot; only the other scan knows.
            cluster.settled |= sees == Sees::Everything && !row.inserting && !row.deleting;
            cluster.model = cluster.model.take().or_else(|| row.text(7));
            // What replaces a row is that row once more.
            if !(row.inserting && replaced) {
                add(&mut cluster.sum, row);
            }
            place = place.take().or_else(|| row.vector(4).map(|sum| sum.to_vec()));
            true
        });
        // Where its last member is just leaving, the cluster is where that one was.
        cluster.cosine = match (cluster.sum.direction(), place) {
            (Some(_), _) => cluster.sum.cosine(self.member),
            (None, Some(place)) => cosine(&place, self.member),
            (None, None) => return None,
        };
        Some(cluster)
    }
}

/// A cluster by one of its sums.
struct Near {
    id: i64,
    /// To the vector that is looked for; 1 if not known.
    cosine: f64,
    /// The sum may not be all of the cluster.
    moved: bool,
}

impl Near {
    /// How near the cluster may be.
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
    /// What another has to reach.
    fn cosine(&self) -> f64 {
        let threshold = self.search.collection.threshold;
        self.cluster.as_ref().map_or(threshold, |cluster| cluster.cosine.max(threshold))
    }

    /// Looks up those of the candidates that may be nearer.
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

/// Work that keeps the tables quick to search, which others do if this transaction can't.
///
/// One of REPEATABLE READ sees the rows as they were when it began, and can't touch those that were replaced since: what
/// fails by that is undone, and left to the next. Sessions of postgres_fdw are such, so a collection may be written by no
/// others; without this an assignment took 10 ms after 20,000, and more with each.
fn tidy(work: impl FnOnce() -> SqlResult<()>) -> SqlResult<()> {
    match isolation() {
        Isolation::ReadCommitted => work(),
        Isolation::RepeatableRead => match user_context::attempt(work) {
            Err(failure) if !failure.is_passing() => Err(failure.into_report()),
            _ => Ok(()),
        },
        Isolation::Serializable => Ok(()),
    }
}

/// Deletes a cluster that has no members left, if no other transaction has to do with it.
fn forget(client: &mut SpiClient<'_>, store: &Store, search: &Search<'_>, id: i64) -> SqlResult<()> {
    // No one may join while it is made sure that no one has.
    let _latch = store.latch(&search.collection.name, true);
    let Some(cluster) = search.look_up(id).filter(|cluster| !cluster.alive()) else { return Ok(()) };
    let sums = statements::lock_sums(client, id)?;
    let changes = statements::lock_changes(client, id)?;
    if (sums.len(), changes.len()) == cluster.rows {
        statements::delete_sums(client, &sums)?;
        statements::delete_changes(client, &changes)?;
    }
    Ok(())
}

/// Adds up the rows of a cluster that no other transaction is at work on.
fn fold(client: &mut SpiClient<'_>, store: &Store, collection: &Collection, id: i64) -> SqlResult<()> {
    let sums = statements::lock_sums(client, id)?;
    let changes = statements::lock_changes(client, id)?;
    let Some(dimensions) = sums.iter().chain(&changes).map(|row| row.high.len()).next() else { return Ok(()) };
    let mut total = Sum::new(dimensions);
    for row in sums.iter().chain(&changes) {
        total.add(&row.high, row.low.as_deref(), row.size);
    }
    // An emptied cluster is kept apart until it is forgotten: a sum of zero could not be found again.
    if sums.len() + changes.len() < 2 || total.size <= 0 || total.direction().is_none() {
        return Ok(());
    }
    match sums.first() {
        Some(kept) => {
            // A code that the centroid has moved away from is dropped; the cluster is then searched by its sum.
            let code = kept.code.as_deref().and_then(|bytes| {
                let (high, _) = total.split();
                let now = with_coder(dimensions, |coder| coder.encode(&high));
                let then = binary_code::from_bytes(bytes)?;
                (binary_code::distance(&now, &then) <= DRIFT).then_some(bytes)
            });
            {
                // A row without a code gets a mark.
                let _latch = (kept.code.is_some() && code.is_none()).then(|| store.latch(&collection.name, true));
                statements::replace(client, kept, &total, code)?;
            }
            statements::delete_sums(client, &sums[1..])?;
            statements::delete_changes(client, &changes)
        }
        None => {
            statements::merged(client, &collection.name, id, &total)?;
            statements::delete_changes(client, &changes)
        }
    }
}

/// Makes codes for the clusters that have none.
fn pack(client: &mut SpiClient<'_>, store: &Store, collection: &Collection) -> SqlResult<()> {
    let mut rows = statements::lock_recent(client, &collection.name, RECENT)?;
    if rows.len() < binary_code::BLOCK {
        return Ok(()); // others are at it
    }
    rows.sort_by_key(|row| row.cluster);
    let entries: Vec<Entry> = rows
        .iter()
        .map(|row| Entry {
            id: row.cluster,
            mark: row.mark,
            code: with_coder(row.high.len(), |coder| coder.encode(&row.high)),
        })
        .collect();
    let codes: Vec<Vec<u8>> = entries.iter().map(|entry| binary_code::to_bytes(&entry.code)).collect();
    statements::set_codes(client, &rows, codes)?;
    let last = entries.iter().map(|entry| entry.mark).max().unwrap_or_default();
    for block in Block::pack(&entries) {
        statements::block(client, &collection.name, block)?;
    }
    // What is still without a code up to there: rows of others.
    let latch = store.latch(&collection.name, false);
    let mut left_over = Vec::new();
    for sees in [Sees::Everything, Sees::Settled] {
        store.scan(sees, Index::SumRecent, &[Condition::TextIs(1, &collection.name)], |row| {
            let before = row.bigint(10) <= last;
            if before {
                left_over.push(row.bigint(2));
            }
            before && left_over.len() <= 4 * LEFT_OVER
        });
    }
    left_over.sort_unstable();
    left_over.dedup();
    Packed::remember(&collection.name, last, left_over);
    drop(latch);
    thin(client, store, collection)
}

/// Looks over some blocks, and dissolves those of which less than half is still in use.
///
/// Clusters that have gone, or moved so far that they have lost their code, leave theirs behind, and searches would read
/// more and more of them. The sums whose codes are still right become ones without a code, with new marks: who searches
/// meanwhile and sees them neither in the block nor without a code looks for marks that are newer than its search before
/// it founds a cluster.
fn thin(client: &mut SpiClient<'_>, store: &Store, collection: &Collection) -> SqlResult<()> {
    let mut after = THINNED.with_borrow(|all| all.get(&collection.name).copied().unwrap_or(0));
    for _ in 0..THINNED_BLOCKS {
        let Some(block) = statements::next_block(client, &collection.name, after)? else {
            after = 0;
            break;
        };
        after = block.mark;
        let entries: HashSet<(i64, Code)> = binary_code::unpack(block.first, &block.entries).collect();
        let ids: Vec<i64> = entries.iter().map(|(id, _)| *id).collect();
        let in_block = |sum: &statements::Coded| {
            binary_code::from_bytes(&sum.code).is_some_and(|code| entries.contains(&(sum.cluster, code)))
        };
        let used = statements::coded(client, &ids, false)?.iter().filter(|sum| in_block(sum)).count();
        if 2 * used >= entries.len() {
            continue;
        }
        let sums: Vec<_> = statements::coded(client, &ids, true)?.into_iter().filter(in_block).collect();
        // Others are at work on some of them: another time.
        if sums.len() == used {
            // Marks are given, and the rows that have them written, before anyone looks for what is newer.
            let _latch = store.latch(&collection.name, true);
            statements::dissolve(client, &block, &sums)?;
        }
    }
    THINNED.with_borrow_mut(|all| all.insert(collection.name.clone(), after));
    Ok(())
}

/// Replaces all clusters of a collection, which this transaction has to itself: `ids[i]` is the cluster of `sums[i]`.
pub fn write_anew(client: &mut SpiClient<'_>, collection: &str, ids: &[i64], sums: &[Sum]) -> SqlResult<()> {
    let known = statements::clear(client, collection)?;
    let mut entries: Vec<Entry> = Vec::with_capacity(ids.len());
    for (id, sum) in ids.iter().zip(sums) {
        pgrx::check_for_interrupts!();
        let code = with_coder(sum.dimensions(), |coder| coder.encode(&sum.split().0));
        statements::insert(client, collection, *id, sum, &binary_code::to_bytes(&code), known.get(id))?;
        entries.push(Entry { id: *id, mark: *id, code });
    }
    entries.sort_unstable_by_key(|entry| entry.id);
    for block in Block::pack(&entries) {
        statements::block(client, collection, block)?;
    }
    Ok(())
}

/// Up to which mark this session has given codes to all sums of a collection but those of the clusters listed.
///
/// Rows that are replaced in a transaction stay in the index until it ends, and a search would step over each of them:
/// a transaction that founds 100,000 clusters would be stepping most of its time.
struct Packed {
    /// By whom, and the mark of the last block.
    writer: pgrx::pg_sys::TransactionId,
    mark: i64,
    left_over: Vec<i64>,
}

thread_local! {
    static PACKED: RefCell<HashMap<String, Packed>> = RefCell::default();
    /// Up to which mark this session has looked over a collection's blocks.
    static THINNED: RefCell<HashMap<String, i64>> = RefCell::default();
    static CODERS: RefCell<Vec<Coder>> = const { RefCell::new(Vec::new()) };
}

impl Packed {
    fn remember(collection: &str, mark: i64, left_over: Vec<i64>) {
        PACKED.with_borrow_mut(|all| {
            if left_over.len() <= LEFT_OVER {
                all.insert(collection.to_owned(), Self { writer: tables::writer(), mark, left_over });
            } else {
                all.remove(collection);
            }
        });
    }

    /// From where the rows without a code have to be scanned, and which to look up besides. The block is looked for
    /// first: if it was rolled back, or has been replaced since, this knowledge is void.
    fn known(store: &Store, collection: &str, after: i64) -> (i64, Vec<i64>) {
        PACKED.with_borrow_mut(|all| {
            let Some(packed) = all.get(collection).filter(|packed| packed.mark > after) else {
                return (after, Vec::new());
            };
            let mut stands = false;
            let conditions = [Condition::TextIs(1, collection), Condition::BigintIs(3, packed.mark)];
            store.scan(Sees::Everything, Index::CodeCollection, &conditions, |row| {
                stands = row.writer == packed.writer && !row.inserting && !row.deleting;
                !stands
            });
            if !stands {
                all.remove(collection);
                return (after, Vec::new());
            }
            (packed.mark, packed.left_over.clone())
        })
    }
}

/// Runs `f` with the coder for vectors of that length; a session uses few.
pub fn with_coder<T>(dimensions: usize, f: impl FnOnce(&Coder) -> T) -> T {
    CODERS.with_borrow_mut(|coders| {
        if !coders.iter().any(|coder| coder.dimensions() == dimensions) {
            coders.push(Coder::new(dimensions));
        }
        f(coders.iter().find(|coder| coder.dimensions() == dimensions).expect("just made"))
    })
}
