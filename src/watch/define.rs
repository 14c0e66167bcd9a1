//! clip_watch and clip_unwatch.
//!
//! A watch is a row of clip_search.watch_setting and three triggers on the table, whose argument is the row's id.
//! The triggers are in `trigger`, what embeds queued rows in `rows`, the background worker in `worker`.

use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{quote_identifier, quote_literal};

use crate::cluster::collection::drop_rows;
use crate::cluster::statements;
use crate::cluster::tables::{self, Store};
use crate::guc;
use crate::model::loaded;
use crate::pg::catalog::{Lock, Table};
use crate::pg::error::{SqlResult, given, report, warn, with_sqlstate};
use crate::pg::regclass::Regclass;
use crate::pg::spi::{get, spi};
use crate::pg::user_context::{Rights, current_role};
use crate::pg::vector;
use crate::pg::vector_column::Storage;
use crate::watch::backfill::{any_missing, enqueue_missing};
use crate::watch::checks::{check_change, check_cluster, check_embedding, check_table, existing, key, sources};
use crate::watch::columns::{alter, create_index, has_index};
use crate::watch::dropped::forget_dropped;
use crate::watch::grouping::{Bind, name_of_members};
use crate::watch::queue;
use crate::watch::setting::{Watch, table_of};
use crate::watch::trigger::install::{create_triggers, drop_triggers, orphans};
use crate::watch::wakeup;

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
    check_table(&table, queued)?;
    if table.has_children {
        pgrx::warning!("rows of the tables that inherit from {} are not watched", table.name);
    }
    let role = current_role();

    // The table, with the caller's rights.
    let caller = Rights::of_caller();
    // Before anybody has to wait for this: a model takes seconds to load.
    Plan::make(&table, wanted)?;
    let (table, lock) = lock_table(table, wanted)?;
    let Plan { image, text, key, existing, model, dimensions } = Plan::make(&table, wanted)?;
    if !matches!(lock, Lock::AccessExclusive) && needs_exclusive_lock(&table, wanted)? {
        return Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            Error::new(Kind::InvalidInput, format!("{} has just been altered", table.name)).hint("Try again."),
        ));
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
                let bind = Bind { collection, model: &model, dimensions, cluster, key: &key, role };
                bind.run(client, &store, oid, wanted)?
            }
            _ => false,
        };
        let query = include_str!("sql/set_watch.sql");
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
        enqueue_missing(&watch)?;
        wakeup::wake_at_commit();
        let missing = match (wakeup::is_preloaded(), guc::worker()) {
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
    } else if wanted.replaces.is_none() && !table.forces_policies && any_missing(&watch)? {
        pgrx::notice!(
            "rows of {} that are there already have no embedding yet: CALL clip_backfill({});",
            table.name,
            quote_literal(&table.name)
        );
    }
    Ok(watch)
}

/// What a watch is to be made of, as the table and its watch are now.
struct Plan {
    image: Option<String>,
    text: Option<String>,
    key: Vec<String>,
    existing: Option<Watch>,
    model: String,
    dimensions: usize,
}

impl Plan {
    fn make(table: &Table, wanted: &Wanted<'_>) -> SqlResult<Self> {
        let (image, text, key, existing) = Spi::connect_mut(|client| {
            let (image, text) = sources(client, table, wanted.source, wanted.text_source)?;
            let existing = existing(client, table.oid, wanted.embedding)?;
            Ok::<_, pg_sys::panic::ErrorReport>((image, text, key(client, table)?, existing))
        })?;
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
        Ok(Self { image, text, key, existing, model, dimensions })
    }
}

/// Locks the table as strongly as what follows needs. A lock that was raised later would be a deadlock with every
/// transaction that has read the table and is about to write it.
fn lock_table(table: Table, wanted: &Wanted<'_>) -> SqlResult<(Table, Lock)> {
    let lock = if needs_exclusive_lock(&table, wanted)? { Lock::AccessExclusive } else { Lock::ShareRowExclusive };
    let table = Table::locked(table.oid, lock)?;
    check_table(&table, wanted.queued)?;
    Ok((table, lock))
}

/// Whether a column has to be added or a trigger dropped. Triggers alone are made, or replaced, under a lock that lets
/// others read.
fn needs_exclusive_lock(table: &Table, wanted: &Wanted<'_>) -> SqlResult<bool> {
    Spi::connect_mut(|client| {
        for name in [Some(wanted.embedding), wanted.cluster].into_iter().flatten() {
            if table.column(client, name)?.is_none() {
                return Ok(true);
            }
        }
        Ok(!orphans(client, table)?.is_empty())
    })
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
    // Whoever works on its rows is waited for here, where nothing is held yet that they would wait for.
    let watch = watch.locked(Lock::AccessExclusive)?;
    // What was to take its place goes first.
    if let Some(replacement) = Watch::replacing(watch.id)? {
        unwatch(&replacement, false)?;
    }
    unwatch(&watch, keep_columns)
}

/// Removes what a watch has added.
pub fn unwatch(watch: &Watch, keep_columns: bool) -> SqlResult<()> {
    let store = Store::open(c"clip_unwatch()");
    let table = Table::locked(watch.relation, Lock::AccessExclusive)?;
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
