// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Large batches, done in parts: what has begun must end though the heap is exhausted, so no step takes
//! more memory for a larger batch.

use super::divide::{Deallocated, Freed};
use super::flow::Flow;
use super::lookup;
use super::records::Key;
use super::space::{Ending, Space};
use super::windows::Windows;
use crate::callback_queue::Delivery;
use crate::completion::{Completion, join_all};
use crate::error::Result;
use crate::lock::Mutex;
use crate::mapper::actions::join;
use crate::mapper::{Deinitialization, MemoryMapper};
use crate::transport::limits::Asked;
use smallvec::SmallVec;
use std::sync::Arc;

/// So many allocations, or pieces, are done together. What that takes is a fraction of what `Heap` has
/// in reserve.
pub(super) const PART: usize = 64;

/// Something that is deinitialized in parts.
pub(super) trait Parts: Send {
    /// What the mapper has to do next; `None` when all was done.
    fn next(&mut self) -> Option<Vec<Deinitialization>>;
    /// The mapper has done that.
    fn answered(&mut self, answer: Result<()>, delivery: &mut Delivery);
    fn end(self: Box<Self>, delivery: &mut Delivery);
}

/// How far the mapper and who asked it are with one part.
enum Turn {
    /// The mapper is being asked.
    Asked,
    /// It has answered meanwhile.
    Answered(Result<()>),
    /// It will answer later; then the rest follows.
    Left(Box<dyn Parts>),
}

/// Does one part after the other. A mapper that answers at once is asked in a loop, so the stack does not
/// grow with the number of parts.
pub(super) fn run(
    mapper: &Arc<dyn MemoryMapper>,
    mut parts: Box<dyn Parts>,
    delivery: &mut Delivery,
) {
    while let Some(part) = parts.next() {
        if part.is_empty() {
            parts.answered(Ok(()), delivery);
            continue;
        }
        let turn = Arc::new(Mutex::new(Turn::Asked));
        let (keep, other) = (Arc::clone(mapper), Arc::clone(&turn));
        let answered = Completion::with_delivery(move |answer, delivery| {
            let mut turn = other.lock();
            match std::mem::replace(&mut *turn, Turn::Asked) {
                Turn::Left(mut parts) => {
                    drop(turn);
                    parts.answered(answer, delivery);
                    run(&keep, parts, delivery);
                }
                _ => *turn = Turn::Answered(answer),
            }
        });
        Arc::clone(mapper).deinitialize(part, answered, delivery);
        let mut turn = turn.lock();
        match std::mem::replace(&mut *turn, Turn::Asked) {
            Turn::Answered(answer) => {
                drop(turn);
                parts.answered(answer, delivery);
            }
            _ => {
                *turn = Turn::Left(parts);
                return;
            }
        }
    }
    parts.end(delivery);
}

/// What the mapper has to do for some of the allocations that are being deallocated.
fn deinitializations(
    space: &mut Space<Windows>,
    keys: impl Iterator<Item = Key>,
    deferred: bool,
) -> Vec<Deinitialization> {
    let each = keys.filter_map(|key| space.deinitialization(key, deferred));
    each.collect()
}

/// A batch that is being deallocated: all actions run, last allocation first, then memory is freed.
struct Batch {
    flow: Arc<Flow<Windows>>,
    batch: Deallocated,
    /// So many are still to be deinitialized.
    left: usize,
    answer: Result<()>,
    done: Completion<()>,
}

impl Parts for Batch {
    fn next(&mut self) -> Option<Vec<Deinitialization>> {
        let end = self.left;
        self.left = end.saturating_sub(PART);
        if end == 0 {
            return None;
        }
        let part = self.batch.keys[self.left..end].iter().copied();
        let deferred = self.batch.deferred.is_some();
        let space = &mut self.flow.space.lock();
        Some(deinitializations(space, part, deferred))
    }

    fn answered(&mut self, answer: Result<()>, _: &mut Delivery) {
        self.answer = join(std::mem::replace(&mut self.answer, Ok(())), answer);
    }

    fn end(self: Box<Self>, delivery: &mut Delivery) {
        self.flow.free_in_parts(&self.batch, delivery);
        self.flow
            .answer_when_quiet(self.answer, self.done, delivery);
    }
}

impl Flow<Windows> {
    /// Has the mapper deinitialize a batch, then frees what it had, and answers.
    #[cold]
    pub(super) fn deallocate_in_parts(
        self: &Arc<Self>,
        batch: Deallocated,
        done: Completion<()>,
        delivery: &mut Delivery,
    ) {
        let done = self.in_time(Asked::Code, done, |_, _, _| ());
        let batch = Batch {
            flow: Arc::clone(self),
            left: batch.keys.len(),
            batch,
            answer: Ok(()),
            done,
        };
        run(&self.mapper, Box::new(batch), delivery);
    }

    /// Frees what a batch had that needs the mapper no more: all at once or, without memory for that, a
    /// part at a time.
    #[cold]
    pub(super) fn free_in_parts(self: &Arc<Self>, batch: &Deallocated, delivery: &mut Delivery) {
        let mut left = batch.keys.as_slice();
        while !left.is_empty() {
            let mut freed = Freed::default();
            let count = self.space.lock().take_some(left, &mut freed);
            let (part, rest) = left.split_at(count);
            let out = Deallocated {
                keys: part.into(),
                deferred: batch.deferred.map(|_| freed.pieces.len()),
                freed,
                deinitialize: Vec::new(),
            };
            self.give_back_or_defer(&out, delivery);
            left = rest;
        }
    }
}

impl Space<Windows> {
    /// Takes the pieces of as many of these allocations out as there is memory for. Gives their number.
    fn take_some(&mut self, keys: &[Key], freed: &mut Freed) -> usize {
        let pieces = keys.iter().map(|key| self.pieces(*key).len());
        let all = freed.try_reserve(pieces.sum());
        let part = &keys[..if all {
            keys.len()
        } else {
            PART.min(keys.len())
        }];
        for key in part {
            self.take_pieces(*key, freed);
        }
        // What the mapper had to do with them was done.
        freed.copied.clear();
        part.len()
    }
}

/// What is left when a manager goes: what is still finalized goes last to first, with its deallocation
/// actions; then the windows go: none may while an action still runs in it. Nothing can be told of
/// failures any more; the mapper counts what it could not unmap.
pub(super) struct End {
    /// Of all arenas.
    spaces: Vec<Space<Windows>>,
    mapper: Arc<dyn MemoryMapper>,
    /// What is still finalized, the last one last; `None` without memory for that.
    sorted: Option<Vec<Finalized>>,
    done: Completion<()>,
}

/// An allocation that is still finalized.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Finalized {
    /// When it was; 0 where there is nothing to do in the end.
    order: u64,
    space: usize,
    number: u64,
}

fn finalized(spaces: &[Space<Windows>]) -> impl Iterator<Item = Finalized> {
    spaces.iter().enumerate().flat_map(|(number, space)| {
        let all = space.records.finalized();
        all.map(move |(order, slot)| Finalized {
            order,
            space: number,
            number: slot,
        })
    })
}

impl End {
    pub(super) fn of(spaces: Vec<Space<Windows>>, mapper: Arc<dyn MemoryMapper>) -> Ending {
        Box::new(move |done| {
            let mut sorted = Vec::new();
            let count: u64 = spaces.iter().map(|space| space.usage.finalized).sum();
            let room = sorted.try_reserve_exact(count as usize);
            let sorted = room.is_ok().then(|| {
                sorted.extend(finalized(&spaces));
                sorted.sort_unstable();
                sorted
            });
            let end = End {
                spaces,
                mapper: Arc::clone(&mapper),
                sorted,
                done,
            };
            run(&mapper, Box::new(end), &mut Delivery::Inline);
        })
    }

    /// The allocations that are next, the last one last.
    fn next_ones(&mut self) -> SmallVec<[Finalized; PART]> {
        if let Some(sorted) = &mut self.sorted {
            let rest = sorted.len().saturating_sub(PART);
            return sorted.drain(rest..).collect();
        }
        let mut latest: SmallVec<[Finalized; PART]> = SmallVec::new();
        for one in finalized(&self.spaces) {
            if latest.len() == PART {
                match latest[0] < one {
                    true => drop(latest.remove(0)),
                    false => continue,
                }
            }
            let place = latest.partition_point(|other| *other < one);
            latest.insert(place, one);
        }
        latest
    }
}

impl Parts for End {
    fn next(&mut self) -> Option<Vec<Deinitialization>> {
        let ones = self.next_ones();
        if ones.is_empty() {
            return None;
        }
        let spaces = &mut self.spaces;
        let each = ones.iter().filter_map(|one| {
            let (space, key) = (&mut spaces[one.space], Key::of(one.number as u32));
            space.records.start_deallocating(key);
            space.deinitialization(key, false)
        });
        Some(each.collect())
    }

    fn answered(&mut self, _: Result<()>, _: &mut Delivery) {}

    fn end(self: Box<Self>, delivery: &mut Delivery) {
        let End {
            mut spaces,
            mapper,
            done,
            ..
        } = *self;
        // The first arena has all windows, the others parts of them.
        let windows = spaces.last_mut().map(|first| first.memory.drain());
        drop(spaces);
        lookup::collect();
        let windows = windows.unwrap_or_default();
        let all = join_all(windows.len(), done, delivery);
        for (window, done) in windows.into_iter().zip(all) {
            mapper.release(window, done);
        }
    }
}
