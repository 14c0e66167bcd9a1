//! ONNX Runtime: one library and one environment per process, one session per tower.
#![allow(unsafe_code)]

use std::path::{Path, PathBuf};

use once_cell::sync::OnceCell;
use ort::LoadDynamicError;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::{TensorElementType, ValueType};

use crate::error::{Error, Kind, Result, Setting};
use crate::model::cache_directory;
use crate::model::graph_cache::{Entry, Form, WEIGHTS};
use crate::model::interruptible::Run;
use crate::model::operators::allowed_threads;
use crate::threads::with_signals_blocked;

/// The loaded libonnxruntime. It stays loaded for the lifetime of the process: the library allows only one environment,
/// and releasing it at exit would join threads that a signal may have stopped.
pub struct Runtime {
    environment: Environment,
    pub path: PathBuf,
    pub version: String,
}

static RUNTIME: OnceCell<Runtime> = OnceCell::new();

impl Runtime {
    /// Loads the library on the first call; later calls return the same library, regardless of the path.
    ///
    /// # Errors
    /// [`Kind::MissingFile`] if the library does not exist, [`Kind::BadModel`] if it is too old or not ONNX Runtime.
    /// After a failed attempt the next call tries again.
    pub fn load(path: &Path) -> Result<&'static Self> {
        RUNTIME.get_or_try_init(|| {
            if !path.is_file() {
                return Err(Error::new(Kind::MissingFile, format!("ONNX Runtime not found at \"{}\"", path.display()))
                    .hint_setting(
                        Setting::Runtime,
                        "Install libonnxruntime there (\"make install\" does), or set {setting} to its path.",
                    ));
            }
            // Threads that the library starts must not handle the process's signals.
            with_signals_blocked(|| {
                let environment = ort::init_from(path)
                    .map_err(|e| library_error(path, &e))?
                    .with_name("clip_search")
                    .with_telemetry(false)
                    .build()
                    .map_err(|e| {
                        Error::new(Kind::Internal, "ONNX Runtime could not be started").detail(e.message().to_owned())
                    })?;
                // Its messages would go to stderr, in addition to the returned errors.
                environment.set_log_level(LogLevel::Fatal);
                Ok(Self { environment, path: path.to_owned(), version: version_of(path) })
            })
        })
    }

    /// The loaded library, if any.
    pub fn loaded() -> Option<&'static Self> {
        RUNTIME.get()
    }
}

fn library_error(path: &Path, error: &LoadDynamicError) -> Error {
    let path = path.display();
    match error {
        LoadDynamicError::BadVersion { version_str, .. } => {
            Error::new(Kind::BadModel, format!("ONNX Runtime {version_str} is too old"))
                .detail(format!("\"{path}\" has version {version_str}; 1.{} or later is needed.", ort::MINOR_VERSION))
                .hint_setting(Setting::Runtime, "Install a newer libonnxruntime, or set {setting} to one.")
        }
        LoadDynamicError::MissingApi { .. } | LoadDynamicError::InvalidVersionString => {
            Error::new(Kind::BadModel, format!("\"{path}\" is not an ONNX Runtime library"))
                .hint_setting(Setting::Runtime, "Set {setting} to the path of libonnxruntime.so.")
        }
        LoadDynamicError::Dlopen { error, .. } => {
            Error::new(Kind::BadModel, format!("ONNX Runtime at \"{path}\" cannot be loaded"))
                .detail(format!(
                    "The loader says: {}.",
                    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
                ))
                .hint_setting(Setting::Runtime, "Set {setting} to the path of libonnxruntime.so for this machine.")
        }
    }
}

/// The version that a loaded library states, such as "1.24.4".
fn version_of(path: &Path) -> String {
    // SAFETY: the library is already loaded and in use, so this does not run its initialisation again; OrtGetApiBase
    // has this signature in every version, and its strings are static.
    let version = unsafe {
        libloading::Library::new(path).and_then(|library| {
            let base: libloading::Symbol<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase> =
                library.get(b"OrtGetApiBase")?;
            let version = ((*base()).GetVersionString)();
            Ok(std::ffi::CStr::from_ptr(version).to_string_lossy().into_owned())
        })
    };
    version.unwrap_or_else(|_| "of unknown version".to_owned())
}

/// An input or output of a graph.
#[derive(Clone, Debug)]
pub struct Port {
    pub name: String,
    pub element: TensorElementType,
    /// -1 if dynamic.
    pub shape: Vec<i64>,
    /// The name of the first axis, empty if unnamed. Axes with the same name have the same size in each run.
    pub batch_name: String,
}

impl Port {
    /// Whether the graph requires the same number of items for both inputs.
    pub fn shares_batch(&self, other: &Self) -> bool {
        !self.batch_name.is_empty() && self.batch_name == other.batch_name
    }

    /// Size of an axis, if the graph fixes it.
    pub fn fixed(&self, axis: usize) -> Option<usize> {
        self.shape.get(axis).filter(|size| **size > 0).map(|size| *size as usize)
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let axes: Vec<String> = self.shape.iter().map(|n| if *n < 0 { "?".into() } else { n.to_string() }).collect();
        write!(f, "{} {}[{}]", self.name, format!("{:?}", self.element).to_lowercase(), axes.join(","))
    }
}

/// After this number of runs of a mapped graph its weights are copied into the layout for matrix products. Until then
/// each run converts them, which adds a fifth to the time of an image and doubles the time of a text of seven tokens;
/// the copy takes as long as about 20 of these runs, and 330 MB for the image tower of ViT-B/32, 150 for its text
/// tower.
const MAPPED_RUNS: usize = 20;
/// Weights with fewer bytes stay in the graph's own file.
const SMALL: &str = "1024";

/// The way to create a session.
enum How<'a> {
    /// From a model's own file: weights are read, the graph is rewritten, weights are converted.
    Whole,
    /// As above, written to this path for later sessions, and not meant to be run.
    Written(&'a Path),
    /// From the written file: weights are mapped.
    Mapped,
    /// From the written file: weights are converted.
    LaidOut,
    /// Written to this path with constants folded, and weights to a file of this name beside it; not meant to be run.
    Folded(&'a Path, &'a str),
}

/// A graph, ready to run.
pub struct Tower {
    session: Session,
    /// The file that it is mapped from, and its number of runs.
    mapped: Option<(PathBuf, usize)>,
    /// The cache entry of the rewritten graph, if any.
    kept: Option<PathBuf>,
    pub threads: usize,
    /// A remark about its loading, for an administrator.
    pub note: Option<String>,
    pub file: PathBuf,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

impl Tower {
    /// Loads a graph with a fixed number of threads (the calling one included), or with one if the graph is right on one
    /// alone ([`allowed_threads`]).
    ///
    /// With a cache directory, slow steps are done once and their results are kept there
    /// ([`crate::model::graph_cache`]).
    ///
    /// # Errors
    /// [`Kind::BadModel`] if the file is not a graph that this library can run.
    pub fn load(runtime: &Runtime, file: &Path, threads: usize, cache: Option<&Path>) -> Result<Self> {
        let threads = allowed_threads(file, threads);
        let entry = cache.and_then(|cache| Entry::of(cache, file, &runtime.version, Form::Optimized));
        let (kept, note) = entry.map_or((None, None), |entry| kept(runtime, file, threads, &entry));
        let (session, mapped) = match kept {
            Some((session, graph)) => (session, Some((graph, 0))),
            None => {
                let whole = session(runtime, file, threads, &How::Whole);
                (whole.map_err(|e| unloadable(file, &e))?, None)
            }
        };
        Ok(Self { note, ..Self::of(session, mapped, threads, file) })
    }

    fn of(session: Session, mapped: Option<(PathBuf, usize)>, threads: usize, file: &Path) -> Self {
        let ports = |outlets: &[ort::value::Outlet]| outlets.iter().filter_map(port).collect();
        let (inputs, outputs) = (ports(session.inputs()), ports(session.outputs()));
        let kept = mapped.as_ref().and_then(|(graph, _): &(PathBuf, usize)| graph.parent().map(Path::to_owned));
        Self { session, mapped, kept, threads, note: None, file: file.to_owned(), inputs, outputs }
    }

    /// Loads a graph from `file` that [`Self::write_optimized`] has written: its weights are mapped. None if it is
    /// damaged.
    pub fn mapped(runtime: &Runtime, graph: PathBuf, threads: usize, file: &Path) -> Option<Self> {
        let session = session(runtime, &graph, threads, &How::Mapped).ok()?;
        Some(Self::of(session, Some((graph, 0)), threads, file))
    }

    /// Writes a graph as ONNX Runtime optimizes it, and its weights to a file beside it.
    ///
    /// # Errors
    /// Why it could not be written, in one line.
    pub fn write_optimized(
        runtime: &Runtime,
        file: &Path,
        threads: usize,
        graph: &Path,
    ) -> std::result::Result<(), String> {
        session(runtime, file, threads, &How::Written(graph)).map(drop).map_err(|e| e.message().trim().to_owned())
    }

    /// Writes a graph with its constants folded, and weights to a file of that name beside it.
    ///
    /// # Errors
    /// [`Kind::BadModel`].
    pub fn fold(runtime: &Runtime, file: &Path, target: &Path, weights: &str) -> Result<()> {
        session(runtime, file, 1, &How::Folded(target, weights)).map(drop).map_err(|e| unloadable(file, &e))
    }

    /// Loads a graph without the cache, on one thread.
    ///
    /// # Errors
    /// [`Kind::BadModel`].
    pub fn plain(runtime: &Runtime, file: &Path) -> Result<Self> {
        let session = session(runtime, file, 1, &How::Whole).map_err(|e| unloadable(file, &e))?;
        Ok(Self::of(session, None, 1, file))
    }

    /// The value that any process has stored under this name with [`Self::remember`].
    pub fn recall(&self, name: &str) -> Option<String> {
        cache_directory::read(&self.kept.as_ref()?.join(name)).ok()
    }

    /// Stores a value about the graph, as long as its rewritten form is cached. After a failure the next process has to
    /// determine it again.
    pub fn remember(&self, name: &str, value: &str) {
        if let Some(kept) = &self.kept {
            let _ = cache_directory::replace_text(&kept.join(name), value);
        }
    }

    /// Copies mapped weights into the fastest layout, for a process that runs the graph often.
    pub fn lay_out(&mut self) {
        let Some((graph, _)) = self.mapped.take() else { return };
        // If the file has been removed in the meantime, the mapped graph remains: its pages stay valid.
        if let Some(Ok(session)) = Runtime::loaded().map(|r| session(r, &graph, self.threads, &How::LaidOut)) {
            self.session = session;
        }
    }

    /// The input with one of these names, in this order of preference.
    pub fn input(&self, names: &[&str]) -> Option<&Port> {
        find(&self.inputs, names)
    }

    /// The output with one of these names, in this order of preference.
    pub fn output(&self, names: &[&str]) -> Option<&Port> {
        find(&self.outputs, names)
    }

    /// Runs the graph and returns one output, as float32.
    ///
    /// # Errors
    /// [`Kind::BadModel`] where the graph fails on these inputs or the output is of another type; [`Kind::OutOfMemory`];
    /// [`Kind::Interrupted`] where runs are watched ([`watch_runs`](crate::model::interruptible::watch_runs)).
    pub fn run(&mut self, inputs: Vec<(String, SessionInputValue<'_>)>, output: &str) -> Result<ndarray::ArrayD<f32>> {
        let [array] = self.run_for(inputs, [output])?;
        Ok(array)
    }

    /// Runs the graph once and returns several outputs, as float32.
    ///
    /// # Errors
    /// The errors of [`Self::run`].
    pub fn run_for<const N: usize>(
        &mut self,
        inputs: Vec<(String, SessionInputValue<'_>)>,
        outputs: [&str; N],
    ) -> Result<[ndarray::ArrayD<f32>; N]> {
        let mut arrays = self.run_all(inputs, &outputs)?.into_iter();
        Ok(outputs.map(|_| arrays.next().expect("one for each output")))
    }

    /// As above, for any number of outputs.
    ///
    /// # Errors
    /// The errors of [`Self::run`].
    pub fn run_all(
        &mut self,
        inputs: Vec<(String, SessionInputValue<'_>)>,
        outputs: &[&str],
    ) -> Result<Vec<ndarray::ArrayD<f32>>> {
        match &mut self.mapped {
            Some((_, runs)) if *runs >= MAPPED_RUNS => self.lay_out(),
            Some((_, runs)) => *runs += 1,
            None => {}
        }
        let file = &self.file;
        let failed = |e: ort::Error| {
            if ran_out(&e) {
                return out_of_memory(&e);
            }
            Error::new(Kind::BadModel, format!("model file \"{}\" failed to run", file.display()))
                .detail(format!("ONNX Runtime says: {}", e.message()))
                .hint(
                    "The graph may be bound to the size of the example that it was exported with. Export each tower as a \
                     graph of its own, with dynamic axes.",
                )
        };
        let run = Run::new().map_err(failed)?;
        let results = {
            let _watch = run.watch();
            self.session.run_with_options(inputs, &run.options)
        };
        let results = results.map_err(|e| if run.is_stopped() { Error::interrupted() } else { failed(e) })?;
        let read = |output: &&str| {
            let result = &results[*output];
            Ok(match result.dtype().tensor_type() {
                Some(TensorElementType::Float16) => {
                    result.try_extract_array::<half::f16>().map_err(failed)?.mapv(half::f16::to_f32)
                }
                Some(TensorElementType::Bfloat16) => {
                    result.try_extract_array::<half::bf16>().map_err(failed)?.mapv(half::bf16::to_f32)
                }
                _ => result.try_extract_array::<f32>().map_err(failed)?.to_owned(),
            })
        };
        outputs.iter().map(read).collect()
    }

    /// "inputs: …; outputs: …", for error messages.
    pub fn describe(&self) -> String {
        let list = |ports: &[Port]| ports.iter().map(Port::to_string).collect::<Vec<_>>().join(", ");
        format!("inputs: {}; outputs: {}", list(&self.inputs), list(&self.outputs))
    }
}

/// Whether ONNX Runtime got no memory: by its own allocator's message or the C++ library's. It has no error code for that.
fn ran_out(error: &ort::Error) -> bool {
    ["Failed to allocate memory", "bad_alloc", "bad allocation"].iter().any(|text| error.message().contains(text))
}

fn out_of_memory(error: &ort::Error) -> Error {
    Error::new(Kind::OutOfMemory, "out of memory").detail(format!("ONNX Runtime says: {}", error.message().trim()))
}

fn unloadable(file: &Path, error: &ort::Error) -> Error {
    if ran_out(error) {
        return out_of_memory(error);
    }
    Error::new(Kind::BadModel, format!("model file \"{}\" cannot be loaded", file.display()))
        .detail(format!("ONNX Runtime says: {}", error.message().trim()))
        .hint("Download the file again, or choose an export that ONNX Runtime supports.")
}

fn session(runtime: &Runtime, file: &Path, threads: usize, how: &How<'_>) -> ort::Result<Session> {
    with_signals_blocked(|| {
        // The thread counts are always set: otherwise the library would start one thread per core in every backend.
        // Spinning threads would occupy a core between calls.
        let builder = Session::builder(&runtime.environment)?
            .with_intra_threads(threads)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?
            .with_log_level(LogLevel::Fatal)?;
        let mut builder = match how {
            How::Whole => builder.with_optimization_level(GraphOptimizationLevel::All)?,
            How::Written(graph) => builder
                .with_optimization_level(GraphOptimizationLevel::All)?
                .with_prepacking(false)?
                .with_optimized_model_path(graph)?
                .with_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS)?
                .with_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", SMALL)?,
            How::Mapped => builder.with_optimization_level(GraphOptimizationLevel::Disable)?.with_prepacking(false)?,
            How::LaidOut => builder.with_optimization_level(GraphOptimizationLevel::Disable)?,
            How::Folded(graph, weights) => builder
                .with_optimization_level(GraphOptimizationLevel::Level1)?
                .with_prepacking(false)?
                .with_optimized_model_path(graph)?
                .with_config_entry("session.optimized_model_external_initializers_file_name", *weights)?
                .with_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", SMALL)?,
        };
        builder.commit_from_file(file)
    })
}

/// The session of a cached graph, or of a graph that is written to the cache now, with its file; and a remark.
fn kept(runtime: &Runtime, file: &Path, threads: usize, entry: &Entry) -> (Option<(Session, PathBuf)>, Option<String>) {
    let open = || {
        let graph = entry.graph()?;
        session(runtime, &graph, threads, &How::Mapped).ok().map(|session| (session, graph))
    };
    if let Some(found) = open() {
        return (Some(found), None);
    }
    // The file is damaged or missing.
    entry.remove();
    let write = |graph: &Path| Tower::write_optimized(runtime, file, threads, graph);
    match entry.write(write) {
        Some(Ok(())) => {
            give_back_memory();
            (open(), None)
        }
        Some(Err(why)) => {
            (None, Some(format!("the rewritten graph of \"{}\" could not be kept: {why}", file.display())))
        }
        None => (None, None),
    }
}

/// The C library retains the memory that was freed after writing a graph, 300 MB for the image tower of ViT-B/32.
pub(crate) fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it returns free pages to the system and does not access memory in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn find<'a>(ports: &'a [Port], names: &[&str]) -> Option<&'a Port> {
    names.iter().find_map(|name| ports.iter().find(|port| port.name == *name))
}

fn port(outlet: &ort::value::Outlet) -> Option<Port> {
    match outlet.dtype() {
        ValueType::Tensor { ty, shape, dimension_symbols } => Some(Port {
            name: outlet.name().to_owned(),
            element: *ty,
            shape: shape.iter().copied().collect(),
            batch_name: dimension_symbols.first().cloned().unwrap_or_default(),
        }),
        _ => None,
    }
}
