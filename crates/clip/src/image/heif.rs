//! HEIC by heifer, a decoder in Rust without unsafe code: the primary image, a grid of tiles or one coded picture.
//!
//! A build feature (`heic`), since HEVC is covered by patents in some countries. The decoder's own assembly of a grid uses
//! every core; here it is done tile by tile, with a look for an interrupt before each.

use heifer::heifer_hevc_dec::{self, decoder};
use heifer::heifer_isobmff::boxes::{ColorInfo, Property};
use heifer::heifer_isobmff::{self, HeifFile, ItemId};
use image::RgbImage;
use image::metadata::Orientation;

use crate::error::{Error, Kind, Result, without_panic};
use crate::image::aside::aside;
use crate::image::limits::{Limits, bytes_of, no_pixels};
use crate::image::orientation::swaps_sides;
use crate::image::picture::{Format, Header, Picture, Short, truncated};
use crate::image::pixels::{self, on_white};
use crate::memory::Reserve;

/// Bytes that the decoder takes for each pixel of a coded picture: planes of 16 bits before and after filtering, its notes
/// on blocks, and RGBA of 16 bits.
const CODED: u64 = 40;
/// A coded picture of more pixels takes longer than 0.1 s, and so a thread of its own.
const QUICK: u64 = 1 << 20;

pub(crate) fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture> {
    let reserve = Reserve::new(container_bytes(bytes))?;
    let file = parse(bytes)?;
    let Header { size, orientation, .. } = describe(&file, bytes)?;
    limits.check_pixels(size)?;
    let primary = source(&file, bytes)?;
    let alpha = opacity(&file, primary, bytes)?;
    let coded = [Some(primary), alpha].into_iter().flatten().map(|id| coded_pixels(&file, id, bytes));
    let largest = coded.collect::<Result<Vec<u64>>>()?.into_iter().max().unwrap_or(0);
    limits.check_pixels((u32::try_from(largest).unwrap_or(u32::MAX), 1))?;
    // The picture, the opacity as another, the largest coded picture, and its data.
    let beside = largest * CODED + 2 * bytes.len() as u64 + (4 << 20);
    let pictures = bytes_of(size, 3) * if alpha.is_some() || swaps_sides(orientation) { 2 } else { 1 };
    limits.check_memory("HEIC image", size, pictures.saturating_add(beside))?;
    reserve.finish()?;

    let mut rgb = paint(bytes, &file, primary, size, beside, limits)?;
    if let Some(alpha) = alpha {
        let opacity = paint(bytes, &file, alpha, size, beside, limits)?;
        for (value, alpha) in rgb.iter_mut().zip(opacity.iter().step_by(3).flat_map(|alpha| [alpha; 3])) {
            *value = on_white(*value, *alpha);
        }
    }
    Ok(Picture { rgb, size, shrink: 1, orientation, short: Short::Nothing })
}

/// What the header says.
pub(crate) fn header(bytes: &[u8]) -> Result<Header> {
    let reserve = Reserve::new(container_bytes(bytes))?;
    let header = describe(&parse(bytes)?, bytes)?;
    reserve.finish()?;
    Ok(header)
}

/// What reading the container takes: its tables of items, which are in the file.
fn container_bytes(bytes: &[u8]) -> usize {
    bytes.len() * 4 + (1 << 20)
}

/// Tables of items that are read at most. A photo of 200 megapixels in tiles has some 100 kB; the library looks items up one
/// by one, which nothing can stop, and takes 0.6 s for 25,000 of them (1 MB).
const LARGEST_TABLES: usize = 1 << 20;

fn parse(bytes: &[u8]) -> Result<HeifFile<'_>> {
    let tables = tables_bytes(bytes);
    if tables > LARGEST_TABLES {
        return Err(Error::new(Kind::LimitExceeded, "HEIC image has too many items")
            .detail(format!("Its tables of items have {tables} bytes; {LARGEST_TABLES} are read."))
            .hint("Store it in another format, or with fewer pictures in it."));
    }
    HeifFile::parse(bytes).map_err(|error| failed(bytes, error.into()))
}

/// The length of the longest `meta` box of a file.
fn tables_bytes(bytes: &[u8]) -> usize {
    let (mut at, mut longest) = (0, 0);
    while let Some((header, rest)) = bytes.get(at..).and_then(|rest| Some((rest.first_chunk::<8>()?, rest.len()))) {
        let size = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        let length = match size {
            0 => rest as u64,
            1 => match bytes.get(at + 8..).and_then(|rest| rest.first_chunk::<8>()) {
                Some(large) => u64::from_be_bytes(*large),
                None => break,
            },
            size => u64::from(size),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(rest);
        if header[4..] == *b"meta" || header[4..] == *b"moov" {
            longest = longest.max(length);
        }
        if length < 8 {
            break;
        }
        at += length;
    }
    longest
}

fn failed(bytes: &[u8], error: heifer::Error) -> Error {
    use heifer::Error as E;
    match error {
        E::Container(heifer_isobmff::Error::UnexpectedEof) | E::Hevc(heifer_hevc_dec::Error::UnexpectedEof) => {
            truncated(Format::Heic, bytes.len())
        }
        E::Unsupported(what) => Format::Heic.unsupported(format!("The decoder says: {what}.")),
        E::Container(heifer_isobmff::Error::Unimplemented(what))
        | E::Hevc(heifer_hevc_dec::Error::Unimplemented(what)) => {
            Format::Heic.unsupported(format!("The decoder says: {what}."))
        }
        other => Format::Heic.broken(format!("The decoder says: {other}.")),
    }
}

/// The item that the primary one shows: itself, or what it is identical to.
fn source(file: &HeifFile<'_>, bytes: &[u8]) -> Result<ItemId> {
    let id = file.primary_id;
    match &file.item(id).map_err(|e| failed(bytes, e.into()))?.item_type.0 {
        b"hvc1" | b"grid" => Ok(id),
        b"av01" => Err(Format::Heic.unsupported("It is coded as AVIF.")),
        other => Err(Format::Heic.unsupported(format!("Its picture is of type \"{}\".", other.escape_ascii()))),
    }
}

/// Size, orientation and sort of the primary item.
fn describe(file: &HeifFile<'_>, bytes: &[u8]) -> Result<Header> {
    let id = source(file, bytes)?;
    let fail = |e: heifer_isobmff::Error| failed(bytes, e.into());
    let is_grid = file.item(id).map_err(fail)?.item_type.0 == *b"grid";
    let size = if is_grid {
        let grid = file.grid(id).map_err(fail)?;
        (grid.output_width, grid.output_height)
    } else {
        file.image_size(id).map_err(fail)?.ok_or_else(|| Format::Heic.broken("It has no size."))?
    };
    if size.0 == 0 || size.1 == 0 {
        return Err(no_pixels(size.0, size.1));
    }
    let mut orientation = Orientation::NoTransforms;
    for property in file.item_properties(id).map_err(fail)? {
        orientation = match property {
            // Counted against the clock.
            Property::Rotation(1) => then(orientation, Orientation::Rotate270),
            Property::Rotation(2) => then(orientation, Orientation::Rotate180),
            Property::Rotation(3) => then(orientation, Orientation::Rotate90),
            Property::Mirror(true) => then(orientation, Orientation::FlipVertical),
            Property::Mirror(false) => then(orientation, Orientation::FlipHorizontal),
            Property::CleanAperture { width, height, .. } if !is_whole(size, *width, *height) => {
                return Err(Format::Heic.unsupported("It shows a part of the coded picture."));
            }
            _ => orientation,
        };
    }
    let coded = if is_grid { file.referenced_items(id, b"dimg").first().copied() } else { Some(id) };
    let config = coded.map(|id| file.hevc_config(id)).transpose().map_err(fail)?.flatten();
    let bits = config.map_or(8, |config| config.bit_depth_luma);
    let colours = if config.is_some_and(|config| config.chroma_format == 0) { 1 } else { 3 };
    let channels = colours + u8::from(opacity(file, id, bytes)?.is_some());
    Ok(Header { size, channels, bits, orientation, frames: 1 })
}

fn is_whole(size: (u32, u32), width: (u32, u32), height: (u32, u32)) -> bool {
    let is = |side: u32, ratio: (u32, u32)| u64::from(side) * u64::from(ratio.1) == u64::from(ratio.0);
    is(size.0, width) && is(size.1, height)
}

/// One orientation after another, as one.
fn then(first: Orientation, second: Orientation) -> Orientation {
    // Each maps a point (x, y) of a square around 0 to (±x, ±y) or (±y, ±x).
    let map = |orientation, (x, y): (i8, i8)| match orientation {
        Orientation::NoTransforms => (x, y),
        Orientation::FlipHorizontal => (-x, y),
        Orientation::Rotate180 => (-x, -y),
        Orientation::FlipVertical => (x, -y),
        Orientation::Rotate90FlipH => (y, x),
        Orientation::Rotate90 => (-y, x),
        Orientation::Rotate270FlipH => (-y, -x),
        Orientation::Rotate270 => (y, -x),
    };
    let both = |point| map(second, map(first, point));
    let all = (1..=8).filter_map(Orientation::from_exif);
    all.into_iter().find(|one| [(1, 2), (2, 1)].iter().all(|p| map(*one, *p) == both(*p))).unwrap_or(first)
}

/// The item that says how opaque another is.
fn opacity(file: &HeifFile<'_>, id: ItemId, bytes: &[u8]) -> Result<Option<ItemId>> {
    for item in file.referencing_items(id, b"auxl") {
        let mut properties = file.item_properties(item).map_err(|e| failed(bytes, e.into()))?;
        let is_alpha = |property: &Property| {
            matches!(property, Property::AuxiliaryType(name)
                if name == "urn:mpeg:hevc:2015:auxid:1" || name == "urn:mpeg:mpegB:cicp:systems:auxiliary:alpha")
        };
        if properties.any(is_alpha) {
            return Ok(Some(item));
        }
    }
    Ok(None)
}

/// Items that are coded each by itself, with the place of each in the picture.
fn tiles(file: &HeifFile<'_>, id: ItemId, bytes: &[u8]) -> Result<Vec<(ItemId, u32, u32)>> {
    let fail = |e: heifer_isobmff::Error| failed(bytes, e.into());
    if file.item(id).map_err(fail)?.item_type.0 != *b"grid" {
        return Ok(vec![(id, 0, 0)]);
    }
    let grid = file.grid(id).map_err(fail)?;
    let items = file.referenced_items(id, b"dimg");
    let columns = usize::from(grid.columns).max(1);
    if items.len() != columns * usize::from(grid.rows) {
        return Err(Format::Heic.broken(format!("It has {} tiles, and a grid for others.", items.len())));
    }
    let (width, height) = file.image_size(items[0]).map_err(fail)?.unwrap_or((0, 0));
    let covers = |tile: u32, count: usize, side: u32| u64::from(tile) * count as u64 >= u64::from(side) && tile > 0;
    if !covers(width, columns, grid.output_width) || !covers(height, usize::from(grid.rows), grid.output_height) {
        return Err(Format::Heic.broken("Its tiles don't cover its grid."));
    }
    let place = |index: usize| {
        ((index % columns) as u32).checked_mul(width).zip(((index / columns) as u32).checked_mul(height))
    };
    let placed = items.iter().enumerate().map(|(index, item)| place(index).map(|(x, y)| (*item, x, y)));
    placed.collect::<Option<Vec<_>>>().ok_or_else(|| Format::Heic.broken("Its tiles are too large."))
}

/// Pixels of the largest picture that is decoded by one call.
fn coded_pixels(file: &HeifFile<'_>, id: ItemId, bytes: &[u8]) -> Result<u64> {
    let mut most = 0;
    for (tile, ..) in tiles(file, id, bytes)? {
        let item = file.item(tile).map_err(|e| failed(bytes, e.into()))?;
        if item.item_type.0 != *b"hvc1" {
            return Err(Format::Heic.unsupported("Its tiles are made of others."));
        }
        let size = file.image_size(tile).map_err(|e| failed(bytes, e.into()))?.unwrap_or((0, 0));
        most = most.max(bytes_of((size.0.next_multiple_of(64), size.1.next_multiple_of(64)), 1));
    }
    Ok(most)
}

/// Decodes an item to a picture of this size.
fn paint(
    bytes: &[u8],
    file: &HeifFile<'_>,
    id: ItemId,
    size: (u32, u32),
    beside: u64,
    limits: &Limits,
) -> Result<RgbImage> {
    let mut rgb = pixels::canvas(size)?;
    for (tile, left, top) in tiles(file, id, bytes)? {
        limits.check_interrupt()?;
        if left >= size.0 || top >= size.1 {
            continue;
        }
        let pixels = bytes_of(file.image_size(tile).map_err(|e| failed(bytes, e.into()))?.unwrap_or((0, 0)), 1);
        let image = if pixels <= QUICK {
            coded(bytes, file, tile, beside)?
        } else {
            let gave_up = || Format::Heic.broken("The decoder gave up on it.");
            aside(bytes, limits, gave_up, move |bytes, _| {
                without_panic(gave_up, || coded(bytes, &parse(bytes)?, tile, beside))
            })?
        };
        let most = u32::from(image.max_value()).max(1);
        for (y, row) in image.data.chunks_exact(image.width as usize * 4).enumerate() {
            let y = top as usize + y;
            if y >= size.1 as usize {
                break;
            }
            let target = &mut pixels::row_mut(&mut rgb, y)[left as usize * 3..];
            for (to, from) in target.as_chunks_mut::<3>().0.iter_mut().zip(row.as_chunks::<4>().0) {
                *to = [0, 1, 2].map(|channel| ((u32::from(from[channel]) * 255 + most / 2) / most) as u8);
            }
        }
    }
    Ok(rgb)
}

/// Decodes one coded picture, as it is stored.
fn coded(bytes: &[u8], file: &HeifFile<'_>, id: ItemId, beside: u64) -> Result<heifer::Image> {
    let reserve = Reserve::new(usize::try_from(beside).map_err(|_| Error::out_of_memory(usize::MAX))?)?;
    let fail = |error| failed(bytes, error);
    let options = decoder::DecodeOptions { max_pixels: beside / CODED, ..Default::default() };
    let stream = file.hevc_bitstream(id).map_err(|e| fail(e.into()))?;
    let frame = decoder::decode_picture(&stream, options).map_err(|e| fail(e.into()))?;
    let (width, height) =
        file.image_size(id).map_err(|e| fail(e.into()))?.unwrap_or((frame.widths[0], frame.heights[0]));
    if width > frame.widths[0] || height > frame.heights[0] {
        return Err(Format::Heic.broken("Its coded picture is smaller than it says."));
    }
    let stated = file.item_properties(id).map_err(|e| fail(e.into()))?.find_map(|property| match property {
        Property::Color(ColorInfo::Nclx { matrix, full_range, .. }) => {
            Some(heifer::color::ColorParams { matrix: *matrix, full_range: *full_range })
        }
        _ => None,
    });
    let colors = stated.unwrap_or_else(|| heifer::color::ColorParams::from_frame(&frame));
    let image = heifer::color::frame_to_rgba_sized(&frame, colors, width, height);
    reserve.finish()?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_after_turns_are_turns() {
        use Orientation as O;
        for (first, second, both) in [
            (O::Rotate90, O::Rotate90, O::Rotate180),
            (O::Rotate90, O::FlipHorizontal, O::Rotate90FlipH),
            (O::Rotate270, O::FlipHorizontal, O::Rotate270FlipH),
            (O::Rotate180, O::FlipVertical, O::FlipHorizontal),
            (O::Rotate90FlipH, O::Rotate90FlipH, O::NoTransforms),
        ] {
            assert_eq!(then(first, second), both, "{first:?} {second:?}");
        }
    }
}
