//! Steps that some exports omit from the graph: pooling over positions, and dense layers.
//!
//! sentence-transformers describes these steps in `modules.json`, with one directory per step. A graph that returns one
//! vector per item needs neither.

use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2, ArrayD, ArrayView2, Axis, Ix2, Ix3};
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::model::read_json;
use crate::model::weights::{self, Tensor};

/// How the vectors of an item's positions become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolingMode {
    /// The first position: the class token.
    First,
    /// The mean over the positions that are not padding.
    Mean,
    /// The sum divided by the square root of the number of positions. A dense layer after it gets longer vectors for
    /// longer texts.
    MeanSqrt,
    /// The mean over the positions that are not padding, weighted by the position's number, counted from 1.
    WeightedMean,
    /// The last position that is not padding.
    Last,
    /// The largest value over the positions that are not padding.
    Max,
}

impl PoolingMode {
    /// The vector of an item, computed from the vectors of its positions. `first` is the index of the first of these
    /// positions in the item.
    fn pool(self, positions: &ArrayView2<'_, f32>, first: usize) -> Array1<f32> {
        let count = positions.nrows();
        match self {
            Self::First => positions.row(0).to_owned(),
            Self::Last => positions.row(count - 1).to_owned(),
            Self::Mean => positions.sum_axis(Axis(0)) / count as f32,
            Self::MeanSqrt => positions.sum_axis(Axis(0)) / (count as f32).sqrt(),
            Self::WeightedMean => {
                // Positions are numbered from the item's start, even if the first ones are skipped.
                let weights = Array1::from_iter((first..first + count).map(|i| (i + 1) as f32));
                weights.dot(positions) / weights.sum()
            }
            Self::Max => positions.fold_axis(Axis(0), f32::NEG_INFINITY, |a, b| a.max(*b)),
        }
    }
}

/// A linear layer: `weight · x + bias`, optionally followed by tanh.
pub struct Dense {
    /// The shape is (out, in).
    weight: Array2<f32>,
    bias: Option<Array1<f32>>,
    tanh: bool,
}

/// The steps after the graph.
#[derive(Default)]
pub struct Pooling {
    /// The modes. The vectors of several modes are joined in this order.
    pub modes: Vec<PoolingMode>,
    /// Whether the positions of the model's prompt are excluded.
    pub without_prompt: bool,
    /// The number of positions at the start of an item that are excluded.
    pub skipped: usize,
    /// The dense layers, in the order of `modules.json`; some models have two.
    pub dense: Vec<Dense>,
    /// The tower's own projection, if the graph ends before it.
    pub projection: Option<Dense>,
}

impl Pooling {
    /// Reads a directory's declaration: `modules.json`, or, if that is missing, `1_Pooling/config.json`.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a module of another kind, which it names; [`Kind::BadModel`] if a file is broken.
    pub fn read(directory: &Path) -> Result<Self> {
        let mut steps = Self::default();
        let list = directory.join("modules.json");
        if !list.is_file() {
            let pooling = directory.join("1_Pooling/config.json");
            if pooling.is_file() {
                steps.read_mode(&pooling)?;
            }
            return Ok(steps);
        }
        for module in read_json(&list)?.as_array().into_iter().flatten() {
            let kind = module["type"].as_str().unwrap_or_default();
            let files: PathBuf = directory.join(module["path"].as_str().unwrap_or_default());
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" | "CLIPModel" | "Normalize" => {}
                "Pooling" => steps.read_mode(&files.join("config.json"))?,
                "Dense" => steps.dense.push(Dense::read(&files)?),
                _ => {
                    return Err(Error::new(Kind::Unsupported, format!("module \"{kind}\" is not supported")).detail(
                        format!(
                            "\"{}\" lists it. Supported: Transformer, CLIPModel, Pooling, Dense, Normalize.",
                            list.display()
                        ),
                    ));
                }
            }
        }
        Ok(steps)
    }

    fn read_mode(&mut self, file: &Path) -> Result<()> {
        self.modes = read_pooling(file)?;
        self.without_prompt = read_json(file)?["include_prompt"].as_bool() == Some(false);
        Ok(())
    }

    /// Returns one vector per item, shape (items, width). `output` is the graph's output, of shape (items, width) or
    /// (items, positions, width); `lengths` has the number of positions of each item without padding.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if the output has another shape, or if its width doesn't fit the dense layer.
    pub fn apply(&self, output: ArrayD<f32>, lengths: &[usize]) -> Result<Array2<f32>> {
        let shape = output.shape().to_vec();
        let bad = |what: &str| {
            Error::new(Kind::BadModel, format!("the model's output {what}")).detail(format!("Its shape is {shape:?}."))
        };
        let vectors = match shape.len() {
            2 => output.into_dimensionality::<Ix2>().map_err(|_| bad("has no usable shape"))?,
            3 if !self.modes.is_empty() => {
                let positions = output.into_dimensionality::<Ix3>().map_err(|_| bad("has no usable shape"))?;
                if positions.shape().contains(&0) || positions.shape()[0] != lengths.len() {
                    return Err(bad("does not have one vector a position"));
                }
                let mut vectors = Array2::zeros((shape[0], self.modes.len() * shape[2]));
                for ((item, length), mut vector) in positions.outer_iter().zip(lengths).zip(vectors.outer_iter_mut()) {
                    let length = (*length).clamp(1, item.nrows());
                    let first = self.skipped.min(length - 1);
                    let real = item.slice(ndarray::s![first..length, ..]);
                    for (mode, mut part) in self.modes.iter().zip(vector.exact_chunks_mut(shape[2])) {
                        part.assign(&mode.pool(&real, first));
                    }
                }
                vectors
            }
            _ => return Err(bad("is not one vector an item")),
        };
        // A graph that returns one vector per item already contains its dense layers.
        let dense = self.dense.iter().filter(|_| shape.len() == 3);
        dense.chain(&self.projection).try_fold(vectors, |vectors, layer| layer.apply(&vectors))
    }

    /// The length of the resulting vectors, given the length `width` of the graph's vectors: one per item or, with
    /// `positions`, one per position.
    pub fn width(&self, width: usize, positions: bool) -> usize {
        let width = if positions { self.modes.len() * width } else { width };
        let dense = self.dense.iter().filter(|_| positions).chain(&self.projection);
        dense.last().map_or(width, |dense| dense.weight.nrows())
    }

    /// Reads the projection `name` from the weights in a directory. Returns false if they don't contain it.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if the weights can't be used.
    pub fn project(&mut self, name: &str, directory: &Path) -> Result<bool> {
        let Some(([Some(Tensor { shape, values })], file)) = weights::find(directory, [name])? else {
            return Ok(false);
        };
        let bad = || {
            let message = format!("model file \"{}\" cannot be used", file.display());
            Error::new(Kind::BadModel, message).detail(format!("\"{name}\" has shape {shape:?}."))
        };
        let [rows, columns] = shape[..] else { return Err(bad()) };
        let weight = Array2::from_shape_vec((rows, columns), values).map_err(|_| bad())?;
        self.projection = Some(Dense { weight, bias: None, tanh: false });
        Ok(true)
    }
}

fn read_pooling(file: &Path) -> Result<Vec<PoolingMode>> {
    let config = read_json(file)?;
    // The order in which sentence-transformers joins the vectors of several modes that are set by flags.
    let modes = [
        ("pooling_mode_cls_token", "cls", PoolingMode::First),
        ("pooling_mode_max_tokens", "max", PoolingMode::Max),
        ("pooling_mode_mean_tokens", "mean", PoolingMode::Mean),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", PoolingMode::MeanSqrt),
        ("pooling_mode_weightedmean_tokens", "weightedmean", PoolingMode::WeightedMean),
        ("pooling_mode_lasttoken", "lasttoken", PoolingMode::Last),
    ];
    let refused = |detail: String, hint: &str| {
        let message = format!("pooling in \"{}\" is not supported", file.display());
        Err(Error::new(Kind::Unsupported, message).detail(detail).hint(hint))
    };
    // Since version 5.2, sentence-transformers writes a name, or a list of names in the order of the joined vectors,
    // instead of a flag for each mode.
    let names: Vec<&str> = match &config["pooling_mode"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => modes.iter().filter(|(key, ..)| config[*key].as_bool() == Some(true)).map(|(_, name, _)| *name).collect(),
    };
    let known = || modes.map(|mode| mode.1).join(", ");
    if names.is_empty() {
        return refused(
            format!("It names 0 modes; at least one of {} is needed.", known()),
            "Name the mode that the model was trained with, for example {\"pooling_mode\": \"mean\"}.",
        );
    }
    let mode = |name| modes.iter().find(|mode| mode.1 == name).map(|mode| mode.2).ok_or(name);
    match names.into_iter().map(mode).collect::<std::result::Result<_, &str>>() {
        Ok(chosen) => Ok(chosen),
        Err(other) => refused(
            format!("It names the mode \"{other}\"; supported are {}.", known()),
            "Export the model with this pooling in its graph, which then returns one vector per item, and delete this \
             file and its entry in modules.json.",
        ),
    }
}

impl Dense {
    fn read(directory: &Path) -> Result<Self> {
        let config = read_json(&directory.join("config.json"))?;
        let activation = config["activation_function"].as_str().unwrap_or("torch.nn.modules.activation.Tanh");
        let tanh = match activation.rsplit('.').next().unwrap_or_default() {
            "Identity" => false,
            "Tanh" => true,
            _ => {
                return Err(Error::new(Kind::Unsupported, format!("activation \"{activation}\" is not supported"))
                    .detail("Supported: Identity, Tanh."));
            }
        };
        let file = directory.join("model.safetensors");
        if !file.is_file() {
            return Err(Error::new(Kind::MissingFile, format!("model file \"{}\" cannot be read", file.display()))
                .detail("It does not exist.")
                .hint("Weights in PyTorch's own format are not read; convert them to safetensors."));
        }
        let bad = |what: String| {
            Error::new(Kind::BadModel, format!("model file \"{}\" cannot be used: {what}", file.display()))
        };
        let [weight, bias] = weights::read(&file, ["linear.weight", "linear.bias"])?;
        let missing = |name: &str| bad(format!("it has no \"{name}\""));
        let Tensor { shape, values } = weight.ok_or_else(|| missing("linear.weight"))?;
        let [rows, columns] = shape[..] else { return Err(bad(format!("\"linear.weight\" has shape {shape:?}"))) };
        let weight = Array2::from_shape_vec((rows, columns), values).map_err(|e| bad(e.to_string()))?;
        let bias = match config["bias"].as_bool() {
            Some(false) => None,
            _ => Some(Array1::from_vec(bias.ok_or_else(|| missing("linear.bias"))?.values)),
        };
        if bias.as_ref().is_some_and(|b| b.len() != rows) {
            return Err(bad("weight and bias differ in length".to_owned()));
        }
        Ok(Self { weight, bias, tanh })
    }

    fn apply(&self, vectors: &Array2<f32>) -> Result<Array2<f32>> {
        if vectors.ncols() != self.weight.ncols() {
            return Err(Error::new(Kind::BadModel, "the dense layer does not fit the model's output").detail(format!(
                "It takes {} values; the output has {}.",
                self.weight.ncols(),
                vectors.ncols()
            )));
        }
        let mut out = vectors.dot(&self.weight.t());
        if let Some(bias) = &self.bias {
            out += bias;
        }
        if self.tanh {
            out.mapv_inplace(f32::tanh);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_pooling_configuration_are_read() {
        let file = std::env::temp_dir().join(format!("clip-pooling-{}.json", std::process::id()));
        let read = |content: &str| {
            std::fs::write(&file, content).unwrap();
            read_pooling(&file).map_err(|e| format!("{} {}", e.detail.unwrap(), e.hint.unwrap()))
        };
        assert_eq!(
            read(r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}"#),
            Ok(vec![PoolingMode::Mean])
        );
        assert_eq!(read(r#"{"embedding_dimension": 8, "pooling_mode": "mean"}"#), Ok(vec![PoolingMode::Mean]));
        assert_eq!(read(r#"{"pooling_mode": ["cls"]}"#), Ok(vec![PoolingMode::First]));
        let two = Ok(vec![PoolingMode::First, PoolingMode::Mean]);
        assert_eq!(read(r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#), two);
        assert_eq!(read(r#"{"pooling_mode": ["mean", "cls"]}"#), two.map(|two| two.into_iter().rev().collect()));
        let none = read(r#"{"pooling_mode_mean_tokens": false}"#).unwrap_err();
        assert!(none.contains("0 modes") && none.contains("Name the mode"), "{none}");
        assert_eq!(read(r#"{"pooling_mode": "weightedmean"}"#), Ok(vec![PoolingMode::WeightedMean]));
        assert_eq!(read(r#"{"pooling_mode_mean_sqrt_len_tokens": true}"#), Ok(vec![PoolingMode::MeanSqrt]));
        let other = read(r#"{"pooling_mode": ["mean", "middle"]}"#).unwrap_err();
        assert!(other.contains("\"middle\"") && other.contains("Export the model with this pooling"), "{other}");
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn pools_what_is_not_padding() {
        let output = ndarray::arr3(&[[[1.0, 8.0], [3.0, 2.0], [100.0, 100.0]]]).into_dyn();
        let pooled = |mode| {
            Pooling { modes: vec![mode], ..Pooling::default() }
                .apply(output.clone(), &[2])
                .unwrap()
                .into_raw_vec_and_offset()
                .0
        };
        assert_eq!(pooled(PoolingMode::First), [1.0, 8.0]);
        assert_eq!(pooled(PoolingMode::Mean), [2.0, 5.0]);
        assert_eq!(pooled(PoolingMode::MeanSqrt), [4.0 / 2f32.sqrt(), 10.0 / 2f32.sqrt()]);
        assert_eq!(pooled(PoolingMode::WeightedMean), [7.0 / 3.0, 4.0]);
        assert_eq!(pooled(PoolingMode::Last), [3.0, 2.0]);
        assert_eq!(pooled(PoolingMode::Max), [3.0, 8.0]);
        let skipping = |skipped| {
            let pooling = Pooling { modes: vec![PoolingMode::Mean], skipped, ..Pooling::default() };
            pooling.apply(output.clone(), &[2]).unwrap().into_raw_vec_and_offset().0
        };
        assert_eq!(skipping(1), [3.0, 2.0]);
        assert_eq!(skipping(9), [3.0, 2.0], "at least one position is pooled");
        assert!(Pooling::default().apply(output.clone(), &[2]).is_err());
        assert!(Pooling { modes: vec![PoolingMode::Mean], ..Pooling::default() }.apply(output, &[2, 2]).is_err());
    }
}
