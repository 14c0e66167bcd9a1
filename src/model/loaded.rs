//! The backend's models: loaded on first use, kept until it ends.

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use clip::embedder::Embedder;
use clip::embedder::logits::{self, Logits};
use clip::image::Limits;
use clip::model::Model;
use clip::stats::Figures;
use clip::vector::cosine;
use clip::{Error, Kind};
use lru::LruCache;
use pgrx::PgLogLevel;

use crate::guc;
use crate::model::cache;
pub use crate::model::image_memo::Fingerprint;
use crate::model::image_memo::ImageMemo;
use crate::model::origin::{self, note_origin};
pub use crate::model::origin::{base_name, model_of};
use crate::model::stats;
use crate::pg::error::{SqlResult, report, warn};
use crate::pg::interrupt;
use crate::pg::vector::Vector;

/// Longer texts are not cached: they are captions or documents, which are seldom repeated.
const MEMO_TEXT_BYTES: usize = 2048;

/// The number of label sets per model whose vectors are cached, to classify row after row; a set of 10,000 labels takes
/// 20 MB.
const MEMO_SETS: usize = 4;
const MEMO_SET_LABELS: usize = 10_000;
const MEMO_SET_BYTES: usize = 1 << 20;
/// The maximum number of prompts in memory, and their maximum total size in bytes.
const PROMPT_BATCH: usize = 256;
const PROMPT_BYTES: usize = 4 << 20;
/// An image of one white pixel, to find out the length of a model's vectors.
const PIXEL: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\xff\xff\xff\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";

pub(super) struct Loaded {
    pub(super) key: Key,
    pub(super) embedder: Embedder,
    /// Recently embedded texts. Without an index, `ORDER BY embedding <=> clip_embed_text('…')` embeds the same text
    /// once per row.
    memo: LruCache<String, Vec<f32>>,
    image_memo: ImageMemo,
    memo_hits: u64,
    /// Labels and templates -> a vector for each label.
    sets: LruCache<String, Vec<Vec<f32>>>,
    /// The last call failed: the next one looks up the model's files again, because they may have been repaired.
    failed: bool,
}

/// Raises a NOTICE before work that takes minutes.
pub fn announce(what: &str) {
    let notice = Error::new(Kind::InvalidInput, format!("{what}, which takes up to some minutes and is done once"))
        .detail("It is kept in the cache (clip_search.cache_path) for all connections.");
    report(notice).report(PgLogLevel::NOTICE);
}

impl Loaded {
    fn new(key: Key, cache: Option<PathBuf>) -> clip::Result<Self> {
        let model = Model::find(&key.search, &key.spec)?;
        let embedder = Embedder::new(model, key.library.clone(), key.threads)
            .with_cache(cache)
            .with_interrupts(check_interrupts)
            .with_announcements(announce);
        let memo = LruCache::new(NonZeroUsize::MIN);
        let sets = LruCache::new(MEMO_SETS.try_into().expect("not zero"));
        Ok(Self { key, embedder, memo, image_memo: ImageMemo::new(), memo_hits: 0, sets, failed: false })
    }
}

/// The values that a loaded model depends on; a change of any value reloads it.
#[derive(PartialEq)]
pub(super) struct Key {
    pub(super) spec: String,
    search: Vec<PathBuf>,
    library: PathBuf,
    threads: usize,
}

impl Key {
    /// The key of a model under the current settings.
    fn new(spec: &str, threads: usize) -> Self {
        Self { spec: spec.to_owned(), search: guc::model_path(), library: guc::onnxruntime(), threads }
    }
}

thread_local! {
    /// Leaked on purpose: at the end of a process ONNX Runtime's threads may have ended, and joining them would hang.
    static MODELS: &'static RefCell<Vec<Loaded>> = Box::leak(Box::default());
}

/// Runs `f` with the model of this name, and raises its warnings.
///
/// `f` returns its result with the positions of its items in the user's argument, so that errors and warnings can name
/// them.
fn with_model<T>(
    spec: &str,
    count: usize,
    f: impl FnOnce(&mut Loaded) -> (clip::Result<T>, Vec<usize>),
) -> clip::Result<T> {
    interrupt::watch_runs();
    let key = Key::new(spec, guc::threads());
    let cache = cache::directory();
    let (result, warnings, notes, figures) = MODELS.with(|models| {
        let mut models = models.borrow_mut();
        let index = match models.iter().position(|loaded| loaded.key == key) {
            Some(index) => {
                let loaded = &mut models[index];
                if loaded.failed && !loaded.embedder.image_loaded() && !loaded.embedder.text_loaded() {
                    // No part of it is in use, so all of it is dropped, including a graph that both towers share.
                    *loaded = Loaded::new(key, cache)?;
                } else if loaded.failed {
                    loaded.embedder.model = Model::find(&key.search, spec)?;
                }
                index
            }
            None => {
                let loaded = Loaded::new(key, cache)?;
                // A model of the same name under other settings is dropped: two copies would double the memory.
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
            // For a single value, errors don't need to name a position.
            error.element = error.element.filter(|_| count > 1).map(|item| places[item]);
            error
        };
        let warnings: Vec<Error> = loaded.embedder.take_warnings().into_iter().map(place).collect();
        clip::Result::Ok((result.map_err(place), warnings, loaded.embedder.take_notes(), figures))
    })?;
    stats::record(spec, &figures);
    // Nothing is borrowed any more, so this may unwind.
    interrupt::raise();
    notes.into_iter().for_each(|note| pgrx::log!("clip_search: {note}"));
    // Raised only when nothing is borrowed, because a WARNING can run a hook.
    warnings.into_iter().for_each(warn);
    result
}

/// Lets a cancel, a timeout or a shutdown take effect between two pieces of work.
pub fn check_interrupts() {
    pgrx::check_for_interrupts!();
}

/// An image file, with its fingerprint if its embedding may come from the cache.
#[derive(Clone, Copy)]
struct Image<'a> {
    file: &'a [u8],
    fingerprint: Option<Fingerprint>,
}

/// Embeds the image files that are not NULL with the named model, each at its own position. Returns all embeddings or
/// an error.
pub fn embed_images(spec: &str, files: &[Option<&[u8]>]) -> SqlResult<Vec<Option<Vector>>> {
    // A larger array would evict all other images, and bulk loading embeds each photo only once.
    let remembers = files.len() <= guc::memo_images().div_ceil(2);
    let image = |file| Image { file, fingerprint: remembers.then(|| Fingerprint::of(file)) };
    let images: Vec<Option<Image<'_>>> = files.iter().map(|file| file.map(image)).collect();
    images_of(spec, &images).map_err(report)
}

/// Embeds one image file, whose fingerprint is computed only if the cache is enabled.
pub fn embed_image(spec: &str, file: &[u8], fingerprint: impl FnOnce() -> Fingerprint) -> SqlResult<Vector> {
    let image = Image { file, fingerprint: (guc::memo_images() > 0).then(fingerprint) };
    let vector = images_of(spec, &[Some(image)]).map_err(report)?.pop().flatten();
    Ok(vector.expect("one value that is not NULL gives one vector"))
}

/// Embeds images of rows without caching them; returns the engine's error unchanged.
pub fn try_images(spec: &str, files: &[Option<&[u8]>]) -> clip::Result<Vec<Option<Vector>>> {
    let images: Vec<Option<Image<'_>>> =
        files.iter().map(|file| file.map(|file| Image { file, fingerprint: None })).collect();
    images_of(spec, &images)
}

fn images_of(spec: &str, images: &[Option<Image<'_>>]) -> clip::Result<Vec<Option<Vector>>> {
    let limits = interrupt::watched(guc::limits());
    let vectors = with_model(spec, images.len(), |loaded| loaded.images(images, &limits))?;
    let vectors: Vec<Option<Vector>> = vectors.into_iter().map(|vector| vector.map(Vector)).collect();
    note_origin(spec, &vectors);
    Ok(vectors)
}

/// Embeds the texts that are not NULL with the named model, each at its own position. Returns all embeddings or an
/// error.
pub fn embed_texts(spec: &str, texts: &[Option<&str>]) -> SqlResult<Vec<Option<Vector>>> {
    try_texts(spec, texts).map_err(report)
}

/// As above, but returns the engine's error unchanged.
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
    /// Vectors of the images that are not NULL, and the indexes of the images that the model embedded.
    #[allow(clippy::type_complexity)]
    fn images(
        &mut self,
        images: &[Option<Image<'_>>],
        limits: &Limits,
    ) -> (clip::Result<Vec<Option<Vec<f32>>>>, Vec<usize>) {
        let Self { image_memo, memo_hits, embedder, .. } = self;
        image_memo.resize(guc::memo_images());
        let mut vectors: Vec<Option<Vec<f32>>> =
            images.iter().map(|image| image_memo.get((*image)?.fingerprint?, limits)).collect();
        *memo_hits += vectors.iter().flatten().count() as u64;
        let unknown = images.iter().enumerate().filter(|(i, _)| vectors[*i].is_none());
        let (places, present): (Vec<usize>, Vec<Image<'_>>) =
            unknown.filter_map(|(i, image)| Some((i, (*image)?))).unzip();
        if present.is_empty() {
            return (Ok(vectors), places);
        }
        let files: Vec<&[u8]> = present.iter().map(|image| image.file).collect();
        let embedded = embedder.embed_images(&files, limits, &mut check_interrupts);
        let result = embedded.map(|embedded| {
            // An image with a warning is not cached, so that the warning is repeated each time.
            let warnings = embedder.take_warnings();
            for (item, (image, vector)) in present.iter().zip(embedded).enumerate() {
                let is_sound = warnings.iter().all(|warning| warning.element != Some(item));
                if let Some(fingerprint) = image.fingerprint.filter(|_| is_sound) {
                    image_memo.put(fingerprint, limits, vector.clone());
                }
                vectors[places[item]] = Some(vector);
            }
            embedder.add_warnings(warnings);
            vectors
        });
        (result, places)
    }

    /// Vectors of the texts that are not NULL, whether any text was truncated, and the indexes of the texts that the
    /// model embedded because they were not in the cache.
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
        let embedded = self.embedder.embed_texts(&present, truncate, &mut check_interrupts);
        let result = embedded.map(|embedded| {
            let mut cut = false;
            for ((index, text), item) in places.iter().zip(&present).zip(embedded) {
                cut |= item.truncated;
                // A truncated text is not cached, so that its warning is repeated each time. An array that would evict
                // all other texts consists of labels, which are cached as a set.
                if text.len() <= MEMO_TEXT_BYTES && !item.truncated && present.len() <= most.div_ceil(2) && most > 0 {
                    memo.put((*text).to_owned(), item.vector.clone());
                }
                vectors[*index] = Some(item.vector);
            }
            (vectors, cut)
        });
        (result, places)
    }

    /// The cosines of a vector to the labels: to each label's text in the template, or to the ensemble of several
    /// templates. Prompts are created and embedded in batches, so many labels take no more memory than their cosines.
    fn cosines(
        &mut self,
        vector: &[f32],
        labels: &[&str],
        templates: &[&str],
        truncate: bool,
    ) -> clip::Result<LabelCosines> {
        let bytes: usize = labels.iter().chain(templates).map(|text| text.len()).sum();
        let remembers = labels.len() <= MEMO_SET_LABELS && bytes <= MEMO_SET_BYTES;
        // Texts in PostgreSQL contain no NUL.
        let key = remembers.then(|| format!("{}\0\0{}", labels.join("\0"), templates.join("\0")));
        if let Some(known) = key.as_ref().and_then(|key| self.sets.get(key)) {
            return Ok(LabelCosines::of(known, vector));
        }
        let mut cosines: Vec<f64> = clip::memory::with_capacity(labels.len())?;
        let (mut set, mut any_cut, mut warnings) = (Vec::new(), false, Vec::new());
        let mut pairs = (0..labels.len()).flat_map(|label| templates.iter().map(move |template| (label, *template)));
        let mut of_label: Vec<Vec<f32>> = Vec::new();
        loop {
            let (mut prompts, mut owners, mut bytes) = (Vec::new(), Vec::new(), 0);
            while prompts.len() < PROMPT_BATCH && bytes < PROMPT_BYTES {
                let Some((label, template)) = pairs.next() else { break };
                let prompt = logits::prompt(template, labels[label]).map_err(|e| e.element(label))?;
                bytes += prompt.len();
                prompts.push(prompt);
                owners.push(label);
            }
            if prompts.is_empty() {
                break;
            }
            let texts: Vec<Option<&str>> = prompts.iter().map(|prompt| Some(prompt.as_str())).collect();
            let (result, places) = self.texts(&texts, truncate);
            // Several prompts belong to one label.
            let place = |mut error: Error| {
                error.element = error.element.map(|item| owners[places[item]]);
                error
            };
            // The warnings of the next batch would displace these.
            warnings.extend(self.embedder.take_warnings().into_iter().map(place));
            let (vectors, cut) = result.map_err(place)?;
            any_cut |= cut;
            for prompt in vectors.into_iter().flatten() {
                of_label.push(prompt);
                if of_label.len() < templates.len() {
                    continue;
                }
                let label = match of_label.len() {
                    1 => of_label.pop().unwrap_or_default(),
                    _ => logits::ensemble(std::mem::take(&mut of_label).iter().map(Vec::as_slice))?,
                };
                if label.len() != vector.len() {
                    return Ok(LabelCosines { width: label.len(), cosines: Vec::new() });
                }
                cosines.push(cosine(&label, vector));
                if remembers {
                    set.push(label);
                }
            }
        }
        self.embedder.add_warnings(warnings);
        // A set with a truncated text is not cached, so that the warning is repeated each time.
        if let Some(key) = key.filter(|_| !any_cut) {
            self.sets.put(key, set);
        }
        Ok(LabelCosines { width: vector.len(), cosines })
    }
}

/// The cosines of a vector to labels; empty if the labels' vectors have a different length.
struct LabelCosines {
    width: usize,
    cosines: Vec<f64>,
}

impl LabelCosines {
    fn of(labels: &[Vec<f32>], vector: &[f32]) -> Self {
        let width = labels.first().map_or(vector.len(), Vec::len);
        let fits = width == vector.len();
        let cosines = labels.iter().filter(|_| fits).map(|label| cosine(label, vector)).collect();
        Self { width, cosines }
    }
}

/// The cosines of a vector to labels, and the model's conversion to probabilities.
pub fn label_cosines(spec: &str, vector: &[f32], labels: &[&str], templates: &[&str]) -> SqlResult<(Vec<f64>, Logits)> {
    let truncate = guc::truncate_text();
    let (found, logits) = with_model(spec, labels.len(), |loaded| {
        // Warnings about the model concern no label, and remain for the next call. Calling logits() after the labels
        // would lose the warnings about them.
        let result = loaded
            .embedder
            .logits()
            .and_then(|logits| loaded.cosines(vector, labels, templates, truncate).map(|cosines| (cosines, logits)));
        (result, (0..labels.len()).collect())
    })
    .map_err(report)?;
    origin::check_dimensions(vector.len(), found.width, spec)?;
    Ok((found.cosines, logits))
}

/// Dimensions of a model's vectors for images, or for texts. Runs the model, so a model that can't embed them is an
/// error.
pub fn dimensions(spec: &str, images: bool) -> SqlResult<usize> {
    let made = match images {
        true => try_images(spec, &[Some(PIXEL)]).map_err(report)?,
        false => embed_texts(spec, &[Some("a photo")])?,
    };
    Ok(made.into_iter().flatten().map(|vector| vector.0.len()).sum())
}

/// Loads both towers of each model, for this process and the processes that it forks. Returns the warnings.
pub fn preload(specs: &[String]) -> Result<Vec<String>, String> {
    let cache = cache::directory();
    MODELS.with(|models| {
        let mut models = models.borrow_mut();
        let mut remarks = Vec::new();
        for spec in specs {
            // One thread, because a thread pool would not survive the fork.
            let mut loaded = Loaded::new(Key::new(spec, 1), cache.clone()).map_err(|e| e.to_string())?;
            let model = loaded.embedder.model.clone();
            // The server's start can't wait the minutes that quantizing a model takes.
            loaded.embedder =
                Embedder::new(model, loaded.key.library.clone(), 1).with_cache(cache.clone()).without_making();
            loaded.embedder.load().map_err(|e| match e.hint_for(guc::name) {
                Some(hint) => format!("{e} {hint}"),
                None => e.to_string(),
            })?;
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

/// Runs `f` with the models that this backend has loaded.
pub(super) fn with_all<T>(f: impl FnOnce(&[Loaded]) -> T) -> T {
    MODELS.with(|models| f(&models.borrow()))
}

/// A model that is not loaded yet, regardless of earlier copies in this backend.
pub fn fresh(spec: &str) -> SqlResult<Embedder> {
    let model = Model::find(&guc::model_path(), spec).map_err(report)?;
    Ok(Embedder::new(model, guc::onnxruntime(), guc::threads()).with_cache(cache::directory()))
}
