// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What is known of allocations besides their memory: labels, events, usage. A table beside the
//! records, so that managers of which none of it is asked pay one branch.
//!
//! Its lock is held for looking and noting only, never together with another one and never while an
//! observer runs.

use super::events::{Allocation, Event, EventKind, Observer};
use super::request::Request;
use super::space::heap_is_full;
use super::usage::{Step, Usage, UsageBy, Usages};
use super::{Allocated, AllocationHandle, LayoutItem, LayoutKind, Options};
use crate::callback_queue::Delivery;
use crate::error::{Error, Result, Status, invalid_handle};
use crate::group::AllocGroup;
use crate::page::AddressRange;
use crate::sys::{self, AtForkMutex, AtForkStatic, Forked};
use crate::transport::{ExecutorState, ToldOfRestarts};
use std::collections::{HashMap, TryReserveError};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

pub(super) struct Tracking {
    /// Allocations are noted: all of them, or those with a label, of which there was one.
    active: AtomicBool,
    observer: Option<Observer>,
    /// Every allocation is noted.
    all: bool,
    /// Usage is counted.
    counts: bool,
    last_event: AtomicU64,
    table: AtForkMutex<Table>,
}

#[derive(Default)]
struct Table {
    live: HashMap<u64, Tracked>,
    /// Requests under way that will be noted.
    pending: usize,
    /// How many were finalized so far.
    last_order: u64,
    by_dylib: Usages,
    by_tag: Usages,
    windows: Vec<AddressRange>,
}

struct Tracked {
    allocation: Arc<Allocation>,
    /// Which one it was to be finalized; 0 while it is in flight.
    order: u64,
    /// Its finalize failed, which is still to be told.
    failed: bool,
}

impl Table {
    fn make_room(&mut self) -> Result<(), TryReserveError> {
        let more = self.pending + 1;
        self.live.try_reserve(more)?;
        self.by_dylib.reserve(more)?;
        self.by_tag.reserve(more)
    }

    fn count(&mut self, it: &Allocation, step: Step) {
        let named = it.label().filter(|label| label.name_of_dylib().is_some());
        self.by_dylib.count(it.dylib().0, named, it, step);
        self.by_tag.count(it.tag(), None, it, step);
    }
}

/// A request that will be noted once it is answered.
pub(super) struct Pending {
    tracking: Arc<Tracking>,
    allocation: Arc<Allocation>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.tracking.table.lock().pending -= 1;
    }
}

impl Pending {
    /// Notes the allocation, if there is one, and gives the answer on.
    pub(super) fn answered(
        mut self,
        answer: Result<Allocated>,
        delivery: &mut Delivery,
    ) -> Result<Allocated> {
        match &answer {
            Ok(allocated) => {
                if let Some(allocation) = Arc::get_mut(&mut self.allocation) {
                    allocation.answered(allocated);
                }
                self.tracking.allocated(&self.allocation, delivery);
                answer
            }
            Err(_) => named(Some(&self.allocation), answer),
        }
    }
}

/// Says in an error which allocation it is about, in the host's words.
pub(super) fn named<T>(allocation: Option<&Arc<Allocation>>, answer: Result<T>) -> Result<T> {
    match allocation.and_then(|allocation| allocation.label()) {
        Some(label) => answer.map_err(|error| error.context(label)),
        None => answer,
    }
}

/// The managers that have an observer, to tell of forks.
static OBSERVED: AtForkStatic<Vec<Weak<Tracking>>> = AtForkStatic::new(Vec::new());

/// Tells the observers of all managers, in both processes, when no lock is held any more.
fn forked(forked: Forked) {
    let observed: Vec<_> = OBSERVED.lock().iter().filter_map(Weak::upgrade).collect();
    for tracking in observed {
        tracking.tell(&mut Delivery::Inline, || match forked.in_child {
            true => EventKind::ForkedChild,
            false => EventKind::ForkedParent,
        });
    }
}

impl ToldOfRestarts for Tracking {
    fn restarted(&self, restarts: u64, why: &str) {
        self.tell(&mut Delivery::Inline, || EventKind::ExecutorRestarted {
            restarts,
            why: why.into(),
        });
    }
}

impl Tracking {
    pub(super) fn new(options: &Options) -> Arc<Tracking> {
        let all = options.observer.is_some() || options.usage;
        let tracking = Arc::new(Tracking {
            active: AtomicBool::new(all),
            all,
            observer: options.observer.clone(),
            counts: options.usage,
            last_event: AtomicU64::new(0),
            table: AtForkMutex::default(),
        });
        if tracking.observer.is_some() {
            sys::call_after_forks(forked);
            let mut observed = OBSERVED.lock();
            observed.retain(|other| other.strong_count() > 0);
            observed.push(Arc::downgrade(&tracking));
        }
        tracking
    }

    /// The executor's restarts are told from now on.
    pub(super) fn hear_of_restarts(self: &Arc<Self>, executor: &ExecutorState) {
        if self.observer.is_some() {
            let this: Weak<Tracking> = Arc::downgrade(self);
            executor.tell_of_restarts(this);
        }
    }

    /// Whether any allocation may have been noted.
    pub(super) fn is_active(&self) -> bool {
        // A handle comes to another thread in a way that orders this load.
        self.active.load(Ordering::Relaxed)
    }

    // ---- allocations ----

    /// Whether the allocation for this request is to be noted.
    pub(super) fn wants(&self, request: &Request) -> bool {
        self.all || request.label.is_some()
    }

    /// Makes room for noting the allocation for a request. Fails if the heap has none.
    pub(super) fn begin(self: &Arc<Self>, request: &Request) -> Result<Pending> {
        self.active.store(true, Ordering::Relaxed);
        let allocation = Arc::new(Allocation::new(request)?);
        let table = &mut *self.table.lock();
        table.make_room().map_err(|_| heap_is_full())?;
        table.pending += 1;
        Ok(Pending {
            tracking: Arc::clone(self),
            allocation,
        })
    }

    fn allocated(&self, allocation: &Arc<Allocation>, delivery: &mut Delivery) {
        {
            let table = &mut *self.table.lock();
            let tracked = Tracked {
                allocation: Arc::clone(allocation),
                order: 0,
                failed: false,
            };
            table.live.insert(allocation.handle().0, tracked);
            if self.counts {
                table.count(allocation, Step::Allocated);
            }
        }
        self.tell(delivery, || EventKind::Allocated(Arc::clone(allocation)));
    }

    /// What is known of an allocation.
    pub(super) fn find(&self, handle: u64) -> Option<Arc<Allocation>> {
        if !self.is_active() {
            return None;
        }
        let table = self.table.lock();
        let tracked = table.live.get(&handle)?;
        Some(Arc::clone(&tracked.allocation))
    }

    /// [`Tracking::find`] for a host.
    pub(super) fn describe(&self, handle: u64) -> Result<Arc<Allocation>> {
        self.find(handle).ok_or_else(|| {
            invalid_handle(format!(
                "nothing is known of allocation {handle:#x}: it is not live in this manager, or it was \
                 allocated without a label, and the manager neither has an observer nor counts usage"
            ))
        })
    }

    /// Says whose the ranges of a layout are.
    pub(super) fn name_ranges(&self, items: &mut [LayoutItem]) -> Result<(), TryReserveError> {
        if !self.is_active() {
            return Ok(());
        }
        let table = self.table.lock();
        let mut owners = HashMap::new();
        for (handle, tracked) in table.live.iter().filter(|(_, it)| !it.failed) {
            let segments = match tracked.order {
                0 => tracked.allocation.segments(),
                _ => tracked.allocation.lasting_segments(),
            };
            for segment in segments {
                owners.try_reserve(1)?;
                owners.insert(segment.range.start(), AllocationHandle(*handle));
            }
        }
        for item in items
            .iter_mut()
            .filter(|item| item.kind == LayoutKind::Range)
        {
            item.allocation = owners.get(&item.range.start()).copied();
        }
        Ok(())
    }

    /// An allocation could not be finalized and goes. It is told with the answer.
    pub(super) fn failed(&self, handle: u64) {
        if self.is_active() {
            if let Some(tracked) = self.table.lock().live.get_mut(&handle) {
                tracked.failed = true;
            }
        }
    }

    /// A finalize is about to be answered.
    pub(super) fn finalize_answered<T>(
        &self,
        handle: u64,
        answer: &Result<T>,
        delivery: &mut Delivery,
    ) {
        if !self.is_active() {
            return;
        }
        match answer {
            Ok(_) => self.finalized(handle, delivery),
            Err(_) => {
                let failed = |tracked: &Tracked| tracked.failed;
                // Of an allocation that was not in flight, nothing has changed.
                if self.table.lock().live.get(&handle).is_some_and(failed) {
                    self.ended_one(handle, delivery);
                }
            }
        }
    }

    fn finalized(&self, handle: u64, delivery: &mut Delivery) {
        let allocation = {
            let table = &mut *self.table.lock();
            table.last_order += 1;
            let order = table.last_order;
            let Some(tracked) = table.live.get_mut(&handle) else {
                return;
            };
            tracked.order = order;
            let allocation = Arc::clone(&tracked.allocation);
            if self.counts {
                table.count(&allocation, Step::Finalized);
            }
            allocation
        };
        self.tell(delivery, || EventKind::Finalized(allocation));
    }

    /// Allocations go, the last one first.
    pub(super) fn ended(&self, handles: &[u64], delivery: &mut Delivery) {
        if self.is_active() {
            handles
                .iter()
                .rev()
                .for_each(|handle| self.ended_one(*handle, delivery));
        }
    }

    fn ended_one(&self, handle: u64, delivery: &mut Delivery) {
        let (allocation, finalized) = {
            let table = &mut *self.table.lock();
            let Some(tracked) = table.live.remove(&handle) else {
                return;
            };
            let Tracked {
                allocation, order, ..
            } = tracked;
            let finalized = order != 0;
            if self.counts {
                table.count(&allocation, Step::Gone(finalized));
            }
            (allocation, finalized)
        };
        self.tell(delivery, || match finalized {
            true => EventKind::Deallocated(allocation),
            false => EventKind::Abandoned(allocation),
        });
    }

    // ---- windows and chunks ----

    /// The first window, of which nothing is told before the host is about to get its manager.
    pub(super) fn first_window(&self, range: AddressRange) {
        if self.observer.is_some() {
            self.table.lock().windows.push(range);
        }
    }

    /// Tells of the first window.
    pub(super) fn created(&self) {
        if self.observer.is_some() {
            let first = self.table.lock().windows.first().copied();
            if let Some(range) = first {
                self.tell(&mut Delivery::Inline, || EventKind::WindowReserved(range));
            }
        }
    }

    pub(super) fn window_reserved(&self, range: AddressRange, delivery: &mut Delivery) {
        if self.observer.is_some() {
            self.table.lock().windows.push(range);
            self.tell(delivery, || EventKind::WindowReserved(range));
        }
    }

    pub(super) fn window_released(&self, range: AddressRange, delivery: &mut Delivery) {
        if self.observer.is_some() {
            self.table.lock().windows.retain(|window| *window != range);
            self.tell(delivery, || EventKind::WindowReleased(range));
        }
    }

    pub(super) fn chunk_made(&self, range: AddressRange, group: AllocGroup, to: &mut Delivery) {
        self.tell(to, || EventKind::ChunkMade(range, group));
    }

    pub(super) fn chunk_reclaimed(
        &self,
        range: AddressRange,
        group: AllocGroup,
        to: &mut Delivery,
    ) {
        self.tell(to, || EventKind::ChunkReclaimed(range, group));
    }

    /// The manager goes with all that is left.
    pub(super) fn end(&self) {
        if !self.is_active() {
            return;
        }
        let mut left = Vec::new();
        {
            let table = self.table.lock();
            if left.try_reserve_exact(table.live.len()).is_ok() {
                left.extend(table.live.iter().map(|(handle, it)| (it.order, *handle)));
            }
        }
        left.sort_unstable();
        let delivery = &mut Delivery::Inline;
        for (_, handle) in left.into_iter().rev() {
            self.ended_one(handle, delivery);
        }
        // Without memory to sort them: as they come.
        while let Some(handle) = self.any() {
            self.ended_one(handle, delivery);
        }
        while let Some(window) = self.last_window() {
            self.window_released(window, delivery);
        }
    }

    fn any(&self) -> Option<u64> {
        self.table.lock().live.keys().next().copied()
    }

    fn last_window(&self) -> Option<AddressRange> {
        self.table.lock().windows.last().copied()
    }

    // ---- events ----

    fn tell(&self, delivery: &mut Delivery, kind: impl FnOnce() -> EventKind) {
        if let Some(observer) = &self.observer {
            let event = Event {
                sequence: self.last_event.fetch_add(1, Ordering::Relaxed) + 1,
                time: observer.wants_times().then(sys::monotonic_time),
                kind: kind(),
            };
            let observer = observer.clone();
            delivery.run(move || observer.tell(&event));
        }
    }

    // ---- usage ----

    /// Fails if usage is not counted.
    fn check_counts(&self) -> Result<()> {
        if self.counts {
            return Ok(());
        }
        Err(Error::new(
            Status::Unsupported,
            "usage by JITDylib and tag is not counted; make the manager with the option `usage`",
        ))
    }

    pub(super) fn usage(&self, by: UsageBy, key: u64) -> Result<Usage> {
        self.check_counts()?;
        Ok(self.table.lock().by(by).of(key))
    }

    pub(super) fn all_usage(&self, by: UsageBy) -> Result<Vec<Usage>> {
        self.check_counts()?;
        self.table.lock().by(by).all().map_err(|_| heap_is_full())
    }
}

impl Table {
    fn by(&self, by: UsageBy) -> &Usages {
        match by {
            UsageBy::Dylib => &self.by_dylib,
            UsageBy::Tag => &self.by_tag,
        }
    }
}
