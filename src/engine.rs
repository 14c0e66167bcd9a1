//! The backend's models: loaded on first use, kept until it ends.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use clip::Error;
use clip::embedder::Embedder;
use clip::model::Model;
use lru::LruCache;

use crate::error::{SqlResult, report, warn};
use crate::settings;
use crate::vector::Vector;

/// Query texts whose vectors are remembered, per model. `ORDER BY embedding <=> clip_embed_text('…')` asks
/// for the same text once a row wherever no index serves it; 256 vectors of 512 dimensions are 0.5 MB.
const MEMO_TEXTS: usize = 256;
/// Longer texts are captions or documents, seldom asked for twice.
const MEMO_TEXT_BYTES: usize = 2048;

/// An image of one white pixel, for finding out how long a model's vectors are.
const PIXEL: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\xff\xff\xff\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";

/// Vectors whose model is remembered, so that clusters can refuse those of another: a trigger assigns what it has
/// just embedded. 8 bytes each, and the name.
const ORIGINS: usize = 1024;

struct Loaded {
    key: Key,
    embedder: Embedder,
    memo: LruCache<String, Vec<f32>>,
    /// A call failed: the model's files are looked up anew by the next, for they may have been mended.
    failed: bool,
}

impl Loaded {
    fn new(key: Key) -> clip::Result<Self> {
        let model = Model::find(&key.search, &key.spec)?;
        let embedder = Embedder::new(model, key.library.clone(), key.threads);
        let memo = LruCache::new(MEMO_TEXTS.try_into().expect("not zero"));
        Ok(Self { key, embedder, memo, failed: false })
    }
}

/// What a loaded model depends on; a change of any reloads it.
#[derive(PartialEq)]
struct Key {
    spec: String,
    search: Vec<PathBuf>,
    library: PathBuf,
    threads: usize,
}

impl Key {
    /// The key of a model under the settings that are in force.
    fn new(spec: &str, threads: usize) -> Self {
        Self { spec: spec.to_owned(), search: settings::model_path(), library: settings::onnxruntime(), threads }
    }
}

thread_local! {
    /// Leaked on purpose: at the end of a process ONNX Runtime's threads may be gone, and joining them would hang.
    static MODELS: &'static RefCell<Vec<Loaded>> = Box::leak(Box::default());
    /// A vector's hash -> the model that made it.
    static ORIGIN: RefCell<LruCache<u64, Rc<str>>> = RefCell::new(LruCache::new(ORIGINS.try_into().expect("not zero")));
}

/// What `clip_models()` shows of a model.
pub struct Status {
    pub name: String,
    pub path: String,
    pub dimensions: Option<i32>,
    pub image_loaded: bool,
    pub text_loaded: bool,
    pub images: i64,
    pub texts: i64,
}

/// Runs `f` with the model of that name, and shows what it has to remark.
///
/// `f` returns its result with the places that its items have in what the user gave, so that errors and
/// warnings can name them.
fn with_model<T>(
    spec: &str,
    count: usize,
    f: impl FnOnce(&mut Loaded) -> (clip::Result<T>, Vec<usize>),
) -> clip::Result<T> {
    let key = Key::new(spec, settings::threads());
    let (result, warnings) = MODELS.with(|models| {
        let mut models = models.borrow_mut();
        let index = match models.iter().position(|loaded| loaded.key == key) {
            Some(index) => {
                let loaded = &mut models[index];
                if loaded.failed && !loaded.embedder.image_loaded() && !loaded.embedder.text_loaded() {
                    // Nothing of it is in use, so all goes, a graph that both towers share included.
                    *loaded = Loaded::new(key)?;
                } else if loaded.failed {
                    loaded.embedder.model = Model::find(&key.search, spec)?;
                }
                index
            }
            None => {
                let loaded = Loaded::new(key)?;
                // A model of the same name under other settings makes room: two copies would double the memory.
                models.retain(|loaded| loaded.key.spec != spec);
                models.push(loaded);
                models.len() - 1
            }
        };
        let loaded = &mut models[index];
        let (result, places) = f(loaded);
        loaded.failed = result.is_err();
        let place = |mut error: Error| {
            // A single value has no place worth naming.
            error.element = error.element.filter(|_| count > 1).map(|item| places[item]);
            error
        };
        let warnings: Vec<Error> = loaded.embedder.take_warnings().into_iter().map(place).collect();
        clip::Result::Ok((result.map_err(place), warnings))
    })?;
    // Raised only now that nothing is borrowed, since a WARNING can run a hook.
    warnings.into_iter().for_each(warn);
    result
}

fn hash(vector: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    vector.iter().for_each(|value| value.to_bits().hash(&mut hasher));
    hasher.finish()
}

/// Notes by which model vectors were made.
fn note_origin(spec: &str, vectors: &[Option<Vector>]) {
    let name: Rc<str> = spec.into();
    ORIGIN.with_borrow_mut(|origins| {
        // More would push out each other.
        for vector in vectors.iter().flatten().take(ORIGINS) {
            origins.put(hash(&vector.0), name.clone());
        }
    });
}

/// The model that has made a vector in this session, if that was not long ago.
pub fn model_of(vector: &[f32]) -> Option<String> {
    ORIGIN.with_borrow_mut(|origins| origins.get(&hash(vector)).map(|name| name.to_string()))
}

/// A model's name without its variant: those of one model are close enough to be compared.
pub fn base_name(spec: &str) -> &str {
    spec.split(':').next().unwrap_or(spec)
}

/// Lets a cancel, a timeout or a shutdown act between two pieces of work.
fn pulse() {
    pgrx::check_for_interrupts!();
}

/// Embeds the image files that are not NULL with the named model, each into its own place. All or an error.
pub fn embed_images(spec: &str, files: &[Option<&[u8]>]) -> SqlResult<Vec<Option<Vector>>> {
    try_images(spec, files).map_err(report)
}

/// The same, with the error as the engine has it.
pub fn try_images(spec: &str, files: &[Option<&[u8]>]) -> clip::Result<Vec<Option<Vector>>> {
    let limits = settings::limits();
    let vectors = with_model(spec, files.len(), |loaded| {
        let (places, present): (Vec<usize>, Vec<&[u8]>) =
            files.iter().enumerate().filter_map(|(i, file)| Some((i, (*file)?))).unzip();
        let embedded = loaded.embedder.embed_images(&present, &limits, &mut pulse);
        let result = embedded.map(|embedded| {
            let mut vectors = vec![None; files.len()];
            for (index, vector) in places.iter().zip(embedded) {
                vectors[*index] = Some(Vector(vector));
            }
            vectors
        });
        (result, places)
    })?;
    note_origin(spec, &vectors);
    Ok(vectors)
}

/// Embeds the texts that are not NULL with the named model, each into its own place. All or an error.
pub fn embed_texts(spec: &str, texts: &[Option<&str>]) -> SqlResult<Vec<Option<Vector>>> {
    try_texts(spec, texts).map_err(report)
}

/// The same, with the error as the engine has it.
pub fn try_texts(spec: &str, texts: &[Option<&str>]) -> clip::Result<Vec<Option<Vector>>> {
    let truncate = settings::truncate_text();
    let vectors = with_model(spec, texts.len(), |loaded| {
        let memo = &mut loaded.memo;
        let mut vectors: Vec<Option<Vector>> =
            texts.iter().map(|text| memo.get((*text)?).cloned().map(Vector)).collect();
        let unknown = texts.iter().enumerate().filter(|(i, _)| vectors[*i].is_none());
        let (places, present): (Vec<usize>, Vec<&str>) = unknown.filter_map(|(i, text)| Some((i, (*text)?))).unzip();
        if present.is_empty() {
            return (Ok(vectors), places);
        }
        let embedded = loaded.embedder.embed_texts(&present, truncate, &mut pulse);
        let result = embedded.map(|embedded| {
            for ((index, text), item) in places.iter().zip(&present).zip(embedded) {
                // A text that was cut is embedded anew each time, so that its warning is not lost.
                if text.len() <= MEMO_TEXT_BYTES && !item.truncated {
                    memo.put((*text).to_owned(), item.vector.clone());
                }
                vectors[*index] = Some(Vector(item.vector));
            }
            vectors
        });
        (result, places)
    })?;
    note_origin(spec, &vectors);
    Ok(vectors)
}

/// How long the vectors of a model are that it makes of images, or of texts. It is tried, so a model that can't is an
/// error.
pub fn dimensions(spec: &str, images: bool) -> SqlResult<usize> {
    let made = if images { embed_images(spec, &[Some(PIXEL)])? } else { embed_texts(spec, &[Some("a photo")])? };
    Ok(made.into_iter().flatten().map(|vector| vector.0.len()).sum())
}

/// Loads both towers of each model, for this process and those that it forks. Returns what there is to remark.
pub fn preload(specs: &[String]) -> Result<Vec<String>, String> {
    MODELS.with(|models| {
        let mut models = models.borrow_mut();
        let mut remarks = Vec::new();
        for spec in specs {
            // One thread: a pool would not survive the fork.
            let mut loaded = Loaded::new(Key::new(spec, 1)).map_err(|e| e.to_string())?;
            loaded.embedder.load().map_err(|e| e.to_string())?;
            remarks.extend(loaded.embedder.take_warnings().iter().map(ToString::to_string));
            models.push(loaded);
        }
        Ok(remarks)
    })
}

/// Uses each preloaded model once, in a process that has inherited it.
pub fn try_preloaded(specs: &[String]) -> Result<(), String> {
    MODELS.with(|models| {
        for loaded in models.borrow().iter().filter(|loaded| specs.contains(&loaded.key.spec)) {
            loaded.embedder.try_out().map_err(|e| e.to_string())?;
        }
        Ok(())
    })
}

/// Looks a model over, loading both of its towers for this alone: (what, value).
pub fn check(spec: &str) -> SqlResult<Vec<(String, String)>> {
    // A path names a directory anywhere; it is split into the directory to search and the name in it.
    let path = Path::new(spec);
    let (search, name) = match (path.is_absolute(), path.parent(), path.file_name().and_then(|n| n.to_str())) {
        (true, Some(parent), Some(name)) => (vec![parent.to_owned()], name),
        _ => (settings::model_path(), spec),
    };
    let model = Model::find(&search, name).map_err(report)?;
    let mut rows = vec![("directory".to_owned(), model.directory.display().to_string())];
    let mut embedder = Embedder::new(model, settings::onnxruntime(), settings::threads());
    let mut verdict = Vec::new();
    for (what, value) in embedder.describe() {
        match value {
            Ok(value) => rows.push((what.to_owned(), value)),
            Err(error) => verdict.push(format!("{what}: {error}")),
        }
    }
    if let Some(dimensions) = embedder.dimensions() {
        rows.push(("dimensions".to_owned(), dimensions.to_string()));
    }
    if verdict.is_empty() {
        let cosines = embedder.tell_colours().map_err(report)?;
        let shown: Vec<String> = cosines.iter().map(|row| row.map(|c| format!("{c:.3}")).join(" ")).collect();
        rows.push(("red, green, blue: texts by images".to_owned(), shown.join("; ")));
        let told = (0..3).all(|text| (0..3).all(|image| image == text || cosines[text][text] > cosines[text][image]));
        verdict.extend((!told).then(|| {
            "it does not tell red, green and blue squares apart, as a CLIP that is exported rightly does".to_owned()
        }));
    }
    verdict.extend(embedder.take_warnings().iter().map(ToString::to_string));
    let verdict = if verdict.is_empty() { "good".to_owned() } else { verdict.join("; ") };
    rows.push(("verdict".to_owned(), verdict));
    Ok(rows)
}

/// Every model on the search path, with what this backend has done with it.
pub fn status() -> Vec<Status> {
    let search = settings::model_path();
    let describe = |model: &Model, loaded: Option<&Loaded>| Status {
        name: model.name.clone(),
        path: model.directory.display().to_string(),
        dimensions: loaded.map_or_else(|| model.stated_dimensions(), |l| l.embedder.dimensions()).map(|n| n as i32),
        image_loaded: loaded.is_some_and(|l| l.embedder.image_loaded()),
        text_loaded: loaded.is_some_and(|l| l.embedder.text_loaded()),
        images: loaded.map_or(0, |l| l.embedder.images as i64),
        texts: loaded.map_or(0, |l| l.embedder.texts as i64),
    };
    MODELS.with(|models| {
        let models = models.borrow();
        let mut rows: Vec<Status> = Model::list(&search)
            .iter()
            .map(|model| {
                describe(
                    model,
                    models
                        .iter()
                        .find(|l| l.embedder.model.name == model.name && l.embedder.model.directory == model.directory),
                )
            })
            .collect();
        // Variants and pairs are loaded under their own names, beside the directories that they come from.
        let composed = |l: &&Loaded| l.key.spec.contains([':', '+']);
        rows.extend(models.iter().filter(composed).map(|l| describe(&l.embedder.model, Some(l))));
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    })
}
