//! Embedding functions.
//!
//! The one-argument forms read `clip_search.model`, so they are STABLE. With a model argument the result depends only
//! on the arguments, so they are IMMUTABLE by the same convention as `to_tsvector(regconfig, text)`: a model directory
//! is not changed in place. Costs are in `cpu_operator_cost`: an image takes 15–120 ms and a text 4–80 ms, about 10^5
//! operators. A text is usually cached, so its cost is lower, which also keeps the planner from compiling (JIT, from
//! cost 100,000 on) a sequential scan of a few hundred rows.

use clip::{Error, Kind};
use pgrx::prelude::*;

use crate::guc;
use crate::model::loaded::{self, Fingerprint};
use crate::pg::call_site::once_per_constant;
use crate::pg::error::{SqlResult, report};
use crate::pg::text::{Text, texts};
use crate::pg::vector::{Vector, Vectors};

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

/// The size of the largest array of vectors that one call returns, in bytes. While the array is made, the vectors exist twice.
const LARGEST_ARRAY: usize = 256 << 20;
/// Fewer vectors are not too many, whatever the model: the longest have 16,000 components.
const ALWAYS_FIT: usize = LARGEST_ARRAY / (4 * 16_000 + 8);

/// Refuses an array whose vectors would take too much memory, before anything is embedded.
fn check_count(model: &str, count: usize, what: &str, are_images: bool) -> SqlResult<()> {
    if count <= ALWAYS_FIT {
        return Ok(());
    }
    let bytes = 4 * loaded::dimensions(model, are_images)? + 8;
    if count <= LARGEST_ARRAY / bytes {
        return Ok(());
    }
    Err(report(
        Error::new(Kind::LimitExceeded, format!("an array of {count} {what} is too large"))
            .detail(format!(
                "Its vectors would take {} MB; {} MB are allowed.",
                (count * bytes) >> 20,
                LARGEST_ARRAY >> 20
            ))
            .hint(format!("Embed at most {} {what} in one call.", LARGEST_ARRAY / bytes)),
    ))
}

fn embed_images(model: &str, images: &Array<&[u8]>) -> SqlResult<Vectors> {
    let images: Vec<Option<&[u8]>> = images.iter().collect();
    check_count(model, images.iter().flatten().count(), "images", true)?;
    loaded::embed_images(model, &images).map(Vectors)
}

fn embed_texts(model: &str, queries: &Array<Text<'_>>) -> SqlResult<Vectors> {
    let queries = texts(queries);
    check_count(model, queries.iter().flatten().count(), "texts", false)?;
    loaded::embed_texts(model, &queries).map(Vectors)
}

#[pg_extern(stable, strict, parallel_safe, cost = 1000000)]
fn clip_embed_images(images: Array<&[u8]>) -> SqlResult<Vectors> {
    embed_images(&guc::model(), &images)
}

#[pg_extern(immutable, strict, parallel_safe, cost = 1000000, name = "clip_embed_images")]
fn clip_embed_images_by_model(images: Array<&[u8]>, model: Text<'_>) -> SqlResult<Vectors> {
    embed_images(model.0, &images)
}

#[pg_extern(stable, strict, parallel_safe, cost = 100000)]
fn clip_embed_texts(queries: Array<Text<'_>>) -> SqlResult<Vectors> {
    embed_texts(&guc::model(), &queries)
}

#[pg_extern(immutable, strict, parallel_safe, cost = 100000, name = "clip_embed_texts")]
fn clip_embed_texts_by_model(queries: Array<Text<'_>>, model: Text<'_>) -> SqlResult<Vectors> {
    embed_texts(model.0, &queries)
}

#[pg_extern(stable, parallel_restricted)]
fn clip_version() -> String {
    let runtime = match clip::model::session::Runtime::loaded() {
        Some(runtime) => format!("ONNX Runtime {}", runtime.version),
        None => "ONNX Runtime not loaded yet".to_owned(),
    };
    format!("clip_search {} ({runtime})", env!("CARGO_PKG_VERSION"))
}
