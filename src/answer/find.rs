//! `clip_find`: a search that returns only matches, page by page.
//!
//! The caller names the table, so everything runs with the caller's privileges: privileges on columns, policies, and
//! the code that the owner has attached to the table, as in a SELECT that the caller writes.

use clip::relevance::{Background, CUT, Photo, relevance};
use clip::vector::cosine;
use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::quote_identifier;

use crate::guc;
use crate::model::{background, loaded, origin};
use crate::pg::analyzed::about_table;
use crate::pg::catalog::qualified_name;
use crate::pg::error::{SqlResult, check_range, given, no_table, report, sql_error};
use crate::pg::regclass::Regclass;
use crate::pg::spi::{get, spi};
use crate::pg::text::{Key, Text, non_utf8_encoding, non_utf8_name, utf8};
use crate::pg::user_context::{UserContext, as_extension, set};
use crate::pg::vector::{self, Vector};

/// pgvector's largest hnsw.ef_search.
const MOST_EF: i32 = 1000;
/// At 512 dimensions, this many vectors take 20 MB.
const MOST_CANDIDATES: i32 = 10_000;

type Found = TableIterator<'static, (name!(id, Key), name!(cosine, f64), name!(relevance, f64))>;

#[pg_extern(stable, parallel_restricted, cost = 100000)]
#[allow(clippy::type_complexity, clippy::too_many_arguments)]
fn clip_find(
    relation: Option<Regclass>,
    query: Option<Text<'_>>,
    k: default!(Option<i32>, "40"),
    cut: default!(Option<f64>, "0.5"),
    after_relevance: default!(Option<f64>, "NULL"),
    after_id: default!(Option<Text<'_>>, "NULL"),
    candidates: default!(Option<i32>, "1000"),
    key: default!(Option<Text<'_>>, "NULL"),
    embedding: default!(Option<Text<'_>>, "NULL"),
    model: default!(Option<Text<'_>>, "NULL"),
) -> Result<TableIterator<'static, (name!(id, Key), name!(cosine, f64), name!(relevance, f64))>, ErrorReport> {
    let Text(query) = given("query", query)?;
    let search = Search::new(relation, k, cut, after_relevance, after_id, candidates, key, embedding, model)?;
    search.run(Query::Text(query))
}

#[pg_extern(stable, parallel_restricted, cost = 100000, name = "clip_find")]
#[allow(clippy::type_complexity, clippy::too_many_arguments)]
fn clip_find_by_photo(
    relation: Option<Regclass>,
    query: Option<&[u8]>,
    k: default!(Option<i32>, "40"),
    cut: default!(Option<f64>, "0.5"),
    after_relevance: default!(Option<f64>, "NULL"),
    after_id: default!(Option<Text<'_>>, "NULL"),
    candidates: default!(Option<i32>, "1000"),
    key: default!(Option<Text<'_>>, "NULL"),
    embedding: default!(Option<Text<'_>>, "NULL"),
    model: default!(Option<Text<'_>>, "NULL"),
) -> Result<TableIterator<'static, (name!(id, Key), name!(cosine, f64), name!(relevance, f64))>, ErrorReport> {
    let query = given("query", query)?;
    let search = Search::new(relation, k, cut, after_relevance, after_id, candidates, key, embedding, model)?;
    search.run(Query::Photo(query))
}

/// The search query.
enum Query<'a> {
    Text(&'a str),
    /// An image file.
    Photo(&'a [u8]),
}

/// The query compared with the words of the background.
enum ComparedQuery {
    /// A text's vector, relative to the words' mean.
    Text(Vec<f32>),
    /// The scores of the words for a photo.
    Photo(Vec<f64>),
}

impl ComparedQuery {
    /// The certainty that a photo of the table matches the query. For a query photo, it is the certainty that one word
    /// suits both photos. The cosine of two photos says little, because most of it is what all photos have in common.
    /// Of 37 photos of the gallery, photos of the same subject scored 0.59 or more, other photos 0.40 at most.
    fn relevance(&self, words: &Background, photo: &Photo) -> f64 {
        relevance(match self {
            Self::Text(text) => photo.score(text),
            Self::Photo(scores) => words.in_common(photo, scores),
        })
    }
}

/// The arguments of clip_find.
struct Search<'a> {
    table: pg_sys::Oid,
    k: usize,
    cut: f64,
    after: Option<(f64, &'a str)>,
    candidates: i32,
    key: Option<&'a str>,
    embedding: Option<&'a str>,
    model: String,
    unfinished: Vec<String>,
}

impl<'a> Search<'a> {
    #[allow(clippy::too_many_arguments)]
    fn new(
        relation: Option<Regclass>,
        k: Option<i32>,
        cut: Option<f64>,
        after_relevance: Option<f64>,
        after_id: Option<Text<'a>>,
        candidates: Option<i32>,
        key: Option<Text<'a>>,
        embedding: Option<Text<'a>>,
        model: Option<Text<'a>>,
    ) -> SqlResult<Self> {
        let Regclass(table) = given("relation", relation)?;
        let (key, embedding) = (key.map(Text::str), embedding.map(Text::str));
        let watched = Watched::find(table, embedding)?;
        Ok(Self {
            table,
            candidates: check_range("candidates", given("candidates", candidates)?, MOST_CANDIDATES)?,
            k: check_range("k", given("k", k)?, i32::MAX)? as usize,
            cut: check_relevance("cut", cut)?.unwrap_or(CUT),
            after: after(check_relevance("after_relevance", after_relevance)?, after_id.map(Text::str))?,
            key,
            embedding,
            model: match model {
                Some(Text(model)) => model.to_owned(),
                None => watched.model.unwrap_or_else(guc::model),
            },
            unfinished: watched.unfinished,
        })
    }

    fn run(&self, query: Query<'_>) -> SqlResult<Found> {
        let mut rows = self.rated(query)?;
        rows.retain(|(key, _, relevance)| {
            let follows = self
                .after
                .is_none_or(|(last, last_key)| *relevance < last || (*relevance == last && key.as_str() > last_key));
            *relevance >= self.cut && follows
        });
        rows.sort_by(|a, b| b.2.total_cmp(&a.2).then_with(|| a.0.cmp(&b.0)));
        rows.truncate(self.k);
        Ok(TableIterator::new(rows.into_iter().map(|(key, cosine, relevance)| (Key(key), cosine, relevance))))
    }
}

/// Checks that a relevance, if given, is from 0 to 1.
fn check_relevance(name: &str, value: Option<f64>) -> SqlResult<Option<f64>> {
    match value {
        Some(value) if !(0.0..=1.0).contains(&value) => {
            let error = Error::new(Kind::InvalidInput, format!("{name} is out of range: {value}"));
            Err(report(error.detail("Relevance is from 0 to 1.")))
        }
        value => Ok(value),
    }
}

/// The last row of the previous page, after which this page begins: both of its values, or neither.
fn after(relevance: Option<f64>, id: Option<&str>) -> SqlResult<Option<(f64, &str)>> {
    let (here, lacking) = match (relevance, id) {
        (None, None) => return Ok(None),
        (Some(relevance), Some(id)) => return Ok(Some((relevance, id))),
        (Some(_), None) => ("after_relevance", "after_id"),
        (None, Some(_)) => ("after_id", "after_relevance"),
    };
    Err(sql_error(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, format!("{here} is given without {lacking}"))
        .set_detail(
            "Rows of equal relevance are in the order of their ids, so a page begins after a relevance and an id.",
        )
        .set_hint("Give both from the last row of the page before, or neither for the first page."))
}

/// The settings of a table's watches that a search needs.
struct Watched {
    /// The model of the searched column's embeddings, if the column is watched.
    model: Option<String>,
    /// Columns that clip_reembed is still filling: they lack rows, and will replace another column at the end.
    unfinished: Vec<String>,
}

impl Watched {
    fn find(table: pg_sys::Oid, embedding: Option<&str>) -> SqlResult<Self> {
        as_extension(|client| {
            let query = include_str!("sql/watched.sql");
            let rows = client.select(query, Some(1), &[table.into(), embedding.into()]).map_err(spi)?;
            let (mut model, mut unfinished) = (None, Vec::new());
            for row in rows {
                model = get::<String>(&row, 1)?;
                unfinished = get::<Vec<Option<String>>>(&row, 2)?.unwrap_or_default().into_iter().flatten().collect();
            }
            Ok(Self { model, unfinished })
        })
    }
}

impl Search<'_> {
    /// The nearest rows of the table: key, cosine to the query, relevance.
    fn rated(&self, query: Query<'_>) -> SqlResult<Vec<(String, f64, f64)>> {
        let Self { table, candidates, model, .. } = self;
        let named = qualified_name(*table).ok_or_else(|| no_table(*table))?;
        if named.contains(char::REPLACEMENT_CHARACTER) {
            return Err(report(non_utf8_name("table")));
        }
        // Check the columns before the words are embedded, which may take a minute.
        let (key, embedding) = {
            let _context = UserContext::of_caller();
            Spi::connect(|client| columns(client, *table, &named, self.key, self.embedding, &self.unfinished))?
        };
        let words = background::of(model)?;
        let embedded = match query {
            Query::Text(text) => loaded::embed_texts(model, &[Some(text)])?,
            Query::Photo(file) => loaded::embed_images(model, &[Some(file)])?,
        };
        let Some(Vector(wanted)) = embedded.into_iter().next().flatten() else { return Ok(Vec::new()) };
        let placed = match query {
            Query::Text(_) => ComparedQuery::Text(words.relative(&wanted).map_err(report)?),
            Query::Photo(_) => ComparedQuery::Photo(words.scores(&words.photo(&wanted).map_err(report)?)),
        };
        // When this guard is dropped, the settings are restored; the role stays the caller's.
        let _context = UserContext::of_caller();
        Spi::connect(|client| {
            widen(client, *candidates)?;
            let (schema, kind) = (vector::schema(), embedding.kind);
            let (key, column) = (quote_identifier(&key), quote_identifier(&embedding.name));
            let statement = format!(
                "SELECT pg_catalog.convert_to(t.{key}::pg_catalog.text, 'SQL_ASCII'), t.{column}::{schema}.vector \
                 FROM {named} AS t WHERE t.{column} IS NOT NULL \
                 ORDER BY t.{column} OPERATOR({schema}.<=>) $1::{schema}.{kind} LIMIT $2"
            );
            let arguments: [DatumWithOid<'_>; 2] = [Vector(wanted.clone()).into(), i64::from(*candidates).into()];
            let mut found = Vec::new();
            // The name was read without a lock, which would block other sessions. `about_table` therefore checks which
            // table PostgreSQL finds under this name.
            let rows = about_table(*table, &statement, || client.select(&statement, None, &arguments)).map_err(spi)?;
            for row in rows {
                pgrx::check_for_interrupts!();
                let (Some(key), Some(Vector(vector))) = (get::<Vec<u8>>(&row, 1)?, get::<Vector>(&row, 2)?) else {
                    continue;
                };
                let key = utf8("key", &key).map_err(report)?.to_owned();
                origin::check_dimensions(vector.len(), words.width(), model)?;
                let near = cosine(&vector, &wanted);
                // A zero vector is near nothing.
                let Ok(photo) = words.photo(&vector) else { continue };
                found.push((key, near, placed.relevance(&words, &photo)));
            }
            Ok(found)
        })
    }
}

struct Embedding {
    name: String,
    kind: &'static str,
}

/// The columns with the keys and the embeddings: as named by the caller, or the table's only suitable ones. Columns
/// that clip_reembed is still filling are not suitable.
fn columns(
    client: &pgrx::spi::SpiClient<'_>,
    table: pg_sys::Oid,
    shown: &str,
    key: Option<&str>,
    embedding: Option<&str>,
    unfinished: &[String],
) -> SqlResult<(String, Embedding)> {
    let undefined = |what: &str, hint: &str| {
        sql_error(PgSqlErrorCode::ERRCODE_AMBIGUOUS_PARAMETER, format!("{what} of table {shown} must be named"))
            .set_hint(hint.to_owned())
    };
    if non_utf8_encoding().is_some() {
        let query = "SELECT 1 FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND a.attname::text ~ E'[^\\x01-\\x7f]'";
        if !client.select(query, Some(1), &[table.into()]).map_err(spi)?.is_empty() {
            return Err(report(non_utf8_name("column")));
        }
    }
    let schema = vector::namespace();
    let arguments = [table.into(), schema.into(), unfinished.to_vec().into()];
    let rows = client.select(include_str!("sql/columns.sql"), Some(1), &arguments).map_err(spi)?;
    let row = rows.into_iter().next();
    let (primary, vectors) = match &row {
        Some(row) => (get::<String>(row, 1)?, get::<Vec<Option<String>>>(row, 2)?.unwrap_or_default()),
        None => (None, Vec::new()),
    };
    let key = match key.map(str::to_owned).or(primary) {
        Some(key) => key,
        None => {
            return Err(undefined(
                "the key",
                "It has no primary key of one column: key => 'column' names one with unique values.",
            ));
        }
    };
    let vectors: Vec<String> = vectors.into_iter().flatten().collect();
    let name = match (embedding, vectors.as_slice()) {
        (Some(named), _) => named.to_owned(),
        (None, [only]) => only.clone(),
        (None, _) => {
            let detail =
                format!("embedding => 'column' names one. It has {} of type vector or halfvec.", vectors.len());
            return Err(undefined("the column with the embeddings", &detail));
        }
    };
    let query = "SELECT CASE WHEN t.typnamespace = $3 THEN t.typname::text ELSE format_type(t.oid, NULL) END \
         FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
         WHERE a.attrelid = $1 AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped";
    let typed = |column: &str| -> SqlResult<String> {
        let rows = client.select(query, Some(1), &[table.into(), column.into(), schema.into()]).map_err(spi)?;
        let kind = rows.into_iter().next().map(|row| get::<String>(&row, 1)).transpose()?.flatten();
        kind.ok_or_else(|| {
            sql_error(PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN, format!("table {shown} has no column \"{column}\""))
        })
    };
    typed(&key)?;
    let kind = match typed(&name)?.as_str() {
        "vector" => "vector",
        "halfvec" => "halfvec",
        other => {
            return Err(sql_error(
                PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                format!("column \"{name}\" of table {shown} is not of type vector or halfvec"),
            )
            .set_detail(format!("It is of type {other}.")));
        }
    };
    Ok((key, Embedding { name, kind }))
}

/// Makes an HNSW index return the requested number of candidates: by default hnsw.ef_search limits the rows to 40.
fn widen(client: &pgrx::spi::SpiClient<'_>, candidates: i32) -> SqlResult<()> {
    // A value of the type loads pgvector's library, which defines the settings; iterative scans exist since 0.8.
    let query = format!(
        "SELECT count(*) FROM pg_settings, (SELECT '[1]'::{}.vector) AS loaded WHERE name = 'hnsw.iterative_scan'",
        vector::schema()
    );
    let iterative = client.select(&query, Some(1), &[]).map_err(spi)?.first().get_one::<i64>().map_err(spi)?;
    let ef = std::ffi::CString::new(candidates.min(MOST_EF).to_string()).expect("digits have no NUL");
    set(c"hnsw.ef_search", &ef);
    if iterative == Some(1) {
        set(c"hnsw.iterative_scan", c"strict_order");
    }
    Ok(())
}
