//! Interruptible inference. A batch takes up to seconds and is one call, so its own thread can't check for an
//! interrupt. A second thread checks, and makes ONNX Runtime stop before the next node of the graph, some milliseconds
//! later.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ort::session::{NoSelectedOutputs, RunOptions};

use crate::threads::with_signals_blocked;

/// The time between two checks. A run that ends sooner, as most do, only costs registering it.
const WAIT: Duration = Duration::from_millis(10);

/// Returns whether the work should stop.
static INTERRUPTED: OnceLock<fn() -> bool> = OnceLock::new();

/// Sets the check for all runs of this process from now on. Another thread calls `interrupted`. This function must not
/// be called before a fork, because that thread would not exist in the child.
pub fn watch_runs(interrupted: fn() -> bool) {
    INTERRUPTED.get_or_init(|| interrupted);
}

/// A run in progress.
pub(super) struct Run {
    pub(super) options: RunOptions<NoSelectedOutputs>,
    stopped: AtomicBool,
}

impl Run {
    pub(super) fn new() -> ort::Result<Arc<Self>> {
        Ok(Arc::new(Self { options: RunOptions::new()?, stopped: AtomicBool::new(false) }))
    }

    /// Whether the run was told to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Watches the run until the guard is dropped. None if no check is set or the thread can't be started.
    pub(super) fn watch(self: &Arc<Self>) -> Option<Watch> {
        let watcher = Watcher::of_process(*INTERRUPTED.get()?)?;
        let mut state = watcher.state();
        state.run = Some(Arc::clone(self));
        if state.is_idle {
            watcher.wake.notify_one();
        }
        Some(Watch)
    }
}

/// The guard of a watched run.
pub(super) struct Watch;

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(Some(watcher)) = WATCHER.get() {
            watcher.state().run = None;
        }
    }
}

#[derive(Default)]
struct State {
    run: Option<Arc<Run>>,
    /// Whether the thread is waiting for a run.
    is_idle: bool,
}

#[derive(Default)]
struct Watcher {
    state: Mutex<State>,
    wake: Condvar,
}

/// None if the thread could not be started.
static WATCHER: OnceLock<Option<Watcher>> = OnceLock::new();

impl Watcher {
    fn of_process(interrupted: fn() -> bool) -> Option<&'static Self> {
        let watcher = WATCHER.get_or_init(|| {
            let thread = std::thread::Builder::new().name("clip interrupts".to_owned()).stack_size(64 << 10);
            // Waits until `get_or_init` has returned.
            let watch = move || {
                if let Some(watcher) = WATCHER.wait() {
                    watcher.look(interrupted);
                }
            };
            with_signals_blocked(|| thread.spawn(watch)).ok().map(|_| Self::default())
        });
        watcher.as_ref()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, interrupted: fn() -> bool) -> ! {
        let mut state = self.state();
        loop {
            let Some(run) = state.run.clone() else {
                state.is_idle = true;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.is_idle = false;
                continue;
            };
            state = self.wake.wait_timeout(state, WAIT).unwrap_or_else(PoisonError::into_inner).0;
            // It is still the same run, so it has taken at least this long.
            if state.run.as_ref().is_some_and(|now| Arc::ptr_eq(now, &run)) && interrupted() {
                run.stopped.store(true, Ordering::Release);
                // It can fail only if memory runs out; the run then continues to its end.
                let _ = run.options.terminate();
            }
        }
    }
}
