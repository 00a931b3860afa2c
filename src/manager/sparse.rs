// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Giving back the memory of sparse chunks, where the mapper does that for a chunk as a whole: it may take
//! an executor to do so, so the answer comes later.
//!
//! Meanwhile nothing is handed out of the chunk. Where content is shared, nothing may be written there
//! either, since two copies of it are about: what is in flight or is being written keeps its chunk from being
//! taken, a write scope that begins waits, and what is freed is held and made to trap afterwards.

use super::chunks::leave_mapper;
use super::flow::Flow;
use super::pool::number::{CODE_BIT, POOLS};
use super::pool::sparse::Sparse;
use super::pool::{Keep, Thawed};
use super::records::Key;
use super::space::{Space, heap_is_full};
use super::trim::none_or_all;
use super::windows::{Detached, Windows};
use crate::callback_queue::Delivery;
use crate::completion::{Completion, wait_until};
use crate::error::{Error, Result, Status};
use crate::lock::{Mutex, MutexGuard};
use crate::memory::ranges::RegionId;
use crate::memory::writer::Writer;
use crate::page::AddressRange;
use crate::transport::RESPONSE_TIMEOUT;
use crate::transport::limits::{Asked, Deadline};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So many chunks are under way at a time: each has a descriptor, and its content twice.
const AT_ONCE: usize = 8;

/// How far a search for sparse chunks has come.
#[derive(Clone, Copy, Default)]
pub(super) struct SparseSearch {
    /// Of all windows, one after the other.
    pool: usize,
    region: RegionId,
}

/// A sparse chunk of a window.
pub(super) struct SparseChunk {
    window: usize,
    pool: usize,
    range: AddressRange,
    sparse: Sparse,
}

/// One pass over all chunks.
struct Pass {
    search: SparseSearch,
    part: u32,
    bytes: u64,
    failure: Option<Error>,
    /// Chunks without an answer, and the thread that looks for more.
    under_way: usize,
    done: Option<Completion<u64>>,
}

impl SparseChunk {
    fn is_code(&self) -> bool {
        self.pool as u8 & CODE_BIT != 0
    }
}

impl Pass {
    /// Notes what came of a chunk; whether it was the last that is under way.
    fn add(&mut self, bytes: u64, failure: Option<Error>) -> bool {
        self.bytes += bytes;
        // One that the executor has not mapped yet has its turn the next time.
        let failure = failure.filter(|error| error.status() != Status::WouldBlock);
        self.failure = failure.or(self.failure.take());
        self.ended_one()
    }

    fn ended_one(&mut self) -> bool {
        self.under_way -= 1;
        self.under_way == 0
    }

    fn end(&mut self) -> (Result<u64>, Option<Completion<u64>>) {
        (
            none_or_all(self.bytes, self.failure.take()),
            self.done.take(),
        )
    }
}

impl Windows {
    /// The next chunk that is worth it, if this step of the search has found one; none at the end.
    fn take_sparse(
        &mut self,
        at: &mut SparseSearch,
        part: u32,
        quiet: &dyn Fn(u32) -> bool,
    ) -> Option<Option<SparseChunk>> {
        loop {
            let (window, pool) = (at.pool / POOLS, at.pool % POOLS);
            if window >= self.windows_ever() {
                return None;
            }
            let divided = self
                .get_mut(window)
                .and_then(|divided| divided.pool_at(pool));
            let Some((divided, origin)) = divided.filter(|(pool, _)| at.region < pool.regions())
            else {
                (at.pool, at.region) = (at.pool + 1, 0);
                continue;
            };
            let region = at.region;
            at.region += 1;
            if !divided.may_be_sparse(region) {
                continue;
            }
            // Each in a hold of the lock of its own.
            let Some(sparse) = divided.take_sparse(region, part, quiet) else {
                return Some(None);
            };
            let range = divided.range_of(region, origin);
            self.begin_change(window);
            return Some(Some(SparseChunk {
                window,
                pool,
                range,
                sparse,
            }));
        }
    }

    /// See [`Pool::shrunk`](super::pool::Pool::shrunk).
    fn shrunk(
        &mut self,
        chunk: &mut SparseChunk,
        answer: Option<Option<Writer>>,
    ) -> (u64, Vec<Thawed>) {
        let Some((pool, origin)) = self.window_mut(chunk.window).pool_at(chunk.pool) else {
            return (0, Vec::new());
        };
        let (bytes, freed) = pool.shrunk(&mut chunk.sparse, answer, origin);
        self.committed -= bytes;
        (bytes, freed)
    }

    /// Hands out of a chunk again.
    fn end_shrinking(&mut self, chunk: SparseChunk, freed: &[Thawed], empty: &mut Vec<Detached>) {
        let SparseChunk { window, pool, .. } = chunk;
        self.end_change(window);
        let ids = chunk.sparse.free.into_iter();
        let ids = ids.chain(freed.iter().map(|freed| freed.id));
        let divided = self.window_mut(window).pool_at(pool);
        if divided.is_some_and(|(pool, _)| pool.free_again(ids)) {
            self.detach(window, pool, Keep::Spare, empty);
        }
    }
}

impl Space<Windows> {
    fn take_sparse(&mut self, at: &mut SparseSearch, part: u32) -> Option<Option<SparseChunk>> {
        let (records, scopes) = (&self.records, &self.scopes);
        let quiet = |number| {
            let handle = records.finalized_handle(Key::of(number));
            handle.is_some_and(|handle| !scopes.hold(&[handle]))
        };
        self.memory.take_sparse(at, part, &quiet)
    }

    /// Whether an allocation must not be written now.
    fn is_held(&self, handle: u64) -> Result<bool> {
        let key = self.records.find_finalized(handle)?;
        let pieces = self.pieces(key);
        let held = |piece: &_| self.memory.is_held(piece);
        Ok(pieces.iter().any(held))
    }
}

impl Flow<Windows> {
    /// The lock, once an allocation may be written. That is waited for as long as the host lets an executor
    /// take for memory, or for a while if it says nothing: its answer may need this very thread.
    pub(super) fn lock_to_write(&self, handle: u64) -> Result<MutexGuard<'_, Space<Windows>>> {
        let mut space = self.space.lock();
        let mut deadline = None;
        while space.is_held(handle)? {
            let deadline: &Deadline = deadline.get_or_insert_with(|| {
                let limit = self.mapper.deadline(Asked::Memory);
                limit.unwrap_or_else(|| Deadline::from_now(RESPONSE_TIMEOUT, "memory"))
            });
            if deadline.is_over() {
                return Err(deadline.error().context(format!(
                    "write allocation {handle:#x}, of whose chunk the executor is to give memory back"
                )));
            }
            space = self.unheld.wait_until(space, deadline.at);
        }
        Ok(space)
    }

    /// Until when answers are waited for, which come in threads of our own.
    pub(super) fn shrinking_deadline(&self) -> Instant {
        let timeout = match self.mapper.patience() {
            Some(_) => RESPONSE_TIMEOUT,
            None => Duration::ZERO,
        };
        Instant::now() + timeout
    }

    /// [`Flow::shrink_chunks`], waited for.
    pub(super) fn shrink_chunks_until(
        self: &Arc<Self>,
        deadline: Instant,
        part: u32,
    ) -> Result<u64> {
        wait_until(Some(deadline), |done| self.shrink_chunks(part, done)).unwrap_or(Ok(0))
    }

    /// Has the mapper give back memory of chunks of which at least one of `part` pages holds nothing.
    /// Answers with the bytes; an error means that none were given back.
    pub(super) fn shrink_chunks(self: &Arc<Self>, part: u32, done: Completion<u64>) {
        let pass = Pass {
            search: SparseSearch::default(),
            part,
            bytes: 0,
            failure: None,
            under_way: 0,
            done: Some(done),
        };
        self.go_on_shrinking(&Arc::new(Mutex::new(pass)), &mut Delivery::Inline);
    }

    /// Goes on with a pass of which nothing is under way.
    fn go_on_shrinking(self: &Arc<Self>, pass: &Arc<Mutex<Pass>>, delivery: &mut Delivery) {
        let mut more = true;
        while more {
            pass.lock().under_way = 1;
            more = self.shrink_some(pass);
            if !pass.lock().ended_one() {
                // The last answer goes on.
                return;
            }
        }
        let (answer, done) = pass.lock().end();
        if let Some(done) = done {
            done.complete_with(answer, delivery);
        }
    }

    /// Gives the next sparse chunks to the mapper; whether there may be more.
    fn shrink_some(self: &Arc<Self>, pass: &Arc<Mutex<Pass>>) -> bool {
        // What is in use is copied out of them.
        let _writers = match self.open_writers() {
            Ok(writers) => writers,
            Err(error) => {
                pass.lock().failure = Some(error);
                return false;
            }
        };
        let (mut search, part) = {
            let pass = pass.lock();
            (pass.search, pass.part)
        };
        let mut found = 0;
        while found < AT_ONCE {
            let taken = self.space.lock().take_sparse(&mut search, part);
            match taken {
                Some(Some(chunk)) => {
                    found += 1;
                    pass.lock().under_way += 1;
                    self.shrink(chunk, pass);
                }
                Some(None) => {}
                None => break,
            }
        }
        pass.lock().search = search;
        found == AT_ONCE
    }

    fn shrink(self: &Arc<Self>, chunk: SparseChunk, pass: &Arc<Mutex<Pass>>) {
        let (flow, pass) = (Arc::downgrade(self), Arc::clone(pass));
        let (range, keep) = (chunk.range, chunk.sparse.keep.try_clone());
        let shrunk = Completion::with_delivery(move |answer, delivery| {
            // With the manager its windows have gone.
            if let Some(flow) = flow.upgrade() {
                let _outside = leave_mapper();
                flow.answered(chunk, answer, &pass, delivery);
            }
        });
        let _inside = self.enter_mapper();
        match keep {
            Some(keep) => self.mapper.keep_only(range, keep, shrunk),
            None => shrunk.complete(Err(heap_is_full())),
        }
    }

    /// The mapper has given back memory of a chunk, or could not.
    fn answered(
        self: &Arc<Self>,
        mut chunk: SparseChunk,
        answer: Result<Option<Writer>>,
        pass: &Arc<Mutex<Pass>>,
        delivery: &mut Delivery,
    ) {
        let (failure, writer) = match answer {
            Ok(writer) => (None, Some(writer)),
            Err(error) => (Some(error), None),
        };
        let (bytes, freed) = self.space.lock().memory.shrunk(&mut chunk, writer);
        self.unheld.notify_all();
        self.fill_with_traps_late(&chunk, &freed);
        let mut empty = Vec::new();
        {
            let memory = &mut self.space.lock().memory;
            memory.end_shrinking(chunk, &freed, &mut empty);
        }
        // A chunk that the system does not take back is kept for reuse: nothing is lost.
        let _ = self.reclaim(empty, delivery);
        self.wake(delivery);
        self.release_unused_windows(delivery);
        if pass.lock().add(bytes, failure) {
            self.go_on_shrinking(pass, delivery);
        }
    }

    /// Makes code trap that was freed while its chunk was held.
    fn fill_with_traps_late(&self, chunk: &SparseChunk, freed: &[Thawed]) {
        if freed.is_empty() || !chunk.is_code() {
            return;
        }
        // Where they can't be opened, freed code stays as it is.
        if let Ok(_open) = self.open_writers() {
            for freed in freed {
                freed.writer.fill_with_traps();
                self.flush_here(freed.range);
            }
        }
    }
}
