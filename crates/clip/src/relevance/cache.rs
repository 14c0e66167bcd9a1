//! The words' vectors on disk: embedding 6,000 words takes 30 s to a minute, reading them 5 ms.

use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Background, Words};
use crate::error::{Error, Kind, Result};
use crate::memory;
use crate::model::Model;
use crate::model::graph_cache::{hash_state, is_young};

/// The version of this layout.
const MAGIC: &[u8; 8] = b"clipwrd1";
const SUFFIX: &str = "words";

/// The file for a list of words and a model.
pub struct Entry {
    directory: PathBuf,
    /// A hash of the paths of the model's files.
    source: String,
    /// A hash of the files' state and the words.
    state: u64,
}

impl Entry {
    /// None if the state of the model's files can't be read.
    pub fn of(cache: &Path, model: &Model, words: &Words, runtime: &str) -> Option<Self> {
        let graph = model.text.as_deref()?.canonicalize().ok()?;
        let (mut source, mut state) = (DefaultHasher::new(), DefaultHasher::new());
        // The quantized model has different vectors, and neither removes the other's file.
        (&graph, model.int8_text).hash(&mut source);
        (MAGIC, env!("CARGO_PKG_VERSION"), runtime, words.background, &words.words).hash(&mut state);
        hash_state(graph.parent()?, &mut state)?;
        hash_state(&model.text_directory, &mut state)?;
        Some(Self { directory: cache.to_owned(), source: format!("{:016x}", source.finish()), state: state.finish() })
    }

    fn path(&self) -> PathBuf {
        self.directory.join(format!("{}-{:016x}.{SUFFIX}", self.source, self.state))
    }

    /// The contents of the file, if it is complete: a file with a wrong length or checksum counts as missing.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn read(&self, words: Words) -> Result<std::result::Result<Background, Words>> {
        let Some((header, mut file)) = self.open() else { return Ok(Err(words)) };
        let [width, count, background, checksum] = header;
        let (width, count) = (width as usize, count as usize);
        let expected = (background, count) == (words.background as u64, words.words.len());
        let length = (width + count) * 4 + width * count;
        let fits = expected
            && (1..=16_000).contains(&width)
            && file.metadata().is_ok_and(|about| about.len() == (40 + length) as u64);
        if !fits {
            return Ok(Err(words));
        }
        let mut bytes = memory::zeroed(length)?;
        if file.read_exact(&mut bytes).is_err() || u64::from(crc32fast::hash(&bytes)) != checksum {
            return Ok(Err(words));
        }
        let (floats, codes) = bytes.split_at((width + count) * 4);
        let mut floats = floats.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four bytes")));
        let mean = floats.by_ref().take(width).collect();
        let steps = floats.collect();
        let mut signed = memory::with_capacity(codes.len())?;
        signed.extend(codes.iter().map(|&byte| byte as i8));
        Ok(Ok(Background::from_parts(words, mean, steps, signed)))
    }

    fn open(&self) -> Option<([u64; 4], File)> {
        let mut file = File::open(self.path()).ok()?;
        let mut header = [0; 40];
        file.read_exact(&mut header).ok()?;
        let mut numbers =
            header[8..].chunks_exact(8).map(|eight| u64::from_le_bytes(eight.try_into().expect("eight bytes")));
        let numbers = std::array::from_fn(|_| numbers.next().expect("four numbers"));
        (header[..8] == MAGIC[..]).then_some((numbers, file))
    }

    /// Writes the file under a temporary name and renames it, so that other processes see either the complete file or
    /// none.
    ///
    /// # Errors
    /// The reason why it could not be written.
    pub fn write(&self, background: &Background) -> Result<()> {
        let (mean, steps, codes) = background.parts();
        let mut bytes = memory::with_capacity((mean.len() + steps.len()) * 4 + codes.len())?;
        mean.iter().chain(steps).for_each(|value| bytes.extend(value.to_le_bytes()));
        bytes.extend(codes.iter().map(|&code| code as u8));
        let header = [mean.len(), steps.len(), background.count].map(|number| number as u64);
        let draft = self.directory.join(format!("draft-{}-{}.{SUFFIX}", self.source, std::process::id()));
        let written = || -> std::io::Result<()> {
            DirBuilder::new().mode(0o700).recursive(true).create(&self.directory)?;
            self.sweep();
            let _ = fs::remove_file(&draft);
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&draft)?;
            file.write_all(MAGIC)?;
            for number in header.into_iter().chain([u64::from(crc32fast::hash(&bytes))]) {
                file.write_all(&number.to_le_bytes())?;
            }
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&draft, self.path())
        };
        written().map_err(|e| {
            let _ = fs::remove_file(&draft);
            Error::new(Kind::MissingFile, "the words' vectors could not be kept")
                .detail(format!("\"{}\": {e}", self.path().display()))
        })
    }

    /// Removes files of earlier states, and of processes that died at least an hour ago.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let ours = name.ends_with(&format!(".{SUFFIX}"));
            let outdated = name.starts_with(&format!("{}-", self.source));
            let abandoned = name.starts_with("draft-") && !is_young(&path);
            if ours && (outdated || abandoned) && path != self.path() {
                let _ = fs::remove_file(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(count: usize) -> Words {
        Words { words: (0..count).map(|n| format!("word {n}")).collect(), background: count - 10 }
    }

    fn background(words: Words) -> Background {
        let mut builder = super::super::Builder::new(words);
        for n in 0..builder.next(usize::MAX / 2).len() {
            let angle = n as f32 * 0.7;
            builder.push(&[angle.sin(), angle.cos(), (angle * 1.3).sin(), 0.5]).unwrap();
        }
        builder.finish().unwrap()
    }

    #[test]
    fn what_is_kept_is_read_while_nothing_has_changed() {
        let folder = std::env::temp_dir().join(format!("clip-words-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("models/small/onnx")).unwrap();
        for file in ["onnx/text_model.onnx", "onnx/vision_model.onnx", "tokenizer.json", "preprocessor_config.json"] {
            fs::write(folder.join("models/small").join(file), file).unwrap();
        }
        let model = Model::find(&[folder.join("models")], "small").unwrap();
        let cache = folder.join("cache");
        let entry = |count, runtime| Entry::of(&cache, &model, &words(count), runtime).unwrap();
        let first = entry(700, "1");
        assert!(first.read(words(700)).unwrap().is_err(), "nothing is kept yet");
        let made = background(words(700));
        first.write(&made).unwrap();
        let read = first.read(words(700)).unwrap().ok().unwrap();
        assert_eq!((read.parts(), read.count, &read.words), (made.parts(), made.count, &made.words));
        assert!(entry(700, "2").read(words(700)).unwrap().is_err(), "another runtime");
        assert!(entry(701, "1").read(words(701)).unwrap().is_err(), "another list");

        // A changed byte, and a truncated file.
        let mut bytes = fs::read(first.path()).unwrap();
        bytes[3000] ^= 1;
        fs::write(first.path(), &bytes).unwrap();
        assert!(first.read(words(700)).unwrap().is_err());
        bytes[3000] ^= 1;
        fs::write(first.path(), &bytes[..bytes.len() - 1]).unwrap();
        assert!(first.read(words(700)).unwrap().is_err());

        // The state of the model's files counts, and outdated files are removed.
        fs::write(folder.join("models/small/tokenizer.json"), "another").unwrap();
        let changed = entry(700, "1");
        assert!(changed.read(words(700)).unwrap().is_err());
        changed.write(&made).unwrap();
        let left: Vec<PathBuf> = fs::read_dir(&cache).unwrap().flatten().map(|entry| entry.path()).collect();
        assert_eq!(left, [changed.path()]);
        // The quantized model has a separate file.
        let int8 = Model { int8_text: true, ..model.clone() };
        let other = Entry::of(&cache, &int8, &words(700), "1").unwrap();
        assert!(other.read(words(700)).unwrap().is_err());
        other.write(&made).unwrap();
        assert!(changed.path().exists() && other.path().exists());

        fs::remove_dir_all(&cache).unwrap();
        fs::write(&cache, "a file, not a directory").unwrap();
        assert!(changed.write(&made).unwrap_err().detail.unwrap().contains("cache"));
        fs::remove_dir_all(folder).unwrap();
    }
}
