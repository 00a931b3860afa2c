// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Deferred reclamation: epochs of `jitmem_manager`.

use super::callback::jitmem_destroy_fn;
use super::finalize::{jitmem_done_fn, with_done};
use super::input::{self, Optional};
use super::manager::{jitmem_manager, with_manager};
use super::status::{jitmem_error, jitmem_status};
use crate::completion::wait;
use crate::manager::Manager;
use std::ffi::c_void;

/// Ends an epoch: everything that was deallocated before belongs to it or to one before it. With
/// jitmem_manager_options.defer_reclamation, a host that has code deallocated which threads may still
/// run
///
/// 1. sees to it that no thread enters the code any more, and deallocates it: its actions run, its
///    handle is gone;
/// 2. calls this;
/// 3. waits until every thread has been outside of linked code at least once since;
/// 4. calls jitmem_manager_reclaim with `*epoch`.
///
/// `*epoch` receives the number, which counts up from 1. Thread-safe. Never waits.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE, JITMEM_UNSUPPORTED with LLVM's
/// memory manager service.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `epoch` and `error` are NULL or places to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_advance_epoch(
    manager: *const jitmem_manager,
    epoch: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        input::required(epoch, "epoch")?;
        let ended = manager.core().advance_epoch()?;
        // SAFETY: not NULL, and the caller says that it is a place for a number.
        unsafe { epoch.write(ended) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}

/// Gives back what was deallocated up to `epoch`, which jitmem_manager_advance_epoch answered. No thread
/// may be inside any more. Until then its code runs as before and its addresses are not used again.
///
/// `bytes` may be NULL; else it receives how much was given back, rounding included. A manager that is
/// freed gives everything back. Thread-safe. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL and for an epoch that has not ended, JITMEM_INVALID_HANDLE,
/// JITMEM_UNSUPPORTED with LLVM's memory manager service; what the mapper answers, and the memory is free
/// all the same.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `bytes` and `error` are NULL or places to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_reclaim(
    manager: *const jitmem_manager,
    epoch: u64,
    bytes: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        // SAFETY: as the caller says.
        let bytes = unsafe { Optional::new(bytes, "bytes") }?;
        bytes.set(wait(|done| manager.core().reclaim(epoch, done))?);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}

/// jitmem_manager_reclaim without waiting; the bytes that wait are in the statistics.
///
/// # Safety
/// As jitmem_manager_reclaim; `fn` and `destroy` may be called with `ctx`, from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_reclaim_async(
    manager: *const jitmem_manager,
    epoch: u64,
    r#fn: jitmem_done_fn,
    ctx: *mut c_void,
    destroy: jitmem_destroy_fn,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let check = || Ok(());
    let submit = |manager: &Manager, (), done| manager.core().reclaim(epoch, done);
    // SAFETY: as the caller says.
    unsafe { with_done(manager, error, (r#fn, ctx, destroy), check, submit) }
}
