// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_usage`: what each JITDylib, or each tag, has.

use super::input;
use super::manager::{jitmem_manager, with_manager};
use super::status::{jitmem_error, jitmem_status};
use crate::error::{Result, invalid_argument};
use crate::manager::{Manager, Name, Usage, UsageBy, heap_is_full};
use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};

/// What usage is counted by.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_usage_by {
    /// The JITDylib; 0 for what has none.
    JITMEM_USAGE_BY_DYLIB = 0,
    /// The host's tag; 0 for what has none.
    JITMEM_USAGE_BY_TAG = 1,
}

/// What the allocations of one JITDylib, or with one tag, have at one moment. Sizes in bytes as
/// asked for, without rounding. Set struct_size to sizeof(jitmem_usage) before jitmem_manager_usage.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_usage {
    /// sizeof(jitmem_usage); afterwards the bytes that this library filled in.
    pub struct_size: usize,
    /// The JITDylib or the tag.
    pub key: u64,
    /// Everything: the sum of the next three.
    pub live: u64,
    /// Executable segments.
    pub code: u64,
    /// Segments that can only be read.
    pub constants: u64,
    /// Writable segments.
    pub data: u64,
    /// Allocations that are not finalized.
    pub in_flight: u64,
    /// Allocations that are finalized.
    pub finalized: u64,
    /// From jitmem_manager_all_usage the name of the JITDylib, valid during the call; else NULL.
    pub name: *const c_char,
}

const LEAST: usize = offset_of!(jitmem_usage, name) + size_of::<*const c_char>();

fn to_c(usage: &Usage, size: usize, name: Option<&Name>) -> jitmem_usage {
    jitmem_usage {
        struct_size: size,
        key: usage.key,
        live: usage.live,
        code: usage.code,
        constants: usage.constants,
        data: usage.data,
        in_flight: usage.in_flight,
        finalized: usage.finalized,
        name: name.map_or(std::ptr::null(), Name::as_ptr),
    }
}

fn chosen(by: u32) -> Result<UsageBy> {
    match by {
        0 => Ok(UsageBy::Dylib),
        1 => Ok(UsageBy::Tag),
        other => Err(invalid_argument(format!(
            "usage by {other} is none of dylib 0 and tag 1"
        ))),
    }
}

/// Fills `usage` for one JITDylib or tag, `key`; all zero if it has nothing. `by` is one of
/// jitmem_usage_by. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, an unknown `by` or a wrong struct_size;
/// JITMEM_UNSUPPORTED if the manager was made without the option `usage`.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `usage` is NULL or has `struct_size` bytes;
/// `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_usage(
    manager: *const jitmem_manager,
    by: u32,
    key: u64,
    usage: *mut jitmem_usage,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        input::required(usage, "usage")?;
        // SAFETY: the struct begins with its size.
        let given = unsafe { usage.cast::<usize>().read() };
        input::check_size(given, LEAST, "jitmem_usage")?;
        let size = given.min(size_of::<jitmem_usage>());
        let filled = to_c(&manager.usage(chosen(by)?, key)?, size, None);
        let source = std::ptr::from_ref(&filled).cast::<u8>();
        // SAFETY: the caller's struct has `given` bytes and ours has all of its own.
        unsafe { usage.cast::<u8>().copy_from_nonoverlapping(source, size) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}

/// Sees what one JITDylib or tag has; it is valid during the call.
#[allow(non_camel_case_types)]
pub type jitmem_usage_fn =
    Option<unsafe extern "C" fn(ctx: *mut c_void, usage: *const jitmem_usage)>;

/// Calls `see` in this thread for each JITDylib, or each tag, that has anything, in the order of
/// their numbers. A picture of one moment; no lock is held during the calls. Thread-safe.
///
/// Errors: as jitmem_manager_usage.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `see` may be called with `ctx`; `error` is NULL
/// or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_all_usage(
    manager: *const jitmem_manager,
    by: u32,
    see: jitmem_usage_fn,
    ctx: *mut c_void,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| {
        let see = see.ok_or_else(|| invalid_argument("see is NULL"))?;
        for usage in manager.all_usage(chosen(by)?)? {
            let name = usage.name.as_deref().map(Name::copied);
            let name = name.transpose().map_err(|_| heap_is_full())?;
            let usage = to_c(&usage, size_of::<jitmem_usage>(), name.as_ref());
            // SAFETY: the host's function takes a context and what lives through the call.
            unsafe { see(ctx, &usage) };
        }
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}
