// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Chunks and windows that come and go, and the requests that wait for them.

use super::allocate::{Served, Waiting};
use super::flow::Flow;
use super::windows::{Detached, Growth, Windows};
use super::{Allocated, Request};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::mapper::{Chunk, Reserved};
use crate::memory::placement::Placement;
use std::cell::Cell;
use std::sync::Arc;

/// No manager's, or that of a thread inside the mappers of several.
const NONE: usize = 0;
const SEVERAL: usize = 1;

thread_local! {
    /// The manager for which this thread is inside a mapper's `prepare` or `reclaim`. A change that
    /// it waited for there might be its own.
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

impl Flow<Windows> {
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
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
        self.try_allocate(request).unwrap_or_else(|| {
            self.counted(Err(Error::new(
                Status::WindowFull,
                "allocate from inside the mapper's prepare or reclaim: there is no room without \
                 what that is about to change; allocate once it has returned, or choose a larger \
                 window",
            )))
        })
    }

    pub(super) fn open_window(
        self: Arc<Self>,
        request: Request,
        new_windows: u32,
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
                    flow.allocate_or_wait(request, new_windows + 1, false, done, delivery);
                }
                // What the request was kept from by other JITDylibs' needs may still hold it.
                Err(error) => match flow.serve(&request, true, delivery) {
                    Served::Answer(Ok(allocated)) => done.complete_with(Ok(allocated), delivery),
                    _ => flow.failed(error.context("open another window"), done, delivery),
                },
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
        // Before any allocation can lie in it.
        if answer.is_ok() {
            let Chunk { range, group, .. } = growth.chunk;
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
                    let smaller = memory.not_grown(&growth);
                    let short = error.status() == Status::OutOfMemory;
                    if smaller && short { Ok(()) } else { Err(error) }
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
        let mut failure = None;
        let (mut progress, mut bytes) = (false, 0);
        for detached in empty {
            let inside = flow.enter_mapper();
            let answer = flow.mapper.reclaim(detached.range);
            drop(inside);
            // It was freed without traps if it was to go (`free_with_chunks`).
            let stays = answer.is_err() && detached.group.protection.executable();
            let writers = stays.then(|| self.open_writers());
            if let Some(Ok(_open)) = writers {
                detached.chunk.fill_with_traps();
                self.flush_here(detached.range);
            }
            if answer.is_ok() {
                let tracking = &flow.tracking;
                tracking.chunk_reclaimed(detached.range, detached.group, delivery);
            }
            let memory = &mut flow.space.lock().memory;
            match answer {
                Ok(()) => {
                    bytes += detached.chunk.committed();
                    memory.reclaimed(detached);
                    progress = true;
                }
                Err(error) => {
                    memory.not_reclaimed(detached);
                    failure = Some(error);
                }
            }
        }
        flow.wake(delivery);
        match failure {
            Some(error) if !progress => Err(error),
            _ => Ok(bytes),
        }
    }

    /// Tries again with what waited for a change.
    pub(super) fn wake(self: &Arc<Self>, delivery: &mut Delivery) {
        let waiting = std::mem::take(&mut self.space.lock().memory.waiting);
        if waiting.is_empty() {
            return;
        }
        let flow = Arc::clone(self);
        for Waiting { request, done } in waiting {
            Arc::clone(&flow).allocate_or_wait(request, 0, false, done, delivery);
        }
    }
}
