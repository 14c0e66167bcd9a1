//! Engine errors as PostgreSQL errors.

use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::guc;

/// The result of every SQL function: an `Err` is raised with its SQLSTATE, DETAIL and HINT.
pub type SqlResult<T> = Result<T, ErrorReport>;

/// The SQLSTATE for a kind of error. Class XX is for our own defects only.
pub fn sqlstate(kind: Kind) -> PgSqlErrorCode {
    match kind {
        Kind::InvalidInput => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        Kind::Unsupported => PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        Kind::LimitExceeded => PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        Kind::OutOfMemory => PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
        Kind::DiskFull => PgSqlErrorCode::ERRCODE_DISK_FULL,
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

/// An engine error for which PostgreSQL has a more specific SQLSTATE than the one for its kind.
pub fn with_sqlstate(code: PgSqlErrorCode, error: Error) -> ErrorReport {
    let hint = error.hint_for(guc::name);
    let mut report = ErrorReport::new(code, shortened(error.message), "clip_search");
    let place = error.element.map(|index| format!("This is element {} of the array.", index + 1));
    let detail: Vec<String> = [place, error.detail].into_iter().flatten().collect();
    if !detail.is_empty() {
        report = report.set_detail(shortened(detail.join(" ")));
    }
    if let Some(hint) = hint {
        report = report.set_hint(shortened(hint));
    }
    report
}

/// Bytes of a message that are shown. Messages repeat the values of arguments, which may have megabytes, and go into the log.
const LONGEST_MESSAGE: usize = 2000;

/// A text without its middle, if it is too long.
fn shortened(text: String) -> String {
    if text.len() <= LONGEST_MESSAGE {
        return text;
    }
    let (start, end) =
        (text.floor_char_boundary(LONGEST_MESSAGE / 2), text.ceil_char_boundary(text.len() - LONGEST_MESSAGE / 2));
    format!("{} … {}", &text[..start], &text[end..])
}

/// An error that does not come from the engine.
pub fn sql_error(code: PgSqlErrorCode, message: impl Into<String>) -> ErrorReport {
    ErrorReport::new(code, shortened(message.into()), "clip_search")
}

/// The error for vectors of different lengths, in pgvector's words.
pub fn different_dimensions(one: impl std::fmt::Display, other: impl std::fmt::Display) -> ErrorReport {
    sql_error(PgSqlErrorCode::ERRCODE_DATA_EXCEPTION, format!("different vector dimensions {one} and {other}"))
}

/// The error for an oid without a table.
pub fn no_table(oid: pg_sys::Oid) -> ErrorReport {
    sql_error(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, format!("there is no table with oid {}", oid.to_u32()))
}

/// Shows an engine error as a WARNING.
pub fn warn(error: Error) {
    report(error).report(PgLogLevel::WARNING);
}

/// A number with its noun: "1 row", "2 rows".
pub fn counted(number: i64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// The value of an argument that must be from 1 to `most`.
pub fn check_range(name: &str, value: i32, most: i32) -> SqlResult<i32> {
    if (1..=most).contains(&value) {
        return Ok(value);
    }
    let error = Error::new(Kind::InvalidInput, format!("{name} is out of range: {value}"));
    Err(report(error.detail(format!("It is from 1 to {most}."))))
}

/// The value of an argument that must not be NULL.
pub fn given<T>(name: &str, value: Option<T>) -> SqlResult<T> {
    value.ok_or_else(|| {
        sql_error(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, format!("argument \"{name}\" is NULL"))
            .set_hint("Give a value, or leave it out where it has a default.")
    })
}
