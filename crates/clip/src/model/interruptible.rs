//! Interruptible inference. A batch takes up to seconds and is one call, during which its own thread can't look for an
//! interrupt. A second thread does so, and has ONNX Runtime stop before the next node of the graph, some milliseconds later.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ort::session::{NoSelectedOutputs, RunOptions};

use crate::threads::with_signals_blocked;

/// Between two looks. A run that ends sooner, as most do, costs nothing but the note that it is there.
const WAIT: Duration = Duration::from_millis(10);

/// Returns whether the work should stop.
static INTERRUPTED: OnceLock<fn() -> bool> = OnceLock::new();

/// Watches all runs of this process from now on. `interrupted` is called by another thread. Must not be called
/// before a fork: the thread would not survive it.
pub fn watch_runs(interrupted: fn() -> bool) {
    INTERRUPTED.get_or_init(|| interrupted);
}

/// A run that is under way.
pub(super) struct Run {
    pub(super) options: RunOptions<NoSelectedOutputs>,
    stopped: AtomicBool,
}

impl Run {
    pub(super) fn new() -> ort::Result<Arc<Self>> {
        Ok(Arc::new(Self { options: RunOptions::new()?, stopped: AtomicBool::new(false) }))
    }

    /// Whether it was told to stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Watches the run until the guard is dropped; None if no function is set or no thread can be started.
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

/// A run is watched as long as this lives.
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
    /// The thread waits for a run.
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
            // It waits for `get_or_init` to return.
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
            // The same run, which has taken this long by now.
            if state.run.as_ref().is_some_and(|now| Arc::ptr_eq(now, &run)) && interrupted() {
                run.stopped.store(true, Ordering::Release);
                // It can fail for want of memory only, and then the run comes to its own end.
                let _ = run.options.terminate();
            }
        }
    }
}
