//! Text to token ids.

mod cleaning;
mod encoder;
mod files;
mod pieces;
mod runs;
mod spiece;

pub use encoder::{TextEncoder, Tokens};
