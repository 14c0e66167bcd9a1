//! Which way up a picture is: the orientation that a file states, and turning the picture by it.

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, Rgb, RgbImage, RgbaImage};

use crate::image::png;

/// EXIF orientation in a file of this format, which is not JPEG.
pub(crate) fn of_file(format: ImageFormat, bytes: &[u8], decoder: &mut impl ImageDecoder) -> Option<Orientation> {
    match format {
        ImageFormat::Png => png::exif(bytes).and_then(Orientation::from_exif_chunk),
        // Many programs write JPEG's prefix here too.
        ImageFormat::WebP => decoder
            .exif_metadata()
            .ok()
            .flatten()
            .and_then(|exif| Orientation::from_exif_chunk(exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif))),
        _ => decoder.orientation().ok(),
    }
}

/// A stored (width, height) as it is upright.
pub(crate) fn turned((width, height): (u32, u32), orientation: Option<Orientation>) -> (u32, u32) {
    use Orientation as O;
    match orientation {
        Some(O::Rotate90 | O::Rotate270 | O::Rotate90FlipH | O::Rotate270FlipH) => (height, width),
        _ => (width, height),
    }
}

/// Whether the stored picture's right or bottom end is at the left, and at the top, of the upright one.
pub(crate) fn mirrored(orientation: Option<Orientation>) -> (bool, bool) {
    use Orientation as O;
    match orientation.unwrap_or(O::NoTransforms) {
        O::NoTransforms => (false, false),
        O::FlipHorizontal => (true, false),
        O::Rotate180 => (true, true),
        O::FlipVertical => (false, true),
        // EXIF 5, the transpose: flipped after the turn to the right.
        O::Rotate90FlipH => (false, false),
        // EXIF 6: the bottom comes to the left.
        O::Rotate90 => (true, false),
        // EXIF 7, the transverse.
        O::Rotate270FlipH => (true, true),
        // EXIF 8: the right end comes to the top.
        O::Rotate270 => (false, true),
    }
}

pub(crate) fn upright(mut image: DynamicImage, orientation: Orientation) -> RgbImage {
    image.apply_orientation(orientation);
    if image.color().has_alpha() { on_white(&image.into_rgba8()) } else { image.into_rgb8() }
}

/// Composites onto white as Pillow's `alpha_composite` does, with its fixed-point rounding (7 bits).
fn on_white(image: &RgbaImage) -> RgbImage {
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [r, g, b, alpha] = image.get_pixel(x, y).0.map(u32::from);
        Rgb([r, g, b].map(|value| {
            let sum = ((value * alpha + 255 * (255 - alpha)) << 7) + (128 << 7);
            ((((sum >> 8) + sum) >> 8) >> 7) as u8
        }))
    })
}
