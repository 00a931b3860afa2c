// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Threads that jitmem starts in a host's process.

use super::gate;
use std::io;
use std::mem::MaybeUninit;

/// Signals that report what the thread itself did; blocked, they would kill the process.
const OWN: [libc::c_int; 5] = [
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGTRAP,
];

/// Starts a thread that takes none of the process's signals: they are for the host's threads.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
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
    let spawned = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body);
    // SAFETY: the mask that this thread had a moment ago.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    spawned.map(drop)
}
