// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Running a program's functions.

use super::answer;
use crate::sys::{self, Answer, OwnerProcess};
use crate::wire::sps::{Bytes, ExecutorAddr};

/// `int64_t (addr function, sequence<string> args)`.
pub(super) fn as_main(args: &[u8]) -> Answer {
    answer(args, |(function, args): (ExecutorAddr, Vec<Bytes<'_>>)| {
        let args: Vec<&[u8]> = args.into_iter().map(|arg| arg.0).collect();
        let process = OwnerProcess::current();
        // SAFETY: the controller says that it has linked a main function there.
        let value = unsafe { sys::call_main(function.0, &args) };
        if !process.is_current() {
            // A child of the program's has come to the end of main, which is the child's own end.
            std::process::exit(value);
        }
        i64::from(value)
    })
}

/// `void (addr function)`.
pub(super) fn as_nothing(args: &[u8]) -> Answer {
    answer(args, |function: ExecutorAddr| {
        // SAFETY: the controller says that it has linked a function without arguments there.
        let _ = unsafe { sys::call_void(function.0) };
    })
}

/// `int32_t (addr function)`.
pub(super) fn as_void(args: &[u8]) -> Answer {
    answer(args, |function: ExecutorAddr| {
        // SAFETY: the controller says that it has linked such a function there.
        unsafe { sys::call_void(function.0) }
    })
}

/// `int32_t (addr function, int32_t argument)`.
pub(super) fn as_int(args: &[u8]) -> Answer {
    answer(args, |(function, argument): (ExecutorAddr, i32)| {
        // SAFETY: the controller says that it has linked such a function there.
        unsafe { sys::call_int(function.0, argument) }
    })
}
