//! Camera RAW: decodes the largest JPEG preview that the camera stored beside the sensor's data.
//!
//! DNG, CR2, NEF, ARW, PEF, ORF and RW2 are TIFFs, whose directories refer to previews. RAF has a field for one. CR3 is
//! an ISO base media file with small previews in Canon's own boxes and the largest one in a track.

use image::metadata::Orientation;

use crate::error::{Error, Kind, Result};
use crate::image::exif;
use crate::image::jpeg::Jpeg;
use crate::image::limits::Limits;
use crate::image::picture::Header;
use crate::image::picture::Taken;
use crate::image::tiff::directory::{Directory, File};
use crate::image::tiff::tag;

/// Photometric interpretations of sensor data: colour filter array, and linear raw.
const SENSOR: [u64; 2] = [32803, 34892];

/// Minimum side of a preview in pixels: twice CLIP's input of 224. Smaller previews would change the embedding; many
/// files also contain a thumbnail of 160 × 120, which many programs show in place of the picture.
const LEAST_SIDE: u32 = 448;

/// The name of Canon's format since 2018.
pub(crate) const CR3: &str = "CR3";

/// Maximum number of directories to read: cameras write up to six.
const MOST: usize = 32;

/// A preview with its header.
pub(crate) struct Preview<'a> {
    pub jpeg: Jpeg<'a>,
    pub orientation: Orientation,
    pub taken: Option<Taken>,
}

/// Whether a file contains a camera's raw data. `is_tiff`: the file begins like a TIFF.
pub(crate) fn is_raw(bytes: &[u8], is_tiff: bool) -> bool {
    if [b"IIRO".as_slice(), b"IIRS", b"IIU\0", b"FUJIFILMCCD-RAW"].into_iter().any(|magic| bytes.starts_with(magic)) {
        return true;
    }
    is_tiff
        && (bytes.get(8..11) == Some(b"CR\x02")
            || directories(bytes).iter().any(|directory| {
                directory.find(tag::DNG_VERSION).is_some()
                    || directory.get(tag::PHOTOMETRIC).is_some_and(|sort| SENSOR.contains(&sort))
            }))
}

/// The common name of the format.
pub(crate) fn name(bytes: &[u8]) -> &'static str {
    if bytes.get(4..8) == Some(b"ftyp") {
        return CR3;
    }
    if bytes.starts_with(b"FUJIFILMCCD-RAW") {
        return "RAF";
    }
    if bytes.get(8..11) == Some(b"CR\x02") {
        return "CR2";
    }
    let directories = directories(bytes);
    if directories.iter().any(|directory| directory.find(tag::DNG_VERSION).is_some()) {
        return "DNG";
    }
    let make = directories.first().and_then(|first| first.bytes(tag::MAKE)).unwrap_or_default().to_ascii_uppercase();
    let made_by = |maker: &[u8]| make.starts_with(maker);
    match bytes {
        [b'I', b'I', b'R', ..] => "ORF",
        [b'I', b'I', b'U', ..] => "RW2",
        _ if made_by(b"NIKON") => "NEF",
        _ if made_by(b"SONY") => "ARW",
        _ if made_by(b"PENTAX") || made_by(b"RICOH") => "PEF",
        _ => "camera RAW",
    }
}

/// The largest preview of a file.
///
/// # Errors
/// [`Kind::Unsupported`] if it has no preview of a useful size.
pub(crate) fn preview<'a>(bytes: &'a [u8], limits: &'a Limits) -> Result<Preview<'a>> {
    let directories = directories(bytes);
    let candidates = directories.iter().flat_map(|directory| jpegs(bytes, directory)).chain(fujis(bytes));
    let candidates = candidates.chain(cr3::jpegs(bytes));
    let mut best: Option<Jpeg> = None;
    for candidate in candidates {
        limits.check_interrupt()?;
        if let Ok(jpeg) = Jpeg::open(candidate, limits) {
            let area = |jpeg: &Jpeg| u64::from(jpeg.width) * u64::from(jpeg.height);
            if !jpeg.is_lossless() && best.as_ref().is_none_or(|best| area(best) < area(&jpeg)) {
                best = Some(jpeg);
            }
        }
    }
    let found = best.as_ref().map(|jpeg| (jpeg.width, jpeg.height));
    match best.filter(|jpeg| jpeg.width.min(jpeg.height) >= LEAST_SIDE) {
        Some(jpeg) => {
            // The orientation in the first directory applies to all pictures in the file; a preview's own tag repeats
            // it.
            let stated = directories.first().and_then(|first| first.get(tag::ORIENTATION));
            let stated = stated
                .or_else(|| cr3::directory(bytes, *b"CMT1")?.get(tag::ORIENTATION))
                .and_then(|value| Orientation::from_exif(u8::try_from(value).ok()?));
            let orientation = stated.unwrap_or_else(|| jpeg.orientation());
            let taken = directories.first().and_then(exif::taken_below);
            let taken = taken.or_else(|| exif::taken_in(&cr3::directory(bytes, *b"CMT2")?)).or_else(|| jpeg.taken());
            Ok(Preview { jpeg, orientation, taken })
        }
        None => {
            let detail = match found {
                Some((width, height)) => {
                    format!("Its largest preview is {width}×{height}; {LEAST_SIDE} pixels a side are needed.")
                }
                None => "It has no preview.".to_owned(),
            };
            Err(Error::new(Kind::Unsupported, "image format camera RAW is not supported without a preview")
                .detail(detail)
                .hint("Develop it and store a JPEG."))
        }
    }
}

/// The values in the preview's header.
pub(crate) fn header(bytes: &[u8], limits: &Limits) -> Result<Header> {
    let Preview { jpeg, orientation, taken } = preview(bytes, limits)?;
    Ok(Header { size: (jpeg.width, jpeg.height), channels: jpeg.channels(), bits: 8, orientation, frames: 1, taken })
}

/// The directories of a file, in order, then their subdirectories.
fn directories(bytes: &[u8]) -> Vec<Directory<'_>> {
    if bytes.get(4..8) == Some(b"ftyp") {
        return Vec::new();
    }
    let file = File::new(bytes);
    let mut found: Vec<Directory> = Vec::new();
    let mut next = file.first().ok();
    while let Some(directory) = next.filter(|_| found.len() < MOST) {
        found.push(directory);
        next = file.next(&directory);
    }
    for index in 0..found.len() {
        let Some(below) = found[index].find(tag::SUB_DIRECTORIES) else { continue };
        let places = (0..below.count).take(MOST - found.len().min(MOST)).filter_map(|index| below.get(index));
        let below: Vec<Directory> = places.filter_map(|place| file.directory(place)).collect();
        found.extend(below);
    }
    found
}

/// The JPEG files that a directory refers to.
fn jpegs<'a>(bytes: &'a [u8], directory: &Directory<'a>) -> impl Iterator<Item = &'a [u8]> {
    let slice = |from: u64, length: u64| {
        let (from, length) = (usize::try_from(from).ok()?, usize::try_from(length).ok()?);
        bytes.get(from..from.checked_add(length)?.min(bytes.len()))
    };
    let linked =
        directory.get(tag::JPEG).zip(directory.get(tag::JPEG_LENGTH)).and_then(|(at, length)| slice(at, length));
    let is_jpeg = matches!(directory.get(tag::COMPRESSION), Some(6 | 7));
    let strips = directory.find(tag::STRIP_OFFSETS).zip(directory.find(tag::STRIP_LENGTHS));
    let strip = strips
        .filter(|(offsets, _)| is_jpeg && offsets.count == 1)
        .and_then(|(offsets, lengths)| slice(offsets.get(0)?, lengths.get(0)?));
    let whole = directory.bytes(tag::JPG_FROM_RAW);
    [linked, strip, whole].into_iter().flatten().filter(|bytes| bytes.starts_with(b"\xFF\xD8"))
}

/// The JPEG file in a Fujifilm RAF. Its offset and length follow the camera's name in the header.
fn fujis(bytes: &[u8]) -> Option<&[u8]> {
    if !bytes.starts_with(b"FUJIFILMCCD-RAW") {
        return None;
    }
    let number = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
    let (at, length) = (number(84)?, number(88)?);
    bytes.get(at..at.checked_add(length)?.min(bytes.len())).filter(|jpeg| jpeg.starts_with(b"\xFF\xD8"))
}

/// Reads the boxes of a CR3.
mod cr3 {
    use crate::image::bmff;
    use crate::image::tiff::directory::{Directory, File};

    /// The boxes inside Canon's own box, after its identifier (UUID).
    fn of_canon(content: &[u8]) -> &[u8] {
        content.get(16..).unwrap_or_default()
    }

    /// The directory in one of Canon's boxes with EXIF tags. Each of these boxes contains a TIFF.
    pub fn directory(bytes: &[u8], name: [u8; 4]) -> Option<Directory<'_>> {
        let canon = bmff::find(bmff::find(bytes, *b"moov")?, *b"uuid")?;
        File::new(bmff::find(of_canon(canon), name)?).first().ok()
    }

    /// The JPEG files in preview boxes, and in tracks whose first sample is a JPEG.
    pub fn jpegs(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
        let is_media = bytes.get(4..8) == Some(b"ftyp");
        let bytes = if is_media { bytes } else { &[] };
        let movie = bmff::find(bytes, *b"moov").unwrap_or_default();
        let canon = bmff::boxes(bytes).chain(bmff::boxes(movie)).filter(|(name, _)| name == b"uuid");
        // The box of a preview has eight more bytes before its contents than the box of a thumbnail.
        let boxes = canon.flat_map(|(_, content)| {
            let inside = of_canon(content);
            bmff::boxes(inside).chain(bmff::boxes(inside.get(8..).unwrap_or_default()))
        });
        let previews = boxes.filter(|(name, _)| matches!(name, b"PRVW" | b"THMB")).filter_map(|(_, content)| {
            let start = content.iter().take(64).zip(&content[1.min(content.len())..]);
            let start = start.enumerate().find(|(_, pair)| *pair == (&0xFF, &0xD8))?.0;
            content.get(start..)
        });
        let tracks = bmff::boxes(movie).filter(|(name, _)| name == b"trak");
        let samples = tracks.filter_map(move |(_, track)| sample(bytes, track));
        previews.chain(samples).filter(|jpeg| jpeg.starts_with(b"\xFF\xD8"))
    }

    /// The first sample of a track.
    fn sample<'a>(bytes: &'a [u8], track: &[u8]) -> Option<&'a [u8]> {
        let table = [*b"mdia", *b"minf", *b"stbl"].into_iter().try_fold(track, bmff::find)?;
        let sizes = bmff::find(table, *b"stsz")?;
        let number = |bytes: &[u8], at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
        // `stsz` states one size for all samples, or a list of sizes.
        let length = number(sizes, 4).filter(|length| *length > 0).or_else(|| number(sizes, 12))?;
        let at = match bmff::find(table, *b"co64") {
            Some(places) => usize::try_from(u64::from_be_bytes(*places.get(8..)?.first_chunk()?)).ok()?,
            None => number(bmff::find(table, *b"stco")?, 8)?,
        };
        bytes.get(at..at.checked_add(length)?.min(bytes.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::synthetic::photo;
    use crate::image::{decode, info};

    /// A DNG: a first directory with the DNG tag and a thumbnail's size, and a subdirectory with the given preview.
    fn dng(preview: &[u8], orientation: u32) -> Vec<u8> {
        let mut bytes = b"II*\0".to_vec();
        let first = 8 + preview.len().next_multiple_of(2) as u32;
        bytes.extend(first.to_le_bytes());
        bytes.extend(preview);
        bytes.resize(first as usize, 0);
        let entry = |tag: u16, kind: u16, value: u32| {
            let mut entry = Vec::new();
            entry.extend(tag.to_le_bytes());
            entry.extend(kind.to_le_bytes());
            entry.extend(1u32.to_le_bytes());
            entry.extend(value.to_le_bytes());
            entry
        };
        let entries = |entries: &[Vec<u8>]| {
            let mut bytes = (entries.len() as u16).to_le_bytes().to_vec();
            entries.iter().for_each(|entry| bytes.extend(entry));
            bytes.extend([0; 4]);
            bytes
        };
        let below = first + 2 + 5 * 12 + 4;
        bytes.extend(entries(&[
            entry(256, 4, 16),
            entry(257, 4, 12),
            entry(tag::ORIENTATION, 3, orientation),
            entry(tag::SUB_DIRECTORIES, 4, below),
            entry(tag::DNG_VERSION, 1, 0x0401),
        ]));
        bytes.extend(entries(&[
            entry(tag::COMPRESSION, 3, 7),
            entry(tag::PHOTOMETRIC, 3, 6),
            entry(tag::STRIP_OFFSETS, 4, 8),
            entry(tag::STRIP_LENGTHS, 4, preview.len() as u32),
        ]));
        bytes
    }

    #[test]
    fn the_preview_is_embedded_upright() {
        let limits = Limits::default();
        let preview = photo(800, 600, 3).unwrap();
        let file = dng(&preview, 6);
        let decoded = decode(&file, &limits).unwrap();
        assert_eq!(decoded.size, (600, 800));
        let plain = decode(&preview, &limits).unwrap().rgb;
        assert!(decoded.rgb.get_pixel(599, 0) == plain.get_pixel(0, 0));
        let header = info::info(&file, &limits).unwrap();
        assert_eq!((header.format, header.width, header.height, header.orientation), ("DNG", 800, 600, 6));
    }

    fn boxed(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        [&(content.len() as u32 + 8).to_be_bytes(), name.as_slice(), content].concat()
    }

    /// A CR3: a thumbnail and tags in Canon's boxes, a preview in another box, and a JPEG in a track.
    fn cr3(thumbnail: &[u8], preview: &[u8], full: &[u8]) -> Vec<u8> {
        let ftyp = boxed(b"ftyp", b"crx \0\0\0\x01crx isom");
        let mdat = boxed(b"mdat", full);
        let at = (ftyp.len() + 8) as u64;
        // Orientation 8 in the first directory; the date in the EXIF directory.
        let cmt1 = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x08\0\0\0\0\0\0\0";
        let mut cmt2 = b"II*\0\x08\0\0\0\x01\0\x03\x90\x02\0\x14\0\0\0\x1a\0\0\0\0\0\0\0".to_vec();
        cmt2.extend(b"2024:05:06 07:08:09\0");
        let prefixed = |content: &[u8]| [&[0; 16], content].concat();
        let thmb = boxed(b"THMB", &[&[0; 16], thumbnail].concat());
        let canon = boxed(b"uuid", &prefixed(&[boxed(b"CMT1", cmt1), boxed(b"CMT2", &cmt2), thmb].concat()));
        let stsz = boxed(b"stsz", &[[0; 4], (full.len() as u32).to_be_bytes(), 1u32.to_be_bytes()].concat());
        let co64 = boxed(b"co64", &[[0; 4].as_slice(), &1u32.to_be_bytes(), &at.to_be_bytes()].concat());
        let table = boxed(b"stbl", &[stsz, co64].concat());
        let track = boxed(b"trak", &boxed(b"mdia", &boxed(b"minf", &table)));
        let prvw = boxed(b"PRVW", &[&[0; 16], preview].concat());
        let preview = boxed(b"uuid", &[&[0; 24], prvw.as_slice()].concat());
        [ftyp, mdat, boxed(b"moov", &[canon, track].concat()), preview].concat()
    }

    #[test]
    fn the_largest_jpeg_of_a_cr3_is_embedded() {
        let [small, medium, large] = [(160, 120), (800, 600), (1200, 900)].map(|(w, h)| photo(w, h, 3).unwrap());
        for (full, size) in [(large.as_slice(), (1200, 900)), (b"\xFF\x01raw".as_slice(), (800, 600))] {
            let file = cr3(&small, &medium, full);
            let decoded = decode(&file, &Limits::default()).unwrap();
            assert_eq!(decoded.size, (size.1, size.0));
            let header = info::info(&file, &Limits::default()).unwrap();
            assert_eq!((header.format, header.width, header.height, header.orientation), ("CR3", size.0, size.1, 8));
            let taken = header.taken.unwrap();
            assert_eq!((taken.year, taken.month, taken.day, taken.hour), (2024, 5, 6, 7));
        }
        let error = decode(&cr3(&small, &small, b""), &Limits::default()).unwrap_err();
        assert!(error.kind == Kind::Unsupported && error.detail.unwrap().contains("160×120"));
        let whole = cr3(&small, &medium, &large);
        for length in 0..400 {
            let _ = decode(&whole[..length * whole.len() / 400], &Limits::default());
        }
    }

    #[test]
    fn a_thumbnail_is_no_preview() {
        let error = decode(&dng(&photo(160, 120, 3).unwrap(), 1), &Limits::default()).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        assert!(error.message.contains("camera RAW") && error.detail.unwrap().contains("160×120"));
    }
}
