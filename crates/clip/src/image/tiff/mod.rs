//! TIFF: decodes the first page, row by row. It may have strips or tiles, chunky or planar samples, as written by
//! scanners, cameras and Photoshop.
//!
//! This decoder is implemented here on top of compression libraries. Existing TIFF decoders decode a whole strip at
//! once (possibly the whole image), can't be interrupted, and lack palettes, Lab and fax group 3.

mod compression;
pub(crate) mod directory;
mod samples;
pub(crate) mod tag;

use std::borrow::Cow;
use std::io;

use image::metadata::Orientation;

use crate::error::{Error, Kind, Result};
use crate::image::jpeg::{Colors, Jpeg};
use crate::image::limits::{Limits, no_pixels};
use crate::image::picture::{Format, Header, Picture, Short};
use crate::image::profile::Profile;
use crate::image::{exif, orientation, pixels};
use crate::memory::{self, Reserve};

use compression::{Sort, Source};
use directory::{Directory, File, Values};
use samples::{Alpha, Converter, Photometric};

/// Maximum number of samples per pixel. A file with more contains measurements, not a picture.
const MAX_SAMPLES: u64 = 32;

/// The layout of a page.
struct Layout<'a> {
    size: (u32, u32),
    photometric: Photometric,
    samples: usize,
    bits: u32,
    float: bool,
    alpha: Alpha,
    planar: bool,
    compression: u64,
    predictor: u64,
    /// The size of a strip or tile.
    part: (u32, u32),
    tiled: bool,
    offsets: Values<'a>,
    lengths: Option<Values<'a>>,
    /// The number of luma samples per chroma sample, horizontally and vertically.
    subsampling: (u32, u32),
}

impl<'a> Layout<'a> {
    fn new(page: &Directory<'a>) -> Result<Self> {
        let broken = |detail: &str| Format::Tiff.broken(detail);
        let side = |tag| page.get(tag).and_then(|side| u32::try_from(side).ok());
        let (Some(width), Some(height)) = (side(tag::WIDTH), side(tag::HEIGHT)) else {
            return Err(broken("It has no size."));
        };
        if width == 0 || height == 0 {
            return Err(no_pixels(width, height));
        }
        let samples = page.get(tag::SAMPLES).unwrap_or(1);
        if samples == 0 || samples > MAX_SAMPLES {
            return Err(Format::Tiff.unsupported(format!("It has {samples} samples a pixel.")));
        }
        let of_all = |tag, default: u64| -> Result<u64> {
            let Some(values) = page.find(tag) else { return Ok(default) };
            let first = values.get(0).unwrap_or(default);
            match (1..values.count.min(samples)).find(|index| values.get(*index) != Some(first)) {
                None => Ok(first),
                Some(_) => Err(Format::Tiff.unsupported("Its samples have different sizes or forms.")),
            }
        };
        let bits = of_all(tag::BITS, 1)?;
        let float = match of_all(tag::SAMPLE_FORMAT, 1)? {
            1 | 4 => false,
            3 => true,
            other => return Err(Format::Tiff.unsupported(format!("Its samples are of format {other}."))),
        };
        let compression = page.get(tag::COMPRESSION).unwrap_or(compression::NONE);
        let photometric = Photometric::of(page, bits)?;
        let color_samples = photometric.samples();
        if (samples as usize) < color_samples {
            return Err(broken("It has fewer samples a pixel than its colours need."));
        }
        let extra = page.find(tag::EXTRA_SAMPLES).and_then(|values| values.get(0));
        let alpha = match extra {
            _ if samples as usize == color_samples => Alpha::None,
            Some(1) => Alpha::Associated,
            Some(2) => Alpha::Straight,
            // Some writers omit the tag, and one uses a number of its own.
            None | Some(999) if matches!(photometric, Photometric::Rgb) && samples == 4 => Alpha::Straight,
            _ => Alpha::None,
        };
        // Older writers store the offsets of tiles in the tags for strips, because libtiff has one field for both.
        let tiled = page.find(tag::TILE_OFFSETS).is_some() || page.find(tag::TILE_WIDTH).is_some();
        let part = if tiled {
            (side(tag::TILE_WIDTH).unwrap_or(0), side(tag::TILE_HEIGHT).unwrap_or(0))
        } else {
            (width, side(tag::ROWS_PER_STRIP).unwrap_or(height).min(height))
        };
        if part.0 == 0 || part.1 == 0 {
            return Err(broken("Its strips or tiles have no size."));
        }
        let (offsets, lengths) = if tiled {
            (
                page.find(tag::TILE_OFFSETS).or(page.find(tag::STRIP_OFFSETS)),
                page.find(tag::TILE_LENGTHS).or(page.find(tag::STRIP_LENGTHS)),
            )
        } else {
            (page.find(tag::STRIP_OFFSETS), page.find(tag::STRIP_LENGTHS))
        };
        let subsampling = page.find(tag::SUBSAMPLING);
        let subsampled = |index| subsampling.and_then(|values| values.get(index)).unwrap_or(2) as u32;
        let layout = Self {
            size: (width, height),
            photometric,
            samples: samples as usize,
            bits: bits as u32,
            float,
            alpha,
            planar: page.get(tag::PLANAR) == Some(2) && samples > 1,
            compression,
            predictor: page.get(tag::PREDICTOR).unwrap_or(1),
            part,
            tiled,
            offsets: offsets.ok_or_else(|| broken("It has no strips or tiles."))?,
            lengths,
            subsampling: if matches!(photometric, Photometric::Ycbcr { .. })
                && !matches!(compression, compression::JPEG | compression::OLD_JPEG)
            {
                (subsampled(0), subsampled(1))
            } else {
                (1, 1)
            },
        };
        layout.check()?;
        Ok(layout)
    }

    /// Refuses unsupported layouts, with the reason in the error.
    fn check(&self) -> Result<()> {
        let unsupported = |detail: String| Err(Format::Tiff.unsupported(detail));
        let (bits, float) = (self.bits, self.float);
        match (bits, float) {
            (1..=16 | 24 | 32, false) | (16 | 32 | 64, true) => {}
            _ => return unsupported(format!("Its samples have {bits} bits.")),
        }
        if float && !matches!(self.photometric, Photometric::Rgb) {
            return unsupported("Its samples are floats of which nothing says what is white.".to_owned());
        }
        match self.photometric {
            Photometric::Palette(_) if bits > 16 => return unsupported("Its palette is too large.".to_owned()),
            Photometric::Lab { .. } | Photometric::Ycbcr { .. } if bits != 8 && bits != 16 => {
                return unsupported(format!("Its samples have {bits} bits."));
            }
            Photometric::Ycbcr { .. } if bits != 8 => return unsupported(format!("Its samples have {bits} bits.")),
            _ => {}
        }
        if !matches!(self.subsampling, (1 | 2 | 4, 1 | 2 | 4)) {
            return Err(
                Format::Tiff.broken(format!("Its chroma has 1/{} × 1/{}.", self.subsampling.0, self.subsampling.1))
            );
        }
        if self.subsampling != (1, 1) && (self.planar || self.samples != 3 || self.predictor != 1) {
            return unsupported("Its chroma is smaller than its luma, in separate planes.".to_owned());
        }
        match self.predictor {
            1 => {}
            2 if matches!(bits, 8 | 16 | 32) => {}
            3 if float => {}
            other => return unsupported(format!("Its predictor is {other} with {bits} bits.")),
        }
        if self.compression == compression::JPEG && bits != 8 {
            return unsupported(format!("Its JPEG data have {bits} bits."));
        }
        if matches!(self.compression, compression::FAX3 | compression::FAX4) && (bits, self.samples) != (1, 1) {
            return Err(Format::Tiff.broken("Its fax data have more than one bit a pixel."));
        }
        Ok(())
    }

    /// The number of adjacent samples per pixel in the stored data.
    fn interleaved(&self) -> usize {
        if self.planar { 1 } else { self.samples }
    }

    /// The number of rows of a strip or tile that are stored together, and their number of bytes.
    fn unit(&self) -> (u32, u64) {
        let (across, down) = self.subsampling;
        let width = u64::from(self.part.0);
        if self.subsampling == (1, 1) {
            return (1, (width * self.interleaved() as u64 * u64::from(self.bits)).div_ceil(8));
        }
        (down, width.div_ceil(u64::from(across)) * u64::from(across * down + 2))
    }

    /// Maximum window of Zstandard data, in bytes: the size of a strip or tile, but at least the 8 MB that every
    /// decoder must support for ordinary levels (RFC 8878, 3.1.1.1.2), and at most 128 MB, for a large strip or tile
    /// that was compressed in one piece.
    fn window(&self) -> u64 {
        let (rows, unit) = self.unit();
        u64::from(self.part.1.div_ceil(rows)).saturating_mul(unit).clamp(1 << 10, 128 << 20).max(8 << 20)
    }

    /// The number of planes to decode: one if the samples are interleaved; otherwise the colours, and the opacity after
    /// them.
    fn planes(&self) -> usize {
        let colors = self.photometric.samples() + usize::from(self.alpha != Alpha::None);
        if self.planar { colors } else { 1 }
    }

    /// Bytes that decoding takes in addition to the picture.
    fn decoder_bytes(&self) -> u64 {
        let (rows, unit) = self.unit();
        let planes = self.planes() as u64;
        // A stored unit (twice with the predictor for floats), and the unpacked unit of all planes.
        let copies = if self.predictor == 3 { 2 } else { 1 };
        let stream = match self.compression {
            // The last decoded bytes, in a buffer that is copied when it grows.
            compression::ZSTD => compression::STREAM_BYTES + 3 * self.window(),
            _ => compression::STREAM_BYTES,
        };
        let unpacked = if matches!(self.photometric, Photometric::Palette(_)) { 2 } else { 1 };
        let row = u64::from(self.part.0) * self.samples as u64 * unpacked * u64::from(rows);
        copies * unit + planes * stream + row + (1 << 20)
    }
}

pub(crate) fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture> {
    let file = File::new(bytes);
    let page = file.first()?;
    file.pages(limits)?;
    let layout = Layout::new(&page)?;
    limits.check_pixels(layout.size)?;
    let size = layout.size;
    let orientation = stated_orientation(&page);
    if let Some(jpeg) = old_jpeg(&page, &layout) {
        let jpeg = Jpeg::open(jpeg, limits)?;
        if (jpeg.width, jpeg.height) != size {
            return Err(Format::Tiff.broken("Its JPEG data have another size."));
        }
        return jpeg.decode(1, orientation);
    }
    // Tiles may be far larger than the picture, and are decoded at their full width.
    let columns = size.0.div_ceil(layout.part.0);
    let decoded = u64::from(columns) * u64::from(layout.part.0);
    if decoded.saturating_mul(u64::from(size.1)) > limits.max_pixels.saturating_mul(4) {
        return Err(Error::new(Kind::LimitExceeded, "image has too many pixels")
            .detail(format!("It is {}×{} in tiles of {}×{}.", size.0, size.1, layout.part.0, layout.part.1))
            .hint(format!("Raise {}, or store a smaller copy.", limits.names.0)));
    }
    let beside = layout.decoder_bytes().saturating_add(bytes.len() as u64 / 2);
    limits.check_memory("TIFF image", size, Picture::peak(size, layout.decoder_bytes(), orientation))?;
    let reserve = Reserve::new(usize::try_from(beside).map_err(|_| Error::out_of_memory(usize::MAX))?)?;

    let mut rgb = pixels::canvas(size)?;
    let mut parts = Parts::new(&layout, &page, bytes, limits)?;
    let mut missing = 0;
    for (index, top) in (0..size.1).step_by(layout.part.1 as usize).enumerate() {
        for column in 0..columns {
            let number = index as u64 * u64::from(columns) + u64::from(column);
            let rows = layout.part.1.min(size.1 - top);
            let left = column * layout.part.0;
            missing += parts.decode(number, (left, top), rows, &mut rgb)?;
        }
    }
    drop(parts);
    reserve.finish()?;
    let short = match missing {
        0 => Short::Nothing,
        _ if layout.tiled => Short::Everything,
        // Rows before the missing ones are complete.
        rows => Short::Rows(rows),
    };
    Ok(Picture { rgb, size, shrink: 1, orientation, short, profile: None })
}

/// Decodes strips and tiles.
struct Parts<'a> {
    layout: &'a Layout<'a>,
    bytes: &'a [u8],
    limits: &'a Limits,
    sort: Sort<'a>,
    converter: Converter,
    /// A stored unit of rows, of one plane or of interleaved samples.
    unit: Vec<u8>,
    /// Unpacked rows of all planes, 8 bits per sample, or 16 for palette indexes in native byte order.
    row: Vec<u8>,
    big_endian: bool,
    /// The number of strips or tiles in each plane.
    per_plane: u64,
}

impl<'a> Parts<'a> {
    fn new(layout: &'a Layout<'a>, page: &Directory<'a>, bytes: &'a [u8], limits: &'a Limits) -> Result<Self> {
        if layout.compression == compression::FAX3 && page.get(tag::FAX3_OPTIONS).unwrap_or(0) & 1 == 1 {
            return Err(Format::Tiff.unsupported("Its fax data are of group 3 in two dimensions."));
        }
        let is_jpeg = layout.compression == compression::JPEG;
        let colors = match (layout.interleaved(), layout.photometric) {
            (1, _) => Colors::Grey,
            (3, Photometric::Ycbcr { .. }) => Colors::YcbcrToRgb,
            (3, _) => Colors::Rgb,
            // This includes colours with opacity: four components are returned as stored.
            (4, _) => Colors::Cmyk,
            _ => Colors::Stored,
        };
        let tables = page.bytes(tag::JPEG_TABLES);
        let reversed = page.get(tag::FILL_ORDER) == Some(2) && !is_jpeg;
        let sort = Sort {
            compression: layout.compression,
            reversed,
            width: layout.part.0,
            height: layout.part.1,
            tables,
            colors,
            window: layout.window(),
        };
        let (rows, unit) = layout.unit();
        // The JPEG decoder converts these colours to RGB.
        let photometric = match layout.photometric {
            Photometric::Ycbcr { .. } if is_jpeg && layout.interleaved() == 3 => Photometric::Rgb,
            other => other,
        };
        let converter = Converter::new(photometric, layout.bits, layout.float, layout.alpha, layout.samples, page)?;
        let row = layout.part.0 as usize * layout.samples * converter.sample_bytes() * rows as usize;
        Ok(Self {
            layout,
            bytes,
            limits,
            sort,
            converter,
            unit: memory::zeroed(usize::try_from(unit).map_err(|_| Error::out_of_memory(usize::MAX))?)?,
            row: memory::zeroed(row)?,
            big_endian: page.file.big_endian,
            per_plane: u64::from(layout.size.0.div_ceil(layout.part.0))
                * u64::from(layout.size.1.div_ceil(layout.part.1)),
        })
    }

    /// The stored bytes of a strip or tile, cut at the end of the file.
    fn stored(&self, number: u64) -> Result<&'a [u8]> {
        let layout = self.layout;
        let missing =
            || Format::Tiff.broken(format!("It has {} strips or tiles too few.", number + 1 - layout.offsets.count));
        if number >= layout.offsets.count {
            return Err(missing());
        }
        let offset = layout.offsets.get(number).ok_or_else(missing)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let length = match layout.lengths {
            Some(lengths) => lengths.get(number).ok_or_else(missing)?,
            None => u64::MAX,
        };
        let end = from.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)).min(self.bytes.len());
        Ok(&self.bytes[from..end])
    }

    /// Decodes a strip or tile into the picture. Returns the number of its rows that the file lacks.
    fn decode(&mut self, number: u64, (left, top): (u32, u32), rows: u32, rgb: &mut image::RgbImage) -> Result<u32> {
        let layout = self.layout;
        let mut sources = Vec::with_capacity(layout.planes());
        for plane in 0..layout.planes() as u64 {
            let stored = self.stored(number + plane * self.per_plane)?;
            if stored.is_empty() {
                return Ok(rows);
            }
            self.sort.height = rows;
            sources.push(compression::open(&self.sort, stored, self.limits)?);
        }
        let (unit_rows, _) = layout.unit();
        let visible = layout.part.0.min(layout.size.0 - left) as usize;
        let mut y = 0;
        while y < rows {
            self.limits.check_interrupt()?;
            for (plane, source) in sources.iter_mut().enumerate() {
                if let Err(error) = self.read(source.as_mut(), plane) {
                    self.limits.check_interrupt()?;
                    return match error.kind() {
                        io::ErrorKind::UnexpectedEof => Ok(rows - y),
                        _ => Err(Format::Tiff
                            .broken(format!("The decoder says: {}.", error.to_string().trim_end_matches('.')))),
                    };
                }
            }
            let stride = self.row.len() / unit_rows as usize;
            for row in self.row.chunks_exact(stride).take((rows - y) as usize) {
                let target = &mut pixels::row_mut(rgb, (top + y) as usize)[left as usize * 3..][..visible * 3];
                self.converter.to_rgb(row, target);
                y += 1;
            }
        }
        Ok(0)
    }

    /// Reads a unit of rows of a plane, or of all planes if they are interleaved.
    fn read(&mut self, source: &mut dyn Source, plane: usize) -> io::Result<()> {
        let layout = self.layout;
        source.row(&mut self.unit)?;
        if layout.subsampling != (1, 1) {
            samples::spread_chroma(&self.unit, layout.part.0 as usize, layout.subsampling, &mut self.row);
            return Ok(());
        }
        let interleaved = layout.interleaved();
        let bytes = layout.bits as usize / 8;
        if layout.predictor == 3 {
            samples::undo_float_prediction(&mut self.unit, interleaved, bytes);
        } else if layout.bits > 8 && layout.bits.is_multiple_of(8) && self.big_endian != cfg!(target_endian = "big") {
            self.unit.chunks_exact_mut(bytes).for_each(<[u8]>::reverse);
        }
        if layout.predictor == 2 {
            samples::undo_prediction(&mut self.unit, interleaved, bytes);
        }
        let (step, offset) = if layout.planar { (layout.samples, plane) } else { (1, 0) };
        self.converter.unpack(&self.unit, &mut self.row, step, offset);
        Ok(())
    }
}

/// The JPEG file within a TIFF whose picture it is, in the form that precedes technical note 2 of TIFF 6 (section 22).
/// None if the strips are not within one JPEG file.
fn old_jpeg<'a>(page: &Directory<'a>, layout: &Layout) -> Option<&'a [u8]> {
    if layout.compression != compression::OLD_JPEG {
        return None;
    }
    let place = |tag| page.get(tag).and_then(|value| usize::try_from(value).ok());
    let from = place(tag::JPEG)?;
    let (strip, bytes) = (usize::try_from(layout.offsets.get(0)?).ok()?, page.file.bytes);
    // The strips are inside the JPEG file: the bytes before their data are its header. The stated lengths are often
    // wrong.
    let end = from.checked_add(place(tag::JPEG_LENGTH)?)?.min(bytes.len());
    let is_inside = (from..end).contains(&strip) && (strip == from || strip - from > 20);
    bytes.get(from..end).filter(|jpeg| is_inside && jpeg.starts_with(b"\xFF\xD8"))
}

/// The orientation in the page's tag or XMP.
fn stated_orientation(page: &Directory) -> Orientation {
    let tag = page.get(tag::ORIENTATION).and_then(|value| Orientation::from_exif(u8::try_from(value).ok()?));
    tag.or_else(|| page.bytes(tag::XMP).and_then(orientation::in_xmp)).unwrap_or(Orientation::NoTransforms)
}

/// The colour profile of the first page.
pub(crate) fn profile(bytes: &[u8]) -> Option<Profile<'_>> {
    Some(Profile::Icc(Cow::Borrowed(File::new(bytes).first().ok()?.bytes(tag::PROFILE)?)))
}

/// The header's values, of the first page.
pub(crate) fn header(bytes: &[u8], limits: &Limits) -> Result<Header> {
    let file = File::new(bytes);
    let page = file.first()?;
    let layout = Layout::new(&page)?;
    let frames = file.pages(limits)?;
    let channels = layout.photometric.samples().min(layout.samples) + usize::from(layout.alpha != Alpha::None);
    Ok(Header {
        size: layout.size,
        channels: channels as u8,
        bits: layout.bits as u8,
        orientation: stated_orientation(&page),
        frames,
        taken: exif::taken_below(&page),
    })
}
