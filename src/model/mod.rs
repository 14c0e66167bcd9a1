//! Models in this process: loading, preloading, inspection, the origin of vectors, statistics.

mod image_memo;
mod inspect;
pub mod loaded;
pub mod origin;
pub mod preload;
pub mod stats;
