//! A watch and the positions of its columns in the current table, looked up once per transaction.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::rc::Rc;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::pg::catalog::base_type;
use crate::pg::error::{SqlResult, sql_error};
use crate::pg::transaction;
use crate::pg::vector_column::Storage;
use crate::watch::setting::Watch;

/// A watch and the positions of its columns in the current table, which may be a partition.
pub struct Plan {
    pub watch: Watch,
    pub table: pg_sys::Oid,
    pub(super) collection: Option<Rc<str>>,
    pub(super) image: Option<i16>,
    pub(super) text: Option<i16>,
    pub(super) embedding: i16,
    pub(super) storage: Storage,
    /// The dimensions of the embedding's column, if declared.
    pub(super) dimensions: Option<usize>,
    pub(super) cluster: Option<i16>,
    /// A shard's column of clusters, which the coordinator assigns.
    pub(super) assigned: Option<i16>,
    pub(super) tags: Option<i16>,
    pub(super) key: Vec<i16>,
}

thread_local! {
    /// Plans are valid for the transaction: it has a lock on the table that keeps other sessions from changing it, and
    /// `at_invalidation` announces the transaction's own changes.
    static PLANS: RefCell<HashMap<(i64, pg_sys::Oid), Rc<Plan>>> = RefCell::default();
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// Drops the plans at the end of the transaction.
fn forget_all() {
    PLANS.with_borrow_mut(HashMap::clear);
}

/// Called when a table has been altered, or may have been.
#[pg_guard]
unsafe extern "C-unwind" fn at_invalidation(_argument: pg_sys::Datum, table: pg_sys::Oid) {
    // PLANS is never borrowed here: no code that reads the catalogue runs while it is borrowed.
    PLANS.with(|plans| {
        if let Ok(mut plans) = plans.try_borrow_mut() {
            plans.retain(|(_, known), _| table != pg_sys::Oid::INVALID && *known != table);
        }
    });
}

/// The plan for a watch and a table; None if the trigger does not belong to that table's watch.
///
/// This function checks the columns' types again, because values are read and written as bytes, and ALTER TABLE … TYPE
/// may have changed a column's type since clip_watch checked it.
pub(super) fn plan(id: i64, table: pg_sys::Oid, shape: pg_sys::TupleDesc) -> SqlResult<Rc<Plan>> {
    if let Some(plan) = PLANS.with_borrow(|plans| plans.get(&(id, table)).cloned()) {
        return Ok(plan);
    }
    let Some(watch) = Watch::of_trigger(id, table)? else {
        return Err(sql_error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "a trigger of clip_watch is on a table that is not watched",
        )
        .set_hint("Call clip_watch for the table, which replaces the trigger, or clip_unwatch, which drops it."));
    };
    let number = |name: &str| {
        let c = CString::new(name).unwrap_or_default();
        // SAFETY: a cache look-up; the table is open.
        match unsafe { pg_sys::get_attnum(table, c.as_ptr()) } {
            number if number > 0 => Ok(number),
            _ => Err(sql_error(
                PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
                format!("watched table {} has no column \"{name}\"", watch.name()),
            )
            .set_detail("It has been renamed or dropped since clip_watch was called.")
            .set_hint("Name it as it was, or have it watched under its new name: clip_unwatch(…), then clip_watch.")),
        }
    };
    let column = |name: &str, is: &dyn Fn(pg_sys::Oid) -> bool, wanted: &str| {
        let number = number(name)?;
        let attribute = attribute(shape, number);
        if is(attribute.atttypid) && attribute.attgenerated == 0 {
            return Ok(number);
        }
        // SAFETY: a cache look-up, whose text is copied.
        let shown = unsafe {
            let shown = pg_sys::format_type_with_typemod(attribute.atttypid, attribute.atttypmod);
            CStr::from_ptr(shown).to_string_lossy().into_owned()
        };
        let generated = if attribute.attgenerated == 0 { "" } else { ", generated" };
        Err(sql_error(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            format!("column \"{name}\" of watched table {} is of type {shown}{generated}, not {wanted}", watch.name()),
        )
        .set_detail("It has been altered since clip_watch was called.")
        .set_hint(
            "Make it what it was, or clip_unwatch the table; ALTER TABLE … DISABLE TRIGGER lets rows in meanwhile.",
        ))
    };
    let optional = |name: &Option<String>, kinds: &[pg_sys::Oid], wanted: &str| {
        name.as_deref().map(|name| column(name, &|kind| kinds.contains(&base_type(kind)), wanted)).transpose()
    };
    let storage = Cell::new(None);
    let is_storage = |kind| {
        storage.set(Storage::of(kind));
        storage.get().is_some()
    };
    let embedding = column(&watch.embedding, &is_storage, "vector or halfvec")?;
    let bigint = |name: &String| column(name, &|kind| kind == pg_sys::INT8OID, "bigint");
    let plan = Rc::new(Plan {
        image: optional(&watch.image, &[pg_sys::BYTEAOID], "bytea")?,
        text: optional(&watch.text, &[pg_sys::TEXTOID, pg_sys::VARCHAROID], "text")?,
        embedding,
        storage: storage.get().unwrap_or(Storage::Vector),
        dimensions: usize::try_from(attribute(shape, embedding).atttypmod).ok(),
        cluster: watch.cluster.as_ref().map(bigint).transpose()?,
        assigned: watch.home.as_ref().and_then(|home| home.cluster.as_ref()).map(bigint).transpose()?,
        tags: watch
            .tags
            .as_deref()
            .map(|name| column(name, &|kind| kind == pg_sys::TEXTARRAYOID, "text[]"))
            .transpose()?,
        key: watch.key.iter().map(|name| number(name)).collect::<SqlResult<_>>()?,
        collection: watch.collection.as_deref().map(Rc::from),
        watch,
        table,
    });
    if !REGISTERED.replace(true) {
        // SAFETY: the callback is a static function.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(at_invalidation), 0.into()) };
    }
    transaction::at_end(forget_all);
    PLANS.with_borrow_mut(|plans| plans.insert((id, table), plan.clone()));
    Ok(plan)
}

/// The catalogue's entry for a column of a row.
pub(super) fn attribute(shape: pg_sys::TupleDesc, column: i16) -> pg_sys::FormData_pg_attribute {
    // SAFETY: the description is the trigger's, and lives as long as its relation is open.
    let shape = unsafe { pgrx::PgTupleDesc::from_pg_unchecked(shape) };
    *shape.get(column as usize - 1).expect("a column of the table")
}
