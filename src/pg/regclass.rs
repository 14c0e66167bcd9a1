//! `regclass` as an argument: an oid, whose table may not exist.
//!
//! pgrx would open the relation when it reads the argument: an oid without a table would raise an internal error
//! (XX000), and an open table counts as in use, so it could not be altered.
#![allow(unsafe_code)]

use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::datum::{Datum, FromDatum, IntoDatum};
use pgrx::pg_sys;

#[derive(Clone, Copy)]
pub struct Regclass(pub pg_sys::Oid);

impl FromDatum for Regclass {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, kind: pg_sys::Oid) -> Option<Self> {
        // SAFETY: a regclass is an oid, by the contract of this function.
        unsafe { pg_sys::Oid::from_polymorphic_datum(datum, is_null, kind).map(Self) }
    }
}

pgrx::impl_sql_translatable!(Regclass, "regclass");

// SAFETY: the argument is declared `regclass` in SQL; where it may be NULL it is an Option.
unsafe impl<'fcx> ArgAbi<'fcx> for Regclass {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: as above.
        unsafe { arg.unbox_arg_using_from_datum().expect("strict functions get no NULL") }
    }
}

impl IntoDatum for Regclass {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        self.0.into_datum()
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::REGCLASSOID
    }
}

// SAFETY: an oid, which the function result is declared as.
unsafe impl BoxRet for Regclass {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: by the contract of this function.
        unsafe { fcinfo.return_raw_datum(pg_sys::Datum::from(self.0)) }
    }
}
