//! State that a process keeps for its transaction: lists that a rollback undoes, and functions that run at its end.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_void};
use std::rc::Rc;

use clip::{Error, Kind};
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::pg::error::{SqlResult, report};

/// A list whose entries are removed at the end of the transaction, or when the subtransaction that added them fails. It
/// is meant to be `thread_local!`.
pub struct RollbackList<T> {
    entries: Rc<RefCell<Vec<Entry<T>>>>,
}

struct Entry<T> {
    subtransaction: pg_sys::SubTransactionId,
    value: T,
}

/// Removes a list's entries of subtransactions from this number on. Numbers only grow within a transaction, so these
/// entries belong to the subtransaction with this number and to subtransactions within it.
type Truncate = Box<dyn Fn(pg_sys::SubTransactionId)>;

/// Runs before a transaction commits, and may still abort it.
type BeforeCommit = fn() -> SqlResult<()>;

thread_local! {
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    static LISTS: RefCell<Vec<Truncate>> = RefCell::default();
    static BEFORE_COMMIT: RefCell<Vec<BeforeCommit>> = RefCell::default();
    static AFTER_COMMIT: RefCell<Vec<fn()>> = RefCell::default();
    static AT_END: RefCell<Vec<fn()>> = RefCell::default();
}

impl<T: 'static> RollbackList<T> {
    pub fn new() -> Self {
        register();
        let entries: Rc<RefCell<Vec<Entry<T>>>> = Rc::default();
        let list = entries.clone();
        let truncate = move |from| list.borrow_mut().retain(|entry: &Entry<T>| entry.subtransaction < from);
        LISTS.with_borrow_mut(|lists| lists.push(Box::new(truncate)));
        Self { entries }
    }

    pub fn push(&self, value: T) {
        // SAFETY: reads the state of the transaction that the caller is in.
        let subtransaction = unsafe { pg_sys::GetCurrentSubTransactionId() };
        self.entries.borrow_mut().push(Entry { subtransaction, value });
    }

    pub fn pop(&self) -> Option<T> {
        self.entries.borrow_mut().pop().map(|entry| entry.value)
    }

    pub fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }

    /// Removes the last entry that meets the condition.
    pub fn take(&self, is: impl Fn(&T) -> bool) -> Option<T> {
        let mut entries = self.entries.borrow_mut();
        let place = entries.iter().rposition(|entry| is(&entry.value))?;
        Some(entries.swap_remove(place).value)
    }

    /// Removes the entries that don't meet the condition.
    pub fn retain(&self, keep: impl Fn(&T) -> bool) {
        self.entries.borrow_mut().retain(|entry| keep(&entry.value));
    }

    /// Changes the first entry that meets the condition.
    pub fn change(&self, is: impl Fn(&T) -> bool, change: impl FnOnce(&mut T)) {
        if let Some(entry) = self.entries.borrow_mut().iter_mut().find(|entry| is(&entry.value)) {
            change(&mut entry.value);
        }
    }
}

/// Runs a function before this transaction commits or is prepared, inside it, and only once, even if requested several
/// times.
pub fn before_commit(function: fn() -> SqlResult<()>) {
    register();
    BEFORE_COMMIT.with_borrow_mut(|functions| {
        if !functions.iter().any(|known| std::ptr::fn_addr_eq(*known, function)) {
            functions.push(function);
        }
    });
}

/// Runs a function once this transaction has committed. It must not use the database, nor fail.
pub fn after_commit(function: fn()) {
    AFTER_COMMIT.with_borrow_mut(|functions| once(functions, function));
}

/// Runs a function when this transaction has ended in either way. It must not use the database, nor fail.
pub fn at_end(function: fn()) {
    AT_END.with_borrow_mut(|functions| once(functions, function));
}

fn once(functions: &mut Vec<fn()>, function: fn()) {
    register();
    if !functions.iter().any(|known| std::ptr::fn_addr_eq(*known, function)) {
        functions.push(function);
    }
}

fn register() {
    if !REGISTERED.replace(true) {
        // SAFETY: the callbacks are static functions.
        unsafe {
            pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut());
            pg_sys::RegisterSubXactCallback(Some(at_subtransaction_end), std::ptr::null_mut());
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_end(event: pg_sys::XactEvent::Type, _nothing: *mut c_void) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE => {
            while let Some(function) = BEFORE_COMMIT.with_borrow_mut(Vec::pop) {
                // SAFETY: the transaction is still in progress, and the snapshot is popped before it ends.
                unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
                if let Err(report) = function() {
                    report.report(PgLogLevel::ERROR);
                }
                // SAFETY: pushed above.
                unsafe { pg_sys::PopActiveSnapshot() };
            }
        }
        XACT_EVENT_COMMIT | XACT_EVENT_ABORT | XACT_EVENT_PREPARE => {
            LISTS.with_borrow(|lists| lists.iter().for_each(|truncate| truncate(0)));
            BEFORE_COMMIT.with_borrow_mut(Vec::clear);
            let committed = AFTER_COMMIT.with_borrow_mut(std::mem::take);
            let ended = AT_END.with_borrow_mut(std::mem::take);
            if event == XACT_EVENT_COMMIT {
                committed.iter().for_each(|function| function());
            }
            ended.iter().for_each(|function| function());
        }
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_subtransaction_end(
    event: pg_sys::SubXactEvent::Type,
    subtransaction: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _nothing: *mut c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        LISTS.with_borrow(|lists| lists.iter().for_each(|truncate| truncate(subtransaction)));
    }
}

/// Runs a writing statement on the latest committed snapshot in any isolation level, as foreign-key checks do; returns
/// the number of rows. A REPEATABLE READ snapshot would miss rows written since the transaction began.
pub fn run_on_latest(query: &str, arguments: &[DatumWithOid<'_>]) -> SqlResult<u64> {
    let mut types: Vec<pg_sys::Oid> = arguments.iter().map(|argument| argument.oid()).collect();
    let mut values: Vec<pg_sys::Datum> =
        arguments.iter().map(|argument| argument.datum().map_or(0.into(), |datum| datum.sans_lifetime())).collect();
    let nulls: Vec<std::ffi::c_char> = arguments
        .iter()
        .map(|argument| if argument.datum().is_none() { b'n' } else { b' ' } as std::ffi::c_char)
        .collect();
    let failed = |what: &str, code: i32| {
        Err(report(Error::new(Kind::Internal, "a statement could not be run").detail(format!("{what}: {code}"))))
    };
    let query = CString::new(query).map_err(|error| {
        report(Error::new(Kind::Internal, "a statement has a zero byte in it").detail(error.to_string()))
    })?;
    Spi::connect_mut(|_client| {
        // SAFETY: connected to SPI; three arrays of the same length, of which values and nulls outlive the call; the
        // plan belongs to SPI, which frees it at its end.
        unsafe {
            let plan = pg_sys::SPI_prepare(query.as_ptr(), types.len() as i32, types.as_mut_ptr());
            if plan.is_null() {
                return failed("SPI_prepare", pg_sys::SPI_result);
            }
            let code = pg_sys::SPI_execute_snapshot(
                plan,
                values.as_mut_ptr(),
                nulls.as_ptr(),
                pg_sys::GetLatestSnapshot(),
                std::ptr::null_mut(),
                false,
                true,
                0,
            );
            if code < 0 { failed("SPI_execute_snapshot", code) } else { Ok(pg_sys::SPI_processed) }
        }
    })
}

/// How a statement of this transaction treats rows that other transactions have replaced since it began.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Each statement sees all rows committed before it.
    ReadCommitted,
    /// Such rows raise an error (40001) in that statement only.
    RepeatableRead,
    /// Reads can make concurrent transactions on the same rows fail.
    Serializable,
}

pub fn isolation() -> Isolation {
    // SAFETY: a variable that only this thread writes.
    match unsafe { (&raw const pg_sys::XactIsoLevel).read() } as u32 {
        pg_sys::XACT_SERIALIZABLE => Isolation::Serializable,
        pg_sys::XACT_REPEATABLE_READ => Isolation::RepeatableRead,
        _ => Isolation::ReadCommitted,
    }
}
