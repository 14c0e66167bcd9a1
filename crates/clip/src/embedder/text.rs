//! Texts to vectors: tokens, padding, and the text tower.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use ndarray::{Array2, Array4};

use crate::embedder::Embedder;
use crate::embedder::calibration::TEXTS;
use crate::embedder::loader::Form;
use crate::embedder::ports::{
    floats, image_input, integers, is_integer, missing_half, missing_tower, same_width, steps, takes_one_item,
    text_input, unit_rows, unusable, width,
};
use crate::error::{Error, Kind, Result, Setting};
use crate::memory;
use crate::model::Model;
use crate::model::config::{Config, Family, preparation};
use crate::model::operators::quantizes_dynamically;
use crate::model::pooling::Pooling;
use crate::model::quantize::{Inputs, Samples};
use crate::model::session::{Port, Tower};
use crate::text::{TextEncoder, Tokens};

/// Texts of equal length run together: at most this many texts, with at most [`BATCH_TOKENS`] tokens in total. A token
/// takes the text tower of ViT-B/32 a millisecond, during which no interrupt is checked, and batches don't make long
/// texts faster.
const TEXT_BATCH: usize = 32;
const BATCH_TOKENS: usize = 256;
/// The number of texts whose tokens are in memory at the same time: 0.3 MB with CLIP's context.
const WINDOW: usize = 1024;
/// The name of a cached result about a text graph: whether texts must be padded.
const PADDING: &str = "padding";
const NEEDED: &str = "needed";
const NOT_NEEDED: &str = "not needed";

/// The vector of a text.
pub struct TextEmbedding {
    pub vector: Vec<f32>,
    /// Whether the text was truncated to the model's context.
    pub truncated: bool,
}

pub(super) struct Text {
    pub(super) tower: Rc<RefCell<Tower>>,
    pub(super) encoder: TextEncoder,
    pub(super) ids: Port,
    pub(super) mask: Option<Port>,
    /// `token_type_ids`, which get zeros, and `position_ids`, which count up from 0.
    pub(super) zeros: Option<Port>,
    pub(super) positions: Option<Port>,
    /// The image input of a combined graph.
    pub(super) idle: Option<Idle>,
    pub(super) output: Port,
    pub(super) pooling: Pooling,
    /// The length to which texts are padded, if they are.
    pub(super) pad_to: Option<usize>,
    /// Whether the model treats padding as text: its mask is then all ones.
    pub(super) fills: bool,
    /// Maximum number of texts in a run; 1 if the graph accepts only one.
    pub(super) most: usize,
}

/// Pixels for the image half of a combined graph, whose result is not used.
pub(super) struct Idle {
    pub(super) input: Port,
    /// The number of images: zero if the graph accepts it. None means one per text, for a graph that requires equal
    /// batches.
    pub(super) images: Option<usize>,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Embedder {
    /// Embeds texts; returns a vector of length 1 for each, in order.
    ///
    /// A text longer than the model's context is truncated as by the reference tokenizer, with a warning; without
    /// `truncate` it is an error. `check_interrupts` is called between pieces of work that take milliseconds; it may
    /// unwind.
    ///
    /// # Errors
    /// The error of the first failing text, with its position.
    pub fn embed_texts(
        &mut self,
        texts: &[&str],
        truncate: bool,
        check_interrupts: &mut dyn FnMut(),
    ) -> Result<Vec<TextEmbedding>> {
        self.forget_items();
        self.load_text()?;
        let mut embedded = memory::with_capacity(texts.len())?;
        for (window, from) in texts.chunks(WINDOW).zip((0..).step_by(WINDOW)) {
            self.embed_window(window, from, truncate, check_interrupts, &mut embedded)?;
        }
        self.counters.texts += texts.len() as u64;
        Ok(embedded)
    }

    /// Embeds a part of the texts. `from` is the position of the first one in the user's argument.
    fn embed_window(
        &mut self,
        texts: &[&str],
        from: usize,
        truncate: bool,
        check_interrupts: &mut dyn FnMut(),
        embedded: &mut Vec<TextEmbedding>,
    ) -> Result<()> {
        let text = self.text.get().expect("loaded by the caller");
        let mut tokens = Vec::with_capacity(texts.len());
        for (string, index) in texts.iter().zip(from..) {
            let mut encoded = text.encoder.encode_checked(string, check_interrupts).map_err(|e| e.element(index))?;
            if encoded.truncated {
                let remark = too_long(string, text.encoder.context_length, &self.model.name).element(index);
                if !truncate {
                    return Err(remark
                        .hint_setting(Setting::TruncateText, "Embed a shorter text, or let it be cut: {setting}."));
                }
                self.warnings.push(remark);
            }
            text.pad(&mut encoded);
            tokens.push(encoded);
        }
        // Texts of equal length run together, so no batch needs padding.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| tokens[*i].ids.len());
        let mut vectors = vec![Vec::new(); texts.len()];
        let same_length = order.chunk_by(|a, b| tokens[*a].ids.len() == tokens[*b].ids.len());
        for group in same_length.flat_map(|group| group.chunks(text.batch(tokens[group[0]].ids.len()))) {
            check_interrupts();
            let batch: Vec<&Tokens> = group.iter().map(|i| &tokens[*i]).collect();
            let start = Instant::now();
            let output = text.run(&batch)?;
            self.counters.inference += start.elapsed();
            self.counters.runs += 1;
            for (vector, i) in unit_rows(&output, &self.model)?.into_iter().zip(group) {
                vectors[*i] = vector;
            }
        }
        let truncated = tokens.iter().map(|tokens| tokens.truncated);
        embedded
            .extend(vectors.into_iter().zip(truncated).map(|(vector, truncated)| TextEmbedding { vector, truncated }));
        Ok(())
    }

    /// The ids of a text for the model's text tower, padded if the graph needs it.
    ///
    /// # Errors
    /// The errors of embedding the text.
    pub fn tokens(&mut self, string: &str) -> Result<Tokens> {
        self.load_text()?;
        let text = self.text.get().expect("loaded above");
        let mut tokens = text.encoder.encode(string)?;
        text.pad(&mut tokens);
        Ok(tokens)
    }

    pub(super) fn load_text(&mut self) -> Result<()> {
        let (model, warnings, notes) = (&self.model, &mut self.warnings, &mut self.notes);
        let (loader, counters, start) = (&self.loader, &mut self.counters, Instant::now());
        let image_width = self.vision.get().and_then(|v| width(&v.output, &v.pooling));
        self.text.get_or_try_init(|| {
            let file = model.text.as_ref().ok_or_else(|| missing_tower(model, "text"))?;
            let (shared, form) = loader.open(model, file, model.int8_text, warnings, notes)?;
            let tower = shared.borrow();
            let Ports { ids, mask, zeros, positions, pixels } = Ports::of(&tower, model)?;
            let (output, mut pooling) = steps(&tower, "text", &model.text_directory)?;
            same_width(model, &output, &pooling, image_width)?;
            // SigLIP was trained on padded texts without a mask, and its processor produces none.
            let fills = mask.is_some() && Config::read(&model.text_directory).family == Family::Siglip;
            let pad_to = ids.fixed(1);
            let encoder = TextEncoder::load(model, pad_to, warnings)?;
            if pooling.without_prompt && encoder.prompt.is_some() {
                if output.shape.len() == 2 {
                    let what = format!("its output \"{}\" is pooled with the model's prompt", output.name);
                    return Err(unusable(&tower, &what).hint(
                        "1_Pooling/config.json excludes it: export the graph with its output \"last_hidden_state\" alone.",
                    ));
                }
                pooling.skipped = encoder.prompt_length;
            }
            let pad_to = pad_to.or(fills.then_some(encoder.context_length));
            let alone = form == Form::Int8 || quantizes_dynamically(file);
            let most = if alone || ids.fixed(0).is_some() { 1 } else { TEXT_BATCH };
            let idle = pixels.map(|input| Idle::of(input, &ids, model)).transpose()?;
            drop(tower);
            let mut text = Text {
                tower: shared,
                encoder,
                ids,
                mask,
                zeros,
                positions,
                idle,
                output,
                pooling,
                pad_to,
                fills,
                most,
            };
            // If the graph is cached, an earlier process has run it. Its result saves two runs, 50 ms of a connection's
            // first query.
            let asks = text.pad_to.is_none() && text.mask.is_none() && text.idle.is_none();
            let known = if asks { text.tower.borrow().recall(PADDING) } else { None };
            let pads = match known.as_deref() {
                Some(NEEDED) => true,
                Some(NOT_NEEDED) => false,
                _ => {
                    let sample = text.run_sample(model, warnings)?;
                    let pads = text.pad_to.is_none() && text.mask.is_none() && text.padding_matters(&sample)?;
                    if asks {
                        text.tower.borrow().remember(PADDING, if pads { NEEDED } else { NOT_NEEDED });
                    }
                    pads
                }
            };
            if pads {
                text.pad_to = Some(text.encoder.context_length);
            }
            if form == Form::Unmade
                && let Some(made) = text.with_samples(model, |samples| loader.make(file, samples, warnings))?
            {
                if asks {
                    made.remember(PADDING, if pads { NEEDED } else { NOT_NEEDED });
                }
                text.tower = Rc::new(RefCell::new(made));
                text.most = 1;
            }
            counters.loads += 1;
            counters.loading += start.elapsed();
            Ok(text)
        })?;
        Ok(())
    }
}

/// The inputs of a text tower.
struct Ports {
    ids: Port,
    mask: Option<Port>,
    zeros: Option<Port>,
    positions: Option<Port>,
    /// The image input of a combined graph.
    pixels: Option<Port>,
}

impl Ports {
    fn of(tower: &Tower, model: &Model) -> Result<Self> {
        let ids = text_input(tower).ok_or_else(|| missing_half(model, tower, "text"))?;
        takes_one_item(tower, &ids)?;
        let named = |name: &str| tower.input(&[name]).cloned();
        let (mask, zeros, positions) = (named("attention_mask"), named("token_type_ids"), named("position_ids"));
        let pixels = image_input(tower).filter(|port| port.name != ids.name);
        for port in [&ids].into_iter().chain(&mask).chain(&zeros).chain(&positions) {
            if !is_integer(port) || port.shape.len() != 2 {
                let what = "is not int64 or int32 of shape (batch, sequence)";
                return Err(unusable(tower, &format!("its input \"{}\" {what}", port.name)));
            }
        }
        let known = [Some(&ids), mask.as_ref(), zeros.as_ref(), positions.as_ref(), pixels.as_ref()];
        let unknown = tower.inputs.iter().find(|port| known.iter().flatten().all(|k| k.name != port.name));
        match unknown {
            Some(port) => Err(unusable(tower, &format!("nothing is known to give to its input \"{}\"", port.name))),
            None => Ok(Self { ids, mask, zeros, positions, pixels }),
        }
    }
}

impl Idle {
    fn of(input: Port, ids: &Port, model: &Model) -> Result<Self> {
        let graph = input.fixed(2).zip(input.fixed(3));
        let prepared = preparation(model, graph)?.preprocess.output_size();
        let configured = prepared.unwrap_or((224, 224));
        let height = input.fixed(2).unwrap_or(configured.1 as usize);
        let width = input.fixed(3).unwrap_or(configured.0 as usize);
        let images = if input.shares_batch(ids) { None } else { Some(input.fixed(0).unwrap_or(0)) };
        Ok(Self { input, images, height, width })
    }
}

impl Text {
    /// The number of texts to run together if each has this many tokens.
    fn batch(&self, tokens: usize) -> usize {
        (BATCH_TOKENS / tokens.max(1)).clamp(1, self.most)
    }

    pub(super) fn pad(&self, tokens: &mut Tokens) {
        if let Some(length) = self.pad_to {
            self.encoder.pad(tokens, length);
        }
    }

    /// Runs texts of equal length. The result has shape (texts, dimensions).
    pub(super) fn run(&self, batch: &[&Tokens]) -> Result<Array2<f32>> {
        let output = self.tower.borrow_mut().run(self.inputs(batch)?, &self.output.name)?;
        let lengths: Vec<usize> = batch.iter().map(|tokens| tokens.length).collect();
        self.pooling.apply(output, &lengths)
    }

    /// The graph's inputs for texts of equal length.
    pub(super) fn inputs(&self, batch: &[&Tokens]) -> Result<Inputs> {
        let shape = (batch.len(), batch[0].ids.len());
        let ids = batch.iter().flat_map(|tokens| tokens.ids.iter().map(|id| i64::from(*id)));
        let mut inputs = vec![(self.ids.name.clone(), integers(&self.ids, shape, ids)?)];
        if let Some(port) = &self.mask {
            let seen = |tokens: &&Tokens| {
                let (length, left) = (tokens.length, self.encoder.pad_left);
                (0..shape.1)
                    .map(move |i| i64::from(self.fills || if left { i + length >= shape.1 } else { i < length }))
            };
            let values = batch.iter().flat_map(seen);
            inputs.push((port.name.clone(), integers(port, shape, values)?));
        }
        if let Some(port) = &self.zeros {
            inputs.push((port.name.clone(), integers(port, shape, std::iter::repeat_n(0, shape.0 * shape.1))?));
        }
        if let Some(port) = &self.positions {
            inputs.push((port.name.clone(), integers(port, shape, (0..shape.0).flat_map(|_| 0..shape.1 as i64))?));
        }
        if let Some(Idle { input, images, height, width }) = &self.idle {
            let pixels = Array4::zeros((images.unwrap_or(batch.len()), 3, *height, *width));
            inputs.push((input.name.clone(), floats(input, pixels)?));
        }
        Ok(inputs)
    }

    /// Runs the graph with one short text.
    pub(super) fn try_run(&self) -> Result<()> {
        self.run(&[&self.sample()?]).map(drop)
    }

    /// A short text as input for the graph.
    pub(super) fn sample(&self) -> Result<Tokens> {
        let mut tokens = self.encoder.encode("a photo")?;
        self.pad(&mut tokens);
        Ok(tokens)
    }

    /// Runs the graph with one short text, so that a graph that can't run fails when it is loaded. A combined graph is
    /// first run without an image; if that fails, with a black image and a warning.
    pub(super) fn run_sample(&mut self, model: &Model, warnings: &mut Vec<Error>) -> Result<Array2<f32>> {
        let tokens = self.sample()?;
        let mut result = self.run(&[&tokens]);
        if let (Err(_), Some(idle)) = (&result, &mut self.idle)
            && idle.images == Some(0)
        {
            idle.images = Some(1);
            result = self.run(&[&tokens]);
        }
        let output = result?;
        if self.idle.as_ref().is_none_or(|idle| idle.images == Some(0)) {
            return Ok(output);
        }
        let message = format!("model \"{}\" runs its image tower for every text", model.name);
        warnings.push(
            Error::new(Kind::BadModel, message)
                .detail("Its two towers are one graph, which needs an image whenever it runs.")
                .hint("Take an export with separate towers: texts are several times faster with it."),
        );
        Ok(output)
    }

    /// Whether ids after the end of a text change its vector.
    ///
    /// CLIP's text tower is causal and reads its output at the end token, so padding has no effect, and a query of
    /// seven tokens needs no padding to 77 (16 ms instead of 80 ms for ViT-B/32 on one thread). SigLIP's text tower is
    /// not causal, was trained on padded texts, and fails without padding (10 instead of 80 points of accuracy,
    /// embeddings-benchmark/mteb#1424). A test run of the graph decides: it appends eight ids to a short text. Rounding
    /// alone keeps the cosine above 0.999.
    ///
    /// `a` is the sample's vector without padding.
    pub(super) fn padding_matters(&self, a: &Array2<f32>) -> Result<bool> {
        let mut padded = self.sample()?;
        padded.ids.resize((padded.length + 8).min(self.encoder.context_length), self.encoder.pad_id);
        let b = self.run(&[&padded])?;
        let cosine = a.row(0).dot(&b.row(0)) / (a.row(0).dot(&a.row(0)) * b.row(0).dot(&b.row(0))).sqrt();
        Ok(cosine.is_nan() || cosine < 0.999)
    }
}

fn too_long(text: &str, context: usize, model: &str) -> Error {
    // The total number of tokens is unknown, because the tokenizer stops early.
    Error::new(Kind::LimitExceeded, format!("text is longer than the model's context of {context} tokens")).detail(
        format!("It has {} characters; model \"{model}\" reads the first {context} tokens.", text.chars().count()),
    )
}

impl Text {
    /// Calls `f` with the built-in texts as inputs of the graph.
    fn with_samples<T>(&self, model: &Model, f: impl FnOnce(&Samples<'_>) -> Result<T>) -> Result<T> {
        let half = TEXTS.len() / 2;
        let tokens: Vec<Tokens> = (0..TEXTS.len())
            .map(|sample| {
                let mut tokens = self.encoder.encode(TEXTS[sample % half * 2 + sample / half])?;
                self.pad(&mut tokens);
                Ok(tokens)
            })
            .collect::<Result<_>>()?;
        let inputs = |sample: usize| self.inputs(&[&tokens[sample]]);
        let vector = |sample: usize, output| {
            Ok(unit_rows(&self.pooling.apply(output, &[tokens[sample].length])?, model)?.remove(0))
        };
        f(&Samples { count: TEXTS.len(), inputs: &inputs, output: &self.output.name, vector: &vector })
    }
}
