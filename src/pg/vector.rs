//! pgvector's `vector` as an argument and a result. All code that depends on its layout is here.
//!
//! Layout (pgvector's src/vector.h): a varlena header of 4 bytes, the dimensions as an int16, 16 unused
//! bits, then that many float4.
#![allow(unsafe_code)]

use std::cell::Cell;

use clip::{Error, Kind};
use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::datum::{FromDatum, IntoDatum, UnboxDatum};
use pgrx::pg_sys;

use crate::pg::error::report;

const HEADER: usize = 8;
/// pgvector's VECTOR_MAX_DIM.
const MAX_DIMENSIONS: usize = 16_000;

/// An owned vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector(pub Vec<f32>);

/// The components of a vector in PostgreSQL's memory; a copy only if it is stored out of line, compressed or with a
/// short header.
pub struct Components<'a> {
    values: &'a [f32],
    copy: Option<*mut pg_sys::varlena>,
}

impl Components<'_> {
    /// # Safety
    /// `datum` must be a non-null `vector` that stays where it is for the lifetime.
    pub unsafe fn new(datum: pg_sys::Datum) -> Self {
        // SAFETY: a non-null datum of a varlena type points to one; detoasting gives a 4-byte header and
        // 4-byte alignment. The length is checked against the dimensions before the components are read.
        unsafe {
            let original = datum.cast_mut_ptr::<pg_sys::varlena>();
            let detoasted = pg_sys::pg_detoast_datum(original);
            let base = detoasted.cast::<u8>();
            let size = pgrx::varlena::varsize_4b(detoasted);
            let dimensions = if size >= HEADER { base.add(4).cast::<i16>().read() } else { 0 };
            let expected = HEADER + 4 * usize::try_from(dimensions).unwrap_or(0);
            if dimensions < 1 || size != expected {
                report(
                    Error::new(Kind::Internal, "malformed vector")
                        .detail(format!("It has {size} bytes for {dimensions} dimensions.")),
                )
                .report(pgrx::PgLogLevel::ERROR);
            }
            let values = std::slice::from_raw_parts(base.add(HEADER).cast::<f32>(), dimensions as usize);
            Self { values, copy: (detoasted != original).then_some(detoasted) }
        }
    }
}

impl std::ops::Deref for Components<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.values
    }
}

impl Drop for Components<'_> {
    fn drop(&mut self) {
        if let Some(copy) = self.copy {
            // SAFETY: palloc'd by detoasting, and no other code has a pointer to it.
            unsafe { pg_sys::pfree(copy.cast()) };
        }
    }
}

impl FromDatum for Vector {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _: pg_sys::Oid) -> Option<Self> {
        // SAFETY: a non-null vector, by the contract of this function; it is copied immediately.
        (!is_null).then(|| Self(unsafe { Components::new(datum) }.to_vec()))
    }
}

impl IntoDatum for Vector {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        let Self(values) = self;
        // pgvector checks these on input; a value created here must meet the same conditions.
        if values.is_empty() || values.len() > MAX_DIMENSIONS || values.iter().any(|v| !v.is_finite()) {
            report(Error::new(Kind::Internal, "refusing to make an invalid vector").detail(format!(
                "It has {} dimensions (1 to {MAX_DIMENSIONS} are allowed), or a component that is not finite.",
                values.len()
            )))
            .report(pgrx::PgLogLevel::ERROR);
        }
        let size = HEADER + 4 * values.len();
        // SAFETY: palloc0 gives `size` zeroed bytes, aligned for float4; the writes stay within them.
        unsafe {
            let base = pg_sys::palloc0(size).cast::<u8>();
            pgrx::varlena::set_varsize_4b(base.cast(), size as i32);
            base.add(4).cast::<i16>().write(values.len() as i16);
            std::ptr::copy_nonoverlapping(values.as_ptr(), base.add(HEADER).cast::<f32>(), values.len());
            Some(pg_sys::Datum::from(base))
        }
    }

    fn type_oid() -> pg_sys::Oid {
        type_oid()
    }

    fn is_compatible_with(other: pg_sys::Oid) -> bool {
        other == type_oid()
    }
}

// SAFETY: the value is copied out of the datum, so no lifetime is tied to it.
unsafe impl UnboxDatum for Vector {
    type As<'src> = Vector;
    unsafe fn unbox<'src>(datum: pgrx::datum::Datum<'src>) -> Vector
    where
        Self: 'src,
    {
        // SAFETY: the caller guarantees that the datum is a non-null vector.
        unsafe { Vector::from_datum(datum.sans_lifetime(), false).expect("not null") }
    }
}

pgrx::impl_sql_translatable!(Vector, "vector");

// SAFETY: the argument is declared `vector` in SQL, and functions that take it are strict.
unsafe impl<'fcx> ArgAbi<'fcx> for Vector {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: as above.
        unsafe { arg.unbox_arg_using_from_datum().expect("strict functions get no NULL") }
    }
}

// SAFETY: the result is declared `vector` in SQL.
unsafe impl BoxRet for Vector {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: into_datum created a vector, palloc'd in the current context.
            Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
            None => fcinfo.return_null(),
        }
    }
}

/// Vectors and NULLs, returned as an array.
pub struct Vectors(pub Vec<Option<Vector>>);

impl IntoDatum for Vectors {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        let Self(vectors) = self;
        let oid = type_oid();
        let count = i32::try_from(vectors.len()).expect("an array has fewer elements");
        if count == 0 {
            // SAFETY: an existing type.
            return Some(unsafe { pg_sys::construct_empty_array(oid) }.into());
        }
        let (mut elements, mut nulls) = (Vec::with_capacity(vectors.len()), Vec::with_capacity(vectors.len()));
        for (index, vector) in vectors.into_iter().enumerate() {
            if index % 1024 == 0 {
                pgrx::check_for_interrupts!();
            }
            let datum = vector.and_then(IntoDatum::into_datum);
            nulls.push(datum.is_none());
            elements.push(datum.unwrap_or(pg_sys::Datum::from(0)));
        }
        let (mut length, mut first) = (count, 1);
        // SAFETY: as many elements and nulls as `count`, of pgvector's type: of any length, by reference, aligned like int4.
        let array = unsafe {
            pg_sys::construct_md_array(
                elements.as_mut_ptr(),
                nulls.as_mut_ptr(),
                1,
                &raw mut length,
                &raw mut first,
                oid,
                -1,
                false,
                pg_sys::TYPALIGN_INT as std::ffi::c_char,
            )
        };
        // SAFETY: elements that are not NULL are palloc'd, and copied into the array.
        elements.iter().zip(nulls).filter(|(_, null)| !null).for_each(|(datum, _)| unsafe {
            pg_sys::pfree(datum.cast_mut_ptr());
        });
        Some(array.into())
    }

    fn type_oid() -> pg_sys::Oid {
        // SAFETY: a look-up of an existing type.
        unsafe { pg_sys::get_array_type(type_oid()) }
    }
}

pgrx::impl_sql_translatable!(Vectors, "vector[]");

// SAFETY: the result is declared `vector[]` in SQL.
unsafe impl BoxRet for Vectors {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: into_datum created an array, palloc'd in the current context.
            Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
            None => fcinfo.return_null(),
        }
    }
}

thread_local! {
    /// The oids of pgvector's extension and of its type, as last looked up; a re-created extension has another oid.
    static TYPE: Cell<Option<(pg_sys::Oid, pg_sys::Oid)>> = const { Cell::new(None) };
}

/// The oid of pgvector's type, in any schema and with any search_path.
pub fn type_oid() -> pg_sys::Oid {
    // SAFETY: a catalogue look-up with a constant name inside a transaction.
    let extension = unsafe { pg_sys::get_extension_oid(c"vector".as_ptr(), true) };
    if let Some((cached, oid)) = TYPE.get()
        && cached == extension
    {
        return oid;
    }
    // Spi::get_one is unsuitable: it assigns a transaction id, which a standby and a parallel worker can't do.
    let query = "SELECT t.oid FROM pg_catalog.pg_type t \
         JOIN pg_catalog.pg_extension e ON t.typnamespace OPERATOR(pg_catalog.=) e.extnamespace \
         WHERE e.oid OPERATOR(pg_catalog.=) $1 AND t.typname OPERATOR(pg_catalog.=) 'vector'";
    let oid = pgrx::Spi::connect(|client| {
        client.select(query, Some(1), &[extension.into()])?.first().get_one::<pg_sys::Oid>()
    });
    match oid {
        Ok(Some(oid)) => {
            TYPE.set(Some((extension, oid)));
            oid
        }
        _ => {
            report(
                Error::new(Kind::UnknownModel, "extension \"vector\" is not installed")
                    .hint("CREATE EXTENSION vector;"),
            )
            .report(pgrx::PgLogLevel::ERROR);
            unreachable!("an ERROR does not return")
        }
    }
}

/// The schema of pgvector.
pub fn namespace() -> pg_sys::Oid {
    // SAFETY: an existing type.
    unsafe { type_namespace(type_oid()) }
}

/// The quoted name of pgvector's schema, for its operators.
pub fn schema() -> String {
    // SAFETY: cache look-ups of an existing type; the name is palloc'd and copied immediately.
    unsafe {
        let name = pg_sys::get_namespace_name(type_namespace(type_oid()));
        pgrx::spi::quote_identifier(std::ffi::CStr::from_ptr(name).to_string_lossy())
    }
}

/// A type's schema.
///
/// # Safety
/// `oid` must belong to an existing type.
unsafe fn type_namespace(oid: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: the tuple is released before returning, and only a by-value field is read from it.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::TYPEOID as i32, oid.into());
        let form = pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_type>(tuple);
        let namespace = (*form).typnamespace;
        pg_sys::ReleaseSysCache(tuple);
        namespace
    }
}
