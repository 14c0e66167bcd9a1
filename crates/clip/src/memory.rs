//! Allocations that fail with an error instead of ending the process.
//!
//! A Rust program that can't allocate is aborted, and an aborted backend takes its whole server down with it. Two things
//! prevent that. This crate's own large allocations are fallible: [`zeroed`] and [`with_capacity`]. Libraries do not offer
//! that, so their work runs under a [`Reserve`]: memory that is set aside beforehand, fallibly, and that [`Allocator`],
//! the program's global allocator, gives up when the system refuses an allocation, so that the library gets what it asked
//! for. The caller then learns from [`Reserve::finish`] that memory has run out.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::error::{Error, Result};

thread_local! {
    /// What this thread has set aside: address and layout. Without a destructor, so that it can be used from within an
    /// allocation at any time.
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
    // SAFETY: the layout has a size, and the vector is made of exactly what the global allocator returned for it: zeroed
    // bytes, as many as its length and capacity say. Growing a fallible vector instead would write every page of it.
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

/// Memory that is set aside on this thread for the allocations of a library.
///
/// It costs address space and no pages: nothing is written to it.
pub struct Reserve {
    bytes: usize,
}

impl Reserve {
    /// Sets `bytes` aside: at least what the library may allocate from now on. A reserve within another is a part of it.
    ///
    /// # Errors
    /// [`crate::Kind::OutOfMemory`] where there isn't as much.
    pub fn new(bytes: usize) -> Result<Self> {
        if bytes == 0 || RESERVE.get().is_some() {
            return Ok(Self { bytes: 0 });
        }
        let layout = Layout::array::<u8>(bytes).map_err(|_| Error::out_of_memory(bytes))?;
        // SAFETY: the layout has a size.
        let memory = unsafe { std::alloc::alloc(layout) };
        if memory.is_null() {
            return Err(Error::out_of_memory(bytes));
        }
        RESERVE.set(Some((memory, layout)));
        Ok(Self { bytes })
    }

    /// Whether memory has run out: the reserve had to be given up.
    pub fn is_spent(&self) -> bool {
        self.bytes > 0 && RESERVE.get().is_none()
    }

    /// Ends the reserve.
    ///
    /// # Errors
    /// [`crate::Kind::OutOfMemory`] if it had to be given up. The library's result is whole even so, but what follows
    /// would fail, and less gracefully.
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

/// Gives this thread's reserve back to the system. Whether there was one.
fn release() -> bool {
    // A thread whose local data is gone has no reserve.
    let Some((memory, layout)) = RESERVE.try_with(Cell::take).ok().flatten() else { return false };
    // SAFETY: allocated with this layout by the same allocator, and freed once, since it was taken out of its cell.
    unsafe { std::alloc::dealloc(memory, layout) };
    true
}

/// A global allocator that gives up the thread's [`Reserve`] before it fails.
pub struct Allocator<A = System>(pub A);

// SAFETY: every block comes from the inner allocator and goes back to it with the same layout. A call that fails is
// repeated once after memory was freed; nothing here allocates or unwinds.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Allocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligations are the inner allocator's.
        unsafe {
            let memory = self.0.alloc(layout);
            if memory.is_null() && release() { self.0.alloc(layout) } else { memory }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            let memory = self.0.alloc_zeroed(layout);
            if memory.is_null() && release() { self.0.alloc_zeroed(layout) } else { memory }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { self.0.dealloc(memory, layout) };
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above; a block that could not be resized is as it was.
        unsafe {
            let moved = self.0.realloc(memory, layout, size);
            if moved.is_null() && release() { self.0.realloc(memory, layout, size) } else { moved }
        }
    }
}
