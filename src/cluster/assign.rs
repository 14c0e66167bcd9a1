//! Grouping on insert: a vector joins the nearest cluster of its collection, or creates one.
//!
//! Here no session waits for another transaction to end, so deadlocks can't occur. A cluster is a set of rows that each
//! add to its sum (sql/bootstrap.sql); joining inserts a row. Dirty scans ([`Store::scan`]) also see clusters that
//! other transactions have created and not committed yet, and a vector joins them like any other: if the transaction
//! that created the cluster rolls back, the cluster consists of the members that joined. A lock keeps two transactions
//! from creating the same cluster concurrently. It is held while one of them searches again and writes its row
//! ([`Store::lock_briefly`]), not to the end of the transaction.

use clip::vector::{ROUNDING, l2_normalize};
use clip::{Error, Kind};
use pgrx::prelude::*;
use pgrx::spi::SpiClient;

use crate::cluster::access::{Access, DEFAULT_COLLECTION, Privilege, add_owner, check_name};
use crate::cluster::collection::Collection;
use crate::cluster::columns::sum;
use crate::cluster::maintenance::{RECENT, fold, forget, pack, tidy};
use crate::cluster::search::{Cluster, Search};
use crate::cluster::statements;
use crate::cluster::tables::{Condition, Index, Snapshot, Store};
use crate::model::loaded;
use crate::pg::citus;
use crate::pg::error::{SqlResult, report, warn};
use crate::pg::text::Text;
use crate::pg::user_context::{UserContext, current_role};
use crate::pg::vector::Vector;

#[pg_extern(volatile, strict, parallel_unsafe, cost = 5000)]
fn clip_assign_cluster(embedding: Vector) -> SqlResult<i64> {
    citus::refuse_worker("clip_assign_cluster()")?;
    assign(embedding, DEFAULT_COLLECTION, current_role())
}

#[pg_extern(volatile, strict, parallel_unsafe, cost = 5000, name = "clip_assign_cluster")]
fn clip_assign_cluster_in(embedding: Vector, collection: Text<'_>) -> SqlResult<i64> {
    let Text(collection) = collection;
    citus::refuse_worker("clip_assign_cluster()")?;
    assign(embedding, collection, current_role())
}

#[pg_extern(volatile, strict, parallel_unsafe, cost = 5000)]
fn clip_leave_cluster(cluster: i64, embedding: Vector) -> SqlResult<bool> {
    citus::refuse_worker("clip_leave_cluster()")?;
    leave(cluster, embedding, None, Some(current_role()))
}

/// Joins the nearest cluster of a collection, or creates one, on behalf of a role: the caller, or the owner of a
/// watched table, since every role that can write the table may write its groups.
pub fn assign(embedding: Vector, collection: &str, role: pg_sys::Oid) -> SqlResult<i64> {
    check_name(collection)?;
    let _user_context = UserContext::of_extension();
    let store = Store::open(c"clip_assign_cluster()");
    // Before any lock, so that a role that may not assign can't block other sessions.
    let access = Access::find(&store, collection);
    access.check_not_reserved()?;
    access.check_assign(role)?;
    let model = loaded::model_of(&embedding.0);
    let Vector(mut member) = embedding;
    l2_normalize(&mut member).map_err(report)?;
    store.lock_shared(collection);
    // While this call waited for the lock, the collection may have been dropped and another one created.
    Access::find(&store, collection).check_assign(role)?;
    let collection = Collection::find(&store, collection)?;
    collection.check(member.len(), model.as_deref())?;
    let search = Search::new(&store, &collection, &member);
    Spi::connect_mut(|client| {
        claim(client, &store, &collection.name, role)?;
        // Read under the short lock: a session that draws a sequence number holds the lock until its row is written.
        let sequence_number = {
            let _lock = store.lock_briefly(&collection.name, false);
            statements::last_id(client)?
        };
        let joins = |found: &Cluster| found.alive() && found.cosine + ROUNDING >= collection.threshold;
        let near = search.nearest(0).filter(joins).map(|found| found.id);
        let mut joined = None;
        if let Some(id) = near {
            let _lock = store.lock_briefly(&collection.name, false);
            // The cluster may have moved or vanished since the search. Clusters that may still be rolled back are
            // joined below.
            joined = search.look_up(id).filter(|cluster| joins(cluster) && cluster.settled);
            if let Some(found) = &joined {
                join(client, &collection, found, &member)?;
            }
        }
        let mut founded = false;
        let cluster = match joined {
            Some(found) => found,
            None => {
                let _lock = store.lock_briefly(&collection.name, true);
                // The previous holder of the lock has written its rows. The first search can have missed only rows that
                // were written after it.
                let found = match near {
                    Some(id) => search.look_up(id).filter(joins).or_else(|| search.nearest(0).filter(joins)),
                    None => search.nearest(sequence_number).filter(joins),
                };
                match found {
                    Some(found) => {
                        join(client, &collection, &found, &member)?;
                        found
                    }
                    None => {
                        founded = true;
                        Cluster::new(statements::insert_cluster(client, &collection.name, &member, model.as_deref())?)
                    }
                }
            }
        };
        if cluster.wants_folding() {
            tidy(|| fold(client, &store, &collection, &cluster))?;
        }
        if founded && search.recent.get() >= RECENT {
            tidy(|| pack(client, &store, &collection))?;
        }
        Ok(cluster.id)
    })
}

/// Makes the first role that assigns to a new collection its owner. If two transactions do this concurrently, the
/// second sees the first one's uncommitted row under the short lock.
fn claim(client: &mut SpiClient<'_>, store: &Store, collection: &str, role: pg_sys::Oid) -> SqlResult<()> {
    let access = Access::find(store, collection);
    if !access.wants_owner() {
        // The collection may have got an owner since the caller checked.
        return access.check_assign(role);
    }
    let _lock = store.lock_briefly(collection, true);
    let access = Access::find(store, collection);
    access.check_assign(role)?;
    if access.wants_owner() {
        add_owner(client, collection, role)?;
    }
    Ok(())
}

/// Adds a member to a cluster, under the short lock: the exclusive one, unless the cluster is settled.
///
/// A cluster that is not settled can vanish from other sessions' searches at any time, and the row that is written here
/// makes it appear again. The row's sequence number tells those sessions that they have not seen it.
fn join(client: &mut SpiClient<'_>, collection: &Collection, cluster: &Cluster, member: &[f32]) -> SqlResult<()> {
    let mut sum = cluster.sum.clone();
    sum.add(member, None, 1);
    // If no other member remains, other sessions are removing the last members, and the remainder of their sum is
    // meaningless.
    if sum.size > 1 && sum.direction().is_none() {
        return Err(report(
            Error::new(Kind::InvalidInput, "the members of the cluster cancel out")
                .detail(format!("The mean of cluster {} with this vector has no direction.", cluster.id))
                .hint("Use a higher threshold."),
        ));
    }
    if cluster.settled {
        statements::change(client, &collection.name, cluster.id, 1, member)
    } else {
        // The row by which searches find the cluster may still be rolled back, so this transaction writes its own.
        statements::insert_cluster_row(client, &collection.name, cluster.id, member, cluster.model.as_deref())
    }
}

/// Removes a member from a cluster; returns false if the cluster does not exist, for example after its collection was
/// dropped.
///
/// With `only`, a cluster of another collection is not changed, and a vector that is not a member causes a warning:
/// values that a user has written to a row must not prevent its deletion.
///
/// `role`: the role on whose behalf the member leaves; None for a member that this transaction has added.
pub fn leave(id: i64, embedding: Vector, only: Option<&str>, role: Option<pg_sys::Oid>) -> SqlResult<bool> {
    let _user_context = UserContext::of_extension();
    let store = Store::open(c"clip_leave_cluster()");
    let Vector(mut member) = embedding;
    l2_normalize(&mut member).map_err(report)?;
    let Some(name) = collection_of(&store, id) else { return Ok(false) };
    if only.is_some_and(|only| only != name) {
        return Ok(false);
    }
    // Ids can be guessed, so for a role without privileges the cluster does not exist. A trigger names the collection
    // and skips this check.
    if only.is_none() && role.is_some_and(|role| Access::find(&store, &name).has_none(role)) {
        return Ok(false);
    }
    let check = || role.map_or(Ok(()), |role| Access::find(&store, &name).check(role, Privilege::Assign));
    check()?;
    store.lock_shared(&name);
    check()?;
    let collection = Collection::find(&store, &name)?;
    if only.is_some() && collection.dimensions.is_some_and(|known| known as usize != member.len()) {
        return Ok(false);
    }
    collection.check(member.len(), None)?;
    Spi::connect_mut(|client| {
        let search = Search::new(&store, &collection, &member);
        let cluster = {
            let _lock = store.lock_briefly(&name, false);
            let Some(mut cluster) = search.look_up(id).filter(Cluster::alive) else { return Ok(false) };
            if !cluster.sum.may_hold(&member) {
                let error = Error::new(Kind::InvalidInput, format!("the vector is not a member of cluster {id}"))
                    .detail(format!(
                        "The cluster has size {}; its members can't add up to its centroid with this vector among them.",
                        cluster.sum.size
                    ));
                return match only {
                    None => Err(report(error.hint("Give the vector that was assigned, as it was then."))),
                    Some(_) => {
                        warn(error.hint(
                            "The embedding or the cluster was written by hand; clip_recluster recounts the members.",
                        ));
                        Ok(false)
                    }
                };
            }
            statements::change(client, &name, id, -1, &member.iter().map(|v| -v).collect::<Vec<_>>())?;
            cluster.rows.1 += 1;
            cluster
        };
        if cluster.sum.size == 1 {
            tidy(|| forget(client, &store, &search, id))?;
        } else if cluster.wants_folding() {
            // Searches would compare with the stored sum, from which the centroid may have moved far. For example, a
            // cluster's first member may leave after the second has joined.
            tidy(|| fold(client, &store, &collection, &cluster))?;
        }
        Ok(true)
    })
}

/// The collection that a cluster belongs to.
fn collection_of(store: &Store, id: i64) -> Option<String> {
    let mut name = None;
    for snapshot in [Snapshot::Dirty, Snapshot::Latest] {
        store.scan(snapshot, Index::SumCluster, &[Condition::BigintIs(sum::CLUSTER, id)], |row| {
            name = row.text(sum::COLLECTION);
            false
        });
        if name.is_some() {
            break;
        }
    }
    name
}
