//! clip_watch.
//!
//! A watch is a row of clip_search.watch_setting and three triggers on the table, whose argument is the row's id.
//! The triggers are in `trigger`, what embeds queued rows in `rows`, the background worker in `worker`.

use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{quote_identifier, quote_literal};

use crate::cluster::statements;
use crate::cluster::tables::Store;
use crate::guc;
use crate::pg::catalog::Table;
use crate::pg::error::{SqlResult, given, report, sql_error, warn};
use crate::pg::regclass::Regclass;
use crate::pg::spi::spi;
use crate::pg::text::{Text, texts};
use crate::pg::user_context::{UserContext, current_role};
use crate::pg::vector;
use crate::watch::backfill::{any_missing, any_ungrouped, enqueue_existing, enqueue_missing};
use crate::watch::checks::{check_cluster, check_embedding, check_table};
use crate::watch::columns::{alter, create_index, has_index};
use crate::watch::dropped::forget_dropped;
use crate::watch::former;
use crate::watch::grouping::{Bind, Bound, name_of_members, reset_settings};
use crate::watch::partitions;
use crate::watch::queue;
use crate::watch::setting::{Watch, table_of};
use crate::watch::tags;
use crate::watch::trigger::install::create_triggers;
use crate::watch::wakeup;
use crate::watch::wanted::{Existing, Plan, Wanted, check_nulls, lock_table};

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
    let oid = table_of(relation)?;
    let reset = reset.as_ref().map(texts).unwrap_or_default();
    let wanted = Wanted {
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
        half: false,
        replaces: None,
        existing: choice("existing", existing, "replace", "keep")?.map(|keep| match keep {
            true => Existing::Keep,
            false => Existing::Replace,
        }),
        key,
        labels,
        image,
        tags: tags.map(Text::str),
        reset: reset.into_iter().map(|option| given("reset", option)).collect::<SqlResult<_>>()?,
    };
    let watch = watch(oid, &wanted)?;
    if index == Some(false) {
        tell_of_index(&watch)?;
    }
    Ok(())
}

/// PostgreSQL empties an unlogged table after a crash, and tells nobody.
fn warn_of_unlogged(watch: &Watch) {
    let Some(collection) = &watch.collection else { return };
    warn(
        Error::new(Kind::Unsupported, format!("{} is unlogged: after a crash it is empty", watch.name()))
            .detail(format!("The clusters of collection \"{collection}\" are logged, and would still count its rows."))
            .hint(format!("After a crash, SELECT FROM clip_recluster({}).", quote_literal(collection))),
    );
}

/// `index => false` drops no index, and without one every search reads the whole table.
fn tell_of_index(watch: &Watch) -> SqlResult<()> {
    let table = Table::describe(watch.relation)?;
    let has_index = {
        let _user_context = UserContext::of_caller();
        Spi::connect_mut(|client| has_index(client, &table, &watch.embedding))?
    };
    let (what, way_out) = match has_index {
        true => ("keeps its index: index => false drops none", "DROP INDEX drops it."),
        false => ("has no index, so each search reads the whole table", "clip_watch(…, index => true) creates one."),
    };
    let message = format!("column \"{}\" of {} {what}", watch.embedding, table.name);
    report(Error::new(Kind::InvalidInput, message).hint(way_out)).report(PgLogLevel::NOTICE);
    Ok(())
}

/// An argument that is one of two words: whether it is the second. None leaves it as it is.
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

pub fn watch(oid: pg_sys::Oid, wanted: &Wanted<'_>) -> SqlResult<Watch> {
    let embedding = wanted.embedding;
    if let Some(weight) = wanted.text_weight.filter(|weight| !(*weight > 0.0 && *weight < 1.0)) {
        return Err(report(
            Error::new(Kind::InvalidInput, format!("text_weight {weight} is not between 0 and 1"))
                .detail("It is the text's share in the mean of an image's vector and a text's."),
        ));
    }
    let store = Store::open(c"clip_watch()");
    // PostgreSQL cuts longer names, which then can't be found by what was given.
    let long = |name: &&str| name.len() >= pg_sys::NAMEDATALEN as usize;
    if let Some(name) = [Some(embedding), wanted.cluster].into_iter().flatten().find(long) {
        return Err(sql_error(
            PgSqlErrorCode::ERRCODE_NAME_TOO_LONG,
            format!("column name \"{name}\" has {} bytes", name.len()),
        )
        .set_detail("PostgreSQL's names have 63 at most."));
    }
    let table = Table::describe(oid)?;
    check_table(&table, wanted.queued.unwrap_or(false))?;
    if table.has_children {
        pgrx::warning!("rows of the tables that inherit from {} are not watched", table.name);
    }
    let role = current_role();

    // The table, with the caller's rights.
    let caller = UserContext::of_caller();
    let (table, plan) = lock_table(table, wanted)?;
    let Plan { ref existing, ref key, ref model, dimensions, queued, .. } = plan;
    let cluster = plan.cluster.as_deref();
    let ungroups = wanted.resets("cluster");
    if let Some(known) = existing.as_ref().filter(|_| plan.is_changed || ungroups)
        && let Some(next) = Watch::replacing(known.id)?
    {
        return Err(sql_error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("column \"{embedding}\" is being embedded by model \"{}\" already", next.model),
        )
        .set_hint(format!("Let clip_reembed finish, or clip_unwatch column \"{}\" to give it up.", next.embedding)));
    }
    if let Some(cluster) = cluster {
        check_cluster(&table, embedding, cluster, key)?;
    }
    let schema = vector::schema();
    let (added, added_index) = Spi::connect_mut(|client| {
        let mut added = Vec::new();
        match table.column(client, embedding)? {
            Some(column) => {
                check_embedding(&table, embedding, &column, dimensions)?;
                check_nulls(client, &table, embedding, &column, &plan)?;
            }
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
                Some(column) if column.kind != pg_sys::INT8OID || column.generated || column.identity => {
                    return Err(sql_error(
                        PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
                        format!(
                            "column \"{cluster}\" of {} is of type {}, not a plain bigint",
                            table.name, column.shown
                        ),
                    ));
                }
                Some(column) => check_nulls(client, &table, cluster, &column, &plan)?,
                None => {
                    alter(client, &table, &format!("ADD COLUMN {} bigint", quote_identifier(cluster)))?;
                    added.push(cluster.to_owned());
                }
            }
        }
        added.extend(tags::settle_column(client, &table, &plan)?);
        let made = if wanted.index && !has_index(client, &table, embedding)? {
            Some(create_index(client, &table, embedding, &schema)?)
        } else {
            None
        };
        Ok::<_, pg_sys::panic::ErrorReport>((added, made))
    })?;
    drop(caller);

    // The extension's own tables.
    let rights = UserContext::of_extension();
    let known = existing.as_ref().and_then(|known| known.collection.as_deref());
    let collection = cluster.map(|_| wanted.collection.or(known).unwrap_or(&table.plain_name).to_owned());
    let (id, bound) = Spi::connect_mut(|client| {
        forget_dropped(client, &store)?;
        // What is noted by another key names no row any more. The rows are missing, and found as such.
        if let Some(known) = existing.as_ref().filter(|known| known.key != *key) {
            queue::forget_lists(client, known.id)?;
        }
        // Where the embeddings or the clusters' ids had been dropped, no row is in a cluster any more.
        if let Some(collection) = known.filter(|_| added.iter().any(|name| Some(name) != plan.tags.as_ref())) {
            store.take(collection, true);
            statements::clear(client, collection)?;
        }
        let bound = match (&collection, cluster) {
            (Some(collection), Some(cluster)) => {
                let key = match wanted.key {
                    Some(key) => key.to_owned(),
                    None => name_of_members(client, oid, key)?,
                };
                let bind = Bind { collection, model, dimensions, cluster, key: &key, role };
                let bound = bind.run(client, &store, oid, wanted)?;
                bind.reset(client, wanted)?;
                Some(bound)
            }
            _ => {
                if let Some(collection) = known.filter(|_| ungroups) {
                    let key = name_of_members(client, oid, key)?;
                    reset_settings(client, collection, &key, wanted)?;
                }
                None
            }
        };
        let query = include_str!("sql/set_watch.sql");
        let arguments: [DatumWithOid<'_>; 15] = [
            oid.into(),
            plan.image.as_deref().into(),
            plan.text.as_deref().into(),
            plan.text_weight.into(),
            embedding.into(),
            cluster.into(),
            model.as_str().into(),
            collection.as_deref().into(),
            queued.into(),
            plan.skip.into(),
            key.clone().into(),
            wanted.replaces.into(),
            added.clone().into(),
            added_index.into(),
            matches!(bound, Some(Bound::New)).into(),
        ];
        let id = client.update(query, None, &arguments).map_err(spi)?.first().get::<i64>(1).map_err(spi)?;
        let id = id.ok_or_else(|| report(Error::new(Kind::Internal, "a watch has no id")))?;
        tags::store(client, id, &plan)?;
        Ok::<_, pg_sys::panic::ErrorReport>((id, bound))
    })?;
    drop(rights);

    let watch = Watch::by_id(id)?.ok_or_else(|| report(Error::new(Kind::Internal, "a watch is gone at once")))?;
    tags::check_contents(&watch, &plan, wanted, &added)?;
    tags::tell_of_reset(&plan, &table);
    if ungroups
        && let Some((column, collection)) =
            existing.as_ref().and_then(|w| w.cluster.as_ref().zip(w.collection.as_ref()))
    {
        let message = format!("rows of {} are not grouped any more", table.name);
        report(
            Error::new(Kind::InvalidInput, message)
                .detail(format!("Column \"{column}\" and collection \"{collection}\" stay as they are."))
                .hint(format!(
                    "If nobody uses them any more: SELECT clip_drop_collection({}); ALTER TABLE {} DROP COLUMN {};",
                    quote_literal(collection),
                    table.name,
                    quote_identifier(column)
                )),
        )
        .report(PgLogLevel::NOTICE);
    }
    // Nobody kept the column up to now. This comes before the triggers, which would take its ids for groups.
    let told_of_groups = match &bound {
        Some(bound) if wanted.replaces.is_none() && existing.as_ref().is_none_or(|known| known.cluster.is_none()) => {
            former::settle_groups(&watch, matches!(bound, Bound::Same))?
        }
        _ => false,
    };
    {
        let _caller = UserContext::of_caller();
        Spi::connect_mut(|client| create_triggers(client, &table, &watch))?;
    }
    if table.kind == "p" {
        partitions::settle(&watch)?;
    }
    if table.persistence == "u" && existing.is_none() && watch.cluster.is_some() {
        warn_of_unlogged(&watch);
    }
    let is_new = existing.is_none() && !added.iter().any(|name| name == embedding);
    // A new watch does not know who made the vectors that it finds.
    let made_by = existing.as_ref().map(|known| known.model.as_str());
    let replaced = settle_existing(&watch, &table, wanted, is_new || plan.is_changed, made_by)?;
    if replaced > 0 {
        let (them, they) = if replaced == 1 { ("it", "it is") } else { ("them", "they are") };
        let call = if queued {
            String::new()
        } else {
            format!("CALL clip_backfill({}) replaces {them}; ", quote_literal(&table.name))
        };
        report(
            Error::new(
                Kind::InvalidInput,
                match replaced {
                    1 => format!("1 row of {} has a vector from before, which counts as pending", table.name),
                    _ => {
                        format!("{replaced} rows of {} have vectors from before, which count as pending", table.name)
                    }
                },
            )
            .hint(format!("{call}clip_watch(…, existing => 'keep') takes {them} over as {they}.")),
        )
        .report(PgLogLevel::NOTICE);
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
    } else if replaced == 0 && wanted.replaces.is_none() && !table.forces_policies {
        let lacking = match any_missing(&watch)? {
            true => Some("embedding"),
            false if !told_of_groups && any_ungrouped(&watch)? => Some("cluster"),
            false if tags::any_missing(&watch)? => Some("tags"),
            false => None,
        };
        if let Some(lacking) = lacking {
            pgrx::notice!(
                "existing rows of {} have no {lacking} yet: CALL clip_backfill({});",
                table.name,
                quote_literal(&table.name)
            );
        }
    }
    Ok(watch)
}

/// Keeps or queues the vectors that were in the column before, which may be of another source, weight or model. `made_by`:
/// the model of a former watch. Returns how many rows will be embedded again.
fn settle_existing(
    watch: &Watch,
    table: &Table,
    wanted: &Wanted<'_>,
    in_doubt: bool,
    made_by: Option<&str>,
) -> SqlResult<i64> {
    match wanted.existing {
        Some(Existing::Keep) => {
            queue::keep_existing(watch.id)?;
            Ok(0)
        }
        None if !in_doubt || wanted.replaces.is_some() => Ok(0),
        _ if table.forces_policies => Err(sql_error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("{} forces its policies on its owner", table.name),
        )
        .set_detail("Which rows have a vector from before can't be told: a policy may hide some.")
        .set_hint("Say existing => 'keep' to take them over, or ALTER TABLE … NO FORCE ROW LEVEL SECURITY meanwhile.")),
        _ => enqueue_existing(watch, made_by),
    }
}
