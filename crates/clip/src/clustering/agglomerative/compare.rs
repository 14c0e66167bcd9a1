//! Products of all pairs, block by block: what lies above a floor is handed on.

use std::ops::Range;

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, s};

use super::points::{Scalar, dot, slice};
use super::sketch::{MOST_SURVIVORS, Sketch};
use super::{BLOCK_COLUMNS, BLOCK_ROWS, Clock};

/// What is done with the products of pairs.
pub(super) trait Sink<T> {
    /// Whether no pair of a block can matter any more.
    fn skips(&mut self, _rows: &Range<usize>, _columns: &Range<usize>) -> bool {
        false
    }
    /// For each vector: products of which it need not hear, those up to this.
    fn floors(&self) -> &[T];
    fn wants(&mut self, _row: usize, _column: usize) -> bool {
        true
    }
    fn take(&mut self, row: usize, column: usize, product: T);
}

/// Hands `sink` the product of each of the first `wanted` vectors with each other vector, once for a pair, where it is
/// above the floor of either.
pub(super) fn compare<T: Scalar>(
    vectors: ArrayView2<'_, T>,
    wanted: usize,
    mut sketch: Option<Sketch<T>>,
    sink: &mut dyn Sink<T>,
    clock: &mut Clock<'_>,
) {
    let n = vectors.nrows();
    let pairs: usize = (0..wanted).step_by(BLOCK_ROWS).map(|top| BLOCK_ROWS.min(wanted - top) * (n - top)).sum();
    let mut done = 0;
    let mut products = Array2::<T>::zeros((BLOCK_ROWS, BLOCK_COLUMNS));
    for top in (0..wanted).step_by(BLOCK_ROWS) {
        let rows = top..(top + BLOCK_ROWS).min(wanted);
        for left in (top..n).step_by(BLOCK_COLUMNS) {
            clock.tick("comparing", done, pairs);
            let columns = left..(left + BLOCK_COLUMNS).min(n);
            done += rows.len() * columns.len();
            if sink.skips(&rows, &columns) {
                continue;
            }
            let mut block = Block { rows: rows.clone(), columns: columns.clone(), products: &mut products };
            if let Some(sketch) = &mut sketch
                && sketch.worth_trying()
            {
                block.multiply(sketch.vectors.view());
                let budget = rows.len() * columns.len() / MOST_SURVIVORS;
                if sketch.report(block.visit_survivors(vectors, budget, sink)) {
                    continue;
                }
            }
            block.multiply(vectors);
            block.visit(sink);
        }
    }
}

/// Is given a row, a column and their product, and says whether to go on.
pub(super) type Hit<'a, T> = dyn FnMut(&mut dyn Sink<T>, usize, usize, T) -> bool + 'a;

/// The products of a range of vectors with another range, which starts at or after the first.
pub(super) struct Block<'a, T> {
    rows: Range<usize>,
    columns: Range<usize>,
    products: &'a mut Array2<T>,
}

impl<T: Scalar> Block<'_, T> {
    pub(super) fn multiply(&mut self, vectors: ArrayView2<'_, T>) {
        let a = vectors.slice(s![self.rows.clone(), ..]);
        let b = vectors.slice(s![self.columns.clone(), ..]);
        let mut out = self.products.slice_mut(s![..self.rows.len(), ..self.columns.len()]);
        general_mat_mul(T::one(), &a, &b.t(), T::zero(), &mut out);
    }

    /// Calls `hit` for what is above the floor of its row or of its column, while it returns true.
    pub(super) fn hits(&self, sink: &mut dyn Sink<T>, hit: &mut Hit<'_, T>) {
        const CHUNK: usize = 16;
        let mut found = [0u16; CHUNK];
        for row in self.rows.clone() {
            let from = self.columns.start.max(row + 1);
            if from >= self.columns.end {
                continue;
            }
            let line = self.products.row(row - self.rows.start);
            let line = &line.as_slice().expect("standard layout")[from - self.columns.start..self.columns.len()];
            for (index, values) in line.chunks(CHUNK).enumerate() {
                let column = from + index * CHUNK;
                let floors = sink.floors();
                let floor = floors[row];
                let floors = &floors[column..column + values.len()];
                // Branches once for a chunk, so that the comparisons are vector instructions: hits are rare.
                let above = values.iter().zip(floors).fold(false, |any, (v, f)| any | (*v > floor) | (*v > *f));
                if !above {
                    continue;
                }
                let mut count = 0;
                for (offset, (v, f)) in values.iter().zip(floors).enumerate() {
                    if *v > floor || *v > *f {
                        found[count] = offset as u16;
                        count += 1;
                    }
                }
                for &offset in &found[..count] {
                    let offset = usize::from(offset);
                    if !hit(sink, row, column + offset, values[offset]) {
                        return;
                    }
                }
            }
        }
    }

    pub(super) fn visit(&self, sink: &mut dyn Sink<T>) {
        self.hits(sink, &mut |sink, row, column, product| {
            if sink.wants(row, column) {
                sink.take(row, column, product);
            }
            true
        });
    }

    /// Where the products are bounds: takes the true product of those above a floor. False, with nothing taken, where
    /// they are more than `budget`.
    pub(super) fn visit_survivors(&self, vectors: ArrayView2<'_, T>, budget: usize, sink: &mut dyn Sink<T>) -> bool {
        let mut survivors: Vec<(u32, u32)> = Vec::new();
        self.hits(sink, &mut |sink, row, column, _| {
            if sink.wants(row, column) {
                survivors.push((row as u32, column as u32));
            }
            survivors.len() <= budget
        });
        if survivors.len() > budget {
            return false;
        }
        for (row, column) in survivors {
            let (row, column) = (row as usize, column as usize);
            let product = T::narrow(dot(slice(&vectors, row), slice(&vectors, column)));
            if product > sink.floors()[row] || product > sink.floors()[column] {
                sink.take(row, column, product);
            }
        }
        true
    }
}
