// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How allocations end: abandon and deallocate.

use super::divide::{Deallocated, Freed};
use super::flow::Flow;
use super::parts::PART;
use super::records::{Key, Phase};
use super::reservations::Reservations;
use super::tracking::named;
use super::windows::Windows;
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::Result;
use crate::mapper::Deinitialization;
use crate::page::AddressRange;
use crate::sys;
use crate::transport::limits::Asked;
use smallvec::SmallVec;
use std::sync::Arc;

/// Bytes of code from which on it is worth knowing, before they are made to trap, which chunks go and
/// which pages were touched.
const MUCH_CODE: u64 = 1 << 20;

impl Flow<Windows> {
    pub(super) fn abandon(self: &Arc<Self>, handle: u64, done: Completion<()>) {
        let mut freed = Freed {
            unwritten: true,
            ..Freed::default()
        };
        let taken = self.check_process().and_then(|()| {
            let mut space = self.space.lock();
            let key = space.records.find_in_flight(handle)?;
            let holding = space.records.record(key).holding;
            space.memory.check_in_flight(holding)?;
            let state = space.records.end_writing(key, Phase::Abandoned);
            space.take_pieces(key, &mut freed);
            space.usage.counters.abandon += 1;
            Ok((key, state))
        });
        let key = match taken {
            Ok((key, _state)) => key,
            Err(error) => return self.failed(error, done, &mut Delivery::Inline),
        };
        let delivery = &mut Delivery::Inline;
        self.tracking.ended(&[handle], delivery);
        self.give_back(&[key], &freed, delivery);
        let done = self.in_time(Asked::Memory, done, |_, _, _| ());
        Arc::clone(&self.mapper).quiesce(done, delivery);
    }

    /// Deallocates, if the mapper has no part in it.
    pub(super) fn try_deallocate(self: &Arc<Self>, handles: &[u64]) -> Option<Result<()>> {
        let mut out = Deallocated::default();
        let taken = self.check_process().and_then(|()| {
            let mut space = self.space.lock();
            if space.scopes.hold(handles) {
                return Ok(false);
            }
            space.try_deallocate(handles, self.is_shared(), &mut out)
        });
        match self.counted(taken) {
            Ok(true) => {
                self.tracking.ended(handles, &mut Delivery::Inline);
                match handles.len() > PART {
                    true => self.free_in_parts(&out, &mut Delivery::Inline),
                    false => self.give_back_or_defer(&out, &mut Delivery::Inline),
                }
                Some(Ok(()))
            }
            Ok(false) => None,
            Err(error) => match handles {
                [one] => Some(named(self.tracking.find(*one).as_ref(), Err(error))),
                _ => Some(Err(error)),
            },
        }
    }

    pub(super) fn deallocate(self: &Arc<Self>, handles: &[u64], done: Completion<()>) {
        let delivery = &mut Delivery::Inline;
        let mut out = Deallocated::default();
        let taken = self.check_process().and_then(|()| {
            let mut space = self.space.lock();
            if space.scopes.hold(handles) {
                return Ok(false);
            }
            space.deallocate(handles, &mut out).map(|()| true)
        });
        match taken {
            Ok(true) => {}
            Ok(false) => return self.deallocate_after_scopes(handles, done),
            Err(error) => return self.failed(error, done, delivery),
        }
        self.tracking.ended(handles, delivery);
        match handles.len() > PART {
            true => self.deallocate_in_parts(out, done, delivery),
            false => self.free_after(out, done, delivery),
        }
    }

    /// Has the mapper deinitialize allocations, then frees what they had, and answers.
    pub(super) fn free_after(
        self: &Arc<Self>,
        mut out: Deallocated,
        done: Completion<()>,
        delivery: &mut Delivery,
    ) {
        let asked = match out.deinitialize.is_empty() {
            true => Asked::Memory,
            false => Asked::Code,
        };
        let done = self.in_time(asked, done, |_, _, _| ());
        let flow = Arc::clone(self);
        let deinitialize = std::mem::take(&mut out.deinitialize);
        self.deinitialize(deinitialize, delivery, move |answer, delivery| {
            flow.give_back_or_defer(&out, delivery);
            flow.answer_when_quiet(answer, done, delivery);
        });
    }

    /// Answers once nothing is under way any more.
    pub(super) fn answer_when_quiet(
        self: Arc<Self>,
        answer: Result<()>,
        done: Completion<()>,
        delivery: &mut Delivery,
    ) {
        let answer = self.counted(answer);
        let mapper = Arc::clone(&self.mapper);
        drop(self);
        mapper.quiesce(done.map(|_| answer), delivery);
    }

    /// Has the mapper deinitialize allocations, if it has anything to do, then goes on.
    pub(super) fn deinitialize(
        &self,
        what: Vec<Deinitialization>,
        delivery: &mut Delivery,
        next: impl FnOnce(Result<()>, &mut Delivery) + Send + 'static,
    ) {
        if what.is_empty() {
            next(Ok(()), delivery);
        } else {
            let next = Completion::with_delivery(next);
            Arc::clone(&self.mapper).deinitialize(what, next, delivery);
        }
    }

    /// Frees what deallocated allocations had, or has it wait, and forgets them.
    pub(super) fn give_back_or_defer(self: &Arc<Self>, out: &Deallocated, delivery: &mut Delivery) {
        let Some(expected) = out.deferred else {
            return self.give_back(&out.keys, &out.freed, delivery);
        };
        let mut space = self.space.lock();
        space.defer(expected, &out.freed);
        out.keys.iter().for_each(|key| space.forget(*key));
    }

    /// Frees pieces and forgets allocations.
    pub(super) fn give_back(
        self: &Arc<Self>,
        keys: &[Key],
        freed: &Freed,
        delivery: &mut Delivery,
    ) {
        let code_is_freed = !freed.traps.is_empty();
        let writers = code_is_freed.then(|| self.open_writers()).transpose();
        let mut empty = Vec::new();
        let kept = match freed.code > MUCH_CODE {
            true => self.space.lock().free_with_chunks(freed, &mut empty),
            false => None,
        };
        let freed = kept.as_ref().unwrap_or(freed);
        // Where they can't be opened, freed code stays as it is.
        if writers.is_ok() {
            self.fill_with_traps(freed);
        }
        let (idle, unused, idle_records) = {
            let mut space = self.space.lock();
            space.free(&freed.pieces, &mut empty);
            keys.iter().for_each(|key| space.forget(*key));
            let unused = space.memory.many && (space.memory.unused || !empty.is_empty());
            (space.begin_trim(), unused, space.has_idle_records())
        };
        if idle_records {
            self.discard_records();
        }
        if !empty.is_empty() {
            // A chunk that the system does not take back is kept for reuse: nothing is lost.
            let _ = self.reclaim(empty, delivery);
        }
        if let Some(least) = idle {
            self.trim_idle(least, delivery);
        }
        if unused {
            self.release_spare_windows(delivery);
        }
        drop(writers);
        self.close_idle_writers();
    }

    /// Makes code that is about to be free trap. Outside the lock: the pieces are still taken.
    fn fill_with_traps(&self, freed: &Freed) {
        for (writer, range) in &freed.traps {
            // To ask which pages were touched takes a system call.
            match freed.unwritten || range.size() > MUCH_CODE {
                true => writer.fill_resident_with_traps(),
                false => writer.fill_with_traps(),
            }
            self.flush_here(*range);
        }
    }

    /// Makes changed code seen, if it runs in this process.
    #[inline]
    pub(super) fn flush_here(&self, code: AddressRange) {
        if self.mapper.capabilities().in_this_process {
            sys::flush_instruction_cache(code.start(), code.size());
        }
    }
}

impl Flow<Reservations> {
    pub(super) fn abandon(self: &Arc<Self>, handle: u64, done: Completion<()>) {
        let taken = self
            .check_process()
            .and_then(|()| self.space.lock().abandon(handle));
        match taken {
            Ok((key, range, _buffers)) => {
                self.tracking.ended(&[handle], &mut Delivery::Inline);
                self.release(&[key], vec![range], done);
            }
            Err(error) => self.failed(error, done, &mut Delivery::Inline),
        }
    }

    pub(super) fn deallocate(self: &Arc<Self>, handles: &[u64], done: Completion<()>) {
        let taken = self
            .check_process()
            .and_then(|()| self.space.lock().deallocate(handles));
        match taken {
            Ok((keys, ranges)) => {
                self.tracking.ended(handles, &mut Delivery::Inline);
                self.release(&keys, ranges, done);
            }
            Err(error) => self.failed(error, done, &mut Delivery::Inline),
        }
    }

    /// Has the mapper give reservations back, and forgets their allocations.
    fn release(self: &Arc<Self>, keys: &[Key], ranges: Vec<AddressRange>, done: Completion<()>) {
        let keys: SmallVec<[Key; 4]> = keys.into();
        let done = self.in_time(Asked::Code, done, |_, _, _| ());
        let flow = Arc::clone(self);
        let released = Completion::with_delivery(move |answer, delivery| {
            let idle = {
                let mut space = flow.space.lock();
                keys.iter().for_each(|key| space.forget(*key));
                space.has_idle_records()
            };
            if idle {
                flow.discard_records();
            }
            flow.answer_last(answer, done, delivery);
        });
        match ranges.is_empty() {
            true => released.complete(Ok(())),
            false => Arc::clone(&self.mapper).release(ranges, released),
        }
    }
}
