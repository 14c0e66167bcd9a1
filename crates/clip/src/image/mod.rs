//! Converts image files to the input tensor of a vision tower, reads image headers, and creates thumbnails.

mod bmff;
mod bmp;
mod decode;
mod exif;
mod format;
mod gif;
#[cfg(any(feature = "heic", feature = "avif"))]
mod heif;
mod image_crate;
pub mod info;
mod jpeg;
#[cfg(feature = "jxl")]
mod jxl;
mod limits;
mod orientation;
mod picture;
mod pixels;
mod png;
mod prepare;
pub mod preprocess;
mod profile;
mod raw;
pub mod resample;
pub mod synthetic;
pub mod thumbnail;
mod tiff;
mod to_tensor;
mod uninterruptible;
mod webp;

pub use decode::{MIN_OVERSAMPLING, decode, decode_for};
pub use limits::Limits;
pub use picture::Decoded;
pub use picture::Taken;
pub use prepare::resize_and_crop;
pub use to_tensor::to_tensor;
