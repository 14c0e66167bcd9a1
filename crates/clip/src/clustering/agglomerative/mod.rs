//! Agglomerative clustering of a whole collection, with average or single linkage on cosines.
//!
//! The partition equals the one of scikit-learn's `AgglomerativeClustering(n_clusters=None, metric="cosine",
//! distance_threshold=1 - threshold)`, but this module doesn't keep n²/2 distances in memory.
//!
//! - The average cosine between two groups of unit vectors is the product of their means, so groups are stored as sums
//!   in f64, and no distance needs an update.
//! - Average linkage is *reducible*: a union is at most as similar to a third group as the better of its parts
//!   (Bruynooghe 1977; Müllner 2011, "Modern hierarchical, agglomerative clustering algorithms"). Hence groups that are
//!   each other's nearest may merge in any order, many in one round (Sumengen et al. 2021, "Scaling hierarchical
//!   agglomerative clustering to billion-sized datasets"), and a group whose nearest is below the threshold is done.
//! - Each group has a short list of its nearest groups and one bound on all others. Reducibility keeps the bound valid
//!   through merges, so the list gives the nearest group exactly until its best entry falls to the bound. Only then is
//!   the group compared with all groups again, together with other such groups in one blocked matrix product. A list
//!   that contains every group above the threshold never needs that.
//! - Products are f32 with the error bound of a dot product of d terms (Higham 2002, section 3.1): they decide which
//!   pairs are examined. Merges are decided in f64.
//! - Before a large product, a *sketch* is tried: the first k coordinates in an orthonormal basis near the principal
//!   axes, and the length of the remainder. x·y ≤ Px·Py + |Rx||Ry| (Cauchy–Schwarz), which excludes most pairs.

mod average;
mod compare;
mod forest;
mod points;
mod product;
mod progress;
mod share;
mod single;
mod sketch;
#[cfg(test)]
mod tests;

use std::time::Instant;

use ndarray::ArrayView2;

use self::average::Average;
use self::points::Points;
use self::progress::Clock;
pub use self::progress::Progress;
use self::single::single;
use crate::error::{Error, Kind, Result};
use crate::memory::Reserve;
use crate::vector::ROUNDING;

/// How the similarity of two groups is computed from the cosines of their members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// The mean over all pairs of members (UPGMA).
    Average,
    /// The best pair of members: groups are the connected components of the pairs that reach the threshold.
    Single,
}

const NONE: u32 = u32::MAX;

/// Groups rows by agglomerative clustering, cut where the linkage falls below `threshold`.
///
/// `rows` has shape (n, d). Each row has length 1 (within 1e-3; cosines are exact for any length). Groups merge while
/// the linkage between them is at least `threshold`, a cosine in (-1, 1], with a tolerance of 1e-12 for rounding. The
/// result has a label per row, numbered from 0 in the order of first appearance. Equal rows share a label, the same
/// rows always get the same labels, and ties go to the lowest index.
///
/// `threads` is the number of threads that compute products; other threads than the caller's access only the vectors.
/// It does not change the labels. The time is that of at most n²/2 products of length d, plus some repeated products if
/// groups have more than 64 others above the threshold. The memory in addition to the rows is about twice the rows'
/// size. `on_progress` is called every 0.1 s or more often, and may unwind.
///
/// # Errors
/// [`Kind::InvalidInput`] for a threshold outside (-1, 1], or for a row that is not of length 1 or not finite
/// (`element` is its index); [`Kind::LimitExceeded`] for 2³² rows; [`Kind::OutOfMemory`].
pub fn agglomerate(
    rows: ArrayView2<'_, f32>,
    threshold: f64,
    linkage: Linkage,
    threads: usize,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Vec<u32>> {
    if !(threshold > -1.0 && threshold <= 1.0) {
        return Err(Error::new(Kind::InvalidInput, format!("threshold {threshold} is not a cosine in (-1, 1]")));
    }
    if rows.nrows() >= NONE as usize {
        return Err(Error::new(Kind::LimitExceeded, format!("{} rows are too many to cluster", rows.nrows())));
    }
    let reserve = Reserve::new(bytes_of(rows.nrows(), rows.ncols(), threads))?;
    let mut clock = Clock { on_progress, last: Instant::now() };
    let rows = rows.as_standard_layout();
    let (points, point_of_row) = Points::read(rows.view(), &mut clock)?;
    let cut = threshold - ROUNDING;
    let mut forest = match linkage {
        Linkage::Average => Average::new(&points, cut, threads).run(&mut clock),
        Linkage::Single => single(&points, cut, threads, &mut clock),
    };
    let mut labels = vec![NONE; points.len()];
    let mut next = 0;
    let labels = point_of_row
        .iter()
        .map(|&point| {
            let label = &mut labels[forest.find(point) as usize];
            if *label == NONE {
                *label = next;
                next += 1;
            }
            *label
        })
        .collect();
    reserve.finish()?;
    Ok(labels)
}

/// Maximum bytes that the calling thread allocates: copies of the rows in f32 and f64, a list of neighbours and some
/// numbers for each row, and buffers.
fn bytes_of(rows: usize, dimensions: usize, threads: usize) -> usize {
    let copies = rows.saturating_mul(dimensions).saturating_mul(12);
    copies.saturating_add(rows.saturating_mul(2500)).saturating_add(compare::bytes_of(threads, dimensions))
}
