// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! From an address to the allocation that it lies in, without a lock: for crash handlers, unwinders and
//! profilers, also in a signal handler that has interrupted the manager.
//!
//! A node that holds the address is searched along its neighbours from one that the window's page index
//! names, or else among all nodes: a live allocation's nodes stay where they are, whatever happens around
//! them. The chain of a node leads to the slot of its allocation. What is read of both counts if it is
//! the same once more, while the slot's generation and phase stayed: they have each value once.

use super::piece::{pool_of, window_of};
use super::pool::number;
use super::records::{Life, Phase, RecordsReader};
use super::{AllocationHandle, Dylib, Manager};
use crate::group::{AllocGroup, Lifetime, Protection};
use crate::memory::published::{Publication, Published};
use crate::memory::ranges::{Nodes, Owner, RangeId, Seen};
use crate::memory::words::{PageIndex, Words};
use crate::page::AddressRange;
use crate::sys::AtForkStatic;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};

/// The windows of all managers.
static WINDOWS: Published<WindowIndex> = Published::new();

static FORKS: AtForkStatic<()> = AtForkStatic::with((), |(), forked| {
    if forked.in_child {
        WINDOWS.forked_child();
    }
});

/// So many entries of the page index are searched from before all nodes are.
const NEAR: usize = 4;

/// After so many steps, the page index has the node that was found.
const MANY_STEPS: usize = 16;

/// What changes under the eyes of a reader is looked at so often.
const TRIES: usize = 4;

/// To be called without a lock before a window is made: forks are known from then on.
#[cold]
pub(super) fn prepare() {
    drop(FORKS.lock());
    collect();
}

/// Frees what readers needed of windows that are gone. Called without a lock.
#[cold]
pub(super) fn collect() {
    WINDOWS.collect();
}

/// How far an allocation has come, as [`lookup`] finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllocationPhase {
    /// Its content is being written.
    InFlight,
    /// It is being finalized.
    Finalizing,
    /// It is finalized.
    Finalized,
    /// It is being deallocated or abandoned; its memory is still its own.
    Ending,
    /// It was deallocated and its memory is not used again yet: it waits to be reclaimed
    /// ([`Options::defer_reclamation`](super::Options::defer_reclamation)), or forked children see it. Which
    /// one it was is not known any more.
    Deallocated,
    /// The memory is being handed out or taken back at this moment, perhaps by the thread that a signal has
    /// interrupted. Whose it is can't be told.
    Changing,
}

/// Where an address lies, as [`lookup`] finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    allocation: u64,
    manager: u64,
    host_handle: usize,
    segment: AddressRange,
    group: AllocGroup,
    phase: AllocationPhase,
    dylib: u64,
    tag: u64,
}

impl Location {
    /// The allocation; `None` where it is not known ([`AllocationPhase::Deallocated`],
    /// [`AllocationPhase::Changing`]).
    pub fn allocation(&self) -> Option<AllocationHandle> {
        (self.allocation != 0).then_some(AllocationHandle(self.allocation))
    }

    /// Whether it lies in this manager.
    pub fn is_of(&self, manager: &Manager) -> bool {
        manager.core.reader().number == self.manager
    }

    /// The segment, with the bytes that were asked for. Empty for an allocation without memory, which
    /// [`Manager::walk`] shows.
    pub fn segment(&self) -> AddressRange {
        self.segment
    }

    /// Protection and lifetime of the segment.
    pub fn group(&self) -> AllocGroup {
        self.group
    }

    /// How far the allocation has come.
    pub fn phase(&self) -> AllocationPhase {
        self.phase
    }

    /// The JITDylib that it was allocated for.
    pub fn dylib(&self) -> Dylib {
        Dylib(self.dylib)
    }

    /// The host's tag; 0 if it has none.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// The C handle of the manager, or 0.
    pub(crate) fn host_handle(&self) -> usize {
        self.host_handle
    }
}

/// The allocation that an address of this process lies in, whichever manager has it. Addresses of other
/// processes' managers and of hosts' own mappers are looked up with [`Manager::lookup`].
///
/// It takes no lock, waits for nothing, allocates nothing and makes no system call, so that a signal
/// handler may call it, whatever the signal has interrupted, and a forked child too, however it was made.
///
/// A finalized allocation that is there from before the call until after it is found with certainty,
/// whatever other threads do to others meanwhile, and nothing is ever taken for it. What is in flight, being
/// finalized or going is found with its [`AllocationPhase`] as of one moment, and may be missed while that
/// changes; segments of finalize lifetime are gone once their allocation is finalized.
///
/// Most look-ups take a few steps. An address of a window where nothing lies, or where much has come and
/// gone since the last look, takes a look at every record of that manager, about a millisecond for
/// 100,000 small graphs.
pub fn lookup(address: u64) -> Option<Location> {
    lookup_in(None, address)
}

/// [`lookup`] in the windows of one manager, or of all of this process's memory.
pub(super) fn lookup_in(manager: Option<&Arc<ManagerReader>>, address: u64) -> Option<Location> {
    let wanted = |window: &WindowIndex| {
        let of = &window.readers.manager;
        manager.map_or(of.here, |manager| manager.number == of.number)
    };
    // Each arena that has a share of a window has an index of it, so that all are asked what is quick first.
    let mut uncertain = None;
    let near = WINDOWS.find(|window| {
        let offset = window.offset(address).filter(|_| wanted(window))?;
        window.find_near(offset, &mut uncertain)
    });
    let found = near.or_else(|| {
        WINDOWS.find(|window| {
            let offset = window.offset(address).filter(|_| wanted(window))?;
            window.find(offset, &mut uncertain)
        })
    });
    found.or(uncertain)
}

/// What look-ups have of a manager of either kind.
pub(super) struct ManagerReader {
    /// Given to no other manager.
    pub(super) number: u64,
    /// Its addresses are this process's.
    here: bool,
    /// What its host calls it, in C.
    host_handle: AtomicUsize,
    records: RecordsReader,
}

impl ManagerReader {
    pub(super) fn new(here: bool, records: RecordsReader) -> Arc<ManagerReader> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Arc::new(ManagerReader {
            number: LAST.fetch_add(1, Relaxed) + 1,
            here,
            host_handle: AtomicUsize::new(0),
            records,
        })
    }

    /// What they have of another arena of the manager, of which this is the first.
    pub(super) fn of_arena(&self, records: RecordsReader) -> Arc<ManagerReader> {
        Arc::new(ManagerReader {
            number: self.number,
            here: self.here,
            host_handle: AtomicUsize::new(self.host_handle.load(Relaxed)),
            records,
        })
    }

    pub(super) fn set_host_handle(&self, handle: usize) {
        self.host_handle.store(handle, Relaxed);
    }

    pub(super) fn records(&self) -> &RecordsReader {
        &self.records
    }

    /// A place in an allocation, which has this life.
    pub(super) fn location(
        &self,
        segment: AddressRange,
        group: AllocGroup,
        life: Life,
        dylib: u64,
    ) -> Location {
        let phase = match life.phase {
            Phase::InFlight => AllocationPhase::InFlight,
            Phase::Finalizing => AllocationPhase::Finalizing,
            Phase::Finalized => AllocationPhase::Finalized,
            Phase::Abandoned | Phase::Deallocating => AllocationPhase::Ending,
            Phase::Vacant => AllocationPhase::Changing,
        };
        Location {
            allocation: life.handle,
            tag: life.tag,
            dylib,
            ..self.nowhere(segment, group, phase)
        }
    }

    /// An allocation that has no memory.
    pub(super) fn without_memory(&self, life: Life, dylib: u64) -> Location {
        let group = AllocGroup::new(Protection::NONE, Lifetime::Standard);
        self.location(AddressRange::EMPTY, group, life, dylib)
    }

    /// A place in no allocation.
    pub(super) fn nowhere(
        &self,
        segment: AddressRange,
        group: AllocGroup,
        phase: AllocationPhase,
    ) -> Location {
        Location {
            allocation: 0,
            manager: self.number,
            host_handle: self.host_handle.load(Relaxed),
            segment,
            group,
            phase,
            dylib: 0,
            tag: 0,
        }
    }
}

/// What look-ups have of a manager that divides windows.
#[derive(Clone)]
pub(super) struct Readers {
    pub(super) manager: Arc<ManagerReader>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) dylibs: Arc<Words>,
}

/// What look-ups have of a window.
pub(super) struct WindowIndex {
    readers: Readers,
    number: u16,
    range: AddressRange,
    origin: u64,
    pub(super) pages: Arc<PageIndex>,
}

impl WindowIndex {
    /// Lets a window be found, before anything lies in it, until the answer is dropped.
    pub(super) fn publish(
        readers: &Readers,
        number: u16,
        range: AddressRange,
        origin: u64,
    ) -> Publication<WindowIndex> {
        WINDOWS.publish(Arc::new(WindowIndex {
            readers: readers.clone(),
            number,
            range,
            origin,
            pages: Arc::new(PageIndex::new(range.start() - origin, range.size())),
        }))
    }

    /// An address that lies in the window.
    fn offset(&self, address: u64) -> Option<u32> {
        let inside = address.checked_sub(self.range.start())?;
        if inside >= self.range.size() {
            return None;
        }
        u32::try_from(address - self.origin).ok()
    }

    /// The allocation at an offset, if a node near it leads there for certain.
    fn find_near(&self, offset: u32, uncertain: &mut Option<Location>) -> Option<Location> {
        let nodes = &self.readers.nodes;
        let mut near = self.pages.near(offset).take(NEAR);
        let (id, steps) = near.find_map(|near| nodes.search(near, offset))?;
        let location = self.look(id, offset)?;
        if location.allocation == 0 {
            uncertain.get_or_insert(location);
            return None;
        }
        if steps >= MANY_STEPS {
            self.pages.note(offset, id.index());
        }
        Some(location)
    }

    /// The same, among all nodes.
    fn find(&self, offset: u32, uncertain: &mut Option<Location>) -> Option<Location> {
        self.readers.nodes.search_all(offset, |id| {
            let location = self.look(id, offset)?;
            if location.allocation != 0 {
                // So that the next one is quick.
                self.pages.note(offset, id.index());
                return Some(location);
            }
            uncertain.get_or_insert(location);
            None
        })
    }

    /// What lies at an offset, if a node says so.
    fn look(&self, id: RangeId, offset: u32) -> Option<Location> {
        let Readers { manager, nodes, .. } = &self.readers;
        let mut last = None;
        for _ in 0..TRIES {
            let seen = nodes.read(id)?;
            let inside = offset.checked_sub(seen.start)?;
            if inside >= seen.requested || window_of(seen.mark) != self.number {
                return None;
            }
            let same = || nodes.read(id) == Some(seen);
            last = Some(seen);
            match seen.owner {
                Owner::Free => return None,
                Owner::Changing => {}
                Owner::Gone if same() => {
                    return self.nowhere(seen, AllocationPhase::Deallocated);
                }
                Owner::Gone => {}
                Owner::Number(slot) => {
                    let Some(life) = manager.records.life(slot) else {
                        continue;
                    };
                    let location = self.location(seen, life);
                    if same() && manager.records.life(slot) == Some(life) {
                        return location;
                    }
                }
            }
        }
        self.nowhere(last?, AllocationPhase::Changing)
    }

    fn place(&self, seen: Seen) -> Option<(AddressRange, AllocGroup)> {
        let start = self.origin + u64::from(seen.start);
        let segment = AddressRange::new(start, seen.requested.into())?;
        Some((segment, number::known_group(pool_of(seen.mark))?))
    }

    fn location(&self, seen: Seen, life: Life) -> Option<Location> {
        let (segment, group) = self.place(seen)?;
        if life.phase == Phase::Finalized && group.lifetime == Lifetime::Finalize {
            return None; // it has served
        }
        let dylib = self.readers.dylibs.get(life.dylib as usize);
        let dylib = dylib.map_or(0, |dylib| dylib.load(Relaxed));
        Some(self.readers.manager.location(segment, group, life, dylib))
    }

    fn nowhere(&self, seen: Seen, phase: AllocationPhase) -> Option<Location> {
        let (segment, group) = self.place(seen)?;
        Some(self.readers.manager.nowhere(segment, group, phase))
    }
}

#[cfg(test)]
impl super::core::Core {
    /// Has a search begin with a wrong node.
    pub(super) fn note_in_index(&self, address: u64, node: u32) {
        WINDOWS.find(|window| {
            let inside = address.checked_sub(window.range.start())?;
            let offset = u32::try_from(address - window.origin).ok()?;
            (inside < window.range.size()).then(|| window.pages.note(offset, node))
        });
    }
}
