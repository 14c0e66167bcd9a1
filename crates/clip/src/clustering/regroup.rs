//! Maps a new partition of rows to clusters, which keep their ids where possible, and reports the changes.

use std::collections::{HashMap, HashSet};

use ndarray::ArrayView2;

use crate::clustering::centroid::Sum;
use crate::error::{Error, Result};
use crate::memory::push;
use crate::vector::{ROUNDING, hash};

/// A matrix of unit vectors that grows row by row.
#[derive(Default)]
pub struct Rows {
    values: Vec<f32>,
    dimensions: usize,
}

impl Rows {
    /// The rows as a matrix of shape (rows, dimensions).
    pub fn view(&self) -> ArrayView2<'_, f32> {
        ArrayView2::from_shape((self.len(), self.dimensions), &self.values).expect("rows are of one length")
    }

    /// Adds a row; returns false if its length differs from the rows before it.
    ///
    /// # Errors
    /// [`Kind::OutOfMemory`](crate::Kind::OutOfMemory).
    pub fn push(&mut self, row: &[f32]) -> Result<bool> {
        if self.dimensions == 0 {
            self.dimensions = row.len();
        }
        if self.dimensions != row.len() {
            return Ok(false);
        }
        if self.values.try_reserve(row.len()).is_err() {
            return Err(Error::out_of_memory(2 * size_of_val(self.values.as_slice())));
        }
        self.values.extend_from_slice(row);
        Ok(true)
    }

    /// The length of the rows; 0 without rows.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.dimensions).unwrap_or(0)
    }

    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dimensions..][..self.dimensions]
    }
}

/// The number of rows between two checks for an interrupt: 3 ms of work at 512 dimensions.
const AT_ONCE: usize = 1024;

/// Maximum bytes that the functions of this module take for `rows` rows in `groups` groups. A few members that form new
/// groups are included.
pub fn bytes_of(rows: usize, groups: usize, dimensions: usize) -> usize {
    // Maps and lists with an entry per row; the sums of a group in f64, and its entry while the list of groups grows.
    rows.saturating_mul(400).saturating_add((groups + AT_ONCE).saturating_mul(dimensions * 8 + 256))
}

/// Gives each current member a group: the group of an equal row that took part in the clustering, else the nearest
/// group within the threshold, else a new one.
///
/// Members are added one at a time, and only those that did not take part are stored: a second copy of a million rows
/// of 512 dimensions would take 2 GB.
pub struct Regrouping<'a> {
    rows: &'a Rows,
    labels: &'a [u32],
    /// The indexes of the rows by their hash, one for each distinct row.
    by_hash: HashMap<u64, Vec<u32>>,
    /// The number of the group for each label that has current members.
    numbers: HashMap<u32, u32>,
    sums: Vec<Sum>,
    /// The group of each current member; [`OPEN`] for members that did not take part.
    result: Vec<u32>,
    strangers: Rows,
}

/// Marks a member that has no group yet.
const OPEN: u32 = u32::MAX;

impl<'a> Regrouping<'a> {
    /// `rows` are the rows that took part, and `labels` are their labels.
    pub fn new(rows: &'a Rows, labels: &'a [u32], check_interrupts: &mut impl FnMut()) -> Self {
        let mut by_hash: HashMap<u64, Vec<u32>> = HashMap::new();
        for index in 0..rows.len() {
            if index % AT_ONCE == 0 {
                check_interrupts();
            }
            let same = by_hash.entry(hash(rows.row(index))).or_default();
            if !same.iter().any(|&other| rows.row(other as usize) == rows.row(index)) {
                same.push(index as u32);
            }
        }
        Self {
            rows,
            labels,
            by_hash,
            numbers: HashMap::new(),
            sums: Vec::new(),
            result: Vec::new(),
            strangers: Rows::default(),
        }
    }

    /// Adds a current member; returns false if its length differs from the others'.
    ///
    /// # Errors
    /// [`Kind::OutOfMemory`](crate::Kind::OutOfMemory).
    pub fn add(&mut self, vector: &[f32]) -> Result<bool> {
        let dimensions = self.rows.dimensions();
        if dimensions != 0 && dimensions != vector.len() {
            return Ok(false);
        }
        let same = self.by_hash.get(&hash(vector));
        let row = same.and_then(|rows| rows.iter().find(|&&row| self.rows.row(row as usize) == vector));
        let number = match row {
            Some(row) => {
                let number = *self.numbers.entry(self.labels[*row as usize]).or_insert_with(|| {
                    self.sums.push(Sum::new(vector.len()));
                    self.sums.len() as u32 - 1
                });
                self.sums[number as usize].add(vector, None, 1);
                number
            }
            None if !self.strangers.push(vector)? => return Ok(false),
            None => OPEN,
        };
        push(&mut self.result, number)?;
        Ok(true)
    }

    /// The length of the vectors; 0 without vectors.
    pub fn dimensions(&self) -> usize {
        self.rows.dimensions().max(self.strangers.dimensions())
    }

    /// Gives the remaining members their groups. Returns the group of each member, in the order in which members were
    /// added, and the sum of each group. Groups are numbered by first appearance, those of members that did not take
    /// part last.
    pub fn finish(mut self, threshold: f64, check_interrupts: &mut impl FnMut()) -> (Vec<u32>, Vec<Sum>) {
        let open = self.result.iter_mut().filter(|number| **number == OPEN);
        for (index, number) in open.enumerate() {
            check_interrupts();
            let vector = self.strangers.row(index);
            let near = self.sums.iter().zip(0..).map(|(sum, number)| (sum.cosine(vector), number));
            let best = near.max_by(|a: &(f64, u32), b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            *number = match best {
                Some((cosine, number)) if cosine + ROUNDING >= threshold => number,
                _ => {
                    self.sums.push(Sum::new(vector.len()));
                    self.sums.len() as u32 - 1
                }
            };
            self.sums[*number as usize].add(vector, None, 1);
        }
        (self.result, self.sums)
    }
}

/// For each group, the id of the cluster with which it shares the most members. Each id is used at most once; the pairs
/// with the most common members choose first.
pub fn keep_ids(labels: &[u32], old: &[Option<i64>], groups: usize) -> Vec<Option<i64>> {
    let mut common: HashMap<(u32, i64), i64> = HashMap::new();
    for (label, id) in labels.iter().zip(old) {
        if let Some(id) = id {
            *common.entry((*label, *id)).or_default() += 1;
        }
    }
    let mut pairs: Vec<((u32, i64), i64)> = common.into_iter().collect();
    pairs.sort_by_key(|&((label, id), count)| (-count, id, label));
    let mut kept = vec![None; groups];
    let mut taken = HashSet::new();
    for ((label, id), _) in pairs {
        if kept[label as usize].is_none() && taken.insert(id) {
            kept[label as usize] = Some(id);
        }
    }
    kept
}

/// A cluster whose members have changed: its id, the kind of change, the former clusters of its members, its size, and
/// the number of its new members.
pub type Change = (i64, String, Vec<i64>, i64, i64);

/// The clusters whose members have changed, ordered by id. `labels` has the group of each member, `old` its former
/// cluster, and `ids` the cluster of each group.
pub fn compare(labels: &[u32], old: &[Option<i64>], ids: &[i64]) -> Vec<Change> {
    let mut sources: Vec<HashMap<i64, i64>> = vec![HashMap::new(); ids.len()];
    let mut sizes = vec![0i64; ids.len()];
    let mut targets: HashMap<i64, i64> = HashMap::new();
    for (label, id) in labels.iter().zip(old) {
        sizes[*label as usize] += 1;
        if let Some(id) = id {
            let count = sources[*label as usize].entry(*id).or_default();
            *count += 1;
            // The number of groups that now contain members of each cluster.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(vectors: &[[f32; 2]]) -> Rows {
        let mut rows = Rows::default();
        assert!(vectors.iter().all(|vector| rows.push(vector).unwrap()));
        rows
    }

    #[test]
    fn rows_are_of_one_length() {
        let mut rows = rows(&[[1.0, 0.0], [0.0, 1.0]]);
        assert!(!rows.push(&[1.0, 0.0, 0.0]).unwrap());
        assert_eq!((rows.len(), rows.dimensions(), rows.row(1)), (2, 2, &[0.0, 1.0][..]));
        assert_eq!(rows.view().shape(), [2, 2]);
        assert!(Rows::default().is_empty() && Rows::default().view().is_empty());
    }

    #[test]
    fn members_that_came_meanwhile_join_the_nearest_group_or_one_of_their_own() {
        let before = rows(&[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]);
        // The third row has left. One new vector is near the first two, one is far from all, and another is near that
        // one.
        let now = rows(&[[0.8, 0.6], [1.0, 0.0], [0.96, 0.28], [-1.0, 0.0], [-0.96, 0.28]]);
        let mut looks = 0;
        let mut regroup = |threshold| {
            let mut regrouping = Regrouping::new(&before, &[7, 7, 3], &mut || looks += 1);
            assert!((0..now.len()).all(|index| regrouping.add(now.row(index)).unwrap()));
            assert!(!regrouping.add(&[1.0]).unwrap(), "a vector of another length");
            assert_eq!(regrouping.dimensions(), 2);
            regrouping.finish(threshold, &mut || looks += 1)
        };
        let (labels, sums) = regroup(0.7);
        assert_eq!(labels, [0, 0, 0, 1, 1]);
        assert_eq!(sums.iter().map(|sum| sum.size).collect::<Vec<_>>(), [3, 2]);
        // No group reaches this threshold, so each new vector forms its own group.
        let (labels, sums) = regroup(0.9999);
        assert_eq!((labels, sums.len()), (vec![0, 0, 1, 2, 3], 4));
        assert_eq!(looks, 8, "one look for the list, and one for each that came, twice");
    }

    #[test]
    fn members_without_a_grouping_form_groups_of_their_own() {
        let (none, now) = (Rows::default(), rows(&[[1.0, 0.0], [0.0, 1.0], [0.96, 0.28]]));
        let mut regrouping = Regrouping::new(&none, &[], &mut || ());
        assert!((0..3).all(|index| regrouping.add(now.row(index)).unwrap()));
        assert!(!regrouping.add(&[1.0]).unwrap(), "a vector of another length");
        assert_eq!(regrouping.finish(0.9, &mut || ()).0, [0, 1, 0]);
    }

    #[test]
    fn groups_keep_the_id_that_most_of_their_members_have() {
        let old = [Some(10), Some(10), Some(20), None, Some(20), Some(20), Some(30)];
        let labels = [0, 0, 0, 1, 1, 1, 2];
        assert_eq!(keep_ids(&labels, &old, 4), [Some(10), Some(20), Some(30), None]);
        // Two groups claim an id: the group with more of its members gets it.
        assert_eq!(keep_ids(&[0, 1, 1], &[Some(5), Some(5), Some(5)], 2), [None, Some(5)]);
    }

    #[test]
    fn changes_say_from_where_members_came() {
        let ids = [10, 20];
        assert_eq!(compare(&[0, 1], &[Some(10), Some(20)], &ids), []);
        let found = compare(&[0, 0, 1], &[Some(10), Some(20), None], &ids);
        assert_eq!(found[0], (10, "merged".to_owned(), vec![10, 20], 2, 1));
        assert_eq!(found[1], (20, "new".to_owned(), vec![], 1, 1));
        let found = compare(&[0, 1, 1], &[Some(10), Some(10), Some(20)], &ids);
        assert_eq!(found[0], (10, "split".to_owned(), vec![10], 1, 0));
        assert_eq!(found[1], (20, "moved".to_owned(), vec![10, 20], 2, 1));
    }
}
