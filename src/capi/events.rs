// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_event`: what a manager tells its host of, and what it knows of an allocation.

use super::callback::{Context, jitmem_destroy_fn};
use super::input;
use super::manager::{jitmem_manager, with_manager};
use super::status::{jitmem_error, jitmem_status};
use crate::error::{Result, invalid_argument};
use crate::group::AllocGroup;
use crate::manager::{AllocatedSegment, Allocation, AllocationHandle, Event, EventKind, Manager};
use crate::manager::{Name, Observer};
use crate::page::AddressRange;
use smallvec::SmallVec;
use std::ffi::{CString, c_char, c_void};
use std::mem::{offset_of, size_of};

/// Memory of one segment of a jitmem_allocation.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_allocation_segment {
    /// First executor address.
    pub address: u64,
    /// Bytes, content and zero-fill.
    pub size: u64,
    /// Its place in the request.
    pub index: u32,
    /// Bits of jitmem_protection.
    pub protection: u32,
    /// One of jitmem_lifetime.
    pub lifetime: u32,
    /// 0: for fields of later versions.
    pub reserved: [u32; 5],
}

impl From<&AllocatedSegment> for jitmem_allocation_segment {
    fn from(segment: &AllocatedSegment) -> jitmem_allocation_segment {
        jitmem_allocation_segment {
            address: segment.range.start(),
            size: segment.range.size(),
            index: segment.index as u32, // requests are checked
            protection: segment.group.protection.bits(),
            lifetime: segment.group.lifetime as u32,
            reserved: [0; 5],
        }
    }
}

/// What a manager knows of an allocation. All that it points to is valid for as long as it is itself.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_allocation {
    /// sizeof(jitmem_allocation) in this library.
    pub struct_size: usize,
    /// Its handle.
    pub allocation: u64,
    /// The JITDylib that it was allocated for; 0: none.
    pub dylib: u64,
    /// The host's tag; 0: none.
    pub tag: u64,
    /// Its name; NULL: none.
    pub name: *const c_char,
    /// The name of its JITDylib; NULL: none.
    pub dylib_name: *const c_char,
    /// Its segments, without those that have no memory: in JITMEM_EVENT_FINALIZED, _DEALLOCATED
    /// without those of finalize lifetime, which have served.
    pub segments: *const jitmem_allocation_segment,
    /// How many there are.
    pub segment_count: usize,
}

/// Calls `see` with the C form of an allocation.
fn lend(it: &Allocation, segments: &[AllocatedSegment], see: impl FnOnce(&jitmem_allocation)) {
    let segments: SmallVec<[jitmem_allocation_segment; 8]> =
        segments.iter().map(Into::into).collect();
    let text = |name: Option<&Name>| name.map_or(std::ptr::null(), Name::as_ptr);
    see(&jitmem_allocation {
        struct_size: size_of::<jitmem_allocation>(),
        allocation: it.handle().0,
        dylib: it.dylib().0,
        tag: it.tag(),
        name: text(it.label().and_then(|label| label.own_name())),
        dylib_name: text(it.label().and_then(|label| label.name_of_dylib())),
        segments: segments.as_ptr(),
        segment_count: segments.len(),
    });
}

/// What a jitmem_event tells of.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_event_kind {
    /// Address space for a window was reserved.
    JITMEM_EVENT_WINDOW_RESERVED = 1,
    /// A window is being given back, with all that is in it.
    JITMEM_EVENT_WINDOW_RELEASED = 2,
    /// A chunk of a window has memory now.
    JITMEM_EVENT_CHUNK_MADE = 3,
    /// The memory of a chunk was given back; its addresses are free for another chunk.
    JITMEM_EVENT_CHUNK_RECLAIMED = 4,
    /// Memory was allocated; its content is still to be written.
    JITMEM_EVENT_ALLOCATED = 5,
    /// Content is in place and finalize actions have run; the answer is still to be given.
    JITMEM_EVENT_FINALIZED = 6,
    /// A finalized allocation is being deallocated: its deallocation actions are still to be run,
    /// and its memory is still its own.
    JITMEM_EVENT_DEALLOCATED = 7,
    /// An allocation goes that was not finalized: it was abandoned, or its finalize failed.
    JITMEM_EVENT_ABANDONED = 8,
    /// This process has forked; told in the thread that did.
    JITMEM_EVENT_FORKED_PARENT = 9,
    /// This process is the child of a fork, with a copy of all that the parent has. It has one
    /// thread, in which this is told before `fork` returns.
    JITMEM_EVENT_FORKED_CHILD = 10,
    /// Another process has taken the place of the one that ran the executor's linked code (`jitmem-executor
    /// --supervise`): code, constants and data are at the same addresses, data as it was finalized, and finalize
    /// actions have run again. Told in a thread of jitmem's to each manager of the executor, perhaps before or
    /// after the errors of calls that were pending; where processes end one after the other before their actions
    /// have run, once for all of them. Only where the session has a socket of its own.
    JITMEM_EVENT_EXECUTOR_RESTARTED = 11,
}

/// Something that happened in a manager.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_event {
    /// sizeof(jitmem_event) in this library.
    pub struct_size: usize,
    /// Grows by one with each event of a manager, from 1 on.
    pub sequence: u64,
    /// Nanoseconds of CLOCK_MONOTONIC when it happened; 0 unless jitmem_observer.times is 1.
    pub time: u64,
    /// One of jitmem_event_kind.
    pub kind: u32,
    /// Bits of jitmem_protection for a chunk; else 0.
    pub protection: u32,
    /// First executor address of a window or chunk; else 0.
    pub address: u64,
    /// Bytes of a window or chunk; else 0.
    pub size: u64,
    /// The allocation; NULL for windows, chunks, forks and restarts.
    pub allocation: *const jitmem_allocation,
    /// JITMEM_EVENT_EXECUTOR_RESTARTED: how often that has happened since the executor began to serve; else 0.
    pub restarts: u64,
    /// JITMEM_EVENT_EXECUTOR_RESTARTED: what has ended the process before, in words; else NULL.
    pub reason: *const c_char,
}

/// Learns of an event, which is valid during the call.
#[allow(non_camel_case_types)]
pub type jitmem_event_fn =
    Option<unsafe extern "C" fn(ctx: *mut c_void, event: *const jitmem_event)>;

/// Who is told of a manager's events. Set struct_size to sizeof(jitmem_observer).
///
/// `fn` runs as often as something happens, in any thread and in several at a time, without a lock
/// of the library's: it may call any function but jitmem_manager_free of this manager. Before a
/// finalize, allocate, abandon or deallocate is answered: in the thread that waits for the answer, or else
/// where the callback with the answer runs, before that. What an executor's answer leads to besides (windows,
/// chunks) is told where callbacks run too, perhaps later than what follows; `sequence` has the
/// order in which things happened.
///
/// An allocation's events come in its order. JITMEM_EVENT_FINALIZED comes when its content can be
/// read and run, JITMEM_EVENT_DEALLOCATED before its deallocation actions run, and so before its
/// addresses can be another allocation's; a finalize that failed is told with its answer, when the
/// addresses may be used again. A manager that is freed tells of what is left as deallocated, last to
/// first, or abandoned, and then of its windows as released, before any of it happens; after the last
/// event `destroy` runs. Forks are told in both processes, where fork handlers run. A manager over LLVM's memory manager service has no windows and chunks to tell of.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_observer {
    /// sizeof(jitmem_observer).
    pub struct_size: usize,
    /// Called with ctx for each event.
    pub r#fn: jitmem_event_fn,
    /// The host's own.
    pub ctx: *mut c_void,
    /// Frees ctx after the last event, or if the manager can't be made; may be NULL. It does not run
    /// where struct_size is wrong.
    pub destroy: jitmem_destroy_fn,
    /// 1: events have the time, which costs a look at the clock.
    pub times: u32,
    /// 0.
    pub reserved: u32,
}

const OBSERVER_LEAST: usize = offset_of!(jitmem_observer, reserved) + size_of::<u32>();

/// # Safety
/// `observer` is NULL or points to a struct of the size that it says, whose functions may be called
/// with its context from any thread.
pub(super) unsafe fn observer(observer: *const jitmem_observer) -> Result<Option<Observer>> {
    if observer.is_null() {
        return Ok(None);
    }
    // SAFETY: plain numbers and pointers; the caller vouches for the size.
    let given = unsafe { input::versioned(observer, OBSERVER_LEAST, "jitmem_observer") }?;
    let context = Context::new(given.ctx, given.destroy);
    let callback = given
        .r#fn
        .ok_or_else(|| invalid_argument("jitmem_observer.fn is NULL"))?;
    if given.reserved != 0 {
        return Err(invalid_argument("jitmem_observer.reserved is not 0"));
    }
    let times = input::flag(given.times, "jitmem_observer.times")?;
    let observer = Observer::new(move |event| {
        to_c(event, |event| {
            // SAFETY: the host says that its function takes these.
            unsafe { callback(context.pointer(), event) }
        });
    });
    Ok(Some(if times {
        observer.with_times()
    } else {
        observer
    }))
}

/// Calls `see` with the C form of an event.
fn to_c(event: &Event, see: impl FnOnce(&jitmem_event)) {
    use jitmem_event_kind::*;
    let (kind, range, group) = match &event.kind {
        EventKind::WindowReserved(range) => (JITMEM_EVENT_WINDOW_RESERVED, Some(range), None),
        EventKind::WindowReleased(range) => (JITMEM_EVENT_WINDOW_RELEASED, Some(range), None),
        EventKind::ChunkMade(range, group) => (JITMEM_EVENT_CHUNK_MADE, Some(range), Some(group)),
        EventKind::ChunkReclaimed(range, group) => {
            (JITMEM_EVENT_CHUNK_RECLAIMED, Some(range), Some(group))
        }
        EventKind::Allocated(_) => (JITMEM_EVENT_ALLOCATED, None, None),
        EventKind::Finalized(_) => (JITMEM_EVENT_FINALIZED, None, None),
        EventKind::Deallocated(_) => (JITMEM_EVENT_DEALLOCATED, None, None),
        EventKind::Abandoned(_) => (JITMEM_EVENT_ABANDONED, None, None),
        EventKind::ForkedParent => (JITMEM_EVENT_FORKED_PARENT, None, None),
        EventKind::ForkedChild => (JITMEM_EVENT_FORKED_CHILD, None, None),
        EventKind::ExecutorRestarted { .. } => (JITMEM_EVENT_EXECUTOR_RESTARTED, None, None),
    };
    let told = jitmem_event {
        struct_size: size_of::<jitmem_event>(),
        sequence: event.sequence,
        time: event.time.map_or(0, |time| time.as_nanos() as u64),
        kind: kind as u32,
        protection: group.map_or(0, |group: &AllocGroup| group.protection.bits()),
        address: range.map_or(0, |range: &AddressRange| range.start()),
        size: range.map_or(0, |range| range.size()),
        allocation: std::ptr::null(),
        restarts: 0,
        reason: std::ptr::null(),
    };
    if let EventKind::ExecutorRestarted { restarts, why } = &event.kind {
        // Control characters are escaped where it comes from.
        let reason = CString::new(&**why).unwrap_or_default();
        return see(&jitmem_event {
            restarts: *restarts,
            reason: reason.as_ptr(),
            ..told
        });
    }
    let (it, segments) = match &event.kind {
        EventKind::Allocated(it) | EventKind::Abandoned(it) => (it, it.segments()),
        EventKind::Finalized(it) | EventKind::Deallocated(it) => (it, it.lasting_segments()),
        _ => return see(&told),
    };
    lend(it, segments, |allocation| {
        see(&jitmem_event { allocation, ..told });
    });
}

/// Sees what is known of an allocation; it is valid during the call.
#[allow(non_camel_case_types)]
pub type jitmem_allocation_fn =
    Option<unsafe extern "C" fn(ctx: *mut c_void, allocation: *const jitmem_allocation)>;

/// Calls `see` in this thread with what is known of a live allocation: the tag and the names that it
/// was allocated with, its JITDylib, and its segments, those of finalize lifetime included. No lock
/// is held meanwhile. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL; JITMEM_INVALID_HANDLE if it is not live in this manager, or if it
/// has neither tag nor name and the manager has neither an observer nor the option `usage`.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `see` may be called with `ctx`; `error` is NULL or
/// a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_describe(
    manager: *const jitmem_manager,
    allocation: u64,
    see: jitmem_allocation_fn,
    ctx: *mut c_void,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        let see = see.ok_or_else(|| invalid_argument("see is NULL"))?;
        let known = manager.describe(AllocationHandle(allocation))?;
        lend(&known, known.segments(), |allocation| {
            // SAFETY: the host's function takes a context and what lives through the call.
            unsafe { see(ctx, allocation) }
        });
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}
