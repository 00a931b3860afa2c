// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! LLVM's C callbacks for the memory of RuntimeDyld and of MCJIT, over `jitmem_section_group`. Their types
//! are those of llvm-c/ExecutionEngine.h and llvm-c/OrcEE.h, without a need for either.

use super::guard;
use super::handle;
use super::manager::{jitmem_manager, run as on_manager};
use super::sections::{self, Group, jitmem_section_group, jitmem_section_kind};
use crate::error::Result;
use crate::manager::{Dylib, Manager, SectionGroup};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr;

/// Memory that is written in place of a section that could not be allocated, and never run. LLVM ends the
/// process where a section is refused; so it is told by finalize.
pub(super) struct Substitute(*mut c_void);

// SAFETY: a block of malloc, which any thread may free.
unsafe impl Send for Substitute {}

impl Substitute {
    fn new(size: usize, alignment: usize) -> Option<Substitute> {
        let mut block = ptr::null_mut();
        let alignment = alignment.max(align_of::<*mut c_void>());
        // SAFETY: a place for a pointer; a power of two, as the caller has checked.
        let status = unsafe { libc::posix_memalign(&mut block, alignment, size.max(1)) };
        (status == 0).then_some(Substitute(block))
    }
}

impl Drop for Substitute {
    fn drop(&mut self) {
        // SAFETY: from posix_memalign, and nothing uses it after the group.
        unsafe { libc::free(self.0) }
    }
}

/// LLVMMemoryManagerCreateContextCallback of
/// LLVMOrcCreateRTDyldObjectLinkingLayerWithMCJITMemoryManagerLikeCallbacks, for which
/// `manager`, a jitmem_manager, is CreateContextCtx: a section group for each object. For MCJIT the host calls
/// it, and passes what it gives to LLVMCreateSimpleMCJITMemoryManager as Opaque.
///
/// The five functions that follow are the other callbacks. For instance:
///
///   LLVMOrcCreateRTDyldObjectLinkingLayerWithMCJITMemoryManagerLikeCallbacks(
///       session, manager, jitmem_rtdyld_create_context, jitmem_rtdyld_notify_terminating,
///       jitmem_rtdyld_allocate_code_section, jitmem_rtdyld_allocate_data_section,
///       jitmem_rtdyld_finalize_memory, jitmem_rtdyld_destroy)
///
/// The manager's mapper is JITMEM_IN_PROCESS_IN_PLACE; with another one, finalize fails and says why. LLVM
/// registers frames itself. NULL if there is no memory for it. Thread-safe.
///
/// # Safety
/// `manager` is NULL or a jitmem_manager.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_rtdyld_create_context(manager: *mut c_void) -> *mut c_void {
    let manager: *const jitmem_manager = manager.cast_const().cast();
    let mut group = ptr::null_mut();
    let mut give = |sections: Result<SectionGroup>| {
        // SAFETY: a place for a pointer.
        unsafe { handle::give_to(&mut group, || Ok(jitmem_section_group::new(sections))) }
    };
    let body = || {
        let mut sections = None;
        let make = |manager: &Manager| {
            sections = Some(SectionGroup::new(manager, Dylib::NONE));
            Ok(())
        };
        // SAFETY: as the caller says.
        let refused = unsafe { on_manager(manager, make) };
        give(sections.unwrap_or_else(|| Err(refused.expect_err("it made none"))))
    };
    // Without memory for it there is none.
    let _ = guard::catch(body);
    group.cast()
}

/// LLVMMemoryManagerNotifyTerminatingCallback: does nothing. The manager stays the host's.
///
/// # Safety
/// Any argument will do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_rtdyld_notify_terminating(_manager: *mut c_void) {}

/// LLVMMemoryManagerAllocateCodeSectionCallback. `opaque` is what jitmem_rtdyld_create_context gave. Where
/// there is no memory for the section, LLVM would end the process for NULL; so it gets memory that is never
/// run, and finalize says why. NULL if there is none of that either.
///
/// # Safety
/// `opaque` is NULL or such a pointer; `section_name` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_rtdyld_allocate_code_section(
    opaque: *mut c_void,
    size: usize,
    alignment: c_uint,
    _section_id: c_uint,
    section_name: *const c_char,
) -> *mut u8 {
    let kind = jitmem_section_kind::JITMEM_SECTION_CODE;
    // SAFETY: as the caller says.
    unsafe { allocate(opaque, kind, size, alignment, section_name) }
}

/// LLVMMemoryManagerAllocateDataSectionCallback: constants if `is_read_only`, else data. As
/// jitmem_rtdyld_allocate_code_section.
///
/// # Safety
/// As jitmem_rtdyld_allocate_code_section.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_rtdyld_allocate_data_section(
    opaque: *mut c_void,
    size: usize,
    alignment: c_uint,
    _section_id: c_uint,
    section_name: *const c_char,
    is_read_only: c_int,
) -> *mut u8 {
    let kind = match is_read_only {
        0 => jitmem_section_kind::JITMEM_SECTION_DATA,
        _ => jitmem_section_kind::JITMEM_SECTION_CONSTANTS,
    };
    // SAFETY: as the caller says.
    unsafe { allocate(opaque, kind, size, alignment, section_name) }
}

/// Allocates a section, or a substitute of it.
///
/// # Safety
/// As [`jitmem_rtdyld_allocate_code_section`].
unsafe fn allocate(
    opaque: *mut c_void,
    kind: jitmem_section_kind,
    size: usize,
    alignment: c_uint,
    name: *const c_char,
) -> *mut u8 {
    let group: *const jitmem_section_group = opaque.cast_const().cast();
    let body = || {
        // SAFETY: as the caller says.
        let allocated =
            unsafe { sections::allocate(group, kind as u32, size as u64, alignment.into(), name) };
        allocated.or_else(|error| {
            let note = |group: &mut Group| {
                let block = Substitute::new(size, (alignment as usize).next_power_of_two());
                let no_memory = || error.clone();
                group.substitutes.try_reserve(1).map_err(|_| no_memory())?;
                let block = block.ok_or_else(no_memory)?;
                let memory = block.0;
                group.substitutes.push(block);
                // The first of them is what the host must know.
                group.refused.get_or_insert(error.clone());
                Ok(memory.cast())
            };
            // SAFETY: as the caller says.
            unsafe { sections::on_group(group, note) }
        })
    };
    let allocated = guard::catch(body).and_then(|allocated| allocated);
    allocated.unwrap_or(ptr::null_mut())
}

/// LLVMMemoryManagerFinalizeMemoryCallback: gives the sections that were allocated since the last time their
/// protection. 0 on success; else 1, and `*message`, if `message` is not NULL, is a string from malloc that
/// says why, which LLVM frees, or NULL without memory for it. If one of these sections was refused, none of them is
/// executable, now or later, and what refers to them must not run; their memory goes with the group. Sections that
/// are allocated afterwards are not affected.
///
/// MCJIT does not look at the answer and gives addresses out all the same: its host calls
/// jitmem_section_group_finalize with Opaque before it uses one. That tells the first failure since the last such
/// call, once.
///
/// # Safety
/// `opaque` is NULL or what jitmem_rtdyld_create_context gave; `message` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_rtdyld_finalize_memory(
    opaque: *mut c_void,
    message: *mut *mut c_char,
) -> c_int {
    let group: *const jitmem_section_group = opaque.cast_const().cast();
    let finalize = |group: &mut Group| {
        let finalized = group.finalize();
        if let Err(error) = &finalized {
            group.untold.get_or_insert(error.clone());
        }
        finalized
    };
    // SAFETY: as the caller says.
    let body = || unsafe { sections::on_group(group, finalize) };
    let Err(error) = guard::catch(body).and_then(|finalized| finalized) else {
        return 0;
    };
    if !message.is_null() {
        let text = CString::new(error.to_string()).unwrap_or_default();
        // SAFETY: a string of C, and a place for a pointer, as the caller says.
        unsafe { message.write(libc::strdup(text.as_ptr())) };
    }
    1
}

/// LLVMMemoryManagerDestroyCallback: gives the sections back. NULL: does nothing.
///
/// # Safety
/// `opaque` is NULL or what jitmem_rtdyld_create_context gave, and nothing uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_rtdyld_destroy(opaque: *mut c_void) {
    // SAFETY: as the caller says.
    unsafe { guard::free(opaque.cast::<jitmem_section_group>()) }
}
