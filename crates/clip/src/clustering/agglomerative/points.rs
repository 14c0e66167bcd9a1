//! The distinct rows, and products of vectors in f64.

use std::collections::HashMap;

use ndarray::{ArrayView2, LinalgScalar};
use pulp::Arch;

use super::product;
use super::progress::Clock;
use crate::error::{Error, Kind, Result};
use crate::vector::hash;

/// Vectors stored as f16 have a length within 1e-3 of 1. A vector beyond that was never normalized.
const UNIT: f64 = 1e-3;

/// The distinct rows of the input, called points, each with its multiplicity.
pub(super) struct Points<'a> {
    rows: ArrayView2<'a, f32>,
    /// For each point, the index in `rows` of its first row.
    first: Vec<u32>,
    /// For each point, the number of rows that equal it.
    pub(super) weight: Vec<u32>,
    /// For each point, the reciprocal of its length.
    pub(super) inverse: Vec<f64>,
}

impl<'a> Points<'a> {
    /// Reads the distinct rows; also returns the point of each row.
    pub(super) fn read(rows: ArrayView2<'a, f32>, clock: &mut Clock<'_>) -> Result<(Self, Vec<u32>)> {
        let mut points = Self { rows, first: Vec::new(), weight: Vec::new(), inverse: Vec::new() };
        let mut point_of_row = Vec::with_capacity(rows.nrows());
        let mut by_hash: HashMap<u64, Vec<u32>> = HashMap::new();
        for index in 0..rows.nrows() {
            clock.tick("reading", index, rows.nrows());
            let row = slice(&rows, index);
            let norm = dot(row, row).sqrt();
            if norm.is_nan() || (norm - 1.0).abs() > UNIT {
                let error = if norm.is_finite() {
                    Error::new(Kind::InvalidInput, format!("vector of length {norm} is not a unit vector"))
                } else {
                    Error::new(Kind::InvalidInput, "vector has a component that is not a finite number")
                };
                return Err(error.element(index));
            }
            let alike = by_hash.entry(hash(row)).or_default();
            let known = alike.iter().copied().find(|&p| slice(&rows, points.first[p as usize] as usize) == row);
            let point = known.unwrap_or_else(|| {
                let point = points.first.len() as u32;
                points.first.push(index as u32);
                points.weight.push(0);
                points.inverse.push(1.0 / norm);
                alike.push(point);
                point
            });
            points.weight[point as usize] += 1;
            point_of_row.push(point);
        }
        Ok((points, point_of_row))
    }

    pub(super) fn len(&self) -> usize {
        self.first.len()
    }

    pub(super) fn width(&self) -> usize {
        self.rows.ncols()
    }

    pub(super) fn row(&self, point: u32) -> &[f32] {
        slice(&self.rows, self.first[point as usize] as usize)
    }

    pub(super) fn cosine(&self, a: u32, b: u32) -> f64 {
        dot(self.row(a), self.row(b)) * (self.inverse[a as usize] * self.inverse[b as usize])
    }
}
pub(super) fn slice<'a, T>(matrix: &'a ArrayView2<'_, T>, index: usize) -> &'a [T] {
    let width = matrix.ncols();
    &matrix.as_slice().expect("standard layout")[index * width..][..width]
}
/// The dot product in f64. It is commutative to the last bit, so that two groups always agree on their similarity.
pub(super) fn dot<A: Scalar, B: Scalar>(a: &[A], b: &[B]) -> f64 {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            // It has sixteen partial sums, because a single sum would wait for each addition. They are added in the
            // same order with any processor's instructions, and without fused multiply-add, so the result is the same
            // everywhere.
            let mut sums = [0.0f64; 16];
            let (a_chunks, a_rest) = a.as_chunks::<16>();
            let (b_chunks, b_rest) = b.as_chunks::<16>();
            for (a, b) in a_chunks.iter().zip(b_chunks) {
                for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                    *sum += a.wide() * b.wide();
                }
            }
            let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a.wide() * b.wide()).sum();
            for half in [8, 4, 2, 1] {
                let (low, high) = sums.split_at_mut(half);
                low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
            }
            sums[0] + rest
        },
    )
}

/// The number type of products: f32, or f64 if f32 cannot separate groups.
pub(super) trait Scalar: LinalgScalar + PartialOrd + Send + Sync {
    const INFINITY: Self;
    /// The unit roundoff: half the distance from 1 to the next number.
    const ROUNDOFF: f64;
    fn narrow(value: f64) -> Self;
    fn wide(self) -> f64;
    /// The product of two vectors, with an error of at most [`product_error`].
    fn product(a: &[Self], b: &[Self]) -> Self;
}

impl Scalar for f32 {
    const INFINITY: f32 = f32::INFINITY;
    const ROUNDOFF: f64 = f32::EPSILON as f64 / 2.0;
    fn narrow(value: f64) -> f32 {
        value as f32
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
    fn product(a: &[f32], b: &[f32]) -> f32 {
        product::dot(a, b)
    }
}

impl Scalar for f64 {
    const INFINITY: f64 = f64::INFINITY;
    const ROUNDOFF: f64 = f64::EPSILON / 2.0;
    fn narrow(value: f64) -> f64 {
        value
    }
    fn wide(self) -> f64 {
        self
    }
    fn product(a: &[f64], b: &[f64]) -> f64 {
        dot(a, b)
    }
}
/// The maximum error of the product of two vectors of at most length 1 and `width` terms: one rounding per term (their
/// absolute values add up to at most 1), and a few more for rounding the vectors and for the comparisons.
pub(super) fn product_error<T: Scalar>(width: usize) -> f64 {
    (width + 8) as f64 * T::ROUNDOFF
}
/// The smallest f32 that is not below a value.
pub(super) fn upwards(value: f64) -> f32 {
    let narrow = value as f32;
    if f64::from(narrow) < value { narrow.next_up() } else { narrow }
}
