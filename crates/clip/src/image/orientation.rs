//! Reads the orientation in a file, and turns a picture upright.
//!
//! EXIF takes precedence over XMP: programs that write both write the same orientation, and a viewer applies only one
//! of them.

use image::RgbImage;
use image::metadata::Orientation;

use crate::error::Result;
use crate::image::limits::Limits;
use crate::image::pixels;

/// The orientation in an EXIF block, with or without JPEG's prefix, which many programs also write in other formats.
pub(crate) fn in_exif(exif: &[u8]) -> Option<Orientation> {
    Orientation::from_exif_chunk(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif))
}

/// The orientation in an XMP packet: the attribute `tiff:Orientation="6"` or the element `<tiff:Orientation>6<`.
pub(crate) fn in_xmp(xmp: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    // Packets have a few kB. In a larger packet only the beginning is searched.
    let xmp = &xmp[..xmp.len().min(1 << 20)];
    let at = xmp.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    let value = match xmp.get(at..)? {
        [b'>', value, ..] | [b'=', b'"' | b'\'', value, ..] => value,
        _ => return None,
    };
    Orientation::from_exif(value.wrapping_sub(b'0'))
}

/// Whether the rotation swaps the sides of the stored picture.
pub(crate) fn swaps_sides(orientation: Orientation) -> bool {
    use Orientation as O;
    matches!(orientation, O::Rotate90 | O::Rotate270 | O::Rotate90FlipH | O::Rotate270FlipH)
}

/// The upright (width, height) of a picture with this stored (width, height).
pub(crate) fn turned((width, height): (u32, u32), orientation: Orientation) -> (u32, u32) {
    if swaps_sides(orientation) { (height, width) } else { (width, height) }
}

/// Whether a stored edge that was right or bottom becomes the left edge, and the top edge, of the upright picture.
pub(crate) fn mirrored(orientation: Orientation) -> (bool, bool) {
    use Orientation as O;
    match orientation {
        O::NoTransforms => (false, false),
        O::FlipHorizontal => (true, false),
        O::Rotate180 => (true, true),
        O::FlipVertical => (false, true),
        // EXIF 5, the transpose: rotated to the right, then flipped.
        O::Rotate90FlipH => (false, false),
        // EXIF 6: the bottom moves to the left.
        O::Rotate90 => (true, false),
        // EXIF 7, the transverse.
        O::Rotate270FlipH => (true, true),
        // EXIF 8: the right edge moves to the top.
        O::Rotate270 => (false, true),
    }
}

/// Turns a stored picture upright: in place, or in a second picture if the sides are swapped.
///
/// # Errors
/// [`crate::Kind::OutOfMemory`], [`crate::Kind::Interrupted`].
pub(crate) fn upright(mut picture: RgbImage, orientation: Orientation, limits: &Limits) -> Result<RgbImage> {
    use Orientation as O;
    match orientation {
        O::NoTransforms => {}
        O::FlipHorizontal => {
            for y in 0..picture.height() as usize {
                if y % 64 == 0 {
                    limits.check_interrupt()?;
                }
                pixels::row_mut(&mut picture, y).as_chunks_mut::<3>().0.reverse();
            }
        }
        O::Rotate180 => {
            let bytes: &mut [u8] = &mut picture;
            bytes.as_chunks_mut::<3>().0.reverse();
        }
        O::FlipVertical => {
            let stride = picture.width() as usize * 3;
            let half = picture.height() as usize / 2;
            let bytes: &mut [u8] = &mut picture;
            let mut rows = bytes.chunks_exact_mut(stride);
            for _ in 0..half {
                if let (Some(top), Some(bottom)) = (rows.next(), rows.next_back()) {
                    top.swap_with_slice(bottom);
                }
            }
        }
        O::Rotate90 => return swapped(&picture, true, false, limits),
        O::Rotate270 => return swapped(&picture, false, true, limits),
        O::Rotate90FlipH => return swapped(&picture, false, false, limits),
        O::Rotate270FlipH => return swapped(&picture, true, true, limits),
    }
    Ok(picture)
}

/// The transpose of a picture, with the source's rows or columns in reverse order if requested.
fn swapped(picture: &RgbImage, from_bottom: bool, from_right: bool, limits: &Limits) -> Result<RgbImage> {
    /// Rows of the result that are written together, because their pixels are adjacent in the source.
    const BAND: usize = 16;
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let source = picture.as_raw().as_chunks::<3>().0;
    let mut out = pixels::canvas((picture.height(), picture.width()))?;
    let bytes: &mut [u8] = &mut out;
    for (band, rows) in bytes.as_chunks_mut::<3>().0.chunks_mut(BAND * height).enumerate() {
        limits.check_interrupt()?;
        for x in 0..height {
            let y = if from_bottom { height - 1 - x } else { x };
            let stored = &source[y * width..][..width];
            for (row, target) in rows.iter_mut().skip(x).step_by(height).enumerate() {
                let column = band * BAND + row;
                *target = stored[if from_right { width - 1 - column } else { column }];
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use image::DynamicImage;

    use super::*;

    #[test]
    fn turns_as_the_library_does() {
        for (width, height) in [(5, 3), (1, 7), (40, 33)] {
            let stored = RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
            for value in 1..=8 {
                let orientation = Orientation::from_exif(value).unwrap();
                let mut truth = DynamicImage::ImageRgb8(stored.clone());
                truth.apply_orientation(orientation);
                let ours = upright(stored.clone(), orientation, &Limits::default()).unwrap();
                assert!(ours == truth.into_rgb8(), "{width}×{height}, {value}");
                assert_eq!(ours.dimensions(), turned((width, height), orientation));
            }
        }
    }

    #[test]
    fn xmp_states_it_in_two_forms() {
        let of = |xmp: &str| in_xmp(xmp.as_bytes()).map(Orientation::to_exif);
        assert_eq!(of("<rdf:Description tiff:Orientation=\"6\"/>"), Some(6));
        assert_eq!(of("<tiff:Orientation>3</tiff:Orientation>"), Some(3));
        for none in ["", "tiff:Orientation", "tiff:Orientation=\"9\"", "tiff:Orientation=\"x\"", "Orientation=\"6\""] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
