//! A watch: a row of clip_search.watch_setting, and the code that reads it.

use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiHeapTupleData, quote_identifier};

use crate::pg::catalog::{self, Lock, Table};
use crate::pg::citus;
use crate::pg::error::{SqlResult, report, sql_error};
use crate::pg::owners_table::{OwnersTable, TableClient};
use crate::pg::regclass::Regclass;
use crate::pg::spi::{get, spi};
use crate::pg::user_context::UserContext;

/// A watched column, and its settings.
#[derive(Clone, Debug)]
pub struct Watch {
    pub id: i64,
    pub relation: pg_sys::Oid,
    /// Quoted, for use in queries; without the rows of child tables, which have no trigger.
    pub table: String,
    pub owner: pg_sys::Oid,
    pub image: Option<String>,
    pub text: Option<String>,
    /// The weight of the text's vector, if the row has an image, too.
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
}

/// Before ALTER EXTENSION clip_search UPDATE there is no column "tags".
const COLUMNS: &str = "w.id, w.relation::oid, format('%I.%I', n.nspname, c.relname), c.relkind = 'p', c.relowner, \
     w.image::text, w.text::text, w.text_weight, w.embedding::text, w.cluster::text, w.model, w.collection, w.queued, w.skip, \
     w.key::text[], w.replaces, pg_catalog.to_jsonb(w) ->> 'tags'";
const FROM: &str = "clip_search.watch_setting w JOIN pg_catalog.pg_class c ON c.oid = w.relation::oid \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";

impl Watch {
    fn read(row: &SpiHeapTupleData<'_>) -> SqlResult<Self> {
        let missing = || report(Error::new(Kind::Internal, "a row of clip_search.watch_setting has a NULL"));
        let relation = get(row, 2)?.ok_or_else(missing)?;
        let name = catalog::qualified_name(relation).or(get(row, 3)?).ok_or_else(missing)?;
        let partitioned: bool = get(row, 4)?.unwrap_or_default();
        Ok(Self {
            id: get(row, 1)?.ok_or_else(missing)?,
            relation,
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
            tags: get(row, 17)?,
        })
    }

    /// Watches that meet a condition; the caller has the extension's privileges.
    pub fn find(client: &mut SpiClient<'_>, condition: &str, arguments: &[DatumWithOid<'_>]) -> SqlResult<Vec<Self>> {
        let query = format!("SELECT {COLUMNS} FROM {FROM} WHERE {condition} ORDER BY w.id");
        client.update(&query, None, arguments).map_err(spi)?.map(|row| Self::read(&row)).collect()
    }

    /// The watch with this id, if its table exists.
    pub fn by_id(id: i64) -> SqlResult<Option<Self>> {
        let _user_context = UserContext::of_extension();
        Spi::connect_mut(|client| Ok(Self::find(client, "w.id = $1", &[id.into()])?.pop()))
    }

    /// As above, with the table locked until the end of the transaction, so that it keeps its name. None if the watch
    /// or the table no longer exists.
    pub fn lock(id: i64, mode: Lock) -> SqlResult<Option<Self>> {
        let Some(watch) = Self::by_id(id)? else { return Ok(None) };
        catalog::lock(watch.relation, mode);
        Self::by_id(id)
    }

    /// As above, for a trigger on `relation`, which must be the watched table or a partition of it: every role may
    /// create such a trigger on its own tables.
    pub fn of_trigger(id: i64, relation: pg_sys::Oid) -> SqlResult<Option<Self>> {
        let _user_context = UserContext::of_extension();
        Spi::connect_mut(|client| {
            let condition = "w.id = $1 AND (w.relation::oid = $2 OR w.relation IN (SELECT pg_catalog.pg_partition_ancestors($2::oid)))";
            Ok(Self::find(client, condition, &[id.into(), relation.into()])?.pop())
        })
    }

    /// The watch whose column will replace another watch's column.
    pub fn replacing(id: i64) -> SqlResult<Option<Self>> {
        let _user_context = UserContext::of_extension();
        Spi::connect_mut(|client| Ok(Self::find(client, "w.replaces = $1", &[id.into()])?.pop()))
    }

    /// The watches of the background worker: queued mode, with enabled triggers.
    pub fn for_worker() -> SqlResult<Vec<Self>> {
        let _user_context = UserContext::of_extension();
        Spi::connect_mut(|client| {
            Self::find(client, "w.queued AND w.id IN (SELECT id FROM clip_search.watch_live)", &[])
        })
    }

    /// The watches of a table that the caller owns: of one column, or all except watches whose columns will replace
    /// others.
    pub fn of_table(relation: pg_sys::Oid, embedding: Option<&str>) -> SqlResult<Vec<Self>> {
        let table = Table::describe(relation)?;
        table.check_owner()?;
        let found = {
            let _user_context = UserContext::of_extension();
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
            check_local(&table)?;
            return Err(Self::none_of(&table.name, embedding));
        }
        Ok(found)
    }

    /// Whether any column of a table is watched.
    pub fn is_any_of(relation: pg_sys::Oid) -> SqlResult<bool> {
        let _user_context = UserContext::of_extension();
        Spi::connect_mut(|client| Ok(!Self::find(client, "w.relation::oid = $1", &[relation.into()])?.is_empty()))
    }

    /// The error of a table, or of its column, that is not watched.
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

/// The table that a function is called with.
pub fn table_of(relation: Option<Regclass>) -> SqlResult<pg_sys::Oid> {
    relation.map(|Regclass(oid)| oid).ok_or_else(|| {
        sql_error(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, "the table is NULL")
            .set_hint("Give its name, or oid.")
    })
}

/// Tables of Citus have their rows on other servers.
pub fn check_local(table: &Table) -> SqlResult<()> {
    let _user_context = UserContext::of_caller();
    Spi::connect(|client| {
        citus::refuse(
            client,
            table.oid,
            "it can't be watched",
            "Its rows are in shards, mostly on other servers; a watch, its queue and its groups are of this server.",
            "Embed where the rows are: UPDATE … SET embedding = clip_embed_image(data, model), or a trigger of your \
             own that does (docs/citus.md).",
        )
    })
}
