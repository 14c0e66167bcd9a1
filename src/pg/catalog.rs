//! What the catalogue says of tables and their columns.

use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::pg::error::{SqlResult, sql_error};
use crate::pg::spi::{get, spi};
use crate::pg::user_context::Rights;

/// What the catalogue says of a table.
pub struct Table {
    pub oid: pg_sys::Oid,
    /// Quoted, with its schema.
    pub name: String,
    pub plain_name: String,
    pub kind: String,
    pub persistence: String,
    owned: bool,
    /// Policies hold for the owner, too, so that what runs with its rights may not see every row.
    pub forces_policies: bool,
    pub has_children: bool,
}

impl Table {
    pub fn describe(oid: pg_sys::Oid) -> SqlResult<Self> {
        let _rights = Rights::of_caller();
        Spi::connect_mut(|client| {
            let query = include_str!("sql/table.sql");
            let rows = client.update(query, Some(1), &[oid.into()]).map_err(spi)?;
            let missing = || {
                sql_error(
                    PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                    format!("there is no table with oid {}", oid.to_u32()),
                )
            };
            let row = rows.into_iter().next().ok_or_else(missing)?;
            Ok(Self {
                oid,
                name: get(&row, 1)?.ok_or_else(missing)?,
                plain_name: get(&row, 2)?.ok_or_else(missing)?,
                kind: get(&row, 3)?.ok_or_else(missing)?,
                persistence: get(&row, 4)?.ok_or_else(missing)?,
                owned: get(&row, 5)?.unwrap_or_default(),
                forces_policies: get(&row, 6)?.unwrap_or_default(),
                has_children: get(&row, 7)?.unwrap_or_default(),
            })
        })
    }

    /// Locks it to the end of the transaction, with the caller's rights.
    pub fn lock(&self, mode: &str) -> SqlResult<()> {
        let _rights = Rights::of_caller();
        let query = format!("LOCK TABLE {} IN {mode} MODE", self.name);
        Spi::connect_mut(|client| client.update(&query, None, &[]).map(drop).map_err(spi))
    }

    pub fn check_owner(&self) -> SqlResult<()> {
        if self.owned {
            return Ok(());
        }
        Err(sql_error(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("must be owner of table {}", self.name)))
    }

    pub fn column(&self, client: &mut SpiClient<'_>, name: &str) -> SqlResult<Option<Column>> {
        let query = "SELECT a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypmod, a.attgenerated <> '' \
             FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped";
        let rows = client.update(query, Some(1), &[self.oid.into(), name.into()]).map_err(spi)?;
        rows.into_iter()
            .next()
            .map(|row| {
                Ok(Column {
                    kind: get(&row, 1)?.unwrap_or(pg_sys::Oid::INVALID),
                    shown: get(&row, 2)?.unwrap_or_default(),
                    modifier: get(&row, 3)?.unwrap_or(-1),
                    generated: get(&row, 4)?.unwrap_or_default(),
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

pub struct Column {
    pub kind: pg_sys::Oid,
    pub shown: String,
    pub modifier: i32,
    pub generated: bool,
}
