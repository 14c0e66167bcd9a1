//! What any extension in Rust could use: nothing of CLIP, clusters or watches.

pub mod citus;
pub mod error;
pub mod interrupt;
pub mod regclass;
pub mod text;
pub mod user_context;
pub mod vector;
