//! Names of collections.

use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::pg::error::{SqlResult, report, sql_error};

pub const DEFAULT_COLLECTION: &str = "default";

pub fn check_name(collection: &str) -> SqlResult<()> {
    // As long as PostgreSQL's own names. It stands in every row, and codes are stored in full pages.
    const LONGEST: usize = 63;
    let bad = |message: String, detail: String| Err(report(Error::new(Kind::InvalidInput, message).detail(detail)));
    match collection.len() {
        0 => bad("collection name is empty".to_owned(), "A name has 1 to 63 bytes.".to_owned()),
        1..=LONGEST => Ok(()),
        long => bad("collection name is too long".to_owned(), format!("It has {long} bytes; {LONGEST} are allowed.")),
    }
}

pub fn unknown(collection: &str) -> ErrorReport {
    sql_error(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, format!("collection \"{collection}\" does not exist"))
        .set_hint("SELECT name FROM clip_search.collection lists those there are.")
}
