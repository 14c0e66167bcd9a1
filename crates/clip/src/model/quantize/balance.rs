//! Balances activations against weights, so that strong channels don't reduce the precision of the others.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{Array2, ArrayView2, Axis};

use super::layers::{Source, largest_weight};
use super::samples::Samples;
use crate::error::Result;
use crate::model::onnx::{FLOAT_TENSOR, ValueInfo};
use crate::model::session::{Runtime, Tower};

/// The shares of the difference between channels to try, which move from activations to weights; 0 is no balance.
const BALANCES: [f64; 5] = [0.0, 0.25, 0.35, 0.5, 0.65];
/// The number of rows that are kept of each activation, to estimate errors.
const ROWS: usize = 32;

/// The factors for the channels of each activation, by the activation's name.
pub type Factors = BTreeMap<String, Vec<f32>>;

/// What was observed of an activation: the extremes of each channel, and some rows.
#[derive(Default)]
pub struct Seen {
    high: Vec<f32>,
    low: Vec<f32>,
    rows: Vec<Vec<f32>>,
}

/// Results of the float32 graph: what was observed of each activation, by its name, and the vectors of the samples for
/// the check.
pub struct Observed {
    pub activations: BTreeMap<String, Seen>,
    pub wanted: Vec<Vec<f32>>,
}

/// Runs the calibration samples with every layer's activation as an additional output, and the other samples to get
/// their vectors.
pub fn observe(
    runtime: &Runtime,
    source: &Source,
    samples: &Samples<'_>,
    check_interrupts: &mut dyn FnMut(),
) -> Result<Observed> {
    let half = samples.half();
    let mut observed = source.model.clone();
    let graph = observed.graph.as_mut().expect("checked");
    let outputs: BTreeSet<String> = graph.output.iter().map(|output| output.name().to_owned()).collect();
    let names: BTreeSet<&str> = source.layers.iter().map(|layer| layer.activation.as_str()).collect();
    for name in names.iter().filter(|name| !outputs.contains(**name)) {
        graph.output.push(ValueInfo { name: Some((*name).to_owned()), kind: Some(FLOAT_TENSOR.to_vec()) });
    }
    let file = source.directory.join("observed.onnx");
    observed.write(&file)?;
    let mut tower = Tower::plain(runtime, &file)?;
    let names: Vec<&str> = names.into_iter().collect();
    let mut activations: BTreeMap<String, Seen> = BTreeMap::new();
    for sample in 0..half {
        check_interrupts();
        for (name, values) in names.iter().zip(tower.run_all((samples.inputs)(sample)?, &names)?) {
            let width = values.shape().last().copied().unwrap_or(0);
            let count = values.len().checked_div(width).unwrap_or(0);
            let Ok(values) = values.into_shape_with_order((count, width)) else { continue };
            activations.entry((*name).to_owned()).or_default().add(values.view(), half);
        }
    }
    let wanted = (half..samples.count)
        .map(|sample| {
            check_interrupts();
            (samples.vector)(sample, tower.run((samples.inputs)(sample)?, samples.output)?)
        })
        .collect::<Result<_>>()?;
    Ok(Observed { activations, wanted })
}

impl Seen {
    /// Adds the observations of one sample; `samples` is the number of samples in total.
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

    /// The factors that move a share of the difference between channels to the weights; None for a share of 0.
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

/// The factors with the least expected error for each activation. An activation is missing if no balance is best.
pub fn balance(
    source: &Source,
    activations: &BTreeMap<String, Seen>,
    check_interrupts: &mut dyn FnMut(),
) -> Result<Factors> {
    let mut chosen = Factors::new();
    for (name, seen) in activations {
        check_interrupts();
        let sharing = source.layers.iter().filter(|layer| layer.activation == *name);
        let weights = sharing.map(|layer| source.weights(layer)).collect::<Result<Vec<_>>>()?;
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

/// The expected square of the rounding error of an output row, assuming a uniform rounding error of one step for each
/// activation and each weight.
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
            *scale = scale.max(weight.abs() / f64::from(largest_weight()));
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
