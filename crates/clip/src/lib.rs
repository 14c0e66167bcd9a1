//! CLIP inference on the CPU: image bytes or text in, L2-normalised vectors out.
//!
//! Nothing here knows PostgreSQL. The pieces, in the order in which data passes them:
//!
//! | module | does |
//! |---|---|
//! | [`image`] | bytes → upright RGB within limits → resized, cropped, normalised NCHW |
//! | [`resample`] | Pillow's resampling |
//! | [`preprocess`] | what a model's configuration says about the above |
//! | [`text`] | text → token ids |
//! | [`model`] | a model directory: where it is found, which files it has |
//! | [`session`] | ONNX Runtime: library, environment, one tower |
//! | [`cache`] | rewritten graphs on disk, to be mapped |
//! | [`embedder`] | the pieces together |
//! | [`classify`] | from cosines to probabilities |
//! | [`query`] | queries of several parts, diversity |
//! | [`info`] | what a file says of itself |
//! | [`thumbnail`] | small copies for galleries |
//! | [`stats`] | what embedders have done, for each model |
//! | [`sample`] | made-up photos, to measure with |
//! | [`cluster`] | the arithmetic of grouping |
//! | [`agglomerative`] | clusters of a whole collection at once |
//! | [`code`] | binary codes that find near vectors among a million |

pub mod agglomerative;
pub mod cache;
pub mod classify;
pub mod cluster;
pub mod code;
pub mod embedder;
mod error;
mod format;
mod head;
pub mod image;
pub mod info;
mod jpeg;
pub mod model;
pub mod preprocess;
pub mod query;
pub mod resample;
pub mod sample;
pub mod session;
pub mod stats;
pub mod text;
pub mod thumbnail;

pub use error::{Error, Kind, Result, without_panic};
