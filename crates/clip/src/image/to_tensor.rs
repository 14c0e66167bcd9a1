//! Converts a picture of the model's size to the vision tower's input tensor: rescaled, normalised, one plane per
//! channel.

use image::RgbImage;
use ndarray::ArrayViewMut3;

use crate::image::preprocess::Preprocess;

/// Writes `(value × rescale − mean) / std` into a view of shape (3, height, width), channels in the order R, G, B.
///
/// # Panics
/// If the view and the image have different sizes.
pub fn to_tensor(image: &RgbImage, p: &Preprocess, mut out: ArrayViewMut3<f32>) {
    let (width, height) = (image.width() as usize, image.height() as usize);
    assert_eq!(out.dim(), (3, height, width), "the tensor must have the image's size");
    for (channel, mut plane) in out.outer_iter_mut().enumerate() {
        // A table of the 256 possible values gives exact results cheaply.
        let table: [f32; 256] = std::array::from_fn(|v| (v as f32 * p.rescale - p.mean[channel]) / p.std[channel]);
        for (target, pixel) in plane.iter_mut().zip(image.pixels()) {
            *target = table[usize::from(pixel.0[channel])];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_a_plane_per_channel() {
        let mut image = RgbImage::new(2, 1);
        image.put_pixel(1, 0, image::Rgb([255, 0, 51]));
        let p = Preprocess { mean: [0.5, 0.0, 0.0], std: [0.5, 1.0, 2.0], ..Preprocess::clip(2) };
        let mut out = ndarray::Array3::zeros((3, 1, 2));
        to_tensor(&image, &p, out.view_mut());
        let expected = ndarray::arr3(&[[[-1.0, 1.0]], [[0.0, 0.0]], [[0.0, 0.1]]]);
        assert!(out.iter().zip(&expected).all(|(a, b): (&f32, &f32)| (a - b).abs() < 1e-6), "{out}");
    }
}
