// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_location`: which allocation an address lies in, and all that there are.

use super::handle;
use super::manager::{jitmem_manager, with_manager};
use super::status::{jitmem_error, jitmem_status};
use crate::error::invalid_argument;
use crate::manager::{AllocationPhase, Location, Manager, lookup};
use std::ffi::c_void;
use std::mem::{offset_of, size_of};

/// How far an allocation has come.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_phase {
    /// Its content is being written.
    JITMEM_PHASE_IN_FLIGHT = 1,
    /// It is being finalized.
    JITMEM_PHASE_FINALIZING = 2,
    /// It is finalized.
    JITMEM_PHASE_FINALIZED = 3,
    /// It is being deallocated or abandoned; its memory is still its own.
    JITMEM_PHASE_ENDING = 4,
    /// It was deallocated, and its memory is not used again yet: it waits to be reclaimed
    /// (jitmem_manager_options.defer_reclamation), or forked children see it. `allocation` is 0.
    JITMEM_PHASE_DEALLOCATED = 5,
    /// The memory is being handed out or taken back at this moment, perhaps by the thread that a
    /// signal has interrupted. Whose it is can't be told: `allocation` is 0.
    JITMEM_PHASE_CHANGING = 6,
}

/// What a look-up came to.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_lookup_answer {
    /// No allocation lies there.
    JITMEM_LOOKUP_NOTHING = 0,
    /// The location is filled in.
    JITMEM_LOOKUP_FOUND = 1,
    /// The location is NULL, misaligned or of a wrong size, or the manager is none. Nothing was written.
    JITMEM_LOOKUP_REFUSED = 2,
}

/// A segment of an allocation. Set struct_size to sizeof(jitmem_location) before a look-up.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_location {
    /// sizeof(jitmem_location); afterwards the bytes that this library filled in.
    pub struct_size: usize,
    /// The manager, which stays its owner's; NULL for one that Rust code made.
    pub manager: *const jitmem_manager,
    /// The allocation's handle; 0 in JITMEM_PHASE_DEALLOCATED and JITMEM_PHASE_CHANGING.
    /// jitmem_manager_describe gives its names, with a lock: not in a signal handler.
    pub allocation: u64,
    /// The JITDylib that it was allocated for; 0: none.
    pub dylib: u64,
    /// The host's tag; 0: none.
    pub tag: u64,
    /// First executor address of the segment.
    pub address: u64,
    /// Bytes that were asked for, content and zero-fill.
    pub size: u64,
    /// Bits of jitmem_protection.
    pub protection: u32,
    /// One of jitmem_lifetime.
    pub lifetime: u32,
    /// One of jitmem_phase.
    pub phase: u32,
    /// 0.
    pub reserved: u32,
}

const LEAST: usize = offset_of!(jitmem_location, reserved) + size_of::<u32>();

fn to_c(location: &Location, size: usize) -> jitmem_location {
    use jitmem_phase::*;
    let phase = match location.phase() {
        AllocationPhase::InFlight => JITMEM_PHASE_IN_FLIGHT,
        AllocationPhase::Finalizing => JITMEM_PHASE_FINALIZING,
        AllocationPhase::Finalized => JITMEM_PHASE_FINALIZED,
        AllocationPhase::Ending => JITMEM_PHASE_ENDING,
        AllocationPhase::Deallocated => JITMEM_PHASE_DEALLOCATED,
        AllocationPhase::Changing => JITMEM_PHASE_CHANGING,
    };
    jitmem_location {
        struct_size: size,
        manager: std::ptr::without_provenance(location.host_handle()),
        allocation: location.allocation().map_or(0, |allocation| allocation.0),
        dylib: location.dylib().0,
        tag: location.tag(),
        address: location.segment().start(),
        size: location.segment().size(),
        protection: location.group().protection.bits(),
        lifetime: location.group().lifetime as u32,
        phase: phase as u32,
        reserved: 0,
    }
}

/// Fills a location with what `find` finds.
///
/// # Safety
/// `location` is NULL or has as many bytes as its first field says.
unsafe fn fill(
    location: *mut jitmem_location,
    find: impl FnOnce() -> Option<Location>,
) -> jitmem_lookup_answer {
    // No error is made here: that would take memory.
    if location.is_null() || !location.is_aligned() {
        return jitmem_lookup_answer::JITMEM_LOOKUP_REFUSED;
    }
    // SAFETY: the struct begins with its size.
    let given = unsafe { location.cast::<usize>().read() };
    if !(LEAST..=4096).contains(&given) {
        return jitmem_lookup_answer::JITMEM_LOOKUP_REFUSED;
    }
    let Some(found) = find() else {
        return jitmem_lookup_answer::JITMEM_LOOKUP_NOTHING;
    };
    let size = given.min(size_of::<jitmem_location>());
    let filled = to_c(&found, size);
    let source = std::ptr::from_ref(&filled).cast::<u8>();
    // SAFETY: the caller's struct has `given` bytes and ours has all of its own.
    unsafe { location.cast::<u8>().copy_from_nonoverlapping(source, size) };
    jitmem_lookup_answer::JITMEM_LOOKUP_FOUND
}

/// Finds the allocation that an address of this process lies in, in whichever manager of this process's
/// memory: for crash handlers, unwinders and profilers. Addresses of other processes' managers and of
/// custom mappers are looked up with jitmem_manager_lookup.
///
/// Async-signal-safe and lock-free: it takes no lock, waits for nothing, allocates nothing, makes no
/// system call and never faults, whatever the signal has interrupted and for any address. It works in
/// forked children too, however they were made. errno stays as it is.
///
/// A finalized allocation that is there from before the call until after it is found with certainty,
/// whatever other threads do to others meanwhile, and nothing is ever taken for it. What is in flight, being
/// finalized or going is found with its jitmem_phase as of one moment, and may be missed while that
/// changes. Segments of finalize lifetime are gone once their allocation is finalized.
///
/// Most look-ups take a few steps. An address of a window where nothing lies, or where much has come and gone
/// since the last look, takes a look at every record of that manager: about a millisecond for 100,000 small
/// graphs.
///
/// # Safety
/// `location` is NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_lookup(
    address: u64,
    location: *mut jitmem_location,
) -> jitmem_lookup_answer {
    // SAFETY: as the caller says.
    unsafe { fill(location, || lookup(address)) }
}

/// jitmem_lookup in one manager, for addresses of its executor: async-signal-safe and lock-free as that.
///
/// A manager over LLVM's memory manager service looks at the segments one after the other: about as long as
/// jitmem_lookup takes where nothing lies. In a forked child of the process that uses an executor, it
/// finds what there was at the fork.
///
/// # Safety
/// `manager` is NULL or a handle of this library that is not freed during the call; `location` is NULL or
/// has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_lookup(
    manager: *const jitmem_manager,
    address: u64,
    location: *mut jitmem_location,
) -> jitmem_lookup_answer {
    // SAFETY: as the caller says.
    let Some(manager) = (unsafe { handle::live(manager) }) else {
        return jitmem_lookup_answer::JITMEM_LOOKUP_REFUSED;
    };
    // SAFETY: as the caller says.
    unsafe { fill(location, || manager.manager().lookup(address)) }
}

/// Sees a segment of a live allocation; it is valid during the call.
#[allow(non_camel_case_types)]
pub type jitmem_location_fn =
    Option<unsafe extern "C" fn(ctx: *mut c_void, location: *const jitmem_location)>;

/// Calls `see` in this thread with every segment of every live allocation of a manager, those of one
/// allocation one after the other; an allocation without memory comes once, with address and size 0. Not
/// for signal handlers. Thread-safe.
///
/// No lock is held during the calls, which may use the manager but not free it. An allocation that is there
/// from before the walk until after it comes exactly once; one that comes or goes meanwhile comes once, as it was
/// at one moment, or not at all. What is being deallocated or abandoned does not come.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE; JITMEM_OUT_OF_MEMORY if the heap has no room
/// for the segments of one allocation.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `see` may be called with `ctx`; `error` is NULL or a
/// place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_walk(
    manager: *const jitmem_manager,
    see: jitmem_location_fn,
    ctx: *mut c_void,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        let see = see.ok_or_else(|| invalid_argument("see is NULL"))?;
        manager.walk(|location| {
            let location = to_c(location, size_of::<jitmem_location>());
            // SAFETY: the host's function takes a context and what lives through the call.
            unsafe { see(ctx, &raw const location) }
        })
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}
