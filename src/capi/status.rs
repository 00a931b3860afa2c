// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_status` and `jitmem_error`.

use super::guard;
use super::handle::{self, Handle};
use crate::error::{ALL_STATUSES, Error, Status};
use crate::sys::heap;
use std::ffi::{CStr, CString, c_char};

/// What a call came to. Numbers never change; new ones are added at the end.
#[allow(non_camel_case_types, clippy::upper_case_acronyms)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum jitmem_status {
    /// Done, or, for an asynchronous call, accepted.
    JITMEM_OK = 0,
    /// An argument can never be right: NULL, overflow, bad alignment, unknown enumerator.
    JITMEM_INVALID_ARGUMENT = 1,
    /// A handle or allocation that is not live here, or not in the state that the call needs.
    JITMEM_INVALID_HANDLE = 2,
    /// No window may hold the request.
    JITMEM_WINDOW_FULL = 3,
    /// The manager's own limit on bytes is reached.
    JITMEM_QUOTA_EXCEEDED = 4,
    /// The system gave no memory, address space, mapping or descriptor.
    JITMEM_OUT_OF_MEMORY = 5,
    /// The system forbids the operation (seccomp, SELinux, vm.memfd_noexec).
    JITMEM_DENIED = 6,
    /// An allocation action reported failure.
    JITMEM_ACTION_FAILED = 7,
    /// Not available in this build, on this system or with this mapper.
    JITMEM_UNSUPPORTED = 8,
    /// The executor is gone.
    JITMEM_DISCONNECTED = 9,
    /// A host-supplied mapper reported failure or broke its contract.
    JITMEM_MAPPER_FAILED = 10,
    /// The system reported something that none of the above names.
    JITMEM_SYSTEM = 11,
    /// A defect in jitmem; the handle refuses further work.
    JITMEM_INTERNAL = 12,
    /// It can't be done without waiting; nothing was done.
    JITMEM_WOULD_BLOCK = 13,
    /// The executor has not answered within a limit that the host has set (jitmem_limits).
    JITMEM_TIMED_OUT = 14,
    /// The host has cancelled it.
    JITMEM_CANCELLED = 15,
}

impl From<Status> for jitmem_status {
    fn from(status: Status) -> Self {
        use jitmem_status::*;
        match status {
            Status::InvalidArgument => JITMEM_INVALID_ARGUMENT,
            Status::InvalidHandle => JITMEM_INVALID_HANDLE,
            Status::WindowFull => JITMEM_WINDOW_FULL,
            Status::QuotaExceeded => JITMEM_QUOTA_EXCEEDED,
            Status::OutOfMemory => JITMEM_OUT_OF_MEMORY,
            Status::Denied => JITMEM_DENIED,
            Status::ActionFailed => JITMEM_ACTION_FAILED,
            Status::Unsupported => JITMEM_UNSUPPORTED,
            Status::Disconnected => JITMEM_DISCONNECTED,
            Status::MapperFailed => JITMEM_MAPPER_FAILED,
            Status::System => JITMEM_SYSTEM,
            Status::Internal => JITMEM_INTERNAL,
            Status::WouldBlock => JITMEM_WOULD_BLOCK,
            Status::TimedOut => JITMEM_TIMED_OUT,
            Status::Cancelled => JITMEM_CANCELLED,
        }
    }
}

/// Why a call failed: status, errno and a message that names operation, value, cause and remedy.
/// Owned by its receiver; free it with jitmem_error_free. Not shared between threads
/// without the host's own ordering.
#[allow(non_camel_case_types)]
pub struct jitmem_error {
    status: jitmem_status,
    os_code: i32,
    message: CString,
}

/// A message for C. It may be of thousands of failures.
fn text_of(message: &str) -> CString {
    let mut text = Vec::new();
    if text.try_reserve_exact(message.len() + 1).is_err() {
        return CString::from(c"the heap has no memory for the message");
    }
    let printable = |byte| if byte == 0 { b'?' } else { byte };
    text.extend(message.bytes().map(printable));
    CString::new(text).unwrap_or_default()
}

impl From<Error> for jitmem_error {
    fn from(error: Error) -> Self {
        jitmem_error {
            status: error.status().into(),
            os_code: error.os_code().unwrap_or(0),
            message: text_of(error.message()),
        }
    }
}

static ERRORS: handle::Pool<jitmem_error> = handle::Pool::new(handle::Kind::Error);

impl Handle for jitmem_error {
    fn pool() -> &'static handle::Pool<Self> {
        &ERRORS
    }
    const NAME: &'static str = "jitmem_error";
}

/// An error object for a failure. Where the heap has no memory for one, a number that says the status
/// alone; it is never freed.
pub(super) fn object(failure: Error) -> *mut jitmem_error {
    let status = failure.status();
    let described = !failure.message().is_empty() && heap::check().is_ok();
    let object = described.then(|| handle::give(jitmem_error::from(failure)).ok());
    object.flatten().unwrap_or_else(|| {
        let number = handle::never_given(handle::Kind::Error, status as u32);
        std::ptr::without_provenance_mut(number as usize)
    })
}

/// The status that an error says alone.
fn bare(error: *const jitmem_error) -> Option<Status> {
    let number = |status: &Status| handle::never_given(handle::Kind::Error, *status as u32);
    let mut all = ALL_STATUSES.into_iter();
    all.find(|status| number(status) == error.addr() as u64)
}

const BARE: &CStr =
    c"the heap is exhausted (malloc gives no memory), so that the failure can't be \
described; free memory, or raise RLIMIT_AS or the memory cgroup's limit";

/// The status of an error. NULL: JITMEM_OK. A freed error: JITMEM_INVALID_HANDLE.
///
/// # Safety
/// `error` is NULL or came from this library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_error_status(error: *const jitmem_error) -> jitmem_status {
    if error.is_null() {
        return jitmem_status::JITMEM_OK;
    }
    // SAFETY: the caller says that it is NULL or one of ours.
    match unsafe { handle::live(error) } {
        Some(error) => error.status,
        None => bare(error).map_or(jitmem_status::JITMEM_INVALID_HANDLE, jitmem_status::from),
    }
}

/// What happened, as UTF-8 text without final full stop: operation, value, cause, remedy. Valid
/// until the error is freed. NULL: "success".
///
/// # Safety
/// `error` is NULL or came from this library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_error_message(error: *const jitmem_error) -> *const c_char {
    if error.is_null() {
        return c"success".as_ptr();
    }
    // SAFETY: the caller says that it is NULL or one of ours.
    match unsafe { handle::live(error) } {
        Some(error) => error.message.as_ptr(),
        None if bare(error).is_some() => BARE.as_ptr(),
        None => c"this jitmem_error was freed before".as_ptr(),
    }
}

/// errno of the system call behind an error; 0 if there was none, and for NULL.
///
/// # Safety
/// `error` is NULL or came from this library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_error_os_code(error: *const jitmem_error) -> i32 {
    if error.is_null() {
        return 0;
    }
    // SAFETY: the caller says that it is NULL or one of ours.
    unsafe { handle::live(error) }.map_or(0, |error| error.os_code)
}

/// Frees an error. NULL and an error that was freed before: does nothing.
///
/// # Safety
/// `error` is NULL or came from this library, and neither it nor its message is used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_error_free(error: *mut jitmem_error) {
    // SAFETY: as the caller says.
    unsafe { guard::free(error) }
}

/// The name of a status, such as "JITMEM_WINDOW_FULL"; "unknown status" for other numbers. Static.
///
/// Thread-safe; never fails.
#[unsafe(no_mangle)]
pub extern "C" fn jitmem_status_name(status: u32) -> *const c_char {
    let name: &CStr = match status {
        0 => c"JITMEM_OK",
        1 => c"JITMEM_INVALID_ARGUMENT",
        2 => c"JITMEM_INVALID_HANDLE",
        3 => c"JITMEM_WINDOW_FULL",
        4 => c"JITMEM_QUOTA_EXCEEDED",
        5 => c"JITMEM_OUT_OF_MEMORY",
        6 => c"JITMEM_DENIED",
        7 => c"JITMEM_ACTION_FAILED",
        8 => c"JITMEM_UNSUPPORTED",
        9 => c"JITMEM_DISCONNECTED",
        10 => c"JITMEM_MAPPER_FAILED",
        11 => c"JITMEM_SYSTEM",
        12 => c"JITMEM_INTERNAL",
        13 => c"JITMEM_WOULD_BLOCK",
        14 => c"JITMEM_TIMED_OUT",
        15 => c"JITMEM_CANCELLED",
        _ => c"unknown status",
    };
    name.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ALL_STATUSES;

    #[test]
    fn numbers_and_names_are_those_of_the_rust_side() {
        for status in ALL_STATUSES {
            assert_eq!(jitmem_status::from(status) as u32, status as u32);
            // SAFETY: static C strings.
            let name = unsafe { CStr::from_ptr(jitmem_status_name(status as u32)) };
            assert_eq!(name.to_str(), Ok(status.name()));
            assert_eq!(format!("{:?}", jitmem_status::from(status)), status.name());
        }
    }
}
