//! The cluster tables below SQL: scans that see what other transactions have not committed yet, and short locks.
//!
//! SQL sees committed rows only. A *dirty* snapshot, with which PostgreSQL itself checks exclusion constraints, also
//! shows the cluster that another session is creating at this moment. The unsafe calls are to the scan, lock and
//! transaction functions of PostgreSQL's C interface.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::hash::{DefaultHasher, Hasher};

use pgrx::pg_sys;
use pgrx::prelude::PgSqlErrorCode;

use crate::pg::error::{SqlResult, sql_error};
use crate::pg::vector::Components;

#[derive(Clone, Copy)]
pub enum Table {
    Setting,
    Sum,
    Change,
    Code,
    Grant,
}

#[derive(Clone, Copy)]
pub enum Index {
    SettingName,
    SumCluster,
    SumCollection,
    SumRecent,
    ChangeCluster,
    CodeCollection,
    GrantCollection,
}

impl Index {
    fn table(self) -> Table {
        match self {
            Self::SettingName => Table::Setting,
            Self::SumCluster | Self::SumCollection | Self::SumRecent => Table::Sum,
            Self::ChangeCluster => Table::Change,
            Self::CodeCollection => Table::Code,
            Self::GrantCollection => Table::Grant,
        }
    }
}

const TABLES: [&CStr; 5] =
    [c"collection_setting", c"cluster_sum", c"cluster_change", c"cluster_code", c"collection_grant"];
const INDEXES: [&CStr; 7] = [
    c"collection_setting_pkey",
    c"cluster_sum_cluster_idx",
    c"cluster_sum_collection_idx",
    c"cluster_sum_recent_idx",
    c"cluster_change_cluster_idx",
    c"cluster_code_collection_idx",
    c"collection_grant_collection_idx",
];
/// Length of the server's secret: MOCK_AUTH_NONCE_LEN of PostgreSQL.
const NONCE: usize = 32;
/// The number of columns of the widest table.
const COLUMNS: usize = 11;

/// Which rows a scan sees.
#[derive(Clone, Copy)]
pub enum Snapshot<'a> {
    /// Committed rows, this transaction's own, and rows that other transactions are writing.
    Dirty,
    /// Committed rows and this transaction's own, as of the beginning of the scan.
    Latest,
    /// Committed rows and this transaction's own, with one snapshot for several scans.
    Registered(&'a RegisteredSnapshot),
}

/// A snapshot of the currently committed rows, regardless of the transaction's own snapshot.
pub struct RegisteredSnapshot(pg_sys::Snapshot);

impl RegisteredSnapshot {
    pub fn now() -> Self {
        // SAFETY: the snapshot is copied and registered; after an error it is released with the resources of the
        // transaction.
        Self(unsafe { pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()) })
    }

    /// Whether a (sub)transaction was in progress when the snapshot was taken.
    pub fn is_in_progress(&self, transaction: pg_sys::TransactionId) -> bool {
        // SAFETY: the snapshot is registered.
        unsafe { pg_sys::XidInMVCCSnapshot(transaction, self.0) }
    }
}

impl Drop for RegisteredSnapshot {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: registered by `now`.
            unsafe { pg_sys::UnregisterSnapshot(self.0) };
        }
    }
}

/// A condition on a column, counted from 1 as PostgreSQL does.
pub enum Condition<'a> {
    TextIs(usize, &'a str),
    BigintIs(usize, i64),
    BigintOver(usize, i64),
    /// One of several values; the index is searched for each in turn.
    BigintIn(usize, &'a [i64]),
}

/// The current row of a scan.
pub struct Row {
    values: [pg_sys::Datum; COLUMNS],
    nulls: [bool; COLUMNS],
    /// Another transaction has written it and not ended yet.
    pub inserting: bool,
    /// Another transaction has deleted or replaced it and not ended yet.
    pub deleting: bool,
    /// The (sub)transaction that has written it.
    pub xmin: pg_sys::TransactionId,
    /// The row is a newer version, written by an UPDATE.
    pub replaces: bool,
}

impl Row {
    fn value(&self, column: usize) -> Option<pg_sys::Datum> {
        (!self.nulls[column - 1]).then(|| self.values[column - 1])
    }

    /// A column that is declared `bigint NOT NULL`.
    pub fn bigint(&self, column: usize) -> i64 {
        self.value(column).map_or(0, |datum| datum.value() as i64)
    }

    /// A column that is declared `integer`.
    pub fn integer(&self, column: usize) -> Option<i32> {
        self.value(column).map(|datum| datum.value() as i32)
    }

    /// A column that is declared `regrole` or `regclass`.
    pub fn oid(&self, column: usize) -> Option<pg_sys::Oid> {
        self.value(column).map(|datum| pg_sys::Oid::from(datum.value() as u32))
    }

    /// A column that is declared `double precision`.
    pub fn double(&self, column: usize) -> Option<f64> {
        self.value(column).map(|datum| f64::from_bits(datum.value() as u64))
    }

    /// A column that is declared `vector`.
    pub fn vector(&self, column: usize) -> Option<Components<'_>> {
        // SAFETY: the column is a vector, and the tuple that it is in stays pinned as long as the row is borrowed.
        self.value(column).map(|datum| unsafe { Components::new(datum) })
    }

    /// A column that is declared `bytea`. None for a value that is compressed or out of line; PLAIN storage and lengths
    /// under 127 bytes exclude both unless the table was altered.
    pub fn bytes(&self, column: usize) -> Option<&[u8]> {
        use pgrx::varlena::{varatt_is_1b, varatt_is_1b_e, varatt_is_4b_u, varlena_to_byte_slice};
        // SAFETY: as above; the header says which form the value has.
        self.value(column).and_then(|datum| unsafe {
            let value: *const pg_sys::varlena = datum.cast_mut_ptr();
            let plain = varatt_is_4b_u(value) || (varatt_is_1b(value) && !varatt_is_1b_e(value));
            plain.then(|| varlena_to_byte_slice(value))
        })
    }

    /// A column that is declared `text`.
    pub fn text(&self, column: usize) -> Option<String> {
        // SAFETY: as above; the value is copied.
        self.value(column).and_then(|datum| unsafe { pgrx::FromDatum::from_datum(datum, false) })
    }
}

/// The tables, opened and locked against changes of their definition until the transaction ends.
pub struct Store {
    relations: [pg_sys::Relation; TABLES.len()],
    indexes: [pg_sys::Oid; INDEXES.len()],
}

/// Raises 25006 in a read-only transaction or on a standby, 25000 in a parallel worker.
pub fn check_writable(function: &CStr) {
    // SAFETY: both only check the state of the transaction, and may raise an error.
    unsafe {
        pg_sys::PreventCommandIfReadOnly(function.as_ptr());
        pg_sys::PreventCommandIfParallelMode(function.as_ptr());
    }
}

/// Raises 25001 if a procedure can't commit, because the client controls the transaction.
///
/// # Errors
/// Inside BEGIN … COMMIT, or among several statements that were sent as one.
pub fn check_may_commit(procedure: &str) -> SqlResult<()> {
    // SAFETY: reads the state of the transaction.
    if !unsafe { pg_sys::IsTransactionBlock() } {
        return Ok(());
    }
    Err(sql_error(
        PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
        format!("{procedure} can't run inside a transaction block"),
    )
    .set_detail("It commits each batch.")
    .set_hint("COMMIT first, and CALL it by itself; a driver needs autocommit, psql a -c of its own."))
}

impl Store {
    /// Raises the errors of `check_writable`.
    pub fn open(function: &CStr) -> Self {
        check_writable(function);
        Self::open_with(pg_sys::RowExclusiveLock)
    }

    /// Opens the tables for scans only, also on a standby.
    pub fn open_to_read() -> Self {
        Self::open_with(pg_sys::AccessShareLock)
    }

    fn open_with(mode: u32) -> Self {
        // SAFETY: catalogue look-ups inside a transaction; an installed extension has its tables, and table_open raises
        // an error for an oid without a table.
        unsafe {
            let schema = pg_sys::get_namespace_oid(c"clip_search".as_ptr(), false);
            let relations = TABLES.map(|name| {
                let table = pg_sys::get_relname_relid(name.as_ptr(), schema);
                // 0.2.0 had no grants; its objects work with this library until they are updated.
                if table == pg_sys::InvalidOid && name == TABLES[Table::Grant as usize] {
                    return std::ptr::null_mut();
                }
                pg_sys::table_open(table, mode as i32)
            });
            let indexes = INDEXES.map(|name| pg_sys::get_relname_relid(name.as_ptr(), schema));
            Self { relations, indexes }
        }
    }

    /// Whether the extension's objects come from a version without owners of collections.
    pub fn is_outdated(&self) -> bool {
        self.relations[Table::Grant as usize].is_null()
    }

    /// Visits the rows that meet all conditions, in the order of the index. The visitor returns whether to continue.
    ///
    /// A scan with `Snapshot::Dirty` may miss a row that another transaction replaces and commits at that moment: the
    /// index page was read before the new row was entered there, and the old row is dead when the scan reaches it. A
    /// scan with `Snapshot::Latest` that begins later sees the new row. A caller that must not miss a row that can be
    /// replaced does both, in this order.
    pub fn scan(
        &self,
        snapshot: Snapshot<'_>,
        index: Index,
        conditions: &[Condition<'_>],
        mut visit: impl FnMut(&Row) -> bool,
    ) {
        let relation = self.relations[index.table() as usize];
        if relation.is_null() {
            return;
        }
        let mut dirty =
            pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY, ..Default::default() };
        // SAFETY: keys, snapshot and relation outlive the scan; each tuple is used only until the next is fetched; the
        // arrays have at least as many places as the table has columns. If the visitor panics, the transaction fails,
        // and its resources, including the scan, are released.
        unsafe {
            let latest = matches!(snapshot, Snapshot::Latest).then(RegisteredSnapshot::now);
            let snapshot = match (snapshot, &latest) {
                (Snapshot::Registered(registered), _) | (_, Some(registered)) => registered.0,
                _ => &raw mut dirty,
            };
            let index = self.indexes[index as usize];
            let mut keys: Vec<pg_sys::ScanKeyData> = conditions.iter().map(scan_key).collect();
            let scan =
                pg_sys::systable_beginscan(relation, index, true, snapshot, keys.len() as i32, keys.as_mut_ptr());
            let description = (*relation).rd_att;
            assert!((*description).natts as usize <= COLUMNS, "a table has grown");
            let mut row = Row {
                values: [0.into(); COLUMNS],
                nulls: [true; COLUMNS],
                inserting: false,
                deleting: false,
                xmin: pg_sys::InvalidTransactionId,
                replaces: false,
            };
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                row.inserting = dirty.xmin != pg_sys::InvalidTransactionId;
                row.deleting = dirty.xmax != pg_sys::InvalidTransactionId;
                row.xmin = (*(*tuple).t_data).t_choice.t_heap.t_xmin;
                row.replaces = u32::from((*(*tuple).t_data).t_infomask) & pg_sys::HEAP_UPDATED != 0;
                pg_sys::heap_deform_tuple(tuple, description, row.values.as_mut_ptr(), row.nulls.as_mut_ptr());
                if !visit(&row) {
                    break;
                }
            }
            pg_sys::systable_endscan(scan);
        }
    }

    /// Keeps the collection from being dropped or regrouped until the transaction ends.
    pub fn lock_shared(&self, collection: &str) {
        self.lock(collection, Purpose::Hold, pg_sys::RowExclusiveLock, true);
    }

    /// Gives this transaction exclusive use of the collection until it ends; waits for transactions that hold it.
    /// Without `wait`, it returns immediately whether it has succeeded.
    pub fn lock_exclusive(&self, collection: &str, wait: bool) -> bool {
        self.lock(collection, Purpose::Hold, pg_sys::AccessExclusiveLock, wait)
    }

    /// Locks a table against writers, and the collection as [`Store::lock_exclusive`] does, if both locks are available
    /// immediately.
    pub fn try_lock(&self, table: pg_sys::Oid, collection: &str) -> bool {
        let mode = pg_sys::ShareRowExclusiveLock as i32;
        // SAFETY: the table exists; its lock is released only if it was taken here.
        unsafe {
            if !pg_sys::ConditionalLockRelationOid(table, mode) {
                return false;
            }
            if !self.lock_exclusive(collection, false) {
                pg_sys::UnlockRelationOid(table, mode);
                return false;
            }
            true
        }
    }

    /// As above, but waits for the locks.
    pub fn lock_members(&self, table: pg_sys::Oid, collection: &str) {
        // SAFETY: the table exists; the lock is held to the end of the transaction.
        unsafe { pg_sys::LockRelationOid(table, pg_sys::ShareRowExclusiveLock as i32) };
        self.lock_exclusive(collection, true);
    }

    /// Keeps other sessions from creating clusters in the collection during the guard's lifetime; `exclusive` also
    /// keeps them from joining. Its holder waits for no other lock, so it can't be part of a deadlock.
    pub fn lock_briefly(&self, collection: &str, exclusive: bool) -> BriefLock {
        let mode = if exclusive { pg_sys::ExclusiveLock } else { pg_sys::ShareLock };
        self.lock(collection, Purpose::Short, mode, true);
        BriefLock { tag: self.tag(collection, Purpose::Short), mode: mode as i32 }
    }

    fn lock(&self, collection: &str, purpose: Purpose, mode: u32, wait: bool) -> bool {
        let tag = self.tag(collection, purpose);
        // SAFETY: the tag is copied; the lock ends with the transaction at the latest.
        let result = unsafe { pg_sys::LockAcquire(&raw const tag, mode as i32, false, !wait) };
        result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }

    /// The tag of a lock on an object of the table of sums. The object's number is a hash of the collection's name; no
    /// such object exists.
    ///
    /// Two collections with the same hash would wait for each other, so no role may be able to find a name with the
    /// hash of another role's collection. The hash therefore has 47 bits and begins with a secret of the server: the
    /// random bytes from initdb with which PostgreSQL mocks the salts of unknown roles, which no role can read.
    fn tag(&self, collection: &str, purpose: Purpose) -> pg_sys::LOCKTAG {
        let mut hasher = DefaultHasher::new();
        // SAFETY: 32 bytes of shared memory, which do not change.
        hasher.write(unsafe { std::slice::from_raw_parts(pg_sys::GetMockAuthenticationNonce().cast::<u8>(), NONCE) });
        hasher.write(collection.as_bytes());
        let hash = hasher.finish();
        // SAFETY: an open relation, and a variable that is set at the start of the process.
        let (table, database) =
            unsafe { ((*self.relations[Table::Sum as usize]).rd_id, (&raw const pg_sys::MyDatabaseId).read()) };
        pg_sys::LOCKTAG {
            locktag_field1: database.to_u32(),
            locktag_field2: table.to_u32(),
            locktag_field3: hash as u32,
            locktag_field4: ((hash >> 32) as u16 & !1) | purpose as u16,
            locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
            locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let opened = self.relations.iter().filter(|relation| !relation.is_null());
            // SAFETY: opened by `open`; the locks stay until the transaction ends.
            opened.for_each(|relation| unsafe { pg_sys::table_close(*relation, pg_sys::NoLock as i32) });
        }
    }
}

#[derive(Clone, Copy)]
enum Purpose {
    Hold = 0,
    Short = 1,
}

/// A lock that lasts for the lifetime of this value, not of the transaction.
pub struct BriefLock {
    tag: pg_sys::LOCKTAG,
    mode: i32,
}

impl Drop for BriefLock {
    fn drop(&mut self) {
        // After an error the lock is released with the (sub)transaction.
        if !std::thread::panicking() {
            // SAFETY: taken by `lock_briefly` in this mode.
            unsafe { pg_sys::LockRelease(&raw const self.tag, self.mode, false) };
        }
    }
}

/// The scan key of a condition. A text is copied into the memory context of the statement, which outlives the scan.
fn scan_key(condition: &Condition<'_>) -> pg_sys::ScanKeyData {
    let (column, strategy, function, argument) = match *condition {
        Condition::TextIs(column, text) => {
            (column, pg_sys::BTEqualStrategyNumber, pg_sys::F_TEXTEQ, pgrx::IntoDatum::into_datum(text))
        }
        Condition::BigintIs(column, value) => {
            (column, pg_sys::BTEqualStrategyNumber, pg_sys::F_INT8EQ, Some(value.into()))
        }
        Condition::BigintOver(column, value) => {
            (column, pg_sys::BTGreaterStrategyNumber, pg_sys::F_INT8GT, Some(value.into()))
        }
        Condition::BigintIn(column, values) => {
            (column, pg_sys::BTEqualStrategyNumber, pg_sys::F_INT8EQ, pgrx::IntoDatum::into_datum(values.to_vec()))
        }
    };
    let mut key = pg_sys::ScanKeyData::default();
    // SAFETY: it fills the key; the functions are PostgreSQL's own for the columns' types.
    unsafe {
        let argument = argument.expect("a text and a number have datums");
        pg_sys::ScanKeyInit(&raw mut key, column as i16, strategy as u16, function.into(), argument);
    }
    if let Condition::BigintIn(..) = condition {
        key.sk_flags = pg_sys::SK_SEARCHARRAY as i32;
    }
    key
}

/// Whether a (sub)transaction is the current one, or a part of it that was not rolled back.
pub fn is_own(writer: pg_sys::TransactionId) -> bool {
    // SAFETY: reads the state of the process's transaction.
    unsafe { pg_sys::TransactionIdIsCurrentTransactionId(writer) }
}

/// The (sub)transaction that currently writes rows.
pub fn writer() -> pg_sys::TransactionId {
    // SAFETY: inside a transaction that has written rows, or can write them.
    unsafe { pg_sys::GetCurrentTransactionId() }
}
