//! Zero-shot classification.

use clip::embedder::logits;
use clip::memory::Reserve;
use clip::vector::l2_normalize;
use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::guc;
use crate::model::{loaded, origin};
use crate::pg::error::{SqlResult, report};
use crate::pg::text::{Text, texts};
use crate::pg::vector::Vector;

pub type Rows = TableIterator<'static, (name!(label, String), name!(probability, f64))>;

#[pg_extern(stable, parallel_safe, cost = 100000)]
fn clip_classify(
    image: Option<&[u8]>,
    labels: Option<Array<Text<'_>>>,
    template: default!(Option<Text<'_>>, "'a photo of a {}'"),
    model: default!(Option<Text<'_>>, "NULL"),
) -> Result<TableIterator<'static, (name!(label, String), name!(probability, f64))>, ErrorReport> {
    let model = model.map(Text::str);
    match (image, labels, template) {
        (Some(image), Some(labels), Some(template)) => {
            classify_image(image, texts(&labels), vec![Some(template.0)], model)
        }
        _ => Ok(TableIterator::empty()),
    }
}

#[pg_extern(stable, parallel_safe, cost = 100000, name = "clip_classify")]
fn clip_classify_by_templates(
    image: Option<&[u8]>,
    labels: Option<Array<Text<'_>>>,
    templates: Option<Array<Text<'_>>>,
    model: default!(Option<Text<'_>>, "NULL"),
) -> Result<TableIterator<'static, (name!(label, String), name!(probability, f64))>, ErrorReport> {
    let model = model.map(Text::str);
    match (image, labels, templates) {
        (Some(image), Some(labels), Some(templates)) => classify_image(image, texts(&labels), texts(&templates), model),
        _ => Ok(TableIterator::empty()),
    }
}

#[pg_extern(stable, parallel_safe, cost = 10000, name = "clip_classify")]
fn clip_classify_vector(
    embedding: Option<Vector>,
    labels: Option<Array<Text<'_>>>,
    template: default!(Option<Text<'_>>, "'a photo of a {}'"),
    model: default!(Option<Text<'_>>, "NULL"),
) -> Result<TableIterator<'static, (name!(label, String), name!(probability, f64))>, ErrorReport> {
    let model = model.map(Text::str);
    match (embedding, labels, template) {
        (Some(embedding), Some(labels), Some(template)) => {
            classify_vector(embedding, texts(&labels), vec![Some(template.0)], model)
        }
        _ => Ok(TableIterator::empty()),
    }
}

#[pg_extern(stable, parallel_safe, cost = 10000, name = "clip_classify")]
fn clip_classify_vector_by_templates(
    embedding: Option<Vector>,
    labels: Option<Array<Text<'_>>>,
    templates: Option<Array<Text<'_>>>,
    model: default!(Option<Text<'_>>, "NULL"),
) -> Result<TableIterator<'static, (name!(label, String), name!(probability, f64))>, ErrorReport> {
    let model = model.map(Text::str);
    match (embedding, labels, templates) {
        (Some(embedding), Some(labels), Some(templates)) => {
            classify_vector(embedding, texts(&labels), texts(&templates), model)
        }
        _ => Ok(TableIterator::empty()),
    }
}

fn classify_image(
    image: &[u8],
    labels: Vec<Option<&str>>,
    templates: Vec<Option<&str>>,
    model: Option<&str>,
) -> SqlResult<Rows> {
    let model = guc::model_or_default(model);
    let (labels, templates) = check(labels, templates)?;
    let vector = loaded::embed_images(&model, &[Some(image)])?.pop().flatten();
    let vector = vector.expect("one value that is not NULL gives one vector");
    classify(&vector.0, &labels, &templates, &model)
}

pub fn classify_vector(
    Vector(mut vector): Vector,
    labels: Vec<Option<&str>>,
    templates: Vec<Option<&str>>,
    model: Option<&str>,
) -> SqlResult<Rows> {
    let model = guc::model_or_default(model);
    let (labels, templates) = check(labels, templates)?;
    origin::check_origin(&vector, &model)?;
    l2_normalize(&mut vector).map_err(report)?;
    classify(&vector, &labels, &templates, &model)
}

/// The labels and the templates, if they can be used.
fn check<'a>(labels: Vec<Option<&'a str>>, templates: Vec<Option<&'a str>>) -> SqlResult<(Vec<&'a str>, Vec<&'a str>)> {
    let (labels, templates) = (present(labels, "label")?, present(templates, "template")?);
    for template in &templates {
        if !template.contains(logits::PLACE) {
            let shown: String = template.chars().take(200).collect();
            return Err(report(
                Error::new(Kind::InvalidInput, format!("template \"{shown}\" has no place for the label"))
                    .hint("Put {} where the label belongs, as in 'a photo of a {}'."),
            ));
        }
    }
    Ok((labels, templates))
}

/// At least one text, of which none is NULL or blank.
pub fn present<'a>(texts: Vec<Option<&'a str>>, what: &str) -> SqlResult<Vec<&'a str>> {
    let bad = |message: String| Error::new(Kind::InvalidInput, message);
    if texts.is_empty() {
        return Err(report(bad(format!("there is no {what}")).detail("The array is empty.")));
    }
    let one = |(index, text): (usize, Option<&'a str>)| match text {
        None => Err(report(bad(format!("{what} is null")).element(index))),
        Some(text) if text.trim().is_empty() => Err(report(bad(format!("{what} is empty")).element(index))),
        Some(text) => Ok(text),
    };
    texts.into_iter().enumerate().map(one).collect()
}

/// Labels with their probabilities, the most probable first, equally probable labels in the given order.
fn classify(vector: &[f32], labels: &[&str], templates: &[&str], model: &str) -> SqlResult<Rows> {
    let (cosines, logits) = loaded::label_cosines(model, vector, labels, templates)?;
    let bytes = labels.iter().map(|label| label.len() + size_of::<(String, f64)>()).sum();
    let reserve = Reserve::new(bytes).map_err(report)?;
    let mut rows: Vec<(String, f64)> =
        labels.iter().map(|label| (*label).to_owned()).zip(logits.probabilities(&cosines)).collect();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    reserve.finish().map_err(report)?;
    Ok(TableIterator::new(rows))
}
