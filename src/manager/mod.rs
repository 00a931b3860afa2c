// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The manager: divides what a mapper reserved among many link graphs.
//!
//! There are two kinds of managers: of windows that are divided, and of a reservation for each
//! allocation. One lock guards the arithmetic in `space`; it is never held while the mapper, a completion or
//! an action runs. Writing (zero-fill, traps) happens outside it too, on ranges that belong to
//! one allocation at that moment.

mod allocate;
mod arenas;
mod chunks;
mod core;
mod deallocate;
mod deferred;
mod divide;
mod dylibs;
mod events;
mod finalize;
mod flow;
mod frozen;
mod huge_pages;
mod in_flight;
mod label;
mod lookup;
mod parts;
mod piece;
mod places;
mod pool;
#[allow(unsafe_code)]
mod records;
mod request;
mod reservations;
mod scopes;
mod sections;
mod space;
mod sparse;
mod stats;
#[cfg(test)]
#[allow(unsafe_code)]
mod tests;
mod tracking;
mod trim;
mod usage;
mod window;
mod windows;
mod write_scope;
mod writers;

pub use events::{AllocatedSegment, Allocation, Event, EventKind, Observer};
pub use huge_pages::HugePages;
pub(crate) use in_flight::Contents;
pub use in_flight::InFlight;
pub use label::Label;
pub(crate) use label::{LONGEST_NAME, Name};
pub use lookup::{AllocationPhase, Location, lookup};
pub(crate) use request::Request;
pub use request::Segment;
pub use sections::{SectionGroup, SectionKind};
pub(crate) use space::heap_is_full;
pub use stats::{LayoutItem, LayoutKind, Stats};
pub use usage::{Usage, UsageBy};
pub use write_scope::WriteScope;

use crate::completion::{Completion, wait};
use crate::error::{Result, invalid_argument};
use crate::mapper::Mapper;
use crate::memory::placement::{Placement, REACH, SMALLEST_WINDOW};
use crate::memory::writer::WorkingPointer;
use core::Core;
use smallvec::SmallVec;
use std::alloc::{Layout, handle_alloc_error};
use std::fmt;
use std::sync::Arc;

/// What happens when the window is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GrowthPolicy {
    /// The request fails.
    #[default]
    Error,
    /// Another window is reserved; what belongs to one JITDylib stays inside one.
    AnotherWindow,
}

/// What happens in this process to code and constants that forked children see, once they are
/// deallocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForkPolicy {
    /// They stay as they are for as long as any child of an earlier fork is there, and their chunk goes
    /// back as a whole.
    #[default]
    Freeze,
    /// They are used again: children do not run what their parent has deallocated.
    Reuse,
}

/// Choices of a host.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of address space per window; at most 2 GiB less 2 MiB. [`BRANCH_REACH`](crate::BRANCH_REACH) if
    /// linked code branches directly.
    pub window_size: u64,
    /// Where the first window goes.
    pub placement: Placement,
    /// Whether there may be further windows.
    pub growth: GrowthPolicy,
    /// What children see of what is deallocated here.
    pub fork: ForkPolicy,
    /// Most bytes handed out at a time, rounding included. [`Manager::set_quota`] changes it.
    pub quota: Option<u64>,
    /// Take the pages of a chunk when it is made.
    pub commit: bool,
    /// Who is told of what comes and goes. Costs the manager a table of its allocations.
    pub observer: Option<Observer>,
    /// Count how much each JITDylib and each tag has, for [`Manager::usage`]. Costs the same table.
    pub usage: bool,
    /// Close the writer views of this manager's memory, for reading too, while nothing is in flight. The
    /// first allocation that comes then opens them, the last one to be finalized or abandoned closes
    /// them, and deallocating code opens them for a moment: a system call per chunk each time. Pages
    /// that linked code may write have no such view in this process; a custom mapper is not told, and a
    /// remote executor keeps its own open.
    pub close_writers: bool,
    /// What is deallocated is used again only once [`Manager::reclaim`] says so.
    pub defer_reclamation: bool,
    /// Whether fresh memory is taken in huge pages.
    pub huge_pages: HugePages,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            window_size: 1 << 30,
            placement: Placement::Default,
            growth: GrowthPolicy::Error,
            fork: ForkPolicy::Freeze,
            quota: None,
            commit: false,
            observer: None,
            usage: false,
            close_writers: false,
            defer_reclamation: false,
            huge_pages: HugePages::OnCall,
        }
    }
}

/// Names a finalized allocation to its manager. Another manager, and the same one once the allocation
/// is gone, tells it apart from those that are live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct AllocationHandle(pub(crate) u64);

/// Identifies a JITDylib, whose allocations all lie in one window: any number that tells it from
/// others of its manager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dylib(pub u64);

impl Dylib {
    /// None: the allocation may lie in any window.
    pub const NONE: Dylib = Dylib(0);
}

/// Memory of one segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentMemory {
    /// Where it is in the executor; 0 for a no-alloc segment.
    pub(crate) address: u64,
    /// Where its content is written until finalize or abandon; null for a no-alloc segment.
    pub(crate) working_memory: WorkingPointer,
}

impl SegmentMemory {
    /// That of a no-alloc segment.
    const NONE: SegmentMemory = SegmentMemory {
        address: 0,
        working_memory: WorkingPointer::NULL,
    };
}

/// An allocation that has not been finalized yet.
#[derive(Debug)]
pub(crate) struct Allocated {
    /// Its handle, from here to deallocate.
    pub(crate) handle: u64,
    /// One per segment of the request.
    pub(crate) segments: SmallVec<[SegmentMemory; 4]>,
}

/// A memory manager over any mapper.
///
/// All methods may be called from any thread, also from inside a callback. Those that take a callback
/// return at once and run it exactly once, in the thread that completes the request, which may be the
/// calling one before they return; it may block. Those without one wait, so they must not be called in
/// a thread that the executor's answers come from. The `try_` forms do what needs no waiting.
///
/// Dropping the manager runs the deallocation actions of what is finalized, last to first, and gives
/// all memory back, once no [`InFlight`] of it is left. Linked code that still runs then, or is called
/// afterwards, is the caller's mistake: a call of linked code is `unsafe` where it is made.
pub struct Manager {
    core: Core,
}

impl Manager {
    /// Makes a manager over a mapper and reserves its first window. Waits for the mapper.
    ///
    /// # Errors
    /// `InvalidArgument` for bad options; `OutOfMemory` where no address space is to be had;
    /// `Unsupported` for a placement that the mapper can't see to; what the mapper answers.
    pub fn new(mapper: &Mapper, options: Options) -> Result<Manager> {
        wait(|done| Manager::create(mapper, options, done)).map(Manager::announced)
    }

    /// [`Manager::new`] without waiting.
    pub fn new_async(
        mapper: &Mapper,
        options: Options,
        callback: impl FnOnce(Result<Manager>) + Send + 'static,
    ) {
        let callback = |answer: Result<Manager>| callback(answer.map(Manager::announced));
        Manager::create(mapper, options, Completion::for_host(callback));
    }

    /// The same manager, of whose window its observer has been told: the last thing before a host
    /// gets it.
    pub(crate) fn announced(self) -> Manager {
        self.core.tracking().created();
        self
    }

    /// Reserves the first window, if the mapper divides any, and completes with the manager.
    pub(crate) fn create(mapper: &Mapper, options: Options, done: Completion<Manager>) {
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
        // A graph of code, constants and data has a chunk for each, behind what the window itself has.
        let least = SMALLEST_WINDOW.max(4 * page.bytes());
        if size < least {
            return done.complete(Err(invalid_argument(format!(
                "window of {size} bytes: the least is {least}"
            ))));
        }
        let most = match options.placement.largest_window(least) {
            Ok(most) => page.round_down(most),
            Err(error) => return done.complete(Err(error)),
        };
        let options = Options {
            window_size: size.min(most),
            ..options
        };
        Core::create(mapper, options, least, done);
    }

    /// The flow behind it, for the C API, where handles are numbers.
    pub(crate) fn core(&self) -> &Core {
        &self.core
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
    pub(crate) fn request(
        &self,
        segments: impl IntoIterator<Item = Result<Segment>>,
        dylib: u64,
    ) -> Result<Request> {
        self.core.request(segments, dylib)
    }

    fn checked(
        &self,
        segments: impl IntoIterator<Item = Segment>,
        label: impl Into<Label>,
    ) -> Result<Request> {
        let label = label.into();
        let request = self.request(segments.into_iter().map(Ok), label.dylib().0);
        self.core.labelled(request, label)
    }

    /// Allocates memory for the segments of one graph. Waits for the mapper where a window must be
    /// reserved. The label is a [`Dylib`], or says more.
    ///
    /// # Errors
    /// `InvalidArgument` for sizes that overflow; `WindowFull`; `QuotaExceeded`; `OutOfMemory`;
    /// `Denied`; `InvalidHandle` in a forked child; what the mapper answers. Nothing is allocated then.
    pub fn allocate(
        &self,
        segments: impl IntoIterator<Item = Segment>,
        label: impl Into<Label>,
    ) -> Result<InFlight> {
        let request = self.checked(segments, label)?;
        let allocated = self.core.allocate_and_wait(request)?;
        Ok(InFlight::new(&self.core, allocated))
    }

    /// [`Manager::allocate`] without waiting.
    pub fn allocate_async(
        &self,
        segments: impl IntoIterator<Item = Segment>,
        label: impl Into<Label>,
        callback: impl FnOnce(Result<InFlight>) + Send + 'static,
    ) {
        let core = self.core.clone();
        let callback = move |answer: Result<Allocated>| {
            callback(answer.map(|allocated| InFlight::new(&core, allocated)));
        };
        match self.checked(segments, label) {
            Ok(request) => self.core.allocate(request, Completion::for_host(callback)),
            Err(error) => callback(Err(error)),
        }
    }

    /// [`Manager::allocate`] if that takes no waiting, else `None` and nothing is done.
    pub fn try_allocate(
        &self,
        segments: impl IntoIterator<Item = Segment>,
        label: impl Into<Label>,
    ) -> Option<Result<InFlight>> {
        let allocated = match self.checked(segments, label) {
            Ok(request) => self.core.try_allocate(&request)?,
            Err(error) => Err(error),
        };
        Some(allocated.map(|allocated| InFlight::new(&self.core, allocated)))
    }

    /// Runs the deallocation actions of finalized allocations, last allocation first, each one's last
    /// action first, and frees their memory. Waits for the mapper.
    ///
    /// Nothing keeps linked code from running meanwhile or later: that it does not is part of the
    /// promise of its caller.
    ///
    /// # Errors
    /// `InvalidHandle` if one of them is not live here or is named twice; nothing is done then.
    /// `ActionFailed`: all actions were run nevertheless, and the memory is free. `InvalidArgument` if
    /// this thread has a [`WriteScope`] of one of them, which it would wait for.
    pub fn deallocate(
        &self,
        allocations: impl IntoIterator<Item = AllocationHandle>,
    ) -> Result<()> {
        self.core.deallocate_and_wait(&numbers(allocations))
    }

    /// [`Manager::deallocate`] without waiting.
    pub fn deallocate_async(
        &self,
        allocations: impl IntoIterator<Item = AllocationHandle>,
        callback: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let done = Completion::for_host(callback);
        self.core.deallocate(&numbers(allocations), done);
    }

    /// [`Manager::deallocate`] if that takes no waiting and no action, else `None` and nothing is
    /// done.
    pub fn try_deallocate(
        &self,
        allocations: impl IntoIterator<Item = AllocationHandle>,
    ) -> Option<Result<()>> {
        self.core.try_deallocate(&numbers(allocations))
    }

    /// Ends an epoch and gives its number: everything that was deallocated before belongs to it or to
    /// one before it. The first has number 1.
    ///
    /// # Errors
    /// `InvalidHandle` in a forked child; `Unsupported` as [`Manager::reclaim`].
    pub fn advance_epoch(&self) -> Result<u64> {
        self.core.advance_epoch()
    }

    /// Gives back what was deallocated up to an epoch that has ended, with
    /// [`Options::defer_reclamation`], and answers its bytes, rounding included. Until then its code
    /// runs as before and its addresses are not used again: threads may still be inside. Waits for the
    /// mapper.
    ///
    /// To be called once every thread has been outside of linked code since the epoch was ended.
    ///
    /// # Errors
    /// `InvalidArgument` for an epoch that has not ended; `InvalidHandle` in a forked child;
    /// `Unsupported` where each allocation has a reservation of its own (LLVM's memory manager
    /// service); what the mapper answers, and the memory is free all the same.
    pub fn reclaim(&self, epoch: u64) -> Result<u64> {
        wait(|done| self.core.reclaim(epoch, done))
    }

    /// [`Manager::reclaim`] without waiting.
    pub fn reclaim_async(&self, epoch: u64, callback: impl FnOnce(Result<u64>) + Send + 'static) {
        self.core.reclaim(epoch, Completion::for_host(callback));
    }

    /// Opens a finalized allocation for writing while linked code may run it.
    ///
    /// # Errors
    /// `InvalidHandle` if it is not finalized here, or is about to be deallocated; `Unsupported` with a
    /// mapper that does not write finalized memory in place: this process's mprotect mapper (code and
    /// constants), content in messages, LLVM's services, a host's own.
    pub fn write_scope(&self, allocation: AllocationHandle) -> Result<WriteScope> {
        self.core.write_scope(allocation.0)
    }

    /// Changes the quota, [`Options::quota`]. It may be below what is in use: nothing more is handed out
    /// then until enough is deallocated.
    ///
    /// # Errors
    /// `InvalidHandle` in a forked child that may not use the manager.
    pub fn set_quota(&self, quota: Option<u64>) -> Result<()> {
        self.core.set_quota(quota)
    }

    /// Gives everything back to the system that holds nothing: empty chunks, pages inside chunks, and
    /// windows; and the free pages of this process's heap. Answers how many bytes of memory that was,
    /// those of the heap left out. For hosts that know of memory pressure, or that will be idle; a manager
    /// gives back most of it by itself, but for the heap.
    ///
    /// # Errors
    /// What the mapper answers, if nothing could be given back; `InvalidHandle` in a forked child.
    pub fn trim(&self) -> Result<u64> {
        self.core.trim()
    }

    /// Has memory that is nearly full put into huge pages (2 MiB on x86-64), of which at most an eighth was not
    /// in use; all of it counts as committed from then on. Linked code runs on meanwhile. Answers how many bytes
    /// lie in huge pages that were asked for now. What lies in chunks that are smaller stays as it is. Takes some 100 µs to 1 ms each: for hosts
    /// that have linked much of what they will run for long.
    ///
    /// # Errors
    /// Why the system refuses all of them: EINVAL before Linux 6.1 or without huge pages, EAGAIN or ENOMEM for a
    /// shortage of the moment; `InvalidHandle` in a forked child that may not use the manager.
    pub fn collapse(&self) -> Result<u64> {
        self.core.collapse()
    }

    /// Figures of this moment.
    pub fn stats(&self) -> Stats {
        self.core.stats()
    }

    /// Windows, chunks and live ranges of this moment: each window followed by its chunks in
    /// address order, each chunk by its ranges in address order. No other request is served meanwhile,
    /// some 10 ns for each range; [`Manager::walk`] stops none for long.
    pub fn layout(&self) -> Vec<LayoutItem> {
        let layout = self.core.layout();
        // As Rust's collections do.
        layout.unwrap_or_else(|_| handle_alloc_error(Layout::new::<LayoutItem>()))
    }

    /// What is known of a live allocation: its label and its segments.
    ///
    /// # Errors
    /// `InvalidHandle` if it is not live here, or if it has no label and the manager has neither an
    /// observer nor the option `usage`.
    pub fn describe(&self, allocation: AllocationHandle) -> Result<Arc<Allocation>> {
        self.core.tracking().describe(allocation.0)
    }

    /// Where an address of the executor lies in this manager. As [`lookup`], for one manager: no lock, no
    /// allocation, no system call, whatever the signal has interrupted.
    pub fn lookup(&self, address: u64) -> Option<Location> {
        self.core.lookup(address)
    }

    /// Shows every segment of every live allocation, those of one allocation one after the other; an
    /// allocation without memory is shown once, with an empty segment.
    ///
    /// No lock is held while `visit` runs, so it may use the manager. An allocation that is there from
    /// before the walk until after it is shown exactly once; one that comes or goes meanwhile is shown
    /// once, as it was at one moment, or not at all. What is being deallocated or abandoned is not shown.
    /// Takes memory for some allocations at a time.
    ///
    /// # Errors
    /// `InvalidHandle` in a forked child of the process that the manager belongs to; `OutOfMemory` if the
    /// heap has no room for the segments of one allocation.
    pub fn walk(&self, mut visit: impl FnMut(&Location)) -> Result<()> {
        self.core.walk(&mut visit)
    }

    /// What one JITDylib, or one tag, has at this moment: all zero if it has nothing.
    ///
    /// # Errors
    /// `Unsupported` if the manager was made without the option `usage`.
    pub fn usage(&self, by: UsageBy, key: u64) -> Result<Usage> {
        self.core.tracking().usage(by, key)
    }

    /// What every JITDylib, or every tag, has that has anything at this moment, in the order of their
    /// numbers.
    ///
    /// # Errors
    /// `Unsupported` if the manager was made without the option `usage`.
    pub fn all_usage(&self, by: UsageBy) -> Result<Vec<Usage>> {
        self.core.tracking().all_usage(by)
    }
}

fn numbers(allocations: impl IntoIterator<Item = AllocationHandle>) -> SmallVec<[u64; 8]> {
    allocations.into_iter().map(|handle| handle.0).collect()
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mapper = self.core.mapper().name;
        f.debug_struct("Manager").field("mapper", &mapper).finish()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // What still waits is answered with an error; what is under way ends first.
        self.core.close();
    }
}
