//! Creates image files of every format and of any size: ordinary ones, and small files that claim a large picture.
#![allow(dead_code)]

use std::io::Write;

use clip::image::info::info;
use clip::image::{Limits, decode};
use image::{ImageFormat, RgbImage, RgbaImage};

/// A file and its name in test messages.
pub struct File {
    pub name: &'static str,
    pub bytes: Vec<u8>,
}

fn hundred_places(file: &[u8]) -> impl Iterator<Item = usize> {
    (0..100).map(|part| file.len() * part / 100)
}

/// Cuts a file at each of a hundred places, which must be an error, and changes the byte there, which may be one.
/// Neither may panic.
pub fn cut_and_change(file: &[u8]) {
    for at in hundred_places(file) {
        assert!(decode(&file[..at], &Limits::default()).is_err(), "cut at {at}, it lacks a part of its picture");
    }
    change(file);
}

/// Changes a byte at each of a hundred places. This may be an error, but must not panic.
pub fn change(file: &[u8]) {
    for at in hundred_places(file) {
        let mut changed = file.to_vec();
        changed[at] ^= 0x55;
        let _ = (decode(&changed, &Limits::default()), info(&changed, &Limits::default()));
    }
}

fn file(name: &'static str, bytes: Vec<u8>) -> File {
    File { name, bytes }
}

fn written(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A picture without noise, whose files are small.
fn gradient(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([(x / 3) as u8, (y / 2) as u8, (x / 16 + y / 16) as u8]))
}

pub fn gif(width: u16, height: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let palette: Vec<u8> = (0..=255).flat_map(|i| [i, 255 - i, i / 2]).collect();
    let mut encoder = gif::Encoder::new(&mut bytes, width, height, &palette).unwrap();
    let pixels: Vec<u8> = (0..usize::from(width) * usize::from(height)).map(|at| (at / 64) as u8).collect();
    let frame = gif::Frame { width, height, buffer: pixels.into(), ..Default::default() };
    encoder.write_frame(&frame).unwrap();
    drop(encoder);
    bytes
}

/// The kind of a TIFF's samples: number per pixel, bits, and whether they are floats.
#[derive(Clone, Copy)]
pub struct Samples {
    pub count: u16,
    pub bits: u16,
    pub float: bool,
}

/// A TIFF in Deflate. All its strips refer to one stored strip of zeros, so a small file can have any number of pixels.
pub fn tiff(width: u32, height: u32, samples: Samples, rows: u32) -> Vec<u8> {
    let Samples { count, bits, float } = samples;
    let row = (u64::from(width) * u64::from(count) * u64::from(bits)).div_ceil(8) as usize;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![0; row];
    (0..rows).for_each(|_| encoder.write_all(&zeros).unwrap());
    let strip = encoder.finish().unwrap();
    let strips = height.div_ceil(rows);
    let mut bytes = b"II*\0".to_vec();
    let strip_at = 8;
    let offsets_at = strip_at + strip.len().next_multiple_of(4) as u32;
    let lengths_at = offsets_at + 4 * strips;
    let shorts_at = lengths_at + 4 * strips;
    let directory_at = shorts_at + 64;
    bytes.extend(directory_at.to_le_bytes());
    bytes.extend(&strip);
    bytes.resize(offsets_at as usize, 0);
    (0..strips).for_each(|_| bytes.extend(8u32.to_le_bytes()));
    (0..strips).for_each(|_| bytes.extend((strip.len() as u32).to_le_bytes()));
    (0..16).for_each(|_| bytes.extend(bits.to_le_bytes()));
    (0..16).for_each(|_| bytes.extend(if float { 3u16 } else { 1 }.to_le_bytes()));
    let many = |value: u16, at: u32| if count > 2 { at } else { u32::from(value) | u32::from(value) << 16 };
    let one = |at: u32, of: u32| if strips > 1 { at } else { of };
    let photometric = if count < 3 { 1 } else { 2 };
    let mut entries: Vec<(u16, u16, u32, u32)> = vec![
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, count.into(), many(bits, shorts_at)),
        (259, 3, 1, 8),
        (262, 3, 1, photometric),
        (273, 4, strips, one(offsets_at, 8)),
        (277, 3, 1, count.into()),
        (278, 4, 1, rows),
        (279, 4, strips, one(lengths_at, strip.len() as u32)),
    ];
    if count == 2 || count == 4 {
        entries.push((338, 3, 1, 2));
    }
    entries.push((339, 3, count.into(), many(if float { 3 } else { 1 }, shorts_at + 32)));
    put_directory(&mut bytes, &entries);
    bytes
}

/// A PNG of zeros. It is a thousand times smaller than its pixels.
pub fn png(width: u32, height: u32, color: png::ColorType, depth: png::BitDepth) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.set_depth(depth);
    let mut writer = encoder.write_header().unwrap();
    let mut stream = writer.stream_writer().unwrap();
    let bits = usize::from(depth as u8) * color.samples();
    let row = vec![0; (width as usize * bits).div_ceil(8)];
    (0..height).for_each(|_| stream.write_all(&row).unwrap());
    stream.finish().unwrap();
    drop(writer);
    bytes
}

fn segment(marker: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xFF, marker];
    bytes.extend((payload.len() as u16 + 2).to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A progressive JPEG of three components. Each of its scans says that all coefficients are zero.
pub fn progressive(width: u16, height: u16, scans: usize) -> Vec<u8> {
    let mut bytes = vec![0xFF, 0xD8];
    let mut table = vec![0];
    table.extend([1; 64]);
    bytes.extend(segment(0xDB, &table));
    let (w, h) = (width.to_be_bytes(), height.to_be_bytes());
    let mut frame = vec![8, h[0], h[1], w[0], w[1], 3];
    (1..=3).for_each(|component| frame.extend([component, 0x11, 0]));
    bytes.extend(segment(0xC2, &frame));
    // The codes for DC: "0" for no difference; for AC: "0" for a run of 2^14 blocks and more, "10" for one block.
    let mut dc = vec![0x00, 1];
    dc.extend([0; 15]);
    dc.push(0);
    bytes.extend(segment(0xC4, &dc));
    let mut ac = vec![0x10, 1, 1];
    ac.extend([0; 14]);
    ac.extend([0xE0, 0x00]);
    bytes.extend(segment(0xC4, &ac));
    let blocks = usize::from(width.div_ceil(8)) * usize::from(height.div_ceil(8));
    let mut bits = String::new();
    (0..blocks / 32767).for_each(|_| bits.push_str("011111111111111"));
    let mut rest = blocks % 32767;
    if rest >= 16384 {
        bits.push_str(&format!("0{:014b}", rest - 16384));
        rest = 0;
    }
    (0..rest).for_each(|_| bits.push_str("10"));
    let packed = |bits: &str| -> Vec<u8> {
        let mut bytes = Vec::new();
        for eight in bits.as_bytes().chunks(8) {
            let filled: u8 =
                (0..8).fold(0, |byte, i| byte << 1 | u8::from(eight.get(i).is_none_or(|bit| *bit == b'1')));
            bytes.push(filled);
            if filled == 0xFF {
                bytes.push(0);
            }
        }
        bytes
    };
    let data = packed(&bits);
    let mut scan = |components: &[u8], [start, end, high, low]: [u8; 4], data: &[u8]| {
        let mut header = vec![components.len() as u8];
        components.iter().for_each(|component| header.extend([*component, 0]));
        header.extend([start, end, high << 4 | low]);
        bytes.extend(segment(0xDA, &header));
        bytes.extend(data);
    };
    scan(&[1, 2, 3], [0, 0, 0, 0], &packed(&"0".repeat(blocks * 3)));
    (1..=3).for_each(|component| scan(&[component], [1, 63, 0, 1], &data));
    (4..scans).for_each(|index| scan(&[1 + (index % 3) as u8], [1, 63, 1, 0], &data));
    bytes.extend([0xFF, 0xD9]);
    bytes
}

pub fn boxed(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    [&(content.len() as u32 + 8).to_be_bytes(), name.as_slice(), content].concat()
}

/// A HEIF file. Each item has a type and data; the first one is the primary item, and all have all of the properties,
/// which are complete boxes. A reference has a kind, the item it is from, counted from 1, and the items it is to.
pub fn heif(items: &[(&[u8; 4], &[u8])], references: &[(&[u8; 4], u16, &[u16])], properties: &[Vec<u8>]) -> Vec<u8> {
    let count = (items.len() as u16).to_be_bytes();
    let ids = || (1..=items.len() as u16).map(u16::to_be_bytes);
    let mut infos = [[0; 4].as_slice(), &count].concat();
    let mut places = [[1, 0, 0, 0, 0x44, 0].as_slice(), &count].concat();
    let mut owned = [[0; 6].as_slice(), &count].concat();
    let mut start = 0;
    for (id, (kind, data)) in ids().zip(items) {
        infos.extend(boxed(b"infe", &[&[2, 0, 0, 0], id.as_slice(), &[0, 0], *kind, &[0]].concat()));
        let length = data.len() as u32;
        places.extend([&id, [0, 1, 0, 0, 0, 1].as_slice(), &u32::to_be_bytes(start), &length.to_be_bytes()].concat());
        owned.extend(
            [&id, [properties.len() as u8].as_slice(), &(1..=properties.len() as u8).collect::<Vec<_>>()].concat(),
        );
        start += length;
    }
    let mut refers = vec![0; 4];
    for (kind, from, to) in references {
        let to: Vec<u8> = [(to.len() as u16).to_be_bytes()]
            .into_iter()
            .chain(to.iter().map(|id| id.to_be_bytes()))
            .flatten()
            .collect();
        refers.extend(boxed(kind, &[&from.to_be_bytes(), to.as_slice()].concat()));
    }
    let data: Vec<u8> = items.iter().flat_map(|(_, data)| *data).copied().collect();
    let meta = [
        vec![0; 4],
        boxed(b"hdlr", &[[0; 8].as_slice(), b"pict", &[0; 13]].concat()),
        boxed(b"pitm", &[0, 0, 0, 0, 0, 1]),
        boxed(b"iinf", &infos),
        boxed(b"iloc", &places),
        boxed(b"iref", &refers),
        boxed(b"iprp", &[boxed(b"ipco", &properties.concat()), boxed(b"ipma", &owned)].concat()),
        boxed(b"idat", &data),
    ]
    .concat();
    [boxed(b"ftyp", b"heic\0\0\0\0mif1heic"), boxed(b"meta", &meta)].concat()
}

/// Camera RAW files with this preview: a DNG, a RAF, and a CR3 that contains it twice.
pub fn raws(preview: &[u8]) -> [Vec<u8>; 3] {
    let length = preview.len() as u32;
    let directory = 8 + length.next_multiple_of(2);
    let mut dng = [b"II*\0".as_slice(), &directory.to_le_bytes(), preview].concat();
    dng.resize(directory as usize, 0);
    // Orientation, position of the second directory, DNG version; then compression, photometric interpretation,
    // position and length of the preview.
    let below = directory + 2 + 3 * 12 + 4;
    let first = [(274u16, 3u16, 6), (330, 4, below), (50706, 1, 0x0401)];
    let second = [(259, 3, 7), (262, 3, 6), (273, 4, 8), (279, 4, length)];
    for entries in [first.as_slice(), &second] {
        dng.extend((entries.len() as u16).to_le_bytes());
        for (tag, kind, value) in entries {
            dng.extend([tag.to_le_bytes(), kind.to_le_bytes()].concat());
            dng.extend([1u32.to_le_bytes(), u32::to_le_bytes(*value)].concat());
        }
        dng.extend([0; 4]);
    }
    let mut raf = b"FUJIFILMCCD-RAW 0201FF129502".to_vec();
    raf.resize(84, 0);
    raf.extend([100u32.to_be_bytes(), length.to_be_bytes()].concat());
    raf.resize(100, 0);
    raf.extend(preview);
    let ftyp = boxed(b"ftyp", b"crx \0\0\0\x01crx isom");
    let at = ftyp.len() as u64 + 8;
    let sizes = boxed(b"stsz", &[[0; 4], length.to_be_bytes(), 1u32.to_be_bytes()].concat());
    let places = boxed(b"co64", &[[0; 4].as_slice(), &1u32.to_be_bytes(), &at.to_be_bytes()].concat());
    let table = boxed(b"minf", &boxed(b"stbl", &[sizes, places].concat()));
    let movie = boxed(b"moov", &boxed(b"trak", &boxed(b"mdia", &table)));
    let again = boxed(b"uuid", &[&[0; 24], boxed(b"PRVW", &[&[0; 16], preview].concat()).as_slice()].concat());
    [dng, raf, [ftyp, boxed(b"mdat", preview), movie, again].concat()]
}

/// Appends the last TIFF directory of a file. Entries are (tag, type, count, value).
fn put_directory(bytes: &mut Vec<u8>, entries: &[(u16, u16, u32, u32)]) {
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
}

/// A DNG that contains only a JPEG preview.
pub fn dng(preview: &[u8]) -> Vec<u8> {
    let entries: [(u16, u16, u32, u32); 3] =
        [(513, 4, 1, 50), (514, 4, 1, preview.len() as u32), (50706, 1, 4, u32::from_le_bytes([1, 4, 0, 0]))];
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    put_directory(&mut bytes, &entries);
    assert_eq!(bytes.len(), 50, "where the preview begins");
    bytes.extend(preview);
    bytes
}

/// A file of this size for each format and variant, as cameras and programs write them.
pub fn of_every_format(width: u32, height: u32) -> Vec<File> {
    use png::{BitDepth, ColorType};
    let picture = gradient(width, height);
    let clear = RgbaImage::from_fn(width, height, |x, y| image::Rgba([x as u8, y as u8, 9, (x / 4) as u8]));
    let mut webp_alpha = std::io::Cursor::new(Vec::new());
    clear.write_to(&mut webp_alpha, ImageFormat::WebP).unwrap();
    let rgb = Samples { count: 3, bits: 8, float: false };
    // A smaller preview would be refused.
    let preview = clip::image::synthetic::photo(width.max(448), height.max(448), 1).unwrap();
    vec![
        file("raw", dng(&preview)),
        file("JPEG", clip::image::synthetic::photo(width, height, 1).unwrap()),
        file("progressive JPEG", progressive(width as u16, height as u16, 7)),
        file("PNG", written(&picture, ImageFormat::Png)),
        file("PNG of 16-bit RGBA", png(width, height, ColorType::Rgba, BitDepth::Sixteen)),
        file("GIF", gif(width as u16, height as u16)),
        file("WebP", written(&picture, ImageFormat::WebP)),
        file("WebP with transparency", webp_alpha.into_inner()),
        file("BMP", written(&picture, ImageFormat::Bmp)),
        file("TIFF", tiff(width, height, rgb, 16)),
        file("TIFF in one strip", tiff(width, height, rgb, height)),
        file("TIFF of float RGBA", tiff(width, height, Samples { count: 4, bits: 32, float: true }, 16)),
    ]
}

/// The process's peak resident memory in bytes since the last reset.
pub fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Resets the peak to the current resident memory. Returns whether that was allowed.
pub fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}
