//! What an image file says of itself, without its pixels.

use image::metadata::Orientation;
use image::{ImageDecoder, ImageFormat};

use crate::error::{Error, Kind, Result, without_panic};
use crate::image::decode as decoding;
use crate::image::format::name;
use crate::image::jpeg::Jpeg;
use crate::image::{bmp, gif, orientation, png, tiff, webp};

/// The header of an image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// JPEG, PNG, GIF, WebP, BMP, TIFF or ICO.
    pub format: &'static str,
    /// Pixels as stored, before EXIF orientation.
    pub width: u32,
    pub height: u32,
    /// EXIF's, 1 to 8: how the stored picture is turned to stand upright; from 5 on its sides are swapped. 1 where the
    /// file states none, or a value that there is not.
    pub orientation: u8,
    /// Samples a pixel: 1 grey or palette, 2 grey with alpha, 3 RGB, 4 RGB with alpha or CMYK.
    pub channels: u8,
    /// Pictures of an animation, or pages; the first is what is embedded. A PNG's picture for programs that don't know
    /// animations counts too.
    pub frames: u32,
    /// Length of the file.
    pub bytes: u64,
}

/// Reads the header of an image file. No pixel is decoded and nothing of the picture's size allocated, so files over the
/// limits of [`decoding::Limits`] are described as well.
///
/// # Errors
/// Those of [`decoding::decode`], as far as the header shows them.
pub fn info(bytes: &[u8]) -> Result<Info> {
    let format = decoding::recognise(bytes)?;
    let gave_up = || broken(format, "The decoder gave up on it.");
    without_panic(gave_up, || info_as(format, bytes))
}

fn info_as(format: ImageFormat, bytes: &[u8]) -> Result<Info> {
    if let (ImageFormat::Ico, Some(png)) = (format, bmp::ico_png(bytes)) {
        let picture = info_as(ImageFormat::Png, png)?;
        return Ok(Info { format: name(format), frames: 1, bytes: bytes.len() as u64, ..picture });
    }
    let (width, height, stated, channels);
    if format == ImageFormat::Jpeg {
        let jpeg = Jpeg::open(bytes)?;
        (width, height, channels) = (jpeg.width, jpeg.height, jpeg.channels());
        stated = jpeg.exif().and_then(Orientation::from_exif_chunk);
    } else {
        let mut decoder = decoding::open(format, bytes)?;
        (width, height) = decoder.dimensions();
        channels = match format {
            // Colour types of the specification: the decoder has expanded palettes already.
            ImageFormat::Png => match bytes.get(25) {
                Some(0 | 3) => 1,
                Some(4) => 2,
                Some(6) => 4,
                _ => 3,
            },
            ImageFormat::Gif => 1,
            ImageFormat::Bmp if bmp::has_palette(bytes) => 1,
            _ => decoder.original_color_type().channel_count(),
        };
        stated = orientation::of_file(format, bytes, &mut decoder);
    }
    let frames = match format {
        ImageFormat::Gif => gif::frames(bytes),
        ImageFormat::Png => png::frames(bytes),
        ImageFormat::WebP => webp::frames(bytes),
        ImageFormat::Tiff => tiff::pages(bytes).ok_or_else(|| broken(format, "Its pages go round in a circle."))?,
        _ => 1,
    };
    if frames == 0 {
        return Err(broken(format, "It has no frame."));
    }
    let orientation = stated.unwrap_or(Orientation::NoTransforms).to_exif();
    Ok(Info { format: name(format), width, height, orientation, channels, frames, bytes: bytes.len() as u64 })
}

fn broken(format: ImageFormat, detail: &str) -> Error {
    Error::new(Kind::InvalidInput, format!("{} image is broken", name(format))).detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_files_have_no_frames_to_trip_over() {
        for length in 0..40 {
            for filler in [0u8, 0x21, 0x2C, 0xFF] {
                let bytes = vec![filler; length];
                let _ = (gif::frames(&bytes), png::frames(&bytes), webp::frames(&bytes), tiff::pages(&bytes));
            }
        }
    }
}
