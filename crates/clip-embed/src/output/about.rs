//! FILE.json: the options with which an output was made, and whether its run was completed.

use std::path::Path;

use clip::{Error, Kind, Result};
use serde_json::Value;

use super::{ABOUT, beside, failed};

/// A run that has processed all its files.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finished {
    /// The number of files that could not be embedded.
    pub missing: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct About {
    /// The options that must be equal for two runs that write to the same output.
    pub made_by: Value,
    pub finished: Option<Finished>,
    /// Whether `clip-embed merge` wrote it.
    pub merged: bool,
}

impl About {
    /// Reads the file beside an output. None if it is missing or was not written by this program.
    pub fn read(output: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(beside(output, ABOUT)).ok()?;
        let mut made_by: Value = serde_json::from_str(&text).ok()?;
        let fields = made_by.as_object_mut()?;
        let finished = fields.remove("missing").and_then(|missing| missing.as_u64());
        let merged = fields.remove("merged").is_some_and(|merged| merged == true);
        Some(Self { made_by, finished: finished.map(|missing| Finished { missing: missing as usize }), merged })
    }

    /// Writes the file in one step, because a kill in the middle would leave an output that can't be resumed.
    pub fn write(&self, output: &Path) -> Result<()> {
        let mut value = self.made_by.clone();
        if let Some(Finished { missing }) = self.finished {
            value["missing"] = missing.into();
        }
        if self.merged {
            value["merged"] = true.into();
        }
        let (path, new) = (beside(output, ABOUT), beside(output, ".json.new"));
        std::fs::write(&new, format!("{value:#}\n")).map_err(|e| failed(&path, &e))?;
        std::fs::rename(&new, &path).map_err(|e| failed(&path, &e))
    }

    /// Checks that a run with these options may resume an existing output, and marks the output as unfinished.
    pub fn check(output: &Path, made_by: &Value) -> Result<()> {
        match Self::read(output) {
            Some(known) if known.made_by == *made_by => {
                if known.finished.is_none() && !known.merged {
                    return Ok(());
                }
                Self { finished: None, merged: false, ..known }.write(output)
            }
            Some(Self { made_by: known, .. }) => {
                Err(Error::new(Kind::InvalidInput, format!("\"{}\" was made otherwise", output.display()))
                    .detail(format!("It was made by {known}; this is {made_by}."))
                    .hint("Give the same options, or another --output."))
            }
            None => Err(Error::new(Kind::InvalidInput, format!("\"{}\" is there already", output.display()))
                .detail(format!(
                    "It can't be gone on with, since \"{}\" does not say how it was made.",
                    beside(output, ABOUT).display()
                ))
                .hint("Give another --output.")),
        }
    }
}
