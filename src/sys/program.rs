// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Running a program that was linked into this process.
//!
//! The addresses come from whoever linked it; like any call of linked code these can do anything
//! at all. No lock of ours may be held.

use super::gate;
use std::ffi::{c_char, c_int, c_void};
use std::io;

/// Least bytes of stack for threads that run programs: what a main thread has by default.
const STACK: u64 = 8 << 20;

fn code(address: u64) -> *const () {
    std::ptr::with_exposed_provenance(address as usize)
}

/// Calls `int main(int, char **)` with exactly these arguments.
pub(crate) fn call_main(function: u64, args: &[&[u8]]) -> i32 {
    let mut strings: Vec<Vec<u8>> = args.iter().map(|arg| [*arg, b"\0"].concat()).collect();
    let mut argv: Vec<*mut c_char> = strings
        .iter_mut()
        .map(|string| string.as_mut_ptr().cast())
        .collect();
    argv.push(std::ptr::null_mut());
    let count = c_int::try_from(args.len()).unwrap_or(c_int::MAX);
    // SAFETY: the linker says that a main function is at this address; strings and array are
    // writable and live through the call.
    unsafe {
        let main: unsafe extern "C" fn(c_int, *mut *mut c_char) -> c_int =
            std::mem::transmute(code(function));
        main(count, argv.as_mut_ptr())
    }
}

/// Calls `int32_t f(void)`.
pub(crate) fn call_void(function: u64) -> i32 {
    // SAFETY: the linker says that such a function is at this address.
    unsafe {
        let function: unsafe extern "C" fn() -> i32 = std::mem::transmute(code(function));
        function()
    }
}

/// Calls `int32_t f(int32_t)`.
pub(crate) fn call_int(function: u64, argument: i32) -> i32 {
    // SAFETY: the linker says that such a function is at this address.
    unsafe {
        let function: unsafe extern "C" fn(i32) -> i32 = std::mem::transmute(code(function));
        function(argument)
    }
}

/// Calls `void f(const void *)`: what registers an `.eh_frame` section, and its reverse.
pub(crate) fn call_on_frames(function: u64, frames: u64) {
    let frames: *const c_void = std::ptr::with_exposed_provenance(frames as usize);
    // SAFETY: the dynamic linker found the unwinder's function at this address; the linker says
    // that frames are at the other.
    unsafe {
        let function: unsafe extern "C" fn(*const c_void) = std::mem::transmute(code(function));
        function(frames)
    }
}

/// Starts a thread that may run programs: with the name and the signals of the thread that starts
/// it, and as much stack as a main thread. To join it is to wait for the destructors of its
/// thread-locals as well.
pub(crate) fn spawn_for_programs<T: Send + 'static>(
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<std::thread::JoinHandle<T>> {
    gate("clone")?;
    let stack = super::limit(libc::RLIMIT_STACK).unwrap_or(STACK).max(STACK);
    std::thread::Builder::new()
        .stack_size(stack as usize)
        .spawn(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    unsafe extern "C" fn main(argc: c_int, argv: *mut *mut c_char) -> c_int {
        // SAFETY: as `call_main` promises.
        let args = unsafe { std::slice::from_raw_parts(argv, argc as usize + 1) };
        assert!(args[argc as usize].is_null());
        let mut sum = 0;
        for arg in &args[..argc as usize] {
            // SAFETY: a writable string.
            unsafe {
                sum = sum * 10 + CStr::from_ptr(*arg).to_bytes().len() as c_int;
                **arg = b'x' as c_char;
            }
        }
        -sum
    }

    unsafe extern "C" fn seven() -> i32 {
        7
    }

    unsafe extern "C" fn negate(value: i32) -> i32 {
        -value
    }

    #[test]
    fn programs_get_exactly_what_is_passed() {
        let main: unsafe extern "C" fn(c_int, *mut *mut c_char) -> c_int = main;
        let main = (main as *const ()).expose_provenance() as u64;
        assert_eq!(call_main(main, &[b"abc", b"", b"x"]), -301);
        assert_eq!(call_main(main, &[]), 0);
        let seven: unsafe extern "C" fn() -> i32 = seven;
        assert_eq!(
            call_void((seven as *const ()).expose_provenance() as u64),
            7
        );
        let negate: unsafe extern "C" fn(i32) -> i32 = negate;
        let negate = (negate as *const ()).expose_provenance() as u64;
        assert_eq!(call_int(negate, i32::MAX), -i32::MAX);
    }
}
