//! The complete path from images or texts to unit vectors.

mod calibration;
mod inspect;
mod loader;
pub mod logits;
mod ports;
mod text;
mod vision;

use std::path::PathBuf;
use std::time::Duration;

use once_cell::unsync::OnceCell;

use crate::embedder::loader::Loader;
use crate::embedder::logits::Logits;
use crate::embedder::ports::width;
use crate::embedder::text::Text;
pub use crate::embedder::text::TextEmbedding;
use crate::embedder::vision::Vision;
use crate::error::{Error, Kind, Result};
use crate::model::Model;

/// A model and its towers. Each tower is loaded when it is first needed.
pub struct Embedder {
    pub model: Model,
    loader: Loader,
    vision: OnceCell<Vision>,
    text: OnceCell<Text>,
    logits: OnceCell<Logits>,
    warnings: Vec<Error>,
    notes: Vec<String>,
    /// The work done so far.
    pub counters: Counters,
}

/// The work done, and the time that it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Images embedded.
    pub images: u64,
    /// Texts embedded.
    pub texts: u64,
    /// Runs of a graph, each with one or several items.
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

impl Embedder {
    /// Prepares a model without loading anything. `library` is the path of libonnxruntime, `threads` the number of
    /// threads per run.
    pub fn new(model: Model, library: PathBuf, threads: usize) -> Self {
        Self {
            model,
            loader: Loader {
                library,
                threads,
                cache: None,
                check_interrupts: || (),
                announce: |_| (),
                may_make: true,
                shared: OnceCell::new(),
            },
            vision: OnceCell::new(),
            text: OnceCell::new(),
            logits: OnceCell::new(),
            warnings: Vec::new(),
            notes: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Sets the directory for rewritten graphs ([`crate::model::graph_cache`]); None for no cache.
    pub fn with_cache(mut self, cache: Option<PathBuf>) -> Self {
        self.loader.cache = cache;
        self
    }

    /// Sets a function that is called between the steps of quantizing a graph; it may unwind.
    pub fn with_interrupts(mut self, check_interrupts: fn()) -> Self {
        self.loader.check_interrupts = check_interrupts;
        self
    }

    /// Sets a function that is called with a description before work that takes minutes.
    pub fn with_announcements(mut self, announce: fn(&str)) -> Self {
        self.loader.announce = announce;
        self
    }

    /// Makes a missing quantized graph an error instead of creating it, for a process that can't spend minutes on it.
    pub fn without_making(mut self) -> Self {
        self.loader.may_make = false;
        self
    }

    /// Whether the image tower is loaded.
    pub fn image_loaded(&self) -> bool {
        self.vision.get().is_some()
    }

    /// Whether the text tower is loaded.
    pub fn text_loaded(&self) -> bool {
        self.text.get().is_some()
    }

    /// The length of the vectors: from the graph if one is loaded, else from the configuration.
    pub fn dimensions(&self) -> Option<usize> {
        let vision = self.vision.get().and_then(|v| width(&v.output, &v.pooling));
        let text = self.text.get().and_then(|t| width(&t.output, &t.pooling));
        vision.or(text).or_else(|| self.model.stated_dimensions())
    }

    /// Warnings since the last call. The user should see each once.
    pub fn take_warnings(&mut self) -> Vec<Error> {
        std::mem::take(&mut self.warnings)
    }

    /// Puts warnings back, for a caller that took them to change their positions ([`Error::element`]).
    pub fn add_warnings(&mut self, warnings: Vec<Error>) {
        self.warnings.extend(warnings);
    }

    /// Remarks for an administrator since the last call.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Drops the warnings about items that an interrupted call left behind: their positions refer to that call's items.
    fn forget_items(&mut self) {
        self.warnings.retain(|remark| remark.element.is_none());
    }

    /// Loads both towers now, or the only one that the model has, and runs each once. It is meant for a process that
    /// shares the towers with others.
    ///
    /// # Errors
    /// The errors of embedding.
    pub fn load(&mut self) -> Result<()> {
        let missing = |e: &Error| e.kind == Kind::MissingFile;
        match (self.load_and_run_vision(), self.load_text()) {
            // This may run a graph, so it is also done once, here.
            (Ok(()), Ok(())) => self.logits().map(drop)?,
            (Ok(()), Err(e)) | (Err(e), Ok(())) if missing(&e) && self.single_tower() => {}
            (Err(e), _) | (_, Err(e)) => return Err(e),
        }
        let towers = [self.vision.get().map(|v| &v.tower), self.text.get().map(|t| &t.tower)];
        towers.into_iter().flatten().for_each(|tower| tower.borrow_mut().prepack());
        Ok(())
    }

    /// Runs each tower that is loaded once.
    ///
    /// # Errors
    /// The errors of embedding.
    pub fn try_out(&self) -> Result<()> {
        self.vision.get().map_or(Ok(()), Vision::run_black)?;
        self.text.get().map_or(Ok(()), Text::try_run)
    }

    /// Whether the model may have only one of the two towers.
    fn single_tower(&self) -> bool {
        self.model.combined || self.model.vision.is_none() || self.model.text.is_none()
    }
}
