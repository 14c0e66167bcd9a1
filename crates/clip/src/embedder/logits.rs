//! Zero-shot classification: converts the cosines between an image and labels to probabilities, as in the model's
//! training.
//!
//! CLIP takes the softmax over all labels of `scale × cosine`. SigLIP takes the sigmoid of `scale × cosine + bias` for
//! each label separately, so its probabilities need not add up to 1. Scale and bias were learned with the weights;
//! exports store them in different places, see [`Logits::stated`] and [`crate::embedder::Embedder::logits`].

use std::path::Path;

use ndarray::Array4;
use serde_json::Value;

use crate::embedder::Embedder;
use crate::embedder::ports::{floats, image_input, integers, pick_output, text_input};
use crate::embedder::text::Text;
use crate::embedder::vision::Vision;
use crate::error::{Error, Kind, Result};
use crate::model::config::Config;
use crate::model::session::{Runtime, Tower};
use crate::model::weights::{self, Tensor};
use crate::model::{Model, read_json};
use crate::vector::{cosine, l2_normalize};

/// The placeholder for a label in a template.
pub const PLACE: &str = "{}";

/// exp(logit_scale) of OpenAI's CLIP. Its training reached this upper limit, and so does open_clip's.
const CLIP_SCALE: f64 = 100.0;
/// The minimum absolute bias that counts as one. A sigmoid's bias is -10 or less (training starts at -10, because most
/// labels are wrong); CLIP has none. A bias measured on a quantised graph may be off by tenths.
const LEAST_BIAS: f64 = 1.0;

/// The conversion of cosines to probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// The factor for cosines, exp(logit_scale).
    pub scale: f64,
    /// The bias of a model that uses the sigmoid, so that each label's probability is separate. None for softmax.
    pub bias: Option<f64>,
    /// Where the values come from. None if no file states them and they are assumed.
    pub source: Option<String>,
}

impl Logits {
    /// OpenAI CLIP's values.
    pub fn assumed() -> Self {
        Self { scale: CLIP_SCALE, bias: None, source: None }
    }

    /// The values that a model's files state, without running the model: `logit_scale` and `logit_bias` at the top of
    /// `config.json`, or the tensors with these names in its safetensors file. The scale is stored as its logarithm, as
    /// in the weights.
    ///
    /// `logit_scale_init_value` is ignored: it is the initial value of the training (2.6592, a scale of 14.3, for the
    /// CLIP whose trained scale is 100).
    ///
    /// # Errors
    /// [`Kind::BadModel`] if a value exists but can't be used.
    pub fn stated(model: &Model) -> Result<Option<Self>> {
        for directory in [&model.directory, &model.text_directory] {
            let file = directory.join("config.json");
            if file.is_file() {
                let config = read_json(&file)?;
                let number = |key: &str| match &config[key] {
                    Value::Null => Ok(None),
                    value => value.as_f64().map(Some).ok_or_else(|| unusable(&file, key, &value.to_string())),
                };
                if let Some(scale) = number("logit_scale")? {
                    return Self::new(scale, number("logit_bias")?, &file).map(Some);
                }
            }
            if let Some(([scale, bias], file)) = weights::find(directory, ["logit_scale", "logit_bias"])? {
                let first = |tensor: Option<Tensor>| tensor?.values.first().map(|value| f64::from(*value));
                if let Some(scale) = first(scale) {
                    return Self::new(scale, first(bias), &file).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn new(logarithm: f64, bias: Option<f64>, file: &Path) -> Result<Self> {
        let scale = logarithm.exp();
        // e^20 is 5 × 10^8; CLIP's own training stops at a scale of 100.
        if !(-20.0..=20.0).contains(&logarithm) {
            return Err(unusable(file, "logit_scale", &logarithm.to_string()));
        }
        if let Some(bias) = bias.filter(|bias| !bias.is_finite()) {
            return Err(unusable(file, "logit_bias", &bias.to_string()));
        }
        Ok(Self { scale, bias, source: Some(file.display().to_string()) })
    }

    /// Fits scale and bias to pairs of a cosine and the graph's logit for it, by least squares. None if the pairs do
    /// not lie on a rising line.
    pub fn fitted(pairs: &[(f64, f64)], file: &Path) -> Option<Self> {
        let count = pairs.len() as f64;
        let (x, y) = pairs.iter().fold((0.0, 0.0), |(x, y), pair| (x + pair.0 / count, y + pair.1 / count));
        let spread = pairs.iter().map(|pair| (pair.0 - x).powi(2)).sum::<f64>();
        let scale = pairs.iter().map(|pair| (pair.0 - x) * (pair.1 - y)).sum::<f64>() / spread;
        let bias = y - scale * x;
        let worst = pairs.iter().map(|pair| (scale * pair.0 + bias - pair.1).abs()).fold(0.0, f64::max);
        // Quantised graphs deviate by a hundredth of the range of the logits.
        let straight = scale.is_finite() && scale > 0.0 && worst <= 0.05 * scale * (spread / count).sqrt();
        let bias = (bias.abs() >= LEAST_BIAS).then_some(bias);
        straight.then(|| Self { scale, bias, source: Some(format!("the logits of {}", file.display())) })
    }

    /// The probabilities of labels, given their cosines to an image.
    pub fn probabilities(&self, cosines: &[f64]) -> Vec<f64> {
        if let Some(bias) = self.bias {
            return cosines.iter().map(|cosine| 1.0 / (1.0 + (-(self.scale * cosine + bias)).exp())).collect();
        }
        // The largest logit is subtracted to avoid overflow.
        let largest = cosines.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let odds: Vec<f64> = cosines.iter().map(|cosine| (self.scale * (cosine - largest)).exp()).collect();
        let total: f64 = odds.iter().sum();
        odds.into_iter().map(|odd| odd / total).collect()
    }
}

impl std::fmt::Display for Logits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.bias {
            Some(bias) => write!(f, "sigmoid of {:.4} × cosine - {:.4}", self.scale, -bias)?,
            None => write!(f, "softmax of {:.4} × cosine", self.scale)?,
        }
        match &self.source {
            Some(source) => write!(f, ", by {source}"),
            None => f.write_str(", assumed: the model's files do not say"),
        }
    }
}

fn unusable(file: &Path, key: &str, value: &str) -> Error {
    Error::new(Kind::BadModel, format!("{key} {value} of model file \"{}\" cannot be used", file.display()))
        .hint("logit_scale is a logarithm, 4.6052 for a scale of 100; logit_bias is a number.")
}

impl Embedder {
    /// The conversion of cosines to probabilities: from the model's files ([`Logits::stated`]), else measured on a
    /// graph of both towers that has an output of logits, else CLIP's ([`Logits::assumed`]). It adds a warning if no
    /// file states the values and the model is not OpenAI's CLIP.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if a file's values can't be used; the errors of embedding if a graph is run.
    pub fn logits(&mut self) -> Result<Logits> {
        if let Some(logits) = self.logits.get() {
            return Ok(logits.clone());
        }
        let logits = match Logits::stated(&self.model)? {
            Some(logits) => logits,
            None => self.measured_logits()?.unwrap_or_else(Logits::assumed),
        };
        let config = Config::read(&self.model.directory);
        let openai = config.openai(&self.model.directory).filter(|_| logits.source.is_none());
        let logits = Logits { source: logits.source.or(openai), ..logits };
        if logits.source.is_none() && config.is_sigmoid() {
            let message = format!("model \"{}\" does not say its logit scale and bias", self.model.name);
            self.warnings.push(
                Error::new(Kind::MissingFile, message)
                    .detail("Models of its kind (SigLIP) have both; without them its probabilities are a softmax, as for CLIP.")
                    .hint("Put \"logit_scale\" and \"logit_bias\" of its weights into its config.json, or its onnx/model.onnx beside the towers."),
            );
        } else if logits.source.is_none() {
            let message = format!("model \"{}\" does not say its logit scale", self.model.name);
            self.warnings.push(
                Error::new(Kind::MissingFile, message)
                    .detail("Its probabilities are those of a scale of 100, which is that of OpenAI's CLIP.")
                    .hint("Put \"logit_scale\" of its weights into its config.json: a logarithm, 4.6052 for 100."),
            );
        }
        Ok(self.logits.get_or_init(|| logits).clone())
    }

    /// Fits the conversion to four logits of a graph that contains both towers. None if the model has no such graph.
    fn measured_logits(&mut self) -> Result<Option<Logits>> {
        let Some(file) = self.model.whole.clone() else { return Ok(None) };
        self.load_text()?;
        self.load_vision()?;
        let (vision, text) = (self.vision.get().expect("loaded above"), self.text.get().expect("loaded above"));
        if self.model.combined {
            let pairs = logit_pairs(&mut vision.tower.borrow_mut(), vision, text)?;
            return Ok(pairs.and_then(|pairs| Logits::fitted(&pairs, &file)));
        }
        // The graph is as large as both towers, so it is dropped at once.
        let mut tower = Tower::load(Runtime::load(&self.loader.library)?, &file, self.loader.threads, None)?;
        Ok(logit_pairs(&mut tower, vision, text)?.and_then(|pairs| Logits::fitted(&pairs, &file)))
    }
}

/// Pairs of a cosine and the logit that a graph of both towers gives for it: one picture with four texts, one at a
/// time, because some graphs accept only one. None if the graph has no output of logits, or has other inputs.
fn logit_pairs(tower: &mut Tower, vision: &Vision, text: &Text) -> Result<Option<Vec<(f64, f64)>>> {
    let (Some(logits), Ok(image_output), Ok(text_output), Some(pixels_port), Some(ids_port)) = (
        tower.output(&["logits_per_image", "logits_per_text"]).cloned(),
        pick_output(tower, "image", &vision.pooling),
        pick_output(tower, "text", &text.pooling),
        image_input(tower),
        text_input(tower),
    ) else {
        return Ok(None);
    };
    if image_output.name == text_output.name {
        return Ok(None);
    }
    let (height, width) = vision.size;
    // Half of the picture is dark, the other half has a colour on each side: a tower may map a picture without contrast
    // to the zero vector.
    let pixels = Array4::from_shape_fn((1, 3, height, width), |(_, channel, y, x)| {
        if y * 2 < height { -1.0 } else { (channel as f32 - 1.0) * (x as f32 / width as f32 - 0.5) * 2.0 }
    });
    let mut pairs = Vec::new();
    for sample in ["a photo of a cat", "the sky at night", "red", "a page of a book with many words on it"] {
        let mut tokens = text.encoder.encode(sample)?;
        text.pad(&mut tokens);
        let shape = (1, tokens.ids.len());
        let mut inputs = Vec::new();
        for port in tower.inputs.clone() {
            let value = match port.name.as_str() {
                name if name == pixels_port.name => floats(&port, pixels.clone())?,
                name if name == ids_port.name => integers(&port, shape, tokens.ids.iter().map(|id| i64::from(*id)))?,
                "attention_mask" => integers(&port, shape, (0..shape.1).map(|i| i64::from(i < tokens.length)))?,
                "token_type_ids" => integers(&port, shape, std::iter::repeat_n(0, shape.1))?,
                "position_ids" => integers(&port, shape, 0..shape.1 as i64)?,
                _ => return Ok(None),
            };
            inputs.push((port.name, value));
        }
        let [logit, image, text] = tower.run_for(inputs, [&logits.name, &image_output.name, &text_output.name])?;
        let (Some(logit), Some(image), Some(text)) = (logit.iter().next(), image.as_slice(), text.as_slice()) else {
            return Ok(None);
        };
        pairs.push((cosine(image, text), f64::from(*logit)));
    }
    Ok(Some(pairs))
}

/// Maximum bytes of a prompt. The part of a text that is tokenized is far shorter.
const LONGEST_PROMPT: usize = 16 << 20;

/// A template with the label in place of each placeholder ([`PLACE`]).
///
/// # Errors
/// [`Kind::LimitExceeded`] if the prompt exceeds 16 MiB; [`Kind::OutOfMemory`].
pub fn prompt(template: &str, label: &str) -> Result<String> {
    let places = template.matches(PLACE).count();
    let bytes = places.saturating_mul(label.len()).saturating_add(template.len() - places * PLACE.len());
    if bytes > LONGEST_PROMPT {
        return Err(Error::new(Kind::LimitExceeded, "label is too long for its template").detail(format!(
            "It has {} bytes, and the template {} places for it: the prompt would have {bytes}; the limit is {LONGEST_PROMPT}.",
            label.len(),
            places
        )));
    }
    let mut prompt = String::new();
    prompt.try_reserve_exact(bytes).map_err(|_| Error::out_of_memory(bytes))?;
    let mut parts = template.split(PLACE);
    prompt.push_str(parts.next().unwrap_or_default());
    parts.for_each(|part| {
        prompt.push_str(label);
        prompt.push_str(part);
    });
    Ok(prompt)
}

/// One vector for several prompts of a label: the mean of their unit vectors, scaled to length 1, as in CLIP's notebook
/// on prompt ensembles.
///
/// # Errors
/// [`Kind::InvalidInput`] if the prompts' vectors cancel out, or if there is none.
pub fn ensemble<'a>(prompts: impl IntoIterator<Item = &'a [f32]>) -> Result<Vec<f32>> {
    let mut sum: Vec<f64> = Vec::new();
    for prompt in prompts {
        sum.resize(prompt.len(), 0.0);
        sum.iter_mut().zip(prompt).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let mut mean: Vec<f32> = sum.into_iter().map(|value| value as f32).collect();
    l2_normalize(&mut mean)?;
    Ok(mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_and_sigmoid_are_those_of_the_papers() {
        // Expected values by numpy: x = 100 * np.array([.3, .28, .1]); np.exp(x) / np.exp(x).sum()
        let clip = Logits::assumed().probabilities(&[0.3, 0.28, 0.1]);
        for (found, wanted) in clip.iter().zip([0.880797076379, 0.119202921806, 1.815458e-9]) {
            assert!((found - wanted).abs() < 1e-9, "{clip:?}");
        }
        // 1 / (1 + np.exp(-(117.33 * np.array([.15, .1]) - 12.93)))
        let siglip = Logits { scale: 117.33, bias: Some(-12.93), source: None }.probabilities(&[0.15, 0.1]);
        for (found, wanted) in siglip.iter().zip([0.990710154, 0.232009330]) {
            assert!((found - wanted).abs() < 1e-6, "{siglip:?}");
        }
        // No scale may cause an overflow.
        let steep = Logits { scale: 1e8, bias: None, source: None }.probabilities(&[1.0, -1.0]);
        assert_eq!(steep, [1.0, 0.0]);
        let steep = Logits { scale: 1e8, bias: Some(-10.0), source: None }.probabilities(&[1.0, -1.0]);
        assert_eq!(steep, [1.0, 0.0]);
    }

    #[test]
    fn a_line_is_found_and_nothing_else() {
        let file = Path::new("model.onnx");
        let line = |scale: f64, bias: f64| [0.1, 0.15, 0.12, 0.2].map(|x| (x, scale * x + bias));
        let clip = Logits::fitted(&line(100.0, 0.0), file).unwrap();
        assert!((clip.scale - 100.0).abs() < 1e-9 && clip.bias.is_none(), "{clip:?}");
        let siglip = Logits::fitted(&line(117.0, -12.9), file).unwrap();
        assert!((siglip.scale - 117.0).abs() < 1e-9 && (siglip.bias.unwrap() + 12.9).abs() < 1e-9, "{siglip:?}");
        assert_eq!(Logits::fitted(&line(-5.0, 0.0), file), None);
        assert_eq!(Logits::fitted(&[(0.1, 1.0), (0.1, 2.0)], file), None);
        assert_eq!(Logits::fitted(&[(0.1, 1.0), (0.2, 20.0), (0.3, 2.0)], file), None);
        assert_eq!(Logits::fitted(&[(0.1, f64::NAN), (0.2, 20.0)], file), None);
    }

    #[test]
    fn prompts_are_averaged() {
        assert_eq!(prompt("a {} in a photo of a {}", "cat {}").unwrap(), "a cat {} in a photo of a cat {}");
        let error = prompt(&"{}".repeat(1000), &"x".repeat(100_000)).unwrap_err();
        assert_eq!(error.kind, Kind::LimitExceeded);
        assert!(error.detail.unwrap().contains("the prompt would have 100000000"));
        let mean = ensemble([[1.0, 0.0].as_slice(), &[0.0, 1.0], &[1.0, 0.0]]).unwrap();
        assert!((mean[0] - 0.894_427_2).abs() < 1e-6 && (mean[1] - 0.447_213_6).abs() < 1e-6, "{mean:?}");
        assert_eq!(ensemble([[1.0, 0.0].as_slice(), &[-1.0, 0.0]]).unwrap_err().kind, Kind::InvalidInput);
    }
}
