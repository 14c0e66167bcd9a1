//! Which models there are, and whether one works: `clip_models()`, `clip_check_model()`.

use std::path::Path;

use clip::embedder::Embedder;
use clip::model::Model;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::guc;
use crate::model::loaded::{self, Loaded};
use crate::pg::error::{SqlResult, report};

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
    let selected = guc::model();
    TableIterator::new(status().into_iter().map(move |m| {
        let is_selected = m.name == selected;
        let loaded = m.image_loaded || m.text_loaded;
        (m.name, m.path, m.dimensions, is_selected, loaded, m.image_loaded, m.text_loaded, m.images, m.texts)
    }))
}

#[pg_extern(volatile, strict, parallel_restricted)]
fn clip_check_model(
    model: &str,
) -> Result<TableIterator<'static, (name!(item, String), name!(value, String))>, ErrorReport> {
    check(model).map(TableIterator::new)
}

/// What `clip_models()` shows of a model.
struct Status {
    name: String,
    path: String,
    dimensions: Option<i32>,
    image_loaded: bool,
    text_loaded: bool,
    images: i64,
    texts: i64,
}

/// Looks a model over, loading both of its towers for this alone: (what, value).
fn check(spec: &str) -> SqlResult<Vec<(String, String)>> {
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
        // Variants and pairs are loaded under their own names, beside the directories that they come from.
        let composed = |l: &&Loaded| l.key.spec.contains([':', '+']);
        rows.extend(models.iter().filter(composed).map(|l| describe(&l.embedder.model, Some(l))));
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    })
}
