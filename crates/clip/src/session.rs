//! ONNX Runtime: one library and one environment a process, one session a tower.
#![allow(unsafe_code)]

use std::path::{Path, PathBuf};

use once_cell::sync::OnceCell;
use ort::LoadDynamicError;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::{TensorElementType, ValueType};

use crate::error::{Error, Kind, Result};

/// The loaded libonnxruntime. It stays for the life of the process: the library allows one environment,
/// and taking it down at exit would join threads that a signal may have stopped.
pub struct Runtime {
    environment: Environment,
    pub path: PathBuf,
    pub version: String,
}

static RUNTIME: OnceCell<Runtime> = OnceCell::new();

impl Runtime {
    /// Loads the library on the first call; later calls return that one whatever the path.
    ///
    /// # Errors
    /// [`Kind::MissingFile`] where there is no such library, [`Kind::BadModel`] where it is too old or not
    /// ONNX Runtime. Nothing is kept of a failed attempt.
    pub fn load(path: &Path) -> Result<&'static Self> {
        RUNTIME.get_or_try_init(|| {
            if !path.is_file() {
                return Err(Error::new(Kind::MissingFile, format!("ONNX Runtime not found at \"{}\"", path.display()))
                    .hint("Install libonnxruntime there (\"make install\" does), or set clip_search.onnxruntime to its path."));
            }
            // Threads that the library starts must not take the process's signals.
            with_signals_blocked(|| {
                let environment = ort::init_from(path)
                    .map_err(|e| library_error(path, &e))?
                    .with_name("clip_search")
                    .with_telemetry(false)
                    .build()
                    .map_err(|e| Error::new(Kind::Internal, "ONNX Runtime could not be started").detail(e.message().to_owned()))?;
                // Its messages would go to stderr beside the errors that it returns.
                environment.set_log_level(LogLevel::Fatal);
                Ok(Self { environment, path: path.to_owned(), version: version_of(path) })
            })
        })
    }

    /// The library that is loaded, if one is.
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
                .hint("Install a newer libonnxruntime, or set clip_search.onnxruntime to one.")
        }
        LoadDynamicError::MissingApi { .. } | LoadDynamicError::InvalidVersionString => {
            Error::new(Kind::BadModel, format!("\"{path}\" is not an ONNX Runtime library"))
                .hint("Set clip_search.onnxruntime to the path of libonnxruntime.so.")
        }
        LoadDynamicError::Dlopen { error, .. } => {
            Error::new(Kind::BadModel, format!("ONNX Runtime at \"{path}\" cannot be loaded"))
                .detail(format!(
                    "The loader says: {}.",
                    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
                ))
                .hint("Set clip_search.onnxruntime to the path of libonnxruntime.so for this machine.")
        }
    }
}

/// The version that a loaded library states, such as "1.24.4".
fn version_of(path: &Path) -> String {
    // SAFETY: the library is in the process already and has been used, so this runs no code of its
    // initialisation anew; OrtGetApiBase has this signature in every version and its strings are static.
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

fn with_signals_blocked<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: both sets are plain data which libc fills before they are read, and the old mask is put back
    // before returning. A panic in `f` would leave signals blocked, so it is caught and passed on after.
    unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// An input or output of a graph.
#[derive(Clone, Debug)]
pub struct Port {
    pub name: String,
    pub element: TensorElementType,
    /// -1 where dynamic.
    pub shape: Vec<i64>,
}

impl Port {
    /// Size of an axis, where the graph fixes it.
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

/// A graph, ready to run.
pub struct Tower {
    session: Session,
    pub file: PathBuf,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

impl Tower {
    /// Loads a graph with a fixed number of threads (the calling one included).
    ///
    /// # Errors
    /// [`Kind::BadModel`] where the file is not a graph that this library runs.
    pub fn load(runtime: &Runtime, file: &Path, threads: usize) -> Result<Self> {
        let failed = |e: String| {
            Error::new(Kind::BadModel, format!("model file \"{}\" cannot be loaded", file.display()))
                .detail(format!("ONNX Runtime says: {}", e.trim()))
                .hint("Download the file again, or choose an export that ONNX Runtime supports.")
        };
        let session = with_signals_blocked(|| -> ort::Result<Session> {
            // Counts are always set: the library would otherwise start one thread a core in every backend.
            // Spinning threads would burn a core between calls.
            Session::builder(&runtime.environment)?
                .with_intra_threads(threads)?
                .with_inter_threads(1)?
                .with_intra_op_spinning(false)?
                .with_optimization_level(GraphOptimizationLevel::All)?
                .with_log_level(LogLevel::Fatal)?
                .commit_from_file(file)
        })
        .map_err(|e| failed(e.message().to_owned()))?;
        let ports = |outlets: &[ort::value::Outlet]| outlets.iter().filter_map(port).collect();
        Ok(Self { inputs: ports(session.inputs()), outputs: ports(session.outputs()), file: file.to_owned(), session })
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
    /// [`Kind::BadModel`] where the graph fails on these inputs or the output is of another type.
    pub fn run(&mut self, inputs: Vec<(String, SessionInputValue<'_>)>, output: &str) -> Result<ndarray::ArrayD<f32>> {
        let [array] = self.run_for(inputs, [output])?;
        Ok(array)
    }

    /// Runs the graph once and returns several outputs, as float32.
    ///
    /// # Errors
    /// Those of [`Self::run`].
    pub fn run_for<const N: usize>(
        &mut self,
        inputs: Vec<(String, SessionInputValue<'_>)>,
        outputs: [&str; N],
    ) -> Result<[ndarray::ArrayD<f32>; N]> {
        let file = &self.file;
        let failed = |e: ort::Error| {
            Error::new(Kind::BadModel, format!("model file \"{}\" failed to run", file.display()))
                .detail(format!("ONNX Runtime says: {}", e.message()))
        };
        let results = self.session.run(inputs).map_err(failed)?;
        let mut arrays = outputs.map(|_| ndarray::ArrayD::zeros(ndarray::IxDyn(&[0])));
        for (array, output) in arrays.iter_mut().zip(outputs) {
            *array = if results[output].dtype().tensor_type() == Some(TensorElementType::Float16) {
                results[output].try_extract_array::<half::f16>().map_err(failed)?.mapv(half::f16::to_f32)
            } else {
                results[output].try_extract_array::<f32>().map_err(failed)?.to_owned()
            };
        }
        Ok(arrays)
    }

    /// "inputs: …; outputs: …", for error messages.
    pub fn describe(&self) -> String {
        let list = |ports: &[Port]| ports.iter().map(Port::to_string).collect::<Vec<_>>().join(", ");
        format!("inputs: {}; outputs: {}", list(&self.inputs), list(&self.outputs))
    }
}

fn find<'a>(ports: &'a [Port], names: &[&str]) -> Option<&'a Port> {
    names.iter().find_map(|name| ports.iter().find(|port| port.name == *name))
}

fn port(outlet: &ort::value::Outlet) -> Option<Port> {
    match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } => {
            Some(Port { name: outlet.name().to_owned(), element: *ty, shape: shape.iter().copied().collect() })
        }
        _ => None,
    }
}
