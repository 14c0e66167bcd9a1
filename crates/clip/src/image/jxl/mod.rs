//! JPEG XL by jxl-oxide, a decoder in Rust: decodes the first frame. A file that was losslessly converted from a JPEG
//! contains the data of that JPEG, which is restored and passed to the JPEG decoder.
//!
//! The library unpacks metadata without a limit, so this module reads the boxes itself and passes on only those that a
//! picture needs. The library can't be interrupted, so it runs on a separate thread.

mod dither;
mod restore;

use std::borrow::Cow;
use std::io::{self, Read, Write};

use brotli_decompressor::Decompressor;
use image::metadata::Orientation;
use jxl_bitstream::Bitstream;
use jxl_oxide::{AllocTracker, InitializeResult, JxlImage, PixelFormat};
use jxl_oxide_common::Bundle;

use crate::error::{Error, Kind, Result, without_panic};
use crate::image::bmff;
use crate::image::exif;
use crate::image::jpeg::Jpeg;
use crate::image::limits::{Limits, bytes_of, no_pixels};
use crate::image::orientation::{swaps_sides, turned};
use crate::image::picture::Taken;
use crate::image::picture::{Format, Header, Picture, Short, truncated};
use crate::image::pixels::{self, on_white};
use crate::image::profile::Profile;
use crate::image::uninterruptible::run_in_thread;
use crate::memory::{self, Reserve};

use restore::Components;

const SIGNATURE: &[u8] = b"\0\0\0\x0CJXL \r\n\x87\n";
/// Maximum bytes of unpacked metadata. An EXIF block has at most 64 kB in a JPEG; larger blocks contain thumbnails.
const LARGEST_METADATA: u64 = 1 << 20;
/// Maximum bytes of a colour profile. Real profiles have at most 2 MB.
const LARGEST_PROFILE: u64 = 4 << 20;
/// Maximum number of extra channels: transparency, depth and spot colours. Each is a plane.
const MOST_EXTRA: usize = 16;
/// Maximum number of pixels of all frames that make up the first picture, per pixel of the picture.
const MOST_LAYERS: u64 = 16;

/// Bytes that decoding takes for each pixel of each channel. Photos took 8.5, coded as VarDCT with 8 and 16 bits. With
/// 20, a photo of 21 megapixels exceeded 1 GB.
const USUAL: u64 = 12;
/// The same for files with layers and patches, for which earlier frames are kept: five planes of 32 bits.
const MOST: u64 = 20;

/// The picture in a file.
pub(crate) enum Content {
    /// The restored JPEG, with the file's orientation and colour profile, which the JPEG itself lacks.
    Jpeg(Vec<u8>, Orientation, Profile<'static>),
    Picture(Picture),
}

pub(crate) fn open(bytes: &[u8], limits: &Limits) -> Result<Content> {
    let head = Head::read(bytes)?;
    limits.check_pixels(head.size)?;
    let picture = bytes_of(head.size, 3);
    let peak = picture.saturating_add(head.decoder_bytes(bytes, USUAL));
    limits.check_memory("JPEG XL image", head.size, peak)?;
    // The library counts its allocations and stops at this limit.
    let beside = head.decoder_bytes(bytes, MOST).min(limits.max_memory.saturating_sub(picture));
    let gave_up = || Format::Jxl.broken("The decoder gave up on it.");
    run_in_thread(bytes, limits, gave_up, move |bytes, limits| {
        without_panic(gave_up, || {
            let reserve = Reserve::new(usize::try_from(beside).map_err(|_| Error::out_of_memory(usize::MAX))?)?;
            let content = content(bytes, &head, beside, limits)?;
            reserve.finish()?;
            Ok(content)
        })
    })
}

/// The header's values.
pub(crate) fn header(bytes: &[u8], limits: &Limits) -> Result<Header> {
    let head = Head::read(bytes)?;
    let taken = taken(bytes, limits)?;
    let frames = if head.is_animation {
        let beside = 3 * bytes.len() as u64 + (64 << 20);
        let gave_up = || Format::Jxl.broken("The decoder gave up on it.");
        run_in_thread(bytes, limits, gave_up, move |bytes, limits| {
            without_panic(gave_up, || {
                let reserve = Reserve::new(beside as usize)?;
                let image = load(bytes, beside, limits, false, None)?;
                reserve.finish()?;
                Ok(image.num_loaded_keyframes().max(1) as u32)
            })
        })?
    } else {
        1
    };
    let Head { size, channels, bits, orientation, .. } = head;
    Ok(Header { size, channels, bits, orientation, frames, taken })
}

/// Values from the codestream's header.
struct Head {
    /// The size as stored.
    size: (u32, u32),
    channels: u8,
    bits: u8,
    orientation: Orientation,
    is_animation: bool,
    planes: u64,
}

impl Head {
    fn read(bytes: &[u8]) -> Result<Self> {
        let stream = codestream(bytes, 64 << 10);
        let mut bits = Bitstream::new(&stream);
        let fail = |error: jxl_bitstream::Error| match error.unexpected_eof() {
            true => truncated(Format::Jxl, bytes.len()),
            false => Format::Jxl.broken(format!("The decoder says: {error}.")),
        };
        let header = jxl_oxide::ImageHeader::parse(&mut bits, ()).map_err(fail)?;
        let meta = &header.metadata;
        if meta.colour_encoding.want_icc() && bits.read_u64().map_err(fail)? > LARGEST_PROFILE {
            return Err(Error::new(Kind::LimitExceeded, "JPEG XL image needs too much memory")
                .detail("Its colour profile does.")
                .hint("Store the picture without its profile."));
        }
        if meta.ec_info.len() > MOST_EXTRA {
            return Err(Format::Jxl.unsupported(format!("It has {} extra channels.", meta.ec_info.len())));
        }
        let size = (header.size.width, header.size.height);
        if size.0 == 0 || size.1 == 0 {
            return Err(no_pixels(size.0, size.1));
        }
        let colours = if meta.grayscale() { 1 } else { 3 };
        let orientation = u8::try_from(meta.orientation).ok().and_then(Orientation::from_exif);
        Ok(Self {
            size,
            channels: colours + u8::from(meta.alpha().is_some()),
            bits: meta.bit_depth.bits_per_sample() as u8,
            orientation: orientation.unwrap_or(Orientation::NoTransforms),
            is_animation: meta.animation.is_some(),
            planes: 3 + meta.ec_info.len() as u64,
        })
    }

    /// Bytes that decoding takes in addition to the picture: `plane` bytes for each pixel of each channel, with sides
    /// padded to groups, and copies of parts of the file's data.
    fn decoder_bytes(&self, bytes: &[u8], plane: u64) -> u64 {
        let side = |side: u32| u64::from(side) + 256;
        let pixels = side(self.size.0).saturating_mul(side(self.size.1));
        pixels.saturating_mul(self.planes * plane).saturating_add(3 * bytes.len() as u64 + (16 << 20))
    }
}

/// The first `most` bytes of the codestream, which a container may store in parts.
fn codestream(bytes: &[u8], most: usize) -> Cow<'_, [u8]> {
    if !bytes.starts_with(SIGNATURE) {
        return Cow::Borrowed(&bytes[..bytes.len().min(most)]);
    }
    let mut stream = Vec::new();
    for (name, content) in bmff::boxes(bytes) {
        let part = match &name {
            b"jxlc" => content,
            // Each part begins with its number.
            b"jxlp" => content.get(4..).unwrap_or_default(),
            _ => continue,
        };
        stream.extend_from_slice(&part[..part.len().min(most - stream.len())]);
        if name == *b"jxlc" || stream.len() == most {
            break;
        }
    }
    Cow::Owned(stream)
}

/// Unpacks a Brotli stream and passes each piece to `to`. None if it is broken or longer than `most` bytes.
fn unpack(packed: &[u8], most: u64, limits: &Limits, mut to: impl FnMut(&[u8])) -> Result<Option<()>> {
    let mut unpacker = Decompressor::new(packed, 4096);
    let (mut piece, mut length) = ([0; 4096], 0);
    for step in 0.. {
        // Checks once every four megabytes.
        if step % 1024 == 0 {
            limits.check_interrupt()?;
        }
        match unpacker.read(&mut piece) {
            Ok(0) => return Ok(Some(())),
            Ok(count) => {
                length += count as u64;
                if length > most {
                    return Ok(None);
                }
                to(&piece[..count]);
            }
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}

/// A metadata box of the file, unpacked if necessary.
fn metadata<'a>(bytes: &'a [u8], wanted: [u8; 4], limits: &Limits) -> Result<Option<Cow<'a, [u8]>>> {
    if !bytes.starts_with(SIGNATURE) {
        return Ok(None);
    }
    for (name, content) in bmff::boxes(bytes) {
        if name == wanted {
            return Ok(Some(Cow::Borrowed(content)));
        }
        if let Some(packed) = content.strip_prefix(&wanted).filter(|_| name == *b"brob") {
            let mut block = Vec::new();
            return Ok(unpack(packed, LARGEST_METADATA, limits, |piece| block.extend_from_slice(piece))?
                .map(|()| Cow::Owned(block)));
        }
    }
    Ok(None)
}

/// The date of the picture in EXIF. The box begins with the offset of the EXIF block.
fn taken(bytes: &[u8], limits: &Limits) -> Result<Option<Taken>> {
    let Some(block) = metadata(bytes, *b"Exif", limits)? else { return Ok(None) };
    let start = block.first_chunk().map_or(0, |offset| u32::from_be_bytes(*offset) as usize);
    Ok(block.get(4..).and_then(|block| block.get(start..)).and_then(exif::taken))
}

fn failed(bytes: &[u8], error: &(dyn std::error::Error + 'static)) -> Error {
    let message = error.to_string();
    if message.contains("allocate") {
        return Error::new(Kind::LimitExceeded, "JPEG XL image needs too much memory")
            .detail("Its frames are larger or more than its picture takes.")
            .hint("Store it in another format.");
    }
    if message.to_ascii_lowercase().contains("unexpected eof") || message.contains("unexpected end") {
        return truncated(Format::Jxl, bytes.len());
    }
    Format::Jxl.broken(format!("The decoder says: {}.", message.trim_end_matches('.')))
}

/// Reads a file up to its first picture, or to its end. `restoring` replaces the content of the box that restores a
/// JPEG.
fn load(bytes: &[u8], most: u64, limits: &Limits, only_first: bool, restoring: Option<&[u8]>) -> Result<JxlImage> {
    let tracker = AllocTracker::with_limit(usize::try_from(most).unwrap_or(usize::MAX));
    let mut waiting = Some(JxlImage::builder().alloc_tracker(tracker).build_uninit());
    let mut image: Option<JxlImage> = None;
    let fail = |error: Box<dyn std::error::Error + Send + Sync>| failed(bytes, error.as_ref());
    // The bytes that the library has not consumed yet, because it needs more input.
    let mut left: Vec<u8> = Vec::new();
    let mut feed = |part: &[u8]| -> Result<bool> {
        for piece in part.chunks(64 << 10) {
            limits.check_interrupt()?;
            left.extend_from_slice(piece);
            match (&mut image, waiting.take()) {
                (Some(image), _) => {
                    let taken = image.feed_bytes(&left).map_err(fail)?;
                    left.drain(..taken.min(left.len()));
                }
                (None, Some(mut start)) => {
                    let taken = start.feed_bytes(&left).map_err(fail)?;
                    left.drain(..taken.min(left.len()));
                    match start.try_init().map_err(fail)? {
                        InitializeResult::NeedMoreData(start) => waiting = Some(start),
                        InitializeResult::Initialized(begun) => image = Some(begun),
                    }
                }
                (None, None) => {}
            }
            if only_first && image.as_ref().is_some_and(|image| image.num_loaded_keyframes() > 0) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    if bytes.starts_with(SIGNATURE) {
        let mut feed_box = |name: [u8; 4], content: &[u8]| -> Result<bool> {
            let length = u32::try_from(content.len() + 8).map_err(|_| truncated(Format::Jxl, bytes.len()))?;
            feed(&[&length.to_be_bytes(), name.as_slice()].concat())?;
            feed(content)
        };
        let mut restoring = restoring;
        for (name, content) in bmff::boxes(bytes) {
            match &name {
                b"JXL " | b"ftyp" | b"jxll" => {
                    feed_box(name, content)?;
                }
                b"jxlc" | b"jxlp" => {
                    if let Some(restoring) = restoring.take() {
                        feed_box(*b"jbrd", restoring)?;
                    }
                    if feed_box(name, content)? {
                        break;
                    }
                }
                _ => {}
            }
        }
    } else {
        feed(bytes)?;
    }
    let mut image = image.ok_or_else(|| truncated(Format::Jxl, bytes.len()))?;
    image.finalize().map_err(fail)?;
    Ok(image)
}

fn content(bytes: &[u8], head: &Head, most: u64, limits: &Limits) -> Result<Content> {
    let components = restore::box_of(bytes).and_then(Components::read);
    let mut image = load(bytes, most, limits, true, components.as_ref().map(|c| c.plain(true)).as_deref())?;
    let is_whole = image.num_loaded_keyframes() > 0;
    if !is_whole && !limits.allow_truncated {
        return Err(truncated(Format::Jxl, bytes.len()));
    }
    if let Some(components) = components.filter(|_| is_whole) {
        if image.frame(0).is_some_and(|frame| !frame.header().do_ycbcr) {
            // The colours are RGB, which only the frame's header states.
            drop(image);
            image = load(bytes, most, limits, true, Some(&components.plain(false)))?;
        }
        let mut jpeg = Output { bytes: Vec::new(), limits };
        // The library panics on some files and writes no JPEG for others. The picture can still be decoded.
        let gave_up = || Format::Jxl.broken("The decoder gave up on it.");
        let is_done = without_panic(gave_up, || Ok(image.reconstruct_jpeg(&mut jpeg).is_ok())) == Ok(true);
        if is_done && Jpeg::open(&jpeg.bytes, limits).is_ok_and(|jpeg| (jpeg.width, jpeg.height) == head.size) {
            return Ok(Content::Jpeg(jpeg.bytes, head.orientation, profile(&image)));
        }
        limits.check_interrupt()?;
    }
    check_layers(&image, head)?;
    picture(bytes, image, head, is_whole, limits).map(Content::Picture)
}

/// The restored JPEG, limited to the maximum length of a file.
struct Output<'a> {
    bytes: Vec<u8>,
    limits: &'a Limits,
}

impl Write for &mut Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > self.limits.max_bytes {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.try_reserve(bytes.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Refuses a picture composed of too many frames, each of which may be as large as the picture.
fn check_layers(image: &JxlImage, head: &Head) -> Result<()> {
    let frames = (0..image.num_loaded_frames()).filter_map(|index| image.frame(index));
    let pixels = frames.map(|frame| bytes_of((frame.header().width, frame.header().height), 1)).sum::<u64>();
    if pixels > bytes_of(head.size, MOST_LAYERS).saturating_add(1 << 20) {
        return Err(Error::new(Kind::LimitExceeded, "JPEG XL image has too many layers")
            .detail(format!("Its layers have {pixels} pixels, over {MOST_LAYERS} times as many as its picture."))
            .hint("Store it in one layer."));
    }
    Ok(())
}

/// The profile of the rendered colours: the library may have converted them from the picture's own profile.
fn profile(image: &JxlImage) -> Profile<'static> {
    match image.rendered_cicp() {
        Some([primaries, transfer, ..]) => Profile::Codes { primaries: primaries.into(), transfer: transfer.into() },
        None => Profile::Icc(Cow::Owned(image.rendered_icc())),
    }
}

/// Decodes the first picture. The library applies the orientation.
fn picture(bytes: &[u8], mut image: JxlImage, head: &Head, is_whole: bool, limits: &Limits) -> Result<Picture> {
    let fail = |error: Box<dyn std::error::Error + Send + Sync>| failed(bytes, error.as_ref());
    let channels = match image.pixel_format() {
        PixelFormat::Gray => 1,
        PixelFormat::Graya => 2,
        PixelFormat::Rgb => 3,
        PixelFormat::Rgba => 4,
        PixelFormat::Cmyk | PixelFormat::Cmyka => return Err(Format::Jxl.unsupported("Its colours are CMYK.")),
    };
    let alpha = image.image_header().metadata.ec_info.iter().find(|channel| channel.is_alpha());
    let is_associated = alpha.and_then(|alpha| alpha.alpha_associated()).unwrap_or(false);
    let render = if is_whole { image.render_frame(0) } else { image.render_loading_frame() };
    let render = render.map_err(fail)?;
    let size = turned(head.size, head.orientation);
    let profile = profile(&image);
    let mut stream = render.stream();
    if (stream.width(), stream.height()) != size || stream.channels() != channels {
        return Err(Format::Jxl.broken("Its first frame has another size."));
    }
    let mut rgb = pixels::canvas(size)?;
    let channels = channels as usize;
    let mut floats = memory::with_capacity(size.0 as usize * channels)?;
    floats.resize(size.0 as usize * channels, 0.0f32);
    let mut row = memory::zeroed(size.0 as usize * channels)?;
    // The noise belongs to the picture before its sides are swapped.
    let is_swapped = swaps_sides(head.orientation);
    let laid = |value: u8, alpha: u8| match is_associated {
        true => value.saturating_add(255 - alpha),
        false => on_white(value, alpha),
    };
    for y in 0..size.1 as usize {
        limits.check_interrupt()?;
        stream.write_to_buffer(&mut floats);
        for (at, (to, from)) in row.iter_mut().zip(&floats).enumerate() {
            let (x, channel) = (at / channels, at % channels);
            *to = if is_swapped { dither::byte(*from, y, x, channel) } else { dither::byte(*from, x, y, channel) };
        }
        let target = pixels::row_mut(&mut rgb, y).as_chunks_mut::<3>().0.iter_mut();
        for (to, from) in target.zip(row.chunks_exact(channels)) {
            *to = match *from {
                [l] => [l; 3],
                [l, a] => [laid(l, a); 3],
                [r, g, b] => [r, g, b],
                [r, g, b, a, ..] => [laid(r, a), laid(g, a), laid(b, a)],
                [] => [0; 3],
            };
        }
    }
    let short = if is_whole { Short::Nothing } else { Short::Everything };
    Ok(Picture { rgb, size, shrink: 1, orientation: Orientation::NoTransforms, short, profile: Some(profile) })
}
