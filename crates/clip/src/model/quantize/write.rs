//! Writes a graph with each layer in its scheme.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use ndarray::{Array2, Axis};
use prost::Message;

use super::balance::Factors;
use super::layers::{Scheme, Source, largest_weight};
use crate::error::Result;
use crate::model::onnx::{self, FLOAT, FLOAT_TENSOR, INT8, Node, UINT8, ValueInfo, Weights};

/// The number of weights that share a scale in a blockwise product.
const BLOCK: usize = 32;
const MICROSOFT: &str = "com.microsoft";

/// Writes the graph with each layer in its scheme.
pub fn write(source: &Source, factors: &Factors, schemes: &[Scheme], target: &Path) -> Result<()> {
    let mut parts = Parts::create(&source.directory, "eight-bit.bin")?;
    rewrite(source, &mut parts, target, |parts, layer, weights, x, out| match schemes[layer] {
        Scheme::Int8 => parts.int8(weights, factors.get(x).map(Vec::as_slice), x, out),
        Scheme::Blockwise => parts.blockwise(&weights, x, out),
        Scheme::Float32 => parts.float32(&weights, x, out),
    })
}

/// Writes the graph with each layer in all three schemes, and with inputs that mix them.
pub fn write_gated(
    source: &Source,
    factors: &Factors,
    gates: &dyn Fn(usize) -> [String; 2],
    target: &Path,
) -> Result<()> {
    let mut parts = Parts::create(&source.directory, "measured.bin")?;
    let gate = |name| ValueInfo { name: Some(name), kind: Some(FLOAT_TENSOR.to_vec()) }.encode_to_vec();
    parts.inputs = (0..source.layers.len()).flat_map(gates).map(gate).collect();
    rewrite(source, &mut parts, target, |parts, layer, weights, x, out| {
        let [exact, coarse, finer] = ["exact", "coarse", "finer"].map(|part| format!("{out}/{part}"));
        parts.float32(&weights, x, &exact)?;
        parts.blockwise(&weights, x, &finer)?;
        parts.int8(weights, factors.get(x).map(Vec::as_slice), x, &coarse)?;
        let mut sum = exact.clone();
        for (scheme, gate) in [coarse, finer].iter().zip(gates(layer)) {
            let [difference, share] = ["difference", "share"].map(|part| format!("{scheme}/{part}"));
            parts.nodes.push(Node::new("Sub", &[scheme, &exact], &difference));
            parts.nodes.push(Node::new("Mul", &[&difference, &gate], &share));
            let next = if scheme.ends_with("finer") { out.to_owned() } else { format!("{scheme}/mixed") };
            parts.nodes.push(Node::new("Add", &[&sum, &share], &next));
            sum = next;
        }
        Ok(())
    })
}

/// Writes the graph with the nodes of `product` in place of each layer's matrix product. `product` receives the layer's
/// index, its weights of shape (inputs, outputs), and the names of the input and of the result.
fn rewrite(
    source: &Source,
    parts: &mut Parts,
    target: &Path,
    mut product: impl FnMut(&mut Parts, usize, Array2<f32>, &str, &str) -> Result<()>,
) -> Result<()> {
    let by_node: BTreeMap<usize, usize> = source.layers.iter().enumerate().map(|(layer, l)| (l.node, layer)).collect();
    let mut model = source.model.clone();
    let nodes = std::mem::take(&mut model.graph.as_mut().expect("checked").node);
    for (index, node) in nodes.into_iter().enumerate() {
        let Some(&layer) = by_node.get(&index) else {
            parts.nodes.push(node);
            continue;
        };
        let weights = source.weights(&source.layers[layer])?;
        let (x, out) = (source.layers[layer].activation.as_str(), node.output[0].as_str());
        match node.input.get(2).filter(|bias| !bias.is_empty()) {
            Some(bias) => {
                let sum = format!("{out}/product");
                product(parts, layer, weights, x, &sum)?;
                parts.nodes.push(Node::new("Add", &[&sum, bias], out));
            }
            None => product(parts, layer, weights, x, out)?,
        }
    }
    let graph = model.graph.as_mut().expect("checked");
    let gone: BTreeSet<usize> = source.layers.iter().map(|layer| layer.weights).collect();
    let kept =
        std::mem::take(&mut graph.initializer).into_iter().enumerate().filter(|(index, _)| !gone.contains(index));
    graph.initializer = kept.map(|(_, tensor)| tensor).chain(std::mem::take(&mut parts.tensors)).collect();
    graph.node = std::mem::take(&mut parts.nodes);
    graph.input.append(&mut parts.inputs);
    // The shapes in `value_info` still describe the old graph.
    graph.value_info.clear();
    model.import(MICROSOFT, 1);
    model.write(target)
}

/// The nodes and tensors of a graph that is being written.
struct Parts {
    file: Weights,
    /// The additional inputs of the graph, encoded.
    inputs: Vec<Vec<u8>>,
    nodes: Vec<Node>,
    tensors: Vec<onnx::Tensor>,
    /// The names of the activations that are quantized already.
    quantized: BTreeSet<String>,
}

impl Parts {
    fn create(directory: &Path, name: &str) -> Result<Self> {
        let _ = fs::remove_file(directory.join(name));
        let file = Weights::create(directory, name)?;
        Ok(Self { file, inputs: Vec::new(), nodes: Vec::new(), tensors: Vec::new(), quantized: BTreeSet::new() })
    }

    /// Divides an activation by its factors and quantizes it; done only once for all layers that use it.
    fn quantize(&mut self, x: &str, factors: Option<&[f32]>) {
        if !self.quantized.insert(x.to_owned()) {
            return;
        }
        let mut from = x.to_owned();
        if let Some(factors) = factors {
            let inverse: Vec<f32> = factors.iter().map(|factor| 1.0 / factor).collect();
            let name = format!("{x}/factors");
            self.tensors.push(onnx::Tensor::floats(&name, &[inverse.len()], &inverse));
            from = format!("{x}/balanced");
            self.nodes.push(Node::new("Mul", &[x, &name], &from));
        }
        let [value, scale, zero] = ["int8", "scale", "zero"].map(|part| format!("{x}/{part}"));
        self.nodes.push(Node::with_outputs("DynamicQuantizeLinear", &[&from], &[&value, &scale, &zero]));
    }

    /// Adds an int8 product. The weights have shape (inputs, outputs) and a scale for each output.
    fn int8(&mut self, mut weights: Array2<f32>, factors: Option<&[f32]>, x: &str, out: &str) -> Result<()> {
        self.quantize(x, factors);
        for (channel, factor) in factors.into_iter().flatten().enumerate() {
            weights.row_mut(channel).mapv_inplace(|weight| weight * factor);
        }
        let (inputs, outputs) = weights.dim();
        let scales: Vec<f32> = weights
            .axis_iter(Axis(1))
            .map(|column| column.iter().fold(0f32, |most, w| most.max(w.abs())) / f32::from(largest_weight()))
            .map(|scale| if scale > 0.0 { scale } else { 1.0 })
            .collect();
        let mut bytes = crate::memory::with_capacity(inputs * outputs)?;
        for row in weights.outer_iter() {
            bytes.extend(row.iter().zip(&scales).map(|(weight, scale)| (weight / scale).round() as i8 as u8));
        }
        let [value, scale, zero] = ["weights", "weights' scales", "weights' zero"].map(|part| format!("{out}/{part}"));
        self.tensors.push(self.file.push(&value, INT8, &[inputs, outputs], &bytes)?);
        self.tensors.push(onnx::Tensor::floats(&scale, &[outputs], &scales));
        self.tensors.push(onnx::Tensor::inline(&zero, INT8, &[outputs], vec![0; outputs]));
        let [sum, float, both] = ["sum", "float", "scale"].map(|part| format!("{out}/{part}"));
        self.nodes.push(Node::new("MatMulInteger", &[&format!("{x}/int8"), &value, &format!("{x}/zero"), &zero], &sum));
        self.nodes.push(Node::new("Cast", &[&sum], &float).with("to", 1));
        self.nodes.push(Node::new("Mul", &[&format!("{x}/scale"), &scale], &both));
        self.nodes.push(Node::new("Mul", &[&float, &both], out));
        Ok(())
    }

    /// Adds a blockwise product. The weights of each output are stored in blocks of 32, each with a scale; 128 stands
    /// for zero.
    fn blockwise(&mut self, weights: &Array2<f32>, x: &str, out: &str) -> Result<()> {
        let (inputs, outputs) = weights.dim();
        let blocks = inputs.div_ceil(BLOCK);
        let mut bytes = crate::memory::with_capacity(outputs * blocks * BLOCK)?;
        let mut scales: Vec<f32> = crate::memory::with_capacity(outputs * blocks)?;
        for column in weights.axis_iter(Axis(1)) {
            for block in column.axis_chunks_iter(Axis(0), BLOCK) {
                let scale = block.iter().fold(0f32, |most, w| most.max(w.abs())) / 127.0;
                let scale = if scale > 0.0 { scale } else { 1.0 };
                bytes.extend(block.iter().map(|weight| ((weight / scale).round() + 128.0) as u8));
                bytes.extend(std::iter::repeat_n(128, BLOCK - block.len()));
                scales.push(scale);
            }
        }
        let [value, scale] = ["weights", "weights' scales"].map(|part| format!("{out}/{part}"));
        self.tensors.push(self.file.push(&value, UINT8, &[outputs, blocks, BLOCK], &bytes)?);
        self.tensors.push(onnx::Tensor::floats(&scale, &[outputs * blocks], &scales));
        let node = Node::new("MatMulNBits", &[x, &value, &scale], out).in_domain(MICROSOFT);
        let numbers = [("K", inputs), ("N", outputs), ("bits", 8), ("block_size", BLOCK), ("accuracy_level", 4)];
        self.nodes.push(numbers.into_iter().fold(node, |node, (name, value)| node.with(name, value as i64)));
        Ok(())
    }

    /// Adds a product with unchanged weights.
    fn float32(&mut self, weights: &Array2<f32>, x: &str, out: &str) -> Result<()> {
        let (inputs, outputs) = weights.dim();
        let mut bytes = crate::memory::with_capacity(4 * inputs * outputs)?;
        weights.iter().for_each(|weight| bytes.extend(weight.to_le_bytes()));
        let name = format!("{out}/weights");
        self.tensors.push(self.file.push(&name, FLOAT, &[inputs, outputs], &bytes)?);
        self.nodes.push(Node::new("MatMul", &[x, &name], out));
        Ok(())
    }
}
