//! Image bytes to the tensor that a vision tower takes, and what else is asked of a file: its header, a thumbnail.

mod decode;
mod format;
pub mod info;
mod jpeg;
pub mod preprocess;
pub mod resample;
pub mod synthetic;
pub mod thumbnail;

pub(crate) use decode::truncated;
pub use decode::{Decoded, Limits, SPARE, decode, decode_for, normalise, resize_and_crop};
