// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_manager`: allocate, finalize, abandon, deallocate.

use super::callback::{Context, jitmem_destroy_fn};
use super::handle::{self, Handle};
use super::mapper::jitmem_mapper;
use super::options::{self, jitmem_manager_options};
use super::request::{self, jitmem_action, jitmem_segment, jitmem_segment_memory};
use super::status::{self, jitmem_error, jitmem_status};
use super::{guard, input};
use crate::completion::{Completion, wait};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::manager::{Allocated, Manager, Request};
use crate::sys::heap::Watch;
use smallvec::SmallVec;
use std::ffi::{CString, c_char, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

/// Divides what a mapper reserved among many link graphs. All functions on it are thread-safe and
/// may be called from inside its callbacks.
#[allow(non_camel_case_types)]
pub struct jitmem_manager {
    manager: Manager,
    mapper_name: CString,
    fallback_reason: Option<CString>,
    poisoned: AtomicBool,
}

static MANAGERS: handle::Pool<jitmem_manager> = handle::Pool::new(handle::Kind::Manager);

impl Handle for jitmem_manager {
    fn pool() -> &'static handle::Pool<Self> {
        &MANAGERS
    }
    const NAME: &'static str = "jitmem_manager";
}

fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

impl jitmem_manager {
    fn new(manager: Manager) -> jitmem_manager {
        let manager = manager.announced();
        let stats = manager.stats();
        jitmem_manager {
            mapper_name: c_string(stats.mapper_name),
            fallback_reason: stats.fallback.as_deref().map(c_string),
            poisoned: AtomicBool::new(false),
            manager,
        }
    }

    pub(super) fn manager(&self) -> &Manager {
        &self.manager
    }

    pub(super) fn mapper_name(&self) -> *const c_char {
        self.mapper_name.as_ptr()
    }

    pub(super) fn fallback_reason(&self) -> *const c_char {
        self.fallback_reason
            .as_ref()
            .map_or(std::ptr::null(), |reason| reason.as_ptr())
    }
}

/// The answer of a call that declines to wait. No text is made: it happens often.
pub(super) fn now<T>(answer: Option<Result<T>>) -> Result<T> {
    answer.unwrap_or_else(|| Err(Error::new(Status::WouldBlock, String::new())))
}

/// Runs `body` on a manager; after a panic the manager refuses further work.
///
/// A callback inside `body` may free the manager, so nothing here looks at it afterwards without
/// asking again whether it is there.
///
/// # Safety
/// `manager` is NULL or a handle of this library.
unsafe fn run(
    manager: *const jitmem_manager,
    body: impl FnOnce(&Manager) -> Result<()>,
) -> Result<()> {
    // SAFETY: as the caller says.
    let handle = unsafe { handle::get(manager) }?;
    if handle.poisoned.load(Ordering::Relaxed) {
        return Err(Error::new(
            Status::Internal,
            "this manager refuses further work since a defect in jitmem was reported",
        ));
    }
    guard::catch(|| body(&handle.manager)).unwrap_or_else(|panic| {
        // SAFETY: as the caller says.
        if let Ok(handle) = unsafe { handle::get(manager) } {
            handle.poisoned.store(true, Ordering::Relaxed);
        }
        Err(panic)
    })
}

/// [`run`] for a call that answers with its status.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
pub(super) unsafe fn with_manager(
    manager: *const jitmem_manager,
    error: *mut *mut jitmem_error,
    body: impl FnOnce(&Manager) -> Result<()>,
) -> jitmem_status {
    // SAFETY: as the caller says.
    unsafe { guard::call(error, || run(manager, body)) }
}

/// [`run`] for a request whose answer goes to a callback. `accept` checks the arguments and makes
/// the completion; from then on the callback hears of every failure, and not even a panic in
/// `submit` is a refusal.
///
/// # Safety
/// As [`with_manager`].
pub(super) unsafe fn with_completion<T>(
    manager: *const jitmem_manager,
    error: *mut *mut jitmem_error,
    accept: impl FnOnce(&Manager) -> Result<T>,
    submit: impl FnOnce(&Manager, T),
) -> jitmem_status {
    let body = || {
        let mut accepted = false;
        // SAFETY: as the caller says.
        let result = unsafe {
            run(manager, |manager| {
                let request = accept(manager)?;
                accepted = true;
                submit(manager, request);
                Ok(())
            })
        };
        if accepted { Ok(()) } else { result }
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

// ---- creating ----

/// Lets look-ups tell the handle of a manager.
///
/// # Safety
/// `manager` is not freed meanwhile.
unsafe fn tell_handle(manager: *const jitmem_manager) {
    // SAFETY: as the caller says.
    if let Some(handle) = unsafe { handle::live(manager) } {
        handle.manager.core().set_host_handle(manager.addr());
    }
}

/// Receives a new manager, which it owns, or an error, which is valid during the call.
#[allow(non_camel_case_types)]
pub type jitmem_created_fn = Option<
    unsafe extern "C" fn(
        ctx: *mut c_void,
        manager: *mut jitmem_manager,
        error: *const jitmem_error,
    ),
>;

/// Makes a manager over a mapper and reserves its first window.
///
/// `options` may be NULL for the defaults. On success `*manager` is the new manager, to be freed
/// with jitmem_manager_free. Thread-safe. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL or bad options, JITMEM_INVALID_HANDLE for a freed
/// mapper, JITMEM_OUT_OF_MEMORY where no address space is to be had, what the mapper answers.
///
/// # Safety
/// `mapper` is NULL or a handle of this library; `options` is NULL or points to a struct of the
/// size that it says; `manager` and `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_create(
    mapper: *const jitmem_mapper,
    options: *const jitmem_manager_options,
    manager: *mut *mut jitmem_manager,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let options = unsafe { options::chosen(options) }?;
        // SAFETY: as the caller says.
        let mapper = unsafe { handle::get(mapper) }?;
        let make = || wait(|done| Manager::create(&mapper.0, options, done));
        // SAFETY: as the caller says.
        unsafe { handle::give_to(manager, || make().map(jitmem_manager::new)) }?;
        // SAFETY: a handle was just written there, which the caller does not know yet.
        unsafe { tell_handle(manager.read()) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// jitmem_manager_create without waiting: `fn` receives the manager.
///
/// # Safety
/// As jitmem_manager_create; `fn` and `destroy` may be called with `ctx`, from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_create_async(
    mapper: *const jitmem_mapper,
    options: *const jitmem_manager_options,
    r#fn: jitmem_created_fn,
    ctx: *mut c_void,
    destroy: jitmem_destroy_fn,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let context = Context::new(ctx, destroy);
    let body = || {
        // SAFETY: as the caller says.
        let options = unsafe { options::chosen(options) }?;
        // SAFETY: as the caller says.
        let mapper = unsafe { handle::get(mapper) }?;
        let callback = r#fn.ok_or_else(|| invalid_argument("fn is NULL"))?;
        let done = Completion::for_host(move |answer: Result<Manager>| {
            let made = answer.and_then(|manager| handle::give(jitmem_manager::new(manager)));
            let (manager, error) = match made {
                Ok(manager) => {
                    // SAFETY: the host does not know it yet.
                    unsafe { tell_handle(manager) };
                    (manager, None)
                }
                Err(error) => (std::ptr::null_mut(), Some(error)),
            };
            lend(error, |error| {
                // SAFETY: the host says that its function takes these.
                unsafe { callback(context.pointer(), manager, error) }
            });
        });
        // The completion is made: a panic is answered through it and is no refusal.
        let _ = guard::catch(|| Manager::create(&mapper.0, options, done));
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Changes the quota of a manager: the most bytes handed out at a time, rounding included; 0: no limit.
/// It may be below what is in use: nothing more is handed out then until enough is deallocated.
/// Thread-safe. Never waits.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_set_quota(
    manager: *const jitmem_manager,
    quota: u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| manager.core().set_quota((quota != 0).then_some(quota));
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}

/// Lends an error object to a callback.
pub(super) fn lend(error: Option<Error>, callback: impl FnOnce(*const jitmem_error)) {
    match error {
        None => callback(std::ptr::null()),
        Some(error) => {
            let object = status::object(error);
            callback(object);
            // SAFETY: made above; the callback only borrowed it.
            drop(unsafe { handle::take(object) });
        }
    }
}

/// Frees a manager: what is still finalized goes last to first with its deallocation actions,
/// what is in flight is abandoned, and the windows are released. No code of it may run any more.
/// NULL and a manager that was freed before: does nothing.
///
/// # Safety
/// `manager` is NULL or came from this library, and no other thread uses this handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_free(manager: *mut jitmem_manager) {
    // SAFETY: as the caller says.
    unsafe { guard::free(manager) }
}

// ---- allocating ----

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
/// from here to jitmem_manager_deallocate; never 0 and never all ones. `count` may be 0.
/// Thread-safe. Waits for the mapper where a window must be reserved.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL, sizes that overflow, alignment no power of two, unknown or
/// writable and executable protection, unknown lifetime), JITMEM_INVALID_HANDLE (freed manager, a
/// forked child), JITMEM_WINDOW_FULL, JITMEM_QUOTA_EXCEEDED, JITMEM_OUT_OF_MEMORY, JITMEM_DENIED,
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

// ---- finalizing and the end ----

/// Learns how a request ended: `error` is NULL for success, else valid during the call.
#[allow(non_camel_case_types)]
pub type jitmem_done_fn =
    Option<unsafe extern "C" fn(ctx: *mut c_void, error: *const jitmem_error)>;

pub(super) fn done<T: Send + 'static>(
    callback: jitmem_done_fn,
    context: Context,
) -> Result<Completion<T>> {
    let callback = callback.ok_or_else(|| invalid_argument("fn is NULL"))?;
    Ok(Completion::for_host(move |answer: Result<T>| {
        lend(answer.err(), |error| {
            // SAFETY: the host says that its function takes these.
            unsafe { callback(context.pointer(), error) }
        });
    }))
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
    let context = Context::new(ctx, destroy);
    let accept = |_: &Manager| {
        // SAFETY: as the caller says.
        let actions = unsafe { request::actions(actions, count) }?;
        Ok((actions, done(r#fn, context)?))
    };
    let submit =
        |manager: &Manager, (actions, done)| manager.core().finalize(allocation, actions, done);
    // SAFETY: as the caller says.
    unsafe { with_completion(manager, error, accept, submit) }
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
    let context = Context::new(ctx, destroy);
    let accept = |_: &Manager| done(r#fn, context);
    let submit = |manager: &Manager, done| manager.core().abandon(allocation, done);
    // SAFETY: as the caller says.
    unsafe { with_completion(manager, error, accept, submit) }
}

/// The allocations that go together.
///
/// # Safety
/// `allocations` is NULL or has `count` entries that stay as they are during `'a`.
#[inline]
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
    let context = Context::new(ctx, destroy);
    let accept = |_: &Manager| {
        // SAFETY: as the caller says.
        let handles = unsafe { batch(allocations, count) }?;
        Ok((handles, done(r#fn, context)?))
    };
    let submit = |manager: &Manager, (handles, done): (&[u64], _)| {
        manager.core().deallocate(handles, done);
    };
    // SAFETY: as the caller says.
    unsafe { with_completion(manager, error, accept, submit) }
}

/// Gives everything back to the system that holds nothing: empty chunks, pages inside chunks, and
/// windows. For hosts that know of memory pressure, or that will be idle; a manager gives back most of
/// it by itself. If `bytes` is not NULL it is set to how many bytes of memory were given back.
/// Thread-safe.
///
/// Errors: JITMEM_INVALID_HANDLE (freed, or a forked child); if nothing could be given back, what the
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
        let given_back = manager.core().trim()?;
        if !bytes.is_null() {
            // SAFETY: as the caller says.
            unsafe { bytes.write(given_back) };
        }
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}
