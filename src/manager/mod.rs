// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The manager: divides what a mapper reserved among many link graphs.
//!
//! One lock guards the arithmetic in [`space`]; it is never held while the mapper, a completion
//! or an action runs. Writing (zero-fill, traps) happens outside it too, on ranges that belong to
//! one allocation at that moment.

mod request;
mod space;
mod stats;
#[cfg(test)]
mod tests;
mod window;

pub use request::{Request, Segment};
pub use stats::{LayoutItem, LayoutKind, Stats};

use crate::completion::Completion;
use crate::error::{Error, Result, invalid_argument, invalid_handle};
use crate::mapper::{Action, Mapper, Reserved, Retired, SegmentContent, Teardown};
use crate::memory::placement::REACH;
use crate::memory::view::{Buffer, Placement, WorkingPointer};
use crate::sys;
use parking_lot::Mutex;
use slotmap::DefaultKey;
use smallvec::SmallVec;
use space::{Attempt, Detached, Growth, Leaving, Space, State};
use std::sync::Arc;
use window::Grant;

/// What happens when the window is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GrowthPolicy {
    /// The request fails.
    #[default]
    Error,
    /// Another window is reserved; what belongs to one JITDylib stays inside one.
    AnotherWindow,
}

/// Choices of a host.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of address space per window; at most 2 GiB less 2 MiB.
    pub window_size: u64,
    /// Where the first window goes.
    pub placement: Placement,
    /// Whether there may be further windows.
    pub growth: GrowthPolicy,
    /// Most bytes handed out at a time, rounding included.
    pub quota: Option<u64>,
    /// Take the pages of a chunk when it is made.
    pub commit: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            window_size: 1 << 30,
            placement: Placement::Default,
            growth: GrowthPolicy::Error,
            quota: None,
            commit: false,
        }
    }
}

/// Memory of one segment. The same bytes as the C API's struct.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SegmentMemory {
    /// Where it is in the executor; 0 for a no-alloc segment.
    pub address: u64,
    /// Where its content is written until finalize or abandon; null for a no-alloc segment.
    pub working_memory: WorkingPointer,
}

/// An allocation that has not been finalized yet.
#[derive(Debug)]
pub struct Allocated {
    /// Its handle, from here to deallocate.
    pub handle: u64,
    /// One per segment of the request.
    pub segments: SmallVec<[SegmentMemory; 4]>,
}

/// A memory manager over any mapper. All methods may be called from any thread, also from inside
/// a completion.
pub struct Manager {
    core: Arc<Core>,
}

struct Core {
    mapper: Arc<dyn Mapper>,
    options: Options,
    /// See [`sys::fork_generation`].
    generation: u32,
    space: Mutex<Space>,
    /// Requests that can be answered only once a change outside the lock is done.
    waiting: Mutex<Vec<Waiting>>,
}

struct Waiting {
    request: Request,
    done: Completion<Allocated>,
}

/// How many windows one request may cause to be reserved before it gives up.
const MOST_NEW_WINDOWS: u32 = 4;

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

impl Manager {
    /// Reserves the first window and completes with the manager.
    pub fn create(mapper: Arc<dyn Mapper>, options: Options, done: Completion<Manager>) {
        let page = mapper.capabilities().page_size;
        let granule = mapper.capabilities().granule;
        let Some(size) = page
            .round_up(options.window_size)
            .filter(|size| *size <= REACH)
        else {
            return done.complete(Err(invalid_argument(format!(
                "window of {} bytes: the most is 2 GiB less 2 MiB, so that 32-bit references \
                 reach from end to end",
                options.window_size
            ))));
        };
        if size == 0 {
            return done.complete(Err(invalid_argument("window of 0 bytes")));
        }
        let options = Options {
            window_size: size,
            ..options
        };
        let space = Space::new(page, granule, &options, random());
        let core = Arc::new(Core {
            mapper: Arc::clone(&mapper),
            options,
            generation: sys::fork_generation(),
            space: Mutex::new(space),
            waiting: Mutex::default(),
        });
        let reserved = Completion::new(move |answer: Result<Reserved>| {
            done.complete(answer.map(|reserved| {
                core.space.lock().add_window(reserved);
                Manager { core }
            }));
        });
        mapper.reserve(size, options.placement, reserved);
    }

    /// Checks a request for the memory of one graph. `dylib` identifies its JITDylib, 0 for none:
    /// everything of one JITDylib lies in one window.
    ///
    /// # Errors
    /// `InvalidArgument` and `WindowFull` for what can never be, `InvalidHandle` in a forked child.
    pub fn request(
        &self,
        segments: impl IntoIterator<Item = Result<Segment>>,
        dylib: u64,
    ) -> Result<Request> {
        self.core.usable()?;
        Request::new(segments, dylib, self.core.options.window_size)
    }

    /// Allocates what was requested.
    pub fn allocate(&self, request: Request, done: Completion<Allocated>) {
        self.core.allocate(request, 0, done);
    }

    /// Makes the content visible in the executor and runs the finalize actions. On failure the
    /// memory is free again.
    pub fn finalize(&self, handle: u64, actions: Vec<Action>, done: Completion<u64>) {
        self.core.finalize(handle, actions, done);
    }

    /// Gives up an allocation that was not finalized.
    pub fn abandon(&self, handle: u64, done: Completion<()>) {
        self.core.abandon(handle, done);
    }

    /// Runs the deallocation actions of finalized allocations, last to first, and frees them.
    /// Nothing is done if any handle is wrong.
    pub fn deallocate(&self, handles: &[u64], done: Completion<()>) {
        self.core.deallocate(handles, done);
    }

    /// Writes into an in-flight allocation with all checks; for hosts that hold no pointer.
    ///
    /// # Errors
    /// `InvalidHandle` if it is not in flight, `InvalidArgument` for bytes outside the content.
    pub fn write(&self, handle: u64, segment: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut space = self.core.space.lock();
        let (_, record) = space.find(handle, State::InFlight)?;
        let position = record
            .pieces
            .iter()
            .position(|piece| piece.segment as usize == segment);
        let end = offset.checked_add(bytes.len() as u64);
        match position.map(|position| (position, record.pieces[position])) {
            Some((position, piece)) if end.is_some_and(|end| end <= piece.content.into()) => {
                let buffer = record.buffers.get(position).and_then(Option::as_ref);
                let buffer = buffer.map(|buffer| buffer.writer());
                let writer = buffer.or_else(|| space.place(&piece).writer);
                writer
                    .expect("an in-flight piece has memory")
                    .write(offset, bytes);
                Ok(())
            }
            _ => Err(invalid_argument(format!(
                "write {} bytes at offset {offset} of segment {segment}: outside its content",
                bytes.len()
            ))),
        }
    }

    /// Figures of this moment.
    pub fn stats(&self) -> Stats {
        let core = &self.core;
        let window_size = core.options.window_size;
        stats::collect(&core.space.lock(), core.mapper.capabilities(), window_size)
    }

    /// Windows, chunks and live ranges of this moment: each window followed by its chunks in
    /// address order, each chunk by its ranges in address order.
    pub fn layout(&self) -> Vec<LayoutItem> {
        let mut items = Vec::new();
        self.core.space.lock().visit(|item| items.push(item));
        stats::sort_layout(&mut items);
        items
    }
}

impl Core {
    fn usable(&self) -> Result<()> {
        let here = self.mapper.capabilities().in_this_process;
        if here && self.generation != sys::fork_generation() {
            return Err(invalid_handle(
                "this manager belongs to the parent process: a forked child shares its code pages \
                 and must not change them; create a manager in the child",
            ));
        }
        Ok(())
    }

    fn failed<T>(&self, error: Error, done: Completion<T>) {
        self.space.lock().counters.failures += 1;
        done.complete(Err(error));
    }

    // ---- allocate ----

    fn allocate(self: &Arc<Self>, request: Request, new_windows: u32, done: Completion<Allocated>) {
        loop {
            let attempt = {
                let mut space = self.space.lock();
                let attempt = space.allocate(&request);
                match attempt {
                    Attempt::Wait => {
                        // Under the lock, so that the change can't end between the two.
                        return self.waiting.lock().push(Waiting { request, done });
                    }
                    Attempt::Full(_) if new_windows < MOST_NEW_WINDOWS => {
                        space.changes += 1;
                    }
                    Attempt::Full(_) | Attempt::Refused(_) => space.counters.failures += 1,
                    _ => {}
                }
                attempt
            };
            match attempt {
                Attempt::Done(key, grant) => return self.deliver(key, grant, done),
                Attempt::Grow(growth) => {
                    if let Err(error) = self.grow(&growth) {
                        return self.failed(error, done);
                    }
                }
                Attempt::Reclaim(empty) => {
                    // What can't be reclaimed is whole again; say so rather than try for ever.
                    if let Err(error) = self.reclaim(empty) {
                        return self.failed(error, done);
                    }
                }
                Attempt::Full(_) if new_windows < MOST_NEW_WINDOWS => {
                    return self.open_window(request, new_windows, done);
                }
                Attempt::Full(error) | Attempt::Refused(error) => {
                    return done.complete(Err(error));
                }
                Attempt::Wait => unreachable!("returned above"),
            }
        }
    }

    fn open_window(
        self: &Arc<Self>,
        request: Request,
        new_windows: u32,
        done: Completion<Allocated>,
    ) {
        let core = Arc::clone(self);
        let placement = match self.options.placement {
            // The fixed address is taken by the first window.
            Placement::Fixed(address) => Placement::Near(address),
            other => other,
        };
        let reserved = Completion::new(move |answer: Result<Reserved>| {
            let opened = {
                let mut space = core.space.lock();
                space.changes -= 1;
                answer.map(|reserved| space.add_window(reserved))
            };
            match opened {
                Ok(()) => core.allocate(request, new_windows + 1, done),
                Err(error) => core.failed(error.context("open another window"), done),
            }
            core.wake();
        });
        self.mapper
            .reserve(self.options.window_size, placement, reserved);
    }

    /// Has the mapper prepare a chunk.
    fn grow(self: &Arc<Self>, growth: &Growth) -> Result<()> {
        let answer = self.mapper.prepare(growth.chunk);
        {
            let mut space = self.space.lock();
            match &answer {
                Ok(prepared) => space.grown(growth, *prepared),
                Err(_) => space.not_grown(growth),
            }
        }
        self.wake();
        answer.map(drop)
    }

    /// Has the mapper take empty chunks back. A chunk that it can't take back stays in use.
    fn reclaim(self: &Arc<Self>, empty: Vec<Detached>) -> Result<()> {
        let mut result = Ok(());
        if empty.is_empty() {
            return result;
        }
        for detached in empty {
            let answer = self.mapper.reclaim(detached.range);
            let mut space = self.space.lock();
            match answer {
                Ok(()) => space.reclaimed(detached),
                Err(error) => {
                    space.not_reclaimed(detached);
                    result = Err(error);
                }
            }
        }
        self.wake();
        result
    }

    /// Tries again for those who waited for a change.
    fn wake(self: &Arc<Self>) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for Waiting { request, done } in waiting {
            self.allocate(request, 0, done);
        }
    }

    /// Gives a fresh allocation to its requester.
    fn deliver(self: &Arc<Self>, key: DefaultKey, mut grant: Grant, done: Completion<Allocated>) {
        for (writer, offset, size) in &grant.dirty {
            writer.zero((*offset).into(), (*size).into());
        }
        if grant.copied {
            if let Err(error) = self.make_buffers(key, &mut grant) {
                return self.failed(error, done);
            }
        }
        done.complete(Ok(Allocated {
            handle: grant.handle,
            segments: grant.segments,
        }));
    }

    /// Makes working memory for content that the mapper copies.
    fn make_buffers(self: &Arc<Self>, key: DefaultKey, grant: &mut Grant) -> Result<()> {
        let mut space = self.space.lock();
        let pieces = space.record(key).pieces.clone();
        let mut buffers = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            let shared = space.place(piece).writer.is_some();
            let buffer = (!shared)
                .then(|| Buffer::new(piece.content as usize))
                .transpose();
            match buffer {
                Ok(buffer) => buffers.push(buffer.map(Box::new)),
                Err(error) => {
                    let mut leaving = Leaving::default();
                    space.take_pieces(key, &mut leaving);
                    drop(space);
                    self.give_back(Some(key), leaving);
                    return Err(error);
                }
            }
        }
        for (piece, buffer) in pieces.iter().zip(&buffers) {
            if let Some(buffer) = buffer {
                let segment = &mut grant.segments[piece.segment as usize];
                segment.working_memory = buffer.writer().pointer();
            }
        }
        space.record(key).buffers = buffers;
        Ok(())
    }

    // ---- finalize ----

    fn finalize(self: &Arc<Self>, handle: u64, actions: Vec<Action>, done: Completion<u64>) {
        // Where writing is seeing, an allocation without actions needs nothing of the mapper.
        if actions.is_empty() && self.mapper.capabilities().coherent {
            let served = self.usable().and_then(|()| {
                let mut space = self.space.lock();
                let (key, _) = space.find(handle, State::InFlight)?;
                Ok(space.finish_finalize(key, Teardown::Nothing))
            });
            return match served {
                Ok(served) => self.finish_finalize(handle, served, done),
                Err(error) => self.failed(error, done),
            };
        }
        let (key, segments) = match self.usable().and_then(|()| self.take_content(handle)) {
            Ok(taken) => taken,
            Err(error) => return self.failed(error, done),
        };
        let core = Arc::clone(self);
        let initialized = Completion::new(move |answer: Result<Teardown>| match answer {
            Ok(teardown) => {
                let served = core.space.lock().finish_finalize(key, teardown);
                core.finish_finalize(handle, served, done);
            }
            Err(error) => {
                let mut leaving = Leaving::default();
                {
                    let mut space = core.space.lock();
                    space.counters.failures += 1;
                    space.take_pieces(key, &mut leaving);
                }
                core.give_back(Some(key), leaving);
                done.complete(Err(error));
            }
        });
        self.mapper.initialize(segments, actions, initialized);
    }

    /// Marks an allocation as being finalized and takes what the mapper needs of it.
    fn take_content(&self, handle: u64) -> Result<(DefaultKey, SmallVec<[SegmentContent; 4]>)> {
        let mut space = self.space.lock();
        let (key, record) = space.find(handle, State::InFlight)?;
        record.state = State::Finalizing;
        let mut buffers = std::mem::take(&mut record.buffers);
        let pieces = record.pieces.clone();
        let content = pieces.iter().enumerate().map(|(index, piece)| {
            let place = space.place(piece);
            SegmentContent {
                range: place.range,
                group: place.group,
                content: buffers.get_mut(index).and_then(Option::take),
                zeroed: piece.zeroed,
            }
        });
        Ok((key, content.collect()))
    }

    /// Frees the segments of finalize lifetime, which have served, and answers.
    fn finish_finalize(self: &Arc<Self>, handle: u64, mut served: Leaving, done: Completion<u64>) {
        if served.pieces.is_empty() {
            return done.complete(Ok(handle));
        }
        let core = Arc::clone(self);
        let copied = std::mem::take(&mut served.copied);
        let retired = Retired {
            teardown: Teardown::Nothing,
            copied,
        };
        self.retire(vec![retired], move |answer| {
            core.give_back(None, served);
            done.complete(answer.map(|()| handle));
        });
    }

    // ---- abandon and deallocate ----

    fn abandon(self: &Arc<Self>, handle: u64, done: Completion<()>) {
        let mut leaving = Leaving::default();
        let key = self.usable().and_then(|()| {
            let mut space = self.space.lock();
            let (key, record) = space.find(handle, State::InFlight)?;
            // No second abandon or finalize may find it.
            record.state = State::Finalizing;
            space.take_pieces(key, &mut leaving);
            space.counters.abandon += 1;
            Ok(key)
        });
        match key {
            Ok(key) => {
                self.give_back(Some(key), leaving);
                done.complete(Ok(()));
            }
            Err(error) => self.failed(error, done),
        }
    }

    fn deallocate(self: &Arc<Self>, handles: &[u64], done: Completion<()>) {
        let mut batch = match self.usable().and_then(|()| self.take_batch(handles)) {
            Ok(batch) => batch,
            Err(error) => return self.failed(error, done),
        };
        if batch.retired.is_empty() {
            self.free_batch(batch, Ok(()), done);
        } else {
            let core = Arc::clone(self);
            let retired = std::mem::take(&mut batch.retired);
            self.retire(retired, move |answer| core.free_batch(batch, answer, done));
        }
    }

    /// Takes a whole batch out, or nothing if any handle is wrong.
    fn take_batch(&self, handles: &[u64]) -> Result<Batch> {
        let mut space = self.space.lock();
        let mut batch = Batch::default();
        for handle in handles {
            match space.find(*handle, State::Finalized) {
                Ok((key, record)) => {
                    record.state = State::Deallocating;
                    batch.keys.push(key);
                }
                Err(error) => {
                    for key in batch.keys {
                        space.record(key).state = State::Finalized;
                    }
                    return Err(error.context(format!("deallocate {} allocations", handles.len())));
                }
            }
        }
        for key in &batch.keys {
            let teardown = std::mem::take(&mut space.record(*key).teardown);
            space.take_pieces(*key, &mut batch.leaving);
            let copied = std::mem::take(&mut batch.leaving.copied);
            let retired = Retired { teardown, copied };
            if !retired.is_nothing() {
                batch.retired.push(retired);
            }
        }
        Ok(batch)
    }

    fn free_batch(self: &Arc<Self>, batch: Batch, answer: Result<()>, done: Completion<()>) {
        let mut empty = Vec::new();
        batch.leaving.fill_with_traps();
        {
            let mut space = self.space.lock();
            space.free(&batch.leaving.pieces, &mut empty);
            for key in &batch.keys {
                space.forget(*key);
            }
            space.counters.deallocate += batch.keys.len() as u64;
            space.counters.failures += u64::from(answer.is_err());
        }
        // A chunk that the system does not take back is kept for reuse: nothing is lost.
        let _ = self.reclaim(empty);
        done.complete(answer);
    }

    /// Has the mapper take leave of allocations, if it has anything to do, then goes on.
    fn retire(&self, retired: Vec<Retired>, next: impl FnOnce(Result<()>) + Send + 'static) {
        if retired.iter().all(Retired::is_nothing) {
            next(Ok(()));
        } else {
            self.mapper.deinitialize(retired, Completion::new(next));
        }
    }

    /// Frees pieces and, with a key, forgets the allocation.
    fn give_back(self: &Arc<Self>, key: Option<DefaultKey>, leaving: Leaving) {
        let mut empty = Vec::new();
        leaving.fill_with_traps();
        {
            let mut space = self.space.lock();
            space.free(&leaving.pieces, &mut empty);
            if let Some(key) = key {
                space.forget(key);
            }
        }
        // A chunk that the system does not take back is kept for reuse: nothing is lost.
        let _ = self.reclaim(empty);
    }
}

/// Allocations on their way out together.
#[derive(Default)]
struct Batch {
    keys: SmallVec<[DefaultKey; 4]>,
    leaving: Leaving,
    retired: Vec<Retired>,
}

impl Leaving {
    /// Makes code that is about to be free trap. Outside the lock: the pieces are still taken.
    fn fill_with_traps(&self) {
        self.traps
            .iter()
            .for_each(|writer| writer.fill_with_traps());
    }
}

impl Drop for Core {
    /// What is still finalized goes last to first, with its deallocation actions; then the
    /// windows go. The mapper lives on in the completions until it has answered.
    fn drop(&mut self) {
        if self.usable().is_err() {
            return;
        }
        let space = self.space.get_mut();
        let retired: Vec<Retired> = space
            .take_finalized()
            .into_iter()
            .map(|(teardown, leaving)| Retired {
                teardown,
                copied: leaving.copied,
            })
            .collect();
        let windows = space.take_windows();
        let mapper = Arc::clone(&self.mapper);
        let release = move |_answer: Result<()>| {
            for window in windows {
                let keep = Arc::clone(&mapper);
                // Nobody is left to tell; the mapper counts what it could not unmap.
                mapper.release(window, Completion::new(move |_| drop(keep)));
            }
        };
        if retired.iter().all(Retired::is_nothing) {
            release(Ok(()));
        } else {
            self.mapper.deinitialize(retired, Completion::new(release));
        }
    }
}
