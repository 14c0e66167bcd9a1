//! The source of a row's embedding: an image, a text, or the mean of both.

use clip::vector::l2_normalize;
use clip::{Error, Kind};

use crate::model::loaded;
use crate::pg::vector::Vector;
use crate::watch::setting::Watch;

/// The source of a row's embedding.
pub struct Source<'a> {
    pub image: Option<&'a [u8]>,
    pub text: Option<&'a str>,
}

/// Whether an error concerns one row; others, such as a missing model, would affect every row.
pub fn is_of_row(error: &Error) -> bool {
    !matches!(error.kind, Kind::UnknownModel | Kind::MissingFile | Kind::BadModel | Kind::DiskFull)
}

/// Embeds rows: each gets its vector, or none if it has no source, or its own error. `Err` is an error of the model.
pub fn embed(watch: &Watch, rows: &[Source<'_>]) -> Result<Vec<Result<Option<Vector>, Error>>, Error> {
    let images: Vec<Option<&[u8]>> = rows.iter().map(|row| row.image).collect();
    // An empty caption counts as no caption.
    let both = watch.image.is_some();
    let texts: Vec<Option<&str>> =
        rows.iter().map(|row| row.text.filter(|text| !both || !text.trim().is_empty())).collect();
    let images = singly(&images, |items| loaded::try_images(&watch.model, items))?;
    let texts = singly(&texts, |items| loaded::try_texts(&watch.model, items))?;
    let weight = watch.text_weight as f32;
    Ok(images
        .into_iter()
        .zip(texts)
        .map(|pair| match (pair.0?, pair.1?) {
            (Some(Vector(image)), Some(Vector(text))) => {
                let mut mean: Vec<f32> =
                    image.iter().zip(&text).map(|(i, t)| (1.0 - weight) * i + weight * t).collect();
                l2_normalize(&mut mean)?;
                Ok(Some(Vector(mean)))
            }
            (image, text) => Ok(image.or(text)),
        })
        .collect())
}

type Embedded = Result<Option<Vector>, Error>;

/// Embeds all items in one batch; if an item is at fault, embeds them one by one.
fn singly<T: Copy>(
    items: &[Option<T>],
    embed: impl Fn(&[Option<T>]) -> clip::Result<Vec<Option<Vector>>>,
) -> Result<Vec<Embedded>, Error> {
    if items.iter().all(Option::is_none) {
        return Ok(items.iter().map(|_| Ok(None)).collect());
    }
    match embed(items) {
        Ok(vectors) => Ok(vectors.into_iter().map(Ok).collect()),
        Err(error) if !is_of_row(&error) => Err(error),
        Err(mut error) if items.len() == 1 => {
            error.element = None;
            Ok(vec![Err(error)])
        }
        Err(_) => items
            .iter()
            .map(|item| match embed(&[*item]) {
                Ok(mut vectors) => Ok(Ok(vectors.pop().flatten())),
                Err(error) if is_of_row(&error) => Ok(Err(error)),
                Err(error) => Err(error),
            })
            .collect(),
    }
}
