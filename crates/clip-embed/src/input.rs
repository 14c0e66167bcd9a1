//! Which files to embed: a directory's, or those that a CSV names.

use std::io::Read;
use std::path::{Path, PathBuf};

use clip::{Error, Kind, Result};
use walkdir::WalkDir;

use crate::Arguments;

/// What names of image files end in: the formats that are decoded, and those that are refused by name.
const ENDINGS: [&str; 19] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "ico", "heic", "heif", "avif",
    "jxl", "jp2", "apng", "svg",
];

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

/// # Errors
/// Where the input is not there or has no such column; or lists nothing at all.
pub fn list(arguments: &Arguments) -> Result<List> {
    let input = &arguments.input;
    let list = if input == Path::new("-") {
        let root = arguments.root.clone().unwrap_or_default();
        table(std::io::stdin().lock(), "standard input", &root, arguments)?
    } else if input.is_dir() {
        directory(input, arguments.every_file)
    } else {
        let file = std::fs::File::open(input).map_err(|e| {
            Error::new(Kind::MissingFile, format!("\"{}\" cannot be read", input.display())).detail(format!("{e}."))
        })?;
        // What a shell puts for <(…), and /dev/stdin, lie in /dev; no list begins there.
        let piped = !file.metadata().is_ok_and(|about| about.is_file());
        let beside = || input.parent().filter(|_| !piped).unwrap_or(Path::new("")).to_owned();
        table(file, &input.display().to_string(), &arguments.root.clone().unwrap_or_else(beside), arguments)?
    };
    if list.items.is_empty() && list.unusable.is_empty() {
        if !input.is_dir() {
            return Err(Error::new(Kind::InvalidInput, format!("\"{}\" lists no file", input.display()))
                .detail("It has a header and nothing else."));
        }
        return Err(Error::new(Kind::InvalidInput, format!("there is no image file in \"{}\"", input.display()))
            .detail(format!("{} files have names that don't end as an image's.", list.left_out)));
    }
    Ok(list)
}

/// Files at any depth, in the order of their names; links are followed, hidden ones left out. Keys are paths from the
/// directory on.
fn directory(root: &Path, every_file: bool) -> List {
    let mut list = List::default();
    let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
    let wanted = |path: &Path| {
        let ending = path.extension().and_then(|e| e.to_str()).map(str::to_lowercase);
        every_file || ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
    };
    // The root itself has no path from there on.
    let key = |path: &Path| {
        let below = path.strip_prefix(root).ok().filter(|below| !below.as_os_str().is_empty());
        below.unwrap_or(path).to_string_lossy().into_owned()
    };
    let walk = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name())) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                let path = e.path().unwrap_or(root);
                let name = path.file_name().unwrap_or_default();
                // Links that lead nowhere come here, whatever they are named: Emacs locks a file by ".#cat.jpg".
                let gone = e.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) && e.depth() > 0;
                if e.depth() > 0 && hidden(name) {
                    continue;
                }
                if gone && !wanted(path) {
                    list.left_out += 1;
                    continue;
                }
                let why = e.io_error().map_or_else(|| e.to_string(), ToString::to_string);
                list.unusable
                    .push((key(path), Error::new(Kind::InvalidInput, "file cannot be read").detail(format!("{why}."))));
                continue;
            }
        };
        if !entry.file_type().is_file() {
            continue;
        }
        if !wanted(entry.path()) {
            list.left_out += 1;
            continue;
        }
        let path = entry.into_path();
        match path.strip_prefix(root).unwrap_or(&path).to_str() {
            Some(name) => list.items.push(Item { key: name.to_owned(), path }),
            None => list.unusable.push((
                key(&path),
                Error::new(Kind::InvalidInput, "file name is not UTF-8")
                    .detail("What COPY reads is UTF-8, and so is a key.")
                    .hint("Rename it."),
            )),
        }
    }
    list
}

/// The files that a CSV names. Relative paths begin at `root`.
fn table(reader: impl Read, name: &str, root: &Path, arguments: &Arguments) -> Result<List> {
    let unreadable = |e: csv::Error| {
        Error::new(Kind::InvalidInput, format!("\"{name}\" is not a CSV file")).detail(format!("The parser says: {e}."))
    };
    let mut reader = csv::Reader::from_reader(reader);
    let header = reader.headers().map_err(unreadable)?.clone();
    let column = |wanted: &str, option: &str| {
        header.iter().position(|column| column == wanted).ok_or_else(|| {
            let columns: Vec<String> = header.iter().map(|column| format!("\"{column}\"")).collect();
            Error::new(Kind::InvalidInput, format!("\"{name}\" has no column \"{wanted}\""))
                .detail(format!("Its first line has: {}.", columns.join(", ")))
                .hint(format!("Name one of them by {option}."))
        })
    };
    let path = column(&arguments.path_column, "--path-column")?;
    let key = arguments.key_column.as_ref().map_or(Ok(path), |key| column(key, "--key-column"))?;
    let mut list = List::default();
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(unreadable)? {
        // The reader has seen to it that there are as many fields as in the header.
        let (path, key) = (&record[path], &record[key]);
        if path.is_empty() || key.is_empty() {
            let line = record.position().map_or(0, csv::Position::line);
            let error = Error::new(Kind::InvalidInput, format!("line {line} has no path or no key"));
            list.unusable.push((if key.is_empty() { path } else { key }.to_owned(), error));
        } else {
            list.items.push(Item { key: key.to_owned(), path: root.join(path) });
        }
    }
    Ok(list)
}
