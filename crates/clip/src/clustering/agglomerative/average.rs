//! Average linkage by reciprocal nearest neighbors.

use ndarray::Array2;

use super::compare::{Sink, compare};
use super::forest::Forest;
use super::points::{Points, Scalar, dot, product_error, upwards};
use super::progress::Clock;
use super::share::share;
use super::sketch::{Plan, Sketch};

/// The length of a new list of nearest groups. Merges may extend a list to [`LONGEST_LIST`].
const LIST: usize = 64;
const LONGEST_LIST: usize = 256;
const NONE: u32 = u32::MAX;

/// The nearest groups of a group, and a bound on all others.
#[derive(Clone, Default)]
pub(super) struct Neighbours {
    /// Upper bounds of the cosine, each with its group (or a group that has merged into another since), in descending
    /// order.
    near: Vec<(f32, u32)>,
    /// An upper bound of the cosine to every group outside `near`. If it is below the cut, `near` has every group that
    /// matters.
    rest: f64,
}

/// How a group's list was computed. It determines the next step if the list is insufficient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// The list is not fresh from a scan: it has been used, or was derived in a merge.
    Stale,
    /// The list was computed in f32, and has not been used yet. [`Scan::Wide`] is the same in f64.
    Narrow,
    Wide,
}

pub(super) enum Nearest {
    Group(u32, f64),
    /// No other group reaches the cut.
    Nobody,
    /// The list is insufficient.
    Unknown,
}

pub(super) struct Answer {
    group: u32,
    nearest: Nearest,
    list: Neighbours,
}

/// The number of groups that are asked between two checks of the clock.
const ASKED_AT_ONCE: usize = 2048;
/// The number of groups that a thread takes at a time: some 160 µs of work, while starting a thread takes 50 µs.
const SHARED_AT_ONCE: usize = 16;

/// Average linkage by reciprocal nearest neighbors. A group is identified by its lowest point.
pub(super) struct Average<'p, 'r> {
    points: &'p Points<'r>,
    cut: f64,
    threads: usize,
    forest: Forest,
    size: Vec<u64>,
    /// Sums of the unit vectors of groups with more than one row; a single row is its own sum.
    sums: Vec<Option<Box<[f64]>>>,
    lists: Vec<Neighbours>,
    scans: Vec<Scan>,
    /// Whether f32 was too coarse for the group before. It would be too coarse again.
    needs_f64: Vec<bool>,
    nearest: Vec<u32>,
    cosine: Vec<f64>,
    /// For each group, the groups whose last query named it as the nearest.
    followers: Vec<Vec<u32>>,
    finished: Vec<bool>,
    /// The number of groups that are finished or have merged into another.
    settled: usize,
}

impl<'p, 'r> Average<'p, 'r> {
    pub(super) fn new(points: &'p Points<'r>, cut: f64, threads: usize) -> Self {
        let n = points.len();
        let mut sums = vec![None; n];
        for (point, sum) in sums.iter_mut().enumerate() {
            let weight = points.weight[point];
            if weight > 1 {
                let factor = f64::from(weight) * points.inverse[point];
                *sum = Some(points.row(point as u32).iter().map(|v| f64::from(*v) * factor).collect());
            }
        }
        Self {
            points,
            cut,
            threads,
            forest: Forest::new(n),
            size: points.weight.iter().map(|w| u64::from(*w)).collect(),
            sums,
            lists: vec![Neighbours::default(); n],
            scans: vec![Scan::Stale; n],
            needs_f64: vec![false; n],
            nearest: vec![NONE; n],
            cosine: vec![0.0; n],
            followers: vec![Vec::new(); n],
            finished: vec![false; n],
            settled: 0,
        }
    }

    pub(super) fn run(mut self, clock: &mut Clock<'_>) -> Forest {
        let n = self.points.len();
        let mut unsure: Vec<u32> = (0..n as u32).collect();
        let mut asking = Vec::new();
        let mut pairs = Vec::new();
        loop {
            while !asking.is_empty() {
                // A group that was released twice queries only once.
                asking.sort_unstable();
                asking.dedup();
                for groups in std::mem::take(&mut asking).chunks(self.asked_at_once()) {
                    clock.tick("merging", self.settled, n);
                    for answer in self.ask(groups) {
                        self.apply(answer, &mut asking, &mut pairs, &mut unsure);
                    }
                }
            }
            if pairs.is_empty() && unsure.is_empty() {
                // Each of these groups points to a next one in a ring whose cosines are equal up to rounding: merge the
                // best pair.
                pairs.extend(self.best_pair());
                if pairs.is_empty() {
                    return self.forest;
                }
            }
            for (a, b) in pairs.drain(..) {
                clock.tick("merging", self.settled, n);
                self.merge(a, b, &mut asking);
            }
            if asking.is_empty() {
                let (wide, narrow): (Vec<u32>, Vec<u32>) =
                    unsure.drain(..).partition(|group| self.needs_f64[*group as usize]);
                self.scan::<f32>(&narrow, Scan::Narrow, clock);
                self.scan::<f64>(&wide, Scan::Wide, clock);
                asking.extend(narrow);
                asking.extend(wide);
            }
        }
    }

    pub(super) fn is_active(&self, group: u32) -> bool {
        self.forest.0[group as usize] == group && !self.finished[group as usize]
    }

    /// The mean cosine over all pairs of two groups.
    pub(super) fn average(&self, a: u32, b: u32) -> f64 {
        let scale = self.scale(a) * self.scale(b);
        scale
            * match (&self.sums[a as usize], &self.sums[b as usize]) {
                (Some(x), Some(y)) => dot(x, y),
                (Some(x), None) => dot(x, self.points.row(b)),
                (None, Some(y)) => dot(self.points.row(a), y),
                (None, None) => dot(self.points.row(a), self.points.row(b)),
            }
    }

    /// The factor that turns the group's sum into its mean.
    pub(super) fn scale(&self, group: u32) -> f64 {
        let group = group as usize;
        if self.sums[group].is_some() { 1.0 / self.size[group] as f64 } else { self.points.inverse[group] }
    }

    /// The number of groups that are asked between two checks of the clock: 16 ms of work at 512 dimensions if all
    /// lists are full and every entry is compared.
    fn asked_at_once(&self) -> usize {
        (ASKED_AT_ONCE * 512 / self.points.width().max(1)).clamp(1, ASKED_AT_ONCE)
    }

    /// The answers of those groups that have no nearest group yet, computed by several threads if there are enough
    /// groups.
    fn ask(&self, groups: &[u32]) -> Vec<Answer> {
        let open = |group| self.is_active(group) && self.nearest[group as usize] == NONE;
        self.share(groups.len(), |index| open(groups[index]).then(|| self.answer(groups[index])))
            .into_iter()
            .flatten()
            .collect()
    }

    /// The results of `work` for 0 to `count` - 1. Each call takes microseconds and allocates a list.
    fn share<R: Send>(&self, count: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
        let reserve = count * 2 * LONGEST_LIST * size_of::<(f32, u32)>();
        let parts = count.div_ceil(SHARED_AT_ONCE);
        let parts = share(&mut vec![(); self.threads.max(1)], parts, reserve, |(), part| {
            let from = part * SHARED_AT_ONCE;
            (from..(from + SHARED_AT_ONCE).min(count)).map(&work).collect::<Vec<_>>()
        });
        parts.into_iter().flatten().collect()
    }

    /// Finds the nearest group from the group's list, and returns the list without outdated entries.
    pub(super) fn answer(&self, group: u32) -> Answer {
        let index = group as usize;
        let (list, scan) = (&self.lists[index], self.scans[index]);
        let mut known: Vec<(f64, u32)> = Vec::new();
        let mut best: Option<(f64, u32)> = None;
        let mut asked = 0;
        for &(bound, other) in &list.near {
            if best.is_some_and(|(cosine, _)| cosine > f64::from(bound)) {
                break;
            }
            asked += 1;
            let other = self.forest.root(other);
            if other == group || self.finished[other as usize] || known.iter().any(|(_, k)| *k == other) {
                continue;
            }
            let cosine = self.average(group, other);
            known.push((cosine, other));
            let pair = |other: u32| (group.min(other), group.max(other));
            // A total order of pairs, which is the same from both sides.
            if best.is_none_or(|(c, o)| cosine > c || (cosine == c && pair(other) < pair(o))) {
                best = Some((cosine, other));
            }
        }
        let rest = list.rest;
        // A group that is the nearest up to rounding counts as the nearest: a tie must not cause a scan of all groups
        // for each merge.
        let tied = rest - 4.0 * product_error::<f64>(self.points.width());
        let known = known.iter().filter(|(c, _)| *c > tied).map(|(cosine, other)| (upwards(*cosine), *other));
        let mut near: Vec<_> = list.near[asked..].iter().copied().chain(known).collect();
        near.sort_unstable_by(order);

        // After a scan in f64, no further scan could decide more: only differences within the rounding error remain.
        let trusted = rest < self.cut || scan == Scan::Wide;
        let nearest = match best {
            Some((cosine, other)) if cosine >= self.cut && (cosine > tied || trusted) => Nearest::Group(other, cosine),
            _ if trusted => Nearest::Nobody,
            _ => Nearest::Unknown,
        };
        Answer { group, nearest, list: Neighbours { near, rest } }
    }

    /// Records an answer. Of two groups that are each other's nearest, the second one to answer completes the pair.
    fn apply(&mut self, answer: Answer, asking: &mut Vec<u32>, pairs: &mut Vec<(u32, u32)>, unsure: &mut Vec<u32>) {
        let Answer { group, nearest, list } = answer;
        let index = group as usize;
        self.lists[index] = list;
        let scan = std::mem::replace(&mut self.scans[index], Scan::Stale);
        match nearest {
            // The other group has finished since the answer was computed. This happens only with a tie at the cut.
            Nearest::Group(other, _) if self.finished[other as usize] => asking.push(group),
            Nearest::Group(other, cosine) => {
                self.nearest[index] = other;
                self.cosine[index] = cosine;
                self.followers[other as usize].push(group);
                if self.nearest[other as usize] == group {
                    pairs.push((group, other));
                }
            }
            Nearest::Nobody => {
                self.finished[index] = true;
                self.lists[index] = Neighbours::default();
                self.settled += 1;
                // The two sides can disagree only about a tie at the cut; neither may keep waiting for the other.
                self.release_followers(group, asking);
            }
            Nearest::Unknown => {
                self.needs_f64[index] |= scan == Scan::Narrow;
                unsure.push(group);
            }
        }
    }

    /// Merges two groups if each is still the other's nearest, and adds the groups that must query again to `asking`.
    pub(super) fn merge(&mut self, a: u32, b: u32, asking: &mut Vec<u32>) {
        let (a, b) = (a.min(b), a.max(b));
        let still = self.is_active(a) && self.is_active(b) && self.nearest[a as usize] == b;
        if !still || self.nearest[b as usize] != a {
            return;
        }
        let share = self.size[a as usize] as f64 / (self.size[a as usize] + self.size[b as usize]) as f64;
        let mut sum = self.take_sum(a);
        let add = self.take_sum(b);
        sum.iter_mut().zip(add).for_each(|(s, v)| *s += v);
        self.sums[a as usize] = Some(sum);
        self.size[a as usize] += self.size[b as usize];
        self.forest.unite(a, b);
        self.settled += 1;
        let lists = [a, b].map(|group| std::mem::take(&mut self.lists[group as usize]));
        self.lists[a as usize] = self.join_lists(a, lists, share);
        self.scans[a as usize] = Scan::Stale;
        self.needs_f64[a as usize] |= self.needs_f64[b as usize];
        for part in [a, b] {
            self.nearest[part as usize] = NONE;
            self.release_followers(part, asking);
        }
        asking.push(a);
    }

    /// Makes the groups whose nearest group is this one query again.
    pub(super) fn release_followers(&mut self, group: u32, asking: &mut Vec<u32>) {
        for follower in std::mem::take(&mut self.followers[group as usize]) {
            if self.nearest[follower as usize] == group && self.is_active(follower) {
                self.nearest[follower as usize] = NONE;
                asking.push(follower);
            }
        }
    }

    pub(super) fn take_sum(&mut self, group: u32) -> Box<[f64]> {
        self.sums[group as usize].take().unwrap_or_else(|| {
            let inverse = self.points.inverse[group as usize];
            self.points.row(group).iter().map(|v| f64::from(*v) * inverse).collect()
        })
    }

    /// The list of the union of two groups, derived from their lists. The first group has the fraction `share` of the
    /// union's members.
    pub(super) fn join_lists(&mut self, union: u32, lists: [Neighbours; 2], share: f64) -> Neighbours {
        let shares = [share, 1.0 - share];
        let rests = [lists[0].rest, lists[1].rest];
        let mut rest = shares[0] * rests[0] + shares[1] * rests[1];
        let mut all: Vec<(u32, usize, f32)> = Vec::with_capacity(lists[0].near.len() + lists[1].near.len());
        for (part, list) in lists.iter().enumerate() {
            for &(bound, other) in &list.near {
                let other = self.forest.find(other);
                if other != union && !self.finished[other as usize] {
                    all.push((other, part, bound));
                }
            }
        }
        all.sort_unstable_by_key(|(other, ..)| *other);
        let mut near = Vec::with_capacity(all.len());
        for entries in all.chunk_by(|x, y| x.0 == y.0) {
            // A group that has grown is bounded by its nearest part. That part may be missing in a list; then the
            // list's `rest` bounds it.
            let mut bounds = rests;
            for &(_, part, bound) in entries {
                bounds[part] = bounds[part].max(f64::from(bound));
            }
            let bound = shares[0] * bounds[0] + shares[1] * bounds[1];
            if bound > rest {
                near.push((upwards(bound), entries[0].0));
            }
        }
        near.sort_unstable_by(order);
        if near.len() > LONGEST_LIST {
            rest = rest.max(f64::from(near[LONGEST_LIST].0));
            near.truncate(LONGEST_LIST);
        }
        Neighbours { near, rest }
    }

    /// Computes new lists for `groups` from the products of their means with the means of all active groups.
    pub(super) fn scan<T: Scalar>(&mut self, groups: &[u32], scan: Scan, clock: &mut Clock<'_>)
    where
        Sketch<T>: Plan<T>,
    {
        if groups.is_empty() {
            return;
        }
        let n = self.points.len();
        let mut ids = groups.to_vec();
        let mut wanted = vec![false; n];
        for &group in groups {
            wanted[group as usize] = true;
            self.lists[group as usize] = Neighbours::default();
        }
        ids.extend((0..n as u32).filter(|group| !wanted[*group as usize] && self.is_active(*group)));
        let width = self.points.width();
        let mut means = Array2::<T>::zeros((ids.len(), width));
        for (&id, mut line) in ids.iter().zip(means.outer_iter_mut()) {
            clock.tick("merging", self.settled, n);
            let scale = self.scale(id);
            match &self.sums[id as usize] {
                Some(sum) => line.iter_mut().zip(sum).for_each(|(to, from)| *to = T::narrow(from * scale)),
                None => {
                    let row = self.points.row(id);
                    line.iter_mut().zip(row).for_each(|(to, from)| *to = T::narrow(f64::from(*from) * scale));
                }
            }
        }
        let error = product_error::<T>(width);
        let floor = T::narrow(self.cut - 2.0 * error);
        let sketch = Sketch::<T>::plan_for(means.view(), groups.len(), floor, clock);
        let mut floors = vec![floor; groups.len()];
        floors.resize(ids.len(), T::INFINITY);
        let mut top = Top { floors, near: vec![Vec::new(); groups.len()] };
        compare(means.view(), groups.len(), sketch, &mut top, self.threads, clock);
        drop(means);
        let Top { floors, mut near } = top;
        let list = |near: &[(T, u32)], mut floor: T| {
            let mut near = near.to_vec();
            shorten(&mut near, &mut floor);
            let bound = |product: T| upwards(product.wide() + error);
            let mut near: Vec<_> = near.into_iter().map(|(v, i)| (bound(v), ids[i as usize])).collect();
            near.sort_unstable_by(order);
            Neighbours { near, rest: floor.wide() + error }
        };
        for (part, near) in near.chunks_mut(ASKED_AT_ONCE).enumerate() {
            clock.tick("merging", self.settled, n);
            let from = part * ASKED_AT_ONCE;
            let lists = self.share(near.len(), |index| list(&near[index], floors[from + index]));
            for ((id, list), near) in ids[from..].iter().zip(lists).zip(near) {
                self.lists[*id as usize] = list;
                self.scans[*id as usize] = scan;
                *near = Vec::new();
            }
        }
    }

    /// The most similar pair of a group and its nearest group.
    pub(super) fn best_pair(&mut self) -> Option<(u32, u32)> {
        let open = (0..self.points.len() as u32).filter(|g| self.is_active(*g) && self.nearest[*g as usize] != NONE);
        let a = open.max_by(|a, b| self.cosine[*a as usize].total_cmp(&self.cosine[*b as usize]).then(b.cmp(a)))?;
        let b = self.nearest[a as usize];
        self.nearest[b as usize] = a;
        self.followers[a as usize].push(b);
        Some((a, b))
    }
}

/// Orders entries by descending bound, then by ascending group.
pub(super) fn order(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Collects the nearest vectors of each vector: at least [`LIST`] if that many are above the floor.
pub(super) struct Top<T> {
    floors: Vec<T>,
    near: Vec<Vec<(T, u32)>>,
}

impl<T: Scalar> Top<T> {
    pub(super) fn push(&mut self, to: usize, product: T, other: usize) {
        if product > self.floors[to] {
            let near = &mut self.near[to];
            near.push((product, other as u32));
            if near.len() == 2 * LIST {
                shorten(near, &mut self.floors[to]);
            }
        }
    }
}

/// Keeps the [`LIST`] nearest vectors, and raises the floor to the best one that is dropped.
pub(super) fn shorten<T: Scalar>(near: &mut Vec<(T, u32)>, floor: &mut T) {
    if near.len() > LIST {
        near.select_nth_unstable_by(LIST, |a, b| b.0.wide().total_cmp(&a.0.wide()).then(a.1.cmp(&b.1)));
        *floor = near[LIST].0;
        near.truncate(LIST);
    }
}

impl<T: Scalar> Sink<T> for Top<T> {
    fn floors(&self) -> &[T] {
        &self.floors
    }

    fn take(&mut self, row: usize, column: usize, product: T) {
        self.push(row, product, column);
        self.push(column, product, row);
    }
}
