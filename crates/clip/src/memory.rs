//! Allocations that fail with an error instead of ending the process.
//!
//! A Rust program aborts when an allocation fails, and an aborted backend restarts the whole server. Two measures
//! prevent this. This crate's own large allocations are fallible: [`zeroed`] and [`with_capacity`]. Libraries don't
//! offer fallible allocation, so their work runs under a [`Reserve`]: memory that is allocated beforehand, fallibly.
//! When the system refuses an allocation, [`Allocator`], the program's global allocator, releases the reserve, so that
//! the library's allocation succeeds. Afterwards [`Reserve::finish`] tells the caller that memory has run out.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::error::{Error, Result};

thread_local! {
    /// This thread's reserve: address and layout. The cell has no destructor, so it can be used within an allocation at
    /// any time.
    static RESERVE: Cell<Option<(*mut u8, Layout)>> = const { Cell::new(None) };
}

/// A vector of `length` zero bytes.
///
/// # Errors
/// [`crate::Kind::OutOfMemory`].
pub fn zeroed(length: usize) -> Result<Vec<u8>> {
    if length == 0 {
        return Ok(Vec::new());
    }
    let layout = Layout::array::<u8>(length).map_err(|_| Error::out_of_memory(length))?;
    // SAFETY: the layout has a nonzero size, and the vector gets exactly the memory that the global allocator returned
    // for it: zeroed bytes, whose number is both its length and its capacity. Growing a fallible vector instead would
    // write every page.
    unsafe {
        let bytes = std::alloc::alloc_zeroed(layout);
        if bytes.is_null() {
            return Err(Error::out_of_memory(length));
        }
        Ok(Vec::from_raw_parts(bytes, length, length))
    }
}

/// An empty vector with room for `length` items.
///
/// # Errors
/// [`crate::Kind::OutOfMemory`].
pub fn with_capacity<T>(length: usize) -> Result<Vec<T>> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(length).map_err(|_| Error::out_of_memory(length.saturating_mul(size_of::<T>())))?;
    Ok(vector)
}

/// Appends an item.
///
/// # Errors
/// [`crate::Kind::OutOfMemory`].
pub fn push<T>(vector: &mut Vec<T>, item: T) -> Result<()> {
    vector.try_reserve(1).map_err(|_| Error::out_of_memory(vector.len().saturating_mul(2 * size_of::<T>())))?;
    vector.push(item);
    Ok(())
}

/// Memory that is reserved for a library's allocations on this thread.
///
/// It takes address space but no pages, because it is never written.
pub struct Reserve {
    bytes: usize,
}

impl Reserve {
    /// Reserves `bytes`, which must be at least the amount that the library may allocate from now on. Within another
    /// reserve it has no effect: the outer one covers it.
    ///
    /// # Errors
    /// [`crate::Kind::OutOfMemory`] if the system has less.
    pub fn new(bytes: usize) -> Result<Self> {
        if bytes == 0 || RESERVE.get().is_some() {
            return Ok(Self { bytes: 0 });
        }
        let layout = Layout::array::<u8>(bytes).map_err(|_| Error::out_of_memory(bytes))?;
        // SAFETY: the layout has a nonzero size.
        let memory = unsafe { std::alloc::alloc(layout) };
        if memory.is_null() {
            return Err(Error::out_of_memory(bytes));
        }
        RESERVE.set(Some((memory, layout)));
        Ok(Self { bytes })
    }

    /// Whether memory has run out, so that the reserve was released.
    pub fn is_spent(&self) -> bool {
        self.bytes > 0 && RESERVE.get().is_none()
    }

    /// Ends the reserve.
    ///
    /// # Errors
    /// [`crate::Kind::OutOfMemory`] if the reserve was released. The library's result is complete in this case, too,
    /// but the next failed allocation would abort the process.
    pub fn finish(self) -> Result<()> {
        if self.is_spent() { Err(Error::out_of_memory(self.bytes)) } else { Ok(()) }
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        if self.bytes > 0 {
            release();
        }
    }
}

/// Frees this thread's reserve. Returns whether there was one.
fn release() -> bool {
    // A thread whose local data has been destroyed has no reserve.
    let Some((memory, layout)) = RESERVE.try_with(Cell::take).ok().flatten() else { return false };
    // SAFETY: the memory was allocated with this layout by the same allocator. It is freed only once, because it was
    // taken out of its cell.
    unsafe { std::alloc::dealloc(memory, layout) };
    true
}

/// A global allocator that releases the thread's [`Reserve`] before it fails.
pub struct Allocator<A = System>(pub A);

// SAFETY: every block comes from the inner allocator and returns to it with the same layout. A failed call is repeated
// once, after memory was freed. No code here allocates or unwinds.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Allocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligations are the inner allocator's.
        unsafe {
            let memory = self.0.alloc(layout);
            if memory.is_null() && release() { self.0.alloc(layout) } else { memory }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe {
            let memory = self.0.alloc_zeroed(layout);
            if memory.is_null() && release() { self.0.alloc_zeroed(layout) } else { memory }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { self.0.dealloc(memory, layout) };
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`; a block that could not be resized is unchanged.
        unsafe {
            let moved = self.0.realloc(memory, layout, size);
            if moved.is_null() && release() { self.0.realloc(memory, layout, size) } else { moved }
        }
    }
}
