//! Columns and indexes that clip_watch adds to a table.

use pgrx::spi::{SpiClient, quote_identifier};

use crate::pg::catalog::Table;
use crate::pg::error::SqlResult;
use crate::pg::spi::{get, spi};
use crate::pg::vector_column::Storage;

pub fn alter(client: &mut SpiClient<'_>, table: &Table, what: &str) -> SqlResult<()> {
    table.define(client, &format!("ALTER TABLE {} {what}", table.name))
}

/// Whether the column is a halfvec.
pub fn is_half(client: &mut SpiClient<'_>, table: &Table, embedding: &str) -> SqlResult<bool> {
    let column = table.column(client, embedding)?;
    Ok(column.and_then(|column| Storage::of(column.kind)).is_some_and(|storage| storage != Storage::Vector))
}

/// Whether the column has an index for cosine distance.
pub fn has_index(client: &mut SpiClient<'_>, table: &Table, embedding: &str) -> SqlResult<bool> {
    let query = "SELECT 1 FROM pg_catalog.pg_index i JOIN pg_catalog.pg_opclass o ON o.oid = i.indclass[0] \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
         WHERE i.indrelid = $1 AND a.attname = $2 AND o.opcname IN ('vector_cosine_ops', 'halfvec_cosine_ops')";
    Ok(!client.update(query, Some(1), &[table.oid.into(), embedding.into()]).map_err(spi)?.is_empty())
}

/// Creates an index; returns its name, which PostgreSQL chooses.
pub fn create_index(client: &mut SpiClient<'_>, table: &Table, embedding: &str, schema: &str) -> SqlResult<String> {
    let operators = if is_half(client, table, embedding)? { "halfvec_cosine_ops" } else { "vector_cosine_ops" };
    let embedding = quote_identifier(embedding);
    const NEWEST: &str = "SELECT c.relname::text FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
         WHERE i.indrelid = $1 ORDER BY c.oid::bigint";
    let names = |client: &mut SpiClient<'_>| {
        let rows = client.update(NEWEST, None, &[table.oid.into()]).map_err(spi)?;
        rows.into_iter().map(|row| Ok(get::<String>(&row, 1)?.unwrap_or_default())).collect::<SqlResult<Vec<_>>>()
    };
    let before = names(client)?;
    let query = format!("CREATE INDEX ON {} USING hnsw ({embedding} {schema}.{operators})", table.name);
    table.define(client, &query)?;
    Ok(names(client)?.into_iter().find(|name| !before.contains(name)).unwrap_or_default())
}
