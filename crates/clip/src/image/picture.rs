//! Types that all format decoders share: format, header, picture.

use image::RgbImage;
use image::metadata::Orientation;

use crate::error::{Error, Kind};
use crate::image::limits::bytes_of;
use crate::image::orientation::swaps_sides;
use crate::image::profile::Profile;

/// The date and time at which a picture was taken, by the camera's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub year: u16,
    pub month: u8,
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
    pub microsecond: u32,
    /// The clock's offset from UTC in minutes, if the file states it.
    pub offset: Option<i16>,
}

/// A supported format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Jpeg,
    Png,
    Gif,
    WebP,
    Bmp,
    Tiff,
    Ico,
    /// The preview in the file is decoded.
    Raw,
    #[cfg(feature = "heic")]
    Heic,
    #[cfg(feature = "avif")]
    Avif,
    #[cfg(feature = "jxl")]
    Jxl,
}

impl Format {
    /// In the order in which a hint lists them.
    pub const ALL: &[Self] = &[
        Self::Jpeg,
        Self::Png,
        Self::WebP,
        Self::Gif,
        Self::Bmp,
        Self::Tiff,
        Self::Ico,
        #[cfg(feature = "heic")]
        Self::Heic,
        #[cfg(feature = "avif")]
        Self::Avif,
        #[cfg(feature = "jxl")]
        Self::Jxl,
        Self::Raw,
    ];

    /// Its name, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Gif => "GIF",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
            Self::Ico => "ICO",
            Self::Raw => "camera RAW",
            #[cfg(feature = "heic")]
            Self::Heic => "HEIC",
            #[cfg(feature = "avif")]
            Self::Avif => "AVIF",
            #[cfg(feature = "jxl")]
            Self::Jxl => "JPEG XL",
        }
    }

    /// The error for a damaged file of this format.
    pub fn broken(self, detail: impl Into<String>) -> Error {
        Error::new(Kind::InvalidInput, format!("{} image is broken", self.name())).detail(detail)
    }

    /// The error for an unsupported kind of this format.
    pub fn unsupported(self, detail: impl Into<String>) -> Error {
        Error::new(Kind::Unsupported, format!("this sort of {} image is not supported", self.name()))
            .detail(detail)
            .hint("Convert it to an ordinary JPEG or PNG.")
    }
}

/// Values from an image file's header.
pub(crate) struct Header {
    /// The size in pixels as stored.
    pub size: (u32, u32),
    pub channels: u8,
    /// Bits per sample.
    pub bits: u8,
    pub orientation: Orientation,
    pub frames: u32,
    /// The date of the picture in EXIF.
    pub taken: Option<Taken>,
}

/// A decoded image.
#[derive(Debug)]
pub struct Decoded {
    /// The upright picture, smaller than the file's picture by `shrink`.
    pub rgb: RgbImage,
    /// The divisor of the file's own size, with sides rounded up: 1 (full size), 2, 4 or 8.
    pub shrink: u32,
    /// The file's own size in pixels, upright: (width, height).
    pub size: (u32, u32),
    /// The position in `rgb`, (x, y) in its pixels, at which the picture begins. It differs from 0 if `shrink` doesn't
    /// divide a side and the EXIF orientation has moved the rounded-up end of that side to the front.
    pub(super) origin: (f64, f64),
    /// Set if the file ended before its picture; the rest of the picture is grey, black or white.
    pub truncated: Option<Error>,
    /// The colour profile of the samples, if only the decoder knows it.
    pub(super) profile: Option<Profile<'static>>,
}

/// The result of a format's decoder: the picture as stored.
pub(crate) struct Picture {
    pub rgb: RgbImage,
    /// The file's own size; `rgb` is smaller by `shrink`.
    pub size: (u32, u32),
    pub shrink: u32,
    pub orientation: Orientation,
    pub short: Short,
    /// The colour profile of the samples, if only the decoder knows it.
    pub profile: Option<Profile<'static>>,
}

impl Picture {
    /// Peak bytes that a picture of this size takes until it is upright. `decoder` is the decoder's memory in addition
    /// to the picture.
    pub fn peak(size: (u32, u32), decoder: u64, orientation: Orientation) -> u64 {
        let rgb = bytes_of(size, 3);
        rgb.saturating_add(decoder.max(if swaps_sides(orientation) { rgb } else { 0 }))
    }
}

/// The part of a picture that its file lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    Nothing,
    /// Some pixels, and all pixels of this many rows.
    Rows(u32),
    /// A large part, or an unknown part.
    Everything,
}

pub(crate) fn truncated(format: Format, length: usize) -> Error {
    Error::new(Kind::InvalidInput, format!("{} image is truncated", format.name()))
        .detail(format!("Its {length} bytes end before the picture does."))
        .hint("Upload the file again; part of it is missing.")
}
