//! Optimised graphs on disk. A process maps their weights instead of reading and copying them.
//!
//! ONNX Runtime reads a graph's weights into memory, rewrites the graph, and copies the weights again into the layout
//! for its matrix products: 1 s and 580 MB for the image tower of ViT-B/32, in every process. A graph that was
//! rewritten before, with its weights in a separate file, is mapped instead, and all processes share its pages: 20 ms,
//! and 9 MB of private memory.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, DirBuilder, File};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::cache_directory;

/// The file of weights in a graph's directory.
pub const WEIGHTS: &str = "weights.bin";
const GRAPH: &str = "graph.onnx";
const REFUSAL: &str = "refusal";
/// The file that records the state of the other files when they were complete. A checksum of 350 MB of weights would
/// take longer than mapping them.
const SEAL: &str = "seal";
/// Drafts of a process that died are removed after this time. After a failed write, on a full disk for example, the
/// next attempt waits this long, because each attempt takes as long as loading the graph.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Graphs for another version of the library, or for another CPU, are removed if no process has loaded them for this
/// time. Until then, another server that shares the directory may use them.
const UNUSED: Duration = Duration::from_secs(24 * 3600);

/// How a cached graph was processed.
#[derive(Clone, Copy, Debug, Hash, PartialEq)]
pub enum Form {
    /// Optimized by ONNX Runtime.
    Optimized,
    /// Quantized ([`crate::model::quantize`]) and optimized.
    Int8,
}

/// The place of a graph in the cache.
pub struct Entry {
    cache: PathBuf,
    /// A hash of the path of the source graph.
    source: String,
    /// A hash of the state of the source graph's files.
    state: String,
    directory: PathBuf,
}

impl Entry {
    /// The place of the graph in `file`, processed in this form by this version of the library on this CPU. None if the
    /// state of the file can't be read, or if the cache can't be trusted ([`cache_directory::check`]).
    ///
    /// The state of all files beside the graph counts, because they may contain its weights.
    pub fn of(cache: &Path, file: &Path, version: &str, form: Form) -> Option<Self> {
        cache_directory::check(cache).ok()?;
        let file = file.canonicalize().ok()?;
        let [mut source, mut state, mut build] = [(); 3].map(|()| DefaultHasher::new());
        (&file, form).hash(&mut source);
        hash_state(file.parent()?, &mut state)?;
        (version, std::env::consts::ARCH, cpu(), env!("CARGO_PKG_VERSION")).hash(&mut build);
        let [source, state, build] = [source, state, build].map(|hasher| format!("{:016x}", hasher.finish()));
        let directory = cache.join(format!("{source}-{state}-{build}"));
        Some(Self { cache: cache.to_owned(), source, state, directory })
    }

    /// The cached graph, if it exists, belongs to this user, and has not changed since it was written.
    pub fn graph(&self) -> Option<PathBuf> {
        if !cache_directory::is_own_directory(&self.directory)
            || cache_directory::read(&self.directory.join(SEAL)).ok()? != seal(&self.directory)?
        {
            return None;
        }
        if cache_directory::age(&self.directory).is_some_and(|age| age > PATIENCE) {
            cache_directory::touch(&self.directory);
            self.sweep();
        }
        Some(self.directory.join(GRAPH))
    }

    /// The recorded reason why the graph can't be created, if there is one.
    pub fn refusal(&self) -> Option<String> {
        if !cache_directory::is_own_directory(&self.directory) {
            return None;
        }
        cache_directory::read(&self.directory.join(REFUSAL)).ok()
    }

    /// Records the reason why the graph can't be created, so that other processes don't try again.
    pub fn refuse(&self, why: &str) {
        let _ = DirBuilder::new().mode(0o700).create(&self.directory);
        if cache_directory::is_own_directory(&self.directory) {
            let _ = cache_directory::replace_text(&self.directory.join(REFUSAL), why);
        }
    }

    /// Waits until no other process writes this entry, and locks it for the lifetime of the file. None if it can't be
    /// locked. `waiting` is called ten times a second; it may unwind.
    pub fn lock(&self, waiting: &mut dyn FnMut()) -> Option<File> {
        cache_directory::create(&self.cache).ok()?;
        let file = cache_directory::open_or_create(&self.cache.join(format!("lock-{}", self.source))).ok()?;
        loop {
            match file.try_lock() {
                Ok(()) => return Some(file),
                Err(fs::TryLockError::WouldBlock) => waiting(),
                Err(fs::TryLockError::Error(_)) => return None,
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Removes the entry.
    pub fn remove(&self) {
        cache_directory::remove(&self.directory);
    }

    /// The reason why an attempt to write the entry failed recently, if one did.
    pub fn failure(&self) -> Option<String> {
        let failed = self.failed();
        if is_young(&failed) { cache_directory::read(&failed).ok() } else { None }
    }

    fn failed(&self) -> PathBuf {
        self.directory.with_extension("failed")
    }

    /// Calls `write`, which writes the graph to a path and its weights to [`WEIGHTS`] beside it, and then moves both
    /// into place. None if this failed recently.
    ///
    /// # Errors
    /// The reason why the graph could not be written, in one line.
    pub fn write(&self, write: impl FnOnce(&Path) -> Result<(), String>) -> Option<Result<(), String>> {
        if self.failure().is_some() {
            return None;
        }
        let result = self.try_write(write);
        if let Err(why) = &result {
            // The draft has been removed by now: a full disk has room for this file only then.
            let _ = cache_directory::replace_text(&self.failed(), why);
        }
        Some(result)
    }

    fn try_write(&self, write: impl FnOnce(&Path) -> Result<(), String>) -> Result<(), String> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |e: std::io::Error| format!("\"{}\": {e}", path.display())
        };
        cache_directory::create(&self.cache).map_err(at(&self.cache))?;
        self.sweep();
        let draft = self.cache.join(format!("draft-{}-{}", self.source, std::process::id()));
        cache_directory::remove(&draft);
        DirBuilder::new().mode(0o700).create(&draft).map_err(at(&draft))?;
        // The draft is also removed when a cancelled query unwinds, because it may take a gigabyte.
        let _draft = Draft(&draft);
        write(&draft.join(GRAPH)).and_then(|()| {
            // Without the sync, a crash of the machine could leave files with the right length and no content.
            for entry in fs::read_dir(&draft).map_err(at(&draft))?.flatten() {
                File::open(entry.path()).and_then(|file| file.sync_all()).map_err(at(&entry.path()))?;
            }
            let sealed = seal(&draft).ok_or_else(|| format!("\"{}\" lacks the graph", draft.display()))?;
            cache_directory::replace_text(&draft.join(SEAL), &sealed).map_err(at(&draft))?;
            match fs::rename(&draft, &self.directory) {
                // Another process was faster.
                Err(_) if self.graph().is_some() => Ok(()),
                other => other.map_err(at(&self.directory)),
            }
        })
    }

    /// Removes entries for earlier states of the source, unused entries for other versions of the library, and drafts
    /// of processes that died.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.cache).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let of_source = name.starts_with(&format!("{}-", self.source)) && path != self.directory;
            let of_state = name.starts_with(&format!("{}-{}-", self.source, self.state));
            let unused = cache_directory::age(&path).is_none_or(|age| age > UNUSED);
            let abandoned = name.starts_with("draft-") && !is_young(&path);
            if of_source && (unused || !of_state) || abandoned {
                cache_directory::remove(&path);
            }
        }
    }
}

/// The state of an entry's graph and weights, as text.
fn seal(directory: &Path) -> Option<String> {
    let graph = cache_directory::state(&directory.join(GRAPH))?;
    // A small graph has no separate weights.
    let weights = cache_directory::state(&directory.join(WEIGHTS)).unwrap_or_default();
    Some(format!("{graph}\n{weights}\n"))
}

/// Hashes the state of a directory's files: length, inode, and the times of the last change of content and of status,
/// to the nanosecond. Hashing the content of 600 MB would take as long as loading it. None if the state of a file can't
/// be read.
pub(crate) fn hash_state(directory: &Path, state: &mut impl Hasher) -> Option<()> {
    let mut files: Vec<_> = fs::read_dir(directory).ok()?.collect::<Result<_, _>>().ok()?;
    files.sort_by_key(fs::DirEntry::file_name);
    for file in files {
        let about = fs::metadata(file.path()).ok()?;
        file.file_name().hash(state);
        (about.len(), about.ino(), about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()).hash(state);
    }
    Some(())
}

/// A directory that is removed on drop, unless it has been renamed.
struct Draft<'a>(&'a Path);

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        cache_directory::remove(self.0);
    }
}

/// Whether a running process may still be writing to the path.
pub(crate) fn is_young(path: &Path) -> bool {
    cache_directory::age(path).is_some_and(|age| age < PATIENCE)
}

/// The CPU features that affect how a graph is rewritten. They count because a data directory can move to another
/// machine.
fn cpu() -> Vec<bool> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        vec![
            has!("avx"),
            has!("avx2"),
            has!("fma"),
            has!("avx512f"),
            has!("avx512bw"),
            has!("avx512vnni"),
            has!("avx512bf16"),
            has!("avxvnni"),
        ]
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::is_aarch64_feature_detected as has;
        vec![has!("dotprod"), has!("fp16"), has!("i8mm"), has!("bf16"), has!("sve")]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::SystemTime;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("clip-cache-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("model")).unwrap();
        fs::write(folder.join("model/graph.onnx"), "graph").unwrap();
        folder
    }

    fn draft(path: &Path) -> Result<(), String> {
        fs::write(path, "better graph").map_err(|e| e.to_string())
    }

    #[test]
    fn an_entry_stands_until_its_source_changes() {
        let folder = folder("stands");
        let (cache, file) = (folder.join("cache"), folder.join("model/graph.onnx"));
        let entry = Entry::of(&cache, &file, "1", Form::Optimized).unwrap();
        assert_eq!(entry.graph(), None);
        assert_eq!(entry.write(draft), Some(Ok(())));
        assert_eq!(fs::read_to_string(entry.graph().unwrap()).unwrap(), "better graph");
        assert!(Entry::of(&cache, &file, "1", Form::Optimized).unwrap().graph().is_some());
        // Another version of the library has its own graph, which is removed if no process has used it for a day.
        let other = Entry::of(&cache, &file, "2", Form::Optimized).unwrap();
        assert!(other.graph().is_none());
        assert_eq!(other.write(draft), Some(Ok(())));
        assert!(entry.graph().is_some() && other.graph().is_some());
        let hours =
            |ago| File::open(&entry.directory).unwrap().set_modified(SystemTime::now() - ago * PATIENCE).unwrap();
        hours(25);
        assert!(entry.graph().is_some());
        other.sweep();
        assert!(entry.graph().is_some(), "it has just been used");
        hours(25);
        other.sweep();
        assert!(entry.graph().is_none() && other.graph().is_some());
        // The weights beside the graph are part of its state.
        fs::write(folder.join("model/graph.onnx_data"), "weights").unwrap();
        let changed = Entry::of(&cache, &file, "1", Form::Optimized).unwrap();
        assert!(changed.graph().is_none());
        assert_eq!(changed.write(draft), Some(Ok(())));
        let left: Vec<_> = fs::read_dir(&cache).unwrap().flatten().map(|e| e.path()).collect();
        assert_eq!(left, std::slice::from_ref(&changed.directory), "the outdated one goes");
        changed.remove();
        assert!(changed.graph().is_none());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_failure_leaves_nothing_and_is_not_repeated_at_once() {
        let folder = folder("fails");
        let (cache, file) = (folder.join("cache"), folder.join("model/graph.onnx"));
        let entry = Entry::of(&cache, &file, "1", Form::Optimized).unwrap();
        let full = |path: &Path| {
            draft(path)?;
            Err("no space left".to_owned())
        };
        assert_eq!(entry.write(full), Some(Err("no space left".to_owned())));
        assert!(entry.graph().is_none());
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1, "a note of the failure only");
        assert_eq!(entry.write(draft), None);
        let old = SystemTime::now() - 2 * PATIENCE;
        assert_eq!(entry.failure().as_deref(), Some("no space left"));
        File::options().write(true).open(entry.failed()).unwrap().set_modified(old).unwrap();
        assert_eq!(entry.failure(), None);
        assert_eq!(entry.write(draft), Some(Ok(())));
        assert!(entry.graph().is_some());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        let folder = folder("denied");
        fs::write(folder.join("cache"), "a file, not a directory").unwrap();
        let entry = Entry::of(&folder.join("cache"), &folder.join("model/graph.onnx"), "1", Form::Optimized).unwrap();
        let said = entry.write(draft).unwrap().unwrap_err();
        assert!(said.contains("cache\": "), "{said}");
        assert!(Entry::of(&folder, &folder.join("nothing"), "1", Form::Optimized).is_none());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_was_changed_or_planted_is_not_used() {
        let folder = folder("planted");
        let (cache, file) = (folder.join("cache"), folder.join("model/graph.onnx"));
        let entry = Entry::of(&cache, &file, "1", Form::Int8).unwrap();
        let write = || {
            entry.remove();
            assert_eq!(entry.write(draft), Some(Ok(())));
            assert!(entry.graph().is_some());
        };
        let (graph, elsewhere) = (entry.directory.join(GRAPH), folder.join("elsewhere"));
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        // The damages: other content of the same length, a link to the same content, a missing seal, other weights, a
        // directory that others can write to, files without permissions.
        let damages: [&dyn Fn(); 7] = [
            &|| fs::write(&graph, "worse! graph").unwrap(),
            &|| {
                fs::rename(&graph, &elsewhere).unwrap();
                symlink(&elsewhere, &graph).unwrap();
            },
            &|| fs::remove_file(entry.directory.join(SEAL)).unwrap(),
            &|| fs::write(entry.directory.join(WEIGHTS), "weights").unwrap(),
            &|| mode(&entry.directory, 0o777),
            &|| mode(&graph, 0o000),
            &|| {
                fs::rename(&entry.directory, folder.join("moved")).unwrap();
                symlink(folder.join("moved"), &entry.directory).unwrap();
            },
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            write();
            std::thread::sleep(Duration::from_millis(20));
            damage();
            assert_eq!(entry.graph(), None, "damage {number}");
        }
        // A file in place of the directory.
        entry.remove();
        fs::write(&entry.directory, "a file").unwrap();
        assert!(entry.graph().is_none() && entry.refusal().is_none());
        write();
        entry.remove();
        // Every name that is written to becomes a link.
        let precious = folder.join("precious");
        fs::write(&precious, "precious").unwrap();
        let lock = cache.join(format!("lock-{}", entry.source));
        symlink(&precious, &lock).unwrap();
        symlink(&precious, entry.failed()).unwrap();
        assert!(entry.lock(&mut || ()).is_some());
        assert_eq!(entry.write(|_| Err("no".to_owned())), Some(Err("no".to_owned())));
        assert_eq!(entry.failure().as_deref(), Some("no"));
        symlink(&folder, &entry.directory).unwrap();
        entry.refuse("why");
        assert!(!folder.join(REFUSAL).exists() && entry.refusal().is_none(), "not through the link");
        entry.remove();
        fs::create_dir(&entry.directory).unwrap();
        mode(&entry.directory, 0o700);
        symlink(&precious, entry.directory.join(REFUSAL)).unwrap();
        assert_eq!(entry.refusal(), None);
        entry.refuse("why");
        assert_eq!(entry.refusal().as_deref(), Some("why"));
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        // A cache that others can write to.
        mode(&cache, 0o777);
        assert!(Entry::of(&cache, &file, "1", Form::Int8).is_none());
        fs::remove_dir_all(folder).unwrap();
    }
}
