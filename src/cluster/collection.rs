//! Collections: their settings, and how they are created, altered and dropped.

use clip::model::check_name as check_model_name;
use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::cluster::access::{
    Access, DEFAULT_COLLECTION, add_owner, check_name, own_collection, replace_owners, role_named, unknown,
};
use crate::cluster::columns::{setting, sum};
use crate::cluster::members::{check_column, primary_key, refuse_citus};
use crate::cluster::tables::{Condition, Index, Snapshot, Store};
use crate::guc;
use crate::model::loaded;
use crate::pg::catalog::{Table, not_owner};
use crate::pg::citus;
use crate::pg::error::{SqlResult, different_dimensions, given, report, sql_error};
use crate::pg::owners_table::OwnersTable;
use crate::pg::regclass::Regclass;
use crate::pg::spi::{get, spi};
use crate::pg::text::Text;
use crate::pg::user_context::{UserContext, current_role, has_rights_of, role_name};
use crate::pg::vector_column::Storage;

/// A collection's properties: set by [`clip_create_collection`](crate::cluster::collection), or else taken from its
/// first cluster.
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
        store.scan(Snapshot::Dirty, Index::SettingName, &[Condition::TextIs(setting::NAME, name)], |row| {
            if row.inserting {
                return true; // not a collection yet
            }
            known.dimensions = row.integer(setting::DIMENSIONS);
            known.threshold = row.double(setting::THRESHOLD).unwrap_or(known.threshold);
            known.model = row.text(setting::MODEL);
            false
        });
        for snapshot in [Snapshot::Dirty, Snapshot::Latest] {
            if known.dimensions.is_some() && known.model.is_some() {
                break;
            }
            store.scan(snapshot, Index::SumCollection, &[Condition::TextIs(sum::COLLECTION, name)], |row| {
                known.dimensions = known.dimensions.or_else(|| row.vector(sum::SUM).map(|sum| sum.len() as i32));
                known.model = known.model.take().or_else(|| row.text(sum::MODEL));
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

    /// Vectors of different models or lengths can't be compared.
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

pub fn check_threshold(threshold: Option<f64>) -> SqlResult<()> {
    match threshold {
        Some(threshold) if !(threshold > -1.0 && threshold <= 1.0) => Err(report(
            Error::new(Kind::InvalidInput, format!("cluster threshold {threshold} is not over -1 and up to 1")).detail(
                "It is the cosine to a cluster's centroid from which on a vector joins; 1 joins equal vectors only.",
            ),
        )),
        _ => Ok(()),
    }
}

#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments)]
fn clip_create_collection(
    collection: Option<Text<'_>>,
    threshold: default!(Option<f64>, "NULL"),
    dimensions: default!(Option<i32>, "NULL"),
    model: default!(Option<Text<'_>>, "NULL"),
    members: default!(Option<Regclass>, "NULL"),
    embedding: default!(Option<Text<'_>>, "'embedding'"),
    cluster: default!(Option<Text<'_>>, "'cluster_id'"),
    key: default!(Option<Text<'_>>, "NULL"),
    labels: default!(Option<Text<'_>>, "NULL"),
    image: default!(Option<Text<'_>>, "NULL"),
) -> SqlResult<()> {
    let (collection, model, embedding, cluster) =
        (collection.map(Text::str), model.map(Text::str), embedding.map(Text::str), cluster.map(Text::str));
    let (key, labels, image) = (key.map(Text::str), labels.map(Text::str), image.map(Text::str));
    let collection = given("collection", collection)?;
    let (embedding, cluster) = (given("embedding", embedding)?, given("cluster", cluster)?);
    check_name(collection)?;
    citus::refuse_worker("clip_create_collection()")?;
    check_threshold(threshold)?;
    model.map_or(Ok(()), check_model_name).map_err(report)?;
    if let Some(dimensions) = dimensions
        && !(1..=16_000).contains(&dimensions)
    {
        return Err(report(Error::new(
            Kind::InvalidInput,
            format!("{dimensions} dimensions are not between 1 and 16000"),
        )));
    }
    let role = current_role();
    let store = Store::open(c"clip_create_collection()");
    let access = Access::find(&store, collection);
    access.check_not_reserved()?;
    // The caller must own existing clusters under this name, and the open collection default.
    if access.exists() || collection == DEFAULT_COLLECTION {
        access.check_owner(role)?;
    }
    let members = members.map(|Regclass(oid)| owned_members(oid, role)).transpose()?;
    let _user_context = UserContext::of_extension();
    let _lock = store.lock_briefly(collection, true);
    Spi::connect_mut(|client| {
        // Another session may have created it in the meantime.
        let access = Access::find(&store, collection);
        if access.has_settings() {
            return Err(sql_error(
                PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                format!("collection \"{collection}\" exists already"),
            )
            .set_hint("clip_alter_collection changes its settings; clip_drop_collection drops it with its clusters."));
        }
        access.check_assign(role)?;
        // Existing clusters under this name must have these dimensions.
        let known = Collection::find(&store, collection)?.dimensions;
        if let (Some(known), Some(dimensions)) = (known, dimensions)
            && known != dimensions
        {
            return Err(different_dimensions(known, dimensions)
                .set_detail(format!("Collection \"{collection}\" holds vectors of {known} dimensions.")));
        }
        let table = members.as_ref().map(|table| table.oid);
        let key = match table {
            Some(table) => {
                refuse_citus(client, table)?;
                check_column(client, table, embedding, |kind| Storage::of(kind).is_some(), "vector or halfvec")?;
                check_column(client, table, cluster, |kind| kind == pg_sys::INT8OID, "bigint")?;
                let key = match key {
                    Some(key) => key.to_owned(),
                    None => primary_key(client, table)?,
                };
                check_optional_columns(client, table, Some(&key), labels, image)?;
                Some(key)
            }
            None => None,
        };
        let of_table = |column: &str| table.map(|_| column.to_owned());
        let owner = members.as_ref().map_or(if access.exists() { access.owner() } else { role }, |table| table.owner);
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
        client.update(include_str!("sql/create_collection.sql"), None, &arguments).map_err(spi)?;
        access.settle_owner(client, owner, members.is_some())
    })
}

/// The members' table, which a role must own: the extension will read and write it as its owner.
fn owned_members(oid: pg_sys::Oid, role: pg_sys::Oid) -> SqlResult<OwnersTable> {
    Table::describe(oid)?; // a table with this oid exists
    let table = OwnersTable::find(oid)?
        .ok_or_else(|| sql_error(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, "the members' table does not exist"))?;
    if !has_rights_of(role, table.owner) {
        return Err(not_owner(oid, table.shown()));
    }
    Ok(table)
}

fn check_optional_columns(
    client: &mut SpiClient<'_>,
    table: pg_sys::Oid,
    key: Option<&str>,
    labels: Option<&str>,
    image: Option<&str>,
) -> SqlResult<()> {
    if let Some(labels) = labels {
        check_column(client, table, labels, |kind| kind == pg_sys::TEXTARRAYOID, "text[]")?;
    }
    if let Some(image) = image {
        check_column(client, table, image, |kind| kind == pg_sys::BYTEAOID, "bytea")?;
    }
    key.map_or(Ok(()), |key| check_column(client, table, key, |_| true, ""))
}

/// Changes only the settings that are passed.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments)]
fn clip_alter_collection(
    collection: Option<Text<'_>>,
    owner: default!(Option<Text<'_>>, "NULL"),
    threshold: default!(Option<f64>, "NULL"),
    model: default!(Option<Text<'_>>, "NULL"),
    key: default!(Option<Text<'_>>, "NULL"),
    labels: default!(Option<Text<'_>>, "NULL"),
    image: default!(Option<Text<'_>>, "NULL"),
) -> SqlResult<()> {
    let (collection, owner, model, key) =
        (collection.map(Text::str), owner.map(Text::str), model.map(Text::str), key.map(Text::str));
    let (labels, image) = (labels.map(Text::str), image.map(Text::str));
    let collection = given("collection", collection)?;
    check_threshold(threshold)?;
    model.map_or(Ok(()), check_model_name).map_err(report)?;
    let role = current_role();
    let store = Store::open(c"clip_alter_collection()");
    let access = own_collection(&store, collection)?;
    access.check_current()?;
    let _user_context = UserContext::of_extension();
    let owner = owner.map(role_named).transpose()?;
    if let Some(owner) = owner
        && !has_rights_of(role, owner)
    {
        return Err(sql_error(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("must be member of role \"{}\"", role_name(owner)),
        ));
    }
    Spi::connect_mut(|client| {
        if !access.has_settings() {
            let query = "INSERT INTO clip_search.collection_setting (name) VALUES ($1)";
            client.update(query, None, &[collection.into()]).map_err(spi)?;
            access.settle_owner(client, access.owner(), false)?;
        }
        let query = "SELECT c.oid, c.relowner FROM clip_search.collection_setting s \
             JOIN pg_catalog.pg_class c ON c.oid = s.members::pg_catalog.oid WHERE s.name = $1";
        let rows = client.update(query, Some(1), &[collection.into()]).map_err(spi)?;
        let members = match rows.into_iter().next() {
            Some(row) => get::<pg_sys::Oid>(&row, 1)?.zip(get::<pg_sys::Oid>(&row, 2)?),
            None => None,
        };
        match members {
            Some((_, of_table)) if owner.is_some_and(|owner| owner != of_table) => {
                return Err(sql_error(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!(
                        "the table of the members of collection \"{collection}\" belongs to {}",
                        role_name(of_table)
                    ),
                )
                .set_detail("Members are read and written as the table's owner, who must own the collection as well.")
                .set_hint("ALTER TABLE … OWNER TO first."));
            }
            Some((table, _)) => check_optional_columns(client, table, key, labels, image)?,
            None => {
                if let Some((name, _)) =
                    [("key", key), ("labels", labels), ("image", image)].iter().find(|(_, value)| value.is_some())
                {
                    return Err(sql_error(
                        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                        format!(
                            "{name} is a column, and collection \"{collection}\" does not know the table of its members"
                        ),
                    ));
                }
                if let Some(owner) = owner {
                    replace_owners(client, collection, owner)?;
                }
            }
        }
        let arguments: [DatumWithOid<'_>; 6] =
            [collection.into(), threshold.into(), model.into(), key.into(), labels.into(), image.into()];
        client.update(include_str!("sql/alter_collection.sql"), None, &arguments).map(drop).map_err(spi)
    })
}

#[pg_extern(volatile, strict, parallel_unsafe)]
fn clip_drop_collection(collection: Text<'_>) -> SqlResult<()> {
    let Text(collection) = collection;
    let store = Store::open(c"clip_drop_collection()");
    own_collection(&store, collection)?;
    let role = current_role();
    let _user_context = UserContext::of_extension();
    store.lock_exclusive(collection, true);
    // While this call waited for the lock, the collection may have been dropped and another one created.
    let access = Access::find(&store, collection);
    access.check_owner(role)?;
    Spi::connect_mut(|client| {
        let rows =
            client.update(include_str!("sql/watch_of_collection.sql"), Some(1), &[collection.into()]).map_err(spi)?;
        if let Some(table) = rows.into_iter().next().map(|row| get::<String>(&row, 1)).transpose()?.flatten() {
            return Err(sql_error(
                PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
                format!("collection \"{collection}\" is used by the watch of {table}"),
            )
            .set_hint(format!("SELECT clip_unwatch({}); first.", pgrx::spi::quote_literal(&table))));
        }
        if drop_whole(client, &store, collection)? == 0 {
            return Err(unknown(collection));
        }
        Ok(())
    })
}

/// Drops a collection; returns the number of deleted rows. A collection `default` that was closed stays closed.
pub fn drop_whole(client: &mut SpiClient<'_>, store: &Store, collection: &str) -> SqlResult<usize> {
    let access = Access::find(store, collection);
    let gone = drop_rows(client, collection)?;
    if gone > 0 && collection == DEFAULT_COLLECTION && !access.is_public() {
        add_owner(client, collection, access.owner())?;
    }
    Ok(gone)
}

/// Deletes all rows of a collection; returns their number.
pub fn drop_rows(client: &mut SpiClient<'_>, collection: &str) -> SqlResult<usize> {
    let mut gone = 0;
    for (table, column) in [
        ("collection_setting", "name"),
        ("cluster_sum", "collection"),
        ("cluster_change", "collection"),
        ("cluster_code", "collection"),
        ("collection_grant", "collection"),
    ] {
        // 0.2.0 had no grants; its objects work with this library until they are updated.
        let there = format!("SELECT 1 WHERE pg_catalog.to_regclass('clip_search.{table}') IS NOT NULL");
        if client.update(&there, Some(1), &[]).map_err(spi)?.is_empty() {
            continue;
        }
        let delete = format!("DELETE FROM clip_search.{table} WHERE {column} = $1");
        gone += client.update(&delete, None, &[collection.into()]).map_err(spi)?.len();
    }
    Ok(gone)
}
