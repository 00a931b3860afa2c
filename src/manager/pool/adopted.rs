// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Parts of a pool's chunks that show other memory than the rest: pages that had their content before they had a place.

use super::{Pool, PoolChunk, RegionId};
use crate::memory::ranges::RangeId;
use std::ops::Range;

/// So many parts of a chunk show other memory than the rest at most, which each takes mappings: the kernel allows a process
/// so many.
const MOST_ADOPTED: usize = 16;

/// Of each view, one for the part and one for what is behind it.
const MAPPINGS_OF_ADOPTED: u64 = 4;

impl PoolChunk {
    /// Whether some pages may show other memory than the rest, and room is there to note it. What did before may again.
    fn may_adopt(&mut self, pages: &Range<u32>) -> bool {
        let room = self.adopted.len() < MOST_ADOPTED && self.adopted.try_reserve(1).is_ok();
        room || self.adopted.contains(pages)
    }

    /// Notes that [they](PoolChunk::may_adopt) do.
    fn adopted(&mut self, pages: Range<u32>) {
        if !self.adopted.contains(&pages) {
            self.adopted.push(pages);
            self.mappings += MAPPINGS_OF_ADOPTED;
        }
    }
}

impl Pool {
    /// [`PoolChunk::may_adopt`] for the pages of a piece.
    pub(in crate::manager) fn may_adopt(&mut self, id: RangeId) -> bool {
        let (region, pages) = self.pages_of_piece(id);
        self.chunk_mut(region).may_adopt(&pages)
    }

    /// [`PoolChunk::adopted`] for the pages of a piece.
    pub(in crate::manager) fn adopted(&mut self, id: RangeId) {
        let (region, pages) = self.pages_of_piece(id);
        self.chunk_mut(region).adopted(pages);
    }

    fn pages_of_piece(&self, id: RangeId) -> (RegionId, Range<u32>) {
        let (region, range) = (self.region(id), self.ranges.get(id));
        let chunk = self.chunk(region);
        (
            region,
            chunk.pages_around(range.start, range.start + range.size),
        )
    }
}
