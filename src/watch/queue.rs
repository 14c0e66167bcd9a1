//! Filling in embeddings that were not made as the row was written: the queue, for the background worker and
//! clip_backfill alike.
//!
//! An entry of the queue is a row's key. Who works on it holds its lock; the row itself is locked only for the moment in
//! which its embedding is written, and only if it still has the source that was embedded. So writers never wait for an
//! inference, and of several entries for a row any one will do.

use std::collections::HashMap;

use clip::clustering::centroid::normalise;
use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, quote_identifier};

use crate::cluster::assign::assign;
use crate::cluster::collection::get;
use crate::cluster::tables;
use crate::guc;
use crate::model::loaded;
use crate::pg::error::{SqlResult, report};
use crate::pg::regclass::Regclass;
use crate::pg::user_context::{Failure, Rights, attempt, key_form};
use crate::pg::vector::{self, Storage, Vector};
use crate::watch::define::{Table, Watch, spi, table_of};

/// Files that are in memory at a time.
const BYTES: usize = 64 << 20;
/// Keys that are read and queued at a time.
const KEYS: i64 = 10_000;
/// The longest that a row rests between two attempts, in milliseconds.
const LONGEST_REST: i64 = 3_600_000;

/// What is to be embedded of a row.
pub struct Source<'a> {
    pub image: Option<&'a [u8]>,
    pub text: Option<&'a str>,
}

/// Whether an error is a row's own; others, say a model that is not there, would be every row's.
pub fn is_of_row(error: &Error) -> bool {
    !matches!(error.kind, Kind::UnknownModel | Kind::MissingFile | Kind::BadModel)
}

/// Embeds rows: each gets its vector, none if it has nothing to embed, or its own error. Err is the model's.
pub fn embed(watch: &Watch, rows: &[Source<'_>]) -> Result<Vec<Result<Option<Vector>, Error>>, Error> {
    let images: Vec<Option<&[u8]>> = rows.iter().map(|row| row.image).collect();
    // An empty caption says as much as none does.
    let both = watch.image.is_some();
    let texts: Vec<Option<&str>> =
        rows.iter().map(|row| row.text.filter(|text| !both || !text.trim().is_empty())).collect();
    let images = singly(&images, |items| loaded::try_images(&watch.model, items))?;
    let texts = singly(&texts, |items| loaded::try_texts(&watch.model, items))?;
    let weight = watch.text_weight as f32;
    Ok(images
        .into_iter()
        .zip(texts)
        .map(|pair| match (pair.0?, pair.1?) {
            (Some(Vector(image)), Some(Vector(text))) => {
                let mut mean: Vec<f32> =
                    image.iter().zip(&text).map(|(i, t)| (1.0 - weight) * i + weight * t).collect();
                normalise(&mut mean)?;
                Ok(Some(Vector(mean)))
            }
            (image, text) => Ok(image.or(text)),
        })
        .collect())
}

type Embedded = Result<Option<Vector>, Error>;

/// All at once, or one by one where that fails by the fault of some.
fn singly<T: Copy>(
    items: &[Option<T>],
    embed: impl Fn(&[Option<T>]) -> clip::Result<Vec<Option<Vector>>>,
) -> Result<Vec<Embedded>, Error> {
    if items.iter().all(Option::is_none) {
        return Ok(items.iter().map(|_| Ok(None)).collect());
    }
    match embed(items) {
        Ok(vectors) => Ok(vectors.into_iter().map(Ok).collect()),
        Err(error) if !is_of_row(&error) => Err(error),
        Err(mut error) if items.len() == 1 => {
            error.element = None;
            Ok(vec![Err(error)])
        }
        Err(_) => items
            .iter()
            .map(|item| match embed(&[*item]) {
                Ok(mut vectors) => Ok(Ok(vectors.pop().flatten())),
                Err(error) if is_of_row(&error) => Ok(Err(error)),
                Err(error) => Err(error),
            })
            .collect(),
    }
}

/// An entry of the queue, which this transaction has locked.
#[derive(Clone)]
struct Entry {
    id: i64,
    /// The text form of an array of texts.
    key: String,
    attempts: i32,
}

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
            let query = "SELECT DISTINCT ON (u.n) format('%I OPERATOR(%I.%s) (($1::text[])[%s])::%s', a.attname, n.nspname, o.oprname, u.n, \
                     pg_catalog.format_type(a.atttypid, a.atttypmod)), u.n \
                 FROM unnest($2::text[]) WITH ORDINALITY AS u (name, n) \
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attname = u.name AND NOT a.attisdropped \
                 JOIN pg_catalog.pg_index i ON i.indrelid = $1 AND i.indisunique \
                 JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) AS k (attnum, class) ON k.attnum = a.attnum \
                 JOIN pg_catalog.pg_opclass c ON c.oid = k.class \
                 JOIN pg_catalog.pg_amop m ON m.amopfamily = c.opcfamily AND m.amopstrategy = 3 AND m.amoplefttype = c.opcintype \
                     AND m.amoprighttype = c.opcintype \
                 JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace \
                 ORDER BY u.n, i.indisprimary DESC";
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
            Some(collection) if self.has_cluster => {
                let _rights = Rights::of_extension();
                Some(assign(vector.clone(), collection)?)
            }
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
            return Err(crate::pg::error::with_sqlstate(
                PgSqlErrorCode::ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
                Error::new(Kind::InvalidInput, "the row could not be updated")
                    .detail(format!("A trigger or a rule on {} keeps it from that.", watch.name())),
            ));
        }
        Ok(Written::Done)
    }
}

fn key_changed(watch: &Watch) -> ErrorReport {
    crate::pg::error::with_sqlstate(
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
    fn single(self) -> SqlResult<(i64, i64)> {
        match self.stuck.into_values().next() {
            Some(failure) => Err(failure.into_report()),
            None => Ok(self.done.into_values().next().unwrap_or_default()),
        }
    }
}

/// What is done about a row that fails.
#[derive(Clone, Copy, PartialEq)]
pub enum Patience {
    /// It is tried again later, some times.
    Some,
    /// It is listed in clip_search.failure.
    None,
}

/// Sees to entries of the queue: all in this transaction, each row that fails undone by itself. Entries that another
/// session has locked are left to it.
pub fn work(ids: &[i64], patience: Patience) -> SqlResult<Outcome> {
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
                    left = &left[chunk(&watch, &queries, left, patience, &mut outcome)?..];
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
    patience: Patience,
    outcome: &mut Outcome,
) -> SqlResult<usize> {
    let (count, rows) = match attempt(|| queries.read(watch, entries)) {
        Ok(read) => read,
        Err(failure) if failure.is_passing() => {
            put_back(&entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), 1000)?;
            return Ok(entries.len());
        }
        Err(failure) if entries.len() == 1 => {
            note(watch, &entries[0], None, failure, patience, outcome)?;
            return Ok(1);
        }
        Err(_) => return chunk(watch, queries, &entries[..1], patience, outcome),
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
            Err(error) => note(watch, &row.entry, Some((queries, row)), Failure::from(&error), patience, outcome)?,
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
                        note(watch, &pair.0.entry, Some((queries, pair.0)), failure, patience, outcome)?;
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

/// Runs a statement on the extension's tables.
pub fn own<T>(f: impl FnOnce(&mut SpiClient<'_>) -> SqlResult<T>) -> SqlResult<T> {
    let _rights = Rights::of_extension();
    Spi::connect_mut(f)
}

/// Locks entries, and takes over what others are waiting for the same rows: whoever reads the row from now on sees what
/// they stand for.
fn lock_entries(ids: &[i64]) -> SqlResult<Vec<(i64, Vec<Entry>)>> {
    own(|client| {
        let query = "SELECT id, watch, key::text, attempts FROM clip_search.watch_queue WHERE id = ANY ($1) ORDER BY id FOR UPDATE SKIP LOCKED";
        let mut groups: Vec<(i64, Vec<Entry>)> = Vec::new();
        let mut seen: HashMap<(i64, String), ()> = HashMap::new();
        let mut surplus: Vec<i64> = Vec::new();
        for row in client.update(query, None, &[ids.to_vec().into()]).map_err(spi)? {
            let missing = || report(Error::new(Kind::Internal, "a row of clip_search.watch_queue has a NULL"));
            let entry = Entry {
                id: get(&row, 1)?.ok_or_else(missing)?,
                key: get(&row, 3)?.ok_or_else(missing)?,
                attempts: get(&row, 4)?.unwrap_or_default(),
            };
            let watch: i64 = get(&row, 2)?.ok_or_else(missing)?;
            if seen.insert((watch, entry.key.clone()), ()).is_some() {
                surplus.push(entry.id);
                continue;
            }
            match groups.iter_mut().find(|group| group.0 == watch) {
                Some(group) => group.1.push(entry),
                None => groups.push((watch, vec![entry])),
            }
        }
        for (watch, entries) in &groups {
            let keys: Vec<String> = entries.iter().map(|entry| entry.key.clone()).collect();
            let mine: Vec<i64> = entries.iter().map(|entry| entry.id).collect();
            let query = "DELETE FROM clip_search.watch_queue WHERE id IN (SELECT q.id FROM clip_search.watch_queue q \
                 JOIN unnest($2::text[]) AS k (key) ON q.key = k.key::text[] WHERE q.watch = $1 AND q.id <> ALL ($3) FOR UPDATE OF q SKIP LOCKED)";
            client.update(query, None, &[(*watch).into(), keys.into(), mine.into()]).map_err(spi)?;
        }
        client
            .update("DELETE FROM clip_search.watch_queue WHERE id = ANY ($1)", None, &[surplus.into()])
            .map_err(spi)?;
        Ok(groups)
    })
}

/// Deletes a watch's entries, but for those that another session has: it will find that there is nothing to do. Waiting
/// for it, with a lock on the table that it waits for, would be a deadlock.
pub fn forget_all(client: &mut SpiClient<'_>, watch: i64) -> SqlResult<()> {
    let query = "DELETE FROM clip_search.watch_queue WHERE id IN \
         (SELECT q.id FROM clip_search.watch_queue q WHERE q.watch = $1 FOR UPDATE SKIP LOCKED)";
    client.update(query, None, &[watch.into()]).map(drop).map_err(spi)
}

/// The same, and those of its rows that are listed as failed.
pub fn forget_lists(client: &mut SpiClient<'_>, watch: i64) -> SqlResult<()> {
    forget_all(client, watch)?;
    let query = "DELETE FROM clip_search.watch_failure WHERE (watch, key) IN \
         (SELECT f.watch, f.key FROM clip_search.watch_failure f WHERE f.watch = $1 FOR UPDATE SKIP LOCKED)";
    client.update(query, None, &[watch.into()]).map(drop).map_err(spi)
}

fn forget_entries(ids: &[i64]) -> SqlResult<()> {
    if ids.is_empty() {
        return Ok(());
    }
    own(|client| {
        let query = "DELETE FROM clip_search.watch_queue WHERE id = ANY ($1)";
        client.update(query, None, &[ids.to_vec().into()]).map(drop).map_err(spi)
    })
}

/// One that a writer is just taking off the list is left to it.
fn forget_failure(watch: i64, key: &str) -> SqlResult<()> {
    own(|client| {
        let query = "DELETE FROM clip_search.watch_failure WHERE (watch, key) IN (SELECT f.watch, f.key FROM clip_search.watch_failure f \
             WHERE f.watch = $1 AND f.key = $2::text[] FOR UPDATE SKIP LOCKED)";
        client.update(query, None, &[watch.into(), key.into()]).map(drop).map_err(spi)
    })
}

/// Gives entries back as if they had not been tried.
fn put_back(ids: &[i64], rest: i64) -> SqlResult<()> {
    if ids.is_empty() {
        return Ok(());
    }
    own(|client| {
        let query = "UPDATE clip_search.watch_queue SET attempts = greatest(attempts - 1, 0), \
             due = pg_catalog.clock_timestamp() + $2 * interval '1 millisecond' WHERE id = ANY ($1)";
        client.update(query, None, &[ids.to_vec().into(), rest.into()]).map(drop).map_err(spi)
    })
}

/// Notes that a row has failed.
fn note(
    watch: &Watch,
    entry: &Entry,
    row: Option<(&Queries, &Row)>,
    failure: Failure,
    patience: Patience,
    outcome: &mut Outcome,
) -> SqlResult<()> {
    if patience == Patience::Some && entry.attempts < guc::worker_attempts() {
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

/// Runs what notes rows by their keys, the longest of so many bytes. An entry of the index that finds them has 2,704 bytes
/// at most, compressed: which keys are too long shows as one is noted.
pub fn noted<T>(watch: &Watch, longest: usize, note: impl FnOnce() -> SqlResult<T>) -> SqlResult<T> {
    if longest < 2000 {
        return note();
    }
    attempt(note).map_err(|failure| match failure.code.as_str() {
        "54000" => crate::pg::error::with_sqlstate(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            Error::new(Kind::LimitExceeded, format!("a key of {} is too long to be noted", watch.name()))
                .detail(format!(
                    "As a text it has {longest} bytes; rows that are yet to be embedded, or could not be, are noted by their key, \
                     compressed in 2700."
                ))
                .hint(format!("Give {} a shorter key, and call clip_watch again.", watch.name())),
        ),
        _ => failure.into_report(),
    })
}

/// Lists a row as failed.
pub fn add_failure(watch: i64, key: &str, failure: &Failure, attempts: i64) -> SqlResult<()> {
    let _rights = Rights::of_extension_in_a_hurry();
    Spi::connect_mut(|client| {
        let query = "INSERT INTO clip_search.watch_failure AS f (watch, key, sqlstate, message, detail, attempts) \
             VALUES ($1, $2::text[], $3, $4, $5, $6) ON CONFLICT (watch, key) DO UPDATE SET failed_at = pg_catalog.now(), \
                 sqlstate = excluded.sqlstate, message = excluded.message, detail = excluded.detail, attempts = f.attempts + excluded.attempts";
        let arguments = [
            watch.into(),
            key.into(),
            failure.code.as_str().into(),
            failure.message.as_str().into(),
            failure.detail.as_deref().into(),
            attempts.into(),
        ];
        client.update(query, None, &arguments).map(drop).map_err(spi)
    })
}

/// In milliseconds, after that many attempts.
fn rest_after(attempts: i32) -> i64 {
    let first = i64::from(guc::worker_retry_delay());
    first.saturating_mul(1 << attempts.clamp(1, 21).saturating_sub(1)).min(LONGEST_REST)
}

/// Entries to work on next, all of one watch. An attempt is counted before it is made, so that a row that brings the
/// server down is known by it: the next time it is tried alone, and after some times not at all. What is returned has to
/// be committed before the work begins.
pub fn claim(watches: &[i64], count: i64, between: Option<(i64, i64)>) -> SqlResult<Option<(i64, Vec<i64>)>> {
    own(|client| {
        // The worker takes what is due; clip_backfill what comes next.
        let (condition, order) = match between {
            Some((after, last)) => (format!("id > {after} AND id <= {last}"), "id"),
            None => ("due <= pg_catalog.clock_timestamp()".to_owned(), "due, id"),
        };
        let query = format!(
            "SELECT id, watch, attempts FROM clip_search.watch_queue WHERE watch = ANY ($1) AND {condition} ORDER BY {order} LIMIT $2 FOR UPDATE SKIP LOCKED"
        );
        let rows = client.update(&query, None, &[watches.to_vec().into(), count.into()]).map_err(spi)?;
        let mut found: Vec<(i64, i64, i32)> = rows
            .map(|row| {
                let (id, watch) = (get(&row, 1)?.unwrap_or_default(), get(&row, 2)?.unwrap_or_default());
                Ok((id, watch, get(&row, 3)?.unwrap_or_default()))
            })
            .collect::<SqlResult<_>>()?;
        let Some(&(_, watch, attempts)) = found.first() else { return Ok(None) };
        if attempts > 0 {
            found.truncate(1);
        } else {
            found.retain(|&(_, other, attempts)| other == watch && attempts == 0);
        }
        let ids: Vec<i64> = found.iter().map(|(id, ..)| *id).collect();
        let query = "UPDATE clip_search.watch_queue SET attempts = attempts + 1, \
             due = pg_catalog.clock_timestamp() + $2 * interval '1 millisecond' WHERE id = ANY ($1)";
        client.update(query, None, &[ids.clone().into(), rest_after(attempts + 1).into()]).map_err(spi)?;
        Ok(Some((watch, ids)))
    })
}

/// Lists those of the worker's rows as failed that have been begun too often and never ended.
pub fn give_up(watches: &[i64]) -> SqlResult<i64> {
    own(|client| {
        let query = "WITH gone AS (DELETE FROM clip_search.watch_queue WHERE id IN (SELECT id FROM clip_search.watch_queue \
                 WHERE watch = ANY ($1) AND attempts > 0 AND attempts >= $2 AND due <= pg_catalog.clock_timestamp() FOR UPDATE SKIP LOCKED) \
                 RETURNING watch, key, attempts, sqlstate, message) \
             INSERT INTO clip_search.watch_failure AS f (watch, key, sqlstate, message, attempts) \
             SELECT DISTINCT ON (watch, key) watch, key, coalesce(sqlstate, '57P02'), \
                 coalesce(message, 'embedding this row was begun ' || attempts || ' times and never ended'), attempts FROM gone \
             ON CONFLICT (watch, key) DO UPDATE SET failed_at = pg_catalog.now(), sqlstate = excluded.sqlstate, \
                 message = excluded.message, attempts = f.attempts + excluded.attempts";
        let arguments = [watches.to_vec().into(), guc::worker_attempts().into()];
        Ok(client.update(query, None, &arguments).map_err(spi)?.len() as i64)
    })
}

/// A query for rows without what they should have.
fn missing(watch: &Watch, what: &str) -> String {
    let embedding = quote_identifier(&watch.embedding);
    let ungrouped = watch
        .cluster
        .as_deref()
        .map(|cluster| format!(" OR {} IS NULL", quote_identifier(cluster)))
        .unwrap_or_default();
    format!("SELECT {what} FROM {} WHERE ({embedding} IS NULL{ungrouped}) AND ({})", watch.table, watch.has_source())
}

pub fn any_missing(watch: &Watch) -> SqlResult<bool> {
    let _rights = Rights::of_table_owner(watch.owner);
    Spi::connect_mut(|client| Ok(!client.update(&missing(watch, "1"), Some(1), &[]).map_err(spi)?.is_empty()))
}

/// Queues the rows that have no embedding and are neither queued nor listed as failed; how many.
pub fn enqueue_missing(watch: &Watch) -> SqlResult<i64> {
    let values = watch.key.iter().map(|column| format!("pg_catalog.format('%s', {})", quote_identifier(column)));
    let key = format!("ARRAY[{}]::text", values.collect::<Vec<_>>().join(", "));
    let query = missing(watch, &key);
    let mut count = 0;
    Spi::connect_mut(|client| {
        let cursor = {
            let _rights = Rights::of_table_owner(watch.owner);
            client.try_open_cursor_mut(&query, &[]).map_err(spi)?.detach_into_name()
        };
        loop {
            pgrx::check_for_interrupts!();
            let keys = {
                let _rights = Rights::of_table_owner(watch.owner);
                key_form();
                let mut cursor = client.find_cursor(&cursor).map_err(spi)?;
                let rows = cursor.fetch(KEYS).map_err(spi)?;
                let keys = rows
                    .into_iter()
                    .map(|row| Ok(get::<String>(&row, 1)?.unwrap_or_default()))
                    .collect::<SqlResult<Vec<_>>>()?;
                if !keys.is_empty() {
                    cursor.detach_into_name();
                }
                keys
            };
            if keys.is_empty() {
                return Ok(count);
            }
            count += own(|client| {
                let query = "INSERT INTO clip_search.watch_queue (watch, key) SELECT $1, k.key::text[] FROM unnest($2::text[]) AS k (key) \
                     WHERE NOT EXISTS (SELECT FROM clip_search.watch_queue q WHERE q.watch = $1 AND q.key = k.key::text[]) \
                     AND NOT EXISTS (SELECT FROM clip_search.watch_failure f WHERE f.watch = $1 AND f.key = k.key::text[])";
                let longest = keys.iter().map(String::len).max().unwrap_or_default();
                let insert =
                    || Ok(client.update(query, None, &[watch.id.into(), keys.into()]).map_err(spi)?.len() as i64);
                noted(watch, longest, insert)
            })?;
        }
    })
}

/// The steps of CALL clip_backfill, which commits between them (sql/watch.sql).
#[pg_schema]
mod clip_search {
    use super::*;

    /// Queues what is missing; the watches to see to, how many entries they have, and which is the last.
    #[pg_extern(volatile, parallel_unsafe, cost = 1000000)]
    fn backfill_begin(
        relation: Option<Regclass>,
        embedding: Option<&str>,
    ) -> Result<TableIterator<'static, (name!(watch, i64), name!(queued, i64), name!(last, i64))>, ErrorReport> {
        tables::check_writable(c"clip_backfill()");
        let oid = table_of(relation)?;
        let mut found = Vec::new();
        let watches = Watch::of_table(oid, embedding)?;
        tables::check_may_commit("clip_backfill()")?;
        for watch in watches {
            enqueue_missing(&watch)?;
            let queued = own(|client| {
                let query = "SELECT pg_catalog.count(*), coalesce(pg_catalog.max(id), 0) FROM clip_search.watch_queue WHERE watch = $1";
                let rows = client.update(query, None, &[watch.id.into()]).map_err(spi)?;
                rows.first().get_two::<i64, i64>().map_err(spi)
            })?;
            found.push((watch.id, queued.0.unwrap_or_default(), queued.1.unwrap_or_default()));
        }
        Ok(TableIterator::new(found))
    }

    /// The ids of a watch's next entries between two; the caller owns the table. None if it is not watched any more.
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
        Ok(claim(&[watch], i64::from(batch), Some((after, last)))?.map(|(_, ids)| ids).unwrap_or_default())
    }

    /// Embeds the rows of entries; how many were embedded, how many failed.
    #[pg_extern(volatile, strict, parallel_unsafe, cost = 1000000)]
    fn backfill_work(
        watch: i64,
        entries: Vec<i64>,
    ) -> Result<TableIterator<'static, (name!(embedded, i64), name!(failed, i64))>, ErrorReport> {
        if !is_own(watch)? {
            return Ok(TableIterator::once((0, 0)));
        }
        let entries = own(|client| {
            let query = "SELECT id FROM clip_search.watch_queue WHERE watch = $1 AND id = ANY ($2)";
            let rows = client.update(query, None, &[watch.into(), entries.into()]).map_err(spi)?;
            rows.into_iter().map(|row| Ok(get(&row, 1)?.unwrap_or_default())).collect::<SqlResult<Vec<i64>>>()
        })?;
        work(&entries, Patience::None)?.single().map(TableIterator::once)
    }
}

/// Whether there is a watch of that number; its table must be the caller's.
fn is_own(watch: i64) -> SqlResult<bool> {
    let Some(watch) = Watch::by_id(watch)? else { return Ok(false) };
    Table::describe(watch.relation)?.check_owner()?;
    Ok(true)
}

/// Takes rows off the list of failures. Where a worker keeps the table true it gets them; otherwise they are tried at
/// once. Returns how many are on the list no longer.
#[pg_extern(volatile, parallel_unsafe, cost = 1000000)]
fn clip_retry(relation: Option<Regclass>, embedding: default!(Option<&str>, "NULL")) -> SqlResult<i64> {
    tables::check_writable(c"clip_retry()");
    let oid = table_of(relation)?;
    let mut retried = 0;
    for watch in Watch::of_table(oid, embedding)? {
        let ids: Vec<i64> = own(|client| {
            let query = "WITH taken AS (DELETE FROM clip_search.watch_failure WHERE watch = $1 RETURNING key) \
                 INSERT INTO clip_search.watch_queue (watch, key, attempts) SELECT $1, key, $2 FROM taken RETURNING id";
            // To be tried at once it counts as begun.
            let rows = client.update(query, None, &[watch.id.into(), i32::from(!watch.queued).into()]).map_err(spi)?;
            rows.into_iter().map(|row| Ok(get(&row, 1)?.unwrap_or_default())).collect::<SqlResult<_>>()
        })?;
        retried += ids.len() as i64;
        if watch.queued {
            crate::watch::worker::wake_at_commit();
            continue;
        }
        for ids in ids.chunks(guc::worker_batch() as usize) {
            retried -= work(ids, Patience::None)?.single()?.1;
        }
    }
    Ok(retried)
}
