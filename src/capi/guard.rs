// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The boundary that every call crosses: errors become objects, panics never leave.

use super::handle::{self, Handle};
use super::status::{self, jitmem_error, jitmem_status};
use crate::error::{Error, Result, Status};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a panic said.
fn panicked(payload: &(dyn std::any::Any + Send)) -> Error {
    let said = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    Error::new(Status::Internal, format!("jitmem panicked: {said}"))
        .remedy("this is a defect in jitmem: please report it with this message")
}

/// Runs `body`; `Err` is what it panicked with.
pub(super) fn catch<T>(body: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|payload| panicked(&*payload))
}

/// Ends a handle. NULL and one that was freed before: nothing.
///
/// # Safety
/// `handle` is NULL or came from this library, and no other thread uses it.
pub(super) unsafe fn free<T: Handle>(handle: *mut T) {
    // SAFETY: as the caller says.
    let taken = unsafe { handle::take(handle) };
    let _ = catch(|| drop(taken));
}

/// Runs `body` and turns its failure into a status and, if asked for, an error object.
///
/// # Safety
/// `error` is NULL or a place for a pointer.
pub(super) unsafe fn call(
    error: *mut *mut jitmem_error,
    body: impl FnOnce() -> Result<()>,
) -> jitmem_status {
    match catch(body).and_then(|result| result) {
        Ok(()) => jitmem_status::JITMEM_OK,
        Err(failure) => {
            let answer = failure.status().into();
            // To decline to wait is no failure that needs words.
            if !error.is_null() && failure.status() != Status::WouldBlock {
                // SAFETY: the caller says that it is a place for a pointer.
                unsafe { error.write(status::object(failure)) };
            }
            answer
        }
    }
}
