//! Refuses operations in a table owner's code that PostgreSQL allows in a security-restricted operation, but that would
//! leave state in the caller's session or affect the caller's transaction.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::pg::error::sql_error;
use crate::pg::hard_limit::is_worker;

thread_local! {
    /// The number of open contexts of table owners.
    static OPEN: Cell<u32> = const { Cell::new(0) };
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
    }
}

fn is_restricted() -> bool {
    // SAFETY: reads a variable of the process.
    OPEN.get() > 0 && unsafe { pg_sys::InSecurityRestrictedOperation() }
}

/// The hooks that were installed before.
static NEXT_ACCESS: OnceLock<pg_sys::object_access_hook_type> = OnceLock::new();
static NEXT_UTILITY: OnceLock<pg_sys::ProcessUtility_hook_type> = OnceLock::new();

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
    let function = object.to_u32();
    let (what, hint) = if SESSION_LOCKS.contains(&function) {
        (
            "take or release session-level advisory locks",
            "Use pg_advisory_xact_lock, which lasts until the transaction ends.",
        )
    } else if LARGE_OBJECTS.contains(&function) {
        ("use descriptors of large objects", "Use lo_get and lo_put.")
    } else if is_session_dblink(object) {
        (
            "use connections of dblink",
            "They are the session's, whoever opened them. The background worker allows dblink(connection string, query).",
        )
    } else if function == pg_sys::F_SETSEED {
        ("set the seed of random()", "The session would draw predictable numbers afterwards.")
    } else {
        return;
    };
    refusal(what).set_hint(hint).report(PgLogLevel::ERROR);
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
        _ if unsafe { creates_in_session(statement) } => {
            refusal("create temporary functions, operators and other objects")
                .set_hint("The session would find them by name, and run them as its own.")
        }
        _ => return,
    };
    refused.report(PgLogLevel::ERROR);
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
