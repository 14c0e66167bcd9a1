//! Texts to token ids.

mod cleaning;
mod encoder;
mod files;
mod prompt;
mod repetitions;
mod siglip;
mod tokenize;

pub use encoder::{TextEncoder, Tokens};
