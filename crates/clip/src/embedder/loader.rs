//! Loads towers, in float32 or in their eight-bit form.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use once_cell::unsync::OnceCell;

use crate::error::{Error, Kind, Result, Setting};
use crate::model::Model;
use crate::model::quantize::{self, Samples, refused};
use crate::model::session::{Runtime, Tower};

/// What towers are loaded with.
pub(super) struct Loader {
    /// libonnxruntime's path.
    pub(super) library: PathBuf,
    pub(super) threads: usize,
    pub(super) cache: Option<PathBuf>,
    /// Called while an eight-bit form is made, which takes minutes; it may unwind.
    pub(super) check_interrupts: fn(),
    /// Told of work that takes minutes, before it begins.
    pub(super) announce: fn(&str),
    /// Whether an eight-bit form that the cache lacks is made.
    pub(super) may_make: bool,
    /// A graph that serves both towers is loaded once.
    pub(super) shared: OnceCell<Rc<RefCell<Tower>>>,
}

/// The form of a tower that was loaded.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Form {
    Float32,
    /// In float32, to make the eight-bit form with ([`Loader::make`]).
    Unmade,
    Int8,
}

impl Loader {
    /// Loads the tower in `file`, in its eight-bit form if that is wanted and was made before. Without one it is loaded in
    /// float32, which is remarked.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if the graph can't be loaded, or if the eight-bit form may not be made now.
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

    /// The eight-bit form, if it was made before.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if there is none; [`Kind::BadModel`] if it may not be made now.
    fn find_int8(&self, model: &Model, file: &Path) -> Result<Option<Tower>> {
        if model.combined {
            return Err(refused(file, "Its two towers are one graph; take an export with separate towers."));
        }
        let Some(cache) = &self.cache else {
            return Err(refused(file, "It would have to be made for each connection.")
                .hint_setting(Setting::Cache, "Set {setting} to a directory."));
        };
        let found = quantize::find(Runtime::load(&self.library)?, file, self.threads, cache)?;
        if found.is_none() && !self.may_make {
            let message = format!("the eight-bit form of \"{}\" was not made yet", file.display());
            let hint = format!("Call clip_check_model('{}') once, which makes it, and restart the server.", model.name);
            return Err(Error::new(Kind::BadModel, message).hint(hint));
        }
        Ok(found)
    }

    /// Makes the eight-bit form of the tower in `file`; none, which is remarked, if no form is near enough to float32.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if it can't be kept.
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
