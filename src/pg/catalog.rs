//! Catalogue entries of tables and columns, and locks on tables.
//!
//! A table is locked by its oid before it is used by its name: under the lock the table keeps its name, even if it was
//! renamed while this session waited for the lock. Names come from the system caches, which are up to date in every
//! isolation level; a query on pg_class would see the state of the transaction's snapshot.
#![allow(unsafe_code)]

use std::ffi::CStr;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, quote_identifier};

use crate::pg::analyzed::renamed;
use crate::pg::error::{SqlResult, no_table, report, sql_error};
use crate::pg::spi::{get, spi};
use crate::pg::text;
use crate::pg::user_context::{UserContext, owner_of_table, role_name};

/// A lock on a table, by PostgreSQL's name for its mode.
#[derive(Clone, Copy)]
pub enum Lock {
    AccessShare = pg_sys::AccessShareLock as isize,
    RowExclusive = pg_sys::RowExclusiveLock as isize,
    ShareRowExclusive = pg_sys::ShareRowExclusiveLock as isize,
    AccessExclusive = pg_sys::AccessExclusiveLock as isize,
}

/// Locks a table until the end of the transaction. If the table no longer exists, its oid is locked, which is harmless.
pub fn lock(oid: pg_sys::Oid, lock: Lock) {
    // SAFETY: takes any oid; waits as LOCK TABLE does, and raises the same errors.
    unsafe { pg_sys::LockRelationOid(oid, lock as i32) };
}

/// As above, without waiting; returns whether the lock was available.
pub fn try_lock(oid: pg_sys::Oid, lock: Lock) -> bool {
    // SAFETY: as above.
    unsafe { pg_sys::ConditionalLockRelationOid(oid, lock as i32) }
}

/// Runs a command that names a table, such as ALTER TABLE. The caller has locked the table by its oid and read `name`
/// under this lock. The lock keeps the table's own name, but its schema can still be renamed; and a command, unlike a
/// query, is not checked between the look-up of the name and its work ([`analyzed`](crate::pg::analyzed)).
///
/// # Errors
/// 55006 if another table has the name before or after the command; the error undoes the command.
pub fn define(client: &mut SpiClient<'_>, table: pg_sys::Oid, name: &str, command: &str) -> SqlResult<()> {
    let check = || {
        // SAFETY: inside a transaction; reads what other sessions have announced.
        unsafe { pg_sys::AcceptInvalidationMessages() };
        if qualified_name(table).as_deref() == Some(name) { Ok(()) } else { Err(renamed()) }
    };
    check()?;
    client.update(command, None, &[]).map_err(spi)?;
    check()
}

/// The quoted name of a table, with its schema; None if there is no such table.
pub fn qualified_name(oid: pg_sys::Oid) -> Option<String> {
    // SAFETY: cache look-ups, which return null for missing entries.
    let schema = unsafe { pg_sys::get_namespace_name(pg_sys::get_rel_namespace(oid)) };
    Some(format!("{}.{}", quote_identifier(owned(schema)?), quote_identifier(plain_name(oid)?)))
}

fn plain_name(oid: pg_sys::Oid) -> Option<String> {
    // SAFETY: a cache look-up, which returns null for a missing entry.
    owned(unsafe { pg_sys::get_rel_name(oid) })
}

/// Whether a table has a column with this name.
pub fn has_column(schema: &CStr, table: &CStr, column: &CStr) -> bool {
    // SAFETY: cache look-ups by strings that end in a nul; a name that does not exist gives the oid 0, which has no
    // columns.
    unsafe {
        let schema = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        let table = pg_sys::get_relname_relid(table.as_ptr(), schema);
        pg_sys::get_attnum(table, column.as_ptr()) > 0
    }
}

/// The number of a table's column; 0 if it has none of this name.
pub fn column_number(table: pg_sys::Oid, column: &CStr) -> i16 {
    // SAFETY: a cache look-up by a string that ends in a nul.
    unsafe { pg_sys::get_attnum(table, column.as_ptr()) }
}

/// The type below a domain, or the type itself.
pub fn base_type(kind: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: a cache look-up; the oid belongs to a column's type, which exists as long as the column does.
    unsafe { pg_sys::getBaseType(kind) }
}

/// A copy of a name that a cache look-up has returned.
fn owned(name: *mut std::ffi::c_char) -> Option<String> {
    // SAFETY: null, or a string that ends in a nul.
    (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

/// The error for a caller that does not own the table.
pub fn not_owner(table: pg_sys::Oid, name: &str) -> ErrorReport {
    let error = sql_error(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("must be owner of table {name}"));
    match owner_of_table(table).map(role_name) {
        Some(owner) => {
            error.set_hint(format!("It belongs to {owner}: members of that role can call this after SET ROLE."))
        }
        None => error,
    }
}

/// A table's catalogue entry.
pub struct Table {
    pub oid: pg_sys::Oid,
    /// Quoted, with its schema.
    pub name: String,
    pub plain_name: String,
    pub kind: String,
    pub persistence: String,
    owned: bool,
    /// Whether policies apply even to the owner, so that code with the owner's privileges may not see every row.
    pub forces_policies: bool,
    pub has_children: bool,
}

impl Table {
    pub fn describe(oid: pg_sys::Oid) -> SqlResult<Self> {
        let _user_context = UserContext::of_caller();
        Spi::connect_mut(|client| {
            let query = include_str!("sql/table.sql");
            let rows = client.update(query, Some(1), &[oid.into()]).map_err(spi)?;
            let missing = || no_table(oid);
            let row = rows.into_iter().next().ok_or_else(missing)?;
            let name = qualified_name(oid).ok_or_else(missing)?;
            if name.contains(char::REPLACEMENT_CHARACTER) {
                return Err(report(text::non_utf8_name("table")));
            }
            Ok(Self {
                oid,
                name,
                plain_name: plain_name(oid).ok_or_else(missing)?,
                kind: get(&row, 3)?.ok_or_else(missing)?,
                persistence: get(&row, 4)?.ok_or_else(missing)?,
                owned: get(&row, 5)?.unwrap_or_default(),
                forces_policies: get(&row, 6)?.unwrap_or_default(),
                has_children: get(&row, 7)?.unwrap_or_default(),
            })
        })
    }

    /// A table that the caller owns, locked until the end of the transaction. Other roles must not lock it: they could
    /// block every session.
    pub fn locked(oid: pg_sys::Oid, mode: Lock) -> SqlResult<Self> {
        Self::describe(oid)?.check_owner()?;
        lock(oid, mode);
        // It may have been renamed, dropped or given to another owner in the meantime.
        let table = Self::describe(oid)?;
        table.check_owner()?;
        Ok(table)
    }

    pub fn check_owner(&self) -> SqlResult<()> {
        if self.owned {
            return Ok(());
        }
        Err(not_owner(self.oid, &self.name))
    }

    /// Runs a command that names this table, which is locked ([`define`]).
    pub fn define(&self, client: &mut SpiClient<'_>, command: &str) -> SqlResult<()> {
        define(client, self.oid, &self.name, command)
    }

    pub fn column(&self, client: &mut SpiClient<'_>, name: &str) -> SqlResult<Option<Column>> {
        let query = "SELECT a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypmod, a.attgenerated <> '', a.attnotnull, a.attidentity <> '' \
             FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped";
        let rows = client.update(query, Some(1), &[self.oid.into(), name.into()]).map_err(spi)?;
        rows.into_iter()
            .next()
            .map(|row| {
                let kind = get(&row, 1)?.unwrap_or(pg_sys::Oid::INVALID);
                Ok(Column {
                    kind,
                    base: base_type(kind),
                    shown: get(&row, 2)?.unwrap_or_default(),
                    modifier: get(&row, 3)?.unwrap_or(-1),
                    generated: get(&row, 4)?.unwrap_or_default(),
                    not_null: get(&row, 5)?.unwrap_or_default(),
                    identity: get(&row, 6)?.unwrap_or_default(),
                })
            })
            .transpose()
    }

    pub fn known_column(&self, client: &mut SpiClient<'_>, name: &str) -> SqlResult<Column> {
        self.column(client, name)?.ok_or_else(|| {
            sql_error(PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN, format!("table {} has no column \"{name}\"", self.name))
        })
    }
}

/// Quoted names of columns of a table, and their types, in the order of the names.
pub fn column_types(
    client: &SpiClient<'_>,
    table: pg_sys::Oid,
    quoted: Vec<String>,
) -> SqlResult<Vec<(String, String)>> {
    let query = "SELECT u.name, pg_catalog.format_type(a.atttypid, a.atttypmod) \
         FROM pg_catalog.unnest($2::pg_catalog.text[]) WITH ORDINALITY AS u (name, n) JOIN pg_catalog.pg_attribute AS a \
         ON a.attrelid OPERATOR(pg_catalog.=) $1 AND pg_catalog.quote_ident(a.attname) OPERATOR(pg_catalog.=) u.name \
         AND NOT a.attisdropped ORDER BY u.n";
    let rows = client.select(query, None, &[table.into(), quoted.into()]).map_err(spi)?;
    rows.map(|row| Ok((get(&row, 1)?.unwrap_or_default(), get(&row, 2)?.unwrap_or_default()))).collect()
}

pub struct Column {
    pub kind: pg_sys::Oid,
    /// The type below a domain.
    pub base: pg_sys::Oid,
    pub shown: String,
    pub modifier: i32,
    pub generated: bool,
    pub not_null: bool,
    pub identity: bool,
}
