// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a host passes in: segments and allocation actions.

use super::input;
use crate::error::Result;
use crate::group::{AllocGroup, CodeHint, Lifetime, Protection};
use crate::manager::{Manager, Request, Segment, SegmentMemory};
use crate::mapper::{Action, WrapperCall};
use crate::sys::heap::{self, Watch};
use std::ffi::c_void;

/// One segment of a request.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_segment {
    /// Bytes that the linker writes.
    pub content_size: u64,
    /// Zero bytes behind them.
    pub zero_fill_size: u64,
    /// Alignment of the first byte: a power of two up to 1 GiB. A window that is twice as large has a place
    /// for it, wherever it lies.
    pub alignment: u64,
    /// Bits of jitmem_protection.
    pub protection: u32,
    /// One of jitmem_lifetime.
    pub lifetime: u32,
    /// One of jitmem_code_hint.
    pub code_hint: u32,
    /// 0: for fields of later versions.
    pub reserved: [u32; 3],
}

/// Memory of one segment.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct jitmem_segment_memory {
    /// Its address in the executor; 0 for a no-alloc segment.
    pub address: u64,
    /// Where its content_size bytes are written, by one thread at a time, until finalize or
    /// abandon is called; all of them must be written. NULL for a no-alloc segment.
    pub working_memory: *mut c_void,
    /// Written 0: for fields of later versions.
    pub reserved: [u64; 2],
}

impl From<&SegmentMemory> for jitmem_segment_memory {
    fn from(memory: &SegmentMemory) -> jitmem_segment_memory {
        jitmem_segment_memory {
            address: memory.address,
            working_memory: memory.working_memory.get().cast(),
            reserved: [0; 2],
        }
    }
}

/// A call of a wrapper function in the executor: (const char *args, size_t size), answering
/// LLVM's CWrapperFunctionResult with a serialized error.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_wrapper_call {
    /// Executor address; 0: no call.
    pub function: u64,
    /// Serialized arguments; copied during the call that takes them. May be NULL if args_size is 0.
    pub args: *const c_void,
    /// Bytes of args.
    pub args_size: usize,
}

/// An allocation action: a call on finalize and its twin on deallocate.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_action {
    /// Run on finalize.
    pub finalize: jitmem_wrapper_call,
    /// Run on deallocate, if the finalize call succeeded.
    pub dealloc: jitmem_wrapper_call,
    /// 0: for fields of later versions.
    pub reserved: [u64; 2],
}

/// # Safety
/// `segments` is NULL or points to `count` segments.
pub(super) unsafe fn request(
    manager: &Manager,
    segments: *const jitmem_segment,
    count: usize,
    dylib: u64,
) -> Result<Request> {
    // SAFETY: as the caller says.
    let given = unsafe { input::array(segments, count, "segments") }?;
    heap::check()?;
    manager.request(given.iter().map(segment), dylib)
}

/// A segment as C describes it.
#[inline]
pub(super) fn segment(given: &jitmem_segment) -> Result<Segment> {
    input::unused(given.reserved, "jitmem_segment")?;
    let protection = Protection::from_bits(given.protection)?;
    let lifetime = Lifetime::from_code(given.lifetime)?;
    Ok(Segment {
        content_size: given.content_size,
        zero_fill_size: given.zero_fill_size,
        alignment: given.alignment.try_into()?,
        group: AllocGroup {
            protection,
            lifetime,
        },
        hint: CodeHint::from_code(given.code_hint)?,
    })
}

/// # Safety
/// `call.args` is NULL or has `args_size` bytes; the function is as [`WrapperCall::new`] wants it.
unsafe fn wrapper_call(call: &jitmem_wrapper_call) -> Result<WrapperCall> {
    if call.function == 0 {
        return Ok(WrapperCall::NONE);
    }
    // SAFETY: as the caller says.
    let args = unsafe { input::array(call.args.cast::<u8>(), call.args_size, "args") }?;
    // SAFETY: as the caller says.
    Ok(unsafe {
        WrapperCall::new(
            call.function,
            heap::copy_of(args, "arguments of an action")?,
        )
    })
}

/// # Safety
/// `actions` is NULL or has `count` entries whose arguments are as long as they say and whose
/// functions are as [`WrapperCall::new`] wants them.
pub(super) unsafe fn actions(actions: *const jitmem_action, count: usize) -> Result<Vec<Action>> {
    // SAFETY: as the caller says.
    let given = unsafe { input::array(actions, count, "actions") }?;
    let heap = Watch::begin()?;
    let convert = |action: &jitmem_action| -> Result<Action> {
        input::unused(action.reserved, "jitmem_action")?;
        Ok(Action {
            // SAFETY: as the caller says.
            finalize: unsafe { wrapper_call(&action.finalize) }?,
            // SAFETY: as the caller says.
            dealloc: unsafe { wrapper_call(&action.dealloc) }?,
        })
    };
    let mut actions = heap::room_for(count, "actions")?;
    for action in given {
        actions.push(convert(action)?);
    }
    // Nothing is done yet, so that the failure costs nothing.
    heap.check("actions")?;
    Ok(actions)
}
