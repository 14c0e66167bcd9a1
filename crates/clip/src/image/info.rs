//! Describes an image file by its header, without decoding pixels.

use crate::error::{Result, without_panic};
use crate::image::format::recognise;
use crate::image::jpeg::Jpeg;
use crate::image::limits::Limits;
use crate::image::picture::Taken;
use crate::image::picture::{Format, Header};
use crate::image::{bmp, gif, png, raw, tiff, webp};

/// The header of an image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// JPEG, PNG, GIF, WebP, BMP, TIFF, ICO, HEIC, AVIF or JPEG XL. For camera RAW it is the RAW format, DNG, CR2, CR3,
    /// NEF, ARW, PEF, ORF, RW2 or RAF, and the other fields describe the preview.
    pub format: &'static str,
    /// The size in pixels as stored, before the orientation is applied.
    pub width: u32,
    pub height: u32,
    /// EXIF orientation, 1 to 8, which turns the stored picture upright; from 5 on the sides are swapped. 1 if the file
    /// states none, or an undefined value.
    pub orientation: u8,
    /// Samples per pixel: 1 grey or palette, 2 grey with alpha, 3 RGB, 4 RGB with alpha or CMYK.
    pub channels: u8,
    /// Bits per sample.
    pub bits: u8,
    /// The number of frames of an animation, or of pages; the first one is embedded. A PNG's separate picture for
    /// programs without animation support counts, too.
    pub frames: u32,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// The date in EXIF at which the picture was taken.
    pub taken: Option<Taken>,
}

/// Reads the header of an image file. It decodes no pixels and allocates no memory for them, so it also describes files
/// over the limits. Of the limits it uses only [`Limits::interrupted`].
///
/// # Errors
/// The errors of [`crate::image::decode`] that can be found in the header.
pub fn info(bytes: &[u8], limits: &Limits) -> Result<Info> {
    let format = recognise(bytes)?;
    let gave_up = || format.broken("The decoder gave up on it.");
    let Header { size, channels, bits, orientation, frames, taken } =
        without_panic(gave_up, || header(format, bytes, limits))?;
    Ok(Info {
        format: if format == Format::Raw { raw::name(bytes) } else { format.name() },
        width: size.0,
        height: size.1,
        orientation: orientation.to_exif(),
        channels,
        bits,
        frames,
        bytes: bytes.len() as u64,
        taken,
    })
}

fn header(format: Format, bytes: &[u8], limits: &Limits) -> Result<Header> {
    match format {
        Format::Jpeg => {
            let jpeg = Jpeg::open(bytes, limits)?;
            let size = (jpeg.width, jpeg.height);
            let (channels, orientation, taken) = (jpeg.channels(), jpeg.orientation(), jpeg.taken());
            Ok(Header { size, channels, bits: 8, orientation, frames: 1, taken })
        }
        Format::Raw => raw::header(bytes, limits),
        Format::Png => png::header(bytes, limits),
        Format::Gif => gif::header(bytes, limits),
        Format::WebP => webp::header(bytes, limits),
        Format::Tiff => tiff::header(bytes, limits),
        Format::Bmp | Format::Ico => bmp::header(format, bytes, limits),
        #[cfg(feature = "heic")]
        Format::Heic => crate::image::heif::header(format, bytes),
        #[cfg(feature = "avif")]
        Format::Avif => crate::image::heif::header(format, bytes),
        #[cfg(feature = "jxl")]
        Format::Jxl => crate::image::jxl::header(bytes, limits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_files_have_no_frames_to_trip_over() {
        for length in 0..40 {
            for filler in [0u8, 0x21, 0x2C, 0xFF] {
                let bytes = vec![filler; length];
                for format in [Format::Gif, Format::Png, Format::WebP, Format::Tiff, Format::Bmp, Format::Ico] {
                    let _ = header(format, &bytes, &Limits::default());
                }
            }
        }
    }
}
