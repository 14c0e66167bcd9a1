//! The one door to tables that the caller did not name.
#![allow(unsafe_code)]

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::spi::quote_identifier;

use crate::pg::error::{SqlResult, sql_error};
use crate::pg::spi::{get, spi};
use crate::pg::user_context::{UserContext, close_cursors, current_role, cursors, relation, set};

/// A table that is reached by its oid: its quoted name is given out together with its owner's rights, and to nothing
/// else. Its owner's code (index expressions and predicates, which run as soon as a query is planned; triggers, defaults,
/// generated columns, rules, casts and operators) then has those rights, whoever is calling.
pub struct OwnersTable {
    pub oid: pg_sys::Oid,
    pub owner: pg_sys::Oid,
    pub kind: u8,
    name: String,
}

impl OwnersTable {
    /// Locks the table against being altered or renamed until the transaction ends. None if there is no table of that
    /// oid.
    ///
    /// # Errors
    /// 42501 if a partition, or a table that inherits from it, belongs to another role, whose code would have the rights
    /// of this one's owner.
    pub fn find(oid: pg_sys::Oid) -> SqlResult<Option<Self>> {
        // SAFETY: a lock on a number, and cache look-ups after it, which see what the lock keeps as it is.
        let found = unsafe {
            pg_sys::LockRelationOid(oid, pg_sys::AccessShareLock as i32);
            relation(oid)
        };
        let (Some((owner, kind)), Some(name)) = (found, quoted_name(oid)) else { return Ok(None) };
        let table = Self { oid, owner, kind, name };
        table.check_children()?;
        Ok(Some(table))
    }

    /// Runs queries on the table, by its quoted name, as its owner. Nothing of what the owner's code does to the session
    /// is left afterwards: settings go back, cursors are closed, session-level advisory locks are refused
    /// ([`register`](crate::pg::user_context::register)), and PostgreSQL itself refuses SET ROLE, LISTEN, PREPARE, temporary tables, WITH HOLD and deferred
    /// triggers there.
    pub fn as_owner<T>(&self, work: impl FnOnce(&str) -> SqlResult<T>) -> SqlResult<T> {
        // The owner's own session: what its code leaves there is its own affair.
        // SAFETY: reads variables of the process.
        let (session, restricted) = unsafe { (pg_sys::GetSessionUserId(), pg_sys::InSecurityRestrictedOperation()) };
        if session == self.owner && current_role() == self.owner && !restricted {
            let _user_context = UserContext::of_caller();
            set(c"row_security", c"off");
            return work(&self.name);
        }
        // Renaming the schema needs no lock on the table, so the name is looked up right before each use and after it.
        // Long computations lie between uses, never within one.
        self.check_name()?;
        let rights = UserContext::of_table_owner(self.owner);
        let before = cursors()?;
        self.check_name()?;
        let result = work(&self.name)?;
        close_cursors(&before)?;
        drop(rights);
        self.check_name()?;
        Ok(result)
    }

    /// # Errors
    /// 55006 if the table has another name than at first.
    fn check_name(&self) -> SqlResult<()> {
        // SAFETY: inside a transaction; reads what other sessions have announced.
        unsafe { pg_sys::AcceptInvalidationMessages() };
        if quoted_name(self.oid).as_deref() == Some(self.name.as_str()) {
            return Ok(());
        }
        Err(sql_error(
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            format!("{} was renamed while it was being read", self.name),
        )
        .set_hint("Try again."))
    }

    /// Runs queries on the table, by its quoted name, as the caller, who has named it and so agrees to run its owner's
    /// code.
    pub fn as_caller<T>(&self, work: impl FnOnce(&str) -> SqlResult<T>) -> SqlResult<T> {
        let _user_context = UserContext::of_caller();
        work(&self.name)
    }

    /// The name, for people.
    pub fn shown(&self) -> &str {
        &self.name
    }

    /// Whether a role may read columns of the table: by a right to the table or to each of them, and to its schema.
    pub fn may_read(&self, role: pg_sys::Oid, columns: &[&str]) -> SqlResult<bool> {
        let _user_context = UserContext::of_caller();
        Spi::connect(|client| {
            let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
            let arguments = [role.into(), self.oid.into(), columns.into()];
            let rows = client.select(include_str!("sql/may_read.sql"), Some(1), &arguments).map_err(spi)?;
            Ok(rows.first().get::<bool>(1).map_err(spi)?.unwrap_or(false))
        })
    }

    /// Whether the table's policies decide which rows the caller sees.
    pub fn has_policies_for_caller(&self) -> bool {
        // SAFETY: cache look-ups inside a transaction; an invalid oid stands for the current user, and no error is raised.
        let found = unsafe { pg_sys::check_enable_rls(self.oid, pg_sys::InvalidOid, true) };
        found as u32 == pg_sys::CheckEnableRlsResult::RLS_ENABLED
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
