//! Text to token ids.

mod encoder;

pub use encoder::{TextEncoder, Tokens};
