//! Subtransactions, and the errors that end them.
#![allow(unsafe_code)]

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::prelude::*;

use crate::pg::error::{SqlResult, sqlstate};

/// The reason why a row could not be embedded.
#[derive(Debug)]
pub struct Failure {
    /// The five characters of the SQLSTATE.
    pub code: String,
    state: PgSqlErrorCode,
    pub message: String,
    pub detail: Option<String>,
    hint: Option<String>,
    caught: Option<CaughtError>,
}

/// Prefixes of the SQLSTATEs of failures that soon pass: conflicts of transactions, a lock that is held, an object in
/// use.
pub const PASSING: [&str; 3] = ["40", "55P03", "55006"];

impl Failure {
    /// The row is not at fault: another session blocks it, but not for long.
    pub fn is_passing(&self) -> bool {
        PASSING.iter().any(|prefix| self.code.starts_with(prefix))
    }

    /// Converts it to an error of this statement.
    pub fn into_report(self) -> ErrorReport {
        let mut report = ErrorReport::new(self.state, self.message, "clip_search");
        if let Some(detail) = self.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = self.hint {
            report = report.set_hint(hint);
        }
        report
    }
}

impl From<&clip::Error> for Failure {
    fn from(error: &clip::Error) -> Self {
        let state = sqlstate(error.kind);
        let (message, detail, hint) = (error.message.clone(), error.detail.clone(), error.hint_for(crate::guc::name));
        Self { code: unpack(state as i32), state, message, detail, hint, caught: None }
    }
}

impl From<CaughtError> for Failure {
    fn from(caught: CaughtError) -> Self {
        let (CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. }) = &caught;
        let state = report.sql_error_code();
        let (message, detail) = (report.message().to_owned(), report.detail().map(str::to_owned));
        let hint = report.hint().map(str::to_owned);
        Self { code: unpack(state as i32), state, message, detail, hint, caught: Some(caught) }
    }
}

/// Cancelled, shut down, out of memory or disk: the row is not at fault, and nothing is recorded.
fn is_interrupt(code: &str) -> bool {
    code.starts_with("57") || code.starts_with("53") || code == "58030"
}

/// The five characters of a SQLSTATE, which PostgreSQL stores in six bits each.
fn unpack(code: i32) -> String {
    (0..5).map(|place| char::from(((code >> (6 * place)) & 0x3f) as u8 + b'0')).collect()
}

/// Runs `f`, and rolls its changes back if it fails. Errors that concern the whole session, such as a cancel, are
/// raised again.
pub fn attempt<T>(f: impl FnOnce() -> SqlResult<T>) -> Result<T, Failure> {
    // SAFETY: the same steps as in PL/pgSQL for a block with an exception clause: the subtransaction ends in either
    // case, and afterwards memory context and resource owner are restored.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let outcome = catch(f);
        match &outcome {
            Ok(_) => pg_sys::ReleaseCurrentSubTransaction(),
            Err(_) => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        match outcome {
            Err(Failure { caught: Some(caught), code, .. }) if is_interrupt(&code) => caught.rethrow(),
            outcome => outcome,
        }
    }
}

/// Runs `f` and catches its error; after an error the caller must roll the (sub)transaction back.
pub fn catch<T>(f: impl FnOnce() -> SqlResult<T>) -> Result<T, Failure> {
    PgTryBuilder::new(AssertUnwindSafe(|| match f() {
        Ok(value) => Ok(value),
        Err(report) => {
            report.report(PgLogLevel::ERROR);
            unreachable!("an ERROR does not return")
        }
    }))
    .catch_others(|caught| Err(Failure::from(caught)))
    .execute()
}
