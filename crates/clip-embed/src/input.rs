//! Finds the files to embed: those in a directory, or those in a list.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clip::{Error, Kind, Result};
use walkdir::WalkDir;

use crate::list::{Columns, Item, List, is_remote};
use crate::{columns, progress, remote};

/// Extensions of image files: the supported formats, and formats of cameras and the web that are refused by name. Other
/// files in a folder of photos, such as PSD files, are not photos.
const ENDINGS: [&str; 28] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "ico", "heic", "heif", "avif",
    "jxl", "jp2", "apng", "svg", "dng", "cr2", "cr3", "nef", "arw", "raf", "orf", "rw2", "pef",
];

/// The files in a list or directory. `own` are this program's outputs, which are skipped in a directory.
///
/// # Errors
/// If the input does not exist, lacks a column, or lists no file.
pub fn list(input: &Path, arguments: &Columns, remote: &remote::Options, own: &[PathBuf]) -> Result<List> {
    let of_lists = || idle("--every-file", arguments.every_file, "a list", "All files that it names are taken");
    let list = if input == Path::new("-") {
        of_lists()?;
        let root = arguments.root.clone().unwrap_or_default();
        let (first, stdin) = begin(std::io::stdin().lock(), input)?;
        not_parquet(&first, "standard input")?;
        table(stdin, "standard input", &root, arguments)?
    } else if input.is_dir() || is_remote(input) {
        for (option, given) in [
            ("--path-column", arguments.path_column.is_some()),
            ("--key-column", arguments.key_column.is_some()),
            ("--root", arguments.root.is_some()),
        ] {
            idle(option, given, "a directory", "The paths of its files, from there on, are the keys")?;
        }
        match input.to_str().filter(|_| is_remote(input)) {
            Some(url) => remote::list(url, remote, |name| wanted(Path::new(name), arguments.every_file))?,
            None => directory(input, arguments.every_file, own)?,
        }
    } else {
        let file = std::fs::File::open(input).map_err(|e| {
            Error::new(Kind::MissingFile, format!("\"{}\" cannot be read", input.display())).detail(format!("{e}."))
        })?;
        of_lists()?;
        // A shell's <(…) and /dev/stdin are in /dev, so relative paths can't start from their directory.
        let piped = !file.metadata().is_ok_and(|about| about.is_file());
        let beside = || input.parent().filter(|_| !piped).unwrap_or(Path::new("")).to_owned();
        let (name, root) = (input.display().to_string(), arguments.root.clone().unwrap_or_else(beside));
        let (first, reader) = begin(&file, input)?;
        if piped {
            not_parquet(&first, &name)?;
        }
        // Parquet is recognised by content, because a file's name may be wrong.
        if is_parquet(&first) {
            drop(reader);
            columns::list(file, &name, &root, arguments)?
        } else {
            table(reader, &name, &root, arguments)?
        }
    };
    if list.items.is_empty() && list.unusable.is_empty() {
        if !input.is_dir() && !is_remote(input) {
            return Err(Error::new(Kind::InvalidInput, format!("\"{}\" lists no file", input.display()))
                .detail("It has column names and no rows."));
        }
        return Err(Error::new(Kind::InvalidInput, format!("there is no image file in \"{}\"", input.display()))
            .detail(format!("Left out by the end of their names: {}.", progress::files(list.left_out as u64)))
            .hint("Take them all by --every-file, or give the path of a list, one at a time."));
    }
    Ok(list)
}

/// Refuses an option that has no effect on this kind of input: giving it is a mistake.
fn idle(option: &str, given: bool, input: &str, why: &str) -> Result<()> {
    if !given {
        return Ok(());
    }
    Err(Error::new(Kind::InvalidInput, format!("{option} has no effect on {input}"))
        .detail(format!("{why}."))
        .hint("Leave it out, or give another input."))
}

/// Whether a file in a directory is embedded.
fn wanted(path: &Path, every_file: bool) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).map(str::to_lowercase);
    every_file || ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

/// The files in a directory at any depth, sorted by name. Links are followed, and hidden files are skipped. The key of
/// a file is its path relative to the directory.
fn directory(root: &Path, every_file: bool, own: &[PathBuf]) -> Result<List> {
    let mut list = List::default();
    // The outputs of an earlier run may be in the directory, perhaps under another name through a link.
    let identity = |about: std::fs::Metadata| (about.dev(), about.ino());
    let own: Vec<_> = own.iter().filter_map(|path| path.metadata().ok()).map(identity).collect();
    let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
    // The relative path of the root itself is empty.
    let key = |path: &Path| {
        let below = path.strip_prefix(root).ok().filter(|below| !below.as_os_str().is_empty());
        below.unwrap_or(path).to_string_lossy().into_owned()
    };
    let walk = WalkDir::new(root).follow_links(true).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name())) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                if e.depth() == 0 {
                    let why = e.io_error().map_or_else(|| e.to_string(), ToString::to_string);
                    return Err(Error::new(Kind::MissingFile, format!("\"{}\" cannot be read", root.display()))
                        .detail(format!("{why}.")));
                }
                let path = e.path().unwrap_or(root);
                let name = path.file_name().unwrap_or_default();
                // Broken links are reported here regardless of their name: Emacs, for example, locks a file with the
                // link ".#cat.jpg".
                let gone = e.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound);
                if hidden(name) {
                    continue;
                }
                if gone && !wanted(path, every_file) {
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
        if !wanted(entry.path(), every_file) {
            list.left_out += 1;
            continue;
        }
        if !own.is_empty() && entry.metadata().is_ok_and(|about| own.contains(&identity(about))) {
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
    Ok(list)
}

/// Reads the first four bytes; also returns a reader of the whole input.
fn begin<R: Read>(mut reader: R, input: &Path) -> Result<(Vec<u8>, impl Read + use<R>)> {
    let mut first = Vec::new();
    reader.by_ref().take(4).read_to_end(&mut first).map_err(|e| {
        Error::new(Kind::InvalidInput, format!("\"{}\" cannot be read", input.display())).detail(format!("{e}."))
    })?;
    Ok((first.clone(), std::io::Cursor::new(first).chain(reader)))
}

fn is_parquet(first: &[u8]) -> bool {
    first == columns::MAGIC || first == columns::ENCRYPTED
}

fn not_parquet(first: &[u8], name: &str) -> Result<()> {
    if is_parquet(first) {
        return Err(Error::new(Kind::InvalidInput, format!("\"{name}\" is Parquet that comes by a pipe"))
            .detail("What it has where is said at its end, so that it can't be read from front to back.")
            .hint("Give the path of a file, or pipe CSV."));
    }
    Ok(())
}

/// Reads the list of files in a CSV file. Relative paths start at `root`.
fn table(reader: impl Read, name: &str, root: &Path, arguments: &Columns) -> Result<List> {
    let unreadable = |e: csv::Error| {
        let hint = match e.kind() {
            csv::ErrorKind::UnequalLengths { .. } => "Put values that have a comma between quotes.",
            _ => "A list is CSV in UTF-8 with a header, or Parquet.",
        };
        Error::new(Kind::InvalidInput, format!("\"{name}\" is not a CSV file"))
            .detail(format!("The parser says: {e}."))
            .hint(hint)
    };
    let mut reader = csv::Reader::from_reader(reader);
    let header = reader.headers().map_err(unreadable)?.clone();
    if header.is_empty() {
        return Err(Error::new(Kind::InvalidInput, format!("\"{name}\" is empty"))
            .hint("A list is CSV in UTF-8 with a header, or Parquet."));
    }
    let column = |wanted: &str, option: &str| {
        header.iter().position(|column| column == wanted).ok_or_else(|| {
            // The names are escaped, because they may contain anything and are printed to a terminal.
            let columns: Vec<String> = header.iter().map(|column| format!("{column:?}")).collect();
            let other = header.iter().next().filter(|_| header.len() == 1).and_then(|line| line.find([';', '\t', '|']));
            Error::new(Kind::InvalidInput, format!("\"{name}\" has no column \"{wanted}\""))
                .detail(format!("Its first line has: {}.", columns.join(", ")))
                .hint(match other.map(|at| header[0].as_bytes()[at] as char) {
                    Some(separator) => format!("Separate values by commas, not by {separator:?}."),
                    None => format!("Name one of them by {option}."),
                })
        })
    };
    let path = column(arguments.path_column(), "--path-column")?;
    let key = arguments.key_column.as_ref().map_or(Ok(path), |key| column(key, "--key-column"))?;
    let mut list = List::default();
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(unreadable)? {
        let line = || format!("line {}", record.position().map_or(0, csv::Position::line));
        // The reader has already checked that each row has as many fields as the header.
        list.add(record[path].to_owned(), record[key].to_owned(), root, line);
    }
    Ok(list)
}
