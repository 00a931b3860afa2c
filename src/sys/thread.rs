// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Threads that jitmem starts in a host's process.

use super::gate;
use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// Signals that report what the thread itself did; blocked, they would kill the process.
const OWN: [libc::c_int; 6] = [
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGTRAP,
];

/// Bytes of stack of a thread that runs no linked code but what a controller calls there.
const STACK: usize = 2 << 20;
/// Bytes of a thread's name with the zero byte behind it.
const NAME: usize = 16;

/// The number of this thread, which no other has ever. Not std's, whose threads' own blocks come from the heap.
pub(crate) fn thread_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(0) };
    }
    if NUMBER.get() == 0 {
        NUMBER.set(LAST.fetch_add(1, Ordering::Relaxed) + 1);
    }
    NUMBER.get()
}

/// Ends the process at once: no exit handlers run, and no buffers are written.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Ends the process without exit handlers; what was printed by C's streams is written.
pub(crate) fn flush_and_exit(code: i32) -> ! {
    // SAFETY: NULL is all streams.
    unsafe { libc::fflush(std::ptr::null_mut()) };
    exit_now(code)
}

/// Starts a thread that takes none of the process's signals: they are for the host's threads.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    spawn_with(STACK, name, body)
}

/// [`spawn`] with as much stack as the process's first thread may have, for one that forks: it is the first one of the
/// child.
pub(crate) fn spawn_to_fork(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    spawn_with(super::program::stack_size(), name, body)
}

fn spawn_with(stack: usize, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    gate("clone")?;
    let mut blocked = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: each call is given a set to fill or a set that was filled; masks are per thread.
    unsafe {
        libc::sigfillset(blocked.as_mut_ptr());
        for signal in OWN {
            libc::sigdelset(blocked.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, blocked.as_ptr(), before.as_mut_ptr());
    }
    let mut named = [0; NAME];
    let length = name.len().min(NAME - 1);
    named[..length].copy_from_slice(&name.as_bytes()[..length]);
    let spawned = start(stack, move || {
        // SAFETY: the name ends with a zero byte.
        unsafe { libc::prctl(libc::PR_SET_NAME, named.as_ptr()) };
        body();
    });
    // SAFETY: the mask that this thread had a moment ago.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    spawned
}

/// Starts a thread, detached, with so much stack. Not through std, whose threads register destructors
/// of thread-locals: glibc ends the process where the heap has no memory for that.
pub(super) fn start(stack: usize, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    type Body = Box<dyn FnOnce() + Send>;

    extern "C" fn run(body: *mut c_void) -> *mut c_void {
        // SAFETY: `start` has made a pointer of the box, for this thread alone.
        let body = unsafe { Box::from_raw(body.cast::<Body>()) };
        // What a panic says is on stderr; there is nothing that waits for the thread.
        let _ = catch_unwind(AssertUnwindSafe(body));
        std::ptr::null_mut()
    }

    let body: Box<Body> = Box::new(Box::new(body));
    let body = Box::into_raw(body);
    // SAFETY: the thread takes the box.
    let created = unsafe { create(stack, run, body.cast()) };
    created.inspect_err(|_| {
        // SAFETY: no thread has taken it.
        drop(unsafe { Box::from_raw(body) });
    })
}

/// Creates a thread, detached, with so much stack.
///
/// # Safety
/// The function may be called with the argument, by another thread and at any later time.
pub(super) unsafe fn create(
    stack: usize,
    function: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> io::Result<()> {
    let mut attributes = MaybeUninit::uninit();
    let mut thread = MaybeUninit::uninit();
    // SAFETY: attributes are initialized, used and destroyed; the caller vouches for the function.
    let code = unsafe {
        libc::pthread_attr_init(attributes.as_mut_ptr());
        libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), stack);
        libc::pthread_attr_setdetachstate(attributes.as_mut_ptr(), libc::PTHREAD_CREATE_DETACHED);
        let attributes_of = attributes.as_ptr();
        let code = libc::pthread_create(thread.as_mut_ptr(), attributes_of, function, argument);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        code
    };
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}
