//! Members that have joined a cluster for rows that are not written yet.
//!
//! A BEFORE trigger has to know the cluster before the row is stored, and ON CONFLICT or another trigger may yet keep the
//! row from being stored. So a trigger joins before and confirms after; what is not confirmed by the end of the
//! transaction leaves its cluster again.

use std::rc::Rc;

use pgrx::pg_sys;

use crate::cluster::assign::{assign, leave};
use crate::pg::error::SqlResult;
use crate::pg::transaction::{RollbackList, before_commit};
use crate::pg::vector::Vector;

/// A member as clusters know it.
#[derive(Clone, PartialEq)]
pub struct Member {
    pub collection: Rc<str>,
    pub cluster: i64,
    pub vector: Vec<f32>,
}

thread_local! {
    static JOINED: RollbackList<Member> = RollbackList::new();
}

/// Joins a cluster on behalf of a role, for a row that is yet to be written.
pub fn join(collection: &Rc<str>, vector: &[f32], role: pg_sys::Oid) -> SqlResult<i64> {
    let cluster = assign(Vector(vector.to_vec()), collection, role)?;
    JOINED.with(|joined| joined.push(Member { collection: collection.clone(), cluster, vector: vector.to_vec() }));
    before_commit(settle);
    Ok(cluster)
}

/// The row of a member is written. Returns whether the member has joined for a row that was not.
pub fn confirm(member: &Member) -> bool {
    JOINED.with(|joined| joined.take(|known| known == member)).is_some()
}

/// Undoes what was joined for rows that were not written.
pub fn settle() -> SqlResult<()> {
    while let Some(Member { collection, cluster, vector }) = JOINED.with(RollbackList::pop) {
        leave(cluster, Vector(vector), Some(&collection), None)?;
    }
    Ok(())
}
