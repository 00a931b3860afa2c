// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_allocation_request`: allocate with a tag and names.

use super::allocate::{self, jitmem_allocated_fn};
use super::callback::jitmem_destroy_fn;
use super::input;
use super::manager::{self, jitmem_manager, now};
use super::request::{self, jitmem_segment, jitmem_segment_memory};
use super::status::{jitmem_error, jitmem_status};
use crate::error::Result;
use crate::manager::{Dylib, LONGEST_NAME, Label, Manager, Name, Request, heap_is_full};
use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};

/// A request for memory that says more than the arguments of jitmem_manager_allocate. Set struct_size
/// to sizeof(jitmem_allocation_request) and the rest to zero for the defaults.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_allocation_request {
    /// sizeof(jitmem_allocation_request).
    pub struct_size: usize,
    /// The segments of one graph; may be NULL if segment_count is 0.
    pub segments: *const jitmem_segment,
    /// How many there are.
    pub segment_count: usize,
    /// The graph's JITDylib, as for jitmem_manager_allocate; 0: none.
    pub dylib: u64,
    /// A number that means something to the host, for its events, errors and usage. 0: none.
    pub tag: u64,
    /// A name, for instance that of the graph or function: UTF-8, at most 4,096 bytes, copied. NULL:
    /// none.
    pub name: *const c_char,
    /// The name of the JITDylib, likewise.
    pub dylib_name: *const c_char,
}

const LEAST: usize = offset_of!(jitmem_allocation_request, dylib_name) + size_of::<*const c_char>();

/// # Safety
/// `pointer` is NULL or a NUL-terminated string.
pub(super) unsafe fn name(pointer: *const c_char, what: &str) -> Result<Option<Name>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller says.
    let text = unsafe { input::short_text(pointer, LONGEST_NAME, what) }?;
    let copy = Name::copied(text).map_err(|_| heap_is_full())?;
    Ok(Some(copy))
}

/// # Safety
/// As [`name`], for all that the request points to; its segments are as many as it says.
unsafe fn checked(manager: &Manager, given: &jitmem_allocation_request) -> Result<Request> {
    let (segments, count, dylib) = (given.segments, given.segment_count, given.dylib);
    // SAFETY: as the caller says.
    let request = unsafe { request::request(manager, segments, count, dylib) };
    let label = Label::new(Dylib(dylib)).tag(given.tag);
    // SAFETY: as the caller says.
    let own = unsafe { name(given.name, "name") }?;
    // SAFETY: as the caller says.
    let of_dylib = unsafe { name(given.dylib_name, "dylib_name") }?;
    manager.core().labelled(request, label.names(own, of_dylib))
}

/// # Safety
/// `request` is NULL or points to a struct of the size that it says.
unsafe fn read(request: *const jitmem_allocation_request) -> Result<jitmem_allocation_request> {
    // SAFETY: plain numbers and pointers; the caller vouches for the size.
    unsafe { input::versioned(request, LEAST, "jitmem_allocation_request") }
}

/// jitmem_manager_allocate for an allocation with a tag or a name. The manager keeps a copy of them for as
/// long as the allocation is there, in a table that it would not have otherwise; errors about the
/// allocation show them, and events and jitmem_manager_describe have them.
///
/// Errors: as jitmem_manager_allocate; JITMEM_INVALID_ARGUMENT for names that are too long or not UTF-8.
///
/// # Safety
/// As jitmem_manager_allocate; `request` is NULL or points to a struct of the size that it says, and its names
/// are NULL or NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_request(
    manager: *const jitmem_manager,
    request: *const jitmem_allocation_request,
    memory: *mut jitmem_segment_memory,
    allocation: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        // SAFETY: as the caller says.
        let given = unsafe { read(request) }?;
        // SAFETY: as the caller says.
        let request = unsafe { checked(manager, &given) }?;
        let allocate = || manager.core().allocate_and_wait(request);
        // SAFETY: as the caller says.
        unsafe { allocate::answer(manager, given.segment_count, memory, allocation, allocate) }
    };
    // SAFETY: as the caller says.
    unsafe { manager::with_manager(manager, error, body) }
}

/// jitmem_manager_request without waiting: `fn` receives the allocation. `request` is read during this
/// call only.
///
/// # Safety
/// As jitmem_manager_request; `fn` and `destroy` may be called with `ctx`, from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_request_async(
    manager: *const jitmem_manager,
    request: *const jitmem_allocation_request,
    r#fn: jitmem_allocated_fn,
    ctx: *mut c_void,
    destroy: jitmem_destroy_fn,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let check = |manager: &Manager| {
        // SAFETY: as the caller says.
        let given = unsafe { read(request) }?;
        // SAFETY: as the caller says.
        unsafe { checked(manager, &given) }
    };
    // SAFETY: as the caller says.
    unsafe { allocate::allocate_async(manager, check, (r#fn, ctx, destroy), error) }
}

/// jitmem_manager_request where that needs no waiting; JITMEM_WOULD_BLOCK, without an error object,
/// where it does: nothing is done then, and jitmem_manager_request_async will do it.
///
/// # Safety
/// As jitmem_manager_request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_try_request(
    manager: *const jitmem_manager,
    request: *const jitmem_allocation_request,
    memory: *mut jitmem_segment_memory,
    allocation: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        // SAFETY: as the caller says.
        let given = unsafe { read(request) }?;
        // SAFETY: as the caller says.
        let request = unsafe { checked(manager, &given) }?;
        let allocate = || now(manager.core().try_allocate(&request));
        // SAFETY: as the caller says.
        unsafe { allocate::answer(manager, given.segment_count, memory, allocation, allocate) }
    };
    // SAFETY: as the caller says.
    unsafe { manager::with_manager(manager, error, body) }
}
