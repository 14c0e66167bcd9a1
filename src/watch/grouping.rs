//! The collection that a watch groups its rows in.

use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::cluster::access::{Access, DEFAULT_COLLECTION, check_name};
use crate::cluster::collection::Collection;
use crate::cluster::tables::Store;
use crate::pg::catalog::Table;
use crate::pg::error::{SqlResult, report, with_sqlstate};
use crate::pg::spi::{get, spi};
use crate::pg::user_context::owner_of_table;
use crate::watch::wanted::Wanted;

/// The column by which groups name their members: the last of the key that is not there for the partitions' sake.
pub fn name_of_members(client: &mut SpiClient<'_>, table: pg_sys::Oid, key: &[String]) -> SqlResult<String> {
    let query = "SELECT a.attname::text FROM unnest($2::text[]) WITH ORDINALITY AS u (name, n) \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attname = u.name \
         LEFT JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = $1 \
         ORDER BY coalesce(a.attnum = ANY (p.partattrs::int2[]), false), u.n DESC";
    let rows = client.update(query, Some(1), &[table.into(), key.to_vec().into()]).map_err(spi)?;
    Ok(rows.first().get::<String>(1).map_err(spi)?.unwrap_or_default())
}

pub struct Bind<'a> {
    pub collection: &'a str,
    pub model: &'a str,
    pub dimensions: usize,
    pub cluster: &'a str,
    pub key: &'a str,
    /// The caller, who must own a collection that is there already.
    pub role: pg_sys::Oid,
}

impl Bind<'_> {
    /// Tells a collection that the table holds its members; whether it was made for that.
    pub fn run(
        &self,
        client: &mut SpiClient<'_>,
        store: &Store,
        table: pg_sys::Oid,
        wanted: &Wanted<'_>,
    ) -> SqlResult<bool> {
        let name = self.collection;
        check_name(name)?;
        if let Some(threshold) = wanted.threshold
            && !(threshold > -1.0 && threshold <= 1.0)
        {
            return Err(report(Error::new(
                Kind::InvalidInput,
                format!("cluster threshold {threshold} is not over -1 and up to 1"),
            )));
        }
        let query = "SELECT (SELECT c.oid FROM pg_catalog.pg_class c WHERE c.oid = s.members::oid), s.embedding = $2 AND s.cluster = $3 FROM clip_search.collection_setting s WHERE s.name = $1";
        let rows =
            client.update(query, Some(1), &[name.into(), wanted.embedding.into(), self.cluster.into()]).map_err(spi)?;
        let found = rows
            .into_iter()
            .next()
            .map(|row| Ok::<_, pg_sys::panic::ErrorReport>((get::<pg_sys::Oid>(&row, 1)?, get::<bool>(&row, 2)?)))
            .transpose()?;
        let described = Table::describe(table)?;
        for (column, kind, shown) in [
            (wanted.key, None, ""),
            (wanted.labels, Some(pg_sys::TEXTARRAYOID), "text[]"),
            (wanted.image, Some(pg_sys::BYTEAOID), "bytea"),
        ] {
            let Some(name) = column else { continue };
            let column = described.known_column(client, name)?;
            if kind.is_some_and(|kind| column.kind != kind) {
                return Err(with_sqlstate(
                    PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                    Error::new(
                        Kind::InvalidInput,
                        format!("column \"{name}\" of {} is of type {}, not {shown}", described.name, column.shown),
                    ),
                ));
            }
        }
        let settings = [
            name.into(),
            table.into(),
            wanted.embedding.into(),
            self.cluster.into(),
            self.key.into(),
            (self.dimensions as i32).into(),
            self.model.into(),
            wanted.threshold.into(),
            wanted.labels.into(),
            wanted.image.into(),
            owner_of_table(table).into(),
        ];
        match found {
            Some((Some(members), Some(true))) if members == table => {
                // A key that somebody has chosen stays; one that has been renamed, or dropped, is followed.
                let query = include_str!("sql/rebind.sql");
                let arguments = [
                    name.into(),
                    self.key.into(),
                    wanted.threshold.into(),
                    table.into(),
                    wanted.key.is_some().into(),
                    wanted.labels.into(),
                    wanted.image.into(),
                ];
                client.update(query, None, &arguments).map_err(spi)?;
                return Ok(false);
            }
            Some((Some(_), _)) => {
                return Err(with_sqlstate(
                    PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                    Error::new(Kind::InvalidInput, format!("collection \"{name}\" has its members elsewhere"))
                        .hint("Name another: collection => …"),
                ));
            }
            _ => {}
        }
        // Clusters that the name has already must be of those dimensions.
        let known = Collection::find(store, name)?.dimensions;
        if known.is_some_and(|known| known as usize != self.dimensions) {
            return Err(with_sqlstate(
                PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
                Error::new(
                    Kind::InvalidInput,
                    format!("different vector dimensions {} and {}", known.unwrap_or(0), self.dimensions),
                )
                .detail(format!("Collection \"{name}\" holds vectors of {} dimensions.", known.unwrap_or(0))),
            ));
        }
        let access = Access::find(store, name);
        access.check_current()?;
        if access.exists() || name == DEFAULT_COLLECTION {
            access.check_owner(self.role)?;
        }
        let query = if found.is_some() {
            "UPDATE clip_search.collection_setting SET members = $2, embedding = $3, cluster = $4, key = $5, dimensions = $6, \
                 model = coalesce(model, $7), threshold = coalesce($8, threshold), labels = coalesce($9, labels), \
                 image = coalesce($10, image), owner = $11 WHERE name = $1"
        } else {
            "INSERT INTO clip_search.collection_setting (name, members, embedding, cluster, key, dimensions, model, threshold, labels, image, owner) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
        };
        client.update(query, None, &settings).map_err(spi)?;
        access.keep_grants(client)?;
        Ok(found.is_none())
    }
}
