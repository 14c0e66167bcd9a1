//! The files that a run embeds.

use std::path::{Path, PathBuf};

use clip::{Error, Kind};

/// A file, and what is written beside its vector.
pub struct Item {
    pub key: String,
    pub path: PathBuf,
}

#[derive(Default)]
pub struct List {
    pub items: Vec<Item>,
    /// What is no file that could be tried: (path, why).
    pub unusable: Vec<(String, Error)>,
    /// Files of a directory whose names don't look like an image's.
    pub left_out: usize,
}

impl List {
    /// A row of a list. Relative paths begin at `root`.
    pub fn add(&mut self, path: String, key: String, root: &Path, place: impl Fn() -> String) {
        if path.is_empty() || key.is_empty() {
            let error = Error::new(Kind::InvalidInput, format!("{} has no path or no key", place()));
            self.unusable.push((if key.is_empty() { path } else { key }, error));
        } else {
            self.items.push(Item { key, path: root.join(path) });
        }
    }
}
