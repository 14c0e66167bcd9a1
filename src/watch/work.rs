//! Embeds the rows that entries of the queue name: reads, embeds and writes them, and decides what becomes of those
//! that fail.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::guc;
use crate::pg::catalog::{self, Lock};
use crate::pg::error::SqlResult;
use crate::pg::spi::spi;
use crate::pg::subtransaction::{Failure, attempt};
use crate::pg::vector::Vector;
use crate::watch::queue::{
    Entry, add_failure, forget_entries, forget_failure, lock_entries, own, put_back, rest_after,
};
use crate::watch::rows::{Locked, Queries, Row, Written};
use crate::watch::setting::Watch;
use crate::watch::source::{Source, embed};
use crate::watch::tags;

/// How long entries rest whose row or table another session has locked, in milliseconds.
const LOCKED_REST: i64 = 1000;

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
        // Words that have to be embedded first take a minute: not under a lock.
        if let Err(failure) = attempt(|| tags::prepare(&watch)) {
            put_back(&all(&entries), 0)?;
            outcome.stuck.insert(id, failure);
            continue;
        }
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
        self.is_spent(self.begun)
    }

    /// As much time has gone since as the worker gives a table.
    fn is_spent(&self, begun: Instant) -> bool {
        self.terms.slice.is_some_and(|slice| begun.elapsed() >= slice)
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
        // From here on: what has been embedded is written, unless writing itself takes too long. A machine that gives this
        // process a tenth of a core would embed sixteen rows for each one that it writes otherwise.
        let begun = Instant::now();
        match attempt(|| self.write_all(&ready, begun)) {
            Ok(written) => {
                outcome.of(watch).0 += written.done;
                open.extend(written.locked);
                later.extend(written.later);
            }
            Err(_) => {
                for (index, pair) in ready.iter().enumerate() {
                    if index > 0 && self.is_spent(begun) {
                        later.extend(ready[index..].iter().map(|pair| pair.0.entry.id));
                        break;
                    }
                    match attempt(|| self.write_all(std::slice::from_ref(pair), begun)) {
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
        // The other rows no longer exist, were embedded by another session, or have nothing to embed.
        let rest: Vec<i64> = entries[..count]
            .iter()
            .map(|entry| entry.id)
            .filter(|id| !open.contains(id) && !later.contains(id) && !outcome.noted.contains(id))
            .collect();
        forget_entries(&rest)?;
        Ok(count)
    }

    /// Writes rows until the time is over, one at least; or fails.
    fn write_all(&self, rows: &[(&Row, Option<Vector>)], begun: Instant) -> SqlResult<AllWritten> {
        let mut written = AllWritten::default();
        self.watch.as_owner(|client| {
            for (index, (row, vector)) in rows.iter().enumerate() {
                pgrx::check_for_interrupts!();
                if index > 0 && self.is_spent(begun) {
                    written.later.extend(rows[index..].iter().map(|(row, _)| row.entry.id));
                    break;
                }
                match self.queries.write(client, self.watch, row, vector.as_ref())? {
                    Written::Done => {
                        written.done += 1;
                        forget_failure(self.watch.id, &row.entry.key)?;
                    }
                    Written::Locked => written.locked.push(row.entry.id),
                    Written::Superseded => {}
                }
            }
            Ok(())
        })?;
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
        // A session that deletes the row or changes its key waits from here on, and then takes it off the list. Without
        // the lock, a row whose key was changed meanwhile was listed twice.
        if let Some(row) = row {
            match attempt(|| watch.as_owner(|client| queries.lock(client, row))) {
                Ok(Locked::Elsewhere) => {
                    outcome.noted.push(entry.id);
                    return put_back(&[entry.id], LOCKED_REST);
                }
                Ok(Locked::Superseded) => return Ok(()),
                // If it can't be locked at all, that is what it fails by.
                Ok(Locked::Here) | Err(_) => {}
            }
            // The vector that it has is not one of this watch's. If a trigger keeps it from being removed, the row is
            // listed all the same.
            if entry.again {
                let _ = attempt(|| watch.as_owner(|client| queries.write(client, watch, row, None)));
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
