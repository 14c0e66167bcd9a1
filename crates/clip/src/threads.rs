//! Blocks signals in additional threads: PostgreSQL's signal handlers must run only in the process's first thread.
#![allow(unsafe_code)]

/// Runs `f` with all signals blocked. The threads that `f` starts inherit this.
pub(crate) fn with_signals_blocked<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: both sets are plain data that libc fills before they are read, and the old mask is restored before this
    // function returns. A panic in `f` would leave signals blocked, so it is caught and resumed afterwards.
    unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
