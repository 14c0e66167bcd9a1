//! An output in Parquet: a key, and the vector as a list of float32. Neither can be null.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::column::reader::ColumnReader;
use ::parquet::data_type::{ByteArray, ByteArrayType, FloatType, Int64Type};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::{EnabledStatistics, WriterProperties};
use ::parquet::file::reader::FileReader;
use ::parquet::file::serialized_reader::SerializedFileReader;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use ::parquet::schema::types::ColumnPath;
use clip::{Result, without_panic};

use super::format::Key;
use super::row::{Take, Vector, foreign};

/// The number of floats in a row group: 64 MiB, which the writer keeps in memory.
const GROUP: usize = 16 << 20;
/// The number of rows per read.
const ROWS: usize = 1024;

pub struct Writer {
    file: SerializedFileWriter<File>,
    key: Key,
    texts: Vec<ByteArray>,
    numbers: Vec<i64>,
    values: Vec<f32>,
    /// The number of values of each row.
    lengths: Vec<usize>,
}

fn schema(key: Key) -> &'static str {
    match key {
        Key::Text => {
            "message rows { required binary key (UTF8); \
             required group embedding (LIST) { repeated group list { required float element; } } }"
        }
        Key::Bigint => {
            "message rows { required int64 key; \
             required group embedding (LIST) { repeated group list { required float element; } } }"
        }
    }
}

impl Writer {
    /// Begins a file. `about` is stored in its metadata.
    pub fn new(file: File, key: Key, about: &str) -> io::Result<Self> {
        let schema = parse_message_type(schema(key)).map_err(io::Error::other)?;
        let embedding = ColumnPath::new(["embedding", "list", "element"].into_iter().map(str::to_owned).collect());
        // Unit vectors don't compress and have no repeated values, and statistics about them are useless.
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_dictionary_enabled(false)
            .set_column_compression(embedding.clone(), Compression::UNCOMPRESSED)
            .set_column_statistics_enabled(embedding, EnabledStatistics::None)
            .set_created_by(format!("clip-embed {}", env!("CARGO_PKG_VERSION")))
            .set_key_value_metadata(Some(vec![KeyValue::new("clip_embed".to_owned(), about.to_owned())]))
            .build();
        let file = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).map_err(io_error)?;
        Ok(Self { file, key, texts: Vec::new(), numbers: Vec::new(), values: Vec::new(), lengths: Vec::new() })
    }

    pub fn write(&mut self, key: &str, vector: &[f32]) -> io::Result<()> {
        match self.key {
            Key::Text => self.texts.push(ByteArray::from(key)),
            Key::Bigint => self.numbers.push(key.parse().map_err(io::Error::other)?),
        }
        self.values.extend_from_slice(vector);
        self.lengths.push(vector.len());
        if self.values.len() >= GROUP { self.flush() } else { Ok(()) }
    }

    /// Writes the rows in memory as one row group.
    fn flush(&mut self) -> io::Result<()> {
        if self.lengths.is_empty() {
            return Ok(());
        }
        // The first value of a row has repetition level 0, the others 1. Each vector has values, so all are defined.
        let mut repetitions = Vec::with_capacity(self.values.len());
        for &length in &self.lengths {
            repetitions.extend((0..length).map(|value| i16::from(value > 0)));
        }
        let definitions = vec![1; self.values.len()];
        let mut write = || -> std::result::Result<(), ParquetError> {
            let mut group = self.file.next_row_group()?;
            if let Some(mut column) = group.next_column()? {
                match self.key {
                    Key::Text => column.typed::<ByteArrayType>().write_batch(&self.texts, None, None)?,
                    Key::Bigint => column.typed::<Int64Type>().write_batch(&self.numbers, None, None)?,
                };
                column.close()?;
            }
            if let Some(mut column) = group.next_column()? {
                column.typed::<FloatType>().write_batch(&self.values, Some(&definitions), Some(&repetitions))?;
                column.close()?;
            }
            group.close().map(drop)
        };
        write().map_err(io_error)?;
        self.texts.clear();
        self.numbers.clear();
        self.values.clear();
        self.lengths.clear();
        Ok(())
    }

    /// Writes the footer, without which the file can't be read.
    pub fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.finish().map(drop).map_err(io_error)
    }
}

/// The underlying I/O error, if there is one.
fn io_error(e: ParquetError) -> io::Error {
    match e {
        ParquetError::External(e) => match e.downcast::<io::Error>() {
            Ok(e) => *e,
            Err(e) => io::Error::other(e),
        },
        e => io::Error::other(e),
    }
}

/// Reads the rows of a file that [`Writer`] has finished. Without `vectors`, it reads only the keys, and the vectors
/// are empty.
///
/// # Errors
/// If it is not such a file.
pub fn read(file: File, path: &Path, key: Key, vectors: bool, take: &mut Take<'_>) -> Result<()> {
    let mut taken = Ok(());
    let read = || -> std::result::Result<(), ParquetError> {
        let reader = SerializedFileReader::new(file)?;
        let wanted = parse_message_type(schema(key))?;
        if reader.metadata().file_metadata().schema().get_fields() != wanted.get_fields() {
            return Err(ParquetError::General("its columns are others".to_owned()));
        }
        for group in 0..reader.num_row_groups() {
            let group = reader.get_row_group(group)?;
            let mut keys = group.get_column_reader(0)?;
            let mut values = vectors.then(|| group.get_column_reader(1)).transpose()?;
            loop {
                let names = read_keys(&mut keys)?;
                if names.is_empty() {
                    break;
                }
                let rows = values.as_mut().map(|values| read_vectors(values, names.len())).transpose()?;
                for (row, name) in names.iter().enumerate() {
                    taken = take(name, Vector::Floats(rows.as_ref().map_or(&[], |rows| &rows[row])));
                    if taken.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    };
    let said = |why: String| foreign(path, format!("The parser says: {why}."));
    without_panic(|| said("it gave up".to_owned()), || read().map_err(|e| said(e.to_string())))?;
    taken
}

fn read_keys(column: &mut ColumnReader) -> std::result::Result<Vec<String>, ParquetError> {
    match column {
        ColumnReader::ByteArrayColumnReader(column) => {
            let mut found = Vec::new();
            column.read_records(ROWS, None, None, &mut found)?;
            found.iter().map(|key| key.as_utf8().map(str::to_owned)).collect()
        }
        ColumnReader::Int64ColumnReader(column) => {
            let mut found = Vec::new();
            column.read_records(ROWS, None, None, &mut found)?;
            Ok(found.iter().map(i64::to_string).collect())
        }
        _ => Err(ParquetError::General("the keys are of another type".to_owned())),
    }
}

fn read_vectors(column: &mut ColumnReader, rows: usize) -> std::result::Result<Vec<Vec<f32>>, ParquetError> {
    let ColumnReader::FloatColumnReader(column) = column else {
        return Err(ParquetError::General("the vectors are of another type".to_owned()));
    };
    let (mut definitions, mut repetitions, mut values) = (Vec::new(), Vec::new(), Vec::new());
    column.read_records(rows, Some(&mut definitions), Some(&mut repetitions), &mut values)?;
    let mut found: Vec<Vec<f32>> = Vec::with_capacity(rows);
    for (&repetition, &value) in repetitions.iter().zip(&values) {
        if repetition == 0 {
            found.push(Vec::new());
        }
        found.last_mut().ok_or_else(|| ParquetError::General("a row begins in its middle".to_owned()))?.push(value);
    }
    if found.len() != rows || values.len() != repetitions.len() || definitions.iter().any(|&level| level != 1) {
        return Err(ParquetError::General(format!("{} vectors where {rows} should be", found.len())));
    }
    Ok(found)
}
