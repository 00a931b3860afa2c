// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Serving a controller: what an executor program does.

use super::service::{self, jitmem_service};
use super::status::{jitmem_error, jitmem_status};
use super::{guard, input};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::executor::server::{
    Options, Restarts, SetupLayout, Supervision, Unread, serve, serve_supervised,
};
use crate::sys::{disconnect, duplicate, explain};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::{offset_of, size_of};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// A name that an executor publishes to its controller, and the address or number behind it.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_bootstrap_symbol {
    /// UTF-8 text.
    pub name: *const c_char,
    /// What the name stands for.
    pub address: u64,
    /// 0: for fields of later versions.
    pub reserved: [u64; 2],
}

/// What a process does before linked code runs in it, such as to bound itself by jitmem_executor_contain. Returns NULL,
/// or why it can't serve: a string in that process, which ends with this reason.
#[allow(non_camel_case_types)]
pub type jitmem_prepare_fn = Option<unsafe extern "C" fn(ctx: *mut c_void) -> *const c_char>;

/// How an executor goes on when linked code has ended its process. Set struct_size to sizeof(jitmem_supervision).
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_supervision {
    /// sizeof(jitmem_supervision).
    pub struct_size: usize,
    /// So many times another process takes its place, at least 1, such as 10,
    pub restarts: u32,
    /// in so many seconds, at least 1, such as 60. Once more ends the executor.
    pub seconds: u32,
    /// Seconds after which a call of linked code ends its process. 0: none.
    pub time_limit: u32,
    /// 0.
    pub reserved: u32,
    /// Called in each of these processes before it serves, with `ctx` as it was when jitmem_executor_serve was
    /// called. May be NULL.
    pub prepare: jitmem_prepare_fn,
    /// For `prepare`.
    pub ctx: *mut c_void,
}

/// Choices for an executor. Set struct_size to sizeof(jitmem_serve_options) and the rest to zero
/// for the defaults.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_serve_options {
    /// sizeof(jitmem_serve_options).
    pub struct_size: usize,
    /// What the host publishes beside the services' own names, or in place of them.
    pub symbols: *const jitmem_bootstrap_symbol,
    /// Number of them.
    pub symbol_count: usize,
    /// The service that controllers with jitmem open sessions with. NULL: one that ends with the
    /// call.
    pub service: *const jitmem_service,
    /// The controller's LLVM, 14 to 22. Until 16 it expects another first message than since, and
    /// nothing that it sends tells which. 0: 22.
    pub llvm_version: u32,
    /// 1: libstdc++, libgcc_s and libm are never loaded. 0: they are, once the controller looks for
    /// a symbol that the process has not.
    pub c_only: u32,
    /// Bytes that a controller which does not read may leave, beyond what the stream takes; then threads wait
    /// with what they have to say. One message may exceed it. 0: 64 MiB.
    pub unread_bytes: u64,
    /// Calls of linked code to the controller that wait meanwhile; further ones fail. 0: 1024.
    pub unread_calls: u64,
    /// Linked code runs in a process of its own, which is replaced when it ends: docs/second-process.md, "Supervised".
    /// For controllers with jitmem, and without `service`. NULL: it runs in this process.
    pub supervision: *const jitmem_supervision,
}

const LEAST: usize = offset_of!(jitmem_serve_options, c_only) + size_of::<u32>();
const LEAST_SUPERVISION: usize = offset_of!(jitmem_supervision, ctx) + size_of::<*mut c_void>();

/// `prepare` and its context.
struct Prepare {
    function: jitmem_prepare_fn,
    ctx: *mut c_void,
}

// SAFETY: used in forked processes alone, each of which has a copy of what is there.
unsafe impl Send for Prepare {}
// SAFETY: as above.
unsafe impl Sync for Prepare {}

impl Prepare {
    fn call(&self) -> Result<()> {
        let Some(function) = self.function else {
            return Ok(());
        };
        // SAFETY: the host supplied the pair for this.
        let why = unsafe { function(self.ctx) };
        if why.is_null() {
            return Ok(());
        }
        // SAFETY: the host says that it is a string.
        let why = unsafe { input::message(why) };
        Err(Error::new(Status::Denied, format!("prepare: {why}")))
    }
}

/// How it goes on, and for how long linked code may run.
///
/// # Safety
/// `pointer` is NULL or points to a struct of the size that it says.
unsafe fn supervision(
    pointer: *const jitmem_supervision,
) -> Result<Option<(Supervision, Option<Duration>)>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: numbers and pointers; the caller vouches for the size.
    let given = unsafe { input::versioned(pointer, LEAST_SUPERVISION, "jitmem_supervision") }?;
    if given.reserved != 0 {
        return Err(invalid_argument(format!(
            "jitmem_supervision.reserved is {}: set it to 0",
            given.reserved
        )));
    }
    let prepare = Prepare {
        function: given.prepare,
        ctx: given.ctx,
    };
    let seconds = |count: u32| Duration::from_secs(count.into());
    let supervision = Supervision {
        restarts: Restarts {
            most: given.restarts as usize,
            within: seconds(given.seconds),
        },
        prepare: Box::new(move || prepare.call()),
    };
    let time_limit = (given.time_limit > 0).then(|| seconds(given.time_limit));
    Ok(Some((supervision, time_limit)))
}

fn layout(llvm_version: u32) -> Result<SetupLayout> {
    match llvm_version {
        0 => Ok(Options::default().layout),
        14..=22 => Ok(SetupLayout::of_llvm(llvm_version)),
        _ => Err(invalid_argument(format!(
            "llvm_version {llvm_version} is none of 14 to 22, and not 0 for the default"
        ))),
    }
}

/// How much a controller may leave unread: more than memory has is no bound.
fn unread(bytes: u64, calls: u64) -> Unread {
    let chosen = |number: u64, default| match number {
        0 => default,
        number => usize::try_from(number).unwrap_or(usize::MAX),
    };
    let default = Unread::default();
    Unread {
        bytes: chosen(bytes, default.bytes),
        calls: chosen(calls, default.calls),
    }
}

/// What the host chose.
///
/// # Safety
/// `options` is NULL or points to a struct of the size that it says, whose symbols have names and whose
/// service is not freed while the result is used.
unsafe fn chosen<'a>(
    options: *const jitmem_serve_options,
) -> Result<(Options<'a>, Option<Supervision>)> {
    let mut chosen = Options::default();
    if options.is_null() {
        return Ok((chosen, None));
    }
    // SAFETY: numbers and pointers; the caller vouches for the size.
    let given = unsafe { input::versioned(options, LEAST, "jitmem_serve_options") }?;
    chosen.layout = layout(given.llvm_version)?;
    chosen.cxx_runtime = !input::flag(given.c_only, "c_only")?;
    chosen.unread = unread(given.unread_bytes, given.unread_calls);
    // SAFETY: the caller vouches for the array.
    let symbols = unsafe { input::array(given.symbols, given.symbol_count, "symbols") }?;
    for (index, symbol) in symbols.iter().enumerate() {
        input::unused(symbol.reserved, "jitmem_bootstrap_symbol")?;
        input::required(symbol.name, &format!("symbols[{index}].name"))?;
        // SAFETY: not NULL, and the caller says that it is a string.
        let name = unsafe { CStr::from_ptr(symbol.name) }.to_string_lossy();
        chosen.symbols.push((name.into_owned(), symbol.address));
    }
    if !given.service.is_null() {
        // SAFETY: as the caller says.
        chosen.service = Some(unsafe { service::get(given.service) }?);
    }
    // SAFETY: as the caller says.
    let supervision = unsafe { supervision(given.supervision) }?;
    let supervision = supervision.map(|(supervision, time_limit)| {
        chosen.time_limit = time_limit;
        supervision
    });
    Ok((chosen, supervision))
}

/// A descriptor of the host's, duplicated: linked code may still be in the middle of a call when the
/// host has closed its own.
///
/// # Safety
/// As [`duplicate`] has it.
unsafe fn duplicated(descriptor: c_int, name: &str) -> Result<OwnedFd> {
    // SAFETY: as the caller says.
    unsafe { duplicate(descriptor) }.map_err(|error| match error.raw_os_error() {
        Some(libc::EBADF) => invalid_argument(format!("{name} {descriptor} is no open descriptor")),
        _ => explain(format_args!("duplicate {name} {descriptor}"), error),
    })
}

/// Has linked code find nothing at the host's own descriptors of the connection: what it wrote there would be the
/// executor's word, and while it has them open the controller does not see the executor's end.
fn without(descriptors: [c_int; 2], supervision: Supervision) -> Supervision {
    let Supervision { restarts, prepare } = supervision;
    let prepare = move || {
        for descriptor in descriptors {
            // SAFETY: the host's, for this connection; in a process of linked code, which has another one.
            unsafe { disconnect(descriptor) }.map_err(|error| {
                explain(format_args!("disconnect descriptor {descriptor}"), error)
            })?;
        }
        prepare()
    };
    Supervision {
        restarts,
        prepare: Box::new(prepare),
    }
}

/// Serves one controller as LLVM's llvm-jitlink-executor does: introduces this process, then does
/// what is called, until the controller hangs up.
///
/// `in_fd` is read and `out_fd` written; they may be the same socket. Both are duplicated and stay
/// the host's. `options` may be NULL for the defaults. Linked code runs in other threads; this one
/// waits until all of it has returned. Then deallocation actions that are left run, last to first, and
/// the controller's memory goes. Thread-safe: several controllers may be served at a time.
///
/// With `supervision` linked code runs in a child of a process that is forked for this call. Of this process only
/// the calling thread takes part, which waits, and nothing is left in it: when this returns, both processes are
/// gone. They have this one's memory and descriptors as they are at the call, and none of its other threads; where
/// linked code runs, `in_fd` and `out_fd` are /dev/null. What C's
/// streams hold is written where linked code's process ends, so call fflush before; functions of atexit do not run
/// there, unless linked code calls exit. Functions of pthread_atfork run once here, and in the forked process once for
/// each child. Both are killed when the calling thread ends.
///
/// Errors: JITMEM_INVALID_ARGUMENT for a number that is no open descriptor, an unknown llvm_version,
/// a wrong struct_size, a symbol without name; JITMEM_INVALID_HANDLE for a service that was freed;
/// JITMEM_DISCONNECTED if the controller breaks the protocol or the stream fails, with the message
/// that llvm-jitlink-executor has for it; JITMEM_ACTION_FAILED if deallocation actions that were left
/// answered so; what the system refuses before the first message. With `supervision` also: JITMEM_INVALID_ARGUMENT for
/// 0 restarts or seconds, and for a service; JITMEM_DISCONNECTED with what has ended linked code's process where no
/// other takes its place, once the controller was told, and where `prepare` fails at first; JITMEM_ACTION_FAILED if a
/// finalize action fails that is run again; JITMEM_DENIED where the bounds of this process refuse a fork.
///
/// # Safety
/// `options` is NULL or points to a struct of the size that it says; names of symbols are strings;
/// the descriptors stay open during the call; `error` is NULL or a place for a pointer. The controller
/// is trusted as much as this program: it writes memory by address and calls what it has written. With `supervision`
/// no other thread holds a lock at the call that linked code, what is published or `prepare` need; the C library's,
/// and this library's, are seen to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_executor_serve(
    in_fd: c_int,
    out_fd: c_int,
    options: *const jitmem_serve_options,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let (options, supervision) = unsafe { chosen(options) }?;
        // SAFETY: the caller says that they are its own, and open during the call.
        let duplicated = |descriptor, name| unsafe { duplicated(descriptor, name) };
        let (input, output) = (duplicated(in_fd, "in_fd")?, duplicated(out_fd, "out_fd")?);
        // SAFETY: as the caller says.
        unsafe {
            match supervision {
                Some(supervision) => {
                    let supervision = without([in_fd, out_fd], supervision);
                    serve_supervised(input, output, &options, supervision)
                }
                None => serve(input, output, &options),
            }
        }
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}
