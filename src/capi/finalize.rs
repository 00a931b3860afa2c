// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Finalizing: content becomes visible, and finalize actions run.

use super::callback::{Context, jitmem_destroy_fn};
use super::manager::{jitmem_manager, lend, now, with_completion, with_manager};
use super::request::{self, jitmem_action};
use super::status::{jitmem_error, jitmem_status};
use crate::completion::Completion;
use crate::error::{Result, invalid_argument};
use crate::manager::Manager;
use std::ffi::c_void;

/// Learns how a request ended: `error` is NULL for success, else valid during the call.
#[allow(non_camel_case_types)]
pub type jitmem_done_fn =
    Option<unsafe extern "C" fn(ctx: *mut c_void, error: *const jitmem_error)>;

fn done<T: Send + 'static>(callback: jitmem_done_fn, context: Context) -> Result<Completion<T>> {
    let callback = callback.ok_or_else(|| invalid_argument("fn is NULL"))?;
    Ok(Completion::for_host(move |answer: Result<T>| {
        lend(answer.err(), |error| {
            // SAFETY: the host says that its function takes these.
            unsafe { callback(context.pointer(), error) }
        });
    }))
}

/// [`with_completion`] for a request whose callback learns only how it ended. `submit` takes what
/// `check` makes of the arguments.
///
/// # Safety
/// As [`with_manager`]; both functions may be called with the context, from any thread.
pub(super) unsafe fn with_done<A, T: Send + 'static>(
    manager: *const jitmem_manager,
    error: *mut *mut jitmem_error,
    (callback, ctx, destroy): (jitmem_done_fn, *mut c_void, jitmem_destroy_fn),
    check: impl FnOnce() -> Result<A>,
    submit: impl FnOnce(&Manager, A, Completion<T>),
) -> jitmem_status {
    let context = Context::new(ctx, destroy);
    let accept = |_: &Manager| Ok((check()?, done(callback, context)?));
    let submit = |manager: &Manager, (arguments, done)| submit(manager, arguments, done);
    // SAFETY: as the caller says.
    unsafe { with_completion(manager, error, accept, submit) }
}

/// Makes an allocation's content visible in the executor and runs its finalize actions first to
/// last. Afterwards its working memory must not be touched.
///
/// `actions` may be NULL if `count` is 0. If an action fails, the deallocation twins of those
/// before it run last to first. Actions run in this thread for a mapper of this process.
/// Thread-safe. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_ARGUMENT, JITMEM_INVALID_HANDLE (not in flight; nothing is done then);
/// JITMEM_ACTION_FAILED, JITMEM_OUT_OF_MEMORY, JITMEM_DENIED, JITMEM_MAPPER_FAILED: the memory is
/// free again and the allocation gone.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `actions` is NULL or has `count` entries whose
/// arguments are as long as they say; `error` is NULL or a place for a pointer. The functions are
/// wrapper functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_finalize(
    manager: *const jitmem_manager,
    allocation: u64,
    actions: *const jitmem_action,
    count: usize,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        // SAFETY: as the caller says.
        let actions = unsafe { request::actions(actions, count) }?;
        let answer = manager.core().finalize_and_wait(allocation, actions);
        answer.map(drop)
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}

/// jitmem_manager_finalize without waiting. `actions` is read during this call only.
///
/// # Safety
/// As jitmem_manager_finalize; `fn` and `destroy` may be called with `ctx`, from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_finalize_async(
    manager: *const jitmem_manager,
    allocation: u64,
    actions: *const jitmem_action,
    count: usize,
    r#fn: jitmem_done_fn,
    ctx: *mut c_void,
    destroy: jitmem_destroy_fn,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    // SAFETY: as the caller says.
    let check = || unsafe { request::actions(actions, count) };
    let submit =
        |manager: &Manager, actions, done| manager.core().finalize(allocation, actions, done);
    // SAFETY: as the caller says.
    unsafe { with_done(manager, error, (r#fn, ctx, destroy), check, submit) }
}

/// jitmem_manager_finalize without actions where that needs no waiting; JITMEM_WOULD_BLOCK, without an
/// error object, where it does: nothing is done then.
///
/// # Safety
/// As jitmem_manager_finalize.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_try_finalize(
    manager: *const jitmem_manager,
    allocation: u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| now(manager.core().try_finalize(allocation));
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}
