//! Small upright copies of images, for galleries.

use std::io::{self, Write};

use image::RgbImage;

use crate::error::{Error, Kind, Result};
use crate::image::format::recognise;
#[cfg(any(feature = "heic", feature = "avif"))]
use crate::image::heif;
use crate::image::limits::{Limits, bytes_of};
use crate::image::profile::{self, Profile};
use crate::image::resample::{self, Axis, Filter};
use crate::image::{decode, jpeg, picture, raw, tiff, webp};
use crate::memory::{self, Reserve};

/// The file format of a thumbnail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Quality 85, with full chroma resolution.
    Jpeg,
    Png,
    /// Lossless.
    WebP,
}

impl Format {
    /// The format with this name, in any case: `jpeg`, `jpg`, `png` or `webp`.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] for any other name.
    pub fn named(name: &str) -> Result<Self> {
        match name.to_ascii_lowercase().as_str() {
            "jpeg" | "jpg" => Ok(Self::Jpeg),
            "png" => Ok(Self::Png),
            "webp" => Ok(Self::WebP),
            _ => Err(Error::new(Kind::InvalidInput, format!("thumbnail format \"{name}\" is unknown"))
                .hint("Use jpeg, png or webp.")),
        }
    }
}

/// The maximum edge of a thumbnail, in pixels.
pub const MAX_EDGE: u32 = 4096;

/// The error for an edge that is not from 1 to [`MAX_EDGE`].
pub fn bad_edge(edge: impl std::fmt::Display) -> Error {
    Error::new(Kind::InvalidInput, format!("thumbnail edge {edge} is not from 1 to {MAX_EDGE}"))
}

/// Returns a file with an upright copy of an image in sRGB, scaled to fit a square of `edge` pixels with its aspect
/// ratio. Smaller images keep their size.
///
/// # Errors
/// The errors of [`decode()`]; [`Kind::InvalidInput`] for an edge that is not from 1 to [`MAX_EDGE`].
pub fn thumbnail(bytes: &[u8], edge: u32, format: Format, limits: &Limits) -> Result<Vec<u8>> {
    if !(1..=MAX_EDGE).contains(&edge) {
        return Err(bad_edge(edge));
    }
    let decoded = decode(bytes, limits)?;
    let mut rgb = fit(decoded.rgb, edge, limits)?;
    let stated = match decoded.profile {
        Some(profile) => Some(profile),
        None => stated(recognise(bytes)?, bytes, limits)?,
    };
    if let Some(stated) = stated {
        rgb = profile::to_srgb(rgb, &stated, limits)?;
    }
    encode(&rgb, format, limits)
}

fn fit(rgb: RgbImage, edge: u32, limits: &Limits) -> Result<RgbImage> {
    let (width, height) = rgb.dimensions();
    let longest = width.max(height);
    if longest <= edge {
        return Ok(rgb);
    }
    let side = |length: u32| {
        let scaled = (u64::from(length) * u64::from(edge) + u64::from(longest) / 2) / u64::from(longest);
        Axis::whole(length, (scaled as u32).max(1))
    };
    resample::resize(&rgb, side(width), side(height), Filter::Lanczos, limits)
}

fn encode(rgb: &RgbImage, format: Format, limits: &Limits) -> Result<Vec<u8>> {
    let size = rgb.dimensions();
    let beside = match format {
        Format::Jpeg => jpeg::encoder_bytes(size),
        // PNG's encoder keeps a few rows; WebP's keeps the picture with four bytes per pixel, and a copy of it.
        Format::Png => u64::from(size.0) * 64 + (2 << 20),
        Format::WebP => bytes_of(size, 12) + (2 << 20),
    };
    // The encoded file is hardly larger than the pixels.
    limits.check_memory(
        "thumbnail",
        size,
        bytes_of(size, 3).saturating_add(beside).saturating_add(bytes_of(size, 4)),
    )?;
    limits.check_interrupt()?;
    let reserve = Reserve::new(beside as usize)?;
    let bytes = match format {
        Format::Jpeg => jpeg::encode(rgb, 85, limits),
        Format::Png => encode_png(rgb, limits),
        Format::WebP => encode_webp(rgb, limits),
    }?;
    reserve.finish()?;
    Ok(bytes)
}

/// Collects an encoder's output, and stops the encoder at an interrupt or when memory runs out.
struct Output<'a> {
    bytes: Vec<u8>,
    limits: &'a Limits,
    error: Option<Error>,
}

impl Write for &mut Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = if self.bytes.capacity() - self.bytes.len() >= bytes.len() {
            Ok(())
        } else {
            let more = bytes.len().max(self.bytes.len() / 2).max(1 << 16);
            self.limits
                .check_interrupt()
                .and_then(|()| self.bytes.try_reserve(more).map_err(|_| Error::out_of_memory(more)))
        };
        if let Err(error) = room {
            self.error = Some(error);
            return Err(io::Error::other("stopped"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> Output<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self { bytes: Vec::new(), limits, error: None }
    }

    /// The output, unless the encoder failed.
    fn finish<E: std::fmt::Display>(self, result: std::result::Result<(), E>) -> Result<Vec<u8>> {
        match (self.error, result) {
            (Some(error), _) => Err(error),
            (None, Err(e)) => {
                Err(Error::new(Kind::Internal, "the thumbnail could not be encoded").detail(e.to_string()))
            }
            (None, Ok(())) => Ok(self.bytes),
        }
    }
}

fn encode_png(rgb: &RgbImage, limits: &Limits) -> Result<Vec<u8>> {
    let mut output = Output::new(limits);
    let write = |output: &mut Output| -> std::result::Result<(), ::png::EncodingError> {
        let mut encoder = ::png::Encoder::new(output, rgb.width(), rgb.height());
        encoder.set_color(::png::ColorType::Rgb);
        encoder.set_depth(::png::BitDepth::Eight);
        encoder.set_compression(::png::Compression::Fast);
        let mut writer = encoder.write_header()?;
        let mut stream = writer.stream_writer()?;
        for (y, row) in rgb.as_raw().chunks_exact(rgb.width() as usize * 3).enumerate() {
            if y % 16 == 0 && limits.check_interrupt().is_err() {
                return Err(io::Error::other("interrupted").into());
            }
            stream.write_all(row)?;
        }
        stream.finish()
    };
    let result = write(&mut output);
    limits.check_interrupt()?;
    output.finish(result)
}

fn encode_webp(rgb: &RgbImage, limits: &Limits) -> Result<Vec<u8>> {
    let mut output = Output::new(limits);
    // The encoder writes single bits, so the buffer must not begin empty.
    output.bytes = memory::with_capacity(1 << 16)?;
    let encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut output);
    let result = encoder.encode(rgb, rgb.width(), rgb.height(), image::ExtendedColorType::Rgb8);
    output.finish(result)
}

/// The colour profile in a file. A profile that is too long or broken counts as missing.
fn stated<'a>(format: picture::Format, bytes: &'a [u8], limits: &'a Limits) -> Result<Option<Profile<'a>>> {
    Ok(match format {
        picture::Format::Jpeg => jpeg::Jpeg::open(bytes, limits)?.profile(),
        picture::Format::Raw => raw::preview(bytes, limits)?.jpeg.profile().map(Profile::into_owned),
        picture::Format::Png => crate::image::png::profile(bytes),
        picture::Format::WebP => webp::profile(bytes),
        picture::Format::Tiff => tiff::profile(bytes),
        picture::Format::Gif | picture::Format::Bmp | picture::Format::Ico => None,
        #[cfg(feature = "heic")]
        picture::Format::Heic => heif::profile(format, bytes)?,
        #[cfg(feature = "avif")]
        picture::Format::Avif => heif::profile(format, bytes)?,
        // The decoder returns the profile with its result.
        #[cfg(feature = "jxl")]
        picture::Format::Jxl => None,
    })
}

#[cfg(test)]
mod tests {
    use image::ImageFormat;

    use super::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 90]))
    }

    fn png(rgb: &RgbImage) -> Vec<u8> {
        encode(rgb, Format::Png, &Limits::default()).unwrap()
    }

    #[test]
    fn proportions_are_kept_and_nothing_grows() {
        let file = png(&gradient(600, 400));
        for (format, kind) in
            [(Format::Jpeg, ImageFormat::Jpeg), (Format::Png, ImageFormat::Png), (Format::WebP, ImageFormat::WebP)]
        {
            let small = thumbnail(&file, 120, format, &Limits::default()).unwrap();
            assert_eq!(image::guess_format(&small).unwrap(), kind);
            let rgb = decode(&small, &Limits::default()).unwrap().rgb;
            assert_eq!(rgb.dimensions(), (120, 80));
            // A gradient remains a gradient.
            let truth = gradient(120, 80);
            let off = rgb.as_raw().iter().zip(truth.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(off <= 6, "{format:?}: off by {off}");
        }
        let same = thumbnail(&file, 4096, Format::Png, &Limits::default()).unwrap();
        assert_eq!(decode(&same, &Limits::default()).unwrap().rgb, gradient(600, 400));
        let sliver = png(&gradient(3000, 2));
        let sliver = thumbnail(&sliver, 100, Format::Png, &Limits::default()).unwrap();
        assert_eq!(decode(&sliver, &Limits::default()).unwrap().rgb.dimensions(), (100, 1));
    }

    #[test]
    fn bad_edges_and_formats_are_refused() {
        let file = png(&gradient(4, 4));
        for edge in [0, MAX_EDGE + 1] {
            let error = thumbnail(&file, edge, Format::Png, &Limits::default()).unwrap_err();
            assert_eq!(error.kind, Kind::InvalidInput);
        }
        assert!(Format::named("gif").unwrap_err().message.contains("gif"));
        assert!(thumbnail(b"not an image", 10, Format::Jpeg, &Limits::default()).is_err());
    }

    #[test]
    fn an_encoder_stops_when_it_is_told_to() {
        let limits = Limits { interrupted: || true, ..Limits::default() };
        for format in [Format::Jpeg, Format::Png, Format::WebP] {
            assert_eq!(encode(&gradient(400, 400), format, &limits).unwrap_err().kind, Kind::Interrupted);
        }
    }
}
