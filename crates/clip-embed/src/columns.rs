//! Reads the list of files from a Parquet file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use clip::{Error, Kind, Result, without_panic};
use parquet::basic::{Compression, ConvertedType, LogicalType, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetStatisticsPolicy};
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::{ReadOptionsBuilder, SerializedFileReader};
use parquet::schema::types::Type;

use crate::list::{Columns, List};

/// The bytes with which a Parquet file begins and ends.
pub const MAGIC: [u8; 4] = *b"PAR1";
/// The bytes with which it ends if its footer is encrypted.
pub const ENCRYPTED: [u8; 4] = *b"PARE";
/// The number of rows per read: the batch size of the library's own iterator.
const ROWS: usize = 1024;

/// How a value is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Text,
    Signed,
    Unsigned,
    Uuid,
}

/// What a column is used for.
#[derive(Clone, Copy)]
struct Role {
    option: &'static str,
    sorts: &'static [Sort],
    types: &'static str,
}

const PATH: Role = Role { option: "--path-column", sorts: &[Sort::Text], types: "text" };
const KEY: Role = Role {
    option: "--key-column",
    sorts: &[Sort::Text, Sort::Signed, Sort::Unsigned, Sort::Uuid],
    types: "text, an integer or a UUID",
};

enum Value {
    Null,
    Text(String),
    /// A text that is not UTF-8, with replacement characters for its invalid bytes.
    Broken(String),
}

struct Column {
    name: String,
    /// The index among the columns of values: a nested column has one per leaf.
    index: usize,
    sort: Sort,
}

/// Reads the list of files in a Parquet file. Relative paths start at `root`.
///
/// # Errors
/// If a column is missing or has an unusable type, or if the file is damaged.
pub fn list(file: File, name: &str, root: &Path, arguments: &Columns) -> Result<List> {
    let broken = |why: String| {
        Error::new(Kind::InvalidInput, format!("\"{name}\" cannot be read as Parquet"))
            .detail(why)
            .hint("Copy it again, or write it again; columns that are encrypted are not read.")
    };
    let said = |e: ParquetError| broken(format!("The parser says: {}.", words(&e)));
    whole(&file, name)?;
    let read = || -> Result<List> {
        let skip = ParquetStatisticsPolicy::SkipAll;
        let options = ReadOptionsBuilder::new().with_column_stats_policy(skip.clone()).with_size_stats_policy(skip);
        let reader = SerializedFileReader::new_with_options(file, options.build()).map_err(said)?;
        let about = reader.metadata();
        let path = column(about, name, arguments.path_column(), PATH)?;
        let key = match arguments.key_column.as_deref() {
            Some(key) if key != path.name => Some(column(about, name, key, KEY)?),
            _ => None,
        };
        compressed_as_known(about, name, [Some(&path), key.as_ref()].into_iter().flatten())?;
        let mut list = List::default();
        let mut row = 0;
        for group in 0..reader.num_row_groups() {
            let group = reader.get_row_group(group).map_err(said)?;
            let open = |column: &Column| group.get_column_reader(column.index).map_err(said);
            let mut paths = open(&path)?;
            let mut keys = key.as_ref().map(|key| open(key).map(|reader| (reader, key.sort))).transpose()?;
            let end = row + u64::try_from(group.metadata().num_rows()).unwrap_or(0);
            loop {
                let paths = values(&mut paths, path.sort).map_err(said)?;
                let keys = keys.as_mut().map(|(reader, sort)| values(reader, *sort)).transpose().map_err(said)?;
                if keys.as_ref().is_some_and(|keys| keys.len() != paths.len()) || row + paths.len() as u64 > end {
                    return Err(broken(format!("After row {row}, columns are of different lengths.")));
                }
                if paths.is_empty() {
                    break;
                }
                let mut keys = keys.map(Vec::into_iter);
                for path in paths {
                    row += 1;
                    let key = keys.as_mut().and_then(Iterator::next);
                    match (path, key) {
                        (Value::Broken(shown), _) | (_, Some(Value::Broken(shown))) => {
                            let error = Error::new(Kind::InvalidInput, format!("row {row} is not UTF-8"));
                            list.unusable.push((shown, error));
                        }
                        (path, key) => {
                            let path = path.or_empty();
                            let key = key.map_or_else(|| path.clone(), Value::or_empty);
                            list.add(path, key, root, || format!("row {row}"));
                        }
                    }
                }
            }
            if row < end {
                return Err(broken(format!("It should have {end} rows up to there and has {row}.")));
            }
        }
        Ok(list)
    };
    quietly(|| without_panic(|| broken("The parser gave up on it.".to_owned()), read))
}

impl Value {
    fn or_empty(self) -> String {
        if let Self::Text(text) = self { text } else { String::new() }
    }
}

/// The error's text without the library's generic prefix.
fn words(e: &ParquetError) -> String {
    let text = e.to_string();
    let short = ["Parquet error: ", "External: "].iter().find_map(|prefix| text.strip_prefix(prefix));
    short.unwrap_or(&text).trim_end_matches('.').to_owned()
}

/// Runs `f`, whose panics are caught, without printing them: the library asserts what files claim. No other code runs
/// at the same time whose panics would be lost.
fn quietly<T>(f: impl FnOnce() -> T) -> T {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let result = f();
    std::panic::set_hook(hook);
    result
}

/// Checks that the end of the file is present and readable.
fn whole(file: &File, name: &str) -> Result<()> {
    let unreadable = |e: std::io::Error| {
        Error::new(Kind::InvalidInput, format!("\"{name}\" cannot be read")).detail(format!("{e}."))
    };
    let length = file.metadata().map_err(unreadable)?.len();
    let (mut first, mut last) = ([0; 4], [0; 4]);
    file.read_exact_at(&mut first, 0).map_err(unreadable)?;
    file.read_exact_at(&mut last, length.saturating_sub(4)).map_err(unreadable)?;
    if first == ENCRYPTED || last == ENCRYPTED {
        return Err(Error::new(Kind::Unsupported, format!("\"{name}\" is encrypted"))
            .detail("Its footer is, which says what columns there are.")
            .hint("Write it without encryption, or as CSV."));
    }
    // The length of the footer precedes the magic bytes.
    if length < 12 || last != MAGIC {
        return Err(Error::new(Kind::InvalidInput, format!("\"{name}\" is cut off"))
            .detail(format!("A Parquet file ends with \"PAR1\"; this one, of {length} bytes, does not."))
            .hint("Copy it again, or wait until it is written."));
    }
    Ok(())
}

fn column(about: &ParquetMetaData, name: &str, wanted: &str, role: Role) -> Result<Column> {
    let schema = about.file_metadata().schema_descr();
    let fields = schema.root_schema().get_fields();
    let Some(field) = fields.iter().find(|field| field.name() == wanted) else {
        let columns: Vec<String> = fields.iter().map(|field| format!("\"{}\"", field.name())).collect();
        return Err(Error::new(Kind::InvalidInput, format!("\"{name}\" has no column \"{wanted}\""))
            .detail(format!("It has: {}.", columns.join(", ")))
            .hint(format!("Name one of them by {}.", role.option)));
    };
    let index = schema.columns().iter().position(|column| column.path().parts() == [wanted]);
    match index {
        Some(index) if schema.column(index).max_rep_level() == 0 => {
            match sort(field).filter(|sort| role.sorts.contains(sort)) {
                Some(sort) => Ok(Column { name: wanted.to_owned(), index, sort }),
                None => Err(of_another_type(about, name, wanted, role)),
            }
        }
        _ => Err(Error::new(Kind::Unsupported, format!("column \"{wanted}\" of \"{name}\" is nested"))
            .detail("Paths and keys are read from columns that have one value a row.")
            .hint(format!("Name another one by {}.", role.option))),
    }
}

fn sort(field: &Type) -> Option<Sort> {
    let about = field.get_basic_info();
    let (logical, converted) = (about.logical_type_ref(), about.converted_type());
    match field.get_physical_type() {
        Physical::BYTE_ARRAY if converted == ConvertedType::UTF8 || matches!(logical, Some(LogicalType::String)) => {
            Some(Sort::Text)
        }
        Physical::FIXED_LEN_BYTE_ARRAY if matches!(logical, Some(LogicalType::Uuid)) => Some(Sort::Uuid),
        // Dates, times and decimals are stored as integers, but they are not usable as keys.
        Physical::INT32 | Physical::INT64 if matches!(logical, None | Some(LogicalType::Integer(_))) => match converted
        {
            ConvertedType::NONE
            | ConvertedType::INT_8
            | ConvertedType::INT_16
            | ConvertedType::INT_32
            | ConvertedType::INT_64 => Some(Sort::Signed),
            ConvertedType::UINT_8 | ConvertedType::UINT_16 | ConvertedType::UINT_32 | ConvertedType::UINT_64 => {
                Some(Sort::Unsigned)
            }
            _ => None,
        },
        _ => None,
    }
}

fn of_another_type(about: &ParquetMetaData, name: &str, wanted: &str, role: Role) -> Error {
    let mut text = Vec::new();
    let fields = about.file_metadata().schema().get_fields();
    fields.iter().filter(|field| field.name() == wanted).for_each(|field| {
        parquet::schema::printer::print_schema(&mut text, field);
    });
    let text = String::from_utf8_lossy(&text);
    Error::new(Kind::InvalidInput, format!("column \"{wanted}\" of \"{name}\" is not {}", role.types))
        .detail(format!("It is declared as: {}.", text.trim().trim_end_matches(';')))
        .hint(format!("Name another one by {}.", role.option))
}

/// Refuses columns whose codec is not built in: it would add a minute to the build, and no writer uses it by default.
fn compressed_as_known<'a>(
    about: &ParquetMetaData,
    name: &str,
    columns: impl Iterator<Item = &'a Column> + Clone,
) -> Result<()> {
    for group in about.row_groups() {
        for column in columns.clone() {
            let codec = match group.column(column.index).compression() {
                Compression::BROTLI(_) => "Brotli",
                Compression::LZO => "LZO",
                _ => continue,
            };
            return Err(Error::new(
                Kind::Unsupported,
                format!("column \"{}\" of \"{name}\" is compressed with {codec}", column.name),
            )
            .detail("Snappy, Zstandard, gzip and LZ4 are read.")
            .hint("Write it with one of these, or as CSV."));
        }
    }
    Ok(())
}

/// The next rows of a column; none at its end.
fn values(reader: &mut ColumnReader, sort: Sort) -> std::result::Result<Vec<Value>, ParquetError> {
    let text = |bytes: ByteArray| match String::from_utf8(bytes.data().to_vec()) {
        Ok(text) => Value::Text(text),
        Err(e) => Value::Broken(String::from_utf8_lossy(e.as_bytes()).into_owned()),
    };
    match (reader, sort) {
        (ColumnReader::ByteArrayColumnReader(reader), _) => rows(reader, text),
        // An unsigned integer is stored as the signed integer with the same bits.
        (ColumnReader::Int32ColumnReader(reader), Sort::Unsigned) => {
            rows(reader, |value| Value::Text(value.cast_unsigned().to_string()))
        }
        (ColumnReader::Int32ColumnReader(reader), _) => rows(reader, |value| Value::Text(value.to_string())),
        (ColumnReader::Int64ColumnReader(reader), Sort::Unsigned) => {
            rows(reader, |value| Value::Text(value.cast_unsigned().to_string()))
        }
        (ColumnReader::Int64ColumnReader(reader), _) => rows(reader, |value| Value::Text(value.to_string())),
        (ColumnReader::FixedLenByteArrayColumnReader(reader), _) => rows(reader, |value| uuid(value.data())),
        _ => Err(ParquetError::General("a column is of another type than the schema says".to_owned())),
    }
}

fn rows<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    value: impl Fn(T::T) -> Value,
) -> std::result::Result<Vec<Value>, ParquetError> {
    let (mut levels, mut found) = (Vec::new(), Vec::new());
    let (_, there, _) = reader.read_records(ROWS, Some(&mut levels), None, &mut found)?;
    found.truncate(there);
    let mut found = found.into_iter().map(value);
    // A column that can't be NULL has no definition levels.
    if levels.is_empty() {
        return Ok(found.collect());
    }
    Ok(levels.iter().map(|&level| if level > 0 { found.next().unwrap_or(Value::Null) } else { Value::Null }).collect())
}

/// Formats a UUID as PostgreSQL does.
fn uuid(bytes: &[u8]) -> Value {
    let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    for at in [20, 16, 12, 8].into_iter().filter(|_| bytes.len() == 16) {
        text.insert(at, '-');
    }
    Value::Text(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists() -> Vec<std::path::PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/lists");
        let paths = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == "parquet")).collect();
        paths.sort();
        paths
    }

    fn read(path: &Path, key: &str) -> Result<List> {
        let arguments = Columns { path_column: None, key_column: Some(key.to_owned()), root: None, every_file: false };
        list(File::open(path).unwrap(), "list", Path::new("root"), &arguments)
    }

    /// Any single byte may change: the list is read, or refused with a message.
    #[test]
    fn damage_is_no_panic() {
        let copy = std::env::temp_dir().join(format!("clip-embed-damage-{}", std::process::id()));
        let (mut tried, mut refused) = (0, 0);
        for path in lists() {
            let whole = std::fs::read(&path).unwrap();
            std::fs::write(&copy, &whole).unwrap();
            // The byte is changed in place, because a new file for each byte takes a hundred times as long.
            let file = File::options().write(true).open(&copy).unwrap();
            for at in 0..whole.len() {
                file.write_all_at(&[whole[at] ^ [1, 0x80, 0xFF][at % 3]], at as u64).unwrap();
                tried += 1;
                if let Err(error) = read(&copy, ["path", "id", "name", "uuid"][at % 4]) {
                    assert!(error.hint.is_some() && error.detail.is_some(), "{error}");
                    refused += 1;
                }
                file.write_all_at(&whole[at..=at], at as u64).unwrap();
            }
            for length in (8..whole.len()).rev().filter(|_| whole.starts_with(&MAGIC)) {
                file.set_len(length as u64).unwrap();
                assert_eq!(read(&copy, "path").err().unwrap().message, "\"list\" is cut off", "{length} of {path:?}");
            }
        }
        std::fs::remove_file(copy).unwrap();
        assert!(tried > 50_000 && refused > tried / 10, "{refused} of {tried}");
    }
}
