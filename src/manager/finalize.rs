// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How an allocation becomes visible in the executor.

use super::core::Core;
use super::records::{Key, State};
use super::space::Freed;
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result};
use crate::mapper::{Action, Retired, SegmentContent, Teardown};
use smallvec::SmallVec;
use std::sync::Arc;

impl Core {
    /// Finalizes an allocation without actions where writing is seeing: the mapper has no part.
    pub(crate) fn finalize_now(self: &Arc<Self>, handle: u64) -> Option<Result<()>> {
        let coherent = self.mapper.capabilities().coherent && self.mapper.settled();
        let served = self.check_process().and_then(|()| {
            let mut space = self.space.lock();
            let (key, _) = space.records.find(handle, State::InFlight)?;
            Ok(coherent.then(|| space.mark_finalized(key, Teardown::Nothing)))
        });
        let served = self.counted(served).transpose()?;
        Some(served.map(|served| {
            if !served.pieces.is_empty() {
                self.give_back(&[], served, &mut Delivery::Inline);
            }
        }))
    }

    pub(crate) fn finalize(
        self: &Arc<Self>,
        handle: u64,
        actions: Vec<Action>,
        done: Completion<u64>,
    ) {
        if actions.is_empty() {
            if let Some(answer) = self.finalize_now(handle) {
                return done.complete(answer.map(|()| handle));
            }
        }
        let taken = self
            .check_process()
            .and_then(|()| self.take_content(handle));
        let (key, segments) = match taken {
            Ok(taken) => taken,
            Err(error) => return self.failed(error, done, &mut Delivery::Inline),
        };
        let core = Arc::clone(self);
        let initialized = Completion::with_delivery(move |answer, delivery| match answer {
            Ok(teardown) => core.finalized(key, handle, teardown, done, delivery),
            Err(error) => core.not_finalized(key, error, done, delivery),
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
        let served = self.space.lock().mark_finalized(key, teardown);
        if served.pieces.is_empty() {
            // A callback that frees the manager finds it the last holder.
            drop(self);
            return done.complete_with(Ok(handle), delivery);
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
        self.give_back(&[key], freed, delivery);
        let answer = self.counted(Err(error));
        drop(self);
        done.complete_with(answer, delivery);
    }

    /// Marks an allocation as being finalized and takes what the mapper needs of it.
    fn take_content(&self, handle: u64) -> Result<(Key, SmallVec<[SegmentContent; 4]>)> {
        let mut space = self.space.lock();
        let (key, record) = space.records.find(handle, State::InFlight)?;
        record.state = State::Finalizing;
        let mut buffers = record.buffers.take();
        let pieces = record.pieces.clone();
        if let Some(blocks) = &space.blocks {
            return Ok((key, blocks.content(key, buffers)));
        }
        let content = pieces.iter().enumerate().map(|(index, piece)| {
            let place = space.place(piece);
            SegmentContent {
                range: place.range,
                group: place.group,
                content: buffers.as_mut().and_then(|buffers| buffers[index].take()),
                // What is shared was zeroed in place before anyone saw it.
                zeroed: piece.zeroed || !piece.copied,
            }
        });
        Ok((key, content.collect()))
    }

    /// Frees the segments of finalize lifetime, which have served, and answers: the allocation is
    /// finalized, so a mapper that fails to clean up after them is counted and no more.
    fn free_served(
        self: &Arc<Self>,
        handle: u64,
        mut served: Freed,
        done: Completion<u64>,
        delivery: &mut Delivery,
    ) {
        let core = Arc::clone(self);
        let copied = std::mem::take(&mut served.copied);
        let retired = Retired {
            teardown: Teardown::Nothing,
            copied,
        };
        let retired = vec![retired];
        self.retire(retired, delivery, move |answer, delivery| {
            core.give_back(&[], served, delivery);
            let _ = core.counted(answer);
            drop(core);
            done.complete_with(Ok(handle), delivery);
        });
    }
}
