//! Models in this process: loading, preloading, inspection, the origin of vectors, the words that photos are compared with, statistics.

pub mod background;
mod image_memo;
mod inspect;
pub mod loaded;
pub mod origin;
pub mod preload;
pub mod stats;
