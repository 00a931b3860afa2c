// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Groups: one set of linked code in several executors.

use super::callback::{Context, jitmem_destroy_fn};
use super::input::{self, Optional};
use super::mapper::jitmem_mapper;
use super::status::{jitmem_error, jitmem_status};
use super::transport::{jitmem_transport, transport_of};
use super::{guard, handle};
use crate::error::{Error, Result, invalid_argument};
use crate::mapper::{ExecutorService, GroupObserver, Mapper, NewExecutor};
use std::ffi::{CString, c_char, c_void};
use std::mem::{offset_of, size_of};

/// An executor that a group is to have. Set what is not chosen to zero.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_new_executor {
    /// The way to it, which the host calls into it by as well.
    pub transport: *const jitmem_transport,
    /// What errors and events call it; copied; NULL: its number.
    pub name: *const c_char,
    /// As jitmem_executor_options.service.
    pub service: u64,
    /// As jitmem_executor_options.instance.
    pub instance: u64,
    /// 0.
    pub reserved: [u64; 2],
}

/// What has happened to a group.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_group_change {
    /// An executor has joined: it has all that the others have, and what is finalized from then on.
    JITMEM_GROUP_JOINED = 1,
    /// The host has removed an executor.
    JITMEM_GROUP_REMOVED = 2,
    /// An executor has ended, or its connection has, for instance because it broke the protocol of that.
    JITMEM_GROUP_DIED = 3,
    /// An executor was put out: its answer was none, it refused a whole message, or it did not answer within a
    /// limit.
    JITMEM_GROUP_PUT_OUT = 4,
}

/// Something that has happened to a group.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_group_event {
    /// sizeof(jitmem_group_event) in this library.
    pub struct_size: usize,
    /// One of jitmem_group_change.
    pub change: u32,
    /// How many executors the group has now.
    pub executors: u32,
    /// The number of the executor.
    pub executor: u64,
    /// What the host calls it; its number if the host has said nothing.
    pub name: *const c_char,
    /// Why it has left; NULL if it has joined or the host has removed it.
    pub reason: *const c_char,
}

/// Learns of an event of a group, which is valid during the call.
#[allow(non_camel_case_types)]
pub type jitmem_group_event_fn =
    Option<unsafe extern "C" fn(ctx: *mut c_void, event: *const jitmem_group_event)>;

/// Who is told of a group's events. Set struct_size to sizeof(jitmem_group_observer).
///
/// `fn` runs in any thread and in several at a time, without a lock of the library's. The thread may be one
/// that reads answers, so it must not wait for an executor. After the last event `destroy` runs.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_group_observer {
    /// sizeof(jitmem_group_observer).
    pub struct_size: usize,
    /// Called with ctx for each event.
    pub r#fn: jitmem_group_event_fn,
    /// The host's own.
    pub ctx: *mut c_void,
    /// Frees ctx after the last event, or if the group can't be made; may be NULL. It does not run where
    /// struct_size is wrong.
    pub destroy: jitmem_destroy_fn,
}

/// What is known of an executor of a group.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_group_executor {
    /// sizeof(jitmem_group_executor) in this library.
    pub struct_size: usize,
    /// Its number, given once in a group.
    pub number: u64,
    /// What the host calls it; its number if the host has said nothing.
    pub name: *const c_char,
    /// Messages that were sent to it.
    pub messages: u64,
    /// Bytes of messages in both directions.
    pub bytes: u64,
}

/// Sees an executor of a group; what it sees is valid during the call.
#[allow(non_camel_case_types)]
pub type jitmem_group_executor_fn =
    Option<unsafe extern "C" fn(ctx: *mut c_void, executor: *const jitmem_group_executor)>;

const OBSERVER_LEAST: usize = offset_of!(jitmem_group_observer, destroy) + size_of::<usize>();

/// Text of ours for C, which may have come from elsewhere.
fn c_text(text: &str) -> CString {
    let bytes = text.bytes().filter(|byte| *byte != 0);
    CString::new(bytes.collect::<Vec<u8>>()).unwrap_or_default()
}

/// # Safety
/// `observer` is NULL or points to a struct of the size that it says, whose functions may be called with its
/// context from any thread.
unsafe fn observer(observer: *const jitmem_group_observer) -> Result<Option<GroupObserver>> {
    if observer.is_null() {
        return Ok(None);
    }
    // SAFETY: plain numbers and pointers; the caller vouches for the size.
    let given = unsafe { input::versioned(observer, OBSERVER_LEAST, "jitmem_group_observer") }?;
    let context = Context::new(given.ctx, given.destroy);
    let callback = given
        .r#fn
        .ok_or_else(|| invalid_argument("jitmem_group_observer.fn is NULL"))?;
    Ok(Some(Box::new(move |event| {
        let name = c_text(&event.name);
        let reason = event.reason.as_ref().map(|reason| c_text(reason.message()));
        let told = jitmem_group_event {
            struct_size: size_of::<jitmem_group_event>(),
            change: event.change as u32,
            executors: event.executors as u32,
            executor: event.executor,
            name: name.as_ptr(),
            reason: reason
                .as_ref()
                .map_or(std::ptr::null(), |reason| reason.as_ptr()),
        };
        // SAFETY: the host says that its function takes these.
        unsafe { callback(context.pointer(), &told) };
    })))
}

/// # Safety
/// The fields are NULL, or what jitmem_new_executor says of them.
unsafe fn executor(given: &jitmem_new_executor) -> Result<NewExecutor> {
    input::unused(given.reserved, "jitmem_new_executor.reserved")?;
    // SAFETY: as the caller says.
    let transport = unsafe { transport_of(given.transport) }?;
    // SAFETY: as the caller says.
    let name = unsafe { input::optional_text(given.name, "jitmem_new_executor.name") }?;
    let chosen = |number: u64| (number != 0).then_some(number);
    Ok(NewExecutor {
        transport,
        service: ExecutorService {
            open: chosen(given.service),
            instance: chosen(given.instance),
            instead_of: None,
        },
        name: name.map(str::to_owned),
    })
}

/// Makes a mapper over several executors on this machine, which are linked for once: code and constants are
/// one set of sealed pages that all map at the same addresses; writable data is private to each; actions run in
/// each, first to last, in all or in none. Calls into one go through its own transport.
///
/// Linked code refers to what an executor has by address, so all must have their programs and libraries at the
/// same addresses: fork them from one process, or start them without address-space randomization. The library
/// checks that of its own service; of other libraries the host must know it. Executors are numbered from 1.
///
/// An executor that ends, breaks the protocol, or does not answer within a limit of its transport leaves the
/// group, and the others go on; what is asked for when the last one has gone fails as with one executor. If its
/// process lives, it goes on showing what is linked at its addresses, and memory is used again without it: end the
/// process before anything is deallocated. A finalize action that fails in one executor is undone in the others, and the error names the executor. Memory
/// that was deallocated is used again when all executors have forgotten it. Segments of finalize lifetime stay
/// until deallocate, for executors that join later. jitmem_write_scope writes code and constants of all; writable
/// data can't be written so.
///
/// `observer` may be NULL. Waits for the executors, so it must not be called where their answers come from. On
/// success `*mapper` is the new mapper, to be freed with jitmem_mapper_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, no executor or a wrong struct_size; JITMEM_INVALID_HANDLE; what
/// jitmem_mapper_add_executor says of an executor, which the message names.
///
/// # Safety
/// `executors` is NULL or points to `count` structs with strings and handles of this library; `observer` is NULL
/// or a struct of the size that it says, whose functions may be called from any thread; `mapper` and `error` are
/// NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_group(
    executors: *const jitmem_new_executor,
    count: usize,
    observer: *const jitmem_group_observer,
    mapper: *mut *mut jitmem_mapper,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let told = unsafe { self::observer(observer) }?;
        // SAFETY: as the caller says.
        let given = unsafe { input::array(executors, count, "executors") }?;
        // SAFETY: as the caller says.
        let wanted = given.iter().map(|given| unsafe { executor(given) });
        let wanted = wanted.collect::<Result<Vec<NewExecutor>>>()?;
        let make = || Mapper::group(wanted, told).map(jitmem_mapper);
        // SAFETY: as the caller says.
        unsafe { handle::give_to(mapper, make) }
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Has an executor join a group while that is used, and waits until it has all that the others have: windows,
/// chunks, and what the finalize actions of live allocations do, in the order in which they were finalized.
/// Nothing is linked. `*number` (may be NULL) is its number in the group. Thread-safe; must not be called where
/// answers come from.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, and for a mapper that is no group; JITMEM_INVALID_HANDLE;
/// JITMEM_UNSUPPORTED if the executor has no service, if memfds can't be handed to it through a socket, or if its
/// program lies at other addresses than the group's; JITMEM_DISCONNECTED, JITMEM_TIMED_OUT; that a window of the
/// group is not free there; what a finalize action says there. The session with it is ended then.
///
/// # Safety
/// `mapper` is NULL or a handle of this library; `executor` is NULL or a struct with a string and a handle of
/// this library; `number` and `error` are NULL or places for a number and a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_add_executor(
    mapper: *const jitmem_mapper,
    executor: *const jitmem_new_executor,
    number: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let jitmem_mapper(group) = unsafe { handle::get(mapper) }?;
        input::required(executor, "executor")?;
        // SAFETY: as the caller says.
        let number = unsafe { Optional::new(number, "number") }?;
        // SAFETY: as the caller says; it is not NULL.
        let wanted = unsafe { self::executor(&*executor) }?;
        number.set(group.add_executor(wanted)?);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Removes an executor from a group: its deallocation actions run and it gives the group's memory back. Waits for
/// that, for jitmem_limits.close at most: end the process of one that takes longer before anything is deallocated.
/// Must not be called where answers come from. Calls into it must have returned. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for a mapper that is no group, a number that none of its executors has, and
/// for the last one; JITMEM_INVALID_HANDLE.
///
/// # Safety
/// `mapper` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_remove_executor(
    mapper: *const jitmem_mapper,
    number: u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let jitmem_mapper(group) = unsafe { handle::get(mapper) }?;
        group.remove_executor(number)
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Calls `see` in this thread for each executor that a group has now, without a lock. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, and for a mapper that is no group; JITMEM_INVALID_HANDLE.
///
/// # Safety
/// `mapper` is NULL or a handle of this library; `see` may be called with `ctx`; `error` is NULL or a place for a
/// pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_executors(
    mapper: *const jitmem_mapper,
    see: jitmem_group_executor_fn,
    ctx: *mut c_void,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let jitmem_mapper(group) = unsafe { handle::get(mapper) }?;
        let see = see.ok_or_else(|| invalid_argument("see is NULL"))?;
        for executor in group.executors()? {
            let name = c_text(&executor.name);
            let seen = jitmem_group_executor {
                struct_size: size_of::<jitmem_group_executor>(),
                number: executor.number,
                name: name.as_ptr(),
                messages: executor.messages,
                bytes: executor.bytes,
            };
            // SAFETY: the host's function takes a context and what lives through the call.
            unsafe { see(ctx, &seen) };
        }
        Ok::<(), Error>(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}
