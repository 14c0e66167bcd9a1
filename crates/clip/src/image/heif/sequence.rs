//! Sequences without a still picture. This module makes a file with the first picture of the sequence as a still: the
//! sample table and sample entry of a track contain the same coded data and decoder configuration (ISO/IEC 14496-12,
//! 8.5.2 and 12.1.3; 23008-12, 7). The parent module then has to read only one kind of file.

use crate::error::Result;
use crate::image::bmff::{boxes, find};
use crate::image::heif::check_tables;
use crate::image::picture::{Format, truncated};
use crate::memory;

/// Boxes of a sample entry that are also properties of an item: (name in the entry, name of the property).
const SHARED: [([u8; 4], [u8; 4]); 6] = [
    (*b"hvcC", *b"hvcC"),
    (*b"av1C", *b"av1C"),
    (*b"colr", *b"colr"),
    (*b"pixi", *b"pixi"),
    (*b"auxi", *b"auxC"),
    (*b"clap", *b"clap"),
];

/// Maximum number of properties copied from a sample entry, which usually has four or five.
const MOST_SHARED: usize = 16;

/// Bytes of a visual sample entry that precede its boxes.
const ENTRY: usize = 78;

/// A track with coded pictures.
struct Track<'a> {
    id: u32,
    handler: [u8; 4],
    item_type: [u8; 4],
    size: (u16, u16),
    /// The item's properties: name and content.
    shared: Vec<([u8; 4], &'a [u8])>,
    /// a, b, c, d of the track's matrix, in 65536ths: x' = ax + cy, y' = bx + dy; y points down.
    matrix: [i32; 4],
    references: &'a [u8],
    /// Offset and length of the first sample in the file.
    first: (u64, u32),
}

impl<'a> Track<'a> {
    /// None if the track has no pictures, or lacks a box that is read here.
    fn of(track: &'a [u8]) -> Option<Self> {
        let header = find(track, *b"tkhd")?;
        let (id, matrix) = if *header.first()? == 1 { (20, 52) } else { (12, 40) };
        let media = find(track, *b"mdia")?;
        let table = [*b"minf", *b"stbl"].into_iter().try_fold(media, find)?;
        let (kind, entry) = boxes(find(table, *b"stsd")?.get(8..)?).next()?;
        let item_type = match &kind {
            b"hvc1" | b"hev1" => *b"hvc1",
            b"av01" => kind,
            _ => return None,
        };
        let shared = boxes(entry.get(ENTRY..)?).filter_map(|(name, content)| {
            SHARED.iter().find(|(inside, _)| *inside == name).map(|(_, property)| (*property, content))
        });
        let offset = match find(table, *b"stco") {
            Some(offsets) => u64::from(u32_at(offsets, 8)?),
            None => u64::from_be_bytes(*find(table, *b"co64")?.get(8..)?.first_chunk()?),
        };
        let sizes = find(table, *b"stsz")?;
        let length = match u32_at(sizes, 4)? {
            0 => u32_at(sizes, 12)?,
            common => common,
        };
        let side = |at: usize| Some(u16::from_be_bytes(*entry.get(at..)?.first_chunk()?));
        let number = |at: usize| Some(u32_at(header, matrix + at)?.cast_signed());
        Some(Self {
            id: u32_at(header, id)?,
            handler: *find(media, *b"hdlr")?.get(8..)?.first_chunk()?,
            item_type,
            size: (side(24)?, side(26)?),
            shared: shared.take(MOST_SHARED).collect(),
            matrix: [number(0)?, number(4)?, number(12)?, number(16)?],
            references: find(track, *b"tref").unwrap_or_default(),
            first: (offset, length),
        })
    }

    /// Whether the track refers to track `other` by a reference of this kind.
    fn refers(&self, kind: [u8; 4], other: u32) -> bool {
        find(self.references, kind).is_some_and(|ids| ids.chunks_exact(4).any(|id| id == other.to_be_bytes()))
    }

    fn is_opacity_of(&self, main: &Track<'_>) -> bool {
        self.handler == *b"auxv" && self.refers(*b"auxl", main.id)
    }

    /// The coded data of the first picture.
    fn sample(&self, bytes: &'a [u8], format: Format) -> Result<&'a [u8]> {
        let (offset, length) = self.first;
        let start = usize::try_from(offset).ok();
        let sample = start.and_then(|start| bytes.get(start..start.checked_add(length as usize)?));
        sample.filter(|sample| !sample.is_empty()).ok_or_else(|| truncated(format, bytes.len()))
    }

    /// The track's matrix as properties of an item: whether to mirror left and right (imir), and the number of quarter
    /// turns anticlockwise (irot).
    fn turn(&self, format: Format) -> Result<(bool, u8)> {
        let one = 1 << 16;
        let [a, b, c, d] = self.matrix;
        let determinant = i64::from(a) * i64::from(d) - i64::from(b) * i64::from(c);
        let is_mirrored = determinant < 0;
        let turned = if is_mirrored { [a.wrapping_neg(), b.wrapping_neg(), c, d] } else { self.matrix };
        let quarters = [[one, 0, 0, one], [0, -one, one, 0], [-one, 0, 0, -one], [0, one, -one, 0]];
        let quarters = quarters.iter().position(|quarter| *quarter == turned).ok_or_else(|| {
            format.unsupported(format!(
                "It holds a sequence without a still picture, which is scaled or turned by another angle than a right one (matrix {a} {b} {c} {d})."
            ))
        })?;
        Ok((is_mirrored, quarters as u8))
    }

    /// The item's properties, as complete boxes.
    fn properties(&self, format: Format) -> Result<Vec<Vec<u8>>> {
        let (is_mirrored, quarters) = self.turn(format)?;
        let (width, height) = (u32::from(self.size.0), u32::from(self.size.1));
        let size = [[0; 4], width.to_be_bytes(), height.to_be_bytes()].concat();
        let mut all = vec![boxed(*b"ispe", &[&size])];
        all.extend(self.shared.iter().map(|(name, content)| boxed(*name, &[content])));
        if is_mirrored {
            all.push(boxed(*b"imir", &[&[1]]));
        }
        if quarters > 0 {
            all.push(boxed(*b"irot", &[&[quarters]]));
        }
        Ok(all)
    }
}

/// A file with the first picture of a sequence as a still. None if the file has a still picture, or has no sequence.
pub(super) fn first_still(bytes: &[u8], format: Format) -> Result<Option<Vec<u8>>> {
    let Some(movie) = find(bytes, *b"moov").filter(|_| !has_still(bytes)) else {
        return Ok(None);
    };
    check_tables(bytes, format)?;
    let tracks = || boxes(movie).filter(|(name, _)| name == b"trak").filter_map(|(_, track)| Track::of(track));
    let main = tracks().find(|track| [*b"pict", *b"vide"].contains(&track.handler)).ok_or_else(|| {
        format.unsupported("It holds a sequence without a still picture, and no track of it starts with a picture.")
    })?;
    let opacity = tracks().find(|track| track.is_opacity_of(&main));

    let items: Vec<_> = [Some(&main), opacity.as_ref()].into_iter().flatten().zip(1_u16..).collect();
    let mut infos = vec![0, 0, 0, 0];
    infos.extend((items.len() as u16).to_be_bytes());
    // Version 1: offset and length have four bytes each; the other fields are absent.
    let mut places = vec![1, 0, 0, 0, 0x44, 0];
    places.extend((items.len() as u16).to_be_bytes());
    let (mut all, mut owned) = (Vec::new(), vec![0, 0, 0, 0]);
    owned.extend((items.len() as u32).to_be_bytes());
    let mut data = 0_u32;
    let mut samples = Vec::new();
    for (track, id) in &items {
        let sample = track.sample(bytes, format)?;
        let id = id.to_be_bytes();
        infos.extend(boxed(*b"infe", &[&[2, 0, 0, 0], &id, &[0, 0], &track.item_type, &[0]]));
        // Construction method 1 (in idat), data reference 0 (this file), one extent.
        let extent = [data.to_be_bytes(), (sample.len() as u32).to_be_bytes()].concat();
        places.extend([&id[..], &[0, 1, 0, 0, 0, 1], &extent].concat());
        let properties = track.properties(format)?;
        owned.extend(id);
        owned.push(properties.len() as u8);
        owned.extend((all.len() + 1..).take(properties.len()).map(|index| index as u8));
        all.extend(properties);
        data = data.saturating_add(sample.len() as u32);
        samples.push(sample);
    }
    let mut references = vec![0, 0, 0, 0];
    if let Some(opacity) = &opacity {
        references.extend(boxed(*b"auxl", &[&[0, 2, 0, 1, 0, 1]]));
        if main.refers(*b"prem", opacity.id) {
            references.extend(boxed(*b"prem", &[&[0, 1, 0, 1, 0, 2]]));
        }
    }
    let handler = boxed(*b"hdlr", &[&[0; 8], b"pict", &[0; 13]]);
    let properties = boxed(*b"iprp", &[&boxed(*b"ipco", &[&all.concat()]), &boxed(*b"ipma", &[&owned])]);
    let rest = [
        handler,
        boxed(*b"pitm", &[&[0, 0, 0, 0, 0, 1]]),
        boxed(*b"iinf", &[&infos]),
        boxed(*b"iloc", &[&places]),
        boxed(*b"iref", &[&references]),
        properties,
    ]
    .concat();

    let kind = boxed(*b"ftyp", &[b"mif1", &[0; 4], b"mif1"]);
    let idat = 8 + samples.iter().map(|sample| sample.len()).sum::<usize>();
    let meta = 12 + rest.len() + idat;
    let mut still = memory::with_capacity(kind.len() + meta)?;
    still.extend_from_slice(&kind);
    still.extend_from_slice(&head(*b"meta", meta));
    still.extend_from_slice(&[0; 4]);
    still.extend_from_slice(&rest);
    still.extend_from_slice(&head(*b"idat", idat));
    for sample in samples {
        still.extend_from_slice(sample);
    }
    Ok(Some(still))
}

/// Whether the file's items are pictures. Films may have a `meta` box for other metadata.
fn has_still(bytes: &[u8]) -> bool {
    let handler = find(bytes, *b"meta").and_then(|meta| find(meta.get(4..)?, *b"hdlr")?.get(8..12));
    handler == Some(b"pict")
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The length and name of a box. Length 0, for a box of 4 GB or more, means that it extends to the end of the file.
fn head(name: [u8; 4], length: usize) -> [u8; 8] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    let [e, f, g, h] = name;
    [a, b, c, d, e, f, g, h]
}

fn boxed(name: [u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    [&head(name, 8 + content.len()), content.as_slice()].concat()
}
