//! BMP and ICO: reads header fields that the decoder doesn't return, and states the decoder's memory.

use image::ImageDecoder;
use image::metadata::Orientation;

use crate::error::Result;
use crate::image::limits::{Limits, no_pixels};
use crate::image::picture::{Format, Header, Picture, Short};
use crate::image::{image_crate, png};
use crate::memory;

pub(crate) fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture> {
    if is_empty(bytes) {
        return Err(no_pixels(0, 0));
    }
    let mended = as_pillow_reads(bytes)?;
    let copied = mended.as_ref().map_or(0, Vec::len) as u64;
    let bytes = mended.as_deref().unwrap_or(bytes);
    // One row as stored and one as decoded.
    let beside = |size: (u32, u32)| u64::from(size.0) * 8 + copied;
    image_crate::decode(Format::Bmp, bytes, limits, Orientation::NoTransforms, beside, || missing(bytes))
}

/// A copy of the file in which the fields that Pillow ignores have their usual values: one plane, and no opacity mask
/// for 16-bit pixels. None if the file needs no change.
fn as_pillow_reads(bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    let planes = if is_core(bytes) { 22 } else { 26 };
    // In headers of 56 bytes and more, the opacity mask follows the colour masks.
    let has_mask = long(bytes, 14).is_some_and(|length| length >= 56) && long(bytes, 30) == Some(3);
    let is_clear =
        has_mask && short(bytes, bits_at(bytes)) == Some(16) && long(bytes, 66).is_some_and(|mask| mask != 0);
    if !is_clear && short(bytes, planes).is_none_or(|planes| planes == 1) {
        return Ok(None);
    }
    let mut mended = memory::with_capacity(bytes.len())?;
    mended.extend_from_slice(bytes);
    mended[planes..planes + 2].copy_from_slice(&1u16.to_le_bytes());
    if is_clear {
        mended[66..70].fill(0);
    }
    Ok(Some(mended))
}

/// Decodes the largest picture of an icon.
pub(crate) fn decode_icon(bytes: &[u8], limits: &Limits) -> Result<Picture> {
    let alone = alone(bytes)?;
    let bytes = alone.as_deref().unwrap_or(bytes);
    let with_mask = with_mask(bytes)?;
    let bytes = with_mask.as_deref().unwrap_or(bytes);
    match ico_png(bytes) {
        Some(picture) => png::decode(picture, limits),
        None => image_crate::decode(
            Format::Ico,
            bytes,
            limits,
            Orientation::NoTransforms,
            |size| u64::from(size.0) * 8,
            || None,
        ),
    }
}

/// The header's values.
pub(crate) fn header(format: Format, bytes: &[u8], limits: &Limits) -> Result<Header> {
    if let (Format::Ico, Some(picture)) = (format, ico_png(bytes)) {
        return Ok(Header { frames: 1, ..png::header(picture, limits)? });
    }
    if format == Format::Bmp && is_empty(bytes) {
        return Err(no_pixels(0, 0));
    }
    let mended = if format == Format::Bmp { as_pillow_reads(bytes)? } else { alone(bytes)? };
    let bytes = mended.as_deref().unwrap_or(bytes);
    let decoder = image_crate::open(format, bytes, limits)?;
    let palette = format == Format::Bmp && has_palette(bytes);
    let channels = if palette { 1 } else { decoder.original_color_type().channel_count() };
    let bits = if palette { short(bytes, bits_at(bytes)).unwrap_or(8) as u8 } else { 8 };
    let (size, orientation) = (decoder.dimensions(), Orientation::NoTransforms);
    Ok(Header { size, channels, bits, orientation, frames: 1, taken: None })
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|n| u16::from_le_bytes(*n))
}

fn long(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|n| i32::from_le_bytes(*n))
}

/// Whether the header is the one of OS/2: 12 bytes, 16-bit sides, and fields at other positions.
fn is_core(bytes: &[u8]) -> bool {
    long(bytes, 14) == Some(12)
}

fn bits_at(bytes: &[u8]) -> usize {
    if is_core(bytes) { 24 } else { 28 }
}

/// Whether a BMP's header states zero pixels. Its decoder would report too many pixels instead.
pub(crate) fn is_empty(bytes: &[u8]) -> bool {
    !is_core(bytes) && (long(bytes, 18) == Some(0) || long(bytes, 22) == Some(0))
}

/// Whether a BMP's pixels are indexes into a colour table: up to 8 bits each.
fn has_palette(bytes: &[u8]) -> bool {
    short(bytes, bits_at(bytes)).is_some_and(|bits| bits <= 8)
}

/// The number of rows that a truncated BMP lacks. None if the pixels are compressed, because the length of a row is
/// then unknown.
fn missing(bytes: &[u8]) -> Option<Short> {
    let (width, height) = if is_core(bytes) {
        (i32::from(short(bytes, 18)?), i32::from(short(bytes, 20)?))
    } else {
        (long(bytes, 18)?, long(bytes, 22)?)
    };
    // Run lengths (1, 2) and embedded files (4, 5) have no fixed length.
    if !is_core(bytes) && !matches!(long(bytes, 30)?, 0 | 3 | 6) {
        return None;
    }
    let bits = u64::from(short(bytes, bits_at(bytes))?);
    let row = (u64::from(width.unsigned_abs()) * bits).div_ceil(32) * 4;
    let data = (bytes.len() as u64).saturating_sub(long(bytes, 10)?.max(0) as u64);
    let rows = data.div_ceil(row.max(1));
    Some(Short::Rows(u64::from(height.unsigned_abs()).saturating_sub(rows) as u32))
}

/// The largest picture of an icon, if it is a PNG file: the icon decoder accepts only RGBA.
pub(crate) fn ico_png(bytes: &[u8]) -> Option<&[u8]> {
    let largest = largest(bytes)?;
    let picture = bytes.get(largest.from..largest.from.checked_add(largest.length)?)?;
    picture.starts_with(b"\x89PNG\r\n\x1a\n").then_some(picture)
}

/// An icon's entry for one of its pictures.
struct Entry {
    /// The entry's own position in the file.
    at: usize,
    from: usize,
    length: usize,
}

/// The largest picture of an icon.
fn largest(bytes: &[u8]) -> Option<Entry> {
    let count = usize::from(u16::from_le_bytes([*bytes.get(4)?, *bytes.get(5)?]));
    let entries = bytes.get(6..6 + count * 16)?.as_chunks::<16>().0;
    // A side of 256 is stored as 0. Among pictures of equal size, the one with more bits per pixel wins, then the
    // first.
    let side = |byte: u8| if byte == 0 { 256 } else { u32::from(byte) };
    let worth = |e: &[u8; 16]| (side(e[0]) * side(e[1]), u16::from_le_bytes([e[6], e[7]]));
    let (index, _) = entries.iter().enumerate().rev().max_by_key(|(_, entry)| worth(entry))?;
    let at = 6 + 16 * index;
    let number = |at: usize| long(bytes, at).map(|number| number as u32 as usize);
    Some(Entry { at, from: number(at + 12)?, length: number(at + 8)? })
}

/// A copy of an icon in which the largest picture is the only one, because the decoder chooses by another rule. None if
/// the icon has one picture.
fn alone(bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    let Some(largest) = largest(bytes).filter(|_| short(bytes, 4) != Some(1)) else { return Ok(None) };
    let mut alone = memory::with_capacity(bytes.len())?;
    alone.extend_from_slice(bytes);
    alone[4..6].copy_from_slice(&1u16.to_le_bytes());
    alone.copy_within(largest.at..largest.at + 16, 6);
    Ok(Some(alone))
}

/// A copy of an icon whose bitmap ends within its opacity mask; zeros, which hide nothing, complete the mask. The
/// pixels come before the mask, so they are complete, but the decoder reads a complete mask or none. For pixels of 32
/// bits the whole mask is zeroed: they have their own opacity, and Pillow then ignores the mask.
fn with_mask(bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    let Some((entry, mask, end)) = mask(bytes) else { return Ok(None) };
    let has = bytes.len().min(entry.from.saturating_add(entry.length));
    let has = if short(bytes, entry.from + 14) == Some(32) && has >= mask { mask } else { has };
    if !(mask..end).contains(&has) {
        return Ok(None);
    }
    let mut mended = memory::zeroed(bytes.len().max(end))?;
    mended[..bytes.len()].copy_from_slice(bytes);
    // The zeros may overwrite other pictures of the icon, which are not decoded.
    mended[has..end].fill(0);
    mended[entry.at + 8..entry.at + 12].copy_from_slice(&((end - entry.from) as u32).to_le_bytes());
    Ok(Some(mended))
}

/// The largest picture of an icon, and the beginning and end of its mask. The mask has one bit per pixel; its rows are
/// padded to multiples of four bytes.
fn mask(bytes: &[u8]) -> Option<(Entry, usize, usize)> {
    let entry = largest(bytes)?;
    let field = |at: usize| long(bytes, entry.from.checked_add(at)?).and_then(|value| usize::try_from(value).ok());
    let (header, width, height) = (field(0)?, field(4)?, field(8)? / 2);
    let bits = usize::from(short(bytes, entry.from + 14)?);
    if header < 40 || width > 1024 || height > 1024 || bits > 32 || field(16)? != 0 {
        return None;
    }
    let colours = if bits > 8 { 0 } else { Some(field(32)?).filter(|used| *used > 0).unwrap_or(1 << bits).min(256) };
    let mask = entry.from.checked_add(header + colours * 4)? + (width * bits).div_ceil(32) * 4 * height;
    Some((entry, mask, mask + width.div_ceil(32) * 4 * height))
}
