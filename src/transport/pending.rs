// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Calls that wait for their answers.

use crate::callback_queue::{self, Task};
use crate::completion::Completion;
use crate::error::{Error, invalid_handle};
use crate::lock::Mutex;
use crate::sys::OwnerProcess;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// The error of a forked child that would use its parent's connection.
#[cold]
pub(crate) fn of_parent() -> Error {
    invalid_handle(
        "this connection to an executor belongs to the parent process; a forked child must make one of its own",
    )
}

/// What an answer is for.
pub(crate) enum Answered {
    Call(Completion<Vec<u8>>),
    /// A call that was given up.
    Forgotten,
    /// No call.
    Nothing,
}

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
    waiting: HashMap<u64, Waiting>,
    /// Calls that were given up, whose answers may still come.
    forgotten: u64,
    ended: Option<Error>,
}

struct Waiting {
    done: Completion<Vec<u8>>,
    /// Bytes that the answer may have.
    most: u64,
}

impl PendingCalls {
    pub(crate) fn new() -> PendingCalls {
        PendingCalls::numbered_from(0)
    }

    pub(crate) fn numbered_from(next: u64) -> PendingCalls {
        PendingCalls {
            state: Mutex::new(PendingState {
                next,
                ..PendingState::default()
            }),
            ended: AtomicBool::new(false),
            owner: OwnerProcess::current(),
        }
    }

    /// The number of a new call, whose answer may have so many bytes. None: no answer could come, so it has
    /// been completed with the reason.
    pub(crate) fn add(&self, done: Completion<Vec<u8>>, most: u64) -> Option<u64> {
        if !self.owner.is_current() {
            done.complete(Err(of_parent()));
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
        state.waiting.insert(sequence, Waiting { done, most });
        Some(sequence)
    }

    /// The call with this number, which could not be made.
    pub(crate) fn take(&self, sequence: u64) -> Option<Completion<Vec<u8>>> {
        let waiting = self.state.lock().waiting.remove(&sequence);
        waiting.map(|waiting| waiting.done)
    }

    /// Bytes that the answer with this number may have; none if no call waits for it.
    pub(crate) fn most(&self, sequence: u64) -> u64 {
        let state = self.state.lock();
        let waiting = state.waiting.get(&sequence);
        waiting.map_or(0, |waiting| waiting.most)
    }

    /// Answers a call, or nothing, with `error`, unless the end of the connection has answered it already.
    pub(crate) fn fail(&self, sequence: Option<u64>, error: Error) {
        if let Some(done) = sequence.and_then(|sequence| self.take(sequence)) {
            done.complete(Err(error));
        }
    }

    /// What the answer with this number is for. Of calls that were given up only the number of answers is
    /// known that may come, so that they take no memory.
    pub(crate) fn answered(&self, sequence: u64) -> Answered {
        let mut state = self.state.lock();
        match state.waiting.remove(&sequence) {
            Some(waiting) => Answered::Call(waiting.done),
            None if sequence < state.next && state.forgotten > 0 => {
                state.forgotten -= 1;
                Answered::Forgotten
            }
            None => Answered::Nothing,
        }
    }

    /// Gives a call up. `unsent` says whether it is certain that no answer comes.
    pub(crate) fn forget(&self, sequence: u64, unsent: impl FnOnce() -> bool) {
        let forgotten = {
            let mut state = self.state.lock();
            let forgotten = state.waiting.remove(&sequence);
            state.forgotten += u64::from(forgotten.is_some());
            forgotten
        };
        if forgotten.is_some() && unsent() {
            let forgotten = &mut self.state.lock().forgotten;
            // An executor may have answered what was not sent.
            *forgotten = forgotten.saturating_sub(1);
        }
    }

    /// Answers what waits, and all that comes, with `error`, or with what the end was before.
    pub(crate) fn end(&self, error: Error) {
        let (waiting, error) = self.take_all(error);
        // A callback of the host's may wait for that of another call.
        callback_queue::run_all_to_the_end(waiting.into_values().map(move |waiting| {
            let error = error.clone();
            Box::new(move || waiting.done.complete(Err(error))) as Task
        }));
    }

    /// [`end`](Self::end) where no callback waits for that of another call: they run in this thread, one after the
    /// other, in the order of the calls, however long one takes.
    pub(crate) fn end_in_order(&self, error: Error) {
        let (waiting, error) = self.take_all(error);
        let mut waiting: Vec<(u64, Waiting)> = waiting.into_iter().collect();
        waiting.sort_unstable_by_key(|(sequence, _)| *sequence);
        for (_, waiting) in waiting {
            waiting.done.complete(Err(error.clone()));
        }
    }

    fn take_all(&self, error: Error) -> (HashMap<u64, Waiting>, Error) {
        let mut state = self.state.lock();
        let error = state.ended.get_or_insert(error).clone();
        self.ended.store(true, Ordering::Release);
        (std::mem::take(&mut state.waiting), error)
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Whether all that comes is answered with an error.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// What everything is answered with, once the connection has ended.
    pub(crate) fn why_ended(&self) -> Option<Error> {
        self.state.lock().ended.clone()
    }

    /// The process that made the connection. A forked child has none of the threads that read it.
    pub(crate) fn owner(&self) -> OwnerProcess {
        self.owner
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callback_queue::TOO_LONG;
    use crate::error::Status;
    use std::sync::Arc;

    #[test]
    fn calls_end_in_order_in_one_thread_though_callbacks_take_long() {
        let (calls, seen) = (PendingCalls::new(), Arc::new(Mutex::new(Vec::new())));
        let (begin, begun) = std::sync::mpsc::channel();
        let mut begun = Some(begun);
        for number in 0..20u64 {
            let (seen, begin, others) = (Arc::clone(&seen), begin.clone(), begun.take());
            let done = Completion::new(move |answer: crate::error::Result<Vec<u8>>| {
                match others {
                    // Another thread would begin with those behind it.
                    Some(others) => assert!(others.recv_timeout(10 * TOO_LONG).is_err()),
                    None => drop(begin.send(())),
                }
                assert_eq!(answer.unwrap_err().status(), Status::Disconnected);
                let here = std::thread::current().id();
                seen.lock().push((number, here));
            });
            assert_eq!(calls.add(done, u64::MAX), Some(number));
        }
        calls.end_in_order(Error::new(Status::Disconnected, "over"));
        let here = std::thread::current().id();
        let expected: Vec<_> = (0..20).map(|number| (number, here)).collect();
        assert_eq!(*seen.lock(), expected);
        let late = Completion::new(|answer: crate::error::Result<Vec<u8>>| {
            assert_eq!(answer.unwrap_err().message(), "over");
        });
        assert_eq!(calls.add(late, 0), None);
    }
}
