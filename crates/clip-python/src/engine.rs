//! A model on its own thread. The shared parts of ONNX Runtime's sessions can't move between threads, and Python's
//! threads can start and end at any time. A call sends its work to the model's thread and waits without the
//! interpreter's lock.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clip::embedder::Embedder;
use clip::image::Limits;
use clip::model::Model;
use clip::model::session::Runtime;
use clip::{Error, Kind};
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyList;

use crate::error::{exception, raised, warn};

/// The interval at which a waiting call checks for Ctrl-C.
const PAUSE: Duration = Duration::from_millis(100);

type Job = Box<dyn FnOnce(&mut Embedder) + Send>;

/// An image: its bytes, or the path of its file.
#[derive(FromPyObject)]
enum Image {
    Bytes(PyBackedBytes),
    Path(PathBuf),
}

/// The results of a call, the engine's warnings, and the length of the model's vectors.
type Embedded = (Vec<clip::Result<Vec<f32>>>, Vec<Error>, Option<usize>);

#[pyclass(frozen, module = "clip_search._clip_search")]
pub struct Engine {
    jobs: Mutex<Sender<Job>>,
    library: PathBuf,
    limits: Limits,
    truncate: bool,
    /// The id of the process that created the engine, because its thread does not survive a fork.
    process: u32,
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (*, search, model, library, threads, cache, truncate, max_pixels, max_bytes, max_memory, allow_truncated, exact_jpeg))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        search: Vec<PathBuf>,
        model: &str,
        library: PathBuf,
        threads: usize,
        cache: Option<PathBuf>,
        truncate: bool,
        max_pixels: Option<u64>,
        max_bytes: Option<u64>,
        max_memory: Option<u64>,
        allow_truncated: bool,
        exact_jpeg: bool,
    ) -> PyResult<Self> {
        let default = Limits::default();
        let limits = Limits {
            max_pixels: max_pixels.unwrap_or(default.max_pixels),
            max_bytes: max_bytes.unwrap_or(default.max_bytes),
            max_memory: max_memory.unwrap_or(default.max_memory),
            allow_truncated,
            exact_jpeg,
            interrupted: default.interrupted,
            names: ("max_image_pixels", "max_image_bytes", "max_image_memory"),
        };
        let model = Model::find(&search, model).map_err(|e| raised(py, &e))?;
        let (jobs, waiting) = channel::<Job>();
        let path = library.clone();
        let work = move || {
            let mut embedder = Embedder::new(model, path, threads).with_cache(cache);
            // The loop ends when the engine is dropped.
            for job in waiting {
                job(&mut embedder);
            }
        };
        std::thread::Builder::new().name("clip".to_owned()).spawn(work)?;
        Ok(Self { jobs: Mutex::new(jobs), library, limits, truncate, process: std::process::id() })
    }

    /// The vectors of images, as the rows of an array. The first image that fails raises its error.
    fn images<'py>(&self, py: Python<'py>, images: Vec<Image>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let embedded = self.embed_images(py, images, true)?;
        array(py, embedded)
    }

    /// A vector or an exception for each image. Errors of the model are raised.
    fn try_images<'py>(&self, py: Python<'py>, images: Vec<Image>) -> PyResult<Bound<'py, PyList>> {
        let (results, warnings, _) = self.embed_images(py, images, false)?;
        warnings.iter().try_for_each(|warning| warn(py, warning))?;
        let list = PyList::empty(py);
        for result in results {
            match result {
                Ok(vector) => list.append(PyArray1::from_vec(py, vector))?,
                Err(error) if is_of_model(&error) => return Err(raised(py, &error)),
                Err(error) => list.append(exception(py, &error)?)?,
            }
        }
        Ok(list)
    }

    /// The vectors of texts, as the rows of an array.
    fn texts<'py>(&self, py: Python<'py>, texts: Vec<String>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let truncate = self.truncate;
        let embedded = self.call(py, move |embedder, stop| {
            one_by_one(embedder, &texts, true, stop, |embedder, text: &String| {
                let vectors = embedder.embed_texts(&[text.as_str()], truncate, &mut || ())?;
                Ok(vectors.into_iter().next().expect("a vector for each text").vector)
            })
        })?;
        array(py, embedded)
    }

    /// The report of clip_check_model: (item, value). The last item is the verdict.
    fn check(&self, py: Python<'_>) -> PyResult<Vec<(String, String)>> {
        self.call(py, |embedder, _| {
            embedder.check(|setting| match setting {
                clip::Setting::Runtime => "onnxruntime",
                clip::Setting::Cache => "cache",
                clip::Setting::TruncateText => "truncate",
            })
        })
    }
}

impl Engine {
    fn embed_images(&self, py: Python<'_>, images: Vec<Image>, first: bool) -> PyResult<Embedded> {
        let limits = self.limits;
        self.call(py, move |embedder, stop| {
            // PyO3 drops Python's objects later, on a thread that has the interpreter's lock. This thread never takes
            // the lock, so the interpreter can end while an image is being embedded.
            one_by_one(embedder, &images, first, stop, |embedder, image| {
                let read;
                let bytes = match image {
                    Image::Bytes(bytes) => bytes.as_ref(),
                    Image::Path(path) => {
                        read = read_file(path, &limits)?;
                        read.as_slice()
                    }
                };
                let vectors = embedder.embed_images(&[bytes], &limits, &mut || ())?;
                Ok(vectors.into_iter().next().expect("a vector for each image"))
            })
        })
    }

    /// Checks that the process has not loaded another ONNX Runtime than this engine names: it would be used silently.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if it has.
    fn is_library(&self) -> clip::Result<()> {
        let Some(loaded) = Runtime::loaded() else { return Ok(()) };
        let same = |path: &Path| path == self.library || path.canonicalize().ok() == self.library.canonicalize().ok();
        if same(&loaded.path) {
            return Ok(());
        }
        let message = format!("ONNX Runtime is already loaded from \"{}\"", loaded.path.display());
        Err(Error::new(Kind::Unsupported, message)
            .detail(format!("This Clip names \"{}\"; a process has one ONNX Runtime.", self.library.display()))
            .hint("Name the same in every Clip, or use another process."))
    }

    /// Runs `work` on the engine's thread, and waits for it without the interpreter's lock. On Ctrl-C, `work` ends
    /// after its current item.
    fn call<T: Send + 'static>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Embedder, &AtomicBool) -> T + Send + 'static,
    ) -> PyResult<T> {
        if std::process::id() != self.process {
            let error = Error::new(Kind::Internal, "the model was loaded before the process was forked")
                .hint("Make a Clip in each process, or send one to it by pickle.");
            return Err(raised(py, &error));
        }
        self.is_library().map_err(|e| raised(py, &e))?;
        let stopped = || {
            let error = Error::new(Kind::Internal, "the engine has stopped").hint("Make another Clip.");
            raised(py, &error)
        };
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = sync_channel(1);
        let seen = Arc::clone(&stop);
        let job: Job = Box::new(move |embedder| drop(sender.send(work(embedder, &seen))));
        self.jobs.lock().map_err(|_| stopped())?.send(job).map_err(|_| stopped())?;
        let mut receiver = receiver;
        loop {
            let (back, result) = py.detach(move || wait(receiver));
            receiver = back;
            match result {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Disconnected) => return Err(stopped()),
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(interrupt) = py.check_signals() {
                        stop.store(true, Ordering::Relaxed);
                        return Err(interrupt);
                    }
                }
            }
        }
    }
}

fn wait<T>(receiver: Receiver<T>) -> (Receiver<T>, Result<T, RecvTimeoutError>) {
    let result = receiver.recv_timeout(PAUSE);
    (receiver, result)
}

/// Embeds each item separately, as clip_embed_image and clip_embed_text do: a batch is computed in another order, so
/// its vectors differ in their last bits. With `first`, the first error ends the loop; an error of the model always
/// does.
fn one_by_one<T>(
    embedder: &mut Embedder,
    items: &[T],
    first: bool,
    stop: &AtomicBool,
    mut embed: impl FnMut(&mut Embedder, &T) -> clip::Result<Vec<f32>>,
) -> Embedded {
    let (mut results, mut warnings) = (Vec::with_capacity(items.len()), Vec::new());
    // If there are no items, the array has no rows but still the width of other arrays, which may require loading the
    // model.
    if items.is_empty() && first && embedder.dimensions().is_none() {
        results.extend(embedder.load().err().map(Err));
    }
    for (index, item) in items.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            results.push(Err(Error::interrupted()));
            break;
        }
        let result = embed(embedder, item).map_err(|e| if is_of_model(&e) { e } else { e.element(index) });
        for warning in embedder.take_warnings() {
            warnings.push(if warning.element.is_some() { warning.element(index) } else { warning });
        }
        let last = result.as_ref().is_err_and(|e| first || is_of_model(e));
        results.push(result);
        if last {
            break;
        }
    }
    (results, warnings, embedder.dimensions())
}

/// Whether an error concerns the model, and therefore every item.
fn is_of_model(error: &Error) -> bool {
    matches!(error.kind, Kind::UnknownModel | Kind::MissingFile | Kind::BadModel | Kind::DiskFull)
}

fn array<'py>(py: Python<'py>, embedded: Embedded) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let (results, warnings, dimensions) = embedded;
    warnings.iter().try_for_each(|warning| warn(py, warning))?;
    let vectors: Vec<Vec<f32>> = results.into_iter().collect::<clip::Result<_>>().map_err(|e| raised(py, &e))?;
    let (rows, columns) = (vectors.len(), vectors.first().map(Vec::len).or(dimensions).unwrap_or(0));
    PyArray1::from_vec(py, vectors.concat()).reshape([rows, columns])
}

/// Reads an image file, up to one byte more than the limit.
fn read_file(path: &Path, limits: &Limits) -> clip::Result<Vec<u8>> {
    let failed = |e: std::io::Error| {
        Error::new(Kind::InvalidInput, format!("\"{}\" cannot be read", path.display())).detail(format!("{e}."))
    };
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_file() {
        return Err(Error::new(Kind::InvalidInput, format!("\"{}\" is not a regular file", path.display())));
    }
    let mut bytes = Vec::new();
    // The engine refuses a file with this additional byte with its own error.
    File::open(path).and_then(|file| file.take(limits.max_bytes + 1).read_to_end(&mut bytes)).map_err(failed)?;
    Ok(bytes)
}
