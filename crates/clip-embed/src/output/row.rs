//! A row of an output.

use std::path::Path;

use clip::{Error, Kind, Result};

/// A vector as it is stored in a file. Only callers that need the numbers convert them.
pub enum Vector<'a> {
    Text(&'a [u8]),
    Binary(&'a [u8]),
    Floats(&'a [f32]),
}

impl Vector<'_> {
    /// The vector's numbers. None if it is not a vector.
    pub fn floats(&self) -> Option<Vec<f32>> {
        match self {
            Self::Floats(values) => Some(values.to_vec()),
            Self::Text(text) => {
                let text = std::str::from_utf8(text).ok()?.strip_prefix('[')?.strip_suffix(']')?;
                text.split(',').map(|value| value.parse().ok()).collect()
            }
            Self::Binary(bytes) => {
                let (head, values) = bytes.split_at_checked(4)?;
                let dimensions = u16::from_be_bytes([head[0], head[1]]);
                let values: Vec<f32> =
                    values.chunks_exact(4).map(|b| f32::from_be_bytes([b[0], b[1], b[2], b[3]])).collect();
                (bytes.len() == 4 + 4 * usize::from(dimensions) && values.len() == usize::from(dimensions))
                    .then_some(values)
            }
        }
    }
}

/// Receives the rows of a file: key and vector.
pub type Take<'a> = dyn FnMut(&str, Vector<'_>) -> Result<()> + 'a;

pub fn foreign(path: &Path, why: String) -> Error {
    Error::new(Kind::InvalidInput, format!("\"{}\" is not what clip-embed writes", path.display()))
        .detail(why)
        .hint("Give another --output.")
}
