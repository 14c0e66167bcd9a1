//! A worker's schedule: the next rows, and the pauses.
//!
//! The time is divided among owners, and an owner's share among tables: the one with the least time used comes next, so
//! one table's slow triggers cost other tables at most the time of one row. The number of claimed rows depends on the
//! last measured time per row of the table.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use crate::cluster::tables::Store;
use crate::guc;
use crate::pg::citus;
use crate::pg::error::{SqlResult, counted};
use crate::pg::spi::spi;
use crate::pg::subtransaction::Failure;
use crate::pg::user_context::as_extension;
use crate::watch::citus::{group, shards};
use crate::watch::dropped::forget_dropped;
use crate::watch::embed_entries::{OnRowError, Terms, embed_entries};
use crate::watch::queue::{self, Next};
use crate::watch::setting::Watch;
use crate::watch::shared_memory;
use crate::watch::tags;
use crate::watch::worker::NAP;
use crate::watch::worker::process::transaction;
use crate::watch::worker::shares::Shares;

/// The first and the longest pause of a watch whose model can't be used, or whose triggers take too long.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// The pause of a watch whose table another session has locked.
const LOCKED_DELAY: Duration = Duration::from_millis(500);
/// After this time a batch writes no more rows, because rows of other tables may have been queued in the meantime.
const SLICE: Duration = Duration::from_millis(500);
/// The time that the rows of one batch should take.
const BATCH: Duration = Duration::from_secs(2);

/// The time between two checks for entries of dropped tables.
const TIDY: Duration = Duration::from_secs(60);
/// The minimum time between two progress messages.
const REPORT: Duration = Duration::from_secs(1);

/// The maximum number of rows of a distributed table that one transaction groups.
const GROUPED: i64 = 1000;
/// The time between two checks of shards that Citus is moving here.
const ARRIVAL: Duration = Duration::from_secs(1);

/// Work for tables of Citus.
#[derive(Default)]
struct OfCitus {
    /// Whether shards are being moved here.
    arriving: bool,
    /// The watches of distributed tables whose rows are grouped, on the coordinator.
    grouped: Vec<Watch>,
}

impl OfCitus {
    fn find() -> SqlResult<Self> {
        let arriving = shards::settle_arrived()?;
        let grouped = as_extension(|client| {
            let condition = "w.queued AND w.cluster IS NOT NULL AND h.home IS NOT NULL AND h.home ->> 'parent' IS NULL";
            Watch::find(client, condition, &[])
        })?;
        Ok(Self { arriving, grouped })
    }
}

pub struct Worker {
    database: u32,
    /// Watches that are paused: until when, and the length of the pause.
    resting: HashMap<i64, (Instant, Duration)>,
    shares: Shares,
    /// The last measured time per row, by watch.
    pace: HashMap<i64, Duration>,
    /// The numbers of rows embedded and failed since the last message, by watch.
    news: HashMap<i64, (i64, i64)>,
    told: Option<Instant>,
    tidied: Option<Instant>,
    /// When the distributed tables of Citus are to be grouped next, by watch.
    grouped: HashMap<i64, Instant>,
    /// The last measured time for counting the queue.
    counted: Duration,
    /// The time until the next work is due; None: until a row is queued.
    pub due: Option<Duration>,
}

impl Worker {
    pub fn new(database: u32) -> Self {
        let resting = shared_memory::suspects(database)
            .into_iter()
            .map(|(watch, until)| {
                let left = Duration::from_micros(u64::try_from(until - shared_memory::now()).unwrap_or(0));
                (watch, (Instant::now() + left, FIRST_DELAY))
            })
            .collect();
        Self {
            database,
            resting,
            shares: Shares::default(),
            pace: HashMap::new(),
            news: HashMap::new(),
            told: None,
            tidied: None,
            grouped: HashMap::new(),
            counted: Duration::ZERO,
            due: None,
        }
    }

    /// Embeds some rows; returns the time to wait afterwards. None: this database has no watch left.
    pub fn round(&mut self) -> Result<Option<Duration>, Failure> {
        let watches = transaction(|| {
            // SAFETY: catalogue look-ups by constant names.
            let there = unsafe {
                pg_sys::get_extension_oid(c"clip_search".as_ptr(), true) != pg_sys::Oid::INVALID
                    && pg_sys::get_namespace_oid(c"clip_search".as_ptr(), true) != pg_sys::Oid::INVALID
                    && pg_sys::get_relname_relid(
                        c"watch_live".as_ptr(),
                        pg_sys::get_namespace_oid(c"clip_search".as_ptr(), false),
                    ) != pg_sys::Oid::INVALID
            };
            if !there {
                return Ok(None);
            }
            let of_citus = if citus::is_installed() { OfCitus::find()? } else { OfCitus::default() };
            Ok(Some((Watch::for_worker()?, of_citus)))
        })?;
        // The database does not have the extension, for example because the server preloads the library before the
        // extension is created.
        let Some((watches, of_citus)) = watches else { return Ok(None) };
        if self.tidied.is_none_or(|since| since.elapsed() >= TIDY) {
            self.tidied = Some(Instant::now());
            self.tidy()?;
        }
        let until_groups = self.group(&of_citus.grouped)?;
        let longest = if of_citus.arriving { until_groups.min(ARRIVAL) } else { until_groups };
        if watches.is_empty() {
            return Ok((of_citus.arriving || !of_citus.grouped.is_empty()).then_some(longest));
        }
        let now = Instant::now();
        self.resting.retain(|id, _| watches.iter().any(|watch| watch.id == *id));
        let stuck = shared_memory::stuck_owners(self.database);
        let ready: Vec<i64> = watches
            .iter()
            .filter(|watch| !stuck.contains(&watch.owner))
            .map(|watch| watch.id)
            .filter(|id| self.resting.get(id).is_none_or(|(until, _)| *until <= now))
            .collect();
        let due = transaction(|| {
            let given_up = queue::give_up(&ready)?;
            if given_up > 0 {
                pgrx::log!("clip_search: {given_up} rows are given up, see clip_search.failure");
            }
            queue::due(&ready)
        })?;
        // Entries that have ended a worker come after the other entries of all owners.
        let is_any_unsuspected = due.iter().any(|(_, unsuspected)| *unsuspected);
        let due: Vec<&Watch> = watches
            .iter()
            .filter(|watch| due.iter().any(|(id, first)| *id == watch.id && (*first || !is_any_unsuspected)))
            .collect();
        let Some(watch) = self.shares.choose(&due) else {
            self.tell(&watches, true)?;
            return Ok(Some(self.next(&ready)?.min(longest)));
        };
        self.due = Some(Duration::ZERO);
        self.batch(watch)?;
        self.tell(&watches, false)?;
        Ok(Some(Duration::ZERO))
    }

    /// Takes departed rows of distributed tables out of their groups, and groups new rows. Returns the time until the
    /// next call: zero if rows are left. If a server is down, the table is tried again a minute later.
    fn group(&mut self, watches: &[Watch]) -> Result<Duration, Failure> {
        self.grouped.retain(|id, _| watches.iter().any(|watch| watch.id == *id));
        for watch in watches {
            if self.grouped.get(&watch.id).is_some_and(|next| *next > Instant::now()) {
                continue;
            }
            let outcome = transaction(|| match group::try_lock_watch(watch)? {
                true => group::run(watch, GROUPED),
                false => Ok(0),
            });
            let rest = match outcome {
                Ok(0) => NAP,
                Ok(_) => Duration::ZERO,
                Err(failure) => {
                    pgrx::warning!(
                        "clip_search: rows of {} can't be grouped, trying again in {} s: {}",
                        watch.name(),
                        LONGEST_DELAY.as_secs(),
                        failure.message
                    );
                    LONGEST_DELAY
                }
            };
            self.grouped.insert(watch.id, Instant::now() + rest);
        }
        let now = Instant::now();
        Ok(self.grouped.values().map(|next| next.saturating_duration_since(now)).fold(NAP, Duration::min))
    }

    /// Removes the entries of dropped tables, if there are any.
    fn tidy(&self) -> Result<(), Failure> {
        transaction(|| {
            as_extension(|client| {
                let query = "SELECT 1 FROM (SELECT w.relation::oid FROM clip_search.watch_setting w \
                     UNION ALL SELECT s.members::oid FROM clip_search.collection_setting s WHERE s.members IS NOT NULL) AS t (id) \
                     WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = t.id)";
                if client.update(query, Some(1), &[]).map_err(spi)?.is_empty() {
                    return Ok(());
                }
                forget_dropped(client, &Store::open(c"clip_watch()"))
            })
        })
    }

    /// Embeds some rows of a watch.
    fn batch(&mut self, watch: &Watch) -> Result<(), Failure> {
        let begun = Instant::now();
        let count = match self.pace.get(&watch.id) {
            Some(pace) => (BATCH.as_micros() / pace.as_micros().max(1)).clamp(1, guc::worker_batch() as u128) as i64,
            None => guc::worker_batch(),
        };
        // Words that have to be embedded first take up to a minute, for which no row is to blame, so `set_in_hand`
        // comes afterwards.
        if watch.tags.is_some()
            && let Err(failure) = transaction(|| tags::prepare(watch))
        {
            self.rest(watch, &failure);
            return Ok(());
        }
        let entries = transaction(|| queue::claim(watch.id, count, Next::Due))?;
        // Other sessions have locked all of them.
        if entries.is_empty() {
            self.resting.insert(watch.id, (begun + LOCKED_DELAY, FIRST_DELAY));
            return Ok(());
        }
        let name = watch.name();
        let activity = std::ffi::CString::new(format!(
            "clip_search: embedding {} of {name}",
            counted(entries.len() as i64, "row")
        ))
        .unwrap_or_default();
        // SAFETY: the text is copied.
        unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, activity.as_ptr()) };
        shared_memory::set_in_hand(self.database, watch.id, watch.owner);
        let terms = Terms { on_error: OnRowError::Retry, slice: Some(SLICE) };
        let outcome = transaction(|| embed_entries(&entries, terms));
        shared_memory::set_done(self.database);
        let spent = begun.elapsed();
        self.shares.charge(watch, spent);
        let failure = match outcome {
            Ok(mut outcome) => {
                let done = outcome.done.remove(&watch.id).unwrap_or_default();
                let news = self.news.entry(watch.id).or_default();
                *news = (news.0 + done.0, news.1 + done.1);
                // The first batch may have loaded the model; measure the next one.
                self.pace.insert(watch.id, spent / u32::try_from(done.0 + done.1).unwrap_or(1).max(1));
                if outcome.locked.contains(&watch.id) {
                    self.resting.insert(watch.id, (Instant::now() + LOCKED_DELAY, FIRST_DELAY));
                    return Ok(());
                }
                outcome.stuck.remove(&watch.id)
            }
            Err(failure) => {
                transaction(|| queue::attempt_ended(&entries, &failure))?;
                Some(failure)
            }
        };
        match failure {
            None => drop(self.resting.remove(&watch.id)),
            Some(failure) => self.rest(watch, &failure),
        }
        Ok(())
    }

    /// Pauses a watch after a failure, so that other watches' rows come first for a while.
    fn rest(&mut self, watch: &Watch, failure: &Failure) {
        let rest = self.resting.get(&watch.id).map_or(FIRST_DELAY, |(_, rest)| (*rest * 2).min(LONGEST_DELAY));
        self.resting.insert(watch.id, (Instant::now() + rest, rest));
        pgrx::warning!(
            "clip_search: rows of {} can't be embedded, trying again in {} s: {}",
            watch.name(),
            rest.as_secs(),
            failure.message
        );
    }

    /// The time until the next entry is due, or until a watch's pause ends.
    fn next(&mut self, ready: &[i64]) -> Result<Duration, Failure> {
        let due = transaction(|| queue::next_due(ready))?;
        let due = due.map(|due| Duration::from_millis(u64::try_from(due).unwrap_or(0)));
        let now = Instant::now();
        let rested = self.resting.values().map(|(until, _)| until.saturating_duration_since(now));
        self.due = rested.filter(|rest| !rest.is_zero()).chain(due).min();
        Ok(self.due.map_or(NAP, |due| due.clamp(Duration::from_millis(10), NAP)))
    }

    /// Sends NOTIFY clip_search with the finished and the remaining rows, once a second and when the queue is empty.
    /// Counting may take up to a twentieth of the time.
    fn tell(&mut self, watches: &[Watch], now: bool) -> Result<(), Failure> {
        let pause = REPORT.max(self.counted * 20);
        if self.news.is_empty() || (!now && self.told.is_some_and(|told| told.elapsed() < pause)) {
            return Ok(());
        }
        let news = std::mem::take(&mut self.news);
        let start = Instant::now();
        transaction(|| {
            as_extension(|client| {
                for watch in watches {
                    let Some((embedded, failed)) = news.get(&watch.id) else { continue };
                    let query = "SELECT pg_notify('clip_search', json_build_object('table', $1::oid::regclass::text, 'embedding', $2::text, \
                         'embedded', $3::bigint, 'failed', $4::bigint, \
                         'queued', (SELECT count(*) FROM clip_search.watch_queue q WHERE q.watch = $5))::text)";
                    let arguments = [
                        watch.relation.into(),
                        watch.embedding.as_str().into(),
                        (*embedded).into(),
                        (*failed).into(),
                        watch.id.into(),
                    ];
                    client.update(query, None, &arguments).map_err(spi)?;
                }
                Ok(())
            })
        })?;
        self.counted = start.elapsed();
        self.told = Some(Instant::now());
        Ok(())
    }
}
