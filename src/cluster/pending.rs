//! Members that have joined a cluster before their rows are written.
//!
//! A BEFORE trigger needs the cluster before the row is stored, and ON CONFLICT or another trigger may still prevent
//! that. The BEFORE trigger therefore joins, and the AFTER trigger confirms; members that are not confirmed by the end
//! of the transaction leave their clusters.

use std::rc::Rc;

use pgrx::pg_sys;

use crate::cluster::assign::{assign, leave};
use crate::pg::error::SqlResult;
use crate::pg::transaction::{RollbackList, before_commit};
use crate::pg::vector::Vector;

/// A member of a cluster.
#[derive(Clone, PartialEq)]
pub struct Member {
    pub collection: Rc<str>,
    pub cluster: i64,
    pub vector: Vec<f32>,
}

thread_local! {
    static JOINED: RollbackList<Member> = RollbackList::new();
}

/// Joins a cluster on behalf of a role, for a row that will be written.
pub fn join(collection: &Rc<str>, vector: &[f32], role: pg_sys::Oid) -> SqlResult<i64> {
    let cluster = assign(Vector(vector.to_vec()), collection, role)?;
    JOINED.with(|joined| joined.push(Member { collection: collection.clone(), cluster, vector: vector.to_vec() }));
    before_commit(settle);
    Ok(cluster)
}

/// Confirms that the row of a member was written. Returns whether the member had joined without being confirmed.
pub fn confirm(member: &Member) -> bool {
    JOINED.with(|joined| joined.take(|known| known == member)).is_some()
}

/// Removes members whose rows were not written from their clusters.
pub fn settle() -> SqlResult<()> {
    while let Some(Member { collection, cluster, vector }) = JOINED.with(RollbackList::pop) {
        leave(cluster, Vector(vector), Some(&collection), None)?;
    }
    Ok(())
}
