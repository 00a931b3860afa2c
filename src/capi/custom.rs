// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A mapper made of a host's callbacks.

use super::callback::{Context, jitmem_destroy_fn};
use super::host_mapper::{Answer, Callbacks, host_status, take_pending};
use super::mapper::jitmem_mapper;
use super::request::jitmem_action;
use super::status::{jitmem_error, jitmem_status};
use super::{guard, handle, input};
use crate::error::{Error, invalid_handle};
use crate::mapper::Mapper;
use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};
use std::sync::Arc;

/// How content gets into the executor.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_content {
    /// `prepare` gives memory that the executor sees.
    JITMEM_CONTENT_SHARED = 0,
    /// `initialize` receives the content and copies it.
    JITMEM_CONTENT_COPIED = 1,
}

/// Names one request to a custom mapper, which it answers with jitmem_mapper_complete.
#[allow(non_camel_case_types)]
pub type jitmem_request = u64;

/// One segment on its way into, or out of, a custom mapper's executor.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_mapper_segment {
    /// First executor address.
    pub address: u64,
    /// Bytes, zero-fill and rounding included.
    pub size: u64,
    /// The content, valid until the request is completed; NULL if it is in place or on the way out.
    pub content: *const c_void,
    /// Bytes of content.
    pub content_size: u64,
    /// Bits of jitmem_protection.
    pub protection: u32,
    /// One of jitmem_lifetime.
    pub lifetime: u32,
    /// 1: what follows the content is known to be zero; 0: the mapper must make it so.
    pub zeroed: u32,
    /// 0: for fields of later versions.
    pub reserved: [u32; 5],
}

/// One allocation on its way out.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_mapper_retired {
    /// What `initialize` answered; 0 if it had nothing to remember.
    pub key: u64,
    /// Its copied segments; valid until the request is completed.
    pub segments: *const jitmem_mapper_segment,
    /// Number of them.
    pub segment_count: usize,
    /// 0: for fields of later versions.
    pub reserved: [u64; 2],
}

/// A chunk that a custom mapper makes usable.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_mapper_chunk {
    /// First executor address.
    pub address: u64,
    /// Bytes, a multiple of page_size.
    pub size: u64,
    /// Bits of jitmem_protection.
    pub protection: u32,
    /// One of jitmem_lifetime.
    pub lifetime: u32,
    /// 1: jitmem_manager_options.commit: take the pages now, so that a shortage is an error here. 0: they
    /// may be taken when they are touched.
    pub commit: u32,
    /// 0: for fields of later versions.
    pub reserved: [u32; 5],
}

/// A mapper made by the host. Set struct_size to sizeof(jitmem_mapper_callbacks).
///
/// The functions are called with no lock held, from any thread, several at a time. Those that take a
/// jitmem_request answer it, now or later, from any thread, with jitmem_mapper_complete, exactly
/// once. Arrays are valid until then. None may be NULL but destroy, and prepare and reclaim or their
/// asynchronous twins; none may throw. They may call any function of this library; jitmem_manager_allocate from inside `prepare` or `reclaim` never waits for what
/// these are about to change, and answers JITMEM_WINDOW_FULL where it would have to.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_mapper_callbacks {
    /// sizeof(jitmem_mapper_callbacks).
    pub struct_size: usize,
    /// Chunks are multiples of this power of two.
    pub page_size: u64,
    /// Allocations are kept multiples of this power of two apart, at most page_size.
    pub granule: u64,
    /// One of jitmem_content.
    pub content: u32,
    /// 0.
    pub reserved: u32,
    /// Passed to every function.
    pub ctx: *mut c_void,
    /// Called once when nothing uses the mapper any more; may be NULL.
    pub destroy: jitmem_destroy_fn,
    /// Reserves a window of `size` bytes (a smaller multiple of page_size will do) as `placement`
    /// and `address` say; near several addresses, `address` is in their middle, and a window that does
    /// not reach them all is given back. Answers its address as `value` and, in `size`, its size.
    pub reserve: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            size: u64,
            placement: u32,
            address: u64,
            request: jitmem_request,
        ),
    >,
    /// Makes a chunk usable; with shared content, `*working_memory` is where all its bytes are
    /// written, all zero now. Returns a jitmem_status. May be NULL if there is a prepare_async.
    pub prepare: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            address: u64,
            size: u64,
            protection: u32,
            lifetime: u32,
            working_memory: *mut *mut c_void,
        ) -> u32,
    >,
    /// Makes an allocation visible and runs the finalize actions first to last, remembering the
    /// deallocation actions. Answers a key for deinitialize as `value`; 0 if there is nothing to
    /// do then.
    pub initialize: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            segments: *const jitmem_mapper_segment,
            segment_count: usize,
            actions: *const jitmem_action,
            action_count: usize,
            request: jitmem_request,
        ),
    >,
    /// Runs the deallocation actions of allocations, last to first.
    pub deinitialize: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            retired: *const jitmem_mapper_retired,
            count: usize,
            request: jitmem_request,
        ),
    >,
    /// Takes the pages of an empty chunk back. Returns a jitmem_status; on failure the chunk stays. May be
    /// NULL if there is a reclaim_async.
    pub reclaim: Option<unsafe extern "C" fn(ctx: *mut c_void, address: u64, size: u64) -> u32>,
    /// Gives a window back with all that is in it.
    pub release: Option<
        unsafe extern "C" fn(ctx: *mut c_void, address: u64, size: u64, request: jitmem_request),
    >,
    /// Called in place of prepare; NULL: prepare is called. Makes a chunk usable, which is described
    /// during this call, and answers, in this call or later, working memory as `value` (0 with copied
    /// content), or a failure with its reason. An allocation that needs a chunk then waits for the
    /// answer, and jitmem_manager_try_allocate declines it. Given with reclaim_async, or not at all.
    pub prepare_async: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            chunk: *const jitmem_mapper_chunk,
            request: jitmem_request,
        ),
    >,
    /// Called in place of reclaim; NULL: reclaim is called. On failure the chunk stays.
    pub reclaim_async: Option<
        unsafe extern "C" fn(ctx: *mut c_void, address: u64, size: u64, request: jitmem_request),
    >,
}

const LEAST: usize = offset_of!(jitmem_mapper_callbacks, release) + size_of::<usize>();

/// Answers a request to a custom mapper, from any thread.
///
/// `status` is a jitmem_status; if it is not 0, `message` (NULL or UTF-8 text, copied) says why.
/// `value` and `size` are what the callback's documentation asks for, else 0. The requester's
/// callback may run inside this call. Thread-safe.
///
/// Errors: JITMEM_INVALID_HANDLE for a request that was answered before or never made.
///
/// # Safety
/// `message` is NULL or a NUL-terminated string; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_complete(
    request: jitmem_request,
    status: u32,
    message: *const c_char,
    value: u64,
    size: u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        let Some(pending) = take_pending(request) else {
            return Err(invalid_handle(format!(
                "request {request:#x} was completed before or never made"
            )));
        };
        pending.answer(match host_status(status) {
            None => Ok(Answer { value, size }),
            Some(status) => {
                // SAFETY: as the caller says.
                let text = unsafe { input::message(message) };
                Err(Error::new(status, format!("custom mapper: {text}")))
            }
        });
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Makes a mapper of the host's callbacks.
///
/// `callbacks` is copied. `destroy` is called with `ctx` once, when nothing uses the mapper any more
/// or if this call fails. On success `*mapper` is the new mapper, to be freed with
/// jitmem_mapper_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, a wrong struct_size, a missing function, page_size or
/// granule that is no power of two, an unknown content. If the struct can't be read (NULL, a
/// wrong struct_size, fields that this library does not know) `destroy` is not called.
///
/// # Safety
/// `callbacks` is NULL or points to a struct of the size that it says, whose functions may be called
/// as documented; `mapper` and `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_custom(
    callbacks: *const jitmem_mapper_callbacks,
    mapper: *mut *mut jitmem_mapper,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: numbers, pointers and optional functions; the caller vouches for the size.
        let table = unsafe { input::versioned(callbacks, LEAST, "jitmem_mapper_callbacks") }?;
        let context = Arc::new(Context::new(table.ctx, table.destroy));
        let make = || Mapper::custom(Callbacks::new(table, context)?).map(jitmem_mapper);
        // SAFETY: as the caller says.
        unsafe { handle::give_to(mapper, make) }
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}
