//! The parts of an ONNX file that the quantizer changes, as protobuf messages. All other parts remain bytes.
//!
//! Field numbers come from onnx.proto (ONNX 1.20, IR version 13).

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use prost::Message;

use crate::error::{Error, Kind, Result};
use crate::{memory, regular_file};

/// TensorProto.DataType
pub const FLOAT: i32 = 1;
pub const UINT8: i32 = 2;
pub const INT8: i32 = 3;
/// TensorProto.DataLocation
const EXTERNAL: i32 = 1;
/// The type of a float32 tensor of any shape: TypeProto { tensor_type { elem_type: FLOAT } }.
pub const FLOAT_TENSOR: [u8; 4] = [0x0a, 0x02, 0x08, 0x01];

#[derive(Clone, PartialEq, Message)]
pub struct Model {
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub producer_name: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub producer_version: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub domain: Option<String>,
    #[prost(int64, optional, tag = "5")]
    pub model_version: Option<i64>,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    #[prost(bytes = "vec", repeated, tag = "25")]
    pub functions: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct OperatorSet {
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<Tensor>,
    #[prost(bytes = "vec", repeated, tag = "11")]
    pub input: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfo>,
    #[prost(bytes = "vec", repeated, tag = "13")]
    pub value_info: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "14")]
    pub quantization_annotation: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "15")]
    pub sparse_initializer: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueInfo {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub kind: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Node {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, optional, tag = "3")]
    pub name: Option<String>,
    #[prost(string, optional, tag = "4")]
    pub op_type: Option<String>,
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub attribute: Vec<Vec<u8>>,
    #[prost(string, optional, tag = "7")]
    pub domain: Option<String>,
    #[prost(string, optional, tag = "8")]
    pub overload: Option<String>,
}

/// An attribute with a numeric value. Other kinds of values are lost, so it must be used only for reading and for new
/// nodes.
#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    /// AttributeProto.AttributeType: 1 is FLOAT, 2 is INT.
    #[prost(int32, optional, tag = "20")]
    pub kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Tensor {
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub string_data: Vec<Vec<u8>>,
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "9")]
    pub raw_data: Option<Vec<u8>>,
    #[prost(double, repeated, tag = "10")]
    pub double_data: Vec<f64>,
    #[prost(uint64, repeated, tag = "11")]
    pub uint64_data: Vec<u64>,
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<Entry>,
    #[prost(int32, optional, tag = "14")]
    pub data_location: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    #[prost(string, optional, tag = "1")]
    pub key: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}

impl Model {
    /// Reads a graph. Its large weights stay in the files beside it.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if the file can't be read or is not an ONNX file.
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = regular_file::read(file).map_err(|e| failed(file, &e.to_string()))?;
        let model = Self::decode(bytes.as_slice()).map_err(|e| failed(file, &e.to_string()))?;
        if model.graph.is_none() { Err(failed(file, "it has no graph")) } else { Ok(model) }
    }

    /// Writes the graph to a file.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if the file can't be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        fs::write(file, self.encode_to_vec()).map_err(|e| failed(file, &e.to_string()))
    }

    /// Declares that the graph uses the operators of a domain.
    pub fn import(&mut self, domain: &str, version: i64) {
        if !self.opset_import.iter().any(|set| set.domain() == domain) {
            self.opset_import.push(OperatorSet { domain: Some(domain.to_owned()), version: Some(version) });
        }
    }
}

impl Node {
    /// A node with these inputs and one output.
    pub fn new(op_type: &str, inputs: &[&str], output: &str) -> Self {
        Self::with_outputs(op_type, inputs, &[output])
    }

    /// A node with these inputs and outputs.
    pub fn with_outputs(op_type: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        Self {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: outputs.iter().map(|&name| name.to_owned()).collect(),
            op_type: Some(op_type.to_owned()),
            ..Self::default()
        }
    }

    /// Sets the domain of the operator.
    pub fn in_domain(mut self, domain: &str) -> Self {
        self.domain = Some(domain.to_owned());
        self
    }

    /// Adds an integer attribute.
    pub fn with(mut self, name: &str, value: i64) -> Self {
        let attribute = Attribute { name: Some(name.to_owned()), f: None, i: Some(value), kind: Some(2) };
        self.attribute.push(attribute.encode_to_vec());
        self
    }

    /// The numeric value of an attribute, or `default`.
    pub fn number(&self, name: &str, default: f64) -> f64 {
        let read = |bytes: &Vec<u8>| Attribute::decode(bytes.as_slice()).ok().filter(|a| a.name() == name);
        let Some(found) = self.attribute.iter().find_map(read) else { return default };
        found.i.map(|i| i as f64).or(found.f.map(f64::from)).unwrap_or(default)
    }
}

impl Tensor {
    /// A small tensor that is stored in the graph's own file.
    pub fn inline(name: &str, data_type: i32, dims: &[usize], bytes: Vec<u8>) -> Self {
        Self {
            dims: dims.iter().map(|&size| size as i64).collect(),
            data_type: Some(data_type),
            name: Some(name.to_owned()),
            raw_data: Some(bytes),
            ..Self::default()
        }
    }

    /// A small float32 tensor inside the graph's own file.
    pub fn floats(name: &str, dims: &[usize], values: &[f32]) -> Self {
        Self::inline(name, FLOAT, dims, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// The (rows, columns) of a float32 matrix; None for other tensors.
    pub fn float_matrix(&self) -> Option<(usize, usize)> {
        match (self.data_type(), self.dims.as_slice()) {
            (FLOAT, &[rows, columns]) => Some((usize::try_from(rows).ok()?, usize::try_from(columns).ok()?)),
            _ => None,
        }
    }

    /// The values of a float32 tensor. If they are not in the graph's file, they are read from a file in `directory`.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if there are fewer values than the shape requires; [`Kind::OutOfMemory`].
    pub fn values(&self, directory: &Path) -> Result<Vec<f32>> {
        let count = self.dims.iter().try_fold(1usize, |all, &size| all.checked_mul(usize::try_from(size).ok()?));
        let wrong = |why: &str| failed(directory, &format!("weights \"{}\": {why}", self.name()));
        let count = count.ok_or_else(|| wrong("impossible shape"))?;
        let bytes = count.checked_mul(4).ok_or_else(|| wrong("impossible shape"))?;
        let convert = |raw: &[u8]| -> Result<Vec<f32>> {
            let mut values = memory::with_capacity(count)?;
            values.extend(raw.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])));
            Ok(values)
        };
        let values = if self.data_location() == EXTERNAL {
            let entry = |key: &str| self.external_data.iter().find(|entry| entry.key() == key).map(Entry::value);
            let number = |key: &str| entry(key).and_then(|value| value.parse::<u64>().ok());
            let name = entry("location").ok_or_else(|| wrong("no file is named"))?;
            // ONNX Runtime writes the files beside the graph, so no other file is opened.
            if name.contains('/') {
                return Err(wrong("their file is in another directory"));
            }
            let file = regular_file::open(&directory.join(name)).map_err(|e| wrong(&e.to_string()))?;
            let mut raw = memory::zeroed(bytes)?;
            file.read_exact_at(&mut raw, number("offset").unwrap_or(0)).map_err(|e| wrong(&e.to_string()))?;
            convert(&raw)?
        } else if let Some(raw) = &self.raw_data {
            convert(raw)?
        } else {
            self.float_data.clone()
        };
        if values.len() == count { Ok(values) } else { Err(wrong("fewer values than the shape says")) }
    }
}

/// The file for the weights of a graph that is being written.
pub struct Weights {
    file: File,
    name: String,
    end: u64,
}

/// The offsets of mapped weights must be multiples of a page; otherwise the runtime copies them.
const PAGE: u64 = 4096;

impl Weights {
    /// Creates the file.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if the file can't be created.
    pub fn create(directory: &Path, name: &str) -> Result<Self> {
        let file = File::create(directory.join(name)).map_err(|e| failed(&directory.join(name), &e.to_string()))?;
        Ok(Self { file, name: name.to_owned(), end: 0 })
    }

    /// Appends the values of a tensor, and returns the tensor that refers to them.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if they can't be written, because the disk is full, for example.
    pub fn push(&mut self, name: &str, data_type: i32, dims: &[usize], bytes: &[u8]) -> Result<Tensor> {
        let offset = self.end.next_multiple_of(PAGE);
        let padding = vec![0; (offset - self.end) as usize];
        let write = self.file.write_all(&padding).and_then(|()| self.file.write_all(bytes));
        write.map_err(|e| failed(Path::new(&self.name), &e.to_string()))?;
        self.end = offset + bytes.len() as u64;
        let entry = |key: &str, value: String| Entry { key: Some(key.to_owned()), value: Some(value) };
        Ok(Tensor {
            dims: dims.iter().map(|&size| size as i64).collect(),
            data_type: Some(data_type),
            name: Some(name.to_owned()),
            external_data: vec![
                entry("location", self.name.clone()),
                entry("offset", offset.to_string()),
                entry("length", bytes.len().to_string()),
            ],
            data_location: Some(EXTERNAL),
            ..Tensor::default()
        })
    }
}

fn failed(file: &Path, why: &str) -> Error {
    Error::new(Kind::BadModel, "the eight-bit graph could not be made").detail(format!(
        "\"{}\": {}.",
        file.display(),
        why.trim_end_matches('.')
    ))
}
