//! Computes the products of all pairs, block by block, and passes on those above a floor.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, s};

use super::points::{Scalar, slice};
use super::product;
use super::progress::Clock;
use super::share::share;
use super::sketch::{MOST_SURVIVORS, Sketch};

/// The size of a block of products: 5 ms of work at 512 dimensions. The vectors of the columns that survive a sketch
/// are read from memory once per block, so blocks with more rows read less: with 1024 rows instead of 256, 100,000
/// photo-like rows take 16 s instead of 21.
const BLOCK_ROWS: usize = 1024;
const BLOCK_COLUMNS: usize = 512;

/// Receives the products of pairs. Other threads read it only while no thread writes to it.
pub(super) trait Sink<T>: Sync {
    /// Whether no pair of a block can matter to the result.
    fn skips(&mut self, _rows: &Range<usize>, _columns: &Range<usize>) -> bool {
        false
    }
    /// A floor for each vector: products up to it are not needed. Floors only rise.
    fn floors(&self) -> &[T];
    fn wants(&self, _row: usize, _column: usize) -> bool {
        true
    }
    fn take(&mut self, row: usize, column: usize, product: T);
}

/// The number of blocks that a thread multiplies between two checks of the clock: 20 ms of work at 512 dimensions,
/// while starting a thread takes some 50 µs. Vectors with more dimensions (up to 16,000) have fewer blocks per wave, so
/// that a cancel is noticed in time.
const BLOCKS_OF_A_WAVE: usize = 4;

/// The factor for waves whose blocks use a sketch. A block that its sketch excludes takes a quarter of the time, and
/// longer waves lose less time at their end, when some threads have no block left.
const BLOCKS_BY_SKETCH: usize = 2;

fn blocks_of_a_wave(dimensions: usize) -> usize {
    (BLOCKS_OF_A_WAVE * 512 / dimensions.max(1)).clamp(1, BLOCKS_OF_A_WAVE)
}

/// Maximum bytes of the products that are kept of a block, in a growing list.
const HITS: usize = 3 * BLOCK_ROWS * BLOCK_COLUMNS * size_of::<(u32, u32, f64)>();

/// Maximum bytes of the hits of a wave.
fn bytes_of_a_wave(threads: usize, dimensions: usize) -> usize {
    HITS * if threads == 1 { 1 } else { threads * blocks_of_a_wave(dimensions) * BLOCKS_BY_SKETCH }
}

/// Maximum bytes that [`compare`] allocates on the calling thread.
pub(super) fn bytes_of(threads: usize, dimensions: usize) -> usize {
    bytes_of_a_wave(threads, dimensions) + threads * BLOCK_ROWS * BLOCK_COLUMNS * size_of::<f64>() + product::BYTES
}

/// Passes to `sink` the product of each of the first `wanted` vectors with every other vector, once per pair, if it is
/// above the floor of either.
///
/// `threads` threads multiply blocks in waves, and the calling thread takes their hits in the order of the blocks. A
/// wave uses the floors at its start, which let a few more pairs pass; hits are compared with the current floors when
/// they are taken. The sink therefore receives the same products in the same order with any number of threads.
pub(super) fn compare<T: Scalar>(
    vectors: ArrayView2<'_, T>,
    wanted: usize,
    mut sketch: Option<Sketch<T>>,
    sink: &mut dyn Sink<T>,
    threads: usize,
    clock: &mut Clock<'_>,
) {
    let n = vectors.nrows();
    let pairs: usize = (0..wanted).step_by(BLOCK_ROWS).map(|top| BLOCK_ROWS.min(wanted - top) * (n - top)).sum();
    let mut done = 0;
    let threads = threads.clamp(1, pairs.div_ceil(BLOCK_ROWS * BLOCK_COLUMNS).max(1));
    let most = blocks_of_a_wave(vectors.ncols());
    let mut buffers = vec![Array2::<T>::zeros((BLOCK_ROWS, BLOCK_COLUMNS)); threads];
    let mut blocks = (0..wanted).step_by(BLOCK_ROWS).flat_map(|top| {
        let rows = top..(top + BLOCK_ROWS).min(wanted);
        (top..n).step_by(BLOCK_COLUMNS).map(move |left| (rows.clone(), left..(left + BLOCK_COLUMNS).min(n)))
    });
    let mut wave = Vec::new();
    loop {
        clock.tick("comparing", done, pairs);
        wave.clear();
        let length = match &sketch {
            _ if threads == 1 => 1,
            Some(sketch) if sketch.pays_off() => threads * most * BLOCKS_BY_SKETCH,
            _ => threads * most,
        };
        for (rows, columns) in blocks.by_ref() {
            done += rows.len() * columns.len();
            if !sink.skips(&rows, &columns) {
                let sketched = sketch.as_mut().is_some_and(Sketch::worth_trying);
                wave.push(Block { rows, columns, sketched });
                if wave.len() == length {
                    break;
                }
            } else {
                clock.tick("comparing", done, pairs);
            }
        }
        if wave.is_empty() {
            return;
        }
        let sketched = sketch.as_ref().map(|sketch| sketch.vectors.view());
        let reserve = bytes_of_a_wave(threads, vectors.ncols()) + product::BYTES;
        let hits = {
            let sink: &dyn Sink<T> = sink;
            share(&mut buffers, wave.len(), reserve, |products, index| {
                wave[index].hits(vectors, sketched, sink, products)
            })
        };
        for (block, hits) in wave.iter().zip(hits) {
            if let Some(sketch) = &mut sketch
                && block.sketched
            {
                sketch.report(hits.by_sketch);
            }
            for (row, column, product) in hits.pairs {
                let (row, column) = (row as usize, column as usize);
                if (product > sink.floors()[row] || product > sink.floors()[column]) && sink.wants(row, column) {
                    sink.take(row, column, product);
                }
            }
        }
    }
}

/// The pairs of a block that are above a floor, with their products.
struct Hits<T> {
    /// Whether the sketch has excluded most pairs.
    by_sketch: bool,
    pairs: Vec<(u32, u32, T)>,
}

/// The pairs of two ranges of vectors; the second range starts at or after the first.
struct Block {
    rows: Range<usize>,
    columns: Range<usize>,
    /// Whether to try a sketch first.
    sketched: bool,
}

impl Block {
    fn hits<T: Scalar>(
        &self,
        vectors: ArrayView2<'_, T>,
        sketched: Option<ArrayView2<'_, T>>,
        sink: &dyn Sink<T>,
        products: &mut Array2<T>,
    ) -> Hits<T> {
        if let Some(sketched) = sketched
            && self.sketched
        {
            self.multiply(sketched, products);
            if let Some(pairs) = self.survivors(vectors, sink, products) {
                return Hits { by_sketch: true, pairs };
            }
        }
        self.multiply(vectors, products);
        let mut pairs = Vec::new();
        self.visit(sink, products, &mut |row, column, product| {
            pairs.push((row as u32, column as u32, product));
            true
        });
        Hits { by_sketch: false, pairs }
    }

    fn multiply<T: Scalar>(&self, vectors: ArrayView2<'_, T>, products: &mut Array2<T>) {
        let a = vectors.slice(s![self.rows.clone(), ..]);
        let b = vectors.slice(s![self.columns.clone(), ..]);
        product::multiply(a, b, products.slice_mut(s![..self.rows.len(), ..self.columns.len()]));
    }

    /// Calls `hit` for each pair that the sink needs and whose product is above the floor of its row or its column,
    /// until `hit` returns false.
    fn visit<T: Scalar>(&self, sink: &dyn Sink<T>, products: &Array2<T>, hit: &mut dyn FnMut(usize, usize, T) -> bool) {
        let all = sink.floors();
        for row in self.rows.clone() {
            let from = self.columns.start.max(row + 1);
            if from >= self.columns.end {
                continue;
            }
            let line = products.row(row - self.rows.start);
            let line = &line.as_slice().expect("standard layout")[from - self.columns.start..self.columns.len()];
            let (floor, floors) = (all[row], &all[from..from + line.len()]);
            let mut done = 0;
            loop {
                done += product::find_above(&line[done..], &floors[done..], floor);
                if done == line.len() {
                    break;
                }
                let end = (done + product::CHUNK).min(line.len());
                for index in done..end {
                    let (value, column) = (line[index], from + index);
                    if (value > floor || value > floors[index]) && sink.wants(row, column) && !hit(row, column, value) {
                        return;
                    }
                }
                done = end;
            }
        }
    }

    /// Takes upper bounds of the products, and computes the true products of the pairs whose bound is above a floor.
    /// `None` if these pairs exceed the budget of a block.
    fn survivors<T: Scalar>(
        &self,
        vectors: ArrayView2<'_, T>,
        sink: &dyn Sink<T>,
        bounds: &Array2<T>,
    ) -> Option<Vec<(u32, u32, T)>> {
        let budget = self.rows.len() * self.columns.len() / MOST_SURVIVORS;
        let mut survivors: Vec<(u32, u32, T)> = Vec::new();
        self.visit(sink, bounds, &mut |row, column, bound| {
            survivors.push((row as u32, column as u32, bound));
            survivors.len() <= budget
        });
        if survivors.len() > budget {
            return None;
        }
        for (row, column, product) in &mut survivors {
            *product = T::product(slice(&vectors, *row as usize), slice(&vectors, *column as usize));
        }
        Some(survivors)
    }
}
