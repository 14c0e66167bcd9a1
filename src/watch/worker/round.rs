//! What a worker does next: which rows, and how long it rests.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use crate::guc;
use crate::pg::spi::spi;
use crate::pg::subtransaction::Failure;
use crate::pg::user_context::Rights;
use crate::watch::queue;
use crate::watch::rows::{self, OnRowError};
use crate::watch::setting::Watch;
use crate::watch::worker::NAP;
use crate::watch::worker::process::transaction;

/// How long a watch rests whose model can't be used, or whose triggers take too long, and the longest.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// The least time between two messages about the progress.
const REPORT: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Worker {
    /// Watches whose model can't be used: until when they rest, and how long that was.
    resting: HashMap<i64, (Instant, Duration)>,
    /// Embedded and failed since the last message, by watch.
    news: HashMap<i64, (i64, i64)>,
    told: Option<Instant>,
    /// What counting the queue took last.
    counted: Duration,
    /// How long until there is something to do; None: until something is queued.
    pub due: Option<Duration>,
}

impl Worker {
    /// Sees to some entries; how long to rest then. None: nothing is left to watch in this database.
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
            if there { Watch::for_worker() } else { Ok(Vec::new()) }
        })?;
        if watches.is_empty() {
            return Ok(None);
        }
        let now = Instant::now();
        self.resting.retain(|id, _| watches.iter().any(|watch| watch.id == *id));
        let ready: Vec<i64> = watches
            .iter()
            .map(|watch| watch.id)
            .filter(|id| self.resting.get(id).is_none_or(|(until, _)| *until <= now))
            .collect();
        let claimed = transaction(|| {
            let given_up = queue::give_up(&ready)?;
            if given_up > 0 {
                pgrx::log!("clip_search: {given_up} rows are given up, see clip_search.failure");
            }
            queue::claim(&ready, guc::worker_batch(), None)
        })?;
        let Some((id, entries)) = claimed else {
            self.tell(&watches, true)?;
            return self.next(&ready).map(Some);
        };
        self.due = Some(Duration::ZERO);
        let name = watches.iter().find(|watch| watch.id == id).map_or("", Watch::name);
        let activity = std::ffi::CString::new(format!("clip_search: embedding {} rows of {name}", entries.len()))
            .unwrap_or_default();
        // SAFETY: the text is copied.
        unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, activity.as_ptr()) };
        let outcome = transaction(|| rows::work(&entries, OnRowError::Retry));
        let failure = match outcome {
            Ok(mut outcome) => {
                let done = outcome.done.remove(&id).unwrap_or_default();
                let news = self.news.entry(id).or_default();
                *news = (news.0 + done.0, news.1 + done.1);
                outcome.stuck.remove(&id)
            }
            Err(failure) => Some(failure),
        };
        match failure {
            None => drop(self.resting.remove(&id)),
            Some(failure) => {
                // Others' rows come first for a while.
                let rest = self.resting.get(&id).map_or(FIRST_REST, |(_, rest)| (*rest * 2).min(LONGEST_REST));
                self.resting.insert(id, (Instant::now() + rest, rest));
                pgrx::warning!(
                    "clip_search: rows of {name} can't be embedded, trying again in {} s: {}",
                    rest.as_secs(),
                    failure.message
                );
            }
        }
        self.tell(&watches, false)?;
        Ok(Some(Duration::ZERO))
    }

    /// How long until the next entry is due, or a watch has rested.
    fn next(&mut self, ready: &[i64]) -> Result<Duration, Failure> {
        let due = transaction(|| {
            let _rights = Rights::of_extension();
            Spi::connect_mut(|client| {
                let query = "SELECT (EXTRACT(epoch FROM min(due) - clock_timestamp()) * 1000)::bigint \
                     FROM clip_search.watch_queue WHERE watch = ANY ($1)";
                client.update(query, Some(1), &[ready.to_vec().into()]).map_err(spi)?.first().get::<i64>(1).map_err(spi)
            })
        })?;
        let due = due.map(|due| Duration::from_millis(u64::try_from(due).unwrap_or(0)));
        let now = Instant::now();
        let rested = self.resting.values().map(|(until, _)| until.saturating_duration_since(now));
        self.due = rested.chain(due).min();
        Ok(self.due.map_or(NAP, |due| due.clamp(Duration::from_millis(10), NAP)))
    }

    /// NOTIFY clip_search, with what has been done and what is left: once a second, and when the queue is empty. Counting
    /// may take a twentieth of the time.
    fn tell(&mut self, watches: &[Watch], now: bool) -> Result<(), Failure> {
        let pause = REPORT.max(self.counted * 20);
        if self.news.is_empty() || (!now && self.told.is_some_and(|told| told.elapsed() < pause)) {
            return Ok(());
        }
        let news = std::mem::take(&mut self.news);
        let start = Instant::now();
        transaction(|| {
            let _rights = Rights::of_extension();
            Spi::connect_mut(|client| {
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
