//! Text to token ids.

mod encoder;
mod pieces;
mod runs;

pub use encoder::{TextEncoder, Tokens};
