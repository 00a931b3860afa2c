// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Completions: callbacks that run exactly once, whatever happens.

use crate::callback_queue::Delivery;
use crate::error::{Error, Result, Status};
use crate::lock::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Instant;

type Callback<T> = Box<dyn FnOnce(Result<T>, &mut Delivery) + Send>;

/// The promise to answer one request. Dropping it unanswered answers with an error.
pub struct Completion<T>(Option<Callback<T>>);

impl<T> Completion<T> {
    /// Calls `callback` once with the answer, in the thread that completes.
    pub fn new(callback: impl FnOnce(Result<T>) + Send + 'static) -> Self {
        Completion::with_delivery(move |answer, _| callback(answer))
    }

    /// Calls `callback` once with the answer, and with the delivery for other completions that it
    /// answers.
    pub(crate) fn with_delivery(
        callback: impl FnOnce(Result<T>, &mut Delivery) + Send + 'static,
    ) -> Self {
        Completion(Some(Box::new(callback)))
    }

    /// Calls a callback of the host's, which may block, as the delivery wants it.
    pub(crate) fn for_host(callback: impl FnOnce(Result<T>) + Send + 'static) -> Self
    where
        T: Send + 'static,
    {
        Completion::with_delivery(|answer, delivery| delivery.run(move || callback(answer)))
    }

    /// A completion that answers this one with what `convert` makes of its answer.
    pub(crate) fn map<U>(
        self,
        convert: impl FnOnce(Result<U>) -> Result<T> + Send + 'static,
    ) -> Completion<U>
    where
        T: 'static,
    {
        Completion::with_delivery(|answer, delivery| self.complete_with(convert(answer), delivery))
    }

    /// Answers. Callbacks of the host's that follow run inside.
    pub fn complete(self, answer: Result<T>) {
        self.complete_with(answer, &mut Delivery::Inline);
    }

    /// Answers; `delivery` gets the callbacks of the host's that follow.
    pub(crate) fn complete_with(mut self, answer: Result<T>, delivery: &mut Delivery) {
        if let Some(callback) = self.0.take() {
            callback(answer, delivery);
        }
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            let error = Error::new(
                Status::Internal,
                "the request was dropped without an answer; the mapper or its host broke its \
                 contract or panicked",
            );
            callback(Err(error), &mut Delivery::Inline);
        }
    }
}

/// `count` completions in place of one, which is answered once all are: with all their failures
/// joined, or with success.
pub(crate) fn join_all(
    count: usize,
    done: Completion<()>,
    delivery: &mut Delivery,
) -> Vec<Completion<()>> {
    if count == 0 {
        done.complete_with(Ok(()), delivery);
        return Vec::new();
    }
    let state = Arc::new(Mutex::new((count, Ok(()), Some(done))));
    let one = |_| {
        let state = Arc::clone(&state);
        Completion::with_delivery(move |answer: Result<()>, delivery| {
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
                done.complete_with(result, delivery);
            }
        })
    };
    (0..count).map(one).collect()
}

/// Runs an asynchronous request and waits for its answer.
pub(crate) fn wait<T: Send + 'static>(request: impl FnOnce(Completion<T>)) -> Result<T> {
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
                None => slot = shared.1.wait(slot),
                Some(deadline) if deadline <= Instant::now() => return None,
                Some(deadline) => slot = shared.1.wait_until(slot, deadline),
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
