//! The column of tags that a watch keeps beside the embedding: words for what a row's embedding shows.
//!
//! A row has the tags that `clip_tags(embedding, 10)` rates at 0.5 or more, the most relevant first; an empty array if
//! there are none, and NULL without an embedding. A row with an embedding whose tags are NULL counts as pending.

use clip::relevance::{CUT, relevance};
use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::quote_identifier;

use crate::guc;
use crate::model::background;
use crate::pg::error::{SqlResult, report, sql_error, warn};
use crate::watch::setting::Watch;

/// The maximum number of tags of a row. With photo-mini, 9 of 30 photos of the gallery have more words above the cut,
/// but these say the same in other words.
const MOST: usize = 10;

/// Reads the words from the cache, or embeds them now, which takes 10 s to a minute. Called before a lock is taken or a
/// row is read. A trigger embeds the words only if the cache has been lost since.
pub fn prepare(watch: &Watch) -> SqlResult<()> {
    match watch.tags {
        Some(_) => background::of(&watch.model).map(drop),
        None => Ok(()),
    }
}

/// The tags of an embedding by a model.
pub fn of(model: &str, vector: &[f32]) -> SqlResult<Vec<String>> {
    let words = background::of(model)?;
    background::tell_of_own_list()?;
    let photo = background::photo(&words, vector.to_vec(), model)?;
    let tags = words.tags(&photo, MOST).into_iter().filter(|(_, score)| relevance(*score) >= CUT);
    Ok(tags.map(|(word, _)| words.words[word].clone()).collect())
}

/// Checks that need no lock: refuses tags of texts alone, and a column that has another use. Embeds the words if this
/// has not been done.
pub fn check(tags: &str, image: Option<&str>, cluster: Option<&str>, model: &str) -> SqlResult<()> {
    let Some(image) = image else {
        let what = format!("column \"{tags}\" can't have the tags of texts alone");
        return Err(report(
            Error::new(Kind::Unsupported, what)
                .detail("Words are rated by how well they suit a picture; text_source adds a text to one.")
                .hint("Name a column of images (bytea) as the source, or leave tags out."),
        ));
    };
    if let Some(other) = [Some(image), cluster].into_iter().flatten().find(|other| *other == tags) {
        return Err(report(Error::new(Kind::InvalidInput, format!("column \"{other}\" can't have the tags as well"))));
    }
    background::tell_of_own_list()?;
    background::of(model).map(drop)
}

/// Warns that each connection will embed the words again, because there is no cache.
pub fn warn_of_no_cache() {
    if guc::cache().is_none() {
        warn(
            Error::new(Kind::Unsupported, "each connection embeds the words for tags again")
                .detail("That takes 10 s to a minute at its first row. clip_search.cache_path is empty, so they are not kept.")
                .hint("Set clip_search.cache_path to a directory that the server may write."),
        );
    }
}

/// Refuses another column of tags, to which a second call can't change.
pub fn check_change(known: &Watch, wanted: Option<&str>) -> SqlResult<()> {
    match (&known.tags, wanted) {
        (Some(tags), Some(other)) if tags != other => Err(sql_error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("column \"{}\" is watched with the tags in column \"{tags}\" already", known.embedding),
        )
        .set_hint("Stop tagging first: clip_watch(…, reset => '{tags}'); the column stays.")),
        _ => Ok(()),
    }
}

/// Whether a row that has an embedding has no tags.
pub fn any_missing(watch: &Watch) -> SqlResult<bool> {
    let Some(tags) = &watch.tags else { return Ok(false) };
    watch.as_owner(|client| {
        let query = format!(
            "SELECT 1 FROM {} WHERE {} IS NULL AND {} IS NOT NULL AND ({})",
            watch.table,
            quote_identifier(tags),
            quote_identifier(&watch.embedding),
            watch.has_source()
        );
        Ok(!client.update(&query, Some(1), &[])?.is_empty())
    })
}
