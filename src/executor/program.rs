// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a program is to do whose whole purpose is to be an executor, and that a host is not.

use crate::error::{Error, Result, Status};
use crate::sys::{self, explain};
use std::ffi::c_int;
use std::os::fd::{OwnedFd, RawFd};

/// The descriptors to read and to write that the process that started this one has left open. They
/// are this program's from here, under other numbers; both may be the same.
///
/// # Errors
/// What the system says, above all that there is no such descriptor.
///
/// # Safety
/// Nothing else in this process owns the descriptors; standard streams may be used elsewhere.
#[allow(unsafe_code)]
pub unsafe fn take_descriptors(input: RawFd, output: RawFd) -> Result<(OwnedFd, OwnedFd)> {
    let failed = |descriptor: RawFd, error| {
        let operation = format!("take descriptor {descriptor}");
        Error::system(Status::InvalidArgument, operation, error)
    };
    // Before one has a copy, which could have the number of the other.
    for descriptor in [input, output] {
        sys::check_open(descriptor).map_err(|error| failed(descriptor, error))?;
    }
    let duplicate = |descriptor| {
        // SAFETY: the caller hands them over.
        let copy = unsafe { sys::duplicate(descriptor) };
        copy.map_err(|error| failed(descriptor, error))
    };
    let (reads, writes) = (duplicate(input)?, duplicate(output)?);
    // SAFETY: as above; each is closed once.
    unsafe {
        sys::close_handed_over(input);
        if output != input {
            sys::close_handed_over(output);
        }
    }
    Ok((reads, writes))
}

/// Has a line on stderr say so, under this name, when a crash ends the process. Linked code may handle
/// the signals itself.
pub fn report_crashes(program: &str) {
    sys::report_crashes(program);
}

/// The same when a limit ends it whose signal is given: SIGXCPU or SIGXFSZ.
pub fn report_limit(program: &str, signal: c_int) {
    sys::report_limit(program, signal);
}

/// Leaves memory of jitmem's service shared with children that linked code forks: they see what this process
/// and its controller write later, and forks copy nothing. Called before there is a session.
pub fn share_memory_with_children() {
    super::service::share_memory_with_children();
}

/// Makes a socket at which controllers connect to hand memory over, for when this process can't make or
/// connect one any more. Called before that, and before there is a session.
///
/// # Errors
/// What the system says. Memory is handed over in other ways then, or content goes in messages.
pub fn listen_for_controllers() -> Result<()> {
    super::service::listen()
}

/// Least bytes of stack that a thread can run linked code on.
pub const LEAST_STACK: usize = 64 << 10;

/// Sets the bytes of stack that threads of programs have. Without this it is as much as the main thread's, 8 MiB
/// at least; under a limit of address space no more than an eighth of that divided by the programs in flight, but
/// 256 KiB. Called before there is a session.
///
/// # Errors
/// `InvalidArgument` for less than [`LEAST_STACK`].
pub fn set_stack_size(bytes: usize) -> Result<()> {
    if bytes < LEAST_STACK {
        return Err(crate::error::invalid_argument(format!(
            "a stack of {bytes} bytes is too small: programs need {LEAST_STACK} at least"
        )));
    }
    sys::set_stack_size(bytes);
    Ok(())
}

/// Keeps what malloc reserves within a limit of address space that was set before. Called before there are other
/// threads.
pub fn fit_heap_to_limit() {
    sys::fit_heap_to_limit();
}

/// Serves controllers without making a page executable that is there already, as PR_SET_MDWE has it: LLVM's simple
/// memory manager puts code into memfds of its own. And takes the access rights from the views through which
/// jitmem's service writes code and constants, but while it writes: linked code that has gone astray writes there
/// no more. What attacks can give itself these rights again, where this process writes the pages and not its
/// controller. Called before there is a session.
pub fn keep_code_fixed() {
    super::fixed_code::set();
}

/// Starts a thread that takes none of the process's signals: those are for linked code.
///
/// # Errors
/// What the system says when there is no thread to be had.
pub fn start_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = sys::spawn(name, body);
    started.map_err(|error| explain(format_args!("start thread {name}"), error))
}

/// Where the entry of GDB's list of debug objects is that was registered first; 0 if there is none.
pub fn oldest_debug_entry() -> u64 {
    sys::oldest_debug_entry()
}

/// Loads libstdc++, libgcc_s and libm now, where the system has them, and not when a controller first
/// looks for a symbol that the process has not.
pub fn load_cxx_runtime() {
    super::llvm::load_cxx_runtime();
}
