//! From file bytes to a model's pixels.
//!
//! Decode within limits, turn upright (EXIF), make RGB, resize and crop as the model's own configuration
//! says, rescale and normalise into NCHW. The reference is Pillow, as Hugging Face's image processors use
//! it: transparency goes on white (transformers 5; a logo is seen on a page that way, too), and colour
//! profiles are ignored.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, RgbImage};

use crate::error::{Error, Kind, Result, without_panic};
use crate::image::format::{name, sniff};
use crate::image::jpeg::Jpeg;
use crate::image::orientation::{self, mirrored, turned, upright};
use crate::image::prepare::reduction;
use crate::image::preprocess::Preprocess;
use crate::image::resample::Filter;
use crate::image::{bmp, webp};

/// How many times larger than the target a JPEG must still be when it is decoded smaller than it is.
///
/// Chosen by the embeddings' cosine to those of the full decode, on 44 JPEGs of 1 to 12 megapixels (benches/peers),
/// mean and least: with 2, 0.99950 and 0.9971 for photo-mini; with 3, 0.99959 and 0.9971; with 4, 0.99975 and 0.9984.
/// A CLIP ViT-B/32 with random weights has at least 0.99985, 0.99993 and 0.99996. On 43 others, of 5 to 22 megapixels
/// and not looked at for the choice, 4 gives photo-mini 0.99966 and 0.9987. Nearly all were enlarged or put together
/// from smaller photos, with noise: no camera's own files of that size were at hand.
pub const SPARE: f64 = 4.0;

/// What a single image may cost. Both are checked before anything of that size is allocated.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Width × height.
    pub max_pixels: u64,
    /// Length of the file.
    pub max_bytes: u64,
    /// Whether a file that ends too soon is used as far as it goes.
    pub allow_truncated: bool,
    /// Whether large JPEGs are decoded in full where [`decode_for`] could decode them smaller. See [`SPARE`].
    pub exact_jpeg: bool,
    /// What to call the two settings in a hint, in that order.
    pub names: (&'static str, &'static str),
}

impl Default for Limits {
    /// 100 megapixels (300 MB as RGB; the largest camera sensors have 100–150) and 256 MiB.
    fn default() -> Self {
        Self {
            max_pixels: 100_000_000,
            max_bytes: 256 << 20,
            allow_truncated: false,
            exact_jpeg: false,
            names: ("max_pixels", "max_bytes"),
        }
    }
}

/// A decoded image.
#[derive(Debug)]
pub struct Decoded {
    /// Upright, and smaller than the file's picture by `shrink`.
    pub rgb: RgbImage,
    /// What the file's own size was divided by, sides rounded up: 1 (the whole), 2, 4 or 8.
    pub shrink: u32,
    /// The file's own size, upright: (width, height).
    pub size: (u32, u32),
    /// Where in `rgb` the picture begins, (x, y) in its pixels: not at 0 where `shrink` doesn't divide a side whose
    /// rounded-up end EXIF orientation has turned to the front.
    pub(super) origin: (f64, f64),
    /// The file ended before the picture did; the rest of the picture is grey or black.
    pub truncated: Option<Error>,
}

/// Decodes an image file to upright RGB.
///
/// JPEG, PNG, GIF and WebP (first frame), BMP, TIFF and ICO; told apart by content. EXIF orientation is
/// applied, as every photo viewer does.
///
/// # Errors
/// [`Kind::InvalidInput`] for what is not an image, is broken or ends too soon; [`Kind::Unsupported`] for
/// a format that is recognised but not decoded, by name; [`Kind::LimitExceeded`] over `limits`.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Decoded> {
    decode_with(bytes, limits, None)
}

/// Decodes an image file to what [`Decoded::prepare`] needs for this model.
///
/// As [`decode`], but a JPEG whose sides are at least 2 × [`SPARE`] times what `preprocess` resizes them to is decoded
/// at 1/2, 1/4 or 1/8 of its size, unless [`Limits::exact_jpeg`]. The limits are on the file's own size all the same.
///
/// # Errors
/// Those of [`decode`], for the same files.
pub fn decode_for(bytes: &[u8], limits: &Limits, preprocess: &Preprocess) -> Result<Decoded> {
    decode_with(bytes, limits, Some(preprocess).filter(|p| !limits.exact_jpeg && p.filter != Filter::Nearest))
}

/// `smaller`: the preprocessing for which a picture may be decoded smaller than it is.
fn decode_with(bytes: &[u8], limits: &Limits, smaller: Option<&Preprocess>) -> Result<Decoded> {
    if bytes.len() as u64 > limits.max_bytes {
        return Err(Error::new(Kind::LimitExceeded, "image file is too large")
            .detail(format!("It has {} bytes; the limit is {}.", bytes.len(), limits.max_bytes))
            .hint(format!("Raise {}, or store a smaller copy.", limits.names.1)));
    }
    let format = recognise(bytes)?;
    without_panic(
        || {
            Error::new(Kind::InvalidInput, format!("{} image is broken", name(format)))
                .detail("The decoder gave up on it.")
        },
        || decode_as(format, bytes, limits, smaller),
    )
}

/// The format of a file, by its content.
pub(crate) fn recognise(bytes: &[u8]) -> Result<ImageFormat> {
    if bytes.is_empty() {
        return Err(Error::new(Kind::InvalidInput, "image is empty").detail("It has 0 bytes."));
    }
    sniff(bytes)
}

/// The decoders' own limits are for what they need beside the result. Reading the header may inflate a colour profile,
/// of which real ones have at most 2 MB; later come rows, palettes and text chunks.
fn header_limits() -> image::Limits {
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(32 << 20);
    limits
}

/// A decoder that has read the header of a file of this format, which is not JPEG.
pub(crate) fn open(format: ImageFormat, bytes: &[u8]) -> Result<impl ImageDecoder + '_> {
    if format == ImageFormat::Bmp && bmp::is_empty(bytes) {
        return Err(no_pixels(0, 0));
    }
    let mut reader = image::ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(header_limits());
    let decoder = reader.into_decoder().map_err(|error| decoder_failed(format, bytes, &error))?;
    match decoder.dimensions() {
        (width, height) if width == 0 || height == 0 => Err(no_pixels(width, height)),
        _ => Ok(decoder),
    }
}

fn decode_as(format: ImageFormat, bytes: &[u8], limits: &Limits, smaller: Option<&Preprocess>) -> Result<Decoded> {
    let too_short = || truncated(format, bytes.len());
    let (size, shrink);
    let (image, orientation, complete) = if format == ImageFormat::Jpeg {
        let jpeg = Jpeg::open(bytes)?;
        check_pixels(jpeg.width, jpeg.height, limits)?;
        let orientation = jpeg.exif().and_then(Orientation::from_exif_chunk);
        size = (jpeg.width, jpeg.height);
        shrink = smaller.map_or(1, |p| jpeg.shrink(reduction(turned(size, orientation), p), SPARE));
        let pixels = jpeg.decode(shrink)?;
        (DynamicImage::ImageRgb8(pixels.rgb), orientation, !pixels.truncated)
    } else {
        if let (ImageFormat::Ico, Some(png)) = (format, bmp::ico_png(bytes)) {
            return decode_as(ImageFormat::Png, png, limits, smaller);
        }
        let cut = format == ImageFormat::WebP && webp::is_cut(bytes);
        let mut decoder = open(format, bytes)?;
        let (width, height) = decoder.dimensions();
        check_pixels(width, height, limits)?;
        (size, shrink) = ((width, height), 1);
        let orientation = orientation::of_file(format, bytes, &mut decoder);
        let (color, size) = (decoder.color_type(), decoder.total_bytes());
        let failed = |error| decoder_failed(format, bytes, &error);
        let mut decoder_limits = header_limits();
        decoder_limits.max_alloc = Some(size + (64 << 20));
        decoder.set_limits(decoder_limits).map_err(failed)?;
        let mut buffer = vec![0; size as usize];
        let complete = match decoder.read_image(&mut buffer) {
            Ok(()) => !cut,
            // What was decoded before the end is in the buffer.
            Err(error) if limits.allow_truncated && ends_too_soon(&error) => false,
            Err(error) => return Err(failed(error)),
        };
        (from_buffer(color, width, height, buffer)?, orientation, complete)
    };
    if !complete && !limits.allow_truncated {
        return Err(too_short());
    }
    // What the last column and row, where rounded up, are of beyond the picture.
    let beyond = |side: u32| f64::from(side.div_ceil(shrink)) - f64::from(side) / f64::from(shrink);
    let (left, top) = mirrored(orientation);
    let upright_size = turned(size, orientation);
    let origin = (if left { beyond(upright_size.0) } else { 0.0 }, if top { beyond(upright_size.1) } else { 0.0 });
    let rgb = upright(image, orientation.unwrap_or(Orientation::NoTransforms));
    Ok(Decoded { rgb, shrink, size: upright_size, origin, truncated: (!complete).then(too_short) })
}

/// An image from a decoder's bytes, which are in native order for 16-bit and float samples.
fn from_buffer(color: ColorType, width: u32, height: u32, buffer: Vec<u8>) -> Result<DynamicImage> {
    let wide = |buffer: &[u8]| buffer.as_chunks::<2>().0.iter().map(|b| u16::from_ne_bytes(*b)).collect::<Vec<u16>>();
    let float = |buffer: &[u8]| buffer.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)).collect::<Vec<f32>>();
    let image = match color {
        ColorType::L8 => ImageBuffer::from_raw(width, height, buffer).map(DynamicImage::ImageLuma8),
        ColorType::La8 => ImageBuffer::from_raw(width, height, buffer).map(DynamicImage::ImageLumaA8),
        ColorType::Rgb8 => ImageBuffer::from_raw(width, height, buffer).map(DynamicImage::ImageRgb8),
        ColorType::Rgba8 => ImageBuffer::from_raw(width, height, buffer).map(DynamicImage::ImageRgba8),
        ColorType::L16 => ImageBuffer::from_raw(width, height, wide(&buffer)).map(DynamicImage::ImageLuma16),
        ColorType::La16 => ImageBuffer::from_raw(width, height, wide(&buffer)).map(DynamicImage::ImageLumaA16),
        ColorType::Rgb16 => ImageBuffer::from_raw(width, height, wide(&buffer)).map(DynamicImage::ImageRgb16),
        ColorType::Rgba16 => ImageBuffer::from_raw(width, height, wide(&buffer)).map(DynamicImage::ImageRgba16),
        ColorType::Rgb32F => ImageBuffer::from_raw(width, height, float(&buffer)).map(DynamicImage::ImageRgb32F),
        ColorType::Rgba32F => ImageBuffer::from_raw(width, height, float(&buffer)).map(DynamicImage::ImageRgba32F),
        other => {
            return Err(Error::new(Kind::Unsupported, format!("images with {other:?} pixels are not supported"))
                .hint("Convert it to an ordinary JPEG or PNG."));
        }
    };
    image.ok_or_else(|| Error::new(Kind::Internal, "the decoder returned too few pixels"))
}

fn check_pixels(width: u32, height: u32, limits: &Limits) -> Result<()> {
    let count = u64::from(width) * u64::from(height);
    if count == 0 {
        return Err(no_pixels(width, height));
    }
    if count > limits.max_pixels {
        return Err(Error::new(Kind::LimitExceeded, "image has too many pixels")
            .detail(format!("It is {width}×{height}, {count} pixels; the limit is {}.", limits.max_pixels))
            .hint(format!("Raise {}, or store a smaller copy.", limits.names.0)));
    }
    Ok(())
}

fn no_pixels(width: u32, height: u32) -> Error {
    Error::new(Kind::InvalidInput, "image has no pixels").detail(format!("It is {width}×{height}."))
}

/// What a decoder failed with on these bytes. A WebP that is shorter than it says fails in many ways.
fn decoder_failed(format: ImageFormat, bytes: &[u8], error: &image::ImageError) -> Error {
    if format == ImageFormat::WebP && webp::is_cut(bytes) {
        truncated(format, bytes.len())
    } else {
        decoder_error(format, bytes.len(), error)
    }
}

pub(crate) fn truncated(format: ImageFormat, length: usize) -> Error {
    Error::new(Kind::InvalidInput, format!("{} image is truncated", name(format)))
        .detail(format!("Its {length} bytes end before the picture does."))
        .hint("Upload the file again; part of it is missing.")
}

fn decoder_error(format: ImageFormat, length: usize, error: &image::ImageError) -> Error {
    use image::ImageError as E;
    match error {
        E::Unsupported(e) => {
            Error::new(Kind::Unsupported, format!("this sort of {} image is not supported", name(format)))
                .detail(format!("The decoder says: {e}."))
                .hint("Convert it to an ordinary JPEG or PNG.")
        }
        E::Limits(e) => Error::new(Kind::LimitExceeded, format!("{} image needs too much memory", name(format)))
            .detail(format!("The decoder says: {e}.")),
        error if ends_too_soon(error) => truncated(format, length),
        other => Error::new(Kind::InvalidInput, format!("{} image is broken", name(format)))
            .detail(format!("The decoder says: {}.", other.to_string().trim_end_matches('.'))),
    }
}

/// Whether a decoder ran out of bytes.
fn ends_too_soon(error: &image::ImageError) -> bool {
    matches!(error, image::ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof)
        || error.to_string().to_ascii_lowercase().contains("unexpected end")
}

#[cfg(test)]
mod tests {
    use image::RgbaImage;

    use super::*;

    fn png(image: &DynamicImage) -> Vec<u8> {
        let mut bytes = Vec::new();
        image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        bytes
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
    }

    /// The PNG checksum, so that the forged header is otherwise valid (ISO 3309, reflected).
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { 0xEDB8_8320 ^ (c >> 1) } else { c >> 1 })
        })
    }

    #[test]
    fn a_png_cut_short_is_truncated() {
        let noise =
            RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * 7 + y * 13) as u8, (x * y) as u8, (x ^ y) as u8]));
        let bytes = png(&DynamicImage::ImageRgb8(noise));
        let error = decode(&bytes[..bytes.len() / 2], &Limits::default()).unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (Kind::InvalidInput, "PNG image is truncated"));

        // Where that is allowed, the part that is there is right and the rest is black.
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
        // By Pillow 12.3: Image.alpha_composite(white, image).
        assert_eq!(rgb.as_raw(), &[255, 255, 255, 10, 20, 30, 127, 255, 177, 254, 254, 254]);
    }
}
