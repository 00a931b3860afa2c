// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The free-range structure: hands out ranges of any alignment inside regions.
//!
//! Two-level segregated fit (Masmano et al., "TLSF: a new dynamic memory allocator for real-time
//! systems", 2004) with its records kept outside the memory that it divides, because that memory
//! belongs to the executor. Allocating and freeing take constant time. A region is one chunk;
//! neighbours coalesce inside a region and never across two.

use super::paged::Paged;

/// Second-level bins per power of two: a range is at most 1/16 larger than its bin says.
const SUBDIVISION_BITS: u32 = 4;
const SUBDIVISIONS: u32 = 1 << SUBDIVISION_BITS;
/// First-level rows for all sizes of 32 bits.
const ROWS: usize = (33 - SUBDIVISION_BITS) as usize;
const NONE: u32 = u32::MAX;

/// A handed-out range; valid until it is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RangeId(u32);

/// Identifies a region; given by the caller.
pub(crate) type RegionId = u32;

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum State {
    Free,
    Used,
    /// The record itself is unused.
    #[default]
    Vacant,
}

#[derive(Clone, Copy, Default, Debug)]
struct Node {
    start: u32,
    size: u32,
    region: RegionId,
    /// Neighbours by address in the same region.
    before: u32,
    after: u32,
    /// Neighbours in the bin's list, or in the list of vacant records.
    previous: u32,
    next: u32,
    state: State,
}

impl Node {
    fn end(&self) -> u32 {
        self.start + self.size
    }
}

/// A range just handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handed {
    pub(crate) id: RangeId,
    pub(crate) region: RegionId,
    pub(crate) start: u32,
    pub(crate) size: u32,
}

/// Free and handed-out ranges of many regions.
#[derive(Debug)]
pub(crate) struct Ranges {
    granule: u32,
    nodes: Paged<Node, 256>,
    vacant: u32,
    rows: u32,
    columns: [u16; ROWS],
    heads: [[u32; SUBDIVISIONS as usize]; ROWS],
    free: u64,
}

/// Row and column of the bin that holds ranges of `size`.
fn bin(size: u32) -> (usize, usize) {
    if size < SUBDIVISIONS {
        return (0, size as usize);
    }
    let top = 31 - size.leading_zeros();
    let column = (size >> (top - SUBDIVISION_BITS)) - SUBDIVISIONS;
    ((top - SUBDIVISION_BITS + 1) as usize, column as usize)
}

/// The smallest size whose bin holds only ranges of at least `size`.
fn round_up_to_bin(size: u32) -> Option<u32> {
    if size < SUBDIVISIONS {
        return Some(size);
    }
    let top = 31 - size.leading_zeros();
    size.checked_add((1 << (top - SUBDIVISION_BITS)) - 1)
}

impl Ranges {
    /// No regions yet; every range starts at and spans multiples of `granule`, a power of two.
    pub(crate) fn new(granule: u32) -> Ranges {
        debug_assert!(granule.is_power_of_two());
        Ranges {
            granule,
            nodes: Paged::new(),
            vacant: NONE,
            rows: 0,
            columns: [0; ROWS],
            heads: [[NONE; SUBDIVISIONS as usize]; ROWS],
            free: 0,
        }
    }

    /// Bytes that are in regions and not handed out.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.free
    }

    /// Makes sure that `count` more ranges can be noted; `false` if the heap is full.
    pub(crate) fn make_spare(&mut self, count: u32) -> bool {
        self.nodes.make_spare(count)
    }

    /// Adds a region whose bytes are all free; `start` and `size` are multiples of the granule.
    pub(crate) fn add_region(&mut self, region: RegionId, start: u32, size: u32) {
        debug_assert!(start % self.granule == 0 && size % self.granule == 0 && size > 0);
        let node = Node {
            start,
            size,
            region,
            before: NONE,
            after: NONE,
            previous: NONE,
            next: NONE,
            state: State::Free,
        };
        let index = self.new_node(node);
        self.insert(index);
        self.free += u64::from(size);
    }

    /// A range of at least `size` bytes aligned to `alignment` (a power of two), or `None`. In
    /// constant time, so it may miss a range that fits when nearly all is handed out.
    pub(crate) fn allocate(&mut self, size: u32, alignment: u32) -> Option<Handed> {
        let size = self.rounded(size)?;
        let slack = alignment.max(self.granule) - self.granule;
        let index = match self.find_fitting(size.checked_add(slack)?) {
            Some(index) => index,
            // A range that is aligned by luck needs no slack.
            None if slack > 0 => self.find_aligned(size, alignment)?,
            None => return None,
        };
        Some(self.hand_out(index, size, alignment))
    }

    /// [`Ranges::allocate`] that looks at every free range.
    pub(crate) fn allocate_thoroughly(&mut self, size: u32, alignment: u32) -> Option<Handed> {
        let size = self.rounded(size)?;
        let (first_row, first_column) = bin(size);
        let bins = (0..ROWS).flat_map(|row| (0..SUBDIVISIONS as usize).map(move |c| (row, c)));
        for (row, column) in bins.filter(|bin| *bin >= (first_row, first_column)) {
            let mut index = self.heads[row][column];
            while index != NONE {
                if self.fits(index, size, alignment) {
                    return Some(self.hand_out(index, size, alignment));
                }
                index = self.node(index).next;
            }
        }
        None
    }

    /// Hands out free ranges of at least `least` bytes as a whole, those that `accept` wants, at
    /// most `most` of them. `below` says where to go on, and is none once all were looked at.
    pub(crate) fn take_whole(
        &mut self,
        below: &mut Option<usize>,
        least: u32,
        most: usize,
        mut accept: impl FnMut(RegionId, u32, u32) -> bool,
        out: &mut Vec<Handed>,
    ) {
        let last = bin(least);
        let mut looked_at = 0;
        while let Some(number) = *below {
            let here = (
                number / SUBDIVISIONS as usize,
                number % SUBDIVISIONS as usize,
            );
            let mut index = self.heads[here.0][here.1];
            while index != NONE && out.len() < most {
                let node = *self.node(index);
                looked_at += 1;
                if node.size >= least && accept(node.region, node.start, node.size) {
                    out.push(self.hand_out(index, node.size, 1));
                }
                index = node.next;
            }
            if index != NONE {
                return;
            }
            *below = number.checked_sub(1).filter(|_| here > last);
            if !out.is_empty() || looked_at >= most {
                return;
            }
        }
    }

    /// Where [`Ranges::take_whole`] begins: at the largest.
    pub(crate) const LARGEST: Option<usize> = Some(ROWS * SUBDIVISIONS as usize - 1);

    fn rounded(&self, size: u32) -> Option<u32> {
        Some(size.max(1).checked_add(self.granule - 1)? & !(self.granule - 1))
    }

    /// Whether a free range holds `size` bytes from an aligned address.
    fn fits(&self, index: u32, size: u32, alignment: u32) -> bool {
        let node = self.node(index);
        let mask = u64::from(alignment.max(1)) - 1;
        let start = (u64::from(node.start) + mask) & !mask;
        start + u64::from(size) <= u64::from(node.end())
    }

    /// Takes `size` bytes out of a free range that fits.
    #[inline(always)] // 4 % of allocate and finalize
    fn hand_out(&mut self, index: u32, size: u32, alignment: u32) -> Handed {
        let hole = *self.node(index);
        let start = hole.start.next_multiple_of(alignment.max(1));
        let (front, back) = (start - hole.start, hole.end() - (start + size));
        let used = Node {
            start,
            size,
            state: State::Used,
            ..hole
        };
        // What is left of the hole keeps its record, most often even its bin.
        let id = match (front, back) {
            (0, 0) => {
                self.remove(index);
                self.nodes[index].state = State::Used;
                index
            }
            (0, _) => {
                let id = self.new_node(Node {
                    after: index,
                    ..used
                });
                self.link(hole.before, id);
                self.nodes[index].before = id;
                self.reshape(index, start + size, back);
                id
            }
            (_, 0) => {
                let id = self.new_node(Node {
                    before: index,
                    ..used
                });
                self.link(id, hole.after);
                self.nodes[index].after = id;
                self.reshape(index, hole.start, front);
                id
            }
            (_, _) => {
                let id = self.new_node(Node {
                    before: index,
                    ..used
                });
                let rest = Node {
                    start: start + size,
                    size: back,
                    before: id,
                    ..hole
                };
                let rest = self.new_node(rest);
                self.link(id, rest);
                self.link(rest, hole.after);
                self.nodes[index].after = id;
                self.insert(rest);
                self.reshape(index, hole.start, front);
                id
            }
        };
        self.free -= u64::from(size);
        Handed {
            id: RangeId(id),
            region: hole.region,
            start,
            size,
        }
    }

    /// A range that is handed out.
    pub(crate) fn get(&self, id: RangeId) -> Handed {
        let node = self.node(id.0);
        debug_assert_eq!(node.state, State::Used);
        Handed {
            id,
            region: node.region,
            start: node.start,
            size: node.size,
        }
    }

    /// What is noted of a range, to be fetched into a cache before it is needed.
    pub(crate) fn noted(&self, id: RangeId) -> &impl Sized {
        self.node(id.0)
    }

    /// Takes a range back, joins it with free neighbours, and says what it was.
    pub(crate) fn free(&mut self, id: RangeId) -> Handed {
        let index = id.0;
        let node = *self.node(index);
        debug_assert_eq!(node.state, State::Used);
        self.free += u64::from(node.size);
        match (self.is_free(node.before), self.is_free(node.after)) {
            (false, false) => {
                self.insert(index);
            }
            (true, false) => {
                let before = *self.node(node.before);
                self.link(node.before, node.after);
                self.reshape(node.before, before.start, before.size + node.size);
                self.retire(index);
            }
            (false, true) => {
                let after = *self.node(node.after);
                self.link(node.before, node.after);
                self.reshape(node.after, node.start, node.size + after.size);
                self.retire(index);
            }
            (true, true) => {
                let (before, after) = (*self.node(node.before), *self.node(node.after));
                self.remove(node.after);
                self.link(node.before, after.after);
                let size = before.size + node.size + after.size;
                self.reshape(node.before, before.start, size);
                self.retire(index);
                self.retire(node.after);
            }
        }
        Handed {
            id,
            region: node.region,
            start: node.start,
            size: node.size,
        }
    }

    /// Removes a region that is free as a whole; `start` is where it was added.
    pub(crate) fn remove_region(&mut self, start: u32, size: u32) -> bool {
        let (row, column) = bin(size);
        let mut index = self.heads[row][column];
        while index != NONE {
            let node = *self.node(index);
            if node.start == start && node.size == size {
                self.remove(index);
                self.free -= u64::from(size);
                self.retire(index);
                return true;
            }
            index = node.next;
        }
        false
    }

    fn node(&self, index: u32) -> &Node {
        &self.nodes[index]
    }

    fn is_free(&self, index: u32) -> bool {
        index != NONE && self.node(index).state == State::Free
    }

    /// Makes two records neighbours by address; either may be none.
    fn link(&mut self, before: u32, after: u32) {
        if before != NONE {
            self.nodes[before].after = after;
        }
        if after != NONE {
            self.nodes[after].before = before;
        }
    }

    /// Changes the extent of a free range, and its bin if its size asks for another.
    fn reshape(&mut self, index: u32, start: u32, size: u32) {
        let stays = bin(self.node(index).size) == bin(size);
        if !stays {
            self.remove(index);
        }
        let node = &mut self.nodes[index];
        (node.start, node.size) = (start, size);
        if !stays {
            self.insert(index);
        }
    }

    fn new_node(&mut self, node: Node) -> u32 {
        match self.vacant {
            NONE => self.nodes.push(node),
            index => {
                self.vacant = self.node(index).next;
                self.nodes[index] = node;
                index
            }
        }
    }

    fn retire(&mut self, index: u32) {
        let vacant = self.vacant;
        let node = &mut self.nodes[index];
        node.state = State::Vacant;
        node.next = vacant;
        self.vacant = index;
    }

    /// A free range of at least `size`.
    fn find_fitting(&self, size: u32) -> Option<u32> {
        let (row, column) = bin(round_up_to_bin(size)?);
        self.first_at_or_above(row, column).or_else(|| {
            // Only the bin of `size` itself may still hold one that is large enough; look at its
            // first few so that a nearly full window is used up.
            let (row, column) = bin(size);
            let mut index = self.heads[row][column];
            for _ in 0..8 {
                if index == NONE {
                    return None;
                }
                if self.node(index).size >= size {
                    return Some(index);
                }
                index = self.node(index).next;
            }
            None
        })
    }

    /// A free range that holds `size` bytes from an aligned address, if one of the first few
    /// candidates does.
    fn find_aligned(&self, size: u32, alignment: u32) -> Option<u32> {
        let (mut row, mut column) = bin(size);
        for _ in 0..8 {
            let index = self.first_at_or_above(row, column)?;
            if self.fits(index, size, alignment) {
                return Some(index);
            }
            (row, column) = bin(self.node(index).size);
            column += 1;
        }
        None
    }

    fn first_at_or_above(&self, row: usize, column: usize) -> Option<u32> {
        if row >= ROWS {
            return None;
        }
        let here = if column < 16 {
            self.columns[row] & (u16::MAX << column)
        } else {
            0
        };
        let (row, columns) = if here != 0 {
            (row, here)
        } else {
            let above = if row + 1 < 32 {
                self.rows & (u32::MAX << (row + 1))
            } else {
                0
            };
            if above == 0 {
                return None;
            }
            let row = above.trailing_zeros() as usize;
            (row, self.columns[row])
        };
        Some(self.heads[row][columns.trailing_zeros() as usize])
    }

    fn insert(&mut self, index: u32) {
        let (row, column) = bin(self.node(index).size);
        let head = self.heads[row][column];
        let node = &mut self.nodes[index];
        node.state = State::Free;
        node.previous = NONE;
        node.next = head;
        if head != NONE {
            self.nodes[head].previous = index;
        }
        self.heads[row][column] = index;
        self.columns[row] |= 1 << column;
        self.rows |= 1 << row;
    }

    fn remove(&mut self, index: u32) {
        let node = *self.node(index);
        let (row, column) = bin(node.size);
        if node.next != NONE {
            self.nodes[node.next].previous = node.previous;
        }
        if node.previous != NONE {
            self.nodes[node.previous].next = node.next;
        } else {
            self.heads[row][column] = node.next;
            if node.next == NONE {
                self.columns[row] &= !(1 << column);
                if self.columns[row] == 0 {
                    self.rows &= !(1 << row);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn bins_are_monotone_and_rounding_is_sound() {
        // Fewer for Miri, as below.
        let (most, beyond) = if cfg!(miri) {
            (1000, 10)
        } else {
            (100_000, 1000)
        };
        let mut last = (0, 0);
        for size in (0..most).chain((1 << 30)..(1 << 30) + beyond) {
            let here = bin(size);
            assert!(here >= last);
            last = here;
            let rounded = round_up_to_bin(size).unwrap();
            // Everything in the rounded bin is large enough.
            assert!(bin(rounded) >= bin(size));
            if size > 0 && bin(size - 1) == bin(rounded) {
                panic!("bin of {size} also holds {}", size - 1);
            }
        }
        assert!(bin(u32::MAX).0 < ROWS);
    }

    #[test]
    fn a_monotone_load_is_dense() {
        let mut ranges = Ranges::new(16);
        ranges.add_region(7, 0x1000, 0x1000);
        for step in 0..256 {
            let handed = ranges.allocate(16, 1).unwrap();
            assert_eq!((handed.start, handed.region), (0x1000 + step * 16, 7));
        }
        assert!(ranges.allocate(1, 1).is_none());
        assert_eq!(ranges.free_bytes(), 0);
    }

    #[test]
    fn a_region_of_exactly_the_size_serves_it() {
        for size in [16u32, 0x1010, 0xfff0, 0x12340] {
            let mut ranges = Ranges::new(16);
            ranges.add_region(0, 0, size);
            let id = ranges.allocate(size, 16).unwrap().id;
            assert_eq!(ranges.free(id).size, size);
            assert!(ranges.remove_region(0, size));
            assert!(ranges.allocate(1, 1).is_none());
        }
    }

    #[test]
    fn alignment_above_the_region_size_needs_luck() {
        let mut ranges = Ranges::new(16);
        ranges.add_region(0, 0x10000, 0x1000);
        assert_eq!(ranges.allocate(0x800, 0x10000).unwrap().start, 0x10000);
        assert!(ranges.allocate(16, 0x10000).is_none());
        assert_eq!(ranges.free_bytes(), 0x800);
    }

    #[test]
    fn a_thorough_search_finds_what_a_fast_one_misses() {
        let mut ranges = Ranges::new(16);
        ranges.add_region(0, 0, 0x10000);
        let fits = ranges.allocate(1072, 16).unwrap();
        ranges.allocate(16, 16).unwrap();
        let small: Vec<Handed> = (0..9)
            .map(|_| {
                let handed = ranges.allocate(1024, 16).unwrap();
                ranges.allocate(16, 16).unwrap();
                handed
            })
            .collect();
        while ranges.allocate(16, 16).is_some() {}
        ranges.free(fits.id);
        for handed in &small {
            ranges.free(handed.id);
        }
        assert_eq!(
            ranges.allocate(1072, 16),
            None,
            "else the test shows nothing"
        );
        assert_eq!(
            ranges.allocate_thoroughly(1072, 16).unwrap().start,
            fits.start
        );
        assert_eq!(ranges.allocate_thoroughly(1072, 16), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate(u32, u32),
        Free(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1u32..3000, 0u32..14).prop_map(|(size, shift)| Step::Allocate(size, 1 << shift)),
            2 => any::<usize>().prop_map(Step::Free),
        ]
    }

    /// Miri takes a hundred times as long for each.
    const MOST_STEPS: usize = if cfg!(miri) { 20 } else { 400 };

    proptest! {
        #[test]
        fn ranges_never_overlap_and_all_come_back(
            granule_shift in 0u32..13,
            steps in proptest::collection::vec(step(), 1..MOST_STEPS),
        ) {
            let granule = 1 << granule_shift;
            let regions = [(0u32, 0x10000u32), (0x10000, 0x8000), (0x40000, 0x20000)];
            let mut ranges = Ranges::new(granule);
            for (id, (start, size)) in regions.into_iter().enumerate() {
                ranges.add_region(id as u32, start, size);
            }
            let total: u64 = regions.iter().map(|(_, size)| u64::from(*size)).sum();
            let mut live: BTreeMap<u32, Handed> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Allocate(size, alignment) => {
                        let Some(handed) = ranges.allocate(size, alignment) else { continue };
                        prop_assert!(handed.size >= size && handed.size - size < granule);
                        prop_assert_eq!(handed.start % alignment, 0);
                        prop_assert_eq!(handed.start % granule, 0);
                        let (start, length) = regions[handed.region as usize];
                        prop_assert!(handed.start >= start);
                        prop_assert!(handed.start + handed.size <= start + length);
                        if let Some((_, below)) = live.range(..handed.start).next_back() {
                            prop_assert!(below.start + below.size <= handed.start);
                        }
                        if let Some((next, _)) = live.range(handed.start..).next() {
                            prop_assert!(handed.start + handed.size <= *next);
                        }
                        live.insert(handed.start, handed);
                    }
                    Step::Free(pick) => {
                        if live.is_empty() { continue }
                        let key = *live.keys().nth(pick % live.len()).unwrap();
                        let handed = live.remove(&key).unwrap();
                        prop_assert_eq!(ranges.free(handed.id), handed);
                    }
                }
                let used: u64 = live.values().map(|handed| u64::from(handed.size)).sum();
                prop_assert_eq!(ranges.free_bytes(), total - used);
            }
            for handed in live.values() {
                ranges.free(handed.id);
            }
            for (start, size) in regions {
                prop_assert!(ranges.remove_region(start, size));
            }
            prop_assert_eq!(ranges.free_bytes(), 0);
        }
    }
}
