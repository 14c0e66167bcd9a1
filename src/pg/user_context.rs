//! The role whose privileges a piece of work uses.
//!
//! A role that writes to a watched table doesn't need privileges on the extension's own tables, and a role that calls
//! clip_backfill or reads clip_search.watch must not lend its privileges to the triggers, policies and index
//! expressions of another role's table. The unsafe calls are to the functions that PostgreSQL itself uses for REFRESH
//! MATERIALIZED VIEW, autovacuum and the workers of logical replication.
#![allow(unsafe_code)]

use std::cell::OnceCell;
use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::spi::{Spi, SpiClient};

use crate::pg::error::SqlResult;
use crate::pg::restricted::{Restricted, set_extension_owner};

thread_local! {
    /// Whether the server has loaded Citus, which it does when it starts.
    static HAS_CITUS: OnceCell<bool> = const { OnceCell::new() };
}

/// Whether the server has loaded Citus.
fn has_citus() -> bool {
    HAS_CITUS.with(|known| {
        *known.get_or_init(|| {
            let name = c"citus.override_table_visibility".as_ptr();
            // SAFETY: looks up a setting by its name; null if there is none.
            unsafe { !pg_sys::GetConfigOption(name, true, false).is_null() }
        })
    })
}

/// The role whose privileges the calling code has.
pub fn current_role() -> pg_sys::Oid {
    // SAFETY: reads a variable of the process.
    unsafe { pg_sys::GetUserId() }
}

/// Whether a role has the privileges of another: it is that role, inherits from it, or is a superuser.
pub fn has_rights_of(role: pg_sys::Oid, other: pg_sys::Oid) -> bool {
    // SAFETY: cache look-ups inside a transaction; an oid without a role has no members.
    unsafe { pg_sys::has_privs_of_role(role, other) }
}

pub fn role_exists(role: pg_sys::Oid) -> bool {
    // SAFETY: a cache look-up inside a transaction.
    unsafe {
        let key = pg_sys::SysCacheIdentifier::AUTHOID as i32;
        pg_sys::SearchSysCacheExists(key, role.into(), 0.into(), 0.into(), 0.into())
    }
}

/// A role's quoted name, for messages.
pub fn role_name(role: pg_sys::Oid) -> String {
    // SAFETY: a cache look-up inside a transaction; the name is palloc'd and copied.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() { role.to_u32().to_string() } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
    }
}

pub fn database_owner() -> pg_sys::Oid {
    // SAFETY: a cache look-up of the database that this process is in; the tuple is released before the row is used.
    unsafe {
        let database = (&raw const pg_sys::MyDatabaseId).read();
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::DATABASEOID as i32, database.into());
        if tuple.is_null() {
            return pg_sys::Oid::INVALID;
        }
        let owner = (*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_database>(tuple)).datdba;
        pg_sys::ReleaseSysCache(tuple);
        owner
    }
}

/// Runs statements on the extension's tables.
pub fn as_extension<T>(work: impl FnOnce(&mut SpiClient<'_>) -> SqlResult<T>) -> SqlResult<T> {
    let _user_context = UserContext::of_extension();
    Spi::connect_mut(work)
}

/// Switches to another role's privileges and a fixed search_path during the lifetime of this guard.
pub struct UserContext {
    user: pg_sys::Oid,
    context: i32,
    nest: i32,
    _restricted: Option<Restricted>,
}

impl UserContext {
    /// The privileges of the owner of the extension's tables.
    pub fn of_extension() -> Self {
        // SAFETY: a cache look-up by constant names inside a transaction.
        let owner = unsafe {
            let schema = pg_sys::get_namespace_oid(c"clip_search".as_ptr(), false);
            let table = pg_sys::get_relname_relid(c"watch_setting".as_ptr(), schema);
            match relation(table) {
                Some((owner, _)) => owner,
                None => pgrx::error!("relation \"clip_search.watch_setting\" does not exist"),
            }
        };
        set_extension_owner(owner);
        Self::take(owner, pg_sys::SECURITY_LOCAL_USERID_CHANGE)
    }

    /// The privileges of a table's owner, whose code runs when queries on the table are planned and its rows are read
    /// and written. This code can't change roles, leave state in the session, or defer work to the end of the
    /// transaction, where it would run with the privileges of this process. Only
    /// [`OwnersTable`](crate::pg::owners_table::OwnersTable) calls it.
    pub(super) fn of_table_owner(owner: pg_sys::Oid) -> Self {
        let mut rights = Self::take(owner, pg_sys::SECURITY_RESTRICTED_OPERATION);
        rights._restricted = Some(Restricted::begin());
        rights
    }

    /// The extension's privileges, for statements that may have to wait for a writer, which may be waiting for this
    /// transaction. With lock_timeout = 500 ms, shorter than deadlock_timeout (1 s), a cycle fails here and not in the
    /// writer.
    pub fn of_extension_with_lock_timeout() -> Self {
        let rights = Self::of_extension();
        set(c"lock_timeout", c"500ms");
        rights
    }

    /// The caller's own privileges, without its search_path.
    pub fn of_caller() -> Self {
        // SAFETY: it only writes to the two variables.
        let (user, context) = unsafe {
            let (mut user, mut context) = (pg_sys::Oid::INVALID, 0);
            pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
            (user, context)
        };
        // SAFETY: balanced by drop, or by the end of the (sub)transaction.
        let nest = unsafe { pg_sys::NewGUCNestLevel() };
        set(c"search_path", c"pg_catalog, pg_temp");
        if has_citus() {
            // Citus hides shards from queries on pg_class, and refuses to change them. The extension's tables refer to
            // shards of watched tables, which triggers and the background worker write.
            set(c"citus.override_table_visibility", c"off");
            set(c"citus.enable_manual_changes_to_shards", c"on");
        }
        Self { user, context, nest, _restricted: None }
    }

    fn take(user: pg_sys::Oid, flags: u32) -> Self {
        let rights = Self::of_caller();
        // SAFETY: an existing role; restored by drop, or at the end of the failed (sub)transaction.
        unsafe { pg_sys::SetUserIdAndSecContext(user, rights.context | flags as i32) };
        rights
    }
}

impl Drop for UserContext {
    fn drop(&mut self) {
        // After an error PostgreSQL restores the rest with the (sub)transaction.
        if !std::thread::panicking() {
            // SAFETY: this guard opened the nest level, and the user is the previous one.
            unsafe {
                pg_sys::AtEOXact_GUC(false, self.nest);
                pg_sys::SetUserIdAndSecContext(self.user, self.context);
            }
        }
    }
}

/// The owner of a table, if the table exists.
pub fn owner_of_table(oid: pg_sys::Oid) -> Option<pg_sys::Oid> {
    relation(oid).map(|(owner, _)| owner)
}

/// Owner and kind of a relation.
pub fn relation(oid: pg_sys::Oid) -> Option<(pg_sys::Oid, u8)> {
    // SAFETY: a cache look-up inside a transaction; the tuple is released before the row is used.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, oid.into());
        if tuple.is_null() {
            return None;
        }
        let form = pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_class>(tuple);
        let found = ((*form).relowner, (*form).relkind as u8);
        pg_sys::ReleaseSysCache(tuple);
        Some(found)
    }
}

/// Sets a parameter until the guard is dropped.
pub fn set(name: &CStr, value: &CStr) {
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

/// Makes output functions independent of the session's settings, as postgres_fdw does, because keys are stored as
/// texts.
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

/// As above, for stored values, so that two sessions write a key identically. Code that runs users' triggers does not
/// call it, because triggers use the session's time zone.
pub fn key_form() {
    normal_form();
    set(c"timezone", c"UTC");
}
