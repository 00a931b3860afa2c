// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Children that linked code forks. What a session has in this process are shared pages, and its controller
//! goes on writing them; children get copies, as the pages are at the fork.

use super::windows::SessionWindow;
use crate::memory::child_copy::ChildCopy;
use crate::sys::{self, Forked};
use std::ffi::OsStr;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the environment says of memory in forked children: "shared" leaves it so.
const VARIABLE: &str = "JITMEM_FORK_MEMORY";

static SHARED: OnceLock<bool> = OnceLock::new();

/// What the environment says with "shared".
pub(in crate::executor) fn share_memory() {
    let _ = SHARED.set(true);
}

fn shared() -> bool {
    *SHARED.get_or_init(|| std::env::var_os(VARIABLE).as_deref() == Some(OsStr::new("shared")))
}

/// This process forks children that go on with all that it has.
static FORKS_SUCCESSORS: AtomicBool = AtomicBool::new(false);

/// Says whether children that are forked from now on go on with what this process has, as they find it.
pub(in crate::executor) fn set_forks_successors(does: bool) {
    FORKS_SUCCESSORS.store(does, Ordering::Relaxed);
}

fn forks_successors() -> bool {
    FORKS_SUCCESSORS.load(Ordering::Relaxed)
}

/// The copies of one chunk, and whether the last one was made.
#[derive(Debug, Default)]
pub(super) struct ForChildren {
    copy: Option<ChildCopy>,
    error: Option<io::Error>,
}

/// Reads the choice, so that no fork has to.
pub(super) fn prepare() {
    shared();
}

/// Before a fork.
pub(super) fn copy(windows: &mut [SessionWindow]) {
    if shared() || forks_successors() {
        return;
    }
    for chunk in windows.iter_mut().flat_map(SessionWindow::chunks) {
        let (range, protection) = (chunk.view.executor(), chunk.protection);
        if chunk.view.is_private() || !protection.readable() {
            continue;
        }
        // SAFETY: the view is mapped with this protection, and the caller holds the lock around it.
        let updated = unsafe { ChildCopy::update(&mut chunk.children.copy, range, protection) };
        chunk.children.error = updated.err();
    }
}

/// After a fork. A child leaves all that is the parent's as it is, but puts the copies in their places. Data
/// that it would share ends it; code that it shares it can run.
pub(super) fn forked(windows: &mut Vec<SessionWindow>, forked: Forked) {
    if !forked.in_child || forks_successors() {
        return;
    }
    for chunk in windows.iter_mut().flat_map(SessionWindow::chunks) {
        let range = chunk.view.executor();
        let copied = match (chunk.children.error.take(), chunk.children.copy.take()) {
            (Some(error), copy) => {
                std::mem::forget(copy);
                Err(error)
            }
            // SAFETY: the only thread of a child, before it goes on.
            (None, Some(copy)) => unsafe { copy.replace(range) },
            (None, None) => Ok(()),
        };
        if copied.is_err() && chunk.protection.writable() {
            sys::end_child(
                "jitmem: fork in an executor: no memory for the child's copy of linked data; \
                 the child ends\n",
            );
        }
    }
    std::mem::forget(std::mem::take(windows));
}
