//! The files to embed in a run.

use std::path::{Path, PathBuf};

use clip::{Error, Kind};

/// Options for reading a list or a directory.
#[derive(clap::Args)]
pub struct Columns {
    /// Column of the list with the paths [default: path].
    #[arg(long, value_name = "NAME")]
    pub path_column: Option<String>,
    /// Column of the list with the keys, written beside the vectors [default: the path column].
    #[arg(long, value_name = "NAME")]
    pub key_column: Option<String>,
    /// Directory that relative paths in the list start from [default: the list's; for a pipe, the current one].
    #[arg(long, value_name = "DIRECTORY")]
    pub root: Option<PathBuf>,
    /// In a directory, take every file, regardless of its extension.
    #[arg(long)]
    pub every_file: bool,
}

impl Columns {
    pub fn path_column(&self) -> &str {
        self.path_column.as_deref().unwrap_or("path")
    }
}

/// Whether a path is an address (https://, http:// or s3://) instead of a path in the file system.
pub fn is_remote(path: &Path) -> bool {
    path.to_str().is_some_and(|path| ["https://", "http://", "s3://"].iter().any(|scheme| path.starts_with(scheme)))
}

/// A file to embed, and the key that is written with its vector.
pub struct Item {
    pub key: String,
    pub path: PathBuf,
}

#[derive(Default)]
pub struct List {
    pub items: Vec<Item>,
    /// Entries that can't be embedded: (path, reason).
    pub unusable: Vec<(String, Error)>,
    /// The number of files in a directory that were skipped because they have no image extension.
    pub left_out: usize,
}

impl List {
    /// Adds a row of a list. Relative paths start at `root`.
    pub fn add(&mut self, path: String, key: String, root: &Path, place: impl Fn() -> String) {
        if path.is_empty() || key.is_empty() {
            let error = Error::new(Kind::InvalidInput, format!("{} has no path or no key", place()));
            self.unusable.push((if key.is_empty() { path } else { key }, error));
        } else {
            let path = PathBuf::from(path);
            self.items.push(Item { key, path: if is_remote(&path) { path } else { root.join(path) } });
        }
    }
}
