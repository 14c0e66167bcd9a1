//! Models in this process: loading, preloading, inspection, origin of vectors, background words, statistics.

pub mod background;
mod cache;
mod image_memo;
mod inspect;
pub mod loaded;
pub mod origin;
pub mod preload;
pub mod stats;
