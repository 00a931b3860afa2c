// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Knowing that we are in a forked child, without a system call per question.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, OnceLock};

static GENERATION: AtomicU32 = AtomicU32::new(0);

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
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
        // SAFETY: the handler is a plain function that touches one atomic; registering it can
        // only fail for lack of memory, and then children simply go undetected.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
    GENERATION.load(Ordering::Relaxed)
}
