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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Length of the source, in pixels.
    pub source: u32,
    /// Length that the whole source is resized to.
    pub resized: u32,
    /// The stretch of it that is computed: start and length.
    pub start: u32,
    pub length: u32,
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
        let scale = f64::from(self.source) / f64::from(self.resized);
        if filter == Filter::Nearest {
            // Pillow steps from centre to centre (ImagingScaleAffine in libImaging/Geometry.c), and the sum's rounding
            // decides where a centre falls between two pixels: 166.67 added 30 times is not 166.67 × 30.
            return std::iter::successors(Some(scale * 0.5), |center| Some(center + scale))
                .skip(self.start as usize)
                .take(self.length as usize)
                .map(|center| Taps {
                    first: (center as usize).min(self.source as usize - 1),
                    weights: vec![1 << PRECISION],
                })
                .collect();
        }
        (self.start..self.start + self.length)
            .map(|out| {
                let center = (f64::from(out) + 0.5) * scale;
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
    let mut out = vec![0u8; width * height * 3];
    for (source, target) in
        image.as_raw()[rows.start * stride..rows.end * stride].chunks_exact(stride).zip(out.chunks_exact_mut(width * 3))
    {
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
    RgbImage::from_raw(width as u32, height as u32, out).expect("sized for it")
}

/// Every column, resampled to the height of `rows`; the image starts at source row `offset`.
fn resample_columns(image: &RgbImage, rows: &[Taps], offset: usize) -> RgbImage {
    let stride = image.width() as usize * 3;
    let mut out = Vec::with_capacity(rows.len() * stride);
    let mut sums = vec![0i32; stride];
    for taps in rows {
        sums.fill(HALF);
        let window = &image.as_raw()[(taps.first - offset) * stride..];
        for (row, weight) in window.chunks_exact(stride).zip(&taps.weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        out.extend(sums.iter().map(|sum| to_byte(*sum)));
    }
    RgbImage::from_raw(image.width(), rows.len() as u32, out).expect("sized for it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_size_is_a_crop() {
        let image = RgbImage::from_fn(7, 5, |x, y| image::Rgb([x as u8 * 30, y as u8 * 50, 7]));
        let x = Axis { source: 7, resized: 7, start: 2, length: 3 };
        let y = Axis { source: 5, resized: 5, start: 1, length: 4 };
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
        let whole = |source, resized| Axis { source, resized, start: 0, length: resized };
        let full = resize(&image, whole(90, 33), whole(61, 22), Filter::Bicubic);
        let part = resize(
            &image,
            Axis { start: 5, length: 20, ..whole(90, 33) },
            Axis { start: 3, length: 9, ..whole(61, 22) },
            Filter::Bicubic,
        );
        assert!(part.enumerate_pixels().all(|(i, j, pixel)| pixel == full.get_pixel(i + 5, j + 3)));
    }
}
