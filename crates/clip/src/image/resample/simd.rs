//! The same sums with SSE2. Every x86-64 processor has it, so this needs no choice at run time and no unsafe call.
//!
//! SSE2 has no product of 32-bit lanes, but one of 16-bit lanes that adds neighbouring products (`pmaddwd`). Each
//! weight is split into `high << 11 | low`, whose parts fit in 16 bits, and one instruction per part sums two taps. For
//! integers this is exact: Σ v·w = (Σ v·high << 11) + Σ v·low, even if intermediate sums overflow.

use safe_arch::*;

use super::{HALF, Limits, PRECISION, Result, Taps, pace};
use crate::memory;

const LOW_BITS: i32 = 11;

/// The weights of two taps in the layout of `pmaddwd`: the first weight is in the lower 16 bits.
#[derive(Clone, Copy, Default)]
struct Pair {
    high: i32,
    low: i32,
}

impl Pair {
    fn new(first: i32, second: i32) -> Self {
        let low = |weight: i32| weight & ((1 << LOW_BITS) - 1);
        let pack = |a: i32, b: i32| a & 0xFFFF | b << 16;
        Self { high: pack(first >> LOW_BITS, second >> LOW_BITS), low: pack(low(first), low(second)) }
    }
}

/// The number of taps per step, and their bytes in a row.
const STEP: usize = 4;
const BYTES: usize = STEP * 3;
/// The number of bytes after a window that the loads of its last two pixels also read.
const BEYOND: usize = 5;

/// The source windows of all output pixels, padded with weights of zero to one length, a whole number of steps.
struct Windows {
    /// The first byte of each window in a row.
    starts: Vec<usize>,
    pairs: Vec<[Pair; STEP / 2]>,
    /// The number of steps in each window.
    length: usize,
}

impl Windows {
    fn new(columns: &[Taps]) -> Result<Self> {
        let length = columns.iter().map(|taps| taps.weights.len()).max().unwrap_or(0).div_ceil(STEP);
        let mut pairs = memory::with_capacity(columns.len() * length)?;
        pairs.resize(columns.len() * length, [Pair::default(); STEP / 2]);
        for (taps, pairs) in columns.iter().zip(pairs.chunks_exact_mut(length)) {
            for (pair, weights) in pairs.as_flattened_mut().iter_mut().zip(taps.weights.chunks(2)) {
                *pair = Pair::new(weights[0], weights.get(1).copied().unwrap_or(0));
            }
        }
        let mut starts = memory::with_capacity(columns.len())?;
        starts.extend(columns.iter().map(|taps| taps.first * 3));
        Ok(Self { starts, pairs, length })
    }
}

/// Loads eight bytes.
fn load(bytes: &[u8; 8]) -> m128i {
    set_i64_m128i_s(i64::from_le_bytes(*bytes))
}

/// Widens two pixels of three bytes to 16-bit lanes, with each channel's values adjacent: R0 R1 G0 G1 B0 B1, and two
/// lanes whose sum is not used. It uses two loads, because LLVM compiles shifts in a register to a dozen shuffles.
fn side_by_side(bytes: &[u8; 11]) -> m128i {
    let (first, second) = (bytes.first_chunk(), bytes.last_chunk());
    widen(unpack_low_i8_m128i(load(first.expect("eight bytes")), load(second.expect("eight bytes"))))
}

/// Widens the lower eight bytes to 16 bits.
fn widen(bytes: m128i) -> m128i {
    unpack_low_i8_m128i(bytes, zeroed_m128i())
}

/// Adds the parts of four sums, rounds them, and clamps them to 0–255.
fn finish(high: m128i, low: m128i) -> [u8; 4] {
    let sum = add_i32_m128i(add_i32_m128i(shl_imm_u32_m128i::<LOW_BITS>(high), low), set_splat_i32_m128i(HALF));
    let words = pack_i32_to_i16_m128i(shr_imm_i32_m128i::<{ PRECISION as i32 }>(sum), zeroed_m128i());
    get_i32_from_m128i_s(pack_i16_to_u8_m128i(words, words)).to_le_bytes()
}

/// Resamples rows to the width of `columns`. Returns the number of finished rows. Windows may read beyond their row,
/// where the weights are zero; the last rows remain for the portable code, because no bytes follow them.
pub fn across(source: &[u8], stride: usize, columns: &[Taps], out: &mut [u8], limits: &Limits) -> Result<usize> {
    /// The number of rows that share the loads of the weights. Their eight sums leave half of the registers free.
    const ROWS: usize = 4;
    let windows = Windows::new(columns)?;
    let width = columns.len() * 3;
    let end = windows.starts.iter().max().map_or(0, |start| start + windows.length * BYTES + BEYOND);
    let done = (source.len() / stride).saturating_sub(end.saturating_sub(stride).div_ceil(stride));
    let (mut row, mut steps, pace) = (0, 0, pace(stride).div_ceil(ROWS));
    while row < done {
        if steps % pace == 0 {
            limits.check_interrupt()?;
        }
        steps += 1;
        let (from, to) = (&source[row * stride..], &mut out[row * width..]);
        if row + ROWS <= done {
            rows_across::<ROWS>(from, stride, &windows, &mut to[..ROWS * width]);
            row += ROWS;
        } else {
            rows_across::<1>(from, stride, &windows, &mut to[..width]);
            row += 1;
        }
    }
    Ok(done)
}

fn rows_across<const N: usize>(rows: &[u8], stride: usize, windows: &Windows, targets: &mut [u8]) {
    let (width, length) = (targets.len() / N, windows.length);
    for (column, (start, pairs)) in windows.starts.iter().zip(windows.pairs.chunks_exact(length)).enumerate() {
        let pixels: [&[u8]; N] = std::array::from_fn(|n| &rows[n * stride + start..][..length * BYTES + BEYOND]);
        let (mut high, mut low) = ([zeroed_m128i(); N], [zeroed_m128i(); N]);
        for (step, pairs) in pairs.iter().enumerate() {
            let weights = pairs.map(|pair| (set_splat_i32_m128i(pair.high), set_splat_i32_m128i(pair.low)));
            for n in 0..N {
                let bytes: &[u8; BYTES + BEYOND] = pixels[n][step * BYTES..].first_chunk().expect("sliced for it");
                let front = side_by_side(bytes.first_chunk().expect("two pixels"));
                let back = side_by_side(bytes.last_chunk().expect("two pixels"));
                high[n] = add_i32_m128i(high[n], mul_i16_horizontal_add_m128i(front, weights[0].0));
                low[n] = add_i32_m128i(low[n], mul_i16_horizontal_add_m128i(front, weights[0].1));
                high[n] = add_i32_m128i(high[n], mul_i16_horizontal_add_m128i(back, weights[1].0));
                low[n] = add_i32_m128i(low[n], mul_i16_horizontal_add_m128i(back, weights[1].1));
            }
        }
        for n in 0..N {
            let [r, g, b, _] = finish(high[n], low[n]);
            targets[n * width + column * 3..][..3].copy_from_slice(&[r, g, b]);
        }
    }
}

/// Writes the weighted sum of the rows of `window`. Returns the number of finished bytes of the target; the last bytes,
/// which don't fill a register, remain for the portable code.
pub fn down(window: &[u8], stride: usize, weights: &[i32], target: &mut [u8]) -> usize {
    const LANES: usize = 16;
    let pairs: Vec<_> = weights
        .chunks(2)
        .zip(window.chunks(stride * 2))
        .map(|(weights, rows)| {
            // An odd last row is paired with itself; its second weight is zero.
            let pair = Pair::new(weights[0], weights.get(1).copied().unwrap_or(0));
            let (first, second) = (&rows[..stride], &rows[rows.len() - stride..]);
            let weights = (set_splat_i32_m128i(pair.high), set_splat_i32_m128i(pair.low));
            (weights, first.as_chunks::<LANES>().0, second.as_chunks::<LANES>().0)
        })
        .collect();
    for (at, target) in target.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let (mut high, mut low) = ([zeroed_m128i(); 4], [zeroed_m128i(); 4]);
        for (weights, first, second) in &pairs {
            let (first, second) = (load_unaligned_m128i(&first[at]), load_unaligned_m128i(&second[at]));
            let (front, back) = (unpack_low_i8_m128i(first, second), unpack_high_i8_m128i(first, second));
            let values = [
                widen(front),
                unpack_high_i8_m128i(front, zeroed_m128i()),
                widen(back),
                unpack_high_i8_m128i(back, zeroed_m128i()),
            ];
            for quarter in 0..4 {
                let product = |weights| mul_i16_horizontal_add_m128i(values[quarter], weights);
                high[quarter] = add_i32_m128i(high[quarter], product(weights.0));
                low[quarter] = add_i32_m128i(low[quarter], product(weights.1));
            }
        }
        for (quarter, bytes) in target.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *bytes = finish(high[quarter], low[quarter]);
        }
    }
    stride / LANES * LANES
}
