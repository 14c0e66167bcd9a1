//! Engine errors as PostgreSQL errors.

use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// What every SQL function returns: an `Err` is raised with its own SQLSTATE, DETAIL and HINT.
pub type SqlResult<T> = Result<T, ErrorReport>;

/// The SQLSTATE for a kind of error. Class XX is for our own defects only.
pub fn sqlstate(kind: Kind) -> PgSqlErrorCode {
    match kind {
        Kind::InvalidInput => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        Kind::Unsupported => PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        Kind::LimitExceeded => PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        Kind::OutOfMemory => PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
        Kind::Interrupted => PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
        Kind::UnknownModel => PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
        Kind::MissingFile => PgSqlErrorCode::ERRCODE_UNDEFINED_FILE,
        Kind::BadModel => PgSqlErrorCode::ERRCODE_CONFIG_FILE_ERROR,
        _ => PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
    }
}

/// An engine error with its SQLSTATE, DETAIL and HINT.
pub fn report(error: Error) -> ErrorReport {
    with_sqlstate(sqlstate(error.kind), error)
}

/// The same, where PostgreSQL has a closer SQLSTATE than the kind's.
pub fn with_sqlstate(code: PgSqlErrorCode, error: Error) -> ErrorReport {
    let mut report = ErrorReport::new(code, error.message, "clip_search");
    let place = error.element.map(|index| format!("This is element {} of the array.", index + 1));
    let detail: Vec<String> = [place, error.detail].into_iter().flatten().collect();
    if !detail.is_empty() {
        report = report.set_detail(detail.join(" "));
    }
    if let Some(hint) = error.hint {
        report = report.set_hint(hint);
    }
    report
}

/// Shows an engine error as a WARNING.
pub fn warn(error: Error) {
    report(error).report(PgLogLevel::WARNING);
}

/// An argument that has to have a value.
pub fn given<T>(name: &str, value: Option<T>) -> SqlResult<T> {
    value.ok_or_else(|| {
        with_sqlstate(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            Error::new(Kind::InvalidInput, format!("argument \"{name}\" is NULL"))
                .hint("Give a value, or leave it out where it has a default."),
        )
    })
}
