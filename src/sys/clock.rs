// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The clock that profilers use.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// CLOCK_MONOTONIC, which perf records with `-k mono`.
pub(crate) fn monotonic_time() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither part is ever negative: it counts from the system's start.
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
