//! Values that the call of a function in a query keeps from one row to the next.
#![allow(unsafe_code)]

use std::mem::align_of;

use pgrx::pg_sys;

/// Computes a value that depends on only one argument of the call. If this argument is a constant in the query, the
/// value is computed once and kept with the call's expression; otherwise it is computed each time.
///
/// A parameter is not a constant here: PL/pgSQL keeps an expression for a whole transaction while its parameters
/// change.
pub fn once_per_constant<T: Copy + 'static>(
    call: pg_sys::FunctionCallInfo,
    argument: i32,
    compute: impl FnOnce() -> T,
) -> T {
    const { assert!(align_of::<T>() <= 8, "palloc aligns to 8 bytes") };
    // SAFETY: PostgreSQL's description of the current call. `fn_extra` belongs to the function and is null at first;
    // the value stored there lives in `fn_mcxt`, as long as the description does. T has no destructor, because it is
    // Copy.
    unsafe {
        let Some(info) = (*call).flinfo.as_mut().filter(|info| is_constant(info, argument)) else { return compute() };
        if info.fn_extra.is_null() {
            let value = compute();
            let place = pg_sys::MemoryContextAlloc(info.fn_mcxt, size_of::<T>()).cast::<T>();
            place.write(value);
            info.fn_extra = place.cast();
        }
        info.fn_extra.cast::<T>().read()
    }
}

/// Whether an argument of the call is a constant: written as one, or computed by the planner.
fn is_constant(info: &pg_sys::FmgrInfo, argument: i32) -> bool {
    let expression = info.fn_expr;
    // SAFETY: null, or the expression that calls the function; a FuncExpr has a list of its arguments' expressions.
    unsafe {
        if !pgrx::is_a(expression, pg_sys::NodeTag::T_FuncExpr) {
            return false;
        }
        let arguments = (*expression.cast::<pg_sys::FuncExpr>()).args;
        if arguments.is_null() || argument >= (*arguments).length {
            return false;
        }
        pgrx::is_a(pg_sys::list_nth(arguments, argument).cast(), pg_sys::NodeTag::T_Const)
    }
}
