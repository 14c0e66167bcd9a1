//! Columns that are kept true: which table is watched, and how.
//!
//! A watch is a row of clip_search.watch_setting and three triggers on the table, whose argument is the row's id.
//! The triggers are in `trigger`, what fills in embeddings later in `fill`, the background worker in `worker`.

use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiHeapTupleData, quote_identifier, quote_literal};

use crate::cluster::assign::check_name;
use crate::cluster::collection::{drop_rows, get, own_schema};
use crate::cluster::statements;
use crate::cluster::tables::{self, Store};
use crate::guc;
use crate::model::loaded;
use crate::pg::citus;
use crate::pg::error::{SqlResult, given, report, warn, with_sqlstate};
use crate::pg::regclass::Regclass;
use crate::pg::text::foreign_encoding;
use crate::pg::user_context::Rights;
use crate::pg::vector;
use crate::pg::vector::Storage;
use crate::watch::queue;
use crate::watch::worker;

/// What a watched column is, and how it is kept true.
#[derive(Clone, Debug)]
pub struct Watch {
    pub id: i64,
    pub relation: pg_sys::Oid,
    /// Quoted, for use in queries; without the rows of child tables, which have no trigger.
    pub table: String,
    pub owner: pg_sys::Oid,
    pub image: Option<String>,
    pub text: Option<String>,
    /// Of the text's vector, where there is an image, too.
    pub text_weight: f64,
    pub embedding: String,
    pub cluster: Option<String>,
    pub model: String,
    pub collection: Option<String>,
    pub queued: bool,
    pub skip: bool,
    pub key: Vec<String>,
    /// The watch whose column this one is to take the place of.
    pub replaces: Option<i64>,
}

const COLUMNS: &str = "w.id, w.relation::oid, format('%I.%I', n.nspname, c.relname), c.relkind = 'p', c.relowner, \
     w.image::text, w.text::text, w.text_weight, w.embedding::text, w.cluster::text, w.model, w.collection, w.queued, w.skip, \
     w.key::text[], w.replaces";
const FROM: &str = "clip_search.watch_setting w JOIN pg_catalog.pg_class c ON c.oid = w.relation::oid \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";

impl Watch {
    fn read(row: &SpiHeapTupleData<'_>) -> SqlResult<Self> {
        let missing = || report(Error::new(Kind::Internal, "a row of clip_search.watch_setting has a NULL"));
        let name: String = get(row, 3)?.ok_or_else(missing)?;
        let partitioned: bool = get(row, 4)?.unwrap_or_default();
        Ok(Self {
            id: get(row, 1)?.ok_or_else(missing)?,
            relation: get(row, 2)?.ok_or_else(missing)?,
            table: if partitioned { name } else { format!("ONLY {name}") },
            owner: get(row, 5)?.ok_or_else(missing)?,
            image: get(row, 6)?,
            text: get(row, 7)?,
            text_weight: get(row, 8)?.unwrap_or(0.5),
            embedding: get(row, 9)?.ok_or_else(missing)?,
            cluster: get(row, 10)?,
            model: get(row, 11)?.ok_or_else(missing)?,
            collection: get(row, 12)?,
            queued: get(row, 13)?.unwrap_or_default(),
            skip: get(row, 14)?.unwrap_or_default(),
            key: get::<Vec<Option<String>>>(row, 15)?.unwrap_or_default().into_iter().flatten().collect(),
            replaces: get(row, 16)?,
        })
    }

    /// Watches that meet a condition; the caller has the rights of the extension.
    pub fn find(client: &mut SpiClient<'_>, condition: &str, arguments: &[DatumWithOid<'_>]) -> SqlResult<Vec<Self>> {
        let query = format!("SELECT {COLUMNS} FROM {FROM} WHERE {condition} ORDER BY w.id");
        client.update(&query, None, arguments).map_err(spi)?.map(|row| Self::read(&row)).collect()
    }

    /// The watch of that number, if its table exists.
    pub fn by_id(id: i64) -> SqlResult<Option<Self>> {
        let _rights = Rights::of_extension();
        Spi::connect_mut(|client| Ok(Self::find(client, "w.id = $1", &[id.into()])?.pop()))
    }

    /// The same as seen by a trigger on `relation`, which must be the watched table or a partition of it: anybody may
    /// put a trigger on a table of his own.
    pub fn of_trigger(id: i64, relation: pg_sys::Oid) -> SqlResult<Option<Self>> {
        let _rights = Rights::of_extension();
        Spi::connect_mut(|client| {
            let condition = "w.id = $1 AND (w.relation::oid = $2 OR w.relation IN (SELECT pg_catalog.pg_partition_ancestors($2::oid)))";
            Ok(Self::find(client, condition, &[id.into(), relation.into()])?.pop())
        })
    }

    /// The watch whose column is to replace that of another.
    pub fn replacing(id: i64) -> SqlResult<Option<Self>> {
        let _rights = Rights::of_extension();
        Spi::connect_mut(|client| Ok(Self::find(client, "w.replaces = $1", &[id.into()])?.pop()))
    }

    /// The watches that the background worker is to see to: queued, and with their triggers in place.
    pub fn for_worker() -> SqlResult<Vec<Self>> {
        let _rights = Rights::of_extension();
        Spi::connect_mut(|client| {
            Self::find(client, "w.queued AND w.id IN (SELECT id FROM clip_search.watch_live)", &[])
        })
    }

    /// The watches of a table that the caller owns: of one column, or of all but those that are to replace another.
    pub fn of_table(relation: pg_sys::Oid, embedding: Option<&str>) -> SqlResult<Vec<Self>> {
        let table = Table::describe(relation)?;
        table.check_owner()?;
        let found = {
            let _rights = Rights::of_extension();
            Spi::connect_mut(|client| match embedding {
                Some(embedding) => Self::find(
                    client,
                    "w.relation::oid = $1 AND w.embedding = $2",
                    &[relation.into(), embedding.into()],
                ),
                None => Self::find(client, "w.relation::oid = $1 AND w.replaces IS NULL", &[relation.into()]),
            })?
        };
        if found.is_empty() {
            table.check_local()?;
            let what = match embedding {
                Some(embedding) => format!("column \"{embedding}\" of {} is not watched", table.name),
                None => format!("table {} is not watched", table.name),
            };
            return Err(with_sqlstate(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                Error::new(Kind::InvalidInput, what).hint("SELECT * FROM clip_search.watch lists what is watched."),
            ));
        }
        Ok(found)
    }

    /// The one watch of a table, or of its column.
    pub fn one_of_table(relation: pg_sys::Oid, embedding: Option<&str>) -> SqlResult<Self> {
        let mut found = Self::of_table(relation, embedding)?;
        if found.len() > 1 {
            let names: Vec<&str> = found.iter().map(|watch| watch.embedding.as_str()).collect();
            return Err(with_sqlstate(
                PgSqlErrorCode::ERRCODE_AMBIGUOUS_PARAMETER,
                Error::new(Kind::InvalidInput, format!("{} columns of the table are watched", found.len()))
                    .detail(format!("They are {}.", names.join(", ")))
                    .hint("Say which: embedding => …"),
            ));
        }
        Ok(found.remove(0))
    }

    /// The table's name, for people.
    pub fn name(&self) -> &str {
        self.table.trim_start_matches("ONLY ")
    }

    /// An expression that is true for rows that have something to embed.
    pub fn has_source(&self) -> String {
        let columns = [&self.image, &self.text].into_iter().flatten();
        columns.map(|column| format!("{} IS NOT NULL", quote_identifier(column))).collect::<Vec<_>>().join(" OR ")
    }

    /// Whether anything beyond the embedding depends on a new row's being written. Of others something may: clip_backfill
    /// and former settings list failures whatever the settings are.
    fn needs_after_insert(&self) -> bool {
        self.cluster.is_some() || self.queued || self.skip
    }
}

/// What the catalogue says of a table.
pub struct Table {
    oid: pg_sys::Oid,
    /// Quoted, with its schema.
    pub name: String,
    pub plain_name: String,
    kind: String,
    persistence: String,
    owned: bool,
    /// Policies hold for the owner, too, so that what runs with its rights may not see every row.
    forces_policies: bool,
    has_children: bool,
}

impl Table {
    pub fn describe(oid: pg_sys::Oid) -> SqlResult<Self> {
        let _rights = Rights::of_caller();
        Spi::connect_mut(|client| {
            let query = "SELECT format('%I.%I', n.nspname, c.relname), c.relname::text, c.relkind::text, c.relpersistence::text, \
                     pg_catalog.pg_has_role(c.relowner, 'USAGE'), \
                     c.relrowsecurity AND c.relforcerowsecurity AND NOT (r.rolsuper OR r.rolbypassrls), \
                     c.relkind <> 'p' AND EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid) \
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 JOIN pg_catalog.pg_roles r ON r.oid = c.relowner WHERE c.oid = $1";
            let rows = client.update(query, Some(1), &[oid.into()]).map_err(spi)?;
            let missing = || {
                with_sqlstate(
                    PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                    Error::new(Kind::InvalidInput, format!("there is no table with oid {}", oid.to_u32())),
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
        Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            Error::new(Kind::InvalidInput, format!("must be owner of table {}", self.name)),
        ))
    }

    /// Tables of Citus have their rows elsewhere.
    fn check_local(&self) -> SqlResult<()> {
        let _rights = Rights::of_caller();
        Spi::connect(|client| {
            citus::refuse(
                client,
                self.oid,
                "it can't be watched",
                "Its rows are in shards, mostly on other servers; a watch, its queue and its groups are of this server.",
                "Embed where the rows are: UPDATE … SET embedding = clip_embed_image(data, model), or a trigger of your \
                 own that does (docs/citus.md).",
            )
        })
    }

    fn check(&self, queued: bool) -> SqlResult<()> {
        self.check_owner()?;
        self.check_local()?;
        let refuse = |code, what: &str| {
            Err(with_sqlstate(code, Error::new(Kind::InvalidInput, format!("{} {what}", self.name))))
        };
        if self.kind != "r" && self.kind != "p" {
            return refuse(PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE, "is not a table, so it can't be watched");
        }
        if self.persistence == "t" {
            return refuse(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "is a temporary table, and a watch outlives the session",
            );
        }
        if queued && self.forces_policies {
            return Err(with_sqlstate(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Error::new(Kind::InvalidInput, format!("{} forces its policies on its owner", self.name))
                    .detail(
                        "The background worker reads and writes rows with the owner's rights, and must see them all.",
                    )
                    .hint(
                        "ALTER TABLE … NO FORCE ROW LEVEL SECURITY, an owner with BYPASSRLS, or mode => 'immediate'.",
                    ),
            ));
        }
        Ok(())
    }

    /// The columns of the primary key, or else of another key that tells rows apart for good.
    fn key(&self, client: &mut SpiClient<'_>) -> SqlResult<Vec<String>> {
        let query = "SELECT k.names FROM pg_catalog.pg_index i, LATERAL (\
                 SELECT pg_catalog.array_agg(a.attname::text ORDER BY u.n) AS names, pg_catalog.bool_and(a.attnotnull) AS certain \
                 FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS u (attnum, n) \
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum WHERE u.n <= i.indnkeyatts) AS k \
             WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL \
                 AND k.certain ORDER BY i.indisprimary DESC, i.indisreplident DESC, i.indexrelid";
        let rows = client.update(query, Some(1), &[self.oid.into()]).map_err(spi)?;
        let key = rows.into_iter().next().map(|row| get::<Vec<Option<String>>>(&row, 1)).transpose()?.flatten();
        let key: Vec<String> = key.unwrap_or_default().into_iter().flatten().collect();
        if key.is_empty() {
            let query =
                "SELECT 1 FROM pg_catalog.pg_index i WHERE i.indrelid = $1 AND i.indisprimary AND NOT i.indimmediate";
            let deferrable = !client.update(query, Some(1), &[self.oid.into()]).map_err(spi)?.is_empty();
            let (what, why, way_out) = if deferrable {
                (
                    format!("the primary key of {} is deferrable", self.name),
                    "Rows that are yet to be embedded, or could not be, are noted by their key; two may have one for a while.",
                    format!("Make it anew without DEFERRABLE, or a unique index on NOT NULL columns of {}.", self.name),
                )
            } else {
                (
                    format!("{} has no primary key", self.name),
                    "Rows that are yet to be embedded, or could not be, are noted by their key.",
                    format!("ALTER TABLE {} ADD PRIMARY KEY (…), or a unique index on NOT NULL columns.", self.name),
                )
            };
            return Err(with_sqlstate(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                Error::new(Kind::InvalidInput, what).detail(why).hint(way_out),
            ));
        }
        Ok(key)
    }

    fn column(&self, client: &mut SpiClient<'_>, name: &str) -> SqlResult<Option<Column>> {
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

    fn known_column(&self, client: &mut SpiClient<'_>, name: &str) -> SqlResult<Column> {
        self.column(client, name)?.ok_or_else(|| {
            with_sqlstate(
                PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
                Error::new(Kind::InvalidInput, format!("table {} has no column \"{name}\"", self.name)),
            )
        })
    }
}

struct Column {
    kind: pg_sys::Oid,
    shown: String,
    modifier: i32,
    generated: bool,
}

/// The columns that are embedded: of images, of texts.
fn sources(
    client: &mut SpiClient<'_>,
    table: &Table,
    source: &str,
    text_source: Option<&str>,
) -> SqlResult<(Option<String>, Option<String>)> {
    let mut kinds = Vec::new();
    for name in [Some(source), text_source].into_iter().flatten() {
        let column = table.known_column(client, name)?;
        if column.generated {
            return Err(with_sqlstate(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                Error::new(Kind::InvalidInput, format!("column \"{name}\" of {} is generated", table.name))
                    .detail("PostgreSQL computes it after the trigger that would embed it.")
                    .hint("Watch the column that it is made of, or have a trigger of your own make it."),
            ));
        }
        kinds.push(match column.kind {
            pg_sys::BYTEAOID => true,
            pg_sys::TEXTOID | pg_sys::VARCHAROID => {
                if let Some(encoding) = foreign_encoding() {
                    return Err(report(
                        Error::new(
                            Kind::Unsupported,
                            format!("texts of a database of encoding {encoding} can't be embedded"),
                        )
                        .detail("They are read as UTF-8.")
                        .hint("Use a database of encoding UTF8."),
                    ));
                }
                false
            }
            _ => {
                return Err(with_sqlstate(
                    PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                    Error::new(
                        Kind::InvalidInput,
                        format!("column \"{name}\" of {} is of type {}, not bytea or text", table.name, column.shown),
                    ),
                ));
            }
        });
    }
    match (kinds.as_slice(), text_source) {
        ([true], _) => Ok((Some(source.to_owned()), None)),
        ([false], _) => Ok((None, Some(source.to_owned()))),
        ([true, false], Some(text)) => Ok((Some(source.to_owned()), Some(text.to_owned()))),
        _ => Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            Error::new(Kind::InvalidInput, "two sources are an image (bytea) and a text")
                .hint("source => the column with images, text_source => the one with texts"),
        )),
    }
}

#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments)]
fn clip_watch(
    relation: Option<Regclass>,
    source: Option<&str>,
    embedding: default!(Option<&str>, "'embedding'"),
    cluster: default!(Option<&str>, "NULL"),
    model: default!(Option<&str>, "NULL"),
    collection: default!(Option<&str>, "NULL"),
    mode: default!(Option<&str>, "'immediate'"),
    on_error: default!(Option<&str>, "'raise'"),
    text_source: default!(Option<&str>, "NULL"),
    text_weight: default!(Option<f64>, "0.5"),
    threshold: default!(Option<f64>, "NULL"),
    index: default!(Option<bool>, "false"),
) -> SqlResult<()> {
    let oid = table_of(relation)?;
    let text_weight = given("text_weight", text_weight)?;
    let choice = |name: &str, value: &str, first: &str, second: &str| match value {
        _ if value == first => Ok(false),
        _ if value == second => Ok(true),
        _ => Err(report(
            Error::new(Kind::InvalidInput, format!("{name} \"{value}\" is unknown"))
                .hint(format!("Use '{first}' or '{second}'.")),
        )),
    };
    let wanted = Wanted {
        source: given("source", source)?,
        text_source,
        text_weight,
        embedding: given("embedding", embedding)?,
        cluster,
        model,
        collection,
        queued: choice("mode", given("mode", mode)?, "immediate", "queued")?,
        skip: choice("on_error", given("on_error", on_error)?, "raise", "skip")?,
        threshold,
        index: given("index", index)?,
        half: false,
        replaces: None,
    };
    if !(text_weight > 0.0 && text_weight < 1.0) {
        return Err(report(
            Error::new(Kind::InvalidInput, format!("text_weight {text_weight} is not between 0 and 1"))
                .detail("It is the text's share in the mean of an image's vector and a text's."),
        ));
    }
    let of_clusters = [("threshold", threshold.is_some()), ("collection", collection.is_some())];
    if let Some((name, _)) = of_clusters.iter().find(|(_, given)| *given && cluster.is_none()) {
        return Err(report(
            Error::new(Kind::InvalidInput, format!("{name} is of clusters, and rows are not grouped without a column"))
                .hint("Name it, cluster => 'cluster_id', or leave the argument out."),
        ));
    }
    watch(oid, &wanted).map(drop)
}

/// The table that a function is called for.
pub fn table_of(relation: Option<Regclass>) -> SqlResult<pg_sys::Oid> {
    relation.map(|Regclass(oid)| oid).ok_or_else(|| {
        with_sqlstate(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            Error::new(Kind::InvalidInput, "the table is NULL").hint("Give its name, or oid."),
        )
    })
}

/// What is asked for.
pub struct Wanted<'a> {
    pub source: &'a str,
    pub text_source: Option<&'a str>,
    pub text_weight: f64,
    pub embedding: &'a str,
    pub cluster: Option<&'a str>,
    /// None: what it is already, else that of clip_search.model.
    pub model: Option<&'a str>,
    /// None: what it is already, else one named like the table.
    pub collection: Option<&'a str>,
    pub queued: bool,
    pub skip: bool,
    pub threshold: Option<f64>,
    pub index: bool,
    /// Whether a column that is made is a halfvec.
    pub half: bool,
    pub replaces: Option<i64>,
}

pub fn watch(oid: pg_sys::Oid, wanted: &Wanted<'_>) -> SqlResult<Watch> {
    let Wanted { embedding, cluster, queued, .. } = *wanted;
    let store = Store::open(c"clip_watch()");
    // PostgreSQL cuts longer names, which then can't be found by what was given.
    let long = |name: &&str| name.len() >= pg_sys::NAMEDATALEN as usize;
    if let Some(name) = [Some(embedding), cluster].into_iter().flatten().find(long) {
        return Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_NAME_TOO_LONG,
            Error::new(Kind::InvalidInput, format!("column name \"{name}\" has {} bytes", name.len()))
                .detail("PostgreSQL's names have 63 at most."),
        ));
    }
    let table = Table::describe(oid)?;
    table.check(queued)?;
    if table.has_children {
        pgrx::warning!("rows of the tables that inherit from {} are not watched", table.name);
    }
    // As clip_create_collection is by GRANT: whether somebody else's clusters may become this table's.
    let may_take = Spi::connect_mut(|client| {
        let query = format!(
            "SELECT pg_catalog.has_function_privilege(p.oid, 'EXECUTE') FROM pg_catalog.pg_proc p \
             WHERE p.proname OPERATOR(pg_catalog.=) 'clip_create_collection' AND p.pronamespace OPERATOR(pg_catalog.=) {}::pg_catalog.regnamespace",
            quote_literal(own_schema(client)?)
        );
        Ok::<_, pg_sys::panic::ErrorReport>(
            client.update(&query, Some(1), &[]).map_err(spi)?.first().get::<bool>(1).map_err(spi)?.unwrap_or_default(),
        )
    })?;

    // The table, with the caller's rights.
    let caller = Rights::of_caller();
    table.lock("SHARE ROW EXCLUSIVE")?;
    let (image, text, key, existing) = Spi::connect_mut(|client| {
        let (image, text) = sources(client, &table, wanted.source, wanted.text_source)?;
        Ok::<_, pg_sys::panic::ErrorReport>((image, text, table.key(client)?, existing(client, oid, embedding)?))
    })?;
    // As long as the lock was waited for, another table might have come to have that name.
    if Table::describe(oid)?.name != table.name {
        return Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            Error::new(Kind::InvalidInput, format!("{} has just been renamed", table.name)).hint("Try again."),
        ));
    }
    if let Some(existing) = &existing {
        check_change(existing, wanted, image.as_deref(), text.as_deref())?;
    }
    let model = wanted.model.map(str::to_owned).or_else(|| existing.as_ref().map(|known| known.model.clone()));
    let model = model.unwrap_or_else(guc::model);
    let dimensions = loaded::dimensions(&model, image.is_some())?;
    if image.is_some() && text.is_some() {
        let of_texts = loaded::dimensions(&model, false)?;
        if of_texts != dimensions {
            return Err(report(Error::new(
                Kind::BadModel,
                format!(
                    "model \"{model}\" makes vectors of {dimensions} dimensions of images and of {of_texts} of texts"
                ),
            )));
        }
    }
    if let Some(cluster) = cluster {
        check_cluster(&table, embedding, cluster, &key)?;
    }
    let schema = vector::schema();
    let (added, added_index) = Spi::connect_mut(|client| {
        let mut added = Vec::new();
        match table.column(client, embedding)? {
            Some(column) => check_embedding(&table, embedding, &column, dimensions)?,
            None => {
                alter(
                    client,
                    &table,
                    &format!(
                        "ADD COLUMN {} {schema}.{}({dimensions})",
                        quote_identifier(embedding),
                        if wanted.half { "halfvec" } else { "vector" }
                    ),
                )?;
                added.push(embedding.to_owned());
            }
        }
        if let Some(cluster) = cluster {
            match table.column(client, cluster)? {
                Some(column) if column.kind != pg_sys::INT8OID || column.generated => {
                    return Err(with_sqlstate(
                        PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                        Error::new(
                            Kind::InvalidInput,
                            format!(
                                "column \"{cluster}\" of {} is of type {}, not a plain bigint",
                                table.name, column.shown
                            ),
                        ),
                    ));
                }
                Some(_) => {}
                None => {
                    alter(client, &table, &format!("ADD COLUMN {} bigint", quote_identifier(cluster)))?;
                    added.push(cluster.to_owned());
                }
            }
        }
        let made = if wanted.index && !has_index(client, &table, embedding)? {
            Some(create_index(client, &table, embedding, &schema)?)
        } else {
            None
        };
        Ok::<_, pg_sys::panic::ErrorReport>((added, made))
    })?;
    drop(caller);

    // The extension's own tables.
    let rights = Rights::of_extension();
    let known = existing.as_ref().and_then(|known| known.collection.as_deref());
    let collection = cluster.map(|_| wanted.collection.or(known).unwrap_or(&table.plain_name).to_owned());
    let id = Spi::connect_mut(|client| {
        forget_dropped(client, &store)?;
        // What is noted by another key names no row any more. The rows are missing, and found as such.
        if let Some(known) = existing.as_ref().filter(|known| known.key != key) {
            queue::forget_lists(client, known.id)?;
        }
        // Where the embeddings or the clusters' ids had been dropped, no row is in a cluster any more.
        if let Some(collection) = known.filter(|_| !added.is_empty()) {
            store.take(collection, true);
            statements::clear(client, collection)?;
        }
        let made = match (&collection, cluster) {
            (Some(collection), Some(cluster)) => {
                let key = name_of_members(client, oid, &key)?;
                let bind = Bind { collection, model: &model, dimensions, cluster, key: &key, may_take };
                bind.run(client, &store, oid, wanted)?
            }
            _ => false,
        };
        let query = "INSERT INTO clip_search.watch_setting AS w \
                 (relation, image, text, text_weight, embedding, cluster, model, collection, queued, skip, key, replaces, \
                  added_columns, added_index, added_collection) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::text[]::name[], $12, $13::text[]::name[], $14, $15) \
             ON CONFLICT (relation, embedding) DO UPDATE SET cluster = excluded.cluster, model = excluded.model, \
                 collection = excluded.collection, queued = excluded.queued, skip = excluded.skip, key = excluded.key, \
                 added_columns = w.added_columns || excluded.added_columns, \
                 added_index = coalesce(w.added_index, excluded.added_index), \
                 added_collection = w.added_collection OR excluded.added_collection RETURNING w.id";
        let arguments: [DatumWithOid<'_>; 15] = [
            oid.into(),
            image.as_deref().into(),
            text.as_deref().into(),
            wanted.text_weight.into(),
            embedding.into(),
            cluster.into(),
            model.as_str().into(),
            collection.as_deref().into(),
            queued.into(),
            wanted.skip.into(),
            key.clone().into(),
            wanted.replaces.into(),
            added.into(),
            added_index.into(),
            made.into(),
        ];
        let id = client.update(query, None, &arguments).map_err(spi)?.first().get::<i64>(1).map_err(spi)?;
        id.ok_or_else(|| report(Error::new(Kind::Internal, "a watch has no id")))
    })?;
    drop(rights);

    let watch = Watch::by_id(id)?.ok_or_else(|| report(Error::new(Kind::Internal, "a watch is gone at once")))?;
    {
        let _caller = Rights::of_caller();
        Spi::connect_mut(|client| create_triggers(client, &table, &watch))?;
    }
    if queued {
        queue::enqueue_missing(&watch)?;
        worker::wake_at_commit();
        let missing = match (worker::is_preloaded(), guc::worker()) {
            (false, _) => Some((
                "clip_search is not in shared_preload_libraries, so the server has not started one.",
                "Add it there and restart the server",
            )),
            (true, false) => Some(("clip_search.worker is off.", "Set it to on and reload the server's configuration")),
            (true, true) => None,
        };
        if let Some((why, way_out)) = missing.filter(|_| wanted.replaces.is_none()) {
            let call = format!("CALL clip_backfill({})", quote_literal(&table.name));
            warn(
                Error::new(Kind::Unsupported, format!("no background worker will embed the rows of {}", table.name))
                    .detail(why)
                    .hint(format!("{way_out}; until then {call} embeds what is queued.")),
            );
        }
    } else if wanted.replaces.is_none() && !table.forces_policies && queue::any_missing(&watch)? {
        pgrx::notice!(
            "rows of {} that are there already have no embedding yet: CALL clip_backfill({});",
            table.name,
            quote_literal(&table.name)
        );
    }
    Ok(watch)
}

/// Removes what is left of watches whose tables have been dropped, or that are no more.
fn forget_dropped(client: &mut SpiClient<'_>, store: &Store) -> SqlResult<()> {
    let query = "DELETE FROM clip_search.watch_setting w \
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = w.relation::oid) \
         RETURNING CASE WHEN w.added_collection THEN w.collection END";
    let gone: Vec<Option<String>> =
        client.update(query, None, &[]).map_err(spi)?.map(|row| get(&row, 1)).collect::<SqlResult<_>>()?;
    for collection in gone.into_iter().flatten() {
        store.take(&collection, true);
        drop_rows(client, &collection)?;
    }
    // Of those, and what others had in hand when clip_unwatch was called.
    for table in ["watch_queue", "watch_failure"] {
        let query = format!(
            "DELETE FROM clip_search.{table} WHERE ctid = ANY (ARRAY(SELECT l.ctid FROM clip_search.{table} l \
             WHERE NOT EXISTS (SELECT FROM clip_search.watch_setting w WHERE w.id = l.watch) FOR UPDATE OF l SKIP LOCKED))"
        );
        client.update(&query, None, &[]).map_err(spi)?;
    }
    Ok(())
}

fn alter(client: &mut SpiClient<'_>, table: &Table, what: &str) -> SqlResult<()> {
    client.update(&format!("ALTER TABLE {} {what}", table.name), None, &[]).map(drop).map_err(spi)
}

fn existing(client: &mut SpiClient<'_>, oid: pg_sys::Oid, embedding: &str) -> SqlResult<Option<Watch>> {
    let _rights = Rights::of_extension();
    let condition = "w.embedding = $2 AND (w.relation::oid = $1 OR w.relation IN (SELECT pg_catalog.pg_partition_ancestors($1::oid) \
         UNION SELECT relid FROM pg_catalog.pg_partition_tree($1::oid)))";
    let mut found = Watch::find(client, condition, &[oid.into(), embedding.into()])?;
    if let Some(other) = found.iter().find(|watch| watch.relation != oid) {
        return Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            Error::new(Kind::InvalidInput, format!("column \"{embedding}\" is watched by {} already", other.name()))
                .hint("A partitioned table is watched as a whole, or partition by partition."),
        ));
    }
    Ok(found.pop())
}

/// What may not be changed about a watch, since the embeddings that are there would be wrong.
fn check_change(existing: &Watch, wanted: &Wanted<'_>, image: Option<&str>, text: Option<&str>) -> SqlResult<()> {
    let refuse = |message: String, hint: &str| {
        Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Error::new(Kind::InvalidInput, message).hint(hint),
        ))
    };
    let column = &existing.embedding;
    if let Some(model) = wanted.model
        && loaded::base_name(&existing.model) != loaded::base_name(model)
    {
        return refuse(
            format!("column \"{column}\" holds vectors of model \"{}\", not of \"{model}\"", existing.model),
            "Vectors of different models don't mix: CALL clip_reembed(table, model) changes the model.",
        );
    }
    let weight = existing.image.is_none() || existing.text.is_none() || existing.text_weight == wanted.text_weight;
    if existing.image.as_deref() != image || existing.text.as_deref() != text || !weight {
        return refuse(
            format!("column \"{column}\" is watched with another source already"),
            "clip_unwatch it first, with its column if the embeddings are to be made anew.",
        );
    }
    if existing.cluster.is_some()
        && (existing.cluster.as_deref() != wanted.cluster
            || wanted.collection.is_some_and(|wanted| existing.collection.as_deref() != Some(wanted)))
    {
        return refuse(
            format!("column \"{column}\" is watched with another cluster column or collection already"),
            "clip_unwatch it first.",
        );
    }
    if existing.replaces != wanted.replaces {
        return refuse(
            format!("column \"{column}\" is being filled by clip_reembed"),
            "Let it finish, or clip_unwatch that column.",
        );
    }
    Ok(())
}

/// A column that is written by this watch alone.
fn check_cluster(table: &Table, embedding: &str, cluster: &str, key: &[String]) -> SqlResult<()> {
    let refuse = |what: String| {
        Err(report(
            Error::new(Kind::InvalidInput, format!("column \"{cluster}\" of {} {what}", table.name))
                .detail("It is overwritten with the id of each row's cluster.")
                .hint("Name another; one that is not there is made."),
        ))
    };
    if key.iter().any(|column| column == cluster) {
        return refuse("is part of its key".to_owned());
    }
    let others = {
        let _rights = Rights::of_extension();
        let condition = "w.relation::oid = $1 AND w.embedding <> $2 AND w.cluster = $3";
        Spi::connect_mut(|client| {
            Watch::find(client, condition, &[table.oid.into(), embedding.into(), cluster.into()])
        })?
    };
    match others.first() {
        Some(other) => refuse(format!("has the clusters of column \"{}\" already", other.embedding)),
        None => Ok(()),
    }
}

fn check_embedding(table: &Table, name: &str, column: &Column, dimensions: usize) -> SqlResult<()> {
    if Storage::of(column.kind).is_none() || column.generated {
        return Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            Error::new(
                Kind::InvalidInput,
                format!(
                    "column \"{name}\" of {} is of type {}, not a plain vector or halfvec",
                    table.name, column.shown
                ),
            ),
        ));
    }
    if column.modifier != -1 && column.modifier as usize != dimensions {
        return Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            Error::new(Kind::InvalidInput, format!("different vector dimensions {} and {dimensions}", column.modifier))
                .detail(format!("Column \"{name}\" of {} is of type {}.", table.name, column.shown)),
        ));
    }
    Ok(())
}

/// Whether embeddings are kept in half the space.
pub fn is_half(client: &mut SpiClient<'_>, table: &Table, embedding: &str) -> SqlResult<bool> {
    let column = table.column(client, embedding)?;
    Ok(column.and_then(|column| Storage::of(column.kind)).is_some_and(|storage| storage != Storage::Vector))
}

/// Whether an index for cosine distance is there.
fn has_index(client: &mut SpiClient<'_>, table: &Table, embedding: &str) -> SqlResult<bool> {
    let query = "SELECT 1 FROM pg_catalog.pg_index i JOIN pg_catalog.pg_opclass o ON o.oid = i.indclass[0] \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
         WHERE i.indrelid = $1 AND a.attname = $2 AND o.opcname IN ('vector_cosine_ops', 'halfvec_cosine_ops')";
    Ok(!client.update(query, Some(1), &[table.oid.into(), embedding.into()]).map_err(spi)?.is_empty())
}

/// PostgreSQL chooses the name, which comes back.
fn create_index(client: &mut SpiClient<'_>, table: &Table, embedding: &str, schema: &str) -> SqlResult<String> {
    let operators = if is_half(client, table, embedding)? { "halfvec_cosine_ops" } else { "vector_cosine_ops" };
    let embedding = quote_identifier(embedding);
    const NEWEST: &str = "SELECT c.relname::text FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
         WHERE i.indrelid = $1 ORDER BY c.oid::bigint";
    let names = |client: &mut SpiClient<'_>| {
        let rows = client.update(NEWEST, None, &[table.oid.into()]).map_err(spi)?;
        rows.into_iter().map(|row| Ok(get::<String>(&row, 1)?.unwrap_or_default())).collect::<SqlResult<Vec<_>>>()
    };
    let before = names(client)?;
    let query = format!("CREATE INDEX ON {} USING hnsw ({embedding} {schema}.{operators})", table.name);
    client.update(&query, None, &[]).map_err(spi)?;
    Ok(names(client)?.into_iter().find(|name| !before.contains(name)).unwrap_or_default())
}

/// The column by which groups name their members: the last of the key that is not there for the partitions' sake.
fn name_of_members(client: &mut SpiClient<'_>, table: pg_sys::Oid, key: &[String]) -> SqlResult<String> {
    let query = "SELECT a.attname::text FROM unnest($2::text[]) WITH ORDINALITY AS u (name, n) \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attname = u.name \
         LEFT JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = $1 \
         ORDER BY coalesce(a.attnum = ANY (p.partattrs::int2[]), false), u.n DESC";
    let rows = client.update(query, Some(1), &[table.into(), key.to_vec().into()]).map_err(spi)?;
    Ok(rows.first().get::<String>(1).map_err(spi)?.unwrap_or_default())
}

struct Bind<'a> {
    collection: &'a str,
    model: &'a str,
    dimensions: usize,
    cluster: &'a str,
    key: &'a str,
    may_take: bool,
}

impl Bind<'_> {
    /// Tells a collection that the table holds its members; whether it was made for that.
    fn run(
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
        let settings = [
            name.into(),
            table.into(),
            wanted.embedding.into(),
            self.cluster.into(),
            self.key.into(),
            (self.dimensions as i32).into(),
            self.model.into(),
            wanted.threshold.into(),
        ];
        match found {
            Some((Some(members), Some(true))) if members == table => {
                // A key that somebody has chosen stays; one that has been renamed, or dropped, is followed.
                let query = "UPDATE clip_search.collection_setting s SET threshold = coalesce($3, s.threshold), \
                         key = CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = $4 AND a.attname = s.key \
                                                 AND NOT a.attisdropped) THEN s.key ELSE $2 END WHERE s.name = $1";
                let arguments = [name.into(), self.key.into(), wanted.threshold.into(), table.into()];
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
        let known = crate::cluster::assign::Collection::find(store, name)?.dimensions;
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
        if (found.is_some() || known.is_some()) && !self.may_take {
            return Err(with_sqlstate(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                Error::new(Kind::InvalidInput, format!("collection \"{name}\" exists already, and may be others'"))
                    .hint("Name another: collection => …, or have the right to execute clip_create_collection."),
            ));
        }
        let query = if found.is_some() {
            "UPDATE clip_search.collection_setting SET members = $2, embedding = $3, cluster = $4, key = $5, dimensions = $6, \
                 model = coalesce(model, $7), threshold = coalesce($8, threshold) WHERE name = $1"
        } else {
            "INSERT INTO clip_search.collection_setting (name, members, embedding, cluster, key, dimensions, model, threshold) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
        };
        client.update(query, None, &settings).map_err(spi)?;
        Ok(found.is_none())
    }
}

/// The names sort behind most others', since triggers fire by name: ones that prepare the image come first.
fn trigger_names(watch: i64) -> [String; 3] {
    ["", "_after", "_truncate"].map(|end| format!("zz_clip_watch_{watch}{end}"))
}

pub fn drop_triggers(client: &mut SpiClient<'_>, relation: pg_sys::Oid, name: &str, watch: i64) -> SqlResult<()> {
    for trigger in trigger_names(watch) {
        let there = "SELECT 1 FROM pg_catalog.pg_trigger WHERE tgrelid = $1 AND tgname = $2";
        if !client.update(there, Some(1), &[relation.into(), trigger.as_str().into()]).map_err(spi)?.is_empty() {
            client.update(&format!("DROP TRIGGER {trigger} ON {name}"), None, &[]).map_err(spi)?;
        }
    }
    Ok(())
}

/// Drops triggers of watches that are not there: a dump of the schema alone, or of a single table, brings such.
fn drop_orphans(client: &mut SpiClient<'_>, table: &Table) -> SqlResult<()> {
    let known: Vec<String> = {
        let _rights = Rights::of_extension();
        let query = "SELECT w.id::text FROM clip_search.watch_setting w WHERE w.relation::oid = $1";
        let rows = client.update(query, None, &[table.oid.into()]).map_err(spi)?;
        rows.into_iter().map(|row| Ok(get(&row, 1)?.unwrap_or_default())).collect::<SqlResult<_>>()?
    };
    let query = format!(
        "SELECT pg_catalog.quote_ident(t.tgname) FROM pg_catalog.pg_trigger t WHERE t.tgrelid = $1 AND NOT t.tgisinternal \
             AND t.tgparentid = 0 AND t.tgfoid = {}::regprocedure::oid \
             AND t.tgargs <> ALL (SELECT pg_catalog.convert_to(k.id, 'UTF8') || pg_catalog.decode('00', 'hex') FROM unnest($2::text[]) AS k (id))",
        quote_literal(format!("{}.clip_watch_row()", own_schema(client)?))
    );
    let rows = client.update(&query, None, &[table.oid.into(), known.into()]).map_err(spi)?;
    let orphans =
        rows.into_iter().map(|row| Ok(get::<String>(&row, 1)?.unwrap_or_default())).collect::<SqlResult<Vec<_>>>()?;
    for trigger in orphans {
        client.update(&format!("DROP TRIGGER {trigger} ON {}", table.name), None, &[]).map_err(spi)?;
    }
    Ok(())
}

/// Warns of a trigger that fires after this watch's, and may change what has been embedded by then.
fn warn_of_later(client: &mut SpiClient<'_>, table: &Table, watch: &Watch) -> SqlResult<()> {
    // For each row, before INSERT or UPDATE: the bits of tgtype.
    let query = format!(
        "SELECT t.tgname::text FROM pg_catalog.pg_trigger t WHERE t.tgrelid = $1 AND NOT t.tgisinternal AND t.tgtype & 3 = 3 \
             AND t.tgtype & 20 <> 0 AND t.tgname > $2::name AND t.tgfoid <> {}::regprocedure::oid ORDER BY t.tgname",
        quote_literal(format!("{}.clip_watch_row()", own_schema(client)?))
    );
    let [name, ..] = trigger_names(watch.id);
    let rows = client.update(&query, Some(1), &[table.oid.into(), name.as_str().into()]).map_err(spi)?;
    if let Some(later) = rows.into_iter().next().map(|row| get::<String>(&row, 1)).transpose()?.flatten() {
        warn(
            Error::new(
                Kind::Unsupported,
                format!("trigger \"{later}\" of {} fires after the one that embeds", table.name),
            )
            .detail("Triggers fire by name. If it changes the source, what was there before is embedded.")
            .hint(format!("ALTER TRIGGER … RENAME TO a name that sorts before \"{name}\".")),
        );
    }
    Ok(())
}

pub fn create_triggers(client: &mut SpiClient<'_>, table: &Table, watch: &Watch) -> SqlResult<()> {
    drop_triggers(client, table.oid, &table.name, watch.id)?;
    drop_orphans(client, table)?;
    warn_of_later(client, table, watch)?;
    let function = format!("{}.clip_watch_row('{}')", own_schema(client)?, watch.id);
    let [before, after, truncate] = trigger_names(watch.id);
    // An update that moves a row to another partition is a deletion and an insertion to them; the trigger has to see
    // the deletion to know one.
    let moves = if table.kind == "p" { " OR DELETE" } else { "" };
    let inserts = if watch.needs_after_insert() { "INSERT OR " } else { "" };
    for statement in [
        format!("CREATE TRIGGER {before} BEFORE INSERT OR UPDATE{moves} ON {} FOR EACH ROW", table.name),
        format!("CREATE TRIGGER {after} AFTER {inserts}UPDATE OR DELETE ON {} FOR EACH ROW", table.name),
        format!("CREATE TRIGGER {truncate} AFTER TRUNCATE ON {} FOR EACH STATEMENT", table.name),
    ] {
        client.update(&format!("{statement} EXECUTE FUNCTION {function}"), None, &[]).map_err(spi)?;
    }
    Ok(())
}

#[pg_extern(volatile, parallel_unsafe)]
fn clip_unwatch(
    relation: Option<Regclass>,
    embedding: default!(Option<&str>, "NULL"),
    keep_columns: default!(Option<bool>, "false"),
) -> SqlResult<()> {
    let keep_columns = given("keep_columns", keep_columns)?;
    tables::check_writable(c"clip_unwatch()");
    let watch = Watch::one_of_table(table_of(relation)?, embedding)?;
    // What was to take its place goes first.
    if let Some(replacement) = Watch::replacing(watch.id)? {
        unwatch(&replacement, false)?;
    }
    unwatch(&watch, keep_columns)
}

/// Removes what a watch has added.
pub fn unwatch(watch: &Watch, keep_columns: bool) -> SqlResult<()> {
    let store = Store::open(c"clip_unwatch()");
    let table = Table::describe(watch.relation)?;
    // Who works on its rows is waited for here, where nothing is held yet that they would wait for.
    table.lock("ACCESS EXCLUSIVE")?;
    let (columns, index, collection) = {
        let _rights = Rights::of_extension();
        Spi::connect_mut(|client| {
            let query = "DELETE FROM clip_search.watch_setting WHERE id = $1 \
                 RETURNING added_columns::text[], added_index::text, added_collection";
            let rows = client.update(query, None, &[watch.id.into()]).map_err(spi)?;
            let row = rows.into_iter().next();
            let (columns, index, collection) = match &row {
                Some(row) => (
                    get::<Vec<Option<String>>>(row, 1)?.unwrap_or_default(),
                    get::<String>(row, 2)?,
                    get::<bool>(row, 3)?.unwrap_or_default(),
                ),
                None => (Vec::new(), None, false),
            };
            queue::forget_lists(client, watch.id)?;
            Ok::<_, pg_sys::panic::ErrorReport>((columns.into_iter().flatten().collect::<Vec<_>>(), index, collection))
        })?
    };
    {
        let _caller = Rights::of_caller();
        Spi::connect_mut(|client| {
            drop_triggers(client, table.oid, &table.name, watch.id)?;
            if keep_columns {
                return Ok(());
            }
            if let Some(index) = index {
                let query = "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_index i \
                     JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                     WHERE i.indrelid = $1 AND c.relname = $2";
                let rows = client.update(query, Some(1), &[table.oid.into(), index.into()]).map_err(spi)?;
                if let Some(name) = rows.into_iter().next().map(|row| get::<String>(&row, 1)).transpose()?.flatten() {
                    client.update(&format!("DROP INDEX {name}"), None, &[]).map_err(spi)?;
                }
            }
            for column in &columns {
                let Some(there) = table.column(client, column)? else { continue };
                // Another may have that name since.
                let ours = match *column == watch.embedding {
                    true => Storage::of(there.kind).is_some(),
                    false => there.kind == pg_sys::INT8OID,
                };
                if there.generated || !ours {
                    pgrx::warning!("column \"{column}\" of {} is not the one that was added, and stays", table.name);
                } else {
                    alter(client, &table, &format!("DROP COLUMN {}", quote_identifier(column)))?;
                }
            }
            Ok::<_, pg_sys::panic::ErrorReport>(())
        })?;
    }
    if let Some(name) = watch.collection.as_deref().filter(|_| collection && !keep_columns) {
        let _rights = Rights::of_extension();
        store.take(name, true);
        Spi::connect_mut(|client| drop_rows(client, name))?;
    }
    Ok(())
}

pub fn spi(error: pgrx::spi::Error) -> pg_sys::panic::ErrorReport {
    report(Error::new(Kind::Internal, "a watched table could not be read or written").detail(error.to_string()))
}
