// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What the process's unwinder asks for frames of linked code, where the program has it ask us: libgcc calls a
//! function that a program may define in front of libgcc's own.
//!
//! Everything here may run inside a signal handler, and in a child of a fork.

use super::eh_frame::Bytes;
use super::index::IndexReader;
use super::regions;
use super::registration::{deregister, register};
use crate::memory::published::{Publication, Published};
use crate::memory::reservation::Reservation;
use crate::page::AddressRange;
use crate::sys::{self, AtForkStatic};
use crate::wire::service::FrameFunctions;
use crate::wire::sps::ExecutorAddr;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// What libgcc is told of a description that was found (`struct dwarf_eh_bases`).
#[repr(C)]
#[derive(Debug)]
pub struct FoundFrames {
    /// What pointers in the section may be relative to: nothing.
    tbase: *const c_void,
    /// The same.
    dbase: *const c_void,
    /// Where the function begins.
    func: *const c_void,
}

/// An index that a session has here.
pub(crate) struct SessionIndex {
    reader: IndexReader,
    /// What it is read through.
    _place: Reservation,
}

/// Has the unwinder look in an index until it is dropped.
pub(crate) type PublishedIndex = Publication<SessionIndex>;

static INDEXES: Published<SessionIndex> = Published::new();

static FORKS: AtForkStatic<()> = AtForkStatic::with((), |(), forked| {
    if forked.in_child {
        INDEXES.forked_child();
    }
});

/// Has the unwinder look in the index of a window that is mapped at a place.
pub(crate) fn publish(window: AddressRange, place: Reservation) -> PublishedIndex {
    // SAFETY: a window's addresses are this process's own; what is found in it is there until its
    // allocation is deallocated, which the one who runs its code does not do meanwhile.
    let sections = unsafe { Bytes::new(window, window.start()) };
    // SAFETY: an index is mapped there as long as the reservation is there.
    let reader = unsafe { IndexReader::new(window, place.range().start(), sections) };
    let _place = place;
    INDEXES.publish(Arc::new(SessionIndex { reader, _place }))
}

/// Frees what readers needed of indexes that are gone. Called without a lock.
pub(crate) fn collect() {
    INDEXES.collect();
}

/// An address that only [`asked`] asks for.
static PROBE: [u8; 2] = [0; 2];

fn probe() -> *const c_void {
    ptr::from_ref(&PROBE).cast()
}

/// Whether the unwinder of this process asks us. It is tried: names alone do not tell which unwinder is used,
/// nor which definition it is bound to.
pub(crate) fn asked() -> bool {
    static ASKED: OnceLock<bool> = OnceLock::new();
    *ASKED.get_or_init(|| {
        let Some(enclosing) = sys::symbol(c"_Unwind_FindEnclosingFunction") else {
            return false;
        };
        // libgcc asks for the byte in front of what it is asked for.
        let behind = probe().wrapping_byte_add(1);
        // SAFETY: the unwinder's function, which takes any address.
        let found = unsafe { sys::call_unwinder(enclosing, behind, ptr::null_mut()) };
        found == probe()
    })
}

/// The calls that an index stands for. Called without a lock.
pub(crate) fn frame_functions() -> FrameFunctions {
    drop(FORKS.lock());
    FrameFunctions {
        asked: asked(),
        register: ExecutorAddr(sys::wrapper_address(register)),
        deregister: ExecutorAddr(sys::wrapper_address(deregister)),
    }
}

/// The definition of the same name that comes behind ours; 1 where there is none, 0 before it is looked up.
static NEXT: AtomicU64 = AtomicU64::new(0);

fn next() -> Option<u64> {
    let known = NEXT.load(Ordering::Relaxed);
    let next = match known {
        0 => sys::next_symbol(c"_Unwind_Find_FDE").unwrap_or(1),
        known => known,
    };
    NEXT.store(next, Ordering::Relaxed);
    (next > 1).then_some(next)
}

/// The frame description of the function of linked code that `pc` is in, by the indexes of this process; NULL for
/// all else. Takes no lock, allocates nothing, and may be called in a signal handler.
///
/// # Safety
/// `bases` can be written. What has been linked is there while its code is unwound.
pub(crate) unsafe fn find_fde(pc: *const c_void, bases: *mut FoundFrames) -> *const c_void {
    let found = |func: *const c_void| FoundFrames {
        tbase: ptr::null(),
        dbase: ptr::null(),
        func,
    };
    let address = pc.addr() as u64;
    let of_sessions = || INDEXES.find(|index| index.reader.find(address));
    if let Some(function) = regions::find(address).or_else(of_sessions) {
        let pointer = |address: u64| ptr::with_exposed_provenance::<c_void>(address as usize);
        // SAFETY: as the caller says.
        unsafe { bases.write(found(pointer(function.code.start()))) };
        return pointer(function.description);
    }
    if pc == probe() {
        // SAFETY: as the caller says.
        unsafe { bases.write(found(pc)) };
        return pc;
    }
    ptr::null()
}

/// What libgcc's unwinder calls `_Unwind_Find_FDE`, for a program to export under that name: the frame description of
/// the function that `pc` is in. Linked code is looked for in the indexes of this process, all else by the
/// next definition. Takes no lock of its own, allocates nothing, and may be called in a signal handler.
///
/// # Safety
/// `bases` can be written. What has been linked is there while its code is unwound.
pub unsafe extern "C" fn unwind_find_fde(
    pc: *const c_void,
    bases: *mut FoundFrames,
) -> *const c_void {
    // SAFETY: as the caller says.
    let found = unsafe { find_fde(pc, bases) };
    if !found.is_null() {
        return found;
    }
    match next() {
        // SAFETY: libgcc's own function, which is called as it would have been.
        Some(next) => unsafe { sys::call_unwinder(next, pc, bases.cast()) },
        None => ptr::null(),
    }
}
