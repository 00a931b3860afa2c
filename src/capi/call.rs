// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Calls of wrapper functions that are not waited for.

use super::callback::{Context, jitmem_destroy_fn};
use super::handle::{Kind, Waiting};
use super::input::{self, Optional};
use super::manager::lend;
use super::status::{jitmem_error, jitmem_status};
use super::transport::{jitmem_transport, transport_of};
use super::{guard, limits};
use crate::completion::Completion;
use crate::error::{Result, invalid_argument, invalid_handle};
use crate::sys::heap;
use crate::transport::Call;
use crate::transport::limits::{Asked, Deadline};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Receives the result of a call, or why there is none: then `error` is not NULL. Both are valid during
/// this call only.
#[allow(non_camel_case_types)]
pub type jitmem_called_fn = Option<
    unsafe extern "C" fn(
        ctx: *mut c_void,
        bytes: *const c_void,
        size: usize,
        error: *const jitmem_error,
    ),
>;

/// Those that were started and not answered.
static STARTED: Waiting<Call> = Waiting::new(Kind::StartedCall);

/// jitmem_transport_call without waiting: `fn` receives the result. `args` is copied.
///
/// `limit` is how many milliseconds the call may take, after which `fn` receives JITMEM_TIMED_OUT; 0: the
/// transport's jitmem_limits.code; UINT64_MAX: as long as it takes. `*call` (`call` may be NULL) is a
/// number for jitmem_transport_cancel, written before `fn` can run. Thread-safe.
///
/// # Safety
/// As jitmem_transport_call; `call` is NULL or a place for a number; `fn` and `destroy` may be called with
/// `ctx`, from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_transport_start(
    transport: *const jitmem_transport,
    function: u64,
    args: *const c_void,
    args_size: usize,
    limit: u64,
    r#fn: jitmem_called_fn,
    ctx: *mut c_void,
    destroy: jitmem_destroy_fn,
    call: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let context = Context::new(ctx, destroy);
    let body = || {
        // SAFETY: as the caller says.
        let transport = unsafe { transport_of(transport) }?;
        // SAFETY: the caller says that they are there.
        let args = unsafe { input::array(args.cast::<u8>(), args_size, "args") }?;
        let args = heap::copy_of(args, "arguments of a call")?;
        let callback = r#fn.ok_or_else(|| invalid_argument("fn is NULL"))?;
        // SAFETY: as the caller says.
        let call = unsafe { Optional::new(call, "call") }?;
        let deadline = match limit {
            0 => transport.limits().deadline(Asked::Code),
            _ => limits::limit(limit, None).and_then(|limit| Deadline::after(limit, "call")),
        };
        let number = Arc::new(AtomicU64::new(0));
        let started = Arc::clone(&number);
        let done = Completion::for_host(move |answer: Result<Vec<u8>>| {
            drop(STARTED.take(started.load(Ordering::Acquire)));
            match answer {
                // SAFETY: the host says that its function takes these.
                Ok(bytes) => unsafe {
                    let bytes: &[u8] = &bytes;
                    callback(
                        context.pointer(),
                        bytes.as_ptr().cast(),
                        bytes.len(),
                        std::ptr::null(),
                    );
                },
                Err(error) => lend(Some(error), |error| {
                    // SAFETY: as above.
                    unsafe { callback(context.pointer(), std::ptr::null(), 0, error) }
                }),
            }
        });
        let under_way = Call::new(deadline, done);
        if let Ok(given) = STARTED.add(under_way.clone()) {
            number.store(given, Ordering::Release);
            call.set(given);
        }
        // The completion is made: a panic is answered through it and is no refusal.
        let _ = guard::catch(|| under_way.start(&transport, function, args));
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Answers a call that jitmem_transport_start has made with JITMEM_CANCELLED; its callback runs inside this
/// call. The executor is not told, and goes on with it; what it answers is dropped. Thread-safe.
///
/// Errors: JITMEM_INVALID_HANDLE for a call that was answered before or never made, or that the parent of this
/// process has made.
///
/// # Safety
/// `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_transport_cancel(
    call: u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        let cancelled = STARTED.take(call).is_some_and(|call| call.cancel());
        if !cancelled {
            return Err(invalid_handle(format!(
                "call {call:#x} was answered before or never made"
            )));
        }
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}
