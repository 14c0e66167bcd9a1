//! Finds the matrix products of a graph that can be quantized.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::Array2;

use crate::error::Result;
use crate::model::onnx::{Graph, Model};
use crate::model::session::{Runtime, Tower};

/// The file of the folded graph's weights.
pub const FOLDED: &str = "folded.bin";
/// Minimum number of rows and columns of a matrix. Smaller products take negligible time.
const SMALLEST: usize = 32;

/// How a matrix product is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scheme {
    Int8,
    Blockwise,
    Float32,
}

/// A matrix product with constant weights.
pub struct Layer {
    /// The index of its node in the graph.
    pub node: usize,
    /// The name of its input, the activation.
    pub activation: String,
    /// The index of its weights among the initializers.
    pub weights: usize,
    /// Whether it is a Gemm with transB: the weights have a row for each output.
    transposed: bool,
}

/// A float32 graph with constants folded, and its layers.
pub struct Source {
    pub model: Model,
    pub layers: Vec<Layer>,
    /// The directory of the folded weights and of all intermediate files.
    pub directory: PathBuf,
}

impl Source {
    /// Folds the constants of the graph in `file` and writes it to `directory`, with its weights in a separate file
    /// regardless of the export's format.
    pub fn fold(runtime: &Runtime, file: &Path, directory: &Path) -> Result<Self> {
        let folded = directory.join("folded.onnx");
        Tower::fold(runtime, file, &folded, FOLDED)?;
        let model = Model::read(&folded)?;
        let layers = layers(model.graph.as_ref().expect("checked when it was read"));
        Ok(Self { model, layers, directory: directory.to_owned() })
    }

    /// The weights of a layer, shape (inputs, outputs).
    pub fn weights(&self, layer: &Layer) -> Result<Array2<f32>> {
        let tensor = &self.model.graph.as_ref().expect("checked").initializer[layer.weights];
        let shape = tensor.float_matrix().expect("checked when the layer was found");
        let values = tensor.values(&self.directory)?;
        let matrix = Array2::from_shape_vec(shape, values).expect("as many values as the shape says");
        Ok(if layer.transposed { matrix.reversed_axes() } else { matrix })
    }

    /// The number of multiplications that a layer performs for each row.
    pub fn size(&self, layer: &Layer) -> f64 {
        let tensor = &self.model.graph.as_ref().expect("checked").initializer[layer.weights];
        tensor.float_matrix().map_or(0.0, |(a, b)| a as f64 * b as f64)
    }
}

/// The products of a graph that can be quantized.
fn layers(graph: &Graph) -> Vec<Layer> {
    let initializers: BTreeMap<&str, usize> =
        graph.initializer.iter().enumerate().map(|(index, tensor)| (tensor.name(), index)).collect();
    let mut uses: BTreeMap<&str, usize> = BTreeMap::new();
    graph.node.iter().flat_map(|node| &node.input).for_each(|name| *uses.entry(name).or_default() += 1);
    let mut found = Vec::new();
    for (index, node) in graph.node.iter().enumerate() {
        let gemm = node.op_type() == "Gemm";
        let plain =
            node.number("alpha", 1.0) == 1.0 && node.number("beta", 1.0) == 1.0 && node.number("transA", 0.0) == 0.0;
        if !node.domain().is_empty() || !(node.op_type() == "MatMul" || gemm && plain) || node.input.len() < 2 {
            continue;
        }
        let Some(&weights) = initializers.get(node.input[1].as_str()) else { continue };
        // A matrix that other nodes read, too, such as a token table with tied weights, is not changed.
        let large = graph.initializer[weights].float_matrix().is_some_and(|(a, b)| a >= SMALLEST && b >= SMALLEST);
        if !large || uses[node.input[1].as_str()] > 1 || initializers.contains_key(node.input[0].as_str()) {
            continue;
        }
        let transposed = gemm && node.number("transB", 0.0) != 0.0;
        found.push(Layer { node: index, activation: node.input[0].clone(), weights, transposed });
    }
    found
}

/// The largest absolute value of a quantized weight. Processors without VNNI add pairs of products in 16 bits, which
/// would overflow with eight-bit weights.
pub fn largest_weight() -> i8 {
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("avx512vnni") && !std::arch::is_x86_feature_detected!("avxvnni") {
        return 63;
    }
    127
}
