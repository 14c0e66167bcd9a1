//! The SQL functions for embeddings: images, texts, queries, classification, benchmark.

mod benchmark;
pub mod classify;
pub mod functions;
pub mod images;
pub mod query;
