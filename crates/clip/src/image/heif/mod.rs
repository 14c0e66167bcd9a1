//! HEIC and AVIF: still pictures in an ISO base media file, coded with HEVC or AV1. This module decodes the primary
//! image, which is a grid of tiles or one coded picture.
//!
//! Each codec is a build feature (`heic`, `avif`), because patents cover HEVC in some countries. heifer's parser reads
//! the container. Grids are assembled here, tile by tile, with a check for an interrupt before each tile.

#[cfg(feature = "avif")]
mod av1;
#[cfg(feature = "heic")]
mod hevc;
mod matrix;
mod sequence;
mod transform;
#[cfg(feature = "avif")]
mod yuv;

use std::borrow::Cow;

use heifer_isobmff::boxes::{ColorInfo, Property};
use heifer_isobmff::{HeifFile, ItemId};
use image::RgbImage;
use image::metadata::Orientation;

use crate::error::{Error, Kind, Result};
use crate::image::limits::{Limits, bytes_of, no_pixels};
use crate::image::orientation::swaps_sides;
use crate::image::picture::{Format, Header, Picture, Short, truncated};
use crate::image::pixels::{self, on_white};
use crate::image::profile::Profile;
use crate::image::{bmff, exif};
use crate::memory::Reserve;

#[cfg(feature = "heic")]
use transform::InterpolatedChroma;
use transform::{Part, VisibleArea};

/// A decoded picture.
trait Coded {
    fn size(&self) -> (u32, u32);

    /// Writes a row as RGB, from column `from` on, into `rgb`, which determines the number of pixels.
    fn row(&self, y: usize, from: usize, rgb: &mut [u8]);
}

/// The code points (H.273) that a container states.
#[derive(Clone, Copy)]
struct CodePoints {
    matrix: u16,
    primaries: u16,
    full_range: bool,
}

/// The image that a coded picture is a part of: itself, or a grid.
struct Whole {
    id: ItemId,
    /// Whether the image has transparency.
    #[cfg(feature = "avif")]
    is_clear: bool,
    #[cfg(feature = "heic")]
    smooth: InterpolatedChroma,
    /// Bytes that the decoder may take.
    beside: u64,
}

/// How an item's pixels are coded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Codec {
    #[cfg(feature = "heic")]
    Hevc,
    #[cfg(feature = "avif")]
    Av1,
}

impl Codec {
    fn of(item_type: [u8; 4]) -> Option<Self> {
        match &item_type {
            #[cfg(feature = "heic")]
            b"hvc1" => Some(Self::Hevc),
            #[cfg(feature = "avif")]
            b"av01" => Some(Self::Av1),
            _ => None,
        }
    }

    /// Bytes that the decoder takes for each pixel of a coded picture.
    fn pixel_bytes(self) -> u64 {
        match self {
            #[cfg(feature = "heic")]
            Self::Hevc => hevc::CODED,
            #[cfg(feature = "avif")]
            Self::Av1 => av1::CODED,
        }
    }

    fn decode(self, container: &Container, id: ItemId, whole: &Whole, limits: &Limits) -> Result<Box<dyn Coded>> {
        match self {
            #[cfg(feature = "heic")]
            Self::Hevc => hevc::decode(container, id, whole, limits),
            #[cfg(feature = "avif")]
            Self::Av1 => av1::decode(container, id, whole, limits),
        }
    }
}

pub(crate) fn decode(format: Format, bytes: &[u8], limits: &Limits) -> Result<Picture> {
    let reserve = Reserve::new(container_bytes(bytes))?;
    let still = sequence::first_still(bytes, format)?;
    let bytes = still.as_deref().unwrap_or(bytes);
    let container = Container::parse(bytes, format)?;
    let primary = container.describe()?;
    let size = primary.part.size;
    limits.check_pixels(primary.coded)?;
    let alpha = container.opacity(primary.id)?;
    let mut taken = 0;
    for id in [Some(primary.id), alpha].into_iter().flatten() {
        let (pixels, bytes) = container.largest_coded(id, limits)?;
        limits.check_pixels((u32::try_from(pixels).unwrap_or(u32::MAX), 1))?;
        taken = taken.max(bytes);
    }
    // The decoder's memory for the largest coded picture, two copies of the file's data, and 4 MB. The opacity is
    // decoded as a second picture.
    let beside = taken + 2 * bytes.len() as u64 + (4 << 20);
    let pictures = bytes_of(size, 3) * if alpha.is_some() || swaps_sides(primary.orientation) { 2 } else { 1 };
    limits.check_memory(&format!("{} image", format.name()), size, pictures.saturating_add(beside))?;
    reserve.finish()?;

    let whole = Whole {
        id: primary.id,
        #[cfg(feature = "avif")]
        is_clear: alpha.is_some(),
        #[cfg(feature = "heic")]
        smooth: primary.smooth,
        beside,
    };
    let mut rgb = container.paint(&whole, primary.part, limits)?;
    if let Some(alpha) = alpha {
        if container.stored_size(alpha)? != primary.coded {
            return Err(format.unsupported("Its transparency has another size than its colours."));
        }
        let opacity = container.paint(&Whole { id: alpha, ..whole }, primary.part, limits)?;
        let is_associated = container.file.referenced_items(primary.id, b"prem").contains(&alpha);
        for (value, alpha) in rgb.iter_mut().zip(opacity.iter().step_by(3).flat_map(|alpha| [alpha; 3])) {
            *value = on_white(if is_associated { straight(format, *value, *alpha) } else { *value }, *alpha);
        }
    }
    Ok(Picture { rgb, size, shrink: 1, orientation: primary.orientation, short: Short::Nothing, profile: None })
}

/// Divides a sample by its opacity, for colours that were multiplied by it: for AVIF as libyuv does, with reciprocals
/// in 65536ths; for HEIC as Pillow does.
fn straight(format: Format, value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let straight = match (alpha, format) {
        (0 | 255, _) => value,
        #[cfg(feature = "avif")]
        (_, Format::Avif) => (value * 257 * (65536 / alpha).min(65535)) >> 16,
        _ => 255 * value / alpha,
    };
    straight.min(255) as u8
}

/// The header's values.
pub(crate) fn header(format: Format, bytes: &[u8]) -> Result<Header> {
    let reserve = Reserve::new(container_bytes(bytes))?;
    let still = sequence::first_still(bytes, format)?;
    let container = Container::parse(still.as_deref().unwrap_or(bytes), format)?;
    let primary = container.describe()?;
    let taken = container.exif(primary.id)?.and_then(|block| exif::taken(&block));
    reserve.finish()?;
    Ok(Header {
        size: primary.part.size,
        channels: primary.channels,
        bits: primary.bits,
        orientation: primary.orientation,
        frames: bmff::sequence_frames(bytes).unwrap_or(1).max(1),
        taken,
    })
}

/// The colour profile of the primary image: an embedded profile takes precedence over code points.
pub(crate) fn profile(format: Format, bytes: &[u8]) -> Result<Option<Profile<'static>>> {
    let reserve = Reserve::new(container_bytes(bytes))?;
    let still = sequence::first_still(bytes, format)?;
    let container = Container::parse(still.as_deref().unwrap_or(bytes), format)?;
    let id = container.file.primary_id;
    let profile = match container.icc_profile(id)? {
        Some(icc) => Some(Profile::Icc(Cow::Owned(icc.to_vec()))),
        None => container.properties(id)?.find_map(|property| match property {
            Property::Color(ColorInfo::Nclx { primaries, transfer, .. }) => {
                Some(Profile::Codes { primaries: *primaries, transfer: *transfer })
            }
            _ => None,
        }),
    };
    reserve.finish()?;
    Ok(profile)
}

/// Bytes of memory for the container's tables of items, estimated from the length of the file.
fn container_bytes(bytes: &[u8]) -> usize {
    bytes.len() * 4 + (1 << 20)
}

/// Maximum bytes of the tables of items. A photo of 200 megapixels in tiles of 512 pixels has 40 kB; photos of 30
/// cameras and phones had at most 4 kB. The library looks up each item by a search that can't be interrupted: 950 kB
/// took 4 s, and a grid of 65,280 tiles 13 s.
const LARGEST_TABLES: usize = 128 << 10;
/// Maximum bytes of a sequence's tables, which have at least four bytes per picture. The library reads them in one
/// pass.
const LARGEST_MOVIE: usize = 1 << 20;
/// Maximum number of EXIF blocks of one picture, which usually has one. 15,000 blocks of 40 MB each took 22 s.
const MOST_EXIF: usize = 4;

/// Refuses a file whose tables of items are too large.
///
/// # Errors
/// [`Kind::LimitExceeded`].
fn check_tables(bytes: &[u8], format: Format) -> Result<()> {
    for (name, content) in bmff::boxes(bytes) {
        // Coded data may be stored among the tables, in `idat`.
        let data = |meta: &[u8]| meta.get(4..).and_then(|boxes| bmff::find(boxes, *b"idat")).map_or(0, <[u8]>::len);
        let (tables, most) = match &name {
            b"meta" => (content.len() - data(content), LARGEST_TABLES),
            b"moov" => (content.len(), LARGEST_MOVIE),
            _ => continue,
        };
        if tables > most {
            return Err(Error::new(Kind::LimitExceeded, format!("{} image has too many items", format.name()))
                .detail(format!("Its tables of items have {tables} bytes; {most} are read."))
                .hint("Store it in another format, or with fewer pictures in it."));
        }
    }
    Ok(())
}

fn failed(bytes: &[u8], format: Format, error: heifer_isobmff::Error) -> Error {
    use heifer_isobmff::Error as E;
    match error {
        E::UnexpectedEof => truncated(format, bytes.len()),
        E::Unimplemented(what) => format.unsupported(format!("The decoder says: {what}.")),
        other => format.broken(format!("The decoder says: {other}.")),
    }
}

/// A file and its parsed items.
struct Container<'a> {
    bytes: &'a [u8],
    file: HeifFile<'a>,
    format: Format,
}

/// The primary image.
struct Primary {
    id: ItemId,
    /// The size as stored.
    coded: (u32, u32),
    /// The visible part.
    part: Part,
    #[cfg(feature = "heic")]
    smooth: InterpolatedChroma,
    orientation: Orientation,
    channels: u8,
    bits: u8,
}

impl<'a> Container<'a> {
    fn parse(bytes: &'a [u8], format: Format) -> Result<Self> {
        check_tables(bytes, format)?;
        let file = HeifFile::parse(bytes).map_err(|error| failed(bytes, format, error))?;
        Ok(Self { bytes, file, format })
    }

    fn fail(&self, error: heifer_isobmff::Error) -> Error {
        failed(self.bytes, self.format, error)
    }

    fn item_type(&self, id: ItemId) -> Result<[u8; 4]> {
        Ok(self.file.item(id).map_err(|e| self.fail(e))?.item_type.0)
    }

    fn properties(&self, id: ItemId) -> Result<impl Iterator<Item = &Property>> {
        self.file.item_properties(id).map_err(|e| self.fail(e))
    }

    /// The colour code points in an item's properties.
    fn stated(&self, id: ItemId) -> Result<Option<CodePoints>> {
        Ok(self.properties(id)?.find_map(|property| match property {
            Property::Color(ColorInfo::Nclx { matrix, primaries, full_range, .. }) => {
                Some(CodePoints { matrix: *matrix, primaries: *primaries, full_range: *full_range })
            }
            _ => None,
        }))
    }

    /// The size that an item's properties state, or (0, 0).
    fn size(&self, id: ItemId) -> Result<(u32, u32)> {
        Ok(self.file.image_size(id).map_err(|e| self.fail(e))?.unwrap_or((0, 0)))
    }

    /// The size of an item's picture before cropping and rotation.
    fn stored_size(&self, id: ItemId) -> Result<(u32, u32)> {
        if self.item_type(id)? != *b"grid" {
            return self.size(id);
        }
        let grid = self.file.grid(id).map_err(|e| self.fail(e))?;
        Ok((grid.output_width, grid.output_height))
    }

    /// The primary image's size, orientation and kind.
    fn describe(&self) -> Result<Primary> {
        let id = self.file.primary_id;
        let is_grid = match self.item_type(id)? {
            kind if Codec::of(kind).is_some() => false,
            kind if kind == *b"grid" => true,
            kind if kind == *b"av01" => return Err(self.format.unsupported("It is coded as AVIF.")),
            kind if kind == *b"hvc1" => return Err(self.format.unsupported("It is coded as HEIC.")),
            kind => {
                return Err(self.format.unsupported(format!("Its picture is of type \"{}\".", kind.escape_ascii())));
            }
        };
        let coded = self.stored_size(id)?;
        if coded.0 == 0 || coded.1 == 0 {
            return Err(no_pixels(coded.0, coded.1));
        }
        let visible_area = transform::visible_area(coded, self.properties(id)?);
        let VisibleArea { part, orientation, .. } =
            visible_area.ok_or_else(|| self.format.broken("It shows no part of its coded picture."))?;
        let first = if is_grid { self.file.referenced_items(id, b"dimg").first().copied() } else { Some(id) };
        let (bits, colours) = match first {
            Some(first) => self.depth(first)?,
            None => (8, 3),
        };
        let channels = colours + u8::from(self.opacity(id)?.is_some());
        #[cfg(feature = "heic")]
        let smooth = visible_area.map(|visible_area| visible_area.smooth).unwrap_or_default();
        Ok(Primary {
            id,
            coded,
            part,
            #[cfg(feature = "heic")]
            smooth,
            orientation,
            channels,
            bits,
        })
    }

    /// Bits per sample and colours per pixel, from the codec's own property.
    fn depth(&self, id: ItemId) -> Result<(u8, u8)> {
        let colours = |is_grey| if is_grey { 1 } else { 3 };
        Ok(self
            .properties(id)?
            .find_map(|property| match property {
                Property::HevcConfig(config) => Some((config.bit_depth_luma, colours(config.chroma_format == 0))),
                Property::Unknown(name, config) if name.0 == *b"av1C" => {
                    // High bit depth, twelve bits, monochrome (AV1 in ISOBMFF, 2.3.3).
                    let flags = *config.get(2)?;
                    let bits = if flags & 0x40 == 0 { 8 } else { 10 + (flags >> 4 & 2) };
                    Some((bits, colours(flags & 0x10 != 0)))
                }
                _ => None,
            })
            .unwrap_or((8, 3)))
    }

    /// The colour profile of an item, or of the first tile of a grid. The library's own function also searches tiles of
    /// tiles, which may refer to each other in a circle.
    fn icc_profile(&self, id: ItemId) -> Result<Option<&[u8]>> {
        let own = |id| -> Result<Option<&[u8]>> {
            Ok(self.properties(id)?.find_map(|property| match property {
                Property::Color(ColorInfo::Icc(icc)) if !icc.is_empty() => Some(icc.as_slice()),
                _ => None,
            }))
        };
        match (own(id)?, self.file.referenced_items(id, b"dimg").first()) {
            (None, Some(tile)) => own(*tile),
            (found, _) => Ok(found),
        }
    }

    /// The EXIF block of an item, or None if it has no readable one.
    fn exif(&self, id: ItemId) -> Result<Option<Vec<u8>>> {
        let mut blocks = 0;
        for item in self.file.referencing_items(id, b"cdsc") {
            blocks += usize::from(self.item_type(item)? == *b"Exif");
        }
        Ok(if blocks > MOST_EXIF { None } else { self.file.exif(id).ok().flatten() })
    }

    /// The item that contains the opacity of another item.
    fn opacity(&self, id: ItemId) -> Result<Option<ItemId>> {
        for item in self.file.referencing_items(id, b"auxl") {
            let is_alpha = |property: &Property| {
                matches!(property, Property::AuxiliaryType(name)
                    if name == "urn:mpeg:hevc:2015:auxid:1" || name == "urn:mpeg:mpegB:cicp:systems:auxiliary:alpha")
            };
            if self.properties(item)?.any(is_alpha) {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// The separately coded items of a picture, each with its position (left, top).
    fn tiles(&self, id: ItemId) -> Result<Vec<(ItemId, u32, u32)>> {
        if self.item_type(id)? != *b"grid" {
            return Ok(vec![(id, 0, 0)]);
        }
        let grid = self.file.grid(id).map_err(|e| self.fail(e))?;
        let items = self.file.referenced_items(id, b"dimg");
        let columns = usize::from(grid.columns).max(1);
        if items.is_empty() || items.len() != columns * usize::from(grid.rows) {
            return Err(self.format.broken(format!("It has {} tiles, and a grid for others.", items.len())));
        }
        let (width, height) = self.size(items[0])?;
        let covers = |tile: u32, count: usize, side: u32| u64::from(tile) * count as u64 >= u64::from(side) && tile > 0;
        if !covers(width, columns, grid.output_width) || !covers(height, usize::from(grid.rows), grid.output_height) {
            return Err(self.format.broken("Its tiles don't cover its grid."));
        }
        let place = |index: usize| {
            ((index % columns) as u32).checked_mul(width).zip(((index / columns) as u32).checked_mul(height))
        };
        let placed = items.iter().enumerate().map(|(index, item)| place(index).map(|(x, y)| (*item, x, y)));
        placed.collect::<Option<Vec<_>>>().ok_or_else(|| self.format.broken("Its tiles are too large."))
    }

    fn codec(&self, id: ItemId) -> Result<Codec> {
        Codec::of(self.item_type(id)?).ok_or_else(|| self.format.unsupported("Its tiles are made of others."))
    }

    /// The number of pixels of the largest picture that one call decodes, and the maximum bytes that the decoder takes.
    fn largest_coded(&self, id: ItemId, limits: &Limits) -> Result<(u64, u64)> {
        let mut most = (0, 0);
        for (number, (tile, ..)) in self.tiles(id)?.into_iter().enumerate() {
            if number % 256 == 0 {
                limits.check_interrupt()?;
            }
            let (codec, size) = (self.codec(tile)?, self.size(tile)?);
            let side = |side: u32| side.checked_next_multiple_of(64).unwrap_or(u32::MAX);
            let pixels = bytes_of((side(size.0), side(size.1)), 1);
            most = (pixels.max(most.0), pixels.saturating_mul(codec.pixel_bytes()).max(most.1));
        }
        Ok(most)
    }

    /// Decodes `part` of an item to RGB.
    fn paint(&self, whole: &Whole, part: Part, limits: &Limits) -> Result<RgbImage> {
        let mut rgb = pixels::canvas(part.size)?;
        let (right, bottom) = (part.left + part.size.0, part.top + part.size.1);
        for (tile, left, top) in self.tiles(whole.id)? {
            limits.check_interrupt()?;
            let (width, height) = self.size(tile)?;
            let is_outside = left >= right
                || top >= bottom
                || left.saturating_add(width) <= part.left
                || top.saturating_add(height) <= part.top;
            if is_outside {
                continue;
            }
            let coded = self.codec(tile)?.decode(self, tile, whole, limits)?;
            let (width, height) = coded.size();
            // The visible part of the tile, in coordinates of the stored picture.
            let columns = left.max(part.left)..left.saturating_add(width).min(right);
            let rows = top.max(part.top)..top.saturating_add(height).min(bottom);
            for y in rows {
                if y % 256 == 0 {
                    limits.check_interrupt()?;
                }
                let target = &mut pixels::row_mut(&mut rgb, (y - part.top) as usize)
                    [(columns.start - part.left) as usize * 3..][..columns.len() * 3];
                coded.row((y - top) as usize, (columns.start - left) as usize, target);
            }
        }
        Ok(rgb)
    }
}
