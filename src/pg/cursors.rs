//! The session's open cursors while a table owner's code runs.
#![allow(unsafe_code)]

use std::ffi::CString;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::pg::error::SqlResult;
use crate::pg::spi::{get, spi};

/// The session's open cursors, marked as running during the lifetime of this value, so that PostgreSQL refuses to fetch
/// from them and to close them. Otherwise the owner's code could read the caller's rows, or replace a cursor by its own
/// query, which the caller's next FETCH would run: a security-restricted operation does not refuse PL/pgSQL's CLOSE and
/// OPEN.
pub(super) struct Shield {
    marked: Vec<pg_sys::Portal>,
    names: Vec<String>,
}

impl Shield {
    pub(super) fn raise() -> SqlResult<Self> {
        let mut shield = Self { marked: Vec::new(), names: open()? };
        for name in &shield.names {
            let Ok(name) = CString::new(name.as_str()) else { continue };
            // SAFETY: a look-up by name; the portal lives at least as long as the shield, because a running portal
            // can't be dropped, and the transaction ends after the guards are dropped.
            unsafe {
                let portal = pg_sys::GetPortalByName(name.as_ptr());
                if !portal.is_null() && (*portal).status == pg_sys::PortalStatus::PORTAL_READY {
                    (*portal).status = pg_sys::PortalStatus::PORTAL_ACTIVE;
                    shield.marked.push(portal);
                }
            }
        }
        Ok(shield)
    }

    /// Closes the cursors that have been opened since: otherwise a role that fetches from one would run its query.
    pub(super) fn close_new(&self) -> SqlResult<()> {
        for name in open()?.into_iter().filter(|name| !self.names.contains(name)) {
            let Ok(name) = CString::new(name) else { continue };
            // SAFETY: an existing portal, found by its name; a portal that can't be closed raises an error.
            unsafe {
                let portal = pg_sys::SPI_cursor_find(name.as_ptr());
                if !portal.is_null() {
                    pg_sys::SPI_cursor_close(portal);
                }
            }
        }
        Ok(())
    }
}

impl Drop for Shield {
    fn drop(&mut self) {
        for portal in &self.marked {
            // SAFETY: see above; an error that unwinds drops this before PostgreSQL cleans up.
            unsafe {
                if (**portal).status == pg_sys::PortalStatus::PORTAL_ACTIVE {
                    (**portal).status = pg_sys::PortalStatus::PORTAL_READY;
                }
            }
        }
    }
}

/// The names of the session's open cursors.
fn open() -> SqlResult<Vec<String>> {
    Spi::connect(|client| {
        let rows = client.select("SELECT name FROM pg_catalog.pg_cursors", None, &[]).map_err(spi)?;
        rows.into_iter().map(|row| Ok(get::<String>(&row, 1)?.unwrap_or_default())).collect()
    })
}
