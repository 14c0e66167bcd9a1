//! A row as a trigger receives it.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::cluster::pending::Member;
use crate::pg::error::{SqlResult, report, sql_error};
use crate::pg::text::utf8;
use crate::pg::user_context::{UserContext, key_form};
use crate::pg::vector::Vector;
use crate::watch::trigger::plan::{Plan, attribute};

/// A row that a trigger receives.
#[derive(Clone, Copy)]
pub(super) struct Tuple {
    pub(super) tuple: pg_sys::HeapTuple,
    pub(super) shape: pg_sys::TupleDesc,
}

impl Tuple {
    pub(super) fn datum(&self, column: i16) -> Option<pg_sys::Datum> {
        let column = NonZeroUsize::new(usize::try_from(column).unwrap_or(0))?;
        // SAFETY: the tuple and its description are the trigger's, and the column one of the table's.
        unsafe { pgrx::htup::heap_getattr_raw(self.tuple, column, self.shape) }
    }

    /// A column of type bytea or text, detoasted.
    pub(super) fn bytes(&self, column: Option<i16>) -> Option<&[u8]> {
        let datum = self.datum(column?)?;
        // SAFETY: a varlena; the detoasted value lives as long as the memory of the trigger's call, as the tuple does.
        unsafe {
            let detoasted = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
            Some(pgrx::varlena::varlena_to_byte_slice(detoasted))
        }
    }

    pub(super) fn vector(&self, plan: &Plan) -> Option<Vec<f32>> {
        // SAFETY: the column is of that kind; plans check that.
        self.datum(plan.embedding).map(|datum| unsafe { plan.storage.load(datum) }.0)
    }

    pub(super) fn member(&self, plan: &Plan) -> Option<Member> {
        let cluster = self.datum(plan.cluster?)?.value() as i64;
        Some(Member { collection: plan.collection.clone()?, cluster, vector: self.vector(plan)? })
    }

    /// The cluster that the coordinator has assigned to a row of a shard, and the vector that is counted there.
    pub(super) fn assigned(&self, plan: &Plan) -> Option<(i64, Vec<f32>)> {
        let cluster = self.datum(plan.assigned?)?.value() as i64;
        Some((cluster, self.vector(plan)?))
    }

    pub(super) fn has_source(&self, plan: &Plan) -> bool {
        [plan.image, plan.text].into_iter().flatten().any(|column| self.datum(column).is_some())
    }

    /// A hash of the source as stored in the row; for an out-of-line value, a hash of the pointer to it. It stays the
    /// same for a row that moves from one partition to another.
    pub(super) fn stored_source(&self, plan: &Plan) -> u64 {
        let mut hasher = DefaultHasher::new();
        for column in [plan.image, plan.text].into_iter().flatten() {
            // SAFETY: a varlena, whose header gives its length.
            let bytes = self.datum(column).map(|datum| unsafe {
                let start = datum.cast_mut_ptr::<pg_sys::varlena>();
                match pgrx::varlena::varatt_is_1b_e(start) {
                    true => std::slice::from_raw_parts(start.cast::<u8>(), pgrx::varlena::varsize_any(start)),
                    false => pgrx::varlena::varlena_to_byte_slice(start),
                }
            });
            bytes.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// A hash of the embedded source.
    pub(super) fn source(&self, plan: &Plan) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.bytes(plan.image).hash(&mut hasher);
        self.bytes(plan.text).hash(&mut hasher);
        hasher.finish()
    }

    /// The key as an array of texts, in its text form.
    pub(super) fn key(&self, plan: &Plan) -> SqlResult<String> {
        let _user_context = UserContext::of_caller();
        key_form();
        let mut parts = Vec::with_capacity(plan.key.len());
        for &column in &plan.key {
            let text = self.text(column)?.ok_or_else(|| {
                sql_error(
                    PgSqlErrorCode::ERRCODE_NOT_NULL_VIOLATION,
                    format!("the key of a row of {} is NULL", plan.watch.name()),
                )
            })?;
            parts.push(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")));
        }
        Ok(format!("{{{}}}", parts.join(",")))
    }

    /// A column's value as text.
    pub(super) fn text(&self, column: i16) -> SqlResult<Option<&str>> {
        let Some(datum) = self.datum(column) else { return Ok(None) };
        // SAFETY: an attribute of the row, and the output function of its type, whose text lives as long as the call.
        let text = unsafe {
            let kind = attribute(self.shape, column).atttypid;
            let (mut output, mut varlena) = (pg_sys::Oid::INVALID, false);
            pg_sys::getTypeOutputInfo(kind, &raw mut output, &raw mut varlena);
            CStr::from_ptr(pg_sys::OidOutputFunctionCall(output, datum))
        };
        utf8("key", text.to_bytes()).map(Some).map_err(report)
    }

    /// The row with other tags; the watch has a column of them.
    pub(super) fn with_tags(&self, column: i16, tags: Option<Vec<String>>) -> pg_sys::HeapTuple {
        self.modified(&mut [i32::from(column)], vec![tags.and_then(IntoDatum::into_datum)])
    }

    pub(super) fn with(&self, plan: &Plan, embedding: Option<Vector>, cluster: Option<i64>) -> pg_sys::HeapTuple {
        let mut columns = vec![i32::from(plan.embedding)];
        let mut values = vec![embedding.and_then(|vector| plan.storage.store(vector))];
        // The coordinator will assign the row of a shard.
        if let Some(column) = plan.cluster.or(plan.assigned) {
            columns.push(i32::from(column));
            values.push(cluster.map(pg_sys::Datum::from));
        }
        self.modified(&mut columns, values)
    }

    /// The row with other values in columns.
    fn modified(&self, columns: &mut [i32], values: Vec<Option<pg_sys::Datum>>) -> pg_sys::HeapTuple {
        debug_assert_eq!(columns.len(), values.len());
        let mut nulls: Vec<bool> = values.iter().map(Option::is_none).collect();
        let mut values: Vec<pg_sys::Datum> = values.into_iter().map(|value| value.unwrap_or(0.into())).collect();
        // SAFETY: three arrays of the same length, of columns that the table has, with values of their types.
        unsafe {
            pg_sys::heap_modify_tuple_by_cols(
                self.tuple,
                self.shape,
                columns.len() as i32,
                columns.as_mut_ptr(),
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            )
        }
    }
}

/// Whether two values of a varlena type have the same bytes. Most updates don't change the image; then both values are
/// the same pointer to the stored image, and no data is read.
pub(super) fn same(a: Option<pg_sys::Datum>, b: Option<pg_sys::Datum>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return a.is_none() && b.is_none() };
    // SAFETY: two varlenas, whose headers give their lengths.
    unsafe {
        let raw = |datum: pg_sys::Datum| {
            let start = datum.cast_mut_ptr::<pg_sys::varlena>();
            std::slice::from_raw_parts(start.cast::<u8>(), pgrx::varlena::varsize_any(start))
        };
        if raw(a) == raw(b) {
            return true;
        }
        if pg_sys::toast_raw_datum_size(a) != pg_sys::toast_raw_datum_size(b) {
            return false;
        }
        let whole = |datum: pg_sys::Datum| {
            pgrx::varlena::varlena_to_byte_slice(pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr()))
        };
        whole(a) == whole(b)
    }
}

pub(super) fn unchanged(plan: &Plan, old: &Tuple, new: &Tuple) -> bool {
    [plan.image, plan.text].into_iter().flatten().all(|column| same(old.datum(column), new.datum(column)))
}

/// Whether a column of a key is the same in both rows. Comparing bytes can report a difference between equal values,
/// which does no harm.
pub(super) fn same_value(old: &Tuple, new: &Tuple, column: i16) -> bool {
    let (a, b) = (old.datum(column), new.datum(column));
    let (Some(a), Some(b)) = (a, b) else { return a.is_none() && b.is_none() };
    let attribute = attribute(new.shape, column);
    match attribute.attlen {
        _ if attribute.attbyval => a == b,
        -1 => same(Some(a), Some(b)),
        // SAFETY: two values of that fixed length, or two C strings.
        length => unsafe {
            let bytes = |datum: pg_sys::Datum| match usize::try_from(length) {
                Ok(length) => std::slice::from_raw_parts(datum.cast_mut_ptr::<u8>(), length),
                Err(_) => CStr::from_ptr(datum.cast_mut_ptr()).to_bytes(),
            };
            bytes(a) == bytes(b)
        },
    }
}
