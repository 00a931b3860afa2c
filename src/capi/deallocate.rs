// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The end of allocations, and memory that goes back to the system.

use super::callback::jitmem_destroy_fn;
use super::finalize::{jitmem_done_fn, with_done};
use super::input::{self, Optional};
use super::manager::{jitmem_manager, now, with_manager};
use super::status::{jitmem_error, jitmem_status};
use crate::completion::wait;
use crate::error::Result;
use crate::manager::Manager;
use std::ffi::c_void;

/// Gives up an allocation that was not finalized; its working memory must not be touched any more.
/// Thread-safe. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_HANDLE if it is not in flight.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_abandon(
    manager: *const jitmem_manager,
    allocation: u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| wait(|done| manager.core().abandon(allocation, done));
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}

/// jitmem_manager_abandon without waiting.
///
/// # Safety
/// As jitmem_manager_abandon; `fn` and `destroy` may be called with `ctx`, from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_abandon_async(
    manager: *const jitmem_manager,
    allocation: u64,
    r#fn: jitmem_done_fn,
    ctx: *mut c_void,
    destroy: jitmem_destroy_fn,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let check = || Ok(());
    let submit = |manager: &Manager, (), done| manager.core().abandon(allocation, done);
    // SAFETY: as the caller says.
    unsafe { with_done(manager, error, (r#fn, ctx, destroy), check, submit) }
}

/// The allocations that go together.
///
/// # Safety
/// `allocations` is NULL or has `count` entries that stay as they are during `'a`.
#[inline(always)] // 1 % of deallocate
unsafe fn batch<'a>(allocations: *const u64, count: usize) -> Result<&'a [u64]> {
    // SAFETY: as the caller says.
    unsafe { input::array(allocations, count, "allocations") }
}

/// Runs the deallocation actions of finalized allocations, last allocation first, each one's last
/// action first, and frees their memory. No code of them may run any more. Waits until no
/// jitmem_write_scope of them is open.
///
/// `count` may be 0. Thread-safe. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_ARGUMENT, JITMEM_INVALID_HANDLE (one of them is not finalized here or is
/// named twice), JITMEM_INVALID_ARGUMENT too if this thread began a write scope of one of them that is
/// open: nothing is done then; JITMEM_ACTION_FAILED: all actions were run nevertheless, the
/// memory is free, and the message names every failure.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `allocations` is NULL or has `count` entries;
/// `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_deallocate(
    manager: *const jitmem_manager,
    allocations: *const u64,
    count: usize,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        // SAFETY: as the caller says.
        let handles = unsafe { batch(allocations, count) }?;
        manager.core().deallocate_and_wait(handles)
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}

/// jitmem_manager_deallocate where that needs no waiting and no action; JITMEM_WOULD_BLOCK, without an
/// error object, where it does: nothing is done then.
///
/// # Safety
/// As jitmem_manager_deallocate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_try_deallocate(
    manager: *const jitmem_manager,
    allocations: *const u64,
    count: usize,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        // SAFETY: as the caller says.
        let handles = unsafe { batch(allocations, count) }?;
        now(manager.core().try_deallocate(handles))
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}

/// jitmem_manager_deallocate without waiting. `allocations` is read during this call only.
///
/// # Safety
/// As jitmem_manager_deallocate; `fn` and `destroy` may be called with `ctx`, from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_deallocate_async(
    manager: *const jitmem_manager,
    allocations: *const u64,
    count: usize,
    r#fn: jitmem_done_fn,
    ctx: *mut c_void,
    destroy: jitmem_destroy_fn,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    // SAFETY: as the caller says.
    let check = || unsafe { batch(allocations, count) };
    let submit =
        |manager: &Manager, handles: &[u64], done| manager.core().deallocate(handles, done);
    // SAFETY: as the caller says.
    unsafe { with_done(manager, error, (r#fn, ctx, destroy), check, submit) }
}

/// Has memory that is nearly full put into huge pages, of which at most an eighth was not in use; all of it
/// counts as committed from then on. Linked code runs on meanwhile. If `bytes` is not NULL it is set to how
/// many bytes lie in huge pages then, of those that were asked for by this call. What lies in chunks that
/// are smaller stays as it is. Some 100 µs to 1 ms each: for hosts that have linked much of what they will run
/// for long. Thread-safe.
///
/// Errors: JITMEM_INVALID_HANDLE (freed; in a forked child, a manager over an executor); if the system
/// refuses all of them, why:
/// EINVAL before Linux 6.1 or without huge pages, EAGAIN or ENOMEM for a shortage of the moment.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `bytes` and `error` are NULL or a place for what
/// they are set to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_collapse(
    manager: *const jitmem_manager,
    bytes: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        // SAFETY: as the caller says.
        let bytes = unsafe { Optional::new(bytes, "bytes") }?;
        bytes.set(manager.core().collapse()?);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}

/// Gives everything back to the system that holds nothing: empty chunks, pages inside chunks, and
/// windows; and the free pages of this process's heap (malloc_trim). For hosts that know of memory
/// pressure, or that will be idle; a manager gives back most of it by itself, but for the heap. If
/// `bytes` is not NULL it is set to how many bytes of memory were given back, those of the heap left
/// out. Thread-safe.
///
/// Errors: JITMEM_INVALID_HANDLE (freed; in a forked child, a manager over an executor); if nothing could
/// be given back, what the
/// mapper answers.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `bytes` and `error` are NULL or a place for what
/// they are set to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_trim(
    manager: *const jitmem_manager,
    bytes: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        // SAFETY: as the caller says.
        let bytes = unsafe { Optional::new(bytes, "bytes") }?;
        bytes.set(manager.core().trim()?);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}
