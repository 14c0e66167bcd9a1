//! ONNX Runtime: one library and one environment per process, and one session per tower.
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
    /// Loads the library on the first call. Later calls return the same library, regardless of the path.
    ///
    /// # Errors
    /// [`Kind::MissingFile`] if the library does not exist, [`Kind::BadModel`] if it is too old or is not ONNX Runtime.
    /// After a failed attempt, the next call tries again.
    pub fn load(path: &Path) -> Result<&'static Self> {
        RUNTIME.get_or_try_init(|| {
            if !path.is_file() {
                return Err(Error::new(Kind::MissingFile, format!("ONNX Runtime not found at \"{}\"", path.display()))
                    .hint_setting(
                        Setting::Runtime,
                        "Install libonnxruntime there (\"make install\" does), or set {setting} to its path.",
                    ));
            }
            // The threads that the library starts must not handle the process's signals.
            with_signals_blocked(|| {
                let environment = ort::init_from(path)
                    .map_err(|e| library_error(path, &e))?
                    .with_name("clip_search")
                    .with_telemetry(false)
                    .build()
                    .map_err(|e| {
                        Error::new(Kind::Internal, "ONNX Runtime could not be started").detail(e.message().to_owned())
                    })?;
                // Its log messages would go to stderr in addition to the returned errors.
                environment.set_log_level(LogLevel::Fatal);
                Ok(Self { environment, path: path.to_owned(), version: version_of(path) })
            })
        })
    }

    /// The library, if it is loaded.
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

/// The version that the loaded library reports, such as "1.24.4".
fn version_of(path: &Path) -> String {
    // SAFETY: the library is already loaded and in use, so loading it again does not run its initialisation.
    // OrtGetApiBase has this signature in every version, and the strings are static.
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
    /// The sizes of the axes; -1 if dynamic.
    pub shape: Vec<i64>,
    /// The name of the first axis, empty if unnamed. Axes with the same name have the same size in each run.
    pub batch_name: String,
}

impl Port {
    /// Whether the graph requires the same number of items for both inputs.
    pub fn shares_batch(&self, other: &Self) -> bool {
        !self.batch_name.is_empty() && self.batch_name == other.batch_name
    }

    /// The size of an axis, if the graph fixes it.
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

/// The number of runs of a mapped graph after which its weights are copied into the layout for matrix products. Until
/// then each run converts them, which adds a fifth to the time of an image and doubles the time of a text of seven
/// tokens. The copy takes as long as about 20 of these runs, and 330 MB for the image tower of ViT-B/32, 150 MB for its
/// text tower.
const MAPPED_RUNS: usize = 20;
/// Weights with fewer bytes than this stay in the graph's own file.
const SMALL: &str = "1024";

/// How a session is created.
enum How<'a> {
    /// From a model's own file: reads the weights, rewrites the graph, converts the weights.
    Whole,
    /// Like `Whole`, and writes the graph to this path for later sessions. The session is not meant to be run.
    Written(&'a Path),
    /// From a written file: maps the weights.
    Mapped,
    /// From a written file: converts the weights.
    Prepacked,
    /// Folds constants and writes the graph to this path, and its weights to a file of this name beside it. The session
    /// is not meant to be run.
    Folded(&'a Path, &'a str),
}

/// A graph that is ready to run.
pub struct Tower {
    session: Session,
    /// The file that the graph is mapped from, and the number of its runs so far.
    mapped: Option<(PathBuf, usize)>,
    /// The directory of the rewritten graph in the cache, if there is one.
    kept: Option<PathBuf>,
    pub threads: usize,
    /// A remark for an administrator about loading the graph.
    pub note: Option<String>,
    pub file: PathBuf,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

impl Tower {
    /// Loads a graph with a fixed number of threads, which includes the calling one. The number is reduced to one if
    /// the graph gives right results only then ([`allowed_threads`]).
    ///
    /// With a cache directory, slow steps are done once, and their results are kept there
    /// ([`crate::model::graph_cache`]).
    ///
    /// # Errors
    /// [`Kind::BadModel`] if this library can't load the file as a graph; [`Kind::OutOfMemory`].
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

    /// Loads a graph that [`Self::write_optimized`] has written, by mapping its weights. `file` is the model's own
    /// file. None if the graph is damaged.
    pub fn mapped(runtime: &Runtime, graph: PathBuf, threads: usize, file: &Path) -> Option<Self> {
        let session = session(runtime, &graph, threads, &How::Mapped).ok()?;
        Some(Self::of(session, Some((graph, 0)), threads, file))
    }

    /// Writes a graph as ONNX Runtime optimizes it, with its weights in a file beside it.
    ///
    /// # Errors
    /// The reason why it could not be written, in one line.
    pub fn write_optimized(
        runtime: &Runtime,
        file: &Path,
        threads: usize,
        graph: &Path,
    ) -> std::result::Result<(), String> {
        session(runtime, file, threads, &How::Written(graph)).map(drop).map_err(|e| e.message().trim().to_owned())
    }

    /// Writes a graph with its constants folded, and its weights to a file of the given name beside it.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if the graph can't be loaded; [`Kind::OutOfMemory`].
    pub fn fold(runtime: &Runtime, file: &Path, target: &Path, weights: &str) -> Result<()> {
        session(runtime, file, 1, &How::Folded(target, weights)).map(drop).map_err(|e| unloadable(file, &e))
    }

    /// Loads a graph on one thread, without the cache.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if the graph can't be loaded; [`Kind::OutOfMemory`].
    pub fn plain(runtime: &Runtime, file: &Path) -> Result<Self> {
        let session = session(runtime, file, 1, &How::Whole).map_err(|e| unloadable(file, &e))?;
        Ok(Self::of(session, None, 1, file))
    }

    /// The value that any process has stored under this name by [`Self::remember`].
    pub fn recall(&self, name: &str) -> Option<String> {
        cache_directory::read(&self.kept.as_ref()?.join(name)).ok()
    }

    /// Stores a value about the graph for as long as its rewritten form is cached. If this fails, the next process has
    /// to determine the value again.
    pub fn remember(&self, name: &str, value: &str) {
        if let Some(kept) = &self.kept {
            let _ = cache_directory::replace_text(&kept.join(name), value);
        }
    }

    /// Copies mapped weights into the fastest layout, for a process that runs the graph often.
    pub fn prepack(&mut self) {
        let Some((graph, _)) = self.mapped.take() else { return };
        // If the file has been removed in the meantime, the mapped graph stays in use: its pages remain valid.
        if let Some(Ok(session)) = Runtime::loaded().map(|r| session(r, &graph, self.threads, &How::Prepacked)) {
            self.session = session;
        }
    }

    /// The input with one of these names, the first of which is preferred.
    pub fn input(&self, names: &[&str]) -> Option<&Port> {
        find(&self.inputs, names)
    }

    /// The output with one of these names, the first of which is preferred.
    pub fn output(&self, names: &[&str]) -> Option<&Port> {
        find(&self.outputs, names)
    }

    /// Runs the graph and returns one output as float32.
    ///
    /// # Errors
    /// [`Kind::BadModel`] if the graph fails on these inputs or the output has another type; [`Kind::OutOfMemory`];
    /// [`Kind::Interrupted`] if runs are watched ([`watch_runs`](crate::model::interruptible::watch_runs)).
    pub fn run(&mut self, inputs: Vec<(String, SessionInputValue<'_>)>, output: &str) -> Result<ndarray::ArrayD<f32>> {
        let [array] = self.run_for(inputs, [output])?;
        Ok(array)
    }

    /// Runs the graph once and returns several outputs as float32.
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

    /// Like [`Self::run_for`], for any number of outputs.
    ///
    /// # Errors
    /// The errors of [`Self::run`].
    pub fn run_all(
        &mut self,
        inputs: Vec<(String, SessionInputValue<'_>)>,
        outputs: &[&str],
    ) -> Result<Vec<ndarray::ArrayD<f32>>> {
        match &mut self.mapped {
            Some((_, runs)) if *runs >= MAPPED_RUNS => self.prepack(),
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

    /// Inputs and outputs as "inputs: …; outputs: …", for error messages.
    pub fn describe(&self) -> String {
        let list = |ports: &[Port]| ports.iter().map(Port::to_string).collect::<Vec<_>>().join(", ");
        format!("inputs: {}; outputs: {}", list(&self.inputs), list(&self.outputs))
    }
}

/// Whether ONNX Runtime failed to allocate memory, by its own allocator's message or the C++ library's. It has no error
/// code for this.
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
        // The numbers of threads are always set: otherwise the library would start one thread per core in every
        // backend. Spinning threads would occupy a core between calls.
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
            How::Prepacked => builder.with_optimization_level(GraphOptimizationLevel::Disable)?,
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

/// The session of a cached graph, with its file, and a remark. If the graph is not cached, it is written to the cache
/// now.
fn kept(runtime: &Runtime, file: &Path, threads: usize, entry: &Entry) -> (Option<(Session, PathBuf)>, Option<String>) {
    let open = || {
        let graph = entry.graph()?;
        session(runtime, &graph, threads, &How::Mapped).ok().map(|session| (session, graph))
    };
    if let Some(found) = open() {
        return (Some(found), None);
    }
    // The cached file is damaged or missing.
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

/// Returns memory to the system that the C library retains after a graph was written: 300 MB for the image tower of
/// ViT-B/32.
pub(crate) fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call returns free pages to the system and does not access memory in use.
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
