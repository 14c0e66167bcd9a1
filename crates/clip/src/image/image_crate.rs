//! Decoding with the `image` crate, whose decoders decode a whole picture in one call.

use image::{ColorType, ImageDecoder, ImageError, ImageFormat};

use crate::error::{Error, Kind, Result};
use crate::image::limits::{Limits, Watched, bytes_of, no_pixels};
use crate::image::orientation::swaps_sides;
use crate::image::picture::{Format, Picture, Short, truncated};
use crate::image::pixels;
use crate::memory::{self, Reserve};

/// Limits on the decoder's memory in addition to its result. Reading the header may inflate a colour profile (at most 2
/// MB in real files); rows, palettes and text chunks follow.
fn header_limits() -> image::Limits {
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(32 << 20);
    limits
}

/// A decoder that has read the header of a file.
pub(crate) fn open<'a>(format: Format, bytes: &'a [u8], limits: &'a Limits) -> Result<impl ImageDecoder + 'a> {
    let library_format = match format {
        Format::WebP => ImageFormat::WebP,
        Format::Bmp => ImageFormat::Bmp,
        Format::Ico => ImageFormat::Ico,
        _ => return Err(Error::new(Kind::Internal, format!("the library is not used for {}", format.name()))),
    };
    let mut reader = image::ImageReader::with_format(Watched::new(bytes, limits), library_format);
    reader.limits(header_limits());
    let decoder = reader.into_decoder().map_err(|error| failed(format, bytes, limits, &error))?;
    match decoder.dimensions() {
        (width, height) if width == 0 || height == 0 => Err(no_pixels(width, height)),
        _ => Ok(decoder),
    }
}

/// Decodes a file. `beside` returns the decoder's memory in addition to its result, in bytes; `short` returns the
/// missing part of the picture if the decoder runs out of bytes.
pub(crate) fn decode(
    format: Format,
    bytes: &[u8],
    limits: &Limits,
    orientation: image::metadata::Orientation,
    beside: impl FnOnce((u32, u32)) -> u64,
    short: impl FnOnce() -> Option<Short>,
) -> Result<Picture> {
    let reserve = Reserve::new(1 << 20)?;
    let mut decoder = open(format, bytes, limits)?;
    reserve.finish()?;
    let (size, color) = (decoder.dimensions(), decoder.color_type());
    limits.check_pixels(size)?;
    if !matches!(color, ColorType::Rgb8 | ColorType::Rgba8) {
        return Err(Error::new(Kind::Unsupported, format!("images with {color:?} pixels are not supported"))
            .hint("Convert it to an ordinary JPEG or PNG."));
    }
    let (total, beside) = (decoder.total_bytes(), beside(size).saturating_add(1 << 20));
    // The decoder's result exists until the picture is upright. With transparency it is larger than the picture.
    let turned = if swaps_sides(orientation) { bytes_of(size, 3) } else { 0 };
    let peak = total.saturating_add(beside.max(turned));
    limits.check_memory(&format!("{} image", format.name()), size, peak)?;
    let mut buffer = memory::zeroed(usize::try_from(total).map_err(|_| Error::out_of_memory(usize::MAX))?)?;
    let reserve = Reserve::new(usize::try_from(beside).map_err(|_| Error::out_of_memory(usize::MAX))?)?;
    let mut decoder_limits = header_limits();
    decoder_limits.max_alloc = Some(total.saturating_add(beside));
    decoder.set_limits(decoder_limits).map_err(|error| failed(format, bytes, limits, &error))?;
    let short = match decoder.read_image(&mut buffer) {
        Ok(()) => Short::Nothing,
        // The buffer contains the pixels decoded before the end.
        Err(error) if ends_too_soon(&error) => short().ok_or_else(|| failed(format, bytes, limits, &error))?,
        Err(error) => return Err(failed(format, bytes, limits, &error)),
    };
    reserve.finish()?;
    limits.check_interrupt()?;
    let rgb = pixels::from_raw(size, if color == ColorType::Rgba8 { pixels::drop_alpha(buffer) } else { buffer });
    Ok(Picture { rgb, size, shrink: 1, orientation, short, profile: None })
}

/// Converts a decoder's error.
pub(crate) fn failed(format: Format, bytes: &[u8], limits: &Limits, error: &ImageError) -> Error {
    if let Err(interrupted) = limits.check_interrupt() {
        return interrupted;
    }
    match error {
        ImageError::Unsupported(e) => format.unsupported(format!("The decoder says: {e}.")),
        ImageError::Limits(e) => {
            Error::new(Kind::LimitExceeded, format!("{} image needs too much memory", format.name()))
                .detail(format!("The decoder says: {e}."))
                .hint(format!("Raise {}, or store a smaller copy.", limits.names.2))
        }
        error if ends_too_soon(error) => truncated(format, bytes.len()),
        other => format.broken(format!("The decoder says: {}.", other.to_string().trim_end_matches('.'))),
    }
}

/// Whether a decoder ran out of bytes.
fn ends_too_soon(error: &ImageError) -> bool {
    matches!(error, ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof)
        || error.to_string().to_ascii_lowercase().contains("unexpected end")
}
