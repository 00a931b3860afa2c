// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The manager: divides what a mapper reserved among many link graphs.
//!
//! One lock guards the arithmetic in [`space`]; it is never held while the mapper, a completion
//! or an action runs. Writing (zero-fill, traps) happens outside it too, on ranges that belong to
//! one allocation at that moment.

mod records;
mod request;
mod space;
mod stats;
#[cfg(test)]
#[allow(unsafe_code)]
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
use records::{Key, State};
use smallvec::SmallVec;
use space::{Attempt, Detached, Growth, Leaving, Space};
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

/// How far a request gets without waiting.
enum Now {
    Answer(Result<Allocated>),
    Wait,
    /// It needs another window; why the present ones do not do.
    AnotherWindow(Error),
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

    /// [`Manager::allocate`] if that takes no waiting, else `None` and nothing is done.
    pub fn try_allocate(&self, request: &Request) -> Option<Result<Allocated>> {
        match self.core.allocate_now(request) {
            Now::Answer(answer) => Some(answer),
            Now::Wait | Now::AnotherWindow(_) => None,
        }
    }

    /// Makes the content visible in the executor and runs the finalize actions. On failure the
    /// memory is free again.
    pub fn finalize(&self, handle: u64, actions: Vec<Action>, done: Completion<u64>) {
        self.core.finalize(handle, actions, done);
    }

    /// [`Manager::finalize`] without actions if that takes no waiting, else `None` and nothing is
    /// done.
    pub fn try_finalize(&self, handle: u64) -> Option<Result<()>> {
        self.core.finalize_now(handle)
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

    /// [`Manager::deallocate`] if that takes no waiting and no action, else `None` and nothing is
    /// done.
    pub fn try_deallocate(&self, handles: &[u64]) -> Option<Result<()>> {
        self.core.deallocate_now(handles)
    }

    /// Writes into an in-flight allocation with all checks; for hosts that hold no pointer.
    ///
    /// # Errors
    /// `InvalidHandle` if it is not in flight, `InvalidArgument` for bytes outside the content.
    pub fn write(&self, handle: u64, segment: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut space = self.core.space.lock();
        let (_, record) = space.records.find(handle, State::InFlight)?;
        let position = record
            .pieces
            .iter()
            .position(|piece| piece.segment as usize == segment);
        let end = offset.checked_add(bytes.len() as u64);
        match position.map(|position| (position, record.pieces[position])) {
            Some((position, piece)) if end.is_some_and(|end| end <= piece.content.into()) => {
                let buffers = record.buffers.as_ref();
                let buffer = buffers.and_then(|buffers| buffers[position].as_ref());
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

    fn counted<T>(&self, answer: Result<T>) -> Result<T> {
        if answer.is_err() {
            self.space.lock().counters.failures += 1;
        }
        answer
    }

    fn failed<T>(&self, error: Error, done: Completion<T>) {
        self.space.lock().counters.failures += 1;
        done.complete(Err(error));
    }

    // ---- allocate ----

    /// Serves a request, if that takes no waiting.
    fn allocate_now(self: &Arc<Self>, request: &Request) -> Now {
        let mut grant = Grant::default();
        loop {
            let attempt = self.space.lock().allocate(request, &mut grant);
            let step = match attempt {
                Attempt::Done(key) => return Now::Answer(self.deliver(key, grant)),
                Attempt::Wait => return Now::Wait,
                Attempt::Full(error) => return Now::AnotherWindow(error),
                Attempt::Refused(error) => Err(error),
                Attempt::Grow(growth) => self.grow(&growth),
                // What can't be reclaimed is whole again; say so rather than try for ever.
                Attempt::Reclaim(empty) => self.reclaim(empty),
            };
            if let Err(error) = step {
                self.space.lock().counters.failures += 1;
                return Now::Answer(Err(error));
            }
        }
    }

    fn allocate(self: &Arc<Self>, request: Request, new_windows: u32, done: Completion<Allocated>) {
        loop {
            let now = self.allocate_now(&request);
            match now {
                Now::Answer(answer) => return done.complete(answer),
                Now::AnotherWindow(error) if new_windows == MOST_NEW_WINDOWS => {
                    return self.failed(error, done);
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

    /// Makes a fresh allocation ready for its requester.
    fn deliver(self: &Arc<Self>, key: Key, mut grant: Grant) -> Result<Allocated> {
        for (writer, offset, size) in &grant.dirty {
            writer.zero((*offset).into(), (*size).into());
        }
        if grant.copied {
            self.make_buffers(key, &mut grant)?;
        }
        Ok(Allocated {
            handle: grant.handle,
            segments: grant.segments,
        })
    }

    /// Makes working memory for content that the mapper copies.
    fn make_buffers(self: &Arc<Self>, key: Key, grant: &mut Grant) -> Result<()> {
        let mut space = self.space.lock();
        let pieces = space.records.get(key).pieces.clone();
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
        space.records.get(key).buffers = Some(Box::new(buffers));
        Ok(())
    }

    // ---- finalize ----

    /// Finalizes an allocation without actions where writing is seeing: the mapper has no part.
    fn finalize_now(self: &Arc<Self>, handle: u64) -> Option<Result<()>> {
        if !self.mapper.capabilities().coherent {
            return None;
        }
        let served = self.usable().and_then(|()| {
            let mut space = self.space.lock();
            let (key, _) = space.records.find(handle, State::InFlight)?;
            Ok(space.finish_finalize(key, Teardown::Nothing))
        });
        Some(self.counted(served).map(|served| {
            if !served.pieces.is_empty() {
                self.give_back(None, served);
            }
        }))
    }

    fn finalize(self: &Arc<Self>, handle: u64, actions: Vec<Action>, done: Completion<u64>) {
        if actions.is_empty() {
            if let Some(answer) = self.finalize_now(handle) {
                return done.complete(answer.map(|()| handle));
            }
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
    fn take_content(&self, handle: u64) -> Result<(Key, SmallVec<[SegmentContent; 4]>)> {
        let mut space = self.space.lock();
        let (key, record) = space.records.find(handle, State::InFlight)?;
        record.state = State::Finalizing;
        let mut buffers = std::mem::take(&mut record.buffers);
        let pieces = record.pieces.clone();
        let content = pieces.iter().enumerate().map(|(index, piece)| {
            let place = space.place(piece);
            SegmentContent {
                range: place.range,
                group: place.group,
                content: buffers.as_mut().and_then(|buffers| buffers[index].take()),
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
            let (key, record) = space.records.find(handle, State::InFlight)?;
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

    /// Deallocates, if the mapper has no part in it.
    fn deallocate_now(self: &Arc<Self>, handles: &[u64]) -> Option<Result<()>> {
        let batch = self.usable().and_then(|()| self.take_batch(handles, true));
        match self.counted(batch) {
            Ok(batch) => batch.map(|batch| {
                self.free_batch(batch);
                Ok(())
            }),
            Err(error) => Some(Err(error)),
        }
    }

    fn deallocate(self: &Arc<Self>, handles: &[u64], done: Completion<()>) {
        let batch = self.usable().and_then(|()| self.take_batch(handles, false));
        let mut batch = match batch {
            Ok(batch) => batch.expect("only a batch for now may be declined"),
            Err(error) => return self.failed(error, done),
        };
        let core = Arc::clone(self);
        let retired = std::mem::take(&mut batch.retired);
        self.retire(retired, move |answer| {
            core.free_batch(batch);
            done.complete(core.counted(answer));
        });
    }

    /// Takes a whole batch out, or nothing if any handle is wrong; with `now`, nothing either if
    /// the mapper would have a part in it.
    fn take_batch(&self, handles: &[u64], now: bool) -> Result<Option<Batch>> {
        let mut space = self.space.lock();
        let mut batch = Batch::default();
        let mut declined = now && !self.mapper.capabilities().coherent;
        let mut wrong = None;
        for handle in handles {
            match space.records.find(*handle, State::Finalized) {
                Ok((key, record)) => {
                    record.state = State::Deallocating;
                    declined |= now && record.teardown.is_some();
                    batch.keys.push(key);
                }
                Err(error) => {
                    wrong = Some(error);
                    break;
                }
            }
        }
        if wrong.is_some() || declined {
            for key in batch.keys {
                space.records.get(key).state = State::Finalized;
            }
            return match wrong {
                Some(error) => {
                    Err(error.context(format!("deallocate {} allocations", handles.len())))
                }
                None => Ok(None),
            };
        }
        for key in &batch.keys {
            let teardown = space.records.get(*key).teardown.take();
            space.take_pieces(*key, &mut batch.leaving);
            let copied = std::mem::take(&mut batch.leaving.copied);
            let teardown = teardown.map_or(Teardown::Nothing, |teardown| *teardown);
            let retired = Retired { teardown, copied };
            if !retired.is_nothing() {
                batch.retired.push(retired);
            }
        }
        Ok(Some(batch))
    }

    fn free_batch(self: &Arc<Self>, batch: Batch) {
        let mut empty = Vec::new();
        batch.leaving.fill_with_traps();
        {
            let mut space = self.space.lock();
            space.free(&batch.leaving.pieces, &mut empty);
            for key in &batch.keys {
                space.forget(*key);
            }
            space.counters.deallocate += batch.keys.len() as u64;
        }
        // A chunk that the system does not take back is kept for reuse: nothing is lost.
        let _ = self.reclaim(empty);
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
    fn give_back(self: &Arc<Self>, key: Option<Key>, leaving: Leaving) {
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
    keys: SmallVec<[Key; 4]>,
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
