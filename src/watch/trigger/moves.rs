//! Updates that move a row to another partition: for triggers, each is an update, a deletion in the old partition and
//! an insertion in the new one.
#![allow(unsafe_code)]

use pgrx::pg_sys;

use crate::cluster::pending::Member;
use crate::pg::error::SqlResult;
use crate::pg::transaction::RollbackList;
use crate::watch::trigger::plan::Plan;
use crate::watch::trigger::row::Tuple;

/// An update that may turn out to move its row to another partition.
struct Move {
    /// When the client sent the statement that led to it.
    sent: pg_sys::TimestampTz,
    watch: i64,
    table: pg_sys::Oid,
    tid: pg_sys::ItemPointerData,
    /// The trigger has embedded the row again and joined a cluster for it.
    changed: bool,
    deleted: bool,
    source: u64,
    member: Option<Member>,
    embedding: Option<Vec<f32>>,
    /// The keys of a row that has no embedding.
    keys: Option<Keys>,
}

/// A row's key before and after its move.
struct Keys {
    before: String,
    after: String,
}

thread_local! {
    /// Members whose rows move from one partition to another and stay in their clusters: rows to be deleted from the
    /// old partition, and rows to be inserted into the new one (`ARRIVING`).
    static MOVING: RollbackList<Member> = RollbackList::new();
    static ARRIVING: RollbackList<Member> = RollbackList::new();
    /// Rows that move without an embedding, by their watches: they stay in the list of failures if it has them.
    static WITHOUT_EMBEDDING: RollbackList<(i64, Keys)> = RollbackList::new();
    /// The last update of each watch.
    static UPDATES: RollbackList<Move> = RollbackList::new();
}

fn sent() -> pg_sys::TimestampTz {
    // SAFETY: reads a variable of the process.
    unsafe { pg_sys::GetCurrentStatementStartTimestamp() }
}

/// Remembers an update of a partition's row, which may turn out to be a move. `changed`: the trigger has
/// embedded the row again.
pub(super) fn note_update(plan: &Plan, table: pg_sys::Oid, old: &Tuple, new: &Tuple, changed: bool) -> SqlResult<()> {
    let stays_open = !changed && old.datum(plan.embedding).is_none() && new.has_source(plan);
    let keys = if stays_open { Some(Keys { before: old.key(plan)?, after: new.key(plan)? }) } else { None };
    // SAFETY: the old row is a stored row.
    let tid = unsafe { (*old.tuple).t_self };
    let what = Move {
        sent: sent(),
        watch: plan.watch.id,
        table,
        tid,
        changed,
        deleted: false,
        source: new.stored_source(plan),
        member: new.member(plan),
        embedding: new.vector(plan),
        keys,
    };
    forget_update(plan);
    UPDATES.with(|updates| updates.push(what));
    Ok(())
}

/// Records that the update was not a move.
pub(super) fn forget_update(plan: &Plan) {
    UPDATES.with(|updates| updates.retain(|known| known.watch != plan.watch.id));
}

/// Whether a member's row has just arrived from another partition. It has joined no cluster, and does not confirm the
/// membership of an equal row.
pub(super) fn has_arrived(member: &Member) -> bool {
    ARRIVING.with(|arriving| arriving.take(|known| known == member)).is_some()
}

/// Whether a member's row moves to another partition, and so stays in its cluster.
pub(super) fn is_moving(member: &Member) -> bool {
    MOVING.with(|moving| moving.take(|known| known == member)).is_some()
}

pub(super) fn any_without_embedding() -> bool {
    WITHOUT_EMBEDDING.with(|moving| !moving.is_empty())
}

/// Whether the row with this key moves to another partition without an embedding.
pub(super) fn is_moving_without_embedding(plan: &Plan, key: &str) -> bool {
    let mut found = false;
    let is = |(watch, keys): &(i64, Keys)| *watch == plan.watch.id && keys.before == key;
    WITHOUT_EMBEDDING.with(|moving| moving.change(is, |_| found = true));
    found
}

/// The former key of a row that has arrived from another partition without an embedding.
pub(super) fn former_key(plan: &Plan, key: &str) -> Option<String> {
    let is = |(watch, keys): &(i64, Keys)| *watch == plan.watch.id && keys.after == key;
    WITHOUT_EMBEDDING.with(|moving| moving.take(is)).map(|(_, keys)| keys.before)
}

pub(super) fn before_delete(plan: &Plan, table: pg_sys::Oid, old: &Tuple) {
    // SAFETY: the old row is a stored row.
    let tid = unsafe { (*old.tuple).t_self };
    let is = |known: &Move| known.watch == plan.watch.id;
    UPDATES.with(|updates| {
        updates.change(is, |update| {
            update.deleted = update.sent == sent()
                && update.table == table
                && (update.tid.ip_blkid.bi_hi, update.tid.ip_blkid.bi_lo, update.tid.ip_posid)
                    == (tid.ip_blkid.bi_hi, tid.ip_blkid.bi_lo, tid.ip_posid);
        });
    });
}

/// Whether the row's update has just removed it from another partition.
pub(super) fn is_moved_here(plan: &Plan, new: &Tuple) -> bool {
    let moves = |known: &Move| known.deleted && known.sent == sent() && known.watch == plan.watch.id;
    let Some(update) = UPDATES.with(|updates| updates.take(moves)) else { return false };
    let is = update.source == new.stored_source(plan)
        && update.embedding == new.vector(plan)
        && update.member == new.member(plan);
    if let Some(keys) = update.keys.filter(|_| is) {
        WITHOUT_EMBEDDING.with(|moving| moving.push((plan.watch.id, keys)));
    }
    if let Some(member) = update.member.filter(|_| is && !update.changed) {
        MOVING.with(|moving| moving.push(member.clone()));
        ARRIVING.with(|arriving| arriving.push(member));
    }
    is
}
