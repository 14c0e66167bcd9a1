//! A model on disk and in memory: its files, ONNX Runtime's sessions, rewritten graphs, pooling after the graph.

pub mod config;
pub mod eight_bit;
mod files;
pub mod graph_cache;
mod onnx;
pub mod operators;
pub mod pooling;
pub mod session;
pub mod watched;
pub mod weights;

pub use files::*;
