//! The colours that a file's samples stand for, as it states them. Embeddings ignore them, as the reference pipelines do;
//! thumbnails, which are seen by people, are brought to sRGB.

use std::borrow::Cow;

use image::RgbImage;
use moxcms::{ColorProfile, DataColorSpace, Layout, ParsingOptions, RenderingIntent, TransformOptions};

use crate::error::{Error, Kind, Result, without_panic};
use crate::image::jpeg::Jpeg;
use crate::image::limits::Limits;
use crate::image::picture::Format;
use crate::image::{png, raw, tiff, webp};
use crate::memory::{self, Reserve};

/// Real profiles have at most 2 MB.
pub(crate) const LARGEST: usize = 4 << 20;

/// What a profile's tables take at most when they are read and prepared: ten million numbers, which is the library's limit,
/// are no photo's.
const TABLES: usize = 64 << 20;

/// How a file states its colours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Profile<'a> {
    Icc(Cow<'a, [u8]>),
    /// Code points of ITU-T H.273.
    Codes {
        primaries: u16,
        transfer: u16,
    },
}

impl Profile<'_> {
    pub fn into_owned(self) -> Profile<'static> {
        match self {
            Self::Icc(bytes) => Profile::Icc(Cow::Owned(bytes.into_owned())),
            Self::Codes { primaries, transfer } => Profile::Codes { primaries, transfer },
        }
    }

    /// The profile, unless its colours are sRGB's, or it is of something else than RGB.
    fn read(&self) -> Option<ColorProfile> {
        match self {
            Self::Icc(bytes) => {
                let options = ParsingOptions {
                    max_profile_size: LARGEST,
                    max_allowed_clut_size: TABLES / 16,
                    ..ParsingOptions::default()
                };
                let profile = ColorProfile::new_from_slice_with_options(bytes, options).ok()?;
                (profile.color_space == DataColorSpace::Rgb).then_some(profile)
            }
            // The curves of video are shown as sRGB's, which they nearly are; those of high dynamic range (16, 18) need
            // more than another profile.
            Self::Codes { primaries, transfer: 1 | 2 | 6 | 13 | 14 | 15 } => {
                let mut profile = match primaries {
                    9 => ColorProfile::new_bt2020(),
                    11 => ColorProfile::new_dci_p3(),
                    12 => ColorProfile::new_display_p3(),
                    _ => return None,
                };
                let ordinary = ColorProfile::new_srgb();
                profile.red_trc = ordinary.red_trc;
                profile.green_trc = ordinary.green_trc;
                profile.blue_trc = ordinary.blue_trc;
                profile.cicp = None;
                Some(profile)
            }
            Self::Codes { .. } => None,
        }
    }
}

/// What a file states. A profile that is too long or broken is none.
pub(crate) fn stated<'a>(format: Format, bytes: &'a [u8], limits: &'a Limits) -> Result<Option<Profile<'a>>> {
    Ok(match format {
        Format::Jpeg => Jpeg::open(bytes, limits)?.profile(),
        Format::Raw => raw::preview(bytes, limits)?.jpeg.profile().map(Profile::into_owned),
        Format::Png => png::profile(bytes),
        Format::WebP => webp::profile(bytes),
        Format::Tiff => tiff::profile(bytes),
        Format::Gif | Format::Bmp | Format::Ico => None,
        #[cfg(feature = "heic")]
        Format::Heic => crate::image::heif::profile(format, bytes)?,
        #[cfg(feature = "avif")]
        Format::Avif => crate::image::heif::profile(format, bytes)?,
        // Stated by what its decoder made of it.
        #[cfg(feature = "jxl")]
        Format::Jxl => None,
    })
}

/// A picture's colours as sRGB. A profile that can't be read leaves them as they are, as in browsers.
///
/// # Errors
/// [`Kind::OutOfMemory`], [`Kind::Interrupted`], [`Kind::LimitExceeded`].
pub(crate) fn to_srgb(rgb: RgbImage, profile: &Profile, limits: &Limits) -> Result<RgbImage> {
    limits.check_memory("thumbnail", rgb.dimensions(), 2 * rgb.len() as u64 + TABLES as u64)?;
    let reserve = Reserve::new(TABLES)?;
    let unreadable = || Error::new(Kind::InvalidInput, "the colour profile is broken");
    let options = TransformOptions { rendering_intent: RenderingIntent::RelativeColorimetric, ..Default::default() };
    let transform = without_panic(unreadable, || {
        let source = profile.read().ok_or_else(unreadable)?;
        source
            .create_transform_8bit(Layout::Rgb, &ColorProfile::new_srgb(), Layout::Rgb, options)
            .map_err(|_| unreadable())
    });
    reserve.finish()?;
    let Ok(transform) = transform else { return Ok(rgb) };
    let mut bytes = memory::zeroed(rgb.len())?;
    // Rows of pixels, of which some 100 take a millisecond.
    let row = rgb.width() as usize * 3;
    for (from, to) in rgb.chunks(row * 64).zip(bytes.chunks_mut(row * 64)) {
        limits.check_interrupt()?;
        let done = without_panic(unreadable, || transform.transform(from, to).map_err(|_| unreadable()));
        if done.is_err() {
            return Ok(rgb);
        }
    }
    Ok(crate::image::pixels::from_raw(rgb.dimensions(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_colours_become_srgb() {
        let picture = |pixel| RgbImage::from_pixel(3, 2, image::Rgb(pixel));
        let of =
            |profile: &Profile, pixel| to_srgb(picture(pixel), profile, &Limits::default()).unwrap().get_pixel(1, 1).0;
        let p3 = Profile::Codes { primaries: 12, transfer: 13 };
        assert_eq!(of(&p3, [128; 3]), [128; 3]);
        // A red within sRGB is stronger in its numbers; P3's own red is beyond it.
        let [r, g, b] = of(&p3, [200, 60, 50]);
        assert!(r > 210 && g < 45 && b < 45, "{r} {g} {b}");
        assert_eq!(of(&p3, [255, 0, 0]), [255, 0, 0]);
        let icc = Profile::Icc(Cow::Owned(ColorProfile::new_display_p3().encode().unwrap()));
        let as_icc = of(&icc, [200, 60, 50]);
        assert!([r, g, b].iter().zip(as_icc).all(|(a, b)| a.abs_diff(b) <= 2), "{as_icc:?}");
        for none in [
            Profile::Codes { primaries: 1, transfer: 13 },
            Profile::Codes { primaries: 9, transfer: 16 },
            Profile::Icc(Cow::Borrowed(b"no profile")),
        ] {
            assert_eq!(of(&none, [200, 60, 50]), [200, 60, 50]);
        }
    }
}
