//! `clip_relevance`, and `clip_explain`, which says why a photo matches.

use clip::relevance::relevance;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::guc;
use crate::model::{background, loaded};
use crate::pg::error::{SqlResult, check_range, report};
use crate::pg::text::Text;
use crate::pg::vector::Vector;

/// A call takes 0.2 ms; `cost` is in `cpu_operator_cost`.
#[pg_extern(stable, parallel_safe, cost = 1000)]
fn clip_relevance(
    embedding: Option<Vector>,
    query: Option<Text<'_>>,
    model: default!(Option<Text<'_>>, "NULL"),
) -> SqlResult<Option<f64>> {
    let (Some(Vector(vector)), Some(Text(query))) = (embedding, query) else { return Ok(None) };
    let model = guc::model_or_default(model.map(Text::str));
    let words = background::of(&model)?;
    let photo = background::photo(&words, vector, &model)?;
    let text = background::texts(&words, &[Some(query)], &model)?;
    Ok(text.first().map(|text| relevance(photo.score(text))))
}

#[pg_extern(stable, parallel_safe, cost = 2000)]
#[allow(clippy::type_complexity)]
fn clip_explain(
    embedding: Option<Vector>,
    query: Option<Text<'_>>,
    k: default!(Option<i32>, "5"),
    model: default!(Option<Text<'_>>, "NULL"),
) -> Result<TableIterator<'static, (name!(word, String), name!(in_photo, f64), name!(in_query, f64))>, ErrorReport> {
    let (Some(Vector(vector)), Some(Text(query)), Some(k)) = (embedding, query, k) else {
        return Ok(TableIterator::empty());
    };
    let k = check_range("k", k, i32::MAX)?;
    let model = guc::model_or_default(model.map(Text::str));
    let words = background::of(&model)?;
    let photo = background::photo(&words, vector, &model)?;
    let text = loaded::embed_texts(&model, &[Some(query)])?.pop().flatten();
    let Some(Vector(text)) = text else { return Ok(TableIterator::empty()) };
    let text = words.photo(&text).map_err(report)?;
    let shared = words.shared(&photo, &text, k as usize);
    let rows: Vec<_> =
        shared.into_iter().map(|s| (words.words[s.word].clone(), relevance(s.photo), relevance(s.text))).collect();
    Ok(TableIterator::new(rows))
}

/// Embeds the words ahead of the first search; returns their number.
#[pg_extern(volatile, parallel_restricted, cost = 1000000)]
fn clip_prepare_words(model: default!(Option<Text<'_>>, "NULL")) -> SqlResult<i32> {
    let model = guc::model_or_default(model.map(Text::str));
    Ok(background::of(&model)?.words.len() as i32)
}
