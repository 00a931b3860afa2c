// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The manager: divides what a mapper reserved among many link graphs.
//!
//! One lock guards the arithmetic in `space`; it is never held while the mapper, a completion or
//! an action runs. Writing (zero-fill, traps) happens outside it too, on ranges that belong to
//! one allocation at that moment.

mod allocate;
mod chunks;
mod core;
mod deallocate;
mod finalize;
mod records;
mod request;
mod reservations;
mod space;
mod stats;
#[cfg(test)]
#[allow(unsafe_code)]
mod tests;
mod window;

pub use request::{Request, Segment};
pub use stats::{LayoutItem, LayoutKind, Stats};

use crate::completion::Completion;
use crate::error::{Error, Result, invalid_argument};
use crate::mapper::{Action, MemoryMapper, Reserved};
use crate::memory::placement::REACH;
use crate::memory::view::{Placement, WorkingPointer};
use core::Core;
use smallvec::SmallVec;
use std::sync::Arc;

/// A window smaller than this is of no use.
const SMALLEST_WINDOW: u64 = 64 << 10;

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

impl Manager {
    /// Reserves the first window, if the mapper divides any, and completes with the manager.
    pub fn create(mapper: Arc<dyn MemoryMapper>, options: Options, done: Completion<Manager>) {
        let page = mapper.capabilities().page_size;
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
        if size < SMALLEST_WINDOW {
            return done.complete(Err(invalid_argument(format!(
                "window of {size} bytes: the least is {SMALLEST_WINDOW}"
            ))));
        }
        let options = Options {
            window_size: size,
            ..options
        };
        if !mapper.divides() {
            let manager = reservations::check(&options).map(|()| Manager {
                core: Core::new(mapper, options),
            });
            return done.complete(manager);
        }
        let core = Core::new(Arc::clone(&mapper), options);
        let reserved = done.map(move |answer: Result<Reserved>| {
            core.add_window(answer?);
            Ok(Manager { core })
        });
        mapper.reserve(size, SMALLEST_WINDOW, options.placement, reserved);
    }

    /// Whether this process may use the manager.
    ///
    /// # Errors
    /// `InvalidHandle` in a forked child of the process that it belongs to.
    pub fn check_process(&self) -> Result<()> {
        self.core.check_process()
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
        let refused = |error: Error| self.core.counted(Err(error.context("allocate")));
        if let Err(error) = self.core.check_process() {
            return refused(error);
        }
        Request::new(segments, dylib, self.core.options.window_size).or_else(refused)
    }

    /// Allocates what was requested.
    pub fn allocate(&self, request: Request, done: Completion<Allocated>) {
        self.core.allocate(request, done);
    }

    /// [`Manager::allocate`] if that takes no waiting, else `None` and nothing is done.
    pub fn try_allocate(&self, request: &Request) -> Option<Result<Allocated>> {
        self.core.try_allocate(request)
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
        self.core.write(handle, segment, offset, bytes)
    }

    /// Figures of this moment.
    pub fn stats(&self) -> Stats {
        self.core.stats()
    }

    /// Windows, chunks and live ranges of this moment: each window followed by its chunks in
    /// address order, each chunk by its ranges in address order.
    pub fn layout(&self) -> Vec<LayoutItem> {
        self.core.layout()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // What still waits is answered with an error; what is under way ends first.
        self.core.close();
    }
}
