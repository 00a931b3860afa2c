// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A pool: the chunks of one alloc group, or of code of one hint, in one window, and the ranges that are handed out of
//! them.

use super::frozen::Forks;
use super::piece::{Piece, Place, RequestLayout, Untouched, mark};
use super::records::SegmentState;
use super::request::PlannedSegment;
use super::stats::Sums;
use crate::group::{AllocGroup, CodeHint};
use crate::mapper::{Discards, Prepared, Working};
use crate::memory::pages::PageSet;
use crate::memory::ranges::{Handed, Nodes, RangeId, Ranges, RegionId};
use crate::memory::words::PageIndex;
use crate::memory::writer::Writer;
use crate::page::{AddressRange, Alignment};
use crate::sys::{Forked, ForksInUse};
use std::ops::Range;
use std::sync::Arc;

mod adopted;
mod huge_pages;
pub(super) mod number;
pub(super) mod sparse;

/// First size of a chunk, unless that is more than its share of the window; each further one of its
/// pool is larger by the factor, up to that share. Its pages take no memory before they are used,
/// but each chunk takes system calls.
pub(super) const FIRST_CHUNK: u64 = 512 << 10;
const CHUNK_FACTOR: u64 = 2;
/// More chunks than this are never made in one window: each takes at most two views and leaves
/// at most one gap, so a window has fewer than 512 mappings.
pub(super) const MOST_CHUNKS: usize = 160;
/// Empty chunks of a pool are kept for reuse while they are no larger than this together.
pub(super) const MOST_SPARE: u64 = 2 << 20;
/// Which empty chunks of a pool stay.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// As many as have [`MOST_SPARE`] bytes together.
    Spare,
    /// Those that a request was about to take from.
    Fresh,
    /// None.
    None,
}

/// Code keeps off the first bytes of a chunk, because the function sanitizer reads 8 bytes before a
/// function.
pub(super) fn guard(group: AllocGroup, granule: Alignment) -> u64 {
    if group.protection.executable() {
        granule.bytes()
    } else {
        0
    }
}

/// A size or offset in a window, which is below 2 GiB and at most 1 GiB above its origin.
pub(super) fn narrow(value: u64) -> u32 {
    u32::try_from(value).expect("windows are below 2 GiB")
}

/// A chunk in its pool.
pub(super) struct PoolChunk {
    /// From the window's origin, as all offsets here.
    offset: u32,
    size: u32,
    working: Working,
    mappings: u64,
    /// The pages of parts that show other memory than the rest, each once.
    adopted: Vec<Range<u32>>,
    /// How the mapper can take parts of it back.
    discards: Discards,
    /// All its pages were taken when it was made.
    all_committed: bool,
    /// The pages that may hold memory: those that were handed out and not given back since. What lies
    /// in no such page is zero.
    touched: PageSet,
    page: Alignment,
    /// Pieces handed out, and ranges that are being given back.
    live: u32,
    /// Nothing was handed out yet: the request that it was made for is about to take from it.
    fresh: bool,
    forks: Forks,
    /// While its memory is being given back and nothing may be written: what is freed, which stays as it
    /// is. There is room for all that may be.
    held: Option<Vec<RangeId>>,
}

impl PoolChunk {
    /// `touched` is empty, with room for its pages.
    pub(super) fn new(
        offset: u32,
        size: u32,
        commit: bool,
        page: Alignment,
        touched: PageSet,
        prepared: Prepared,
        epoch: u32,
    ) -> PoolChunk {
        PoolChunk {
            offset,
            size,
            working: prepared.working,
            mappings: prepared.mappings,
            adopted: Vec::new(),
            discards: prepared.discards,
            all_committed: commit,
            touched,
            page,
            live: 0,
            fresh: true,
            forks: Forks::new(epoch),
            held: None,
        }
    }

    /// Makes all that was ever written of it trap, if the mapper does not copy.
    pub(super) fn fill_with_traps(&self) {
        if self.forks.is_going() {
            return;
        }
        if let Working::Shared(writer) = self.working {
            for pages in self.touched.runs(self.touched.all()) {
                let range = self.bytes(pages);
                writer
                    .part_of(range.start - self.offset, range.end - range.start)
                    .fill_with_traps();
            }
        }
    }

    fn is_shared(&self) -> bool {
        matches!(self.working, Working::Shared(_))
    }

    /// Whether it is of no use any more: it has served, or is empty and the parent's.
    fn is_going(&self) -> bool {
        self.forks.is_going() || self.live == 0 && self.forks.is_inherited()
    }

    /// Bytes of the pages that may hold memory.
    pub(super) fn committed(&self) -> u64 {
        match self.all_committed {
            true => self.size.into(),
            false => u64::from(self.touched.count()) * self.page.bytes(),
        }
    }

    fn page_shift(&self) -> u32 {
        self.page.bytes().trailing_zeros()
    }

    /// The pages that hold a part of some bytes.
    fn pages_around(&self, start: u32, end: u32) -> Range<u32> {
        let shift = self.page_shift();
        let last = (end - 1 - self.offset) >> shift;
        (start - self.offset) >> shift..last + 1
    }

    /// The pages that lie in some bytes as a whole.
    fn pages_inside(&self, start: u32, end: u32) -> Range<u32> {
        let shift = self.page_shift();
        let first = (u64::from(start - self.offset) + self.page.bytes() - 1) >> shift;
        let end = (end - self.offset) >> shift;
        (first as u32).min(end)..end
    }

    fn bytes(&self, pages: Range<u32>) -> Range<u32> {
        let shift = self.page_shift();
        self.offset + (pages.start << shift)..self.offset + (pages.end << shift)
    }

    /// Its addresses in a window with this origin.
    pub(super) fn range(&self, origin: u64) -> AddressRange {
        addresses(origin, self.offset, self.size)
    }
}

fn addresses(origin: u64, offset: u32, size: u32) -> AddressRange {
    AddressRange::new(origin + u64::from(offset), size.into()).expect("windows end")
}

/// Where a window is among others, and what its offsets count from.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) window: u16,
    pub(super) address: u64,
}

/// A range that was frozen and is about to be free.
pub(super) struct Thawed {
    pub(super) id: RangeId,
    pub(super) writer: Writer,
    pub(super) range: AddressRange,
}

pub(super) struct Pool {
    nodes: Arc<Nodes>,
    /// Of the window.
    index: Arc<PageIndex>,
    /// Which of the window's it is.
    number: u8,
    pub(super) group: AllocGroup,
    granule: Alignment,
    pub(super) ranges: Ranges,
    /// By region; a region is a chunk.
    chunks: Vec<Option<PoolChunk>>,
    /// What its next chunk has, unless a segment needs more.
    next_size: u64,
    /// A fork found chunks here, so that children or the parent may see some.
    shared_with_children: bool,
    /// Chunks in which what is freed is held.
    held_chunks: u32,
    /// Some of what is freed stays as it is, for one of these reasons.
    some_stays: bool,
}

impl Pool {
    /// A pool of a window, without chunks.
    pub(super) fn new(
        window: u16,
        number: u8,
        (nodes, index): (&Arc<Nodes>, &Arc<PageIndex>),
        granule: Alignment,
        first_size: u64,
    ) -> Pool {
        let mark = mark(window, number);
        let group = number::group(number);
        Pool {
            shared_with_children: false,
            held_chunks: 0,
            some_stays: false,
            nodes: Arc::clone(nodes),
            index: Arc::clone(index),
            number,
            group,
            granule,
            ranges: Ranges::new(narrow(granule.bytes()), Arc::clone(nodes), mark),
            chunks: Vec::new(),
            next_size: first_size,
        }
    }

    /// What the code in it is for.
    pub(super) fn hint(&self) -> CodeHint {
        number::hint(self.number)
    }

    #[inline]
    fn chunk(&self, region: RegionId) -> &PoolChunk {
        self.chunks[region as usize]
            .as_ref()
            .expect("regions are chunks")
    }

    #[inline]
    fn chunk_mut(&mut self, region: RegionId) -> &mut PoolChunk {
        self.chunks[region as usize]
            .as_mut()
            .expect("regions are chunks")
    }

    // ---- pieces ----

    /// Takes a range for a segment, if there is one.
    pub(super) fn take(
        &mut self,
        planned: &PlannedSegment,
        origin: Origin,
        thorough: bool,
        layout: &mut RequestLayout,
    ) -> Option<Piece> {
        let PlannedSegment {
            size, alignment, ..
        } = *planned;
        let handed = match self.ranges.allocate(size, alignment) {
            None if thorough => self.ranges.allocate_thoroughly(size, alignment)?,
            fast => fast?,
        };
        let pool = self.number;
        let (shift, shared_with_children) = (self.granule_shift(), self.shared_with_children);
        let chunk = self.chunks[handed.region as usize].as_mut();
        let chunk = chunk.expect("regions are chunks");
        let content_end = handed.start + planned.content;
        let end = handed.start + handed.size;
        let pages = chunk.pages_around(handed.start, end);
        let known = chunk.touched.contains_all(pages.clone());
        if !known {
            layout.untouched.push(Untouched {
                pool,
                region: handed.region,
                pages: pages.clone(),
            });
            self.index.note_all(handed.start..end, handed.id.index());
        }
        let untouched = !known && chunk.touched.count_in(pages.clone()) == 0;
        let zeroed = content_end == end || untouched;
        if shared_with_children {
            let first = (handed.start - chunk.offset) >> shift;
            chunk.forks.hand_out(first, chunk.size >> shift);
        }
        chunk.live += 1;
        chunk.fresh = false;
        layout.taken += u64::from(handed.size);
        layout.live += u64::from(planned.size);
        let segment = &mut layout.segments[planned.index as usize];
        segment.address = origin.address + u64::from(handed.start);
        let mut copied = false;
        match chunk.working {
            Working::Shared(writer) | Working::InPlace(writer) => {
                let writer = writer.part_of(handed.start - chunk.offset, handed.size);
                segment.working_memory = writer.pointer();
                if !zeroed {
                    for dirty in chunk.touched.runs(pages) {
                        let dirty = chunk.bytes(dirty);
                        let start = dirty.start.max(content_end);
                        let size = dirty.end.min(end).saturating_sub(start);
                        if size > 0 {
                            layout.dirty.push((writer, start - handed.start, size));
                        }
                    }
                }
            }
            Working::Copied => {}
        }
        if !chunk.is_shared() {
            copied = true;
            self.nodes.set_flag(handed.id);
        }
        layout.copied |= copied;
        layout.states.push(SegmentState {
            content: planned.content,
            segment: planned.index,
            zeroed,
            untouched: untouched && !chunk.all_committed,
        });
        Some(Piece {
            id: handed.id,
            requested: planned.size,
            window: origin.window,
            pool,
            copied,
        })
    }

    /// The bytes that a live piece was asked for.
    pub(super) fn extent(&self, piece: &Piece, origin: u64) -> AddressRange {
        let start = self.ranges.get(piece.id).start;
        addresses(origin, start, piece.requested)
    }

    /// Where a live range is.
    pub(super) fn place(&self, id: RangeId, origin: u64) -> Place {
        let handed = self.ranges.get(id);
        let chunk = self.chunk(handed.region);
        let writer = match chunk.working {
            Working::Shared(writer) | Working::InPlace(writer) => {
                Some(writer.part_of(handed.start - chunk.offset, handed.size))
            }
            Working::Copied => None,
        };
        Place {
            range: addresses(origin, handed.start, handed.size),
            group: self.group,
            writer,
            frozen: self.some_stays && self.stays(id),
        }
    }

    fn granule_shift(&self) -> u32 {
        self.granule.bytes().trailing_zeros()
    }

    /// Whether a live range lies in a chunk that the parent made, which this process can't write.
    pub(super) fn is_inherited(&self, id: RangeId) -> bool {
        self.chunk(self.region(id)).forks.is_inherited()
    }

    /// What is handed out from now on is not seen by children that there are.
    pub(super) fn forked(&mut self, forked: Forked) {
        self.shared_with_children = true;
        self.note_what_stays();
        if forked.in_child {
            // What is free in chunks of the parent's is the parent's.
            let mut below = Ranges::LARGEST;
            let mut free = Vec::new();
            while below.is_some() {
                let most = usize::MAX;
                let chunks = &self.chunks;
                let shared = |region: RegionId, _, _| {
                    let chunk = chunks[region as usize].as_ref();
                    chunk.is_some_and(PoolChunk::is_shared)
                };
                self.ranges
                    .take_whole(&mut below, 0, most, shared, &mut free);
            }
            for handed in free {
                self.freeze_in_chunk(&handed);
            }
        }
        let shared = |chunk: &&mut PoolChunk| chunk.is_shared();
        for chunk in self.chunks.iter_mut().flatten().filter(shared) {
            chunk.forks.forked(forked);
        }
    }

    /// Takes ranges out of what is frozen that no other process sees any more. They count as live until
    /// [`Pool::thawed`].
    pub(super) fn take_thawed(&mut self, forks: &ForksInUse, origin: u64, out: &mut Vec<Thawed>) {
        for chunk in self.chunks.iter_mut().flatten() {
            for id in chunk.forks.take_thawed(forks) {
                chunk.live += 1;
                let handed = self.ranges.get(id);
                let writer = match chunk.working {
                    Working::Shared(writer) => {
                        writer.part_of(handed.start - chunk.offset, handed.size)
                    }
                    Working::InPlace(_) | Working::Copied => continue,
                };
                let range = addresses(origin, handed.start, handed.size);
                out.push(Thawed { id, writer, range });
            }
        }
    }

    /// Frees a range that was frozen; whether its chunk is empty now.
    pub(super) fn thawed(&mut self, id: RangeId) -> bool {
        self.free_range(id).1
    }

    /// Takes a range back. Gives its bytes, rounding included, and whether its chunk is empty now.
    #[inline]
    pub(super) fn free(&mut self, id: RangeId) -> (u64, bool) {
        match self.some_stays && self.stays(id) {
            true => self.freeze(id),
            false => self.free_range(id),
        }
    }

    fn free_range(&mut self, id: RangeId) -> (u64, bool) {
        let handed = self.ranges.free(id);
        let chunk = self.chunk_mut(handed.region);
        chunk.live -= 1;
        let empty = chunk.live == 0 && self.empty_now(handed.region);
        (handed.size.into(), empty)
    }

    fn note_what_stays(&mut self) {
        self.some_stays = self.shared_with_children || self.held_chunks > 0;
    }

    /// Whether a live range stays as it is when it is freed: children, or the parent, may see it, or its
    /// chunk is held.
    fn stays(&self, id: RangeId) -> bool {
        let handed = self.ranges.get(id);
        let chunk = self.chunk(handed.region);
        if chunk.held.is_some() {
            return true;
        }
        let granule = (handed.start - chunk.offset) >> self.granule_shift();
        chunk.forks.is_old(granule)
    }

    #[cold]
    fn freeze(&mut self, id: RangeId) -> (u64, bool) {
        self.nodes.disown(id);
        let handed = self.ranges.get(id);
        if let Some(held) = &mut self.chunk_mut(handed.region).held {
            held.push(id);
            return (handed.size.into(), false);
        }
        let chunk = self.freeze_in_chunk(&handed);
        chunk.live -= 1;
        let empty = chunk.live == 0 && self.empty_now(handed.region);
        (handed.size.into(), empty)
    }

    fn freeze_in_chunk(&mut self, handed: &Handed) -> &mut PoolChunk {
        let shift = self.granule_shift();
        let chunk = self.chunk_mut(handed.region);
        let granule = (handed.start - chunk.offset) >> shift;
        chunk.forks.freeze(handed.id, granule, handed.size);
        chunk
    }

    /// Nothing of a chunk is live any more. What of it is frozen goes with it.
    #[cold]
    fn empty_now(&mut self, region: RegionId) -> bool {
        let forks = &mut self.chunk_mut(region).forks;
        if forks.frozen_bytes() > 0 {
            for id in forks.take_all() {
                self.ranges.free(id);
            }
        }
        true
    }

    /// Notes pages that are about to be written, and gives the bytes that hold memory since.
    pub(super) fn touch(&mut self, untouched: &Untouched) -> u64 {
        let chunk = self.chunk_mut(untouched.region);
        let before = chunk.committed();
        chunk.touched.insert(untouched.pages.clone());
        chunk.committed() - before
    }

    // ---- giving back ----

    /// Takes free ranges in which at least `least` pages may hold memory and can be given back. They
    /// count as live until [`Pool::discarded`].
    pub(super) fn take_idle(
        &mut self,
        below: &mut Option<usize>,
        least: u32,
        most: usize,
    ) -> Vec<Handed> {
        let mut out = Vec::new();
        let (chunks, ranges) = (&self.chunks, &mut self.ranges);
        let accept = |region: RegionId, start: u32, size: u32| {
            let chunk = chunks[region as usize].as_ref();
            chunk.is_some_and(|chunk| {
                let pages = chunk.pages_inside(start, start + size);
                chunk.discards == Discards::Pages && chunk.touched.count_in(pages) >= least
            })
        };
        ranges.take_whole(below, least, most, accept, &mut out);
        for handed in &out {
            self.chunk_mut(handed.region).live += 1;
        }
        out
    }

    /// The whole pages of a range.
    pub(super) fn pages_of(&self, handed: &Handed, origin: u64) -> AddressRange {
        let chunk = self.chunk(handed.region);
        let pages = chunk.pages_inside(handed.start, handed.start + handed.size);
        let bytes = chunk.bytes(pages);
        addresses(origin, bytes.start, bytes.end - bytes.start)
    }

    /// Frees an idle range again. Gives the bytes that hold memory no more, and whether its chunk is
    /// empty now.
    pub(super) fn discarded(&mut self, handed: &Handed, success: bool) -> (u64, bool) {
        let chunk = self.chunk_mut(handed.region);
        let before = chunk.committed();
        if success {
            let pages = chunk.pages_inside(handed.start, handed.start + handed.size);
            chunk.touched.remove(pages);
        }
        let bytes = before - chunk.committed();
        let (_, empty) = self.free_range(handed.id);
        (bytes, empty)
    }

    // ---- chunks ----

    /// The region of a range, which is its chunk.
    pub(super) fn region(&self, id: RangeId) -> RegionId {
        self.ranges.get(id).region
    }

    /// The addresses of a chunk.
    pub(super) fn range_of(&self, region: RegionId, origin: u64) -> AddressRange {
        self.chunk(region).range(origin)
    }

    /// Whether what is freed of a range's chunk is held.
    pub(super) fn is_held(&self, id: RangeId) -> bool {
        self.held_chunks > 0 && self.chunk(self.region(id)).held.is_some()
    }

    /// Whether a chunk with this many live pieces is given up once they are free.
    pub(super) fn goes_without(&self, region: RegionId, pieces: u32) -> bool {
        let chunk = self.chunk(region);
        chunk.live == pieces && u64::from(chunk.size) > MOST_SPARE
    }

    /// The size of its next chunk; the one after that is larger, but for `most`.
    pub(super) fn next_size(&mut self, most: u64) -> u64 {
        let size = self.next_size;
        self.next_size = (size * CHUNK_FACTOR).min(most);
        size
    }

    /// Lets the next chunk be smaller than one that was not to be had.
    pub(super) fn try_smaller(&mut self, size: u64, least: u64) -> bool {
        self.next_size = (size / 2).max(least);
        self.next_size < size
    }

    /// The part of a chunk that is handed out.
    fn usable(&self, chunk: &PoolChunk) -> (u32, u32) {
        let guard = guard(self.group, self.granule) as u32;
        (chunk.offset + guard, chunk.size - guard)
    }

    /// Adds an empty chunk.
    pub(super) fn insert(&mut self, chunk: PoolChunk) {
        let (start, size) = self.usable(&chunk);
        let region = match self.chunks.iter().position(Option::is_none) {
            Some(vacant) => vacant,
            None => {
                self.chunks.push(None);
                self.chunks.len() - 1
            }
        };
        if !chunk.forks.is_going() {
            self.ranges.add_region(region as RegionId, start, size);
        }
        self.chunks[region] = Some(chunk);
    }

    /// Treats chunks of which nothing was handed out like others that are empty.
    pub(super) fn give_up_fresh(&mut self) {
        let chunks = self.chunks.iter_mut().flatten();
        chunks.for_each(|chunk| chunk.fresh = false);
    }

    /// An empty chunk that need not be kept, the largest first.
    pub(super) fn next_to_go(&self, keep: Keep) -> Option<RegionId> {
        let empty = self.chunks.iter().enumerate().filter_map(|(index, chunk)| {
            let chunk = chunk.as_ref()?;
            if chunk.is_going() {
                return Some((u32::MAX, index));
            }
            // What others have just made is left to them, unless everything is needed.
            let going = chunk.live == 0 && (keep == Keep::None || !chunk.fresh);
            going.then_some((chunk.size, index))
        });
        let (bytes, largest) = empty.fold((0, None), |(bytes, largest), chunk| {
            (bytes + u64::from(chunk.0), largest.max(Some(chunk)))
        });
        let (_, index) = largest?;
        let region = index as RegionId;
        let stays = keep == Keep::Spare && bytes <= MOST_SPARE && !self.chunk(region).is_going();
        (!stays).then_some(region)
    }

    /// Takes a chunk out that [`Pool::next_to_go`] named. Further chunks begin with `first` bytes.
    pub(super) fn detach(&mut self, region: RegionId, first: u64) -> PoolChunk {
        self.empty_now(region);
        let chunk = self.chunks[region as usize].take();
        let chunk = chunk.expect("regions are chunks");
        // So that a group that goes on with little gets chunks of a size that is kept.
        self.next_size = (u64::from(chunk.size) / CHUNK_FACTOR).max(first);
        let (start, size) = self.usable(&chunk);
        if !self.ranges.remove_region(start, size) {
            // One that goes has no ranges, or some that there was no room to note when they were frozen.
            debug_assert!(chunk.forks.is_going(), "an empty chunk is one free range");
            self.ranges.forget_region(region);
        }
        chunk
    }

    // ---- looking ----

    pub(super) fn chunks(&self) -> impl Iterator<Item = &PoolChunk> {
        self.chunks.iter().flatten()
    }

    /// Adds its sums, and widens `live`, which goes from the lowest to the highest offset in use.
    pub(super) fn add_to(&self, sums: &mut Sums, live: &mut (u64, u64)) {
        sums.free += self.ranges.free_bytes();
        for chunk in self.chunks() {
            sums.chunks += 1;
            sums.chunk_bytes += u64::from(chunk.size);
            sums.committed += chunk.committed();
            sums.mappings += chunk.mappings;
            sums.frozen += chunk.forks.frozen_bytes();
            if chunk.live > 0 {
                live.0 = live.0.min(chunk.offset.into());
                let last = chunk.touched.end();
                live.1 = live.1.max(chunk.bytes(0..last).end.into());
            }
        }
    }
}
