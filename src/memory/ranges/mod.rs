// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The free-range structure: hands out ranges of any alignment inside regions.
//!
//! Two-level segregated fit (Masmano et al., "TLSF: a new dynamic memory allocator for real-time
//! systems", 2004) with its records kept outside the memory that it divides, because that memory
//! belongs to the executor. Allocating and freeing take constant time. A region is one chunk;
//! neighbours coalesce inside a region and never across two.

use super::paged::{Element, IdleBlocks, Paged, Table};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Second-level bins per power of two: a range is at most 1/16 larger than its bin says.
const SUBDIVISION_BITS: u32 = 4;
const SUBDIVISIONS: u32 = 1 << SUBDIVISION_BITS;
/// First-level rows for all sizes of 32 bits.
const ROWS: usize = (33 - SUBDIVISION_BITS) as usize;
/// Bins are numbered row by row.
const BINS: usize = ROWS << SUBDIVISION_BITS;
const NONE: u32 = u32::MAX;

/// A handed-out range; valid until it is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RangeId(u32);

/// Identifies a region of a [`Ranges`]; given by the caller, below [`MOST_REGIONS`].
pub(crate) type RegionId = u32;
pub(crate) const MOST_REGIONS: u32 = 1 << REGION_BITS;
const REGION_BITS: u32 = 8;

/// In a node's `state`: it is handed out. The low bits are the region then, those above what the
/// [`Ranges`] was made with.
const USED: u32 = 1 << 31;
/// In a handed-out node's `state`: see [`Nodes::set_flag`].
const FLAG: u32 = 1 << 30;
/// What a free node's `state` holds above the region: its size in granules, or this if that is larger.
const LARGE: u32 = u32::MAX >> (REGION_BITS + 1);
/// In a handed-out node's `link`: it is the last of its chain, and the other bits are the owner.
const LAST: u32 = 1 << 31;
/// The owner of ranges that no allocation has any more and that keep their bytes.
const NO_OWNER: u32 = !LAST - 1;
/// The owner of free ranges that are taken out for a while.
const KEPT_OUT: u32 = NO_OWNER - 1;
/// A search by address goes along so many neighbours: more than there are in a page.
const MOST_STEPS: usize = 512;
/// A reader goes along so many links: no request has more segments.
const MOST_CHAINED: usize = 1 << 16;

/// What is noted of a range, handed out or free. Nearly all that a live segment costs, so it is small:
/// a free node's size in granules is in `state`, and a handed-out one's follows from what was asked for.
#[derive(Debug)]
struct Node {
    start: AtomicU32,
    /// Neighbours by address in the same region.
    before: AtomicU32,
    after: AtomicU32,
    /// Free: the next one in its bin. Handed out: the next one in its chain, or the owner.
    link: AtomicU32,
    /// Free: the previous one in its bin. Handed out: bytes asked for.
    extra: AtomicU32,
    /// Region and size, or [`USED`] and where the range belongs; 0 while vacant.
    state: AtomicU32,
}

// SAFETY: zero is a value of atomics.
unsafe impl Element for Node {
    fn link(&self) -> &AtomicU32 {
        &self.link
    }
}

impl Node {
    fn is_free(&self) -> bool {
        self.state.load(Relaxed) & USED == 0
    }

    /// Whether it is handed out with an offset in it.
    fn holds(&self, offset: u32) -> bool {
        let inside = offset.wrapping_sub(self.start.load(Acquire));
        inside < self.extra.load(Acquire) && self.state.load(Acquire) & USED != 0
    }

    fn region(&self) -> RegionId {
        self.state.load(Relaxed) & (MOST_REGIONS - 1)
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

/// A range as its chain has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chained {
    pub(crate) id: RangeId,
    /// Bytes asked for.
    pub(crate) requested: u32,
    /// What its [`Ranges`] was made with.
    pub(crate) mark: u32,
    pub(crate) flag: bool,
}

/// A handed-out range, as a reader has it that takes no lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) start: u32,
    /// Bytes asked for.
    pub(crate) requested: u32,
    /// What its [`Ranges`] was made with.
    pub(crate) mark: u32,
    pub(crate) owner: Owner,
}

/// Whose a handed-out range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The one of this number, if that is its own at the moment.
    Number(u32),
    /// An owner that is gone.
    Gone,
    /// None: it is free, and being looked after.
    Free,
    /// It is being handed out, or taken back.
    Changing,
}

/// The nodes of many [`Ranges`]. Handed-out ranges of one owner, of whatever [`Ranges`], are a chain.
#[derive(Debug)]
pub(crate) struct Nodes(Paged<Node>);

impl Nodes {
    /// No nodes.
    pub(crate) fn new() -> Nodes {
        Nodes(Paged::new())
    }

    #[inline]
    fn new_node(&self, start: u32, before: u32, after: u32) -> (u32, &Node) {
        let (index, node) = self.0.take();
        node.start.store(start, Relaxed);
        node.before.store(before, Relaxed);
        node.after.store(after, Relaxed);
        (index, node)
    }

    #[inline]
    fn retire(&self, index: u32, node: &Node) {
        node.state.store(0, Relaxed);
        self.0.give(index, node);
    }

    /// The neighbour of a range, if there is one.
    #[inline]
    fn neighbour(&self, index: u32) -> Option<&Node> {
        match index {
            NONE => None,
            index => Some(self.0.get(index)),
        }
    }

    /// Makes sure that `count` more ranges can be noted.
    pub(crate) fn make_spare(&self, count: u32) -> io::Result<()> {
        self.0.make_spare(count)
    }

    /// Marks a handed-out range with a bit of its holder's.
    pub(crate) fn set_flag(&self, id: RangeId) {
        let state = &self.0.get(id.0).state;
        state.store(state.load(Relaxed) | FLAG, Relaxed);
    }

    /// Makes a chain of handed-out ranges for an owner, a number below 2^31.
    pub(crate) fn chain(&self, ids: impl DoubleEndedIterator<Item = RangeId>, owner: u32) {
        let mut link = owner | LAST;
        for id in ids.rev() {
            self.0.get(id.0).link.store(link, Release);
            link = id.0;
        }
    }

    /// Shows the ranges of a chain.
    #[inline]
    pub(crate) fn chained(&self, first: Option<RangeId>, mut visit: impl FnMut(Chained)) {
        let mut next = RangeId::number(first);
        while next & LAST == 0 {
            let id = RangeId(next);
            let node = self.0.get(next);
            next = node.link.load(Relaxed);
            let state = node.state.load(Relaxed);
            visit(Chained {
                id,
                requested: node.extra.load(Relaxed),
                mark: (state & !(USED | FLAG)) >> REGION_BITS,
                flag: state & FLAG != 0,
            });
        }
    }

    /// Makes a handed-out range no owner's, so that no address in it leads to one.
    pub(crate) fn disown(&self, id: RangeId) {
        self.0.get(id.0).link.store(NO_OWNER | LAST, Relaxed);
    }

    // ---- readers without a lock ----

    /// A handed-out range; `None` if it is not. What is read while others change it may not belong
    /// together: two readings that are the same, while the owner stayed, do.
    pub(crate) fn read(&self, id: RangeId) -> Option<Seen> {
        let node = self.0.find(id.0)?;
        let state = node.state.load(Acquire);
        if state & USED == 0 {
            return None;
        }
        let (start, requested) = (node.start.load(Acquire), node.extra.load(Acquire));
        Some(Seen {
            start,
            requested,
            mark: (state & !(USED | FLAG)) >> REGION_BITS,
            owner: self.owner(node.link.load(Acquire)),
        })
    }

    /// Where a chain leads that begins with a link.
    fn owner(&self, mut link: u32) -> Owner {
        for _ in 0..MOST_CHAINED {
            match link & !LAST {
                _ if link == NONE => break,
                _ if link & LAST == 0 => {}
                NO_OWNER => return Owner::Gone,
                KEPT_OUT => return Owner::Free,
                number => return Owner::Number(number),
            }
            let used = |node: &&Node| node.state.load(Acquire) & USED != 0;
            match self.0.find(link).filter(used) {
                Some(node) => link = node.link.load(Acquire),
                None => return Owner::Changing,
            }
        }
        Owner::Changing
    }

    /// The range with an offset in it, searched from a node on along neighbours. It may be missed while
    /// others change what lies between, and may be one that lies elsewhere. Gives the number of steps too.
    pub(crate) fn search(&self, from: u32, offset: u32) -> Option<(RangeId, usize)> {
        let mut index = from;
        let mut node = self.0.find(index)?;
        for step in 0..MOST_STEPS {
            if node.holds(offset) {
                return Some((RangeId(index), step));
            }
            let start = node.start.load(Acquire);
            let forward = start <= offset;
            index = match forward {
                true => node.after.load(Acquire),
                false => node.before.load(Acquire),
            };
            node = self.0.find(index)?;
            let next = node.start.load(Acquire);
            let nearer = match forward {
                true => start < next && next <= offset,
                false => next < start,
            };
            if !nearer {
                return None;
            }
        }
        None
    }

    /// What `look` answers for the first handed-out range with an offset in it for which it answers
    /// anything. Looks at all nodes.
    pub(crate) fn search_all<R>(
        &self,
        offset: u32,
        mut look: impl FnMut(RangeId) -> Option<R>,
    ) -> Option<R> {
        self.0.find_map_from(0, |index, node| {
            let found = node.holds(offset).then_some(RangeId(index))?;
            look(found)
        })
    }

    /// See [`Paged::has_idle`].
    #[inline]
    pub(crate) fn has_idle(&self) -> bool {
        self.0.has_idle()
    }

    /// Bytes of memory that they take.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.0.resident_bytes()
    }
}

impl Table for Nodes {
    fn take_idle(&self) -> IdleBlocks {
        self.0.take_idle()
    }

    fn discard(&self, blocks: &IdleBlocks) {
        self.0.discard(blocks);
    }

    fn give_blocks(&self, blocks: &IdleBlocks) {
        self.0.give_blocks(blocks);
    }
}

impl RangeId {
    /// For a [`super::words::PageIndex`].
    #[inline]
    pub(crate) fn index(self) -> u32 {
        self.0
    }

    /// As a number that is not [`RangeId::NONE`].
    pub(crate) fn number(id: Option<RangeId>) -> u32 {
        id.map_or(NONE, |id| id.0)
    }

    pub(crate) fn of_number(number: u32) -> Option<RangeId> {
        (number != NONE).then_some(RangeId(number))
    }
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

/// The free ranges by size.
#[derive(Debug)]
struct Bins {
    granule_bits: u32,
    /// By region, the offset behind its last byte.
    ends: Vec<u32>,
    rows: u32,
    columns: [u16; ROWS],
    heads: [u32; BINS],
}

/// The bin that holds ranges of `size`. In the first row there is one for each size, in each further
/// one they are twice as wide as in the one before.
#[inline]
fn bin(size: u32) -> usize {
    // Below `SUBDIVISIONS` this is `size`.
    let top = 31 - (size | SUBDIVISIONS).leading_zeros();
    let row = top - SUBDIVISION_BITS;
    ((row << SUBDIVISION_BITS) + (size >> row)) as usize
}

/// The first bin that holds only ranges of at least `size`, which is not 0. There may be none.
#[inline]
fn fitting_bin(size: u32) -> usize {
    bin(size - 1) + 1
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
            bins: Bins {
                granule_bits: granule.trailing_zeros(),
                ends: Vec::new(),
                rows: 0,
                columns: [0; ROWS],
                heads: [NONE; BINS],
            },
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
                if before != NONE {
                    nodes.0.get(before).after.store(id, Relaxed);
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
                if let Some(before) = before {
                    before.after.store(after_id, Relaxed);
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
                self.free -= u64::from(size);
                nodes.retire(index, node);
                return true;
            }
            index = node.link.load(Relaxed);
        }
        false
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

impl Bins {
    /// The first free range of the first bin from `bin` on that has any.
    #[inline]
    fn first_from(&self, bin: usize) -> Option<u32> {
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
    fn size_of_free(&self, nodes: &Nodes, node: &Node) -> u32 {
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
    fn resize(
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
    fn insert(&mut self, nodes: &Nodes, index: u32, node: &Node, region: RegionId, size: u32) {
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
    fn remove(&mut self, nodes: &Nodes, node: &Node, size: u32) {
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

#[cfg(test)]
mod tests;
