// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How allocations and managers end: abandon, deallocate, and what is left when a manager goes.

use super::core::Core;
use super::records::{Key, State};
use super::space::Freed;
use crate::callback_queue::Delivery;
use crate::completion::{Completion, join_all, wait_until};
use crate::error::Result;
use crate::mapper::{Retired, Teardown};
use crate::sys;
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Instant;

/// Allocations on their way out together.
#[derive(Default)]
struct Batch {
    keys: SmallVec<[Key; 4]>,
    freed: Freed,
    retired: Vec<Retired>,
}

impl Core {
    pub(crate) fn abandon(self: &Arc<Self>, handle: u64, done: Completion<()>) {
        let mut freed = Freed::default();
        let taken = self.check_process().and_then(|()| {
            let mut space = self.space.lock();
            let (key, record) = space.records.find(handle, State::InFlight)?;
            // No second abandon or finalize may find it.
            record.state = State::Finalizing;
            let teardown = record.teardown.take();
            space.take_pieces(key, &mut freed);
            space.counters.abandon += 1;
            Ok((key, teardown))
        });
        let (key, teardown) = match taken {
            Ok(taken) => taken,
            Err(error) => return self.failed(error, done, &mut Delivery::Inline),
        };
        let delivery = &mut Delivery::Inline;
        let Some(teardown) = teardown else {
            self.give_back(&[key], freed, delivery);
            return Arc::clone(&self.mapper).quiesce(done, delivery);
        };
        let core = Arc::clone(self);
        let retired = Retired {
            teardown: *teardown,
            copied: SmallVec::new(),
        };
        self.retire(vec![retired], delivery, move |answer, delivery| {
            core.give_back(&[key], freed, delivery);
            let answer = core.counted(answer);
            drop(core);
            done.complete_with(answer, delivery);
        });
    }

    /// Deallocates, if the mapper has no part in it.
    pub(crate) fn deallocate_now(self: &Arc<Self>, handles: &[u64]) -> Option<Result<()>> {
        let batch = self
            .check_process()
            .and_then(|()| self.take_batch(handles, true));
        match self.counted(batch) {
            Ok(batch) => batch.map(|batch| {
                self.give_back(&batch.keys, batch.freed, &mut Delivery::Inline);
                Ok(())
            }),
            Err(error) => Some(Err(error)),
        }
    }

    pub(crate) fn deallocate(self: &Arc<Self>, handles: &[u64], done: Completion<()>) {
        let batch = self
            .check_process()
            .and_then(|()| self.take_batch(handles, false));
        let batch = match batch {
            Ok(batch) => batch.expect("only a batch for now may be declined"),
            Err(error) => return self.failed(error, done, &mut Delivery::Inline),
        };
        let core = Arc::clone(self);
        let Batch {
            keys,
            freed,
            retired,
        } = batch;
        let delivery = &mut Delivery::Inline;
        self.retire(retired, delivery, move |answer, delivery| {
            core.give_back(&keys, freed, delivery);
            let answer = core.counted(answer);
            let mapper = Arc::clone(&core.mapper);
            drop(core);
            mapper.quiesce(done.map(|_| answer), delivery);
        });
    }

    /// Takes a whole batch out, or nothing if any handle is wrong; with `now`, nothing either if
    /// the mapper would have a part in it.
    fn take_batch(&self, handles: &[u64], now: bool) -> Result<Option<Batch>> {
        let mut space = self.space.lock();
        let mut batch = Batch::default();
        let mut declined = now && !self.mapper.capabilities().coherent;
        let mut wrong = None;
        for handle in handles {
            match space.records.find(*handle, State::Finalized) {
                Ok((key, record)) => {
                    record.state = State::Deallocating;
                    declined |= now && record.teardown.is_some();
                    batch.keys.push(key);
                }
                Err(error) => {
                    wrong = Some(error);
                    break;
                }
            }
        }
        if wrong.is_some() || declined {
            for key in batch.keys {
                space.records.get(key).state = State::Finalized;
            }
            return match wrong {
                Some(error) => {
                    Err(error.context(format!("deallocate {} allocations", handles.len())))
                }
                None => Ok(None),
            };
        }
        for key in &batch.keys {
            let teardown = space.records.get(*key).teardown.take();
            space.take_pieces(*key, &mut batch.freed);
            let copied = std::mem::take(&mut batch.freed.copied);
            let teardown = teardown.map_or(Teardown::Nothing, |teardown| *teardown);
            let retired = Retired { teardown, copied };
            if !retired.is_nothing() {
                batch.retired.push(retired);
            }
        }
        space.counters.deallocate += batch.keys.len() as u64;
        Ok(Some(batch))
    }

    /// Has the mapper deinitialize allocations, if it has anything to do, then goes on.
    pub(super) fn retire(
        &self,
        retired: Vec<Retired>,
        delivery: &mut Delivery,
        next: impl FnOnce(Result<()>, &mut Delivery) + Send + 'static,
    ) {
        if retired.iter().all(Retired::is_nothing) {
            next(Ok(()), delivery);
        } else {
            let next = Completion::with_delivery(next);
            Arc::clone(&self.mapper).deinitialize(retired, next, delivery);
        }
    }

    /// Frees pieces and forgets allocations.
    pub(super) fn give_back(self: &Arc<Self>, keys: &[Key], freed: Freed, delivery: &mut Delivery) {
        self.fill_with_traps(&freed);
        let mut empty = Vec::new();
        let mut buffers: SmallVec<[_; 4]> = SmallVec::new();
        {
            let mut space = self.space.lock();
            space.free(&freed.pieces, &mut empty);
            for key in keys {
                buffers.extend(space.forget(*key).buffers);
            }
        }
        drop(buffers); // they may be large: not under the lock
        // A chunk that the system does not take back is kept for reuse: nothing is lost.
        let _ = self.reclaim(empty, delivery);
    }

    /// Makes code that is about to be free trap. Outside the lock: the pieces are still taken.
    fn fill_with_traps(&self, freed: &Freed) {
        let here = self.mapper.capabilities().in_this_process;
        for (writer, range) in &freed.traps {
            writer.fill_with_traps();
            if here {
                sys::flush_instruction_cache(range.start(), range.size());
            }
        }
    }
}

impl Drop for Core {
    /// What is still finalized goes last to first, with its deallocation actions; then the
    /// windows go. The mapper lives on in the completions until it has answered.
    fn drop(&mut self) {
        if self.check_process().is_err() {
            return;
        }
        let space = self.space.get_mut();
        let retired: Vec<Retired> = space
            .take_finalized()
            .into_iter()
            .map(|(teardown, freed)| Retired {
                teardown,
                copied: freed.copied,
            })
            .collect();
        let windows = space.take_windows();
        let mapper = Arc::clone(&self.mapper);
        // Actions, then memory: none may go while an action still runs in it. Nobody is left to tell
        // of failures; the mapper counts what it could not unmap.
        let end = move |done: Completion<()>| {
            let keep = Arc::clone(&mapper);
            let release = move |_answer: Result<()>| {
                let all = join_all(windows.len(), done, &mut Delivery::Inline);
                for (window, done) in windows.into_iter().zip(all) {
                    keep.release(window, done);
                }
            };
            if retired.iter().all(Retired::is_nothing) {
                release(Ok(()));
            } else {
                let released = Completion::new(release);
                mapper.deinitialize(retired, released, &mut Delivery::Inline);
            }
        };
        match self.mapper.close_timeout() {
            // Whoever frees a manager finds its actions done and its memory gone.
            Some(timeout) => {
                let _ = wait_until(Some(Instant::now() + timeout), end);
            }
            None => {
                let keep = Arc::clone(&self.mapper);
                end(Completion::new(move |_| drop(keep)));
            }
        }
    }
}
