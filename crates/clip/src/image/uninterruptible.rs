//! Runs library calls that can't be interrupted on a separate thread, which the caller abandons at an interrupt.
//!
//! Decoding a lossy WebP, or a HEIC coded in one piece, is one call of up to a second or two. The caller waits for the
//! thread and checks for an interrupt in the meantime. An abandoned thread runs until its call returns, and no other
//! thread starts until then. A caller that runs one call at a time therefore leaves at most one thread behind,
//! regardless of the number of cancelled calls.

use std::cell::Cell;
#[cfg(feature = "avif")]
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::image::limits::Limits;
use crate::memory;
use crate::threads::with_signals_blocked;

/// The number of threads that are working.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);
/// Whether the working threads were abandoned. They check this in place of the caller's [`Limits::interrupted`].
static ABANDONED: AtomicBool = AtomicBool::new(false);

/// The number of threads that a panic has stopped permanently. Each keeps its allocated memory.
static STOPPED: AtomicUsize = AtomicUsize::new(0);
#[cfg(feature = "avif")]
const MOST_STOPPED: usize = 2;

thread_local! {
    /// What the panic hook does on a thread whose code can't unwind, before it stops the thread.
    static AT_PANIC: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
}

/// The time between two checks for an interrupt.
const WAIT: Duration = Duration::from_millis(10);

struct Working;

impl Drop for Working {
    fn drop(&mut self) {
        AT_WORK.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Runs `work` on a copy of the file, on a separate thread.
///
/// # Errors
/// The errors of `work`; [`Kind::Interrupted`]; [`Kind::OutOfMemory`] if no thread can be started; the error of
/// `broken` if `work` panics.
pub(crate) fn run_in_thread<T: Send + 'static>(
    bytes: &[u8],
    limits: &Limits,
    broken: impl FnOnce() -> Error,
    work: impl FnOnce(&[u8], &Limits) -> Result<T> + Send + 'static,
) -> Result<T> {
    run(bytes, limits, broken, work, false)
}

/// Like [`run_in_thread`], for code through which a panic must not unwind, because its functions use the C calling
/// convention: Rust would end the process. The panic hook, which runs before unwinding, stops the thread permanently
/// instead, and the caller gets an error. From then on, no code in the process can replace the hook, because the
/// stopped thread never leaves it; pgrx replaces the hook once, when the library is loaded.
///
/// # Errors
/// The errors of [`run_in_thread`]; [`Kind::OutOfMemory`] if too many threads have stopped.
#[cfg(feature = "avif")]
pub(crate) fn run_in_thread_at_risk<T: Send + 'static>(
    bytes: &[u8],
    limits: &Limits,
    broken: impl FnOnce() -> Error,
    work: impl FnOnce(&[u8], &Limits) -> Result<T> + Send + 'static,
) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| match AT_PANIC.try_with(Cell::take).ok().flatten() {
            Some(tell) => {
                tell();
                loop {
                    std::thread::park();
                }
            }
            None => previous(panic),
        }));
    });
    if STOPPED.load(Ordering::Acquire) >= MOST_STOPPED {
        return Err(Error::new(Kind::OutOfMemory, "the decoder has failed too often")
            .detail(format!("{MOST_STOPPED} of its threads have stopped in this process, and keep their memory."))
            .hint("Connect again."));
    }
    run(bytes, limits, broken, work, true)
}

fn run<T: Send + 'static>(
    bytes: &[u8],
    limits: &Limits,
    broken: impl FnOnce() -> Error,
    work: impl FnOnce(&[u8], &Limits) -> Result<T> + Send + 'static,
    is_at_risk: bool,
) -> Result<T> {
    // Callers with several threads (clip-embed) are never interrupted, so their threads don't wait for each other.
    let mut copy: Vec<u8> = memory::with_capacity(bytes.len())?;
    copy.extend_from_slice(bytes);
    while ABANDONED.load(Ordering::Acquire) {
        limits.check_interrupt()?;
        if AT_WORK.load(Ordering::Acquire) == 0 {
            ABANDONED.store(false, Ordering::Release);
        } else {
            std::thread::sleep(WAIT);
        }
    }
    let inner = Limits { interrupted: || ABANDONED.load(Ordering::Acquire), ..*limits };
    let (sender, receiver) = sync_channel(1);
    AT_WORK.fetch_add(1, Ordering::AcqRel);
    let working = Working;
    // The stack takes only address space until it is used. It is large because some decoders recurse into trees.
    let thread = std::thread::Builder::new().name("clip decode".to_owned()).stack_size(8 << 20);
    let spawned = with_signals_blocked(|| {
        thread.spawn(move || {
            let _working = working;
            if is_at_risk {
                let sender = sender.clone();
                AT_PANIC.set(Some(Box::new(move || {
                    STOPPED.fetch_add(1, Ordering::AcqRel);
                    let _ = sender.send(None);
                    // The thread no longer works, but its guard is never dropped.
                    AT_WORK.fetch_sub(1, Ordering::AcqRel);
                })));
            }
            // The caller may have stopped waiting.
            let _ = sender.send(Some(work(&copy, &inner)));
        })
    });
    if spawned.is_err() {
        return Err(Error::new(Kind::OutOfMemory, "out of memory").detail("No thread could be started."));
    }
    loop {
        match receiver.recv_timeout(WAIT) {
            Ok(Some(result)) => return result,
            Ok(None) | Err(RecvTimeoutError::Disconnected) => return Err(broken()),
            Err(RecvTimeoutError::Timeout) => {
                if let Err(interrupted) = limits.check_interrupt() {
                    ABANDONED.store(true, Ordering::Release);
                    return Err(interrupted);
                }
            }
        }
    }
}

#[cfg(all(test, feature = "avif"))]
mod tests {
    use super::*;

    extern "C" fn fault() {
        panic!("on purpose, where it can't unwind");
    }

    const CHILD: &str = "CLIP_TEST_STOPS_THREADS";

    /// Runs in a separate process: a stopped thread stays inside the panic hook, and at the end of a run the test
    /// harness waits to replace the hook. The test also shows that programs that don't replace the hook end normally.
    #[test]
    fn a_panic_that_cannot_unwind_is_an_error() {
        if std::env::var_os(CHILD).is_some() {
            panics();
            std::process::exit(0);
        }
        let name = "image::uninterruptible::tests::a_panic_that_cannot_unwind_is_an_error";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..3000 {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            std::thread::sleep(WAIT);
        }
        child.kill().unwrap();
        panic!("the process does not end");
    }

    fn panics() {
        let broken = || Error::new(Kind::InvalidInput, "it is broken");
        let limits = Limits::default();
        let run = |fails: bool| {
            run_in_thread_at_risk(b"abc", &limits, broken, move |bytes, _| {
                if fails {
                    fault();
                }
                Ok(bytes.len())
            })
        };
        for _ in 0..MOST_STOPPED {
            assert_eq!(run(false), Ok(3));
            assert_eq!(run(true), Err(broken()));
        }
        assert_eq!(run(false).unwrap_err().kind, Kind::OutOfMemory);
        // Threads for code that may unwind still start.
        assert_eq!(run_in_thread(b"abc", &limits, broken, |bytes, _| Ok(bytes.len())), Ok(3));
    }
}
