//! The pieces together: images or texts in, unit vectors out.

pub mod logits;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ndarray::{Array2, Array4};
use once_cell::unsync::OnceCell;
use ort::session::SessionInputValue;
use ort::value::{Tensor, TensorElementType};

use crate::clustering::centroid;
use crate::embedder::logits::Logits;
use crate::error::{Error, Kind, Result};
use crate::image::preprocess::Preprocess;
use crate::image::{self, Limits};
use crate::model::pooling::Head;
use crate::model::session::{Port, Runtime, Tower, with_signals_blocked};
use crate::model::{self, Model};
use crate::text::{TextEncoder, Tokens};

/// Images run together, where that is faster ([`Pace`]): ViT-B/32 gains 12 % over single images, on one thread and on two
/// (107 against 121 ms an image), for some 50 MB; a small convolutional net such as photo-mini's loses as much.
const IMAGE_BATCH: usize = 8;
/// Pixels of a batch, at most: eight images of 224 × 224. Activations take some ten times their memory.
const BATCH_PIXELS: usize = IMAGE_BATCH * 224 * 224;
/// Texts of equal length run together.
const TEXT_BATCH: usize = 32;

const IMAGE_INPUTS: [&str; 4] = ["pixel_values", "image", "images", "input"];
const TEXT_INPUTS: [&str; 3] = ["input_ids", "text", "input"];
/// What is kept about a text graph: whether texts must be filled up.
const PADDING: &str = "padding";
const NEEDED: &str = "needed";
const NOT_NEEDED: &str = "not needed";

/// A model with its towers, each loaded when it is first called.
pub struct Embedder {
    pub model: Model,
    library: PathBuf,
    threads: usize,
    cache: Option<PathBuf>,
    /// A graph that serves both towers is loaded once.
    shared: OnceCell<Rc<RefCell<Tower>>>,
    vision: OnceCell<Vision>,
    text: OnceCell<Text>,
    logits: OnceCell<Logits>,
    warnings: Vec<Error>,
    notes: Vec<String>,
    /// What it has done so far.
    pub counters: Counters,
}

/// Work done, and the time that it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Images embedded.
    pub images: u64,
    /// Texts embedded.
    pub texts: u64,
    /// Runs of a graph, with one item or several.
    pub runs: u64,
    /// Graphs loaded.
    pub loads: u64,
    /// Time for loading graphs and tokenizers.
    pub loading: Duration,
    /// Time from an image file to the graph's input.
    pub decoding: Duration,
    /// Time inside the graphs.
    pub inference: Duration,
}

/// A text's vector.
pub struct TextEmbedding {
    pub vector: Vec<f32>,
    /// The text was cut to the model's context.
    pub truncated: bool,
}

struct Vision {
    tower: Rc<RefCell<Tower>>,
    input: Port,
    /// What the text half of a combined graph is given.
    idle: Vec<Port>,
    output: Port,
    head: Head,
    preprocess: Preprocess,
    /// (height, width)
    size: (usize, usize),
    pace: Pace,
}

/// Whether images are run together or singly: the first batch is timed, then as many singly, and the faster way is kept.
struct Pace {
    /// Images of a batch; 1 where the graph takes no more.
    most: usize,
    /// Seconds an image.
    together: Option<f64>,
    singly: Option<f64>,
}

impl Pace {
    fn batch(&self) -> usize {
        match (self.together, self.singly) {
            (None, _) => self.most,
            (Some(_), None) => 1,
            (Some(together), Some(singly)) if together <= singly => self.most,
            _ => 1,
        }
    }

    /// Learns from a run of `count` images.
    fn note(&mut self, count: usize, taken: Duration) {
        let each = taken.as_secs_f64() / count as f64;
        if self.together.is_none() && self.most > 1 && count == self.most {
            self.together = Some(each);
        } else if self.together.is_some() && count == 1 {
            // The fastest of all: what disturbs a run makes it slower.
            self.singly = Some(self.singly.map_or(each, |fastest| fastest.min(each)));
        }
    }
}

/// Images as the graph takes them.
struct Prepared {
    pixels: Array4<f32>,
    remarks: Vec<Error>,
    taken: Duration,
}

struct Text {
    tower: Rc<RefCell<Tower>>,
    encoder: TextEncoder,
    ids: Port,
    mask: Option<Port>,
    /// `token_type_ids` take zeros, `position_ids` count.
    zeros: Option<Port>,
    positions: Option<Port>,
    /// What the image half of a combined graph is given.
    idle: Option<Idle>,
    output: Port,
    head: Head,
    /// Texts are filled to this length.
    pad_to: Option<usize>,
    batch: usize,
}

/// Pixels for the half of a combined graph that is not asked.
struct Idle {
    input: Port,
    /// (images, 3, height, width); no image at all where the graph bears it.
    shape: [usize; 4],
}

impl Embedder {
    /// Prepares a model; nothing is loaded yet. `library` is libonnxruntime's path.
    pub fn new(model: Model, library: PathBuf, threads: usize) -> Self {
        Self {
            model,
            library,
            threads,
            cache: None,
            shared: OnceCell::new(),
            vision: OnceCell::new(),
            text: OnceCell::new(),
            logits: OnceCell::new(),
            warnings: Vec::new(),
            notes: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Keeps rewritten graphs in this directory ([`crate::model::graph_cache`]).
    pub fn with_cache(mut self, cache: Option<PathBuf>) -> Self {
        self.cache = cache;
        self
    }

    pub fn image_loaded(&self) -> bool {
        self.vision.get().is_some()
    }

    pub fn text_loaded(&self) -> bool {
        self.text.get().is_some()
    }

    /// Length of the vectors: the graph's where one is loaded, else what the configuration states.
    pub fn dimensions(&self) -> Option<usize> {
        let vision = self.vision.get().and_then(|v| width(&v.output, &v.head));
        let text = self.text.get().and_then(|t| width(&t.output, &t.head));
        vision.or(text).or_else(|| self.model.stated_dimensions())
    }

    /// Remarks since the last call, for the user to see once.
    pub fn take_warnings(&mut self) -> Vec<Error> {
        std::mem::take(&mut self.warnings)
    }

    /// What an administrator may want to know of, since the last call.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Drops remarks about items: a call that was interrupted left them, and the items were its own.
    fn forget_items(&mut self) {
        self.warnings.retain(|remark| remark.element.is_none());
    }

    /// Embeds image files, in order; each vector has length 1. Very large JPEGs are decoded smaller than they are
    /// ([`image::decode_for`]) unless [`Limits::exact_jpeg`].
    ///
    /// `pulse` is called between pieces of work that take milliseconds; it may unwind.
    ///
    /// # Errors
    /// The first failing image's, with its place in the array where there are several; nothing is returned
    /// of the others.
    pub fn embed_images(&mut self, files: &[&[u8]], limits: &Limits, pulse: &mut dyn FnMut()) -> Result<Vec<Vec<f32>>> {
        self.forget_items();
        self.load_vision()?;
        let result = self.run_images(files, limits, pulse);
        if matches!(&result, Err(e) if e.kind == Kind::BadModel) {
            // The graph doesn't run. Loaded anew by the next call, since its file may have been mended.
            self.vision.take();
        }
        result
    }

    /// With more threads than one, the next images are decoded while the graph runs.
    fn run_images(&mut self, files: &[&[u8]], limits: &Limits, pulse: &mut dyn FnMut()) -> Result<Vec<Vec<f32>>> {
        // A graph that is given no image at all may divide by the number of images.
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let vision = self.vision.get_mut().expect("loaded by the caller");
        let (preprocess, size) = (vision.preprocess.clone(), vision.size);
        let mut vectors: Vec<Vec<f32>> = Vec::with_capacity(files.len());
        let chunk = |from: usize, most: usize| &files[from..files.len().min(from + most)];
        let mut now = chunk(0, vision.pace.batch());
        let mut prepared = prepare(now, 0, limits, &preprocess, size, pulse);
        loop {
            let Prepared { pixels, remarks, taken } = prepared?;
            self.warnings.extend(remarks);
            self.counters.decoding += taken;
            let from = vectors.len() + now.len();
            let next = chunk(from, vision.pace.batch());
            pulse();
            let run = || -> Result<()> {
                let start = Instant::now();
                let output = vision.run(pixels)?;
                let taken = start.elapsed();
                vision.pace.note(now.len(), taken);
                self.counters.inference += taken;
                self.counters.runs += 1;
                vectors.extend(unit_rows(&output, &self.model)?);
                Ok(())
            };
            if next.is_empty() {
                run()?;
                self.counters.images += files.len() as u64;
                return Ok(vectors);
            }
            prepared = if self.threads > 1 {
                let ahead = || prepare(next, from, limits, &preprocess, size, &mut || ());
                let (result, prepared) = with_helper(&ahead, run);
                result?;
                prepared
            } else {
                run()?;
                prepare(next, from, limits, &preprocess, size, pulse)
            };
            now = next;
        }
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
        self.forget_items();
        self.load_text()?;
        let text = self.text.get().expect("loaded above");
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
            let start = Instant::now();
            let output = text.run(&batch)?;
            self.counters.inference += start.elapsed();
            self.counters.runs += 1;
            for (vector, i) in unit_rows(&output, &self.model)?.into_iter().zip(group) {
                vectors[*i] = vector;
            }
        }
        self.counters.texts += texts.len() as u64;
        let truncated = tokens.iter().map(|tokens| tokens.truncated);
        Ok(vectors.into_iter().zip(truncated).map(|(vector, truncated)| TextEmbedding { vector, truncated }).collect())
    }

    /// Whether the model tells red, green and blue squares apart by their names, as any CLIP does that was
    /// exported and is preprocessed rightly: swapped channels, a broken quantisation and a transposed axis
    /// all show. Returns the cosines, rows texts and columns images, in that order of colours.
    ///
    /// # Errors
    /// As for embedding.
    pub fn tell_colours(&mut self) -> Result<[[f32; 3]; 3]> {
        let colours = [("red", [255, 0, 0]), ("green", [0, 255, 0]), ("blue", [0, 0, 255])];
        let texts: Vec<String> = colours.iter().map(|(name, _)| format!("a {name} square")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let texts = self.embed_texts(&texts, true, &mut || ())?;
        self.load_vision()?;
        let vision = self.vision.get().expect("loaded above");
        let (height, width) = vision.size;
        let mut cosines = [[0.0; 3]; 3];
        for (column, (_, rgb)) in colours.iter().enumerate() {
            let square = ::image::RgbImage::from_pixel(width as u32, height as u32, ::image::Rgb(*rgb));
            let mut pixels = Array4::zeros((1, 3, height, width));
            image::to_tensor(&square, &vision.preprocess, pixels.index_axis_mut(ndarray::Axis(0), 0));
            let image = &unit_rows(&vision.run(pixels)?, &self.model)?[0];
            for (row, text) in texts.iter().enumerate() {
                cosines[row][column] = text.vector.iter().zip(image).map(|(a, b)| a * b).sum();
            }
        }
        Ok(cosines)
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

    /// Loads both towers now, or the one that the model has, and runs each once; for a process that shares them with many.
    ///
    /// # Errors
    /// As for embedding.
    pub fn load(&mut self) -> Result<()> {
        let missing = |e: &Error| e.kind == Kind::MissingFile;
        match (self.load_and_run_vision(), self.load_text()) {
            // Learned once for all, too, where a graph has to be asked.
            (Ok(()), Ok(())) => self.logits().map(drop)?,
            (Ok(()), Err(e)) | (Err(e), Ok(())) if missing(&e) && self.single_tower() => {}
            (Err(e), _) | (_, Err(e)) => return Err(e),
        }
        let towers = [self.vision.get().map(|v| &v.tower), self.text.get().map(|t| &t.tower)];
        towers.into_iter().flatten().for_each(|tower| tower.borrow_mut().lay_out());
        Ok(())
    }

    /// Loads the image tower and gives it a black image, where no real one follows to show that it runs: an
    /// inference costs 120 ms for ViT-B/32, which a connection's first photo shall not pay twice.
    fn load_and_run_vision(&mut self) -> Result<()> {
        self.load_vision()?;
        self.vision.get().expect("loaded above").run_black()
    }

    /// Runs each loaded tower once.
    ///
    /// # Errors
    /// As for embedding.
    pub fn try_out(&self) -> Result<()> {
        self.vision.get().map_or(Ok(()), Vision::run_black)?;
        self.text.get().map_or(Ok(()), |text| text.run(&[&text.sample()?]).map(|_| ()))
    }

    /// How cosines become probabilities: as the model's files state it ([`Logits::stated`]), else as a graph of both
    /// towers that has an output of logits computes them, else as CLIP's ([`Logits::assumed`]), with a warning where
    /// the model is not of CLIP's kind.
    ///
    /// # Errors
    /// [`Kind::BadModel`] where a file states it in a way that can't be used; those of embedding, where a graph is asked.
    pub fn logits(&mut self) -> Result<Logits> {
        if let Some(logits) = self.logits.get() {
            return Ok(logits.clone());
        }
        let logits = match Logits::stated(&self.model)? {
            Some(logits) => logits,
            None => self.measured_logits()?.unwrap_or_else(Logits::assumed),
        };
        if logits.source.is_none() && is_sigmoid(&self.model) {
            let message = format!("model \"{}\" does not say its logit scale and bias", self.model.name);
            self.warnings.push(
                Error::new(Kind::MissingFile, message)
                    .detail("Models of its kind (SigLIP) have both; without them its probabilities are a softmax, as for CLIP.")
                    .hint("Put \"logit_scale\" and \"logit_bias\" of its weights into its config.json, or its onnx/model.onnx beside the towers."),
            );
        }
        Ok(self.logits.get_or_init(|| logits).clone())
    }

    /// What a graph of both towers makes of four cosines.
    fn measured_logits(&mut self) -> Result<Option<Logits>> {
        let Some(file) = self.model.whole.clone() else { return Ok(None) };
        self.load_text()?;
        self.load_vision()?;
        let (vision, text) = (self.vision.get().expect("loaded above"), self.text.get().expect("loaded above"));
        if self.model.combined {
            let pairs = logit_pairs(&mut vision.tower.borrow_mut(), vision, text)?;
            return Ok(pairs.and_then(|pairs| Logits::fitted(&pairs, &file)));
        }
        // It is as large as both towers, and let go at once.
        let mut tower = Tower::load(Runtime::load(&self.library)?, &file, self.threads, None)?;
        Ok(logit_pairs(&mut tower, vision, text)?.and_then(|pairs| Logits::fitted(&pairs, &file)))
    }

    /// Whether the model has only one of the two.
    fn single_tower(&self) -> bool {
        self.model.combined || self.model.vision.is_none() || self.model.text.is_none()
    }

    /// What was found and chosen, for a person: (what, value), or why a tower can't be used.
    pub fn describe(&mut self) -> Vec<(&'static str, Result<String>)> {
        let (image, text) = (self.load_and_run_vision(), self.load_text());
        let mut rows = Vec::new();
        if let Err(error) = image {
            rows.push(("image tower", Err(error)));
        } else if let Some(vision) = self.vision.get() {
            let tower = vision.tower.borrow();
            rows.push(("image graph", Ok(tower.file.display().to_string())));
            rows.push(("image graph's ports", Ok(tower.describe())));
            rows.push(("image output", Ok(chosen(&vision.output, &vision.head))));
            rows.push(("preprocessing", Ok(vision.preprocess.to_string())));
        }
        if let Err(error) = text {
            rows.push(("text tower", Err(error)));
        } else if let Some(text) = self.text.get() {
            let tower = text.tower.borrow();
            rows.push(("text graph", Ok(tower.file.display().to_string())));
            rows.push(("text graph's ports", Ok(tower.describe())));
            rows.push(("text output", Ok(chosen(&text.output, &text.head))));
            let padding = match text.pad_to {
                Some(length) => format!("filled to {length} with id {}", text.encoder.pad_id),
                None => "not filled up".to_owned(),
            };
            rows.push(("tokens", Ok(format!("at most {}, {padding}", text.encoder.context_length))));
        }
        if self.image_loaded() && self.text_loaded() {
            rows.push(("probabilities", self.logits().map(|logits| logits.to_string())));
        }
        rows
    }

    fn load_vision(&mut self) -> Result<()> {
        let (model, warnings, notes) = (&self.model, &mut self.warnings, &mut self.notes);
        let (cache, counters, start) = (self.cache.as_deref(), &mut self.counters, Instant::now());
        let text_width = self.text.get().and_then(|t| width(&t.output, &t.head));
        self.vision.get_or_try_init(|| {
            let file = model.vision.as_ref().ok_or_else(|| missing_tower(model, "image"))?;
            let shared = open(&self.shared, model.combined, &self.library, file, self.threads, cache, notes)?;
            let tower = shared.borrow();
            let unusable = |what: &str| unusable(&tower, what);
            let input = image_input(&tower).ok_or_else(|| missing_half(model, &tower, "image"))?;
            let float = matches!(input.element, TensorElementType::Float32 | TensorElementType::Float16);
            if !float || input.shape.len() != 4 || input.fixed(1).is_some_and(|c| c != 3) {
                return Err(unusable("its image input is not float32 or float16 of shape (batch, 3, height, width)"));
            }
            let idle: Vec<Port> = tower.inputs.iter().filter(|port| port.name != input.name).cloned().collect();
            if let Some(unknown) = idle.iter().find(|port| !is_integer(port) || port.shape.len() != 2) {
                return Err(unusable(&format!("nothing is known to give to its input \"{}\"", unknown.name)));
            }
            let head = Head::read(&model.directory)?;
            let output = pick_output(&tower, "image", &head)?;
            let graph_size = input.fixed(2).zip(input.fixed(3));
            let preprocess = match read_preprocess(model)? {
                Some(preprocess) => preprocess,
                None => {
                    let size = graph_size.map_or(224, |(height, _)| height as u32);
                    let message = format!("model \"{}\" has no preprocessor_config.json", model.name);
                    warnings.push(Error::new(Kind::MissingFile, message).detail(format!(
                        "CLIP's preprocessing is used: shortest edge {size} by bicubic resampling, centre crop, CLIP's \
                         mean and standard deviation."
                    )));
                    Preprocess::clip(size)
                }
            };
            let configured = preprocess.output_size().map(|(width, height)| (height as usize, width as usize));
            let size = match (configured, graph_size) {
                (Some(c), Some(g)) if c != g => {
                    return Err(unusable(&format!(
                        "it takes images of {}×{} pixels, but its preprocessing makes {}×{}",
                        g.1, g.0, c.1, c.0
                    )));
                }
                (Some(size), _) => size,
                (None, _) => return Err(unusable("its preprocessing leaves images of unequal sizes")),
            };
            same_width(model, &output, &head, text_width)?;
            let most = input.fixed(0).map_or((BATCH_PIXELS / (size.0 * size.1)).clamp(1, IMAGE_BATCH), |_| 1);
            let pace = Pace { most, together: None, singly: None };
            drop(tower);
            counters.loads += 1;
            counters.loading += start.elapsed();
            Ok(Vision { tower: shared, input, idle, output, head, preprocess, size, pace })
        })?;
        Ok(())
    }

    fn load_text(&mut self) -> Result<()> {
        let (model, warnings, notes) = (&self.model, &mut self.warnings, &mut self.notes);
        let (cache, counters, start) = (self.cache.as_deref(), &mut self.counters, Instant::now());
        let image_width = self.vision.get().and_then(|v| width(&v.output, &v.head));
        self.text.get_or_try_init(|| {
            let file = model.text.as_ref().ok_or_else(|| missing_tower(model, "text"))?;
            let shared = open(&self.shared, model.combined, &self.library, file, self.threads, cache, notes)?;
            let tower = shared.borrow();
            let unusable = |what: &str| unusable(&tower, what);
            let ids = tower.input(&TEXT_INPUTS).filter(|port| is_integer(port)).cloned();
            let ids = ids.ok_or_else(|| missing_half(model, &tower, "text"))?;
            let named = |name: &str| tower.input(&[name]).cloned();
            let (mask, zeros, positions) = (named("attention_mask"), named("token_type_ids"), named("position_ids"));
            let pixels = image_input(&tower).filter(|port| port.name != ids.name);
            for port in [&ids].into_iter().chain(&mask).chain(&zeros).chain(&positions) {
                if !is_integer(port) || port.shape.len() != 2 {
                    let what = "is not int64 or int32 of shape (batch, sequence)";
                    return Err(unusable(&format!("its input \"{}\" {what}", port.name)));
                }
            }
            let known = [Some(&ids), mask.as_ref(), zeros.as_ref(), positions.as_ref(), pixels.as_ref()];
            let unknown = tower.inputs.iter().find(|port| known.iter().flatten().all(|k| k.name != port.name));
            if let Some(unknown) = unknown {
                return Err(unusable(&format!("nothing is known to give to its input \"{}\"", unknown.name)));
            }
            let head = Head::read(&model.text_directory)?;
            let output = pick_output(&tower, "text", &head)?;
            same_width(model, &output, &head, image_width)?;
            let pad_to = ids.fixed(1);
            let encoder = TextEncoder::load(model, pad_to)?;
            let batch = ids.fixed(0).map_or(TEXT_BATCH, |_| 1);
            let idle = match pixels {
                Some(input) => {
                    let configured = read_preprocess(model)?.and_then(|p| p.output_size()).unwrap_or((224, 224));
                    let height = input.fixed(2).unwrap_or(configured.1 as usize);
                    let width = input.fixed(3).unwrap_or(configured.0 as usize);
                    Some(Idle { shape: [0, 3, height, width], input })
                }
                None => None,
            };
            drop(tower);
            let mut text =
                Text { tower: shared, encoder, ids, mask, zeros, positions, idle, output, head, pad_to, batch };
            // A graph that is kept has run before. What was found then spares two runs, 50 ms of a connection's first query.
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
            counters.loads += 1;
            counters.loading += start.elapsed();
            Ok(text)
        })?;
        Ok(())
    }
}

/// Decodes, resizes and normalises images. `from` is the first one's place in what the user gave.
fn prepare(
    files: &[&[u8]],
    from: usize,
    limits: &Limits,
    preprocess: &Preprocess,
    (height, width): (usize, usize),
    pulse: &mut dyn FnMut(),
) -> Result<Prepared> {
    let start = Instant::now();
    let mut pixels = Array4::<f32>::zeros((files.len(), 3, height, width));
    let mut remarks = Vec::new();
    for ((file, plane), place) in files.iter().zip(pixels.outer_iter_mut()).zip(from..) {
        pulse();
        let mut decoded = image::decode_for(file, limits, preprocess).map_err(|e| e.element(place))?;
        remarks.extend(decoded.truncated.take().map(|remark| remark.element(place)));
        let pixels = decoded.prepare(preprocess, limits).map_err(|e| e.element(place))?;
        image::to_tensor(&pixels, preprocess, plane);
    }
    Ok(Prepared { pixels, remarks, taken: start.elapsed() })
}

/// Runs `aside` in a thread of its own while `work` runs here; after it where no thread can be had.
///
/// The thread takes no signals: they are the process's own business.
fn with_helper<T: Send, U>(aside: &(impl Fn() -> T + Sync), work: impl FnOnce() -> U) -> (U, T) {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("clip decode".to_owned());
        let helper = with_signals_blocked(|| thread.spawn_scoped(scope, aside));
        let done = work();
        match helper {
            Ok(helper) => (done, helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
            Err(_) => (done, aside()),
        }
    })
}

impl Vision {
    fn run_black(&self) -> Result<()> {
        self.run(Array4::zeros((1, 3, self.size.0, self.size.1))).map(|_| ())
    }

    /// Runs images of the model's size. Returns shape (images, dimensions).
    fn run(&self, pixels: Array4<f32>) -> Result<Array2<f32>> {
        let count = pixels.dim().0;
        let mut inputs = vec![(self.input.name.clone(), floats(&self.input, pixels)?)];
        for port in &self.idle {
            // A text of two ids, which a combined graph wants to have and whose result nobody reads.
            let shape = (port.fixed(0).unwrap_or(1), port.fixed(1).unwrap_or(2));
            inputs.push((port.name.clone(), integers(port, shape, std::iter::repeat_n(1, shape.0 * shape.1))?));
        }
        let output = self.tower.borrow_mut().run(inputs, &self.output.name)?;
        let positions = output.shape().get(1).copied().unwrap_or(1);
        self.head.apply(output, &vec![positions; count])
    }
}

impl Text {
    fn pad(&self, tokens: &mut Tokens) {
        if let Some(length) = self.pad_to {
            tokens.ids.resize(length, self.encoder.pad_id);
        }
    }

    /// Runs texts of one length. Returns shape (texts, dimensions).
    fn run(&self, batch: &[&Tokens]) -> Result<Array2<f32>> {
        let shape = (batch.len(), batch[0].ids.len());
        let ids = batch.iter().flat_map(|tokens| tokens.ids.iter().map(|id| i64::from(*id)));
        let mut inputs = vec![(self.ids.name.clone(), integers(&self.ids, shape, ids)?)];
        if let Some(port) = &self.mask {
            let values = batch.iter().flat_map(|tokens| (0..shape.1).map(|i| i64::from(i < tokens.length)));
            inputs.push((port.name.clone(), integers(port, shape, values)?));
        }
        if let Some(port) = &self.zeros {
            inputs.push((port.name.clone(), integers(port, shape, std::iter::repeat_n(0, shape.0 * shape.1))?));
        }
        if let Some(port) = &self.positions {
            inputs.push((port.name.clone(), integers(port, shape, (0..shape.0).flat_map(|_| 0..shape.1 as i64))?));
        }
        if let Some(Idle { input, shape }) = &self.idle {
            inputs.push((input.name.clone(), floats(input, Array4::zeros(*shape))?));
        }
        let output = self.tower.borrow_mut().run(inputs, &self.output.name)?;
        let lengths: Vec<usize> = batch.iter().map(|tokens| tokens.length).collect();
        self.head.apply(output, &lengths)
    }

    /// A short text as the graph wants it.
    fn sample(&self) -> Result<Tokens> {
        let mut tokens = self.encoder.encode("a photo")?;
        self.pad(&mut tokens);
        Ok(tokens)
    }

    /// Runs one short text, so that a graph which cannot run fails when it is loaded. A combined graph is
    /// first given no image at all, and a black one if it cannot do with that, which is remarked.
    fn run_sample(&mut self, model: &Model, warnings: &mut Vec<Error>) -> Result<Array2<f32>> {
        let tokens = self.sample()?;
        let result = self.run(&[&tokens]);
        let (Err(_), Some(idle)) = (&result, &mut self.idle) else { return result };
        idle.shape[0] = 1;
        let output = self.run(&[&tokens])?;
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
    /// CLIP's text tower is causal and reads its output at the end token, so they cannot, and a query of
    /// seven tokens need not pay for 77 (16 ms against 80 ms for ViT-B/32 on one thread). SigLIP's is not
    /// causal, was trained on padded texts, and loses its meaning without (10 against 80 points of
    /// accuracy, embeddings-benchmark/mteb#1424). The graph itself tells which: eight more ids are put
    /// behind a short text. Rounding leaves a cosine above 0.999.
    ///
    /// `a` is what the sample gives without.
    fn padding_matters(&self, a: &Array2<f32>) -> Result<bool> {
        let mut padded = self.sample()?;
        padded.ids.resize((padded.length + 8).min(self.encoder.context_length), self.encoder.pad_id);
        let b = self.run(&[&padded])?;
        let cosine = a.row(0).dot(&b.row(0)) / (a.row(0).dot(&a.row(0)) * b.row(0).dot(&b.row(0))).sqrt();
        Ok(cosine.is_nan() || cosine < 0.999)
    }
}

/// Pairs of a cosine and the logit that a graph of both towers gives for it: one picture, four texts, one at a time,
/// since some graphs take no more. None where it has no output of logits, or other inputs.
fn logit_pairs(tower: &mut Tower, vision: &Vision, text: &Text) -> Result<Option<Vec<(f64, f64)>>> {
    let (Some(logits), Ok(image_output), Ok(text_output), Some(pixels_port)) = (
        tower.output(&["logits_per_image", "logits_per_text"]).cloned(),
        pick_output(tower, "image", &vision.head),
        pick_output(tower, "text", &text.head),
        image_input(tower),
    ) else {
        return Ok(None);
    };
    if image_output.name == text_output.name {
        return Ok(None);
    }
    let (height, width) = vision.size;
    // Half of it dark, a colour to each side: a picture without any contrast can be the zero vector to a tower.
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
                name if TEXT_INPUTS.contains(&name) => {
                    integers(&port, shape, tokens.ids.iter().map(|id| i64::from(*id)))?
                }
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
        pairs.push((centroid::cosine(image, text), f64::from(*logit)));
    }
    Ok(Some(pairs))
}

/// Whether a model's configuration says that it is of SigLIP's kind.
fn is_sigmoid(model: &Model) -> bool {
    let config = model::read_json(&model.directory.join("config.json")).unwrap_or_default();
    let open_clip = config.get("model_cfg").unwrap_or(&config);
    config["model_type"].as_str().is_some_and(|kind| kind.starts_with("siglip"))
        || !open_clip["init_logit_bias"].is_null()
}

/// The rows of a tower's output, each scaled to length 1.
fn unit_rows(output: &Array2<f32>, model: &Model) -> Result<Vec<Vec<f32>>> {
    output
        .outer_iter()
        .map(|row| {
            let mut row = row.to_vec();
            centroid::normalise(&mut row).map_err(|e| {
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

/// A graph without an input for this kind of item.
fn missing_half(model: &Model, tower: &Tower, what: &str) -> Error {
    if model.combined {
        missing_tower(model, what)
            .hint("Where the towers are two directories, name both: image directory, a plus sign, text directory.")
    } else {
        unusable(tower, &format!("it has no {what} input"))
    }
}

/// The embedding among a graph's outputs: one vector an item, by name or the only one; else one vector a
/// position, if the model says how to pool them. `kind` is "image" or "text", as it stands in the names.
fn pick_output(tower: &Tower, kind: &str, head: &Head) -> Result<Port> {
    let own = [format!("{kind}_embeds"), format!("l2norm_{kind}_embeddings"), format!("{kind}_embeddings")];
    let general = ["embedding", "sentence_embedding", "pooler_output", "output"];
    let names: Vec<&str> = own.iter().map(String::as_str).chain(general).collect();
    let usable = |port: &&Port, rank: usize| {
        port.shape.len() == rank && matches!(port.element, TensorElementType::Float32 | TensorElementType::Float16)
    };
    let only = if tower.outputs.len() == 1 { tower.outputs.first() } else { None };
    let choose = |names: &[&str], rank: usize| {
        let mut named = names.iter().filter_map(|name| tower.outputs.iter().find(|port| port.name == *name));
        named.find(|port| usable(port, rank)).or(only.filter(|port| usable(port, rank)))
    };
    if let Some(port) = choose(&names, 2) {
        return Ok(port.clone());
    }
    match choose(&["last_hidden_state", "token_embeddings"], 3) {
        Some(port) if head.pooling.is_some() => Ok(port.clone()),
        Some(port) => {
            let what = "has one vector a position, and nothing says how to pool them";
            Err(unusable(tower, &format!("its output \"{}\" {what}", port.name)).hint(
                "Say it in 1_Pooling/config.json: {\"pooling_mode_cls_token\": true} or {\"pooling_mode_mean_tokens\": true}.",
            ))
        }
        None => Err(unusable(tower, "it has no output with one float vector an item")),
    }
}

/// The model's own preprocessing, where it states one.
fn read_preprocess(model: &Model) -> Result<Option<Preprocess>> {
    let Some(file) = &model.preprocess else { return Ok(None) };
    let named = |e: Error| Error { message: format!("{} (\"{}\")", e.message, file.display()), ..e };
    Preprocess::parse(&model::read(file)?).map(Some).map_err(named)
}

/// Both towers must embed into one space.
fn same_width(model: &Model, output: &Port, head: &Head, other: Option<usize>) -> Result<()> {
    match (width(output, head), other) {
        (Some(a), Some(b)) if a != b => {
            Err(Error::new(Kind::BadModel, format!("model \"{}\" has towers of unequal width", model.name))
                .detail(format!("Output \"{}\" has {a} dimensions, the other tower's has {b}.", output.name)))
        }
        _ => Ok(()),
    }
}

/// Length of the vectors that an output gives, where the graph fixes it.
fn width(output: &Port, head: &Head) -> Option<usize> {
    let last = output.fixed(output.shape.len() - 1)?;
    Some(if output.shape.len() == 3 { head.width(last) } else { last })
}

fn chosen(output: &Port, head: &Head) -> String {
    match (output.shape.len(), head.pooling) {
        (3, Some(pooling)) => format!("{output}, pooled: {}", format!("{pooling:?}").to_lowercase()),
        _ => output.to_string(),
    }
}

/// Loads a graph; one that serves both towers only once.
fn open(
    shared: &OnceCell<Rc<RefCell<Tower>>>,
    combined: bool,
    library: &Path,
    file: &Path,
    threads: usize,
    cache: Option<&Path>,
    notes: &mut Vec<String>,
) -> Result<Rc<RefCell<Tower>>> {
    let mut load = || {
        let mut tower = Tower::load(Runtime::load(library)?, file, threads, cache)?;
        notes.extend(tower.note.take());
        Ok(Rc::new(RefCell::new(tower)))
    };
    if combined { shared.get_or_try_init(load).cloned() } else { load() }
}

fn is_integer(port: &Port) -> bool {
    matches!(port.element, TensorElementType::Int64 | TensorElementType::Int32)
}

/// The input for pixels: by name, but not a text tower's input of the same name.
fn image_input(tower: &Tower) -> Option<Port> {
    tower.input(&IMAGE_INPUTS).filter(|port| !is_integer(port)).cloned()
}

fn floats(port: &Port, array: Array4<f32>) -> Result<SessionInputValue<'static>> {
    if port.element == TensorElementType::Float16 {
        Tensor::from_array(array.mapv(half::f16::from_f32)).map(Into::into).map_err(tensor_failed)
    } else {
        Tensor::from_array(array).map(Into::into).map_err(tensor_failed)
    }
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
