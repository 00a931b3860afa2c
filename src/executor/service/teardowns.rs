// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The deallocation actions of a session, and which allocations have actions running.

use crate::error::{Result, invalid_argument, invalid_handle};
use crate::executor::actions::NamedCall;
use crate::lock::{Condvar, Mutex};
use crate::mapper::WrapperCall;
use crate::memory::byte_strings::ByteStrings;
use crate::memory::paged::Table;
use crate::sys::{self, explain};
use crate::wire::sps::{self, Call, Encode};
use std::time::Instant;

pub(super) struct Teardowns {
    state: Mutex<TeardownState>,
    /// Told when nothing is running.
    quiet: Condvar,
}

struct TeardownState {
    /// The calls of each allocation, encoded.
    calls: ByteStrings,
    /// Allocations that have calls, and the most of them since memory was given back.
    live: usize,
    most: usize,
    /// Memory was given back since there were no calls.
    trimmed: bool,
    /// Allocations that are being initialized or deinitialized.
    running: usize,
    /// No more will be.
    closed: bool,
}

/// Memory is given back once half of the allocations with calls are gone, if that is as many.
const MANY: usize = 256;

/// An allocation that is being initialized or deinitialized.
pub(super) struct Running<'a>(&'a Teardowns);

impl Teardowns {
    pub(super) fn new() -> Teardowns {
        Teardowns {
            state: Mutex::new(TeardownState {
                calls: ByteStrings::new(),
                live: 0,
                most: 0,
                trimmed: false,
                running: 0,
                closed: false,
            }),
            quiet: Condvar::new(),
        }
    }

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
    pub(super) fn add(&self, calls: &[NamedCall<'_>]) -> Result<u64> {
        if calls.is_empty() {
            return Ok(0);
        }
        // Of each call its function and the size of its arguments, of all their number.
        const FIXED: usize = 16;
        const COUNT: usize = 8;
        let sizes = calls
            .iter()
            .map(|NamedCall(call)| FIXED + call.args.0.len());
        let mut bytes = Vec::with_capacity(COUNT + sizes.sum::<usize>());
        (calls.len() as u64).encode(&mut bytes);
        let each = calls.iter();
        each.for_each(|NamedCall(call)| call.encode(&mut bytes));
        let mut state = self.state.lock();
        let added = state.calls.add(&bytes);
        let key = added.map_err(|error| {
            explain("remember the deallocation actions of an allocation", error)
        })?;
        state.live += 1;
        state.most = state.most.max(state.live);
        Ok(key)
    }

    /// Takes the calls of an allocation out.
    pub(super) fn take(&self, key: u64) -> Result<Vec<WrapperCall>> {
        if key == 0 {
            return Ok(Vec::new());
        }
        let (bytes, many_are_gone) = {
            let mut state = self.state.lock();
            let bytes = state.take(key);
            (bytes, state.many_are_gone())
        };
        if many_are_gone {
            self.give_back_memory();
        }
        bytes
            .map(|bytes| decoded(&bytes))
            .ok_or_else(|| invalid_argument(format!("no allocation has the key {key}")))
    }

    /// Takes the calls out of the last allocation that has some.
    pub(super) fn take_last(&self) -> Option<Vec<WrapperCall>> {
        let mut state = self.state.lock();
        let last = state.calls.last()?;
        let bytes = state.take(last);
        bytes.map(|bytes| decoded(&bytes))
    }

    /// Has the pages of calls go that are gone, and those of the heap that the messages took.
    #[cold]
    fn give_back_memory(&self) {
        loop {
            let state = self.state.lock();
            let idle = state.calls.take_idle();
            if idle.is_empty() {
                break;
            }
            state.calls.discard(&idle);
            state.calls.give_blocks(&idle);
        }
        sys::heap::trim();
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
    fn take(&mut self, key: u64) -> Option<Vec<u8>> {
        let bytes = self.calls.take(key)?;
        self.live -= 1;
        Some(bytes)
    }

    /// Whether much memory holds nothing again; says so once.
    fn many_are_gone(&mut self) -> bool {
        let many = self.most - self.live >= MANY.max(self.live) || (self.live == 0 && self.trimmed);
        if many {
            (self.most, self.trimmed) = (self.live, self.live > 0);
        }
        many
    }
}

fn decoded(bytes: &[u8]) -> Vec<WrapperCall> {
    let calls = sps::from_bytes::<Vec<Call<'_>>>(bytes).expect("it was encoded here");
    calls
        .into_iter()
        .map(|call| NamedCall(call).kept())
        .collect()
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
