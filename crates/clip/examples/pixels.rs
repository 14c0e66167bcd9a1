//! Compares decoded pixels with a reference: each file of a directory with the PNG of the same name in another
//! directory.
//!
//! ```text
//! pixels FILES REFERENCES
//! → cat-heic-q40-420 0.0012 1
//! ```
//! Prints the mean and the largest difference, on a scale of 255; for files that can't be compared, the reason.

use std::path::{Path, PathBuf};

use clip::image::{Limits, decode};

fn main() {
    let folders: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [files, references] = folders.as_slice() else { panic!("pixels FILES REFERENCES") };
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(files).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_stem().expect("a file").to_string_lossy().into_owned();
        println!("{name} {}", difference(&path, &references.join(format!("{name}.png"))));
    }
}

fn difference(file: &Path, reference: &Path) -> String {
    let read = |path| {
        let bytes = std::fs::read(path).map_err(|error| format!("can't be read: {error}"))?;
        decode(&bytes, &Limits::default())
            .map_err(|error| format!("is refused: {error} {}", error.detail.as_deref().unwrap_or_default()))
    };
    let (ours, theirs) = match (read(file), read(reference)) {
        (Ok(ours), Ok(theirs)) => (ours.rgb, theirs.rgb),
        (Err(error), _) => return error,
        (_, Err(error)) => return format!("has a reference that {error}"),
    };
    if ours.dimensions() != theirs.dimensions() {
        return format!("is {:?}, not {:?}", ours.dimensions(), theirs.dimensions());
    }
    let differences = || ours.iter().zip(theirs.iter()).map(|(a, b)| u64::from(a.abs_diff(*b)));
    let mean = differences().sum::<u64>() as f64 / ours.len() as f64;
    format!("{mean:.4} {}", differences().max().unwrap_or(0))
}
