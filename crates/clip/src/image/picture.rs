//! What the decoders of the formats take and give: the format, a header, a picture.

use image::RgbImage;
use image::metadata::Orientation;

use crate::error::{Error, Kind};
use crate::image::limits::bytes_of;
use crate::image::orientation::swaps_sides;
use crate::image::profile::Profile;

/// A date and a time by the camera's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub year: u16,
    pub month: u8,
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
    pub microsecond: u32,
    /// Minutes that the clock was ahead of UTC, where the file says so.
    pub offset: Option<i16>,
}

/// A format that is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Jpeg,
    Png,
    Gif,
    WebP,
    Bmp,
    Tiff,
    Ico,
    /// Known by its preview.
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

    /// How a person calls it.
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

    /// The error for a file of this format that is damaged.
    pub fn broken(self, detail: impl Into<String>) -> Error {
        Error::new(Kind::InvalidInput, format!("{} image is broken", self.name())).detail(detail)
    }

    /// The error for a sort of this format that is not decoded.
    pub fn unsupported(self, detail: impl Into<String>) -> Error {
        Error::new(Kind::Unsupported, format!("this sort of {} image is not supported", self.name()))
            .detail(detail)
            .hint("Convert it to an ordinary JPEG or PNG.")
    }
}

/// What a format's own reader finds in a header.
pub(crate) struct Header {
    /// As stored.
    pub size: (u32, u32),
    pub channels: u8,
    /// Of a sample.
    pub bits: u8,
    pub orientation: Orientation,
    pub frames: u32,
    /// When the picture was taken, in EXIF.
    pub taken: Option<Taken>,
}

/// A decoded image.
#[derive(Debug)]
pub struct Decoded {
    /// Upright, and smaller than the file's picture by `shrink`.
    pub rgb: RgbImage,
    /// What the file's own size was divided by, sides rounded up: 1 (the whole), 2, 4 or 8.
    pub shrink: u32,
    /// The file's own size, upright: (width, height).
    pub size: (u32, u32),
    /// Where in `rgb` the picture begins, (x, y) in its pixels: not at 0 where `shrink` doesn't divide a side whose
    /// rounded-up end EXIF orientation has turned to the front.
    pub(super) origin: (f64, f64),
    /// The file ended before the picture did; the rest of the picture is grey, black or white.
    pub truncated: Option<Error>,
    /// What colours the samples are, where only the decoder knows.
    pub(super) profile: Option<Profile<'static>>,
}

/// What a format's decoder makes of a file: the picture as it is stored.
pub(crate) struct Picture {
    pub rgb: RgbImage,
    /// The file's own size, of which `rgb` is smaller by `shrink`.
    pub size: (u32, u32),
    pub shrink: u32,
    pub orientation: Orientation,
    pub short: Short,
    /// What colours its samples are, where only its decoder knows.
    pub profile: Option<Profile<'static>>,
}

impl Picture {
    /// Bytes that a picture of this size takes until it is upright, at their peak: while it is decoded, and while it is
    /// turned.
    pub fn peak(size: (u32, u32), decoder: u64, orientation: Orientation) -> u64 {
        let rgb = bytes_of(size, 3);
        rgb.saturating_add(decoder.max(if swaps_sides(orientation) { rgb } else { 0 }))
    }
}

/// What of a picture its file lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    Nothing,
    /// Some pixels, and so many rows entirely.
    Rows(u32),
    /// Enough to make it another picture, or nobody knows how much.
    Everything,
}

pub(crate) fn truncated(format: Format, length: usize) -> Error {
    Error::new(Kind::InvalidInput, format!("{} image is truncated", format.name()))
        .detail(format!("Its {length} bytes end before the picture does."))
        .hint("Upload the file again; part of it is missing.")
}
