// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! An allocation on its way into all executors of a group: all of them have it in the end, or none.

use super::super::initialize::item;
use super::super::unwind::IndexedFrames;
use super::member::{Answers, Member, gather};
use super::state::Forgetting;
use super::{Inner, joined};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result};
use crate::mapper::{Action, SegmentContent, SegmentContents, Teardown};
use crate::page::AddressRange;
use crate::transport::limits::Asked;
use crate::wire::sps::Encode;
use smallvec::SmallVec;
use std::sync::Arc;

type Ranges = SmallVec<[AddressRange; 4]>;

/// What the steps hand on.
pub(super) struct Initializing {
    group: Arc<Inner>,
    ranges: Arc<Ranges>,
    /// What executors are told, encoded; the same for all.
    item: Arc<[u8]>,
    asked: Asked,
    frames: Option<IndexedFrames>,
    /// What executors have answered, by number.
    keys: Vec<(u64, u64)>,
    done: Completion<Teardown>,
}

impl Initializing {
    /// Waits until all members have mapped the chunks, and goes on.
    pub(super) fn start(
        group: Arc<Inner>,
        segments: SegmentContents,
        actions: Vec<Action>,
        done: Completion<Teardown>,
    ) {
        if group.settled() {
            return Self::mapped(group, segments, actions, done, &mut Delivery::Inline);
        }
        let ranges: Ranges = segments.iter().map(|segment| segment.range).collect();
        let members = group.members();
        let inner = Arc::clone(&group);
        let ask = |member: &Arc<Member>, done| {
            let done = member.in_time(Asked::Memory, done, inner.putting_out(member));
            member.chunks.when_mapped(&ranges, done);
        };
        let mapped = |answers: Answers<()>, delivery: &mut Delivery| {
            let mut result = Ok(());
            for (member, answer) in answers {
                if let Err(error) = answer {
                    if group.counts(&member, &error) {
                        result = joined(result, member.named(error));
                    }
                }
            }
            match result {
                Ok(()) => Self::mapped(group, segments, actions, done, delivery),
                Err(error) => done.complete_with(Err(error), delivery),
            }
        };
        gather(members, &mut Delivery::Inline, ask, mapped);
    }

    fn mapped(
        group: Arc<Inner>,
        segments: SegmentContents,
        mut actions: Vec<Action>,
        done: Completion<Teardown>,
        delivery: &mut Delivery,
    ) {
        let read = |section, see: &mut dyn FnMut(_)| group.read(section, see);
        let frames = group.unwinding.enter(&mut actions, &segments, &read);
        let coherent = group.layout.coherent;
        let shared = |segment: &SegmentContent| segment.content.is_none();
        if coherent && actions.is_empty() && segments.iter().all(shared) {
            if !group.is_empty() {
                return done.complete_with(Ok(Teardown::new(0, frames)), delivery);
            }
            frames.iter().for_each(IndexedFrames::take_out);
            return done.complete_with(Err(group.why_empty()), delivery);
        }
        let mut encoded = Vec::with_capacity(256);
        item(&segments, &actions, coherent).encode(&mut encoded);
        let initializing = Initializing {
            ranges: Arc::new(segments.iter().map(|segment| segment.range).collect()),
            item: encoded.into(),
            asked: match actions.is_empty() {
                true => Asked::Memory,
                false => Asked::Code,
            },
            frames,
            keys: Vec::new(),
            group,
            done,
        };
        let members = initializing.group.members();
        initializing.tell(members, delivery);
    }

    /// Tells executors, all at once.
    fn tell(self, members: Vec<Arc<Member>>, delivery: &mut Delivery) {
        let (group, asked) = (Arc::clone(&self.group), self.asked);
        let (item, ranges) = (Arc::clone(&self.item), Arc::clone(&self.ranges));
        let ask = move |member: &Arc<Member>, done: Completion<u64>| {
            let done = member.in_time(asked, done, group.putting_out(member));
            let (item, told) = (Arc::clone(&item), Arc::clone(member));
            // One that has just joined may be mapping them.
            let mapped =
                Completion::with_delivery(move |answer: Result<()>, delivery| match answer {
                    Ok(()) => told.apply(&item, vec![done]),
                    Err(error) => done.complete_with(Err(error), delivery),
                });
            member.chunks.when_mapped(&ranges, mapped);
        };
        gather(members, delivery, ask, |answers, delivery| {
            self.told(answers, delivery);
        });
    }

    fn told(mut self, answers: Answers<u64>, delivery: &mut Delivery) {
        let mut result = Ok(());
        for (member, answer) in answers {
            match answer {
                // It counts even if it has left since: it is not asked again.
                Ok(key) => self.keys.push((member.number, key)),
                Err(error) if self.group.counts(&member, &error) => {
                    result = joined(result, member.named(error));
                }
                Err(_) => self.keys.push((member.number, 0)),
            }
        }
        if let Err(error) = result {
            return self.undo(error, delivery);
        }
        let (missing, number) = {
            let mut state = self.group.state.lock();
            let has =
                |one: &&Arc<Member>| !self.keys.iter().any(|(number, _)| *number == one.number);
            let missing: Vec<Arc<Member>> = state.members.iter().filter(has).cloned().collect();
            let mut number = None;
            if missing.is_empty() && !state.members.is_empty() {
                let still = |(number, _): &(u64, u64)| {
                    state.members.iter().any(|one| one.number == *number)
                };
                let keys = self.keys.iter().copied().filter(still).collect();
                number = Some(state.allocations.add(Arc::clone(&self.item), keys));
            }
            (missing, number)
        };
        match number {
            Some(number) => {
                let teardown = Teardown::new(number, self.frames);
                self.done.complete_with(Ok(teardown), delivery);
            }
            // Others have joined since.
            None if !missing.is_empty() => self.tell(missing, delivery),
            None => {
                let error = self.group.why_empty();
                self.fail(error, delivery);
            }
        }
    }

    /// An executor could not: the others run the twins of what they have run.
    fn undo(mut self, error: Error, delivery: &mut Delivery) {
        let mut forgetting = Forgetting::default();
        for (number, key) in std::mem::take(&mut self.keys) {
            if key != 0 {
                forgetting.keys.insert(number, vec![key]);
            }
        }
        let group = Arc::clone(&self.group);
        let undone = Completion::with_delivery(move |answer: Result<()>, delivery| {
            let error = match answer {
                Ok(()) => error,
                Err(also) => error.join(also),
            };
            self.fail(error, delivery);
        });
        group.forget(|_| forgetting, undone, delivery);
    }

    fn fail(self, error: Error, delivery: &mut Delivery) {
        self.frames.iter().for_each(IndexedFrames::take_out);
        self.done.complete_with(Err(error), delivery);
    }
}
