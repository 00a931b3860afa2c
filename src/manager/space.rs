// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The state behind the manager's one lock: all allocations, what they hold, and how much that is.
//!
//! Everything here is arithmetic; nothing calls the mapper or the system.

use super::LayoutItem;
use super::allocate::Waiting;
use super::lookup::{Location, ManagerReader};
use super::records::{InFlightState, Key, Phase, Records};
use super::scopes::Scopes;
use super::stats::Sums;
use crate::completion::Completion;
use crate::error::{Error, Result, Status, invalid_handle};
use crate::group::AllocGroup;
use crate::mapper::MapperBase;
use crate::memory::paged::Table;
use crate::memory::writer::Writer;
use crate::page::AddressRange;
use crate::sys::Forked;
use crate::sys::{self, heap};
use smallvec::SmallVec;
use std::io;
use std::sync::Arc;

/// What is left to do when a manager goes.
pub(super) type Ending = Box<dyn FnOnce(Completion<()>) + Send>;

/// Where the allocations of a manager lie: in windows that it divides, or in a reservation each.
pub(super) trait Memory: Sized + Send + 'static {
    type Mapper: MapperBase + ?Sized;
    /// What the mapper must be told when an allocation goes.
    type Teardown: Default + Send;

    /// What is read of it without the lock, besides what it gave out in [`Memory::read_by`].
    type Unlocked: Default + Clone + Send + Sync;

    fn unlocked(&self) -> Self::Unlocked {
        Self::Unlocked::default()
    }

    /// Lets addresses be looked up without the lock; before there is any allocation.
    fn read_by(&mut self, manager: &Arc<ManagerReader>);

    /// What the host calls the JITDylib of a record.
    fn dylib(&self, number: u32, holding: u32) -> u64;

    /// Shows the segments of a record, with the bytes that were asked for.
    fn segments(&self, holding: u32, visit: &mut dyn FnMut(AddressRange, AllocGroup));

    /// What writes the content of an in-flight allocation's segment; `None` if that has no memory.
    ///
    /// # Safety
    /// It is used only as long as the allocation is in flight.
    #[allow(unsafe_code)]
    unsafe fn content(&self, holding: u32, state: &InFlightState, segment: usize)
    -> Option<Writer>;

    /// An allocation of this JITDylib is gone.
    fn forget(&mut self, dylib: u32);

    /// The requests that wait for a change outside the lock.
    fn take_waiting(&mut self) -> Vec<Waiting> {
        Vec::new()
    }

    /// This process has forked, or is the child.
    fn forked(&mut self, _forked: Forked) {}

    /// Fails where this process lacks the working memory of an allocation in flight.
    fn check_in_flight(&self, _holding: u32) -> Result<()> {
        Ok(())
    }

    /// The table of what it notes of allocations, if it is one.
    fn table(&self) -> Option<Arc<dyn Table>> {
        None
    }

    /// Whether pages of the table are worth giving back.
    fn has_idle(&self) -> bool {
        false
    }

    /// Bytes of memory for what it notes of allocations.
    fn bytes_of_records(&self) -> u64;

    fn sums(&self) -> Sums;

    /// Calls `visit` with every window, every chunk and every handed-out range.
    fn visit(&self, records: &Records<Self::Teardown>, visit: &mut dyn FnMut(LayoutItem));

    /// Takes everything out that an arena besides the first has, when the manager goes.
    fn take(_space: &mut Space<Self>, _mapper: &Self::Mapper) -> Option<Space<Self>> {
        None
    }

    /// Takes everything out that is left when the manager goes; `others` is what other arenas had.
    fn end(space: &mut Space<Self>, others: Vec<Space<Self>>, mapper: Arc<Self::Mapper>) -> Ending;
}

/// Counters of the statistics.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) allocate: u64,
    pub(super) finalize: u64,
    pub(super) abandon: u64,
    pub(super) deallocate: u64,
    pub(super) failures: u64,
}

/// How much is in use.
#[derive(Default)]
pub(super) struct Usage {
    pub(super) quota: Option<u64>,
    /// Bytes handed out, and those of them that were asked for.
    pub(super) taken: u64,
    pub(super) live: u64,
    /// Bytes of what is deallocated and waits to be reclaimed; handed out still.
    pub(super) waiting: u64,
    pub(super) in_flight: u64,
    pub(super) finalized: u64,
    pub(super) counters: Counters,
}

impl Usage {
    /// Fails if `wanted` bytes more than there are in use may not be handed out. `others` have so many.
    pub(super) fn check_quota(&self, wanted: u64, others: u64) -> Result<()> {
        let taken = self.taken + others;
        match self.quota {
            Some(quota) if taken.saturating_add(wanted) > quota => {
                let message = format!(
                    "allocate {wanted} bytes: {taken} of a quota of {quota} bytes are in use; deallocate \
                     something or raise the quota (jitmem_manager_set_quota, Manager::set_quota)"
                );
                Err(self.name_waiting(Error::new(Status::QuotaExceeded, message)))
            }
            _ => Ok(()),
        }
    }

    /// Adds to an error of want of room what the host could have reclaimed.
    pub(super) fn name_waiting(&self, error: Error) -> Error {
        match self.waiting {
            0 => error,
            waiting => error.remedy(format_args!(
                "{waiting} bytes are deallocated and wait: advance the epoch, and reclaim up to it \
                 once every thread has left linked code"
            )),
        }
    }
}

pub(super) struct Space<M: Memory> {
    pub(super) memory: M,
    pub(super) records: Records<M::Teardown>,
    pub(super) usage: Usage,
    pub(super) scopes: Scopes,
    /// The thread that has allocated last, by a number of its own.
    pub(super) allocator: usize,
}

/// So many segments are located before the lock is given to others.
const LOCATED_AT_ONCE: usize = 128;

/// Allocations that go together.
pub(super) type Keys = SmallVec<[Key; 4]>;

#[cold]
pub(crate) fn heap_is_full() -> Error {
    let message = "allocate: the heap has no room for the manager's own records; free memory, or \
                   raise RLIMIT_AS or the memory limit";
    Error::new(Status::OutOfMemory, message)
}

/// Why a table of records can't grow.
#[cold]
pub(super) fn no_pages(error: io::Error) -> Error {
    sys::explain("allocate: map memory for the manager's own records", error)
}

impl<M: Memory> Space<M> {
    pub(super) fn new(memory: M, quota: Option<u64>, random: u64) -> Self {
        Space::of(memory, Records::new(random), quota)
    }

    pub(super) fn of(memory: M, records: Records<M::Teardown>, quota: Option<u64>) -> Self {
        Space {
            memory,
            records,
            usage: Usage {
                quota,
                ..Usage::default()
            },
            scopes: Scopes::default(),
            allocator: 0,
        }
    }

    /// Makes an allocation, in flight, of what was taken for it: `live` bytes that were asked for.
    /// Gives its key and handle. The other parameters are those of [`Records::insert`].
    #[inline]
    pub(super) fn admit(
        &mut self,
        holding: u32,
        dylib: u32,
        for_finalize: bool,
        live: u64,
        set: impl FnOnce(&mut InFlightState),
    ) -> (Key, u64) {
        self.usage.live += live;
        self.usage.in_flight += 1;
        self.usage.counters.allocate += 1;
        self.records.insert(holding, dylib, for_finalize, set)
    }

    /// What writes the content of an in-flight allocation's segment; `None` if that has no memory.
    ///
    /// # Safety
    /// It is used only as long as the allocation is in flight.
    #[allow(unsafe_code)]
    pub(super) unsafe fn content(&mut self, handle: u64, segment: usize) -> Result<Option<Writer>> {
        let key = self.records.find_in_flight(handle)?;
        let holding = self.records.record(key).holding;
        self.memory.check_in_flight(holding)?;
        let state = self.records.in_flight(key);
        // SAFETY: as the caller says.
        Ok(unsafe { self.memory.content(holding, state, segment) })
    }

    /// An allocation is finalized now, and the latest one. Says whether some segments go now.
    #[inline]
    pub(super) fn set_finalized(&mut self, key: Key, teardown: Option<M::Teardown>) -> bool {
        self.usage.counters.finalize += 1;
        self.usage.in_flight -= 1;
        self.usage.finalized += 1;
        self.records.set_finalized(key, teardown)
    }

    /// Marks finalized allocations as being deallocated and adds them to `keys`: all of them; or none
    /// if a handle is wrong, or `accept` declines one, and then the answer is `false`.
    pub(super) fn start_deallocating(
        &mut self,
        handles: &[u64],
        keys: &mut Keys,
        accept: impl Fn(bool) -> bool,
    ) -> Result<bool> {
        let many = handles.len() > keys.inline_size();
        if many && keys.try_reserve_exact(handles.len()).is_err() {
            return Err(heap::exhausted("deallocate"));
        }
        let mut accepted = true;
        for (index, handle) in handles.iter().enumerate() {
            match self.records.find_finalized(*handle) {
                Ok(key) => {
                    let has_teardown = self.records.start_deallocating(key);
                    accepted &= accept(has_teardown);
                    keys.push(key);
                }
                Err(error) => {
                    self.stop_deallocating(keys);
                    let error = match handles[..index].contains(handle) {
                        true => invalid_handle(format!("allocation {handle:#x} is named twice")),
                        false => error,
                    };
                    return Err(error.context(format!("deallocate {} allocations", handles.len())));
                }
            }
        }
        match accepted {
            true => self.usage.counters.deallocate += handles.len() as u64,
            false => self.stop_deallocating(keys),
        }
        Ok(accepted)
    }

    #[cold]
    fn stop_deallocating(&mut self, keys: &mut Keys) {
        for key in keys.drain(..) {
            self.records.stop_deallocating(key);
        }
    }

    /// Forgets an allocation whose memory was taken out of its record.
    pub(super) fn forget(&mut self, key: Key) {
        let removed = self.records.remove(key);
        match removed.was_finalized {
            true => self.usage.finalized -= 1,
            false => self.usage.in_flight -= 1,
        }
        self.memory.forget(removed.dylib);
    }

    /// Whether pages of the tables are worth giving back.
    #[inline]
    pub(super) fn has_idle_records(&self) -> bool {
        self.records.has_idle() || self.memory.has_idle()
    }

    /// The tables of what is noted of allocations.
    pub(super) fn tables(&self) -> [Option<Arc<dyn Table>>; 2] {
        [Some(self.records.table()), self.memory.table()]
    }

    /// Bytes of memory for what is noted of allocations.
    pub(super) fn bytes_of_records(&self) -> u64 {
        self.records.resident_bytes() + self.memory.bytes_of_records()
    }

    /// Adds the segments of some live allocations, from a slot on. Gives where the next ones begin. Fails
    /// where the heap has no room for those of one.
    pub(super) fn locate(
        &self,
        reader: &ManagerReader,
        from: u32,
        out: &mut Vec<Location>,
    ) -> Result<Option<u32>> {
        let mut full = false;
        let next = reader.records().find_map_from(from, &mut |number, life| {
            if ![Phase::InFlight, Phase::Finalizing, Phase::Finalized].contains(&life.phase) {
                return None;
            }
            let holding = self.records.record(Key::of(number)).holding;
            let dylib = self.memory.dylib(life.dylib, holding);
            let before = out.len();
            let mut push = |location| {
                full |= out.try_reserve(1).is_err();
                if !full {
                    out.push(location);
                }
            };
            let mut any = false;
            self.memory.segments(holding, &mut |range, group| {
                any = true;
                push(reader.location(range, group, life, dylib));
            });
            if !any {
                push(reader.without_memory(life, dylib));
            }
            if full {
                // With the next ones, if those before it took the room.
                out.truncate(before);
                return Some(number);
            }
            (out.len() >= LOCATED_AT_ONCE).then_some(number + 1)
        });
        match full && out.is_empty() {
            true => Err(heap::exhausted("walk")),
            false => Ok(next),
        }
    }

    pub(super) fn sums(&self) -> Sums {
        self.memory.sums()
    }

    pub(super) fn visit(&self, visit: &mut dyn FnMut(LayoutItem)) {
        self.memory.visit(&self.records, visit);
    }
}
