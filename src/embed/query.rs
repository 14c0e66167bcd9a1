//! Queries of several terms, and diverse results.
#![allow(unsafe_code)]

use clip::query::{combine, diversify};
use clip::{Error, Kind};
use pgrx::datum::{AnyArray, AnyElement};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::guc;
use crate::model::{loaded, origin};
use crate::pg::error::{SqlResult, different_dimensions, report, with_sqlstate};
use crate::pg::text::{self, Text};
use crate::pg::vector::Vector;

/// The cost equals that of clip_embed_text: most texts are in the cache.
#[pg_extern(stable, parallel_safe, cost = 10000)]
fn clip_query(
    texts: default!(Option<Array<Text<'_>>>, "NULL"),
    weights: default!(Option<Array<f64>>, "NULL"),
    images: default!(Option<Array<&[u8]>>, "NULL"),
    image_weights: default!(Option<Array<f64>>, "NULL"),
    vectors: default!(Option<Array<Vector>>, "NULL"),
    vector_weights: default!(Option<Array<f64>>, "NULL"),
    model: default!(Option<Text<'_>>, "NULL"),
) -> SqlResult<Vector> {
    let model = model.map(Text::str);
    let texts = present(texts.as_ref().map(text::texts).unwrap_or_default(), "text of the query")?;
    let images = present(images.iter().flat_map(|array| array.iter()).collect(), "image of the query")?;
    let mut vectors = present(vectors.iter().flat_map(|array| array.iter()).collect(), "vector of the query")?;
    let mut weights = weights_of(texts.len(), weights, "text")?;
    weights.extend(weights_of(images.len(), image_weights, "image")?);
    weights.extend(weights_of(vectors.len(), vector_weights, "vector")?);
    if weights.is_empty() {
        return Err(report(
            Error::new(Kind::InvalidInput, "query has no terms")
                .hint("As in clip_query('{dog, snow}', '{1, -0.5}', vectors => ARRAY[embedding])."),
        ));
    }

    let named = guc::model_or_default(model);
    let mut terms: Vec<Vector> = Vec::new();
    if !texts.is_empty() {
        let texts: Vec<Option<&str>> = texts.into_iter().map(Some).collect();
        terms.extend(loaded::embed_texts(&named, &texts)?.into_iter().flatten());
    }
    if !images.is_empty() {
        let images: Vec<Option<&[u8]>> = images.into_iter().map(Some).collect();
        terms.extend(loaded::embed_images(&named, &images)?.into_iter().flatten());
    }
    // Without texts and images no model is needed, so vectors of any model are accepted if their lengths match.
    let (known, whose) = match terms.first() {
        Some(first) => (Some(first.0.len()), Some(named)),
        None => (None, model.map(str::to_owned).or_else(|| vectors.iter().find_map(|v| origin::model_of(&v.0)))),
    };
    for vector in &vectors {
        if let Some(whose) = &whose {
            origin::check_origin(&vector.0, whose)?;
        }
        match (known, vectors.first()) {
            (Some(known), _) => origin::check_dimensions(vector.0.len(), known, whose.as_deref().unwrap_or_default())?,
            (None, Some(first)) if first.0.len() != vector.0.len() => {
                return Err(different_dimensions(first.0.len(), vector.0.len()));
            }
            _ => {}
        }
    }
    terms.append(&mut vectors);
    let terms: Vec<(f64, &[f32])> = weights.into_iter().zip(terms.iter().map(|term| term.0.as_slice())).collect();
    combine(&terms).map(Vector).map_err(report)
}

/// The elements of an array, none of which may be NULL: a photo that was not found must not be omitted silently.
fn present<T>(terms: Vec<Option<T>>, what: &str) -> SqlResult<Vec<T>> {
    let one = |(index, term): (usize, Option<T>)| {
        term.ok_or_else(|| report(Error::new(Kind::InvalidInput, format!("{what} is null")).element(index)))
    };
    terms.into_iter().enumerate().map(one).collect()
}

/// The weights of the terms of one kind; 1 each by default.
fn weights_of(terms: usize, weights: Option<Array<f64>>, what: &str) -> SqlResult<Vec<f64>> {
    let Some(weights) = weights else { return Ok(vec![1.0; terms]) };
    let weights: Vec<f64> = present(weights.iter().collect(), &format!("weight of a {what} in the query"))?;
    if weights.len() != terms {
        return Err(report(
            Error::new(Kind::InvalidInput, format!("{what}s and weights of the query differ in number"))
                .detail(format!("There are {terms} {what}s and {} weights.", weights.len())),
        ));
    }
    Ok(weights)
}

#[pg_extern(immutable, strict, parallel_safe, cost = 10000)]
fn clip_diversify(
    query: Vector,
    ids: AnyArray,
    embeddings: Array<Vector>,
    k: default!(i32, "10"),
    lambda: default!(f64, "0.5"),
) -> Result<TableIterator<'static, (name!(id, Option<AnyElement>), name!(rank, i32), name!(score, f64))>, ErrorReport> {
    let bad = |message: String| Error::new(Kind::InvalidInput, message);
    if k < 1 {
        return Err(report(bad(format!("k is {k}, and must be at least 1"))));
    }
    if !(0.0..=1.0).contains(&lambda) {
        return Err(report(
            bad(format!("lambda {lambda} is not from 0 to 1"))
                .detail("1 ranks by nearness to the query alone, 0 by difference to what is chosen already."),
        ));
    }
    let ids = elements(ids);
    let embeddings = present(embeddings.iter().collect(), "embedding")?;
    if ids.len() != embeddings.len() {
        return Err(report(bad("ids and embeddings differ in number".to_owned()).detail(format!(
            "There are {} ids and {} embeddings.",
            ids.len(),
            embeddings.len()
        ))));
    }
    if let Some(index) = embeddings.iter().position(|embedding| embedding.0.len() != query.0.len()) {
        let (found, wanted) = (embeddings[index].0.len(), query.0.len());
        return Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            bad(format!("different vector dimensions {found} and {wanted}")).element(index),
        ));
    }
    let zero = || bad("zero vector has no direction".to_owned());
    if is_zero(&query) {
        return Err(report(zero().detail("It is the query.")));
    }
    if let Some(index) = embeddings.iter().position(is_zero) {
        return Err(report(zero().element(index)));
    }
    let candidates: Vec<&[f32]> = embeddings.iter().map(|embedding| embedding.0.as_slice()).collect();
    let chosen = diversify(&query.0, &candidates, k as usize, lambda, &mut loaded::check_interrupts);
    let rows: Vec<_> = chosen.into_iter().zip(1..).map(|((place, score), rank)| (ids[place], rank, score)).collect();
    Ok(TableIterator::new(rows))
}

fn is_zero(vector: &Vector) -> bool {
    vector.0.iter().all(|component| *component == 0.0)
}

/// The elements of an array of any type, in the current memory context.
fn elements(array: AnyArray) -> Vec<Option<AnyElement>> {
    let (mut length, mut by_value, mut alignment) = (0, false, 0);
    let (mut datums, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
    // SAFETY: the argument is declared `anyarray` and strict, so the datum is an array; it is copied, because the
    // argument does not outlive the first row. deconstruct_array returns `count` datums and flags, whose values are in
    // the copy. Nothing is freed before the memory context, which for a set-returning function is freed after the last
    // row.
    unsafe {
        let copy = pg_sys::pg_detoast_datum_copy(array.datum().cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        let element = (*copy).elemtype;
        pg_sys::get_typlenbyvalalign(element, &mut length, &mut by_value, &mut alignment);
        let (length, elements) = (i32::from(length), &mut datums);
        pg_sys::deconstruct_array(copy, element, length, by_value, alignment, elements, &mut nulls, &mut count);
        (0..count as usize)
            .map(|i| AnyElement::from_polymorphic_datum(*datums.add(i), *nulls.add(i), element))
            .collect()
    }
}
