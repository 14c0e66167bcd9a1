//! Checks the tables that a statement refers to, between parse analysis and planning.
//!
//! A statement names its table, and PostgreSQL resolves the name. A lock on the table keeps it from being renamed, but
//! its schema can still be renamed, and another table can then have the name. Planning runs index expressions and
//! immutable functions of the resolved table, so the check must come first. It uses the hook that PostgreSQL offers to
//! extensions such as pg_stat_statements.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::sync::OnceLock;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::pg::error::sql_error;

/// A statement that is about to be analyzed, or analyzed again, and the only table that it may refer to.
struct Expected {
    text: CString,
    table: pg_sys::Oid,
}

thread_local! {
    static EXPECTED: RefCell<Vec<Expected>> = const { RefCell::new(Vec::new()) };
}

/// The hook that was installed before.
static NEXT: OnceLock<pg_sys::post_parse_analyze_hook_type> = OnceLock::new();

/// Installs the hook.
pub fn register() {
    // SAFETY: the library is loaded once in a process, on its only thread.
    unsafe {
        if NEXT.set((&raw const pg_sys::post_parse_analyze_hook).read()).is_ok() {
            (&raw mut pg_sys::post_parse_analyze_hook).write(Some(on_analyzed));
        }
    }
}

/// Runs `work`, in which a statement with this text fails with 55006 if it names any table except the given one and the
/// tables of pg_catalog and of the extension. A statement with the same text in the owner's code is checked as well,
/// which affects only that code.
pub fn about_table<T>(table: pg_sys::Oid, text: &str, work: impl FnOnce() -> T) -> T {
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            EXPECTED.with_borrow_mut(|expected| drop(expected.pop()));
        }
    }
    let text = CString::new(text).unwrap_or_default();
    EXPECTED.with_borrow_mut(|expected| expected.push(Expected { text, table }));
    let _guard = Guard;
    work()
}

/// Whether a text is that of a statement in [`about_table`].
///
/// # Safety
/// The text must be null or end in a nul.
pub unsafe fn is_own_statement(text: *const c_char) -> bool {
    // SAFETY: the caller's.
    !text.is_null()
        && unsafe {
            let text = CStr::from_ptr(text);
            EXPECTED.with_borrow(|expected| expected.iter().any(|expected| expected.text.as_c_str() == text))
        }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_analyzed(
    state: *mut pg_sys::ParseState,
    query: *mut pg_sys::Query,
    jumble: *mut pg_sys::JumbleState,
) {
    if let Some(Some(next)) = NEXT.get() {
        // SAFETY: the previously installed hook, with the arguments that it would have received.
        unsafe { next(state, query, jumble) };
    }
    let expected = EXPECTED.with_borrow(|expected| {
        if expected.is_empty() {
            return None;
        }
        // SAFETY: the state lives as long as the call; its text is null or ends in a nul.
        let text = unsafe {
            let text = (*state).p_sourcetext;
            if text.is_null() {
                return None;
            }
            CStr::from_ptr(text)
        };
        expected.iter().rev().find(|expected| expected.text.as_c_str() == text).map(|expected| expected.table)
    });
    let Some(expected) = expected else { return };
    // SAFETY: the query has just been analyzed.
    let tables = unsafe { tables(query) };
    // SAFETY: catalogue look-ups inside a transaction.
    let is_known = |table: pg_sys::Oid| unsafe {
        let schema = pg_sys::get_rel_namespace(table);
        schema == pg_sys::Oid::from(pg_sys::PG_CATALOG_NAMESPACE)
            || schema == pg_sys::get_namespace_oid(c"clip_search".as_ptr(), true)
    };
    if tables.contains(&expected) && tables.iter().all(|&table| table == expected || is_known(table)) {
        return;
    }
    renamed().report(PgLogLevel::ERROR);
}

/// The error for a statement whose table no longer has the given name.
pub fn renamed() -> pg_sys::panic::ErrorReport {
    sql_error(PgSqlErrorCode::ERRCODE_OBJECT_IN_USE, "the table, or its schema, was renamed while it was being used")
        .set_hint("Try again.")
}

/// The relations that a query names anywhere, including subqueries and common table expressions: PostgreSQL records
/// them for a plan, so that a change of one of them invalidates the plan.
///
/// # Safety
/// The query has been analyzed.
unsafe fn tables(query: *mut pg_sys::Query) -> Vec<pg_sys::Oid> {
    let (mut tables, mut others, mut row_security) = (std::ptr::null_mut(), std::ptr::null_mut(), false);
    // SAFETY: it only reads the query, and returns lists in the current memory context.
    unsafe {
        pg_sys::extract_query_dependencies(query.cast(), &raw mut tables, &raw mut others, &raw mut row_security);
        if tables.is_null() {
            return Vec::new();
        }
        (0..(*tables).length as usize).map(|place| (*(*tables).elements.add(place)).oid_value).collect()
    }
}
