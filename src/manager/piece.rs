// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Pieces: what one segment gets in a chunk.

use super::SegmentMemory;
use super::huge_pages::HugeRanges;
use super::pool::number::{CODE_BIT, FINALIZE_BIT};
use super::records::SegmentState;
use crate::group::AllocGroup;
use crate::memory::ranges::{Chained, RangeId, RegionId};
use crate::memory::writer::Writer;
use crate::page::AddressRange;
use smallvec::SmallVec;
use std::ops::Range;

/// One range of an allocation. What is kept of it is its node in the free-range structure.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) id: RangeId,
    /// Bytes asked for.
    pub(super) requested: u32,
    pub(super) window: u16,
    pub(super) pool: u8,
    /// The mapper copies its content, or seals it in place: it is the mapper's to change.
    pub(super) copied: bool,
}

/// Pools of a window are told by so many bits.
const POOL_BITS: u32 = 5;

/// What the nodes of a pool are marked with.
pub(super) fn mark(window: u16, pool: u8) -> u32 {
    u32::from(window) << POOL_BITS | u32::from(pool)
}

pub(super) fn window_of(mark: u32) -> u16 {
    (mark >> POOL_BITS) as u16
}

pub(super) fn pool_of(mark: u32) -> u8 {
    (mark & ((1 << POOL_BITS) - 1)) as u8
}

impl Piece {
    /// What its node says.
    pub(super) fn new(chained: Chained) -> Piece {
        Piece {
            id: chained.id,
            requested: chained.requested,
            window: window_of(chained.mark),
            pool: pool_of(chained.mark),
            copied: chained.flag,
        }
    }

    /// Whether it goes once the finalize actions have run.
    pub(super) fn is_for_finalize(&self) -> bool {
        self.pool & FINALIZE_BIT != 0
    }

    /// Whether it must be made to trap, or the mapper told, before it is free.
    pub(super) fn needs_care(&self) -> bool {
        self.copied || self.pool & CODE_BIT != 0
    }
}

pub(super) type Pieces = SmallVec<[Piece; 3]>;

/// Where a piece is.
pub(super) struct Place {
    pub(super) range: AddressRange,
    pub(super) group: AllocGroup,
    /// How its bytes are written, if they are shared or written in place until they are sealed.
    pub(super) writer: Option<Writer>,
    /// Children see it, or the parent: its bytes stay.
    pub(super) frozen: bool,
}

/// What the requester of a new allocation learns, and what is to be done before.
#[derive(Default)]
pub(super) struct RequestLayout {
    /// The new allocation's handle.
    pub(super) handle: u64,
    pub(super) segments: SmallVec<[SegmentMemory; 4]>,
    /// Zero-fill that must be zeroed before it is handed out: how it is written, from where, how much. What a
    /// segment's size is rounded up by is some too.
    pub(super) dirty: SmallVec<[(Writer, u32, u32); 3]>,
    /// Pages that hold no memory yet. They are noted once all pieces were found: an attempt that fails
    /// leaves them so.
    pub(super) untouched: SmallVec<[Untouched; 4]>,
    /// Huge pages that hold no memory yet and of which these are the first pages.
    pub(super) huge: Option<Box<HugeRanges>>,
    /// By piece, what is kept while content is written.
    pub(super) states: SmallVec<[SegmentState; 4]>,
    /// Some of its pieces need buffers, or are in place.
    pub(super) copied: bool,
    /// Bytes handed out, and those of them that were asked for.
    pub(super) taken: u64,
    pub(super) live: u64,
}

/// Pages of a chunk that a request is the first to get.
pub(super) struct Untouched {
    pub(super) pool: u8,
    pub(super) region: RegionId,
    pub(super) pages: Range<u32>,
}

impl RequestLayout {
    /// Forgets what an attempt that failed has noted.
    pub(super) fn start_over(&mut self) {
        self.dirty.clear();
        self.untouched.clear();
        self.states.clear();
        (self.copied, self.taken, self.live) = (false, 0, 0);
    }
}
