//! Embedding functions.
//!
//! The one-argument forms read `clip_search.model`, so they are STABLE; with the model named the result is
//! a function of its arguments, IMMUTABLE by the same convention as `to_tsvector(regconfig, text)`: a model
//! directory is not changed in place. Costs are in `cpu_operator_cost`: an image takes 15–120 ms and a text
//! 4–80 ms, some 10^5 operators; a text is usually remembered, so its cost is set lower, which also keeps
//! the planner from compiling (JIT, from cost 100,000 on) a sequential scan of a few hundred rows.

use clip::image::info::info;
use clip::image::thumbnail::{Format, thumbnail};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::guc;
use crate::model::loaded;
use crate::pg::error::{SqlResult, report};
use crate::pg::text::{Text, texts};
use crate::pg::vector::Vector;

/// The vector of a single value.
fn one(mut vectors: Vec<Option<Vector>>) -> Vector {
    vectors.pop().flatten().expect("one value that is not NULL gives one vector")
}

#[pg_extern(stable, strict, parallel_safe, cost = 100000)]
fn clip_embed_image(image: &[u8]) -> SqlResult<Vector> {
    loaded::embed_images(&guc::model(), &[Some(image)]).map(one)
}

#[pg_extern(immutable, strict, parallel_safe, cost = 100000, name = "clip_embed_image")]
fn clip_embed_image_by_model(image: &[u8], model: &str) -> SqlResult<Vector> {
    loaded::embed_images(model, &[Some(image)]).map(one)
}

#[pg_extern(stable, strict, parallel_safe, cost = 10000)]
fn clip_embed_text(query: Text<'_>) -> SqlResult<Vector> {
    loaded::embed_texts(&guc::model(), &[Some(query.0)]).map(one)
}

#[pg_extern(immutable, strict, parallel_safe, cost = 10000, name = "clip_embed_text")]
fn clip_embed_text_by_model(query: Text<'_>, model: &str) -> SqlResult<Vector> {
    loaded::embed_texts(model, &[Some(query.0)]).map(one)
}

#[pg_extern(stable, strict, parallel_safe, cost = 1000000)]
fn clip_embed_images(images: Array<&[u8]>) -> SqlResult<Vec<Option<Vector>>> {
    loaded::embed_images(&guc::model(), &images.iter().collect::<Vec<_>>())
}

#[pg_extern(immutable, strict, parallel_safe, cost = 1000000, name = "clip_embed_images")]
fn clip_embed_images_by_model(images: Array<&[u8]>, model: &str) -> SqlResult<Vec<Option<Vector>>> {
    loaded::embed_images(model, &images.iter().collect::<Vec<_>>())
}

#[pg_extern(stable, strict, parallel_safe, cost = 100000)]
fn clip_embed_texts(queries: Array<Text<'_>>) -> SqlResult<Vec<Option<Vector>>> {
    loaded::embed_texts(&guc::model(), &texts(&queries))
}

#[pg_extern(immutable, strict, parallel_safe, cost = 100000, name = "clip_embed_texts")]
fn clip_embed_texts_by_model(queries: Array<Text<'_>>, model: &str) -> SqlResult<Vec<Option<Vector>>> {
    loaded::embed_texts(model, &texts(&queries))
}

#[pg_extern(stable, strict, parallel_safe, cost = 50000)]
fn clip_thumbnail(image: &[u8], edge: default!(i32, "256"), format: default!(&str, "'jpeg'")) -> SqlResult<Vec<u8>> {
    let format = Format::named(format).map_err(report)?;
    thumbnail(image, u32::try_from(edge).unwrap_or(0), format, &guc::limits()).map_err(report)
}

#[pg_extern(immutable, strict, parallel_safe, cost = 100)]
#[allow(clippy::type_complexity)]
fn clip_image_info(
    image: &[u8],
) -> Result<
    TableIterator<
        'static,
        (
            name!(format, String),
            name!(width, i64),
            name!(height, i64),
            name!(orientation, i32),
            name!(channels, i32),
            name!(frames, i64),
            name!(bytes, i64),
        ),
    >,
    ErrorReport,
> {
    let info = info(image).map_err(report)?;
    Ok(TableIterator::once((
        info.format.to_owned(),
        i64::from(info.width),
        i64::from(info.height),
        i32::from(info.orientation),
        i32::from(info.channels),
        i64::from(info.frames),
        info.bytes as i64,
    )))
}

#[pg_extern(stable, parallel_restricted)]
fn clip_version() -> String {
    let runtime = match clip::model::session::Runtime::loaded() {
        Some(runtime) => format!("ONNX Runtime {}", runtime.version),
        None => "ONNX Runtime not loaded yet".to_owned(),
    };
    format!("clip_search {} ({runtime})", env!("CARGO_PKG_VERSION"))
}
