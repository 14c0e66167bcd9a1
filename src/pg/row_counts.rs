//! Counts of a table's rows, for a caller who may read all of them. The rows are scanned without SQL, so that no code
//! that the owner has attached to the table runs: planning a query would evaluate its index expressions, which can take
//! arbitrarily long and can't always be cancelled.
#![allow(unsafe_code)]

use std::ffi::CString;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::pg::error::SqlResult;
use crate::pg::owners_table::OwnersTable;
use crate::pg::regclass::Regclass;
use crate::pg::spi::spi;
use crate::pg::subtransaction::attempt;
use crate::pg::text::Text;
use crate::pg::user_context::current_role;

type Counts = (Option<i64>, Option<i64>, Option<i64>);

#[pg_schema]
pub mod clip_search {
    use super::*;

    /// Counts, for clip_search.watch. NULL if the caller may not read the table, if a policy applies to the caller, or
    /// if another session has locked the table.
    #[pg_extern(stable, parallel_unsafe, cost = 100000)]
    #[allow(clippy::type_complexity)]
    fn count_rows(
        relation: Option<Regclass>,
        sources: Option<Vec<Option<String>>>,
        embedding: Option<Text<'_>>,
        cluster: Option<Text<'_>>,
        tags: Option<Text<'_>>,
    ) -> Result<
        TableIterator<'static, (name!(rows, Option<i64>), name!(embedded, Option<i64>), name!(open, Option<i64>))>,
        ErrorReport,
    > {
        let embedding = embedding.map(Text::str);
        let others: Vec<&str> = [cluster, tags].into_iter().flatten().map(Text::str).collect();
        let none = (None, None, None);
        let (Some(Regclass(oid)), Some(sources), Some(embedding)) = (relation, sources, embedding) else {
            return Ok(TableIterator::once(none));
        };
        let sources: Vec<String> = sources.into_iter().flatten().collect();
        // A table that can't be read must not fail the view, which shows other tables as well. A cancel is raised
        // again.
        Ok(TableIterator::once(attempt(|| count(oid, &sources, embedding, &others)).unwrap_or(none)))
    }
}

fn count(oid: pg_sys::Oid, sources: &[String], embedding: &str, others: &[&str]) -> SqlResult<Counts> {
    const NONE: Counts = (None, None, None);
    // Checked before the lock is taken: a role that may not read the table must not block other sessions.
    if sources.is_empty() || !may_select(oid)? {
        return Ok(NONE);
    }
    // An owner who has locked the table must not block readers of the view.
    let Some(table) = OwnersTable::try_find_only(oid) else { return Ok(NONE) };
    let is_partitioned = table.kind == pg_sys::RELKIND_PARTITIONED_TABLE;
    if !is_partitioned && table.kind != pg_sys::RELKIND_RELATION {
        return Ok(NONE);
    }
    if !table.may_read(current_role(), &[])? || table.has_policies_for_caller() {
        return Ok(NONE);
    }
    let columns = Columns { sources, embedding, others };
    let mut totals = [0; 3];
    let parts = if is_partitioned { partitions(oid) } else { vec![oid] };
    for part in parts {
        if OwnersTable::try_find_only(part).is_none() {
            return Ok(NONE);
        }
        let Some(counts) = columns.count(part) else { return Ok(NONE) };
        totals.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
    }
    Ok((Some(totals[0]), Some(totals[1]), Some(totals[2])))
}

unsafe extern "C-unwind" {
    /// Declared in catalog/pg_inherits.h, which pgrx does not bind.
    fn find_all_inheritors(
        parent: pg_sys::Oid,
        lock: pg_sys::LOCKMODE,
        parents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
}

/// The partitions with storage. They are not locked.
fn partitions(oid: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: a scan of pg_inherits inside a transaction; the list is in the current memory context.
    let all: Vec<pg_sys::Oid> = unsafe {
        let no_lock = pg_sys::NoLock as i32;
        let list = pg_sys::ffi::pg_guard_ffi_boundary(|| find_all_inheritors(oid, no_lock, std::ptr::null_mut()));
        (0..(*list).length as usize).map(|place| (*(*list).elements.add(place)).oid_value).collect()
    };
    // SAFETY: a cache look-up.
    let kind = |part: pg_sys::Oid| unsafe { pg_sys::get_rel_relkind(part) as u8 };
    all.into_iter().filter(|&part| kind(part) != pg_sys::RELKIND_PARTITIONED_TABLE).collect()
}

/// The columns whose NULLs are counted.
struct Columns<'a> {
    sources: &'a [String],
    embedding: &'a str,
    /// The columns of clusters and of tags, if the watch has them.
    others: &'a [&'a str],
}

impl Columns<'_> {
    /// The numbers of rows, of rows with an embedding, and of rows that have a source but lack an embedding, a cluster
    /// or tags. None for a table that lacks a column, or has no storage of its own.
    fn count(&self, oid: pg_sys::Oid) -> Option<[i64; 3]> {
        // Columns of a partition may have different numbers.
        let number = |name: &str| {
            let name = CString::new(name).ok()?;
            // SAFETY: a cache look-up by a string that ends in a nul.
            let number = unsafe { pg_sys::get_attnum(oid, name.as_ptr()) };
            (number != 0).then_some(i32::from(number))
        };
        let embedding = number(self.embedding)?;
        let others: Vec<i32> = self.others.iter().map(|name| number(name)).collect::<Option<_>>()?;
        let sources: Vec<i32> = self.sources.iter().map(|name| number(name)).collect::<Option<_>>()?;
        let widest = sources.iter().copied().chain([embedding]).chain(others.iter().copied()).max()?;
        // SAFETY: the table is locked and exists; slot and scan are closed before the table; after an error they go
        // with the (sub)transaction. The slot has as many columns as the table.
        unsafe {
            let table = pg_sys::table_open(oid, pg_sys::NoLock as i32);
            if (*table).rd_tableam.is_null() {
                pg_sys::table_close(table, pg_sys::NoLock as i32);
                return None;
            }
            let slot = pg_sys::table_slot_create(table, std::ptr::null_mut());
            let scan = pg_sys::table_beginscan(table, pg_sys::GetActiveSnapshot(), 0, std::ptr::null_mut());
            let mut counts = [0; 3];
            while pg_sys::table_scan_getnextslot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot) {
                if counts[0] % 1024 == 0 {
                    pgrx::check_for_interrupts!();
                }
                pg_sys::slot_getsomeattrs(slot, widest.max(0));
                // A system column is never NULL, and no watch has one.
                let is_null = |number: i32| number > 0 && *(*slot).tts_isnull.add(number as usize - 1);
                let lacks = is_null(embedding) || others.iter().any(|&column| is_null(column));
                counts[0] += 1;
                counts[1] += i64::from(!is_null(embedding));
                counts[2] += i64::from(lacks && sources.iter().any(|&source| !is_null(source)));
            }
            pg_sys::table_endscan(scan);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::table_close(table, pg_sys::NoLock as i32);
            Some(counts)
        }
    }
}

fn may_select(oid: pg_sys::Oid) -> SqlResult<bool> {
    Spi::connect(|client| {
        let query = "SELECT pg_catalog.has_table_privilege($1, 'SELECT')";
        Ok(client
            .select(query, Some(1), &[oid.into()])
            .map_err(spi)?
            .first()
            .get::<bool>(1)
            .map_err(spi)?
            .unwrap_or(false))
    })
}
