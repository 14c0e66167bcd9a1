//! Chooses a scheme for each layer by its measured effect on the vectors.

use std::collections::BTreeMap;

use ort::session::SessionInputValue;
use ort::value::Tensor;

use super::balance::Factors;
use super::layers::{Scheme, Source};
use super::samples::Samples;
use super::write::write_gated;
use crate::error::{Error, Kind, Result};
use crate::model::session::{Runtime, Tower};
use crate::vector::cosine;

/// The time of a product by its scheme, relative to float32, measured with AVX-512 VNNI on ViT-B/32.
pub const COSTS: [f64; 3] = [0.35, 0.6, 1.0];
/// The number of samples by which effects are measured.
const MEASURED: usize = 3;

/// The products that read one activation; they share a scheme.
pub struct Group {
    pub layers: Vec<usize>,
    pub size: f64,
    /// One minus the mean cosine to float32's vectors if only these products are int8, and if only these are blockwise.
    effects: [f64; 2],
}

/// Measures the effect of each group with a graph that contains each product in all three schemes, mixed by gates: out
/// = float32 + gate · (int8 - float32) + gate · (blockwise - float32).
pub fn measure(
    runtime: &Runtime,
    source: &Source,
    factors: &Factors,
    samples: &Samples<'_>,
    check_interrupts: &mut dyn FnMut(),
) -> Result<Vec<Group>> {
    let file = source.directory.join("measured.onnx");
    let gates = |layer: usize| [format!("gate/{layer}/int8"), format!("gate/{layer}/blockwise")];
    write_gated(source, factors, &gates, &file)?;
    let mut tower = Tower::plain(runtime, &file)?;
    let mut groups: BTreeMap<&str, Group> = BTreeMap::new();
    for (index, layer) in source.layers.iter().enumerate() {
        let empty = || Group { layers: Vec::new(), size: 0.0, effects: [0.0; 2] };
        let group = groups.entry(&layer.activation).or_insert_with(empty);
        group.layers.push(index);
        group.size += source.size(layer);
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    let measured = MEASURED.min(samples.count);
    let mut run = |open: &[usize], scheme: Scheme, check_interrupts: &mut dyn FnMut()| -> Result<Vec<Vec<f32>>> {
        (0..measured)
            .map(|sample| {
                check_interrupts();
                let mut inputs = (samples.inputs)(sample)?;
                for layer in 0..source.layers.len() {
                    for (kind, name) in [Scheme::Int8, Scheme::Blockwise].into_iter().zip(gates(layer)) {
                        let gate = if kind == scheme && open.contains(&layer) { 1f32 } else { 0.0 };
                        inputs.push((name, scalar(gate)?));
                    }
                }
                (samples.vector)(sample, tower.run(inputs, samples.output)?)
            })
            .collect()
    };
    let float = run(&[], Scheme::Float32, check_interrupts)?;
    for group in &mut groups {
        for (scheme, effect) in [Scheme::Int8, Scheme::Blockwise].into_iter().zip(&mut group.effects) {
            let vectors = run(&group.layers, scheme, check_interrupts)?;
            let cosines: f64 = vectors.iter().zip(&float).map(|(a, b)| cosine(a, b)).sum();
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

/// Chooses the scheme of each layer so that the sum of effects stays within a budget. It starts with int8 for all
/// groups, and takes the steps that reduce the effect most for their added time first.
pub fn choose(groups: &[Group], layers: usize, budget: f64) -> Vec<Scheme> {
    let effect = |group: &Group, scheme: Scheme| match scheme {
        Scheme::Int8 => group.effects[0],
        Scheme::Blockwise => group.effects[1],
        Scheme::Float32 => 0.0,
    };
    let mut schemes = vec![Scheme::Int8; groups.len()];
    let mut sum: f64 = groups.iter().map(|group| group.effects[0]).sum();
    while sum > budget {
        let steps = groups.iter().enumerate().flat_map(|(index, group)| {
            let now = schemes[index];
            [Scheme::Blockwise, Scheme::Float32].into_iter().filter(move |&next| next as usize > now as usize).map(
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
        schemes[index] = next;
    }
    let mut by_layer = vec![Scheme::Float32; layers];
    for (group, scheme) in groups.iter().zip(schemes) {
        group.layers.iter().for_each(|&layer| by_layer[layer] = scheme);
    }
    by_layer
}
