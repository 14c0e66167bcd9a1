//! Embeds the rows of queue entries: reads, embeds and writes them, and handles failures.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::guc;
use crate::pg::catalog::{self, Lock};
use crate::pg::error::SqlResult;
use crate::pg::subtransaction::{Failure, attempt};
use crate::pg::vector::Vector;
use crate::watch::queue::{
    Entry, add_failure, forget_entries, forget_failure, lock_entries, most_passing_attempts, note_attempt, requeue,
    retry_delay,
};
use crate::watch::rows::{Locked, Queries, Row, Written};
use crate::watch::setting::Watch;
use crate::watch::source::{Source, embed};
use crate::watch::tags;

/// The delay of entries whose row or table another session has locked, in milliseconds.
const LOCKED_DELAY: i64 = 1000;

/// The results for entries, by watch.
#[derive(Default)]
pub struct Outcome {
    /// The numbers of rows embedded and permanently failed.
    pub done: HashMap<i64, (i64, i64)>,
    /// The numbers of the embedded rows that already had an embedding: rows that were grouped, and rows that were only
    /// tagged.
    pub kept: (i64, i64),
    /// The reason why no row can be embedded at present.
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

    fn add_kept(&mut self, (grouped, tagged): (i64, i64)) {
        self.kept.0 += grouped;
        self.kept.1 += tagged;
    }

    /// The result for a single watch: the numbers of rows embedded and failed, or the reason why none can be embedded.
    pub fn single(self) -> SqlResult<(i64, i64)> {
        match self.stuck.into_values().next() {
            Some(failure) => Err(failure.into_report()),
            None => Ok(self.done.into_values().next().unwrap_or_default()),
        }
    }
}

/// The treatment of a row that fails.
#[derive(Clone, Copy, PartialEq)]
pub enum OnRowError {
    /// It is retried later, clip_search.worker_attempts times.
    Retry,
    /// It is listed in clip_search.failure.
    Record,
}

/// The limits of one call of [`embed_entries`], and its treatment of a row that fails.
#[derive(Clone, Copy)]
pub struct Terms {
    pub on_error: OnRowError,
    /// For the worker: it writes no more rows after this time, and does not wait for a locked table, because other
    /// tables' rows would have to wait.
    pub slice: Option<Duration>,
}

impl Terms {
    /// For a session: it processes all entries and lists failed rows.
    pub const ALL: Self = Self { on_error: OnRowError::Record, slice: None };
}

/// Embeds the rows of queue entries, all in this transaction; a row that fails is undone separately. Entries that
/// another session has locked are skipped.
pub fn embed_entries(ids: &[i64], terms: Terms) -> SqlResult<Outcome> {
    let mut outcome = Outcome::default();
    let begun = Instant::now();
    for (id, entries) in lock_entries(ids)? {
        let all = |entries: &[Entry]| entries.iter().map(|entry| entry.id).collect::<Vec<_>>();
        let Some(watch) = Watch::by_id(id)? else {
            forget_entries(&all(&entries))?;
            continue;
        };
        // Words that have to be embedded first take a minute, so this comes before the lock.
        if let Err(failure) = attempt(|| tags::prepare(&watch)) {
            requeue(&all(&entries), 0)?;
            outcome.stuck.insert(id, failure);
            continue;
        }
        // From here on the table keeps its name and columns.
        match terms.slice {
            Some(_) if !catalog::try_lock(watch.relation, Lock::RowExclusive) => {
                requeue(&all(&entries), LOCKED_DELAY)?;
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
                requeue(&all(left), 0)?;
            }
            Err(failure) => {
                requeue(&all(&entries), 0)?;
                outcome.stuck.insert(watch.id, failure);
            }
        }
    }
    Ok(outcome)
}

/// One watch's share of a call of [`embed_entries`].
struct Work<'a> {
    watch: &'a Watch,
    queries: &'a Queries,
    terms: Terms,
    begun: Instant,
}

impl Work<'_> {
    /// Whether the worker has used up its time for this table.
    fn is_over(&self) -> bool {
        self.is_spent(self.begun)
    }

    /// Whether the worker's time for a table has passed since `begun`.
    fn is_spent(&self, begun: Instant) -> bool {
        self.terms.slice.is_some_and(|slice| begun.elapsed() >= slice)
    }
}

impl Work<'_> {
    /// Embeds the rows of the first entries; returns the number of finished entries.
    fn chunk(&self, entries: &[Entry], outcome: &mut Outcome) -> SqlResult<usize> {
        let Self { watch, queries, .. } = *self;
        let (count, rows) = match attempt(|| queries.read(watch, entries)) {
            Ok(read) => read,
            Err(failure) if failure.is_passing() => {
                requeue(&entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), LOCKED_DELAY)?;
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
                    // A row that is embedded again and no longer has a source loses its vector.
                    if vector.is_some() || row.entry.again {
                        ready.push((row, vector));
                    }
                }
                Err(error) => self.note(&row.entry, Some(row), Failure::from(&error), outcome)?,
            }
        }
        let mut open: Vec<i64> = Vec::new();
        // The entries for which no time was left.
        let mut later: Vec<i64> = Vec::new();
        // The time counts from here: embedded rows are written unless writing itself takes too long. Otherwise a
        // process with a tenth of a core would embed sixteen rows for each row that it writes.
        let begun = Instant::now();
        match attempt(|| self.write_all(&ready, begun)) {
            Ok(written) => {
                outcome.of(watch).0 += written.done;
                outcome.add_kept(written.kept);
                open.extend(written.locked);
                later.extend(written.later);
            }
            Err(_) => self.write_each(&ready, begun, outcome, &mut open, &mut later)?,
        }
        requeue(&later, 0)?;
        // The other session will not hold the lock for long.
        requeue(&open, LOCKED_DELAY)?;
        // The other rows no longer exist, were embedded by another session, or have nothing to embed.
        let rest: Vec<i64> = entries[..count]
            .iter()
            .map(|entry| entry.id)
            .filter(|id| !open.contains(id) && !later.contains(id) && !outcome.noted.contains(id))
            .collect();
        forget_entries(&rest)?;
        Ok(count)
    }

    /// Writes rows one by one, so that only a row that cannot be written is noted as failed. Adds the entries of locked rows to
    /// `open`, and those for which no time was left to `later`.
    fn write_each(
        &self,
        ready: &[(&Row, Option<Vector>)],
        begun: Instant,
        outcome: &mut Outcome,
        open: &mut Vec<i64>,
        later: &mut Vec<i64>,
    ) -> SqlResult<()> {
        for (index, pair) in ready.iter().enumerate() {
            if index > 0 && self.is_spent(begun) {
                later.extend(ready[index..].iter().map(|pair| pair.0.entry.id));
                break;
            }
            let entry = &pair.0.entry;
            match attempt(|| self.write_all(std::slice::from_ref(pair), begun)) {
                Ok(written) => {
                    outcome.of(self.watch).0 += written.done;
                    outcome.add_kept(written.kept);
                    open.extend(written.locked);
                }
                Err(failure) if failure.is_passing() && entry.attempts < most_passing_attempts() => {
                    note_attempt(entry.id, &failure, retry_delay(entry.attempts).max(LOCKED_DELAY))?;
                    outcome.noted.push(entry.id);
                }
                Err(failure) => self.note(entry, Some(pair.0), failure, outcome)?,
            }
        }
        Ok(())
    }

    /// Writes rows until the time is over, but at least one; or fails.
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
                        if row.embedding.is_some() {
                            *(if row.lacks_cluster(self.watch) { &mut written.kept.0 } else { &mut written.kept.1 }) +=
                                1;
                        }
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

    /// Records that a row has failed.
    fn note(&self, entry: &Entry, row: Option<&Row>, failure: Failure, outcome: &mut Outcome) -> SqlResult<()> {
        let Self { watch, queries, .. } = *self;
        if self.terms.on_error == OnRowError::Retry
            && !is_permanent(&failure)
            && entry.attempts < guc::worker_attempts()
        {
            outcome.noted.push(entry.id);
            return note_attempt(entry.id, &failure, retry_delay(entry.attempts));
        }
        // A session that deletes the row or changes its key waits from here on, and then removes it from the list.
        // Without the lock, a row whose key changed in the meantime was listed twice.
        if let Some(row) = row {
            match attempt(|| watch.as_owner(|client| queries.lock(client, row))) {
                Ok(Locked::Elsewhere) => {
                    outcome.noted.push(entry.id);
                    return requeue(&[entry.id], LOCKED_DELAY);
                }
                Ok(Locked::Superseded) => return Ok(()),
                // If the lock itself fails, record that error.
                Ok(Locked::Here) | Err(_) => {}
            }
            // The row's vector does not come from this watch, so it is removed. If a trigger prevents that, the row is
            // listed anyway.
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
            Err(passing) if passing.is_passing() => requeue(&[entry.id], LOCKED_DELAY),
            Err(failure) => Err(failure.into_report()),
        }
    }
}

/// Whether a row would fail in the same way again: its image is broken or of an unsupported format (22023, 0A000), or
/// exceeds a limit (54000). Other errors, such as a trigger's, may not recur at the next attempt.
fn is_permanent(failure: &Failure) -> bool {
    ["22", "0A", "54"].iter().any(|class| failure.code.starts_with(class))
}

/// The results of writing rows.
#[derive(Default)]
struct AllWritten {
    done: i64,
    /// As [`Outcome::kept`].
    kept: (i64, i64),
    /// Entries whose rows another session has locked.
    locked: Vec<i64>,
    /// Entries for which no time was left.
    later: Vec<i64>,
}
