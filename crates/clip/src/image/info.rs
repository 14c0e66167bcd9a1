//! What an image file says of itself, without its pixels.

use image::metadata::Orientation;
use image::{ImageDecoder, ImageFormat};

use crate::error::{Error, Kind, Result, without_panic};
use crate::image::decode as decoding;
use crate::image::format::{self, name};
use crate::image::jpeg::Jpeg;

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
    if let (ImageFormat::Ico, Some(png)) = (format, format::ico_png(bytes)) {
        let picture = info_as(ImageFormat::Png, png)?;
        return Ok(Info { format: name(format), frames: 1, bytes: bytes.len() as u64, ..picture });
    }
    let (width, height, orientation, channels);
    if format == ImageFormat::Jpeg {
        let jpeg = Jpeg::open(bytes)?;
        (width, height, channels) = (jpeg.width, jpeg.height, jpeg.channels());
        orientation = jpeg.exif().and_then(Orientation::from_exif_chunk);
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
            ImageFormat::Bmp if format::bmp_has_palette(bytes) => 1,
            _ => decoder.original_color_type().channel_count(),
        };
        orientation = decoding::orientation(format, bytes, &mut decoder);
    }
    let frames = match format {
        ImageFormat::Gif => gif_frames(bytes),
        ImageFormat::Png => png_frames(bytes),
        ImageFormat::WebP => webp_frames(bytes),
        ImageFormat::Tiff => tiff_pages(bytes).ok_or_else(|| broken(format, "Its pages go round in a circle."))?,
        _ => 1,
    };
    if frames == 0 {
        return Err(broken(format, "It has no frame."));
    }
    let orientation = orientation.unwrap_or(Orientation::NoTransforms).to_exif();
    Ok(Info { format: name(format), width, height, orientation, channels, frames, bytes: bytes.len() as u64 })
}

fn broken(format: ImageFormat, detail: &str) -> Error {
    Error::new(Kind::InvalidInput, format!("{} image is broken", name(format))).detail(detail)
}

/// Image descriptors, walking the blocks (GIF89a, section 18 and on), as far as the file goes.
fn gif_frames(bytes: &[u8]) -> u32 {
    let palette = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let Some(&flags) = bytes.get(10) else { return 0 };
    let (mut at, mut frames) = (13 + palette(flags), 0);
    loop {
        match bytes.get(at) {
            Some(0x2C) => {
                let Some(&flags) = bytes.get(at + 9) else { return frames };
                at += 10 + palette(flags) + 1;
                frames += 1;
            }
            Some(0x21) => at += 2,
            _ => return frames,
        }
        // Blocks of data, each with its length before it, until an empty one.
        while let Some(&length) = bytes.get(at) {
            at += 1 + usize::from(length);
            if length == 0 {
                break;
            }
        }
    }
}

/// Frames that an animated PNG announces before its picture data. The picture is a frame of its own, unless a frame's
/// header stands before it.
fn png_frames(bytes: &[u8]) -> u32 {
    let (mut at, mut announced, mut is_frame) = (8, None, false);
    while let Some(header) = bytes.get(at..at + 8) {
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        match &header[4..] {
            b"acTL" => {
                announced = bytes.get(at + 8..).and_then(|rest| rest.first_chunk()).map(|n| u32::from_be_bytes(*n))
            }
            b"fcTL" => is_frame = true,
            b"IDAT" => break,
            _ => {}
        }
        at = at.saturating_add(12).saturating_add(length);
    }
    match announced {
        Some(frames @ 1..=0x8000_0000) => frames + u32::from(!is_frame),
        _ => 1,
    }
}

/// The chunks of an animation's frames, as far as the file goes; a still picture has none.
fn webp_frames(bytes: &[u8]) -> u32 {
    let (mut at, mut frames) = (12, 0u32);
    while let Some(header) = bytes.get(at..at + 8) {
        frames += u32::from(header.starts_with(b"ANMF"));
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        // Chunks of odd length are filled up.
        at = at.saturating_add(8).saturating_add(length + length % 2);
    }
    frames.max(1)
}

/// Directories of a TIFF, each of which has the next one's place at its end, as far as the file goes. None where they
/// go round in a circle, which is found in constant memory (Brent's algorithm): 200 MB hold 30 million of them.
fn tiff_pages(bytes: &[u8]) -> Option<u32> {
    let big_endian = bytes.starts_with(b"MM");
    let number = |at: usize, width: usize| -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(width)?)?;
        let digit = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        Some(if big_endian { bytes.iter().fold(0, digit) } else { bytes.iter().rev().fold(0, digit) })
    };
    // Widths of a count, an entry and an offset.
    let large = number(2, 2) == Some(43);
    let (count_width, entry, offset) = if large { (8, 20, 8) } else { (2, 12, 4) };
    let next = |at: u64| {
        let at = usize::try_from(at).ok()?;
        let entries = usize::try_from(number(at, count_width)?).ok()?.checked_mul(entry)?;
        number(at.checked_add(count_width)?.checked_add(entries)?, offset)
    };
    let mut at = number(if large { 8 } else { 4 }, offset).unwrap_or(0);
    let (mut pages, mut mark, mut steps, mut limit) = (0u32, at, 0u32, 1u32);
    while at != 0 {
        let Some(following) = next(at) else { break };
        pages += 1;
        at = following;
        if at == mark {
            return None;
        }
        steps += 1;
        if steps == limit {
            (mark, steps, limit) = (at, 0, limit.saturating_mul(2));
        }
    }
    Some(pages.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_files_have_no_frames_to_trip_over() {
        for length in 0..40 {
            for filler in [0u8, 0x21, 0x2C, 0xFF] {
                let bytes = vec![filler; length];
                let _ = (gif_frames(&bytes), png_frames(&bytes), webp_frames(&bytes), tiff_pages(&bytes));
            }
        }
    }

    #[test]
    fn pages_in_a_circle_are_found() {
        // 100 empty directories of 6 bytes; the last leads to a page in their midst, or nowhere.
        let file = |end: u32| {
            let mut bytes = b"II*\0\x08\0\0\0".to_vec();
            for page in 0..100u32 {
                let next = if page == 99 { end } else { 8 + 6 * (page + 1) };
                bytes.extend([0, 0]);
                bytes.extend(next.to_le_bytes());
            }
            bytes
        };
        assert_eq!(tiff_pages(&file(0)), Some(100));
        assert_eq!(tiff_pages(&file(1 << 30)), Some(100));
        for page in [0, 1, 50, 99] {
            assert_eq!(tiff_pages(&file(8 + 6 * page)), None, "{page}");
        }
    }
}
