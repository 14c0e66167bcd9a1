//! One error type for the whole engine: a kind, by which callers decide, and three texts for users.

use std::fmt;

/// The kind of an error, coarse enough to map to an error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The value itself is unusable: not an image, a truncated file, an empty text.
    InvalidInput,
    /// The value is well-formed but of an unsupported kind: HEIC, a 12-bit JPEG.
    Unsupported,
    /// The value exceeds a configured limit: too many pixels or bytes.
    LimitExceeded,
    /// The system has no memory left, although the value is within its limits.
    OutOfMemory,
    /// The disk has no room for a file that must be cached.
    DiskFull,
    /// The caller stopped the work: a cancel, a timeout, a shutdown.
    Interrupted,
    /// The model does not exist.
    UnknownModel,
    /// A required file does not exist: the runtime library, a model's graph.
    MissingFile,
    /// A file exists but can't be used: broken JSON, or a graph without the required inputs.
    BadModel,
    /// A defect of this crate or of a library under it.
    Internal,
}

/// A setting that a hint refers to. Only the caller of this crate knows its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// The path of libonnxruntime.
    Runtime,
    /// The directory of rewritten graphs.
    Cache,
    /// Whether a text longer than the model's context is truncated.
    TruncateText,
}

/// The placeholder for the setting's name in a hint.
pub const SETTING: &str = "{setting}";

/// An error with the information that a user needs to act on it.
///
/// `message` is one lower-case line that names the value; `detail` has the figures; `hint` has the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// The setting whose name replaces [`SETTING`] in the hint.
    pub setting: Option<Setting>,
    /// The index of the faulty item in a batch, counted from 0.
    pub element: Option<usize>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with a message, which is one lower-case line that names the value.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None, setting: None, element: None }
    }

    /// Adds the detail: the figures, in one or more sentences.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds the hint: the remedy, in one or more sentences.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a hint that contains [`SETTING`] in place of the name of one of the caller's settings.
    #[must_use]
    pub fn hint_setting(mut self, setting: Setting, hint: impl Into<String>) -> Self {
        self.setting = Some(setting);
        self.hint(hint)
    }

    /// The hint with the caller's name for the setting.
    pub fn hint_for(&self, name: impl Fn(Setting) -> &'static str) -> Option<String> {
        let hint = self.hint.as_ref()?;
        Some(self.setting.map_or_else(|| hint.clone(), |setting| hint.replace(SETTING, name(setting))))
    }

    /// The error for a failed allocation of this many bytes.
    pub fn out_of_memory(bytes: usize) -> Self {
        Self::new(Kind::OutOfMemory, "out of memory").detail(format!("{bytes} bytes could not be allocated."))
    }

    /// The error for work that was stopped by [`crate::image::Limits::interrupted`].
    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "the work was interrupted")
    }

    /// Sets the index of the faulty item in a batch, counted from 0.
    #[must_use]
    pub fn element(mut self, index: usize) -> Self {
        self.element = Some(index);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Runs library code on an untrusted file. If it panics, the result is the error of `on_panic`.
pub fn without_panic<T>(on_panic: impl FnOnce() -> Error, f: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|_| Err(on_panic()))
}
