// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The deallocation actions of a session, and which allocations have actions running.

use crate::error::{Result, invalid_argument, invalid_handle};
use crate::lock::{Condvar, Mutex};
use crate::mapper::WrapperCall;
use crate::sys;
use std::collections::BTreeMap;
use std::time::Instant;

#[derive(Default)]
pub(super) struct Teardowns {
    state: Mutex<TeardownState>,
    /// Told when nothing is running.
    quiet: Condvar,
}

/// Actions by key; keys grow, so the last one is the latest.
#[derive(Default)]
struct TeardownState {
    last: u64,
    calls: BTreeMap<u64, Vec<WrapperCall>>,
    /// The most allocations that have had calls since the heap was trimmed.
    most: usize,
    /// The heap was trimmed since there were no calls.
    trimmed: bool,
    /// Allocations that are being initialized or deinitialized.
    running: usize,
    /// No more will be.
    closed: bool,
}

/// The heap is trimmed once half of the allocations with calls are gone, if that is as many. What is left of
/// them may keep a page of the heap each.
const MANY: usize = 256;

/// An allocation that is being initialized or deinitialized.
pub(super) struct Running<'a>(&'a Teardowns);

impl Teardowns {
    /// Lets the session's end wait until the answer is dropped.
    ///
    /// # Errors
    /// `InvalidHandle` if the session has ended.
    pub(super) fn begin(&self) -> Result<Running<'_>> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(invalid_handle("the session is closed"));
        }
        state.running += 1;
        Ok(Running(self))
    }

    /// Remembers the calls of an allocation under a key; 0 if there are none.
    pub(super) fn add(&self, calls: Vec<WrapperCall>) -> u64 {
        if calls.is_empty() {
            return 0;
        }
        let mut state = self.state.lock();
        state.last += 1;
        let key = state.last;
        state.calls.insert(key, calls);
        state.most = state.most.max(state.calls.len());
        key
    }

    /// Takes the calls of an allocation out.
    pub(super) fn take(&self, key: u64) -> Result<Vec<WrapperCall>> {
        if key == 0 {
            return Ok(Vec::new());
        }
        let (calls, many_are_gone) = {
            let mut state = self.state.lock();
            (state.calls.remove(&key), state.many_are_gone())
        };
        if many_are_gone {
            sys::heap::trim();
        }
        calls.ok_or_else(|| invalid_argument(format!("no allocation has the key {key}")))
    }

    /// Takes all of them out, the latest last.
    pub(super) fn take_all(&self) -> impl DoubleEndedIterator<Item = Vec<WrapperCall>> {
        std::mem::take(&mut self.state.lock().calls).into_values()
    }

    /// Lets nothing begin any more, and waits until nothing runs; `false` if something still does at
    /// `deadline`.
    pub(super) fn close(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        state.closed = true;
        while state.running > 0 && Instant::now() < deadline {
            state = self.quiet.wait_until(state, deadline);
        }
        state.running == 0
    }
}

impl TeardownState {
    /// Whether much of the heap is free again; says so once.
    fn many_are_gone(&mut self) -> bool {
        let left = self.calls.len();
        let many = self.most - left >= MANY.max(left) || (left == 0 && self.trimmed);
        if many {
            (self.most, self.trimmed) = (left, left > 0);
        }
        many
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.running -= 1;
        if state.running == 0 {
            self.0.quiet.notify_all();
        }
    }
}
