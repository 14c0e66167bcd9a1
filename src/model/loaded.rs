//! The backend's models: loaded on first use, kept until it ends.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use clip::embedder::Embedder;
use clip::embedder::logits::{self, Logits};
use clip::model::Model;
use clip::stats::Figures;
use clip::{Error, Kind};
use lru::LruCache;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::ErrorReport;

use crate::guc;
use crate::model::stats;
use crate::pg::error::{SqlResult, report, warn, with_sqlstate};
use crate::pg::interrupt;
use crate::pg::vector::Vector;

/// Longer texts are captions or documents, seldom asked for twice.
const MEMO_TEXT_BYTES: usize = 2048;

/// Sets of labels whose vectors are remembered, per model, to classify row after row; a set of 10,000 is 20 MB.
const MEMO_SETS: usize = 4;
const MEMO_SET_LABELS: usize = 10_000;
/// An image of one white pixel, for finding out how long a model's vectors are.
const PIXEL: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\xff\xff\xff\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";

/// Vectors whose model is remembered, so that clusters can refuse those of another: a trigger assigns what it has
/// just embedded. 8 bytes each, and the name.
const ORIGINS: usize = 1024;

struct Loaded {
    key: Key,
    embedder: Embedder,
    /// Texts that were asked for lately. `ORDER BY embedding <=> clip_embed_text('…')` asks for the same one once a row
    /// wherever no index serves it.
    memo: LruCache<String, Vec<f32>>,
    memo_hits: u64,
    /// Labels and templates -> a vector for each label.
    sets: LruCache<String, Labels>,
    /// A call failed: the model's files are looked up anew by the next, for they may have been mended.
    failed: bool,
}

impl Loaded {
    fn new(key: Key) -> clip::Result<Self> {
        let model = Model::find(&key.search, &key.spec)?;
        let embedder = Embedder::new(model, key.library.clone(), key.threads).with_cache(guc::cache());
        let memo = LruCache::new(NonZeroUsize::MIN);
        let sets = LruCache::new(MEMO_SETS.try_into().expect("not zero"));
        Ok(Self { key, embedder, memo, memo_hits: 0, sets, failed: false })
    }
}

/// Unit vectors of labels, in their order.
pub type Labels = Rc<Vec<Vec<f32>>>;

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
        Self { spec: spec.to_owned(), search: guc::model_path(), library: guc::onnxruntime(), threads }
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
    let key = Key::new(spec, guc::threads());
    let (result, warnings, notes, figures) = MODELS.with(|models| {
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
        let (before, hits, start) = (loaded.embedder.counters, loaded.memo_hits, Instant::now());
        let (result, places) = f(loaded);
        loaded.failed = result.is_err();
        let (after, hits) = (&loaded.embedder.counters, loaded.memo_hits - hits);
        let figures = Figures::of_call(&before, after, start.elapsed(), result.is_err(), hits);
        let place = |mut error: Error| {
            // A single value has no place worth naming.
            error.element = error.element.filter(|_| count > 1).map(|item| places[item]);
            error
        };
        let warnings: Vec<Error> = loaded.embedder.take_warnings().into_iter().map(place).collect();
        clip::Result::Ok((result.map_err(place), warnings, loaded.embedder.take_notes(), figures))
    })?;
    stats::record(spec, &figures);
    // Nothing is borrowed any more, so it may unwind.
    interrupt::raise();
    notes.into_iter().for_each(|note| pgrx::log!("clip_search: {note}"));
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

fn mixed(message: String, detail: String) -> ErrorReport {
    let hint = "Name the model that made the vector: model => …, or clip_search.model.";
    let error = Error::new(Kind::InvalidInput, message).detail(detail).hint(hint);
    with_sqlstate(PgSqlErrorCode::ERRCODE_DATA_EXCEPTION, error)
}

/// Refuses a vector that this session has just embedded by another model.
pub fn check_origin(vector: &[f32], spec: &str) -> SqlResult<()> {
    match model_of(vector) {
        Some(model) if base_name(&model) != base_name(spec) => Err(mixed(
            format!("a vector of model \"{model}\" can't be compared with those of \"{spec}\""),
            format!("It is what \"{model}\" has just returned in this session."),
        )),
        _ => Ok(()),
    }
}

/// Refuses a vector of another length than the model's.
pub fn check_dimensions(found: usize, models: usize, spec: &str) -> SqlResult<()> {
    if found == models {
        return Ok(());
    }
    Err(mixed(
        format!("different vector dimensions {found} and {models}"),
        format!("Vectors of model \"{spec}\" have {models} dimensions; this one has {found}."),
    ))
}

/// Lets a cancel, a timeout or a shutdown act between two pieces of work.
pub fn pulse() {
    pgrx::check_for_interrupts!();
}

/// Embeds the image files that are not NULL with the named model, each into its own place. All or an error.
pub fn embed_images(spec: &str, files: &[Option<&[u8]>]) -> SqlResult<Vec<Option<Vector>>> {
    try_images(spec, files).map_err(report)
}

/// The same, with the error as the engine has it.
pub fn try_images(spec: &str, files: &[Option<&[u8]>]) -> clip::Result<Vec<Option<Vector>>> {
    let limits = interrupt::watched(guc::limits());
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
    let truncate = guc::truncate_text();
    let vectors = with_model(spec, texts.len(), |loaded| {
        let (result, places) = loaded.texts(texts, truncate);
        (result.map(|(vectors, _)| vectors.into_iter().map(|vector| vector.map(Vector)).collect::<Vec<_>>()), places)
    })?;
    note_origin(spec, &vectors);
    Ok(vectors)
}

impl Loaded {
    /// Vectors of the texts that are not NULL, and whether any of them was cut; and which texts the model was given,
    /// since it is not asked for those in the memo.
    #[allow(clippy::type_complexity)]
    fn texts(
        &mut self,
        texts: &[Option<&str>],
        truncate: bool,
    ) -> (clip::Result<(Vec<Option<Vec<f32>>>, bool)>, Vec<usize>) {
        let Self { memo, memo_hits, .. } = self;
        let most = guc::memo_texts();
        match NonZeroUsize::new(most) {
            Some(most) if memo.cap() != most => memo.resize(most),
            Some(_) => {}
            None => memo.clear(),
        }
        let mut vectors: Vec<Option<Vec<f32>>> = texts.iter().map(|text| memo.get((*text)?).cloned()).collect();
        *memo_hits += vectors.iter().flatten().count() as u64;
        let unknown = texts.iter().enumerate().filter(|(i, _)| vectors[*i].is_none());
        let (places, present): (Vec<usize>, Vec<&str>) = unknown.filter_map(|(i, text)| Some((i, (*text)?))).unzip();
        if present.is_empty() {
            return (Ok((vectors, false)), places);
        }
        let embedded = self.embedder.embed_texts(&present, truncate, &mut pulse);
        let result = embedded.map(|embedded| {
            let mut cut = false;
            for ((index, text), item) in places.iter().zip(&present).zip(embedded) {
                cut |= item.truncated;
                // A text that was cut is embedded anew each time, so that its warning is not lost. So many at once
                // that they would push out all others are labels, which are remembered as a set.
                if text.len() <= MEMO_TEXT_BYTES && !item.truncated && present.len() <= most.div_ceil(2) && most > 0 {
                    memo.put((*text).to_owned(), item.vector.clone());
                }
                vectors[*index] = Some(item.vector);
            }
            (vectors, cut)
        });
        (result, places)
    }

    /// A vector for each label: of its text in the template, or the ensemble of several.
    fn labels(&mut self, labels: &[&str], templates: &[&str], truncate: bool) -> (clip::Result<Labels>, Vec<usize>) {
        // No text of PostgreSQL's has a NUL.
        let key = format!("{}\0\0{}", labels.join("\0"), templates.join("\0"));
        if let Some(known) = self.sets.get(&key) {
            return (Ok(known.clone()), Vec::new());
        }
        let prompts: Vec<String> =
            labels.iter().flat_map(|label| templates.iter().map(|template| logits::prompt(template, label))).collect();
        let texts: Vec<Option<&str>> = prompts.iter().map(|prompt| Some(prompt.as_str())).collect();
        let (result, places) = self.texts(&texts, truncate);
        // Several prompts are one label's.
        let places = places.into_iter().map(|place| place / templates.len()).collect();
        let result = result.and_then(|(vectors, cut)| {
            let vectors: Vec<Vec<f32>> = vectors.into_iter().flatten().collect();
            let set: Labels = Rc::new(match templates.len() {
                1 => vectors,
                count => vectors
                    .chunks(count)
                    .map(|prompts| logits::ensemble(prompts.iter().map(Vec::as_slice)))
                    .collect::<clip::Result<_>>()?,
            });
            if !cut && labels.len() <= MEMO_SET_LABELS {
                self.sets.put(key, set.clone());
            }
            Ok(set)
        });
        (result, places)
    }
}

/// Embeds labels for a classification by the named model, and says how it makes probabilities of cosines.
pub fn embed_labels(spec: &str, labels: &[&str], templates: &[&str]) -> SqlResult<(Labels, Logits)> {
    let truncate = guc::truncate_text();
    with_model(spec, labels.len(), |loaded| {
        // Its warnings are about no item, and stay; the labels' would not outlast a call for the scale.
        let logits = match loaded.embedder.logits() {
            Ok(logits) => logits,
            Err(error) => return (Err(error), Vec::new()),
        };
        let (result, places) = loaded.labels(labels, templates, truncate);
        (result.map(|labels| (labels, logits)), places)
    })
    .map_err(report)
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
            remarks.extend(loaded.embedder.take_notes());
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

/// A model that is not loaded yet, whatever this backend has of it.
pub fn fresh(spec: &str) -> SqlResult<Embedder> {
    let model = Model::find(&guc::model_path(), spec).map_err(report)?;
    Ok(Embedder::new(model, guc::onnxruntime(), guc::threads()).with_cache(guc::cache()))
}

/// Looks a model over, loading both of its towers for this alone: (what, value).
pub fn check(spec: &str) -> SqlResult<Vec<(String, String)>> {
    // A path names a directory anywhere; it is split into the directory to search and the name in it.
    let path = Path::new(spec);
    let (search, name) = match (path.is_absolute(), path.parent(), path.file_name().and_then(|n| n.to_str())) {
        (true, Some(parent), Some(name)) => (vec![parent.to_owned()], name),
        _ => (guc::model_path(), spec),
    };
    let model = Model::find(&search, name).map_err(report)?;
    let mut rows = vec![("directory".to_owned(), model.directory.display().to_string())];
    let mut embedder = Embedder::new(model, guc::onnxruntime(), guc::threads());
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
    let search = guc::model_path();
    let describe = |model: &Model, loaded: Option<&Loaded>| Status {
        name: model.name.clone(),
        path: model.directory.display().to_string(),
        dimensions: loaded.map_or_else(|| model.stated_dimensions(), |l| l.embedder.dimensions()).map(|n| n as i32),
        image_loaded: loaded.is_some_and(|l| l.embedder.image_loaded()),
        text_loaded: loaded.is_some_and(|l| l.embedder.text_loaded()),
        images: loaded.map_or(0, |l| l.embedder.counters.images as i64),
        texts: loaded.map_or(0, |l| l.embedder.counters.texts as i64),
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
