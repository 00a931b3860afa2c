// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Knowing that we are in a forked child, without a system call per question; and keeping
//! connections from children, at whose other end nobody would see the end of this process.

use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Once, OnceLock};

static GENERATION: AtomicU32 = AtomicU32::new(0);

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    if KEPT.iter().any(|kept| kept.load(Ordering::Relaxed) != FREE) {
        // SAFETY: a child of a process with threads may do what signal handlers may: this makes
        // system calls, and changes descriptors of the child's alone.
        unsafe { replace_kept() }
    }
}

/// Descriptors that children shall not have. A fixed number of places, so that a child needs neither
/// locks nor the heap; whoever finds none free goes without.
static KEPT: [AtomicI32; 1024] = [const { AtomicI32::new(FREE) }; 1024];
const FREE: i32 = -1;

/// Puts a socket whose other end is closed in the places of all that is kept. The numbers stay
/// taken: what belongs to the parent may still be dropped here.
///
/// # Safety
/// Only in a child, which has one thread.
unsafe fn replace_kept() {
    let mut ends = [FREE; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: room for two descriptors; those are closed, and the places of others are the child's.
    unsafe {
        if libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) != 0 {
            return;
        }
        libc::close(ends[1]);
        for kept in &KEPT {
            let number = kept.load(Ordering::Relaxed);
            if number != FREE {
                libc::dup3(ends[0], number, libc::O_CLOEXEC);
            }
        }
        libc::close(ends[0]);
    }
}

/// A descriptor that forked children find closed at the other end.
#[derive(Debug)]
pub(crate) struct Kept {
    place: Option<&'static AtomicI32>,
    descriptor: Arc<OwnedFd>,
}

impl Kept {
    pub(crate) fn new(descriptor: impl Into<Arc<OwnedFd>>) -> Kept {
        fork_generation(); // installs the handler
        let descriptor = descriptor.into();
        let number = descriptor.as_raw_fd();
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let take = |place: &&AtomicI32| place.compare_exchange(FREE, number, set, get).is_ok();
        let place = KEPT.iter().find(take);
        Kept { place, descriptor }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Before the number can be another's.
        if let Some(place) = self.place {
            place.store(FREE, Ordering::Relaxed);
        }
    }
}

impl Deref for Kept {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        &self.descriptor
    }
}

impl AsFd for Kept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What to call at exit, and in which process.
static AT_EXIT: OnceLock<(fn(), u32)> = OnceLock::new();

extern "C" fn at_exit() {
    if let Some((handler, generation)) = AT_EXIT.get() {
        if *generation == fork_generation() {
            handler();
        }
    }
}

/// Has `handler` called when the process exits, however often this is asked for. Not in forked
/// children, which inherit the C library's list: what ends there is not the parent's.
pub(crate) fn at_exit_once(handler: fn()) {
    AT_EXIT.get_or_init(|| {
        // SAFETY: a plain function of ours; libjitmem.so is never unloaded. Without memory for it
        // nothing is called, and then there is nothing to say it to either.
        unsafe { libc::atexit(at_exit) };
        (handler, fork_generation())
    });
}

/// A number that differs between a process and its forked children.
pub(crate) fn fork_generation() -> u32 {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // SAFETY: the handler is a plain function that does what it may in a child; registering it
        // can only fail for lack of memory, and then children simply go undetected.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
    GENERATION.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// Whether `check` holds in a forked child.
    fn in_a_child(check: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child makes system calls and exits.
        unsafe {
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                libc::_exit(if check() { 0 } else { 1 });
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            status == 0
        }
    }

    #[test]
    fn children_find_what_is_kept_closed_and_its_number_taken() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let (other, _its_end) = UnixStream::pair().unwrap();
        let (kept, number) = (Kept::new(OwnedFd::from(here)), other.as_raw_fd());
        let mut own = kept.try_clone().map(UnixStream::from).unwrap();
        let dead = |descriptor: i32| {
            let mut byte = 0u8;
            // SAFETY: a byte to write to.
            unsafe { libc::recv(descriptor, (&raw mut byte).cast(), 1, libc::MSG_DONTWAIT) == 0 }
        };
        let descriptor = kept.as_raw_fd();
        assert!(in_a_child(|| dead(descriptor) && !dead(number)));
        // The parent has noticed nothing.
        there.write_all(b"x").unwrap();
        let mut byte = [0];
        own.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
    }

    #[test]
    fn what_is_dropped_is_kept_no_longer() {
        let (here, there) = UnixStream::pair().unwrap();
        let shared = Arc::new(OwnedFd::from(here));
        let kept = Kept::new(Arc::clone(&shared));
        drop(kept);
        there.set_nonblocking(true).unwrap();
        let descriptor = shared.as_raw_fd();
        assert!(in_a_child(move || {
            // SAFETY: a byte to read.
            unsafe { libc::send(descriptor, b"y".as_ptr().cast(), 1, 0) == 1 }
        }));
        let mut byte = [0];
        (&there).read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"y");
    }
}
