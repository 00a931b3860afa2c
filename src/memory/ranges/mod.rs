// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The free-range structure: hands out ranges of any alignment inside regions.
//!
//! Two-level segregated fit (Masmano et al., "TLSF: a new dynamic memory allocator for real-time
//! systems", 2004) with its records kept outside the memory that it divides, because that memory
//! belongs to the executor. Allocating and freeing take constant time. A region is one chunk;
//! neighbours coalesce inside a region and never across two.

mod bins;
mod nodes;

use bins::{BINS, Bins, bin, fitting_bin};
pub(crate) use nodes::{Chained, MOST_REGIONS, Nodes, Owner, RangeId, RegionId, Seen};
use nodes::{FLAG, KEPT_OUT, LAST, NONE, Node, REGION_BITS, USED};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};

/// A range just handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handed {
    pub(crate) id: RangeId,
    pub(crate) region: RegionId,
    pub(crate) start: u32,
    pub(crate) size: u32,
}

/// A range of a region.
pub(crate) enum RangeOf {
    Free { start: u32, size: u32 },
    Used(RangeId),
}

/// Free and handed-out ranges of many regions.
#[derive(Debug)]
pub(crate) struct Ranges {
    granule: u32,
    nodes: Arc<Nodes>,
    /// What handed-out nodes have in `state`, but for their region.
    used: u32,
    bins: Bins,
    free: u64,
}

/// Bytes of a handed-out range.
#[inline]
fn used_size(node: &Node, granule: u32) -> u32 {
    // It was rounded before without overflow.
    let size = node.extra.load(Relaxed).max(1);
    size.wrapping_add(granule - 1) & !(granule - 1)
}

impl Ranges {
    /// No regions yet; every range starts at and spans multiples of `granule`, a power of two. What is
    /// handed out is marked with `mark`, which has 22 bits.
    pub(crate) fn new(granule: u32, nodes: Arc<Nodes>, mark: u32) -> Ranges {
        debug_assert!(granule.is_power_of_two());
        debug_assert!(mark < (FLAG >> REGION_BITS));
        Ranges {
            granule,
            nodes,
            used: USED | mark << REGION_BITS,
            bins: Bins::new(granule),
            free: 0,
        }
    }

    /// Bytes that are in regions and not handed out.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.free
    }

    /// Adds a region whose bytes are all free; `start` and `size` are multiples of the granule. It takes
    /// one node, for which [`Nodes::make_spare`] was asked.
    pub(crate) fn add_region(&mut self, region: RegionId, start: u32, size: u32) {
        debug_assert!(start % self.granule == 0 && size % self.granule == 0 && size > 0);
        debug_assert!(region < MOST_REGIONS);
        let needed = self.bins.ends.len().max(region as usize + 1);
        self.bins.ends.resize(needed, 0);
        self.bins.ends[region as usize] = start + size;
        let (nodes, bins) = (&*self.nodes, &mut self.bins);
        let (index, node) = nodes.new_node(start, NONE, NONE);
        bins.firsts.resize(needed, NONE);
        bins.firsts[region as usize] = index;
        bins.insert(nodes, index, node, region, size);
        self.free += u64::from(size);
    }

    /// A range of at least `size` bytes aligned to `alignment` (a power of two), or `None`. In
    /// constant time, so it may miss a range that fits when nearly all is handed out.
    pub(crate) fn allocate(&mut self, size: u32, alignment: u32) -> Option<Handed> {
        let rounded = self.rounded(size)?;
        let slack = alignment.max(self.granule) - self.granule;
        let index = match self.find_fitting(rounded.checked_add(slack)?) {
            Some(index) => index,
            // A range that is aligned by luck needs no slack.
            None if slack > 0 => self.find_aligned(rounded, alignment)?,
            None => return None,
        };
        Some(self.hand_out(index, size, rounded, alignment))
    }

    /// [`Ranges::allocate`] that looks at every free range.
    #[cold]
    pub(crate) fn allocate_thoroughly(&mut self, size: u32, alignment: u32) -> Option<Handed> {
        let rounded = self.rounded(size)?;
        for bin in bin(rounded)..BINS {
            let mut index = self.bins.heads[bin];
            while index != NONE {
                if self.fits(index, rounded, alignment) {
                    return Some(self.hand_out(index, size, rounded, alignment));
                }
                index = self.node(index).link.load(Relaxed);
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
            let mut index = self.bins.heads[number];
            while index != NONE && out.len() < most {
                let node = self.node(index);
                let (start, next) = (node.start.load(Relaxed), node.link.load(Relaxed));
                let (region, size) = (node.region(), self.free_size(index));
                looked_at += 1;
                if size >= least && accept(region, start, size) {
                    out.push(self.hand_out(index, size, size, 1));
                    let link = KEPT_OUT | LAST;
                    self.node(index).link.store(link, Relaxed);
                }
                index = next;
            }
            if index != NONE {
                return;
            }
            *below = number.checked_sub(1).filter(|_| number > last);
            if !out.is_empty() || looked_at >= most {
                return;
            }
        }
    }

    /// Shows the ranges of a region, by address.
    pub(crate) fn each_of(&self, region: RegionId, mut visit: impl FnMut(RangeOf)) {
        let mut next = self.bins.first(region);
        while next != NONE {
            let node = self.node(next);
            visit(match node.is_free() {
                true => RangeOf::Free {
                    start: node.start.load(Relaxed),
                    size: self.free_size(next),
                },
                false => RangeOf::Used(RangeId(next)),
            });
            next = node.after.load(Relaxed);
        }
    }

    /// Hands out all free ranges of a region as a whole.
    pub(crate) fn take_region(&mut self, region: RegionId, out: &mut Vec<RangeId>) {
        let mut next = self.bins.first(region);
        while next != NONE {
            if self.node(next).is_free() {
                let size = self.free_size(next);
                self.hand_out(next, size, size, 1);
                self.node(next).link.store(KEPT_OUT | LAST, Relaxed);
                out.push(RangeId(next));
            }
            next = self.node(next).after.load(Relaxed);
        }
    }

    /// Where [`Ranges::take_whole`] begins: at the largest.
    pub(crate) const LARGEST: Option<usize> = Some(BINS - 1);

    fn rounded(&self, size: u32) -> Option<u32> {
        Some(size.max(1).checked_add(self.granule - 1)? & !(self.granule - 1))
    }

    /// Bytes of a free range.
    #[inline]
    fn free_size(&self, index: u32) -> u32 {
        self.bins.size_of_free(&self.nodes, self.node(index))
    }

    /// Whether a free range holds `size` bytes from an aligned address.
    fn fits(&self, index: u32, size: u32, alignment: u32) -> bool {
        let first = self.node(index).start.load(Relaxed);
        let mask = u64::from(alignment.max(1)) - 1;
        let start = (u64::from(first) + mask) & !mask;
        start + u64::from(size) <= u64::from(first) + u64::from(self.free_size(index))
    }

    /// Takes `size` bytes, `requested` of which were asked for, out of a free range that fits.
    #[inline(always)] // 4 % of allocate and finalize
    fn hand_out(&mut self, index: u32, requested: u32, size: u32, alignment: u32) -> Handed {
        let (nodes, bins) = (&*self.nodes, &mut self.bins);
        let hole = nodes.0.get(index);
        let (hole_start, region) = (hole.start.load(Relaxed), hole.region());
        let hole_size = bins.size_of_free(nodes, hole);
        let mask = alignment.max(1) - 1;
        let start = (hole_start + mask) & !mask;
        let front = start - hole_start;
        let back = hole_size - front - size;
        let (id, node) = match (front, back) {
            (0, 0) => (index, hole),
            (0, _) => {
                let before = hole.before.load(Relaxed);
                let (id, node) = nodes.new_node(start, before, index);
                match before {
                    NONE => bins.firsts[region as usize] = id,
                    before => nodes.0.get(before).after.store(id, Relaxed),
                }
                hole.before.store(id, Relaxed);
                hole.start.store(start + size, Relaxed);
                (id, node)
            }
            (_, _) => {
                let after = hole.after.load(Relaxed);
                let (id, node) = nodes.new_node(start, index, after);
                let mut last = id;
                if back != 0 {
                    let (rest_id, rest) = nodes.new_node(start + size, id, after);
                    node.after.store(rest_id, Relaxed);
                    bins.insert(nodes, rest_id, rest, region, back);
                    last = rest_id;
                }
                if after != NONE {
                    nodes.0.get(after).before.store(last, Relaxed);
                }
                hole.after.store(id, Relaxed);
                (id, node)
            }
        };
        // What is left of the hole keeps its node, most often even its bin.
        match if front == 0 { back } else { front } {
            0 => bins.remove(nodes, hole, size),
            left => bins.resize(nodes, index, hole, region, hole_size, left),
        }
        node.extra.store(requested, Relaxed);
        // No owner's yet, for readers without the lock: what its list had there leads elsewhere.
        node.link.store(NONE, Relaxed);
        node.state.store(self.used | region, Release);
        self.free -= u64::from(size);
        Handed {
            id: RangeId(id),
            region,
            start,
            size,
        }
    }

    /// A range that is handed out.
    #[inline]
    pub(crate) fn get(&self, id: RangeId) -> Handed {
        let node = self.node(id.0);
        debug_assert!(!node.is_free());
        Handed {
            id,
            region: node.region(),
            start: node.start.load(Relaxed),
            size: used_size(node, self.granule),
        }
    }

    /// Takes a range back, joins it with free neighbours, and says what it was.
    #[inline(always)] // 3 % of churn
    pub(crate) fn free(&mut self, id: RangeId) -> Handed {
        let (nodes, bins) = (&*self.nodes, &mut self.bins);
        let index = id.0;
        let node = nodes.0.get(index);
        debug_assert!(!node.is_free());
        let (start, region) = (node.start.load(Relaxed), node.region());
        let size = used_size(node, self.granule);
        self.free += u64::from(size);
        let (before_id, after_id) = (node.before.load(Relaxed), node.after.load(Relaxed));
        let before = nodes.neighbour(before_id);
        let after = nodes.neighbour(after_id);
        match (before, after) {
            (Some(before), _) if before.is_free() => {
                let old = bins.size_of_free(nodes, before);
                let (mut joined, mut next_id, mut next) = (old + size, after_id, after);
                if let Some(hole) = after.filter(|after| after.is_free()) {
                    let more = bins.size_of_free(nodes, hole);
                    bins.remove(nodes, hole, more);
                    joined += more;
                    next_id = hole.after.load(Relaxed);
                    next = nodes.neighbour(next_id);
                    nodes.retire(after_id, hole);
                }
                before.after.store(next_id, Relaxed);
                if let Some(next) = next {
                    next.before.store(before_id, Relaxed);
                }
                bins.resize(nodes, before_id, before, region, old, joined);
                nodes.retire(index, node);
            }
            (_, Some(after)) if after.is_free() => {
                let old = bins.size_of_free(nodes, after);
                after.before.store(before_id, Relaxed);
                match before {
                    Some(before) => before.after.store(after_id, Relaxed),
                    None => bins.firsts[region as usize] = after_id,
                }
                after.start.store(start, Relaxed);
                bins.resize(nodes, after_id, after, region, old, size + old);
                nodes.retire(index, node);
            }
            _ => bins.insert(nodes, index, node, region, size),
        }
        Handed {
            id,
            region,
            start,
            size,
        }
    }

    /// Removes a region that is free as a whole; `start` is where it was added.
    pub(crate) fn remove_region(&mut self, start: u32, size: u32) -> bool {
        let (nodes, bins) = (&*self.nodes, &mut self.bins);
        let mut index = bins.heads[bin(size)];
        while index != NONE {
            let node = nodes.0.get(index);
            if node.start.load(Relaxed) == start && bins.size_of_free(nodes, node) == size {
                bins.remove(nodes, node, size);
                bins.firsts[node.region() as usize] = NONE;
                self.free -= u64::from(size);
                nodes.retire(index, node);
                return true;
            }
            index = node.link.load(Relaxed);
        }
        false
    }

    /// Removes the free ranges of a region. What else there is of it is never freed.
    #[cold]
    pub(crate) fn forget_region(&mut self, region: RegionId) {
        let (nodes, bins) = (&*self.nodes, &mut self.bins);
        let mut next = bins.first(region);
        if next != NONE {
            bins.firsts[region as usize] = NONE;
        }
        while next != NONE {
            let node = nodes.0.get(next);
            let after = node.after.load(Relaxed);
            if node.is_free() {
                let size = bins.size_of_free(nodes, node);
                bins.remove(nodes, node, size);
                self.free -= u64::from(size);
                nodes.retire(next, node);
            }
            next = after;
        }
    }

    #[inline]
    fn node(&self, index: u32) -> &Node {
        self.nodes.0.get(index)
    }

    /// A free range of at least `size`.
    #[inline]
    fn find_fitting(&self, size: u32) -> Option<u32> {
        match self.bins.first_from(fitting_bin(size)) {
            None => self.find_in_bin(size),
            found => found,
        }
    }

    /// Only the bin of `size` itself may still hold one that is large enough; looks at its first few so
    /// that a nearly full window is used up.
    #[cold]
    fn find_in_bin(&self, size: u32) -> Option<u32> {
        let mut index = self.bins.heads[bin(size)];
        for _ in 0..8 {
            if index == NONE {
                return None;
            }
            if self.free_size(index) >= size {
                return Some(index);
            }
            index = self.node(index).link.load(Relaxed);
        }
        None
    }

    /// A free range that holds `size` bytes from an aligned address, if one of the first few
    /// candidates does.
    #[cold]
    fn find_aligned(&self, size: u32, alignment: u32) -> Option<u32> {
        let mut from = bin(size);
        for _ in 0..8 {
            let index = self.bins.first_from(from)?;
            if self.fits(index, size, alignment) {
                return Some(index);
            }
            from = bin(self.free_size(index)) + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests;
