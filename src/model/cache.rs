//! The cache directory, which is used only if no other user can write to it.

use std::cell::RefCell;
use std::path::PathBuf;

use clip::model::cache_directory;

use crate::guc;
use crate::pg::error::warn;

thread_local! {
    /// The directory for which this connection has raised the warning.
    static TOLD: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// The directory of `clip_search.cache_path`. None if the setting is empty, or if the directory is refused, which
/// raises a WARNING once per connection. Call it while nothing is borrowed: a WARNING can run a hook.
pub fn directory() -> Option<PathBuf> {
    let path = guc::cache()?;
    match cache_directory::check(&path) {
        Ok(()) => Some(path),
        Err(error) => {
            if TOLD.replace(Some(path.clone())) != Some(path) {
                warn(error);
            }
            None
        }
    }
}
