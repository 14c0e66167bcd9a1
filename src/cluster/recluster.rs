//! clip_recluster: groups a whole collection by exact agglomerative clustering, and reports the changes.

use std::collections::HashMap;
use std::time::Duration;

use clip::clustering::agglomerative::{Linkage, agglomerate};
use clip::clustering::regroup::{Change, Regrouping, bytes_of, compare, keep_ids};
use clip::memory::{self, Reserve};
use clip::{Error, Kind};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::cluster::access::{Access, Privilege};
use crate::cluster::distributed::{Moved, Shards};
use crate::cluster::maintenance::replace_all;
use crate::cluster::members::{FETCH, Members, read, read_each, report_progress};
use crate::cluster::statements;
use crate::cluster::tables::Store;
use crate::guc;
use crate::pg::error::{SqlResult, counted, different_dimensions, report, sql_error};
use crate::pg::owners_table::OwnersTable;
use crate::pg::spi::{get, spi};
use crate::pg::text::Text;
use crate::pg::user_context::{UserContext, as_extension, current_role};

/// The location of a member.
struct Place {
    table: pg_sys::Oid,
    tid: pg_sys::ItemPointerData,
    cluster: Option<i64>,
    /// For a member of a distributed table: its key and a hash of its embedding, instead of the location.
    key: Option<(String, i64)>,
}

#[pg_extern(volatile, strict, parallel_unsafe, cost = 1000000)]
#[allow(clippy::type_complexity)]
fn clip_recluster(
    collection: Text<'_>,
    linkage: default!(Text<'_>, "'average'"),
) -> Result<
    TableIterator<
        'static,
        (name!(cluster, i64), name!(change, String), name!(sources, Vec<i64>), name!(size, i64), name!(moved, i64)),
    >,
    ErrorReport,
> {
    let Text(collection) = collection;
    let Text(linkage) = linkage;
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
    // A vector that this transaction has assigned but not written is not a member.
    crate::cluster::pending::settle()?;
    let role = current_role();
    let members = Members::known(collection, role, Privilege::Recluster)?;
    let store = Store::open(c"clip_recluster()");
    recluster(&store, collection, &members, linkage, role).map(TableIterator::new)
}

fn recluster(
    store: &Store,
    collection: &str,
    members: &Members,
    linkage: Linkage,
    role: pg_sys::Oid,
) -> SqlResult<Vec<Change>> {
    let embedding = &members.embedding;
    let vector = members.vector();
    // Reading and clustering take long, and hold no lock.
    let rows = members.table.as_owner(|client| {
        let query = format!("SELECT {vector} FROM {} WHERE {embedding} IS NOT NULL", client.name());
        read(client.cursor_mut(&query)?, |_| Ok(()))
    })?;
    let labels =
        agglomerate(rows.view(), members.threshold, linkage, guc::threads(), &mut report_progress()).map_err(report)?;

    // From here on no session writes members, except members of a distributed table. The members are read again,
    // because rows may have changed in the meantime.
    let shards = members.is_distributed.then(|| Shards::of(members, collection)).transpose()?;
    match shards {
        Some(_) => drop(store.lock_exclusive(collection, true)),
        None => lock(store, collection, members)?,
    }
    Access::find(store, collection).check(role, Privilege::Recluster)?;
    let mut check = || {
        pgrx::check_for_interrupts!();
    };
    let groups = labels.iter().max().map_or(0, |most| *most as usize + 1);
    let reserve = Reserve::new(bytes_of(rows.len(), groups, rows.dimensions())).map_err(report)?;
    let mut regrouping = Regrouping::new(&rows, &labels, &mut check);
    let places = read_places(members, shards.as_ref(), &mut regrouping)?;
    if let Some(shards) = &shards {
        shards.check_no_departures(members)?;
    }
    reserve.finish().map_err(report)?;
    let reserve = Reserve::new(bytes_of(places.len(), 0, rows.dimensions())).map_err(report)?;
    let (labels, groups) = regrouping.finish(members.threshold, &mut check);
    drop(rows);

    let known: HashMap<i64, i64> = {
        let _user_context = UserContext::of_extension();
        Spi::connect_mut(statements::sizes(collection))?
    };
    let old: Vec<Option<i64>> = places.iter().map(|place| place.cluster.filter(|id| known.contains_key(id))).collect();
    let kept = keep_ids(&labels, &old, groups.len());
    let ids = all_ids(&kept)?;
    let changes = compare(&labels, &old, &ids);
    match &shards {
        Some(shards) => shards.move_members(members, moved(places, &labels, &ids))?,
        None => move_members(members, &places, &labels, &ids)?,
    }

    as_extension(|client| replace_all(client, collection, &ids, &groups))?;
    let count = |what: &str| changes.iter().filter(|change| change.1 == what).count();
    pgrx::notice!(
        "clip_search: {} in {}, {} before: {} merged, {} split, {} moved, {} new",
        counted(labels.len() as i64, "member"),
        counted(ids.len() as i64, "cluster"),
        known.len(),
        count("merged"),
        count("split"),
        count("moved"),
        count("new")
    );
    reserve.finish().map_err(report)?;
    Ok(changes)
}

/// Reads the members again, and adds their vectors to `regrouping`. Returns where each is.
fn read_places(members: &Members, shards: Option<&Shards>, regrouping: &mut Regrouping<'_>) -> SqlResult<Vec<Place>> {
    let Members { embedding, cluster, .. } = members;
    let mut places = Vec::new();
    members.table.as_owner(|client| {
        let query = format!(
            "SELECT {}, {}, {cluster}::bigint FROM {} WHERE {embedding} IS NOT NULL",
            members.vector(),
            shards.map_or("tableoid, ctid".to_owned(), |shards| shards.columns(members)),
            client.name()
        );
        read_each(client.cursor_mut(&query)?, |vector, row| {
            if !regrouping.add(vector).map_err(report)? {
                return Err(different_dimensions(regrouping.dimensions(), vector.len()));
            }
            if shards.is_some() {
                let key = get::<String>(row, 2)?.zip(get::<i64>(row, 3)?);
                let (table, tid) = (pg_sys::Oid::INVALID, pg_sys::ItemPointerData::default());
                return memory::push(&mut places, Place { table, tid, cluster: get(row, 4)?, key }).map_err(report);
            }
            let missing = || report(Error::new(Kind::Internal, "a member has no place"));
            let tid = get(row, 3)?.ok_or_else(missing)?;
            let place = Place { table: get(row, 2)?.ok_or_else(missing)?, tid, cluster: get(row, 4)?, key: None };
            memory::push(&mut places, place).map_err(report)
        })
    })?;
    Ok(places)
}

/// The ids of all groups: those that are kept, and new ones from the sequence for the others.
fn all_ids(kept: &[Option<i64>]) -> SqlResult<Vec<i64>> {
    let _user_context = UserContext::of_extension();
    let new = kept.iter().filter(|id| id.is_none()).count();
    let mut fresh = Spi::connect_mut(statements::fresh_ids(new))?.into_iter();
    Ok(kept.iter().map(|id| id.or_else(|| fresh.next()).unwrap_or_default()).collect())
}

/// The members of a distributed table whose cluster has changed.
fn moved(places: Vec<Place>, labels: &[u32], ids: &[i64]) -> Vec<Moved> {
    let moved = places.into_iter().zip(labels).filter_map(|(place, label)| {
        let id = ids[*label as usize];
        let (key, hash) = place.key.filter(|_| place.cluster != Some(id))?;
        Some(Moved { key, hash, old: place.cluster, id })
    });
    moved.collect()
}

/// Writes the cluster of each member whose cluster has changed, as the table's owner.
fn move_members(members: &Members, places: &[Place], labels: &[u32], ids: &[i64]) -> SqlResult<()> {
    let cluster = &members.cluster;
    let mut moves: HashMap<pg_sys::Oid, (Vec<pg_sys::ItemPointerData>, Vec<i64>)> = HashMap::new();
    for (place, label) in places.iter().zip(labels) {
        let id = ids[*label as usize];
        if place.cluster != Some(id) {
            let (tids, new) = moves.entry(place.table).or_default();
            tids.push(place.tid);
            new.push(id);
        }
    }
    for (oid, (tids, new)) in moves {
        // A partition; Members::find has checked that it has the same owner.
        let table =
            OwnersTable::find_only(oid).ok_or_else(|| report(Error::new(Kind::Internal, "a partition is gone")))?;
        table.as_owner(|client| {
            let update = format!(include_str!("sql/move_members.sql"), table = client.name(), cluster = cluster);
            for (tids, new) in tids.chunks(FETCH as usize).zip(new.chunks(FETCH as usize)) {
                pgrx::check_for_interrupts!();
                let arguments = [tids.to_vec().into(), new.to_vec().into()];
                let done = client.update(&update, None, &arguments)?.len();
                if done != tids.len() {
                    return Err(sql_error(
                        PgSqlErrorCode::ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION,
                        format!("{} of {} members could not be moved", tids.len() - done, tids.len()),
                    )
                    .set_detail(format!("A trigger or a rule on {} keeps its rows from being updated.", client.name()))
                    .set_hint(
                        "Triggers that embed should fire for changes of the image only: BEFORE INSERT OR UPDATE OF data.",
                    ));
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Locks the members against writers, and the collection against assignment.
///
/// A transaction that has assigned and not ended holds both locks. While such a transaction exists, this function keeps
/// neither lock, so that other sessions are not blocked; after ten seconds of retries it waits in the lock queue. This
/// transaction has read the members, so a writer that then truncates or alters the table waits for it. Such a cycle is no
/// deadlock while neither lock is waited for, and ends this call instead of the writer's.
fn lock(store: &Store, collection: &str, members: &Members) -> SqlResult<()> {
    const TRIES: u32 = 100;
    for attempt in 1..=TRIES {
        if store.try_lock(members.table.oid, collection) {
            return Ok(());
        }
        pgrx::check_for_interrupts!();
        std::thread::sleep(Duration::from_millis(100));
        if attempt % 10 == 0 {
            refuse_cycle(collection, members)?;
        }
    }
    pgrx::notice!("clip_search: waiting for transactions that are writing members of collection \"{collection}\"");
    store.lock_members(members.table.oid, collection);
    Ok(())
}

/// Raises an error if a session that writes the members waits for this transaction.
fn refuse_cycle(collection: &str, members: &Members) -> SqlResult<()> {
    let waiting = as_extension(|client| {
        let rows =
            client.update(include_str!("sql/waits_for_us.sql"), Some(1), &[members.table.oid.into()]).map_err(spi)?;
        Ok::<_, ErrorReport>(rows.into_iter().next().map(|row| get::<i32>(&row, 1)).transpose()?.flatten())
    })?;
    match waiting {
        None => Ok(()),
        Some(process) => Err(sql_error(
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            format!("could not lock the members of collection \"{collection}\""),
        )
        .set_detail(format!("Process {process} has written {} and waits for this transaction.", members.table.shown()))
        .set_hint("Try again.")),
    }
}
