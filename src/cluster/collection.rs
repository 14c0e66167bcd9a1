//! Collections: their settings, the table that their members are in, and what applications read of them.
//!
//! What reads or writes the members' table runs with the rights of the caller; what writes the cluster tables runs as
//! their owner.

use clip::clustering::agglomerative::{Linkage, agglomerate};
use clip::clustering::centroid::cosine;
use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiHeapTupleData, quote_identifier};

use crate::cluster::assign::check_name;
use crate::cluster::recluster;
use crate::cluster::tables::Store;
use crate::guc;
use crate::pg::catalog::Table;
use crate::pg::citus;
use crate::pg::error::{SqlResult, given, report, with_sqlstate};
use crate::pg::regclass::Regclass;
use crate::pg::vector::{self, Storage, Vector};

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
            return Err(with_sqlstate(
                PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                Error::new(Kind::InvalidInput, format!("collection \"{collection}\" exists already"))
                    .hint("clip_drop_collection drops it with its clusters. An administrator can change its row in clip_search.collection_setting."),
            ));
        }
        // Clusters that the name has already must be of those dimensions.
        let known = crate::cluster::assign::Collection::find(&store, collection)?.dimensions;
        if let (Some(known), Some(dimensions)) = (known, dimensions)
            && known != dimensions
        {
            return Err(with_sqlstate(
                PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
                Error::new(Kind::InvalidInput, format!("different vector dimensions {known} and {dimensions}"))
                    .detail(format!("Collection \"{collection}\" holds vectors of {known} dimensions.")),
            ));
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

fn unknown(collection: &str) -> ErrorReport {
    with_sqlstate(
        PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
        Error::new(Kind::InvalidInput, format!("collection \"{collection}\" does not exist"))
            .hint("SELECT name FROM clip_search.collection lists those there are."),
    )
}

/// Whether a table has a column, of a type that will do.
fn check_column(
    client: &mut SpiClient<'_>,
    table: pg_sys::Oid,
    column: &str,
    will_do: impl Fn(pg_sys::Oid) -> bool,
    name: &str,
) -> SqlResult<()> {
    let query = "SELECT t.oid, pg_catalog.format_type(t.oid, a.atttypmod), $1::regclass::text FROM pg_catalog.pg_attribute a \
         JOIN pg_catalog.pg_type t ON t.oid = a.atttypid WHERE a.attrelid = $1 AND a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped";
    let rows = client.update(query, Some(1), &[table.into(), column.into()]).map_err(spi)?;
    let Some(row) = rows.into_iter().next() else {
        return Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
            Error::new(Kind::InvalidInput, format!("the members' table has no column \"{column}\""))
                .hint("Name the columns: embedding => …, cluster => …, key => …"),
        ));
    };
    match get::<pg_sys::Oid>(&row, 1)? {
        Some(found) if !will_do(found) => Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            Error::new(
                Kind::InvalidInput,
                format!(
                    "column \"{column}\" of {} is of type {}, not {name}",
                    get::<String>(&row, 3)?.unwrap_or_default(),
                    get::<String>(&row, 2)?.unwrap_or_default()
                ),
            ),
        )),
        _ => Ok(()),
    }
}

/// The column of a primary key of one column.
fn primary_key(client: &mut SpiClient<'_>, table: pg_sys::Oid) -> SqlResult<String> {
    let query = "SELECT a.attname::text FROM pg_catalog.pg_index i \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
         WHERE i.indrelid = $1 AND i.indisprimary AND i.indnkeyatts = 1";
    let rows = client.update(query, Some(1), &[table.into()]).map_err(spi)?;
    let key = rows.into_iter().next().map(|row| get::<String>(&row, 1)).transpose()?.flatten();
    key.ok_or_else(|| {
        report(
            Error::new(Kind::InvalidInput, "the members' table has no primary key of one column")
                .hint("Name a column that tells members apart: key => …"),
        )
    })
}

/// A collection's table of members, quoted for use in queries.
pub struct Members {
    pub threshold: f64,
    pub table: String,
    pub oid: pg_sys::Oid,
    pub embedding: String,
    pub cluster: String,
    key: String,
    labels: Option<String>,
    image: Option<String>,
}

impl Members {
    /// None for a collection that was not told where its members are.
    pub fn find(client: &SpiClient<'_>, collection: &str) -> SqlResult<Option<Self>> {
        let query = "SELECT c.threshold, CASE WHEN r.oid IS NOT NULL THEN pg_catalog.format('%I.%I', n.nspname, r.relname) END, r.oid, \
                    c.embedding::text, c.cluster::text, c.key::text, c.labels::text, c.image::text \
             FROM clip_search.collection c LEFT JOIN pg_catalog.pg_class r ON r.oid OPERATOR(pg_catalog.=) c.members::pg_catalog.oid \
             LEFT JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) r.relnamespace WHERE c.name OPERATOR(pg_catalog.=) $1";
        let rows = client.select(query, Some(1), &[collection.into()]).map_err(spi)?;
        let Some(row) = rows.into_iter().next() else { return Err(unknown(collection)) };
        let quoted = |column| Ok(get::<String>(&row, column)?.map(quote_identifier));
        let (Some(table), Some(oid), Some(embedding), Some(cluster), Some(key)) =
            (get::<String>(&row, 2)?, get::<pg_sys::Oid>(&row, 3)?, quoted(4)?, quoted(5)?, quoted(6)?)
        else {
            return Ok(None);
        };
        let threshold = get::<f64>(&row, 1)?.unwrap_or_default();
        refuse_citus(client, oid)?;
        Ok(Some(Self { threshold, table, oid, embedding, cluster, key, labels: quoted(7)?, image: quoted(8)? }))
    }

    /// The embedding as a vector, be it a halfvec.
    pub fn vector(&self) -> String {
        format!("{}::{}.vector", self.embedding, vector::schema())
    }

    pub fn known(client: &SpiClient<'_>, collection: &str) -> SqlResult<Self> {
        Self::find(client, collection)?.ok_or_else(|| {
            with_sqlstate(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Error::new(
                    Kind::InvalidInput,
                    format!("collection \"{collection}\" does not know the table of its members"),
                )
                .hint(format!(
                    "SELECT clip_create_collection({}, members => 'your_table');",
                    pgrx::spi::quote_literal(collection)
                )),
            )
        })
    }
}

/// Members are told apart, and written, by `ctid`: tables of Citus have the same one in several shards.
fn refuse_citus(client: &SpiClient<'_>, table: pg_sys::Oid) -> SqlResult<()> {
    citus::refuse(
        client,
        table,
        "it can't be what a collection knows its members by",
        "Members are read and regrouped by their place in a table of this server.",
        "SELECT clip_create_collection(…) without members; clip_assign_cluster works, and docs/citus.md says how to join \
         clip_search.cluster to the rows.",
    )
}

// What follows only reads, by `select` throughout: `update` assigns a transaction id, which a standby can't.

#[pg_extern(stable, strict, parallel_restricted, cost = 10000)]
#[allow(clippy::type_complexity)]
fn clip_clusters(
    collection: &str,
    min_size: default!(i64, "2"),
) -> Result<
    TableIterator<
        'static,
        (
            name!(id, i64),
            name!(size, i64),
            name!(centroid, Vector),
            name!(representative, Option<String>),
            name!(cohesion, f64),
            name!(lowest, Option<f64>),
            name!(labels, Option<Vec<Option<String>>>),
        ),
    >,
    ErrorReport,
> {
    let rows = Spi::connect(|client| {
        let members = Members::find(client, collection)?;
        let query = match &members {
            None => {
                "SELECT id, size, centroid, NULL::text, resultant, NULL::float8, NULL::text[] FROM clip_search.cluster \
                 WHERE collection OPERATOR(pg_catalog.=) $1 AND size OPERATOR(pg_catalog.>=) $2 ORDER BY size DESC, id"
                    .to_owned()
            }
            Some(members) => format!(
                "WITH {} SELECT c.id, c.size, c.centroid, g.keys[1], c.resultant, g.lowest, {} \
                 FROM cluster c JOIN grouped g ON g.id OPERATOR(pg_catalog.=) c.id ORDER BY c.size DESC, c.id",
                members.grouped(),
                members.words("c.id")
            ),
        };
        let rows = client.select(&query, None, &[collection.into(), min_size.into()]).map_err(spi)?;
        let missing = || report(Error::new(Kind::Internal, "a cluster has no id, size or centroid"));
        rows.into_iter()
            .map(|row| {
                Ok((
                    get(&row, 1)?.ok_or_else(missing)?,
                    get(&row, 2)?.ok_or_else(missing)?,
                    get(&row, 3)?.ok_or_else(missing)?,
                    get(&row, 4)?,
                    get(&row, 5)?.ok_or_else(missing)?,
                    get(&row, 6)?,
                    get(&row, 7)?,
                ))
            })
            .collect::<SqlResult<Vec<_>>>()
    })?;
    Ok(TableIterator::new(rows))
}

impl Members {
    /// Common table expressions: `cluster` (the clusters of collection $1 with $2 members or more), `member` (what is in
    /// them) and `grouped`.
    fn grouped(&self) -> String {
        let Self { table, embedding, cluster, key, .. } = self;
        let labels = self.labels.as_ref().map_or("NULL::text[]".to_owned(), |labels| format!("t.{labels}"));
        let schema = vector::schema();
        format!(
            "cluster AS MATERIALIZED (SELECT id, size, centroid, resultant FROM clip_search.cluster \
                 WHERE collection OPERATOR(pg_catalog.=) $1 AND size OPERATOR(pg_catalog.>=) $2), \
             member AS MATERIALIZED (SELECT c.id, t.{key}::text AS key, {labels} AS labels, t.tableoid, t.ctid, \
                 1 OPERATOR(pg_catalog.-) (t.{embedding}::{schema}.vector OPERATOR({schema}.<=>) c.centroid) AS cosine \
                 FROM {table} t JOIN cluster c ON c.id OPERATOR(pg_catalog.=) t.{cluster} WHERE t.{embedding} IS NOT NULL), \
             grouped AS (SELECT id, pg_catalog.array_agg(key ORDER BY cosine DESC, key) AS keys, pg_catalog.min(cosine) AS lowest \
                 FROM member GROUP BY id), \
             word AS (SELECT id, w AS word, pg_catalog.count(*) AS here, \
                 pg_catalog.sum(pg_catalog.count(*)) OVER (PARTITION BY w) AS everywhere \
                 FROM member, pg_catalog.unnest(labels) AS w WHERE w IS NOT NULL GROUP BY id, w)"
        )
    }

    /// The five keywords that most members of a cluster have; of those that are as frequent, the ones that are rarest
    /// elsewhere. NULL without a column of keywords.
    fn words(&self, id: &str) -> String {
        if self.labels.is_none() {
            return "NULL::text[]".to_owned();
        }
        format!(
            "(SELECT pg_catalog.array_agg(word ORDER BY here DESC, everywhere, word) FROM (SELECT word, here, everywhere FROM word w \
              WHERE w.id OPERATOR(pg_catalog.=) {id} ORDER BY here DESC, everywhere, word LIMIT 5) AS best)"
        )
    }
}

#[pg_extern(stable, strict, parallel_restricted, cost = 10000)]
fn clip_cluster_groups(collection: &str, min_size: default!(i64, "2")) -> SqlResult<pgrx::JsonB> {
    Spi::connect(|client| {
        let members = Members::known(client, collection)?;
        let image = match &members.image {
            // The representative is the member nearest the centroid.
            Some(image) => format!(
                "(SELECT pg_catalog.encode({}.clip_thumbnail(t.{image}, 256, 'jpeg'), 'base64') FROM {} t JOIN member m \
                  ON m.tableoid OPERATOR(pg_catalog.=) t.tableoid AND m.ctid OPERATOR(pg_catalog.=) t.ctid \
                  WHERE m.id OPERATOR(pg_catalog.=) c.id ORDER BY m.cosine DESC, m.key LIMIT 1)",
                own_schema(client)?,
                members.table
            ),
            None => "NULL".to_owned(),
        };
        let query = format!(
            "WITH {} SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('cluster_id', c.id, 'size', c.size, \
                 'cohesion', c.resultant, 'lowest', g.lowest, 'representative', g.keys[1], 'representative_thumbnail', {image}, \
                 'labels', coalesce(pg_catalog.to_jsonb({}), '[]'::jsonb), \
                 'assets', (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('id', m.key, 'cosine', m.cosine, \
                     'keywords', coalesce(pg_catalog.to_jsonb(m.labels), '[]'::jsonb)) ORDER BY m.cosine DESC, m.key) \
                     FROM member m WHERE m.id OPERATOR(pg_catalog.=) c.id)) ORDER BY c.size DESC, c.id), '[]'::jsonb) \
             FROM cluster c JOIN grouped g ON g.id OPERATOR(pg_catalog.=) c.id",
            members.grouped(),
            members.words("c.id")
        );
        let rows = client.select(&query, Some(1), &[collection.into(), min_size.into()]).map_err(spi)?;
        let value = rows.first().get::<pgrx::JsonB>(1).map_err(spi)?;
        value.ok_or_else(|| report(Error::new(Kind::Internal, "no groups came back")))
    })
}

/// 0.99 is what immich has come to, after 0.97 and 0.985 had shown similar photos as duplicates (its issues 9781 and
/// 10703).
#[pg_extern(stable, strict, parallel_restricted, cost = 100000)]
#[allow(clippy::type_complexity)]
fn clip_duplicates(
    collection: &str,
    threshold: default!(f64, "0.99"),
) -> Result<TableIterator<'static, (name!(original, String), name!(duplicate, String), name!(cosine, f64))>, ErrorReport>
{
    let found = Spi::connect(|client| {
        let members = Members::known(client, collection)?;
        let query = format!(
            "SELECT {vector}, {key}::text FROM {table} WHERE {embedding} IS NOT NULL ORDER BY {key}",
            vector = members.vector(),
            embedding = members.embedding,
            key = members.key,
            table = members.table
        );
        let mut keys = Vec::new();
        let cursor = client.try_open_cursor(&query, &[]).map_err(spi)?;
        let rows = recluster::read(cursor, |row| {
            keys.push(get::<String>(row, 2)?.unwrap_or_default());
            Ok(())
        })?;
        Ok::<_, ErrorReport>(
            duplicates(&rows, threshold)?
                .into_iter()
                .map(|(a, b, c)| (keys[a].clone(), keys[b].clone(), c))
                .collect::<Vec<_>>(),
        )
    })?;
    Ok(TableIterator::new(found))
}

/// (original, duplicate, cosine): in the order of the rows, each is an original unless one before it is within the
/// threshold; then it is a duplicate of the nearest such. So no chain leads from one photo to another that differs.
fn duplicates(rows: &recluster::Rows, threshold: f64) -> SqlResult<Vec<(usize, usize, f64)>> {
    // Whoever is within the threshold of another is in one group of single linkage with it.
    let labels = agglomerate(rows.view(), threshold, Linkage::Single, guc::threads(), &mut recluster::pulse())
        .map_err(report)?;
    let mut originals: Vec<Vec<usize>> = Vec::new();
    let mut found = Vec::new();
    for (row, label) in labels.into_iter().enumerate() {
        pgrx::check_for_interrupts!();
        let label = label as usize;
        if label == originals.len() {
            originals.push(Vec::new());
        }
        let near = originals[label]
            .iter()
            .map(|&original| (cosine(rows.row(original), rows.row(row)), original))
            .filter(|(cosine, _)| cosine + crate::cluster::assign::ROUNDING >= threshold)
            .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        match near {
            Some((cosine, original)) => found.push((original, row, cosine)),
            None => originals[label].push(row),
        }
    }
    found.sort_by_key(|&(original, duplicate, _)| (original, duplicate));
    Ok(found)
}

/// The quoted name of the schema that the functions are in.
pub fn own_schema(client: &SpiClient<'_>) -> SqlResult<String> {
    let query = "SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_extension e \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace WHERE e.extname OPERATOR(pg_catalog.=) 'clip_search'";
    let schema = client.select(query, Some(1), &[]).map_err(spi)?.first().get::<String>(1).map_err(spi)?;
    schema.ok_or_else(|| report(Error::new(Kind::Internal, "extension \"clip_search\" is not installed")))
}

/// A column of a row, by its number from 1.
pub fn get<T: FromDatum + IntoDatum>(row: &SpiHeapTupleData<'_>, column: usize) -> SqlResult<Option<T>> {
    row.get::<T>(column).map_err(spi)
}

pub fn spi(error: pgrx::spi::Error) -> ErrorReport {
    report(Error::new(Kind::Internal, "a collection could not be read or written").detail(error.to_string()))
}
