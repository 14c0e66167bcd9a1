//! Embeds the rows that entries of the queue name: read, embedded, locked and written.

use std::collections::HashMap;

use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::quote_identifier;

use crate::cluster::assign::assign;
use crate::guc;
use crate::pg::error::{SqlResult, with_sqlstate};
use crate::pg::spi::{get, spi};
use crate::pg::subtransaction::{Failure, attempt};
use crate::pg::user_context::Rights;
use crate::pg::vector::{self, Vector};
use crate::pg::vector_column::Storage;
use crate::watch::queue::{
    Entry, add_failure, forget_entries, forget_failure, lock_entries, own, put_back, rest_after,
};
use crate::watch::setting::Watch;
use crate::watch::source::{Source, embed};

/// Files that are in memory at a time.
const BYTES: usize = 64 << 20;

/// A row as it was read, with all that its entry says.
struct Row {
    entry: Entry,
    image: Option<Vec<u8>>,
    text: Option<String>,
    /// Embedded already, and yet without a cluster.
    embedding: Option<Vector>,
}

/// Queries on a watched table.
struct Queries {
    read: String,
    there: String,
    lock: String,
    update: String,
    has_cluster: bool,
    storage: Storage,
}

impl Queries {
    fn new(watch: &Watch) -> SqlResult<Self> {
        let _rights = Rights::of_caller();
        Spi::connect_mut(|client| {
            // The operator of the index that keeps the key unique, whatever schema it is in.
            let query = include_str!("sql/key_operators.sql");
            let rows = client.update(query, None, &[watch.relation.into(), watch.key.clone().into()]).map_err(spi)?;
            let equal = rows
                .into_iter()
                .map(|row| Ok(get::<String>(&row, 1)?.unwrap_or_default()))
                .collect::<SqlResult<Vec<_>>>()?;
            if equal.len() != watch.key.len() {
                return Err(key_changed(watch));
            }
            let key = equal.join(" AND ");
            let column = |name: &Option<String>| name.as_deref().map(quote_identifier);
            let or_null = |name: &Option<String>, kind: &str| column(name).unwrap_or_else(|| format!("NULL::{kind}"));
            let Watch { table, .. } = watch;
            let embedding = quote_identifier(&watch.embedding);
            // Of a type that it can't be any more: writing says so.
            let query = "SELECT atttypid FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attname = $2 AND NOT attisdropped";
            let kind = client
                .update(query, Some(1), &[watch.relation.into(), watch.embedding.as_str().into()])
                .map_err(spi)?;
            let kind = kind.into_iter().next().map(|row| get::<pg_sys::Oid>(&row, 1)).transpose()?.flatten();
            let storage = kind.and_then(Storage::of).unwrap_or(Storage::Vector);
            let cluster = column(&watch.cluster);
            // What has to be done to a row: embedded, or only grouped.
            let open = match &cluster {
                Some(cluster) => format!("({embedding} IS NULL OR {cluster} IS NULL)"),
                None => format!("{embedding} IS NULL"),
            };
            let same: Vec<String> = [(&watch.image, 2), (&watch.text, 3)]
                .into_iter()
                .filter_map(|(name, n)| Some(format!("{} IS NOT DISTINCT FROM ${n}", column(name)?)))
                .collect();
            let there = format!("SELECT 1 FROM {table} WHERE {key} AND {open} AND {}", same.join(" AND "));
            Ok(Self {
                read: format!(
                    "SELECT {}, {}, {embedding}::{}.vector FROM {table} WHERE {key} AND {open} AND ({})",
                    or_null(&watch.image, "bytea"),
                    or_null(&watch.text, "text"),
                    vector::schema(),
                    watch.has_source()
                ),
                lock: format!("{there} FOR NO KEY UPDATE SKIP LOCKED"),
                there,
                update: match &cluster {
                    Some(cluster) => format!("UPDATE {table} SET {embedding} = $2, {cluster} = $3 WHERE {key}"),
                    None => format!("UPDATE {table} SET {embedding} = $2 WHERE {key}"),
                },
                has_cluster: cluster.is_some(),
                storage,
            })
        })
    }

    /// Reads rows until their files come to 64 MB; how many entries were looked at, and the rows among them that there
    /// is something to do to.
    fn read(&self, watch: &Watch, entries: &[Entry]) -> SqlResult<(usize, Vec<Row>)> {
        let _rights = Rights::of_table_owner(watch.owner);
        Spi::connect_mut(|client| {
            let (mut rows, mut bytes) = (Vec::new(), 0);
            for (index, entry) in entries.iter().enumerate() {
                pgrx::check_for_interrupts!();
                let found = client.update(&self.read, Some(1), &[entry.key.as_str().into()]).map_err(spi)?;
                if let Some(row) = found.into_iter().next() {
                    let row = Row {
                        entry: entry.clone(),
                        image: get(&row, 1)?,
                        text: get(&row, 2)?,
                        embedding: get(&row, 3)?,
                    };
                    bytes += row.image.as_ref().map_or(0, Vec::len) + row.text.as_ref().map_or(0, String::len);
                    rows.push(row);
                }
                if bytes >= BYTES {
                    return Ok((index + 1, rows));
                }
            }
            Ok((entries.len(), rows))
        })
    }

    /// Locks a row to the end of the transaction, if it still is what was read and no other session has it.
    fn lock(&self, watch: &Watch, row: &Row) -> SqlResult<Locked> {
        let source = [row.entry.key.as_str().into(), row.image.as_deref().into(), row.text.as_deref().into()];
        let _rights = Rights::of_table_owner(watch.owner);
        Spi::connect_mut(|client| {
            if !client.update(&self.lock, Some(1), &source).map_err(spi)?.is_empty() {
                return Ok(Locked::Here);
            }
            let there = !client.update(&self.there, Some(1), &source).map_err(spi)?.is_empty();
            Ok(if there { Locked::Elsewhere } else { Locked::Superseded })
        })
    }

    /// Writes a row's embedding, if the row still is what was embedded.
    fn write(&self, watch: &Watch, row: &Row, vector: &Vector) -> SqlResult<Written> {
        let key = row.entry.key.as_str();
        match self.lock(watch, row)? {
            Locked::Here => {}
            Locked::Elsewhere => return Ok(Written::Locked),
            Locked::Superseded => return Ok(Written::Superseded),
        }
        let vector = self.storage.round(vector.clone());
        let cluster = match &watch.collection {
            Some(collection) if self.has_cluster => Some(assign(vector.clone(), collection, watch.owner)?),
            _ => None,
        };
        let done = {
            let _rights = Rights::of_table_owner(watch.owner);
            Spi::connect_mut(|client| {
                let vector = Some(vector.clone());
                let done = if self.has_cluster {
                    client.update(&self.update, None, &[key.into(), vector.into(), cluster.into()])
                } else {
                    client.update(&self.update, None, &[key.into(), vector.into()])
                };
                Ok::<_, ErrorReport>(done.map_err(spi)?.len())
            })?
        };
        if done != 1 {
            return Err(with_sqlstate(
                PgSqlErrorCode::ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
                Error::new(Kind::InvalidInput, "the row could not be updated")
                    .detail(format!("A trigger or a rule on {} keeps it from that.", watch.name())),
            ));
        }
        Ok(Written::Done)
    }
}

fn key_changed(watch: &Watch) -> ErrorReport {
    with_sqlstate(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        Error::new(Kind::InvalidInput, format!("the key ({}) of {} has changed", watch.key.join(", "), watch.name()))
            .hint("Call clip_watch again, with the same arguments."),
    )
}

/// Who has a row.
enum Locked {
    Here,
    /// Another session.
    Elsewhere,
    /// It is gone, or has another source, which has its own entry.
    Superseded,
}

enum Written {
    Done,
    /// Another session has the row.
    Locked,
    /// It is gone, or has another source, which has its own entry.
    Superseded,
}

/// What has become of entries, by watch.
#[derive(Default)]
pub struct Outcome {
    /// Embedded and failed for good.
    pub done: HashMap<i64, (i64, i64)>,
    /// Why no row can be embedded for now.
    pub stuck: HashMap<i64, Failure>,
    /// Entries whose rows have failed.
    noted: Vec<i64>,
}

impl Outcome {
    fn of(&mut self, watch: &Watch) -> &mut (i64, i64) {
        self.done.entry(watch.id).or_default()
    }

    /// Of a single watch: embedded and failed, or why nothing can be.
    pub fn single(self) -> SqlResult<(i64, i64)> {
        match self.stuck.into_values().next() {
            Some(failure) => Err(failure.into_report()),
            None => Ok(self.done.into_values().next().unwrap_or_default()),
        }
    }
}

/// What is done about a row that fails.
#[derive(Clone, Copy, PartialEq)]
pub enum OnRowError {
    /// It is tried again later, clip_search.worker_attempts times.
    Retry,
    /// It is listed in clip_search.failure.
    Record,
}

/// Sees to entries of the queue: all in this transaction, each row that fails undone by itself. Entries that another
/// session has locked are left to it.
pub fn work(ids: &[i64], on_error: OnRowError) -> SqlResult<Outcome> {
    let mut outcome = Outcome::default();
    for (watch, entries) in lock_entries(ids)? {
        let Some(watch) = Watch::by_id(watch)? else {
            forget_entries(&entries.iter().map(|entry| entry.id).collect::<Vec<_>>())?;
            continue;
        };
        match attempt(|| Queries::new(&watch)) {
            Ok(queries) => {
                let mut left = entries.as_slice();
                while !left.is_empty() {
                    left = &left[chunk(&watch, &queries, left, on_error, &mut outcome)?..];
                    if outcome.stuck.contains_key(&watch.id) {
                        break;
                    }
                }
                put_back(&left.iter().map(|entry| entry.id).collect::<Vec<_>>(), 0)?;
            }
            Err(failure) => {
                put_back(&entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), 0)?;
                outcome.stuck.insert(watch.id, failure);
            }
        }
    }
    Ok(outcome)
}

/// Sees to the first of the entries; returns how many.
fn chunk(
    watch: &Watch,
    queries: &Queries,
    entries: &[Entry],
    on_error: OnRowError,
    outcome: &mut Outcome,
) -> SqlResult<usize> {
    let (count, rows) = match attempt(|| queries.read(watch, entries)) {
        Ok(read) => read,
        Err(failure) if failure.is_passing() => {
            put_back(&entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), 1000)?;
            return Ok(entries.len());
        }
        Err(failure) if entries.len() == 1 => {
            note(watch, &entries[0], None, failure, on_error, outcome)?;
            return Ok(1);
        }
        Err(_) => return chunk(watch, queries, &entries[..1], on_error, outcome),
    };
    let sources: Vec<Source<'_>> = rows
        .iter()
        .map(|row| match &row.embedding {
            Some(_) => Source { image: None, text: None },
            None => Source { image: row.image.as_deref(), text: row.text.as_deref() },
        })
        .collect();
    let vectors = match embed(watch, &sources) {
        Ok(vectors) => vectors,
        Err(error) => {
            outcome.stuck.insert(watch.id, Failure::from(&error));
            return Ok(0);
        }
    };
    let mut ready = Vec::new();
    for (row, vector) in rows.iter().zip(vectors) {
        match vector {
            Ok(vector) => {
                if let Some(vector) = row.embedding.clone().or(vector) {
                    ready.push((row, vector));
                }
            }
            Err(error) => note(watch, &row.entry, Some((queries, row)), Failure::from(&error), on_error, outcome)?,
        }
    }
    let mut open: Vec<i64> = Vec::new();
    match attempt(|| write_all(watch, queries, &ready)) {
        Ok((done, locked)) => {
            outcome.of(watch).0 += done;
            open.extend(locked);
        }
        Err(_) => {
            for pair in &ready {
                match attempt(|| write_all(watch, queries, std::slice::from_ref(pair))) {
                    Ok((done, locked)) => {
                        outcome.of(watch).0 += done;
                        open.extend(locked);
                    }
                    Err(failure) if failure.is_passing() => open.push(pair.0.entry.id),
                    Err(failure) => {
                        note(watch, &pair.0.entry, Some((queries, pair.0)), failure, on_error, outcome)?;
                    }
                }
            }
        }
    }
    // Another session will not have the row for long.
    put_back(&open, 1000)?;
    // What is neither embedded nor failed nor open is gone, or has been embedded by somebody else, or has nothing to embed.
    let rest: Vec<i64> = entries[..count]
        .iter()
        .map(|entry| entry.id)
        .filter(|id| !open.contains(id) && !outcome.noted.contains(id))
        .collect();
    forget_entries(&rest)?;
    Ok(count)
}

/// Writes all, or fails; how many were embedded, and the entries of those that another session has.
fn write_all(watch: &Watch, queries: &Queries, rows: &[(&Row, Vector)]) -> SqlResult<(i64, Vec<i64>)> {
    let (mut done, mut locked) = (0, Vec::new());
    for (row, vector) in rows {
        pgrx::check_for_interrupts!();
        match queries.write(watch, row, vector)? {
            Written::Done => {
                done += 1;
                forget_failure(watch.id, &row.entry.key)?;
            }
            Written::Locked => locked.push(row.entry.id),
            Written::Superseded => {}
        }
    }
    Ok((done, locked))
}

/// Notes that a row has failed.
fn note(
    watch: &Watch,
    entry: &Entry,
    row: Option<(&Queries, &Row)>,
    failure: Failure,
    on_error: OnRowError,
    outcome: &mut Outcome,
) -> SqlResult<()> {
    if on_error == OnRowError::Retry && entry.attempts < guc::worker_attempts() {
        return own(|client| {
            let query = "UPDATE clip_search.watch_queue SET sqlstate = $2, message = $3, \
                 due = pg_catalog.clock_timestamp() + $4 * interval '1 millisecond' WHERE id = $1";
            let arguments =
                [entry.id.into(), failure.code.into(), failure.message.into(), rest_after(entry.attempts).into()];
            outcome.noted.push(entry.id);
            client.update(query, None, &arguments).map(drop).map_err(spi)
        });
    }
    // Who deletes or renames the row waits from here on for what is listed, and takes it off the list. Without that the list
    // had a row that was renamed meanwhile twice.
    if let Some((queries, row)) = row {
        match attempt(|| queries.lock(watch, row)) {
            Ok(Locked::Elsewhere) => {
                outcome.noted.push(entry.id);
                return put_back(&[entry.id], 1000);
            }
            Ok(Locked::Superseded) => return Ok(()),
            // If it can't be locked at all, that is what it fails by.
            Ok(Locked::Here) | Err(_) => {}
        }
    }
    outcome.noted.push(entry.id);
    match attempt(|| add_failure(watch.id, &entry.key, &failure, i64::from(entry.attempts.max(1)))) {
        Ok(()) => {
            outcome.of(watch).1 += 1;
            forget_entries(&[entry.id])
        }
        // A writer is at the row; what it leaves is seen to after it.
        Err(passing) if passing.is_passing() => put_back(&[entry.id], 1000),
        Err(failure) => Err(failure.into_report()),
    }
}
