// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What all requests to a manager share.
//!
//! Whatever calls the mapper or a completion may find the host's last handle gone afterwards, so
//! it holds an `Arc` of its own; the path that calls neither does without.

use super::records::State;
use super::reservations::Reservations;
use super::space::Space;
use super::stats::{self, LayoutItem, Stats};
use super::{Allocated, Options, Request};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, invalid_argument, invalid_handle};
use crate::mapper::{Kind, MemoryMapper, Reserved};
use crate::memory::buffer::BufferPool;
use crate::sys::OwnerProcess;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) struct Core {
    pub(super) mapper: Arc<dyn MemoryMapper>,
    pub(super) options: Options,
    /// The process that made the manager.
    owner: OwnerProcess,
    pub(super) space: Mutex<Space>,
    /// Working memory of content that the mapper copies.
    pub(super) buffers: Arc<BufferPool>,
    /// Requests that can be answered only once a change outside the lock is done.
    pub(super) waiting: Mutex<Vec<Waiting>>,
    /// The host has freed the manager.
    closed: AtomicBool,
    /// Each allocation has a reservation of its own.
    pub(super) undivided: bool,
}

pub(super) struct Waiting {
    pub(super) request: Request,
    pub(super) done: Completion<Allocated>,
}

pub(super) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

pub(super) fn manager_freed() -> Error {
    invalid_handle("the manager was freed while the request waited")
}

impl Core {
    pub(super) fn new(mapper: Arc<dyn MemoryMapper>, options: Options) -> Arc<Core> {
        let capabilities = mapper.capabilities();
        let page_size = capabilities.page_size;
        let mut space = Space::new(page_size, capabilities.granule, &options, random());
        let undivided = !mapper.divides();
        if undivided {
            space.blocks = Some(Box::new(Reservations::new(page_size, &options)));
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
                .for_each(|waiting| waiting.done.complete(Err(manager_freed())));
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

    // ---- looking and writing ----

    pub(crate) fn write(
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
