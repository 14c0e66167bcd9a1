//! Sketches: upper bounds of products, computed from a few coordinates, which avoid most full products.

use ndarray::{Array2, ArrayView2, s};

use super::points::{dot, product_error, slice, upwards};
use super::progress::Clock;

/// Cheap upper bounds of products: a few coordinates in a basis that captures most of the vectors' length, and the
/// length of the remainder.
pub(super) struct Sketch<T> {
    /// Shape (n, k + 2). The product of two sketches is at least the product of the two vectors.
    pub(super) vectors: Array2<T>,
    /// The number of blocks that skip the sketch from now on. After the next failure, twice `penalty` blocks do.
    pause: u32,
    penalty: u32,
}

/// The number of rows between two checks of the clock.
const SKETCHED_AT_ONCE: usize = 256;
/// The minimum number of pairs for a sketch. For fewer pairs, the full products take no longer than finding a basis
/// (0.1 s).
pub(super) const SKETCHED_FROM: usize = 12_000_000;
/// The number of vectors from which the basis and its size are chosen.
pub(super) const SAMPLE: usize = 1024;
/// A single product takes as long as this many products in a block: 140 ns, mostly waiting for memory, against 10.
pub(super) const SURVIVOR_COST: usize = 15;
/// A block's sketch is abandoned if more than one in this many pairs survives.
pub(super) const MOST_SURVIVORS: usize = 2 * SURVIVOR_COST;

impl<T> Sketch<T> {
    pub(super) fn worth_trying(&mut self) -> bool {
        let ready = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        ready
    }

    /// Whether the last block that was tried had few survivors.
    pub(super) fn pays_off(&self) -> bool {
        self.pause == 0 && self.penalty == 4
    }

    /// Records whether a block's sketch paid off, and returns it.
    pub(super) fn report(&mut self, success: bool) -> bool {
        self.penalty = if success { 4 } else { (self.penalty * 2).min(1024) };
        self.pause = if success { 0 } else { self.penalty };
        success
    }
}

impl Sketch<f32> {
    /// A sketch of vectors of at most length 1. None if it is not likely to save a third of the products to be compared
    /// with `floor`.
    pub(super) fn plan(vectors: ArrayView2<'_, f32>, wanted: usize, floor: f32, clock: &mut Clock<'_>) -> Option<Self> {
        let (n, width) = vectors.dim();
        if wanted * n < SKETCHED_FROM || width < 64 {
            return None;
        }
        let sample = n.min(SAMPLE);
        let chosen: Vec<usize> = (0..sample).map(|i| i * n / sample).collect();
        let sample = vectors.select(ndarray::Axis(0), &chosen);
        let basis = principal_basis(&sample, (width / 4).min(128), clock);

        let mut best: Option<(f64, usize)> = None;
        for size in [8, 16, 32, 64, 96, 128] {
            if size > basis.ncols() {
                break;
            }
            clock.tick("comparing", 0, wanted * n);
            let sketched = sketch(sample.view(), &basis.slice(s![.., ..size]).to_owned(), clock);
            let half = sample.nrows() / 2;
            let bounds = sketched.slice(s![..half, ..]).dot(&sketched.slice(s![half.., ..]).t());
            let survivors = bounds.iter().filter(|bound| **bound > floor).count() as f64 / bounds.len() as f64;
            // Short products take twice as long per term.
            let cost = 2.0 * (size + 2) as f64 / width as f64 + survivors * SURVIVOR_COST as f64;
            if cost < best.map_or(0.67, |(cost, _)| cost) {
                best = Some((cost, size));
            }
        }
        let (_, size) = best?;
        let vectors = sketch(vectors, &basis.slice(s![.., ..size]).to_owned(), clock);
        Some(Self { vectors, pause: 0, penalty: 4 })
    }
}

/// Orthonormal columns, shape (d, size), near the principal axes of the rows, by four rounds of subspace iteration. Any
/// basis gives valid bounds; this one leaves small remainders.
pub(super) fn principal_basis(rows: &Array2<f32>, size: usize, clock: &mut Clock<'_>) -> Array2<f32> {
    // The start values come from a fixed linear congruential generator, because the same rows must give the same
    // result.
    let mut state = 1u32;
    let mut basis = Array2::from_shape_simple_fn((rows.ncols(), size), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    });
    for round in 0..5 {
        if round > 0 {
            basis = rows.t().dot(&rows.dot(&basis));
        }
        // Gram–Schmidt, applied twice, in f64.
        let mut done: Vec<Vec<f64>> = Vec::with_capacity(size);
        for mut column in basis.columns_mut() {
            clock.tick("comparing", 0, 1);
            let mut vector: Vec<f64> = column.iter().map(|v| f64::from(*v)).collect();
            let scale = dot(&vector, &vector).sqrt();
            for _ in 0..2 {
                for other in &done {
                    let along = dot(&vector, other);
                    vector.iter_mut().zip(other).for_each(|(v, o)| *v -= along * o);
                }
            }
            let norm = dot(&vector, &vector).sqrt();
            // If the rows span no further axis, the column stays empty; it then does not change any bound.
            let factor = if norm > 1e-5 * scale { 1.0 / norm } else { 0.0 };
            vector.iter_mut().for_each(|v| *v *= factor);
            column.iter_mut().zip(&vector).for_each(|(c, v)| *c = *v as f32);
            done.push(vector);
        }
    }
    basis
}

/// For each vector: its coordinates in the basis, the length of the remainder, and a constant that covers all rounding;
/// shape (n, k + 2).
pub(super) fn sketch(vectors: ArrayView2<'_, f32>, basis: &Array2<f32>, clock: &mut Clock<'_>) -> Array2<f32> {
    let (n, size) = (vectors.nrows(), basis.ncols());
    let columns: Vec<Vec<f32>> = basis.columns().into_iter().map(|column| column.to_vec()).collect();
    // How far the columns (except empty ones) deviate from orthonormality: the Frobenius norm of QᵀQ - I.
    let mut skew = 0.0;
    for (i, a) in columns.iter().enumerate() {
        for (j, b) in columns.iter().enumerate() {
            let unit = if i == j && dot(a, a) > 0.0 { 1.0 } else { 0.0 };
            skew += (dot(a, b) - unit).powi(2);
        }
    }
    // With coordinates p that have the error e, remainder r = x - Qp and QᵀQ = I + E:
    // x·y = px·py + rx·ry - px·ey - py·ex - px·E·py, and |r|² = |x|² - |p|² + 2 p·e + p·E·p.
    let coordinates_off = (size as f64).sqrt() * product_error::<f32>(basis.nrows());
    let error = 2.0 * coordinates_off + skew.sqrt();
    let margin = (1.01 * error + product_error::<f32>(size + 2)).sqrt() as f32;
    let mut out = Array2::<f32>::zeros((n, size + 2));
    for from in (0..n).step_by(SKETCHED_AT_ONCE) {
        clock.tick("comparing", from, n);
        let rows = from..(from + SKETCHED_AT_ONCE).min(n);
        let coordinates = vectors.slice(s![rows.clone(), ..]).dot(basis);
        for (index, p) in rows.zip(coordinates.outer_iter()) {
            let x = slice(&vectors, index);
            let rest = dot(x, x) - p.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            let mut line = out.row_mut(index);
            line.slice_mut(s![..size]).assign(&p);
            line[size] = upwards((rest + 1.01 * error).max(0.0).sqrt());
            line[size + 1] = margin;
        }
    }
    out
}

pub(super) trait Plan<T>: Sized {
    fn plan_for(vectors: ArrayView2<'_, T>, wanted: usize, floor: T, clock: &mut Clock<'_>) -> Option<Self>;
}

impl Plan<f32> for Sketch<f32> {
    fn plan_for(vectors: ArrayView2<'_, f32>, wanted: usize, floor: f32, clock: &mut Clock<'_>) -> Option<Self> {
        Self::plan(vectors, wanted, floor, clock)
    }
}

impl Plan<f64> for Sketch<f64> {
    /// No sketch: where f32 is too coarse to separate pairs, the bounds of a sketch are too coarse, too.
    fn plan_for(_: ArrayView2<'_, f64>, _: usize, _: f64, _: &mut Clock<'_>) -> Option<Self> {
        None
    }
}
