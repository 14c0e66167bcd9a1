//! GIF: decodes the first frame on the logical screen, row by row.

use gif::{ColorOutput, DecodeOptions, DecodingError};
use image::metadata::Orientation;

use crate::error::{Error, Kind, Result};
use crate::image::limits::{Limits, Watched};
use crate::image::picture::{Format, Header, Picture, Short, truncated};
use crate::image::pixels;
use crate::memory::{self, Reserve};

pub(crate) fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture> {
    let header = header(bytes, limits)?;
    limits.check_pixels(header.size)?;
    let failed = |error: DecodingError| failed(bytes, limits, error);
    // A palette, a dictionary, and the file's metadata.
    let beside = (64 << 10) + bytes.len() as u64;
    limits.check_memory("GIF image", header.size, Picture::peak(header.size, beside, Orientation::NoTransforms))?;
    let reserve = Reserve::new(beside as usize)?;

    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    let mut decoder = options.read_info(Watched::new(bytes, limits)).map_err(failed)?;
    let frame = decoder.next_frame_info().map_err(failed)?.ok_or_else(|| Format::Gif.broken("It has no frame."))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (width, height) = (usize::from(frame.width), usize::from(frame.height));
    let (interlaced, transparent) = (frame.interlaced, frame.transparent);
    let palette: Vec<[u8; 3]> = match decoder.palette() {
        Ok(palette) => palette.as_chunks::<3>().0.to_vec(),
        Err(error) => return Err(failed(error)),
    };
    let mut rgb = pixels::canvas(header.size)?;
    rgb.fill(255);
    let screen = (header.size.0 as usize, header.size.1 as usize);
    let mut row = memory::zeroed(width)?;
    let mut short = Short::Nothing;
    for (index, y) in rows(height, interlaced).enumerate() {
        match decoder.fill_buffer(&mut row) {
            Ok(true) => {}
            Ok(false) | Err(DecodingError::UnexpectedEof) => {
                // In an interlaced frame, the last part of the data contains every second row.
                let left = height - index;
                short = if !interlaced || left <= height / 2 { Short::Rows(left as u32) } else { Short::Everything };
                break;
            }
            Err(DecodingError::Io(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                short = Short::Rows((height - index) as u32);
                break;
            }
            Err(error) => return Err(failed(error)),
        }
        if top + y < screen.1 && left < screen.0 {
            let target = &mut pixels::row_mut(&mut rgb, top + y)[left * 3..];
            for (pixel, number) in target.as_chunks_mut::<3>().0.iter_mut().zip(&row) {
                if transparent != Some(*number) {
                    // As in the decoder, an index beyond the palette is transparent.
                    *pixel = palette.get(usize::from(*number)).copied().unwrap_or([255; 3]);
                }
            }
        }
    }
    drop(decoder);
    reserve.finish()?;
    Ok(Picture { rgb, size: header.size, shrink: 1, orientation: Orientation::NoTransforms, short, profile: None })
}

fn failed(bytes: &[u8], limits: &Limits, error: DecodingError) -> Error {
    if let Err(interrupted) = limits.check_interrupt() {
        return interrupted;
    }
    match error {
        DecodingError::UnexpectedEof => truncated(Format::Gif, bytes.len()),
        DecodingError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            truncated(Format::Gif, bytes.len())
        }
        DecodingError::OutOfMemory => Error::out_of_memory(bytes.len()),
        DecodingError::MemoryLimit => Error::new(Kind::LimitExceeded, "GIF image needs too much memory"),
        other => Format::Gif.broken(format!("The decoder says: {}.", other.to_string().trim_end_matches('.'))),
    }
}

/// The rows of a frame in the order in which they are stored (GIF89a, appendix E).
fn rows(height: usize, interlaced: bool) -> impl Iterator<Item = usize> {
    let passes: &[(usize, usize)] = if interlaced { &[(0, 8), (4, 8), (2, 4), (1, 2)] } else { &[(0, 1)] };
    passes.iter().flat_map(move |(first, step)| (*first..height).step_by(*step))
}

/// The header's values, from all blocks up to the end of the file.
pub(crate) fn header(bytes: &[u8], limits: &Limits) -> Result<Header> {
    let number =
        |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|n| u32::from(u16::from_le_bytes(*n)));
    let cut = || truncated(Format::Gif, bytes.len());
    let (Some(width), Some(height), Some(&flags)) = (number(6), number(8), bytes.get(10)) else { return Err(cut()) };
    let walk = walk(bytes, flags, limits)?;
    let Some(frame) = walk.first else {
        return Err(if walk.is_cut { cut() } else { Format::Gif.broken("It has no frame.") });
    };
    // A screen without a size gets the size of its first frame, as in browsers, and a screen that is too small for the
    // frame is enlarged, as in Pillow.
    let extent = |at: usize| Some(number(at)? + number(at + 4)?);
    let (Some(right), Some(bottom)) = (extent(frame), extent(frame + 2)) else { return Err(cut()) };
    let (width, height) =
        if width == 0 || height == 0 { (right, bottom) } else { (width.max(right), height.max(bottom)) };
    if width == 0 || height == 0 {
        return Err(crate::image::limits::no_pixels(width, height));
    }
    let bits = (flags & 7) + 1;
    let (size, orientation) = ((width, height), Orientation::NoTransforms);
    Ok(Header { size, channels: 1, bits, orientation, frames: walk.frames, taken: None })
}

struct Walk {
    /// The offset of the first frame's position and size.
    first: Option<usize>,
    frames: u32,
    /// The file ends before its trailer.
    is_cut: bool,
}

/// Walks the blocks (GIF89a, section 18 and following), up to the end of the file.
fn walk(bytes: &[u8], flags: u8, limits: &Limits) -> Result<Walk> {
    let palette = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut at = 13 + palette(flags);
    let (mut walk, mut steps) = (Walk { first: None, frames: 0, is_cut: false }, 0);
    loop {
        match bytes.get(at) {
            Some(0x2C) => {
                let Some(&flags) = bytes.get(at + 9) else {
                    walk.is_cut = true;
                    return Ok(walk);
                };
                walk.first.get_or_insert(at + 1);
                at += 10 + palette(flags) + 1;
                walk.frames += 1;
            }
            Some(0x21) => at += 2,
            other => {
                walk.is_cut = other.is_none();
                return Ok(walk);
            }
        }
        // Each data block is preceded by its length; an empty block ends the sequence.
        while let Some(&length) = bytes.get(at) {
            at += 1 + usize::from(length);
            steps += 1;
            limits.check_step(steps)?;
            if length == 0 {
                break;
            }
        }
    }
}
