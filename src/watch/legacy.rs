//! Functions as the SQL of 0.2.0 declares them, for a database where ALTER EXTENSION clip_search UPDATE is yet to be run:
//! arguments that are left out there have the defaults of that version, and so say something.

use pgrx::prelude::*;

use crate::pg::error::{SqlResult, given};
use crate::pg::regclass::Regclass;
use crate::watch::backfill;
use crate::watch::define::{choice, watch};
use crate::watch::setting::table_of;
use crate::watch::unwatch;
use crate::watch::wanted::Wanted;

#[pg_extern(sql = false)]
#[allow(clippy::too_many_arguments)]
fn clip_watch(
    relation: Option<Regclass>,
    source: Option<&str>,
    embedding: Option<&str>,
    cluster: Option<&str>,
    model: Option<&str>,
    collection: Option<&str>,
    mode: Option<&str>,
    on_error: Option<&str>,
    text_source: Option<&str>,
    text_weight: Option<f64>,
    threshold: Option<f64>,
    index: Option<bool>,
) -> SqlResult<()> {
    let wanted = Wanted {
        source: Some(given("source", source)?),
        text_source,
        text_weight: Some(given("text_weight", text_weight)?),
        embedding: given("embedding", embedding)?,
        cluster,
        model,
        collection,
        queued: choice("mode", Some(given("mode", mode)?), "immediate", "queued")?,
        skip: choice("on_error", Some(given("on_error", on_error)?), "raise", "skip")?,
        threshold,
        index: given("index", index)?,
        half: false,
        replaces: None,
        existing: None,
        key: None,
        labels: None,
        image: None,
    };
    watch(table_of(relation)?, &wanted).map(drop)
}

#[pg_extern(sql = false)]
fn clip_unwatch(relation: Option<Regclass>, embedding: Option<&str>, keep_columns: Option<bool>) -> SqlResult<()> {
    unwatch::call(relation, embedding, !given("keep_columns", keep_columns)?)
}

#[pg_extern(sql = false)]
fn clip_retry(relation: Option<Regclass>, embedding: Option<&str>) -> SqlResult<i64> {
    backfill::call(relation, embedding, None)
}
