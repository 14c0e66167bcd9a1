//! The trigger of watched tables.
//!
//! Before a row is written its embedding is set: made at once, or NULL for the worker to fill in. What depends on the
//! row's really being written waits until it is: ON CONFLICT and other triggers may yet turn an insertion into nothing,
//! or an update into a move to another partition. So a cluster is joined before and the joining confirmed after; what is
//! not confirmed by the end of the transaction is undone. The old row leaves its cluster after.
//!
//! Nothing here depends on which columns an UPDATE names: what counts is whether the source is another than it was.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::rc::Rc;

use clip::{Error, Kind};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::trigger_support::{PgTrigger, TriggerEvent};

use crate::cluster::assign::{assign, leave};
use crate::cluster::statements;
use crate::model::loaded;
use crate::pg::error::{SqlResult, report, with_sqlstate};
use crate::pg::text::utf8;
use crate::pg::user_context::{Failure, Rights, key_form};
use crate::pg::vector::{Storage, Vector};
use crate::watch::define::{Watch, spi};
use crate::watch::queue::{self, Source};
use crate::watch::worker;

/// A watch and where its columns are in the table at hand, which may be a partition.
struct Plan {
    watch: Watch,
    collection: Option<Rc<str>>,
    image: Option<i16>,
    text: Option<i16>,
    embedding: i16,
    storage: Storage,
    /// Of the embedding's column, if it says.
    dimensions: Option<usize>,
    cluster: Option<i16>,
    key: Vec<i16>,
}

/// A member as clusters know it.
#[derive(Clone, PartialEq)]
struct Member {
    collection: Rc<str>,
    cluster: i64,
    vector: Vec<f32>,
}

/// Something that is to be remembered until the transaction, or the subtransaction that it was done in, ends.
struct Until<T> {
    subtransaction: pg_sys::SubTransactionId,
    what: T,
}

/// An update that may turn out to move its row to another partition.
struct Move {
    /// When the client sent what has led to it.
    sent: pg_sys::TimestampTz,
    watch: i64,
    table: pg_sys::Oid,
    tid: pg_sys::ItemPointerData,
    /// Its embedding was made anew, and its cluster joined.
    changed: bool,
    deleted: bool,
    source: u64,
    member: Option<Member>,
    embedding: Option<Vec<f32>>,
}

#[derive(Default)]
struct State {
    registered: bool,
    /// They hold as long as the transaction: it has a lock on the table that keeps others from changing it, and what
    /// it changes itself is announced (`at_invalidation`).
    plans: HashMap<(i64, pg_sys::Oid), Rc<Plan>>,
    /// Joined, but the row is not written yet.
    joined: Vec<Until<Member>>,
    /// Their rows go from one partition to another and stay in their clusters: deleted there, inserted here.
    moving: Vec<Until<Member>>,
    arriving: Vec<Until<Member>>,
    /// Why rows of that source have no embedding.
    failures: Vec<Until<(u64, Failure)>>,
    /// The last of each watch.
    updates: Vec<Until<Move>>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
    static WAKE: Cell<bool> = const { Cell::new(false) };
}

/// Wakes the worker when this transaction commits.
pub fn wake_at_commit() {
    STATE.with_borrow_mut(State::register);
    WAKE.set(true);
}

impl State {
    fn register(&mut self) {
        if !self.registered {
            self.registered = true;
            // SAFETY: the callbacks are static functions.
            unsafe {
                pg_sys::RegisterXactCallback(Some(at_end), std::ptr::null_mut());
                pg_sys::RegisterSubXactCallback(Some(at_subtransaction), std::ptr::null_mut());
                pg_sys::CacheRegisterRelcacheCallback(Some(at_invalidation), 0.into());
            }
        }
    }

    fn until<T>(&mut self, what: T) -> Until<T> {
        self.register();
        // SAFETY: reads the state of the transaction that the trigger is called in.
        Until { subtransaction: unsafe { pg_sys::GetCurrentSubTransactionId() }, what }
    }

    /// Takes one that is equal off a list.
    fn take(list: &mut Vec<Until<Member>>, member: &Member) -> bool {
        match list.iter().rposition(|known| known.what == *member) {
            Some(place) => {
                list.swap_remove(place);
                true
            }
            None => false,
        }
    }
}

/// Undoes what was joined for rows that were not written.
pub fn settle() -> SqlResult<()> {
    loop {
        let Some(left) = STATE.with_borrow_mut(|state| state.joined.pop()) else { return Ok(()) };
        let _rights = Rights::of_extension();
        let Member { collection, cluster, vector } = left.what;
        leave(cluster, Vector(vector), Some(&collection))?;
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_end(event: pg_sys::XactEvent::Type, _nothing: *mut c_void) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE if STATE.with_borrow(|state| !state.joined.is_empty()) => {
            // SAFETY: the transaction is still in progress, and the snapshot goes before it ends.
            unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
            if let Err(report) = settle() {
                report.report(PgLogLevel::ERROR);
            }
            // SAFETY: as pushed.
            unsafe { pg_sys::PopActiveSnapshot() };
        }
        XACT_EVENT_COMMIT | XACT_EVENT_ABORT | XACT_EVENT_PREPARE => {
            STATE.with_borrow_mut(|state| *state = State { registered: true, ..State::default() });
            if WAKE.replace(false) && event == XACT_EVENT_COMMIT {
                worker::wake();
            }
        }
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_subtransaction(
    event: pg_sys::SubXactEvent::Type,
    subtransaction: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _nothing: *mut c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        // Numbers only grow, so these are its own and those of subtransactions that were within it.
        STATE.with_borrow_mut(|state| {
            state.joined.retain(|known| known.subtransaction < subtransaction);
            state.moving.retain(|known| known.subtransaction < subtransaction);
            state.arriving.retain(|known| known.subtransaction < subtransaction);
            state.failures.retain(|known| known.subtransaction < subtransaction);
            state.updates.retain(|known| known.subtransaction < subtransaction);
        });
    }
}

/// A table has been altered, or may have been.
#[pg_guard]
unsafe extern "C-unwind" fn at_invalidation(_argument: pg_sys::Datum, table: pg_sys::Oid) {
    // Never while the state is borrowed: nothing that reads the catalogue is called then.
    STATE.with(|state| {
        if let Ok(mut state) = state.try_borrow_mut() {
            state.plans.retain(|(_, known), _| table != pg_sys::Oid::INVALID && *known != table);
        }
    });
}

fn sent() -> pg_sys::TimestampTz {
    // SAFETY: reads a variable of the process.
    unsafe { pg_sys::GetCurrentStatementStartTimestamp() }
}

/// A row that a trigger is given.
#[derive(Clone, Copy)]
struct Tuple {
    tuple: pg_sys::HeapTuple,
    shape: pg_sys::TupleDesc,
}

impl Tuple {
    fn datum(&self, column: i16) -> Option<pg_sys::Datum> {
        let column = NonZeroUsize::new(usize::try_from(column).unwrap_or(0))?;
        // SAFETY: the tuple and its description are the trigger's, and the column one of the table's.
        unsafe { pgrx::htup::heap_getattr_raw(self.tuple, column, self.shape) }
    }

    /// A column of type bytea or text, detoasted.
    fn bytes(&self, column: Option<i16>) -> Option<&[u8]> {
        let datum = self.datum(column?)?;
        // SAFETY: a varlena; what is detoasted lives as long as the memory of the trigger's call, as the tuple does.
        unsafe {
            let detoasted = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
            Some(pgrx::varlena::varlena_to_byte_slice(detoasted))
        }
    }

    fn vector(&self, plan: &Plan) -> Option<Vec<f32>> {
        // SAFETY: the column is of that kind; plans check that.
        self.datum(plan.embedding).map(|datum| unsafe { plan.storage.load(datum) }.0)
    }

    fn member(&self, plan: &Plan) -> Option<Member> {
        let cluster = self.datum(plan.cluster?)?.value() as i64;
        Some(Member { collection: plan.collection.clone()?, cluster, vector: self.vector(plan)? })
    }

    fn has_source(&self, plan: &Plan) -> bool {
        [plan.image, plan.text].into_iter().flatten().any(|column| self.datum(column).is_some())
    }

    /// A hash of the source as the row has it, which for what is stored out of line is the pointer to it: the same for
    /// a row that is on its way from one partition to another.
    fn stored_source(&self, plan: &Plan) -> u64 {
        let mut hasher = DefaultHasher::new();
        for column in [plan.image, plan.text].into_iter().flatten() {
            // SAFETY: a varlena, which is as long as it says.
            let bytes = self.datum(column).map(|datum| unsafe {
                let start = datum.cast_mut_ptr::<pg_sys::varlena>();
                match pgrx::varlena::varatt_is_1b_e(start) {
                    true => std::slice::from_raw_parts(start.cast::<u8>(), pgrx::varlena::varsize_any(start)),
                    false => pgrx::varlena::varlena_to_byte_slice(start),
                }
            });
            bytes.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// A hash of what is embedded.
    fn source(&self, plan: &Plan) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.bytes(plan.image).hash(&mut hasher);
        self.bytes(plan.text).hash(&mut hasher);
        hasher.finish()
    }

    /// The key as an array of texts, in its text form.
    fn key(&self, plan: &Plan) -> SqlResult<String> {
        let _rights = Rights::of_caller();
        key_form();
        let mut parts = Vec::with_capacity(plan.key.len());
        for &column in &plan.key {
            let datum = self.datum(column).ok_or_else(|| {
                with_sqlstate(
                    PgSqlErrorCode::ERRCODE_NOT_NULL_VIOLATION,
                    Error::new(Kind::InvalidInput, format!("the key of a row of {} is NULL", plan.watch.name())),
                )
            })?;
            // SAFETY: an attribute of the row, and the output function of its type, whose text lives as long as the call.
            let text = unsafe {
                let kind = attribute(self.shape, column).atttypid;
                let (mut output, mut varlena) = (pg_sys::Oid::INVALID, false);
                pg_sys::getTypeOutputInfo(kind, &raw mut output, &raw mut varlena);
                CStr::from_ptr(pg_sys::OidOutputFunctionCall(output, datum))
            };
            let text = utf8("key", text.to_bytes()).map_err(report)?;
            parts.push(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")));
        }
        Ok(format!("{{{}}}", parts.join(",")))
    }

    fn with(&self, plan: &Plan, embedding: Option<Vector>, cluster: Option<i64>) -> pg_sys::HeapTuple {
        let mut columns = vec![i32::from(plan.embedding)];
        let mut values = vec![embedding.and_then(|vector| plan.storage.store(vector))];
        if let Some(column) = plan.cluster {
            columns.push(i32::from(column));
            values.push(cluster.map(pg_sys::Datum::from));
        }
        let mut nulls: Vec<bool> = values.iter().map(Option::is_none).collect();
        let mut values: Vec<pg_sys::Datum> = values.into_iter().map(|value| value.unwrap_or(0.into())).collect();
        // SAFETY: three arrays of the same length, of columns that the table has, with values of their types.
        unsafe {
            pg_sys::heap_modify_tuple_by_cols(
                self.tuple,
                self.shape,
                columns.len() as i32,
                columns.as_mut_ptr(),
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            )
        }
    }
}

/// What the catalogue says of a column of a row.
fn attribute(shape: pg_sys::TupleDesc, column: i16) -> pg_sys::FormData_pg_attribute {
    // SAFETY: the description is the trigger's, and lives as long as its relation is open.
    let shape = unsafe { pgrx::PgTupleDesc::from_pg_unchecked(shape) };
    *shape.get(column as usize - 1).expect("a column of the table")
}

/// Whether two values of a varlena type are the same bytes. Most updates leave the image alone, and then the two are one
/// pointer to where it is stored: nothing is read.
fn same(a: Option<pg_sys::Datum>, b: Option<pg_sys::Datum>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return a.is_none() && b.is_none() };
    // SAFETY: two varlenas, each as long as it says.
    unsafe {
        let raw = |datum: pg_sys::Datum| {
            let start = datum.cast_mut_ptr::<pg_sys::varlena>();
            std::slice::from_raw_parts(start.cast::<u8>(), pgrx::varlena::varsize_any(start))
        };
        if raw(a) == raw(b) {
            return true;
        }
        if pg_sys::toast_raw_datum_size(a) != pg_sys::toast_raw_datum_size(b) {
            return false;
        }
        let whole = |datum: pg_sys::Datum| {
            pgrx::varlena::varlena_to_byte_slice(pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr()))
        };
        whole(a) == whole(b)
    }
}

fn unchanged(plan: &Plan, old: &Tuple, new: &Tuple) -> bool {
    [plan.image, plan.text].into_iter().flatten().all(|column| same(old.datum(column), new.datum(column)))
}

/// The plan for a watch and a table; none where the trigger is not of that table's watch.
///
/// What the columns are is looked at here, and what clip_watch saw is not relied on: values are read and written by
/// their bytes, and ALTER TABLE … TYPE may have made a column another type since.
fn plan(id: i64, table: pg_sys::Oid, shape: pg_sys::TupleDesc) -> SqlResult<Rc<Plan>> {
    if let Some(plan) = STATE.with_borrow(|state| state.plans.get(&(id, table)).cloned()) {
        return Ok(plan);
    }
    let Some(watch) = Watch::of_trigger(id, table)? else {
        return Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Error::new(Kind::InvalidInput, "a trigger of clip_watch is on a table that is not watched")
                .hint("Call clip_watch for the table, which drops the trigger, or drop it."),
        ));
    };
    let number = |name: &str| {
        let c = CString::new(name).unwrap_or_default();
        // SAFETY: a cache look-up; the table is open.
        match unsafe { pg_sys::get_attnum(table, c.as_ptr()) } {
            number if number > 0 => Ok(number),
            _ => Err(with_sqlstate(
                PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
                Error::new(Kind::InvalidInput, format!("watched table {} has no column \"{name}\"", watch.name()))
                    .detail("It has been renamed or dropped since clip_watch was called.")
                    .hint("Name it as it was, or have it watched under its new name: clip_unwatch(…, keep_columns => true), then clip_watch."),
            )),
        }
    };
    let column = |name: &str, is: &dyn Fn(pg_sys::Oid) -> bool, wanted: &str| {
        let number = number(name)?;
        let attribute = attribute(shape, number);
        if is(attribute.atttypid) && attribute.attgenerated == 0 {
            return Ok(number);
        }
        // SAFETY: a cache look-up, whose text is copied.
        let shown = unsafe {
            let shown = pg_sys::format_type_with_typemod(attribute.atttypid, attribute.atttypmod);
            CStr::from_ptr(shown).to_string_lossy().into_owned()
        };
        let generated = if attribute.attgenerated == 0 { "" } else { ", generated" };
        Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            Error::new(
                Kind::InvalidInput,
                format!(
                    "column \"{name}\" of watched table {} is of type {shown}{generated}, not {wanted}",
                    watch.name()
                ),
            )
            .detail("It has been altered since clip_watch was called.")
            .hint(
                "Make it what it was, or clip_unwatch the table; ALTER TABLE … DISABLE TRIGGER lets rows in meanwhile.",
            ),
        ))
    };
    let optional = |name: &Option<String>, kinds: &[pg_sys::Oid], wanted: &str| {
        name.as_deref().map(|name| column(name, &|kind| kinds.contains(&kind), wanted)).transpose()
    };
    let storage = Cell::new(None);
    let is_storage = |kind| {
        storage.set(Storage::of(kind));
        storage.get().is_some()
    };
    let embedding = column(&watch.embedding, &is_storage, "vector or halfvec")?;
    let plan = Rc::new(Plan {
        image: optional(&watch.image, &[pg_sys::BYTEAOID], "bytea")?,
        text: optional(&watch.text, &[pg_sys::TEXTOID, pg_sys::VARCHAROID], "text")?,
        embedding,
        storage: storage.get().unwrap_or(Storage::Vector),
        dimensions: usize::try_from(attribute(shape, embedding).atttypmod).ok(),
        cluster: optional(&watch.cluster, &[pg_sys::INT8OID], "bigint")?,
        key: watch.key.iter().map(|name| number(name)).collect::<SqlResult<_>>()?,
        collection: watch.collection.as_deref().map(Rc::from),
        watch,
    });
    STATE.with_borrow_mut(|state| {
        state.register(); // plans go with the transaction
        state.plans.insert((id, table), plan.clone());
    });
    Ok(plan)
}

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_clip_watch_row() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `clip_watch_row('id')`, declared in sql/watch.sql.
///
/// # Safety
/// PostgreSQL calls it, as a trigger function.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn clip_watch_row(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: what PostgreSQL gives a function that it calls as a trigger; checked to be one.
    let outcome = unsafe {
        match call.as_ref().map(|call| PgTrigger::from_fcinfo(call)) {
            Some(Ok(trigger)) => run(&*(*call).context.cast::<pg_sys::TriggerData>(), &trigger.event()),
            _ => Err(out_of_place("clip_watch_row() is called by triggers only")),
        }
    };
    match outcome {
        Ok(tuple) => pg_sys::Datum::from(tuple),
        Err(report) => {
            report.report(PgLogLevel::ERROR);
            unreachable!("an ERROR does not return")
        }
    }
}

fn out_of_place(what: &str) -> ErrorReport {
    with_sqlstate(
        PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
        Error::new(Kind::InvalidInput, what).hint("clip_watch makes the triggers."),
    )
}

/// # Safety
/// The data must be those of a trigger that is being called.
unsafe fn run(data: &pg_sys::TriggerData, event: &TriggerEvent) -> SqlResult<pg_sys::HeapTuple> {
    // SAFETY: by the contract; the argument, if there is one, is a string.
    let (id, table, shape) = unsafe {
        let trigger = &*data.tg_trigger;
        let argument = (trigger.tgnargs == 1).then(|| CStr::from_ptr(*trigger.tgargs).to_string_lossy());
        let id = argument.and_then(|argument| argument.parse::<i64>().ok());
        (id, (*data.tg_relation).rd_id, (*data.tg_relation).rd_att)
    };
    let id = id.ok_or_else(|| out_of_place("clip_watch_row() takes the number of a watch"))?;
    let plan = plan(id, table, shape)?;
    let (first, second) = (Tuple { tuple: data.tg_trigtuple, shape }, Tuple { tuple: data.tg_newtuple, shape });
    match (event.fired_for_row(), event.fired_before()) {
        (true, true) if event.fired_by_insert() => before_insert(&plan, &first),
        (true, true) if event.fired_by_update() => before_update(&plan, table, &first, &second),
        (true, true) => {
            before_delete(&plan, table, &first);
            Ok(first.tuple)
        }
        (true, false) => {
            if event.fired_by_insert() {
                after_insert(&plan, &first)?;
            } else if event.fired_by_update() {
                after_update(&plan, &first, &second)?;
            } else {
                after_delete(&plan, &first)?;
            }
            Ok(std::ptr::null_mut())
        }
        (false, _) if !event.fired_by_truncate() => {
            Err(out_of_place("clip_watch_row() is called for each row, and for a statement by TRUNCATE only"))
        }
        (false, _) => {
            after_truncate(&plan)?;
            Ok(std::ptr::null_mut())
        }
    }
}

fn before_insert(plan: &Plan, new: &Tuple) -> SqlResult<pg_sys::HeapTuple> {
    if is_moved_here(plan, new) {
        return Ok(new.tuple);
    }
    written(plan, new)
}

fn before_update(plan: &Plan, table: pg_sys::Oid, old: &Tuple, new: &Tuple) -> SqlResult<pg_sys::HeapTuple> {
    let mut changed = !unchanged(plan, old, new);
    let result = if changed {
        written(plan, new)?
    } else {
        check_model(plan, old, new)?;
        let regrouped = regrouped(plan, old, new)?;
        changed = regrouped.is_some();
        regrouped.unwrap_or(new.tuple)
    };
    // SAFETY: the relation is open as long as the trigger runs.
    let partition = unsafe { pg_sys::get_rel_relispartition(table) };
    if partition {
        let result = Tuple { tuple: result, shape: new.shape };
        let member = result.member(plan);
        let embedding = result.vector(plan);
        let source = result.stored_source(plan);
        // SAFETY: the old row is one that is stored.
        let tid = unsafe { (*old.tuple).t_self };
        STATE.with_borrow_mut(|state| {
            let (sent, watch) = (sent(), plan.watch.id);
            let what = Move { sent, watch, table, tid, changed, deleted: false, source, member, embedding };
            state.updates.retain(|known| known.what.watch != watch);
            let what = state.until(what);
            state.updates.push(what);
        });
    }
    Ok(result)
}

fn before_delete(plan: &Plan, table: pg_sys::Oid, old: &Tuple) {
    // SAFETY: the old row is one that is stored.
    let tid = unsafe { (*old.tuple).t_self };
    STATE.with_borrow_mut(|state| {
        if let Some(update) = state.updates.iter_mut().find(|known| known.what.watch == plan.watch.id) {
            let update = &mut update.what;
            update.deleted = update.sent == sent()
                && update.table == table
                && (update.tid.ip_blkid.bi_hi, update.tid.ip_blkid.bi_lo, update.tid.ip_posid)
                    == (tid.ip_blkid.bi_hi, tid.ip_blkid.bi_lo, tid.ip_posid);
        }
    });
}

/// Whether the row is the one whose update took it out of another partition just now.
fn is_moved_here(plan: &Plan, new: &Tuple) -> bool {
    let Some(update) = STATE.with_borrow_mut(|state| {
        let moves =
            |known: &Until<Move>| known.what.deleted && known.what.sent == sent() && known.what.watch == plan.watch.id;
        state.updates.iter().position(moves).map(|place| state.updates.swap_remove(place))
    }) else {
        return false;
    };
    let update = update.what;
    let is = update.source == new.stored_source(plan)
        && update.embedding == new.vector(plan)
        && update.member == new.member(plan);
    if let Some(member) = update.member.filter(|_| is && !update.changed) {
        STATE.with_borrow_mut(|state| {
            let (there, here) = (state.until(member.clone()), state.until(member));
            state.moving.push(there);
            state.arriving.push(here);
        });
    }
    is
}

/// The row as it is to be stored.
fn written(plan: &Plan, new: &Tuple) -> SqlResult<pg_sys::HeapTuple> {
    let watch = &plan.watch;
    if watch.queued || !new.has_source(plan) {
        return Ok(new.with(plan, None, None));
    }
    let outcome = new.bytes(plan.text).map(|bytes| utf8("text", bytes)).transpose().and_then(|text| {
        let source = Source { image: new.bytes(plan.image), text };
        queue::embed(watch, &[source])?.pop().unwrap_or(Ok(None))
    });
    match outcome {
        Ok(None) => Ok(new.with(plan, None, None)),
        Ok(Some(vector)) => {
            if let Some(dimensions) = plan.dimensions.filter(|&dimensions| dimensions != vector.0.len()) {
                return Err(with_sqlstate(
                    PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
                    Error::new(
                        Kind::InvalidInput,
                        format!("different vector dimensions {dimensions} and {}", vector.0.len()),
                    )
                    .detail(format!(
                        "Column \"{}\" of {} is for {dimensions}, and has been altered since clip_watch was called; \"{}\" makes the other.",
                        watch.embedding,
                        watch.name(),
                        watch.model
                    ))
                    .hint(format!(
                        "ALTER TABLE … ALTER COLUMN … TYPE vector({}) USING NULL, then CALL clip_backfill, which fills it.",
                        vector.0.len()
                    )),
                ));
            }
            let vector = plan.storage.round(vector);
            let cluster = match &plan.collection {
                Some(collection) if plan.cluster.is_some() => Some(join(collection, &vector.0)?),
                _ => None,
            };
            Ok(new.with(plan, Some(vector), cluster))
        }
        Err(error) if watch.skip => {
            let failure = Failure::from(&error);
            let hash = new.source(plan);
            STATE.with_borrow_mut(|state| {
                let failure = state.until((hash, failure));
                state.failures.push(failure);
            });
            Ok(new.with(plan, None, None))
        }
        Err(error) => Err(report(error)),
    }
}

/// A member whose embedding is written by hand, its source being the same, goes to the group of what it is now; where it
/// is set to NULL, to none. A group that is written by hand is left alone.
fn regrouped(plan: &Plan, old: &Tuple, new: &Tuple) -> SqlResult<Option<pg_sys::HeapTuple>> {
    let (Some(member), Some(cluster)) = (old.member(plan), plan.cluster) else { return Ok(None) };
    if same(old.datum(plan.embedding), new.datum(plan.embedding)) || !same_value(old, new, cluster) {
        return Ok(None);
    }
    let Some(vector) = new.vector(plan) else { return Ok(Some(new.with(plan, None, None))) };
    let cluster = join(&member.collection, &vector)?;
    Ok(Some(new.with(plan, Some(Vector(vector)), Some(cluster))))
}

/// Joins a cluster, for a row that is yet to be written.
fn join(collection: &Rc<str>, vector: &[f32]) -> SqlResult<i64> {
    let cluster = {
        let _rights = Rights::of_extension();
        assign(Vector(vector.to_vec()), collection)?
    };
    STATE.with_borrow_mut(|state| {
        let member = state.until(Member { collection: collection.clone(), cluster, vector: vector.to_vec() });
        state.joined.push(member);
    });
    Ok(cluster)
}

/// An embedding that is written by hand must be of the column's model, as far as can be told.
fn check_model(plan: &Plan, old: &Tuple, new: &Tuple) -> SqlResult<()> {
    if same(old.datum(plan.embedding), new.datum(plan.embedding)) {
        return Ok(());
    }
    let Some(vector) = new.vector(plan) else { return Ok(()) };
    match loaded::model_of(&vector) {
        Some(model) if loaded::base_name(&model) != loaded::base_name(&plan.watch.model) => Err(with_sqlstate(
            PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            Error::new(
                Kind::InvalidInput,
                format!(
                    "column \"{}\" holds vectors of model \"{}\", not of \"{model}\"",
                    plan.watch.embedding, plan.watch.model
                ),
            )
            .detail(format!("This vector is what \"{model}\" has returned in this session."))
            .hint("Vectors of different models don't mix: CALL clip_reembed(table, model) changes the model."),
        )),
        _ => Ok(()),
    }
}

fn after_insert(plan: &Plan, new: &Tuple) -> SqlResult<()> {
    // One that has been moved has joined nothing, and confirms nothing that an equal one has.
    let arrived =
        new.member(plan).is_some_and(|member| STATE.with_borrow_mut(|state| State::take(&mut state.arriving, &member)));
    if !arrived {
        confirm(plan, new);
    }
    if new.datum(plan.embedding).is_none() && new.has_source(plan) {
        note(plan, new)?;
    }
    Ok(())
}

fn after_update(plan: &Plan, old: &Tuple, new: &Tuple) -> SqlResult<()> {
    // It was one, and no move.
    STATE.with_borrow_mut(|state| state.updates.retain(|known| known.what.watch != plan.watch.id));
    let changed = !unchanged(plan, old, new);
    if changed {
        confirm(plan, new);
        part(plan, old)?;
    } else if let Some(was) = old.member(plan) {
        // By hand: grouped anew before it was written (`regrouped`), or without a group until it is made anew.
        let parted = match new.member(plan) {
            Some(is) => is != was && confirm(plan, new),
            None => true,
        };
        if parted {
            part(plan, old)?;
        }
    }
    let renamed = plan.key.iter().any(|&column| !same_value(old, new, column));
    let (was_open, open) = (old.datum(plan.embedding).is_none(), new.datum(plan.embedding).is_none());
    let mut listed = false;
    if was_open && (changed || renamed || !open) {
        let old_key = old.key(plan)?;
        if renamed && !changed && open {
            // What is known of the row goes with it.
            let key = new.key(plan)?;
            let arguments = [plan.watch.id.into(), old_key.as_str().into(), key.as_str().into()];
            listed = queue::noted(&plan.watch, key.len(), || own(RENAME_FAILURE, &arguments))? > 0;
        } else {
            own(DELETE_FAILURE, &[plan.watch.id.into(), old_key.as_str().into()])?;
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

/// Whether a column of a key is the same in both rows: by its bytes, which at worst says no too often.
fn same_value(old: &Tuple, new: &Tuple, column: i16) -> bool {
    let (a, b) = (old.datum(column), new.datum(column));
    let (Some(a), Some(b)) = (a, b) else { return a.is_none() && b.is_none() };
    let attribute = attribute(new.shape, column);
    match attribute.attlen {
        _ if attribute.attbyval => a == b,
        -1 => same(Some(a), Some(b)),
        // SAFETY: two values of that fixed length, or two C strings.
        length => unsafe {
            let bytes = |datum: pg_sys::Datum| match usize::try_from(length) {
                Ok(length) => std::slice::from_raw_parts(datum.cast_mut_ptr::<u8>(), length),
                Err(_) => CStr::from_ptr(datum.cast_mut_ptr()).to_bytes(),
            };
            bytes(a) == bytes(b)
        },
    }
}

fn after_delete(plan: &Plan, old: &Tuple) -> SqlResult<()> {
    if let Some(member) = old.member(plan)
        && !STATE.with_borrow_mut(|state| State::take(&mut state.moving, &member))
    {
        part(plan, old)?;
    }
    if old.datum(plan.embedding).is_none() && old.has_source(plan) {
        own(DELETE_FAILURE, &[plan.watch.id.into(), old.key(plan)?.into()])?;
    }
    Ok(())
}

fn after_truncate(plan: &Plan) -> SqlResult<()> {
    let rights = Rights::of_extension();
    Spi::connect_mut(|client| {
        queue::forget_all(client, plan.watch.id)?;
        let query = "DELETE FROM clip_search.watch_failure WHERE watch = $1";
        client.update(query, None, &[plan.watch.id.into()]).map_err(spi)?;
        Ok::<_, ErrorReport>(())
    })?;
    if let Some(collection) = &plan.watch.collection {
        let store = crate::cluster::tables::Store::open(c"TRUNCATE");
        store.take(collection, true);
        Spi::connect_mut(|client| statements::clear(client, collection).map(drop))?;
    }
    drop(rights);
    Ok(())
}

/// The row is written, so its cluster has it. Whether it has just joined.
fn confirm(plan: &Plan, new: &Tuple) -> bool {
    new.member(plan).is_some_and(|member| STATE.with_borrow_mut(|state| State::take(&mut state.joined, &member)))
}

/// The row leaves its cluster.
fn part(plan: &Plan, old: &Tuple) -> SqlResult<()> {
    if let Some(Member { collection, cluster, vector }) = old.member(plan) {
        let _rights = Rights::of_extension();
        leave(cluster, Vector(vector), Some(&collection))?;
    }
    Ok(())
}

/// Notes that a row has no embedding: as failed if that is known, else as one that is to be filled in.
fn note(plan: &Plan, new: &Tuple) -> SqlResult<()> {
    let known = STATE.with_borrow(|state| !state.failures.is_empty());
    if known {
        let hash = new.source(plan);
        let failure = STATE.with_borrow_mut(|state| {
            let place = state.failures.iter().rposition(|known| known.what.0 == hash)?;
            Some(state.failures.swap_remove(place).what.1)
        });
        if let Some(failure) = failure {
            let key = new.key(plan)?;
            return queue::noted(&plan.watch, key.len(), || queue::add_failure(plan.watch.id, &key, &failure, 1));
        }
    }
    enqueue(plan, new)
}

fn enqueue(plan: &Plan, new: &Tuple) -> SqlResult<()> {
    let key = new.key(plan)?;
    queue::noted(&plan.watch, key.len(), || own(ENQUEUE, &[plan.watch.id.into(), key.as_str().into()]))?;
    if plan.watch.queued {
        wake_at_commit();
    }
    Ok(())
}

const ENQUEUE: &str = "INSERT INTO clip_search.watch_queue (watch, key) VALUES ($1, $2::pg_catalog.text[])";
const DELETE_FAILURE: &str = "DELETE FROM clip_search.watch_failure WHERE watch OPERATOR(pg_catalog.=) $1 \
     AND key OPERATOR(pg_catalog.=) $2::pg_catalog.text[]";
const RENAME_FAILURE: &str = "UPDATE clip_search.watch_failure SET key = $3::pg_catalog.text[] \
     WHERE watch OPERATOR(pg_catalog.=) $1 AND key OPERATOR(pg_catalog.=) $2::pg_catalog.text[]";

/// Runs a statement on the extension's tables; how many rows it was of.
fn own(query: &'static str, arguments: &[pgrx::datum::DatumWithOid<'_>]) -> SqlResult<usize> {
    let _rights = Rights::of_extension();
    Spi::connect_mut(|client| Ok(statements::run(client, query, arguments)?.len()))
}
