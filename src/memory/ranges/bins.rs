// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The free ranges by size: two-level segregated fit.

use super::nodes::{NONE, Node, Nodes, REGION_BITS, RegionId};
use std::sync::atomic::Ordering::{Relaxed, Release};

/// Second-level bins per power of two: a range is at most 1/16 larger than its bin says.
const SUBDIVISION_BITS: u32 = 4;
const SUBDIVISIONS: u32 = 1 << SUBDIVISION_BITS;
/// First-level rows for all sizes of 32 bits.
const ROWS: usize = (33 - SUBDIVISION_BITS) as usize;
/// Bins are numbered row by row.
pub(super) const BINS: usize = ROWS << SUBDIVISION_BITS;
/// What a free node's `state` holds above the region: its size in granules, or this if that is larger.
const LARGE: u32 = u32::MAX >> (REGION_BITS + 1);

/// The free ranges by size.
#[derive(Debug)]
pub(super) struct Bins {
    granule_bits: u32,
    /// By region, the offset behind its last byte, and its first range.
    pub(super) ends: Vec<u32>,
    pub(super) firsts: Vec<u32>,
    rows: u32,
    columns: [u16; ROWS],
    pub(super) heads: [u32; BINS],
}

/// The bin that holds ranges of `size`. In the first row there is one for each size, in each further
/// one they are twice as wide as in the one before.
#[inline]
pub(super) fn bin(size: u32) -> usize {
    // Below `SUBDIVISIONS` this is `size`.
    let top = 31 - (size | SUBDIVISIONS).leading_zeros();
    let row = top - SUBDIVISION_BITS;
    ((row << SUBDIVISION_BITS) + (size >> row)) as usize
}

/// The first bin that holds only ranges of at least `size`, which is not 0. There may be none.
#[inline]
pub(super) fn fitting_bin(size: u32) -> usize {
    bin(size - 1) + 1
}
impl Bins {
    /// No regions yet.
    pub(super) fn new(granule: u32) -> Bins {
        Bins {
            granule_bits: granule.trailing_zeros(),
            ends: Vec::new(),
            firsts: Vec::new(),
            rows: 0,
            columns: [0; ROWS],
            heads: [NONE; BINS],
        }
    }

    /// The first range of a region; none if it has none.
    pub(super) fn first(&self, region: RegionId) -> u32 {
        self.firsts.get(region as usize).copied().unwrap_or(NONE)
    }

    /// The first free range of the first bin from `bin` on that has any.
    #[inline]
    pub(super) fn first_from(&self, bin: usize) -> Option<u32> {
        let (row, column) = (bin >> SUBDIVISION_BITS, bin as u32 % SUBDIVISIONS);
        let here = u32::from(*self.columns.get(row)?) >> column << column;
        let (row, columns) = if here != 0 {
            (row, here)
        } else {
            let above = self.rows & (u32::MAX << 1 << row);
            if above == 0 {
                return None;
            }
            let row = above.trailing_zeros() as usize;
            (row, u32::from(self.columns[row]))
        };
        let bin = (row << SUBDIVISION_BITS) + columns.trailing_zeros() as usize;
        Some(self.heads[bin])
    }

    /// Bytes of a free range.
    #[inline]
    pub(super) fn size_of_free(&self, nodes: &Nodes, node: &Node) -> u32 {
        match node.state.load(Relaxed) >> REGION_BITS {
            LARGE => self.size_of_large(nodes, node),
            granules => granules << self.granule_bits,
        }
    }

    #[cold]
    fn size_of_large(&self, nodes: &Nodes, node: &Node) -> u32 {
        let end = match node.after.load(Relaxed) {
            NONE => self.ends[node.region() as usize],
            after => nodes.0.get(after).start.load(Relaxed),
        };
        end - node.start.load(Relaxed)
    }

    /// Changes the size of a free range, and its bin if that asks for another.
    #[inline(always)]
    pub(super) fn resize(
        &mut self,
        nodes: &Nodes,
        index: u32,
        node: &Node,
        region: RegionId,
        old: u32,
        size: u32,
    ) {
        if bin(old) == bin(size) {
            self.set_free(node, region, size);
        } else {
            self.change_bin(nodes, index, node, region, old, size);
        }
    }

    #[inline(never)]
    fn change_bin(
        &mut self,
        nodes: &Nodes,
        index: u32,
        node: &Node,
        region: RegionId,
        old: u32,
        size: u32,
    ) {
        self.remove(nodes, node, old);
        self.insert(nodes, index, node, region, size);
    }

    #[inline]
    fn set_free(&self, node: &Node, region: RegionId, size: u32) {
        let granules = (size >> self.granule_bits).min(LARGE);
        node.state.store(granules << REGION_BITS | region, Relaxed);
    }

    /// Makes a node free and puts it into its bin.
    pub(super) fn insert(
        &mut self,
        nodes: &Nodes,
        index: u32,
        node: &Node,
        region: RegionId,
        size: u32,
    ) {
        self.set_free(node, region, size);
        let bin = bin(size);
        let (row, column) = (bin >> SUBDIVISION_BITS, bin as u32 % SUBDIVISIONS);
        let head = self.heads[bin];
        node.extra.store(NONE, Relaxed);
        node.link.store(head, Release);
        if head != NONE {
            nodes.0.get(head).extra.store(index, Relaxed);
        }
        self.heads[bin] = index;
        self.columns[row] |= 1 << column;
        self.rows |= 1 << row;
    }

    /// Takes a free node of this size out of its bin.
    pub(super) fn remove(&mut self, nodes: &Nodes, node: &Node, size: u32) {
        let (previous, next) = (node.extra.load(Relaxed), node.link.load(Relaxed));
        if next != NONE {
            nodes.0.get(next).extra.store(previous, Relaxed);
        }
        if previous != NONE {
            nodes.0.get(previous).link.store(next, Relaxed);
            return;
        }
        let bin = bin(size);
        let (row, column) = (bin >> SUBDIVISION_BITS, bin as u32 % SUBDIVISIONS);
        self.heads[bin] = next;
        if next == NONE {
            self.columns[row] &= !(1 << column);
            if self.columns[row] == 0 {
                self.rows &= !(1 << row);
            }
        }
    }
}
