//! Decodes file bytes to an upright RGB picture, within limits.
//!
//! The reference is Pillow, as used by Hugging Face's image processors: transparency is composed on white (as in
//! transformers 5; a web page also shows a logo in this way), and colour profiles are ignored. Each format has its own
//! file for its details.

use image::metadata::Orientation;

use crate::error::{Error, Result, without_panic};
use crate::image::format::recognise;
use crate::image::jpeg::Jpeg;
use crate::image::limits::Limits;
use crate::image::orientation::{mirrored, turned, upright};
use crate::image::picture::{Decoded, Format, Picture, Short, truncated};
use crate::image::prepare::reduction;
use crate::image::preprocess::Preprocess;
use crate::image::resample::Filter;
use crate::image::{bmp, gif, png, raw, tiff, webp};

/// The minimum ratio between the size at which a JPEG is decoded and the size to which the model resizes it.
///
/// It was chosen by the cosine between the embeddings of the reduced and the full decode, on 44 JPEGs of 1 to 12
/// megapixels (benches/peers). Mean and minimum: with 2, 0.99950 and 0.9971 for photo-mini; with 3, 0.99959 and 0.9971;
/// with 4, 0.99975 and 0.9984. The minima of a CLIP ViT-B/32 with random weights are 0.99985, 0.99993 and 0.99996. On
/// 43 other JPEGs, of 5 to 22 megapixels and not used for the choice, 4 gives photo-mini 0.99966 and 0.9987. Nearly all
/// of them were enlargements or mosaics of smaller photos, with noise: no camera files of that size were available.
pub const MIN_OVERSAMPLING: f64 = 4.0;

/// Decodes an image file to upright RGB.
///
/// It recognises the format by content: JPEG, PNG, GIF and WebP (first frame), BMP, TIFF (first page), ICO (largest
/// picture), HEIC and AVIF (primary image), JPEG XL (first frame) and camera RAW (largest preview). It applies the
/// orientation in the file, as every photo viewer does.
///
/// A truncated file is decoded without a warning if it has all pixels, and with a warning ([`Decoded::truncated`]) if
/// it lacks at most a thousandth of the rows. A file that lacks more is an error unless [`Limits::allow_truncated`] is
/// set.
///
/// # Errors
/// [`Kind::InvalidInput`] for a file that is not an image, is broken or truncated; [`Kind::Unsupported`] for a format
/// that is recognised but not decoded, by name; [`Kind::LimitExceeded`] over `limits`; [`Kind::OutOfMemory`];
/// [`Kind::Interrupted`] if the caller requested it.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Decoded> {
    decode_with(bytes, limits, None)
}

/// Decodes an image file to the size that [`Decoded::prepare`] needs for this model.
///
/// Like [`decode`], but a JPEG whose sides are at least 2 × [`MIN_OVERSAMPLING`] times the size to which `preprocess` resizes them
/// is decoded at 1/2, 1/4 or 1/8 of its size, unless [`Limits::exact_jpeg`] is set. The limits still apply to the
/// file's own size.
///
/// # Errors
/// The errors of [`decode`], for the same files.
pub fn decode_for(bytes: &[u8], limits: &Limits, preprocess: &Preprocess) -> Result<Decoded> {
    decode_with(bytes, limits, Some(preprocess).filter(|p| !limits.exact_jpeg && p.filter != Filter::Nearest))
}

/// `smaller` is the model's preprocessing if the picture may be decoded at a reduced size.
fn decode_with(bytes: &[u8], limits: &Limits, smaller: Option<&Preprocess>) -> Result<Decoded> {
    limits.check_file(bytes)?;
    let format = recognise(bytes)?;
    without_panic(|| format.broken("The decoder gave up on it."), || decode_as(format, bytes, limits, smaller))
}

fn decode_as(format: Format, bytes: &[u8], limits: &Limits, smaller: Option<&Preprocess>) -> Result<Decoded> {
    let picture = match format {
        Format::Jpeg => {
            let jpeg = Jpeg::open(bytes, limits)?;
            let orientation = jpeg.orientation();
            decode_jpeg(jpeg, orientation, limits, smaller)?
        }
        Format::Raw => {
            let preview = raw::preview(bytes, limits)?;
            decode_jpeg(preview.jpeg, preview.orientation, limits, smaller)?
        }
        Format::Png => png::decode(bytes, limits)?,
        Format::Gif => gif::decode(bytes, limits)?,
        Format::WebP => webp::decode(bytes, limits)?,
        Format::Tiff => tiff::decode(bytes, limits)?,
        Format::Bmp => bmp::decode(bytes, limits)?,
        Format::Ico => bmp::decode_icon(bytes, limits)?,
        #[cfg(feature = "heic")]
        Format::Heic => crate::image::heif::decode(format, bytes, limits)?,
        #[cfg(feature = "avif")]
        Format::Avif => crate::image::heif::decode(format, bytes, limits)?,
        #[cfg(feature = "jxl")]
        Format::Jxl => match crate::image::jxl::open(bytes, limits)? {
            crate::image::jxl::Content::Jpeg(jpeg, orientation, profile) => {
                let jpeg = Jpeg::open(&jpeg, limits)?;
                Picture { profile: Some(profile), ..decode_jpeg(jpeg, orientation, limits, smaller)? }
            }
            crate::image::jxl::Content::Picture(picture) => picture,
        },
    };
    let is_truncated = match picture.short {
        Short::Nothing => false,
        Short::Rows(rows) if u64::from(rows) * 1000 <= u64::from(picture.size.1) => true,
        _ if limits.allow_truncated => true,
        _ => return Err(truncated(format, bytes.len())),
    };
    finish(picture, limits, is_truncated.then(|| truncated(format, bytes.len())))
}

fn decode_jpeg(jpeg: Jpeg, orientation: Orientation, limits: &Limits, smaller: Option<&Preprocess>) -> Result<Picture> {
    let size = (jpeg.width, jpeg.height);
    limits.check_pixels(size)?;
    let upright_size = turned(size, orientation);
    let shrink = smaller.map_or(1, |p| jpeg.shrink(reduction(upright_size, p), MIN_OVERSAMPLING));
    jpeg.decode(shrink, orientation)
}

/// Turns a picture upright.
fn finish(picture: Picture, limits: &Limits, truncated: Option<Error>) -> Result<Decoded> {
    let Picture { rgb, size, shrink, orientation, profile, .. } = picture;
    // A reduced side is rounded up: the part of the last column or row that lies beyond the picture, in reduced pixels.
    let beyond = |side: u32| f64::from(side.div_ceil(shrink)) - f64::from(side) / f64::from(shrink);
    let (left, top) = mirrored(orientation);
    let size = turned(size, orientation);
    let origin = (if left { beyond(size.0) } else { 0.0 }, if top { beyond(size.1) } else { 0.0 });
    let rgb = upright(rgb, orientation, limits)?;
    Ok(Decoded { rgb, shrink, size, origin, truncated, profile })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{DynamicImage, ImageFormat, RgbImage, RgbaImage};

    use super::*;
    use crate::error::Kind;

    fn png(image: &DynamicImage) -> Vec<u8> {
        let mut bytes = Vec::new();
        image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        bytes
    }

    fn noise() -> Vec<u8> {
        let noise =
            RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * 7 + y * 13) as u8, (x * y) as u8, (x ^ y) as u8]));
        png(&DynamicImage::ImageRgb8(noise))
    }

    #[test]
    fn the_empty_value_is_no_image() {
        assert_eq!(decode(b"", &Limits::default()).unwrap_err().message, "image is empty");
    }

    #[test]
    fn limits_come_before_memory() {
        // A PNG header that claims 60000 × 60000: 10.8 GB as RGB.
        let mut bomb = png(&DynamicImage::new_rgb8(1, 1));
        bomb[16..24].copy_from_slice(&[0, 0, 0xEA, 0x60, 0, 0, 0xEA, 0x60]);
        let crc = crc32(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&crc.to_be_bytes());
        let error = decode(&bomb, &Limits::default()).unwrap_err();
        assert_eq!(error.kind, Kind::LimitExceeded, "{error}");
        assert!(error.detail.as_deref().unwrap().contains("60000×60000"), "{error}");

        let small = png(&DynamicImage::new_rgb8(10, 10));
        let limits = Limits { max_bytes: 20, ..Limits::default() };
        let error = decode(&small, &limits).unwrap_err();
        assert_eq!(error.message, "image file is too large");
        assert!(decode(&small, &Limits { max_pixels: 99, ..Limits::default() }).is_err());
        assert!(decode(&small, &Limits { max_pixels: 100, ..Limits::default() }).is_ok());
        let error = decode(&small, &Limits { max_memory: 1000, ..Limits::default() }).unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (Kind::LimitExceeded, "PNG image needs too much memory"));
    }

    /// The PNG checksum, so that the forged header is otherwise valid (ISO 3309, reflected).
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { 0xEDB8_8320 ^ (c >> 1) } else { c >> 1 })
        })
    }

    #[test]
    fn a_png_cut_short_is_truncated() {
        let bytes = noise();
        let error = decode(&bytes[..bytes.len() / 2], &Limits::default()).unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (Kind::InvalidInput, "PNG image is truncated"));

        // With `allow_truncated`, the rows in the file are correct and the rest is black.
        let limits = Limits { allow_truncated: true, ..Limits::default() };
        let whole = decode(&bytes, &limits).unwrap();
        let half = decode(&bytes[..bytes.len() / 2], &limits).unwrap();
        assert!(whole.truncated.is_none() && half.truncated.is_some());
        assert_eq!(
            whole.rgb.rows().next().unwrap().collect::<Vec<_>>(),
            half.rgb.rows().next().unwrap().collect::<Vec<_>>()
        );
        assert_eq!(half.rgb.get_pixel(63, 63).0, [0; 3]);
    }

    #[test]
    fn work_stops_when_it_is_told_to() {
        let limits = Limits { interrupted: || true, ..Limits::default() };
        assert_eq!(decode(&noise(), &limits).unwrap_err().kind, Kind::Interrupted);
    }

    #[test]
    fn sixteen_bits_keep_their_scale() {
        let ramp = image::ImageBuffer::from_fn(256, 4, |x, _| image::Luma([(x * 257) as u16]));
        let rgb = decode(&png(&DynamicImage::ImageLuma16(ramp)), &Limits::default()).unwrap().rgb;
        for x in 0..256 {
            assert_eq!(rgb.get_pixel(x, 0).0, [x as u8; 3]);
        }
    }

    #[test]
    fn transparency_goes_on_white() {
        let pixels = [[10, 20, 30, 0], [10, 20, 30, 255], [0, 255, 100, 128], [7, 7, 7, 1]];
        let image = RgbaImage::from_raw(4, 1, pixels.concat()).unwrap();
        let rgb = decode(&png(&DynamicImage::ImageRgba8(image)), &Limits::default()).unwrap().rgb;
        // Pillow 12.3 computed these: Image.alpha_composite(white, image).
        assert_eq!(rgb.as_raw(), &[255, 255, 255, 10, 20, 30, 127, 255, 177, 254, 254, 254]);
    }
}
