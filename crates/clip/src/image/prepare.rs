//! Resizes and crops a decoded picture to the model's input size, as the model's configuration says.

use image::RgbImage;

use crate::error::Result;
use crate::image::limits::{Limits, bytes_of};
use crate::image::picture::Decoded;
use crate::image::pixels;
use crate::image::preprocess::{CropRounding, Preprocess, Resize};
use crate::image::resample::{self, Axis};

/// Resizes and crops to the model's input size; returns RGB pixels, 0–255, before rescaling and normalisation.
///
/// # Errors
/// [`crate::Kind::LimitExceeded`] over [`Limits::max_memory`], [`crate::Kind::OutOfMemory`],
/// [`crate::Kind::Interrupted`].
pub fn resize_and_crop(image: &RgbImage, p: &Preprocess, limits: &Limits) -> Result<RgbImage> {
    resize_part(image, image.dimensions(), 1, (0.0, 0.0), p, limits)
}

impl Decoded {
    /// Like [`resize_and_crop`], with the proportions of the file's own size if the picture was decoded at a reduced
    /// size.
    ///
    /// # Errors
    /// The errors of [`resize_and_crop`].
    pub fn prepare(&self, p: &Preprocess, limits: &Limits) -> Result<RgbImage> {
        resize_part(&self.rgb, self.size, self.shrink, self.origin, p, limits)
    }
}

/// Resizes and crops a picture of which `image` is a copy, `shrink` times smaller, that begins at `origin`.
fn resize_part(
    image: &RgbImage,
    (width, height): (u32, u32),
    shrink: u32,
    origin: (f64, f64),
    p: &Preprocess,
    limits: &Limits,
) -> Result<RgbImage> {
    let (resized_w, resized_h) = resized_size((width, height), p);
    let (out_w, out_h) = p.output_size().unwrap_or((resized_w, resized_h));
    let axis = |source: u32, side: u32, from: f64, resized: u32, out: u32| {
        let (start, length, margin) = centred(resized, out, p.crop_rounding);
        let extent = f64::from(side) / f64::from(shrink);
        (Axis { source, from, extent, resized, start, length }, margin)
    };
    let (x, left) = axis(image.width(), width, origin.0, resized_w, out_w);
    let (y, top) = axis(image.height(), height, origin.1, resized_h, out_h);
    let picture = resample::resize(image, x, y, p.filter, limits)?;
    if (x.length, y.length) == (out_w, out_h) {
        return Ok(picture);
    }
    let peak = [image.dimensions(), picture.dimensions(), (out_w, out_h)].map(|size| bytes_of(size, 3));
    limits.check_memory("image", (width, height), peak.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes)))?;
    let mut canvas = pixels::canvas((out_w, out_h))?;
    canvas.fill(p.fill);
    image::imageops::replace(&mut canvas, &picture, i64::from(left), i64::from(top));
    Ok(canvas)
}

/// The smaller one of the two ratios between a side and its resized length.
pub(crate) fn reduction((width, height): (u32, u32), p: &Preprocess) -> f64 {
    let (resized_w, resized_h) = resized_size((width, height), p);
    (f64::from(width) / f64::from(resized_w)).min(f64::from(height) / f64::from(resized_h))
}

/// The size to which a picture is resized, before the crop: (width, height).
fn resized_size((width, height): (u32, u32), p: &Preprocess) -> (u32, u32) {
    let scaled_by = |ratio: f64| (scaled_by(width, ratio), scaled_by(height, ratio));
    match p.resize {
        Resize::ShortestEdge(size) if width <= height => (size, scaled(size, height, width)),
        Resize::ShortestEdge(size) => (scaled(size, width, height), size),
        Resize::Exact(w, h) => (w, h),
        Resize::Cover(w, h) => scaled_by(ratio(width, w).min(ratio(height, h))),
        Resize::Fit(w, h) => scaled_by(ratio(width, w).max(ratio(height, h))),
        Resize::None => (width, height),
    }
}

fn ratio(length: u32, target: u32) -> f64 {
    f64::from(length) / f64::from(target)
}

/// A side divided by `ratio` and rounded, halves to even, as open_clip does if it keeps the aspect. A side that rounds
/// to 0, for which open_clip raises an error, becomes 1.
fn scaled_by(side: u32, ratio: f64) -> u32 {
    ((f64::from(side) / ratio).round_ties_even() as u32).max(1)
}

/// `int(size * long / short)`, truncated as in Hugging Face and torchvision.
fn scaled(size: u32, long: u32, short: u32) -> u32 {
    ((u64::from(size) * u64::from(long)) as f64 / f64::from(short)) as u32
}

/// The range of a resized axis that the centre crop to `out` pixels keeps, as start and length, and its position in the
/// output. The position differs from 0 only if the picture is smaller than the crop.
fn centred(resized: u32, out: u32, rounding: CropRounding) -> (u32, u32, u32) {
    let spare = i64::from(resized) - i64::from(out);
    let start = match rounding {
        CropRounding::Floor => spare.div_euclid(2),
        // Padding is rounded differently from cropping: torchvision adds the odd pixel at the right and the bottom.
        CropRounding::HalfEven if spare < 0 => spare / 2,
        CropRounding::HalfEven => (spare as f64 / 2.0).round_ties_even() as i64,
    };
    (start.max(0) as u32, resized.min(out), (-start).max(0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extreme_aspects_cost_little() {
        for (w, h) in [(5000, 1), (1, 5000), (65500, 1)] {
            let image = RgbImage::from_pixel(w, h, image::Rgb([10, 20, 30]));
            let out = resize_and_crop(&image, &Preprocess::clip(224), &Limits::default()).unwrap();
            assert_eq!(out.dimensions(), (224, 224));
            assert!(out.pixels().all(|p| p.0 == [10, 20, 30]));
        }
    }

    #[test]
    fn a_crop_larger_than_the_picture_is_filled() {
        let p = Preprocess { resize: Resize::None, crop: Some((4, 4)), fill: 9, ..Preprocess::clip(4) };
        let image = RgbImage::from_pixel(2, 2, image::Rgb([1, 1, 1]));
        let out = resize_and_crop(&image, &p, &Limits::default()).unwrap();
        assert_eq!(out.dimensions(), (4, 4));
        assert_eq!((out.get_pixel(0, 0).0, out.get_pixel(1, 1).0, out.get_pixel(3, 3).0), ([9; 3], [1; 3], [9; 3]));
    }
}
