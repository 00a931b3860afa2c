// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Allocating: memory for the segments of a graph, and writing it.

use super::callback::{Context, jitmem_destroy_fn};
use super::input;
use super::manager::{jitmem_manager, lend, now, with_completion, with_manager};
use super::request::{self, jitmem_segment, jitmem_segment_memory};
use super::status::{jitmem_error, jitmem_status};
use crate::completion::Completion;
use crate::error::{Result, invalid_argument};
use crate::manager::{Allocated, Manager, Request};
use crate::sys::heap::Watch;
use smallvec::SmallVec;
use std::ffi::c_void;

/// Checks the places for an allocation, allocates, and fills them. What was allocated while the heap
/// was exhausted is abandoned: what was made for it would keep the reserve for long.
///
/// # Safety
/// `memory` is NULL or has `count` entries; `allocation` is NULL or a place for a handle.
pub(super) unsafe fn answer(
    manager: &Manager,
    count: usize,
    memory: *mut jitmem_segment_memory,
    allocation: *mut u64,
    allocate: impl FnOnce() -> Result<Allocated>,
) -> Result<()> {
    input::required(allocation, "allocation")?;
    if count > 0 {
        input::required(memory, "memory")?;
    }
    let heap = Watch::begin()?;
    let allocated = allocate()?;
    if let Err(error) = heap.check("allocate") {
        manager
            .core()
            .abandon(allocated.handle, Completion::new(drop));
        return Err(error);
    }
    for (index, segment) in allocated.segments.iter().enumerate() {
        // SAFETY: not NULL, and the caller says that it has `count` entries, one per segment.
        unsafe { memory.add(index).write(segment.into()) };
    }
    // SAFETY: not NULL, and the caller says that it is a place for a handle.
    unsafe { allocation.write(allocated.handle) };
    Ok(())
}

/// Receives an allocation: its handle and one entry of `memory` per segment, valid during the
/// call; or an error, valid during the call, and then `allocation` is 0 and `memory` NULL.
#[allow(non_camel_case_types)]
pub type jitmem_allocated_fn = Option<
    unsafe extern "C" fn(
        ctx: *mut c_void,
        allocation: u64,
        memory: *const jitmem_segment_memory,
        count: usize,
        error: *const jitmem_error,
    ),
>;

/// Allocates memory for the segments of one graph.
///
/// `dylib` identifies the graph's JITDylib (its address will do; 0: none): everything of one
/// JITDylib lies in one window. `memory` receives one entry per segment, `*allocation` the handle,
/// from here to jitmem_manager_deallocate; never 0 and never all ones. `count` is 0 to 256.
/// Thread-safe. Waits for the mapper where a window must be reserved.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL, sizes that overflow, alignment no power of two, unknown or
/// writable and executable protection, unknown lifetime), JITMEM_INVALID_HANDLE (freed manager; in a
/// forked child, one over an executor), JITMEM_WINDOW_FULL, JITMEM_QUOTA_EXCEEDED, JITMEM_OUT_OF_MEMORY, JITMEM_DENIED,
/// JITMEM_MAPPER_FAILED. Nothing is allocated then.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `segments` and `memory` are NULL or arrays of
/// `count`; `allocation` and `error` are NULL or places to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_allocate(
    manager: *const jitmem_manager,
    segments: *const jitmem_segment,
    count: usize,
    dylib: u64,
    memory: *mut jitmem_segment_memory,
    allocation: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        // SAFETY: as the caller says.
        let request = unsafe { request::request(manager, segments, count, dylib) }?;
        let allocate = || manager.core().allocate_and_wait(request);
        // SAFETY: as the caller says.
        unsafe { answer(manager, count, memory, allocation, allocate) }
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}

/// jitmem_manager_allocate without waiting: `fn` receives the allocation. `segments` is read during
/// this call only.
///
/// # Safety
/// As jitmem_manager_allocate; `fn` and `destroy` may be called with `ctx`, from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_allocate_async(
    manager: *const jitmem_manager,
    segments: *const jitmem_segment,
    count: usize,
    dylib: u64,
    r#fn: jitmem_allocated_fn,
    ctx: *mut c_void,
    destroy: jitmem_destroy_fn,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let check = |manager: &Manager| {
        // SAFETY: as the caller says.
        unsafe { request::request(manager, segments, count, dylib) }
    };
    // SAFETY: as the caller says.
    unsafe { allocate_async(manager, check, (r#fn, ctx, destroy), error) }
}

/// Allocates what `check` makes of the arguments; the callback receives the allocation.
///
/// # Safety
/// As [`with_manager`]; both functions may be called with the context, from any thread.
pub(super) unsafe fn allocate_async(
    manager: *const jitmem_manager,
    check: impl FnOnce(&Manager) -> Result<Request>,
    (callback, ctx, destroy): (jitmem_allocated_fn, *mut c_void, jitmem_destroy_fn),
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let context = Context::new(ctx, destroy);
    let accept = |manager: &Manager| {
        let request = check(manager)?;
        let callback = callback.ok_or_else(|| invalid_argument("fn is NULL"))?;
        let done = Completion::for_host(move |answer: Result<Allocated>| match answer {
            Ok(Allocated { handle, segments }) => {
                let memory: SmallVec<[_; 4]> =
                    segments.iter().map(jitmem_segment_memory::from).collect();
                let (entries, count, none) = (memory.as_ptr(), memory.len(), std::ptr::null());
                // SAFETY: the host says that its function takes these.
                unsafe { callback(context.pointer(), handle, entries, count, none) }
            }
            Err(error) => lend(Some(error), |error| {
                // SAFETY: the host says that its function takes these.
                unsafe { callback(context.pointer(), 0, std::ptr::null(), 0, error) }
            }),
        });
        Ok((request, done))
    };
    let submit = |manager: &Manager, (request, done)| manager.core().allocate(request, done);
    // SAFETY: as the caller says.
    unsafe { with_completion(manager, error, accept, submit) }
}

/// jitmem_manager_allocate where that needs no waiting; JITMEM_WOULD_BLOCK, without an error object,
/// where it does: nothing is done then, and jitmem_manager_allocate_async will do it.
///
/// # Safety
/// As jitmem_manager_allocate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_try_allocate(
    manager: *const jitmem_manager,
    segments: *const jitmem_segment,
    count: usize,
    dylib: u64,
    memory: *mut jitmem_segment_memory,
    allocation: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        // SAFETY: as the caller says.
        let request = unsafe { request::request(manager, segments, count, dylib) }?;
        // SAFETY: as the caller says.
        unsafe {
            answer(manager, count, memory, allocation, || {
                now(manager.core().try_allocate(&request))
            })
        }
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}

/// Writes `size` bytes at `offset` of a segment's content, with all checks: for hosts that would
/// rather not write through working_memory. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL or bytes outside the content, JITMEM_INVALID_HANDLE for
/// an allocation that is not in flight.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `bytes` is NULL or has `size` bytes; `error` is
/// NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_write(
    manager: *const jitmem_manager,
    allocation: u64,
    segment: usize,
    offset: u64,
    bytes: *const c_void,
    size: usize,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        // SAFETY: as the caller says.
        let bytes = unsafe { input::array(bytes.cast::<u8>(), size, "bytes") }?;
        manager.core().write(allocation, segment, offset, bytes)
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}
