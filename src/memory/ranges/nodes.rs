// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What is noted of each range, and what readers without a lock make of it.

use super::super::paged::{Element, IdleBlocks, Paged, Table};
use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// No node, in place of a node's number.
pub(super) const NONE: u32 = u32::MAX;

/// A handed-out range; valid until it is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RangeId(pub(super) u32);

/// Identifies a region of a [`Ranges`]; given by the caller, below [`MOST_REGIONS`].
pub(crate) type RegionId = u32;
pub(crate) const MOST_REGIONS: u32 = 1 << REGION_BITS;
pub(super) const REGION_BITS: u32 = 8;

/// In a node's `state`: it is handed out. The low bits are the region then, those above what the
/// [`Ranges`] was made with.
pub(super) const USED: u32 = 1 << 31;
/// In a handed-out node's `state`: see [`Nodes::set_flag`].
pub(super) const FLAG: u32 = 1 << 30;
/// In a handed-out node's `link`: it is the last of its chain, and the other bits are the owner.
pub(super) const LAST: u32 = 1 << 31;
/// The owner of ranges that no allocation has any more and that keep their bytes.
const NO_OWNER: u32 = !LAST - 1;
/// The owner of free ranges that are taken out for a while.
pub(super) const KEPT_OUT: u32 = NO_OWNER - 1;
/// A search by address goes along so many neighbours: more than there are in a page.
const MOST_STEPS: usize = 512;
/// A reader goes along so many links: no request has more segments.
const MOST_CHAINED: usize = 1 << 16;

/// What is noted of a range, handed out or free. Nearly all that a live segment costs, so it is small:
/// a free node's size in granules is in `state`, and a handed-out one's follows from what was asked for.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) start: AtomicU32,
    /// Neighbours by address in the same region.
    pub(super) before: AtomicU32,
    pub(super) after: AtomicU32,
    /// Free: the next one in its bin. Handed out: the next one in its chain, or the owner.
    pub(super) link: AtomicU32,
    /// Free: the previous one in its bin. Handed out: bytes asked for.
    pub(super) extra: AtomicU32,
    /// Region and size, or [`USED`] and where the range belongs; 0 while vacant.
    pub(super) state: AtomicU32,
}

// SAFETY: zero is a value of atomics.
unsafe impl Element for Node {
    fn link(&self) -> &AtomicU32 {
        &self.link
    }
}

impl Node {
    pub(super) fn is_free(&self) -> bool {
        self.state.load(Relaxed) & USED == 0
    }

    /// Whether it is handed out with an offset in it.
    fn holds(&self, offset: u32) -> bool {
        let inside = offset.wrapping_sub(self.start.load(Acquire));
        inside < self.extra.load(Acquire) && self.state.load(Acquire) & USED != 0
    }

    pub(super) fn region(&self) -> RegionId {
        self.state.load(Relaxed) & (MOST_REGIONS - 1)
    }
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
pub(crate) struct Nodes(pub(super) Paged<Node>);

impl Nodes {
    /// No nodes.
    pub(crate) fn new() -> Nodes {
        Nodes(Paged::new())
    }

    #[inline]
    pub(super) fn new_node(&self, start: u32, before: u32, after: u32) -> (u32, &Node) {
        let (index, node) = self.0.take();
        node.start.store(start, Relaxed);
        node.before.store(before, Relaxed);
        node.after.store(after, Relaxed);
        (index, node)
    }

    #[inline]
    pub(super) fn retire(&self, index: u32, node: &Node) {
        node.state.store(0, Relaxed);
        self.0.give(index, node);
    }

    /// The neighbour of a range, if there is one.
    #[inline]
    pub(super) fn neighbour(&self, index: u32) -> Option<&Node> {
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
