//! Small upright copies of images, for galleries.

use std::io::Cursor;

use image::{ImageFormat, RgbImage};

use crate::error::{Error, Kind, Result};
use crate::image::jpeg;
use crate::image::resample::{self, Axis, Filter};
use crate::image::{Limits, decode};

/// How a thumbnail is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Quality 85, no chroma subsampling worth seeing at that size.
    Jpeg,
    Png,
    /// Lossless.
    WebP,
}

impl Format {
    /// # Errors
    /// [`Kind::InvalidInput`] for a name that is none of these.
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

/// The longest edge that is made.
pub const MAX_EDGE: u32 = 4096;

/// An image file scaled to fit a square of `edge` pixels, upright, in the proportions of the original; smaller images
/// keep their size.
///
/// # Errors
/// Those of [`decode`]; [`Kind::InvalidInput`] for an edge that is not from 1 to [`MAX_EDGE`].
pub fn thumbnail(bytes: &[u8], edge: u32, format: Format, limits: &Limits) -> Result<Vec<u8>> {
    if !(1..=MAX_EDGE).contains(&edge) {
        return Err(Error::new(Kind::InvalidInput, format!("thumbnail edge {edge} is not from 1 to {MAX_EDGE}")));
    }
    let rgb = fit(decode(bytes, limits)?.rgb, edge);
    match format {
        Format::Jpeg => jpeg::encode(&rgb, 85),
        Format::Png => encode(&rgb, ImageFormat::Png),
        Format::WebP => encode(&rgb, ImageFormat::WebP),
    }
}

fn fit(rgb: RgbImage, edge: u32) -> RgbImage {
    let (width, height) = rgb.dimensions();
    let longest = width.max(height);
    if longest <= edge {
        return rgb;
    }
    let side = |length: u32| {
        let scaled = (u64::from(length) * u64::from(edge) + u64::from(longest) / 2) / u64::from(longest);
        Axis::whole(length, (scaled as u32).max(1))
    };
    resample::resize(&rgb, side(width), side(height), Filter::Lanczos)
}

fn encode(rgb: &RgbImage, format: ImageFormat) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    rgb.write_to(&mut bytes, format)
        .map_err(|e| Error::new(Kind::Internal, "the thumbnail could not be encoded").detail(e.to_string()))?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 90]))
    }

    #[test]
    fn proportions_are_kept_and_nothing_grows() {
        let file = encode(&gradient(600, 400), ImageFormat::Png).unwrap();
        for (format, kind) in
            [(Format::Jpeg, ImageFormat::Jpeg), (Format::Png, ImageFormat::Png), (Format::WebP, ImageFormat::WebP)]
        {
            let small = thumbnail(&file, 120, format, &Limits::default()).unwrap();
            assert_eq!(image::guess_format(&small).unwrap(), kind);
            let rgb = decode(&small, &Limits::default()).unwrap().rgb;
            assert_eq!(rgb.dimensions(), (120, 80));
            // A gradient stays one.
            let truth = gradient(120, 80);
            let off = rgb.as_raw().iter().zip(truth.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(off <= 6, "{format:?}: off by {off}");
        }
        let same = thumbnail(&file, 4096, Format::Png, &Limits::default()).unwrap();
        assert_eq!(decode(&same, &Limits::default()).unwrap().rgb, gradient(600, 400));
        let sliver = encode(&gradient(3000, 2), ImageFormat::Png).unwrap();
        let sliver = thumbnail(&sliver, 100, Format::Png, &Limits::default()).unwrap();
        assert_eq!(decode(&sliver, &Limits::default()).unwrap().rgb.dimensions(), (100, 1));
    }

    #[test]
    fn bad_edges_and_formats_are_refused() {
        let file = encode(&gradient(4, 4), ImageFormat::Png).unwrap();
        for edge in [0, MAX_EDGE + 1] {
            let error = thumbnail(&file, edge, Format::Png, &Limits::default()).unwrap_err();
            assert_eq!(error.kind, Kind::InvalidInput);
        }
        assert!(Format::named("gif").unwrap_err().message.contains("gif"));
        assert!(thumbnail(b"not an image", 10, Format::Jpeg, &Limits::default()).is_err());
    }
}
