//! Embedding functions.
//!
//! The one-argument forms read `clip_search.model`, so they are STABLE. With a model argument the result depends only
//! on the arguments, so they are IMMUTABLE by the same convention as `to_tsvector(regconfig, text)`: a model directory
//! is not changed in place. Costs are in `cpu_operator_cost`: an image takes 15–120 ms and a text 4–80 ms, about 10^5
//! operators. A text is usually cached, so its cost is lower, which also keeps the planner from compiling (JIT, from
//! cost 100,000 on) a sequential scan of a few hundred rows.

use pgrx::prelude::*;

use crate::guc;
use crate::model::loaded::{self, Fingerprint};
use crate::pg::call_site::once_per_constant;
use crate::pg::error::SqlResult;
use crate::pg::text::{Text, texts};
use crate::pg::vector::Vector;

/// The vector of a single value.
fn one(mut vectors: Vec<Option<Vector>>) -> Vector {
    vectors.pop().flatten().expect("one value that is not NULL gives one vector")
}

/// In a search by photo, PostgreSQL calls this function for each row. If the photo is a constant in the query, even its
/// fingerprint is computed only once: for a file of 5 MB it takes a few milliseconds.
fn embed_image(model: &str, image: &[u8], call: pg_sys::FunctionCallInfo) -> SqlResult<Vector> {
    loaded::embed_image(model, image, || once_per_constant(call, 0, || Fingerprint::of(image)))
}

#[pg_extern(stable, strict, parallel_safe, cost = 100000)]
fn clip_embed_image(image: &[u8], call: pg_sys::FunctionCallInfo) -> SqlResult<Vector> {
    embed_image(&guc::model(), image, call)
}

#[pg_extern(immutable, strict, parallel_safe, cost = 100000, name = "clip_embed_image")]
fn clip_embed_image_by_model(image: &[u8], model: Text<'_>, call: pg_sys::FunctionCallInfo) -> SqlResult<Vector> {
    let Text(model) = model;
    embed_image(model, image, call)
}

#[pg_extern(stable, strict, parallel_safe, cost = 10000)]
fn clip_embed_text(query: Text<'_>) -> SqlResult<Vector> {
    loaded::embed_texts(&guc::model(), &[Some(query.0)]).map(one)
}

#[pg_extern(immutable, strict, parallel_safe, cost = 10000, name = "clip_embed_text")]
fn clip_embed_text_by_model(query: Text<'_>, model: Text<'_>) -> SqlResult<Vector> {
    let Text(model) = model;
    loaded::embed_texts(model, &[Some(query.0)]).map(one)
}

#[pg_extern(stable, strict, parallel_safe, cost = 1000000)]
fn clip_embed_images(images: Array<&[u8]>) -> SqlResult<Vec<Option<Vector>>> {
    loaded::embed_images(&guc::model(), &images.iter().collect::<Vec<_>>())
}

#[pg_extern(immutable, strict, parallel_safe, cost = 1000000, name = "clip_embed_images")]
fn clip_embed_images_by_model(images: Array<&[u8]>, model: Text<'_>) -> SqlResult<Vec<Option<Vector>>> {
    let Text(model) = model;
    loaded::embed_images(model, &images.iter().collect::<Vec<_>>())
}

#[pg_extern(stable, strict, parallel_safe, cost = 100000)]
fn clip_embed_texts(queries: Array<Text<'_>>) -> SqlResult<Vec<Option<Vector>>> {
    loaded::embed_texts(&guc::model(), &texts(&queries))
}

#[pg_extern(immutable, strict, parallel_safe, cost = 100000, name = "clip_embed_texts")]
fn clip_embed_texts_by_model(queries: Array<Text<'_>>, model: Text<'_>) -> SqlResult<Vec<Option<Vector>>> {
    let Text(model) = model;
    loaded::embed_texts(model, &texts(&queries))
}

#[pg_extern(stable, parallel_restricted)]
fn clip_version() -> String {
    let runtime = match clip::model::session::Runtime::loaded() {
        Some(runtime) => format!("ONNX Runtime {}", runtime.version),
        None => "ONNX Runtime not loaded yet".to_owned(),
    };
    format!("clip_search {} ({runtime})", env!("CARGO_PKG_VERSION"))
}
