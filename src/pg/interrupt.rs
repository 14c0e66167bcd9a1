//! Cancels, timeouts and shutdowns during the engine's work.
//!
//! The engine checks every few milliseconds, even within C code, which a panic must not unwind. PostgreSQL's error is
//! therefore caught where it is raised, the engine returns its own error, and the caller raises PostgreSQL's error
//! again.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::RefCell;

use clip::image::Limits;
use pgrx::pg_sys;

unsafe extern "C-unwind" {
    /// PostgreSQL's handler of SIGTERM. Declared here because pgrx wraps it in a Rust function, which is not allowed as
    /// a signal handler.
    pub fn die(signal: i32);
}

thread_local! {
    /// The caught error that has not been raised yet.
    static CAUGHT: RefCell<Option<Box<dyn Any + Send>>> = const { RefCell::new(None) };
}

/// Limits with a check for interrupts, which ends the engine's work. The caller must call [`raise`] afterwards.
pub fn watched(limits: Limits) -> Limits {
    Limits { interrupted: is_due, ..limits }
}

/// Lets an interrupt end a run of a graph. [`raise`] must follow it.
pub fn watch_runs() {
    clip::model::interruptible::watch_runs(is_due);
}

/// Whether the work should end. Doesn't unwind.
fn is_due() -> bool {
    // SAFETY: flags that signal handlers set; a flag that is missed now is seen at the next check.
    let (pending, ends) = unsafe {
        let read = |flag: *const pg_sys::sig_atomic_t| flag.read_volatile() != 0;
        (
            read(&raw const pg_sys::InterruptPending),
            read(&raw const pg_sys::QueryCancelPending) || read(&raw const pg_sys::ProcDiePending),
        )
    };
    if CAUGHT.with_borrow(Option::is_some) {
        return true;
    }
    if !pending {
        return false;
    }
    // SAFETY: reads two ids of this process. Only the main thread may call PostgreSQL's functions; other threads decode
    // ahead or watch a run, and leave it to the main thread to raise the error.
    if unsafe { libc::gettid() != libc::getpid() } {
        return ends;
    }
    let check = || {
        pgrx::check_for_interrupts!();
    };
    match std::panic::catch_unwind(check) {
        Ok(()) => false,
        Err(error) => {
            CAUGHT.set(Some(error));
            true
        }
    }
}

/// Raises the interrupt that has ended the engine's work, if any.
pub fn raise() {
    if let Some(error) = CAUGHT.take() {
        std::panic::resume_unwind(error);
    }
    pgrx::check_for_interrupts!();
}
