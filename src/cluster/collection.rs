//! Collections: their settings, the table that their members are in, and what applications read of them.
//!
//! What reads or writes the members' table runs with the rights of the caller; what writes the cluster tables runs as
//! their owner.

use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::cluster::members::{check_column, primary_key, refuse_citus, unknown};
use crate::cluster::tables::{Condition, Index, Sees, Store};
use crate::guc;
use crate::model::loaded;
use crate::pg::catalog::Table;
use crate::pg::error::{SqlResult, given, report, sql_error};
use crate::pg::regclass::Regclass;
use crate::pg::spi::spi;
use crate::pg::vector_column::Storage;

pub const DEFAULT_COLLECTION: &str = "default";

/// What is settled about a collection: by [`clip_create_collection`](crate::cluster::collection), else by its first cluster.
pub struct Collection {
    pub name: String,
    pub dimensions: Option<i32>,
    pub threshold: f64,
    pub model: Option<String>,
}

impl Collection {
    pub fn find(store: &Store, name: &str) -> SqlResult<Self> {
        check_name(name)?;
        let mut known =
            Self { name: name.to_owned(), dimensions: None, threshold: guc::cluster_threshold(), model: None };
        store.scan(Sees::Everything, Index::SettingName, &[Condition::TextIs(1, name)], |row| {
            if row.inserting {
                return true; // not a collection yet
            }
            known.dimensions = row.integer(2);
            known.threshold = row.double(3).unwrap_or(known.threshold);
            known.model = row.text(4);
            false
        });
        for sees in [Sees::Everything, Sees::Settled] {
            if known.dimensions.is_some() && known.model.is_some() {
                break;
            }
            store.scan(sees, Index::SumCollection, &[Condition::TextIs(1, name)], |row| {
                known.dimensions = known.dimensions.or_else(|| row.vector(4).map(|sum| sum.len() as i32));
                known.model = known.model.take().or_else(|| row.text(7));
                false
            });
        }
        if known.threshold <= -1.0 {
            return Err(report(
                Error::new(Kind::InvalidInput, format!("cluster threshold {} is not over -1", known.threshold))
                    .detail("Every vector has a cosine of at least -1 to every other, so all would be one cluster.")
                    .hint("Set clip_search.cluster_threshold to a value over -1, up to 1."),
            ));
        }
        Ok(known)
    }

    /// Vectors of several models, or lengths, can't be compared.
    pub fn check(&self, dimensions: usize, model: Option<&str>) -> SqlResult<()> {
        let name = &self.name;
        let mixed = |message: String, detail: String| {
            Err(sql_error(PgSqlErrorCode::ERRCODE_DATA_EXCEPTION, message)
                .set_detail(detail)
                .set_hint("Vectors of different models don't mix: use a collection for each."))
        };
        match (self.dimensions, &self.model, model) {
            (Some(known), _, _) if known as usize != dimensions => mixed(
                format!("different vector dimensions {known} and {dimensions}"),
                format!("Collection \"{name}\" holds vectors of {known} dimensions; this one has {dimensions}."),
            ),
            (_, Some(known), Some(model)) if loaded::base_name(known) != loaded::base_name(model) => mixed(
                format!("collection \"{name}\" holds vectors of model \"{known}\", not of \"{model}\""),
                format!("This vector is what \"{model}\" has just returned in this session."),
            ),
            _ => Ok(()),
        }
    }
}

pub fn check_name(collection: &str) -> SqlResult<()> {
    // As long as PostgreSQL's own names. It stands in every row, and codes are stored in full pages.
    const LONGEST: usize = 63;
    let bad = |message: String, detail: String| Err(report(Error::new(Kind::InvalidInput, message).detail(detail)));
    match collection.len() {
        0 => bad("collection name is empty".to_owned(), "A name has 1 to 63 bytes.".to_owned()),
        1..=LONGEST => Ok(()),
        long => bad("collection name is too long".to_owned(), format!("It has {long} bytes; {LONGEST} are allowed.")),
    }
}

#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::too_many_arguments)]
fn clip_create_collection(
    collection: Option<&str>,
    threshold: default!(Option<f64>, "NULL"),
    dimensions: default!(Option<i32>, "NULL"),
    model: default!(Option<&str>, "NULL"),
    members: default!(Option<Regclass>, "NULL"),
    embedding: default!(Option<&str>, "'embedding'"),
    cluster: default!(Option<&str>, "'cluster_id'"),
    key: default!(Option<&str>, "NULL"),
    labels: default!(Option<&str>, "NULL"),
    image: default!(Option<&str>, "NULL"),
) -> SqlResult<()> {
    let collection = given("collection", collection)?;
    let (embedding, cluster) = (given("embedding", embedding)?, given("cluster", cluster)?);
    check_name(collection)?;
    if let Some(threshold) = threshold
        && !(threshold > -1.0 && threshold <= 1.0)
    {
        return Err(report(
            Error::new(Kind::InvalidInput, format!("cluster threshold {threshold} is not over -1 and up to 1")).detail(
                "It is the cosine to a cluster's centroid from which on a vector joins; 1 joins equal vectors only.",
            ),
        ));
    }
    if let Some(dimensions) = dimensions
        && !(1..=16_000).contains(&dimensions)
    {
        return Err(report(Error::new(
            Kind::InvalidInput,
            format!("{dimensions} dimensions are not between 1 and 16000"),
        )));
    }
    let store = Store::open(c"clip_create_collection()");
    Spi::connect_mut(|client| {
        let exists = "SELECT 1 FROM clip_search.collection_setting WHERE name = $1";
        if !client.update(exists, Some(1), &[collection.into()]).map_err(spi)?.is_empty() {
            return Err(sql_error(PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT, format!("collection \"{collection}\" exists already"))
                    .set_hint("clip_drop_collection drops it with its clusters. An administrator can change its row in clip_search.collection_setting."));
        }
        // Clusters that the name has already must be of those dimensions.
        let known = Collection::find(&store, collection)?.dimensions;
        if let (Some(known), Some(dimensions)) = (known, dimensions)
            && known != dimensions
        {
            return Err(sql_error(
                PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
                format!("different vector dimensions {known} and {dimensions}"),
            )
            .set_detail(format!("Collection \"{collection}\" holds vectors of {known} dimensions.")));
        }
        let table = members.map(|Regclass(oid)| oid);
        let key = match table {
            Some(table) => {
                Table::describe(table)?; // there is one of that oid
                refuse_citus(client, table)?;
                let is = |wanted| move |kind| kind == wanted;
                check_column(client, table, embedding, |kind| Storage::of(kind).is_some(), "vector or halfvec")?;
                check_column(client, table, cluster, is(pg_sys::INT8OID), "bigint")?;
                if let Some(labels) = labels {
                    check_column(client, table, labels, is(pg_sys::TEXTARRAYOID), "text[]")?;
                }
                if let Some(image) = image {
                    check_column(client, table, image, is(pg_sys::BYTEAOID), "bytea")?;
                }
                let key = match key {
                    Some(key) => key.to_owned(),
                    None => primary_key(client, table)?,
                };
                check_column(client, table, &key, |_| true, "")?;
                Some(key)
            }
            None => None,
        };
        let of_table = |column: &str| table.map(|_| column.to_owned());
        let insert = "INSERT INTO clip_search.collection_setting \
             (name, dimensions, threshold, model, members, embedding, cluster, key, labels, image) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        let arguments: [DatumWithOid<'_>; 10] = [
            collection.into(),
            dimensions.into(),
            threshold.into(),
            model.into(),
            table.into(),
            of_table(embedding).into(),
            of_table(cluster).into(),
            key.into(),
            table.and(labels).into(),
            table.and(image).into(),
        ];
        client.update(insert, None, &arguments).map(drop).map_err(spi)
    })
}

#[pg_extern(volatile, strict, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn clip_drop_collection(collection: &str) -> SqlResult<()> {
    let store = Store::open(c"clip_drop_collection()");
    check_name(collection)?;
    store.take(collection, true);
    Spi::connect_mut(|client| if drop_rows(client, collection)? == 0 { Err(unknown(collection)) } else { Ok(()) })
}

/// Deletes what there is of a collection; returns how many rows that were.
pub fn drop_rows(client: &mut SpiClient<'_>, collection: &str) -> SqlResult<usize> {
    let mut gone = 0;
    for (table, column) in [
        ("collection_setting", "name"),
        ("cluster_sum", "collection"),
        ("cluster_change", "collection"),
        ("cluster_code", "collection"),
    ] {
        let delete = format!("DELETE FROM clip_search.{table} WHERE {column} = $1");
        gone += client.update(&delete, None, &[collection.into()]).map_err(spi)?.len();
    }
    Ok(gone)
}
