//! Agglomerative clustering of a whole collection at once, with average or single linkage on cosines.
//!
//! The partition is the one of scikit-learn's `AgglomerativeClustering(n_clusters=None, metric="cosine",
//! distance_threshold=1 - threshold)`, without its n²/2 distances in memory.
//!
//! - The average cosine between two groups of unit vectors is the product of their means, so groups are kept as sums
//!   in f64, and no distance is ever updated.
//! - Average linkage is *reducible*: a union is at most as similar to a third group as the better of its parts (Bruynooghe
//!   1977; Müllner 2011, "Modern hierarchical, agglomerative clustering algorithms"). Hence groups that are each
//!   other's nearest may merge in any order, many in one round (Sumengen et al. 2021, "Scaling hierarchical
//!   agglomerative clustering to billion-sized datasets"), and a group whose nearest is below the threshold is done.
//! - Each group holds a short list of its nearest groups and one bound on all the others. Reducibility keeps the bound
//!   true through merges, so the list answers "which is nearest?" exactly until its best falls to the bound; only
//!   then are all groups looked at again, for all such groups in one blocked matrix product. Where a list holds
//!   everything above the threshold it never has to be.
//! - Products are f32 with the error bound of a dot product of d terms (Higham 2002, section 3.1): they decide what
//!   is looked at. What merges is decided by f64.
//! - Before a large product a *sketch* is tried: the first k coordinates in an orthonormal basis near the principal
//!   one, and the length of the rest. x·y ≤ Px·Py + |Rx||Ry| (Cauchy–Schwarz), and most pairs end there.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::ops::Range;
use std::time::{Duration, Instant};

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, LinalgScalar, s};

use crate::error::{Error, Kind, Result};

/// How alike two groups are, from the cosines of their members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// The mean over all pairs (UPGMA).
    Average,
    /// The best pair: groups are the connected components of the pairs that reach the threshold.
    Single,
}

/// How far the work is. `done` and `total` count within `stage`; a stage can come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// `read` (rows), `compare` (pairs) or `merge` (groups that have found their end).
    pub stage: &'static str,
    pub done: u64,
    pub total: u64,
}

/// As in the grouping on insert: the last bit of an f32 moves a cosine by about 1e-15, so that with this much room a
/// threshold of 1 means equal.
const ROUNDING: f64 = 1e-12;
/// Vectors stored as f16 have a length within 1e-3 of 1; what is further off was never normalised.
const UNIT: f64 = 1e-3;
/// Nearest groups that a list starts with, and what a list may grow to in merges.
const LIST: usize = 64;
const LONGEST_LIST: usize = 256;
/// A block of products: 512 KiB of f32, which stays in the second-level cache, and 2 ms of work at 512 dimensions.
const BLOCK_ROWS: usize = 256;
const BLOCK_COLUMNS: usize = 512;
const PULSE: Duration = Duration::from_millis(20);
const NONE: u32 = u32::MAX;

/// Groups rows by agglomerative clustering, cut where the linkage falls below a cosine.
///
/// `rows` has shape (n, d), each row of length 1 (within 1e-3; cosines are exact whatever the length). Groups merge
/// while the linkage between them is at least `threshold`, a cosine in (-1, 1], of which 1e-12 is left to rounding.
/// The result has a label for each row, numbered from 0 in the order of first appearance. Equal rows share a label;
/// the same rows give the same labels; ties go to the lowest index.
///
/// One thread. Time is that of at most n²/2 products of length d, plus some of them again where groups have more than
/// 64 others above the threshold; memory beside the rows is about twice theirs. `pulse` is called at least every
/// 0.1 s or so and may unwind.
///
/// # Errors
/// [`Kind::InvalidInput`] for a threshold outside (-1, 1], or a row that is not of length 1 or not finite (`element`
/// says which); [`Kind::LimitExceeded`] for 2³² rows.
pub fn agglomerate(
    rows: ArrayView2<'_, f32>,
    threshold: f64,
    linkage: Linkage,
    pulse: &mut dyn FnMut(Progress),
) -> Result<Vec<u32>> {
    if !(threshold > -1.0 && threshold <= 1.0) {
        return Err(Error::new(Kind::InvalidInput, format!("threshold {threshold} is not a cosine in (-1, 1]")));
    }
    if rows.nrows() >= NONE as usize {
        return Err(Error::new(Kind::LimitExceeded, format!("{} rows are too many to cluster", rows.nrows())));
    }
    let mut clock = Clock { pulse, last: Instant::now() };
    let rows = rows.as_standard_layout();
    let (points, point_of_row) = Points::read(rows.view(), &mut clock)?;
    let cut = threshold - ROUNDING;
    let mut forest = match linkage {
        Linkage::Average => Average::new(&points, cut).run(&mut clock),
        Linkage::Single => single(&points, cut, &mut clock),
    };
    let mut labels = vec![NONE; points.len()];
    let mut next = 0;
    Ok(point_of_row
        .iter()
        .map(|&point| {
            let label = &mut labels[forest.find(point) as usize];
            if *label == NONE {
                *label = next;
                next += 1;
            }
            *label
        })
        .collect())
}

/// Calls back at intervals, wherever the work is.
struct Clock<'a> {
    pulse: &'a mut dyn FnMut(Progress),
    last: Instant,
}

impl Clock<'_> {
    fn tick(&mut self, stage: &'static str, done: usize, total: usize) {
        if self.last.elapsed() >= PULSE {
            (self.pulse)(Progress { stage, done: done as u64, total: total as u64 });
            self.last = Instant::now();
        }
    }
}

/// The distinct rows, each with its multiplicity.
struct Points<'a> {
    rows: ArrayView2<'a, f32>,
    /// Where in `rows` each point is found first.
    first: Vec<u32>,
    /// Rows that are equal to it, itself included.
    weight: Vec<u32>,
    /// One over its length.
    inverse: Vec<f64>,
}

impl<'a> Points<'a> {
    /// Also returns the point of each row.
    fn read(rows: ArrayView2<'a, f32>, clock: &mut Clock<'_>) -> Result<(Self, Vec<u32>)> {
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
            let mut hasher = DefaultHasher::new();
            for value in row {
                // -0 is 0.
                hasher.write_u32((value + 0.0).to_bits());
            }
            let alike = by_hash.entry(hasher.finish()).or_default();
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

    fn len(&self) -> usize {
        self.first.len()
    }

    fn width(&self) -> usize {
        self.rows.ncols()
    }

    fn row(&self, point: u32) -> &[f32] {
        slice(&self.rows, self.first[point as usize] as usize)
    }

    fn cosine(&self, a: u32, b: u32) -> f64 {
        dot(self.row(a), self.row(b)) * (self.inverse[a as usize] * self.inverse[b as usize])
    }
}

fn slice<'a, T>(matrix: &'a ArrayView2<'_, T>, index: usize) -> &'a [T] {
    let width = matrix.ncols();
    &matrix.as_slice().expect("standard layout")[index * width..][..width]
}

/// The product in f64. Commutative to the last bit, so that two groups always agree on how alike they are.
fn dot<A: Scalar, B: Scalar>(a: &[A], b: &[B]) -> f64 {
    // Eight sums, since one would wait for each addition.
    let mut sums = [0.0f64; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a.wide() * b.wide();
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a.wide() * b.wide()).sum();
    ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7])) + rest
}

/// What products are made of: f32, or f64 where f32 cannot tell groups apart.
trait Scalar: LinalgScalar + PartialOrd {
    const INFINITY: Self;
    /// Half the distance from 1 to the next number.
    const ROUNDOFF: f64;
    fn narrow(value: f64) -> Self;
    fn wide(self) -> f64;
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
}

/// How far a product of two vectors of at most length 1 can be from the truth: a rounding for each term (their
/// absolute values add up to at most 1), and a few for rounding the vectors and the comparisons.
fn product_error<T: Scalar>(width: usize) -> f64 {
    (width + 8) as f64 * T::ROUNDOFF
}

/// Sets of points that are one group, each known by its lowest point (union–find with path halving).
struct Forest(Vec<u32>);

impl Forest {
    fn new(n: usize) -> Self {
        Self((0..n as u32).collect())
    }

    fn find(&mut self, mut point: u32) -> u32 {
        while self.0[point as usize] != point {
            let parent = self.0[point as usize];
            self.0[point as usize] = self.0[parent as usize];
            point = parent;
        }
        point
    }

    fn unite(&mut self, a: u32, b: u32) -> u32 {
        let (a, b) = (self.find(a), self.find(b));
        self.0[a.max(b) as usize] = a.min(b);
        a.min(b)
    }
}

/// What is done with the products of pairs.
trait Sink<T> {
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
fn compare<T: Scalar>(
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
type Hit<'a, T> = dyn FnMut(&mut dyn Sink<T>, usize, usize, T) -> bool + 'a;

/// The products of a range of vectors with another range, which starts at or after the first.
struct Block<'a, T> {
    rows: Range<usize>,
    columns: Range<usize>,
    products: &'a mut Array2<T>,
}

impl<T: Scalar> Block<'_, T> {
    fn multiply(&mut self, vectors: ArrayView2<'_, T>) {
        let a = vectors.slice(s![self.rows.clone(), ..]);
        let b = vectors.slice(s![self.columns.clone(), ..]);
        let mut out = self.products.slice_mut(s![..self.rows.len(), ..self.columns.len()]);
        general_mat_mul(T::one(), &a, &b.t(), T::zero(), &mut out);
    }

    /// Calls `hit` for what is above the floor of its row or of its column, while it returns true.
    fn hits(&self, sink: &mut dyn Sink<T>, hit: &mut Hit<'_, T>) {
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

    fn visit(&self, sink: &mut dyn Sink<T>) {
        self.hits(sink, &mut |sink, row, column, product| {
            if sink.wants(row, column) {
                sink.take(row, column, product);
            }
            true
        });
    }

    /// Where the products are bounds: takes the true product of those above a floor. False, with nothing taken, where
    /// they are more than `budget`.
    fn visit_survivors(&self, vectors: ArrayView2<'_, T>, budget: usize, sink: &mut dyn Sink<T>) -> bool {
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

/// Cheap upper bounds of products: a few coordinates in a basis that holds most of the vectors' length, and the length
/// of what it leaves.
struct Sketch<T> {
    /// (n, k + 2); the product of two is at least the product of the two vectors.
    vectors: Array2<T>,
    /// Blocks to leave alone, and how many after the next failure.
    pause: u32,
    penalty: u32,
}

/// Fewer pairs are multiplied out in about the time in which a basis is found (0.1 s).
const SKETCHED_FROM: usize = 12_000_000;
/// Vectors that the basis, and the choice of its size, is made from.
const SAMPLE: usize = 1024;
/// One product in f64, one pair at a time, takes as long as this many in a block.
const SURVIVOR_COST: usize = 16;
/// A sketch is given up for a block where more than one pair in so many survives.
const MOST_SURVIVORS: usize = 2 * SURVIVOR_COST;

impl<T> Sketch<T> {
    fn worth_trying(&mut self) -> bool {
        let ready = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        ready
    }

    /// Takes note of whether a block came out well, and returns it.
    fn report(&mut self, success: bool) -> bool {
        self.penalty = if success { 4 } else { (self.penalty * 2).min(1024) };
        self.pause = if success { 0 } else { self.penalty };
        success
    }
}

impl Sketch<f32> {
    /// A sketch of unit or shorter vectors, if it should save more than a third of the products that are to be
    /// compared with `floor`.
    fn plan(vectors: ArrayView2<'_, f32>, wanted: usize, floor: f32, clock: &mut Clock<'_>) -> Option<Self> {
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
            // Short products are half as fast for each term.
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

/// Orthonormal columns, shape (d, size), near the main axes of the rows: four rounds of subspace iteration. Any basis
/// is right; this one leaves little.
fn principal_basis(rows: &Array2<f32>, size: usize, clock: &mut Clock<'_>) -> Array2<f32> {
    // A fixed linear congruence: the same rows must give the same result.
    let mut state = 1u32;
    let mut basis = Array2::from_shape_simple_fn((rows.ncols(), size), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    });
    for round in 0..5 {
        if round > 0 {
            basis = rows.t().dot(&rows.dot(&basis));
        }
        // Gram–Schmidt, twice over, in f64.
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
            // The rows span no more axes than this: an empty column adds nothing to any bound.
            let factor = if norm > 1e-5 * scale { 1.0 / norm } else { 0.0 };
            vector.iter_mut().for_each(|v| *v *= factor);
            column.iter_mut().zip(&vector).for_each(|(c, v)| *c = *v as f32);
            done.push(vector);
        }
    }
    basis
}

/// Coordinates in the basis, the length of the rest, and a constant that covers all rounding; shape (n, k + 2).
fn sketch(vectors: ArrayView2<'_, f32>, basis: &Array2<f32>, clock: &mut Clock<'_>) -> Array2<f32> {
    let (n, size) = (vectors.nrows(), basis.ncols());
    let columns: Vec<Vec<f32>> = basis.columns().into_iter().map(|column| column.to_vec()).collect();
    // How far the columns are from orthonormal (empty ones aside): the Frobenius norm of QᵀQ - I.
    let mut skew = 0.0;
    for (i, a) in columns.iter().enumerate() {
        for (j, b) in columns.iter().enumerate() {
            let unit = if i == j && dot(a, a) > 0.0 { 1.0 } else { 0.0 };
            skew += (dot(a, b) - unit).powi(2);
        }
    }
    // With coordinates p that are off by e, rest r = x - Qp and QᵀQ = I + E:
    // x·y = px·py + rx·ry - px·ey - py·ex - px·E·py, and |r|² = |x|² - |p|² + 2 p·e + p·E·p.
    let coordinates_off = (size as f64).sqrt() * product_error::<f32>(basis.nrows());
    let error = 2.0 * coordinates_off + skew.sqrt();
    let margin = (1.01 * error + product_error::<f32>(size + 2)).sqrt() as f32;
    let mut out = Array2::<f32>::zeros((n, size + 2));
    for from in (0..n).step_by(BLOCK_ROWS) {
        clock.tick("comparing", from, n);
        let rows = from..(from + BLOCK_ROWS).min(n);
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

/// The next f32 that is not below.
fn upwards(value: f64) -> f32 {
    let narrow = value as f32;
    if f64::from(narrow) < value { narrow.next_up() } else { narrow }
}

/// Single linkage: joins the points of each pair that reaches `cut`.
fn single(points: &Points<'_>, cut: f64, clock: &mut Clock<'_>) -> Forest {
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
    compare(vectors.view(), points.len(), sketch, &mut sink, clock);
    sink.forest
}

struct Components<'p, 'r> {
    points: &'p Points<'r>,
    cut: f64,
    /// An f32 product from which on the cosine is above the cut for certain.
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

    fn wants(&mut self, row: usize, column: usize) -> bool {
        self.forest.find(row as u32) != self.forest.find(column as u32)
    }

    fn take(&mut self, row: usize, column: usize, product: f32) {
        let (a, b) = (row as u32, column as u32);
        if self.wants(row, column) && (product > self.sure || self.points.cosine(a, b) >= self.cut) {
            self.forest.unite(a, b);
        }
    }
}

/// The points as f32 vectors of length 1, shape (points, d).
fn unit_rows(points: &Points<'_>, clock: &mut Clock<'_>) -> Array2<f32> {
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

/// The nearest groups of a group, and a bound on the rest.
#[derive(Clone, Default)]
struct Neighbours {
    /// Upper bounds of the cosine, and the group (or one that has since gone up in it); descending.
    near: Vec<(f32, u32)>,
    /// No group that is not in `near` is nearer. Below the cut: all that matter are in `near`.
    rest: f64,
}

/// How the list of a group was made, for when it says too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scan {
    /// Not since its last merge.
    Stale,
    /// In f32, or in f64, and not yet answered from.
    Narrow,
    Wide,
}

enum Nearest {
    Group(u32, f64),
    /// No group reaches the cut.
    Nobody,
    /// The list does not say.
    Unknown,
}

/// Average linkage by reciprocal nearest neighbours. A group is known by its lowest point.
struct Average<'p, 'r> {
    points: &'p Points<'r>,
    cut: f64,
    forest: Forest,
    size: Vec<u64>,
    /// Sums of the unit vectors of groups of more than one row; a lone row is its own.
    sums: Vec<Option<Box<[f64]>>>,
    lists: Vec<Neighbours>,
    scans: Vec<Scan>,
    /// f32 was too coarse before, and will be again.
    needs_f64: Vec<bool>,
    nearest: Vec<u32>,
    cosine: Vec<f64>,
    /// Groups that had this one for their nearest when they were last asked.
    followers: Vec<Vec<u32>>,
    finished: Vec<bool>,
    /// Groups that are finished or have gone up in another.
    settled: usize,
}

impl<'p, 'r> Average<'p, 'r> {
    fn new(points: &'p Points<'r>, cut: f64) -> Self {
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

    fn run(mut self, clock: &mut Clock<'_>) -> Forest {
        let n = self.points.len();
        let mut unsure: Vec<u32> = (0..n as u32).collect();
        let mut asking = Vec::new();
        let mut pairs = Vec::new();
        loop {
            while let Some(group) = asking.pop() {
                clock.tick("merging", self.settled, n);
                if !self.is_active(group) || self.nearest[group as usize] != NONE {
                    continue;
                }
                match self.nearest(group) {
                    Nearest::Group(other, cosine) => {
                        self.nearest[group as usize] = other;
                        self.cosine[group as usize] = cosine;
                        self.followers[other as usize].push(group);
                        if self.nearest[other as usize] == group {
                            pairs.push((group, other));
                        }
                    }
                    Nearest::Nobody => {
                        self.finished[group as usize] = true;
                        self.lists[group as usize] = Neighbours::default();
                        self.settled += 1;
                        // Two sides can only differ about a tie at the cut; nobody may go on waiting.
                        self.release_followers(group, &mut asking);
                    }
                    Nearest::Unknown => unsure.push(group),
                }
            }
            if pairs.is_empty() && unsure.is_empty() {
                // Groups in a ring, each as near to the next as to the last but for rounding: the best pair is nearest.
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
                // They are taken from the end.
                asking.sort_unstable_by(|a, b| b.cmp(a));
            }
        }
    }

    fn is_active(&self, group: u32) -> bool {
        self.forest.0[group as usize] == group && !self.finished[group as usize]
    }

    /// The average cosine over the pairs of two groups.
    fn average(&self, a: u32, b: u32) -> f64 {
        let scale = self.scale(a) * self.scale(b);
        scale
            * match (&self.sums[a as usize], &self.sums[b as usize]) {
                (Some(x), Some(y)) => dot(x, y),
                (Some(x), None) => dot(x, self.points.row(b)),
                (None, Some(y)) => dot(self.points.row(a), y),
                (None, None) => dot(self.points.row(a), self.points.row(b)),
            }
    }

    /// What makes the group's sum its mean.
    fn scale(&self, group: u32) -> f64 {
        let group = group as usize;
        if self.sums[group].is_some() { 1.0 / self.size[group] as f64 } else { self.points.inverse[group] }
    }

    /// Answers from the list, and shortens it by what has become known.
    fn nearest(&mut self, group: u32) -> Nearest {
        let index = group as usize;
        let Neighbours { mut near, rest } = std::mem::take(&mut self.lists[index]);
        let scan = std::mem::replace(&mut self.scans[index], Scan::Stale);
        let mut known: Vec<(f64, u32)> = Vec::new();
        let mut best: Option<(f64, u32)> = None;
        let mut asked = 0;
        for &(bound, other) in &near {
            if best.is_some_and(|(cosine, _)| cosine > f64::from(bound)) {
                break;
            }
            asked += 1;
            let other = self.forest.find(other);
            if other == group || self.finished[other as usize] || known.iter().any(|(_, k)| *k == other) {
                continue;
            }
            let cosine = self.average(group, other);
            known.push((cosine, other));
            let pair = |other: u32| (group.min(other), group.max(other));
            // A total order of pairs, the same from both sides.
            if best.is_none_or(|(c, o)| cosine > c || (cosine == c && pair(other) < pair(o))) {
                best = Some((cosine, other));
            }
        }
        near.drain(..asked);
        // Nearest but for rounding is nearest: a tie must not make all groups be looked at for each merge.
        let tied = rest - 4.0 * product_error::<f64>(self.points.width());
        near.extend(known.iter().filter(|(c, _)| *c > tied).map(|(cosine, other)| (upwards(*cosine), *other)));
        near.sort_unstable_by(order);
        self.lists[index] = Neighbours { near, rest };

        // A scan in f64 is only unsure about what differs by rounding.
        let trusted = rest < self.cut || scan == Scan::Wide;
        match best {
            Some((cosine, other)) if cosine >= self.cut && (cosine > tied || trusted) => Nearest::Group(other, cosine),
            _ if trusted => Nearest::Nobody,
            _ => {
                self.needs_f64[index] |= scan == Scan::Narrow;
                Nearest::Unknown
            }
        }
    }

    /// Unites two groups if they are still each other's nearest, and lists who has to ask anew.
    fn merge(&mut self, a: u32, b: u32, asking: &mut Vec<u32>) {
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

    /// Groups that had this one for their nearest have to ask anew.
    fn release_followers(&mut self, group: u32, asking: &mut Vec<u32>) {
        for follower in std::mem::take(&mut self.followers[group as usize]) {
            if self.nearest[follower as usize] == group && self.is_active(follower) {
                self.nearest[follower as usize] = NONE;
                asking.push(follower);
            }
        }
    }

    fn take_sum(&mut self, group: u32) -> Box<[f64]> {
        self.sums[group as usize].take().unwrap_or_else(|| {
            let inverse = self.points.inverse[group as usize];
            self.points.row(group).iter().map(|v| f64::from(*v) * inverse).collect()
        })
    }

    /// What the lists of two groups say about their union, of which the first is `share`.
    fn join_lists(&mut self, union: u32, lists: [Neighbours; 2], share: f64) -> Neighbours {
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
            // A group that grew since is bounded by its nearest part, which may be among the rest.
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

    /// Makes new lists for `groups`, from the products of their means with those of all active groups.
    fn scan<T: Scalar>(&mut self, groups: &[u32], scan: Scan, clock: &mut Clock<'_>)
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
        compare(means.view(), groups.len(), sketch, &mut top, clock);
        drop(means);
        for (index, near) in top.near.iter_mut().enumerate() {
            clock.tick("merging", self.settled, n);
            shorten(near, &mut top.floors[index]);
            let near = std::mem::take(near);
            let bound = |product: T| upwards(product.wide() + error);
            let mut near: Vec<_> = near.into_iter().map(|(v, i)| (bound(v), ids[i as usize])).collect();
            near.sort_unstable_by(order);
            let group = ids[index] as usize;
            self.lists[group] = Neighbours { near, rest: top.floors[index].wide() + error };
            self.scans[group] = scan;
        }
    }

    /// Of all groups and their nearest, the two that are most alike.
    fn best_pair(&mut self) -> Option<(u32, u32)> {
        let open = (0..self.points.len() as u32).filter(|g| self.is_active(*g) && self.nearest[*g as usize] != NONE);
        let a = open.max_by(|a, b| self.cosine[*a as usize].total_cmp(&self.cosine[*b as usize]).then(b.cmp(a)))?;
        let b = self.nearest[a as usize];
        self.nearest[b as usize] = a;
        self.followers[a as usize].push(b);
        Some((a, b))
    }
}

/// Descending by bound, then ascending by group.
fn order(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

trait Plan<T>: Sized {
    fn plan_for(vectors: ArrayView2<'_, T>, wanted: usize, floor: T, clock: &mut Clock<'_>) -> Option<Self>;
}

impl Plan<f32> for Sketch<f32> {
    fn plan_for(vectors: ArrayView2<'_, f32>, wanted: usize, floor: f32, clock: &mut Clock<'_>) -> Option<Self> {
        Self::plan(vectors, wanted, floor, clock)
    }
}

impl Plan<f64> for Sketch<f64> {
    /// Where f32 is too coarse, no bound tells pairs apart.
    fn plan_for(_: ArrayView2<'_, f64>, _: usize, _: f64, _: &mut Clock<'_>) -> Option<Self> {
        None
    }
}

/// The nearest vectors of each, at least [`LIST`] where there are as many above the floor.
struct Top<T> {
    floors: Vec<T>,
    near: Vec<Vec<(T, u32)>>,
}

impl<T: Scalar> Top<T> {
    fn push(&mut self, to: usize, product: T, other: usize) {
        if product > self.floors[to] {
            let near = &mut self.near[to];
            near.push((product, other as u32));
            if near.len() == 2 * LIST {
                shorten(near, &mut self.floors[to]);
            }
        }
    }
}

/// Keeps the [`LIST`] nearest and lifts the floor to what is dropped.
fn shorten<T: Scalar>(near: &mut Vec<(T, u32)>, floor: &mut T) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of at most length 1, near `axes` of `width` axes.
    fn vectors(n: usize, width: usize, axes: usize, off: f64) -> Array2<f32> {
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1 << 24) - 0.5
        };
        let main = Array2::from_shape_simple_fn((axes, width), &mut random);
        let weights = Array2::from_shape_simple_fn((n, axes), &mut random);
        let mut rows = weights.dot(&main) + Array2::from_shape_simple_fn((n, width), || off * random());
        for (index, mut row) in rows.outer_iter_mut().enumerate() {
            let length = row.dot(&row).sqrt() * if index % 3 == 0 { 1.3 } else { 1.0 };
            row /= length;
        }
        rows.mapv(|v| v as f32)
    }

    #[test]
    fn sketches_bound_products() {
        let mut pulse = |_| ();
        let mut clock = Clock { pulse: &mut pulse, last: Instant::now() };
        // 40 columns of 5 axes: some of the basis stays empty.
        for (axes, off) in [(5, 0.0), (5, 0.01), (60, 0.2), (200, 1.0)] {
            let rows = vectors(300, 160, axes, off);
            let basis = principal_basis(&rows, 40, &mut clock);
            let sketched = sketch(rows.view(), &basis, &mut clock).mapv(f64::from);
            let (bounds, wide) = (sketched.dot(&sketched.t()), rows.mapv(f64::from));
            let products = wide.dot(&wide.t());
            for (bound, product) in bounds.iter().zip(&products) {
                assert!(bound >= product, "{axes} axes: {bound} for {product}");
            }
            let slack = (&bounds - &products).mean().unwrap();
            assert!(slack < if off < 0.1 { 0.02 } else { 1.0 }, "{axes} axes: {slack} too high in the mean");
        }
    }

    #[test]
    fn sketches_are_made_where_they_help() {
        let mut pulse = |_| ();
        let mut clock = Clock { pulse: &mut pulse, last: Instant::now() };
        let few = vectors(4000, 160, 20, 0.01);
        assert!(Sketch::plan(few.view(), 4000, 0.8, &mut clock).is_some());
        assert!(Sketch::plan(few.view(), 100, 0.8, &mut clock).is_none(), "too few pairs to be worth it");
        assert!(Sketch::plan(few.view(), 4000, -0.5, &mut clock).is_none(), "most pairs survive");
        let all = vectors(4000, 160, 160, 1.0);
        assert!(Sketch::plan(all.view(), 4000, 0.3, &mut clock).is_none(), "no axes are better than others");
    }

    #[test]
    fn products_commute_to_the_bit() {
        let rows = vectors(60, 83, 83, 1.0);
        let rows = rows.view();
        for (i, j) in (0..60).flat_map(|i| (0..i).map(move |j| (i, j))) {
            let (a, b) = (slice(&rows, i), slice(&rows, j));
            let wide: Vec<f64> = b.iter().map(|v| f64::from(*v) / 3.0).collect();
            assert_eq!(dot(a, b).to_bits(), dot(b, a).to_bits());
            assert_eq!(dot(a, &wide).to_bits(), dot(&wide, a).to_bits());
            let plain: f64 = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            assert!((dot(a, b) - plain).abs() < 1e-15);
        }
    }
}
