// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Memory of deallocated allocations that is not used again before the host says that no thread is
//! inside any more.
//!
//! Each deallocation falls into the epoch of its moment. The host ends an epoch, sees to it that every
//! thread has been outside of linked code since, and has what was deallocated up to it given back.

use super::divide::{Deallocated, Freed};
use super::flow::Flow;
use super::piece::{Piece, Pieces};
use super::space::{Space, heap_is_full};
use super::windows::Windows;
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Result, invalid_argument};
use crate::mapper::{Deinitialization, Teardown};
use std::collections::VecDeque;
use std::sync::Arc;

/// The queue keeps room for this many pieces where none waits.
const MOST_KEPT: usize = 4096;

/// Pieces that wait, by the epoch in which they were deallocated, oldest first.
pub(super) struct Deferred {
    /// The host wants it.
    chosen: bool,
    /// How many epochs have ended.
    ended: u64,
    waiting: VecDeque<(u64, Piece)>,
    /// Pieces of deallocations whose actions run at the moment: there is room for them.
    expected: usize,
}

impl Deferred {
    pub(super) fn new(chosen: bool) -> Deferred {
        Deferred {
            chosen,
            ended: 0,
            waiting: VecDeque::new(),
            expected: 0,
        }
    }

    pub(super) fn is_chosen(&self) -> bool {
        self.chosen
    }

    /// Gives memory of the queue back after a peak.
    fn shrink(&mut self) {
        let idle = self.waiting.is_empty() && self.expected == 0;
        if idle && self.waiting.capacity() > MOST_KEPT {
            self.waiting = VecDeque::new();
        }
    }

    /// Pieces that were expected stay where they are.
    pub(super) fn expect_less(&mut self, pieces: usize) {
        self.expected -= pieces;
    }
}

impl Space<Windows> {
    /// Makes sure that what these allocations have can wait, before anything is done. Gives the number
    /// of their pieces, to be passed on to [`Space::defer`].
    pub(super) fn expect_deferred(&mut self, handles: &[u64]) -> Result<usize> {
        let mut pieces = 0;
        for handle in handles {
            // One that is wrong is told of by the deallocation itself.
            if let Ok(key) = self.records.find_finalized(*handle) {
                pieces += self.pieces(key).len();
            }
        }
        let deferred = &mut self.memory.deferred;
        deferred
            .waiting
            .try_reserve(deferred.expected + pieces)
            .map_err(|_| heap_is_full())?;
        deferred.expected += pieces;
        Ok(pieces)
    }

    /// Has the pieces of deallocated allocations wait.
    pub(super) fn defer(&mut self, expected: usize, freed: &Freed) {
        for piece in &freed.pieces {
            self.usage.waiting += self.memory.place(piece).range.size();
            self.usage.live -= u64::from(piece.requested);
            self.memory.nodes.disown(piece.id);
            // It is not live any more when it is freed.
            let piece = Piece {
                requested: 0,
                ..*piece
            };
            let deferred = &mut self.memory.deferred;
            deferred.waiting.push_back((deferred.ended + 1, piece));
        }
        self.memory.deferred.expect_less(expected);
    }

    /// Ends the epoch of now and gives its number.
    pub(super) fn advance_epoch(&mut self) -> u64 {
        self.memory.deferred.ended += 1;
        self.memory.deferred.ended
    }

    /// Takes out what was deallocated up to an epoch that has ended. Gives its bytes.
    fn take_deferred(&mut self, epoch: u64, freed: &mut Freed) -> Result<u64> {
        let deferred = &mut self.memory.deferred;
        if epoch > deferred.ended {
            return Err(invalid_argument(format!(
                "reclaim up to epoch {epoch}: the last that has ended is {}; advance the epoch, wait \
                 until every thread has left linked code, then reclaim",
                deferred.ended
            )));
        }
        let count = deferred.waiting.partition_point(|(of, _)| *of <= epoch);
        let mut pieces = Pieces::new();
        pieces.try_reserve(count).map_err(|_| heap_is_full())?;
        pieces.extend(deferred.waiting.drain(..count).map(|(_, piece)| piece));
        deferred.shrink();
        freed.add(pieces, &self.memory);
        let bytes = freed.pieces.iter();
        let bytes = bytes
            .map(|piece| self.memory.place(piece).range.size())
            .sum();
        self.usage.waiting -= bytes;
        Ok(bytes)
    }
}

impl Flow<Windows> {
    /// Frees what was deallocated up to `epoch`; answers with its bytes.
    pub(super) fn reclaim_deferred(self: &Arc<Self>, epoch: u64, done: Completion<u64>) {
        let delivery = &mut Delivery::Inline;
        let mut freed = Freed::default();
        let taken = self
            .check_process()
            .and_then(|()| self.space.lock().take_deferred(epoch, &mut freed));
        let bytes = match taken {
            Ok(bytes) => bytes,
            Err(error) => return self.failed(error, done, delivery),
        };
        let copied = std::mem::take(&mut freed.copied);
        let traps = Deinitialization::new(Teardown::Nothing, copied);
        let out = Deallocated {
            freed,
            deinitialize: traps.into_iter().collect(),
            ..Deallocated::default()
        };
        let done = done.map(move |answer: Result<()>| answer.map(|()| bytes));
        self.free_after(out, done, delivery);
    }
}
