//! The inputs and outputs of graphs: chooses them, builds input values, and converts output rows to vectors.

use std::path::Path;

use ndarray::{Array2, Array4};
use ort::session::SessionInputValue;
use ort::value::{Tensor, TensorElementType};

use crate::error::{Error, Kind, Result};
use crate::model::Model;
use crate::model::config::Config;
use crate::model::pooling::Pooling;
use crate::model::session::{Port, Tower};
use crate::vector::l2_normalize;

const IMAGE_INPUTS: [&str; 4] = ["pixel_values", "image", "images", "input"];
const TEXT_INPUTS: [&str; 3] = ["input_ids", "text", "input"];
/// Other inputs that a text tower may have in addition to its ids.
const BESIDE_IDS: [&str; 3] = ["attention_mask", "token_type_ids", "position_ids"];

/// The rows of a tower's output, each scaled to length 1.
pub(super) fn unit_rows(output: &Array2<f32>, model: &Model) -> Result<Vec<Vec<f32>>> {
    output
        .outer_iter()
        .map(|row| {
            let mut row = row.to_vec();
            l2_normalize(&mut row).map_err(|e| {
                Error::new(Kind::BadModel, format!("model \"{}\" gave no usable vector", model.name))
                    .detail(format!("Its output: {}.", e.message))
                    .hint("The model's files may be broken; download them again, or use another variant.")
            })?;
            Ok(row)
        })
        .collect()
}

pub(super) fn missing_tower(model: &Model, what: &str) -> Error {
    Error::new(Kind::MissingFile, format!("model \"{}\" has no {what} tower", model.name))
        .detail(format!("No ONNX file for it is in \"{}\".", model.directory.display()))
}

pub(super) fn unusable(tower: &Tower, what: &str) -> Error {
    Error::new(Kind::BadModel, format!("model file \"{}\" cannot be used: {what}", tower.file.display()))
        .detail(format!("It has {}.", tower.describe()))
}

/// The error for a graph without an input for this kind of item.
pub(super) fn missing_half(model: &Model, tower: &Tower, what: &str) -> Error {
    if model.combined {
        missing_tower(model, what)
            .hint("Where the towers are two directories, name both: image directory, a plus sign, text directory.")
    } else {
        unusable(tower, &format!("it has no {what} input"))
    }
}

/// Chooses the embedding among a graph's outputs: an output with one vector per item, by name; else one with a vector
/// per position, if the model states its pooling; else a pooled output, or the only one. `kind` is "image" or "text",
/// as in the names.
///
/// A BERT tower of sentence-transformers may return `pooler_output` in addition to its positions. That output belongs
/// to BERT's own training, and the stated pooling replaces it.
pub(super) fn pick_output(tower: &Tower, kind: &str, pooling: &Pooling) -> Result<Port> {
    const POSITIONS: [&str; 2] = ["last_hidden_state", "token_embeddings"];
    let own = [format!("{kind}_embeds"), format!("l2norm_{kind}_embeddings"), format!("{kind}_embeddings")];
    let names: Vec<&str> = own.iter().map(String::as_str).chain(["embedding", "sentence_embedding"]).collect();
    let usable = |port: &&Port, rank: usize| port.shape.len() == rank && is_float(port);
    let only = if tower.outputs.len() == 1 { tower.outputs.first() } else { None };
    let named = |names: &[&str], rank: usize| {
        let mut found = names.iter().filter_map(|name| tower.outputs.iter().find(|port| port.name == *name));
        found.find(|port| usable(port, rank))
    };
    let pooled = || named(&POSITIONS, 3).filter(|_| !pooling.modes.is_empty());
    let general = || named(&["pooler_output", "output"], 2).or(only.filter(|port| usable(port, 2)));
    if let Some(port) = named(&names, 2).or_else(pooled).or_else(general) {
        return Ok(port.clone());
    }
    match named(&POSITIONS, 3).or(only.filter(|port| usable(port, 3))) {
        Some(port) if !pooling.modes.is_empty() => Ok(port.clone()),
        Some(port) => {
            let what = "has one vector a position, and nothing says how to pool them";
            Err(unusable(tower, &format!("its output \"{}\" {what}", port.name)).hint(
                "Say it in 1_Pooling/config.json: {\"pooling_mode_cls_token\": true} or {\"pooling_mode_mean_tokens\": true}.",
            ))
        }
        None => Err(unusable(tower, "it has no output with one float vector an item")),
    }
}

/// The output of a tower's graph to use, and the steps that follow it. If the graph ends before the projection of its
/// architecture, the weights beside it provide the projection.
pub(super) fn steps(tower: &Tower, kind: &str, directory: &Path) -> Result<(Port, Pooling)> {
    let mut pooling = Pooling::read(directory)?;
    let output = pick_output(tower, kind, &pooling)?;
    let config = Config::read(directory);
    if output.name != "pooler_output" || !config.projects() {
        return Ok((output, pooling));
    }
    let name = if kind == "image" { "visual_projection.weight" } else { "text_projection.weight" };
    // Chinese CLIP projects the class token of texts, which is not its tower's pooled output.
    let pooled = kind == "image" || config.model_type.as_deref() != Some("chinese_clip");
    if pooled && pooling.project(name, directory)? {
        return Ok((output, pooling));
    }
    let export = if kind == "image" { "image_embeds" } else { "text_embeds" };
    let error = unusable(tower, "it ends before the projection into the space that images and texts share");
    Err(error.hint(match pooled {
        true => {
            format!("Put the model's model.safetensors beside it, or export the tower with its output \"{export}\".")
        }
        false => format!("Export the tower with its output \"{export}\"."),
    }))
}

/// Checks that both towers embed into the same space.
pub(super) fn same_width(model: &Model, output: &Port, pooling: &Pooling, other: Option<usize>) -> Result<()> {
    match (width(output, pooling), other) {
        (Some(a), Some(b)) if a != b => {
            Err(Error::new(Kind::BadModel, format!("model \"{}\" has towers of unequal width", model.name))
                .detail(format!("Output \"{}\" has {a} dimensions, the other tower's has {b}.", output.name)))
        }
        _ => Ok(()),
    }
}

/// The length of the vectors that an output leads to, if the graph fixes it.
pub(super) fn width(output: &Port, pooling: &Pooling) -> Option<usize> {
    let last = output.fixed(output.shape.len() - 1)?;
    Some(pooling.width(last, output.shape.len() == 3))
}

pub(super) fn chosen(output: &Port, pooling: &Pooling) -> String {
    let modes: Vec<String> = pooling.modes.iter().map(|mode| format!("{mode:?}").to_lowercase()).collect();
    match output.shape.len() {
        3 if !modes.is_empty() => format!("{output}, pooled: {}", modes.join(" and ")),
        _ if pooling.projection.is_some() => format!("{output}, projected by the weights beside it"),
        _ => output.to_string(),
    }
}

pub(super) fn is_float(port: &Port) -> bool {
    matches!(port.element, TensorElementType::Float32 | TensorElementType::Float16 | TensorElementType::Bfloat16)
}

pub(super) fn is_integer(port: &Port) -> bool {
    matches!(port.element, TensorElementType::Int64 | TensorElementType::Int32)
}

/// The input for pixels: by name, unless it is a text tower's input with the same name; else the only input that fits,
/// because torch.onnx.export invents names if none are given.
pub(super) fn image_input(tower: &Tower) -> Option<Port> {
    let named = tower.input(&IMAGE_INPUTS).filter(|port| !is_integer(port));
    let fits = |port: &&Port| is_float(port) && port.shape.len() == 4 && port.fixed(1).is_none_or(|n| n == 3);
    named.or_else(|| only(tower, fits)).cloned()
}

/// The input for ids: by name, else the only input that fits.
pub(super) fn text_input(tower: &Tower) -> Option<Port> {
    let named = tower.input(&TEXT_INPUTS).filter(|port| is_integer(port));
    let fits = |port: &&Port| is_integer(port) && port.shape.len() == 2 && !BESIDE_IDS.contains(&port.name.as_str());
    named.or_else(|| only(tower, fits)).cloned()
}

/// Refuses an input whose batch size is that of an example with several items: it can't be run for one item.
///
/// # Errors
/// [`Kind::BadModel`], with a hint on how to export it.
pub(super) fn takes_one_item(tower: &Tower, port: &Port) -> Result<()> {
    match port.fixed(0) {
        Some(count) if count > 1 => {
            Err(unusable(tower, &format!("its input \"{}\" takes exactly {count} items a run", port.name))
                .hint("Export it with a dynamic batch axis, or with an example of one item."))
        }
        _ => Ok(()),
    }
}

fn only(tower: &Tower, fits: impl Fn(&&Port) -> bool) -> Option<&Port> {
    let mut found = tower.inputs.iter().filter(fits);
    found.next().filter(|_| found.next().is_none())
}

pub(super) fn floats(port: &Port, array: Array4<f32>) -> Result<SessionInputValue<'static>> {
    match port.element {
        TensorElementType::Float16 => {
            Tensor::from_array(array.mapv(half::f16::from_f32)).map(Into::into).map_err(tensor_failed)
        }
        TensorElementType::Bfloat16 => {
            Tensor::from_array(array.mapv(half::bf16::from_f32)).map(Into::into).map_err(tensor_failed)
        }
        _ => Tensor::from_array(array).map(Into::into).map_err(tensor_failed),
    }
}

pub(super) fn integers(
    port: &Port,
    shape: (usize, usize),
    values: impl Iterator<Item = i64>,
) -> Result<SessionInputValue<'static>> {
    let shape = [shape.0, shape.1];
    if port.element == TensorElementType::Int32 {
        Tensor::from_array((shape, values.map(|v| v as i32).collect::<Vec<_>>())).map(Into::into).map_err(tensor_failed)
    } else {
        Tensor::from_array((shape, values.collect::<Vec<_>>())).map(Into::into).map_err(tensor_failed)
    }
}

fn tensor_failed(e: ort::Error) -> Error {
    Error::new(Kind::Internal, "an input tensor could not be made").detail(e.message().to_owned())
}
