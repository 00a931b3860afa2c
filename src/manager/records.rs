// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! All allocations of a manager, by handles that can't be mistaken.

use super::space::Memory;
use crate::error::{Result, invalid_handle};
use crate::memory::buffer::Buffer;
use crate::memory::paged::Paged;

/// Working memory of the segments that the mapper copies, in their order; most allocations have none.
pub(super) type Buffers = Box<[Buffer]>;

/// How far an allocation has come, with what it has in that phase alone.
pub(super) enum Phase<T> {
    InFlight(Buffers),
    Finalizing,
    Abandoned,
    Finalized(Finalized<T>),
    Deallocating(Finalized<T>),
}

/// What is kept for the end of a finalized allocation.
pub(super) struct Finalized<T> {
    /// Grows with each finalize, so that what is left when the manager goes ends last to first.
    pub(super) order: u64,
    pub(super) teardown: T,
}

impl<T> Phase<T> {
    fn name(&self) -> &'static str {
        match self {
            Phase::InFlight(_) => "still in flight",
            Phase::Finalizing => "being finalized",
            Phase::Abandoned => "being abandoned",
            Phase::Finalized(_) => "finalized already",
            Phase::Deallocating(_) => "being deallocated",
        }
    }

    /// Whether it was finalized, also if it is being deallocated by now.
    pub(super) fn was_finalized(&self) -> bool {
        matches!(self, Phase::Finalized(_) | Phase::Deallocating(_))
    }
}

/// An allocation.
pub(super) struct Record<M: Memory> {
    pub(super) holding: M::Holding,
    pub(super) phase: Phase<M::Teardown>,
}

impl<M: Memory> Record<M> {
    /// Marks a finalized allocation as being deallocated.
    pub(super) fn start_deallocating(&mut self) {
        let phase = std::mem::replace(&mut self.phase, Phase::Finalizing);
        self.phase = match phase {
            Phase::Finalized(finalized) => Phase::Deallocating(finalized),
            other => other,
        };
    }

    /// Marks an allocation that was to be deallocated as finalized again.
    pub(super) fn stop_deallocating(&mut self) {
        let phase = std::mem::replace(&mut self.phase, Phase::Finalizing);
        self.phase = match phase {
            Phase::Deallocating(finalized) => Phase::Finalized(finalized),
            other => other,
        };
    }

    /// Ends the linker's writing and gives the working memory.
    pub(super) fn end_writing(&mut self, next: Phase<M::Teardown>) -> Buffers {
        match std::mem::replace(&mut self.phase, next) {
            Phase::InFlight(buffers) => buffers,
            _ => Buffers::default(),
        }
    }
}

/// Which record: valid from [`Records::insert`] to [`Records::remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u32);

struct Slot<M: Memory> {
    /// Odd while the slot is used; grows with each use and each end of it.
    generation: u32,
    content: Content<M>,
}

enum Content<M: Memory> {
    Vacant { next: Option<u32> },
    Used(Record<M>),
}

impl<M: Memory> Slot<M> {
    fn next_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1) & (u32::MAX >> 1);
    }

    fn record(&self) -> Option<&Record<M>> {
        match &self.content {
            Content::Used(record) => Some(record),
            Content::Vacant { .. } => None,
        }
    }

    fn record_mut(&mut self) -> Option<&mut Record<M>> {
        match &mut self.content {
            Content::Used(record) => Some(record),
            Content::Vacant { .. } => None,
        }
    }

    /// Makes the slot vacant, in front of `next`.
    fn take(&mut self, next: Option<u32>) -> Option<Record<M>> {
        match std::mem::replace(&mut self.content, Content::Vacant { next }) {
            Content::Used(record) => Some(record),
            Content::Vacant { .. } => None,
        }
    }
}

impl<M: Memory> Default for Slot<M> {
    fn default() -> Self {
        Slot {
            generation: 0,
            content: Content::Vacant { next: None },
        }
    }
}

/// The records. A handle is slot and generation, mixed with a number of the manager, so that a
/// handle of another manager or another time is told from a good one.
pub(super) struct Records<M: Memory> {
    slots: Paged<Slot<M>, 128>,
    vacant: Option<u32>,
    cookie: u64,
}

const KEY_IS_VALID: &str = "a key is valid until its record is removed";

impl<M: Memory> Records<M> {
    pub(super) fn new(random: u64) -> Self {
        // A live generation is odd, so bit 32 of its handle is set, and none comes near bit 63.
        // With these bits clear in the cookie, no handle is 0 and none is all ones, which LLVM
        // takes for "none".
        let cookie = random & !(1 << 32) & !(1 << 63);
        Records {
            slots: Paged::new(),
            vacant: None,
            cookie,
        }
    }

    /// Makes sure that one more record can be added; `false` if the heap is full.
    pub(super) fn make_spare(&mut self) -> bool {
        self.vacant.is_some() || self.slots.make_spare(1)
    }

    /// Adds a record and gives its key and handle.
    pub(super) fn insert(&mut self, record: Record<M>) -> (Key, u64) {
        let index = match self.vacant {
            Some(index) => index,
            None => self.slots.push(Slot::default()),
        };
        let slot = &mut self.slots[index];
        if let Content::Vacant { next } = slot.content {
            self.vacant = next;
        }
        slot.next_generation();
        slot.content = Content::Used(record);
        let plain = u64::from(slot.generation) << 32 | u64::from(index);
        (Key(index), plain ^ self.cookie)
    }

    /// The allocation of this handle, in flight.
    pub(super) fn find_in_flight(&mut self, handle: u64) -> Result<(Key, &mut Record<M>)> {
        self.find(handle, |phase| matches!(phase, Phase::InFlight(_)))
    }

    /// The allocation of this handle, finalized.
    pub(super) fn find_finalized(&mut self, handle: u64) -> Result<(Key, &mut Record<M>)> {
        self.find(handle, |phase| matches!(phase, Phase::Finalized(_)))
    }

    fn find(
        &mut self,
        handle: u64,
        wanted: impl FnOnce(&Phase<M::Teardown>) -> bool,
    ) -> Result<(Key, &mut Record<M>)> {
        let plain = handle ^ self.cookie;
        let (generation, index) = ((plain >> 32) as u32, plain as u32);
        let slot = self
            .slots
            .get_mut(index)
            .filter(|slot| slot.generation == generation);
        match slot.and_then(Slot::record_mut) {
            Some(record) if wanted(&record.phase) => Ok((Key(index), record)),
            Some(record) => Err(invalid_handle(format!(
                "allocation {handle:#x} is {}",
                record.phase.name()
            ))),
            None => Err(invalid_handle(format!(
                "allocation {handle:#x} is not live in this manager: it was deallocated, \
                 abandoned or failed before, or is another manager's"
            ))),
        }
    }

    /// A record that is there.
    pub(super) fn get(&mut self, key: Key) -> &mut Record<M> {
        self.slots[key.0].record_mut().expect(KEY_IS_VALID)
    }

    /// Takes a record out; its handle is no more.
    pub(super) fn remove(&mut self, key: Key) -> Record<M> {
        let next = self.vacant.replace(key.0);
        let slot = &mut self.slots[key.0];
        slot.next_generation();
        slot.take(next).expect(KEY_IS_VALID)
    }

    /// All records.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Record<M>> {
        self.slots.iter().filter_map(Slot::record)
    }

    /// Takes all records out, at the end of the manager.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Record<M>> {
        self.slots.iter_mut().filter_map(|slot| slot.take(None))
    }
}

#[cfg(test)]
mod tests {
    use super::super::windows::Windows;
    use super::*;

    fn record() -> Record<Windows> {
        Record {
            holding: Default::default(),
            phase: Phase::InFlight(Buffers::default()),
        }
    }

    #[test]
    fn a_handle_is_good_for_one_life_in_one_manager() {
        for random in [0, u64::MAX, 0x1234_5678_9abc_def0] {
            let mut records = Records::new(random);
            let (key, first) = records.insert(record());
            assert!(records.find_in_flight(first).is_ok());
            assert!(records.find_finalized(first).is_err());
            records.remove(key);
            assert!(records.find_in_flight(first).is_err());
            let (again, second) = records.insert(record());
            assert_eq!(again, key, "slots are used again");
            assert_ne!(first, second);
            assert!(records.find_in_flight(first).is_err());
            let mut other = Records::new(!random);
            let (_, foreign) = other.insert(record());
            assert!(records.find_in_flight(foreign).is_err());
            for handle in [first, second, foreign] {
                assert!(handle != 0 && handle != u64::MAX);
            }
            assert_eq!(records.iter().count(), 1);
        }
    }

    #[test]
    fn a_record_is_small() {
        assert!(
            size_of::<Slot<Windows>>() <= 120,
            "{}",
            size_of::<Slot<Windows>>()
        );
    }
}
