//! PostgreSQL's interfaces for the other modules: errors, privileges, tables, vectors, transactions.

pub mod analyzed;
pub mod call_site;
pub mod catalog;
pub mod citus;
mod cursors;
pub mod error;
pub mod hard_limit;
pub mod interrupt;
pub mod owners_table;
pub mod regclass;
pub mod restore;
mod restricted;
pub mod row_counts;
pub mod spi;
pub mod subtransaction;
pub mod text;
pub mod transaction;
pub mod user_context;
pub mod vector;
pub mod vector_column;

/// Installs the hooks of this module. Called when the library is loaded.
pub fn register() {
    analyzed::register();
    restricted::register();
}
