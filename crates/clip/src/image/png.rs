//! PNG: decodes row by row.

use std::borrow::Cow;

use image::ColorType;
use image::metadata::Orientation;
use png::{BitDepth, DecodingError, InterlaceInfo, Transformations};

use crate::error::{Error, Kind, Result};
use crate::image::limits::{Limits, Watched, no_pixels};
use crate::image::picture::{Format, Header, Picture, Short, truncated};
use crate::image::profile::{LARGEST, Profile};
use crate::image::{exif, orientation, pixels};
use crate::memory::{self, Reserve};

pub(crate) fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture> {
    let Header { size, orientation, channels, bits, .. } = header(bytes, limits)?;
    limits.check_pixels(size)?;
    let failed = |error: DecodingError| failed(bytes, limits, error);
    // The decoder keeps up to five stored rows, and twice that while their buffers grow. This module has two more rows:
    // one with palette and transparency expanded, one as RGB.
    let stored = (u64::from(size.0) * u64::from(channels) * u64::from(bits)).div_ceil(8);
    let expanded = u64::from(size.0) * if bits == 16 { 8 } else { 4 };
    let beside = stored * 10 + expanded + u64::from(size.0) * 3 + (1 << 20);
    limits.check_memory("PNG image", size, Picture::peak(size, beside, orientation))?;
    let reserve = Reserve::new(usize::try_from(beside).map_err(|_| Error::out_of_memory(usize::MAX))?)?;

    let mut decoder = png::Decoder::new(Watched::new(bytes, limits));
    decoder.set_limits(png::Limits { bytes: beside as usize });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(failed)?;
    let color = match reader.output_color_type() {
        (png::ColorType::Grayscale, BitDepth::Eight) => ColorType::L8,
        (png::ColorType::GrayscaleAlpha, BitDepth::Eight) => ColorType::La8,
        (png::ColorType::Rgb, BitDepth::Eight) => ColorType::Rgb8,
        (png::ColorType::Rgba, BitDepth::Eight) => ColorType::Rgba8,
        (png::ColorType::Grayscale, BitDepth::Sixteen) => ColorType::L16,
        (png::ColorType::GrayscaleAlpha, BitDepth::Sixteen) => ColorType::La16,
        (png::ColorType::Rgb, BitDepth::Sixteen) => ColorType::Rgb16,
        (png::ColorType::Rgba, BitDepth::Sixteen) => ColorType::Rgba16,
        other => return Err(Format::Png.unsupported(format!("Its pixels are {other:?}."))),
    };
    let line = reader.output_line_size(size.0).ok_or_else(|| Error::out_of_memory(usize::MAX))?;
    let mut row = memory::zeroed(line)?;
    let mut small = memory::zeroed(size.0 as usize * 3)?;
    let mut rgb = pixels::canvas(size)?;
    let stride = size.0 as usize * 3;
    let mut left = rows(size, reader.info().interlaced);
    let (mut y, mut short) = (0, Short::Nothing);
    loop {
        let interlace = match reader.read_row(&mut row) {
            Ok(Some(interlace)) => interlace,
            Ok(None) => break,
            Err(error) if ends_too_soon(&error) => {
                limits.check_interrupt()?;
                short = match (left, reader.info().interlaced) {
                    // All pixels were read; only the end of the file is missing.
                    (0, _) => Short::Nothing,
                    (rows, false) => Short::Rows(rows),
                    // The last pass contains every second row.
                    (rows, true) if rows <= size.1 / 2 => Short::Rows(rows),
                    _ => Short::Everything,
                };
                break;
            }
            Err(error) => return Err(failed(error)),
        };
        if color.bytes_per_pixel() / color.channel_count() == 2 {
            for sample in row.as_chunks_mut::<2>().0 {
                *sample = u16::from_be_bytes(*sample).to_ne_bytes();
            }
        }
        match interlace {
            InterlaceInfo::Null(_) => {
                pixels::to_rgb(color, &row, pixels::row_mut(&mut rgb, y))?;
                y += 1;
            }
            InterlaceInfo::Adam7(pass) => {
                pixels::to_rgb(color, &row, &mut small)?;
                png::expand_interlaced_row(&mut rgb, stride, &small, &pass, 24);
            }
        }
        left = left.saturating_sub(1);
    }
    reserve.finish()?;
    Ok(Picture { rgb, size, shrink: 1, orientation, short, profile: None })
}

/// The number of stored rows: of the picture, or of its seven passes.
fn rows((width, height): (u32, u32), interlaced: bool) -> u32 {
    if !interlaced {
        return height;
    }
    // For each pass: first column, first row, and the steps between columns and rows.
    const PASSES: [[u32; 4]; 7] =
        [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];
    let of = |[x, y, _, step]: [u32; 4]| if x < width { height.saturating_sub(y).div_ceil(step) } else { 0 };
    PASSES.into_iter().map(of).sum()
}

fn failed(bytes: &[u8], limits: &Limits, error: DecodingError) -> Error {
    if let Err(interrupted) = limits.check_interrupt() {
        return interrupted;
    }
    match error {
        error if ends_too_soon(&error) => truncated(Format::Png, bytes.len()),
        DecodingError::LimitsExceeded => Error::new(Kind::LimitExceeded, "PNG image needs too much memory")
            .detail("Its header does.")
            .hint("Store the picture without its metadata."),
        other => Format::Png.broken(format!("The decoder says: {}.", other.to_string().trim_end_matches('.'))),
    }
}

/// Whether the decoder ran out of bytes.
fn ends_too_soon(error: &DecodingError) -> bool {
    matches!(error, DecodingError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof)
        || error.to_string().to_ascii_lowercase().contains("unexpected end")
}

/// The header's values, from all chunks up to the end of the file.
pub(crate) fn header(bytes: &[u8], limits: &Limits) -> Result<Header> {
    if bytes.len() < 33 {
        return Err(truncated(Format::Png, bytes.len()));
    }
    // Apple's build tools write this chunk first, swap red and blue, and omit the checksum of the compressed data.
    if bytes.get(12..16) == Some(b"CgBI") {
        return Err(Format::Png.unsupported("It is of Apple's own sort (CgBI)."));
    }
    let mut chunks = chunks(bytes);
    let Some((header, true)) = chunks.next().filter(|chunk| chunk.0 == *b"IHDR").map(|chunk| (chunk.1, chunk.2)) else {
        return Err(Format::Png.broken("It has no header, or one with a wrong checksum."));
    };
    let &[w0, w1, w2, w3, h0, h1, h2, h3, bits, color, _, _, _] = header else {
        return Err(Format::Png.broken("Its header has another length."));
    };
    let size = (u32::from_be_bytes([w0, w1, w2, w3]), u32::from_be_bytes([h0, h1, h2, h3]));
    if size.0 == 0 || size.1 == 0 {
        return Err(no_pixels(size.0, size.1));
    }
    let channels = match color {
        0 | 3 => 1,
        2 => 3,
        4 => 2,
        6 => 4,
        _ => return Err(Format::Png.broken(format!("Its colour type is {color}."))),
    };
    // The specification also allows EXIF after the picture. Blocks with a wrong checksum are ignored.
    let (mut stated, mut profile, mut xmp, mut taken) = (None, None, None, None);
    // `announced` is the number of frames that an animated PNG announces before its picture data. The picture is not
    // one of the frames unless a frame header precedes it.
    let (mut announced, mut is_frame, mut has_data) = (None, false, false);
    for (step, (name, payload, is_right)) in chunks.enumerate() {
        limits.check_step(step)?;
        match &name {
            b"IDAT" => has_data = true,
            b"acTL" if !has_data => announced = payload.first_chunk().map(|n| u32::from_be_bytes(*n)),
            b"fcTL" if !has_data => is_frame = true,
            b"eXIf" if is_right => {
                stated = stated.or_else(|| orientation::in_exif(payload));
                taken = taken.or_else(|| exif::taken(payload));
            }
            b"tEXt" | b"zTXt" | b"iTXt" if is_right && (profile.is_none() || xmp.is_none()) => {
                match text(name, payload) {
                    Some((b"XML:com.adobe.xmp", text)) => xmp = xmp.or_else(|| orientation::in_xmp(&text)),
                    // ImageMagick uses these names for the EXIF block of a JPEG.
                    Some((b"Raw profile type exif" | b"Raw profile type APP1", text)) => {
                        let block = raw_profile(&text).unwrap_or_default();
                        profile = profile.or_else(|| orientation::in_exif(&block));
                        taken = taken.or_else(|| exif::taken(&block));
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
    let frames = match announced {
        Some(frames @ 1..=0x8000_0000) => frames + u32::from(!is_frame),
        _ => 1,
    };
    let orientation = stated.or(profile).or(xmp).unwrap_or(Orientation::NoTransforms);
    Ok(Header { size, channels, bits, orientation, frames, taken })
}

/// The colour profile in the file; code points take precedence (PNG, third edition, 11.3.2.6).
pub(crate) fn profile(bytes: &[u8]) -> Option<Profile<'_>> {
    let mut profile = None;
    for (name, payload, _) in chunks(bytes).take_while(|(name, ..)| name != b"IDAT") {
        match &name {
            b"cICP" => {
                let &[primaries, transfer, ..] = payload else { return None };
                return Some(Profile::Codes { primaries: primaries.into(), transfer: transfer.into() });
            }
            b"iCCP" if profile.is_none() => {
                // A name, a nul byte, and the compression method.
                let packed = payload.iter().position(|byte| *byte == 0).and_then(|end| payload.get(end + 2..));
                let unpack = |packed| miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(packed, LARGEST).ok();
                profile = packed.and_then(unpack).map(|icc| Profile::Icc(Cow::Owned(icc)));
            }
            _ => {}
        }
    }
    profile
}

/// The chunks of a file, up to its end: name, payload, and whether the checksum is correct.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8], bool)> {
    let mut at = 8;
    std::iter::from_fn(move || {
        let length = u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?) as usize;
        let name = *bytes.get(at + 4..)?.first_chunk()?;
        let payload = bytes.get(at + 8..(at + 8).checked_add(length)?)?;
        // The checksum is checked only for chunks that are read here; the decoder checks picture data.
        let is_right = !matches!(&name, b"IHDR" | b"eXIf" | b"tEXt" | b"zTXt" | b"iTXt") || {
            let stated = bytes.get(at + 8 + length..).and_then(|rest| rest.first_chunk());
            stated.is_some_and(|stated| u32::from_be_bytes(*stated) == crc32fast::hash(&bytes[at + 4..at + 8 + length]))
        };
        at += 12 + length;
        Some((name, payload, is_right))
    })
}

/// The keyword and the text of a text chunk of any kind.
fn text(name: [u8; 4], payload: &[u8]) -> Option<(&[u8], Cow<'_, [u8]>)> {
    /// Maximum bytes of an unpacked text. Real EXIF blocks have at most 64 kB, 128 kB in hexadecimal.
    const MOST: usize = 1 << 20;
    let split = |bytes: &'_ [u8]| bytes.iter().position(|byte| *byte == 0);
    if !matches!(&name, b"tEXt" | b"zTXt" | b"iTXt") {
        return None;
    }
    let end = split(payload)?;
    let (keyword, rest) = (&payload[..end], &payload[end + 1..]);
    if !keyword.starts_with(b"Raw profile type ") && keyword != b"XML:com.adobe.xmp" {
        return None;
    }
    let (compressed, rest) = match &name {
        b"tEXt" => (false, rest),
        b"zTXt" => (true, rest.get(1..)?),
        _ => {
            // Flag and method, then a language and a translated keyword, each terminated by a nul.
            let (flag, rest) = (rest.first()?, rest.get(2..)?);
            let rest = &rest[split(rest)? + 1..];
            (*flag == 1, &rest[split(rest)? + 1..])
        }
    };
    if compressed {
        // The beginning of a longer text is enough.
        let text = match miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(rest, MOST) {
            Ok(text) => text,
            Err(stopped) => stopped.output,
        };
        Some((keyword, text.into()))
    } else {
        Some((keyword, rest.into()))
    }
}

/// Decodes a profile in ImageMagick's form: a line with its name, a line with its length, and hexadecimal digits.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let mut lines = text.splitn(4, |byte| *byte == b'\n');
    let digits = lines.nth(3)?;
    let mut nibbles = digits.iter().filter_map(|byte| (*byte as char).to_digit(16)).map(|digit| digit as u8);
    let mut bytes = Vec::new();
    // The beginning is enough: it contains the first directory, which states the orientation.
    while let (true, Some(high), Some(low)) = (bytes.len() < 1 << 16, nibbles.next(), nibbles.next()) {
        bytes.push(high << 4 | low);
    }
    Some(bytes)
}
