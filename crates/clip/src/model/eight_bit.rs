//! Makes an eight-bit graph from a float32 one, and finds out by itself how coarse each matrix product may be.
//!
//! A matrix product with constant weights becomes one of three sorts:
//! - *int8*: weights with a scale for each output column; activations with one scale for the tensor, found at each run
//!   (DynamicQuantizeLinear, MatMulInteger). The fastest sort. In a trained tower some channels are a hundred times as
//!   strong as others and would leave the rest with two or three bits, so both sides are first balanced: activations are
//!   divided by a factor for each channel and weights multiplied by it (Xiao et al. 2023, "SmoothQuant"). With six
//!   such channels in each layer of a ViT-B/32 of random weights the mean cosine to float32 is 0.877 without that, and
//!   0.99984 with it.
//! - *blockwise*: weights with a scale for each 32 of a column, activations likewise within a row (MatMulNBits). Half as
//!   fast, and hardly sensitive to strong channels or strong tokens.
//! - *float32*, as it was.
//!
//! The balance of each activation is the one with the least expected error on pictures or texts that are built in. Then the
//! effect of each product on the vectors is measured, in one graph that has all three sorts of each behind switches.
//! Products start as int8; those that gain most accuracy for the time they cost are made finer until the sum of all effects
//! is small enough, and the vectors of other built-in samples are near float32's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use ndarray::{Array2, ArrayD, ArrayView2, Axis};
use ort::session::SessionInputValue;
use ort::value::Tensor;
use prost::Message;

use crate::error::{Error, Kind, Result};
use crate::model::graph_cache::{Entry, Form};
use crate::model::onnx::{self, FLOAT, FLOAT_TENSOR, Graph, INT8, Model, Node, UINT8, ValueInfo, Weights};
use crate::model::session::{Runtime, Tower, give_back_memory};

/// What vectors of the built-in samples must reach: mean and least cosine to float32's. The promise for others is 0.9998
/// and 0.9995.
const MEAN: f64 = 0.999_82;
const LEAST: f64 = 0.999_55;
/// One minus the mean cosine that the sum of all effects may come to at first, and its factor for each further try.
const BUDGET: f64 = 1.5e-4;
const STRICTER: f64 = 0.75;
const TRIES: usize = 8;
/// The time of a product by its sort, in that of float32: measured with AVX-512 VNNI on ViT-B/32.
const COSTS: [f64; 3] = [0.35, 0.6, 1.0];
/// An eight-bit graph must save at least this share of the products' time.
const GAIN: f64 = 0.2;
/// Samples that effects are measured with.
const MEASURED: usize = 3;
/// Smaller products cost no time.
const SMALLEST: usize = 32;
/// How much of the difference between channels moves from activations to weights; 0: no balance.
const BALANCES: [f64; 5] = [0.0, 0.25, 0.35, 0.5, 0.65];
/// Weights that share a scale in a blockwise product.
const BLOCK: usize = 32;
/// Rows of each activation that are kept to estimate errors.
const ROWS: usize = 32;
/// Factors of activations, by their names.
type Factors = BTreeMap<String, Vec<f32>>;
/// The file in the cache that says how a graph was made.
const RECIPE: &str = "recipe";
const MICROSOFT: &str = "com.microsoft";

pub type Inputs = Vec<(String, SessionInputValue<'static>)>;

/// What the graph is calibrated and checked with: the first half of the samples for one, the others for the other.
pub struct Samples<'a> {
    pub count: usize,
    /// The inputs for a sample.
    pub inputs: &'a dyn Fn(usize) -> Result<Inputs>,
    /// Name of the output that is used.
    pub output: &'a str,
    /// The vector of a sample, of length 1, from that output.
    pub vector: &'a dyn Fn(usize, ArrayD<f32>) -> Result<Vec<f32>>,
}

/// How a matrix product is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sort {
    Int8,
    Blockwise,
    Float32,
}

/// How a graph was made, and how near its vectors are to float32's.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    pub int8: usize,
    pub blockwise: usize,
    pub float32: usize,
    pub mean: f64,
    pub least: f64,
}

impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { int8, blockwise, float32, mean, least } = self;
        write!(f, "{int8} matrix products int8, {blockwise} blockwise, {float32} float32; ")?;
        write!(f, "cosine to float32 {mean:.6} on average, {least:.6} at least")
    }
}

/// A matrix product with constant weights.
struct Layer {
    /// Index of its node.
    node: usize,
    /// What it multiplies.
    activation: String,
    /// Index of its weights among the initializers.
    weights: usize,
    /// Gemm with transB: a row of the weights for each output.
    transposed: bool,
}

/// What was seen of an activation: extremes of each channel, and some rows.
#[derive(Default)]
struct Seen {
    high: Vec<f32>,
    low: Vec<f32>,
    rows: Vec<Vec<f32>>,
}

/// The eight-bit form of a graph, if one was made before.
///
/// # Errors
/// [`Kind::Unsupported`] if it was found out before that there is none.
pub fn find(runtime: &Runtime, file: &Path, threads: usize, cache: &Path) -> Result<Option<Tower>> {
    let Some(entry) = Entry::of(cache, file, &runtime.version, Form::EightBit) else { return Ok(None) };
    if let Some(why) = entry.refusal() {
        return Err(refused(file, &why));
    }
    Ok(entry.graph().and_then(|graph| Tower::mapped(runtime, graph, threads, file)))
}

/// How a tower was made eight-bit.
pub fn recipe(tower: &Tower) -> Option<String> {
    tower.recall(RECIPE)
}

/// Makes the eight-bit form of a graph and keeps it.
///
/// # Errors
/// [`Kind::Unsupported`] if there is none that is near enough to float32; [`Kind::BadModel`] if it can't be written.
pub fn make(
    runtime: &Runtime,
    file: &Path,
    threads: usize,
    cache: &Path,
    samples: &Samples<'_>,
    check_interrupts: &mut dyn FnMut(),
) -> Result<Tower> {
    let failed = |why: String| {
        Error::new(Kind::BadModel, format!("the eight-bit form of \"{}\" could not be kept", file.display()))
            .detail(why)
            .hint("See that the cache's directory can be written and the disk has room, or use float32.")
    };
    let entry = Entry::of(cache, file, &runtime.version, Form::EightBit)
        .ok_or_else(|| failed(format!("\"{}\" can't be read.", file.display())))?;
    // It takes minutes of a core and gigabytes of memory: one process is enough.
    let _lock = entry.lock(check_interrupts);
    if let Some(tower) = find(runtime, file, threads, cache)? {
        return Ok(tower);
    }
    // Damaged, if it exists at all.
    entry.remove();
    let mut refusal = None;
    let write = |graph: &Path| {
        let work = graph.with_file_name("work");
        fs::create_dir(&work).map_err(|e| e.to_string())?;
        let made = work.join("eight-bit.onnx");
        let recipe = quantize(runtime, file, &made, samples, check_interrupts).map_err(|e| {
            if e.kind == Kind::Interrupted {
                // No fault of the graph's, which would be noted. This unwinds.
                check_interrupts();
            }
            let text = e.to_string();
            refusal = Some(e);
            text
        })?;
        Tower::write_optimized(runtime, &made, threads, graph)?;
        fs::remove_dir_all(&work).map_err(|e| e.to_string())?;
        fs::write(graph.with_file_name(RECIPE), recipe.to_string()).map_err(|e| e.to_string())
    };
    let written = entry.write(write);
    give_back_memory();
    match written {
        Some(Ok(())) => find(runtime, file, threads, cache)?
            .ok_or_else(|| failed("It can't be loaded after it was written.".to_owned())),
        Some(Err(why)) => {
            let error = refusal.unwrap_or_else(|| failed(why));
            if error.kind == Kind::Unsupported {
                entry.refuse(error.detail.as_deref().unwrap_or_default());
            }
            Err(error)
        }
        None => Err(failed("It was tried less than an hour ago, and failed.".to_owned())),
    }
}

/// Writes an eight-bit form of the graph in `file` to `target`, a path in a directory of its own, where intermediate
/// files are left for the caller to remove. `check_interrupts` is called between steps, of which the longest loads a
/// graph; it may unwind.
///
/// # Errors
/// [`Kind::Unsupported`] if the graph has no matrix product with float32 weights, or none of the forms is near enough to
/// float32; [`Kind::BadModel`] if a file can't be written.
fn quantize(
    runtime: &Runtime,
    file: &Path,
    target: &Path,
    samples: &Samples<'_>,
    check_interrupts: &mut dyn FnMut(),
) -> Result<Recipe> {
    let directory = target.parent().expect("a path in a directory");
    // With constants folded and weights in a file of their own, whatever form the export has.
    let folded = directory.join("folded.onnx");
    Tower::fold(runtime, file, &folded, "folded.bin")?;
    check_interrupts();
    let model = Model::read(&folded)?;
    let layers = layers(model.graph.as_ref().expect("checked when it was read"));
    if layers.is_empty() {
        return Err(refused(
            file,
            "It has no matrix product with constant float32 weights; convolutions stay as they are.",
        ));
    }
    let half = samples.count / 2;
    let (seen, wanted) = observe(runtime, &model, &layers, directory, samples, half, check_interrupts)?;
    let factors = balance(&model, &layers, &seen, directory, check_interrupts)?;
    let groups = measure(runtime, &model, &layers, &factors, directory, samples, check_interrupts)?;
    let mut budget = BUDGET;
    let mut found = None;
    for _ in 0..TRIES {
        let sorts = choose(&groups, layers.len(), budget);
        budget *= STRICTER;
        let time = |sort: &dyn Fn(usize) -> Sort| -> f64 {
            groups.iter().flat_map(|g| &g.layers).map(|&l| size(&model, &layers[l]) * COSTS[sort(l) as usize]).sum()
        };
        if time(&|layer| sorts[layer]) > (1.0 - GAIN) * time(&|_| Sort::Float32) {
            break;
        }
        write(&model, &layers, &factors, &sorts, directory, target)?;
        check_interrupts();
        let mut tower = Tower::plain(runtime, target)?;
        let (mut sum, mut least) = (0.0, f64::INFINITY);
        for (sample, wanted) in (half..samples.count).zip(&wanted) {
            check_interrupts();
            let vector = (samples.vector)(sample, tower.run((samples.inputs)(sample)?, samples.output)?)?;
            let cosine = dot(&vector, wanted);
            sum += cosine;
            least = least.min(cosine);
        }
        let count = |sort: Sort| sorts.iter().filter(|&&s| s == sort).count();
        let recipe = Recipe {
            int8: count(Sort::Int8),
            blockwise: count(Sort::Blockwise),
            float32: count(Sort::Float32),
            mean: sum / wanted.len() as f64,
            least,
        };
        if recipe.mean >= MEAN && recipe.least >= LEAST {
            return Ok(recipe);
        }
        found = Some(recipe);
    }
    Err(match found {
        Some(recipe) => {
            refused(file, &format!("The last try: {recipe}. Asked for: {MEAN} on average, {LEAST} at least."))
        }
        None => refused(file, "Most of its matrix products would lose too much."),
    })
}

/// The error for a graph without an eight-bit form.
pub fn refused(file: &Path, why: &str) -> Error {
    Error::new(Kind::Unsupported, format!("\"{}\" has no eight-bit form and runs in float32", file.display()))
        .detail(why.to_owned())
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Products of a layer for each row.
fn size(model: &Model, layer: &Layer) -> f64 {
    let tensor = &model.graph.as_ref().expect("checked").initializer[layer.weights];
    tensor.float_matrix().map_or(0.0, |(a, b)| a as f64 * b as f64)
}

/// The products that can be made eight-bit.
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
        // A matrix that something else reads too, such as a tied table of tokens, stays as it is.
        let large = graph.initializer[weights].float_matrix().is_some_and(|(a, b)| a >= SMALLEST && b >= SMALLEST);
        if !large || uses[node.input[1].as_str()] > 1 || initializers.contains_key(node.input[0].as_str()) {
            continue;
        }
        let transposed = gemm && node.number("transB", 0.0) != 0.0;
        found.push(Layer { node: index, activation: node.input[0].clone(), weights, transposed });
    }
    found
}

impl Layer {
    /// The weights, shape (inputs, outputs).
    fn weights(&self, model: &Model, directory: &Path) -> Result<Array2<f32>> {
        let tensor = &model.graph.as_ref().expect("checked").initializer[self.weights];
        let shape = tensor.float_matrix().expect("checked when the layer was found");
        let matrix =
            Array2::from_shape_vec(shape, tensor.values(directory)?).expect("as many values as the shape says");
        Ok(if self.transposed { matrix.reversed_axes() } else { matrix })
    }
}

/// Runs the first samples with every layer's activation as a further output; also returns the vectors that the others
/// have with float32.
#[allow(clippy::type_complexity)]
fn observe(
    runtime: &Runtime,
    model: &Model,
    layers: &[Layer],
    directory: &Path,
    samples: &Samples<'_>,
    half: usize,
    check_interrupts: &mut dyn FnMut(),
) -> Result<(BTreeMap<String, Seen>, Vec<Vec<f32>>)> {
    let mut observed = model.clone();
    let graph = observed.graph.as_mut().expect("checked");
    let outputs: BTreeSet<String> = graph.output.iter().map(|output| output.name().to_owned()).collect();
    let names: BTreeSet<&str> = layers.iter().map(|layer| layer.activation.as_str()).collect();
    for name in names.iter().filter(|name| !outputs.contains(**name)) {
        graph.output.push(ValueInfo { name: Some((*name).to_owned()), kind: Some(FLOAT_TENSOR.to_vec()) });
    }
    let file = directory.join("observed.onnx");
    observed.write(&file)?;
    let mut tower = Tower::plain(runtime, &file)?;
    let names: Vec<&str> = names.into_iter().collect();
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    for sample in 0..half {
        check_interrupts();
        for (name, values) in names.iter().zip(tower.run_all((samples.inputs)(sample)?, &names)?) {
            let width = values.shape().last().copied().unwrap_or(0);
            let count = values.len().checked_div(width).unwrap_or(0);
            let Ok(values) = values.into_shape_with_order((count, width)) else { continue };
            seen.entry((*name).to_owned()).or_default().add(values.view(), half);
        }
    }
    let wanted = (half..samples.count)
        .map(|sample| {
            check_interrupts();
            (samples.vector)(sample, tower.run((samples.inputs)(sample)?, samples.output)?)
        })
        .collect::<Result<_>>()?;
    Ok((seen, wanted))
}

impl Seen {
    /// Adds what a sample shows, of `samples` in all.
    fn add(&mut self, values: ArrayView2<'_, f32>, samples: usize) {
        let width = values.ncols();
        self.high.resize(width, 0.0);
        self.low.resize(width, 0.0);
        for row in values.outer_iter() {
            for (channel, value) in row.iter().enumerate() {
                self.high[channel] = self.high[channel].max(*value);
                self.low[channel] = self.low[channel].min(*value);
            }
        }
        let few = ROWS.div_ceil(samples.max(1)).max(1);
        let step = values.nrows().div_ceil(few).max(1);
        self.rows.extend(values.axis_iter(Axis(0)).step_by(step).map(|row| row.to_vec()));
    }

    /// The factors that a share of the difference between channels is moved by; none without any.
    fn factors(&self, weights: &[Array2<f32>], share: f64) -> Option<Vec<f32>> {
        if share == 0.0 {
            return None;
        }
        let strength = |channel: usize| f64::from(self.high[channel].max(-self.low[channel])).max(1e-6);
        let weight = |channel: usize| {
            let row = |w: &Array2<f32>| w.row(channel).iter().fold(0f32, |most, value| most.max(value.abs()));
            f64::from(weights.iter().map(row).fold(0f32, f32::max)).max(1e-6)
        };
        Some((0..self.high.len()).map(|c| (strength(c).powf(share) / weight(c).powf(1.0 - share)) as f32).collect())
    }
}

/// The factors of each activation that are expected to leave the least error; none where it is best left as it is.
fn balance(
    model: &Model,
    layers: &[Layer],
    seen: &BTreeMap<String, Seen>,
    directory: &Path,
    check_interrupts: &mut dyn FnMut(),
) -> Result<Factors> {
    let mut chosen = Factors::new();
    for (name, seen) in seen {
        check_interrupts();
        let sharing = layers.iter().filter(|layer| layer.activation == *name);
        let weights = sharing.map(|layer| layer.weights(model, directory)).collect::<Result<Vec<_>>>()?;
        let rows = Array2::from_shape_fn((seen.rows.len(), seen.high.len()), |(i, j)| seen.rows[i][j]);
        let signals: Vec<f64> = weights.iter().map(|w| mean_square(&rows.dot(w)) * w.ncols() as f64).collect();
        let mut best = (f64::INFINITY, None);
        for share in BALANCES {
            let factors = seen.factors(&weights, share);
            let errors = weights.iter().zip(&signals);
            let error =
                errors.map(|(w, signal)| expected_error(seen, &rows, w, factors.as_deref()) / signal.max(1e-30));
            let error = error.sum();
            if error < best.0 {
                best = (error, factors);
            }
        }
        chosen.extend(best.1.map(|factors| (name.clone(), factors)));
    }
    Ok(chosen)
}

/// Products of one activation, which are of one sort.
struct Group {
    layers: Vec<usize>,
    size: f64,
    /// One minus the mean cosine to float32's vectors if only these products are int8, or only these blockwise.
    effects: [f64; 2],
}

/// Measures the effect of each group by a graph that has each product three times, mixed by gates:
/// out = float32 + gate · (int8 - float32) + gate · (blockwise - float32).
fn measure(
    runtime: &Runtime,
    model: &Model,
    layers: &[Layer],
    factors: &Factors,
    directory: &Path,
    samples: &Samples<'_>,
    check_interrupts: &mut dyn FnMut(),
) -> Result<Vec<Group>> {
    let file = directory.join("measured.onnx");
    let gates = |layer: usize| [format!("gate/{layer}/int8"), format!("gate/{layer}/blockwise")];
    write_gated(model, layers, factors, &gates, directory, &file)?;
    let mut tower = Tower::plain(runtime, &file)?;
    let mut groups: BTreeMap<&str, Group> = BTreeMap::new();
    for (index, layer) in layers.iter().enumerate() {
        let empty = || Group { layers: Vec::new(), size: 0.0, effects: [0.0; 2] };
        let group = groups.entry(&layer.activation).or_insert_with(empty);
        group.layers.push(index);
        group.size += size(model, layer);
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    let measured = MEASURED.min(samples.count);
    let mut run = |open: &[usize], sort: Sort, check_interrupts: &mut dyn FnMut()| -> Result<Vec<Vec<f32>>> {
        (0..measured)
            .map(|sample| {
                check_interrupts();
                let mut inputs = (samples.inputs)(sample)?;
                for layer in 0..layers.len() {
                    for (kind, name) in [Sort::Int8, Sort::Blockwise].into_iter().zip(gates(layer)) {
                        let gate = if kind == sort && open.contains(&layer) { 1f32 } else { 0.0 };
                        inputs.push((name, scalar(gate)?));
                    }
                }
                (samples.vector)(sample, tower.run(inputs, samples.output)?)
            })
            .collect()
    };
    let float = run(&[], Sort::Float32, check_interrupts)?;
    for group in &mut groups {
        for (sort, effect) in [Sort::Int8, Sort::Blockwise].into_iter().zip(&mut group.effects) {
            let vectors = run(&group.layers, sort, check_interrupts)?;
            let cosines: f64 = vectors.iter().zip(&float).map(|(a, b)| dot(a, b)).sum();
            *effect = (1.0 - cosines / measured as f64).max(0.0);
        }
    }
    Ok(groups)
}

fn scalar(value: f32) -> Result<SessionInputValue<'static>> {
    Tensor::from_array(([1usize], vec![value]))
        .map(Into::into)
        .map_err(|e| Error::new(Kind::Internal, "an input tensor could not be made").detail(e.message().to_owned()))
}

/// The sort of each layer, so that the effects come to no more than a budget: from all int8, the step that removes most
/// effect for the time that it adds comes first.
fn choose(groups: &[Group], layers: usize, budget: f64) -> Vec<Sort> {
    let effect = |group: &Group, sort: Sort| match sort {
        Sort::Int8 => group.effects[0],
        Sort::Blockwise => group.effects[1],
        Sort::Float32 => 0.0,
    };
    let mut sorts = vec![Sort::Int8; groups.len()];
    let mut sum: f64 = groups.iter().map(|group| group.effects[0]).sum();
    while sum > budget {
        let steps = groups.iter().enumerate().flat_map(|(index, group)| {
            let now = sorts[index];
            [Sort::Blockwise, Sort::Float32].into_iter().filter(move |&next| next as usize > now as usize).map(
                move |next| {
                    let gain = effect(group, now) - effect(group, next);
                    let cost = group.size * (COSTS[next as usize] - COSTS[now as usize]);
                    (gain / cost.max(1.0), gain, index, next)
                },
            )
        });
        let Some((_, gain, index, next)) = steps.filter(|step| step.1 > 0.0).max_by(|a, b| a.0.total_cmp(&b.0)) else {
            break;
        };
        sum -= gain;
        sorts[index] = next;
    }
    let mut by_layer = vec![Sort::Float32; layers];
    for (group, sort) in groups.iter().zip(sorts) {
        group.layers.iter().for_each(|&layer| by_layer[layer] = sort);
    }
    by_layer
}

/// The expected square of the rounding error of an output row: a uniform error of one step for each activation and each
/// weight.
fn expected_error(seen: &Seen, rows: &Array2<f32>, weights: &Array2<f32>, factors: Option<&[f32]>) -> f64 {
    let factor = |channel: usize| factors.map_or(1.0, |factors| f64::from(factors[channel]));
    let channels = 0..seen.high.len();
    let high = channels.clone().map(|c| f64::from(seen.high[c]) / factor(c)).fold(0.0, f64::max);
    let low = channels.map(|c| f64::from(seen.low[c]) / factor(c)).fold(0.0, f64::min);
    let step = (high - low) / 255.0;
    let (mut squares, mut scales) = (0.0, vec![0f64; weights.ncols()]);
    for (channel, row) in weights.outer_iter().enumerate() {
        for (scale, weight) in scales.iter_mut().zip(row) {
            let weight = f64::from(*weight) * factor(channel);
            squares += weight * weight;
            *scale = scale.max(weight.abs() / f64::from(most()));
        }
    }
    let strength: f64 = rows
        .axis_iter(Axis(1))
        .enumerate()
        .map(|(c, column)| column.iter().map(|x| (f64::from(*x) / factor(c)).powi(2)).sum::<f64>())
        .sum::<f64>()
        / rows.nrows().max(1) as f64;
    step * step / 12.0 * squares + strength * scales.iter().map(|scale| scale * scale).sum::<f64>() / 12.0
}

fn mean_square(values: &Array2<f32>) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / values.len().max(1) as f64
}

/// The largest weight. Processors without VNNI add pairs of products in 16 bits, which overflow with eight-bit weights.
fn most() -> i8 {
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("avx512vnni") && !std::arch::is_x86_feature_detected!("avxvnni") {
        return 63;
    }
    127
}

/// Writes the graph with each layer in its sort.
fn write(
    model: &Model,
    layers: &[Layer],
    factors: &Factors,
    sorts: &[Sort],
    directory: &Path,
    target: &Path,
) -> Result<()> {
    let mut parts = Parts::create(directory, "eight-bit.bin")?;
    rewrite(model, layers, &mut parts, directory, target, |parts, layer, weights, x, out| match sorts[layer] {
        Sort::Int8 => parts.int8(weights, factors.get(x).map(Vec::as_slice), x, out),
        Sort::Blockwise => parts.blockwise(&weights, x, out),
        Sort::Float32 => parts.float32(&weights, x, out),
    })
}

/// Writes the graph with each layer in all three sorts, and inputs that mix them.
fn write_gated(
    model: &Model,
    layers: &[Layer],
    factors: &Factors,
    gates: &dyn Fn(usize) -> [String; 2],
    directory: &Path,
    target: &Path,
) -> Result<()> {
    let mut model = model.clone();
    let graph = model.graph.as_mut().expect("checked");
    for name in (0..layers.len()).flat_map(gates) {
        let gate = ValueInfo { name: Some(name), kind: Some(FLOAT_TENSOR.to_vec()) };
        graph.input.push(gate.encode_to_vec());
    }
    let mut parts = Parts::create(directory, "measured.bin")?;
    rewrite(&model, layers, &mut parts, directory, target, |parts, layer, weights, x, out| {
        let [exact, coarse, finer] = ["exact", "coarse", "finer"].map(|part| format!("{out}/{part}"));
        parts.float32(&weights, x, &exact)?;
        parts.blockwise(&weights, x, &finer)?;
        parts.int8(weights, factors.get(x).map(Vec::as_slice), x, &coarse)?;
        let mut sum = exact.clone();
        for (sort, gate) in [coarse, finer].iter().zip(gates(layer)) {
            let [difference, share] = ["difference", "share"].map(|part| format!("{sort}/{part}"));
            parts.nodes.push(Node::new("Sub", &[sort, &exact], &difference));
            parts.nodes.push(Node::new("Mul", &[&difference, &gate], &share));
            let next = if sort.ends_with("finer") { out.to_owned() } else { format!("{sort}/mixed") };
            parts.nodes.push(Node::new("Add", &[&sum, &share], &next));
            sum = next;
        }
        Ok(())
    })
}

/// Writes the graph with `product` in place of each layer's matrix product: it is given the layer's index, the weights of
/// shape (inputs, outputs), and the names of what is multiplied and of the result.
fn rewrite(
    model: &Model,
    layers: &[Layer],
    parts: &mut Parts,
    directory: &Path,
    target: &Path,
    mut product: impl FnMut(&mut Parts, usize, Array2<f32>, &str, &str) -> Result<()>,
) -> Result<()> {
    let by_node: BTreeMap<usize, usize> = layers.iter().enumerate().map(|(layer, l)| (l.node, layer)).collect();
    let mut model = model.clone();
    let nodes = std::mem::take(&mut model.graph.as_mut().expect("checked").node);
    for (index, node) in nodes.into_iter().enumerate() {
        let Some(&layer) = by_node.get(&index) else {
            parts.nodes.push(node);
            continue;
        };
        let weights = layers[layer].weights(&model, directory)?;
        let (x, out) = (layers[layer].activation.as_str(), node.output[0].as_str());
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
    let gone: BTreeSet<usize> = layers.iter().map(|layer| layer.weights).collect();
    let kept =
        std::mem::take(&mut graph.initializer).into_iter().enumerate().filter(|(index, _)| !gone.contains(index));
    graph.initializer = kept.map(|(_, tensor)| tensor).chain(std::mem::take(&mut parts.tensors)).collect();
    graph.node = std::mem::take(&mut parts.nodes);
    // Shapes inside the graph are the old graph's.
    graph.value_info.clear();
    model.import(MICROSOFT, 1);
    model.write(target)
}

/// The nodes and tensors of a graph that is being written.
struct Parts {
    file: Weights,
    nodes: Vec<Node>,
    tensors: Vec<onnx::Tensor>,
    /// Activations that have been made eight-bit.
    quantized: BTreeSet<String>,
}

impl Parts {
    fn create(directory: &Path, name: &str) -> Result<Self> {
        let _ = fs::remove_file(directory.join(name));
        let file = Weights::create(directory, name)?;
        Ok(Self { file, nodes: Vec::new(), tensors: Vec::new(), quantized: BTreeSet::new() })
    }

    /// Divides an activation by its factors and makes it eight-bit, once for all layers that multiply it.
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

    /// Adds an int8 product: weights of shape (inputs, outputs), a scale for each output.
    fn int8(&mut self, mut weights: Array2<f32>, factors: Option<&[f32]>, x: &str, out: &str) -> Result<()> {
        self.quantize(x, factors);
        for (channel, factor) in factors.into_iter().flatten().enumerate() {
            weights.row_mut(channel).mapv_inplace(|weight| weight * factor);
        }
        let (inputs, outputs) = weights.dim();
        let scales: Vec<f32> = weights
            .axis_iter(Axis(1))
            .map(|column| column.iter().fold(0f32, |most, w| most.max(w.abs())) / f32::from(most()))
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

    /// A blockwise product: for each output its weights in blocks of 32, each with a scale and 128 for zero.
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

    /// A product with the weights as they are.
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
