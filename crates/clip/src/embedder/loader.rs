//! Loads towers, in float32 or quantized.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use once_cell::unsync::OnceCell;

use crate::error::{Error, Kind, Result, Setting};
use crate::model::Model;
use crate::model::quantize::{self, Samples, refused};
use crate::model::session::{Runtime, Tower};

/// The settings with which towers are loaded.
pub(super) struct Loader {
    /// The path of libonnxruntime.
    pub(super) library: PathBuf,
    pub(super) threads: usize,
    pub(super) cache: Option<PathBuf>,
    /// Called while a graph is quantized, which takes minutes; it may unwind.
    pub(super) check_interrupts: fn(),
    /// Called with a message before work that takes minutes.
    pub(super) announce: fn(&str),
    /// Whether a quantized graph may be made if the cache lacks it.
    pub(super) may_make: bool,
    /// The tower of a graph that contains both towers, which is loaded only once.
    pub(super) shared: OnceCell<Rc<RefCell<Tower>>>,
}

/// The form in which a tower was loaded.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Form {
    Float32,
    /// Loaded in float32; to be quantized by [`Loader::make`].
    Unmade,
    Int8,
}

impl Loader {
    /// Loads the tower in `file`: the quantized graph if `wants_int8` is set and the cache has it, otherwise float32.
    /// If the graph can't be quantized, it adds a warning.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if the graph can't be loaded, or if quantizing is not allowed now.
    pub(super) fn open(
        &self,
        model: &Model,
        file: &Path,
        wants_int8: bool,
        warnings: &mut Vec<Error>,
        notes: &mut Vec<String>,
    ) -> Result<(Rc<RefCell<Tower>>, Form)> {
        let mut form = Form::Float32;
        if wants_int8 {
            match self.find_int8(model, file) {
                Ok(Some(tower)) => return Ok((Rc::new(RefCell::new(tower)), Form::Int8)),
                Ok(None) => form = Form::Unmade,
                Err(error) if error.kind == Kind::Unsupported => warnings.push(error),
                Err(error) => return Err(error),
            }
        }
        let mut load = || {
            let mut tower = Tower::load(Runtime::load(&self.library)?, file, self.threads, self.cache.as_deref())?;
            notes.extend(tower.note.take());
            Ok(Rc::new(RefCell::new(tower)))
        };
        let tower = if model.combined { self.shared.get_or_try_init(load).cloned() } else { load() }?;
        Ok((tower, form))
    }

    /// The quantized graph from the cache; None if it is not there but may be made.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the graph can't be quantized; [`Kind::BadModel`] if quantizing is not allowed now;
    /// [`Kind::DiskFull`].
    fn find_int8(&self, model: &Model, file: &Path) -> Result<Option<Tower>> {
        if model.combined {
            return Err(refused(file, "Its two towers are one graph; take an export with separate towers."));
        }
        let Some(cache) = &self.cache else {
            return Err(refused(file, "It would have to be made for each connection.")
                .hint_setting(Setting::Cache, "Set {setting} to a directory."));
        };
        let runtime = Runtime::load(&self.library)?;
        let found = quantize::find(runtime, file, self.threads, cache)?;
        if found.is_none() && !self.may_make {
            let message = format!("the eight-bit form of \"{}\" was not made yet", file.display());
            let hint = format!("Call clip_check_model('{}') once, which makes it, and restart the server.", model.name);
            return Err(Error::new(Kind::BadModel, message).hint(hint));
        }
        if found.is_none() {
            // Checks this before the announcement, and before the float32 graph is loaded.
            quantize::check_before(runtime, file, cache)?;
        }
        Ok(found)
    }

    /// Quantizes the tower in `file`. Returns None, with a warning, if no quantized graph is close enough to float32.
    ///
    /// # Errors
    /// [`Kind::DiskFull`]; [`Kind::BadModel`] if the cache can't store the graph for another reason.
    pub(super) fn make(&self, file: &Path, samples: &Samples<'_>, warnings: &mut Vec<Error>) -> Result<Option<Tower>> {
        let cache = self.cache.as_ref().expect("checked before the tower was loaded");
        let runtime = Runtime::load(&self.library)?;
        (self.announce)(&format!("making the eight-bit form of \"{}\"", file.display()));
        match quantize::make(runtime, file, self.threads, cache, samples, &mut || (self.check_interrupts)()) {
            Ok(tower) => Ok(Some(tower)),
            Err(error) if error.kind == Kind::Unsupported => {
                warnings.push(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
