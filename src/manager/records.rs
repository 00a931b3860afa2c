// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! All allocations of a manager, by handles that can't be mistaken.

use super::window::Pieces;
use crate::error::{Result, invalid_handle};
use crate::mapper::Teardown;
use crate::memory::buffer::Buffer;
use crate::memory::paged::Paged;

/// How far an allocation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    InFlight,
    Finalizing,
    Finalized,
    Deallocating,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::InFlight => "still in flight",
            State::Finalizing => "being finalized",
            State::Finalized => "finalized already",
            State::Deallocating => "being deallocated",
        }
    }
}

/// An allocation.
pub(super) struct Record {
    pub(super) state: State,
    pub(super) pieces: Pieces,
    /// What is left to do when it goes. In flight there is nothing but a reservation of its own.
    pub(super) teardown: Option<Box<Teardown>>,
    /// Working memory of copied pieces, in the order of `pieces` or of its reservation; none if there
    /// are none.
    pub(super) buffers: Option<Box<Buffers>>,
    /// 0 if its window need not be remembered.
    pub(super) dylib: u64,
    /// Grows with each finalize, so that what is left at the end goes last to first.
    pub(super) order: u64,
}

/// Working memory by piece.
pub(super) type Buffers = Vec<Option<Box<Buffer>>>;

/// Which record: valid from [`Records::insert`] to [`Records::remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(u32);

#[derive(Default)]
struct Slot {
    /// Odd while the slot is used; grows with each use and each end of it.
    generation: u32,
    record: Option<Record>,
    next_vacant: Option<u32>,
}

/// The records. A handle is slot and generation, mixed with a number of the manager, so that a
/// handle of another manager or another time is told from a good one.
pub(super) struct Records {
    slots: Paged<Slot, 128>,
    vacant: Option<u32>,
    cookie: u64,
}

impl Records {
    pub(super) fn new(random: u64) -> Records {
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
    pub(super) fn insert(&mut self, record: Record) -> (Key, u64) {
        let index = match self.vacant {
            Some(index) => {
                let slot = &mut self.slots[index];
                self.vacant = slot.next_vacant.take();
                slot.generation = slot.generation.wrapping_add(1) & (u32::MAX >> 1);
                slot.record = Some(record);
                index
            }
            None => {
                let slot = Slot {
                    generation: 1,
                    record: Some(record),
                    next_vacant: None,
                };
                self.slots.push(slot)
            }
        };
        let plain = u64::from(self.slots[index].generation) << 32 | u64::from(index);
        (Key(index), plain ^ self.cookie)
    }

    /// The allocation of this handle, which must be in `state`.
    pub(super) fn find(&mut self, handle: u64, state: State) -> Result<(Key, &mut Record)> {
        let plain = handle ^ self.cookie;
        let (generation, index) = ((plain >> 32) as u32, plain as u32);
        let slot = self
            .slots
            .get_mut(index)
            .filter(|slot| slot.generation == generation);
        match slot.and_then(|slot| slot.record.as_mut()) {
            Some(record) if record.state == state => Ok((Key(index), record)),
            Some(record) => Err(invalid_handle(format!(
                "allocation {handle:#x} is {}",
                record.state.name()
            ))),
            None => Err(invalid_handle(format!(
                "allocation {handle:#x} is not live in this manager: it was deallocated, \
                 abandoned or failed before, or is another manager's"
            ))),
        }
    }

    /// A record that is there.
    pub(super) fn get(&mut self, key: Key) -> &mut Record {
        self.slots[key.0]
            .record
            .as_mut()
            .expect("a key is valid until its record is removed")
    }

    /// Takes a record out; its handle is no more.
    pub(super) fn remove(&mut self, key: Key) -> Record {
        let slot = &mut self.slots[key.0];
        slot.generation = slot.generation.wrapping_add(1) & (u32::MAX >> 1);
        slot.next_vacant = self.vacant.replace(key.0);
        slot.record
            .take()
            .expect("a key is valid until its record is removed")
    }

    /// All records.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.slots.iter().filter_map(|slot| slot.record.as_ref())
    }

    /// Takes all records out, at the end of the manager.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Record> {
        self.slots.iter_mut().filter_map(|slot| slot.record.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            state: State::InFlight,
            pieces: Pieces::new(),
            teardown: None,
            buffers: None,
            dylib: 0,
            order: 0,
        }
    }

    #[test]
    fn a_handle_is_good_for_one_life_in_one_manager() {
        for random in [0, u64::MAX, 0x1234_5678_9abc_def0] {
            let mut records = Records::new(random);
            let (key, first) = records.insert(record());
            assert!(records.find(first, State::InFlight).is_ok());
            assert!(records.find(first, State::Finalized).is_err());
            records.remove(key);
            assert!(records.find(first, State::InFlight).is_err());
            let (again, second) = records.insert(record());
            assert_eq!(again, key, "slots are used again");
            assert_ne!(first, second);
            assert!(records.find(first, State::InFlight).is_err());
            let mut other = Records::new(!random);
            let (_, foreign) = other.insert(record());
            assert!(records.find(foreign, State::InFlight).is_err());
            for handle in [first, second, foreign] {
                assert!(handle != 0 && handle != u64::MAX);
            }
            assert_eq!(records.iter().count(), 1);
        }
    }
}
