// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Memory of deallocated allocations that is not used again before the host says that no thread is
//! inside any more.
//!
//! Each deallocation falls into the epoch of its moment. The host ends an epoch, sees to it that every
//! thread has been outside of linked code since, and has what was deallocated up to it given back.

use super::divide::Freed;
use super::flow::Flow;
use super::parts::{self, PART, Parts};
use super::piece::Piece;
use super::space::{Space, heap_is_full};
use super::windows::Windows;
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Result, invalid_argument};
use crate::mapper::actions::join;
use crate::mapper::{Deinitialization, Teardown};
use crate::transport::limits::Asked;
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

    /// Fails for an epoch that has not ended.
    fn check_ended(&self, epoch: u64) -> Result<()> {
        let ended = self.memory.deferred.ended;
        if epoch <= ended {
            return Ok(());
        }
        Err(invalid_argument(format!(
            "reclaim up to epoch {epoch}: the last that has ended is {ended}; advance the epoch, wait \
             until every thread has left linked code, then reclaim"
        )))
    }

    /// Takes out what was deallocated up to an epoch that has ended: all of it or, without memory for
    /// that and where the mapper has `few` to do with each, some. Gives its bytes.
    fn take_deferred(&mut self, epoch: u64, few: bool, freed: &mut Freed) -> u64 {
        let deferred = &mut self.memory.deferred;
        let mut count = deferred.waiting.partition_point(|(of, _)| *of <= epoch);
        if few || !freed.try_reserve(count) {
            count = count.min(PART);
        }
        for _ in 0..count {
            if let Some((_, piece)) = self.memory.deferred.waiting.pop_front() {
                freed.push(piece, &self.memory);
            }
        }
        self.memory.deferred.shrink();
        let bytes = freed.pieces.iter();
        let bytes = bytes
            .map(|piece| self.memory.place(piece).range.size())
            .sum();
        self.usage.waiting -= bytes;
        bytes
    }
}

/// What was deallocated up to an epoch and is being freed.
struct Reclaim {
    flow: Arc<Flow<Windows>>,
    epoch: u64,
    bytes: u64,
    /// What the mapper makes trap at the moment.
    freed: Freed,
    answer: Result<()>,
    done: Completion<u64>,
}

impl Parts for Reclaim {
    fn next(&mut self) -> Option<Vec<Deinitialization>> {
        let few = !self.flow.is_shared();
        let mut space = self.flow.space.lock();
        self.bytes += space.take_deferred(self.epoch, few, &mut self.freed);
        if self.freed.pieces.is_empty() {
            return None;
        }
        let copied = std::mem::take(&mut self.freed.copied);
        let traps = Deinitialization::new(Teardown::Nothing, copied);
        Some(traps.into_iter().collect())
    }

    fn answered(&mut self, answer: Result<()>, delivery: &mut Delivery) {
        self.answer = join(std::mem::replace(&mut self.answer, Ok(())), answer);
        let freed = std::mem::take(&mut self.freed);
        self.flow.give_back(&[], &freed, delivery);
    }

    fn end(self: Box<Self>, delivery: &mut Delivery) {
        let bytes = self.bytes;
        let done = self
            .done
            .map(move |answer: Result<()>| answer.map(|()| bytes));
        self.flow.answer_when_quiet(self.answer, done, delivery);
    }
}

impl Flow<Windows> {
    /// Frees what was deallocated up to `epoch`; answers with its bytes.
    pub(super) fn reclaim_deferred(self: &Arc<Self>, epoch: u64, done: Completion<u64>) {
        let delivery = &mut Delivery::Inline;
        let checked = self
            .check_process()
            .and_then(|()| self.space.lock().check_ended(epoch));
        if let Err(error) = checked {
            return self.failed(error, done, delivery);
        }
        let done = self.in_time(Asked::Memory, done, |_, _, _| ());
        let reclaim = Reclaim {
            flow: Arc::clone(self),
            epoch,
            bytes: 0,
            freed: Freed::default(),
            answer: Ok(()),
            done,
        };
        parts::run(&self.mapper, Box::new(reclaim), delivery);
    }
}
