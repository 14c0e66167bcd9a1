//! Resampling with antialiasing, with exactly the results of Pillow.
//!
//! Every CLIP reference pipeline resizes with Pillow (`Image.resize`, libImaging/Resample.c). When shrinking, Pillow
//! widens the filter by the scale. Coefficients are fixed-point with 22 fractional bits. Each row is resampled first,
//! and the result is rounded to bytes before the columns are resampled. The available SIMD resizers do the passes in
//! the other order or keep 15 bits, which changes values by up to 21/255 and 2/255.

#[cfg(target_arch = "x86_64")]
mod simd;

use image::RgbImage;

use crate::error::Result;
use crate::image::limits::{Limits, bytes_of};
use crate::image::pixels;
use crate::memory;

/// Pillow's `PRECISION_BITS`: 32 bits minus 8 for the value and 2 for overshoot and sign.
const PRECISION: u32 = 32 - 8 - 2;

/// The resampling filters that Pillow names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Takes the pixel under the centre, without antialiasing.
    Nearest,
    Box,
    Bilinear,
    Hamming,
    /// Catmull–Rom, a = −0.5.
    Bicubic,
    /// With three lobes.
    Lanczos,
}

impl Filter {
    /// Half the filter's width, in source pixels when enlarging and in output pixels when shrinking.
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

/// One axis of a resize. Only a range of its output is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    /// Length of the source, in pixels.
    pub source: u32,
    /// Where the picture begins in the source, in source pixels, possibly fractional: with `extent` this is Pillow's
    /// `box`. Pixels outside the box count if the filter reaches them.
    pub from: f64,
    pub extent: f64,
    /// The length to which the part is resized, in pixels.
    pub resized: u32,
    /// Start of the computed range of the resized axis; `length` is the range's length.
    pub start: u32,
    pub length: u32,
}

impl Axis {
    /// The whole source, resized to a length.
    pub fn whole(source: u32, resized: u32) -> Self {
        Self { source, from: 0.0, extent: f64::from(source), resized, start: 0, length: resized }
    }
}

/// The source pixels that contribute to one output pixel, with their weights.
struct Taps {
    first: usize,
    /// Fixed-point, [`PRECISION`] fractional bits.
    weights: Vec<i32>,
}

impl Axis {
    /// The taps of every output pixel in the range.
    fn taps(&self, filter: Filter) -> Result<Vec<Taps>> {
        let mut all = memory::with_capacity(self.length as usize)?;
        let single = |first: usize| Taps { first, weights: vec![1 << PRECISION] };
        let scale = self.extent / f64::from(self.resized);
        if filter == Filter::Nearest {
            // Pillow steps from centre to centre (ImagingScaleAffine in libImaging/Geometry.c). For a centre between
            // two pixels, the rounding of this sum decides which pixel is taken: 166.67 added 30 times differs from
            // 166.67 × 30. A start beyond 2²⁰ is multiplied instead, because the sum would take seconds; no photo is
            // that large, so its rounding doesn't matter.
            let (skipped, summed) = if self.start > 1 << 20 { (self.start, 0) } else { (0, self.start) };
            let first = self.from + scale * (0.5 + f64::from(skipped));
            let centers = std::iter::successors(Some(first), |center| Some(center + scale));
            let chosen = centers.skip(summed as usize).take(self.length as usize);
            all.extend(chosen.map(|center| single((center as usize).min(self.source as usize - 1))));
            return Ok(all);
        }
        if self.resized == self.source && (self.from, self.extent) == (0.0, f64::from(self.source)) {
            // At unchanged size every filter is 1 at the centre and 0 at all other pixels.
            all.extend((self.start..self.start + self.length).map(|out| single(out as usize)));
            return Ok(all);
        }
        let mut weights: Vec<f64> = Vec::new();
        for out in self.start..self.start + self.length {
            let center = self.from + (f64::from(out) + 0.5) * scale;
            let filter_scale = scale.max(1.0);
            let support = filter.support() * filter_scale;
            // As in the C code: adds a half, truncates towards zero, then clamps.
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5) as usize).min(self.source as usize);
            weights.clear();
            weights.extend((first..last).map(|x| filter.weight((x as f64 - center + 0.5) / filter_scale)));
            let sum: f64 = weights.iter().sum();
            let fixed = |w: &f64| (w / sum * f64::from(1 << PRECISION)).round() as i32;
            let mut taps = Taps { first, weights: memory::with_capacity(weights.len())? };
            taps.weights.extend(weights.iter().map(fixed));
            all.push(taps);
        }
        Ok(all)
    }
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION - 1);

/// A side of at least this length that shrinks far is averaged to a shorter one first. No JPEG, GIF or WebP has sides
/// this long, so photos still equal Pillow's result, while a sliver of 100,000,000 × 1 pixels needs no weights for each
/// of its pixels (4.9 GB and 15 s).
const LONG_SIDE: u32 = 1 << 16;
/// The minimum ratio between an averaged side and the result. Pillow's thumbnails keep 2.
const KEPT: f64 = 8.0;

/// Resizes an image and returns the ranges that the two axes request: an image of `x.length` × `y.length` pixels.
///
/// Only the pixels of these ranges are computed. Otherwise the middle of a 5000×1 image scaled to a height of 224 would
/// be cut out of 1,120,000 columns.
///
/// # Errors
/// [`crate::Kind::LimitExceeded`] over [`Limits::max_memory`], [`crate::Kind::OutOfMemory`],
/// [`crate::Kind::Interrupted`].
///
/// # Panics
/// If the sources of the axes are not the sides of the image.
pub fn resize(image: &RgbImage, x: Axis, y: Axis, filter: Filter, limits: &Limits) -> Result<RgbImage> {
    assert_eq!(image.dimensions(), (x.source, y.source), "the axes must be the image's");
    let (across, down) = (x.reduction(), y.reduction());
    if across > 1 || down > 1 {
        let small = reduce(image, across, down, limits)?;
        return resize_all(&small, x.reduced(across), y.reduced(down), filter, bytes_of(image.dimensions(), 3), limits);
    }
    resize_all(image, x, y, filter, 0, limits)
}

/// Resizes without averaging first. `beside`: bytes in use in addition to the image.
fn resize_all(image: &RgbImage, x: Axis, y: Axis, filter: Filter, beside: u64, limits: &Limits) -> Result<RgbImage> {
    // The image, its resampled rows, and the result; each tap has a weight, in two forms.
    let rows = y.reach(filter);
    let peak = [bytes_of(image.dimensions(), 3), bytes_of((x.length, rows), 3), bytes_of((x.length, y.length), 3)];
    let peak = peak.iter().fold(beside, |sum, bytes| sum.saturating_add(*bytes));
    let peak = peak.saturating_add((x.tap_count(filter) + y.tap_count(filter)) * 16);
    limits.check_memory("image", image.dimensions(), peak)?;
    let columns = x.taps(filter)?;
    let rows = y.taps(filter)?;
    let first_row = rows.first().map_or(0, |taps| taps.first);
    let last_row = rows.iter().map(|taps| taps.first + taps.weights.len()).max().unwrap_or(0);
    let across = resample_rows(image, &columns, first_row..last_row, limits)?;
    resample_columns(&across, &rows, first_row, limits)
}

impl Axis {
    /// The divisor by which the side is averaged before it is resized; 1 for no averaging.
    fn reduction(&self) -> u32 {
        let scale = self.extent / f64::from(self.resized.max(1));
        if self.source < LONG_SIDE || scale < 2.0 * KEPT { 1 } else { (scale / KEPT) as u32 }
    }

    /// The same range on a side averaged by this divisor.
    fn reduced(&self, by: u32) -> Self {
        let by_float = f64::from(by);
        Self { source: self.source.div_ceil(by), from: self.from / by_float, extent: self.extent / by_float, ..*self }
    }

    /// An upper bound of the number of source pixels that contribute to the range.
    fn reach(&self, filter: Filter) -> u32 {
        let scale = self.extent / f64::from(self.resized.max(1));
        let reach = f64::from(self.length) * scale + 2.0 * filter.support() * scale.max(1.0) + 3.0;
        reach.min(f64::from(self.source)) as u32
    }

    /// An upper bound of the number of taps in the range, plus three for each of its pixels.
    fn tap_count(&self, filter: Filter) -> u64 {
        let scale = (self.extent / f64::from(self.resized.max(1))).max(1.0);
        let each = (2.0 * filter.support() * scale + 3.0).min(f64::from(self.source)) as u64;
        u64::from(self.length).saturating_mul(each + 3)
    }
}

/// Averages blocks of `across` columns and `down` rows; the last blocks may be smaller.
fn reduce(image: &RgbImage, across: u32, down: u32, limits: &Limits) -> Result<RgbImage> {
    let size = (image.width().div_ceil(across), image.height().div_ceil(down));
    let row_bytes = u64::from(size.0) * 3 * 8;
    let peak = bytes_of(image.dimensions(), 3).saturating_add(bytes_of(size, 3)).saturating_add(row_bytes);
    limits.check_memory("image", image.dimensions(), peak)?;
    let mut out = pixels::canvas(size)?;
    let mut sums: Vec<[u64; 3]> = memory::with_capacity(size.0 as usize)?;
    let stride = image.width() as usize * 3;
    let bands = image.as_raw().chunks(stride * down as usize);
    for (y, band) in bands.enumerate() {
        sums.clear();
        sums.resize(size.0 as usize, [0; 3]);
        for row in band.chunks_exact(stride) {
            for (cells, sums) in row.chunks(across as usize * 3 * 4096).zip(sums.chunks_mut(4096)) {
                limits.check_interrupt()?;
                for (cell, sum) in cells.chunks(across as usize * 3).zip(sums) {
                    for pixel in cell.as_chunks::<3>().0 {
                        *sum = std::array::from_fn(|channel| sum[channel] + u64::from(pixel[channel]));
                    }
                }
            }
        }
        let rows = (band.len() / stride) as u64;
        for (x, (target, sum)) in pixels::row_mut(&mut out, y).as_chunks_mut::<3>().0.iter_mut().zip(&sums).enumerate()
        {
            let columns = u64::from((image.width() - x as u32 * across).min(across));
            let count = rows * columns;
            *target = sum.map(|sum| ((sum + count / 2) / count) as u8);
        }
    }
    Ok(out)
}

/// The number of rows or columns between two checks for an interrupt, for rows of this many bytes: a few milliseconds
/// of work.
fn pace(bytes: usize) -> usize {
    (1 << 21) / bytes.max(1) + 1
}

/// Resamples the given rows to the width of `columns`.
fn resample_rows(
    image: &RgbImage,
    columns: &[Taps],
    rows: std::ops::Range<usize>,
    limits: &Limits,
) -> Result<RgbImage> {
    let (width, height) = (columns.len(), rows.len());
    let stride = image.width() as usize * 3;
    let source = &image.as_raw()[rows.start * stride..rows.end * stride];
    let mut out = pixels::canvas((width as u32, height as u32))?;
    #[cfg(target_arch = "x86_64")]
    let done = simd::across(source, stride, columns, &mut out, limits)?;
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    let bytes: &mut [u8] = &mut out;
    across(&source[done * stride..], stride, columns, &mut bytes[done * width * 3..], limits)?;
    Ok(out)
}

/// Resamples every column to the height of `rows`. The image begins at row `offset` of the source.
fn resample_columns(image: &RgbImage, rows: &[Taps], offset: usize, limits: &Limits) -> Result<RgbImage> {
    let stride = image.width() as usize * 3;
    let mut out = pixels::canvas((image.width(), rows.len() as u32))?;
    let mut sums: Vec<i32> = memory::with_capacity(stride)?;
    let pace = pace(rows.iter().map(|taps| taps.weights.len()).max().unwrap_or(1) * stride);
    for (index, (taps, target)) in rows.iter().zip(out.chunks_exact_mut(stride)).enumerate() {
        if index % pace == 0 {
            limits.check_interrupt()?;
        }
        let window = &image.as_raw()[(taps.first - offset) * stride..][..taps.weights.len() * stride];
        #[cfg(target_arch = "x86_64")]
        let done = simd::down(window, stride, &taps.weights, target);
        #[cfg(not(target_arch = "x86_64"))]
        let done = 0;
        down(window, stride, &taps.weights, done, target, &mut sums);
    }
    Ok(out)
}

/// Resamples rows to the width of `columns`, in portable code.
fn across(source: &[u8], stride: usize, columns: &[Taps], out: &mut [u8], limits: &Limits) -> Result<()> {
    let pace = pace(stride);
    for (index, (source, target)) in
        source.chunks_exact(stride).zip(out.chunks_exact_mut(columns.len() * 3)).enumerate()
    {
        if index % pace == 0 {
            limits.check_interrupt()?;
        }
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
    Ok(())
}

/// Writes the weighted sum of the rows of `window` to `target`, from byte `from` of a row on, in portable code.
fn down(window: &[u8], stride: usize, weights: &[i32], from: usize, target: &mut [u8], sums: &mut Vec<i32>) {
    sums.clear();
    sums.resize(stride - from, HALF);
    for (row, weight) in window.chunks_exact(stride).zip(weights) {
        for (sum, value) in sums.iter_mut().zip(&row[from..]) {
            *sum += i32::from(*value) * weight;
        }
    }
    for (byte, sum) in target[from..].iter_mut().zip(sums) {
        *byte = to_byte(*sum);
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
            let out = resize(&image, x, y, filter, &Limits::default()).unwrap();
            assert!(out.enumerate_pixels().all(|(i, j, pixel)| pixel == image.get_pixel(i + 2, j + 1)), "{filter:?}");
        }
    }

    #[test]
    fn a_stretch_is_cut_from_the_whole() {
        let image =
            RgbImage::from_fn(90, 61, |x, y| image::Rgb([(x * 37 + y * 11) as u8, (x * y) as u8, (x ^ y) as u8]));
        let full =
            resize(&image, Axis::whole(90, 33), Axis::whole(61, 22), Filter::Bicubic, &Limits::default()).unwrap();
        let part = resize(
            &image,
            Axis { start: 5, length: 20, ..Axis::whole(90, 33) },
            Axis { start: 3, length: 9, ..Axis::whole(61, 22) },
            Filter::Bicubic,
            &Limits::default(),
        )
        .unwrap();
        assert!(part.enumerate_pixels().all(|(i, j, pixel)| pixel == full.get_pixel(i + 5, j + 3)));
    }

    /// Pixels that don't fill a register are summed one by one; both methods must give the same sums.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn sse2_sums_equal_plain_ones() {
        let limits = Limits::default();
        let mut state = 1u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let sizes =
            [(1, 1, 9, 7), (3, 200, 11, 5), (300, 2, 7, 6), (97, 61, 32, 20), (640, 33, 30, 8), (31, 40, 90, 77)];
        for (width, height, across_to, down_to) in sizes {
            // Noise, and alternating extremes, which overshoot most.
            let noise = RgbImage::from_fn(width, height, |_, _| image::Rgb([byte(), byte(), byte()]));
            let edges = RgbImage::from_fn(width, height, |x, y| image::Rgb([((x / 3 + y / 2) % 2) as u8 * 255; 3]));
            for image in [noise, edges] {
                for filter in [Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
                    let stride = width as usize * 3;
                    let columns = Axis::whole(width, across_to).taps(filter).unwrap();
                    let mut plain = vec![0; columns.len() * 3 * height as usize];
                    across(image.as_raw(), stride, &columns, &mut plain, &limits).unwrap();
                    let mut sse2 = vec![0; plain.len()];
                    let done =
                        simd::across(image.as_raw(), stride, &columns, &mut sse2, &limits).unwrap() * columns.len() * 3;
                    assert_eq!(sse2[..done], plain[..done], "{width}×{height} {filter:?}");
                    let rows = resample_rows(&image, &columns, 0..height as usize, &limits).unwrap();
                    assert_eq!(rows.as_raw(), &plain);

                    for taps in Axis::whole(height, down_to).taps(filter).unwrap() {
                        let window = &image.as_raw()[taps.first * stride..][..taps.weights.len() * stride];
                        let mut plain = vec![0; stride];
                        down(window, stride, &taps.weights, 0, &mut plain, &mut Vec::new());
                        let mut sse2 = vec![0; stride];
                        let done = simd::down(window, stride, &taps.weights, &mut sse2);
                        assert!(stride - done < 16);
                        assert_eq!(sse2[..done], plain[..done], "{width}×{height} {filter:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn slivers_are_averaged_first() {
        // Bands of 1000 pixels alternate between two values; each pixel of the result averages 200 bands.
        let image = RgbImage::from_fn(400_000, 2, |x, _| image::Rgb([if x / 1000 % 2 == 0 { 10 } else { 30 }; 3]));
        for filter in [Filter::Box, Filter::Bicubic, Filter::Lanczos] {
            let (x, y) = (Axis::whole(400_000, 2), Axis::whole(2, 1));
            assert!(x.reduction() > 1000);
            let out = resize(&image, x, y, filter, &Limits::default()).unwrap();
            assert!(out.iter().all(|value| value.abs_diff(20) <= 1), "{filter:?} {out:?}");
        }
    }
}
