//! The part of the trigger that runs after a row has been written, for example for its cluster and its queue entry.

use crate::cluster::assign::leave;
use crate::cluster::pending::{self, Member};
use crate::cluster::statements;
use crate::cluster::tables::Store;
use crate::pg::error::SqlResult;
use crate::pg::user_context::UserContext;
use crate::pg::vector::Vector;
use crate::watch::partitions;
use crate::watch::queue;
use crate::watch::shared_memory::wake_at_commit;
use crate::watch::trigger::before::take_failure;
use crate::watch::trigger::departures;
use crate::watch::trigger::moves;
use crate::watch::trigger::plan::Plan;
use crate::watch::trigger::row::{Tuple, same_value, unchanged};

pub(super) fn after_insert(plan: &Plan, new: &Tuple) -> SqlResult<()> {
    if !new.member(plan).is_some_and(|member| moves::has_arrived(&member)) {
        confirm(plan, new);
    }
    if new.datum(plan.embedding).is_none() && new.has_source(plan) && !stays_listed(plan, new)? {
        note(plan, new)?;
    }
    Ok(())
}

/// Whether a row that has arrived from another partition is listed as failed. Its entry gets the row's new key.
fn stays_listed(plan: &Plan, new: &Tuple) -> SqlResult<bool> {
    if !moves::any_without_embedding() {
        return Ok(false);
    }
    let key = new.key(plan)?;
    let Some(former) = moves::former_key(plan, &key) else { return Ok(false) };
    rename_failure(plan, &former, &key)
}

pub(super) fn after_update(plan: &Plan, old: &Tuple, new: &Tuple) -> SqlResult<()> {
    moves::forget_update(plan);
    departures::note(plan, old, Some(new))?;
    let changed = !unchanged(plan, old, new);
    if changed {
        confirm(plan, new);
        part(plan, old)?;
    } else if let Some(was) = old.member(plan) {
        // The user has changed the embedding or the cluster. Either `regrouped` joined a group before the row was
        // written, or the row has no group until it is embedded again.
        let parted = match new.member(plan) {
            Some(is) => is != was && confirm(plan, new),
            None => true,
        };
        if parted {
            part(plan, old)?;
        }
    } else {
        // The worker has grouped a row that had no group.
        confirm(plan, new);
    }
    let renamed = plan.key.iter().any(|&column| !same_value(old, new, column));
    let (was_open, open) = (old.datum(plan.embedding).is_none(), new.datum(plan.embedding).is_none());
    let mut listed = false;
    if was_open && (changed || renamed || !open) {
        let old_key = old.key(plan)?;
        if renamed && !changed && open {
            // The row stays listed, under its new key.
            listed = rename_failure(plan, &old_key, &new.key(plan)?)?;
        } else {
            queue::delete_failure(plan.watch.id, &old_key)?;
        }
    }
    if open && new.has_source(plan) {
        if changed {
            note(plan, new)?;
        } else if if was_open { renamed && !listed } else { plan.watch.queued } {
            enqueue(plan, new)?;
        }
    }
    Ok(())
}

pub(super) fn after_delete(plan: &Plan, old: &Tuple) -> SqlResult<()> {
    departures::note(plan, old, None)?;
    if let Some(member) = old.member(plan)
        && !moves::is_moving(&member)
    {
        part(plan, old)?;
    }
    if old.datum(plan.embedding).is_none() && old.has_source(plan) {
        let key = old.key(plan)?;
        if !moves::is_moving_without_embedding(plan, &key) {
            queue::delete_failure(plan.watch.id, &key)?;
        }
    }
    Ok(())
}

pub(super) fn after_truncate(plan: &Plan) -> SqlResult<()> {
    partitions::after_truncate(plan.watch.id);
    let _user_context = UserContext::of_extension();
    // Entries that another session has locked are left to it: it will find that their rows no longer exist.
    queue::forget_latest(plan.watch.id)?;
    if let Some(collection) = &plan.watch.collection {
        let store = Store::open(c"TRUNCATE");
        store.lock_exclusive(collection, true);
        statements::clear_latest(collection)?;
    }
    Ok(())
}

/// Confirms the membership of a row that has been written. Returns whether it has just joined.
fn confirm(plan: &Plan, new: &Tuple) -> bool {
    new.member(plan).is_some_and(|member| pending::confirm(&member))
}

/// Removes the row from its cluster.
fn part(plan: &Plan, old: &Tuple) -> SqlResult<()> {
    if partitions::is_uncounted(plan.table) {
        return Ok(());
    }
    if let Some(Member { collection, cluster, vector }) = old.member(plan) {
        leave(cluster, Vector(vector), Some(&collection), Some(plan.watch.owner))?;
    }
    Ok(())
}

/// Gives a failure its row's new key. Returns whether the row is listed as failed.
fn rename_failure(plan: &Plan, before: &str, after: &str) -> SqlResult<bool> {
    Ok(queue::noted(&plan.watch, after.len(), || queue::rename_failure(plan.watch.id, before, after))? > 0)
}

/// Records that a row has no embedding: as failed if an error is known, otherwise as an entry in the queue.
fn note(plan: &Plan, new: &Tuple) -> SqlResult<()> {
    if let Some(failure) = take_failure(plan, new) {
        let key = new.key(plan)?;
        return queue::noted(&plan.watch, key.len(), || queue::add_failure(plan.watch.id, &key, &failure, 1));
    }
    enqueue(plan, new)
}

fn enqueue(plan: &Plan, new: &Tuple) -> SqlResult<()> {
    let key = new.key(plan)?;
    queue::noted(&plan.watch, key.len(), || queue::add(plan.watch.id, &key))?;
    if plan.watch.queued {
        wake_at_commit();
    }
    Ok(())
}
