//! The storage type of embeddings in a column: pgvector's `vector` or `halfvec`.
#![allow(unsafe_code)]

use clip::{Error, Kind};
use pgrx::datum::IntoDatum;
use pgrx::pg_sys;

use crate::pg::error::report;
use crate::pg::vector::{Components, Vector, type_oid};

/// The storage type of embeddings in a column.
#[derive(Clone, Copy, PartialEq)]
pub enum Storage {
    Vector,
    /// `halfvec`, with the functions of pgvector's casts.
    Half {
        to: pg_sys::Oid,
        from: pg_sys::Oid,
    },
}

impl Storage {
    /// None for a type that can't store embeddings.
    pub fn of(kind: pg_sys::Oid) -> Option<Self> {
        let vector = type_oid();
        if kind == vector {
            return Some(Self::Vector);
        }
        // `halfvec` exists since pgvector 0.7.
        let query = "SELECT o.castfunc::pg_catalog.oid, i.castfunc::pg_catalog.oid FROM pg_catalog.pg_type t \
             JOIN pg_catalog.pg_type v ON v.oid OPERATOR(pg_catalog.=) $1 AND v.typnamespace OPERATOR(pg_catalog.=) t.typnamespace \
             JOIN pg_catalog.pg_cast o ON o.castsource OPERATOR(pg_catalog.=) v.oid AND o.casttarget OPERATOR(pg_catalog.=) t.oid \
             JOIN pg_catalog.pg_cast i ON i.castsource OPERATOR(pg_catalog.=) t.oid AND i.casttarget OPERATOR(pg_catalog.=) v.oid \
             WHERE t.oid OPERATOR(pg_catalog.=) $2 AND t.typname OPERATOR(pg_catalog.=) 'halfvec'";
        let found = pgrx::Spi::connect(|client| {
            let rows = client.select(query, Some(1), &[vector.into(), kind.into()])?;
            if rows.is_empty() { Ok((None, None)) } else { rows.first().get_two::<pg_sys::Oid, pg_sys::Oid>() }
        });
        match found {
            Ok((Some(to), Some(from))) => Some(Self::Half { to, from }),
            Ok(_) => None,
            Err(error) => {
                report(Error::new(Kind::Internal, "pgvector's types could not be read").detail(error.to_string()))
                    .report(pgrx::PgLogLevel::ERROR);
                unreachable!("an ERROR does not return")
            }
        }
    }

    /// Converts a vector to the column's type.
    pub fn store(self, vector: Vector) -> Option<pg_sys::Datum> {
        let datum = vector.into_datum()?;
        match self {
            Self::Vector => Some(datum),
            // SAFETY: the function of the cast from vector, which takes a value, a type modifier and whether the cast
            // is explicit.
            Self::Half { to, .. } => Some(unsafe { cast(to, datum) }),
        }
    }

    /// # Safety
    /// `datum` must be a non-null value of a column of this kind.
    pub unsafe fn load(self, datum: pg_sys::Datum) -> Vector {
        // SAFETY: by the contract; the function belongs to the cast to vector.
        unsafe {
            let datum = match self {
                Self::Vector => datum,
                Self::Half { from, .. } => cast(from, datum),
            };
            Vector(Components::new(datum).to_vec())
        }
    }

    /// The vector as it will be read back after it is stored: clusters are sums of these vectors.
    pub fn round(self, vector: Vector) -> Vector {
        match self {
            Self::Vector => vector,
            // SAFETY: the loaded value is the stored one.
            Self::Half { .. } => unsafe { self.store(vector).map(|datum| self.load(datum)).expect("a value") },
        }
    }
}

/// # Safety
/// `function` must belong to a cast that also takes a type modifier, and `datum` must be a value of its source type.
unsafe fn cast(function: pg_sys::Oid, datum: pg_sys::Datum) -> pg_sys::Datum {
    // SAFETY: by the contract; -1 is the modifier of a type without one.
    unsafe {
        pg_sys::OidFunctionCall3Coll(
            function,
            pg_sys::InvalidOid,
            datum,
            pg_sys::Datum::from(-1i32),
            pg_sys::Datum::from(false),
        )
    }
}
