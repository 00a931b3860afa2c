// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How the unwinder finds the frames of linked code.

use super::guard;
use super::input;
use super::manager::{jitmem_manager, with_manager};
use super::request::{jitmem_action, jitmem_wrapper_call};
use super::status::{jitmem_error, jitmem_status};
use crate::error::{Error, Status};
use crate::executor::eh_frame_args;
use crate::manager::Manager;
use crate::mapper::Registration;
use crate::unwind::unwinder;
use std::ffi::c_void;

/// Makes an action for a finalize of this manager, by which the executor's unwinder finds the frames that an
/// `.eh_frame` section describes, until the allocation is deallocated: exceptions pass through its code, and
/// backtraces show it. Where that unwinder asks an index (jitmem_stats.frames_found_by) and content is shared, finalize and
/// deallocate need no message for it.
///
/// The section has `size` bytes at executor address `start` and ends with a zero length inside or behind them, as
/// linkers lay it out. It is best a read-only part of the allocation that has the code. `args` is a place for
/// two numbers, which `*action` points to.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE; JITMEM_UNSUPPORTED where it is not known what
/// registers frames in the executor. Thread-safe. Waits for nothing.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `args` is NULL or a place for two numbers; `action` is NULL or a place for an
/// action; `error` is NULL or a place for a pointer. When the action is run such a section is there, and it stays as it is
/// until the allocation is deallocated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_eh_frame_action(
    manager: *const jitmem_manager,
    start: u64,
    size: u64,
    args: *mut u64,
    action: *mut jitmem_action,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        input::required(args, "args")?;
        input::required(action, "action")?;
        let registration = manager.core().registration()?;
        let section = eh_frame_args(start, size);
        assert_eq!(section.len(), 2 * size_of::<u64>());
        let call = |function: u64| jitmem_wrapper_call {
            function,
            args: args.cast(),
            args_size: 2 * size_of::<u64>(),
        };
        // SAFETY: the caller says that both are such places.
        unsafe {
            args.cast::<u8>()
                .copy_from_nonoverlapping(section.as_ptr(), section.len());
            action.write(jitmem_action {
                finalize: call(registration.register),
                dealloc: call(registration.deregister),
                reserved: [0; 2],
            });
        }
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}

/// Gives the addresses of the wrapper functions of this process by which its indexes know an `.eh_frame` section and
/// forget it, for linkers that make actions themselves; each takes the section's range (LLVM's
/// `SPSExecutorAddrRange`).
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL; JITMEM_UNSUPPORTED where the unwinder of this process asks for no index: the
/// program is not linked with jitmem/unwind.c, or the unwinder is not that of libgcc_s. Thread-safe.
///
/// # Safety
/// `register_` and `deregister` are NULL or places for numbers; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_eh_frame_functions(
    register_: *mut u64,
    deregister: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        input::required(register_, "register_")?;
        input::required(deregister, "deregister")?;
        if !unwinder::asked() {
            return Err(Error::new(
                Status::Unsupported,
                "index eh-frames: the unwinder of this process asks for no index",
            )
            .remedy("link the program with jitmem/unwind.c (CMake: jitmem::unwind) and libgcc_s"));
        }
        let own = Registration::own();
        // SAFETY: the caller says that both are such places.
        unsafe {
            register_.write(own.register);
            deregister.write(own.deregister);
        }
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// The frame description of the function of linked code that `pc` is in, by the indexes of this process; NULL for all else,
/// and for NULL. `bases` is libgcc's `struct dwarf_eh_bases`, three pointers, and is written where something is found. It is
/// what jitmem/unwind.c calls for libgcc's `_Unwind_Find_FDE`. Async-signal-safe and lock-free.
///
/// # Safety
/// `bases` is NULL or a place for three pointers. What has been linked is there while its code is unwound.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_find_fde(pc: *const c_void, bases: *mut c_void) -> *const c_void {
    if pc.is_null() || bases.is_null() {
        return std::ptr::null();
    }
    // SAFETY: as the caller says.
    unsafe { unwinder::find_fde(pc, bases.cast()) }
}
