//! `clip_find`: a search that returns only matches, page by page.
//!
//! The caller names the table, so everything runs with the caller's privileges: privileges on columns, policies, and
//! the code that the owner has attached to the table, as in a SELECT that the caller writes.

use clip::relevance::{CUT, relevance};
use clip::vector::cosine;
use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::quote_identifier;

use crate::guc;
use crate::model::{background, loaded, origin};
use crate::pg::catalog::qualified_name;
use crate::pg::error::{SqlResult, given, report, sql_error};
use crate::pg::regclass::Regclass;
use crate::pg::spi::{get, spi};
use crate::pg::text::Text;
use crate::pg::user_context::{UserContext, set};
use crate::pg::vector::{self, Vector};

/// pgvector's largest hnsw.ef_search.
const MOST_EF: i32 = 1000;
/// 20 MB of vectors of 512 dimensions.
const MOST_CANDIDATES: i32 = 10_000;

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
) -> Result<TableIterator<'static, (name!(id, String), name!(cosine, f64), name!(relevance, f64))>, ErrorReport> {
    let (Regclass(table), Text(query)) = (given("relation", relation)?, given("query", query)?);
    let candidates = within("candidates", given("candidates", candidates)?, MOST_CANDIDATES)?;
    let k = within("k", given("k", k)?, i32::MAX)?;
    let cut = cut.unwrap_or(CUT);
    let after = match (after_relevance, after_id) {
        (None, None) => None,
        (relevance, id) => Some((given("after_relevance", relevance)?, given("after_id", id.map(Text::str))?)),
    };
    let (key, embedding) = (key.map(Text::str), embedding.map(Text::str));
    let model = match model {
        Some(Text(model)) => model.to_owned(),
        None => model_of_column(table, embedding)?.unwrap_or_else(guc::model),
    };
    let mut rows = rated(table, key, embedding, query, candidates, &model)?;
    rows.retain(|(key, _, relevance)| {
        let follows =
            after.is_none_or(|(last, last_key)| *relevance < last || (*relevance == last && key.as_str() > last_key));
        *relevance >= cut && follows
    });
    rows.sort_by(|a, b| b.2.total_cmp(&a.2).then_with(|| a.0.cmp(&b.0)));
    rows.truncate(k as usize);
    Ok(TableIterator::new(rows))
}

/// The model of the column's embeddings, if the column is watched.
fn model_of_column(table: pg_sys::Oid, embedding: Option<&str>) -> SqlResult<Option<String>> {
    let _user_context = UserContext::of_extension();
    Spi::connect(|client| {
        let query = "SELECT min(model) FROM clip_search.watch_setting \
             WHERE relation::oid = $1 AND ($2 IS NULL OR embedding = $2) HAVING count(*) = 1";
        let rows = client.select(query, Some(1), &[table.into(), embedding.into()]).map_err(spi)?;
        Ok(rows.into_iter().next().map(|row| get::<String>(&row, 1)).transpose()?.flatten())
    })
}

fn within(name: &str, value: i32, most: i32) -> SqlResult<i32> {
    if (1..=most).contains(&value) {
        return Ok(value);
    }
    let error = Error::new(Kind::InvalidInput, format!("{name} is out of range: {value}"));
    Err(report(error.detail(format!("It is from 1 to {most}."))))
}

/// The nearest rows of a table: key, cosine to the query, relevance.
fn rated(
    table: pg_sys::Oid,
    key: Option<&str>,
    embedding: Option<&str>,
    query: &str,
    candidates: i32,
    model: &str,
) -> SqlResult<Vec<(String, f64, f64)>> {
    let words = background::of(model)?;
    let Some(Vector(wanted)) = loaded::embed_texts(model, &[Some(query)])?.pop().flatten() else {
        return Ok(Vec::new());
    };
    let text = words.relative(&wanted).map_err(report)?;
    let named = qualified_name(table).ok_or_else(|| {
        sql_error(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, format!("there is no table with oid {}", table.to_u32()))
    })?;
    // Settings are restored at its end; the role remains the caller's.
    let _context = UserContext::of_caller();
    Spi::connect(|client| {
        let (key, embedding) = columns(client, table, &named, key, embedding)?;
        widen(client, candidates)?;
        let (schema, kind) = (vector::schema(), embedding.kind);
        let (key, column) = (quote_identifier(&key), quote_identifier(&embedding.name));
        let statement = format!(
            "SELECT t.{key}::pg_catalog.text, t.{column}::{schema}.vector FROM {name} AS t WHERE t.{column} IS NOT NULL \
             ORDER BY t.{column} OPERATOR({schema}.<=>) $1::{schema}.{kind} LIMIT $2",
            name = named
        );
        let arguments: [DatumWithOid<'_>; 2] = [Vector(wanted.clone()).into(), i64::from(candidates).into()];
        let mut found = Vec::new();
        for row in client.select(&statement, None, &arguments).map_err(spi)? {
            pgrx::check_for_interrupts!();
            let (Some(key), Some(Vector(vector))) = (get::<String>(&row, 1)?, get::<Vector>(&row, 2)?) else {
                continue;
            };
            origin::check_dimensions(vector.len(), words.width(), model)?;
            let near = cosine(&vector, &wanted);
            // A zero vector has no neighbours.
            let Ok(photo) = words.photo(&vector) else { continue };
            found.push((key, near, relevance(photo.score(&text))));
        }
        Ok(found)
    })
}

struct Embedding {
    name: String,
    kind: &'static str,
}

/// The columns with the keys and the embeddings: as named, or the table's only suitable column.
fn columns(
    client: &pgrx::spi::SpiClient<'_>,
    table: pg_sys::Oid,
    shown: &str,
    key: Option<&str>,
    embedding: Option<&str>,
) -> SqlResult<(String, Embedding)> {
    let undefined = |what: &str, hint: &str| {
        sql_error(PgSqlErrorCode::ERRCODE_AMBIGUOUS_PARAMETER, format!("{what} of table {shown} must be named"))
            .set_hint(hint.to_owned())
    };
    let schema = vector::namespace();
    let rows = client.select(include_str!("sql/columns.sql"), Some(1), &[table.into(), schema.into()]).map_err(spi)?;
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
