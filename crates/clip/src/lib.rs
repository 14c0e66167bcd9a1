//! CLIP inference on the CPU: converts image files and texts to L2-normalised vectors.
//!
//! This crate doesn't depend on PostgreSQL. Its modules, in the order of the data flow:
//!
//! | module | does |
//! |---|---|
//! | [`image`] | bytes → upright RGB within limits → resized, cropped, normalised NCHW; headers, thumbnails |
//! | [`text`] | text → token ids |
//! | [`model`] | a model directory, ONNX Runtime's sessions, rewritten graphs on disk, pooling |
//! | [`embedder`] | the complete path; from cosines to probabilities |
//! | [`regular_file`] | files of models and lists, which must be regular ones |
//! | [`query`] | queries of several terms, diversity |
//! | [`relevance`] | how certainly a photo shows the subject of a text, compared with a background of words; tags |
//! | [`vector`] | unit vectors, cosines |
//! | [`memory`] | allocations that fail with an error instead of ending the process |
//! | [`stats`] | counters of embedders, for each model |
//! | [`clustering`] | centroids, binary codes, agglomerative clustering |

pub mod clustering;
pub mod embedder;
mod error;
pub mod image;
pub mod memory;
pub mod model;
pub mod query;
pub mod regular_file;
pub mod relevance;
pub mod stats;
pub mod text;
mod threads;
pub mod vector;

pub use error::{Error, Kind, Result, Setting, without_panic};
