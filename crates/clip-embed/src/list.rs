//! The files of a run.

use std::path::{Path, PathBuf};

use clip::{Error, Kind};

/// A file, and the key that is written with its vector.
pub struct Item {
    pub key: String,
    pub path: PathBuf,
}

#[derive(Default)]
pub struct List {
    pub items: Vec<Item>,
    /// Entries that are not files: (path, reason).
    pub unusable: Vec<(String, Error)>,
    /// The number of files in a directory without an image extension.
    pub left_out: usize,
}

impl List {
    /// Adds a row of a list. Relative paths start at `root`.
    pub fn add(&mut self, path: String, key: String, root: &Path, place: impl Fn() -> String) {
        if path.is_empty() || key.is_empty() {
            let error = Error::new(Kind::InvalidInput, format!("{} has no path or no key", place()));
            self.unusable.push((if key.is_empty() { path } else { key }, error));
        } else {
            self.items.push(Item { key, path: root.join(path) });
        }
    }
}
