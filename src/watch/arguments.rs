//! The arguments of clip_watch, and the settings that follow from them and the table's current state.

use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::guc;
use crate::model::loaded;
use crate::pg::catalog::{Column, Lock, Table};
use crate::pg::error::{SqlResult, report, sql_error};
use crate::pg::user_context::as_extension;
use crate::watch::checks::{check_table, existing, key, sources};
use crate::watch::setting::Watch;
use crate::watch::tags;
use crate::watch::trigger::install::stale;

/// The arguments. None keeps a setting, or uses the default when the table is watched for the first time.
#[derive(Default)]
pub struct Arguments<'a> {
    pub source: Option<&'a str>,
    pub text_source: Option<&'a str>,
    pub text_weight: Option<f64>,
    pub embedding: &'a str,
    pub cluster: Option<&'a str>,
    pub model: Option<&'a str>,
    pub collection: Option<&'a str>,
    pub queued: Option<bool>,
    pub skip: Option<bool>,
    pub threshold: Option<f64>,
    pub index: bool,
    /// Whether a new column will be a halfvec.
    pub half: bool,
    pub replaces: Option<i64>,
    pub existing: Option<Existing>,
    /// Columns with the keys, keywords and images of the collection's members.
    pub key: Option<&'a str>,
    pub labels: Option<&'a str>,
    pub image: Option<&'a str>,
    /// The column that receives the tags.
    pub tags: Option<&'a str>,
    /// Options that get their defaults back, by name.
    pub reset: Vec<&'a str>,
}

/// The options that are optional, or whose default does not depend on the session.
const RESETTABLE: [&str; 10] =
    ["cluster", "mode", "on_error", "text_source", "text_weight", "threshold", "key", "labels", "image", "tags"];

impl Arguments<'_> {
    pub fn resets(&self, option: &str) -> bool {
        self.reset.contains(&option)
    }

    /// The value of an option after the call; `known` is its value in the watch.
    fn choose<T>(&self, option: &str, named: Option<T>, known: Option<T>) -> Option<T> {
        if self.resets(option) { None } else { named.or(known) }
    }

    fn check_reset(&self) -> SqlResult<()> {
        let bad = |message: String| Err(report(Error::new(Kind::InvalidInput, message)));
        if let Some(unknown) = self.reset.iter().find(|option| !RESETTABLE.contains(option)) {
            return Err(report(
                Error::new(Kind::InvalidInput, format!("option \"{unknown}\" can't be reset"))
                    .hint(format!("Options that can be reset are {}.", RESETTABLE.join(", "))),
            ));
        }
        let named = [
            ("cluster", self.cluster.is_some()),
            ("cluster", self.collection.is_some()),
            ("mode", self.queued.is_some()),
            ("on_error", self.skip.is_some()),
            ("text_source", self.text_source.is_some()),
            ("text_weight", self.text_weight.is_some()),
            ("threshold", self.threshold.is_some()),
            ("key", self.key.is_some()),
            ("labels", self.labels.is_some()),
            ("image", self.image.is_some()),
            ("tags", self.tags.is_some()),
        ];
        match named.iter().find(|(option, is_named)| *is_named && self.resets(option)) {
            Some((option, _)) => bad(format!("option \"{option}\" is both given and reset")),
            None => Ok(()),
        }
    }
}

/// The treatment of vectors that the column already contains.
#[derive(Clone, Copy)]
pub enum Existing {
    /// The caller guarantees that they equal the watch's results.
    Keep,
    /// They are embedded again.
    Replace,
}

/// The new settings of a watch, given the current table and watch.
pub struct Plan {
    pub image: Option<String>,
    pub text: Option<String>,
    pub text_weight: f64,
    pub key: Vec<String>,
    pub existing: Option<Watch>,
    pub cluster: Option<String>,
    pub tags: Option<String>,
    pub model: String,
    pub dimensions: usize,
    pub queued: bool,
    pub skip: bool,
    /// Whether the column has been watched with another source, weight or model until now.
    pub is_changed: bool,
}

impl Plan {
    pub fn make(table: &Table, arguments: &Arguments<'_>) -> SqlResult<Self> {
        let known = Spi::connect_mut(|client| existing(client, table.oid, arguments.embedding))?;
        let is = known.as_ref();
        let source = arguments.source.or(is.and_then(|known| known.image.as_deref().or(known.text.as_deref())));
        let source = match source {
            Some(source) => source,
            None => return Err(not_watched_yet(table, arguments.embedding)?),
        };
        check_not_empty(table, arguments)?;
        arguments.check_reset()?;
        let known_text = is.and_then(|known| known.image.as_ref().and(known.text.as_deref()));
        let text_source = arguments.choose("text_source", arguments.text_source, known_text);
        let (image, text, key) = Spi::connect_mut(|client| {
            let (image, text) = sources(client, table, source, text_source)?;
            Ok::<_, pg_sys::panic::ErrorReport>((image, text, key(client, table)?))
        })?;
        if let Some(known) = is {
            check_change(known, arguments)?;
        }
        let model = arguments.model.map(str::to_owned).or_else(|| is.map(|known| known.model.clone()));
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
        let known_cluster = is.and_then(|known| known.cluster.as_deref());
        let cluster = arguments.choose("cluster", arguments.cluster, known_cluster).map(str::to_owned);
        let of_clusters = [
            ("threshold", arguments.threshold.is_some()),
            ("collection", arguments.collection.is_some()),
            ("key", arguments.key.is_some()),
            ("labels", arguments.labels.is_some()),
            ("image", arguments.image.is_some()),
            ("threshold", arguments.resets("threshold")),
            ("key", arguments.resets("key")),
            ("labels", arguments.resets("labels")),
            ("image", arguments.resets("image")),
        ];
        // A call that stops grouping may reset the collection's settings as well.
        let ends_grouping = known_cluster.is_some() && arguments.resets("cluster");
        let is_open = |name: &str| cluster.is_none() && !(ends_grouping && arguments.resets(name));
        if let Some((name, _)) = of_clusters.iter().find(|(name, given)| *given && is_open(name)) {
            return Err(report(
                Error::new(
                    Kind::InvalidInput,
                    format!("{name} is of clusters, and rows are not grouped without a column"),
                )
                .hint("Name it, cluster => 'cluster_id', or leave the argument out."),
            ));
        }
        if arguments.text_weight.is_some() && (image.is_none() || text.is_none()) {
            return Err(report(
                Error::new(Kind::InvalidInput, "text_weight is the share of a text beside an image")
                    .hint("Name both columns, source => the one with images, text_source => the one with texts."),
            ));
        }
        let known_weight = is.map(|known| known.text_weight);
        let text_weight = arguments.choose("text_weight", arguments.text_weight, known_weight).unwrap_or(0.5);
        let of_both = image.is_some() && text.is_some();
        let is_changed = is.is_some_and(|known| {
            known.image != image
                || known.text != text
                || (of_both && known.text_weight != text_weight)
                || known.model != model
        });
        let known_tags = is.and_then(|known| known.tags.as_deref());
        let tags = arguments.choose("tags", arguments.tags, known_tags).map(str::to_owned);
        let plan = Self {
            queued: arguments.choose("mode", arguments.queued, is.map(|known| known.queued)).unwrap_or(false),
            skip: arguments.choose("on_error", arguments.skip, is.map(|known| known.skip)).unwrap_or(false),
            image,
            text,
            text_weight,
            key,
            cluster,
            tags,
            model,
            dimensions,
            is_changed,
            existing: known,
        };
        if let Some(tags) = &plan.tags {
            tags::check(tags, plan.image.as_deref(), plan.cluster.as_deref(), &plan.model)?;
        }
        Ok(plan)
    }
}

/// The error for a first call that names no source.
fn not_watched_yet(table: &Table, embedding: &str) -> SqlResult<pg_sys::panic::ErrorReport> {
    let others = as_extension(|client| Watch::find(client, "w.relation::oid = $1", &[table.oid.into()]))?;
    let what = match others.is_empty() {
        true => format!("table {} is not watched yet", table.name),
        false => format!("column \"{embedding}\" of {} is not watched yet", table.name),
    };
    Ok(sql_error(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, what)
        .set_hint("Name the column of images or texts to embed: source => …"))
}

/// Refuses empty names: no column has one, and it is `reset` that removes an option from a watch.
fn check_not_empty(table: &Table, arguments: &Arguments<'_>) -> SqlResult<()> {
    let columns = [
        ("text_source", arguments.text_source),
        ("key", arguments.key),
        ("labels", arguments.labels),
        ("image", arguments.image),
        ("tags", arguments.tags),
    ];
    match columns.iter().find(|(_, name)| *name == Some("")) {
        Some((argument, _)) => {
            Err(sql_error(PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN, format!("table {} has no column \"\"", table.name))
                .set_hint(format!(
                    "To watch the table without {argument}, call clip_watch(…, reset => '{{{argument}}}')."
                )))
        }
        None => Ok(()),
    }
}

/// Takes the strongest lock on the table that the following steps need. Upgrading a lock later would deadlock with
/// every transaction that has read the table and is about to write it.
pub fn lock_table(table: Table, arguments: &Arguments<'_>) -> SqlResult<(Table, Plan)> {
    // Made before the lock is taken, so that no session has to wait while a model loads, which takes seconds.
    let plan = Plan::make(&table, arguments)?;
    let lock =
        if needs_exclusive_lock(&table, &plan, arguments)? { Lock::AccessExclusive } else { Lock::ShareRowExclusive };
    let table = Table::locked(table.oid, lock)?;
    let plan = Plan::make(&table, arguments)?;
    check_table(&table, plan.queued)?;
    if !matches!(lock, Lock::AccessExclusive) && needs_exclusive_lock(&table, &plan, arguments)? {
        return Err(sql_error(
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            format!("{} has just been altered", table.name),
        )
        .set_hint("Try again."));
    }
    Ok((table, plan))
}

/// Whether a column has to be added or a trigger dropped. Creating or replacing triggers alone needs only a lock that
/// allows reads.
fn needs_exclusive_lock(table: &Table, plan: &Plan, arguments: &Arguments<'_>) -> SqlResult<bool> {
    Spi::connect_mut(|client| {
        for name in [Some(arguments.embedding), plan.cluster.as_deref(), plan.tags.as_deref()].into_iter().flatten() {
            if table.column(client, name)?.is_none() {
                return Ok(true);
            }
        }
        Ok(!stale(table.oid)?.is_empty())
    })
}

/// Refuses to change settings that a second call of clip_watch can't change.
pub fn check_change(existing: &Watch, arguments: &Arguments<'_>) -> SqlResult<()> {
    let refuse = |message: String, hint: &str| {
        Err(sql_error(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message).set_hint(hint))
    };
    let column = &existing.embedding;
    if let Some(model) = arguments.model
        && loaded::base_name(&existing.model) != loaded::base_name(model)
    {
        return refuse(
            format!("column \"{column}\" holds vectors of model \"{}\", not of \"{model}\"", existing.model),
            "Vectors of different models don't mix: CALL clip_reembed(table, model) changes the model.",
        );
    }
    if existing.cluster.is_some()
        && (arguments.cluster.is_some_and(|cluster| existing.cluster.as_deref() != Some(cluster))
            || arguments.collection.is_some_and(|collection| existing.collection.as_deref() != Some(collection)))
    {
        return refuse(
            format!("column \"{column}\" is watched with another cluster column or collection already"),
            "Stop grouping first: clip_watch(…, reset => '{cluster}'); columns and collection stay.",
        );
    }
    tags::check_change(existing, arguments.tags)?;
    if existing.replaces != arguments.replaces {
        return refuse(
            format!("column \"{column}\" is being filled by clip_reembed"),
            "Let it finish, or clip_unwatch that column.",
        );
    }
    Ok(())
}

/// Refuses a NOT NULL column if rows may have no value in it: an embedding is NULL while the row waits for the worker,
/// if its image can't be read, or if it has no image.
pub fn check_nulls(
    client: &mut SpiClient<'_>,
    table: &Table,
    name: &str,
    column: &Column,
    plan: &Plan,
) -> SqlResult<()> {
    if !column.not_null {
        return Ok(());
    }
    let mut has_source = false;
    for source in [&plan.image, &plan.text].into_iter().flatten() {
        has_source |= table.known_column(client, source)?.not_null;
    }
    let (why, way_out) = match (plan.queued, plan.skip, has_source) {
        (true, ..) => ("Rows that are queued have none until the worker has embedded them.", "or mode => 'immediate'"),
        (_, true, _) => ("With on_error => 'skip' rows that can't be embedded have none.", "or on_error => 'raise'"),
        (_, _, false) => ("Rows without a source have none.", "or make the source NOT NULL"),
        _ => return Ok(()),
    };
    Err(sql_error(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("column \"{name}\" of {} is NOT NULL", table.name),
    )
    .set_detail(why)
    .set_hint(format!("ALTER TABLE {} ALTER COLUMN {name} DROP NOT NULL, {way_out}.", table.name)))
}
