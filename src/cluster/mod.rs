//! Groups of similar vectors: assignment, the cluster tables, collections, regrouping.

pub mod access;
pub mod assign;
pub mod collection;
mod columns;
pub mod distributed;
pub mod duplicates;
pub mod maintenance;
pub mod members;
pub mod pending;
pub mod recluster;
pub mod report;
pub mod search;
mod session_state;
pub mod statements;
pub mod tables;
