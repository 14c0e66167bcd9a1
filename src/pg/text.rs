//! Texts as arguments, in UTF-8 for the tokenizers.
//!
//! pgrx trusts a database with encoding UTF8, and panics (XX000) at bytes in another encoding that it can't read.
#![allow(unsafe_code)]

use std::ffi::CStr;

use clip::{Error, Kind};
use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::datum::{Array, FromDatum, IntoDatum, UnboxDatum};
use pgrx::pg_sys;

use crate::pg::error::report;

/// A text or a name as an argument.
#[derive(Clone, Copy)]
pub struct Text<'a>(pub &'a str);

impl<'a> Text<'a> {
    pub fn str(self) -> &'a str {
        self.0
    }
}

impl FromDatum for Text<'_> {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _: pg_sys::Oid) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: a non-null text, by the contract of this function; the detoasted text lives as long as the call's
        // memory.
        let bytes = unsafe {
            let detoasted = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
            pgrx::varlena::varlena_to_byte_slice(detoasted)
        };
        match utf8("text", bytes) {
            Ok(text) => Some(Self(text)),
            Err(error) => {
                report(error).report(pgrx::PgLogLevel::ERROR);
                unreachable!("an ERROR does not return")
            }
        }
    }
}

// SAFETY: the text lives in the memory of the call, as the datum does.
unsafe impl UnboxDatum for Text<'_> {
    type As<'src>
        = Text<'src>
    where
        Self: 'src;

    unsafe fn unbox<'src>(datum: pgrx::datum::Datum<'src>) -> Text<'src>
    where
        Self: 'src,
    {
        // SAFETY: the caller vouches that the datum is a non-null text.
        unsafe { Text::from_datum(datum.sans_lifetime(), false).expect("not null") }
    }
}

pgrx::impl_sql_translatable!(Text<'_>, "text");

// SAFETY: the argument is declared `text` in SQL; where it may be NULL it is an Option.
unsafe impl<'fcx> ArgAbi<'fcx> for Text<'fcx> {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: as above.
        unsafe { arg.unbox_arg_using_from_datum().expect("strict functions get no NULL") }
    }
}

/// A text that a query returns. pgrx's String panics (XX000) where it is not UTF-8.
pub struct Returned(pub String);

impl FromDatum for Returned {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, oid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: by the contract of this function; the text is copied at once.
        unsafe { Text::from_polymorphic_datum(datum, is_null, oid) }.map(|Text(text)| Self(text.to_owned()))
    }
}

impl IntoDatum for Returned {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        self.0.into_datum()
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }
}

/// A result of the type `clip_key`: the key of a row as text. sql/key.sql says what it compares with.
#[derive(Clone, Debug, PartialEq)]
pub struct Key(pub String);

impl IntoDatum for Key {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        self.0.into_datum()
    }

    /// A clip_key has the layout of text.
    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }
}

pgrx::impl_sql_translatable!(Key, "clip_key");

// SAFETY: the result is declared in SQL as `clip_key`, or as text, which has the same layout.
unsafe impl BoxRet for Key {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: the contract of this function is that of String's.
        unsafe { self.0.box_into(fcinfo) }
    }
}

/// The elements of an array.
pub fn texts<'a>(array: &'a Array<'_, Text<'_>>) -> Vec<Option<&'a str>> {
    array.iter().map(|text| text.map(|Text(text)| text)).collect()
}

/// Whether the database's encoding is UTF-8.
pub fn is_utf8() -> bool {
    // SAFETY: reads a value that is set at the session's start.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 }
}

/// The database's encoding, if it is neither UTF8 nor SQL_ASCII. Texts are read as UTF-8, so in other encodings only
/// ASCII texts can be read.
pub fn non_utf8_encoding() -> Option<String> {
    // SAFETY: reads a value that is set at the session's start; the name is a constant in PostgreSQL.
    let (encoding, name) =
        unsafe { (pg_sys::GetDatabaseEncoding(), CStr::from_ptr(pg_sys::GetDatabaseEncodingName())) };
    let known = [pg_sys::pg_enc::PG_UTF8, pg_sys::pg_enc::PG_SQL_ASCII].iter().any(|&known| known as i32 == encoding);
    (!known).then(|| name.to_string_lossy().into_owned())
}

/// The error for a table or a column whose name can't be read.
pub fn non_utf8_name(what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("the name of a {what} is not UTF-8"))
        .detail(format!(
            "The database's encoding is {}; what is beyond ASCII is read as UTF-8.",
            non_utf8_encoding().as_deref().unwrap_or("SQL_ASCII")
        ))
        .hint("Rename it, or use a database of encoding UTF8.")
}

/// Bytes of a text in the database's encoding.
pub fn utf8<'a>(what: &str, bytes: &'a [u8]) -> clip::Result<&'a str> {
    let foreign = if bytes.is_ascii() { None } else { non_utf8_encoding() };
    let text = if foreign.is_none() { std::str::from_utf8(bytes).ok() } else { None };
    text.ok_or_else(|| {
        Error::new(Kind::Unsupported, format!("{what} is not UTF-8"))
            .detail(format!(
                "The database's encoding is {}; what is beyond ASCII is read as UTF-8.",
                foreign.as_deref().unwrap_or("SQL_ASCII")
            ))
            .hint("Use a database of encoding UTF8.")
    })
}
