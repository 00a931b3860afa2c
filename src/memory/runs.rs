// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Runs of pages in a window: code from the bottom, data from the top.
//!
//! A window has few chunks (their number is bounded), so an ordered map and a linear walk are
//! all that it takes.

use crate::page::Alignment;
use std::collections::BTreeMap;

/// Which end of the window a run is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Bottom,
    Top,
}

/// The free runs of a window, by offset.
#[derive(Debug)]
pub(crate) struct Runs {
    free: BTreeMap<u64, u64>,
}

impl Runs {
    /// `size` bytes from `start` on, all free.
    pub(crate) fn new(start: u64, size: u64) -> Runs {
        Runs {
            free: BTreeMap::from([(start, size)]),
        }
    }

    /// Number of separate free runs: each is one mapping of reserved address space.
    pub(crate) fn count(&self) -> usize {
        self.free.len()
    }

    /// Size of the largest free run.
    pub(crate) fn largest(&self) -> u64 {
        self.free.values().copied().max().unwrap_or(0)
    }

    /// Takes `size` bytes at a multiple of `alignment`; the offset, or `None`.
    pub(crate) fn take(&mut self, size: u64, alignment: Alignment, from: From) -> Option<u64> {
        let fit = |(&start, &length): (&u64, &u64)| {
            let end = start + length;
            let offset = match from {
                From::Bottom => alignment.round_up(start)?,
                From::Top => alignment.round_down(end.checked_sub(size)?),
            };
            (offset >= start && offset.checked_add(size)? <= end).then_some((start, length, offset))
        };
        let (start, length, offset) = match from {
            From::Bottom => self.free.iter().find_map(fit)?,
            From::Top => self.free.iter().rev().find_map(fit)?,
        };
        self.free.remove(&start);
        if offset > start {
            self.free.insert(start, offset - start);
        }
        let (end, taken_end) = (start + length, offset + size);
        if taken_end < end {
            self.free.insert(taken_end, end - taken_end);
        }
        Some(offset)
    }

    /// Gives a run back.
    pub(crate) fn give(&mut self, offset: u64, size: u64) {
        let (mut start, mut end) = (offset, offset + size);
        if let Some((&before, &length)) = self.free.range(..offset).next_back() {
            debug_assert!(before + length <= offset);
            if before + length == offset {
                start = before;
            }
        }
        if let Some(&length) = self.free.get(&end) {
            self.free.remove(&end);
            end += length;
        }
        self.free.insert(start, end - start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: Alignment = Alignment::new(4096).unwrap();

    #[test]
    fn code_grows_up_and_data_grows_down() {
        let mut runs = Runs::new(0, 0x10000);
        assert_eq!(runs.take(0x1000, PAGE, From::Bottom), Some(0));
        assert_eq!(runs.take(0x1000, PAGE, From::Top), Some(0xf000));
        assert_eq!(runs.take(0x2000, PAGE, From::Bottom), Some(0x1000));
        assert_eq!(runs.take(0x2000, PAGE, From::Top), Some(0xd000));
        assert_eq!(runs.largest(), 0xa000);
        assert_eq!(runs.take(0xb000, PAGE, From::Top), None);
        assert_eq!(runs.take(u64::MAX, PAGE, From::Bottom), None);
        runs.give(0, 0x1000);
        assert_eq!(runs.count(), 2);
        runs.give(0x1000, 0x2000);
        assert_eq!((runs.count(), runs.largest()), (1, 0xd000));
    }

    /// Miri takes a hundred times as long for each.
    const MOST_STEPS: usize = if cfg!(miri) { 20 } else { 200 };

    proptest! {
        #[test]
        fn runs_never_overlap_and_all_come_back(
            steps in proptest::collection::vec((1u64..9, 0u32..6, any::<bool>(), any::<usize>()), 1..MOST_STEPS),
        ) {
            let size = 256 * 4096;
            let mut runs = Runs::new(0, size);
            let mut live: Vec<(u64, u64)> = Vec::new();
            for (pages, shift, top, pick) in steps {
                let alignment = Alignment::new(4096 << shift).unwrap();
                let from = if top { From::Top } else { From::Bottom };
                match runs.take(pages * 4096, alignment, from) {
                    Some(offset) => {
                        prop_assert!(alignment.divides(offset) && offset + pages * 4096 <= size);
                        for &(other, length) in &live {
                            prop_assert!(offset + pages * 4096 <= other || other + length <= offset);
                        }
                        live.push((offset, pages * 4096));
                    }
                    None if live.is_empty() => prop_assert!(false, "an empty window is full"),
                    None => {
                        let (offset, length) = live.swap_remove(pick % live.len());
                        runs.give(offset, length);
                    }
                }
            }
            for (offset, length) in live {
                runs.give(offset, length);
            }
            prop_assert_eq!((runs.count(), runs.largest()), (1, size));
        }
    }
}
