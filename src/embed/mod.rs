//! The SQL functions over embeddings: images, texts, queries, classification.

pub mod classify;
pub mod functions;
pub mod images;
pub mod query;
