//! A watch: a row of clip_search.watch_setting, and the code that reads it.

use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiHeapTupleData, quote_identifier};

use crate::pg::catalog::{self, Lock, Table};
use crate::pg::citus::{self, Place};
use crate::pg::error::{SqlResult, report, sql_error};
use crate::pg::owners_table::{OwnersTable, TableClient};
use crate::pg::regclass::Regclass;
use crate::pg::spi::{get, spi};
use crate::pg::user_context::{UserContext, as_extension};

/// A watched column, and its settings.
#[derive(Clone, Debug)]
pub struct Watch {
    pub id: i64,
    pub relation: pg_sys::Oid,
    /// Quoted, for use in queries. Excludes the rows of child tables, which have no trigger.
    pub table: String,
    pub owner: pg_sys::Oid,
    pub image: Option<String>,
    pub text: Option<String>,
    /// The weight of the text's vector in a row that also has an image.
    pub text_weight: f64,
    pub embedding: String,
    pub cluster: Option<String>,
    /// The column of tags.
    pub tags: Option<String>,
    pub model: String,
    pub collection: Option<String>,
    pub queued: bool,
    pub skip: bool,
    pub key: Vec<String>,
    /// The watch whose column this watch's column will replace.
    pub replaces: Option<i64>,
    /// Set if Citus distributes the table, or if the table is a shard.
    pub home: Option<Home>,
}

/// The place of a watch in a Citus cluster.
#[derive(Clone, Debug)]
pub struct Home {
    /// For a shard: the id of the distributed table's watch, which is on the coordinator. None for the distributed
    /// table itself.
    pub parent: Option<i64>,
    /// The shard's column of clusters, whose values the coordinator assigns.
    pub cluster: Option<String>,
    /// The quoted name of the table of departures, which receives the rows that leave a cluster.
    pub departures: Option<String>,
}

/// The columns "tags" and "home" don't exist before ALTER EXTENSION clip_search UPDATE.
const COLUMNS: &str = "w.id, w.relation::oid, format('%I.%I', n.nspname, c.relname), c.relkind = 'p', c.relowner, \
     w.image::text, w.text::text, w.text_weight, w.embedding::text, w.cluster::text, w.model, w.collection, w.queued, w.skip, \
     w.key::text[], w.replaces, pg_catalog.to_jsonb(w) ->> 'tags', h.home IS NOT NULL, (h.home ->> 'parent')::bigint, \
     h.home ->> 'cluster', h.home ->> 'departures'";
const FROM: &str = "clip_search.watch_setting w JOIN pg_catalog.pg_class c ON c.oid = w.relation::oid \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     CROSS JOIN LATERAL (SELECT nullif(pg_catalog.to_jsonb(w) -> 'home', 'null'::jsonb)) AS h (home)";

impl Watch {
    fn read(row: &SpiHeapTupleData<'_>) -> SqlResult<Self> {
        let missing = || report(Error::new(Kind::Internal, "a row of clip_search.watch_setting has a NULL"));
        let relation = get(row, 2)?.ok_or_else(missing)?;
        let name = catalog::qualified_name(relation).or(get(row, 3)?).ok_or_else(missing)?;
        let partitioned: bool = get(row, 4)?.unwrap_or_default();
        let home = match get::<bool>(row, 18)? {
            Some(true) => Some(Home { parent: get(row, 19)?, cluster: get(row, 20)?, departures: get(row, 21)? }),
            _ => None,
        };
        let is_distributed = home.as_ref().is_some_and(|home| home.parent.is_none());
        Ok(Self {
            id: get(row, 1)?.ok_or_else(missing)?,
            relation,
            table: if partitioned || is_distributed { name } else { format!("ONLY {name}") },
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
            tags: get(row, 17)?,
            home,
        })
    }

    /// Watches that meet a condition; the caller has the extension's privileges.
    pub fn find(client: &mut SpiClient<'_>, condition: &str, arguments: &[DatumWithOid<'_>]) -> SqlResult<Vec<Self>> {
        let query = format!("SELECT {COLUMNS} FROM {FROM} WHERE {condition} ORDER BY w.id");
        client.update(&query, None, arguments).map_err(spi)?.map(|row| Self::read(&row)).collect()
    }

    /// The watch with this id, if its table exists.
    pub fn by_id(id: i64) -> SqlResult<Option<Self>> {
        as_extension(|client| Ok(Self::find(client, "w.id = $1", &[id.into()])?.pop()))
    }

    /// As above, with the table locked until the end of the transaction, so that it keeps its name. None if the watch
    /// or the table no longer exists.
    pub fn lock(id: i64, mode: Lock) -> SqlResult<Option<Self>> {
        let Some(watch) = Self::by_id(id)? else { return Ok(None) };
        catalog::lock(watch.relation, mode);
        Self::by_id(id)
    }

    /// As above, for a trigger on `relation`, which must be the watched table, or a partition or shard of it: every
    /// role may create such a trigger on its own tables.
    pub fn of_trigger(id: i64, relation: pg_sys::Oid) -> SqlResult<Option<Self>> {
        as_extension(|client| {
            let condition = "w.id = $1 AND (w.relation::oid = $2 OR w.relation IN (SELECT pg_catalog.pg_partition_ancestors($2::oid))) \
                 OR w.relation::oid = $2 AND (h.home ->> 'parent')::bigint = $1";
            Ok(Self::find(client, condition, &[id.into(), relation.into()])?.pop())
        })
    }

    /// The watch whose column will replace another watch's column.
    pub fn replacing(id: i64) -> SqlResult<Option<Self>> {
        as_extension(|client| Ok(Self::find(client, "w.replaces = $1", &[id.into()])?.pop()))
    }

    /// The watches of the background worker: those in queued mode, with enabled triggers. Among shards, only shards to
    /// which Citus sends queries on this server; in any mode if they were moved here, because the queue and the
    /// failures of a shard don't move with it.
    pub fn for_worker() -> SqlResult<Vec<Self>> {
        let _user_context = UserContext::of_extension();
        let mut found = Spi::connect_mut(|client| {
            let condition =
                "(w.queued OR (h.home ->> 'moved')::boolean) AND w.id IN (SELECT id FROM clip_search.watch_live)";
            Self::find(client, condition, &[])
        })?;
        if found.iter().any(|watch| watch.home.is_some()) {
            let mut is_here = Vec::with_capacity(found.len());
            for watch in &found {
                is_here.push(watch.is_worked_on_here()?);
            }
            let mut is_here = is_here.into_iter();
            found.retain(|_| is_here.next().unwrap_or_default());
        }
        Ok(found)
    }

    /// Whether this server embeds queued rows of the table. It does not for a distributed table, nor for a shard that
    /// Citus has moved away or is moving here.
    pub fn is_worked_on_here(&self) -> SqlResult<bool> {
        match &self.home {
            None => Ok(true),
            Some(Home { parent: None, .. }) => Ok(false),
            Some(_) => as_extension(|client| match citus::shard(client, self.relation)? {
                Some((_, shard)) => citus::is_active_here(client, shard),
                None => Ok(false),
            }),
        }
    }

    /// Whether this is the watch of a distributed table of Citus.
    pub fn is_distributed(&self) -> bool {
        self.home.as_ref().is_some_and(|home| home.parent.is_none())
    }

    /// The watches of a table that the caller owns: of one column, or all except watches whose columns will replace
    /// others.
    pub fn of_table(relation: pg_sys::Oid, embedding: Option<&str>) -> SqlResult<Vec<Self>> {
        let table = Table::describe(relation)?;
        table.check_owner()?;
        let found = {
            as_extension(|client| match embedding {
                Some(embedding) => Self::find(
                    client,
                    "w.relation::oid = $1 AND w.embedding = $2",
                    &[relation.into(), embedding.into()],
                ),
                None => Self::find(client, "w.relation::oid = $1 AND w.replaces IS NULL", &[relation.into()]),
            })?
        };
        if found.is_empty() {
            check_place(&table)?;
            return Err(Self::none_of(&table.name, embedding));
        }
        Ok(found)
    }

    /// Whether any column of a table is watched.
    pub fn is_any_of(relation: pg_sys::Oid) -> SqlResult<bool> {
        as_extension(|client| Ok(!Self::find(client, "w.relation::oid = $1", &[relation.into()])?.is_empty()))
    }

    /// The error for a table or a column that is not watched.
    pub fn none_of(table: &str, embedding: Option<&str>) -> pg_sys::panic::ErrorReport {
        let what = match embedding {
            Some(embedding) => format!("column \"{embedding}\" of {table} is not watched"),
            None => format!("table {table} is not watched"),
        };
        sql_error(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, what)
            .set_hint("SELECT * FROM clip_search.watch lists what is watched.")
    }

    /// The only watch of a table, or the watch of its column.
    pub fn one_of_table(relation: pg_sys::Oid, embedding: Option<&str>) -> SqlResult<Self> {
        let mut found = Self::of_table(relation, embedding)?;
        if found.len() > 1 {
            let names: Vec<&str> = found.iter().map(|watch| watch.embedding.as_str()).collect();
            return Err(sql_error(
                PgSqlErrorCode::ERRCODE_AMBIGUOUS_PARAMETER,
                format!("{} columns of the table are watched", found.len()),
            )
            .set_detail(format!("They are {}.", names.join(", ")))
            .set_hint("Say which: embedding => …"));
        }
        Ok(found.remove(0))
    }

    /// Locks the table until the end of the transaction; returns the watch as it is afterwards.
    pub fn locked(self, mode: Lock) -> SqlResult<Self> {
        Self::lock(self.id, mode)?.ok_or_else(|| {
            sql_error(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, format!("{} is not watched any more", self.name()))
                .set_detail("Another session has dropped the table or called clip_unwatch.")
        })
    }

    /// Runs statements on the table as its owner. They use the name that was read with the watch; if it now belongs to
    /// another table, they fail with 55006 before they are planned.
    pub fn as_owner<T>(&self, work: impl FnOnce(&mut TableClient<'_, '_>) -> SqlResult<T>) -> SqlResult<T> {
        let table = match self.table.starts_with("ONLY ") {
            true => OwnersTable::find_only(self.relation),
            false => OwnersTable::find(self.relation)?,
        };
        let gone =
            || sql_error(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, format!("{} does not exist any more", self.name()));
        let table = table.ok_or_else(gone)?;
        table.check_is_named(self.name())?;
        table.as_owner(work)
    }

    /// The table's name, for messages.
    pub fn name(&self) -> &str {
        self.table.trim_start_matches("ONLY ")
    }

    /// An expression that is true for rows with a source to embed.
    pub fn has_source(&self) -> String {
        let columns = [&self.image, &self.text].into_iter().flatten();
        columns.map(|column| format!("{} IS NOT NULL", quote_identifier(column))).collect::<Vec<_>>().join(" OR ")
    }

    /// Whether the AFTER trigger must fire on INSERT: only if the watch groups, queues or skips errors. clip_backfill
    /// and earlier settings list failures regardless of the current settings.
    pub fn needs_after_insert(&self) -> bool {
        self.cluster.is_some() || self.queued || self.skip
    }
}

/// The table that a function is called with. If Citus keeps it on the coordinator, this is the shard with its rows: the
/// table that was watched before Citus took it over has become that shard.
pub fn table_of(relation: Option<Regclass>) -> SqlResult<pg_sys::Oid> {
    let table = named_table(relation)?;
    if !citus::is_installed() {
        return Ok(table);
    }
    let _user_context = UserContext::of_caller();
    Ok(Spi::connect(|client| citus::kept(client, table))?.map_or(table, |(shard, _)| shard))
}

/// The table that a function is called with, as it was named.
pub fn named_table(relation: Option<Regclass>) -> SqlResult<pg_sys::Oid> {
    relation.map(|Regclass(oid)| oid).ok_or_else(|| {
        sql_error(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, "the table is NULL")
            .set_hint("Give its name, or oid.")
    })
}

/// How Citus places a table that is to be watched. None if Citus doesn't know the table.
///
/// # Errors
/// 0A000 if the table can't be watched, or this server isn't the coordinator.
pub fn check_place(table: &Table) -> SqlResult<Option<Place>> {
    let _user_context = UserContext::of_caller();
    let (place, parent) = Spi::connect(|client| {
        let parent = match citus::shard(client, table.oid)? {
            // A shard can be watched only if its table is kept on the coordinator: a watched table that Citus takes
            // over becomes such a shard.
            Some((parent, _)) if citus::place(client, parent)? != Some(Place::Coordinator) => Some(parent),
            _ => None,
        };
        Ok::<_, pg_sys::panic::ErrorReport>((citus::place(client, table.oid)?, parent))
    })?;
    if let Some(parent) = parent {
        return Err(is_shard(&table.name, parent));
    }
    let refuse = |why: &str, detail: &str, hint: &str| {
        let message = format!("{} is {why}, so it can't be watched", table.name);
        Err(sql_error(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, message).set_detail(detail).set_hint(hint))
    };
    match &place {
        None => {}
        Some(Place::Coordinator) => {
            return refuse(
                "a table that Citus keeps on the coordinator",
                "A watch from before stays as it is; columns and triggers can't be added to the shard alone.",
                "SELECT undistribute_table(…), then clip_watch; Citus may take the table over afterwards.",
            );
        }
        Some(Place::Shards(_)) if table.kind == "p" => {
            return refuse(
                "a partitioned table of Citus",
                "Its shards are partitioned tables, whose partitions come and go on the workers.",
                "Distribute a table that is not partitioned; Citus distributes it by hash already.",
            );
        }
        Some(Place::Shards(_)) => {}
        Some(Place::Copies) => {
            return refuse(
                "a reference table of Citus",
                "Each server would embed each row of its copy.",
                "Embed it once: INSERT … VALUES (…, clip_embed_image($1, model)); or distribute it.",
            );
        }
        Some(Place::Other) => {
            return refuse(
                "an append or range table of Citus",
                "Citus adds shards to it without the triggers of others.",
                "Distribute it by hash: SELECT create_distributed_table(…).",
            );
        }
    }
    if place.is_some() {
        refuse_worker(table)?;
    }
    Ok(place)
}

/// The error for a caller that names a shard.
pub fn is_shard(name: &str, parent: pg_sys::Oid) -> pg_sys::panic::ErrorReport {
    let parent = catalog::qualified_name(parent).unwrap_or_default();
    sql_error(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, format!("{name} is a shard of {parent}"))
        .set_detail("Its settings and triggers are those of the distributed table.")
        .set_hint(format!("Name {parent}, on the coordinator."))
}

/// Refuses tables of Citus if this server is a worker of Citus.
pub fn refuse_worker(table: &Table) -> SqlResult<()> {
    let _user_context = UserContext::of_caller();
    if !citus::is_worker()? || Spi::connect(|client| citus::place(client, table.oid))?.is_none() {
        return Ok(());
    }
    let message = format!("{} is a table of Citus, and this is a worker", table.name);
    Err(sql_error(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, message)
        .set_detail("The coordinator has the settings of watches, and the groups; a worker has its shards.")
        .set_hint("Call it on the coordinator."))
}
