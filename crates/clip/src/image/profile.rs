//! The colour space that a file states for its samples. Embeddings ignore it, as the reference pipelines do;
//! thumbnails, which people see, are converted to sRGB.

use std::borrow::Cow;

use image::RgbImage;
use moxcms::{ColorProfile, DataColorSpace, Layout, ParsingOptions, RenderingIntent, TransformOptions};

use crate::error::{Error, Kind, Result, without_panic};
use crate::image::limits::Limits;
use crate::memory::{self, Reserve};

/// Maximum bytes of a colour profile. Real profiles have at most 2 MB.
pub(crate) const LARGEST: usize = 4 << 20;

/// Maximum bytes for reading and preparing a profile's tables. The library's own limit of ten million numbers is far
/// more than photos need.
const TABLES: usize = 64 << 20;

/// How a file states the colours of its samples.
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

    /// The profile to convert from. None if an ICC profile is not RGB or can't be read, or if the code points mean sRGB or
    /// are not supported.
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
            // The transfer curves of video are treated as sRGB's, which they nearly equal. The curves of high dynamic
            // range (16, 18) would need tone mapping, not only another profile.
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

/// Converts a picture's colours to sRGB. If the profile can't be read, the colours stay unchanged, as in browsers.
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
    // 64 rows at a time; about 100 rows take a millisecond.
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
        // A P3 red within sRGB has more extreme values in sRGB; P3's purest red is outside sRGB.
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
