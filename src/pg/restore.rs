//! Recognises a session of pg_restore.
//!
//! `pg_restore --jobs` creates the triggers of a partitioned table before it loads the data of the partitions: a
//! trigger waits only for the data of its own table, and a partitioned table has none. The trigger therefore fires for
//! rows that were already embedded and counted when the dump was written, and would count them twice.
#![allow(unsafe_code)]

use std::ffi::CStr;

use pgrx::pg_sys;

/// Whether the session belongs to pg_restore, by its application_name.
pub fn is_restoring() -> bool {
    // SAFETY: a setting's string, which does not change during this call.
    let name = unsafe { (&raw const pg_sys::application_name).read() };
    // SAFETY: as above.
    !name.is_null() && unsafe { CStr::from_ptr(name) } == c"pg_restore"
}

/// Whether pg_restore loads a table that it has created: with --jobs it then truncates the table in the same
/// transaction, to write less WAL. It does not truncate a table that existed before.
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
