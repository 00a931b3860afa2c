// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Where the segments of reservations lie, for look-ups without a lock.
//!
//! These are addresses of an executor that reserves memory for each allocation by a call, so no crash
//! handler of this process is in a hurry for them: a table that is looked through does.

use super::lookup::{Location, ManagerReader};
use super::space::{heap_is_full, no_pages};
use crate::error::Result;
use crate::group::{AllocGroup, Lifetime, Protection};
use crate::memory::words::Words;
use crate::page::AddressRange;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::atomic::fence;

/// Words of a segment: its slot plus one, or 0; start; size, protection and lifetime; JITDylib.
const SLOT: usize = 0;
const START: usize = 1;
const SIZE: usize = 2;
const DYLIB: usize = 3;
const WORDS: usize = 4;
/// What changes under the eyes of a reader is looked at so often.
const TRIES: usize = 4;

/// All segments of a manager.
#[derive(Default)]
pub(super) struct Places {
    words: Arc<Words>,
    begun: u32,
    /// Below `begun`, those without a segment.
    vacant: Vec<u32>,
}

impl Places {
    /// Makes sure that `count` more segments can be added, and removed.
    pub(super) fn make_spare(&mut self, count: usize) -> Result<()> {
        let all = self.begun as usize + count;
        self.words.make_room(all * WORDS).map_err(no_pages)?;
        let missing = all.saturating_sub(self.vacant.len());
        self.vacant.try_reserve(missing).map_err(|_| heap_is_full())
    }

    /// Adds a segment of the allocation in a slot, and gives its number; after [`Places::make_spare`].
    pub(super) fn add(
        &mut self,
        range: AddressRange,
        group: AllocGroup,
        slot: u32,
        dylib: u64,
    ) -> u32 {
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.begun += 1;
            self.begun - 1
        });
        let protection = u64::from(group.protection.bits());
        let lifetime = group.lifetime as u64;
        self.set(place, START, range.start());
        self.set(
            place,
            SIZE,
            range.size() | protection << 32 | lifetime << 40,
        );
        self.set(place, DYLIB, dylib);
        self.set(place, SLOT, u64::from(slot) + 1);
        place
    }

    pub(super) fn remove(&mut self, place: u32) {
        self.set(place, SLOT, 0);
        self.vacant.push(place);
    }

    fn set(&self, place: u32, word: usize, value: u64) {
        if let Some(word) = self.words.used(place as usize * WORDS + word) {
            word.store(value, Release);
            // What is stored next is seen after it.
            fence(Release);
        }
    }

    pub(super) fn reader(&self) -> ReservationsReader {
        ReservationsReader(Arc::clone(&self.words))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.words.resident_bytes() + (self.vacant.capacity() * size_of::<u32>()) as u64
    }
}

/// What look-ups have of the segments.
#[derive(Clone, Default)]
pub(super) struct ReservationsReader(Arc<Words>);

impl ReservationsReader {
    /// The allocation that an address of the executor lies in.
    pub(super) fn find(&self, manager: &ManagerReader, address: u64) -> Option<Location> {
        let places = 0..self.0.count() / WORDS;
        places.into_iter().find_map(|place| {
            let inside = address.checked_sub(self.read(place)?[START])?;
            (inside < self.read(place)?[SIZE] & u64::from(u32::MAX)).then_some(())?;
            self.look(manager, address, place)
        })
    }

    fn read(&self, place: usize) -> Option<[u64; WORDS]> {
        let word = |word: usize| Some(self.0.get(place * WORDS + word)?.load(Acquire));
        Some([word(SLOT)?, word(START)?, word(SIZE)?, word(DYLIB)?])
    }

    fn look(&self, manager: &ManagerReader, address: u64, place: usize) -> Option<Location> {
        for _ in 0..TRIES {
            let words = self.read(place)?;
            let slot = u32::try_from(words[SLOT].checked_sub(1)?).ok()?;
            let range = AddressRange::new(words[START], words[SIZE] & u64::from(u32::MAX))?;
            if address.checked_sub(range.start())? >= range.size() {
                return None;
            }
            let protection = Protection::checked((words[SIZE] >> 32) as u32 & 7)?;
            let lifetime = match words[SIZE] >> 40 == Lifetime::Finalize as u64 {
                true => Lifetime::Finalize,
                false => Lifetime::Standard,
            };
            let Some(life) = manager.records().life(slot) else {
                continue;
            };
            fence(Acquire);
            let same = self.read(place) == Some(words);
            if same && manager.records().life(slot) == Some(life) {
                let group = AllocGroup::new(protection, lifetime);
                return Some(manager.location(range, group, life, words[DYLIB]));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::records::Records;

    #[test]
    fn segments_are_found_from_first_to_last_byte_and_their_places_serve_again() {
        let mut records: Records<()> = Records::new(5);
        let manager = ManagerReader::new(false, records.reader());
        let mut places = Places::default();
        let reader = places.reader();
        for round in 0..3 {
            records.make_spare(0).unwrap();
            let (key, handle) = records.insert(0, 0, false, |_| ());
            places.make_spare(2).unwrap();
            let code = AllocGroup::from(Protection::READ_EXEC);
            let served = AllocGroup::new(Protection::READ, Lifetime::Finalize);
            let range = |start| AddressRange::new(start, 0x100).unwrap();
            let first = places.add(range(0x1000), code, key.number(), round);
            let second = places.add(range(0xffff_ffff_0000_0000), served, key.number(), round);
            let found = |address| reader.find(&manager, address);
            for (address, group) in [
                (0x1000, Some(code)),
                (0x10ff, Some(code)),
                (0xfff, None),
                (0x1100, None),
                (0xffff_ffff_0000_0080, Some(served)),
                (0, None),
                (u64::MAX, None),
            ] {
                let location = found(address);
                assert_eq!(location.map(|found| found.group()), group, "{address:#x}");
                if let Some(location) = location {
                    assert_eq!(location.allocation().unwrap().0, handle);
                    assert_eq!(location.dylib().0, round);
                }
            }
            places.remove(first);
            places.remove(second);
            assert_eq!(found(0x1000), None);
            records.remove(key);
            assert_eq!(places.begun, 2);
        }
    }
}
