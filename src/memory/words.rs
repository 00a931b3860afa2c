// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Numbers by index that are read without a lock: they never move, and their memory stays mapped as long
//! as the table.

use crate::sys::{Pages, page_size};
use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Words of the first part of a table; each further one has as many as all before.
const FIRST_PART: usize = 512;
/// As many as there are for two words for each record of a [`super::paged::Paged`].
const PARTS: usize = 18;

/// A table of words that grows; zero until they are written. What adds to it holds the lock of its owner.
#[derive(Debug)]
pub(crate) struct Words {
    parts: [OnceLock<Pages>; PARTS],
    /// How many were written, from the first on.
    used: AtomicUsize,
}

/// The part that a word is in, and the first and the number of its words.
fn part_of(index: usize) -> (usize, usize, usize) {
    match index / FIRST_PART {
        0 => (0, 0, FIRST_PART),
        multiple => {
            let power = multiple.ilog2() as usize;
            let first = FIRST_PART << power;
            (power + 1, first, first)
        }
    }
}

impl Default for Words {
    fn default() -> Self {
        Words::new()
    }
}

impl Words {
    pub(crate) const fn new() -> Words {
        Words {
            parts: [const { OnceLock::new() }; PARTS],
            used: AtomicUsize::new(0),
        }
    }

    /// Makes sure that the first `count` words are there.
    pub(crate) fn make_room(&self, count: usize) -> io::Result<()> {
        let (last, ..) = part_of(count.saturating_sub(1));
        for part in 0..=last {
            let Some(place) = self.parts.get(part) else {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            };
            if place.get().is_none() {
                let count = FIRST_PART << part.saturating_sub(1);
                let pages = Pages::new(whole_pages(count * size_of::<AtomicU64>()))?;
                let added = place.set(pages).is_ok();
                debug_assert!(added, "one thread changes the table");
            }
        }
        Ok(())
    }

    /// A word, if it is there. Needs no lock.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&AtomicU64> {
        let (part, first, count) = part_of(index);
        let pages = self.parts.get(part)?.get()?;
        let words = pages.pointer().cast::<AtomicU64>();
        let offset = index - first;
        debug_assert!(offset < count);
        // SAFETY: the part has `count` words, which are zero or what was stored in them, and stays mapped
        // as long as the table, which the reference borrows.
        Some(unsafe { &*words.wrapping_add(offset) })
    }

    /// How many were written, from the first on, at most. Needs no lock.
    pub(crate) fn count(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// A word that is about to be written; after [`Words::make_room`].
    pub(crate) fn used(&self, index: usize) -> Option<&AtomicU64> {
        self.used.fetch_max(index + 1, Relaxed);
        self.get(index)
    }

    /// Bytes of the pages that were written, at most.
    pub(crate) fn resident_bytes(&self) -> u64 {
        whole_pages(self.used.load(Relaxed) * size_of::<AtomicU64>()) as u64
    }
}

#[inline]
fn whole_pages(bytes: usize) -> usize {
    bytes.next_multiple_of(page_size().bytes() as usize)
}

/// By 4 KiB of a window, the number of a node that lies there, or did. It is where a search begins and
/// nothing that is relied upon, so readers may write it too.
#[derive(Debug)]
pub(crate) struct PageIndex {
    /// `None` where there was no address space for it: every look goes the long way then.
    pages: Option<Pages>,
    /// What the first entry stands for.
    first: u32,
    count: u32,
}

/// What one entry stands for is 2 to this power.
const SHIFT: u32 = 12;
/// So many entries in front of an empty one are looked at.
const MOST_BACK: u32 = 256;

impl PageIndex {
    /// For `size` bytes from an offset on, which end below 4 GiB. Untouched parts take no memory.
    pub(crate) fn new(start: u64, size: u64) -> PageIndex {
        let first = start >> SHIFT;
        let count = ((start + size) >> SHIFT) - first + 1;
        let pages = Pages::new(whole_pages(count as usize * size_of::<AtomicU32>())).ok();
        PageIndex {
            first: first as u32,
            count: if pages.is_some() { count as u32 } else { 0 },
            pages,
        }
    }

    #[inline]
    fn entry(&self, place: u32) -> Option<&AtomicU32> {
        let place = place.wrapping_sub(self.first);
        let pages = self.pages.as_ref().filter(|_| place < self.count)?;
        let entries = pages.pointer().cast::<AtomicU32>();
        let place = place as usize;
        // SAFETY: it has `count` entries, which are zero or what was stored in them, and they stay mapped
        // as long as it, which the reference borrows.
        Some(unsafe { &*entries.wrapping_add(place) })
    }

    /// Notes that a node lies at an offset.
    pub(crate) fn note(&self, offset: u32, node: u32) {
        if let Some(entry) = self.entry(offset >> SHIFT) {
            entry.store(node.wrapping_add(1), Relaxed);
        }
    }

    /// Notes that a node lies at some offsets.
    #[cold]
    pub(crate) fn note_all(&self, offsets: Range<u32>, node: u32) {
        offsets
            .clone()
            .step_by(1 << SHIFT)
            .for_each(|offset| self.note(offset, node));
        self.note(offsets.end - 1, node);
    }

    /// Nodes that lie, or lay, at an offset or not far in front of it, the nearest first.
    pub(crate) fn near(&self, offset: u32) -> impl Iterator<Item = u32> {
        let here = offset >> SHIFT;
        let places = (here.saturating_sub(MOST_BACK)..=here).rev();
        places.filter_map(|place| self.entry(place)?.load(Relaxed).checked_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_where_they_are_and_are_zero_before() {
        let words = Words::new();
        assert!(words.get(0).is_none());
        words.make_room(1).unwrap();
        let first = std::ptr::from_ref(words.get(0).unwrap());
        for count in [513, 1024, 1025, 100_000] {
            words.make_room(count).unwrap();
            assert_eq!(words.get(count - 1).unwrap().load(Relaxed), 0);
            words.used(count - 1).unwrap().store(count as u64, Relaxed);
        }
        for count in [513, 1024, 1025, 100_000] {
            assert_eq!(words.get(count - 1).unwrap().load(Relaxed), count as u64);
        }
        assert_eq!(std::ptr::from_ref(words.get(0).unwrap()), first);
        assert!(words.get(1 << 30).is_none() && words.get(usize::MAX).is_none());
        assert!(words.make_room(1 << 30).is_err());
        assert!(words.resident_bytes() >= 800_000);
    }

    #[test]
    fn an_index_leads_to_what_lies_in_front() {
        let index = PageIndex::new(4096, 1 << 22);
        let near = |offset| index.near(offset).next();
        assert_eq!(near(8192), None);
        index.note(0, 9);
        index.note(8200, 7);
        assert_eq!(near(8192), Some(7));
        assert_eq!(near(20_000), Some(7));
        assert_eq!(near(8191), None);
        assert_eq!(near(3 << 20), None);
        index.note(u32::MAX, 1);
        assert_eq!(near(u32::MAX), None);
    }

    #[test]
    fn an_index_that_is_not_to_be_had_knows_nothing() {
        let _faults = crate::sys::fault::Faults::all_after(0, libc::ENOMEM);
        let index = PageIndex::new(0, 1 << 22);
        index.note(0, 1);
        assert_eq!(index.near(0).next(), None);
    }
}
