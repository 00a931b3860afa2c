// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Sparse chunks: much of their memory holds nothing, and the mapper gives it back for the chunk as a
//! whole.

use super::{Pool, PoolChunk, Thawed, addresses};
use crate::mapper::{Discards, Working};
use crate::memory::pages::PageSet;
use crate::memory::ranges::{Owner, RangeId, RangeOf, RegionId};
use crate::memory::writer::Writer;

/// A chunk whose memory the mapper gives back in part.
pub(in crate::manager) struct Sparse {
    pub(in crate::manager) region: RegionId,
    /// Its free ranges, which are taken out meanwhile.
    pub(in crate::manager) free: Vec<RangeId>,
    /// The pages that stay.
    pub(in crate::manager) keep: PageSet,
}

impl PoolChunk {
    /// The pages that hold something, and how many free ranges there are and others. `None` where content
    /// might be written meanwhile, or the heap is full.
    fn pages_in_use(&self, pool: &Pool, region: RegionId, quiet: &Quiet<'_>) -> Option<Use> {
        let mut found = Use {
            keep: self.touched.try_clone()?,
            free: 0,
            taken: 0,
        };
        let (shared, mut all_quiet) = (self.is_shared(), true);
        pool.ranges.each_of(region, |range| match range {
            RangeOf::Free { start, size } => {
                found.free += 1;
                found.keep.remove(self.pages_inside(start, start + size));
            }
            RangeOf::Used(id) => {
                found.taken += 1;
                all_quiet = all_quiet && (!shared || pool.is_quiet(id, quiet));
            }
        });
        all_quiet.then_some(found)
    }
}

/// What a chunk is used for.
struct Use {
    keep: PageSet,
    free: usize,
    taken: usize,
}

/// Whether an allocation, by its number, is finalized and not being written.
type Quiet<'a> = dyn Fn(u32) -> bool + 'a;

impl Pool {
    /// One more than the last region.
    pub(in crate::manager) fn regions(&self) -> RegionId {
        self.chunks.len() as RegionId
    }

    /// Whether the mapper gives memory of a chunk back as a whole.
    pub(in crate::manager) fn may_be_sparse(&self, region: RegionId) -> bool {
        let chunk = self.chunks[region as usize].as_ref();
        chunk.is_some_and(|chunk| {
            chunk.discards == Discards::AllBut
                && chunk.held.is_none()
                && !chunk.forks.is_going()
                && chunk.touched.count() > 0
        })
    }

    /// Whether content of a range stays as it is until its allocation is opened for writing or ends.
    fn is_quiet(&self, id: RangeId, quiet: &Quiet<'_>) -> bool {
        match self.nodes.read(id).map(|seen| seen.owner) {
            Some(Owner::Number(number)) => quiet(number),
            _ => false,
        }
    }

    /// Takes a chunk for the mapper to give memory of it back, if that is at least one of `part` of its
    /// pages. Until [`Pool::shrunk`] nothing is taken from it, and what is freed of it stays as it is.
    pub(in crate::manager) fn take_sparse(
        &mut self,
        region: RegionId,
        part: u32,
        quiet: &Quiet<'_>,
    ) -> Option<Sparse> {
        let chunk = self.chunk(region);
        let Use { keep, free, taken } = chunk.pages_in_use(self, region, quiet)?;
        let there = chunk.touched.count();
        let idle = there - keep.count();
        if idle == 0 || u64::from(idle) * u64::from(part) < u64::from(there) {
            return None;
        }
        let (mut ids, mut held) = (Vec::new(), Vec::new());
        ids.try_reserve_exact(free).ok()?;
        held.try_reserve_exact(taken).ok()?;
        self.ranges.take_region(region, &mut ids);
        let chunk = self.chunk_mut(region);
        chunk.live += ids.len() as u32;
        if chunk.is_shared() {
            chunk.held = Some(held);
            self.held_chunks += 1;
            self.note_what_stays();
        }
        Some(Sparse {
            region,
            free: ids,
            keep,
        })
    }

    /// The mapper has given back all of a chunk's memory but the pages that stay, or nothing. Gives the
    /// bytes, and what was freed meanwhile, which counts as live until [`Pool::free_again`].
    pub(in crate::manager) fn shrunk(
        &mut self,
        sparse: &mut Sparse,
        answer: Option<Option<Writer>>,
        origin: u64,
    ) -> (u64, Vec<Thawed>) {
        let chunk = self.chunk_mut(sparse.region);
        let before = chunk.committed();
        if let Some(writer) = answer {
            std::mem::swap(&mut chunk.touched, &mut sparse.keep);
            chunk.working = writer.map_or(chunk.working, Working::Shared);
        }
        let bytes = before - chunk.committed();
        let Some(held) = chunk.held.take() else {
            return (bytes, Vec::new());
        };
        self.held_chunks -= 1;
        self.note_what_stays();
        let mut freed = Vec::new();
        let chunk = self.chunk(sparse.region);
        if let Working::Shared(writer) = chunk.working {
            freed.extend(held.into_iter().map(|id| {
                let handed = self.ranges.get(id);
                Thawed {
                    id,
                    writer: writer.part_of(handed.start - chunk.offset, handed.size),
                    range: addresses(origin, handed.start, handed.size),
                }
            }));
        }
        (bytes, freed)
    }

    /// Frees ranges that were taken out; whether their chunk is empty now.
    pub(in crate::manager) fn free_again(&mut self, ids: impl Iterator<Item = RangeId>) -> bool {
        let mut empty = false;
        for id in ids {
            empty = self.free_range(id).1;
        }
        empty
    }
}
