//! Models in this process: loading, preloading, statistics.

pub mod loaded;
pub mod preload;
pub mod stats;
