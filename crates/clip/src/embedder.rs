//! The pieces together: images or texts in, unit vectors out.

use std::path::PathBuf;

use ndarray::{Array2, Array4};
use once_cell::unsync::OnceCell;
use ort::session::SessionInputValue;
use ort::value::{Tensor, TensorElementType};

use crate::cluster;
use crate::error::{Error, Kind, Result};
use crate::image::{self, Limits};
use crate::model::{self, Model};
use crate::preprocess::Preprocess;
use crate::session::{Port, Runtime, Tower};
use crate::text::{TextEncoder, Tokens};

/// Images run together. ViT-B/32 gains 12 % over single images, on one thread and on two (107 against
/// 121 ms an image), for some 50 MB; a small convolutional net such as photo-mini's loses as much.
const IMAGE_BATCH: usize = 8;
/// Texts of equal length run together.
const TEXT_BATCH: usize = 32;

/// A model with its towers, each loaded when it is first called.
pub struct Embedder {
    pub model: Model,
    library: PathBuf,
    threads: usize,
    vision: OnceCell<Vision>,
    text: OnceCell<Text>,
    warnings: Vec<Error>,
    /// Items embedded so far.
    pub images: u64,
    pub texts: u64,
}

/// A text's vector.
pub struct TextEmbedding {
    pub vector: Vec<f32>,
    /// The text was cut to the model's context.
    pub truncated: bool,
}

struct Vision {
    tower: Tower,
    input: String,
    output: Port,
    preprocess: Preprocess,
    /// (height, width)
    size: (usize, usize),
    batch: usize,
}

struct Text {
    tower: Tower,
    encoder: TextEncoder,
    ids: Port,
    mask: Option<Port>,
    /// Further inputs that take zeros: `token_type_ids`.
    zeros: Vec<Port>,
    output: Port,
    /// Texts are filled to this length.
    pad_to: Option<usize>,
    batch: usize,
}

impl Embedder {
    /// Prepares a model; nothing is loaded yet. `library` is libonnxruntime's path.
    pub fn new(model: Model, library: PathBuf, threads: usize) -> Self {
        Self {
            model,
            library,
            threads,
            vision: OnceCell::new(),
            text: OnceCell::new(),
            warnings: Vec::new(),
            images: 0,
            texts: 0,
        }
    }

    pub fn image_loaded(&self) -> bool {
        self.vision.get().is_some()
    }

    pub fn text_loaded(&self) -> bool {
        self.text.get().is_some()
    }

    /// Length of the vectors: the graph's where one is loaded, else what the configuration states.
    pub fn dimensions(&self) -> Option<usize> {
        let vision = self.vision.get().and_then(|v| v.output.fixed(1));
        let text = self.text.get().and_then(|t| t.output.fixed(1));
        vision.or(text).or_else(|| self.model.stated_dimensions())
    }

    /// Remarks since the last call, for the user to see once.
    pub fn take_warnings(&mut self) -> Vec<Error> {
        std::mem::take(&mut self.warnings)
    }

    /// Embeds image files, in order; each vector has length 1.
    ///
    /// `pulse` is called between pieces of work that take milliseconds; it may unwind.
    ///
    /// # Errors
    /// The first failing image's, with its place in the array where there are several; nothing is returned
    /// of the others.
    pub fn embed_images(&mut self, files: &[&[u8]], limits: &Limits, pulse: &mut dyn FnMut()) -> Result<Vec<Vec<f32>>> {
        self.load_vision()?;
        let vision = self.vision.get_mut().expect("loaded above");
        let (height, width) = vision.size;
        let mut vectors = Vec::with_capacity(files.len());
        for (chunk, start) in files.chunks(vision.batch).zip((0..).step_by(vision.batch)) {
            let mut pixels = Array4::<f32>::zeros((chunk.len(), 3, height, width));
            for (index, (file, plane)) in chunk.iter().zip(pixels.outer_iter_mut()).enumerate() {
                pulse();
                let rgb = image::decode(file, limits).map_err(|e| e.element(start + index))?;
                let rgb = image::resize_and_crop(&rgb, &vision.preprocess);
                image::normalise(&rgb, &vision.preprocess, plane);
            }
            pulse();
            let inputs = vec![(vision.input.clone(), tensor(pixels)?)];
            vectors.extend(unit_rows(&vision.tower.run(inputs, &vision.output.name)?, &self.model)?);
        }
        self.images += files.len() as u64;
        Ok(vectors)
    }

    /// Embeds texts, in order; each vector has length 1.
    ///
    /// A text over the model's context is cut as the reference tokenizer does, which leaves a warning;
    /// without `truncate` it is an error.
    ///
    /// # Errors
    /// As [`Self::embed_images`].
    pub fn embed_texts(
        &mut self,
        texts: &[&str],
        truncate: bool,
        pulse: &mut dyn FnMut(),
    ) -> Result<Vec<TextEmbedding>> {
        self.load_text()?;
        let text = self.text.get_mut().expect("loaded above");
        let mut tokens = Vec::with_capacity(texts.len());
        for (index, string) in texts.iter().enumerate() {
            pulse();
            let mut encoded = text.encoder.encode(string).map_err(|e| e.element(index))?;
            if encoded.truncated {
                let remark = too_long(string, text.encoder.context_length, &self.model.name).element(index);
                if !truncate {
                    return Err(remark.hint("Embed a shorter text, or let it be cut: clip_search.truncate_text."));
                }
                self.warnings.push(remark);
            }
            text.pad(&mut encoded);
            tokens.push(encoded);
        }
        // Texts of one length run together, so that no batch needs padding.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| tokens[*i].ids.len());
        let mut vectors = vec![Vec::new(); texts.len()];
        let batch_size = text.batch;
        for group in
            order.chunk_by(|a, b| tokens[*a].ids.len() == tokens[*b].ids.len()).flat_map(|g| g.chunks(batch_size))
        {
            pulse();
            let batch: Vec<&Tokens> = group.iter().map(|i| &tokens[*i]).collect();
            for (vector, i) in unit_rows(&text.run(&batch)?, &self.model)?.into_iter().zip(group) {
                vectors[*i] = vector;
            }
        }
        self.texts += texts.len() as u64;
        let truncated = tokens.iter().map(|tokens| tokens.truncated);
        Ok(vectors.into_iter().zip(truncated).map(|(vector, truncated)| TextEmbedding { vector, truncated }).collect())
    }

    /// The ids of a text as the model's text tower gets them, with padding where it needs some.
    ///
    /// # Errors
    /// As for embedding it.
    pub fn tokens(&mut self, string: &str) -> Result<Tokens> {
        self.load_text()?;
        let text = self.text.get().expect("loaded above");
        let mut tokens = text.encoder.encode(string)?;
        text.pad(&mut tokens);
        Ok(tokens)
    }

    fn load_vision(&mut self) -> Result<()> {
        let (model, warnings) = (&self.model, &mut self.warnings);
        let text_output = self.text.get().map(|t| t.output.clone());
        self.vision.get_or_try_init(|| {
            let file = model.vision.as_ref().ok_or_else(|| missing_tower(model, "image"))?;
            let tower = Tower::load(Runtime::load(&self.library)?, file, self.threads)?;
            let unusable = |what: &str| unusable(&tower, what);
            let input = tower.input(&["pixel_values", "image", "images", "input"]).ok_or_else(|| unusable("it has no image input"))?.clone();
            if input.element != TensorElementType::Float32 || input.shape.len() != 4 || input.fixed(1).is_some_and(|c| c != 3) {
                return Err(unusable("its image input is not float32 of shape (batch, 3, height, width)"));
            }
            let output = pick_output(&tower, &["image_embeds", "l2norm_image_embeddings", "image_embeddings", "embedding", "pooler_output", "output"])?;
            let graph_size = input.fixed(2).zip(input.fixed(3));
            let preprocess = match &model.preprocess {
                Some(file) => Preprocess::parse(&model::read(file)?).map_err(|e| Error { message: format!("{} (\"{}\")", e.message, file.display()), ..e })?,
                None => {
                    let size = graph_size.map_or(224, |(height, _)| height as u32);
                    warnings.push(
                        Error::new(Kind::MissingFile, format!("model \"{}\" has no preprocessor_config.json", model.name))
                            .detail(format!("CLIP's preprocessing is used: shortest edge {size} by bicubic resampling, centre crop, CLIP's mean and standard deviation.")),
                    );
                    Preprocess::clip(size)
                }
            };
            let configured = preprocess.output_size().map(|(width, height)| (height as usize, width as usize));
            let size = match (configured, graph_size) {
                (Some(c), Some(g)) if c != g => {
                    return Err(unusable(&format!("it takes images of {}×{} pixels, but its preprocessing makes {}×{}", g.1, g.0, c.1, c.0)));
                }
                (Some(size), _) => size,
                (None, _) => return Err(unusable("its preprocessing leaves images of unequal sizes")),
            };
            same_width(model, &output, text_output.as_ref())?;
            let batch = input.fixed(0).map_or(IMAGE_BATCH, |_| 1);
            Ok(Vision { input: input.name, output, preprocess, size, batch, tower })
        })?;
        Ok(())
    }

    fn load_text(&mut self) -> Result<()> {
        let model = &self.model;
        let image_output = self.vision.get().map(|v| v.output.clone());
        self.text.get_or_try_init(|| {
            let file = model.text.as_ref().ok_or_else(|| missing_tower(model, "text"))?;
            let tower = Tower::load(Runtime::load(&self.library)?, file, self.threads)?;
            let unusable = |what: &str| unusable(&tower, what);
            let ids = tower
                .input(&["input_ids", "text", "input"])
                .ok_or_else(|| unusable("it has no input for token ids"))?
                .clone();
            let mask = tower.input(&["attention_mask"]).cloned();
            let zeros: Vec<Port> = tower.input(&["token_type_ids"]).into_iter().cloned().collect();
            for port in [&ids].into_iter().chain(&mask).chain(&zeros) {
                if !matches!(port.element, TensorElementType::Int64 | TensorElementType::Int32) || port.shape.len() != 2
                {
                    return Err(unusable(&format!(
                        "its input \"{}\" is not int64 or int32 of shape (batch, sequence)",
                        port.name
                    )));
                }
            }
            let output = pick_output(
                &tower,
                &["text_embeds", "l2norm_text_embeddings", "text_embeddings", "embedding", "pooler_output", "output"],
            )?;
            same_width(model, &output, image_output.as_ref())?;
            let fixed = ids.fixed(1);
            let encoder = TextEncoder::load(model, fixed)?;
            let batch = ids.fixed(0).map_or(TEXT_BATCH, |_| 1);
            let mut text = Text { tower, encoder, ids, mask, zeros, output, pad_to: fixed, batch };
            if text.pad_to.is_none() && text.mask.is_none() && text.padding_matters()? {
                text.pad_to = Some(text.encoder.context_length);
            }
            Ok(text)
        })?;
        Ok(())
    }
}

impl Text {
    fn pad(&self, tokens: &mut Tokens) {
        if let Some(length) = self.pad_to {
            tokens.ids.resize(length, self.encoder.pad_id);
        }
    }

    /// Runs texts of one length. Returns shape (texts, dimensions).
    fn run(&mut self, batch: &[&Tokens]) -> Result<Array2<f32>> {
        let shape = (batch.len(), batch[0].ids.len());
        let ids = batch.iter().flat_map(|tokens| tokens.ids.iter().map(|id| i64::from(*id)));
        let mut inputs = vec![(self.ids.name.clone(), integers(&self.ids, shape, ids)?)];
        if let Some(mask) = &self.mask {
            let values = batch.iter().flat_map(|tokens| (0..tokens.ids.len()).map(|i| i64::from(i < tokens.length)));
            inputs.push((mask.name.clone(), integers(mask, shape, values)?));
        }
        for port in &self.zeros {
            inputs.push((port.name.clone(), integers(port, shape, std::iter::repeat_n(0, shape.0 * shape.1))?));
        }
        self.tower.run(inputs, &self.output.name)
    }

    /// Whether ids after the end of a text change its vector.
    ///
    /// CLIP's text tower is causal and reads its output at the end token, so they cannot, and a query of
    /// seven tokens need not pay for 77 (16 ms against 80 ms for ViT-B/32 on one thread). SigLIP's is not
    /// causal, was trained on padded texts, and loses its meaning without (10 against 80 points of
    /// accuracy, embeddings-benchmark/mteb#1424). The graph itself tells which: eight more ids are put
    /// behind a short text. Rounding leaves a cosine above 0.999.
    fn padding_matters(&mut self) -> Result<bool> {
        let plain = self.encoder.encode("a photo")?;
        let mut padded = plain.clone();
        padded.ids.resize((plain.length + 8).min(self.encoder.context_length), self.encoder.pad_id);
        let (a, b) = (self.run(&[&plain])?, self.run(&[&padded])?);
        let cosine = a.row(0).dot(&b.row(0)) / (a.row(0).dot(&a.row(0)) * b.row(0).dot(&b.row(0))).sqrt();
        Ok(cosine.is_nan() || cosine < 0.999)
    }
}

/// The rows of a tower's output, each scaled to length 1.
fn unit_rows(output: &Array2<f32>, model: &Model) -> Result<Vec<Vec<f32>>> {
    output
        .outer_iter()
        .map(|row| {
            let mut row = row.to_vec();
            cluster::normalise(&mut row).map_err(|e| {
                Error::new(Kind::BadModel, format!("model \"{}\" gave no usable vector", model.name))
                    .detail(format!("Its output: {}.", e.message))
                    .hint("The model's files may be broken; download them again, or use another variant.")
            })?;
            Ok(row)
        })
        .collect()
}

fn too_long(text: &str, context: usize, model: &str) -> Error {
    // How many tokens there are in all is not known: the tokenizer stops where it may.
    Error::new(Kind::LimitExceeded, format!("text is longer than the model's context of {context} tokens")).detail(
        format!("It has {} characters; model \"{model}\" reads the first {context} tokens.", text.chars().count()),
    )
}

fn missing_tower(model: &Model, what: &str) -> Error {
    Error::new(Kind::MissingFile, format!("model \"{}\" has no {what} tower", model.name))
        .detail(format!("No ONNX file for it is in \"{}\".", model.directory.display()))
}

fn unusable(tower: &Tower, what: &str) -> Error {
    Error::new(Kind::BadModel, format!("model file \"{}\" cannot be used: {what}", tower.file.display()))
        .detail(format!("It has {}.", tower.describe()))
}

/// The embedding among a graph's outputs: by name, else the only one.
fn pick_output(tower: &Tower, names: &[&str]) -> Result<Port> {
    let port = tower.output(names).or(match tower.outputs.as_slice() {
        [only] => Some(only),
        _ => None,
    });
    port.filter(|p| p.element == TensorElementType::Float32 && p.shape.len() == 2)
        .cloned()
        .ok_or_else(|| unusable(tower, "it has no output with one float32 vector an item"))
}

/// Both towers must embed into one space.
fn same_width(model: &Model, this: &Port, other: Option<&Port>) -> Result<()> {
    match (this.fixed(1), other.and_then(|port| port.fixed(1))) {
        (Some(a), Some(b)) if a != b => {
            Err(Error::new(Kind::BadModel, format!("model \"{}\" has towers of unequal width", model.name))
                .detail(format!("Output \"{}\" has {a} dimensions, the other tower's has {b}.", this.name)))
        }
        _ => Ok(()),
    }
}

fn tensor(array: Array4<f32>) -> Result<SessionInputValue<'static>> {
    Tensor::from_array(array).map(Into::into).map_err(tensor_failed)
}

fn integers(
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
