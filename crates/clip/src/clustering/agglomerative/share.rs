//! Distributes work over several threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;

use crate::memory::Reserve;
use crate::threads::with_signals_blocked;

/// The results of `work` for 0 to `count` - 1, in this order. Each thread uses one of the buffers, the calling thread
/// the first one. The other threads access only data that `work` borrows, and leave signals to the calling thread.
///
/// `reserve` is the maximum number of bytes that a thread allocates. A thread without that much memory does no work;
/// the calling thread does it instead.
pub(super) fn share<B: Send, R: Send>(
    buffers: &mut [B],
    count: usize,
    reserve: usize,
    work: impl Fn(&mut B, usize) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let work_through = |buffer: &mut B| {
        let mut found = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return found;
            }
            found.push((index, work(buffer, index)));
        }
    };
    let work_aside = |buffer: &mut B| match Reserve::new(reserve) {
        Ok(_reserve) => work_through(buffer),
        Err(_) => Vec::new(),
    };
    let (own, others) = buffers.split_first_mut().expect("one buffer a thread");
    let enough = others.len().min(count.saturating_sub(1));
    let others = &mut others[..enough];
    let mut found = if others.is_empty() {
        work_through(own)
    } else {
        std::thread::scope(|scope| {
            let work_aside = &work_aside;
            let spawn = |buffer| Builder::new().spawn_scoped(scope, move || work_aside(buffer)).ok();
            let others: Vec<_> = with_signals_blocked(|| others.iter_mut().filter_map(spawn).collect());
            let mut found = work_through(own);
            for other in others {
                found.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            found
        })
    };
    found.sort_unstable_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, result)| result).collect()
}
