//! Refuses operations in a table owner's code that PostgreSQL allows in a security-restricted operation, but that would
//! leave state in the caller's session or affect the caller's transaction.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

use pgrx::pg_catalog::pg_proc::PgProc;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::pg::analyzed::is_own_statement;
use crate::pg::error::sql_error;
use crate::pg::hard_limit::is_worker;

thread_local! {
    /// The number of open contexts of table owners.
    static OPEN: Cell<u32> = const { Cell::new(0) };
    /// The owner of the extension, as last looked up.
    static EXTENSION_OWNER: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::Oid::INVALID) };
    /// Whether the query that is being planned is one of the extension's own statements.
    static IS_OWN: Cell<bool> = const { Cell::new(false) };
    /// Whether code in these contexts has called set_config(), possibly on `seed`.
    static MAY_HAVE_SEEDED: Cell<bool> = const { Cell::new(false) };
}

/// During its lifetime, the hooks refuse these operations.
pub(super) struct Restricted(());

impl Restricted {
    pub(super) fn begin() -> Self {
        OPEN.set(OPEN.get() + 1);
        Self(())
    }
}

impl Drop for Restricted {
    fn drop(&mut self) {
        OPEN.set(OPEN.get() - 1);
        if OPEN.get() == 0 && MAY_HAVE_SEEDED.take() {
            seed_randomly();
        }
    }
}

/// Gives random() an unpredictable seed. The setting `seed` acts when it is set, so restoring the settings does not undo
/// it, and PostgreSQL reveals neither its value nor the generator's state.
fn seed_randomly() {
    let mut bits = [0; 4];
    // SAFETY: it fills the buffer, or returns false.
    if unsafe { pg_sys::pg_strong_random(bits.as_mut_ptr().cast(), bits.len()) } {
        let seed = f64::from(i32::from_ne_bytes(bits)) / 2_147_483_648.0;
        // SAFETY: setseed takes one float8 from -1 to 1.
        unsafe { pgrx::direct_function_call::<()>(pg_sys::setseed, &[seed.into_datum()]) };
    }
}

/// Tells this module who owns the extension.
pub(super) fn set_extension_owner(owner: pg_sys::Oid) {
    EXTENSION_OWNER.set(owner);
}

fn is_restricted() -> bool {
    // SAFETY: reads a variable of the process.
    OPEN.get() > 0 && unsafe { pg_sys::InSecurityRestrictedOperation() }
}

/// The hooks that were installed before.
static NEXT_ACCESS: OnceLock<pg_sys::object_access_hook_type> = OnceLock::new();
static NEXT_UTILITY: OnceLock<pg_sys::ProcessUtility_hook_type> = OnceLock::new();
static NEXT_PLANNER: OnceLock<pg_sys::planner_hook_type> = OnceLock::new();
static NEXT_RELATION: OnceLock<pg_sys::get_relation_info_hook_type> = OnceLock::new();
static NEXT_STATISTICS: OnceLock<pg_sys::get_relation_stats_hook_type> = OnceLock::new();
static NEXT_INDEX: OnceLock<pg_sys::get_index_stats_hook_type> = OnceLock::new();

/// Installs the hooks.
pub fn register() {
    // SAFETY: the library is loaded once in a process, on its only thread.
    unsafe {
        if NEXT_ACCESS.set((&raw const pg_sys::object_access_hook).read()).is_ok() {
            (&raw mut pg_sys::object_access_hook).write(Some(on_object_access));
        }
        if NEXT_UTILITY.set((&raw const pg_sys::ProcessUtility_hook).read()).is_ok() {
            (&raw mut pg_sys::ProcessUtility_hook).write(Some(on_utility));
        }
        if NEXT_PLANNER.set((&raw const pg_sys::planner_hook).read()).is_ok() {
            (&raw mut pg_sys::planner_hook).write(Some(on_planner));
        }
        if NEXT_RELATION.set((&raw const pg_sys::get_relation_info_hook).read()).is_ok() {
            (&raw mut pg_sys::get_relation_info_hook).write(Some(on_relation));
        }
        if NEXT_STATISTICS.set((&raw const pg_sys::get_relation_stats_hook).read()).is_ok() {
            (&raw mut pg_sys::get_relation_stats_hook).write(Some(on_statistics));
        }
        if NEXT_INDEX.set((&raw const pg_sys::get_index_stats_hook).read()).is_ok() {
            (&raw mut pg_sys::get_index_stats_hook).write(Some(on_index_statistics));
        }
    }
}

/// The object access hook, which PostgreSQL calls before it runs a function.
#[pg_guard]
unsafe extern "C-unwind" fn on_object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    sub: std::ffi::c_int,
    argument: *mut std::ffi::c_void,
) {
    if let Some(Some(next)) = NEXT_ACCESS.get() {
        // SAFETY: the previously installed hook, with the arguments that it would have received.
        unsafe { next(access, class, object, sub, argument) };
    }
    if access != pg_sys::ObjectAccessType::OAT_FUNCTION_EXECUTE || !is_restricted() {
        return;
    }
    refuse_function(object);
}

/// Raises an error for a function that would leave state in the session.
fn refuse_function(oid: pg_sys::Oid) {
    let function = oid.to_u32();
    let (what, hint) = if SESSION_LOCKS.contains(&function) {
        (
            "take or release session-level advisory locks",
            "Use pg_advisory_xact_lock, which lasts until the transaction ends.",
        )
    } else if LARGE_OBJECTS.contains(&function) {
        ("use descriptors of large objects", "Use lo_get and lo_put.")
    } else if is_session_dblink(oid) {
        (
            "use connections of dblink",
            "They are the session's, whoever opened them. The background worker allows dblink(connection string, query).",
        )
    } else if function == pg_sys::F_SETSEED || sets_seed(oid) {
        ("set the seed of random()", "The session would draw predictable numbers afterwards.")
    } else {
        if function == pg_sys::F_SET_CONFIG {
            MAY_HAVE_SEEDED.set(true);
        }
        return;
    };
    refusal(what).set_hint(hint).report(PgLogLevel::ERROR);
}

/// Whether a function has a SET clause for the setting `seed`.
fn sets_seed(function: pg_sys::Oid) -> bool {
    function.to_u32() >= pg_sys::FirstNormalObjectId
        && PgProc::new(function)
            .and_then(|function| function.proconfig())
            .is_some_and(|settings| settings.iter().any(|setting| setting.starts_with("seed=")))
}

/// Whether a function is dblink's and uses the session's connections: the owner's code could send commands over a
/// connection that the caller has opened. A worker of clip_search has no such connections, so it refuses only the
/// functions that open or close one.
fn is_session_dblink(function: pg_sys::Oid) -> bool {
    if function.to_u32() < pg_sys::FirstNormalObjectId {
        return false;
    }
    // SAFETY: catalogue look-ups inside a transaction, which return 0 and null for what is not there.
    unsafe {
        let extension = pg_sys::getExtensionOfObject(pg_sys::ProcedureRelationId, function);
        if extension == pg_sys::InvalidOid {
            return false;
        }
        let (extension, name) = (pg_sys::get_extension_name(extension), pg_sys::get_func_name(function));
        if extension.is_null() || name.is_null() || CStr::from_ptr(extension) != c"dblink" {
            return false;
        }
        let name = CStr::from_ptr(name).to_bytes();
        !is_worker() || name.starts_with(b"dblink_connect") || name == b"dblink_disconnect"
    }
}

/// The planner hook. The extension's own statements name their operators with a schema, so they need no check; to check
/// them made the worker three times as slow.
///
/// Like the utility hook it has no `pg_guard`, and nothing to drop. After an error the value of an inner query remains,
/// with which more is checked.
unsafe extern "C-unwind" fn on_planner(
    query: *mut pg_sys::Query,
    text: *const c_char,
    options: std::ffi::c_int,
    parameters: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the previously installed hook, or PostgreSQL's own function, gets the arguments of this call.
    unsafe {
        let next = NEXT_PLANNER.get().copied().flatten().unwrap_or(standard_planner);
        if OPEN.get() == 0 {
            return next(query, text, options, parameters);
        }
        let is_own = pg_sys::GetUserId() == EXTENSION_OWNER.get() || is_own_statement(text);
        let outer = IS_OWN.replace(is_own);
        let plan = next(query, text, options, parameters);
        IS_OWN.set(outer);
        plan
    }
}

/// The relation info hook, which the planner calls for each table of a query. Selectivity functions run the functions of
/// operators on stored statistics, and the object access hook is not called for these runs. At this point the planner has
/// simplified the query, so the expressions of inlined functions are in it.
#[pg_guard]
unsafe extern "C-unwind" fn on_relation(
    root: *mut pg_sys::PlannerInfo,
    oid: pg_sys::Oid,
    with_children: bool,
    relation: *mut pg_sys::RelOptInfo,
) {
    // SAFETY: the query that is being planned; the previously installed hook, with the arguments of this call.
    unsafe {
        if let Some(Some(next)) = NEXT_RELATION.get() {
            next(root, oid, with_children, relation);
        }
        refuse_operators(root);
    }
}

/// The relation statistics hook, which the planner calls for the statistics of a column. The column may belong to a
/// subquery that was planned before the outer query was simplified.
#[pg_guard]
unsafe extern "C-unwind" fn on_statistics(
    root: *mut pg_sys::PlannerInfo,
    table: *mut pg_sys::RangeTblEntry,
    column: pg_sys::AttrNumber,
    statistics: *mut pg_sys::VariableStatData,
) -> bool {
    // SAFETY: as in on_relation.
    unsafe {
        refuse_operators(root);
        NEXT_STATISTICS.get().copied().flatten().is_some_and(|next| next(root, table, column, statistics))
    }
}

/// The index statistics hook, which the planner calls for the statistics of an indexed expression.
#[pg_guard]
unsafe extern "C-unwind" fn on_index_statistics(
    root: *mut pg_sys::PlannerInfo,
    index: pg_sys::Oid,
    column: pg_sys::AttrNumber,
    statistics: *mut pg_sys::VariableStatData,
) -> bool {
    // SAFETY: as in on_relation.
    unsafe {
        refuse_operators(root);
        NEXT_INDEX.get().copied().flatten().is_some_and(|next| next(root, index, column, statistics))
    }
}

/// Raises an error if the query, or a query around it, contains an operator whose function is refused.
///
/// # Safety
/// `root` must be a query that is being planned.
unsafe fn refuse_operators(root: *mut pg_sys::PlannerInfo) {
    if IS_OWN.get() || !is_restricted() {
        return;
    }
    let mut root = root;
    // SAFETY: the queries around a query outlive it. The text is palloc'd and ends in a nul.
    unsafe {
        while !root.is_null() {
            let text = pg_sys::nodeToString((*root).parse.cast());
            let functions = functions_of_operators(&CStr::from_ptr(text).to_string_lossy());
            pg_sys::pfree(text.cast());
            functions.into_iter().for_each(refuse_function);
            root = (*root).parent_root;
        }
    }
}

/// The functions of all operators in a query, from its text form, in which PostgreSQL names them `opfuncid`.
fn functions_of_operators(query: &str) -> Vec<pg_sys::Oid> {
    let fields = query.split(":opfuncid ").skip(1);
    fields.filter_map(|rest| rest.split(' ').next()?.parse::<u32>().ok()).map(pg_sys::Oid::from).collect()
}

fn refusal(what: &str) -> ErrorReport {
    sql_error(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("cannot {what} within security-restricted operation"),
    )
}

/// The utility hook, which PostgreSQL calls for each utility command.
///
/// The hook has no `pg_guard`, and PostgreSQL's own function is declared here, because pgrx would catch every error of
/// every utility command and raise it again without its context, position and names. An error leaves this frame by
/// longjmp, which is sound because the frame has nothing to drop.
#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn on_utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: a statement that is about to run. The previously installed hook, or PostgreSQL's own function, gets the
    // arguments of this call.
    unsafe {
        if OPEN.get() > 0 {
            refuse_utility((*statement).utilityStmt);
        }
        let next = NEXT_UTILITY.get().copied().flatten().unwrap_or(standard_utility);
        next(statement, text, read_only, context, parameters, environment, receiver, completion);
    }
}

/// # Safety
/// The node must be a utility statement.
#[pg_guard]
unsafe extern "C-unwind" fn refuse_utility(statement: *mut pg_sys::Node) {
    if !is_restricted() {
        return;
    }
    // SAFETY: by the contract.
    let refused = match unsafe { (*statement).type_ } {
        // Only the caller may decide whether its deferred constraints are checked now or at the end.
        pg_sys::NodeTag::T_ConstraintsSetStmt => refusal("execute SET CONSTRAINTS"),
        pg_sys::NodeTag::T_LoadStmt => refusal("execute LOAD"),
        // SAFETY: as above.
        _ if unsafe { sets_seed_here(statement) } => {
            refusal("set the seed of random()").set_hint("The session would draw predictable numbers afterwards.")
        }
        // SAFETY: as above.
        _ if unsafe { creates_in_session(statement) } => {
            refusal("create temporary functions, operators and other objects")
                .set_hint("The session would find them by name, and run them as its own.")
        }
        _ => return,
    };
    refused.report(PgLogLevel::ERROR);
}

/// Whether a statement is `SET seed`.
///
/// # Safety
/// The node must be a utility statement.
unsafe fn sets_seed_here(statement: *mut pg_sys::Node) -> bool {
    // SAFETY: a statement has the type that its tag names; a name ends in a nul.
    unsafe {
        if (*statement).type_ != pg_sys::NodeTag::T_VariableSetStmt {
            return false;
        }
        let name = (*statement.cast::<pg_sys::VariableSetStmt>()).name;
        !name.is_null() && CStr::from_ptr(name).to_bytes().eq_ignore_ascii_case(b"seed")
    }
}

/// Whether a statement creates an object in the session's temporary schema that PostgreSQL allows even in a
/// security-restricted operation. An overload of one of the caller's own functions could take over its calls.
/// PostgreSQL itself refuses to create tables and types there, and to move objects there.
///
/// # Safety
/// The node must be a utility statement.
unsafe fn creates_in_session(statement: *mut pg_sys::Node) -> bool {
    // SAFETY: a statement has the type that its tag names, and a list of strings as its name, or none.
    unsafe {
        let name = match (*statement).type_ {
            pg_sys::NodeTag::T_CreateFunctionStmt => (*statement.cast::<pg_sys::CreateFunctionStmt>()).funcname,
            pg_sys::NodeTag::T_DefineStmt => (*statement.cast::<pg_sys::DefineStmt>()).defnames,
            pg_sys::NodeTag::T_CreateConversionStmt => {
                (*statement.cast::<pg_sys::CreateConversionStmt>()).conversion_name
            }
            pg_sys::NodeTag::T_CreateStatsStmt => (*statement.cast::<pg_sys::CreateStatsStmt>()).defnames,
            pg_sys::NodeTag::T_CreateOpClassStmt => (*statement.cast::<pg_sys::CreateOpClassStmt>()).opclassname,
            pg_sys::NodeTag::T_CreateOpFamilyStmt => (*statement.cast::<pg_sys::CreateOpFamilyStmt>()).opfamilyname,
            _ => return false,
        };
        if name.is_null() {
            return false;
        }
        let mut object = std::ptr::null_mut();
        pg_sys::isTempNamespace(pg_sys::QualifiedNameGetCreationNamespace(name, &raw mut object))
    }
}

unsafe extern "C-unwind" {
    fn standard_planner(
        query: *mut pg_sys::Query,
        text: *const c_char,
        options: std::ffi::c_int,
        parameters: pg_sys::ParamListInfo,
    ) -> *mut pg_sys::PlannedStmt;

    #[link_name = "standard_ProcessUtility"]
    fn standard_utility(
        statement: *mut pg_sys::PlannedStmt,
        text: *const c_char,
        read_only: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        parameters: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        receiver: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// pg_advisory_lock and its variants whose locks outlive a transaction, and the functions that release them: fixed oids
/// in pg_proc.dat.
const SESSION_LOCKS: [u32; 13] = [
    pg_sys::F_PG_ADVISORY_LOCK_INT8,
    pg_sys::F_PG_ADVISORY_LOCK_SHARED_INT8,
    pg_sys::F_PG_TRY_ADVISORY_LOCK_INT8,
    pg_sys::F_PG_TRY_ADVISORY_LOCK_SHARED_INT8,
    pg_sys::F_PG_ADVISORY_UNLOCK_INT8,
    pg_sys::F_PG_ADVISORY_UNLOCK_SHARED_INT8,
    pg_sys::F_PG_ADVISORY_LOCK_INT4_INT4,
    pg_sys::F_PG_ADVISORY_LOCK_SHARED_INT4_INT4,
    pg_sys::F_PG_TRY_ADVISORY_LOCK_INT4_INT4,
    pg_sys::F_PG_TRY_ADVISORY_LOCK_SHARED_INT4_INT4,
    pg_sys::F_PG_ADVISORY_UNLOCK_INT4_INT4,
    pg_sys::F_PG_ADVISORY_UNLOCK_SHARED_INT4_INT4,
    pg_sys::F_PG_ADVISORY_UNLOCK_ALL,
];

/// Functions on descriptors, which are numbers from 0 for the whole session: PostgreSQL checks privileges when a
/// descriptor is opened, so the owner's code could read objects that the caller has opened.
const LARGE_OBJECTS: [u32; 10] = [
    pg_sys::F_LO_OPEN,
    pg_sys::F_LO_CLOSE,
    pg_sys::F_LOREAD,
    pg_sys::F_LOWRITE,
    pg_sys::F_LO_LSEEK,
    pg_sys::F_LO_LSEEK64,
    pg_sys::F_LO_TELL,
    pg_sys::F_LO_TELL64,
    pg_sys::F_LO_TRUNCATE,
    pg_sys::F_LO_TRUNCATE64,
];
