//! The triggers that clip_watch creates on a table.

use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, quote_literal};

use crate::pg::catalog::{self, Lock, Table};
use crate::pg::error::{SqlResult, report, warn};
use crate::pg::spi::{get, own_schema, spi};
use crate::pg::user_context::{UserContext, as_extension};
use crate::watch::partitions;
use crate::watch::setting::Watch;

/// The names sort behind most other names, because triggers fire in the order of their names: triggers that prepare the
/// image fire first.
fn trigger_names(watch: i64) -> [String; 4] {
    ["", "_after", "_truncate", "_truncating"].map(|end| format!("zz_clip_watch_{watch}{end}"))
}

/// Drops the triggers of a watch. The table is locked, and had this name under the lock.
pub fn drop_triggers(client: &mut SpiClient<'_>, relation: pg_sys::Oid, name: &str, watch: i64) -> SqlResult<()> {
    for trigger in trigger_names(watch) {
        let there = "SELECT 1 FROM pg_catalog.pg_trigger WHERE tgrelid = $1 AND tgname = $2";
        if !client.update(there, Some(1), &[relation.into(), trigger.as_str().into()]).map_err(spi)?.is_empty() {
            catalog::define(client, relation, name, &format!("DROP TRIGGER {trigger} ON {name}"))?;
        }
    }
    partitions::forget(watch)
}

/// A trigger on a table that does not have the trigger's watch.
pub struct Stale {
    table: pg_sys::Oid,
    /// Quoted.
    name: String,
}

/// The triggers on a table and its partitions that belong to no watch of the table: restoring a schema-only dump, or a
/// single table, creates them. By now, a watch of another table may have the id.
pub fn stale(table: pg_sys::Oid) -> SqlResult<Vec<Stale>> {
    as_extension(|client| {
        let query = format!(
            include_str!("../sql/stale_triggers.sql"),
            function = quote_literal(format!("{}.clip_watch_row()", own_schema(client)?))
        );
        let rows = client.update(&query, None, &[table.into()]).map_err(spi)?;
        rows.map(|row| {
            Ok(Stale {
                table: get(&row, 1)?.unwrap_or(pg_sys::Oid::INVALID),
                name: get::<String>(&row, 2)?.unwrap_or_default(),
            })
        })
        .collect()
    })
}

/// Drops these triggers and reports it. They make every write fail, so this comes before the first write. The table is
/// locked.
pub fn drop_stale(table: &Table) -> SqlResult<()> {
    let found = stale(table.oid)?;
    for stale in &found {
        let drop = format!("DROP TRIGGER {} ON", stale.name);
        if stale.table == table.oid {
            let _caller = UserContext::of_caller();
            Spi::connect_mut(|client| table.define(client, &format!("{drop} {}", table.name)))?;
            continue;
        }
        // A partition may have an owner of its own.
        catalog::lock(stale.table, Lock::AccessExclusive);
        let Some(name) = catalog::qualified_name(stale.table) else { continue };
        as_extension(|client| catalog::define(client, stale.table, &name, &format!("{drop} {name}")))?;
    }
    let names: Vec<&str> = found.iter().map(|stale| stale.name.as_str()).collect();
    let message = match names.as_slice() {
        [] => return Ok(()),
        [name] => format!("trigger {name} of {} is dropped", table.name),
        names => format!("triggers {} of {} are dropped", names.join(", "), table.name),
    };
    report(Error::new(Kind::InvalidInput, message).detail(
        "The table does not have their watch: a dump of a single table, or of the schema alone, has no watches.",
    ))
    .report(PgLogLevel::NOTICE);
    Ok(())
}

/// Warns of a trigger that fires after this watch's trigger and may change the source after it was embedded.
fn warn_of_later(client: &mut SpiClient<'_>, table: &Table, watch: &Watch) -> SqlResult<()> {
    // The bits of tgtype for FOR EACH ROW and BEFORE INSERT OR UPDATE.
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

/// Warns of triggers that write the columns of this watch, or count its members a second time, such as a trigger that
/// embedded before the table was watched. The check reads the triggers' source; it can't check triggers in C.
fn warn_of_others(client: &mut SpiClient<'_>, table: &Table, watch: &Watch) -> SqlResult<()> {
    let query = include_str!("../sql/other_triggers.sql");
    let arguments = [table.oid.into(), watch.embedding.as_str().into(), watch.cluster.as_deref().into()];
    let rows = client.update(query, None, &arguments).map_err(spi)?;
    for row in rows {
        let (Some(trigger), Some(what)) = (get::<String>(&row, 1)?, get::<String>(&row, 2)?) else { continue };
        warn(
            Error::new(
                Kind::Unsupported,
                format!("trigger \"{trigger}\" of {} {what}, as clip_watch does", table.name),
            )
            .detail("Rows are embedded twice, or counted in two groups.")
            .hint(format!("DROP TRIGGER {trigger} ON {}, if clip_watch is to take its place.", table.name)),
        );
    }
    Ok(())
}

/// Creates the triggers of a watch, or replaces them. `for_shards`: the settings for the table's shards, which Citus
/// passes to them as the second argument of the first trigger.
pub fn create_triggers(
    client: &mut SpiClient<'_>,
    table: &Table,
    watch: &Watch,
    for_shards: Option<&str>,
) -> SqlResult<()> {
    warn_of_later(client, table, watch)?;
    warn_of_others(client, table, watch)?;
    let schema = own_schema(client)?;
    let function = format!("{schema}.clip_watch_row('{}')", watch.id);
    let with_settings = match for_shards {
        Some(settings) => format!("{schema}.clip_watch_row('{}', {})", watch.id, quote_literal(settings)),
        None => function.clone(),
    };
    let firing = firing(client, table, &schema)?;
    let [before, after, truncate, truncating] = trigger_names(watch.id);
    // For triggers, an update that moves a row to another partition is a deletion and an insertion; the trigger must
    // see the deletion to recognise a move.
    let moves = if table.kind == "p" { " OR DELETE" } else { "" };
    let inserts = if watch.needs_after_insert() { "INSERT OR " } else { "" };
    for (statement, function) in [
        (
            format!("CREATE OR REPLACE TRIGGER {before} BEFORE INSERT OR UPDATE{moves} ON {} FOR EACH ROW", table.name),
            &with_settings,
        ),
        (
            format!("CREATE OR REPLACE TRIGGER {after} AFTER {inserts}UPDATE OR DELETE ON {} FOR EACH ROW", table.name),
            &function,
        ),
        (
            format!("CREATE OR REPLACE TRIGGER {truncate} AFTER TRUNCATE ON {} FOR EACH STATEMENT", table.name),
            &function,
        ),
    ] {
        table.define(client, &format!("{statement} EXECUTE FUNCTION {function}"))?;
    }
    let mut created = vec![before, after, truncate];
    // The partitions' triggers need to know that the whole table is truncated. Citus creates no TRUNCATE triggers on
    // shards, so the trigger of the distributed table tells the shards.
    if table.kind == "p" || for_shards.is_some() {
        let statement = format!(
            "CREATE OR REPLACE TRIGGER {truncating} BEFORE TRUNCATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION {with_settings}",
            table.name
        );
        table.define(client, &statement)?;
        created.push(truncating);
    }
    if let Some(firing) = firing {
        for trigger in created {
            table.define(client, &format!("ALTER TABLE {} ENABLE {firing} TRIGGER {trigger}", table.name))?;
        }
    }
    Ok(())
}

/// ALWAYS or REPLICA, if a user has enabled the triggers of clip_watch on a table in this way, so that they fire for
/// changes that logical replication applies. CREATE OR REPLACE TRIGGER resets this, and the triggers of another watch
/// should fire in the same way.
fn firing(client: &mut SpiClient<'_>, table: &Table, schema: &str) -> SqlResult<Option<&'static str>> {
    let query = format!(
        "SELECT t.tgenabled::text FROM pg_catalog.pg_trigger t WHERE t.tgrelid = $1 AND NOT t.tgisinternal \
             AND t.tgfoid = {}::regprocedure::oid AND t.tgenabled IN ('A', 'R') ORDER BY t.tgenabled",
        quote_literal(format!("{schema}.clip_watch_row()"))
    );
    let rows = client.update(&query, Some(1), &[table.oid.into()]).map_err(spi)?;
    let found = rows.into_iter().next().map(|row| get::<String>(&row, 1)).transpose()?.flatten();
    Ok(found.map(|state| if state == "A" { "ALWAYS" } else { "REPLICA" }))
}
