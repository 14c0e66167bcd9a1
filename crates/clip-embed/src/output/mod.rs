//! The output for COPY, a file that only grows, and the list of failures.

use std::collections::HashSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use clip::{Error, Kind, Result};
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Csv,
    Binary,
}

/// The type of the key's column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Key {
    Text,
    Bigint,
}

impl Format {
    fn header(self) -> &'static [u8] {
        match self {
            Self::Csv => CSV_HEADER.as_bytes(),
            Self::Binary => &BINARY_HEADER,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Csv { "csv" } else { "binary" })
    }
}

impl Key {
    /// The key as the table returns it: "007" is 7 in a bigint column.
    ///
    /// # Errors
    /// If it is not a value of the column's type, or would make COPY reject the whole file.
    pub fn canonical(self, key: &str, format: Format) -> Result<String> {
        let unfit = |why: &str| Error::new(Kind::InvalidInput, format!("key {key:?} cannot be loaded")).detail(why);
        match self {
            Self::Text if key.contains('\0') => {
                Err(unfit("No text of PostgreSQL has a NUL character.").hint("Take another --key-column."))
            }
            // Even inside quotes: psql searches for it line by line.
            Self::Text if format == Format::Csv && ["\n\\.\n", "\n\\.\r\n"].iter().any(|line| key.contains(line)) => {
                Err(unfit("Up to PostgreSQL 17 psql takes its line \"\\.\" for the end of the file.")
                    .hint("Take --format binary, or rename the file."))
            }
            Self::Text => Ok(key.to_owned()),
            Self::Bigint => bigint(key).map(|number| number.to_string()),
        }
    }
}

fn bigint(key: &str) -> Result<i64> {
    key.parse().map_err(|_| {
        Error::new(Kind::InvalidInput, format!("key \"{key}\" is not a bigint"))
            .hint("Take another --key-column, or --key-type text.")
    })
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Text { "text" } else { "bigint" })
    }
}

/// Signature, flags and extension length, as in PostgreSQL's documentation of COPY.
const BINARY_HEADER: [u8; 19] = *b"PGCOPY\n\xFF\r\n\0\0\0\0\0\0\0\0\0";
/// The field count that ends the file.
const BINARY_END: [u8; 2] = [0xFF, 0xFF];
/// Suffixes of the two files beside the output.
const ABOUT: &str = ".json";
const FAILURES: &str = ".failures.csv";
const CSV_HEADER: &str = "\"key\",\"embedding\"\n";

pub struct Output {
    path: PathBuf,
    file: File,
    format: Format,
    key: Key,
    /// Keys of the rows in the file.
    keys: HashSet<String>,
    written: usize,
}

impl Output {
    /// Starts a file, or resumes one: complete rows stay, an incomplete last row is removed.
    ///
    /// # Errors
    /// If another run is writing to it, if it was written with options other than `made_by`, or if it is not an output
    /// of this program.
    pub fn open(path: &Path, format: Format, key: Key, made_by: &Value) -> Result<Self> {
        let failed = |e: std::io::Error| failed(path, &e);
        if path == Path::new("-") {
            return Err(Error::new(Kind::InvalidInput, "the output cannot be standard output")
                .detail("It is read again to go on after a run that was killed.")
                .hint("Give --output the path of a file; one that is named so is \"./-\"."));
        }
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(Error::new(Kind::InvalidInput, format!("\"{}\" is not a regular file", path.display()))
                .detail("It is read again to go on after a run that was killed, which a pipe or a device can't be.")
                .hint("Give --output the path of a file."));
        }
        if let Err(e) = file.try_lock() {
            return Err(Error::new(Kind::InvalidInput, format!("\"{}\" is in use", path.display()))
                .detail(match e {
                    std::fs::TryLockError::WouldBlock => "Another clip-embed writes to it.".to_owned(),
                    std::fs::TryLockError::Error(e) => format!("{e}."),
                })
                .hint("Let several work by --jobs, or give each a file of its own."));
        }
        let mut output = Self {
            path: path.to_owned(),
            file: file.try_clone().map_err(failed)?,
            format,
            key,
            keys: HashSet::new(),
            written: 0,
        };
        let about = beside(path, ABOUT);
        let length = file.metadata().map_err(failed)?.len();
        if length == 0 {
            let text = format!("{made_by:#}\n");
            std::fs::write(&about, text).map_err(|e| self::failed(&about, &e))?;
            return output.begin().map(|()| output);
        }
        let known = std::fs::read_to_string(&about).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
        match known {
            Some(known) if known == *made_by => {}
            Some(known) => {
                return Err(Error::new(Kind::InvalidInput, format!("\"{}\" was made otherwise", path.display()))
                    .detail(format!("It was made by {known}; this is {made_by}."))
                    .hint("Give the same options, or another --output."));
            }
            None => {
                return Err(Error::new(Kind::InvalidInput, format!("\"{}\" is there already", path.display()))
                    .detail(format!(
                        "It can't be gone on with, since \"{}\" does not say how it was made.",
                        about.display()
                    ))
                    .hint("Give another --output."));
            }
        }
        file.rewind().map_err(failed)?;
        let whole = match format {
            Format::Csv => output.read_csv(&file)?,
            Format::Binary => output.read_binary(&file)?,
        };
        if whole == 0 {
            file.set_len(0).map_err(failed)?;
            return output.begin().map(|()| output);
        }
        file.set_len(whole).map_err(failed)?;
        output.file.seek(SeekFrom::Start(whole)).map_err(failed)?;
        Ok(output)
    }

    fn begin(&mut self) -> Result<()> {
        self.file.rewind().map_err(|e| failed(&self.path, &e))?;
        self.file.write_all(self.format.header()).map_err(|e| failed(&self.path, &e))
    }

    fn foreign(&self, why: String) -> Error {
        Error::new(Kind::InvalidInput, format!("\"{}\" is not what clip-embed writes", self.path.display()))
            .detail(why)
            .hint("Give another --output.")
    }

    /// Whether a resumed file has its header; false if the earlier run was killed before it was written.
    fn has_header(&self, reader: &mut impl Read) -> Result<bool> {
        let header = self.format.header();
        let mut found = Vec::new();
        reader.take(header.len() as u64).read_to_end(&mut found).map_err(|e| failed(&self.path, &e))?;
        if header.starts_with(&found) {
            Ok(found.len() == header.len())
        } else {
            Err(self.foreign(format!("It does not begin as its {} files do.", self.format)))
        }
    }

    /// Reads the keys of a CSV; returns the end of its last complete row.
    fn read_csv(&mut self, file: &File) -> Result<u64> {
        let length = file.metadata().map_err(|e| failed(&self.path, &e))?.len();
        let mut reader = BufReader::new(file);
        if !self.has_header(&mut reader)? {
            return Ok(0);
        }
        let header = CSV_HEADER.len() as u64;
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(reader);
        let mut record = csv::ByteRecord::new();
        let mut whole = header;
        while reader.read_byte_record(&mut record).map_err(|e| self.foreign(format!("The parser says: {e}.")))? {
            let end = header + reader.position().byte();
            let key = record.get(0).and_then(|key| std::str::from_utf8(key).ok());
            let vector = record.get(1).is_some_and(|v| v.starts_with(b"[") && v.ends_with(b"]"));
            // Only the last row can lack its newline, if a run was killed while it wrote.
            let last = end >= length;
            let ended = !last || ends_with_newline(file, length).map_err(|e| failed(&self.path, &e))?;
            match key {
                Some(key) if vector && record.len() == 2 && ended => {
                    self.keys.insert(key.to_owned());
                    whole = end;
                }
                _ if last => break,
                _ => return Err(self.foreign(format!("What begins at byte {whole} is not a key and a vector."))),
            }
        }
        Ok(whole)
    }

    /// Reads the keys of a binary file; returns the end of its last complete row, without the trailer.
    fn read_binary(&mut self, file: &File) -> Result<u64> {
        let length = file.metadata().map_err(|e| failed(&self.path, &e))?.len();
        let mut reader = BufReader::new(file);
        if !self.has_header(&mut reader)? {
            return Ok(0);
        }
        let mut whole = BINARY_HEADER.len() as u64;
        // Stops at the first incomplete row.
        while let Some((key, bytes)) = self.read_row(&mut reader, length - whole)? {
            self.keys.insert(key);
            whole += bytes;
        }
        Ok(whole)
    }

    fn read_row(&self, reader: &mut impl Read, left: u64) -> Result<Option<(String, u64)>> {
        let mut row = || -> std::io::Result<Option<(Vec<u8>, u64)>> {
            let mut count = [0; 2];
            reader.read_exact(&mut count)?;
            if count != 2i16.to_be_bytes() {
                return Ok(None);
            }
            let mut key = Vec::new();
            let mut bytes = 2;
            for field in 0..2 {
                let mut size = [0; 4];
                reader.read_exact(&mut size)?;
                let size = u64::try_from(i32::from_be_bytes(size)).unwrap_or(u64::MAX);
                // A damaged length must not become an allocation.
                if size > left {
                    return Ok(None);
                }
                let mut content = vec![0; size as usize];
                reader.read_exact(&mut content)?;
                if field == 0 {
                    key = content;
                }
                bytes += 4 + size;
            }
            Ok(Some((key, bytes)))
        };
        let (key, bytes) = match row() {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(failed(&self.path, &e)),
        };
        let key = match self.key {
            Key::Text => String::from_utf8(key).ok(),
            Key::Bigint => key.try_into().ok().map(|key| i64::from_be_bytes(key).to_string()),
        };
        let key = key.ok_or_else(|| self.foreign(format!("A key is not of type {}.", self.key)))?;
        Ok(Some((key, bytes)))
    }

    /// Whether a row with this key ([`Key::canonical`]) exists.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.keys.len() + self.written
    }

    /// Appends a row in one write, so that a killed run leaves only complete rows.
    ///
    /// # Errors
    /// If the disk is full, for example.
    pub fn write(&mut self, key: &str, vector: &[f32]) -> Result<()> {
        let row = match (self.format, self.key) {
            (Format::Csv, _) => csv_row(key, vector),
            (Format::Binary, Key::Text) => binary_row(key.as_bytes(), vector),
            (Format::Binary, Key::Bigint) => binary_row(&bigint(key)?.to_be_bytes(), vector),
        };
        self.written += 1;
        self.file.write_all(&row).map_err(|e| failed(&self.path, &e))
    }

    /// Writes the trailer of the format and flushes the file to disk.
    pub fn finish(&mut self) -> Result<()> {
        let end: &[u8] = if self.format == Format::Binary { &BINARY_END } else { &[] };
        self.file.write_all(end).and_then(|()| self.file.sync_all()).map_err(|e| failed(&self.path, &e))
    }
}

/// Both fields are quoted: COPY reads an empty unquoted field as NULL, and PostgreSQL up to 17 reads a row `\.` as the
/// end. [`Key::canonical`] refuses values that quotes can't protect.
fn csv_row(key: &str, vector: &[f32]) -> Vec<u8> {
    // The shortest decimals that parse to the same float, never with an exponent.
    let values: Vec<String> = vector.iter().map(f32::to_string).collect();
    format!("\"{}\",\"[{}]\"\n", key.replace('"', "\"\""), values.join(",")).into_bytes()
}

/// pgvector's binary format: dimensions and zero, 16 bits each, then float4 values, all big-endian.
fn binary_row(key: &[u8], vector: &[f32]) -> Vec<u8> {
    let mut row = Vec::with_capacity(14 + key.len() + 4 * vector.len());
    row.extend(2i16.to_be_bytes());
    row.extend((key.len() as i32).to_be_bytes());
    row.extend(key);
    row.extend((4 + 4 * vector.len() as i32).to_be_bytes());
    row.extend((vector.len() as i16).to_be_bytes());
    row.extend(0i16.to_be_bytes());
    vector.iter().for_each(|value| row.extend(value.to_be_bytes()));
    row
}

fn ends_with_newline(file: &File, length: u64) -> std::io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut last = [0];
    file.read_exact_at(&mut last, length - 1)?;
    Ok(last == *b"\n")
}

fn failed(path: &Path, e: &std::io::Error) -> Error {
    Error::new(Kind::InvalidInput, format!("\"{}\" cannot be written", path.display())).detail(format!("{e}."))
}

/// The two files of a run.
pub fn files(output: &Path) -> [PathBuf; 3] {
    [output.to_owned(), beside(output, ABOUT), beside(output, FAILURES)]
}

/// The path with a suffix.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Files of this run that could not be embedded, with the reason. The file exists only if there are any.
pub struct Failures {
    path: PathBuf,
    writer: Option<csv::Writer<File>>,
}

impl Failures {
    pub fn create(output: &Path) -> Result<Self> {
        let path = beside(output, FAILURES);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(&path, &e)),
            _ => Ok(Self { path, writer: None }),
        }
    }

    pub fn add(&mut self, key: &str, error: &Error) -> Result<()> {
        let path = &self.path;
        let failed = |e: csv::Error| self::failed(path, &e.into());
        if self.writer.is_none() {
            let mut writer = csv::Writer::from_path(path).map_err(failed)?;
            writer.write_record(["key", "message", "detail", "hint"]).map_err(failed)?;
            self.writer = Some(writer);
        }
        let writer = self.writer.as_mut().expect("set above");
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        writer.write_record([key, &error.message, &text(&error.detail), &text(&error.hint)]).map_err(failed)?;
        writer.flush().map_err(|e| self::failed(path, &e))
    }

    pub fn finish(&mut self) -> Result<()> {
        self.writer.as_mut().map_or(Ok(()), |writer| writer.flush()).map_err(|e| failed(&self.path, &e))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
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

    /// Cut after any byte, a file is resumed to the same content.
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
            output.finish().unwrap();
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

    #[test]
    fn a_key_must_be_of_its_type() {
        assert_eq!(Key::Bigint.canonical("007", Format::Csv).unwrap(), "7");
        assert_eq!(Key::Text.canonical("007", Format::Csv).unwrap(), "007");
        for key in ["x", "9223372036854775808", "1.5"] {
            let error = Key::Bigint.canonical(key, Format::Csv).unwrap_err();
            assert_eq!(error.message, format!("key \"{key}\" is not a bigint"));
        }
    }
}
