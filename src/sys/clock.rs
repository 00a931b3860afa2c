// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The clock that profilers use.

use std::mem::MaybeUninit;
use std::time::Duration;

/// CLOCK_MONOTONIC, which perf records with `-k mono`. The C library's, since rustix reads the vDSO where
/// valgrind has none.
pub(crate) fn monotonic_time() -> Duration {
    let mut now = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: it is a place for the answer, which zero is one of.
    let now = unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, now.as_mut_ptr());
        now.assume_init()
    };
    // Neither part is ever negative: it counts from the system's start.
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
