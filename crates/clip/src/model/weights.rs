//! Reads single tensors of safetensors files: eight bytes with the length of a JSON header, the header, and the values.
//! Only the requested tensors are read, because these files have hundreds of megabytes.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::model::read_json;
use crate::{memory, regular_file};

/// Maximum bytes of a header, which takes about 100 bytes per tensor; ViT-L has 600 tensors.
const LONGEST_HEADER: u64 = 16 << 20;
/// Maximum number of values of a tensor: a projection of 4096 to 4096. The largest projection in CLIP models is 1664 to
/// 1280.
const MOST_VALUES: usize = 1 << 24;
/// File names of weights in Hugging Face's, open_clip's and sentence-transformers' layouts.
const NAMES: [&str; 3] = ["model.safetensors", "open_clip_model.safetensors", "0_CLIPModel/model.safetensors"];

/// A tensor as float32.
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Finds the first of these tensors in a directory's weights. Returns it with its file, and the others from the same
/// weights; None for a tensor that they do not contain. The weights of large models are split into several files, with
/// an index of the tensors; a file that was not downloaded counts as empty.
///
/// # Errors
/// The errors of [`read`], and [`Kind::BadModel`] if an index can't be used.
pub fn find<const N: usize>(directory: &Path, names: [&str; N]) -> Result<Option<([Option<Tensor>; N], PathBuf)>> {
    for file in NAMES.map(|name| directory.join(name)) {
        if file.is_file() {
            let found = read(&file, names)?;
            if found[0].is_some() {
                return Ok(Some((found, file)));
            }
            continue;
        }
        let mut index = file.into_os_string();
        index.push(".index.json");
        let index = PathBuf::from(index);
        if !index.is_file() {
            continue;
        }
        let map = read_json(&index)?;
        let shard = |name: &str| match map["weight_map"][name].as_str() {
            Some(shard) if Path::new(shard).file_name().is_none_or(|plain| plain != shard) => {
                Err(Error::new(Kind::BadModel, format!("model file \"{}\" cannot be used", index.display()))
                    .detail(format!("It has \"{name}\" in \"{shard}\", which is not a file's name.")))
            }
            shard => Ok(shard.map(|shard| index.with_file_name(shard)).filter(|file| file.is_file())),
        };
        let Some(first) = shard(names[0])? else { continue };
        let mut found = names.map(|_| None);
        for (name, found) in names.into_iter().zip(&mut found) {
            if let Some(file) = shard(name)? {
                [*found] = read(&file, [name])?;
            }
        }
        if found[0].is_some() {
            return Ok(Some((found, first)));
        }
    }
    Ok(None)
}

/// Reads the tensors with these names; None for a name that the file does not contain.
///
/// # Errors
/// [`Kind::BadModel`] if the file is not in this format, or if a tensor has no float type or is too large;
/// [`Kind::OutOfMemory`].
pub fn read<const N: usize>(path: &Path, names: [&str; N]) -> Result<[Option<Tensor>; N]> {
    let broken = |why: String| {
        Error::new(Kind::BadModel, format!("model file \"{}\" is not a safetensors file", path.display())).detail(why)
    };
    let io = |e: std::io::Error| broken(format!("{e}."));
    let mut file = regular_file::open(path).map_err(|e| {
        Error::new(Kind::BadModel, format!("model file \"{}\" cannot be read", path.display())).detail(format!("{e}."))
    })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a safetensors file with one number per tensor.
    fn write(file: &Path, tensors: &[(&str, f32)]) {
        let header: serde_json::Map<String, Value> = (0..)
            .zip(tensors)
            .map(|(i, (name, _))| {
                let place = serde_json::json!({"dtype": "F32", "shape": [], "data_offsets": [4 * i, 4 * i + 4]});
                ((*name).to_owned(), place)
            })
            .collect();
        let header = Value::Object(header).to_string();
        let values = tensors.iter().flat_map(|(_, value)| value.to_le_bytes());
        let bytes = (header.len() as u64).to_le_bytes().into_iter().chain(header.bytes()).chain(values);
        std::fs::write(file, bytes.collect::<Vec<u8>>()).unwrap();
    }

    #[test]
    fn tensors_are_found_in_split_weights() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-models/shards");
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let find = |names| {
            let found = find(&directory, names).map_err(|e| e.detail.unwrap())?;
            Ok::<_, String>(found.map(|(tensors, file)| {
                let values = tensors.map(|tensor: Option<Tensor>| tensor.map(|tensor| tensor.values[0]));
                (values, file.file_name().unwrap().to_owned().into_string().unwrap())
            }))
        };
        let index = |map: &str| {
            let content = format!("{{\"metadata\": {{}}, \"weight_map\": {map}}}");
            std::fs::write(directory.join("model.safetensors.index.json"), content).unwrap();
        };
        assert_eq!(find(["logit_scale", "logit_bias"]), Ok(None));
        index(r#"{"logit_scale": "model-1-of-2.safetensors", "logit_bias": "model-2-of-2.safetensors"}"#);
        assert_eq!(find(["logit_scale", "logit_bias"]), Ok(None), "none is downloaded");
        write(&directory.join("model-1-of-2.safetensors"), &[("other", 1.0), ("logit_scale", 4.5)]);
        let file = "model-1-of-2.safetensors".to_owned();
        assert_eq!(find(["logit_scale", "logit_bias"]), Ok(Some(([Some(4.5), None], file.clone()))));
        write(&directory.join("model-2-of-2.safetensors"), &[("logit_bias", -12.0)]);
        assert_eq!(find(["logit_scale", "logit_bias"]), Ok(Some(([Some(4.5), Some(-12.0)], file))));
        assert_eq!(find(["text_projection.weight", "logit_scale"]), Ok(None));
        index(r#"{"logit_scale": "../shards/model-1-of-2.safetensors"}"#);
        assert!(find(["logit_scale", "logit_bias"]).unwrap_err().contains("is not a file's name"));
        // Weights in a single file take precedence.
        write(&directory.join("model.safetensors"), &[("logit_scale", 3.0)]);
        let whole = "model.safetensors".to_owned();
        assert_eq!(find(["logit_scale", "logit_bias"]), Ok(Some(([Some(3.0), None], whole))));
    }
}
