// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Telling ThreadSanitizer of locks, which it does not see in code that is not instrumented: it would take
//! memory that one thread frees and another gets for a data race of the host's. And whether it is there, for what
//! has to differ then.

use std::ffi::c_void;

// The functions of its interface (sanitizer/tsan_interface.h), or null without it. Weak references, for
// which Rust has no words.
#[cfg(not(miri))]
std::arch::global_asm!(
    r#"
    .pushsection .data.rel.ro.jitmem_tsan, "aw", %progbits
    .weak __tsan_acquire
    .weak __tsan_release
    .globl jitmem_tsan
    .hidden jitmem_tsan
    .type jitmem_tsan, %object
    .p2align 3
jitmem_tsan:
    .8byte __tsan_acquire
    .8byte __tsan_release
    .size jitmem_tsan, 16
    .popsection
    "#
);

type Tell = unsafe extern "C" fn(*mut c_void);

#[cfg(not(miri))]
unsafe extern "C" {
    static jitmem_tsan: [Option<Tell>; 2];
}

#[inline]
fn interface() -> [Option<Tell>; 2] {
    #[cfg(miri)]
    return [None; 2];
    // SAFETY: the loader fills it before any code runs, and nothing changes it.
    #[cfg(not(miri))]
    unsafe {
        jitmem_tsan
    }
}

/// Whether this process has it.
pub(crate) fn is_there() -> bool {
    interface()[0].is_some()
}

/// What a thread did under a lock, told to the next one that takes it when this is dropped.
#[derive(Debug)]
pub(crate) struct Synchronization(*mut c_void);

/// A lock that a waiting thread has given up.
pub(crate) struct GivenUp(*mut c_void);

impl Synchronization {
    /// After a lock was taken; what it is stands for itself.
    #[inline]
    pub(crate) fn acquire<T>(lock: &T) -> Synchronization {
        let lock = std::ptr::from_ref(lock).cast_mut().cast();
        GivenUp(lock).acquire_again()
    }

    /// Before the lock is given up, to wait.
    #[inline]
    pub(crate) fn release(self) -> GivenUp {
        GivenUp(self.0)
    }
}

impl GivenUp {
    /// When it was taken again.
    #[inline]
    pub(crate) fn acquire_again(self) -> Synchronization {
        if let [Some(acquire), _] = interface() {
            // SAFETY: to it the address is a name.
            unsafe { acquire(self.0) };
        }
        Synchronization(self.0)
    }
}

impl Drop for Synchronization {
    #[inline]
    fn drop(&mut self) {
        if let [_, Some(release)] = interface() {
            // SAFETY: to it the address is a name.
            unsafe { release(self.0) };
        }
    }
}
