//! clip_backfill, which embeds rows without an embedding, and clip_retry, which retries failed rows.

use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::{SpiHeapTupleData, quote_identifier};

use crate::cluster::tables;
use crate::guc;
use crate::pg::catalog::{Lock, Table};
use crate::pg::error::{SqlResult, report, sql_error};
use crate::pg::regclass::Regclass;
use crate::pg::spi::get;
use crate::pg::spi::spi;
use crate::pg::text::Text;
use crate::pg::user_context::{UserContext, as_extension, key_form};
use crate::watch::embed_entries::{Terms, embed_entries};
use crate::watch::queue::{Next, claim, has_again, noted};
use crate::watch::setting::{Watch, table_of};
use crate::watch::shared_memory;

/// The number of keys that are read and queued at a time.
const KEYS: i64 = 10_000;

/// A query for rows that lack an embedding, a cluster or tags.
fn missing(watch: &Watch, what: &str) -> String {
    let embedding = quote_identifier(&watch.embedding);
    let others = [&watch.cluster, &watch.tags].into_iter().flatten();
    let others: String = others.map(|column| format!(" OR {} IS NULL", quote_identifier(column))).collect();
    format!("SELECT {what} FROM {} WHERE ({embedding} IS NULL{others}) AND ({})", watch.table, watch.has_source())
}

/// The number of rows of a watch that are listed as failed.
fn failed(watch: i64) -> SqlResult<i64> {
    as_extension(|client| {
        let query = "SELECT pg_catalog.count(*) FROM clip_search.watch_failure WHERE watch = $1";
        let rows = client.update(query, Some(1), &[watch.into()]).map_err(spi)?;
        Ok(rows.first().get::<i64>(1).map_err(spi)?.unwrap_or_default())
    })
}

/// Whether a row lacks an embedding and is not listed as failed.
pub fn any_missing(watch: &Watch) -> SqlResult<bool> {
    let failed = failed(watch.id)?;
    // If it reads one row more than the list of failures contains, at least one of the rows is not listed.
    let keys: Vec<String> = watch.as_owner(|client| {
        key_form();
        let (embedding, key) = (quote_identifier(&watch.embedding), key_of(watch));
        let query = format!(
            "SELECT {key} FROM {} WHERE {embedding} IS NULL AND ({}) LIMIT {}",
            watch.table,
            watch.has_source(),
            failed + 1
        );
        let rows = client.update(&query, None, &[])?;
        rows.into_iter().map(|row| Ok(get::<String>(&row, 1)?.unwrap_or_default())).collect()
    })?;
    as_extension(|client| {
        let query = include_str!("sql/not_failed.sql");
        Ok(!client.update(query, Some(1), &[watch.id.into(), keys.into()]).map_err(spi)?.is_empty())
    })
}

/// Whether a row with an embedding has no group.
pub fn any_ungrouped(watch: &Watch) -> SqlResult<bool> {
    let Some(cluster) = &watch.cluster else { return Ok(false) };
    watch.as_owner(|client| {
        let (embedding, cluster) = (quote_identifier(&watch.embedding), quote_identifier(cluster));
        let query = format!(
            "SELECT 1 FROM {} WHERE {cluster} IS NULL AND {embedding} IS NOT NULL AND ({})",
            watch.table,
            watch.has_source()
        );
        Ok(!client.update(&query, Some(1), &[])?.is_empty())
    })
}

/// Queues the rows that have no embedding and are neither queued nor listed as failed. Returns their number.
pub fn enqueue_missing(watch: &Watch) -> SqlResult<i64> {
    enqueue(watch, &missing(watch, &key_of(watch)), None)
}

/// Queues the rows that have an embedding, to be embedded again. `made_by`: the model that computed their vectors, if
/// known. Returns their number.
pub fn enqueue_existing(watch: &Watch, made_by: Option<&str>) -> SqlResult<i64> {
    if !has_again() {
        return Ok(0); // the SQL of 0.2.0 has no column for this
    }
    let embedding = quote_identifier(&watch.embedding);
    enqueue(
        watch,
        &format!("SELECT {} FROM {} WHERE {embedding} IS NOT NULL", key_of(watch), watch.table),
        Some(made_by),
    )
}

/// An expression for a row's key in the form in which the queue stores it.
pub fn key_of(watch: &Watch) -> String {
    let values = watch.key.iter().map(|column| format!("pg_catalog.format('%s', {})", quote_identifier(column)));
    format!("ARRAY[{}]::text", values.collect::<Vec<_>>().join(", "))
}

/// Queues the rows whose keys a query returns. `again`: the rows are embedded even if they have a vector; the inner
/// value is the model that computed the vector, if known. Returns the number of new entries.
fn enqueue(watch: &Watch, query: &str, again: Option<Option<&str>>) -> SqlResult<i64> {
    let mut count = 0;
    watch.as_owner(|client| {
        key_form();
        let key = |row: &SpiHeapTupleData<'_>| Ok(get::<String>(row, 1)?.unwrap_or_default());
        client.each_batch(query, KEYS, key, |keys| {
            count += as_extension(|client| {
                let longest = keys.iter().map(String::len).max().unwrap_or_default();
                let insert = || {
                    let (watch, keys) = (watch.id.into(), keys.into());
                    let done = match again {
                        Some(made_by) => client.update(
                            include_str!("sql/enqueue_existing.sql"),
                            None,
                            &[watch, keys, made_by.into()],
                        ),
                        None => client.update(include_str!("sql/enqueue_missing.sql"), None, &[watch, keys]),
                    };
                    Ok(done.map_err(spi)?.len() as i64)
                };
                noted(watch, longest, insert)
            })?;
            Ok(())
        })
    })?;
    Ok(count)
}

/// The steps of CALL clip_backfill, which commits between them (sql/watch.sql).
#[pg_schema]
pub mod clip_search {
    use super::*;

    /// Queues the missing rows. Returns the watches, the number of queued rows of each, and the id of its last entry.
    #[pg_extern(volatile, parallel_unsafe, cost = 1000000)]
    fn backfill_begin(
        relation: Option<Regclass>,
        embedding: Option<Text<'_>>,
    ) -> Result<TableIterator<'static, (name!(watch, i64), name!(queued, i64), name!(last, i64))>, ErrorReport> {
        let embedding = embedding.map(Text::str);
        tables::check_writable(c"clip_backfill()");
        let oid = table_of(relation)?;
        let mut found = Vec::new();
        let watches = Watch::of_table(oid, embedding)?;
        tables::check_may_commit("clip_backfill()")?;
        for watch in watches {
            let watch = watch.locked(Lock::AccessShare)?;
            enqueue_missing(&watch)?;
            let queued = as_extension(|client| {
                let query = "SELECT pg_catalog.count(DISTINCT key), coalesce(pg_catalog.max(id), 0) FROM clip_search.watch_queue WHERE watch = $1";
                let rows = client.update(query, None, &[watch.id.into()]).map_err(spi)?;
                rows.first().get_two::<i64, i64>().map_err(spi)
            })?;
            found.push((watch.id, queued.0.unwrap_or_default(), queued.1.unwrap_or_default()));
        }
        Ok(TableIterator::new(found))
    }

    /// The ids of a watch's next entries between two ids; the caller owns the table. None if it is no longer watched.
    #[pg_extern(volatile, strict, parallel_unsafe)]
    fn backfill_claim(watch: i64, after: i64, last: i64, batch: i32) -> SqlResult<Vec<i64>> {
        if batch < 1 {
            return Err(report(Error::new(Kind::InvalidInput, format!("batch {batch} is not at least 1"))));
        }
        if !is_own(watch)? {
            pgrx::notice!(
                "clip_search: a column is not watched any more, by clip_unwatch or since clip_reembed is done"
            );
            return Ok(Vec::new());
        }
        claim(watch, i64::from(batch), Next::Between(after, last))
    }

    /// The number of a watch's entries up to an id that remain because the worker or another session has locked them or
    /// their rows.
    #[pg_extern(volatile, strict, parallel_unsafe)]
    fn backfill_left(watch: i64, last: i64) -> SqlResult<i64> {
        if !is_own(watch)? {
            return Ok(0);
        }
        as_extension(|client| {
            let query = "SELECT pg_catalog.count(*) FROM clip_search.watch_queue WHERE watch = $1 AND id <= $2";
            let rows = client.update(query, Some(1), &[watch.into(), last.into()]).map_err(spi)?;
            Ok(rows.first().get::<i64>(1).map_err(spi)?.unwrap_or_default())
        })
    }

    /// The number of rows of each watch that any session has listed as failed; NULL if the watch has ended.
    #[pg_extern(volatile, strict, parallel_unsafe)]
    fn backfill_failed(watches: Vec<Option<i64>>) -> SqlResult<Vec<Option<i64>>> {
        without_nulls("watches", watches)?
            .into_iter()
            .map(|watch| is_own(watch)?.then(|| failed(watch)).transpose())
            .collect()
    }

    /// Embeds the rows of entries; returns the numbers of rows embedded, of rows that had their embedding and were only
    /// grouped or tagged, of rows that failed, and of rows that needed nothing or do not exist any more.
    #[pg_extern(volatile, strict, parallel_unsafe, cost = 1000000)]
    #[allow(clippy::type_complexity)]
    fn backfill_batch(
        watch: i64,
        entries: Vec<Option<i64>>,
    ) -> Result<
        TableIterator<
            'static,
            (name!(embedded, i64), name!(grouped, i64), name!(tagged, i64), name!(failed, i64), name!(idle, i64)),
        >,
        ErrorReport,
    > {
        let entries = without_nulls("entries", entries)?;
        if !is_own(watch)? {
            return Ok(TableIterator::once((0, 0, 0, 0, 0)));
        }
        let (found, keys) = queued(watch, entries.clone())?;
        let outcome = embed_entries(&found, Terms::ALL)?;
        let (grouped, tagged) = outcome.kept;
        let (done, failed) = outcome.single()?;
        let left = queued(watch, entries)?.1;
        let idle = (keys - left - done - failed).max(0);
        Ok(TableIterator::once((done - grouped - tagged, grouped, tagged, failed, idle)))
    }

    /// As the SQL of 0.2.0 declares it, which this library supports until ALTER EXTENSION … UPDATE.
    #[pg_extern(sql = false)]
    fn backfill_work(
        watch: i64,
        entries: Vec<Option<i64>>,
    ) -> Result<TableIterator<'static, (name!(embedded, i64), name!(failed, i64))>, ErrorReport> {
        let entries = without_nulls("entries", entries)?;
        if !is_own(watch)? {
            return Ok(TableIterator::once((0, 0)));
        }
        embed_entries(&queued(watch, entries)?.0, Terms::ALL)?.single().map(TableIterator::once)
    }
}

/// Drops ids that are no entries of the watch; returns the others, and the number of their rows.
fn queued(watch: i64, entries: Vec<i64>) -> SqlResult<(Vec<i64>, i64)> {
    as_extension(|client| {
        let query = "SELECT pg_catalog.array_agg(id), pg_catalog.count(DISTINCT key) FROM clip_search.watch_queue \
             WHERE watch = $1 AND id = ANY ($2)";
        let rows = client.update(query, Some(1), &[watch.into(), entries.into()]).map_err(spi)?;
        let (found, keys) = rows.first().get_two::<Vec<i64>, i64>().map_err(spi)?;
        Ok((found.unwrap_or_default(), keys.unwrap_or_default()))
    })
}

/// # Errors
/// 22004 if a number is NULL.
fn without_nulls(name: &str, numbers: Vec<Option<i64>>) -> SqlResult<Vec<i64>> {
    let null = || sql_error(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, format!("array {name} contains NULL"));
    numbers.into_iter().collect::<Option<_>>().ok_or_else(null)
}

/// Whether a watch with this id exists; the caller must own its table.
fn is_own(watch: i64) -> SqlResult<bool> {
    tables::check_writable(c"clip_backfill()");
    let Some(watch) = Watch::by_id(watch)? else { return Ok(false) };
    Table::describe(watch.relation)?.check_owner()?;
    Ok(true)
}

/// Removes rows from the list of failures: all rows, or the rows with a SQLSTATE or of a class. If a worker keeps the
/// table in sync, they are queued for it; otherwise they are retried immediately. Returns the number of rows that are
/// no longer listed.
#[pg_extern(volatile, parallel_unsafe, cost = 1000000, name = "clip_retry")]
fn retry(
    relation: Option<Regclass>,
    embedding: default!(Option<Text<'_>>, "NULL"),
    sqlstate: default!(Option<Text<'_>>, "NULL"),
) -> SqlResult<i64> {
    let (embedding, sqlstate) = (embedding.map(Text::str), sqlstate.map(Text::str));
    call(relation, embedding, sqlstate)
}

pub fn call(relation: Option<Regclass>, embedding: Option<&str>, sqlstate: Option<&str>) -> SqlResult<i64> {
    tables::check_writable(c"clip_retry()");
    let oid = table_of(relation)?;
    let is_code = |state: &&str| {
        [2, 5].contains(&state.len()) && state.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
    };
    if let Some(state) = sqlstate.filter(|state| !is_code(state)) {
        return Err(report(
            Error::new(Kind::InvalidInput, format!("sqlstate \"{state}\" is neither a SQLSTATE nor a class of them"))
                .detail("It consists of digits and capital letters.")
                .hint("Use the five characters that clip_search.failure shows, or the first two."),
        ));
    }
    let mut retried = 0;
    for watch in Watch::of_table(oid, embedding)? {
        let watch = watch.locked(Lock::RowExclusive)?;
        if watch.is_distributed() {
            retried += retry_shards(&watch, sqlstate)?;
            continue;
        }
        let ids: Vec<i64> = as_extension(|client| {
            let query = "WITH taken AS (DELETE FROM clip_search.watch_failure WHERE watch = $1 \
                 AND ($3 IS NULL OR pg_catalog.left(sqlstate, pg_catalog.length($3)) = $3) RETURNING key) \
                 INSERT INTO clip_search.watch_queue (watch, key, attempts) SELECT $1, key, $2 FROM taken RETURNING id";
            // Without a worker the rows are tried immediately, so the attempt counts as begun.
            let arguments = [watch.id.into(), i32::from(!watch.queued).into(), sqlstate.into()];
            let rows = client.update(query, None, &arguments).map_err(spi)?;
            rows.into_iter().map(|row| Ok(get(&row, 1)?.unwrap_or_default())).collect::<SqlResult<_>>()
        })?;
        retried += ids.len() as i64;
        if watch.queued {
            shared_memory::wake_at_commit();
            continue;
        }
        for ids in ids.chunks(guc::worker_batch() as usize) {
            retried -= embed_entries(ids, Terms::ALL)?.single()?.1;
        }
    }
    Ok(retried)
}

/// Retries the rows of a distributed table: each server retries the rows of its shards, in its own transaction.
fn retry_shards(watch: &Watch, sqlstate: Option<&str>) -> SqlResult<i64> {
    let _user_context = UserContext::of_caller();
    Spi::connect_mut(|client| {
        let query = "SELECT pg_catalog.sum(s::bigint)::bigint FROM clip_search.on_servers(\
             pg_catalog.format('SELECT clip_search.retry_here(%s, pg_catalog.to_regclass(%%L), %L)', $1::bigint, $2::text), \
             $3::oid::regclass) AS s";
        let arguments = [watch.id.into(), sqlstate.into(), watch.relation.into()];
        let rows = client.update(query, Some(1), &arguments).map_err(spi)?;
        Ok(rows.first().get::<i64>(1).map_err(spi)?.unwrap_or_default())
    })
}
