//! The collection that a watch groups its rows in.

use pgrx::prelude::*;
use pgrx::spi::{SpiClient, quote_literal};

use crate::cluster::access::{Access, DEFAULT_COLLECTION, check_name};
use crate::cluster::collection::{Collection, check_threshold};
use crate::cluster::tables::Store;
use crate::pg::catalog::Table;
use crate::pg::error::{SqlResult, different_dimensions, sql_error};
use crate::pg::spi::{get, spi};
use crate::pg::user_context::owner_of_table;
use crate::watch::arguments::Arguments;

/// The column that identifies a group's members: the last column of the key, apart from columns that are in the key
/// only for partitioning.
pub fn member_key_column(client: &mut SpiClient<'_>, table: pg_sys::Oid, key: &[String]) -> SqlResult<String> {
    let query = "SELECT a.attname::text FROM unnest($2::text[]) WITH ORDINALITY AS u (name, n) \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attname = u.name \
         LEFT JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = $1 \
         ORDER BY coalesce(a.attnum = ANY (p.partattrs::int2[]), false), u.n DESC";
    let rows = client.update(query, Some(1), &[table.into(), key.to_vec().into()]).map_err(spi)?;
    Ok(rows.first().get::<String>(1).map_err(spi)?.unwrap_or_default())
}

/// The error for a collection whose members are elsewhere. `here`: they are in the same table, but in other columns.
fn elsewhere(client: &mut SpiClient<'_>, name: &str, here: bool) -> SqlResult<pg_sys::panic::ErrorReport> {
    let query = "SELECT 1 FROM clip_search.watch_setting w WHERE w.collection = $1";
    let is_kept = !client.update(query, Some(1), &[name.into()]).map_err(spi)?.is_empty();
    let error =
        sql_error(PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT, format!("collection \"{name}\" has its members elsewhere"));
    Ok(match here && !is_kept {
        true => error.set_detail("They are rows of this table, by another embedding or cluster column.").set_hint(format!(
            "Name another: collection => …; or, if nobody uses its groups any more, SELECT clip_drop_collection({}) first; \
             or, if its columns were renamed to these and others made in their place, drop those first.",
            quote_literal(name)
        )),
        false => error.set_hint("Name another: collection => …"),
    })
}

pub struct Bind<'a> {
    pub collection: &'a str,
    pub model: &'a str,
    pub dimensions: usize,
    pub cluster: &'a str,
    pub key: &'a str,
    /// The caller, who must own an existing collection.
    pub role: pg_sys::Oid,
}

/// The state of a collection before a watch was bound to it.
pub enum Bound {
    /// It was created for the watch.
    New,
    /// It had no members in this table.
    Other,
    /// Its members were in this table already.
    Same,
}

impl Bind<'_> {
    /// Records in a collection that the table contains its members.
    pub fn run(
        &self,
        client: &mut SpiClient<'_>,
        store: &Store,
        table: pg_sys::Oid,
        arguments: &Arguments<'_>,
    ) -> SqlResult<Bound> {
        let name = self.collection;
        check_name(name)?;
        check_threshold(arguments.threshold)?;
        let values = [name.into(), arguments.embedding.into(), self.cluster.into()];
        let rows = client.update(include_str!("sql/bound.sql"), Some(1), &values).map_err(spi)?;
        let found = rows
            .into_iter()
            .next()
            .map(|row| Ok::<_, pg_sys::panic::ErrorReport>((get::<pg_sys::Oid>(&row, 1)?, get::<bool>(&row, 2)?)))
            .transpose()?;
        let described = Table::describe(table)?;
        for (column, kind, shown) in [
            (arguments.key, None, ""),
            (arguments.labels, Some(pg_sys::TEXTARRAYOID), "text[]"),
            (arguments.image, Some(pg_sys::BYTEAOID), "bytea"),
        ] {
            let Some(name) = column else { continue };
            let column = described.known_column(client, name)?;
            if kind.is_some_and(|kind| column.kind != kind) {
                return Err(sql_error(
                    PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                    format!("column \"{name}\" of {} is of type {}, not {shown}", described.name, column.shown),
                ));
            }
        }
        let settings = [
            name.into(),
            table.into(),
            arguments.embedding.into(),
            self.cluster.into(),
            self.key.into(),
            (self.dimensions as i32).into(),
            self.model.into(),
            arguments.threshold.into(),
            arguments.labels.into(),
            arguments.image.into(),
        ];
        match found {
            Some((Some(members), Some(true))) if members == table => {
                // A key that a user has chosen remains; a key that was renamed or dropped is updated.
                let query = include_str!("sql/rebind.sql");
                let values = [
                    name.into(),
                    self.key.into(),
                    arguments.threshold.into(),
                    table.into(),
                    arguments.key.is_some().into(),
                    arguments.labels.into(),
                    arguments.image.into(),
                    arguments.embedding.into(),
                    self.cluster.into(),
                ];
                client.update(query, None, &values).map_err(spi)?;
                return Ok(Bound::Same);
            }
            Some((Some(members), _)) => return Err(elsewhere(client, name, members == table)?),
            _ => {}
        }
        let access = Access::find(store, name);
        if arguments.replaces.is_none() {
            access.check_not_reserved()?;
        }
        access.check_not_being_created(self.role)?;
        if access.exists() || name == DEFAULT_COLLECTION {
            access.check_owner(self.role).map_err(|error| error.set_hint("Name another: collection => …"))?;
        }
        // Existing clusters under this name must have these dimensions.
        let known = Collection::find(store, name)?.dimensions;
        if let Some(known) = known.filter(|&known| known as usize != self.dimensions) {
            return Err(different_dimensions(known, self.dimensions)
                .set_detail(format!("Collection \"{name}\" holds vectors of {known} dimensions.")));
        }
        let query = if found.is_some() { include_str!("sql/bind.sql") } else { include_str!("sql/bind_new.sql") };
        client.update(query, None, &settings).map_err(spi)?;
        access.settle_owner(client, owner_of_table(table).unwrap_or(self.role), true)?;
        Ok(if found.is_none() { Bound::New } else { Bound::Other })
    }

    /// Resets settings of the collection to their defaults.
    pub fn reset(&self, client: &mut SpiClient<'_>, arguments: &Arguments<'_>) -> SqlResult<()> {
        reset_settings(client, self.collection, self.key, arguments)
    }
}

/// As above, for a collection that the watch may have ceased to use. `key`: the default key.
pub fn reset_settings(
    client: &mut SpiClient<'_>,
    collection: &str,
    key: &str,
    arguments: &Arguments<'_>,
) -> SqlResult<()> {
    if arguments.reset.is_empty() {
        return Ok(());
    }
    let options: Vec<String> = arguments.reset.iter().map(|option| (*option).to_owned()).collect();
    let values = [collection.into(), options.into(), key.into()];
    client.update(include_str!("sql/reset_collection.sql"), None, &values).map(drop).map_err(spi)
}
