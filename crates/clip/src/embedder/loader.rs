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
    /// libonnxruntime's path.
    pub(super) library: PathBuf,
    pub(super) threads: usize,
    pub(super) cache: Option<PathBuf>,
    /// Called while a graph is quantized, which takes minutes; it may unwind.
    pub(super) check_interrupts: fn(),
    /// Told of work that takes minutes, before it begins.
    pub(super) announce: fn(&str),
    /// Whether an eight-bit form that the cache lacks is made.
    pub(super) may_make: bool,
    /// A graph for both towers is loaded once.
    pub(super) shared: OnceCell<Rc<RefCell<Tower>>>,
}

/// The loaded form of a tower.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Form {
    Float32,
    /// In float32, to be quantized with ([`Loader::make`]).
    Unmade,
    Int8,
}

impl Loader {
    /// Loads the tower in `file`, quantized if this is requested and the cache has the quantized graph. If quantization
    /// failed, it loads float32 with a warning.
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

    /// The quantized graph, if the cache has it.
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
            // Before the announcement, and before float32 is loaded for it.
            quantize::check_before(runtime, file, cache)?;
        }
        Ok(found)
    }

    /// Quantizes the tower in `file`; returns None, with a warning, if no quantized graph is close enough to float32.
    ///
    /// # Errors
    /// [`Kind::DiskFull`]; [`Kind::BadModel`] if the cache can't store it for another reason.
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
