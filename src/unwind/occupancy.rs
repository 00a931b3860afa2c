// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which pages of an index name functions, so that the others can be given back.

use crate::memory::words::Words;
use crate::page::AddressRange;
use crate::sys::page_size;
use smallvec::SmallVec;
use std::io;
use std::sync::atomic::Ordering::Relaxed;

/// So many pages without functions are kept, for code that comes back at once.
const KEPT: usize = 16;

/// How many functions each page of an index names. What changes it holds the lock of its owner.
pub(crate) struct Occupancy {
    counts: Words,
    /// Pages that name none since a while, the oldest first.
    empty: SmallVec<[usize; KEPT + 1]>,
}

fn page_of(offset: u64) -> usize {
    (offset / page_size().bytes()) as usize
}

impl Occupancy {
    /// For an index of `size` bytes.
    pub(crate) fn new(size: u64) -> io::Result<Occupancy> {
        let counts = Words::new();
        counts.make_room(page_of(size) + 1)?;
        Ok(Occupancy {
            counts,
            empty: SmallVec::new(),
        })
    }

    fn count(&self, page: usize) -> &std::sync::atomic::AtomicU64 {
        self.counts.get(page).expect("the index has such a page")
    }

    /// Functions are about to be named at these offsets.
    pub(crate) fn add(&mut self, offsets: impl Iterator<Item = u64>) {
        for offset in offsets {
            self.count(page_of(offset)).fetch_add(1, Relaxed);
        }
    }

    /// Functions are named at these offsets no more. Gives the bytes of the index that are to be given back.
    #[must_use]
    pub(crate) fn remove(
        &mut self,
        offsets: impl Iterator<Item = u64>,
    ) -> SmallVec<[AddressRange; 1]> {
        let mut idle = SmallVec::new();
        for offset in offsets {
            let page = page_of(offset);
            if self.count(page).fetch_sub(1, Relaxed) != 1 || self.empty.contains(&page) {
                continue;
            }
            self.empty.push(page);
            if self.empty.len() > KEPT {
                let oldest = self.empty.remove(0);
                if self.is_empty(oldest) {
                    let bytes = page_size().bytes();
                    idle.extend(AddressRange::new(oldest as u64 * bytes, bytes));
                }
            }
        }
        idle
    }

    fn is_empty(&self, page: usize) -> bool {
        self.count(page).load(Relaxed) == 0
    }

    /// Whether the page of an offset names a function.
    pub(crate) fn names_any(&self, offset: u64) -> bool {
        !self.is_empty(page_of(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_given_back_when_others_have_become_idle_since() {
        let page = page_size().bytes();
        let mut occupancy = Occupancy::new(100 * page).unwrap();
        let one = |number: u64| std::iter::once(number * page);
        occupancy.add((0..40).map(|number| number * page));
        occupancy.add(one(1));
        let mut idle = Vec::new();
        for number in 0..40 {
            idle.extend(occupancy.remove(one(number)));
        }
        let numbers: Vec<u64> = idle.iter().map(|bytes| bytes.start() / page).collect();
        // Page 1 is still used, and the last ones are kept.
        let expected = (0..40 - KEPT as u64).filter(|number| *number != 1);
        assert_eq!(numbers, expected.collect::<Vec<u64>>());
        assert!(occupancy.names_any(page) && !occupancy.names_any(0));
        // What is used again meanwhile stays.
        occupancy.add(one(39));
        for number in 50..50 + KEPT as u64 + 2 {
            occupancy.add(one(number));
            idle.extend(occupancy.remove(one(number)));
        }
        assert!(!idle.contains(&AddressRange::new(39 * page, page).unwrap()));
    }
}
