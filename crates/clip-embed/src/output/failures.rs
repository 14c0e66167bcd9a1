//! The list of failures.

use std::fs::File;
use std::path::{Path, PathBuf};

use clip::{Error, Kind, Result};

use super::{FAILURES, beside, failed};
use crate::progress::tell;

/// The files of this run that could not be embedded, with the reasons. The list's file exists only if there are any.
pub struct Failures {
    /// None if the output is standard output: failures are then lines of standard error.
    path: Option<PathBuf>,
    writer: Option<csv::Writer<File>>,
}

impl Failures {
    pub fn create(output: &Path) -> Result<Self> {
        if output == Path::new("-") {
            return Ok(Self { path: None, writer: None });
        }
        let path = beside(output, FAILURES);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(&path, &e)),
            _ => Ok(Self { path: Some(path), writer: None }),
        }
    }

    pub fn add(&mut self, key: &str, error: &Error) -> Result<()> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let Some(path) = &self.path else {
            let more =
                [&error.detail, &error.hint].map(|text| text.as_ref().map_or(String::new(), |t| format!(" {t}")));
            tell(format_args!("clip-embed: \"{key}\" failed: {}.{}{}", error.message, more[0], more[1]));
            return Ok(());
        };
        let failed = |e: csv::Error| super::failed(path, &e.into());
        if self.writer.is_none() {
            let mut writer = csv::Writer::from_path(path).map_err(failed)?;
            writer.write_record(["key", "message", "detail", "hint"]).map_err(failed)?;
            self.writer = Some(writer);
        }
        let writer = self.writer.as_mut().expect("set above");
        writer.write_record([key, &error.message, &text(&error.detail), &text(&error.hint)]).map_err(failed)?;
        writer.flush().map_err(|e| super::failed(path, &e))
    }

    pub fn finish(&mut self) -> Result<()> {
        let (Some(writer), Some(path)) = (&mut self.writer, &self.path) else { return Ok(()) };
        writer.flush().map_err(|e| failed(path, &e))
    }

    /// Where the failures are listed, for a message.
    pub fn place(&self) -> String {
        self.path.as_ref().map_or_else(|| "the lines above".to_owned(), |path| format!("\"{}\"", path.display()))
    }
}

/// Reads the failures that an earlier run listed beside its output: (key, error).
pub fn read(output: &Path) -> Result<Vec<(String, Error)>> {
    let path = beside(output, FAILURES);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let unreadable = |e: csv::Error| {
        Error::new(Kind::InvalidInput, format!("\"{}\" cannot be read", path.display())).detail(format!("{e}."))
    };
    let mut found = Vec::new();
    for record in csv::Reader::from_path(&path).map_err(unreadable)?.records() {
        let record = record.map_err(unreadable)?;
        let field = |at: usize| record.get(at).unwrap_or_default().to_owned();
        let mut error = Error::new(Kind::InvalidInput, field(1));
        error.detail = Some(field(2)).filter(|text| !text.is_empty());
        error.hint = Some(field(3)).filter(|text| !text.is_empty());
        found.push((field(0), error));
    }
    Ok(found)
}
