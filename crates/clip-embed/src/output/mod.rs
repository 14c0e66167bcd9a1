//! The output, for COPY or for readers of Parquet: a file that only grows, or standard output; and the list of
//! failures.

mod about;
pub mod failures;
mod format;
mod parquet;
mod row;
mod rows;

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clip::{Error, Kind, Result};
use serde_json::Value;

pub use about::{About, Finished};
pub use failures::Failures;
pub use format::{Format, Key};
pub use row::Vector;
pub use rows::Writer;

/// Suffixes of the files beside the output.
const ABOUT: &str = ".json";
const FAILURES: &str = ".failures.csv";
/// The rows that are not in the Parquet file yet. A Parquet file can't grow, because its footer describes its content.
const JOURNAL: &str = ".partial";
/// A Parquet file that is being written. It replaces the previous one when it is complete.
const NEW: &str = ".new";

pub struct Output {
    path: PathBuf,
    writer: Writer,
    form: Form,
    key: Key,
    /// The keys of the rows that earlier runs wrote.
    keys: HashSet<String>,
    written: usize,
    made_by: Value,
}

enum Form {
    /// CSV or binary: the file grows.
    Growing,
    /// Parquet: rows are appended to this journal, which is locked.
    Journal(File),
    Stream,
}

impl Output {
    /// Starts a file, or resumes one: complete rows remain, and an incomplete last row is removed.
    ///
    /// # Errors
    /// If another run is writing to the file, if it was written with options other than `made_by`, or if it is not an
    /// output of this program.
    pub fn open(path: &Path, format: Format, key: Key, made_by: &Value) -> Result<Self> {
        let output = |writer, form, keys| Self {
            path: path.to_owned(),
            writer,
            form,
            key,
            keys,
            written: 0,
            made_by: made_by.clone(),
        };
        if path == Path::new("-") {
            let writer = stream().and_then(|file| Writer::begin(file, format, key, &made_by.to_string()));
            return Ok(output(writer.map_err(|e| failed(path, &e))?, Form::Stream, HashSet::new()));
        }
        let mut keys = HashSet::new();
        let is_parquet = format == Format::Parquet;
        if is_parquet && path.exists() {
            regular(path)?;
        }
        // The rows of a Parquet output are collected in a journal in the binary format.
        let (growing, rows) =
            if is_parquet { (beside(path, JOURNAL), Format::Binary) } else { (path.to_owned(), format) };
        let file = open_alone(&growing, path)?;
        let length = |path: &Path| path.metadata().map_or(0, |about| about.len());
        if length(path) == 0 && length(&growing) == 0 {
            About { made_by: made_by.clone(), finished: None, merged: false }.write(path)?;
        } else {
            About::check(path, made_by)?;
        }
        if is_parquet && length(path) > 0 {
            let parquet = File::open(path).map_err(|e| failed(path, &e))?;
            parquet::read(parquet, path, key, false, &mut |key, _| {
                keys.insert(key.to_owned());
                Ok(())
            })?;
        }
        let writer = grow(&file, &growing, rows, key, &mut keys)?;
        Ok(output(writer, if is_parquet { Form::Journal(file) } else { Form::Growing }, keys))
    }

    /// Whether an earlier run wrote a row with this key ([`Key::canonical`]).
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// The number of rows, including those of earlier runs.
    pub fn count(&self) -> usize {
        self.keys.len() + self.written
    }

    /// Appends a row.
    ///
    /// # Errors
    /// If the row can't be written, because the disk is full, for example.
    pub fn write(&mut self, key: &str, vector: &[f32]) -> Result<()> {
        self.written += 1;
        self.writer.write(key, vector).map_err(|e| failed(&self.path, &e))
    }

    /// Completes a run that has processed all files, of which `missing` could not be embedded.
    pub fn finish(&mut self, missing: usize) -> Result<()> {
        self.writer.finish().map_err(|e| failed(&self.path, &e))?;
        match &self.form {
            Form::Stream => return Ok(()),
            Form::Growing => sync(&self.path)?,
            Form::Journal(_) if self.written == 0 && self.path.exists() && self.keys.len() == self.in_parquet()? => {
                remove(&beside(&self.path, JOURNAL))?;
            }
            Form::Journal(journal) => {
                // If a run was killed, its journal may contain rows that are also in the Parquet file.
                let (path, new) = (&self.path, beside(&self.path, NEW));
                let file = File::create(&new).map_err(|e| failed(&new, &e))?;
                let failed_new = |e: std::io::Error| failed(&new, &e);
                let about = self.made_by.to_string();
                let mut writer = Writer::begin(file, Format::Parquet, self.key, &about).map_err(failed_new)?;
                let mut there = HashSet::new();
                let mut copy = |key: &str, vector: Vector| {
                    let values = vector.floats().ok_or_else(|| row::foreign(path, no_vector(key)))?;
                    if there.insert(key.to_owned()) { writer.write(key, &values).map_err(failed_new) } else { Ok(()) }
                };
                if path.exists() {
                    let parquet = File::open(path).map_err(|e| failed(path, &e))?;
                    parquet::read(parquet, path, self.key, true, &mut copy)?;
                }
                let mut journal = journal;
                journal.rewind().map_err(|e| failed(path, &e))?;
                rows::read(journal, path, Format::Binary, self.key, &mut copy)?;
                writer.finish().map_err(failed_new)?;
                sync(&new)?;
                std::fs::rename(&new, path).map_err(|e| failed(path, &e))?;
                remove(&beside(path, JOURNAL))?;
            }
        }
        About { made_by: self.made_by.clone(), finished: Some(Finished { missing }), merged: false }.write(&self.path)
    }

    /// The number of rows in the Parquet file.
    fn in_parquet(&self) -> Result<usize> {
        let mut count = 0;
        let parquet = File::open(&self.path).map_err(|e| failed(&self.path, &e))?;
        parquet::read(parquet, &self.path, self.key, false, &mut |_, _| {
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }
}

fn no_vector(key: &str) -> String {
    format!("What belongs to the key {key:?} is not a vector.")
}

/// Standard output without the line buffer of the standard library.
pub fn stream() -> std::io::Result<File> {
    Ok(File::from(std::io::stdout().as_fd().try_clone_to_owned()?))
}

/// Continues a CSV or binary file after its last complete row, and adds the keys of its rows to `keys`.
fn grow(file: &File, path: &Path, format: Format, key: Key, keys: &mut HashSet<String>) -> Result<Writer> {
    let failed = |e: std::io::Error| failed(path, &e);
    let mut file = file.try_clone().map_err(failed)?;
    let whole = rows::read(&file, path, format, key, &mut |key, _| {
        keys.insert(key.to_owned());
        Ok(())
    })?;
    file.set_len(whole).map_err(failed)?;
    file.seek(SeekFrom::Start(whole)).map_err(failed)?;
    if whole == 0 {
        Writer::begin(file, format, key, "").map_err(failed)
    } else {
        Ok(Writer::Plain { file, format, key })
    }
}

fn regular(path: &Path) -> Result<()> {
    if path.metadata().map_err(|e| failed(path, &e))?.is_file() {
        return Ok(());
    }
    Err(Error::new(Kind::InvalidInput, format!("\"{}\" is not a regular file", path.display()))
        .detail("It is read again to go on after a run that was killed, which a pipe or a device can't be.")
        .hint("Give --output the path of a file, or - for standard output."))
}

/// Opens a file, which belongs to `output`, exclusively for this process.
pub fn open_alone(path: &Path, output: &Path) -> Result<File> {
    let failed = |e: std::io::Error| failed(path, &e);
    loop {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        regular(path)?;
        if let Err(e) = file.try_lock() {
            return Err(in_use(output, e).hint("Let several work by --jobs, or give each a file of its own."));
        }
        // The process that had locked it may have removed it since it was opened here.
        let identity = |about: &std::fs::Metadata| (about.dev(), about.ino());
        let mine = file.metadata().map_err(failed)?;
        if path.metadata().is_ok_and(|there| identity(&there) == identity(&mine)) {
            return Ok(file);
        }
    }
}

fn in_use(path: &Path, e: std::fs::TryLockError) -> Error {
    Error::new(Kind::InvalidInput, format!("\"{}\" is in use", path.display())).detail(match e {
        std::fs::TryLockError::WouldBlock => "Another clip-embed writes to it.".to_owned(),
        std::fs::TryLockError::Error(e) => format!("{e}."),
    })
}

/// Calls `take` for each complete row of an output, whether its run was completed or not.
///
/// # Errors
/// If a run is writing to it, or if it is not an output of this program.
pub fn read(path: &Path, format: Format, key: Key, take: &mut row::Take<'_>) -> Result<()> {
    let journal = beside(path, JOURNAL);
    let open = |path: &Path| -> Result<File> {
        let file = File::open(path).map_err(|e| {
            Error::new(Kind::MissingFile, format!("\"{}\" cannot be read", path.display())).detail(format!("{e}."))
        })?;
        file.try_lock_shared().map_err(|e| in_use(path, e).hint("Wait until it has ended."))?;
        Ok(file)
    };
    if format != Format::Parquet {
        return rows::read(&open(path)?, path, format, key, take).map(drop);
    }
    let mut there = HashSet::new();
    let mut once = |key: &str, vector: Vector| if there.insert(key.to_owned()) { take(key, vector) } else { Ok(()) };
    let rows = if journal.exists() { Some(open(&journal)?) } else { None };
    if path.exists() || rows.is_none() {
        parquet::read(open(path)?, path, key, true, &mut once)?;
    }
    rows.map_or(Ok(()), |rows| rows::read(&rows, &journal, Format::Binary, key, &mut once).map(drop))
}

pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| failed(path, &e))
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|e| failed(path, &e))
}

pub fn failed(path: &Path, e: &std::io::Error) -> Error {
    let name = if path == Path::new("-") { "standard output".to_owned() } else { format!("\"{}\"", path.display()) };
    Error::new(Kind::InvalidInput, format!("{name} cannot be written")).detail(format!("{e}."))
}

/// The files that a run may write for an output; the first one is the output itself.
pub fn files(output: &Path) -> [PathBuf; 5] {
    [output.to_owned(), beside(output, ABOUT), beside(output, FAILURES), beside(output, JOURNAL), beside(output, NEW)]
}

/// The path with a suffix appended to its name.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_by() -> Value {
        serde_json::json!({"model": "m"})
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("clip-embed-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// If a file is cut after any byte, resuming gives the same content.
    fn survives_any_cut(format: Format, key: Key, keys: [&str; 3]) {
        let folder = folder(&format!("{format}-{key}"));
        let path = folder.join("out");
        let vector = [0.25f32, -1e-7, 3.402_823_5e38];
        let fill = |path: &Path| {
            let mut output = Output::open(path, format, key, &made_by()).unwrap();
            for key in keys {
                if !output.has(key) {
                    output.write(key, &vector).unwrap();
                }
            }
            output.finish(0).unwrap();
            assert_eq!(output.count(), 3);
        };
        fill(&path);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            fill(&path);
            assert!(std::fs::read(&path).unwrap() == whole, "{format}, cut after {length} bytes");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_that_is_cut_goes_on() {
        let odd = ["a \"quoted\", name\nof two lines", "\\.", "größe/é.jpg"];
        survives_any_cut(Format::Csv, Key::Text, odd);
        survives_any_cut(Format::Binary, Key::Text, odd);
        survives_any_cut(Format::Csv, Key::Bigint, ["1", "-2", "9223372036854775807"]);
        survives_any_cut(Format::Binary, Key::Bigint, ["1", "-2", "9223372036854775807"]);
    }

    #[test]
    fn what_is_not_its_own_stays_as_it_is() {
        let folder = folder("foreign");
        let path = folder.join("out");
        for content in ["some notes\n", "\"key\",\"embedding\"\n\"a\",\"[1]\"\nnotes, of mine\n\"b\",\"[1]\"\n"] {
            std::fs::write(&path, content).unwrap();
            let error = |made_by: &Value| Output::open(&path, Format::Csv, Key::Text, made_by).err().unwrap().message;
            assert!(error(&made_by()).ends_with("is there already"));
            std::fs::write(beside(&path, ".json"), made_by().to_string()).unwrap();
            assert!(error(&serde_json::json!({"model": "other"})).ends_with("was made otherwise"));
            assert!(error(&made_by()).ends_with("is not what clip-embed writes"), "{content}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            std::fs::remove_file(beside(&path, ".json")).unwrap();
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn one_run_at_a_time() {
        let folder = folder("lock");
        let path = folder.join("out");
        let first = Output::open(&path, Format::Csv, Key::Text, &made_by()).unwrap();
        let error = Output::open(&path, Format::Csv, Key::Text, &made_by()).err().unwrap();
        assert!(error.message.ends_with("is in use"), "{error}");
        drop(first);
        assert!(Output::open(&path, Format::Csv, Key::Text, &made_by()).is_ok());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
