//! CLIP inference on the CPU: image bytes or text in, L2-normalised vectors out.
//!
//! Nothing here knows PostgreSQL. The pieces, in the order in which data passes them:
//!
//! | module | does |
//! |---|---|
//! | [`image`] | bytes → upright RGB within limits → resized, cropped, normalised NCHW; headers, thumbnails |
//! | [`text`] | text → token ids |
//! | [`model`] | a model directory, ONNX Runtime's sessions, rewritten graphs on disk, pooling |
//! | [`embedder`] | the pieces together; from cosines to probabilities |
//! | [`query`] | queries of several parts, diversity |
//! | [`relevance`] | whether a photo shows what a text says, against a background of words; tags |
//! | [`vector`] | unit vectors, cosines |
//! | [`memory`] | allocations that fail with an error instead of ending the process |
//! | [`stats`] | what embedders have done, for each model |
//! | [`clustering`] | centroids, binary codes, agglomerative clustering |

pub mod clustering;
pub mod embedder;
mod error;
pub mod image;
pub mod memory;
pub mod model;
pub mod query;
pub mod relevance;
pub mod stats;
pub mod text;
mod threads;
pub mod vector;

pub use error::{Error, Kind, Result, Setting, without_panic};
