//! A model on disk and in memory: its files, ONNX Runtime's sessions, rewritten graphs, pooling after the graph.

pub mod cache_directory;
pub mod config;
mod files;
pub mod graph_cache;
pub mod interruptible;
mod onnx;
pub mod operators;
pub mod pooling;
pub mod quantize;
pub mod session;
pub mod weights;

pub use files::*;
