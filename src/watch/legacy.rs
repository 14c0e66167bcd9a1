//! Functions as the SQL of 0.2.0 declares them, for a database in which ALTER EXTENSION clip_search UPDATE has not run:
//! there, omitted arguments have that version's defaults, so they are never NULL.

use pgrx::prelude::*;

use crate::pg::error::{SqlResult, given};
use crate::pg::regclass::Regclass;
use crate::pg::text::Text;
use crate::watch::arguments::Arguments;
use crate::watch::backfill;
use crate::watch::define::{choice, watch};
use crate::watch::setting::table_of;
use crate::watch::unwatch;

#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)]
fn clip_watch(
    relation: Option<Regclass>,
    source: Option<Text<'_>>,
    embedding: Option<Text<'_>>,
    cluster: Option<Text<'_>>,
    model: Option<Text<'_>>,
    collection: Option<Text<'_>>,
    mode: Option<Text<'_>>,
    on_error: Option<Text<'_>>,
    text_source: Option<Text<'_>>,
    text_weight: Option<f64>,
    threshold: Option<f64>,
    index: Option<bool>,
) -> SqlResult<()> {
    let (source, embedding, cluster, model) =
        (source.map(Text::str), embedding.map(Text::str), cluster.map(Text::str), model.map(Text::str));
    let (collection, mode, on_error, text_source) =
        (collection.map(Text::str), mode.map(Text::str), on_error.map(Text::str), text_source.map(Text::str));
    let arguments = Arguments {
        source: Some(given("source", source)?),
        text_source,
        text_weight: text_source.map(|_| given("text_weight", text_weight)).transpose()?,
        embedding: given("embedding", embedding)?,
        cluster,
        model,
        collection,
        queued: choice("mode", Some(given("mode", mode)?), "immediate", "queued")?,
        skip: choice("on_error", Some(given("on_error", on_error)?), "raise", "skip")?,
        threshold,
        index: given("index", index)?,
        ..Arguments::default()
    };
    watch(table_of(relation)?, &arguments).map(drop)
}

#[pg_extern(sql = false)]
fn clip_unwatch(relation: Option<Regclass>, embedding: Option<Text<'_>>, keep_columns: Option<bool>) -> SqlResult<()> {
    let embedding = embedding.map(Text::str);
    unwatch::call(relation, embedding, !given("keep_columns", keep_columns)?)
}

#[pg_extern(sql = false)]
fn clip_retry(relation: Option<Regclass>, embedding: Option<Text<'_>>) -> SqlResult<i64> {
    let embedding = embedding.map(Text::str);
    backfill::call(relation, embedding, None)
}
