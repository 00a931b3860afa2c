// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! All allocations of a manager, by handles that can't be mistaken.

use super::space::{heap_is_full, no_pages};
use crate::error::{Result, invalid_handle};
use crate::memory::buffer::Buffer;
use crate::memory::paged::{Element, Paged, Table};
use crate::memory::slab::Slab;
use crate::memory::words::Words;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};

/// Working memory of the segments that the mapper copies, in their order; most allocations have none.
pub(super) type Buffers = Box<[Buffer]>;

/// How far an allocation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Phase {
    /// There is none.
    Vacant,
    InFlight,
    Finalizing,
    Abandoned,
    Finalized,
    Deallocating,
}

const PHASES: [Phase; 8] = [
    Phase::Vacant,
    Phase::InFlight,
    Phase::Finalizing,
    Phase::Abandoned,
    Phase::Finalized,
    Phase::Deallocating,
    Phase::Vacant,
    Phase::Vacant,
];
const PHASE_BITS: u32 = 3;

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Vacant => "not there",
            Phase::InFlight => "still in flight",
            Phase::Finalizing => "being finalized",
            Phase::Abandoned => "being abandoned",
            Phase::Finalized => "finalized already",
            Phase::Deallocating => "being deallocated",
        }
    }
}

/// What is kept of one segment while its content is written.
#[derive(Clone, Copy)]
pub(super) struct SegmentState {
    /// Bytes of content.
    pub(super) content: u32,
    /// Position in the request.
    pub(super) segment: u16,
    /// Nothing was ever written behind the content.
    pub(super) zeroed: bool,
    /// Its pages have no memory yet.
    pub(super) untouched: bool,
}

/// What only allocations in flight have.
#[derive(Default)]
pub(super) struct InFlightState {
    pub(super) buffers: Buffers,
    /// In the order of the pieces.
    pub(super) segments: SmallVec<[SegmentState; 4]>,
}

impl InFlightState {
    /// Makes it one of no allocation.
    #[inline]
    fn reset(&mut self) {
        if self.segments.spilled() || !self.buffers.is_empty() {
            *self = InFlightState::default();
        }
        self.segments.clear();
    }
}

/// What is kept for the end of a finalized allocation that has something to do then.
#[derive(Default)]
struct Ending<T> {
    /// Grows with each finalize, so that what is left when the manager goes ends last to first.
    order: u64,
    teardown: T,
}

/// Which record: valid from [`Records::insert`] to [`Records::remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u32);

impl Key {
    /// Of a number that [`RecordsReader::find_map_from`] or [`Records::finalized`] has shown.
    pub(super) fn of(number: u32) -> Key {
        Key(number)
    }

    /// A number below 2^31.
    pub(super) fn number(self) -> u32 {
        self.0
    }
}

/// An allocation: 16 bytes, and what its segments take.
struct Slot {
    /// Generation, and phase in the low bits. The generation grows with each use.
    life: AtomicU32,
    /// In flight: number of the [`InFlightState`]. Finalized: number of the [`Ending`], or [`NONE`].
    extra: AtomicU32,
    /// Where the manager's memory has what the allocation holds.
    holding: AtomicU32,
    /// The JITDylib that it belongs to, as the manager's memory numbers them, 0 for none; and
    /// [`FOR_FINALIZE`].
    dylib: AtomicU32,
}

const NONE: u32 = u32::MAX;
/// Some segments go once it is finalized.
const FOR_FINALIZE: u32 = 1 << 31;
/// A slot that was used so often is not used again, so that no old handle comes to life.
const LAST_GENERATION: u32 = u32::MAX >> PHASE_BITS;

// SAFETY: zero is a value of atomics.
unsafe impl Element for Slot {
    fn link(&self) -> &AtomicU32 {
        &self.extra
    }

    fn begin(&self, generation: u32) {
        self.life.store(generation << PHASE_BITS, Relaxed);
    }

    fn generation(&self) -> u32 {
        self.life.load(Relaxed) >> PHASE_BITS
    }
}

impl Slot {
    fn phase(&self) -> Phase {
        PHASES[(self.life.load(Relaxed) & ((1 << PHASE_BITS) - 1)) as usize]
    }

    fn set_phase(&self, phase: Phase) {
        self.set_life(self.generation(), phase);
    }

    /// What was done to the allocation before is seen with it, and what is done from now on, after it.
    fn set_life(&self, generation: u32, phase: Phase) {
        self.life
            .store(generation << PHASE_BITS | phase as u32, Release);
        fence(Release);
    }
}

/// What a reader without a lock has of the records.
#[derive(Clone)]
pub(super) struct RecordsReader {
    slots: Arc<Paged<Slot>>,
    tags: Arc<Words>,
    cookie: u64,
}

/// What a slot was used for at one moment. No two uses are the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) phase: Phase,
    pub(super) handle: u64,
    pub(super) dylib: u32,
    pub(super) tag: u64,
}

impl RecordsReader {
    /// What the slot of a number is used for; `None` if for nothing. Two readings that are the same have
    /// nothing between them.
    pub(super) fn life(&self, number: u32) -> Option<Life> {
        let slot = self.slots.find(number)?;
        fence(Acquire);
        let life = slot.life.load(Acquire);
        let (generation, phase) = (
            life >> PHASE_BITS,
            PHASES[(life % (1 << PHASE_BITS)) as usize],
        );
        (phase != Phase::Vacant).then(|| Life {
            phase,
            handle: handle_of(number, generation, self.cookie),
            dylib: slot.dylib.load(Relaxed) & !FOR_FINALIZE,
            tag: tag(&self.tags, number, generation),
        })
    }

    /// The live allocations from a slot on, with their slots, until `look` answers something.
    pub(super) fn find_map_from<R>(
        &self,
        from: u32,
        look: &mut dyn FnMut(u32, Life) -> Option<R>,
    ) -> Option<R> {
        let look = |number, _: &Slot| look(number, self.life(number)?);
        self.slots.find_map_from(from, look)
    }
}

/// Each slot has two words for its tag: the generation that it is of, and the tag.
fn tag(tags: &Words, slot: u32, generation: u32) -> u64 {
    let word = |offset| tags.get(2 * slot as usize + offset);
    let Some((of, tag)) = word(0).zip(word(1)) else {
        return 0;
    };
    match of.load(Acquire) == u64::from(generation) {
        true => tag.load(Relaxed),
        false => 0,
    }
}

fn handle_of(index: u32, generation: u32, cookie: u64) -> u64 {
    let upper = u64::from(generation) << 1 | 1;
    (upper << 32 | u64::from(index)) ^ cookie
}

/// What an allocation held that is gone.
pub(super) struct Removed {
    pub(super) was_finalized: bool,
    pub(super) dylib: u32,
}

/// A record, as all of them are looked at.
pub(super) struct Record {
    pub(super) phase: Phase,
    pub(super) holding: u32,
}

/// The records. A handle is slot and generation, mixed with a number of the manager, so that a
/// handle of another manager or another time is told from a good one.
pub(super) struct Records<T> {
    slots: Arc<Paged<Slot>>,
    /// By slot; without memory until an allocation has one.
    tags: Arc<Words>,
    in_flight: Slab<InFlightState>,
    endings: Slab<Ending<T>>,
    cookie: u64,
    /// Of all arenas.
    last_order: Arc<AtomicU64>,
}

/// In a handle without its cookie, these bits are the arena. A slot's index ends below.
const ARENA_SHIFT: u32 = 28;
const ARENA_BITS: u64 = 7;

/// The arena that a handle is of, if it is the manager's that has this cookie.
#[inline]
pub(super) fn arena_of(handle: u64, cookie: u64) -> usize {
    ((handle ^ cookie) >> ARENA_SHIFT & ARENA_BITS) as usize
}

impl<T: Default> Records<T> {
    pub(super) fn new(random: u64) -> Self {
        // Bit 32 of a handle is set, and bit 63 is not. With these bits clear in the cookie, no handle
        // is 0 and none is all ones, which LLVM takes for "none".
        Records::with(random & !(1 << 32) & !(1 << 63), Arc::default())
    }

    /// Those of another arena of the manager that has these, which are the first one's.
    pub(super) fn of_arena(&self, arena: usize) -> Self {
        debug_assert!(arena as u64 <= ARENA_BITS);
        let cookie = self.cookie ^ (arena as u64) << ARENA_SHIFT;
        Records::with(cookie, Arc::clone(&self.last_order))
    }

    /// What handles are mixed with.
    pub(super) fn cookie(&self) -> u64 {
        self.cookie
    }

    fn with(cookie: u64, last_order: Arc<AtomicU64>) -> Self {
        Records {
            slots: Arc::new(Paged::new()),
            tags: Arc::new(Words::new()),
            in_flight: Slab::new(),
            endings: Slab::new(),
            cookie,
            last_order,
        }
    }

    /// Makes sure that one more record can be added, and finalized as all that are not yet.
    pub(super) fn make_spare(&mut self, not_finalized: u64) -> Result<()> {
        self.slots.make_spare(1).map_err(no_pages)?;
        let spare =
            self.in_flight.make_spare(1) && self.endings.make_spare(not_finalized as usize + 1);
        if spare { Ok(()) } else { Err(heap_is_full()) }
    }

    /// Adds a record, in flight, and gives its key and handle.
    /// `for_finalize` says that some segments go once it is finalized; `set` makes its state of a default
    /// one.
    #[inline]
    pub(super) fn insert(
        &mut self,
        holding: u32,
        dylib: u32,
        for_finalize: bool,
        set: impl FnOnce(&mut InFlightState),
    ) -> (Key, u64) {
        let (index, slot) = self.slots.take();
        let generation = slot.generation() + 1;
        let for_finalize = if for_finalize { FOR_FINALIZE } else { 0 };
        let number = self.in_flight.add();
        set(self.in_flight.get_mut(number));
        slot.extra.store(number, Relaxed);
        slot.holding.store(holding, Relaxed);
        slot.dylib.store(dylib | for_finalize, Relaxed);
        slot.set_life(generation, Phase::InFlight);
        (Key(index), self.handle(index, generation))
    }

    fn handle(&self, index: u32, generation: u32) -> u64 {
        handle_of(index, generation, self.cookie)
    }

    pub(super) fn reader(&self) -> RecordsReader {
        RecordsReader {
            slots: Arc::clone(&self.slots),
            tags: Arc::clone(&self.tags),
            cookie: self.cookie,
        }
    }

    /// Makes sure that the next record can have a tag; after [`Records::make_spare`].
    #[cold]
    pub(super) fn make_room_for_tag(&self, tag: u64) -> Result<()> {
        if tag == 0 {
            return Ok(());
        }
        self.tags
            .make_room(2 * self.slots.mapped())
            .map_err(no_pages)
    }

    /// Notes the tag of a record that was just added; after [`Records::make_room_for_tag`].
    #[cold]
    pub(super) fn set_tag(&self, key: Key, tag: u64) {
        if tag == 0 {
            return;
        }
        let word = |offset| self.tags.used(2 * key.0 as usize + offset);
        if let Some((of, place)) = word(0).zip(word(1)) {
            of.store(0, Relaxed);
            fence(Release);
            place.store(tag, Relaxed);
            of.store(self.slot(key).generation().into(), Release);
        }
    }

    /// The allocation of this handle, in flight.
    pub(super) fn find_in_flight(&self, handle: u64) -> Result<Key> {
        self.find(handle, Phase::InFlight)
    }

    /// The allocation of this handle, finalized.
    pub(super) fn find_finalized(&self, handle: u64) -> Result<Key> {
        self.find(handle, Phase::Finalized)
    }

    /// The handle of an allocation that is finalized.
    pub(super) fn finalized_handle(&self, key: Key) -> Option<u64> {
        let slot = self.slots.find(key.0)?;
        (slot.phase() == Phase::Finalized).then(|| self.handle(key.0, slot.generation()))
    }

    #[inline]
    fn find(&self, handle: u64, wanted: Phase) -> Result<Key> {
        let number = handle ^ self.cookie;
        let index = number as u32;
        if let Some(slot) = self.slots.find(index) {
            // As `handle` puts it together.
            let life = number >> 33 << PHASE_BITS | wanted as u64;
            if u64::from(slot.life.load(Relaxed)) == life && number >> 32 & 1 == 1 {
                return Ok(Key(index));
            }
        }
        Err(self.not_found(handle))
    }

    #[cold]
    fn not_found(&self, handle: u64) -> crate::error::Error {
        let index = (handle ^ self.cookie) as u32;
        if let Some(slot) = self.slots.find(index) {
            let phase = slot.phase();
            let same = self.handle(index, slot.generation()) == handle;
            if same && phase != Phase::Vacant {
                return in_phase(handle, phase);
            }
        }
        not_live(handle)
    }

    fn slot(&self, key: Key) -> &Slot {
        self.slots.get(key.0)
    }

    pub(super) fn record(&self, key: Key) -> Record {
        let slot = self.slot(key);
        Record {
            phase: slot.phase(),
            holding: slot.holding.load(Relaxed),
        }
    }

    /// Takes out where the memory of an allocation is.
    pub(super) fn take_holding(&self, key: Key) -> u32 {
        let holding = &self.slot(key).holding;
        let taken = holding.load(Relaxed);
        holding.store(NONE, Relaxed);
        taken
    }

    pub(super) fn set_holding(&self, key: Key, holding: u32) {
        self.slot(key).holding.store(holding, Relaxed);
    }

    /// What an allocation in flight has in that phase alone.
    pub(super) fn in_flight(&mut self, key: Key) -> &mut InFlightState {
        let number = self.slot(key).extra.load(Relaxed);
        self.in_flight.get_mut(number)
    }

    /// Ends the linker's writing and gives what only allocations in flight have.
    pub(super) fn end_writing(&mut self, key: Key, next: Phase) -> InFlightState {
        let slot = self.slots.get(key.0);
        debug_assert_eq!(slot.phase(), Phase::InFlight);
        let number = slot.extra.load(Relaxed);
        slot.extra.store(NONE, Relaxed);
        slot.set_phase(next);
        self.in_flight.remove(number)
    }

    /// [`Records::end_writing`] where what only allocations in flight have serves no more.
    #[inline]
    fn forget_writing(&mut self, key: Key) {
        let number = self.slot(key).extra.load(Relaxed);
        self.in_flight.end(number, InFlightState::reset);
    }

    /// Marks an allocation as finalized, and the latest one. The teardown is none where there is
    /// nothing to do in the end. Says whether some segments go now.
    #[inline]
    pub(super) fn set_finalized(&mut self, key: Key, teardown: Option<T>) -> bool {
        if self.slot(key).phase() == Phase::InFlight {
            self.forget_writing(key);
        }
        let ending = match teardown {
            Some(teardown) => {
                let order = self.last_order.fetch_add(1, Relaxed) + 1;
                self.endings.insert(Ending { order, teardown })
            }
            None => NONE,
        };
        let slot = self.slot(key);
        slot.extra.store(ending, Relaxed);
        slot.set_phase(Phase::Finalized);
        slot.dylib.load(Relaxed) & FOR_FINALIZE != 0
    }

    /// Takes out where the memory of an allocation is that is being deallocated, and what is to be done
    /// before.
    #[inline]
    pub(super) fn take_out(&mut self, key: Key) -> (u32, Option<T>) {
        let slot = self.slots.get(key.0);
        let (holding, ending) = (slot.holding.load(Relaxed), slot.extra.load(Relaxed));
        slot.holding.store(NONE, Relaxed);
        slot.extra.store(NONE, Relaxed);
        let teardown = match ending {
            NONE => None,
            ending => Some(self.endings.remove(ending).teardown),
        };
        (holding, teardown)
    }

    /// Takes out what is to be done before an allocation goes that is being deallocated.
    #[cold]
    pub(super) fn take_teardown(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get(key.0);
        let number = slot.extra.load(Relaxed);
        slot.extra.store(NONE, Relaxed);
        (number != NONE).then(|| self.endings.remove(number).teardown)
    }

    /// Marks a finalized allocation as being deallocated. Says whether there is something to do before
    /// it goes.
    #[inline]
    pub(super) fn start_deallocating(&self, key: Key) -> bool {
        let slot = self.slot(key);
        slot.set_phase(Phase::Deallocating);
        slot.extra.load(Relaxed) != NONE
    }

    /// Marks an allocation that was to be deallocated as finalized again.
    pub(super) fn stop_deallocating(&self, key: Key) {
        self.slot(key).set_phase(Phase::Finalized);
    }

    /// Takes a record out; its handle is no more.
    #[inline]
    pub(super) fn remove(&mut self, key: Key) -> Removed {
        let phase = self.slot(key).phase();
        if phase == Phase::InFlight {
            self.forget_writing(key);
        }
        let slot = self.slots.get(key.0);
        let removed = Removed {
            was_finalized: matches!(phase, Phase::Finalized | Phase::Deallocating),
            dylib: slot.dylib.load(Relaxed) & !FOR_FINALIZE,
        };
        slot.set_phase(Phase::Vacant);
        if slot.generation() < LAST_GENERATION {
            self.slots.give(key.0, slot);
        }
        removed
    }

    /// All records.
    pub(super) fn iter(&self) -> impl Iterator<Item = Record> {
        let all = self.slots.iter().map(|(index, _)| self.record(Key(index)));
        all.filter(|record| record.phase != Phase::Vacant)
    }

    /// What is finalized, at the end of the manager, with when it was: 0 where there is nothing to do in
    /// the end. By number.
    pub(super) fn finalized(&self) -> impl Iterator<Item = (u64, u64)> {
        let all = self.slots.iter();
        let finalized = all.filter(|(_, slot)| slot.phase() == Phase::Finalized);
        finalized.map(|(index, slot)| {
            let order = match slot.extra.load(Relaxed) {
                NONE => 0,
                ending => self.endings.get(ending).order,
            };
            (order, index.into())
        })
    }

    // ---- memory ----

    /// Gives the memory back of what allocations have for a while only, where none has it.
    pub(super) fn trim(&mut self) {
        self.in_flight.trim();
        self.endings.trim();
    }

    /// See [`Paged::has_idle`].
    #[inline]
    pub(super) fn has_idle(&self) -> bool {
        self.slots.has_idle()
    }

    pub(super) fn table(&self) -> Arc<dyn Table> {
        Arc::clone(&self.slots) as Arc<dyn Table>
    }

    /// Bytes of memory that they take.
    pub(super) fn resident_bytes(&self) -> u64 {
        self.slots.resident_bytes()
            + self.tags.resident_bytes()
            + self.in_flight.bytes()
            + self.endings.bytes()
    }
}

#[cold]
fn in_phase(handle: u64, phase: Phase) -> crate::error::Error {
    invalid_handle(format!("allocation {handle:#x} is {}", phase.name()))
}

#[cold]
fn not_live(handle: u64) -> crate::error::Error {
    invalid_handle(format!(
        "allocation {handle:#x} is not live in this manager: it was deallocated, abandoned or failed \
         before, or is another manager's"
    ))
}

#[cfg(test)]
mod tests;
