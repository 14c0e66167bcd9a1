//! Embeds the rows that entries of the queue name: read, embedded, locked and written.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::quote_identifier;

use crate::cluster::assign::assign;
use crate::cluster::pending::join;
use crate::guc;
use crate::pg::catalog::{self, Lock};
use crate::pg::error::{SqlResult, with_sqlstate};
use crate::pg::spi::get;
use crate::pg::spi::spi;
use crate::pg::subtransaction::Failure;
use crate::pg::subtransaction::attempt;
use crate::pg::user_context::Rights;
use crate::pg::vector::{self, Vector};
use crate::pg::vector_column::Storage;
use crate::watch::hard_limit::HardLimit;
use crate::watch::queue::{
    Entry, add_failure, forget_entries, forget_failure, lock_entries, own, put_back, rest_after,
};
use crate::watch::setting::Watch;
use crate::watch::source::{Source, embed};

/// How long entries rest whose row or table another session has locked, in milliseconds.
const LOCKED_REST: i64 = 1000;
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
                .filter_map(|(name, n)| {
                    // By its bytes: two texts that a collation takes for equal have two embeddings.
                    let (kind, bytes) = if n == 2 { ("bytea", "") } else { ("text", " COLLATE pg_catalog.\"C\"") };
                    Some(format!("{}::{kind}{bytes} IS NOT DISTINCT FROM ${n}::{kind}{bytes}", column(name)?))
                })
                .collect();
            let there = format!("SELECT 1 FROM {table} WHERE {key} AND ($4 OR {open}) AND {}", same.join(" AND "));
            Ok(Self {
                read: format!(
                    "SELECT {}, {}, {embedding}::{}.vector FROM {table} WHERE {key} AND ($2 OR {open} AND ({}))",
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
        let read = Spi::connect_mut(|client| {
            let _rights = Rights::of_table_owner(watch.owner);
            let (mut rows, mut bytes) = (Vec::new(), 0);
            for (index, entry) in entries.iter().enumerate() {
                pgrx::check_for_interrupts!();
                let _limit = HardLimit::start();
                let found = client
                    .update(&self.read, Some(1), &[entry.key.as_str().into(), entry.again.into()])
                    .map_err(spi)?;
                if let Some(row) = found.into_iter().next() {
                    let row = Row {
                        entry: entry.clone(),
                        image: get(&row, 1)?,
                        text: get(&row, 2)?,
                        embedding: if entry.again { None } else { get(&row, 3)? },
                    };
                    bytes += row.image.as_ref().map_or(0, Vec::len) + row.text.as_ref().map_or(0, String::len);
                    rows.push(row);
                }
                if bytes >= BYTES {
                    return Ok((index + 1, rows));
                }
            }
            Ok((entries.len(), rows))
        })?;
        watch.check_still_named()?;
        Ok(read)
    }

    /// Locks a row to the end of the transaction, if it still is what was read and no other session has it.
    fn lock(&self, watch: &Watch, row: &Row) -> SqlResult<Locked> {
        let source = [
            row.entry.key.as_str().into(),
            row.image.as_deref().into(),
            row.text.as_deref().into(),
            row.entry.again.into(),
        ];
        let _rights = Rights::of_table_owner(watch.owner);
        let _limit = HardLimit::start();
        Spi::connect_mut(|client| {
            if !client.update(&self.lock, Some(1), &source).map_err(spi)?.is_empty() {
                return Ok(Locked::Here);
            }
            let there = !client.update(&self.there, Some(1), &source).map_err(spi)?.is_empty();
            Ok(if there { Locked::Elsewhere } else { Locked::Superseded })
        })
    }

    /// Writes a row's embedding, or none, if the row still is what was embedded.
    fn write(&self, watch: &Watch, row: &Row, vector: Option<&Vector>) -> SqlResult<Written> {
        let key = row.entry.key.as_str();
        match self.lock(watch, row)? {
            Locked::Here => {}
            Locked::Elsewhere => return Ok(Written::Locked),
            Locked::Superseded => return Ok(Written::Superseded),
        }
        let vector = vector.map(|vector| self.storage.round(vector.clone()));
        let cluster = match (&watch.collection, &vector) {
            // Such a row may be in a group already: the trigger confirms that it is in another, and takes it out of the old.
            (Some(collection), Some(vector)) if self.has_cluster && row.entry.again => {
                Some(join(&Rc::from(collection.as_str()), &vector.0, watch.owner)?)
            }
            (Some(collection), Some(vector)) if self.has_cluster => {
                Some(assign(vector.clone(), collection, watch.owner)?)
            }
            _ => None,
        };
        let done = {
            let _rights = Rights::of_table_owner(watch.owner);
            let _limit = HardLimit::start();
            Spi::connect_mut(|client| {
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
    /// Watches whose tables another session has locked.
    pub locked: HashSet<i64>,
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

/// How much one call of [`work`] does, and what it does about a row that fails.
#[derive(Clone, Copy)]
pub struct Terms {
    pub on_error: OnRowError,
    /// The worker's: it writes no more rows after this time, and does not wait for a table that is locked. Others' rows
    /// would wait meanwhile.
    pub slice: Option<Duration>,
}

impl Terms {
    /// A session's, which does all and lists what fails.
    pub const ALL: Self = Self { on_error: OnRowError::Record, slice: None };
}

/// Embeds the rows of entries of the queue: all in this transaction, each row that fails undone by itself. Entries that
/// another session has locked are left to it.
pub fn work(ids: &[i64], terms: Terms) -> SqlResult<Outcome> {
    let mut outcome = Outcome::default();
    let begun = Instant::now();
    for (id, entries) in lock_entries(ids)? {
        let all = |entries: &[Entry]| entries.iter().map(|entry| entry.id).collect::<Vec<_>>();
        let Some(watch) = Watch::by_id(id)? else {
            forget_entries(&all(&entries))?;
            continue;
        };
        // From here on the table keeps its name and columns.
        match terms.slice {
            Some(_) if !catalog::try_lock(watch.relation, Lock::RowExclusive) => {
                put_back(&all(&entries), LOCKED_REST)?;
                outcome.locked.insert(id);
                continue;
            }
            Some(_) => {}
            None => catalog::lock(watch.relation, Lock::RowExclusive),
        }
        let Some(watch) = Watch::by_id(id)? else {
            forget_entries(&all(&entries))?;
            continue;
        };
        match attempt(|| Queries::new(&watch)) {
            Ok(queries) => {
                let work = Work { watch: &watch, queries: &queries, terms, begun };
                let mut left = entries.as_slice();
                while !left.is_empty() && !work.is_over() {
                    left = &left[work.chunk(left, &mut outcome)?..];
                    if outcome.stuck.contains_key(&watch.id) {
                        break;
                    }
                }
                put_back(&all(left), 0)?;
            }
            Err(failure) => {
                put_back(&all(&entries), 0)?;
                outcome.stuck.insert(watch.id, failure);
            }
        }
    }
    Ok(outcome)
}

/// One watch's share of a call of [`work`].
struct Work<'a> {
    watch: &'a Watch,
    queries: &'a Queries,
    terms: Terms,
    begun: Instant,
}

impl Work<'_> {
    /// The worker has given this table its time.
    fn is_over(&self) -> bool {
        self.terms.slice.is_some_and(|slice| self.begun.elapsed() >= slice)
    }
}

impl Work<'_> {
    /// Embeds the rows of the first of the entries; returns how many entries are done with.
    fn chunk(&self, entries: &[Entry], outcome: &mut Outcome) -> SqlResult<usize> {
        let Self { watch, queries, .. } = *self;
        let (count, rows) = match attempt(|| queries.read(watch, entries)) {
            Ok(read) => read,
            Err(failure) if failure.is_passing() => {
                put_back(&entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), LOCKED_REST)?;
                return Ok(entries.len());
            }
            Err(failure) if entries.len() == 1 => {
                self.note(&entries[0], None, failure, outcome)?;
                return Ok(1);
            }
            Err(_) => return self.chunk(&entries[..1], outcome),
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
                    let vector = row.embedding.clone().or(vector);
                    // A row that is embedded again and has no source any more loses its vector.
                    if vector.is_some() || row.entry.again {
                        ready.push((row, vector));
                    }
                }
                Err(error) => self.note(&row.entry, Some(row), Failure::from(&error), outcome)?,
            }
        }
        let mut open: Vec<i64> = Vec::new();
        // What there was no time for.
        let mut later: Vec<i64> = Vec::new();
        match attempt(|| self.write_all(&ready)) {
            Ok(written) => {
                outcome.of(watch).0 += written.done;
                open.extend(written.locked);
                later.extend(written.later);
            }
            Err(_) => {
                for (index, pair) in ready.iter().enumerate() {
                    if index > 0 && self.is_over() {
                        later.extend(ready[index..].iter().map(|pair| pair.0.entry.id));
                        break;
                    }
                    match attempt(|| self.write_all(std::slice::from_ref(pair))) {
                        Ok(written) => {
                            outcome.of(watch).0 += written.done;
                            open.extend(written.locked);
                        }
                        Err(failure) if failure.is_passing() => open.push(pair.0.entry.id),
                        Err(failure) => {
                            self.note(&pair.0.entry, Some(pair.0), failure, outcome)?;
                        }
                    }
                }
            }
        }
        put_back(&later, 0)?;
        // Another session will not have the row for long.
        put_back(&open, LOCKED_REST)?;
        // What is neither embedded nor failed nor open is gone, or has been embedded by somebody else, or has nothing to embed.
        let rest: Vec<i64> = entries[..count]
            .iter()
            .map(|entry| entry.id)
            .filter(|id| !open.contains(id) && !later.contains(id) && !outcome.noted.contains(id))
            .collect();
        forget_entries(&rest)?;
        Ok(count)
    }

    /// Writes rows until the time is over, one at least; or fails.
    fn write_all(&self, rows: &[(&Row, Option<Vector>)]) -> SqlResult<AllWritten> {
        let mut written = AllWritten::default();
        for (index, (row, vector)) in rows.iter().enumerate() {
            pgrx::check_for_interrupts!();
            if index > 0 && self.is_over() {
                written.later.extend(rows[index..].iter().map(|(row, _)| row.entry.id));
                break;
            }
            match self.queries.write(self.watch, row, vector.as_ref())? {
                Written::Done => {
                    written.done += 1;
                    forget_failure(self.watch.id, &row.entry.key)?;
                }
                Written::Locked => written.locked.push(row.entry.id),
                Written::Superseded => {}
            }
        }
        self.watch.check_still_named()?;
        Ok(written)
    }

    /// Notes that a row has failed.
    fn note(&self, entry: &Entry, row: Option<&Row>, failure: Failure, outcome: &mut Outcome) -> SqlResult<()> {
        let Self { watch, queries, .. } = *self;
        if self.terms.on_error == OnRowError::Retry
            && !is_permanent(&failure)
            && entry.attempts < guc::worker_attempts()
        {
            return own(|client| {
                let query = "UPDATE clip_search.watch_queue SET sqlstate = $2, message = $3, \
                 due = pg_catalog.clock_timestamp() + $4 * interval '1 millisecond' WHERE id = $1";
                let arguments =
                    [entry.id.into(), failure.code.into(), failure.message.into(), rest_after(entry.attempts).into()];
                outcome.noted.push(entry.id);
                client.update(query, None, &arguments).map(drop).map_err(spi)
            });
        }
        // A session that deletes the row or changes its key waits from here on, and then takes it off the list. Without the
        // lock, a row whose key was changed meanwhile was listed twice.
        if let Some(row) = row {
            match attempt(|| queries.lock(watch, row)) {
                Ok(Locked::Elsewhere) => {
                    outcome.noted.push(entry.id);
                    return put_back(&[entry.id], LOCKED_REST);
                }
                Ok(Locked::Superseded) => return Ok(()),
                // If it can't be locked at all, that is what it fails by.
                Ok(Locked::Here) | Err(_) => {}
            }
            // The vector that it has is not one of this watch's. If a trigger keeps it from being removed, the row is listed all
            // the same.
            if entry.again {
                let _ = attempt(|| queries.write(watch, row, None).map(drop));
            }
        }
        outcome.noted.push(entry.id);
        match attempt(|| add_failure(watch.id, &entry.key, &failure, i64::from(entry.attempts.max(1)))) {
            Ok(()) => {
                outcome.of(watch).1 += 1;
                forget_entries(&[entry.id])
            }
            // Another session is writing the row; the entry is tried again afterwards.
            Err(passing) if passing.is_passing() => put_back(&[entry.id], LOCKED_REST),
            Err(failure) => Err(failure.into_report()),
        }
    }
}

/// Whether a row would fail in the same way again: its image is broken or of a format that is not read (22023, 0A000),
/// or beyond a limit (54000). Others, such as a trigger's error, may have passed by the next attempt.
fn is_permanent(failure: &Failure) -> bool {
    ["22", "0A", "54"].iter().any(|class| failure.code.starts_with(class))
}

/// What has become of rows that were to be written.
#[derive(Default)]
struct AllWritten {
    done: i64,
    /// Entries whose rows another session has.
    locked: Vec<i64>,
    /// Entries that there was no time for.
    later: Vec<i64>,
}
