// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Whether this process is one in which no page that is there may become executable (PR_SET_MDWE, or a
//! filter of system calls), and in which linked code is not to find code and constants writable.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static FIXED: AtomicBool = AtomicBool::new(false);

pub(super) fn set() {
    FIXED.store(true, Relaxed);
}

pub(super) fn is_set() -> bool {
    FIXED.load(Relaxed)
}
