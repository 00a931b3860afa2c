// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_write_scope`: writing what is finalized.

use super::handle::{self, Handle};
use super::manager::{jitmem_manager, with_manager};
use super::status::{jitmem_error, jitmem_status};
use super::{guard, input};
use crate::error::{Result, invalid_argument};
use crate::lock::Mutex;
use crate::manager::WriteScope;
use std::ffi::c_void;

/// The right to write code and data of one finalized allocation while linked code may run them: inline
/// caches, the targets of stubs. An allocation is not deallocated while a scope of it is open. Scopes
/// do not exclude each other, of the same allocation neither: threads that write the same bytes agree among
/// themselves on the order. One thread at a time uses a scope.
///
/// After a fork code and constants are the other process's too and are not stored to any more, unless
/// the manager has JITMEM_FORK_REUSE; a pointer to them of before must not be used.
#[allow(non_camel_case_types)]
pub struct jitmem_write_scope(Mutex<WriteScope>);

static WRITE_SCOPES: handle::Pool<jitmem_write_scope> = handle::Pool::new(handle::Kind::WriteScope);

impl Handle for jitmem_write_scope {
    fn pool() -> &'static handle::Pool<Self> {
        &WRITE_SCOPES
    }
    const NAME: &'static str = "jitmem_write_scope";
}

/// Opens a finalized allocation for writing, by jitmem_write_scope_store and _pointer.
///
/// On success `*scope` is the new scope, to be ended with jitmem_write_scope_end. It keeps the manager's
/// memory, also when the manager is freed. Thread-safe. Waits only while an executor gives memory of the
/// allocation's chunk back, for jitmem_limits.memory, or for 10 seconds where that is no limit.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_TIMED_OUT, JITMEM_INVALID_HANDLE (it is not finalized, or a
/// deallocation waits for scopes that are open), JITMEM_UNSUPPORTED with mappers that do not write
/// finalized memory in place: remote, LLVM's services, custom.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `scope` and `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_write_scope_begin(
    manager: *const jitmem_manager,
    allocation: u64,
    scope: *mut *mut jitmem_write_scope,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    // SAFETY: as the caller says.
    unsafe {
        with_manager(manager, error, |manager| {
            let begin = || manager.core().write_scope(allocation);
            handle::give_to(scope, || {
                begin().map(|scope| jitmem_write_scope(Mutex::new(scope)))
            })
        })
    }
}

/// Runs `body` on a scope.
///
/// # Safety
/// `scope` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
unsafe fn with_scope(
    scope: *const jitmem_write_scope,
    error: *mut *mut jitmem_error,
    body: impl FnOnce(&mut WriteScope) -> Result<()>,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let scope = unsafe { handle::get(scope) }?;
        // A wait might be for a thread that a forked child does not have.
        let mut scope = scope.0.try_lock().ok_or_else(|| {
            invalid_argument(
                "another thread uses this write scope at the moment; begin one for each",
            )
        })?;
        body(&mut scope)
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Stores 4, 8 or 16 bytes at an executor address at once, after all that this thread wrote before:
/// linked code sees all of the new value or all of the old one, in another process too.
///
/// `address` is a multiple of `size`; `value` has `size` bytes, in the order in which they shall lie in
/// memory. Linked code sees data at once. It runs new code when the scope has ended, if not before; code
/// that runs meanwhile must be right with the old value and with the new one.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL, another size, a misaligned address, or one outside the
/// allocation), JITMEM_INVALID_HANDLE, JITMEM_UNSUPPORTED (code or constants of this process's mprotect
/// mapper; 16 bytes on a processor that has no such store).
///
/// # Safety
/// `scope` is NULL or a handle of this library; `value` is NULL or has `size` bytes; `error` is NULL or
/// a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_write_scope_store(
    scope: *const jitmem_write_scope,
    address: u64,
    value: *const c_void,
    size: usize,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |scope: &mut WriteScope| {
        // SAFETY: as the caller says.
        let bytes = unsafe { input::array(value.cast::<u8>(), size, "value") }?;
        if let Ok(bytes) = bytes.try_into() {
            return scope.store_4(address, u32::from_ne_bytes(bytes));
        }
        if let Ok(bytes) = bytes.try_into() {
            return scope.store_8(address, u64::from_ne_bytes(bytes));
        }
        if let Ok(bytes) = bytes.try_into() {
            return scope.store_16(address, u128::from_ne_bytes(bytes));
        }
        Err(invalid_argument(format!(
            "store {size} bytes at {address:#x}: 4, 8 and 16 are stored at once"
        )))
    };
    // SAFETY: as the caller says.
    unsafe { with_scope(scope, error, body) }
}

/// Gives where `size` bytes at an executor address are written, for hosts that write themselves.
///
/// `*pointer` may be written until the scope ends. All of these bytes count as changed.
///
/// Errors: as jitmem_write_scope_store, for any size and alignment.
///
/// # Safety
/// `scope` is NULL or a handle of this library; `pointer` and `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_write_scope_pointer(
    scope: *const jitmem_write_scope,
    address: u64,
    size: u64,
    pointer: *mut *mut c_void,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |scope: &mut WriteScope| {
        input::required(pointer, "pointer")?;
        let writer = scope.pointer(address, size)?;
        // SAFETY: not NULL, and the caller says that it is a place for a pointer.
        unsafe { pointer.write(writer.cast()) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { with_scope(scope, error, body) }
}

/// Ends a scope. Where code was changed, every thread of this process then runs what was written before
/// the end: each core that runs one is made to serialize (membarrier, where the system has it). In
/// another process, cores see the change by themselves, at the latest with their next interrupt.
///
/// The handle is gone in any case. Deallocations that waited for the scope are done, in this thread, and
/// their callbacks run. Waits for the executor only where its processor needs cache maintenance. NULL
/// and a scope that has ended before: does nothing.
///
/// Errors: what the executor answers.
///
/// # Safety
/// `scope` is NULL or came from this library, and no other thread uses this handle; `error` is NULL or a
/// place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_write_scope_end(
    scope: *mut jitmem_write_scope,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    // SAFETY: as the caller says.
    let body = || match unsafe { handle::take(scope) } {
        Some(mut scope) => scope.0.get_mut().end_and_wait(),
        None => Ok(()),
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}
