//! The only access to tables that the caller did not name.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_long};
use std::panic::AssertUnwindSafe;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiCursor, SpiHeapTupleData, SpiTupleTable, quote_identifier};

use crate::pg::analyzed::{about_table, renamed};
use crate::pg::cursors::Shield;
use crate::pg::error::{SqlResult, sql_error};
use crate::pg::hard_limit::{HardLimit, is_worker};
use crate::pg::spi::{get, spi};
use crate::pg::user_context::{UserContext, current_role, normal_form, relation, set};

/// A table that is accessed by its oid. Its owner's code (index expressions and predicates, which run as soon as a
/// query is planned; triggers, defaults, generated columns, rules, casts and operators) runs as the owner, regardless
/// of the caller: statements run only through a [`TableClient`], and no other code in the extension can assume a table
/// owner's privileges.
pub struct OwnersTable {
    pub oid: pg_sys::Oid,
    pub owner: pg_sys::Oid,
    pub kind: u8,
    name: String,
}

impl OwnersTable {
    /// Locks the table against being altered or renamed until the transaction ends. None if the table does not exist.
    ///
    /// # Errors
    /// 42501 if a partition, or a table that inherits from it, belongs to another role, whose code would have the
    /// privileges of this table's owner.
    pub fn find(oid: pg_sys::Oid) -> SqlResult<Option<Self>> {
        let Some(table) = Self::find_only(oid) else { return Ok(None) };
        table.check_children()?;
        Ok(Some(table))
    }

    /// As above, for statements with ONLY.
    pub fn find_only(oid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: takes any oid; waits as LOCK TABLE does, and raises the same errors.
        unsafe { pg_sys::LockRelationOid(oid, pg_sys::AccessShareLock as i32) };
        Self::describe(oid)
    }

    /// As above, without waiting for a session that has locked the table.
    pub fn try_find_only(oid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: takes any oid.
        let locked = unsafe { pg_sys::ConditionalLockRelationOid(oid, pg_sys::AccessShareLock as i32) };
        locked.then(|| Self::describe(oid)).flatten()
    }

    /// The table of this quoted name, if it belongs to `owner`.
    pub fn named(name: &str, owner: pg_sys::Oid) -> SqlResult<Option<Self>> {
        let oid = {
            let _user_context = UserContext::of_caller();
            Spi::connect(|client| {
                let query = "SELECT pg_catalog.to_regclass($1)::pg_catalog.oid";
                client.select(query, Some(1), &[name.into()]).map_err(spi)?.first().get::<pg_sys::Oid>(1).map_err(spi)
            })?
        };
        Ok(oid.and_then(Self::find_only).filter(|table| table.owner == owner))
    }

    fn describe(oid: pg_sys::Oid) -> Option<Self> {
        let (owner, kind) = relation(oid)?;
        Some(Self { oid, owner, kind, name: quoted_name(oid)? })
    }

    /// Runs statements on the table as its owner. The owner's code leaves no state in the session: settings are
    /// restored, cursors are closed, PostgreSQL itself refuses SET ROLE, LISTEN, PREPARE, temporary tables, WITH HOLD
    /// and deferred triggers in a security-restricted operation, and hooks refuse the rest
    /// ([`restricted`](crate::pg::restricted)). One call should span a batch: it lists the session's cursors twice.
    pub fn as_owner<T>(&self, work: impl FnOnce(&mut TableClient<'_, '_>) -> SqlResult<T>) -> SqlResult<T> {
        // SAFETY: reads variables of the process.
        let (session, restricted) = unsafe { (pg_sys::GetSessionUserId(), pg_sys::InSecurityRestrictedOperation()) };
        // The owner's own session: state that the owner's code leaves there affects no other role.
        let is_own = session == self.owner && current_role() == self.owner && !restricted && !is_worker();
        // clip_search's worker has only its own cursors.
        let shield = (!is_own && !is_worker()).then(Shield::raise).transpose()?;
        let _user_context = if is_own { UserContext::of_caller() } else { UserContext::of_table_owner(self.owner) };
        // A row that a policy hides would be treated as deleted; with the setting off, it raises an error.
        set(c"row_security", c"off");
        normal_form();
        let result = Spi::connect_mut(|client| work(&mut TableClient { table: self, client }))?;
        if let Some(shield) = shield {
            shield.close_new()?;
        }
        Ok(result)
    }

    /// # Errors
    /// 55006 if the table's name differs from this name, which was read before the lock.
    pub fn check_is_named(&self, name: &str) -> SqlResult<()> {
        if self.name == name { Ok(()) } else { Err(renamed()) }
    }

    /// # Errors
    /// 55006 if the table's name has changed.
    fn check_name(&self) -> SqlResult<()> {
        // SAFETY: inside a transaction; reads the invalidation messages of other sessions.
        unsafe { pg_sys::AcceptInvalidationMessages() };
        self.check_is_named(&quoted_name(self.oid).unwrap_or_default())
    }

    /// Runs statements on the table as the caller, who has named it and thereby agreed to run its owner's code.
    pub fn as_caller<T>(&self, work: impl FnOnce(&mut TableClient<'_, '_>) -> SqlResult<T>) -> SqlResult<T> {
        let _user_context = UserContext::of_caller();
        Spi::connect_mut(|client| work(&mut TableClient { table: self, client }))
    }

    /// The name, for messages.
    pub fn shown(&self) -> &str {
        &self.name
    }

    /// Whether a role may read columns of the table: with a privilege on the table or on each column, and on the
    /// schema.
    pub fn may_read(&self, role: pg_sys::Oid, columns: &[&str]) -> SqlResult<bool> {
        let _user_context = UserContext::of_caller();
        Spi::connect(|client| {
            let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
            let arguments = [role.into(), self.oid.into(), columns.into()];
            let rows = client.select(include_str!("sql/may_read.sql"), Some(1), &arguments).map_err(spi)?;
            Ok(rows.first().get::<bool>(1).map_err(spi)?.unwrap_or(false))
        })
    }

    /// Whether policies of the table apply to the caller.
    pub fn has_policies_for_caller(&self) -> bool {
        // SAFETY: cache look-ups inside a transaction; an invalid oid stands for the current user, and no error is
        // raised.
        let found = unsafe { pg_sys::check_enable_rls(self.oid, pg_sys::InvalidOid, true) };
        found as u32 == pg_sys::CheckEnableRlsResult::RLS_ENABLED
    }

    /// The error of a statement that did not find the table. If the table was renamed, the error says so.
    fn renamed_or<T>(&self, error: CaughtError) -> SqlResult<T> {
        self.check_name()?;
        error.rethrow()
    }

    fn check_children(&self) -> SqlResult<()> {
        if self.kind != pg_sys::RELKIND_RELATION && self.kind != pg_sys::RELKIND_PARTITIONED_TABLE {
            return Ok(());
        }
        let _user_context = UserContext::of_caller();
        let other = Spi::connect(|client| {
            let rows = client
                .select(include_str!("sql/foreign_child.sql"), Some(1), &[self.oid.into(), self.owner.into()])
                .map_err(spi)?;
            rows.into_iter().next().map(|row| get::<String>(&row, 1)).transpose()
        })?;
        match other.flatten() {
            None => Ok(()),
            Some(child) => Err(sql_error(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("{child} belongs to another role than {}, which it is a part of", self.name),
            )
            .set_detail("Its owner's triggers and index expressions would run with the rights of the other.")
            .set_hint("ALTER TABLE … OWNER TO gives both to one role.")),
        }
    }
}

/// Runs statements on a table as its owner. Every table in a statement is locked and checked by its oid before the
/// statement is planned ([`analyzed`](crate::pg::analyzed)). In the background worker each statement has a time limit.
pub struct TableClient<'a, 'conn> {
    table: &'a OwnersTable,
    client: &'a mut SpiClient<'conn>,
}

impl<'conn> TableClient<'_, 'conn> {
    /// The table's quoted name, for use in statements.
    pub fn name(&self) -> &str {
        &self.table.name
    }

    /// Runs a query that only reads, on a standby as well.
    pub fn select(
        &mut self,
        query: &str,
        limit: Option<c_long>,
        arguments: &[DatumWithOid<'_>],
    ) -> SqlResult<SpiTupleTable<'conn>> {
        self.run(query, |client| client.select(query, limit, arguments))
    }

    /// Runs a statement with a new snapshot.
    pub fn update(
        &mut self,
        query: &str,
        limit: Option<c_long>,
        arguments: &[DatumWithOid<'_>],
    ) -> SqlResult<SpiTupleTable<'conn>> {
        self.run(query, |client| client.update(query, limit, arguments))
    }

    /// Opens a cursor that only reads.
    pub fn cursor(&mut self, query: &str) -> SqlResult<SpiCursor<'conn>> {
        self.run(query, |client| client.try_open_cursor(query, &[]))
    }

    /// Opens a cursor with a new snapshot.
    pub fn cursor_mut(&mut self, query: &str) -> SqlResult<SpiCursor<'conn>> {
        self.run(query, |client| client.try_open_cursor_mut(query, &[]))
    }

    /// Runs a query, converts its rows with `read`, and passes them on, `count` rows at a time.
    pub fn each_batch<T>(
        &mut self,
        query: &str,
        count: c_long,
        read: impl Fn(&SpiHeapTupleData<'_>) -> SqlResult<T>,
        mut with: impl FnMut(Vec<T>) -> SqlResult<()>,
    ) -> SqlResult<()> {
        let mut cursor = self.cursor_mut(query)?;
        loop {
            pgrx::check_for_interrupts!();
            let rows = cursor.fetch(count).map_err(spi)?;
            let batch = rows.map(|row| read(&row)).collect::<SqlResult<Vec<T>>>()?;
            if batch.is_empty() {
                return Ok(());
            }
            with(batch)?;
        }
    }

    fn run<T>(
        &mut self,
        query: &str,
        work: impl FnOnce(&mut SpiClient<'conn>) -> pgrx::spi::Result<T>,
    ) -> SqlResult<T> {
        self.table.check_name()?;
        let _limit = HardLimit::start();
        let client = &mut *self.client;
        // While tables are swapped by renaming them, the name is missing for a moment. The row is not at fault then.
        PgTryBuilder::new(AssertUnwindSafe(|| about_table(self.table.oid, query, || work(client).map_err(spi))))
            .catch_when(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, |error| self.table.renamed_or(error))
            .catch_when(PgSqlErrorCode::ERRCODE_INVALID_SCHEMA_NAME, |error| self.table.renamed_or(error))
            .execute()
    }
}

fn quoted_name(oid: pg_sys::Oid) -> Option<String> {
    // SAFETY: cache look-ups inside a transaction; names are palloc'd and copied.
    unsafe {
        let table = pg_sys::get_rel_name(oid);
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(oid));
        if table.is_null() || schema.is_null() {
            return None;
        }
        let quoted = |name: *mut std::ffi::c_char| quote_identifier(CStr::from_ptr(name).to_string_lossy());
        Some(format!("{}.{}", quoted(schema), quoted(table)))
    }
}
