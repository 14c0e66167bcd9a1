//! One error type for the whole engine: a kind that the caller branches on, and three texts for people.

use std::fmt;

/// What went wrong, coarse enough to map to an error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The value itself is unusable: not an image, a truncated file, an empty text.
    InvalidInput,
    /// The value is well-formed but of a sort that is not handled: HEIC, a 12-bit JPEG.
    Unsupported,
    /// The value is over a configured limit: too many pixels or bytes.
    LimitExceeded,
    /// The system has no more memory to give, though the value is within its limits.
    OutOfMemory,
    /// The caller asked for the work to stop: a cancel, a timeout, a shutdown.
    Interrupted,
    /// No model of that name.
    UnknownModel,
    /// A required file does not exist: the runtime library, a model's graph.
    MissingFile,
    /// A file exists but cannot be used: broken JSON, a graph without the needed inputs.
    BadModel,
    /// A defect of this crate or of a library under it.
    Internal,
}

/// A setting of whoever calls this crate, which a hint names. Only the caller knows what it is called there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// The path of libonnxruntime.
    Runtime,
    /// The directory of rewritten graphs.
    Cache,
    /// Whether a text that is over the model's context is cut.
    TruncateText,
}

/// Stands for the setting's name in a hint.
pub const SETTING: &str = "{setting}";

/// An error with what a person needs to act on it.
///
/// `message` is one lower-case line that names the value; `detail` has the figures; `hint` the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// What [`SETTING`] in the hint stands for.
    pub setting: Option<Setting>,
    /// Which item of a batch is at fault, counted from 0.
    pub element: Option<usize>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None, setting: None, element: None }
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A hint that names a setting of the caller's, where [`SETTING`] stands.
    #[must_use]
    pub fn hint_setting(mut self, setting: Setting, hint: impl Into<String>) -> Self {
        self.setting = Some(setting);
        self.hint(hint)
    }

    /// The hint, with the caller's name for the setting in it.
    pub fn hint_for(&self, name: impl Fn(Setting) -> &'static str) -> Option<String> {
        let hint = self.hint.as_ref()?;
        Some(self.setting.map_or_else(|| hint.clone(), |setting| hint.replace(SETTING, name(setting))))
    }

    /// The error of an allocation that failed.
    pub fn out_of_memory(bytes: usize) -> Self {
        Self::new(Kind::OutOfMemory, "out of memory").detail(format!("{bytes} bytes could not be allocated."))
    }

    /// The error of work that [`crate::image::Limits::interrupted`] stopped.
    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "the work was interrupted")
    }

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

/// Runs library code on a file from outside: a panic in it becomes that file's error.
pub fn without_panic<T>(on_panic: impl FnOnce() -> Error, f: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|_| Err(on_panic()))
}
