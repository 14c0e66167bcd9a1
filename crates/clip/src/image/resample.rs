//! Pillow's antialiased resampling, to the bit.
//!
//! Every CLIP reference pipeline resizes with Pillow (`Image.resize`, libImaging/Resample.c): the filter is
//! widened by the scale when shrinking, coefficients are fixed-point with 22 fractional bits, the rows are
//! resampled first, and the result is rounded to bytes before the columns are. The SIMD resizers at hand
//! take the passes in the other order or keep 15 bits, which moves values by up to 21/255 and 2/255.

use image::RgbImage;

/// Pillow's `PRECISION_BITS`: 32 bits less 8 for the value and 2 for overshoot and sign.
const PRECISION: u32 = 32 - 8 - 2;

/// The resampling filters that Pillow names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The pixel under the centre; no antialiasing.
    Nearest,
    Box,
    Bilinear,
    Hamming,
    /// Catmull–Rom, a = −0.5.
    Bicubic,
    /// Three lobes.
    Lanczos,
}

impl Filter {
    /// Half the filter's width in output pixels.
    fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        use std::f64::consts::PI;
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        let a = x.abs();
        match self {
            Self::Nearest | Self::Box => f64::from(x > -0.5 && x <= 0.5),
            Self::Bilinear => (1.0 - a).max(0.0),
            Self::Hamming if a >= 1.0 => 0.0,
            Self::Hamming => sinc(a) * (0.54 + 0.46 * (a * PI).cos()),
            Self::Bicubic if a < 1.0 => (1.5 * a - 2.5) * a * a + 1.0,
            Self::Bicubic if a < 2.0 => (((a - 5.0) * a + 8.0) * a - 4.0) * -0.5,
            Self::Bicubic => 0.0,
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// One axis of a resize of which only a stretch is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    /// Length of the source, in pixels.
    pub source: u32,
    /// The part of it that is the picture, in source pixels, whole or not: Pillow's `box`. Pixels outside it count
    /// where the filter reaches them.
    pub from: f64,
    pub extent: f64,
    /// Length that this part is resized to.
    pub resized: u32,
    /// The stretch of it that is computed: start and length.
    pub start: u32,
    pub length: u32,
}

impl Axis {
    /// The whole source, resized to a length.
    pub fn whole(source: u32, resized: u32) -> Self {
        Self { source, from: 0.0, extent: f64::from(source), resized, start: 0, length: resized }
    }
}

/// The source pixels that make up one output pixel.
struct Taps {
    first: usize,
    /// Fixed-point, [`PRECISION`] fractional bits.
    weights: Vec<i32>,
}

impl Axis {
    /// The taps of every output pixel of the stretch.
    fn taps(&self, filter: Filter) -> Vec<Taps> {
        let scale = self.extent / f64::from(self.resized);
        if filter == Filter::Nearest {
            // Pillow steps from centre to centre (ImagingScaleAffine in libImaging/Geometry.c), and the sum's rounding
            // decides where a centre falls between two pixels: 166.67 added 30 times is not 166.67 × 30.
            return std::iter::successors(Some(self.from + scale * 0.5), |center| Some(center + scale))
                .skip(self.start as usize)
                .take(self.length as usize)
                .map(|center| Taps {
                    first: (center as usize).min(self.source as usize - 1),
                    weights: vec![1 << PRECISION],
                })
                .collect();
        }
        if self.resized == self.source && (self.from, self.extent) == (0.0, f64::from(self.source)) {
            // Every filter is 1 at the centre and 0 at the other whole distances.
            return (self.start..self.start + self.length)
                .map(|out| Taps { first: out as usize, weights: vec![1 << PRECISION] })
                .collect();
        }
        (self.start..self.start + self.length)
            .map(|out| {
                let center = self.from + (f64::from(out) + 0.5) * scale;
                let filter_scale = scale.max(1.0);
                let support = filter.support() * filter_scale;
                // Truncation towards zero after adding a half, then clamped: as the C code has it.
                let first = (center - support + 0.5).max(0.0) as usize;
                let last = ((center + support + 0.5) as usize).min(self.source as usize);
                let weights: Vec<f64> =
                    (first..last).map(|x| filter.weight((x as f64 - center + 0.5) / filter_scale)).collect();
                let sum: f64 = weights.iter().sum();
                let fixed = |w: f64| (w / sum * f64::from(1 << PRECISION)).round() as i32;
                Taps { first, weights: weights.into_iter().map(fixed).collect() }
            })
            .collect()
    }
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION - 1);

/// Resizes an image and returns the stretch that the two axes ask for.
///
/// Only what that stretch needs is computed: the middle of a 5000×1 image scaled to a height of 224 would
/// otherwise be cut from 1,120,000 columns.
pub fn resize(image: &RgbImage, x: Axis, y: Axis, filter: Filter) -> RgbImage {
    assert_eq!(image.dimensions(), (x.source, y.source), "the axes must be the image's");
    let columns = x.taps(filter);
    let rows = y.taps(filter);
    let first_row = rows[0].first;
    let last_row = rows.iter().map(|taps| taps.first + taps.weights.len()).max().unwrap_or(0);
    let across = resample_rows(image, &columns, first_row..last_row);
    resample_columns(&across, &rows, first_row)
}

/// Each of the given rows, resampled to the width of `columns`.
fn resample_rows(image: &RgbImage, columns: &[Taps], rows: std::ops::Range<usize>) -> RgbImage {
    let (width, height) = (columns.len(), rows.len());
    let stride = image.width() as usize * 3;
    let source = &image.as_raw()[rows.start * stride..rows.end * stride];
    let mut out = vec![0u8; width * height * 3];
    #[cfg(target_arch = "x86_64")]
    let done = simd::across(source, stride, columns, &mut out);
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    across(&source[done * stride..], stride, columns, &mut out[done * width * 3..]);
    RgbImage::from_raw(width as u32, height as u32, out).expect("sized for it")
}

/// Every column, resampled to the height of `rows`; the image starts at source row `offset`.
fn resample_columns(image: &RgbImage, rows: &[Taps], offset: usize) -> RgbImage {
    let stride = image.width() as usize * 3;
    let mut out = vec![0u8; rows.len() * stride];
    for (taps, target) in rows.iter().zip(out.chunks_exact_mut(stride)) {
        let window = &image.as_raw()[(taps.first - offset) * stride..][..taps.weights.len() * stride];
        #[cfg(target_arch = "x86_64")]
        let done = simd::down(window, stride, &taps.weights, target);
        #[cfg(not(target_arch = "x86_64"))]
        let done = 0;
        down(window, stride, &taps.weights, done, target);
    }
    RgbImage::from_raw(image.width(), rows.len() as u32, out).expect("sized for it")
}

/// Rows to the width of `columns`, in portable code.
fn across(source: &[u8], stride: usize, columns: &[Taps], out: &mut [u8]) {
    for (source, target) in source.chunks_exact(stride).zip(out.chunks_exact_mut(columns.len() * 3)) {
        for (taps, pixel) in columns.iter().zip(target.as_chunks_mut::<3>().0) {
            let window = &source[taps.first * 3..(taps.first + taps.weights.len()) * 3];
            let (mut r, mut g, mut b) = (HALF, HALF, HALF);
            for (value, weight) in window.as_chunks::<3>().0.iter().zip(&taps.weights) {
                r += i32::from(value[0]) * weight;
                g += i32::from(value[1]) * weight;
                b += i32::from(value[2]) * weight;
            }
            *pixel = [to_byte(r), to_byte(g), to_byte(b)];
        }
    }
}

/// The weighted sum of the rows of `window`, from byte `from` of a row on, in portable code.
fn down(window: &[u8], stride: usize, weights: &[i32], from: usize, target: &mut [u8]) {
    let mut sums = vec![HALF; stride - from];
    for (row, weight) in window.chunks_exact(stride).zip(weights) {
        for (sum, value) in sums.iter_mut().zip(&row[from..]) {
            *sum += i32::from(*value) * weight;
        }
    }
    for (byte, sum) in target[from..].iter_mut().zip(sums) {
        *byte = to_byte(sum);
    }
}

/// The same sums by SSE2, which every x86-64 has: no choice at run time, and no call that is not safe.
///
/// There is no 32-bit product in SSE2, but one of 16 bits that adds neighbours (`pmaddwd`). A weight is cut into
/// `high << 11 | low`, each of which fits 16 bits, and two taps are summed by one instruction for each part. Integers
/// lose nothing by that: Σ v·w = (Σ v·high << 11) + Σ v·low, whatever overflows on the way.
#[cfg(target_arch = "x86_64")]
mod simd {
    use safe_arch::*;

    use super::{HALF, PRECISION, Taps};

    const LOW_BITS: i32 = 11;

    /// Two taps' weights, as `pmaddwd` takes them: the first in the lower 16 bits.
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

    /// Taps of a step, and their bytes in a row.
    const STEP: usize = 4;
    const BYTES: usize = STEP * 3;
    /// Bytes that the loads of a window's last two pixels take in after them.
    const BEYOND: usize = 5;

    /// Windows of one length, a number of steps, filled up with weights of zero.
    struct Windows {
        /// The first byte of each in a row.
        starts: Vec<usize>,
        pairs: Vec<[Pair; STEP / 2]>,
        /// Steps of a window.
        length: usize,
    }

    impl Windows {
        fn new(columns: &[Taps]) -> Self {
            let length = columns.iter().map(|taps| taps.weights.len()).max().unwrap_or(0).div_ceil(STEP);
            let mut pairs = vec![[Pair::default(); STEP / 2]; columns.len() * length];
            for (taps, pairs) in columns.iter().zip(pairs.chunks_exact_mut(length)) {
                for (pair, weights) in pairs.as_flattened_mut().iter_mut().zip(taps.weights.chunks(2)) {
                    *pair = Pair::new(weights[0], weights.get(1).copied().unwrap_or(0));
                }
            }
            Self { starts: columns.iter().map(|taps| taps.first * 3).collect(), pairs, length }
        }
    }

    /// Eight bytes.
    fn load(bytes: &[u8; 8]) -> m128i {
        set_i64_m128i_s(i64::from_le_bytes(*bytes))
    }

    /// Two pixels of six bytes as 16 bits, each channel's values side by side: R0 R1 G0 G1 B0 B1, and two of which
    /// nobody reads the sum. Two loads: of shifts in a register LLVM makes a dozen shuffles.
    fn side_by_side(bytes: &[u8; 11]) -> m128i {
        let (first, second) = (bytes.first_chunk(), bytes.last_chunk());
        widen(unpack_low_i8_m128i(load(first.expect("eight bytes")), load(second.expect("eight bytes"))))
    }

    /// Bytes to 16 bits: the lower eight.
    fn widen(bytes: m128i) -> m128i {
        unpack_low_i8_m128i(bytes, zeroed_m128i())
    }

    /// Rounded and cut to 0–255; four bytes.
    fn finish(high: m128i, low: m128i) -> [u8; 4] {
        let sum = add_i32_m128i(add_i32_m128i(shl_imm_u32_m128i::<LOW_BITS>(high), low), set_splat_i32_m128i(HALF));
        let words = pack_i32_to_i16_m128i(shr_imm_i32_m128i::<{ PRECISION as i32 }>(sum), zeroed_m128i());
        get_i32_from_m128i_s(pack_i16_to_u8_m128i(words, words)).to_le_bytes()
    }

    /// Rows to the width of `columns`. Returns how many are done: windows reach beyond their row, where the weights
    /// are zero, and the last row has nothing beyond it.
    pub fn across(source: &[u8], stride: usize, columns: &[Taps], out: &mut [u8]) -> usize {
        /// Rows that share the loads of the weights. Their eight sums leave half of the registers.
        const ROWS: usize = 4;
        let windows = Windows::new(columns);
        let width = columns.len() * 3;
        let end = windows.starts.iter().max().map_or(0, |start| start + windows.length * BYTES + BEYOND);
        let done = (source.len() / stride).saturating_sub(end.saturating_sub(stride).div_ceil(stride));
        let mut row = 0;
        while row < done {
            let (from, to) = (&source[row * stride..], &mut out[row * width..]);
            if row + ROWS <= done {
                rows_across::<ROWS>(from, stride, &windows, &mut to[..ROWS * width]);
                row += ROWS;
            } else {
                rows_across::<1>(from, stride, &windows, &mut to[..width]);
                row += 1;
            }
        }
        done
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

    /// The weighted sum of the rows of `window`. Returns how many bytes of the target are done: the last few that
    /// don't fill a register are not.
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_size_is_a_crop() {
        let image = RgbImage::from_fn(7, 5, |x, y| image::Rgb([x as u8 * 30, y as u8 * 50, 7]));
        let x = Axis { start: 2, length: 3, ..Axis::whole(7, 7) };
        let y = Axis { start: 1, length: 4, ..Axis::whole(5, 5) };
        for filter in
            [Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Hamming, Filter::Bicubic, Filter::Lanczos]
        {
            let out = resize(&image, x, y, filter);
            assert!(out.enumerate_pixels().all(|(i, j, pixel)| pixel == image.get_pixel(i + 2, j + 1)), "{filter:?}");
        }
    }

    #[test]
    fn a_stretch_is_cut_from_the_whole() {
        let image =
            RgbImage::from_fn(90, 61, |x, y| image::Rgb([(x * 37 + y * 11) as u8, (x * y) as u8, (x ^ y) as u8]));
        let full = resize(&image, Axis::whole(90, 33), Axis::whole(61, 22), Filter::Bicubic);
        let part = resize(
            &image,
            Axis { start: 5, length: 20, ..Axis::whole(90, 33) },
            Axis { start: 3, length: 9, ..Axis::whole(61, 22) },
            Filter::Bicubic,
        );
        assert!(part.enumerate_pixels().all(|(i, j, pixel)| pixel == full.get_pixel(i + 5, j + 3)));
    }

    /// Whatever the width of a register leaves over is summed one by one; both must be the same sums.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn sse2_sums_equal_plain_ones() {
        let mut state = 1u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let sizes =
            [(1, 1, 9, 7), (3, 200, 11, 5), (300, 2, 7, 6), (97, 61, 32, 20), (640, 33, 30, 8), (31, 40, 90, 77)];
        for (width, height, across_to, down_to) in sizes {
            // Noise, and the two extremes side by side, which overshoot most.
            let noise = RgbImage::from_fn(width, height, |_, _| image::Rgb([byte(), byte(), byte()]));
            let edges = RgbImage::from_fn(width, height, |x, y| image::Rgb([((x / 3 + y / 2) % 2) as u8 * 255; 3]));
            for image in [noise, edges] {
                for filter in [Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
                    let stride = width as usize * 3;
                    let columns = Axis::whole(width, across_to).taps(filter);
                    let mut plain = vec![0; columns.len() * 3 * height as usize];
                    across(image.as_raw(), stride, &columns, &mut plain);
                    let mut sse2 = vec![0; plain.len()];
                    let done = simd::across(image.as_raw(), stride, &columns, &mut sse2) * columns.len() * 3;
                    assert_eq!(sse2[..done], plain[..done], "{width}×{height} {filter:?}");
                    assert_eq!(resample_rows(&image, &columns, 0..height as usize).as_raw(), &plain);

                    for taps in Axis::whole(height, down_to).taps(filter) {
                        let window = &image.as_raw()[taps.first * stride..][..taps.weights.len() * stride];
                        let mut plain = vec![0; stride];
                        down(window, stride, &taps.weights, 0, &mut plain);
                        let mut sse2 = vec![0; stride];
                        let done = simd::down(window, stride, &taps.weights, &mut sse2);
                        assert!(stride - done < 16);
                        assert_eq!(sse2[..done], plain[..done], "{width}×{height} {filter:?}");
                    }
                }
            }
        }
    }
}
