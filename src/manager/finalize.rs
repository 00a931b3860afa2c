// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How an allocation becomes visible in the executor.

use super::divide::Freed;
use super::flow::Flow;
use super::records::Key;
use super::reservations::Reservations;
use super::space::Memory;
use super::tracking::named;
use super::windows::Windows;
use crate::callback_queue::Delivery;
use crate::completion::{self, Completion};
use crate::error::{Error, Result};
use crate::mapper::{Action, Deinitialization, Kind, Teardown};
use crate::transport::limits::Asked;
use std::sync::Arc;

impl<M: Memory> Flow<M> {
    /// The completion of a finalize within its limit. What is finalized after that is deallocated: the host
    /// has been told that it failed.
    fn finalized_in_time(
        self: &Arc<Self>,
        handle: u64,
        actions: &[Action],
        done: Completion<u64>,
        deallocate: fn(&Arc<Self>, &[u64], Completion<()>),
    ) -> Completion<u64> {
        let asked = match actions {
            [] => Asked::Memory,
            _ => Asked::Code,
        };
        self.in_time(asked, done, move |flow, answer, delivery| match answer {
            Ok(_) => deallocate(&flow, &[handle], Completion::new(|_| ())),
            Err(_) => flow.tracking.ended(&[handle], delivery),
        })
    }
}

impl Flow<Windows> {
    /// Finalizes an allocation without actions where the executor sees what is written at once, so the
    /// mapper has no part.
    pub(super) fn try_finalize(self: &Arc<Self>, handle: u64) -> Option<Result<()>> {
        let alone = self.is_coherent() && self.mapper.settled();
        let mut served = None;
        let answer = self.check_process().and_then(|()| {
            let mut space = self.space.lock();
            match alone {
                true => space.try_finalize(handle, &mut served),
                false => space.records.find_in_flight(handle).map(drop),
            }
        });
        if answer.is_ok() && !alone {
            return self.finalize_at_once(handle);
        }
        if let Some(served) = served {
            self.give_back(&[], &served, &mut Delivery::Inline);
        } else if answer.is_ok() {
            self.close_idle_writers();
        }
        Some(self.counted(answer))
    }

    /// Finalizes an allocation without actions where the mapper only makes its code seen, in this thread.
    #[cold]
    fn finalize_at_once(self: &Arc<Self>, handle: u64) -> Option<Result<()>> {
        if self.mapper.capabilities().kind != Kind::TwoViews || !self.is_shared() {
            return None;
        }
        let request = |done| self.finalize_by_mapper(handle, Vec::new(), done);
        Some(completion::wait(request).map(drop))
    }

    /// [`Flow::try_finalize`] for a caller that gets the answer at once.
    pub(super) fn try_finalize_and_tell(self: &Arc<Self>, handle: u64) -> Option<Result<()>> {
        match self.try_finalize(handle) {
            Some(answer) if self.tracking.is_active() => {
                let allocation = self.tracking.find(handle);
                let delivery = &mut Delivery::Inline;
                self.tracking.finalize_answered(handle, &answer, delivery);
                Some(named(allocation.as_ref(), answer))
            }
            answer => answer,
        }
    }

    pub(super) fn finalize(
        self: &Arc<Self>,
        handle: u64,
        actions: Vec<Action>,
        done: Completion<u64>,
    ) {
        if actions.is_empty() {
            if let Some(answer) = self.try_finalize(handle) {
                return done.complete(answer.map(|()| handle));
            }
        }
        self.finalize_by_mapper(handle, actions, done);
    }

    fn finalize_by_mapper(
        self: &Arc<Self>,
        handle: u64,
        actions: Vec<Action>,
        done: Completion<u64>,
    ) {
        let taken = self
            .check_process()
            .and_then(|()| self.space.lock().take_content(handle));
        let (key, segments) = match taken {
            Ok(taken) => taken,
            Err(error) => return self.failed(error, done, &mut Delivery::Inline),
        };
        let done = self.finalized_in_time(handle, &actions, done, Self::deallocate);
        let flow = Arc::clone(self);
        let initialized = Completion::with_delivery(move |answer, delivery| match answer {
            Ok(teardown) => flow.finalized(key, handle, teardown, done, delivery),
            Err(error) => {
                flow.tracking.failed(handle);
                flow.not_finalized(key, error, done, delivery);
            }
        });
        Arc::clone(&self.mapper).initialize(segments, actions, initialized);
    }

    /// The mapper has made an allocation visible and run its actions.
    fn finalized(
        self: Arc<Self>,
        key: Key,
        handle: u64,
        teardown: Teardown,
        done: Completion<u64>,
        delivery: &mut Delivery,
    ) {
        let mut served = Freed::default();
        self.space.lock().finalized(key, teardown, &mut served);
        if served.pieces.is_empty() {
            self.close_idle_writers();
            return self.answer_last(Ok(handle), done, delivery);
        }
        self.free_served(handle, served, done, delivery);
    }

    /// The mapper could not, or an action failed.
    fn not_finalized(
        self: Arc<Self>,
        key: Key,
        error: Error,
        done: Completion<u64>,
        delivery: &mut Delivery,
    ) {
        let mut freed = Freed::default();
        self.space.lock().take_pieces(key, &mut freed);
        self.give_back(&[key], &freed, delivery);
        self.answer_last(Err(error), done, delivery);
    }

    /// Frees the segments of finalize lifetime, which have served, and answers: the allocation is
    /// finalized, so a mapper that fails to clean up after them is counted and no more.
    fn free_served(
        self: Arc<Self>,
        handle: u64,
        mut served: Freed,
        done: Completion<u64>,
        delivery: &mut Delivery,
    ) {
        let copied = std::mem::take(&mut served.copied);
        let deinitialize = Deinitialization::new(Teardown::Nothing, copied);
        let mapper = Arc::clone(&self.mapper);
        let deinitialized = move |answer, delivery: &mut Delivery| {
            self.give_back(&[], &served, delivery);
            let _ = self.counted(answer);
            self.answer_last(Ok(handle), done, delivery);
        };
        match deinitialize {
            Some(one) => {
                let done = Completion::with_delivery(deinitialized);
                mapper.deinitialize(vec![one], done, delivery);
            }
            None => deinitialized(Ok(()), delivery),
        }
    }
}

impl Flow<Reservations> {
    /// Has the mapper make an allocation visible and run its actions; a mapper that fails has given
    /// the reservation back.
    pub(super) fn finalize(
        self: &Arc<Self>,
        handle: u64,
        actions: Vec<Action>,
        done: Completion<u64>,
    ) {
        let taken = self
            .check_process()
            .and_then(|()| self.space.lock().take_content(handle));
        let (key, range, segments) = match taken {
            Ok(taken) => taken,
            Err(error) => return self.failed(error, done, &mut Delivery::Inline),
        };
        let done = self.finalized_in_time(handle, &actions, done, Self::deallocate);
        let flow = Arc::clone(self);
        let initialized = Completion::with_delivery(move |answer: Result<()>, delivery| {
            let answer = flow.space.lock().finalized(key, answer);
            if answer.is_err() {
                flow.tracking.failed(handle);
            }
            flow.answer_last(answer.map(|()| handle), done, delivery);
        });
        Arc::clone(&self.mapper).initialize(range, segments, actions, initialized);
    }
}
