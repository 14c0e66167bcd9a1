//! SPI: columns of rows, errors, and plans that are created once per session.

use std::cell::RefCell;
use std::collections::HashMap;

use clip::{Error, Kind};
use pgrx::datum::{DatumWithOid, FromDatum, IntoDatum};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiHeapTupleData, SpiTupleTable};

use crate::pg::error::{SqlResult, report};
use crate::pg::vector;

type Plans = HashMap<&'static str, OwnedPreparedStatement>;

thread_local! {
    /// Plans, with the oid of pgvector's type for which they were created. Leaked on purpose: at the end of a process
    /// the memory of the plans may be freed before they are dropped.
    static PLANS: &'static RefCell<(pg_sys::Oid, Plans)> = Box::leak(Box::new(RefCell::new((pg_sys::Oid::INVALID, HashMap::new()))));
}

/// Runs a statement, planned once, with a new snapshot.
pub fn run<'conn>(
    client: &mut SpiClient<'conn>,
    query: &'static str,
    arguments: &[DatumWithOid<'_>],
) -> SqlResult<SpiTupleTable<'conn>> {
    let vector = vector::type_oid();
    PLANS.with(|plans| {
        let mut plans = plans.borrow_mut();
        if plans.0 != vector {
            *plans = (vector, HashMap::new());
        }
        if !plans.1.contains_key(query) {
            let types: Vec<PgOid> = arguments.iter().map(|argument| PgOid::from(argument.oid())).collect();
            let plan = client.prepare_mut(query, &types).map_err(spi)?.keep();
            plans.1.insert(query, plan);
        }
        client.update(&plans.1[query], None, arguments).map_err(spi)
    })
}

/// The quoted name of the schema that the functions are in.
pub fn own_schema(client: &SpiClient<'_>) -> SqlResult<String> {
    let query = "SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_extension e \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace WHERE e.extname OPERATOR(pg_catalog.=) 'clip_search'";
    let schema = client.select(query, Some(1), &[]).map_err(spi)?.first().get::<String>(1).map_err(spi)?;
    schema.ok_or_else(|| report(Error::new(Kind::Internal, "extension \"clip_search\" is not installed")))
}

/// A column of a row, by its number from 1.
pub fn get<T: FromDatum + IntoDatum>(row: &SpiHeapTupleData<'_>, column: usize) -> SqlResult<Option<T>> {
    row.get::<T>(column).map_err(spi)
}

pub fn spi(error: pgrx::spi::Error) -> ErrorReport {
    report(Error::new(Kind::Internal, "a table could not be read or written").detail(error.to_string()))
}
