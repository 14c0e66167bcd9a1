//! Maintenance that keeps searches of the cluster tables fast.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use clip::clustering::binary_code::{self, Block, Code, Entry};
use clip::clustering::centroid::Sum;
use pgrx::spi::SpiClient;

use crate::cluster::collection::Collection;
use crate::cluster::columns::sum;
use crate::cluster::search::{Cluster, MAX_CODE_DRIFT, Search};
use crate::cluster::session_state::{MAX_LEFT_OVER, Packed, remember_merged, with_coder};
use crate::cluster::statements;
use crate::cluster::tables::{Condition, Index, Snapshot, Store};
use crate::pg::error::SqlResult;
use crate::pg::subtransaction::attempt;
use crate::pg::transaction::{Isolation, isolation};

/// The number of clusters without a code at which codes are computed: searching two blocks of sums takes 0.2 ms.
pub const RECENT: usize = 2 * binary_code::BLOCK;
/// A sum is replaced once its changes reach a quarter of its weight.
const LIGHT: i64 = 4;
/// The number of blocks to check whenever two or three are written: more than the number written, so that each block is
/// checked in time.
const THINNED_BLOCKS: usize = 6;

thread_local! {
    /// The sequence number up to which this session has checked a collection's blocks.
    static THINNED: RefCell<HashMap<String, i64>> = RefCell::default();
}

/// Runs maintenance. If this transaction can't, another one does.
///
/// A REPEATABLE READ transaction sees the rows as of its beginning, and can't lock rows that have been replaced since.
/// Maintenance that fails for this reason is rolled back and left to the next transaction. Sessions of postgres_fdw use
/// this level, so a collection may have no other writers; without any maintenance an assignment took 10 ms after 20,000
/// assignments, and longer with each further one.
pub fn tidy(work: impl FnOnce() -> SqlResult<()>) -> SqlResult<()> {
    match isolation() {
        Isolation::ReadCommitted => work(),
        Isolation::RepeatableRead => match attempt(work) {
            Err(failure) if !failure.is_passing() => Err(failure.into_report()),
            _ => Ok(()),
        },
        Isolation::Serializable => Ok(()),
    }
}

/// Deletes a cluster that has no members left, unless another transaction is using it.
pub fn forget(client: &mut SpiClient<'_>, store: &Store, search: &Search<'_>, id: i64) -> SqlResult<()> {
    // The lock keeps other sessions from joining during the check.
    let _lock = store.lock_briefly(&search.collection.name, true);
    let Some(cluster) = search.look_up(id).filter(|cluster| !cluster.alive()) else { return Ok(()) };
    let sums = statements::lock_sums(client, id)?;
    let changes = statements::lock_changes(client, store, id)?;
    if (sums.len(), changes.len()) == cluster.rows {
        statements::delete_sums(client, &sums)?;
        statements::delete_changes(client, &changes)?;
    }
    Ok(())
}

/// Merges the rows of a cluster that no other transaction has locked.
pub fn fold(client: &mut SpiClient<'_>, store: &Store, collection: &Collection, cluster: &Cluster) -> SqlResult<()> {
    let id = cluster.id;
    let changes = statements::lock_changes(client, store, id)?;
    let last = changes.iter().map(|change| change.sequence_number).max().unwrap_or_default();
    // While the changes are small compared to the sum, they are merged into one change and the sum is not written: a
    // sum that is replaced stays in three indexes until the transaction ends.
    let weight: i64 = changes.iter().map(|change| change.size.abs()).sum();
    if cluster.rows.0 == 1 && changes.len() > 1 && LIGHT * weight < cluster.base {
        let mut total = Sum::new(changes[0].high.len());
        for row in &changes {
            total.add(&row.high, row.low.as_deref(), row.size);
        }
        statements::merged(client, &collection.name, id, &total)?;
        statements::delete_changes(client, &changes)?;
        remember_merged(store, &collection.name, id, last);
        return Ok(());
    }
    let sums = statements::lock_sums(client, id)?;
    let Some(dimensions) = sums.iter().chain(&changes).map(|row| row.high.len()).next() else { return Ok(()) };
    let mut total = Sum::new(dimensions);
    for row in sums.iter().chain(&changes) {
        total.add(&row.high, row.low.as_deref(), row.size);
    }
    // The sum of an empty cluster is not written, because no search could find a sum of zero.
    if sums.len() + changes.len() < 2 || total.size <= 0 || total.direction().is_none() {
        return Ok(());
    }
    match sums.first() {
        Some(kept) => {
            // A code that no longer fits the centroid is dropped; the cluster is then searched by its sum.
            let code = kept.code.as_deref().and_then(|bytes| {
                let (high, _) = total.split();
                let now = with_coder(dimensions, |coder| coder.encode(&high));
                let then = binary_code::from_bytes(bytes)?;
                (binary_code::distance(&now, &then) <= MAX_CODE_DRIFT).then_some(bytes)
            });
            {
                // A row without a code gets a sequence number.
                let _lock = (kept.code.is_some() && code.is_none()).then(|| store.lock_briefly(&collection.name, true));
                statements::replace(client, kept, &total, code)?;
            }
            statements::delete_sums(client, &sums[1..])?;
        }
        None => statements::merged(client, &collection.name, id, &total)?,
    }
    statements::delete_changes(client, &changes)?;
    remember_merged(store, &collection.name, id, last);
    Ok(())
}

/// Computes codes for clusters without a code.
pub fn pack(client: &mut SpiClient<'_>, store: &Store, collection: &Collection) -> SqlResult<()> {
    let mut rows = statements::lock_recent(client, &collection.name, RECENT)?;
    if rows.len() < binary_code::BLOCK {
        return Ok(()); // another session is doing it
    }
    rows.sort_by_key(|row| row.cluster);
    let entries: Vec<Entry> = rows
        .iter()
        .map(|row| Entry {
            id: row.cluster,
            sequence_number: row.sequence_number,
            code: with_coder(row.high.len(), |coder| coder.encode(&row.high)),
        })
        .collect();
    let codes: Vec<Vec<u8>> = entries.iter().map(|entry| binary_code::to_bytes(&entry.code)).collect();
    statements::set_codes(client, &rows, codes)?;
    let last = entries.iter().map(|entry| entry.sequence_number).max().unwrap_or_default();
    for block in Block::pack(&entries) {
        statements::block(client, &collection.name, block)?;
    }
    // Sums up to that number that still have no code: rows that other transactions have locked.
    let lock = store.lock_briefly(&collection.name, false);
    let mut left_over = Vec::new();
    for snapshot in [Snapshot::Dirty, Snapshot::Latest] {
        store.scan(snapshot, Index::SumRecent, &[Condition::TextIs(sum::COLLECTION, &collection.name)], |row| {
            let before = row.bigint(sum::SEQUENCE_NUMBER) <= last;
            if before {
                left_over.push(row.bigint(sum::CLUSTER));
            }
            before && left_over.len() <= 4 * MAX_LEFT_OVER
        });
    }
    left_over.sort_unstable();
    left_over.dedup();
    Packed::remember(&collection.name, last, left_over);
    drop(lock);
    thin(client, store, collection)
}

/// Checks some blocks, and dissolves blocks of which less than half is still in use.
///
/// Clusters that have vanished, or have moved so far that they lost their code, leave entries behind, and searches
/// would read more and more of them. Sums whose codes are still valid lose their code and get new sequence numbers. A
/// session that searches in the meantime may see such a sum neither in the block nor among the sums without a code. It
/// finds the sum before it creates a cluster, because it then looks for sequence numbers that are newer than its
/// search.
pub fn thin(client: &mut SpiClient<'_>, store: &Store, collection: &Collection) -> SqlResult<()> {
    let mut after = THINNED.with_borrow(|all| all.get(&collection.name).copied().unwrap_or(0));
    for _ in 0..THINNED_BLOCKS {
        let Some(block) = statements::next_block(client, &collection.name, after)? else {
            after = 0;
            break;
        };
        after = block.sequence_number;
        let entries: HashSet<(i64, Code)> = binary_code::unpack(block.first, &block.entries).collect();
        let ids: Vec<i64> = entries.iter().map(|(id, _)| *id).collect();
        let in_block = |sum: &statements::Coded| {
            binary_code::from_bytes(&sum.code).is_some_and(|code| entries.contains(&(sum.cluster, code)))
        };
        let used = statements::coded(client, &ids, false)?.iter().filter(|sum| in_block(sum)).count();
        if 2 * used >= entries.len() {
            continue;
        }
        let sums: Vec<_> = statements::coded(client, &ids, true)?.into_iter().filter(in_block).collect();
        // Other transactions have locked some of them. A later call dissolves the block.
        if sums.len() == used {
            // Sequence numbers are drawn, and their rows written, before another session can look for newer numbers.
            let _lock = store.lock_briefly(&collection.name, true);
            statements::dissolve(client, &block, &sums)?;
        }
    }
    THINNED.with_borrow_mut(|all| all.insert(collection.name.clone(), after));
    Ok(())
}

/// Replaces all clusters of a collection that this transaction has locked: `ids[i]` is the cluster of `sums[i]`.
pub fn replace_all(client: &mut SpiClient<'_>, collection: &str, ids: &[i64], sums: &[Sum]) -> SqlResult<()> {
    let known = statements::clear(client, collection)?;
    let mut entries: Vec<Entry> = Vec::with_capacity(ids.len());
    for (id, sum) in ids.iter().zip(sums) {
        pgrx::check_for_interrupts!();
        let code = with_coder(sum.dimensions(), |coder| coder.encode(&sum.split().0));
        statements::insert(client, collection, *id, sum, &binary_code::to_bytes(&code), known.get(id))?;
        entries.push(Entry { id: *id, sequence_number: *id, code });
    }
    entries.sort_unstable_by_key(|entry| entry.id);
    for block in Block::pack(&entries) {
        statements::block(client, collection, block)?;
    }
    Ok(())
}
