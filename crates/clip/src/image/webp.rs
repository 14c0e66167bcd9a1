//! WebP: reads chunks that the decoder doesn't return, and states the decoder's memory.

use std::borrow::Cow;

use image::ImageDecoder;
use image::metadata::Orientation;

use crate::error::{Result, without_panic};
use crate::image::exif;
use crate::image::limits::{Limits, bytes_of};
use crate::image::picture::Taken;
use crate::image::picture::{Format, Header, Picture, truncated};
use crate::image::profile::Profile;
use crate::image::uninterruptible::run_in_thread;
use crate::image::{image_crate, orientation};

/// A picture with more pixels takes longer than 0.05 s to decode, in one call that can't be interrupted once its data
/// are read.
const QUICK: u64 = 1 << 20;

pub(crate) fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture> {
    Container::read(bytes, limits)?.check_end(bytes)?;
    let decoder = image_crate::open(Format::WebP, bytes, limits)?;
    let size = decoder.dimensions();
    drop(decoder);
    limits.check_pixels(size)?;
    if bytes_of(size, 1) <= QUICK {
        return decode_at_once(bytes, limits, 0);
    }
    let gave_up = || Format::WebP.broken("The decoder gave up on it.");
    run_in_thread(bytes, limits, gave_up, move |bytes, limits| {
        without_panic(gave_up, || decode_at_once(bytes, limits, bytes.len() as u64))
    })
}

/// `copied`: bytes of a second copy of the file in memory.
fn decode_at_once(bytes: &[u8], limits: &Limits, copied: u64) -> Result<Picture> {
    let file = Container::read(bytes, limits)?;
    let beside = |size: (u32, u32)| {
        // The planes of a lossy picture (one byte of luma, half a byte of chroma), padded to 16 pixels; in addition the
        // opacity (a lossless picture of four bytes, and one byte); or a complete lossless picture.
        let lossy = bytes_of((size.0.next_multiple_of(16), size.1.next_multiple_of(16)), 2);
        let frame = if file.is_lossless { bytes_of(size, 4) } else { lossy }
            + if file.has_opacity { bytes_of(size, 5) } else { 0 };
        // An animation needs a frame and its canvas; the chunks of its frames are nested.
        copied + if file.frames > 0 { lossy + bytes_of(size, 4 + 5 + 4 + 4) } else { frame }
    };
    // If the data end early, the decoder doesn't say how much it has decoded.
    image_crate::decode(Format::WebP, bytes, limits, file.orientation(), beside, || None)
}

/// The header's values.
pub(crate) fn header(bytes: &[u8], limits: &Limits) -> Result<Header> {
    let file = Container::read(bytes, limits)?;
    let decoder = image_crate::open(Format::WebP, bytes, limits)?;
    let (size, channels) = (decoder.dimensions(), decoder.original_color_type().channel_count());
    drop(decoder);
    // A still picture has no frame chunk.
    let (orientation, frames) = (file.orientation(), file.frames.max(1));
    Ok(Header { size, channels, bits: 8, orientation, frames, taken: file.taken })
}

/// Values from the outer chunks, up to the end of the file. Lengths that a chunk claims cause no allocation.
#[derive(Default)]
struct Container {
    is_lossless: bool,
    has_opacity: bool,
    /// The number of an animation's frames; 0 for a still picture.
    frames: u32,
    exif: Option<Orientation>,
    xmp: Option<Orientation>,
    taken: Option<Taken>,
    /// The number of complete pictures or frames in the file.
    pictures: u32,
    /// Whether a chunk is truncated that the picture needs or that may contain its orientation.
    is_cut: bool,
}

impl Container {
    fn read(bytes: &[u8], limits: &Limits) -> Result<Self> {
        let mut file = Self::default();
        for (step, chunk) in chunks(bytes).enumerate() {
            limits.check_step(step)?;
            match &chunk.name {
                b"VP8L" => file.is_lossless = true,
                b"ALPH" => file.has_opacity = true,
                b"ANMF" => file.frames += 1,
                b"EXIF" => {
                    file.exif = file.exif.or_else(|| orientation::in_exif(chunk.payload));
                    file.taken = file.taken.or_else(|| exif::taken(chunk.payload));
                }
                b"XMP " if file.xmp.is_none() => file.xmp = orientation::in_xmp(chunk.payload),
                _ => {}
            }
            // Only the first frame of an animation is needed.
            let is_needed = chunk.name != *b"XMP " && (chunk.name != *b"ANMF" || file.pictures == 0);
            file.is_cut |= chunk.is_cut && is_needed;
            let is_picture = matches!(&chunk.name, b"VP8 " | b"VP8L" | b"ANMF");
            file.pictures += u32::from(is_picture && !chunk.is_cut);
        }
        Ok(file)
    }

    /// The orientation in the file's EXIF or XMP.
    fn orientation(&self) -> Orientation {
        self.exif.or(self.xmp).unwrap_or(Orientation::NoTransforms)
    }

    /// Refuses a file that lacks a part of its picture, or of the chunk that may contain its orientation.
    fn check_end(&self, bytes: &[u8]) -> Result<()> {
        let stated = bytes.get(4..).and_then(|rest| rest.first_chunk()).map_or(0, |size| u32::from_le_bytes(*size));
        let is_short = bytes.len() < 8 + stated as usize;
        if is_short && (self.is_cut || self.pictures == 0) { Err(truncated(Format::WebP, bytes.len())) } else { Ok(()) }
    }
}

struct Chunk<'a> {
    name: [u8; 4],
    /// Cut at the end of the file.
    payload: &'a [u8],
    is_cut: bool,
}

/// The colour profile in the file.
pub(crate) fn profile(bytes: &[u8]) -> Option<Profile<'_>> {
    let chunk = chunks(bytes).take(16).find(|chunk| chunk.name == *b"ICCP")?;
    Some(Profile::Icc(Cow::Borrowed(chunk.payload)))
}

/// The outer chunks of a file, up to its end. Lengths that a chunk claims cause no allocation.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut at = 12;
    std::iter::from_fn(move || {
        let name = *bytes.get(at..)?.first_chunk()?;
        let length = u32::from_le_bytes(*bytes.get(at + 4..)?.first_chunk()?) as usize;
        let end = (at + 8).saturating_add(length);
        let payload = &bytes[at + 8..end.min(bytes.len())];
        // Chunks of odd length are padded.
        at = end.saturating_add(length % 2);
        Some(Chunk { name, payload, is_cut: end > bytes.len() })
    })
}
