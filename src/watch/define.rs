//! clip_watch.
//!
//! A watch is a row of clip_search.watch_setting and triggers on the table, whose argument is the row's id: three, a
//! fourth on a partitioned or distributed table, and one on each partition. The triggers are in `trigger`;
//! `embed_entries` embeds queued rows, and `worker` is the background worker.

use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::quote_identifier;

use crate::cluster::statements;
use crate::cluster::tables::Store;
use crate::pg::catalog::Table;
use crate::pg::error::{SqlResult, given, report, sql_error};
use crate::pg::regclass::Regclass;
use crate::pg::spi::spi;
use crate::pg::text::{Text, texts};
use crate::pg::user_context::{UserContext, current_role};
use crate::pg::vector;
use crate::watch::arguments::{Arguments, Existing, Plan, check_nulls, lock_table};
use crate::watch::backfill::{enqueue_existing, enqueue_missing};
use crate::watch::checks::{check_cluster, check_embedding, check_not_renamed, check_table};
use crate::watch::citus::distribute;
use crate::watch::columns::{alter, create_index, has_index};
use crate::watch::dropped::forget_dropped;
use crate::watch::existing_groups;
use crate::watch::grouping::{Bind, Bound, member_key_column, reset_settings};
use crate::watch::setting::{Watch, named_table};
use crate::watch::shared_memory;
use crate::watch::tag_column;
use crate::watch::trigger::install::{create_triggers, drop_stale};
use crate::watch::{notices, partitions, queue};

#[pg_extern(volatile, parallel_unsafe, name = "clip_watch")]
#[allow(clippy::too_many_arguments)]
fn set_watch(
    relation: Option<Regclass>,
    source: default!(Option<Text<'_>>, "NULL"),
    embedding: default!(Option<Text<'_>>, "'embedding'"),
    cluster: default!(Option<Text<'_>>, "NULL"),
    model: default!(Option<Text<'_>>, "NULL"),
    collection: default!(Option<Text<'_>>, "NULL"),
    mode: default!(Option<Text<'_>>, "NULL"),
    on_error: default!(Option<Text<'_>>, "NULL"),
    text_source: default!(Option<Text<'_>>, "NULL"),
    text_weight: default!(Option<f64>, "NULL"),
    threshold: default!(Option<f64>, "NULL"),
    index: default!(Option<bool>, "NULL"),
    existing: default!(Option<Text<'_>>, "NULL"),
    key: default!(Option<Text<'_>>, "NULL"),
    labels: default!(Option<Text<'_>>, "NULL"),
    image: default!(Option<Text<'_>>, "NULL"),
    tags: default!(Option<Text<'_>>, "NULL"),
    reset: default!(Option<Array<Text<'_>>>, "NULL"),
) -> SqlResult<()> {
    let (source, embedding, cluster, model) =
        (source.map(Text::str), embedding.map(Text::str), cluster.map(Text::str), model.map(Text::str));
    let (collection, mode, on_error, text_source) =
        (collection.map(Text::str), mode.map(Text::str), on_error.map(Text::str), text_source.map(Text::str));
    let (existing, key, labels, image) =
        (existing.map(Text::str), key.map(Text::str), labels.map(Text::str), image.map(Text::str));
    let oid = named_table(relation)?;
    let reset = reset.as_ref().map(texts).unwrap_or_default();
    let arguments = Arguments {
        source,
        text_source,
        text_weight,
        embedding: given("embedding", embedding)?,
        cluster,
        model,
        collection,
        queued: choice("mode", mode, "immediate", "queued")?,
        skip: choice("on_error", on_error, "raise", "skip")?,
        threshold,
        index: index.unwrap_or(false),
        existing: choice("existing", existing, "replace", "keep")?.map(|keep| match keep {
            true => Existing::Keep,
            false => Existing::Replace,
        }),
        key,
        labels,
        image,
        tags: tags.map(Text::str),
        reset: reset.into_iter().map(|option| given("reset", option)).collect::<SqlResult<_>>()?,
        ..Arguments::default()
    };
    let watch = watch(oid, &arguments)?;
    if index == Some(false) {
        notices::index_stays(&watch)?;
    }
    Ok(())
}

/// Parses an argument with two possible values; returns whether it is the second. None if the argument is omitted.
pub fn choice(name: &str, value: Option<&str>, first: &str, second: &str) -> SqlResult<Option<bool>> {
    match value {
        None => Ok(None),
        Some(value) if value == first => Ok(Some(false)),
        Some(value) if value == second => Ok(Some(true)),
        Some(value) => Err(report(
            Error::new(Kind::InvalidInput, format!("{name} \"{value}\" is unknown"))
                .hint(format!("Use '{first}' or '{second}'.")),
        )),
    }
}

pub fn watch(oid: pg_sys::Oid, arguments: &Arguments<'_>) -> SqlResult<Watch> {
    check_arguments(arguments)?;
    let store = Store::open(c"clip_watch()");
    let table = Table::describe(oid)?;
    check_table(&table, arguments.queued.unwrap_or(false))?;
    if table.has_children {
        pgrx::warning!("rows of the tables that inherit from {} are not watched", table.name);
    }
    let role = current_role();
    let shard_key = distribute::shard_key(&table)?;
    let _session = shard_key.as_ref().map(|_| distribute::session());
    let (table, plan, added) = {
        let _caller = UserContext::of_caller();
        let (table, plan) = lock_table(table, arguments)?;
        check_not_replaced(arguments, &plan)?;
        if let Some(known) = &plan.existing {
            Spi::connect_mut(|client| check_not_renamed(client, &table, known))?;
        }
        drop_stale(&table)?;
        if let Some(cluster) = &plan.cluster {
            check_cluster(&table, arguments.embedding, cluster, &plan.key)?;
        }
        let added = add_columns(&table, arguments, &plan)?;
        (table, plan, added)
    };
    let (id, bound) = {
        let _extension = UserContext::of_extension();
        store_setting(&store, &table, arguments, &plan, &added, role)?
    };

    let watch = place(id, &table, shard_key.as_ref())?;
    let existing = plan.existing.as_ref();
    tag_column::check_contents(&watch, &plan, arguments, &added.columns)?;
    tag_column::tell_of_reset(&plan, &table);
    if arguments.resets("cluster")
        && let Some((column, collection)) = existing.and_then(|w| w.cluster.as_ref().zip(w.collection.as_ref()))
    {
        notices::grouping_ends(&table, column, collection);
    }
    let told_of_groups = settle_groups(&watch, &plan, arguments, &added.columns, bound)?;
    let is_new = existing.is_none() && !added.columns.iter().any(|name| name == arguments.embedding);
    // A new watch does not know which model made the vectors that it finds.
    let made_by = existing.map(|known| known.model.as_str());
    if watch.is_distributed() {
        create_on_shards(&watch, &table, arguments, is_new || plan.is_changed, made_by)?;
        if plan.queued {
            shared_memory::wake_at_commit();
            notices::no_worker(&table);
        }
        return Ok(watch);
    }
    {
        let _caller = UserContext::of_caller();
        Spi::connect_mut(|client| create_triggers(client, &table, &watch, None))?;
    }
    if table.kind == "p" {
        partitions::settle(&watch)?;
    }
    if plan.queued && arguments.skip == Some(false) && arguments.replaces.is_none() {
        notices::no_statement_fails(&table);
    }
    if table.persistence == "u" && existing.is_none() && watch.cluster.is_some() {
        notices::unlogged(&watch);
    }
    let replaced = settle_existing(&watch, &table, arguments, is_new || plan.is_changed, made_by)?;
    // In immediate mode no worker embeds the rows that an earlier call has marked.
    let outdated = if replaced == 0 && !plan.queued { queue::outdated(watch.id)? } else { replaced };
    notices::former_vectors(&table, outdated, plan.queued);
    if plan.queued {
        enqueue_missing(&watch)?;
        shared_memory::wake_at_commit();
        if arguments.replaces.is_none() {
            notices::no_worker(&table);
        }
    } else if outdated == 0 && arguments.replaces.is_none() && !table.forces_policies {
        notices::missing(&watch, &table, told_of_groups)?;
    }
    Ok(watch)
}

/// The stored watch, after its settings have been moved to where its table is: the shards of a distributed table, or here.
fn place(id: i64, table: &Table, shard_key: Option<&Option<String>>) -> SqlResult<Watch> {
    let find = || Watch::by_id(id)?.ok_or_else(|| report(Error::new(Kind::Internal, "a watch is gone at once")));
    let watch = find()?;
    if let Some(shard_key) = shard_key {
        distribute::prepare(table, &watch, shard_key.as_deref())?;
    } else if watch.is_distributed() {
        // A restored dump has brought the watch to a server without Citus.
        distribute::clear_home(&watch)?;
    } else {
        return Ok(watch);
    }
    find()
}

/// Settles the cluster column of a watch that groups from now on. Runs before the triggers exist, which would take the column's
/// numbers for groups. Returns whether a notice about the groups was raised.
fn settle_groups(
    watch: &Watch,
    plan: &Plan,
    arguments: &Arguments<'_>,
    added: &[String],
    bound: Option<Bound>,
) -> SqlResult<bool> {
    let had_groups = plan.existing.as_ref().is_some_and(|known| known.cluster.is_some());
    let Some(bound) = bound.filter(|_| !had_groups) else { return Ok(false) };
    if watch.is_distributed() {
        if !watch.cluster.as_ref().is_some_and(|column| added.contains(column)) {
            distribute::clear_clusters(watch)?;
        }
        return Ok(false);
    }
    if arguments.replaces.is_some() {
        return Ok(false);
    }
    existing_groups::settle_groups(watch, matches!(bound, Bound::Same))
}

/// Creates the triggers of a distributed table, which Citus takes to the shards. What becomes of the vectors that are there
/// is decided once: the triggers that stay, and come along when a shard moves, don't say it.
fn create_on_shards(
    watch: &Watch,
    table: &Table,
    arguments: &Arguments<'_>,
    in_doubt: bool,
    made_by: Option<&str>,
) -> SqlResult<()> {
    let existing = match arguments.existing {
        Some(Existing::Keep) => Some("keep"),
        Some(Existing::Replace) => Some("replace"),
        None if in_doubt && distribute::any_row_has(watch, &watch.embedding)? => Some("replace"),
        None => None,
    };
    if existing == Some("replace") && table.forces_policies {
        return Err(forced_policies(table));
    }
    for existing in [existing.map(Some), Some(None)].into_iter().flatten() {
        let settings = distribute::settings(watch, existing, made_by)?;
        let _caller = UserContext::of_caller();
        Spi::connect_mut(|client| create_triggers(client, table, watch, Some(&settings)))?;
    }
    if existing == Some("replace") {
        notices::former_vectors_in_shards(table);
    }
    Ok(())
}

/// The checks that need no look-up.
fn check_arguments(arguments: &Arguments<'_>) -> SqlResult<()> {
    if let Some(weight) = arguments.text_weight.filter(|weight| !(*weight > 0.0 && *weight < 1.0)) {
        return Err(report(
            Error::new(Kind::InvalidInput, format!("text_weight {weight} is not between 0 and 1"))
                .detail("It is the text's share in the mean of an image's vector and a text's; neither has all of it.")
                .hint("To embed the images alone, leave text_source out, or reset it; for the texts alone, make them the source."),
        ));
    }
    // PostgreSQL truncates longer names, and a truncated name could not be found under the given one.
    let long = |name: &&str| name.len() >= pg_sys::NAMEDATALEN as usize;
    match [Some(arguments.embedding), arguments.cluster].into_iter().flatten().find(long) {
        Some(name) => Err(sql_error(
            PgSqlErrorCode::ERRCODE_NAME_TOO_LONG,
            format!("column name \"{name}\" has {} bytes", name.len()),
        )
        .set_detail("PostgreSQL's names have 63 at most.")),
        None => Ok(()),
    }
}

/// Refuses to change the source or the groups while clip_reembed fills a column by another model.
fn check_not_replaced(arguments: &Arguments<'_>, plan: &Plan) -> SqlResult<()> {
    if let Some(known) = plan.existing.as_ref().filter(|_| plan.is_changed || arguments.resets("cluster"))
        && let Some(next) = Watch::replacing(known.id)?
    {
        return Err(sql_error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("column \"{}\" is being embedded by model \"{}\" already", arguments.embedding, next.model),
        )
        .set_hint(format!("Let clip_reembed finish, or clip_unwatch column \"{}\" to give it up.", next.embedding)));
    }
    Ok(())
}

/// The columns and the index that the call has added.
struct Added {
    columns: Vec<String>,
    index: Option<String>,
}

/// Adds the columns that the table lacks, and checks the others.
fn add_columns(table: &Table, arguments: &Arguments<'_>, plan: &Plan) -> SqlResult<Added> {
    let embedding = arguments.embedding;
    let schema = vector::schema();
    Spi::connect_mut(|client| {
        let mut columns = Vec::new();
        match table.column(client, embedding)? {
            Some(column) => {
                check_embedding(table, embedding, &column, plan.dimensions)?;
                check_nulls(client, table, embedding, &column, plan)?;
            }
            None => {
                let kind = if arguments.half { "halfvec" } else { "vector" };
                let (name, dimensions) = (quote_identifier(embedding), plan.dimensions);
                alter(client, table, &format!("ADD COLUMN {name} {schema}.{kind}({dimensions})"))?;
                columns.push(embedding.to_owned());
            }
        }
        if let Some(cluster) = &plan.cluster {
            match table.column(client, cluster)? {
                Some(column) if column.kind != pg_sys::INT8OID || column.generated || column.identity => {
                    return Err(sql_error(
                        PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                        format!(
                            "column \"{cluster}\" of {} is of type {}, not a plain bigint",
                            table.name, column.shown
                        ),
                    ));
                }
                Some(column) => check_nulls(client, table, cluster, &column, plan)?,
                None => {
                    alter(client, table, &format!("ADD COLUMN {} bigint", quote_identifier(cluster)))?;
                    columns.push(cluster.clone());
                }
            }
        }
        columns.extend(tag_column::settle_column(client, table, plan)?);
        let index = match arguments.index && !has_index(client, table, embedding)? {
            true => Some(create_index(client, table, embedding, &schema)?),
            false => None,
        };
        Ok(Added { columns, index })
    })
}

/// Writes the watch and its collection into the extension's tables; returns the watch's id.
fn store_setting(
    store: &Store,
    table: &Table,
    arguments: &Arguments<'_>,
    plan: &Plan,
    added: &Added,
    role: pg_sys::Oid,
) -> SqlResult<(i64, Option<Bound>)> {
    let Plan { existing, key, model, dimensions, .. } = plan;
    let cluster = plan.cluster.as_deref();
    let known = existing.as_ref().and_then(|known| known.collection.as_deref());
    let collection = cluster.map(|_| arguments.collection.or(known).unwrap_or(&table.plain_name).to_owned());
    Spi::connect_mut(|client| {
        forget_dropped(client, store)?;
        // Entries under the former key identify no row any more. Their rows are found as missing ones.
        if let Some(known) = existing.as_ref().filter(|known| known.key != *key) {
            queue::forget_lists(client, known.id)?;
        }
        // If the column of embeddings or of clusters had been dropped and was just added, no row is in a cluster any
        // more.
        if let Some(collection) = known.filter(|_| added.columns.iter().any(|name| Some(name) != plan.tags.as_ref())) {
            store.lock_exclusive(collection, true);
            statements::clear(client, collection)?;
        }
        let bound = match (&collection, cluster) {
            (Some(collection), Some(cluster)) => {
                let key = match arguments.key {
                    Some(key) => key.to_owned(),
                    None => member_key_column(client, table.oid, key)?,
                };
                let bind = Bind { collection, model, dimensions: *dimensions, cluster, key: &key, role };
                let bound = bind.run(client, store, table.oid, arguments)?;
                bind.reset(client, arguments)?;
                Some(bound)
            }
            _ => {
                if let Some(collection) = known.filter(|_| arguments.resets("cluster")) {
                    let key = member_key_column(client, table.oid, key)?;
                    reset_settings(client, collection, &key, arguments)?;
                }
                None
            }
        };
        let values: [DatumWithOid<'_>; 15] = [
            table.oid.into(),
            plan.image.as_deref().into(),
            plan.text.as_deref().into(),
            plan.text_weight.into(),
            arguments.embedding.into(),
            cluster.into(),
            model.as_str().into(),
            collection.as_deref().into(),
            plan.queued.into(),
            plan.skip.into(),
            key.clone().into(),
            arguments.replaces.into(),
            added.columns.clone().into(),
            added.index.clone().into(),
            matches!(bound, Some(Bound::New)).into(),
        ];
        let rows = client.update(include_str!("sql/set_watch.sql"), None, &values).map_err(spi)?;
        let id = rows.first().get::<i64>(1).map_err(spi)?;
        let id = id.ok_or_else(|| report(Error::new(Kind::Internal, "a watch has no id")))?;
        tag_column::store(client, id, plan)?;
        Ok((id, bound))
    })
}

/// Keeps or queues the vectors that the column already contains, which may be of another source, weight or model.
/// `made_by`: the model of the previous watch. Returns the number of rows that will be embedded again.
fn settle_existing(
    watch: &Watch,
    table: &Table,
    arguments: &Arguments<'_>,
    in_doubt: bool,
    made_by: Option<&str>,
) -> SqlResult<i64> {
    match arguments.existing {
        Some(Existing::Keep) => {
            queue::keep_existing(watch.id)?;
            Ok(0)
        }
        None if !in_doubt || arguments.replaces.is_some() => Ok(0),
        _ if table.forces_policies => Err(forced_policies(table)),
        _ => enqueue_existing(watch, made_by),
    }
}

fn forced_policies(table: &Table) -> pg_sys::panic::ErrorReport {
    sql_error(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("{} forces its policies on its owner", table.name),
    )
    .set_detail("Which rows have a vector from before can't be told: a policy may hide some.")
    .set_hint("Say existing => 'keep' to take them over, or ALTER TABLE … NO FORCE ROW LEVEL SECURITY meanwhile.")
}
