// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Completions: callbacks that run exactly once, whatever happens.

use crate::callback_queue;
use crate::error::{Error, Result, Status};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Instant;

type Callback<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// The promise to answer one request. Dropping it unanswered answers with an error.
pub struct Completion<T>(Option<Callback<T>>);

impl<T> Completion<T> {
    /// Calls `callback` once with the answer, in the thread that completes.
    pub fn new(callback: impl FnOnce(Result<T>) + Send + 'static) -> Self {
        Completion(Some(Box::new(callback)))
    }

    /// Calls a callback of the host's, which may block: where many answers arrive together it runs
    /// when they have all been dealt with, where the host wants it.
    pub(crate) fn for_host(callback: impl FnOnce(Result<T>) + Send + 'static) -> Self
    where
        T: Send + 'static,
    {
        Completion::new(move |answer| callback_queue::run_callback(move || callback(answer)))
    }

    /// Answers.
    pub fn complete(mut self, answer: Result<T>) {
        if let Some(callback) = self.0.take() {
            callback(answer);
        }
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            callback(Err(Error::new(
                Status::Internal,
                "the request was dropped without an answer; the mapper or its host broke its \
                 contract or panicked",
            )));
        }
    }
}

/// `count` completions in place of one, which is answered once all are: with all their failures
/// joined, or with success.
pub(crate) fn join_all(count: usize, done: Completion<()>) -> Vec<Completion<()>> {
    if count == 0 {
        done.complete(Ok(()));
        return Vec::new();
    }
    let state = Arc::new(Mutex::new((count, Ok(()), Some(done))));
    let one = |_| {
        let state = Arc::clone(&state);
        Completion::new(move |answer: Result<()>| {
            let mut state = state.lock();
            state.0 -= 1;
            if let Err(error) = answer {
                state.1 = match std::mem::replace(&mut state.1, Ok(())) {
                    Ok(()) => Err(error),
                    Err(first) => Err(first.join(error)),
                };
            }
            if state.0 > 0 {
                return;
            }
            let result = std::mem::replace(&mut state.1, Ok(()));
            let last = state.2.take();
            drop(state);
            if let Some(done) = last {
                done.complete(result);
            }
        })
    };
    (0..count).map(one).collect()
}

/// Runs an asynchronous request and waits for its answer.
pub fn wait<T: Send + 'static>(request: impl FnOnce(Completion<T>)) -> Result<T> {
    wait_until(None, request).expect("without a deadline the answer is waited for")
}

/// [`wait`], but no longer than until `deadline`.
pub(crate) fn wait_until<T: Send + 'static>(
    deadline: Option<Instant>,
    request: impl FnOnce(Completion<T>),
) -> Option<Result<T>> {
    let shared = Arc::new((Mutex::new(None), Condvar::new()));
    let answer = Arc::clone(&shared);
    request(Completion::new(move |result| {
        *answer.0.lock() = Some(result);
        answer.1.notify_one();
    }));
    let mut slot = shared.0.lock();
    loop {
        match slot.take() {
            Some(result) => return Some(result),
            None => match deadline {
                None => shared.1.wait(&mut slot),
                Some(deadline) if deadline <= Instant::now() => return None,
                Some(deadline) => {
                    shared.1.wait_until(&mut slot, deadline);
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unanswered_request_is_answered_with_an_error() {
        let result: Result<()> = wait(drop);
        assert_eq!(result.unwrap_err().status(), Status::Internal);
    }

    #[test]
    fn an_answer_from_another_thread_is_waited_for() {
        let result = wait(|done: Completion<u32>| {
            std::thread::spawn(move || done.complete(Ok(7)));
        });
        assert_eq!(result.unwrap(), 7);
    }
}
