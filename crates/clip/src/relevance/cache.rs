//! The vectors of the words on disk: embedding 6,000 words takes 30 s to a minute, reading them 5 ms.

use std::cmp::Reverse;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::progress::Progress;
use super::{Background, Builder, Words};
use crate::error::{Error, Kind, Result};
use crate::memory;
use crate::model::Model;
use crate::model::cache_directory;
use crate::model::graph_cache::{hash_state, is_young};

/// The signature of a file, with the version of its layout.
const MAGIC: &[u8; 8] = b"clipwrd1";
const SUFFIX: &str = "words";
/// The suffix of a file with the vectors of a list that is being embedded.
const PART: &str = "part";
/// Maximum number of files for a model, one for each list. A file takes 3.3 MB for 6,000 words and 512 dimensions.
const MOST: usize = 8;
/// The vectors of a list whose embedding was cancelled are removed after this time.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 3600);

/// The file for a list of words and a model.
pub struct Entry {
    directory: PathBuf,
    /// A hash of the paths of the model's files.
    source: String,
    /// A hash of the state of these files.
    state: String,
    /// A hash of the words, and of the library that embeds them.
    list: String,
}

impl Entry {
    /// None if the state of the model's files can't be read, or if the cache can't be trusted
    /// ([`cache_directory::check`]).
    pub fn of(cache: &Path, model: &Model, words: &Words, runtime: &str) -> Option<Self> {
        cache_directory::check(cache).ok()?;
        let graph = model.text.as_deref()?.canonicalize().ok()?;
        let [mut source, mut state, mut list] = [(); 3].map(|()| DefaultHasher::new());
        // The quantized model has different vectors. It counts as another source, so that neither form removes the
        // other's file.
        (&graph, model.int8_text).hash(&mut source);
        hash_state(graph.parent()?, &mut state)?;
        hash_state(&model.text_directory, &mut state)?;
        (MAGIC, env!("CARGO_PKG_VERSION"), runtime, words.background, &words.words).hash(&mut list);
        let [source, state, list] = [source, state, list].map(|hasher| format!("{:016x}", hasher.finish()));
        Some(Self { directory: cache.to_owned(), source, state, list })
    }

    fn path(&self) -> PathBuf {
        self.directory.join(format!("{}-{}-{}.{SUFFIX}", self.source, self.state, self.list))
    }

    /// Gives the builder the vectors of the first words, if an earlier attempt to embed them all was cancelled. Returns
    /// the file to which more vectors can be appended; None if another process is embedding them, or if the file can't
    /// be written.
    ///
    /// # Errors
    /// [`Kind::OutOfMemory`].
    pub fn resume(&self, builder: &mut Builder) -> Result<Option<Progress>> {
        let opened = cache_directory::create(&self.directory)
            .and_then(|()| cache_directory::open_or_create(&self.path().with_extension(PART)));
        opened.map_or(Ok(None), |file| Progress::resume(file, builder))
    }

    /// The contents of the file. Returns the words if the file is missing, or has a wrong length or checksum.
    ///
    /// # Errors
    /// [`Kind::OutOfMemory`].
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
        cache_directory::touch(&self.path());
        Ok(Ok(Background::from_parts(words, mean, steps, signed)))
    }

    fn open(&self) -> Option<([u64; 4], File)> {
        let mut file = cache_directory::open(&self.path()).ok()?;
        let mut header = [0; 40];
        file.read_exact(&mut header).ok()?;
        let mut numbers =
            header[8..].chunks_exact(8).map(|eight| u64::from_le_bytes(eight.try_into().expect("eight bytes")));
        let numbers = std::array::from_fn(|_| numbers.next().expect("four numbers"));
        (header[..8] == MAGIC[..]).then_some((numbers, file))
    }

    /// Writes the file under a temporary name and renames it, so that other processes see the complete file or none.
    ///
    /// # Errors
    /// [`Kind::MissingFile`] with the reason why the file could not be written; [`Kind::OutOfMemory`].
    pub fn write(&self, background: &Background) -> Result<()> {
        let (mean, steps, codes) = background.parts();
        let mut bytes = memory::with_capacity((mean.len() + steps.len()) * 4 + codes.len())?;
        mean.iter().chain(steps).for_each(|value| bytes.extend(value.to_le_bytes()));
        bytes.extend(codes.iter().map(|&code| code as u8));
        let header = [mean.len(), steps.len(), background.count].map(|number| number as u64);
        let write = |file: &mut File| -> std::io::Result<()> {
            file.write_all(MAGIC)?;
            for number in header.into_iter().chain([u64::from(crc32fast::hash(&bytes))]) {
                file.write_all(&number.to_le_bytes())?;
            }
            file.write_all(&bytes)?;
            file.sync_all()
        };
        let written =
            cache_directory::create(&self.directory).and_then(|()| cache_directory::replace(&self.path(), write));
        cache_directory::remove(&self.path().with_extension(PART));
        self.sweep();
        written.map_err(|e| {
            Error::new(Kind::MissingFile, "the words' vectors could not be kept")
                .detail(format!("\"{}\": {e}", self.path().display()))
        })
    }

    /// Removes files for earlier states of the model's files, the least recently used lists if there are too many,
    /// files of cancelled attempts after a week, and drafts of processes that died at least an hour ago.
    fn sweep(&self) {
        let mut lists = Vec::new();
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let (is_list, is_part) = (name.ends_with(&format!(".{SUFFIX}")), name.ends_with(&format!(".{PART}")));
            if !is_list && !is_part {
                continue;
            }
            let age = cache_directory::age(&path).unwrap_or_default();
            let current = name.starts_with(&format!("{}-{}-", self.source, self.state));
            let outdated = name.starts_with(&format!("{}-", self.source)) && !current;
            let abandoned = if is_part { age > FORGOTTEN } else { name.starts_with("draft-") && !is_young(&path) };
            if outdated || abandoned {
                cache_directory::remove(&path);
            } else if is_list && current && path != self.path() {
                lists.push((Reverse(age), path));
            }
        }
        lists.sort();
        let surplus = (lists.len() + 1).saturating_sub(MOST);
        lists.iter().take(surplus).for_each(|(_, path)| cache_directory::remove(path));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::SystemTime;

    use super::*;

    fn words(count: usize) -> Words {
        Words { words: (0..count).map(|n| format!("word {n}")).collect(), background: count - 10 }
    }

    fn background(words: Words) -> Background {
        let mut builder = Builder::new(words);
        for n in 0..builder.next(usize::MAX / 2).len() {
            let angle = n as f32 * 0.7;
            builder.push(&[angle.sin(), angle.cos(), (angle * 1.3).sin(), 0.5]).unwrap();
        }
        builder.finish().unwrap()
    }

    fn folder_with_model(name: &str) -> (PathBuf, Model) {
        let folder = std::env::temp_dir().join(format!("clip-words-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("models/small/onnx")).unwrap();
        for file in ["onnx/text_model.onnx", "onnx/vision_model.onnx", "tokenizer.json", "preprocessor_config.json"] {
            fs::write(folder.join("models/small").join(file), file).unwrap();
        }
        let model = Model::find(&[folder.join("models")], "small").unwrap();
        (folder, model)
    }

    #[test]
    fn a_cancelled_embedding_resumes() {
        let (folder, model) = folder_with_model("resumes");
        let entry = Entry::of(&folder.join("cache"), &model, &words(700), "1").unwrap();
        let vector = |number: usize| [number as f32, 1.0, 0.5];
        let push = |builder: &mut Builder, from: usize, to: usize| {
            (from..to).for_each(|number| builder.push(&vector(number)).unwrap());
        };
        let part = entry.path().with_extension(PART);
        let left = |builder: &Builder| builder.next(usize::MAX / 2).len();

        let mut builder = Builder::new(words(700));
        let mut progress = entry.resume(&mut builder).unwrap().unwrap();
        assert_eq!(left(&builder), 700);
        push(&mut builder, 0, 64);
        progress.append(&builder);
        push(&mut builder, 64, 128);
        progress.append(&builder);
        push(&mut builder, 128, 130);
        // A second process embeds all words itself, and does not touch the file.
        let mut other = Builder::new(words(700));
        assert!(entry.resume(&mut other).unwrap().is_none());
        assert_eq!(left(&other), 700);
        drop(progress);

        // A truncated block, or a block with a changed byte, is dropped, and the next one is written over it.
        let whole = fs::read(&part).unwrap();
        let mut changed = whole.clone();
        changed[whole.len() - 3] ^= 1;
        for damaged in [&whole[..whole.len() - 1], &changed] {
            fs::write(&part, damaged).unwrap();
            let mut builder = Builder::new(words(700));
            let mut progress = entry.resume(&mut builder).unwrap().unwrap();
            assert_eq!(left(&builder), 700 - 64);
            push(&mut builder, 64, 128);
            progress.append(&builder);
            drop(progress);
            assert_eq!(fs::read(&part).unwrap(), whole);
        }
        for useless in [b"".as_slice(), b"no vectors at all", &[0xff; 4096]] {
            fs::write(&part, useless).unwrap();
            assert!(entry.resume(&mut Builder::new(words(700))).unwrap().is_some());
            assert_eq!(fs::metadata(&part).unwrap().len(), 0);
        }
        fs::write(&part, &whole).unwrap();
        let mut builder = Builder::new(words(700));
        let progress = entry.resume(&mut builder).unwrap();
        push(&mut builder, 128, 700);
        let mut expected = Builder::new(words(700));
        push(&mut expected, 0, 700);
        let (made, expected) = (builder.finish().unwrap(), expected.finish().unwrap());
        assert_eq!(made.parts(), expected.parts());
        entry.write(&made).unwrap();
        drop(progress);
        assert!(!part.exists() && entry.read(words(700)).unwrap().is_ok());
        // For another list, there is nothing to resume.
        let other = Entry::of(&folder.join("cache"), &model, &words(701), "1").unwrap();
        fs::write(&part, &whole).unwrap();
        let mut builder = Builder::new(words(701));
        other.resume(&mut builder).unwrap().unwrap();
        assert_eq!(left(&builder), 701);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_kept_is_read_while_nothing_has_changed() {
        let (folder, model) = folder_with_model("kept");
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

        // Damage: a changed byte, and a truncated file.
        let mut bytes = fs::read(first.path()).unwrap();
        bytes[3000] ^= 1;
        fs::write(first.path(), &bytes).unwrap();
        assert!(first.read(words(700)).unwrap().is_err());
        bytes[3000] ^= 1;
        fs::write(first.path(), &bytes[..bytes.len() - 1]).unwrap();
        assert!(first.read(words(700)).unwrap().is_err());

        // Damage is replaced: a directory in place of the file, a link to the right content, missing permissions.
        let elsewhere = folder.join("elsewhere");
        let damages: [&dyn Fn(); 3] = [
            &|| {
                cache_directory::remove(&first.path());
                fs::create_dir_all(first.path().join("inside")).unwrap();
            },
            &|| {
                fs::rename(first.path(), &elsewhere).unwrap();
                symlink(&elsewhere, first.path()).unwrap();
            },
            &|| fs::set_permissions(first.path(), fs::Permissions::from_mode(0o666)).unwrap(),
        ];
        for damage in damages {
            damage();
            assert!(first.read(words(700)).unwrap().is_err());
            first.write(&made).unwrap();
            assert!(first.read(words(700)).unwrap().is_ok());
        }

        // Lists don't evict each other, except that the least recently used one is removed if there are too many.
        let lists: Vec<Entry> = (701..701 + MOST).map(|count| entry(count, "1")).collect();
        let kept = |entry: &Entry| entry.path().exists();
        for (number, list) in lists.iter().enumerate().take(MOST - 1) {
            list.write(&background(words(701 + number))).unwrap();
            let used = SystemTime::now() - Duration::from_secs(1000 - number as u64);
            File::open(list.path()).unwrap().set_modified(used).unwrap();
        }
        assert!(kept(&first) && lists[..MOST - 1].iter().all(kept));
        assert!(lists[0].read(words(701)).unwrap().is_ok(), "and is now the last one used");
        lists[MOST - 1].write(&background(words(700 + MOST))).unwrap();
        assert!(kept(&first) && kept(&lists[0]) && !kept(&lists[1]) && lists[2..].iter().all(kept));

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
