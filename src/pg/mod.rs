//! What any extension in Rust could use: nothing of CLIP, clusters or watches.

pub mod catalog;
pub mod citus;
pub mod error;
pub mod interrupt;
pub mod owners_table;
pub mod regclass;
pub mod row_counts;
pub mod spi;
pub mod subtransaction;
pub mod text;
pub mod transaction;
pub mod user_context;
pub mod vector;
pub mod vector_column;
