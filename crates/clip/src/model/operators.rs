//! The operators of a graph, read from its file without loading it.
//!
//! An ONNX file is a protobuf message: field 7 of the model is the graph, field 1 of the graph is a node, and field 4
//! of a node is its operator's name. Weights are fields, too; they are skipped by their length, so only a few kilobytes
//! of 600 MB are read.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Error, ErrorKind, Read, Result, Seek};
use std::path::Path;

use crate::regular_file;

const GRAPH: u64 = 7;
const NODE: u64 = 1;
const OPERATOR: u64 = 4;
/// Maximum bytes of a node, which contains its inputs, outputs and attributes. Longer nodes have a large constant in an
/// attribute, and are skipped.
const LONGEST_NODE: u64 = 16 << 20;
const LONGEST_NAME: u64 = 256;

/// Operators that determine the range of their input at run time.
const DYNAMIC: [&str; 3] = ["DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"];

/// Whether the graph quantizes by the range of its input. This range spans a whole batch, so an item's vector would
/// depend on the other items in the batch. False if the file can't be read.
pub fn quantizes_dynamically(file: &Path) -> bool {
    let Ok(operators) = operators(file) else { return false };
    DYNAMIC.iter().any(|name| operators.contains(*name))
}

/// The number of threads for a graph that may have `threads`: one if it contains `ConvInteger`. With two or more
/// threads, ONNX Runtime 1.24 returns wrong numbers for this operator: 8 of the 12,544 of a quantized SigLIP's patches
/// (16 pixels, 224×224) are outside the range of the right ones. The vectors then have a cosine of 0.87 to the vectors
/// of one thread, whose cosine to float32's is 0.9999.
pub fn allowed_threads(file: &Path, threads: usize) -> usize {
    // The file is read only if it matters, because every connection loads its models.
    let wrong = || operators(file).is_ok_and(|operators| operators.contains("ConvInteger"));
    if threads > 1 && wrong() { 1 } else { threads }
}

/// The names of the operators of a graph, without those of its subgraphs.
///
/// # Errors
/// If the file can't be read or is not an ONNX file.
fn operators(path: &Path) -> Result<HashSet<String>> {
    let file = regular_file::open(path)?;
    let length = file.metadata()?.len();
    let mut reader = BufReader::new(file);
    let mut names = HashSet::new();
    fields(&mut reader, length, |reader, field, length| {
        if field != GRAPH {
            return skip(reader, length);
        }
        fields(reader, length, |reader, field, length| {
            if field != NODE || length > LONGEST_NODE {
                return skip(reader, length);
            }
            fields(reader, length, |reader, field, length| {
                if field != OPERATOR || length > LONGEST_NAME {
                    return skip(reader, length);
                }
                let mut name = vec![0; length as usize];
                reader.read_exact(&mut name)?;
                names.insert(String::from_utf8_lossy(&name).into_owned());
                Ok(())
            })
        })
    })?;
    Ok(names)
}

/// Calls `f` with the number and the length of each length-delimited field of a message. Other fields are skipped.
fn fields(
    reader: &mut BufReader<File>,
    length: u64,
    mut f: impl FnMut(&mut BufReader<File>, u64, u64) -> Result<()>,
) -> Result<()> {
    let bad = || Error::new(ErrorKind::InvalidData, "not a protobuf message");
    let end = reader.stream_position()?.checked_add(length).ok_or_else(bad)?;
    loop {
        let place = reader.stream_position()?;
        if place >= end {
            return if place == end { Ok(()) } else { Err(bad()) };
        }
        let key = varint(reader)?;
        match key & 7 {
            0 => drop(varint(reader)?),
            1 => skip(reader, 8)?,
            5 => skip(reader, 4)?,
            2 => {
                let length = varint(reader)?;
                if reader.stream_position()?.checked_add(length).is_none_or(|after| after > end) {
                    return Err(bad());
                }
                f(reader, key >> 3, length)?;
            }
            _ => return Err(bad()),
        }
    }
}

fn skip(reader: &mut BufReader<File>, length: u64) -> Result<()> {
    reader.seek_relative(i64::try_from(length).map_err(|_| Error::from(ErrorKind::InvalidData))?)
}

fn varint(reader: &mut impl Read) -> Result<u64> {
    let (mut value, mut byte) = (0u64, [0; 1]);
    for shift in (0..64).step_by(7) {
        reader.read_exact(&mut byte)?;
        value |= u64::from(byte[0] & 0x7F) << shift;
        if byte[0] < 0x80 {
            return Ok(value);
        }
    }
    Err(Error::from(ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(file: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/layouts").join(file)
    }

    #[test]
    fn operators_are_read_from_the_file() {
        let plain = operators(&layout("xenova-split/onnx/vision_model.onnx")).unwrap();
        assert!(plain.contains("MatMul") && plain.contains("AveragePool"), "{plain:?}");
        assert!(!quantizes_dynamically(&layout("xenova-split/onnx/vision_model.onnx")));
        assert!(quantizes_dynamically(&layout("xenova-split/onnx/vision_model_quantized.onnx")));
        assert!(!quantizes_dynamically(&layout("xenova-split/config.json")));
        assert!(!quantizes_dynamically(&layout("nothing")));
        assert_eq!(allowed_threads(&layout("xenova-split/onnx/vision_model.onnx"), 2), 2);
        assert_eq!(allowed_threads(&layout("nothing"), 3), 3);
        assert_eq!(allowed_threads(&layout("../exports/quantized-patches/onnx/vision_model.onnx"), 2), 1);
    }
}
