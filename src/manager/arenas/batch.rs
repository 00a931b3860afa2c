// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Deallocating what lies in several arenas: all is checked and marked before anything is done, and actions run
//! last allocation first, whichever arena it is of.

use super::{Arenas, MOST_ARENAS};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result};
use crate::manager::divide::Deallocated;
use crate::manager::flow::Flow;
use crate::manager::parts::{self, PART, Parts};
use crate::manager::records::Key;
use crate::manager::space::Space;
use crate::manager::windows::Windows;
use crate::mapper::Deinitialization;
use crate::mapper::actions::join;
use crate::sys::heap;
use crate::transport::limits::Asked;
use smallvec::SmallVec;
use std::sync::Arc;

/// An allocation of a batch.
#[derive(Clone, Copy)]
struct Member {
    arena: usize,
    handle: u64,
    key: Option<Key>,
}

/// Why a batch can't be deallocated now.
enum Refusal {
    Wrong(Error),
    /// A write scope of an allocation in this arena is open.
    Written(usize),
}

impl Member {
    /// Marks it as being deallocated, or says why not.
    fn mark(&mut self, space: &mut Space<Windows>) -> Option<Refusal> {
        if space.scopes.hold(&[self.handle]) {
            return Some(Refusal::Written(self.arena));
        }
        match space.records.find_finalized(self.handle) {
            Ok(key) => {
                space.records.start_deallocating(key);
                space.usage.counters.deallocate += 1;
                self.key = Some(key);
                None
            }
            Err(error) => Some(Refusal::Wrong(error)),
        }
    }
}

impl Arenas {
    /// [`Flow::deallocate`] of allocations in any arenas.
    pub(in crate::manager) fn deallocate(&self, handles: &[u64], done: Completion<()>) {
        if let Some(flow) = self.of_all(handles) {
            return flow.deallocate(handles, done);
        }
        let delivery = &mut Delivery::Inline;
        if let Err(error) = self.first.check_process() {
            return self.first.failed(error, done, delivery);
        }
        let mut members = Vec::new();
        if members.try_reserve_exact(handles.len()).is_err() {
            return self
                .first
                .failed(heap::exhausted("deallocate"), done, delivery);
        }
        members.extend(handles.iter().map(|handle| Member {
            arena: self.present(*handle),
            handle: *handle,
            key: None,
        }));
        loop {
            match self.mark(&mut members) {
                Ok(()) => break,
                Err(Refusal::Wrong(error)) => {
                    let context = format!("deallocate {} allocations", handles.len());
                    return self.first.failed(error.context(context), done, delivery);
                }
                Err(Refusal::Written(arena)) => {
                    let mut space = self.numbered(arena).space.lock();
                    if space.scopes.hold(handles) {
                        let refused = space.scopes.wait(handles, done);
                        drop(space);
                        if let Some((error, done)) = refused {
                            self.first.failed(error, done, delivery);
                        }
                        return;
                    }
                }
            }
        }
        self.first.tracking.ended(handles, delivery);
        let batch = Batch {
            flows: std::array::from_fn(|arena| Arc::clone(self.numbered(arena))),
            left: members.len(),
            members,
            answer: Ok(()),
            done: self.first.in_time(Asked::Code, done, |_, _, _| ()),
        };
        parts::run(&self.first.mapper, Box::new(batch), delivery);
    }

    /// The arena that has an allocation, of those that there are.
    fn present(&self, handle: u64) -> usize {
        match self.number_of(handle) {
            number if self.other(number).is_some() => number,
            _ => 0,
        }
    }

    /// Marks all members as being deallocated, or none.
    fn mark(&self, members: &mut [Member]) -> std::result::Result<(), Refusal> {
        for arena in 0..MOST_ARENAS {
            let wanted = |member: &&mut Member| member.arena == arena;
            if !members.iter_mut().any(|member| wanted(&member)) {
                continue;
            }
            let refusal = {
                let space = &mut *self.numbered(arena).space.lock();
                let mut members = members.iter_mut().filter(wanted);
                members.find_map(|member| member.mark(space))
            };
            if let Some(refusal) = refusal {
                self.unmark(members);
                return Err(refusal);
            }
        }
        Ok(())
    }

    fn unmark(&self, members: &mut [Member]) {
        for member in members {
            if let Some(key) = member.key.take() {
                let space = &mut *self.numbered(member.arena).space.lock();
                space.records.stop_deallocating(key);
                space.usage.counters.deallocate -= 1;
            }
        }
    }
}

/// A batch that is being deallocated: all actions run, last allocation first, then memory is freed.
struct Batch {
    /// By number of the arena.
    flows: [Arc<Flow<Windows>>; MOST_ARENAS],
    members: Vec<Member>,
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
        let flows = &self.flows;
        let part = self.members[self.left..end].iter().filter_map(|member| {
            let space = &mut flows[member.arena].space.lock();
            space.deinitialization(member.key?, false)
        });
        Some(part.collect())
    }

    fn answered(&mut self, answer: Result<()>, _: &mut Delivery) {
        self.answer = join(std::mem::replace(&mut self.answer, Ok(())), answer);
    }

    fn end(self: Box<Self>, delivery: &mut Delivery) {
        for (arena, flow) in self.flows.iter().enumerate() {
            let own = self.members.iter().filter(|member| member.arena == arena);
            let mut keys = own.filter_map(|member| member.key);
            // A part at a time: what has begun must end though the heap is exhausted.
            loop {
                let part: SmallVec<[Key; 4]> = keys.by_ref().take(PART).collect();
                if part.is_empty() {
                    break;
                }
                let part = Deallocated {
                    keys: part,
                    ..Deallocated::default()
                };
                flow.free_in_parts(&part, delivery);
            }
        }
        let [first, ..] = self.flows;
        first.answer_when_quiet(self.answer, self.done, delivery);
    }
}
