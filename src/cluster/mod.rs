//! Groups of look-alikes: assignment, their tables, collections, regrouping.

pub mod assign;
pub mod collection;
pub mod pending;
pub mod recluster;
pub mod statements;
pub mod tables;
