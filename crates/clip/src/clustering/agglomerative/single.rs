//! Single linkage: connected components of the pairs that reach the threshold.

use std::ops::Range;

use ndarray::Array2;

use super::compare::{Sink, compare};
use super::forest::Forest;
use super::points::{Points, Scalar, product_error};
use super::progress::Clock;
use super::sketch::Sketch;

/// Single linkage: joins the points of each pair that reaches `cut`.
pub(super) fn single(points: &Points<'_>, cut: f64, threads: usize, clock: &mut Clock<'_>) -> Forest {
    let vectors = unit_rows(points, clock);
    let error = product_error::<f32>(points.width());
    let floor = f32::narrow(cut - 2.0 * error);
    let sketch = Sketch::plan(vectors.view(), vectors.nrows(), floor, clock);
    let mut sink = Components {
        points,
        cut,
        sure: f32::narrow(cut + 2.0 * error),
        floors: vec![floor; points.len()],
        forest: Forest::new(points.len()),
    };
    compare(vectors.view(), points.len(), sketch, &mut sink, threads, clock);
    sink.forest
}

pub(super) struct Components<'p, 'r> {
    points: &'p Points<'r>,
    cut: f64,
    /// For f32 products above this, the cosine is certainly above the cut.
    sure: f32,
    floors: Vec<f32>,
    forest: Forest,
}

impl Sink<f32> for Components<'_, '_> {
    fn skips(&mut self, rows: &Range<usize>, columns: &Range<usize>) -> bool {
        let root = self.forest.find(rows.start as u32);
        rows.clone().chain(columns.clone()).all(|point| self.forest.find(point as u32) == root)
    }

    fn floors(&self) -> &[f32] {
        &self.floors
    }

    fn wants(&self, row: usize, column: usize) -> bool {
        self.forest.root(row as u32) != self.forest.root(column as u32)
    }

    fn take(&mut self, row: usize, column: usize, product: f32) {
        let (a, b) = (row as u32, column as u32);
        if product > self.sure || self.points.cosine(a, b) >= self.cut {
            self.forest.unite(a, b);
        }
    }
}

/// The points as f32 vectors of length 1, shape (points, d).
pub(super) fn unit_rows(points: &Points<'_>, clock: &mut Clock<'_>) -> Array2<f32> {
    let mut out = Array2::zeros((points.len(), points.width()));
    for (point, mut line) in out.outer_iter_mut().enumerate() {
        clock.tick("reading", point, points.len());
        let inverse = points.inverse[point];
        for (to, from) in line.iter_mut().zip(points.row(point as u32)) {
            *to = (f64::from(*from) * inverse) as f32;
        }
    }
    out
}
