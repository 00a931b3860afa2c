// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Calls that wait for their answers.

use crate::completion::Completion;
use crate::error::{Error, invalid_handle};
use crate::lock::Mutex;
use crate::sys::OwnerProcess;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

type Answered = Completion<Vec<u8>>;

/// The calls of one connection. Each is answered once, the last ones when the connection ends.
pub(crate) struct PendingCalls {
    state: Mutex<PendingState>,
    /// The state has its reason.
    ended: AtomicBool,
    /// The process that made the connection.
    owner: OwnerProcess,
}

#[derive(Default)]
struct PendingState {
    next: u64,
    waiting: HashMap<u64, Answered>,
    ended: Option<Error>,
}

impl PendingCalls {
    pub(crate) fn new() -> PendingCalls {
        PendingCalls {
            state: Mutex::default(),
            ended: AtomicBool::new(false),
            owner: OwnerProcess::current(),
        }
    }

    /// The number of a new call. None: no answer could come, so it has been completed with the reason.
    pub(crate) fn add(&self, done: Answered) -> Option<u64> {
        if !self.owner.is_current() {
            done.complete(Err(invalid_handle(
                "this connection to an executor belongs to the parent process; a forked child must \
                 make one of its own",
            )));
            return None;
        }
        let mut state = self.state.lock();
        if let Some(error) = state.ended.clone() {
            drop(state);
            done.complete(Err(error));
            return None;
        }
        let sequence = state.next;
        state.next += 1;
        state.waiting.insert(sequence, done);
        Some(sequence)
    }

    /// The call with this number, to be completed with its answer.
    pub(crate) fn take(&self, sequence: u64) -> Option<Answered> {
        self.state.lock().waiting.remove(&sequence)
    }

    /// Answers a call, or nothing, with `error`, unless the end of the connection has answered it already.
    pub(crate) fn fail(&self, sequence: Option<u64>, error: Error) {
        if let Some(done) = sequence.and_then(|sequence| self.take(sequence)) {
            done.complete(Err(error));
        }
    }

    /// Answers what waits, and all that comes, with `error`, or with what the end was before.
    pub(crate) fn end(&self, error: Error) {
        let waiting = {
            let mut state = self.state.lock();
            let error = state.ended.get_or_insert(error).clone();
            self.ended.store(true, Ordering::Release);
            let waiting = std::mem::take(&mut state.waiting);
            waiting.into_values().map(move |done| (done, error.clone()))
        };
        waiting.for_each(|(done, error)| done.complete(Err(error)));
    }

    /// Whether all that comes is answered with an error.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The process that made the connection. A forked child has none of the threads that read it.
    pub(crate) fn owner(&self) -> OwnerProcess {
        self.owner
    }
}
