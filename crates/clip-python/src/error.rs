//! Converts the engine's errors to exceptions of the package.

use clip::{Error, Kind, Setting};
use pyo3::prelude::*;

/// The argument of `Clip` for a setting in a hint.
fn argument(setting: Setting) -> &'static str {
    match setting {
        Setting::Runtime => "onnxruntime",
        Setting::Cache => "cache",
        Setting::TruncateText => "truncate",
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::InvalidInput => "invalid input",
        Kind::Unsupported => "unsupported",
        Kind::LimitExceeded => "limit exceeded",
        Kind::OutOfMemory => "out of memory",
        Kind::DiskFull => "disk full",
        Kind::Interrupted => "interrupted",
        Kind::UnknownModel => "unknown model",
        Kind::MissingFile => "missing file",
        Kind::BadModel => "bad model",
        _ => "internal",
    }
}

/// Creates a `ClipError`.
pub fn exception<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    let class = py.import("clip_search._errors")?.getattr("ClipError")?;
    class.call1((&error.message, &error.detail, error.hint_for(argument), kind(error.kind), error.element))
}

pub fn raised(py: Python<'_>, error: &Error) -> PyErr {
    exception(py, error).map_or_else(|e| e, PyErr::from_value)
}

/// Issues a `ClipWarning`.
pub fn warn(py: Python<'_>, error: &Error) -> PyResult<()> {
    let class = py.import("clip_search._errors")?.getattr("ClipWarning")?;
    let text = match (error.element, error.hint_for(argument)) {
        (Some(element), Some(hint)) => format!("element {element}: {error} {hint}"),
        (Some(element), None) => format!("element {element}: {error}"),
        (None, Some(hint)) => format!("{error} {hint}"),
        (None, None) => error.to_string(),
    };
    // Attributes the warning to the line that called a method of `Clip`: this function has no Python frame.
    py.import("warnings")?.call_method1("warn", (text, class, 2))?;
    Ok(())
}
