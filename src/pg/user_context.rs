//! With whose rights a piece of work runs.
//!
//! Whoever writes to a watched table need not be able to write the extension's own tables, and whoever calls
//! clip_backfill, the background worker above all, must not lend its rights to the triggers and index expressions of a
//! table that somebody else owns. The unsafe calls are to the functions by which PostgreSQL itself does this for
//! REFRESH MATERIALIZED VIEW, autovacuum and the workers of logical replication.
#![allow(unsafe_code)]

use std::ffi::CStr;

use pgrx::pg_sys;

use crate::guc;

/// In utils/timeout.h, which pgrx does not bind; the same from PostgreSQL 14 to 18.
const STATEMENT_TIMEOUT: i32 = 3;

unsafe extern "C-unwind" {
    fn enable_timeout_after(id: i32, milliseconds: i32);
    fn disable_timeout(id: i32, keep_indicator: bool);
}

/// Stops the clock that [`Rights::of_table_owner`] has started, after an error that has left it running.
pub fn stop_clock() {
    // SAFETY: what does not run is left alone.
    unsafe { disable_timeout(STATEMENT_TIMEOUT, false) };
}

/// Other rights and a search_path that nobody can add to, for as long as it lives.
pub struct Rights {
    user: pg_sys::Oid,
    context: i32,
    nest: i32,
    timed: bool,
}

impl Rights {
    /// Those of whoever owns the extension's tables.
    pub fn of_extension() -> Self {
        // SAFETY: a cache look-up by constant names inside a transaction; the tuple is released before the row is used.
        let owner = unsafe {
            let schema = pg_sys::get_namespace_oid(c"clip_search".as_ptr(), false);
            let table = pg_sys::get_relname_relid(c"watch_setting".as_ptr(), schema);
            let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, table.into());
            if tuple.is_null() {
                pgrx::error!("relation \"clip_search.watch_setting\" does not exist");
            }
            let owner = (*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_class>(tuple)).relowner;
            pg_sys::ReleaseSysCache(tuple);
            owner
        };
        Self::take(owner, pg_sys::SECURITY_LOCAL_USERID_CHANGE)
    }

    /// Those of a watched table's owner, who has written what runs when its rows are read and written. It can't change
    /// roles, leave anything behind in the session or put anything off to the end of the transaction, where it would
    /// run with the rights of this process.
    pub fn of_table_owner(owner: pg_sys::Oid) -> Self {
        let mut rights = Self::take(owner, pg_sys::SECURITY_RESTRICTED_OPERATION);
        // A session has its statement_timeout; the worker does others' work, and must come back to it.
        // SAFETY: a variable that is set at the start of the process, and the timeout of PostgreSQL's own that cancels.
        unsafe {
            rights.timed = !(&raw const pg_sys::MyBgworkerEntry).read().is_null();
            if rights.timed {
                enable_timeout_after(STATEMENT_TIMEOUT, guc::worker_timeout());
            }
        }
        // A row that a policy hides would be taken for deleted; off, it is an error.
        set(c"row_security", c"off");
        normal_form();
        rights
    }

    /// The same for what may have to wait for a writer, who may be waiting for this transaction: it fails before
    /// PostgreSQL looks for a deadlock (deadlock_timeout, a second), and might end the writer's.
    pub fn of_extension_in_a_hurry() -> Self {
        let rights = Self::of_extension();
        set(c"lock_timeout", c"500ms");
        rights
    }

    /// The caller's own rights, but its search_path not.
    pub fn of_caller() -> Self {
        // SAFETY: it only writes to the two places.
        let (user, context) = unsafe {
            let (mut user, mut context) = (pg_sys::Oid::INVALID, 0);
            pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
            (user, context)
        };
        // SAFETY: balanced by drop, or by the end of the (sub)transaction.
        let nest = unsafe { pg_sys::NewGUCNestLevel() };
        set(c"search_path", c"pg_catalog, pg_temp");
        Self { user, context, nest, timed: false }
    }

    fn take(user: pg_sys::Oid, flags: u32) -> Self {
        let rights = Self::of_caller();
        // SAFETY: an existing role; set back by drop, or by the end of the (sub)transaction that fails.
        unsafe { pg_sys::SetUserIdAndSecContext(user, rights.context | flags as i32) };
        rights
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        // After an error PostgreSQL sets both back with the (sub)transaction.
        if !std::thread::panicking() {
            // SAFETY: the nest level was opened by this guard, and the user is the one that was in force.
            unsafe {
                if self.timed {
                    disable_timeout(STATEMENT_TIMEOUT, false);
                }
                pg_sys::AtEOXact_GUC(false, self.nest);
                pg_sys::SetUserIdAndSecContext(self.user, self.context);
            }
        }
    }
}

/// Sets a parameter until the guard goes.
fn set(name: &CStr, value: &CStr) {
    // SAFETY: two strings that end in a nul and are copied; an error is raised as usual.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
    }
}

/// Lets values be written in one form whatever the session's taste, as postgres_fdw does: keys are kept as texts.
pub fn normal_form() {
    // SAFETY: variables that only this thread writes.
    let (date, interval, digits) = unsafe {
        (
            (&raw const pg_sys::DateStyle).read(),
            (&raw const pg_sys::IntervalStyle).read(),
            (&raw const pg_sys::extra_float_digits).read(),
        )
    };
    if date != pg_sys::USE_ISO_DATES as i32 {
        set(c"datestyle", c"ISO");
    }
    if interval != pg_sys::INTSTYLE_POSTGRES as i32 {
        set(c"intervalstyle", c"postgres");
    }
    if digits < 3 {
        set(c"extra_float_digits", c"3");
    }
    set(c"bytea_output", c"hex");
}

/// The same for what is kept, so that two sessions write one key alike. What runs users' triggers goes without: they have
/// the session's time zone.
pub fn key_form() {
    normal_form();
    set(c"timezone", c"UTC");
}
