// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The manager's flow: how a request becomes an allocation.
//!
//! Whatever calls the mapper or a completion may find the host's last handle gone afterwards, so
//! it holds an `Arc` of its own; the path that calls neither does without.

use super::records::{Key, State};
use super::space::{Attempt, Detached, Effort, Growth, Leaving, Space};
use super::stats::{self, LayoutItem, Stats};
use super::undivided::Blocks;
use super::window::{Grant, Pieces};
use super::{Allocated, Options, Request};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, Status, invalid_argument, invalid_handle};
use crate::mapper::{Kind, MemoryMapper, Reserved};
use crate::memory::buffer::BufferPool;
use crate::memory::view::Placement;
use crate::sys::OwnerProcess;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How many windows one request may cause to be reserved before it gives up.
const MOST_NEW_WINDOWS: u32 = 4;

pub(super) struct Core {
    pub(super) mapper: Arc<dyn MemoryMapper>,
    pub(super) options: Options,
    /// The process that made the manager.
    owner: OwnerProcess,
    pub(super) space: Mutex<Space>,
    /// Working memory of content that the mapper copies.
    pub(super) buffers: Arc<BufferPool>,
    /// Requests that can be answered only once a change outside the lock is done.
    waiting: Mutex<Vec<Waiting>>,
    /// The host has freed the manager.
    closed: AtomicBool,
    /// Each allocation has a reservation of its own.
    undivided: bool,
}

struct Waiting {
    request: Request,
    done: Completion<Allocated>,
}

/// How far a request gets without waiting.
enum Now {
    Answer(Result<Allocated>),
    Wait,
    /// It needs another window; why the present ones do not do.
    AnotherWindow(Error),
}

pub(super) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

pub(super) fn freed() -> Error {
    invalid_handle("the manager was freed while the request waited")
}

impl Core {
    pub(super) fn new(mapper: Arc<dyn MemoryMapper>, options: Options) -> Arc<Core> {
        let capabilities = mapper.capabilities();
        let page_size = capabilities.page_size;
        let mut space = Space::new(page_size, capabilities.granule, &options, random());
        let undivided = !mapper.divides();
        if undivided {
            space.blocks = Some(Box::new(Blocks::new(page_size, &options)));
        }
        Arc::new(Core {
            undivided,
            mapper,
            options,
            owner: OwnerProcess::current(),
            space: Mutex::new(space),
            buffers: Arc::default(),
            waiting: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    pub(super) fn add_window(&self, reserved: Reserved) {
        self.space.lock().add_window(reserved);
    }

    /// Answers what waits; nothing new comes.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        if self.check_process().is_ok() {
            let waiting = std::mem::take(&mut *self.waiting.lock());
            waiting
                .into_iter()
                .for_each(|waiting| waiting.done.complete(Err(freed())));
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn check_process(&self) -> Result<()> {
        // Only a host can know what its own mapper does in a child.
        let ours = self.mapper.capabilities().kind != Kind::Custom;
        if ours && !self.owner.is_current() {
            return Err(invalid_handle(
                "this manager belongs to the parent process: a forked child shares its code pages \
                 or its connection and must leave both alone; create a manager in the child",
            ));
        }
        Ok(())
    }

    /// Counts a failure. Not in a forked child, where another thread may have held the lock.
    pub(super) fn counted<T>(&self, answer: Result<T>) -> Result<T> {
        if answer.is_err() && self.check_process().is_ok() {
            self.space.lock().counters.failures += 1;
        }
        answer
    }

    pub(super) fn failed<T>(&self, error: Error, done: Completion<T>, delivery: &mut Delivery) {
        done.complete_with(self.counted(Err(error)), delivery);
    }

    // ---- allocating ----

    /// Serves a request, if that takes no waiting.
    pub(super) fn try_allocate(self: &Arc<Self>, request: &Request) -> Option<Result<Allocated>> {
        if self.undivided {
            return None;
        }
        match self.allocate_now(request, false, &mut Delivery::Inline) {
            Now::Answer(answer) => Some(answer),
            Now::Wait | Now::AnotherWindow(_) => None,
        }
    }

    fn allocate_now(
        self: &Arc<Self>,
        request: &Request,
        last_resort: bool,
        delivery: &mut Delivery,
    ) -> Now {
        let mut grant = Grant::default();
        let effort = Effort {
            last_resort,
            reclaim: true,
        };
        let attempt = self.space.lock().allocate(request, effort, &mut grant);
        match attempt {
            Attempt::Done(key) => Now::Answer(self.make_ready(key, grant, delivery)),
            other => Arc::clone(self).allocate_slowly(request, last_resort, other, delivery),
        }
    }

    /// Makes room and tries again, until the request is served or there is no room to make.
    fn allocate_slowly(
        self: Arc<Self>,
        request: &Request,
        last_resort: bool,
        mut attempt: Attempt,
        delivery: &mut Delivery,
    ) -> Now {
        let mut grant = Grant::default();
        let mut reclaimed = false;
        loop {
            let step = match attempt {
                Attempt::Done(key) => {
                    return Now::Answer(self.make_ready(key, grant, delivery));
                }
                Attempt::Wait => return Now::Wait,
                Attempt::Full(error) => return Now::AnotherWindow(error),
                Attempt::Refused(error) => Err(error),
                Attempt::Grow(growth) => self.grow(&growth, delivery),
                // If none can be reclaimed, say so. Once only: what is reclaimed may be what was made
                // for the first half of a request whose second half has no room.
                Attempt::Reclaim(empty) => {
                    reclaimed = true;
                    self.reclaim(empty, delivery)
                }
            };
            if let Err(error) = step {
                return Now::Answer(self.counted(Err(error)));
            }
            let effort = Effort {
                last_resort,
                reclaim: !reclaimed,
            };
            attempt = self.space.lock().allocate(request, effort, &mut grant);
        }
    }

    pub(super) fn allocate(self: &Arc<Self>, request: Request, done: Completion<Allocated>) {
        if self.undivided {
            return self.allocate_undivided(request, done);
        }
        let delivery = &mut Delivery::Inline;
        Arc::clone(self).allocate_or_wait(request, 0, false, done, delivery);
    }

    fn allocate_or_wait(
        self: Arc<Self>,
        request: Request,
        new_windows: u32,
        last_resort: bool,
        done: Completion<Allocated>,
        delivery: &mut Delivery,
    ) {
        loop {
            if self.is_closed() {
                return done.complete_with(Err(freed()), delivery);
            }
            let now = self.allocate_now(&request, last_resort, delivery);
            match now {
                Now::Answer(answer) => return done.complete_with(answer, delivery),
                Now::AnotherWindow(error) if new_windows == MOST_NEW_WINDOWS => {
                    return self.failed(error, done, delivery);
                }
                Now::AnotherWindow(_) | Now::Wait => {}
            }
            let mut space = self.space.lock();
            if space.changes > 0 {
                // Under the lock, so that the last change can't end between the two.
                return self.waiting.lock().push(Waiting { request, done });
            }
            if let Now::AnotherWindow(_) = now {
                space.changes += 1;
                drop(space);
                return self.open_window(request, new_windows, done);
            }
            // The change that it would have waited for has ended.
        }
    }

    fn open_window(
        self: Arc<Self>,
        request: Request,
        new_windows: u32,
        done: Completion<Allocated>,
    ) {
        let core = Arc::clone(&self);
        let placement = match self.options.placement {
            // The fixed address is taken by the first window.
            Placement::Fixed(address) => Placement::Near(address),
            other => other,
        };
        let least = self.space.lock().least_window(&request);
        let reserved = Completion::with_delivery(move |answer: Result<Reserved>, delivery| {
            let opened = core.opened(answer, least);
            match opened {
                Ok(()) => {
                    let core = Arc::clone(&core);
                    core.allocate_or_wait(request, new_windows + 1, false, done, delivery);
                }
                // What the request was kept from by other JITDylibs' needs may still hold it.
                Err(error) => match core.allocate_now(&request, true, delivery) {
                    Now::Answer(Ok(allocated)) => done.complete_with(Ok(allocated), delivery),
                    _ => core.failed(error.context("open another window"), done, delivery),
                },
            }
            core.wake(delivery);
        });
        let mapper = Arc::clone(&self.mapper);
        mapper.reserve(self.options.window_size, least, placement, reserved);
    }

    /// Takes a new window in, if it is of use.
    fn opened(&self, answer: Result<Reserved>, least: u64) -> Result<()> {
        let useless = {
            let mut space = self.space.lock();
            space.changes -= 1;
            let reserved = answer?;
            if reserved.range.size() >= least {
                space.add_window(reserved);
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
    fn grow(self: &Arc<Self>, growth: &Growth, delivery: &mut Delivery) -> Result<()> {
        let answer = self.mapper.prepare(growth.chunk);
        let answer = {
            let mut space = self.space.lock();
            match answer {
                Ok(prepared) => {
                    space.grown(growth, prepared);
                    Ok(())
                }
                Err(error) => {
                    let smaller = space.not_grown(growth);
                    let short = error.status() == Status::OutOfMemory;
                    if smaller && short { Ok(()) } else { Err(error) }
                }
            }
        };
        self.wake(delivery);
        answer
    }

    /// Has the mapper take empty chunks back. A chunk that it can't take back stays in use; an
    /// error means that it took none.
    pub(super) fn reclaim(
        self: &Arc<Self>,
        empty: Vec<Detached>,
        delivery: &mut Delivery,
    ) -> Result<()> {
        if empty.is_empty() {
            return Ok(());
        }
        let core = Arc::clone(self);
        let mut failure = None;
        let mut progress = false;
        for detached in empty {
            let answer = core.mapper.reclaim(detached.range);
            let mut space = core.space.lock();
            match answer {
                Ok(()) => {
                    space.reclaimed(detached);
                    progress = true;
                }
                Err(error) => {
                    space.not_reclaimed(detached);
                    failure = Some(error);
                }
            }
        }
        core.wake(delivery);
        match failure {
            Some(error) if !progress => Err(error),
            _ => Ok(()),
        }
    }

    /// Tries again for those who waited for a change.
    fn wake(self: &Arc<Self>, delivery: &mut Delivery) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        if waiting.is_empty() {
            return;
        }
        let core = Arc::clone(self);
        for Waiting { request, done } in waiting {
            Arc::clone(&core).allocate_or_wait(request, 0, false, done, delivery);
        }
    }

    /// Makes a fresh allocation ready for its requester.
    fn make_ready(
        self: &Arc<Self>,
        key: Key,
        mut grant: Grant,
        delivery: &mut Delivery,
    ) -> Result<Allocated> {
        for (writer, offset, size) in &grant.dirty {
            writer.zero((*offset).into(), (*size).into());
        }
        if grant.copied {
            if let Err(error) = self.make_buffers(key, &mut grant) {
                let mut leaving = Leaving::default();
                self.space.lock().take_pieces(key, &mut leaving);
                self.give_back(&[key], leaving, delivery);
                return self.counted(Err(error));
            }
        }
        Ok(Allocated {
            handle: grant.handle,
            segments: grant.segments,
        })
    }

    /// Makes working memory for content that the mapper copies. Nobody else knows the allocation
    /// yet, so its record stays as it is while the lock is not held.
    fn make_buffers(&self, key: Key, grant: &mut Grant) -> Result<()> {
        let pieces: Pieces = self.space.lock().records.get(key).pieces.clone();
        let mut buffers = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            if !piece.copied {
                buffers.push(None);
                continue;
            }
            let buffer = Box::new(self.buffers.get(piece.content as usize)?);
            let segment = &mut grant.segments[piece.segment as usize];
            segment.working_memory = buffer.pointer();
            buffers.push(Some(buffer));
        }
        self.space.lock().records.get(key).buffers = Some(Box::new(buffers));
        Ok(())
    }

    // ---- looking and writing ----

    pub(super) fn write(
        &self,
        handle: u64,
        segment: usize,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        self.check_process()?;
        let mut space = self.space.lock();
        let (key, _) = space.records.find(handle, State::InFlight)?;
        let written = space.write(key, segment, offset, bytes);
        written.ok_or_else(|| {
            invalid_argument(format!(
                "write {} bytes at offset {offset} of segment {segment}: outside its content",
                bytes.len()
            ))
        })
    }

    pub(super) fn stats(&self) -> Stats {
        let window_size = self.options.window_size;
        let traffic = self.mapper.traffic();
        stats::collect(
            &self.space.lock(),
            self.mapper.capabilities(),
            traffic,
            window_size,
        )
    }

    pub(super) fn layout(&self) -> Vec<LayoutItem> {
        let mut items = Vec::new();
        self.space.lock().visit(|item| items.push(item));
        stats::sort_layout(&mut items);
        items
    }
}
