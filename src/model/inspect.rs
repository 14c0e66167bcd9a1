//! The list of models, and the check of one model: `clip_models()`, `clip_check_model()`.

use std::path::Path;

use clip::embedder::Embedder;
use clip::model::Model;
use pgrx::prelude::*;

use crate::guc;
use crate::model::cache;
use crate::model::loaded::{self, Loaded, announce, check_interrupts};
use crate::pg::interrupt;
use crate::pg::text::Text;

#[pg_extern(stable, parallel_restricted)]
#[allow(clippy::type_complexity)]
fn clip_models() -> TableIterator<
    'static,
    (
        name!(name, String),
        name!(path, String),
        name!(dimensions, Option<i32>),
        name!(selected, bool),
        name!(loaded, bool),
        name!(image_loaded, bool),
        name!(text_loaded, bool),
        name!(images, i64),
        name!(texts, i64),
    ),
> {
    let selected = guc::model_name();
    TableIterator::new(status().into_iter().map(move |m| {
        let is_selected = m.name == selected;
        let loaded = m.image_loaded || m.text_loaded;
        (m.name, m.path, m.dimensions, is_selected, loaded, m.image_loaded, m.text_loaded, m.images, m.texts)
    }))
}

#[pg_extern(volatile, strict, parallel_restricted)]
fn clip_check_model(model: Text<'_>) -> TableIterator<'static, (name!(item, String), name!(value, String))> {
    let Text(model) = model;
    TableIterator::new(check(model))
}

/// A row of `clip_models()`.
struct Status {
    name: String,
    path: String,
    dimensions: Option<i32>,
    image_loaded: bool,
    text_loaded: bool,
    images: i64,
    texts: i64,
}

/// Checks a model, and loads both towers temporarily. Returns pairs of item and value; the last pair is the verdict.
fn check(spec: &str) -> Vec<(String, String)> {
    // A path names a directory anywhere; it is split into the directory to search and the name in it.
    let path = Path::new(spec);
    let (search, name) = match (path.is_absolute(), path.parent(), path.file_name().and_then(|n| n.to_str())) {
        (true, Some(parent), Some(name)) => (vec![parent.to_owned()], name),
        _ => (guc::model_path(), spec),
    };
    match Model::find(&search, name) {
        Ok(model) => {
            interrupt::watch_runs();
            let cache = cache::directory();
            let rows = Embedder::new(model, guc::onnxruntime(), guc::threads())
                .with_cache(cache)
                .with_interrupts(check_interrupts)
                .with_announcements(announce)
                .check(guc::name);
            interrupt::raise();
            rows
        }
        Err(error) => {
            let hint = error.hint_for(guc::name).map(|hint| format!(" {hint}")).unwrap_or_default();
            vec![("verdict".to_owned(), format!("{error}{hint}"))]
        }
    }
}

/// Every model on the search path, with its use by this backend.
fn status() -> Vec<Status> {
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
    loaded::with_all(|models| {
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
        // Variants and pairs are loaded under their own names, in addition to the directories that they come from.
        let composed = |l: &&Loaded| l.key.spec.contains([':', '+']);
        rows.extend(models.iter().filter(composed).map(|l| describe(&l.embedder.model, Some(l))));
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    })
}
