//! Single tensors of a safetensors file: eight bytes with the length of a JSON header, the header, the values. Only the
//! requested tensors are read, because these files have hundreds of megabytes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::memory;

/// A header lists every tensor, with about 100 bytes each; ViT-L has 600 tensors.
const LONGEST_HEADER: u64 = 16 << 20;
/// A projection of 4096 to 4096; the largest projection in CLIP models is 1664 to 1280.
const MOST_VALUES: usize = 1 << 24;
/// File names of a model's weights in Hugging Face's, open_clip's and sentence-transformers' layouts.
const NAMES: [&str; 3] = ["model.safetensors", "open_clip_model.safetensors", "0_CLIPModel/model.safetensors"];

/// A tensor as float32.
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// The files of a directory that may contain a model's weights.
pub fn files(directory: &Path) -> impl Iterator<Item = PathBuf> {
    NAMES.map(|name| directory.join(name)).into_iter().filter(|file| file.is_file())
}

/// The tensors with these names; None for a name that the file does not contain.
///
/// # Errors
/// [`Kind::BadModel`] if the file is not in this format, or a tensor is not of a float type or too large;
/// [`Kind::OutOfMemory`].
pub fn read<const N: usize>(path: &Path, names: [&str; N]) -> Result<[Option<Tensor>; N]> {
    let broken = |why: String| {
        Error::new(Kind::BadModel, format!("model file \"{}\" is not a safetensors file", path.display())).detail(why)
    };
    let io = |e: std::io::Error| broken(format!("{e}."));
    let mut file = File::open(path).map_err(io)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(broken(format!("Its header would have {length} bytes.")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(io)?;
    let header: Value = serde_json::from_slice(&header).map_err(|e| broken(format!("The parser says: {e}.")))?;
    let mut found = names.map(|_| None);
    for (name, found) in names.into_iter().zip(&mut found) {
        let tensor = &header[name];
        let (Some(kind), Some(begin)) = (tensor["dtype"].as_str(), tensor["data_offsets"][0].as_u64()) else {
            continue;
        };
        let unusable = |what: String| {
            Error::new(Kind::BadModel, format!("{name} {what} of model file \"{}\" cannot be used", path.display()))
        };
        let width = match kind {
            "F32" => 4,
            "F16" | "BF16" => 2,
            _ => return Err(unusable(format!("of type {kind}"))),
        };
        let shape: Vec<usize> = tensor["shape"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|side| side.as_u64().and_then(|side| usize::try_from(side).ok()).unwrap_or(usize::MAX))
            .collect();
        let count = shape.iter().try_fold(1usize, |count, side| count.checked_mul(*side));
        let Some(count) = count.filter(|count| *count <= MOST_VALUES) else {
            return Err(unusable(format!("of shape {shape:?}")));
        };
        let mut bytes = memory::with_capacity::<u8>(count * width)?;
        bytes.resize(count * width, 0);
        file.seek(SeekFrom::Start((8 + length).saturating_add(begin))).map_err(io)?;
        file.read_exact(&mut bytes).map_err(io)?;
        let pairs = || bytes.as_chunks::<2>().0.iter();
        let values = match kind {
            "F32" => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            "F16" => pairs().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            _ => pairs().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        };
        *found = Some(Tensor { shape, values });
    }
    Ok(found)
}
