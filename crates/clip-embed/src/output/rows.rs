//! Writes and reads the rows of an output in each format.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use clip::Result;

use super::format::{Format, Key};
use super::row::{Take, Vector, foreign};
use super::{failed, parquet};

/// The signature, the flags and the length of the header extension, as in PostgreSQL's documentation of COPY.
const BINARY_HEADER: [u8; 19] = *b"PGCOPY\n\xFF\r\n\0\0\0\0\0\0\0\0\0";
/// The field count that marks the end of the file.
const BINARY_END: [u8; 2] = [0xFF, 0xFF];
const CSV_HEADER: &str = "\"key\",\"embedding\"\n";

/// Writes rows to a file, or to standard output.
pub enum Writer {
    Plain { file: File, format: Format, key: Key },
    Parquet(Box<parquet::Writer>),
}

impl Writer {
    /// Begins a file with the header of its format.
    pub fn begin(mut file: File, format: Format, key: Key, about: &str) -> io::Result<Self> {
        if format == Format::Parquet {
            return parquet::Writer::new(file, key, about).map(|writer| Self::Parquet(Box::new(writer)));
        }
        file.write_all(header(format))?;
        Ok(Self::Plain { file, format, key })
    }

    /// Appends a row. CSV and binary rows are written by one call, so a killed run usually leaves only complete rows.
    pub fn write(&mut self, key: &str, vector: &[f32]) -> io::Result<()> {
        match self {
            Self::Parquet(writer) => writer.write(key, vector),
            Self::Plain { file, format, key: kind } => {
                let row = match (format, kind) {
                    (Format::Csv, _) => csv_row(key, vector),
                    (_, Key::Text) => binary_row(key.as_bytes(), vector),
                    (_, Key::Bigint) => {
                        binary_row(&key.parse::<i64>().map_err(io::Error::other)?.to_be_bytes(), vector)
                    }
                };
                file.write_all(&row)
            }
        }
    }

    /// Writes the trailer of the format, if it has one.
    pub fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Parquet(writer) => writer.finish(),
            Self::Plain { file, format: Format::Binary, .. } => file.write_all(&BINARY_END),
            Self::Plain { .. } => Ok(()),
        }
    }
}

fn header(format: Format) -> &'static [u8] {
    if format == Format::Csv { CSV_HEADER.as_bytes() } else { &BINARY_HEADER }
}

/// Both fields are quoted: COPY reads an empty unquoted field as NULL, and PostgreSQL up to 17 takes a row `\.` as the
/// end of the data. [`Key::canonical`] refuses values that quotes can't protect.
fn csv_row(key: &str, vector: &[f32]) -> Vec<u8> {
    // The shortest decimals that parse to the same float; they never have an exponent.
    let values: Vec<String> = vector.iter().map(f32::to_string).collect();
    format!("\"{}\",\"[{}]\"\n", key.replace('"', "\"\""), values.join(",")).into_bytes()
}

/// A row with the vector in pgvector's binary format: dimensions and zero, 16 bits each, then float4 values, all
/// big-endian.
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

/// Reads a CSV or binary output from its beginning. Returns the end of its last complete row; 0 if the header is
/// incomplete, because the run was killed before it was written.
///
/// # Errors
/// If it is not an output of this program.
pub fn read(file: &File, path: &Path, format: Format, key: Key, take: &mut Take<'_>) -> Result<u64> {
    let length = file.metadata().map_err(|e| failed(path, &e))?.len();
    let mut reader = BufReader::new(file);
    let mut found = Vec::new();
    let header = header(format);
    reader.by_ref().take(header.len() as u64).read_to_end(&mut found).map_err(|e| failed(path, &e))?;
    if !header.starts_with(&found) {
        return Err(foreign(path, format!("It does not begin as its {format} files do.")));
    }
    if found.len() < header.len() {
        return Ok(0);
    }
    match format {
        Format::Csv => read_csv(reader, file, length, path, take),
        _ => read_binary(reader, length, path, key, take),
    }
}

fn read_csv(reader: impl Read, file: &File, length: u64, path: &Path, take: &mut Take<'_>) -> Result<u64> {
    let header = CSV_HEADER.len() as u64;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(reader);
    let mut record = csv::ByteRecord::new();
    let mut whole = header;
    while reader.read_byte_record(&mut record).map_err(|e| foreign(path, format!("The parser says: {e}.")))? {
        let end = header + reader.position().byte();
        let key = record.get(0).and_then(|key| std::str::from_utf8(key).ok());
        let vector = record.get(1).filter(|v| v.starts_with(b"[") && v.ends_with(b"]"));
        // Only the last row can lack its newline, if a run was killed while writing it.
        let last = end >= length;
        let ended = !last || ends_with_newline(file, length).map_err(|e| failed(path, &e))?;
        match (key, vector) {
            (Some(key), Some(vector)) if record.len() == 2 && ended => {
                take(key, Vector::Text(vector))?;
                whole = end;
            }
            _ if last => break,
            _ => return Err(foreign(path, format!("What begins at byte {whole} is not a key and a vector."))),
        }
    }
    Ok(whole)
}

fn ends_with_newline(file: &File, length: u64) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut last = [0];
    file.read_exact_at(&mut last, length - 1)?;
    Ok(last == *b"\n")
}

/// Reads rows up to the trailer, or to the first incomplete row.
fn read_binary(mut reader: impl Read, length: u64, path: &Path, key: Key, take: &mut Take<'_>) -> Result<u64> {
    let mut whole = BINARY_HEADER.len() as u64;
    loop {
        let [name, vector] = match fields(&mut reader, length - whole) {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(whole),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(whole),
            Err(e) => return Err(failed(path, &e)),
        };
        whole += (2 + 4 + name.len() + 4 + vector.len()) as u64;
        let name = match key {
            Key::Text => String::from_utf8(name).ok(),
            Key::Bigint => name.try_into().ok().map(|name| i64::from_be_bytes(name).to_string()),
        };
        let name = name.ok_or_else(|| foreign(path, format!("A key is not of type {key}.")))?;
        take(&name, Vector::Binary(&vector))?;
    }
}

/// Reads the two fields of a row. None at the trailer or at a damaged row.
fn fields(reader: &mut impl Read, left: u64) -> io::Result<Option<[Vec<u8>; 2]>> {
    let mut count = [0; 2];
    reader.read_exact(&mut count)?;
    if count != 2i16.to_be_bytes() {
        return Ok(None);
    }
    let mut found = [const { Vec::new() }; 2];
    for field in &mut found {
        let mut size = [0; 4];
        reader.read_exact(&mut size)?;
        let size = u64::try_from(i32::from_be_bytes(size)).unwrap_or(u64::MAX);
        // A damaged length must not become an allocation.
        if size > left {
            return Ok(None);
        }
        *field = vec![0; size as usize];
        reader.read_exact(field)?;
    }
    Ok(Some(found))
}
