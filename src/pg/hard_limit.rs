//! Time limits for a table owner's code in the background worker.
//!
//! A worker embeds the rows of all owners, so no owner's code may block it. A statement timeout cancels the code, but a
//! trigger may catch the cancel and continue. A second, slightly longer timer therefore terminates the process, as
//! pg_terminate_backend would, which no code can catch. The launcher then starts another worker, which takes that table
//! last. Code that never lets PostgreSQL check for interrupts survives even this. The worker therefore publishes when
//! the code should have ended, so that the launcher can start another worker beside it. Sessions have only their own
//! statement_timeout: there, the owner's code delays only the caller.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;

use crate::guc;
use crate::pg::interrupt::die;

/// PostgreSQL's timer for statement_timeout. It is declared in utils/timeout.h, which pgrx does not bind; its number is
/// the same from PostgreSQL 14 to 18.
const STATEMENT_TIMEOUT: i32 = 3;
/// The time that a trigger has to clean up after the cancel, in milliseconds.
const GRACE: i32 = 2000;
/// PostgreSQL assigns a number to an extension's timer; any number above its own numbers requests one.
const ANY_TIMER: i32 = 1000;

thread_local! {
    static TIMER: Cell<Option<i32>> = const { Cell::new(None) };
}
/// Set in clip_search's own workers. The function receives the time at which the owner's code should have ended, as a
/// PostgreSQL timestamp, and 0 when the code has ended.
static WORKER: OnceLock<fn(pg_sys::TimestampTz)> = OnceLock::new();

/// Makes this process a worker. `told` receives the time limits of owners' code, as described at `WORKER`.
pub fn become_worker(told: fn(pg_sys::TimestampTz)) {
    WORKER.get_or_init(|| told);
}

static EXPIRED: AtomicBool = AtomicBool::new(false);

unsafe extern "C-unwind" {
    #[link_name = "RegisterTimeout"]
    fn register_timeout(id: i32, handler: extern "C" fn()) -> i32;
    fn enable_timeout_after(id: i32, milliseconds: i32);
    fn disable_timeout(id: i32, keep_indicator: bool);
}

extern "C" fn expire() {
    EXPIRED.store(true, Ordering::Relaxed);
    // SAFETY: PostgreSQL's own handler of SIGTERM, which only sets flags; called where signals are handled.
    unsafe { die(pg_sys::SIGTERM as i32) };
}

/// Whether the timer has ended this process.
pub fn has_expired() -> bool {
    EXPIRED.load(Ordering::Relaxed)
}

/// Whether this process is a worker of clip_search. Other background workers, such as those of logical replication and
/// pg_cron, run other roles' statements: they have cursors and connections to protect, like a session, and their own
/// timeouts.
pub fn is_worker() -> bool {
    WORKER.get().is_some()
}

/// Both timers, which run during the lifetime of this value. In a session no timer runs.
pub(super) struct HardLimit(Option<i32>);

impl HardLimit {
    pub(super) fn start() -> Self {
        if !is_worker() {
            return Self(None);
        }
        let timer = TIMER.get().unwrap_or_else(|| {
            // SAFETY: a static function; PostgreSQL raises an error if it has no more timers.
            let timer = unsafe { register_timeout(ANY_TIMER, expire) };
            TIMER.set(Some(timer));
            timer
        });
        if let Some(told) = WORKER.get() {
            let limit = i64::from(guc::worker_timeout()) + i64::from(GRACE);
            // SAFETY: reads the clock.
            told(unsafe { pg_sys::GetCurrentTimestamp() } + limit * 1000);
        }
        // SAFETY: timers that are registered.
        unsafe {
            enable_timeout_after(STATEMENT_TIMEOUT, guc::worker_timeout());
            enable_timeout_after(timer, guc::worker_timeout().saturating_add(GRACE));
        }
        Self(Some(timer))
    }
}

impl Drop for HardLimit {
    fn drop(&mut self) {
        if let Some(timer) = self.0 {
            // SAFETY: registered timers; the call has no effect if they are not running.
            unsafe {
                disable_timeout(timer, false);
                disable_timeout(STATEMENT_TIMEOUT, false);
            }
            if let Some(told) = WORKER.get() {
                told(0);
            }
        }
    }
}
