// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Chunks and windows that come and go, and the requests that wait for them.

use super::allocate::{MOST_NEW_WINDOWS, Served, Tried, Waiting};
use super::flow::Flow;
use super::pool::Keep;
use super::windows::{Detached, Growth, Windows};
use super::{Allocated, Request};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::lock::Mutex;
use crate::mapper::{Chunk, Prepared, Reserved};
use crate::memory::placement::Placement;
use crate::sys;
use std::cell::Cell;
use std::sync::Arc;

/// No manager's, or that of a thread inside the mappers of several.
const NONE: usize = 0;
const SEVERAL: usize = 1;

thread_local! {
    /// The manager for which this thread is inside a mapper's `prepare` or `reclaim`, or an observer that is
    /// told of such a change. A change that it waited for there might be its own.
    static INSIDE_MAPPER_OF: Cell<usize> = const { Cell::new(NONE) };
}

/// Notes that this thread is inside a mapper, until it is dropped.
pub(super) struct InsideMapper {
    before: usize,
}

impl Drop for InsideMapper {
    fn drop(&mut self) {
        INSIDE_MAPPER_OF.set(self.before);
    }
}

/// Notes that this thread does what a request needs, though perhaps inside a mapper that has answered at
/// once, until the answer is dropped.
pub(super) fn leave_mapper() -> InsideMapper {
    InsideMapper {
        before: INSIDE_MAPPER_OF.replace(NONE),
    }
}

/// What came of reclaiming several chunks.
#[derive(Default)]
struct Outcome {
    progress: bool,
    bytes: u64,
    failure: Option<Error>,
}

impl Outcome {
    fn add(&mut self, answer: Result<u64>) {
        match answer {
            Ok(bytes) => {
                self.progress = true;
                self.bytes += bytes;
            }
            Err(error) => self.failure = Some(error),
        }
    }

    /// The bytes of memory that they held; an error if none was reclaimed.
    fn result(self) -> Result<u64> {
        match self.failure {
            Some(error) if !self.progress => Err(error),
            _ => Ok(self.bytes),
        }
    }
}

impl Flow<Windows> {
    /// The manager's, whichever arena this is.
    fn address(&self) -> usize {
        let first = self.first.as_deref().unwrap_or(self);
        std::ptr::from_ref(first).addr()
    }

    pub(super) fn enter_mapper(&self) -> InsideMapper {
        let before = INSIDE_MAPPER_OF.get();
        let one = before == NONE || before == self.address();
        INSIDE_MAPPER_OF.set(if one { self.address() } else { SEVERAL });
        InsideMapper { before }
    }

    pub(super) fn is_inside_mapper(&self) -> bool {
        [self.address(), SEVERAL].contains(&INSIDE_MAPPER_OF.get())
    }

    /// Serves a request of the mapper itself, which must not wait for what the mapper is doing.
    pub(super) fn allocate_inside_mapper(self: &Arc<Self>, request: &Request) -> Result<Allocated> {
        let tried = Tried {
            in_any_code: true,
            ..Tried::default()
        };
        self.try_allocate_after(tried, request).unwrap_or_else(|| {
            self.counted(Err(Error::new(
                Status::WindowFull,
                "allocate from inside the mapper's prepare or reclaim, or where an observer is told of a \
                 window or chunk: there is no room without what that is about to change; allocate once it \
                 has returned, or choose a larger window",
            )))
        })
    }

    pub(super) fn open_window(
        self: Arc<Self>,
        request: Request,
        tried: Tried,
        done: Completion<Allocated>,
    ) {
        let flow = Arc::clone(&self);
        let placement = match self.options.placement {
            // The fixed address is taken by the first window.
            Placement::Fixed(address) => Placement::Near(address),
            other => other,
        };
        let least = self.space.lock().memory.least_window(&request);
        let reserved = Completion::with_delivery(move |answer: Result<Reserved>, delivery| {
            let reserved = answer.and_then(|reserved| flow.in_reach(reserved));
            let opened = flow.opened(reserved, least, delivery);
            match opened {
                Ok(()) => {
                    let flow = Arc::clone(&flow);
                    let tried = Tried {
                        windows: tried.windows + 1,
                        ..Tried::default()
                    };
                    flow.allocate_or_wait(request, tried, done, delivery);
                }
                // What the request was kept from by other JITDylibs' needs may still hold it.
                Err(error) => {
                    let tried = Tried {
                        windows: MOST_NEW_WINDOWS,
                        last_resort: true,
                        reclaimed: false,
                        others: true,
                        in_any_code: true,
                    };
                    match flow.serve(&request, tried, delivery) {
                        Served::Answer(Ok(allocated)) => {
                            done.complete_with(Ok(allocated), delivery);
                        }
                        Served::Grow(growth) => {
                            Arc::clone(&flow).grow_for(request, tried, growth, done);
                        }
                        Served::Reclaim(empty) => {
                            Arc::clone(&flow).reclaim_for(request, tried, empty, done);
                        }
                        _ => flow.not_served(error.context("open another window"), done, delivery),
                    }
                }
            }
            flow.wake(delivery);
        });
        let mapper = Arc::clone(&self.mapper);
        mapper.reserve(self.options.window_size, least, placement, reserved);
    }

    /// Gives a new window that is out of reach of what it was wanted near back, and says so.
    pub(super) fn in_reach(&self, reserved: Reserved) -> Result<Reserved> {
        match self.options.placement.check(reserved.range) {
            Ok(()) => Ok(reserved),
            Err(error) => {
                self.mapper.release(reserved.range, Completion::new(|_| ()));
                Err(error)
            }
        }
    }

    /// Takes a new window in, if it is of use.
    fn opened(&self, answer: Result<Reserved>, least: u64, delivery: &mut Delivery) -> Result<()> {
        if let Ok(reserved) = &answer {
            if reserved.range.size() >= least {
                let _inside = self.enter_mapper();
                self.tracking.window_reserved(reserved.range, delivery);
            }
        }
        let useless = {
            let mut space = self.space.lock();
            space.memory.changes -= 1;
            let reserved = answer?;
            if reserved.range.size() >= least {
                space.memory.add(reserved);
                return Ok(());
            }
            reserved.range
        };
        self.mapper.release(useless, Completion::new(|_| ()));
        Err(Error::new(
            Status::OutOfMemory,
            format!(
                "reserve at least {least} bytes: no more than {} are to be had",
                useless.size()
            ),
        ))
    }

    /// Has the mapper prepare a chunk.
    pub(super) fn grow(self: &Arc<Self>, growth: Growth, delivery: &mut Delivery) -> Result<()> {
        let inside = self.enter_mapper();
        let answer = self.mapper.prepare(growth.chunk);
        drop(inside);
        self.end_growing(growth, answer, delivery)
    }

    /// Has the mapper prepare a chunk for a request, which goes on when the mapper has answered.
    pub(super) fn grow_for(
        self: Arc<Self>,
        request: Request,
        tried: Tried,
        growth: Growth,
        done: Completion<Allocated>,
    ) {
        let (flow, chunk) = (Arc::clone(&self), growth.chunk);
        let prepared = Completion::with_delivery(move |answer, delivery| {
            let _outside = leave_mapper();
            match flow.end_growing(growth, answer, delivery) {
                Ok(()) => flow.allocate_or_wait(request, tried, done, delivery),
                Err(error) => flow.not_served(error, done, delivery),
            }
        });
        let _inside = self.enter_mapper();
        self.mapper.prepare_later(chunk, prepared);
    }

    /// Forgets about a chunk that the mapper was not asked for.
    pub(super) fn do_not_grow(self: &Arc<Self>, growth: &Growth, delivery: &mut Delivery) {
        self.space.lock().memory.not_begun(growth);
        self.wake(delivery);
    }

    /// Takes in what the mapper has prepared, or that it could not. An error means that no other chunk would
    /// help.
    fn end_growing(
        self: &Arc<Self>,
        growth: Growth,
        answer: Result<Prepared>,
        delivery: &mut Delivery,
    ) -> Result<()> {
        // Before any allocation can lie in it.
        if answer.is_ok() {
            let Chunk { range, group, .. } = growth.chunk;
            let _inside = self.enter_mapper();
            self.tracking.chunk_made(range, group, delivery);
        }
        let answer = {
            let memory = &mut self.space.lock().memory;
            match answer {
                Ok(prepared) => {
                    if prepared.is_copied() {
                        self.set_copying();
                    }
                    memory.grown(growth, prepared);
                    Ok(())
                }
                Err(error) => {
                    let is_short = error.status() == Status::OutOfMemory;
                    if memory.not_grown(&growth, is_short) {
                        Ok(())
                    } else {
                        Err(error)
                    }
                }
            }
        };
        self.wake(delivery);
        answer
    }

    /// Has the mapper take empty chunks back, and gives the bytes of memory that they held. A chunk that
    /// it can't take back stays in use; an error means that it took none.
    pub(super) fn reclaim(
        self: &Arc<Self>,
        empty: Vec<Detached>,
        delivery: &mut Delivery,
    ) -> Result<u64> {
        if empty.is_empty() {
            return Ok(0);
        }
        let flow = Arc::clone(self);
        if flow.mapper.changes_chunks_later() {
            flow.reclaim_later(empty, |flow, _, delivery| {
                flow.release_spare_windows(delivery)
            });
            return Ok(0);
        }
        let mut outcome = Outcome::default();
        for detached in empty {
            let inside = flow.enter_mapper();
            let answer = flow.mapper.reclaim(detached.range);
            drop(inside);
            outcome.add(flow.end_reclaiming(detached, answer, delivery));
        }
        flow.wake(delivery);
        outcome.result()
    }

    /// Has the mapper take empty chunks back for a request, which goes on when the mapper has answered.
    pub(super) fn reclaim_for(
        self: Arc<Self>,
        request: Request,
        tried: Tried,
        empty: Vec<Detached>,
        done: Completion<Allocated>,
    ) {
        let tried = Tried {
            reclaimed: true,
            ..tried
        };
        self.reclaim_later(empty, move |flow, answer, delivery| match answer {
            Ok(_) => flow.allocate_or_wait(request, tried, done, delivery),
            Err(error) => flow.not_served(error, done, delivery),
        });
    }

    /// Keeps chunks that the mapper was not asked to take back.
    pub(super) fn do_not_reclaim(self: &Arc<Self>, empty: Vec<Detached>, delivery: &mut Delivery) {
        let not_asked = || Error::new(Status::WouldBlock, String::new());
        for detached in empty {
            let _ = self.end_reclaiming(detached, Err(not_asked()), delivery);
        }
        self.wake(delivery);
    }

    /// [`Flow::reclaim`] where the mapper answers later; then `next` runs.
    fn reclaim_later(
        self: Arc<Self>,
        empty: Vec<Detached>,
        next: impl FnOnce(Arc<Self>, Result<u64>, &mut Delivery) + Send + 'static,
    ) {
        let shared = Arc::new(Mutex::new((empty.len(), Outcome::default(), Some(next))));
        for detached in empty {
            let (flow, shared) = (Arc::clone(&self), Arc::clone(&shared));
            let range = detached.range;
            let reclaimed = Completion::with_delivery(move |answer, delivery| {
                let _outside = leave_mapper();
                let answer = flow.end_reclaiming(detached, answer, delivery);
                let last = {
                    let (left, outcome, next) = &mut *shared.lock();
                    *left -= 1;
                    outcome.add(answer);
                    let ended = *left == 0;
                    ended.then(|| (std::mem::take(outcome).result(), next.take()))
                };
                flow.wake(delivery);
                if let Some((answer, Some(next))) = last {
                    next(flow, answer, delivery);
                }
            });
            let _inside = self.enter_mapper();
            self.mapper.reclaim_later(range, reclaimed);
        }
    }

    /// Takes back what was made for a request that it can't serve. A chunk that another request is about to
    /// take from may be among them, and is made again for that.
    #[cold]
    pub(super) fn give_up_fresh(self: &Arc<Self>, delivery: &mut Delivery) {
        let mut empty = Vec::new();
        self.space.lock().memory.detach_fresh(&mut empty);
        // A chunk that the system does not take back is kept.
        let _ = self.reclaim(empty, delivery);
        self.release_unused_windows(delivery);
    }

    /// Answers a request that can't be served.
    pub(super) fn not_served(
        self: &Arc<Self>,
        error: Error,
        done: Completion<Allocated>,
        delivery: &mut Delivery,
    ) {
        self.give_up_fresh(delivery);
        self.failed(error, done, delivery);
    }

    /// Gives the run of a chunk back that the mapper has taken back, or keeps the chunk. Gives the bytes of
    /// memory that it held.
    fn end_reclaiming(
        &self,
        detached: Detached,
        answer: Result<()>,
        delivery: &mut Delivery,
    ) -> Result<u64> {
        // It was freed without traps if it was to go (`free_with_chunks`).
        let stays = answer.is_err() && detached.group().protection.executable();
        let writers = stays.then(|| self.open_writers());
        if let Some(Ok(_open)) = writers {
            detached.chunk.fill_with_traps();
            self.flush_here(detached.range);
        }
        if answer.is_ok() {
            let (range, group) = (detached.range, detached.group());
            let _inside = self.enter_mapper();
            self.tracking.chunk_reclaimed(range, group, delivery);
        }
        let memory = &mut self.space.lock().memory;
        match answer {
            Ok(()) => {
                let bytes = detached.chunk.committed();
                memory.reclaimed(detached);
                Ok(bytes)
            }
            Err(error) => {
                memory.not_reclaimed(detached);
                Err(error)
            }
        }
    }

    /// Frees what was frozen and no other process sees any more; whether there was any.
    pub(super) fn thaw(self: &Arc<Self>, delivery: &mut Delivery) -> bool {
        if !self.space.lock().memory.has_frozen() {
            return false;
        }
        // Views that can't be opened are no reason to fail: it is tried again.
        let Ok(_open) = self.open_writers() else {
            return false;
        };
        let forks = sys::forks_in_use();
        let thawed = self.space.lock().memory.take_thawed(&forks);
        for thawed in thawed.iter().flat_map(|(_, _, thawed)| thawed) {
            thawed.writer.fill_with_traps();
            self.flush_here(thawed.range);
        }
        let mut empty = Vec::new();
        {
            let memory = &mut self.space.lock().memory;
            for (window, pool, thawed) in &thawed {
                for thawed in thawed {
                    if memory.window_mut(*window).thawed(*pool, thawed) {
                        memory.detach(*window, *pool, Keep::Spare, &mut empty);
                    }
                }
            }
        }
        // A chunk that the system does not take back is kept.
        let _ = self.reclaim(empty, delivery);
        !thawed.is_empty()
    }

    /// Tries again with what waited for a change.
    pub(super) fn wake(self: &Arc<Self>, delivery: &mut Delivery) {
        let waiting = std::mem::take(&mut self.space.lock().memory.waiting);
        if waiting.is_empty() {
            return;
        }
        // What waits is the first arena's, whichever it waits for.
        let flow = Arc::clone(self.first.as_ref().unwrap_or(self));
        for Waiting { request, done } in waiting {
            Arc::clone(&flow).allocate_or_wait(request, Tried::default(), done, delivery);
        }
    }
}
