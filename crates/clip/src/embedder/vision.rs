//! Image files to vectors: decoding, batches, and the image tower.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ndarray::{Array2, Array4, ArrayD, Axis};

use crate::embedder::Embedder;
use crate::embedder::calibration::PICTURES;
use crate::embedder::loader::Form;
use crate::embedder::ports::{
    floats, image_input, integers, is_float, is_integer, missing_half, missing_tower, same_width, steps,
    takes_one_item, unit_rows, unusable, width,
};
use crate::error::{Error, Kind, Result};
use crate::image::preprocess::Preprocess;
use crate::image::synthetic;
use crate::image::{self, Limits};
use crate::model::Model;
use crate::model::config::{Preparation, preparation};
use crate::model::operators::quantizes_dynamically;
use crate::model::pooling::Pooling;
use crate::model::quantize::{Inputs, Samples};
use crate::model::session::{Port, Tower};
use crate::threads::with_signals_blocked;

/// Maximum number of images in a run. They run together if that is faster ([`Pace`]): ViT-B/32 gains 12 % over single
/// images, on one thread and on two (107 instead of 121 ms per image), for about 50 MB; a small convolutional network
/// such as photo-mini's loses 12 %.
const IMAGE_BATCH: usize = 8;
/// Maximum number of pixels in a batch: eight images of 224 × 224. Activations take about ten times the memory of the
/// pixels.
const BATCH_PIXELS: usize = IMAGE_BATCH * 224 * 224;

pub(super) struct Vision {
    pub(super) tower: Rc<RefCell<Tower>>,
    pub(super) input: Port,
    /// The text inputs of a combined graph.
    pub(super) idle: Vec<Port>,
    pub(super) output: Port,
    pub(super) pooling: Pooling,
    pub(super) preprocess: Preprocess,
    /// The file that states the preprocessing; None if it is a guess.
    pub(super) prepared_by: Option<PathBuf>,
    /// Whether images run one by one, because the graph's quantization ranges would span a batch.
    pub(super) alone: bool,
    /// The size of the input images in pixels, (height, width).
    pub(super) size: (usize, usize),
    pub(super) pace: Pace,
}

/// Decides whether images run together or one by one: times the first batch, then single images, and keeps the faster
/// way.
pub(super) struct Pace {
    /// The number of images in a batch; 1 if the graph accepts only one.
    most: usize,
    /// Seconds per image in a batch. `singly` is the same for single images.
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

    /// Takes the time of a run of `count` images into account.
    fn note(&mut self, count: usize, taken: Duration) {
        let each = taken.as_secs_f64() / count as f64;
        if self.together.is_none() && self.most > 1 && count == self.most {
            self.together = Some(each);
        } else if self.together.is_some() && count == 1 {
            // The fastest run counts, because disturbances only make runs slower.
            self.singly = Some(self.singly.map_or(each, |fastest| fastest.min(each)));
        }
    }
}

/// Images as input for the graph.
struct Prepared {
    pixels: Array4<f32>,
    remarks: Vec<Error>,
    taken: Duration,
}

impl Embedder {
    /// Embeds image files; returns a vector of length 1 for each, in order. JPEGs that are far larger than the model's
    /// input are decoded at a reduced size ([`image::decode_for`]) unless [`Limits::exact_jpeg`] is set.
    ///
    /// `check_interrupts` is called between pieces of work that take milliseconds; it may unwind.
    ///
    /// # Errors
    /// The error of the first image that fails, with its position. The vectors of the other images are dropped.
    pub fn embed_images(
        &mut self,
        files: &[&[u8]],
        limits: &Limits,
        check_interrupts: &mut dyn FnMut(),
    ) -> Result<Vec<Vec<f32>>> {
        self.forget_items();
        self.load_vision()?;
        let result = self.run_images(files, limits, check_interrupts);
        if matches!(&result, Err(e) if e.kind == Kind::BadModel) {
            // The graph can't be run. The next call loads it again, because its file may have been repaired.
            self.vision.take();
        }
        result
    }

    /// Embeds the images batch by batch. With more than one thread, the next batch is decoded while the graph runs.
    fn run_images(
        &mut self,
        files: &[&[u8]],
        limits: &Limits,
        check_interrupts: &mut dyn FnMut(),
    ) -> Result<Vec<Vec<f32>>> {
        // A graph that gets no images may divide by their number.
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let vision = self.vision.get_mut().expect("loaded by the caller");
        let (preprocess, size) = (vision.preprocess.clone(), vision.size);
        let mut vectors: Vec<Vec<f32>> = Vec::with_capacity(files.len());
        let chunk = |from: usize, most: usize| &files[from..files.len().min(from + most)];
        let mut now = chunk(0, vision.pace.batch());
        let mut prepared = prepare(now, 0, limits, &preprocess, size, check_interrupts);
        loop {
            let Prepared { pixels, remarks, taken } = prepared?;
            self.warnings.extend(remarks);
            self.counters.decoding += taken;
            let from = vectors.len() + now.len();
            let next = chunk(from, vision.pace.batch());
            check_interrupts();
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
            prepared = if self.loader.threads > 1 {
                let ahead = || prepare(next, from, limits, &preprocess, size, &mut || ());
                let (result, prepared) = with_helper(&ahead, run);
                result?;
                prepared
            } else {
                run()?;
                prepare(next, from, limits, &preprocess, size, check_interrupts)
            };
            now = next;
        }
    }

    /// Loads the image tower and runs it on a black image. Callers that have a real image don't need this check, which
    /// would double the first photo's 120 ms (ViT-B/32).
    pub(super) fn load_and_run_vision(&mut self) -> Result<()> {
        self.load_vision()?;
        self.vision.get().expect("loaded above").run_black()
    }

    pub(super) fn load_vision(&mut self) -> Result<()> {
        let (model, warnings, notes) = (&self.model, &mut self.warnings, &mut self.notes);
        let (loader, counters, start) = (&self.loader, &mut self.counters, Instant::now());
        let text_width = self.text.get().and_then(|t| width(&t.output, &t.pooling));
        self.vision.get_or_try_init(|| {
            let file = model.vision.as_ref().ok_or_else(|| missing_tower(model, "image"))?;
            let (shared, form) = loader.open(model, file, model.int8_vision, warnings, notes)?;
            let tower = shared.borrow();
            let unusable = |what: &str| unusable(&tower, what);
            let input = image_input(&tower).ok_or_else(|| missing_half(model, &tower, "image"))?;
            if !is_float(&input) || input.shape.len() != 4 || input.fixed(1).is_some_and(|c| c != 3) {
                let error = unusable("its image input is not float32, float16 or bfloat16 of shape (batch, 3, height, width)");
                // SigLIP 2 for images of any shape (NaFlex) takes patches, a mask of the filled patches, and the shape.
                let patches = tower.inputs.iter().any(|port| ["pixel_attention_mask", "spatial_shapes"].contains(&port.name.as_str()));
                return Err(if patches {
                    error.hint("Models that take images of any resolution (NaFlex) are not supported: choose the variant with a fixed resolution.")
                } else {
                    error
                });
            }
            takes_one_item(&tower, &input)?;
            let idle: Vec<Port> = tower.inputs.iter().filter(|port| port.name != input.name).cloned().collect();
            if let Some(unknown) = idle.iter().find(|port| !is_integer(port) || port.shape.len() != 2) {
                return Err(unusable(&format!("nothing is known to give to its input \"{}\"", unknown.name)));
            }
            let (output, pooling) = steps(&tower, "image", &model.directory)?;
            let graph_size = input.fixed(2).zip(input.fixed(3));
            let Preparation { preprocess, file: prepared_by, guess } = preparation(model, graph_size)?;
            warnings.extend(guess);
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
            same_width(model, &output, &pooling, text_width)?;
            drop(tower);
            let mut vision = Vision {
                tower: shared,
                input,
                idle,
                output,
                pooling,
                preprocess,
                prepared_by,
                alone: form == Form::Int8 || quantizes_dynamically(file),
                size,
                pace: Pace { most: 1, together: None, singly: None },
            };
            if form == Form::Unmade
                && let Some(made) = vision.with_samples(model, |samples| loader.make(file, samples, warnings))?
            {
                vision.tower = Rc::new(RefCell::new(made));
                vision.alone = true;
            }
            if !vision.alone && vision.input.fixed(0).is_none() {
                vision.pace.most = (BATCH_PIXELS / (size.0 * size.1)).clamp(1, IMAGE_BATCH);
            }
            counters.loads += 1;
            counters.loading += start.elapsed();
            Ok(vision)
        })?;
        Ok(())
    }
}

/// Decodes, resizes and normalises images. `from` is the position of the first image in the user's argument.
fn prepare(
    files: &[&[u8]],
    from: usize,
    limits: &Limits,
    preprocess: &Preprocess,
    (height, width): (usize, usize),
    check_interrupts: &mut dyn FnMut(),
) -> Result<Prepared> {
    let start = Instant::now();
    let mut pixels = Array4::<f32>::zeros((files.len(), 3, height, width));
    let mut remarks = Vec::new();
    for ((file, plane), place) in files.iter().zip(pixels.outer_iter_mut()).zip(from..) {
        check_interrupts();
        let mut decoded = image::decode_for(file, limits, preprocess).map_err(|e| e.element(place))?;
        remarks.extend(decoded.truncated.take().map(|remark| remark.element(place)));
        let pixels = decoded.prepare(preprocess, limits).map_err(|e| e.element(place))?;
        image::to_tensor(&pixels, preprocess, plane);
    }
    Ok(Prepared { pixels, remarks, taken: start.elapsed() })
}

/// Runs `aside` on a separate thread while `work` runs on this one. If no thread can be started, `aside` runs
/// afterwards.
///
/// The thread blocks all signals, because the main thread must handle them.
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
    pub(super) fn run_black(&self) -> Result<()> {
        self.run(Array4::zeros((1, 3, self.size.0, self.size.1))).map(|_| ())
    }

    /// Runs images of the model's input size. The result has shape (images, dimensions).
    pub(super) fn run(&self, pixels: Array4<f32>) -> Result<Array2<f32>> {
        let count = pixels.dim().0;
        let output = self.tower.borrow_mut().run(self.inputs(pixels)?, &self.output.name)?;
        self.pool(output, count)
    }

    /// The vectors of `count` images, computed from the graph's output.
    pub(super) fn pool(&self, output: ArrayD<f32>, count: usize) -> Result<Array2<f32>> {
        let positions = output.shape().get(1).copied().unwrap_or(1);
        self.pooling.apply(output, &vec![positions; count])
    }

    /// The graph's inputs for images of the model's input size.
    pub(super) fn inputs(&self, pixels: Array4<f32>) -> Result<Inputs> {
        let count = pixels.dim().0;
        let mut inputs = vec![(self.input.name.clone(), floats(&self.input, pixels)?)];
        for port in &self.idle {
            // A text of two ids: a combined graph requires it, and its result is not used.
            let items = if port.shares_batch(&self.input) { count } else { 1 };
            let shape = (port.fixed(0).unwrap_or(items), port.fixed(1).unwrap_or(2));
            inputs.push((port.name.clone(), integers(port, shape, std::iter::repeat_n(1, shape.0 * shape.1))?));
        }
        Ok(inputs)
    }
}

impl Vision {
    /// Calls `f` with the built-in pictures as inputs of the graph.
    fn with_samples<T>(&self, model: &Model, f: impl FnOnce(&Samples<'_>) -> Result<T>) -> Result<T> {
        let (height, width) = self.size;
        let inputs = |sample: usize| {
            let picture = synthetic::picture(width as u32, height as u32, sample as u64 + 1);
            let mut pixels = Array4::zeros((1, 3, height, width));
            image::to_tensor(&picture, &self.preprocess, pixels.index_axis_mut(Axis(0), 0));
            self.inputs(pixels)
        };
        let vector = |_, output| Ok(unit_rows(&self.pool(output, 1)?, model)?.remove(0));
        f(&Samples { count: PICTURES, inputs: &inputs, output: &self.output.name, vector: &vector })
    }
}
