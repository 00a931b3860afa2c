// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_service`: the executor's side.

use super::guard;
use super::handle::{self, Handle};
use super::status::{jitmem_error, jitmem_status};
use crate::error::{Result, invalid_argument};
use crate::executor::service::{self, Service};
use crate::sys::{RawWrapperResult, serve, serve_buffer};
use std::ffi::{CStr, c_char, c_void};

/// An executor's service: controllers that know its symbols get memory in this process. Freeing it
/// ends their sessions. All functions on it are thread-safe.
#[allow(non_camel_case_types)]
pub struct jitmem_service(Service);

static SERVICES: handle::Pool<jitmem_service> = handle::Pool::new(handle::Kind::Service);

impl Handle for jitmem_service {
    fn pool() -> &'static handle::Pool<Self> {
        &SERVICES
    }
    const NAME: &'static str = "jitmem_service";
}

/// What a wrapper function returns: LLVM's CWrapperFunctionResult. Up to 8 bytes are in `data`, first
/// byte lowest; more are in a block from malloc that `data` is the address of; with size 0, `data` is
/// 0 or the address of an error message from malloc.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_wrapper_result {
    /// Bytes, or an address.
    pub data: u64,
    /// Number of bytes.
    pub size: usize,
}

impl From<RawWrapperResult> for jitmem_wrapper_result {
    fn from(result: RawWrapperResult) -> jitmem_wrapper_result {
        let (data, size) = result.parts();
        jitmem_wrapper_result { data, size }
    }
}

/// The wrapper function with which a controller opens a session; not to be called from C. It is what
/// dlsym finds in an executor that has loaded this library, and what jitmem_service_symbols
/// publishes.
///
/// # Safety
/// `args` has `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_service_open(
    args: *const c_char,
    size: usize,
) -> jitmem_wrapper_result {
    // SAFETY: as the caller says.
    unsafe { serve(args.cast(), size, service::open_session) }.into()
}

impl From<jitmem_wrapper_result> for RawWrapperResult {
    fn from(buffer: jitmem_wrapper_result) -> RawWrapperResult {
        RawWrapperResult::of(buffer.data, buffer.size)
    }
}

/// Hands the answer of a wrapper function in orc-rt's form to its session: orc-rt's
/// orc_rt_WrapperFunctionReturn. The session takes `answer` over.
#[allow(non_camel_case_types)]
pub type jitmem_session_return_fn =
    Option<unsafe extern "C" fn(session: *mut c_void, answer: jitmem_wrapper_result, call: u64)>;

/// jitmem_service_open in the form that executors of LLVM's ORC runtime (orc-rt) call, which is
/// orc_rt_WrapperFunction; not to be called from C. The functions that its answer names have that form
/// too. All of them answer by `reply` before they return, and take `args` over.
///
/// # Safety
/// `args` is a buffer from malloc as jitmem_wrapper_result has it; `reply` is NULL or may be called with
/// `session` and `call`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_service_open_by_session(
    session: *mut c_void,
    args: jitmem_wrapper_result,
    reply: jitmem_session_return_fn,
    call: u64,
) {
    let Some(reply) = reply else { return };
    // SAFETY: as the caller says.
    unsafe {
        let answer = serve_buffer(args.into(), service::open_by_session);
        reply(session, answer.into(), call);
    }
}

/// Makes a service of its own in this process.
///
/// On success `*service` is the new service, to be freed with jitmem_service_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL.
///
/// # Safety
/// `service` and `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_service_create(
    service: *mut *mut jitmem_service,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        unsafe { handle::give_to(service, || Ok(jitmem_service(Service::new()))) }
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// The service behind a handle.
///
/// # Safety
/// `service` is NULL or a handle of this library, which outlives the reference.
pub(super) unsafe fn get<'a>(service: *const jitmem_service) -> Result<&'a Service> {
    // SAFETY: as the caller says.
    Ok(&unsafe { handle::get(service) }?.0)
}

/// Sees one bootstrap symbol; `name` is static.
#[allow(non_camel_case_types)]
pub type jitmem_symbol_fn =
    Option<unsafe extern "C" fn(ctx: *mut c_void, name: *const c_char, address: u64)>;

/// Calls `visit` in this thread for each symbol that the executor must publish to its controller
/// (ORC: as bootstrap symbols). Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE.
///
/// # Safety
/// `service` is NULL or a handle of this library; `visit` may be called with `ctx`; `error` is NULL
/// or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_service_symbols(
    service: *const jitmem_service,
    visit: jitmem_symbol_fn,
    ctx: *mut c_void,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    // SAFETY: as the caller says.
    let body = || unsafe { show(service, service::symbols, visit, ctx) };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// As jitmem_service_symbols, for executors of LLVM's ORC runtime (orc-rt): the function is
/// jitmem_service_open_by_session, under jitmem_service_open's name.
///
/// Errors: as jitmem_service_symbols.
///
/// # Safety
/// As jitmem_service_symbols has it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_service_session_symbols(
    service: *const jitmem_service,
    visit: jitmem_symbol_fn,
    ctx: *mut c_void,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    // SAFETY: as the caller says.
    let body = || unsafe { show(service, service::session_symbols, visit, ctx) };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Shows what is published for a service.
///
/// # Safety
/// As [`jitmem_service_symbols`] has it.
unsafe fn show(
    service: *const jitmem_service,
    symbols: fn(&Service) -> [(&'static CStr, u64); 2],
    visit: jitmem_symbol_fn,
    ctx: *mut c_void,
) -> Result<()> {
    // SAFETY: as the caller says.
    let symbols = symbols(unsafe { get(service) }?);
    let visit = visit.ok_or_else(|| invalid_argument("visit is NULL"))?;
    for (name, address) in symbols {
        // SAFETY: the host's function takes a context, a static string and a number.
        unsafe { visit(ctx, name.as_ptr(), address) };
    }
    Ok(())
}

/// Frees a service and ends its sessions: deallocation actions that are left run, last to first, in
/// this thread, and the memory goes, so no linked code may run any more. NULL and a service that was
/// freed before: does nothing.
///
/// # Safety
/// `service` is NULL or came from this library, and no other thread uses this handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_service_free(service: *mut jitmem_service) {
    // SAFETY: as the caller says.
    unsafe { guard::free(service) }
}
