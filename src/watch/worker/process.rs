//! Process-level code that launcher and worker share: transactions, signals, settings.
#![allow(unsafe_code)]

use std::time::Duration;

use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::prelude::*;

use crate::pg::error::SqlResult;
use crate::pg::interrupt::die;
use crate::pg::subtransaction::{Failure, catch};

/// Runs a transaction; an error rolls it back and is returned.
pub fn transaction<T>(f: impl FnOnce() -> SqlResult<T>) -> Result<T, Failure> {
    // SAFETY: as PostgreSQL's own workers do around each piece of work.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let outcome = catch(f);
        match &outcome {
            Ok(_) => {
                pg_sys::PopActiveSnapshot();
                // A failure at the commit is rolled back in the same way.
                if let Err(failure) = catch(|| {
                    pg_sys::CommitTransactionCommand();
                    Ok(())
                }) {
                    pg_sys::AbortCurrentTransaction();
                    return Err(failure);
                }
            }
            Err(_) => pg_sys::AbortCurrentTransaction(),
        }
        clean_session();
        outcome
    }
}

/// Removes state that a table owner's code may have left in this process, before rows of other tables are processed. A
/// restricted context refuses temporary tables, cursors WITH HOLD, PREPARE, LISTEN and SET ROLE, and restores settings,
/// but does not cover session-level advisory locks.
fn clean_session() {
    // SAFETY: outside a transaction, as DISCARD ALL does both.
    unsafe {
        pg_sys::LockReleaseAll(pg_sys::USER_LOCKMETHOD as u16, true);
        pg_sys::DropAllPreparedStatements();
    }
}

unsafe extern "C-unwind" {
    // Declared here because pgrx wraps the first function in a Rust function, which is not allowed as a signal handler,
    // and does not declare the second.
    #[link_name = "StatementCancelHandler"]
    fn cancel(signal: i32);
    #[link_name = "PostmasterIsAliveInternal"]
    fn postmaster_is_alive() -> bool;
}

pub fn attach_signals() {
    // SAFETY: PostgreSQL's own handlers: the process ends, or its work is cancelled, at the next check for interrupts.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        let set = pg_sys::pqsignal;
        #[cfg(feature = "pg18")]
        let set = pg_sys::pqsignal_be;
        set(pg_sys::SIGTERM as i32, Some(die));
        set(pg_sys::SIGINT as i32, Some(cancel));
    }
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP);
}

/// Waits for the latch, for at most this time.
pub fn wait(time: Duration) {
    BackgroundWorker::wait_latch(Some(time));
    exit_without_postmaster();
}

/// Ends the process if the postmaster has died: it would keep the shared memory in use, and the server could not start
/// again. WaitLatch does this with WL_EXIT_ON_PM_DEATH, which pgrx doesn't pass.
pub fn exit_without_postmaster() {
    // SAFETY: reads from a pipe without waiting; the process ends outside a transaction.
    unsafe {
        if !postmaster_is_alive() {
            pg_sys::proc_exit(1);
        }
    }
}

pub fn reload() {
    if BackgroundWorker::sighup_received() {
        // SAFETY: the same call as in every process of the server after SIGHUP.
        unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
    }
}

/// Whether DROP DATABASE, ALTER DATABASE … RENAME or CREATE DATABASE … TEMPLATE waits for this connection to end.
pub fn database_is_being_dropped_or_copied(database: u32) -> bool {
    let tag = pg_sys::LOCKTAG {
        locktag_field1: 0,
        locktag_field2: pg_sys::DatabaseRelationId.to_u32(),
        locktag_field3: database,
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    };
    // The lock that a new connection takes briefly; it is not available while one of these commands runs.
    let mode = pg_sys::RowExclusiveLock as i32;
    transaction(|| {
        // SAFETY: the tag is copied, and the lock is released immediately.
        let free = unsafe {
            let result = pg_sys::LockAcquire(&raw const tag, mode, false, true);
            let free = result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL;
            if free {
                pg_sys::LockRelease(&raw const tag, mode, false);
            }
            free
        };
        Ok(!free)
    })
    .unwrap_or(false)
}
