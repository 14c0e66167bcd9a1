//! Grouping a whole collection anew: exact agglomerative clustering, and what changes by it.

use std::collections::HashMap;
use std::time::Duration;

use clip::clustering::agglomerative::{Linkage, agglomerate};
use clip::clustering::regroup::{Change, compare, keep_ids, regroup};
use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiCursor};

use crate::cluster::maintenance::write_anew;
use crate::cluster::members::{FETCH, Members, check_interrupts, read};
use crate::cluster::tables::{AsOwner, Store};
use crate::guc;
use crate::pg::error::{SqlResult, report, sql_error};
use crate::pg::spi::{get, spi};

/// Where a member is.
struct Place {
    table: pg_sys::Oid,
    tid: pg_sys::ItemPointerData,
    cluster: Option<i64>,
}

#[pg_extern(volatile, strict, parallel_unsafe, cost = 1000000)]
#[allow(clippy::type_complexity)]
fn clip_recluster(
    collection: &str,
    linkage: default!(&str, "'average'"),
) -> Result<
    TableIterator<
        'static,
        (name!(cluster, i64), name!(change, String), name!(sources, Vec<i64>), name!(size, i64), name!(moved, i64)),
    >,
    ErrorReport,
> {
    let linkage = match linkage {
        "average" => Linkage::Average,
        "single" => Linkage::Single,
        other => {
            return Err(report(
                Error::new(Kind::InvalidInput, format!("linkage \"{other}\" is unknown"))
                    .hint("Use 'average' or 'single'."),
            ));
        }
    };
    // What this transaction has assigned and then not written is no member.
    crate::cluster::pending::settle()?;
    let store = Store::open(c"clip_recluster()");
    let changes = Spi::connect_mut(|client| {
        let members = Members::known(client, collection)?;
        without_row_security(client, |client| recluster(client, &store, collection, &members, linkage))
    })?;
    Ok(TableIterator::new(changes))
}

/// Members that a policy hides would be taken for gone: an error, instead.
fn without_row_security<T>(
    client: &mut SpiClient<'_>,
    f: impl FnOnce(&mut SpiClient<'_>) -> SqlResult<T>,
) -> SqlResult<T> {
    const SET: &str =
        "SELECT pg_catalog.current_setting('row_security'), pg_catalog.set_config('row_security', $1, true)";
    let before = client.update(SET, None, &["off".into()]).map_err(spi)?.first().get::<String>(1).map_err(spi)?;
    let result = f(client)?;
    client.update(SET, None, &[before.into()]).map_err(spi)?;
    Ok(result)
}

/// A cursor that may change data takes a snapshot of its own.
fn fresh<'conn>(client: &mut SpiClient<'conn>, query: &str) -> SqlResult<SpiCursor<'conn>> {
    client.try_open_cursor_mut(query, &[]).map_err(spi)
}

fn recluster(
    client: &mut SpiClient<'_>,
    store: &Store,
    collection: &str,
    members: &Members,
    linkage: Linkage,
) -> SqlResult<Vec<Change>> {
    let Members { table, embedding, cluster, .. } = members;
    let vector = members.vector();
    // The long part locks nothing.
    let rows =
        read(fresh(client, &format!("SELECT {vector} FROM {table} WHERE {embedding} IS NOT NULL"))?, |_| Ok(()))?;
    let labels = agglomerate(rows.view(), members.threshold, linkage, guc::threads(), &mut check_interrupts())
        .map_err(report)?;

    // From here on nobody writes members; those that have come, gone or changed meanwhile are seen to.
    lock(store, collection, members);
    let mut places = Vec::new();
    let query =
        format!("SELECT {vector}, tableoid, ctid, {cluster}::bigint FROM {table} WHERE {embedding} IS NOT NULL");
    let now = read(fresh(client, &query)?, |row| {
        let missing = || report(Error::new(Kind::Internal, "a member has no place"));
        let tid = get(row, 3)?.ok_or_else(missing)?;
        places.push(Place { table: get(row, 2)?.ok_or_else(missing)?, tid, cluster: get(row, 4)? });
        Ok(())
    })?;
    let mut check = || {
        pgrx::check_for_interrupts!();
    };
    let (labels, groups) = regroup(&rows, &labels, &now, members.threshold, &mut check);
    drop(rows);

    let known: HashMap<i64, i64> = {
        let query = "SELECT id, size FROM clip_search.cluster WHERE collection OPERATOR(pg_catalog.=) $1";
        let found = client.update(query, None, &[collection.into()]).map_err(spi)?;
        found
            .into_iter()
            .map(|row| Ok((get(&row, 1)?.unwrap_or_default(), get(&row, 2)?.unwrap_or_default())))
            .collect::<SqlResult<_>>()?
    };
    let old: Vec<Option<i64>> = places.iter().map(|place| place.cluster.filter(|id| known.contains_key(id))).collect();
    let kept = keep_ids(&labels, &old, groups.len());
    let ids = {
        let _owner = AsOwner::new(store);
        let new = kept.iter().filter(|id| id.is_none()).count();
        let mut fresh = fresh_ids(client, new)?.into_iter();
        kept.iter().map(|id| id.or_else(|| fresh.next())).map(|id| id.unwrap_or_default()).collect::<Vec<i64>>()
    };
    let changes = compare(&labels, &old, &ids);

    // The members, as the caller.
    let mut moves: HashMap<pg_sys::Oid, (Vec<pg_sys::ItemPointerData>, Vec<i64>)> = HashMap::new();
    for (place, label) in places.iter().zip(&labels) {
        let id = ids[*label as usize];
        if place.cluster != Some(id) {
            let (tids, new) = moves.entry(place.table).or_default();
            tids.push(place.tid);
            new.push(id);
        }
    }
    for (oid, (tids, new)) in moves {
        let name = client
            .update("SELECT pg_catalog.format('%I.%I', n.nspname, r.relname) FROM pg_catalog.pg_class r \
                     JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) r.relnamespace WHERE r.oid OPERATOR(pg_catalog.=) $1", Some(1), &[oid.into()])
            .map_err(spi)?
            .first()
            .get::<String>(1)
            .map_err(spi)?
            .unwrap_or_default();
        let update = format!(
            "UPDATE ONLY {name} AS t SET {cluster} = n.id FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS n (tid, id) \
             WHERE t.ctid OPERATOR(pg_catalog.=) n.tid"
        );
        for (tids, new) in tids.chunks(FETCH as usize).zip(new.chunks(FETCH as usize)) {
            pgrx::check_for_interrupts!();
            let done = client.update(&update, None, &[tids.to_vec().into(), new.to_vec().into()]).map_err(spi)?.len();
            if done != tids.len() {
                return Err(sql_error(
                    PgSqlErrorCode::ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
                    format!("{} of {} members could not be moved", tids.len() - done, tids.len()),
                )
                .set_detail(format!("A trigger or a rule on {name} keeps its rows from being updated."))
                .set_hint(
                    "Triggers that embed should fire for changes of the image only: BEFORE INSERT OR UPDATE OF data.",
                ));
            }
        }
    }

    let _owner = AsOwner::new(store);
    write_anew(client, collection, &ids, &groups)?;
    let count = |what: &str| changes.iter().filter(|change| change.1 == what).count();
    pgrx::notice!(
        "clip_search: {} members in {} clusters, {} before: {} merged, {} split, {} moved, {} new",
        labels.len(),
        ids.len(),
        known.len(),
        count("merged"),
        count("split"),
        count("moved"),
        count("new")
    );
    Ok(changes)
}

/// Locks the members against writers, and the collection against assignment.
///
/// Who has assigned and not committed yet holds both. As long as somebody does, neither lock is kept, so that others go
/// on; after ten seconds of trying it queues up.
fn lock(store: &Store, collection: &str, members: &Members) {
    const TRIES: u32 = 100;
    for _ in 0..TRIES {
        if store.try_lock(members.oid, collection) {
            return;
        }
        pgrx::check_for_interrupts!();
        std::thread::sleep(Duration::from_millis(100));
    }
    pgrx::notice!("clip_search: waiting for transactions that are writing members of collection \"{collection}\"");
    store.lock_members(members.oid, collection);
}

fn fresh_ids(client: &mut SpiClient<'_>, count: usize) -> SqlResult<Vec<i64>> {
    let query = "SELECT pg_catalog.nextval('clip_search.cluster_id_seq') FROM pg_catalog.generate_series(1, $1)";
    let rows = client.update(query, None, &[(count as i64).into()]).map_err(spi)?;
    rows.into_iter().map(|row| Ok(get(&row, 1)?.unwrap_or_default())).collect()
}
