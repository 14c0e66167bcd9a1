//! Whether pg_restore is at work.
//!
//! `pg_restore --jobs` creates the triggers of a partitioned table before the data of its partitions are loaded: a trigger
//! waits for the data of its own table only, and a partitioned table has none. So a row that was embedded and counted when
//! the dump was made meets the trigger, and would be counted twice.
#![allow(unsafe_code)]

use std::ffi::CStr;

use pgrx::pg_sys;

/// Whether the session is pg_restore's, by the name that the program gives itself.
pub fn is_restoring() -> bool {
    // SAFETY: a string of the settings; it stays as it is while this looks.
    let name = unsafe { (&raw const pg_sys::application_name).read() };
    // SAFETY: as above.
    !name.is_null() && unsafe { CStr::from_ptr(name) } == c"pg_restore"
}

/// Whether pg_restore loads a table that it has created itself: with --jobs it empties the table in the same transaction, to
/// write less WAL. Where it loads rows into a table that was there before, it does not.
///
/// # Safety
/// The relation must be open.
pub unsafe fn loads_created_table(relation: pg_sys::Relation) -> bool {
    // SAFETY: by the contract.
    let relation = unsafe { &*relation };
    #[cfg(feature = "pg15")]
    let emptied = relation.rd_firstRelfilenodeSubid;
    #[cfg(not(feature = "pg15"))]
    let emptied = relation.rd_firstRelfilelocatorSubid;
    emptied != 0 && is_restoring()
}
