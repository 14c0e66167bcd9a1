//! The queue of rows whose embeddings were not computed when they were written, and the list of failed rows.
//!
//! An entry of the queue is a row's key. A session that works on an entry holds the entry's lock. It locks the row only
//! to write the embedding, and only if the row still has the embedded source. Writers therefore never wait for an
//! inference, and if a row has several entries, any of them suffices.

use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::guc;
use crate::pg::catalog;
use crate::pg::error::{SqlResult, report, sql_error};
use crate::pg::spi::{get, run, spi};
use crate::pg::subtransaction::{Failure, PASSING, attempt};
use crate::pg::transaction::{Isolation, isolation, run_on_latest};
use crate::pg::user_context::{UserContext, as_extension};
use crate::watch::setting::Watch;

/// Maximum delay between two attempts at a row, in milliseconds.
const LONGEST_DELAY: i64 = 3_600_000;
/// Further attempts, beyond clip_search.worker_attempts, for an error that usually passes by itself.
const PASSING_ATTEMPTS: i32 = 10;
/// The maximum length of a stored message, in bytes.
const LONGEST_MESSAGE: usize = 4096;
/// Minimum delay for a row that has ended a worker or the server twice, in milliseconds.
const UNENDED_DELAY: i64 = 60_000;

/// An entry of the queue that this transaction has locked.
#[derive(Clone)]
pub struct Entry {
    pub id: i64,
    /// The values of the key as an array of texts, in its text form.
    pub key: String,
    pub attempts: i32,
    /// Embed the row even if it has a vector: that vector has another source, weight or model, or an unknown origin.
    pub again: bool,
}

/// Locks entries, and deletes other waiting entries for the same rows: the rows are read after this, so one entry
/// covers them.
pub fn lock_entries(ids: &[i64]) -> SqlResult<Vec<(i64, Vec<Entry>)>> {
    as_extension(|client| {
        // Before ALTER EXTENSION clip_search UPDATE the column does not exist.
        let query = "SELECT id, watch, key::text, attempts, coalesce((pg_catalog.to_jsonb(q) ->> 'again')::boolean, false) \
             FROM clip_search.watch_queue q WHERE id = ANY ($1) ORDER BY id FOR UPDATE SKIP LOCKED";
        let mut groups: Vec<(i64, Vec<Entry>)> = Vec::new();
        let mut surplus: Vec<i64> = Vec::new();
        for row in client.update(query, None, &[ids.to_vec().into()]).map_err(spi)? {
            let missing = || report(Error::new(Kind::Internal, "a row of clip_search.watch_queue has a NULL"));
            let entry = Entry {
                id: get(&row, 1)?.ok_or_else(missing)?,
                key: get(&row, 3)?.ok_or_else(missing)?,
                attempts: get(&row, 4)?.unwrap_or_default(),
                again: get(&row, 5)?.unwrap_or_default(),
            };
            let watch: i64 = get(&row, 2)?.ok_or_else(missing)?;
            let place = groups.iter().position(|group| group.0 == watch).unwrap_or_else(|| {
                groups.push((watch, Vec::new()));
                groups.len() - 1
            });
            let group = &mut groups[place].1;
            match group.iter_mut().find(|known| known.key == entry.key) {
                Some(known) => {
                    known.again |= entry.again;
                    surplus.push(entry.id);
                }
                None => group.push(entry),
            }
        }
        for (watch, entries) in &mut groups {
            let keys: Vec<String> = entries.iter().map(|entry| entry.key.clone()).collect();
            let mine: Vec<i64> = entries.iter().map(|entry| entry.id).collect();
            let query = include_str!("sql/take_over.sql");
            let rows = client.update(query, None, &[(*watch).into(), keys.into(), mine.into()]).map_err(spi)?;
            for row in rows {
                let (key, again): (Option<String>, Option<bool>) = (get(&row, 1)?, get(&row, 2)?);
                if again == Some(true) {
                    entries
                        .iter_mut()
                        .filter(|entry| Some(&entry.key) == key.as_ref())
                        .for_each(|entry| entry.again = true);
                }
            }
            // Stored in the remaining entries, in case their rows have to wait.
            let again: Vec<i64> = entries.iter().filter(|entry| entry.again).map(|entry| entry.id).collect();
            if !again.is_empty() {
                let query = "UPDATE clip_search.watch_queue SET again = true WHERE id = ANY ($1) AND NOT again";
                client.update(query, None, &[again.into()]).map_err(spi)?;
            }
        }
        client
            .update("DELETE FROM clip_search.watch_queue WHERE id = ANY ($1)", None, &[surplus.into()])
            .map_err(spi)?;
        Ok(groups)
    })
}

/// Whether the queue can mark rows to be embedded again: it can't before ALTER EXTENSION clip_search UPDATE.
pub fn has_again() -> bool {
    catalog::has_column(c"clip_search", c"watch_queue", c"again")
}

/// Records that an attempt failed as a whole (by a timeout, for example) without ending the process, so its entries are
/// not delayed like entries that ended a worker. The error is that of a single entry only if it was tried alone.
pub fn attempt_ended(ids: &[i64], failure: &Failure) -> SqlResult<()> {
    as_extension(|client| {
        let query = include_str!("sql/attempt_ended.sql");
        let alone = ids.len() == 1;
        let arguments = [
            ids.to_vec().into(),
            f64::from(guc::worker_retry_delay()).into(),
            (LONGEST_DELAY as f64).into(),
            alone.then_some(failure.code.as_str()).into(),
            alone.then_some(brief(&failure.message)).into(),
        ];
        client.update(query, None, &arguments).map(drop).map_err(spi)
    })
}

/// Records that an attempt failed, and when the next is due.
pub fn note_attempt(id: i64, failure: &Failure, rest: i64) -> SqlResult<()> {
    as_extension(|client| {
        let query = "UPDATE clip_search.watch_queue SET sqlstate = $2, message = $3, \
             due = pg_catalog.clock_timestamp() + $4 * interval '1 millisecond' WHERE id = $1";
        let arguments = [id.into(), failure.code.as_str().into(), brief(&failure.message).into(), rest.into()];
        client.update(query, None, &arguments).map(drop).map_err(spi)
    })
}

/// The number of attempts after which a row is listed whose error usually passes by itself, such as another session's
/// lock or a deadlock. A trigger can raise such an error each time. With the default delay, the last of these attempts
/// comes after hours.
pub fn most_passing_attempts() -> i32 {
    guc::worker_attempts() + PASSING_ATTEMPTS
}

/// Shortens a message before it is stored: a trigger's message may have any length, and every dump would contain it.
fn brief(message: &str) -> &str {
    &message[..message.floor_char_boundary(LONGEST_MESSAGE)]
}

/// Accepts the vectors in the column as the result of this watch.
pub fn keep_existing(watch: i64) -> SqlResult<()> {
    if !has_again() {
        return Ok(());
    }
    as_extension(|client| {
        let query = "DELETE FROM clip_search.watch_queue WHERE watch = $1 AND again";
        client.update(query, None, &[watch.into()]).map(drop).map_err(spi)
    })
}

/// The number of rows that are marked to be embedded again.
pub fn outdated(watch: i64) -> SqlResult<i64> {
    if !has_again() {
        return Ok(0);
    }
    as_extension(|client| {
        let query = "SELECT pg_catalog.count(DISTINCT key) FROM clip_search.watch_queue WHERE watch = $1 AND again";
        let rows = client.update(query, Some(1), &[watch.into()]).map_err(spi)?;
        Ok(rows.first().get::<i64>(1).map_err(spi)?.unwrap_or_default())
    })
}

/// Deletes a watch's entries, except those that another session has locked: that session will find nothing to do.
/// Waiting for it, while holding a lock on the table that it waits for, would be a deadlock.
pub fn forget_all(client: &mut SpiClient<'_>, watch: i64) -> SqlResult<()> {
    let query = "DELETE FROM clip_search.watch_queue WHERE id IN \
         (SELECT q.id FROM clip_search.watch_queue q WHERE q.watch = $1 FOR UPDATE SKIP LOCKED)";
    client.update(query, None, &[watch.into()]).map(drop).map_err(spi)
}

/// Deletes a watch's entries, and removes its rows from the list of failures.
pub fn forget_lists(client: &mut SpiClient<'_>, watch: i64) -> SqlResult<()> {
    forget_all(client, watch)?;
    let query = "DELETE FROM clip_search.watch_failure WHERE (watch, key) IN \
         (SELECT f.watch, f.key FROM clip_search.watch_failure f WHERE f.watch = $1 FOR UPDATE SKIP LOCKED)";
    client.update(query, None, &[watch.into()]).map(drop).map_err(spi)
}

pub fn forget_entries(ids: &[i64]) -> SqlResult<()> {
    if ids.is_empty() {
        return Ok(());
    }
    as_extension(|client| {
        let query = "DELETE FROM clip_search.watch_queue WHERE id = ANY ($1)";
        client.update(query, None, &[ids.to_vec().into()]).map(drop).map_err(spi)
    })
}

/// Removes a row from the list of failures, unless a writer is removing it at the moment.
pub fn forget_failure(watch: i64, key: &str) -> SqlResult<()> {
    as_extension(|client| {
        let query = "DELETE FROM clip_search.watch_failure WHERE (watch, key) IN (SELECT f.watch, f.key FROM clip_search.watch_failure f \
             WHERE f.watch = $1 AND f.key = $2::text[] FOR UPDATE SKIP LOCKED)";
        client.update(query, None, &[watch.into(), key.into()]).map(drop).map_err(spi)
    })
}

/// The statements of the triggers. They run for each row, so their plans are kept.
const ADD: &str = "INSERT INTO clip_search.watch_queue (watch, key) VALUES ($1, $2::pg_catalog.text[])";
const FORGET_QUEUE: &str = "DELETE FROM clip_search.watch_queue WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY(\
    SELECT q.id FROM clip_search.watch_queue q WHERE q.watch OPERATOR(pg_catalog.=) $1 FOR UPDATE SKIP LOCKED))";
const FORGET_FAILURES: &str = "DELETE FROM clip_search.watch_failure WHERE watch OPERATOR(pg_catalog.=) $1";
const DELETE_FAILURE: &str = "DELETE FROM clip_search.watch_failure WHERE watch OPERATOR(pg_catalog.=) $1 \
    AND key OPERATOR(pg_catalog.=) $2::pg_catalog.text[]";
const RENAME_FAILURE: &str = "UPDATE clip_search.watch_failure SET key = $3::pg_catalog.text[] \
    WHERE watch OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2::pg_catalog.text[]";

/// Adds a row's key to the queue.
pub fn add(watch: i64, key: &str) -> SqlResult<()> {
    as_extension(|client| run(client, ADD, &[watch.into(), key.into()]).map(drop))
}

/// After TRUNCATE: deletes a watch's entries, except those that another session has locked, and all of its failures,
/// including failures that this transaction does not see.
pub fn forget_latest(watch: i64) -> SqlResult<()> {
    run_on_latest(FORGET_QUEUE, &[watch.into()])?;
    run_on_latest(FORGET_FAILURES, &[watch.into()]).map(drop)
}

/// Removes a row from the list of failures.
pub fn delete_failure(watch: i64, key: &str) -> SqlResult<()> {
    change_failures(DELETE_FAILURE, &[watch.into(), key.into()]).map(drop)
}

/// Gives a failure its row's new key; returns the number of failures that had the old one.
pub fn rename_failure(watch: i64, before: &str, after: &str) -> SqlResult<u64> {
    change_failures(RENAME_FAILURE, &[watch.into(), before.into(), after.into()])
}

/// Changes the current list of failures: a worker may have listed a row since this transaction began. Returns the
/// number of changed rows.
fn change_failures(query: &'static str, arguments: &[DatumWithOid<'_>]) -> SqlResult<u64> {
    let _user_context = UserContext::of_extension();
    match isolation() {
        // Each statement sees the rows that are committed by then; the plan of this one is kept.
        Isolation::ReadCommitted => Spi::connect_mut(|client| Ok(run(client, query, arguments)?.len() as u64)),
        _ => run_on_latest(query, arguments),
    }
}

/// Returns entries to the queue as if they had not been tried.
pub fn requeue(ids: &[i64], rest: i64) -> SqlResult<()> {
    if ids.is_empty() {
        return Ok(());
    }
    as_extension(|client| {
        let query = "UPDATE clip_search.watch_queue SET attempts = greatest(attempts - 1, 0), \
             due = pg_catalog.clock_timestamp() + $2 * interval '1 millisecond' WHERE id = ANY ($1)";
        client.update(query, None, &[ids.to_vec().into(), rest.into()]).map(drop).map_err(spi)
    })
}

/// Inserts into the queue or the list of failures, and turns "index row size exceeds" into a readable error. An entry
/// of the index has at most 2,704 bytes, compressed, so only the insertion shows whether a key is too long.
pub fn noted<T>(watch: &Watch, longest: usize, note: impl FnOnce() -> SqlResult<T>) -> SqlResult<T> {
    if longest < 2000 {
        return note();
    }
    attempt(note).map_err(|failure| match failure.code.as_str() {
        "54000" => sql_error(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, format!("a key of {} is too long to be noted", watch.name())).set_detail(format!(
                    "As a text it has {longest} bytes; rows that are yet to be embedded, or could not be, are noted by their key, \
                     compressed in 2700."
                )).set_hint(format!("Give {} a shorter key, and call clip_watch again.", watch.name())),
        _ => failure.into_report(),
    })
}

/// Lists a row as failed.
pub fn add_failure(watch: i64, key: &str, failure: &Failure, attempts: i64) -> SqlResult<()> {
    let _user_context = UserContext::of_extension_with_lock_timeout();
    Spi::connect_mut(|client| {
        let query = include_str!("sql/add_failure.sql");
        let arguments = [
            watch.into(),
            key.into(),
            failure.code.as_str().into(),
            brief(&failure.message).into(),
            failure.detail.as_deref().map(brief).into(),
            attempts.into(),
        ];
        client.update(query, None, &arguments).map(drop).map_err(spi)
    })
}

/// The delay in milliseconds after a number of attempts.
pub fn retry_delay(attempts: i32) -> i64 {
    let first = i64::from(guc::worker_retry_delay());
    first.saturating_mul(1 << attempts.clamp(1, 21).saturating_sub(1)).min(LONGEST_DELAY)
}

/// The entries of a watch to claim next.
#[derive(Clone, Copy)]
pub enum Next {
    /// For the worker: due entries.
    Due,
    /// For clip_backfill: entries with ids above the first number, up to the second.
    Between(i64, i64),
}

/// Claims the next entries of a watch. An attempt is counted before it begins, so a row that crashes the server is
/// recognised: the next time it is tried alone, and after the maximum number of attempts no longer. The caller must
/// commit before the work begins.
pub fn claim(watch: i64, count: i64, next: Next) -> SqlResult<Vec<i64>> {
    as_extension(|client| {
        let mut find = |condition: &str, order| {
            let query = format!(
                "SELECT id, attempts, sqlstate IS NULL FROM clip_search.watch_queue q WHERE watch = $1 AND {condition} \
                 ORDER BY {order} LIMIT $2 FOR UPDATE SKIP LOCKED"
            );
            let rows = client.update(&query, None, &[watch.into(), count.into()]).map_err(spi)?;
            rows.map(|row| {
                let (id, attempts) = (get(&row, 1)?.unwrap_or_default(), get(&row, 2)?.unwrap_or_default());
                Ok((id, attempts, get(&row, 3)?.unwrap_or_default()))
            })
            .collect::<SqlResult<Vec<(i64, i32, bool)>>>()
        };
        let mut found = match next {
            Next::Between(after, last) => find(&format!("id > {after} AND id <= {last}"), "id")?,
            Next::Due => {
                let first = find(&format!("due <= {NOW} AND {UNSUSPECTED}"), "due, id")?;
                if first.is_empty() { find(&format!("due <= {NOW}"), "due, id")? } else { first }
            }
        };
        let Some(&(_, attempts, unended)) = found.first() else { return Ok(Vec::new()) };
        if attempts > 0 {
            found.truncate(1);
        } else {
            found.retain(|&(_, attempts, _)| attempts == 0);
        }
        // An entry that has ended a worker before, and may end this one, is delayed longer than an entry that fails.
        let rest = retry_delay(attempts + 1).max(if attempts > 0 && unended { UNENDED_DELAY } else { 0 });
        let ids: Vec<i64> = found.iter().map(|(id, ..)| *id).collect();
        let query = "UPDATE clip_search.watch_queue SET attempts = attempts + 1, \
             due = pg_catalog.clock_timestamp() + $2 * interval '1 millisecond' WHERE id = ANY ($1)";
        client.update(query, None, &[ids.clone().into(), rest.into()]).map_err(spi)?;
        Ok(ids)
    })
}

/// The current time, evaluated once for a statement: an index scan can stop at it, as it can't at a volatile function.
const NOW: &str = "(SELECT pg_catalog.clock_timestamp())";

/// A condition for entries that have not ended a worker or the server. The other entries come last, because their rows
/// may be the cause, until they have been due for a minute.
const UNSUSPECTED: &str = "(q.attempts = 0 OR q.sqlstate IS NOT NULL \
     OR q.due <= pg_catalog.clock_timestamp() - '1 minute'::pg_catalog.interval)";

/// The watches with due entries, and whether these include entries that have not ended a worker.
///
/// The first entry of each watch is looked up in the index. As EXISTS, the planner expected a due entry soon and scanned the
/// table: with 190,000 entries of two watches, 14 other watches took 1.2 s each round; this takes 1 ms.
pub fn due(watches: &[i64]) -> SqlResult<Vec<(i64, bool)>> {
    as_extension(|client| {
        let query = format!(
            "SELECT w.id, (SELECT true FROM clip_search.watch_queue q WHERE q.watch = w.id AND q.due <= {NOW} AND {UNSUSPECTED} \
                 ORDER BY q.due LIMIT 1) IS NOT NULL \
             FROM unnest($1) AS w (id), \
                 LATERAL (SELECT q.due FROM clip_search.watch_queue q WHERE q.watch = w.id ORDER BY q.due LIMIT 1) AS n \
             WHERE n.due <= pg_catalog.clock_timestamp()"
        );
        let rows = client.update(&query, None, &[watches.to_vec().into()]).map_err(spi)?;
        rows.map(|row| Ok((get(&row, 1)?.unwrap_or_default(), get(&row, 2)?.unwrap_or_default()))).collect()
    })
}

/// The time in milliseconds until the next entry of the watches is due; negative if it is overdue.
pub fn next_due(watches: &[i64]) -> SqlResult<Option<i64>> {
    as_extension(|client| {
        let query = "SELECT (EXTRACT(epoch FROM min(n.due) - clock_timestamp()) * 1000)::bigint FROM unnest($1) AS w (id), \
             LATERAL (SELECT q.due FROM clip_search.watch_queue q WHERE q.watch = w.id ORDER BY q.due LIMIT 1) AS n";
        client.update(query, Some(1), &[watches.to_vec().into()]).map_err(spi)?.first().get::<i64>(1).map_err(spi)
    })
}

/// Lists rows as failed that the worker has begun too often without finishing.
pub fn give_up(watches: &[i64]) -> SqlResult<i64> {
    as_extension(|client| {
        let query = include_str!("sql/give_up.sql");
        let passing = PASSING.map(|prefix| format!("{prefix}%")).to_vec();
        let attempts = [guc::worker_attempts(), most_passing_attempts()];
        let arguments = [watches.to_vec().into(), attempts[0].into(), attempts[1].into(), passing.into()];
        Ok(client.update(query, None, &arguments).map_err(spi)?.len() as i64)
    })
}
