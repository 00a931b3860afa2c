// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! One window: its chunks, grouped in pools, and the pieces that are handed out of them.

use super::request::PlannedSegment;
use super::{LayoutItem, LayoutKind, SegmentMemory};
use crate::group::{AllocGroup, Lifetime};
use crate::mapper::{Prepared, Reserved, Working};
use crate::memory::ranges::{RangeId, Ranges, RegionId};
use crate::memory::runs::{From, Runs};
use crate::memory::view::Writer;
use crate::page::{AddressRange, Alignment};
use crate::sys;
use smallvec::SmallVec;

/// First size of a chunk, unless that is more than its share of the window; each further one of its
/// group is larger by the factor, up to that share. Its pages take no memory before they are used,
/// but each chunk takes system calls.
const FIRST_CHUNK: u64 = 512 << 10;
const CHUNK_FACTOR: u64 = 2;
/// A chunk grows to at most this share of its window.
const CHUNK_SHARE: u64 = 64;
/// Chunks of small windows are not smaller than this for the share's sake.
const SMALL_CHUNK: u64 = 64 << 10;
/// More chunks than this are never made in one window: each takes at most two views and leaves
/// at most one gap, so a window has fewer than 512 mappings.
pub(super) const MOST_CHUNKS: usize = 160;
/// Empty chunks of a group are kept for reuse while they are no larger than this together.
pub(super) const MOST_SPARE: u64 = 2 << 20;
/// Pools of a window: protection (3 bits) and lifetime (1 bit).
pub(super) const POOLS: usize = 16;
/// Segments may be aligned to this and no more.
pub(super) const LARGEST_ALIGNMENT: u64 = 1 << 30;

/// One range of an allocation. Small, since every live segment has one.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    id: RangeId,
    /// Bytes asked for.
    pub(super) requested: u32,
    /// Bytes of content among them.
    pub(super) content: u32,
    /// Position in the request.
    pub(super) segment: u16,
    pub(super) window: u16,
    pub(super) pool: u8,
    /// Nothing was ever written behind the content.
    pub(super) zeroed: bool,
    /// The mapper copies its content.
    pub(super) copied: bool,
}

impl Piece {
    /// Whether it goes once the finalize actions have run.
    pub(super) fn is_for_finalize(&self) -> bool {
        self.pool & FINALIZE_POOL != 0
    }

    /// Whether it must be made to trap, or the mapper told, before it is free.
    pub(super) fn needs_care(&self) -> bool {
        self.copied || self.pool & CODE_POOL != 0
    }
}

pub(super) type Pieces = SmallVec<[Piece; 3]>;

/// Where a piece is.
pub(super) struct Place {
    pub(super) range: AddressRange,
    pub(super) group: AllocGroup,
    /// How its bytes are written, if they are shared.
    pub(super) writer: Option<Writer>,
}

/// What the requester of a new allocation learns, and what is to be done before.
#[derive(Default)]
pub(super) struct RequestLayout {
    /// The new allocation's handle.
    pub(super) handle: u64,
    pub(super) segments: SmallVec<[SegmentMemory; 4]>,
    /// Zero-fill that must be zeroed before anyone sees it: how it is written, from where, how much.
    pub(super) dirty: SmallVec<[(Writer, u32, u32); 1]>,
    /// Some of its pieces need buffers.
    pub(super) copied: bool,
    /// Bytes handed out, and those of them that were asked for.
    pub(super) taken: u64,
    pub(super) live: u64,
}

impl RequestLayout {
    /// Forgets what an attempt that failed has noted.
    fn start_over(&mut self) {
        self.dirty.clear();
        (self.copied, self.taken, self.live) = (false, 0, 0);
    }
}

pub(super) struct PoolChunk {
    /// From the window's origin, as all offsets here.
    offset: u32,
    size: u32,
    working: Working,
    mappings: u64,
    /// Offset behind the last byte that was ever handed out.
    used_up_to: u32,
    /// Pieces handed out.
    live: u32,
    /// Nothing was handed out yet: somebody has just made it and is about to take from it.
    fresh: bool,
}

struct Pool {
    group: AllocGroup,
    ranges: Ranges,
    /// By region; a region is a chunk.
    chunks: Vec<Option<PoolChunk>>,
    next_size: u64,
}

pub(super) struct Window {
    pub(super) range: AddressRange,
    /// What offsets count from: aligned to [`LARGEST_ALIGNMENT`], so that an aligned offset is an
    /// aligned address. At most that much below the window, so offsets fit 32 bits.
    origin: u64,
    in_reach: bool,
    runs: Runs,
    pools: [Option<Box<Pool>>; POOLS],
    chunks: usize,
    page: Alignment,
    granule: Alignment,
}

/// Sums over windows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums {
    pub(super) reserved: u64,
    pub(super) committed: u64,
    pub(super) free: u64,
    pub(super) mappings: u64,
    pub(super) chunks: u64,
    pub(super) span: u64,
    pub(super) out_of_reach: u64,
    pub(super) smallest_window: u64,
}

impl Sums {
    pub(super) const NONE: Sums = Sums {
        reserved: 0,
        committed: 0,
        free: 0,
        mappings: 0,
        chunks: 0,
        span: 0,
        out_of_reach: 0,
        smallest_window: u64::MAX,
    };
}

/// Set in the index of pools of executable pieces: their protection's bit.
const CODE_POOL: u8 = 4;
/// Set in the index of pools whose pieces are of finalize lifetime.
const FINALIZE_POOL: u8 = 8;

fn pool_index(group: AllocGroup) -> usize {
    let lifetime = match group.lifetime {
        Lifetime::Finalize => FINALIZE_POOL,
        _ => 0,
    };
    group.protection.bits() as usize | lifetime as usize
}

fn addresses(origin: u64, offset: u32, size: u32) -> AddressRange {
    AddressRange::new(origin + u64::from(offset), size.into()).expect("windows end")
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).expect("windows are below 2 GiB")
}

/// The part of a chunk that is handed out: code keeps off the first bytes, because the function
/// sanitizer reads 8 bytes before a function.
fn usable(chunk: &PoolChunk, group: AllocGroup, granule: Alignment) -> (u32, u32) {
    let guard = guard(group, granule) as u32;
    (chunk.offset + guard, chunk.size - guard)
}

fn guard(group: AllocGroup, granule: Alignment) -> u64 {
    if group.protection.executable() {
        granule.bytes()
    } else {
        0
    }
}

impl Pool {
    fn chunk(&self, region: RegionId) -> &PoolChunk {
        self.chunks[region as usize]
            .as_ref()
            .expect("regions are chunks")
    }

    fn chunk_mut(&mut self, region: RegionId) -> &mut PoolChunk {
        self.chunks[region as usize]
            .as_mut()
            .expect("regions are chunks")
    }
}

impl Window {
    pub(super) fn new(reserved: Reserved, page: Alignment, granule: Alignment) -> Window {
        Window {
            range: reserved.range,
            origin: reserved.range.start() & !(LARGEST_ALIGNMENT - 1),
            in_reach: reserved.in_reach,
            runs: Runs::new(reserved.range.size()),
            pools: Default::default(),
            chunks: 0,
            page,
            granule,
        }
    }

    /// What a chunk grows to, unless one segment needs more.
    fn largest_chunk(&self) -> u64 {
        let share = self.range.size() / CHUNK_SHARE;
        self.page.round_down(share.max(SMALL_CHUNK))
    }

    /// The size that a group's chunks begin with, and that they come back to.
    fn first_chunk(&self) -> u64 {
        FIRST_CHUNK.min(self.largest_chunk())
    }

    fn pool(&mut self, group: AllocGroup) -> &mut Pool {
        let next_size = self.first_chunk();
        let granule = narrow(self.granule.bytes());
        self.pools[pool_index(group)].get_or_insert_with(|| {
            let ranges = Ranges::new(granule);
            Box::new(Pool {
                group,
                ranges,
                chunks: Vec::new(),
                next_size,
            })
        })
    }

    fn pool_of(&self, piece: &Piece) -> &Pool {
        self.pools[piece.pool as usize]
            .as_ref()
            .expect("pieces have a pool")
    }

    // ---- handing out ----

    /// Takes a range for each segment, or none at all and says which segment found no room.
    /// `thorough` looks at every free range, for when there is no other way.
    pub(super) fn take_all(
        &mut self,
        planned: &[PlannedSegment],
        index: u16,
        thorough: bool,
        layout: &mut RequestLayout,
    ) -> Result<Pieces, PlannedSegment> {
        let mut pieces = Pieces::new();
        layout.start_over();
        for planned in planned {
            match self.take(planned, index, thorough, layout) {
                Some(piece) => pieces.push(piece),
                None => {
                    for piece in &pieces {
                        self.free(piece);
                    }
                    return Err(*planned);
                }
            }
        }
        Ok(pieces)
    }

    fn take(
        &mut self,
        planned: &PlannedSegment,
        index: u16,
        thorough: bool,
        layout: &mut RequestLayout,
    ) -> Option<Piece> {
        let pool_index = pool_index(planned.group);
        let pool = self.pools[pool_index].as_mut()?;
        let PlannedSegment {
            size, alignment, ..
        } = *planned;
        let handed = match pool.ranges.allocate(size, alignment) {
            None if thorough => pool.ranges.allocate_thoroughly(size, alignment)?,
            fast => fast?,
        };
        let chunk = pool.chunk_mut(handed.region);
        let content_end = handed.start + planned.content;
        let end = handed.start + handed.size;
        let dirty = chunk.used_up_to.min(end).saturating_sub(content_end);
        chunk.used_up_to = chunk.used_up_to.max(end);
        chunk.live += 1;
        chunk.fresh = false;
        layout.taken += u64::from(handed.size);
        layout.live += u64::from(planned.size);
        let segment = &mut layout.segments[planned.index as usize];
        segment.address = self.origin + u64::from(handed.start);
        let mut copied = false;
        match chunk.working {
            Working::Shared(writer) => {
                let writer = writer.part_of(handed.start - chunk.offset, handed.size);
                segment.working_memory = writer.pointer();
                if dirty > 0 {
                    layout.dirty.push((writer, planned.content, dirty));
                }
            }
            Working::Copied => copied = true,
        }
        layout.copied |= copied;
        Some(Piece {
            id: handed.id,
            requested: planned.size,
            content: planned.content,
            segment: planned.index,
            window: index,
            pool: pool_index as u8,
            zeroed: dirty == 0,
            copied,
        })
    }

    /// Where a live piece is.
    pub(super) fn place(&self, piece: &Piece) -> Place {
        let pool = self.pool_of(piece);
        let handed = pool.ranges.get(piece.id);
        let chunk = pool.chunk(handed.region);
        let writer = match chunk.working {
            Working::Shared(writer) => {
                Some(writer.part_of(handed.start - chunk.offset, handed.size))
            }
            Working::Copied => None,
        };
        let range = addresses(self.origin, handed.start, handed.size);
        Place {
            range,
            group: pool.group,
            writer,
        }
    }

    /// Says that a piece is about to be taken back.
    pub(super) fn prefetch(&self, piece: &Piece) {
        sys::prefetch(self.pool_of(piece).ranges.noted(piece.id));
    }

    /// Takes a piece back. Gives its bytes, rounding included, and whether its chunk is empty now.
    pub(super) fn free(&mut self, piece: &Piece) -> (u64, bool) {
        let pool = self.pools[piece.pool as usize]
            .as_mut()
            .expect("pieces have a pool");
        let handed = pool.ranges.free(piece.id);
        let chunk = pool.chunk_mut(handed.region);
        chunk.live -= 1;
        (handed.size.into(), chunk.live == 0)
    }

    // ---- chunks ----

    /// Takes a run of pages for a segment that fits no chunk, if the window has one. Gives it with
    /// the bytes that the segment needs of it.
    pub(super) fn grow(&mut self, short: &PlannedSegment) -> Option<(AddressRange, u64)> {
        if self.chunks >= MOST_CHUNKS {
            return None;
        }
        let (page, granule) = (self.page, self.granule);
        let most = self.largest_chunk();
        // Room to align inside the chunk.
        let slack = u64::from(short.alignment).saturating_sub(granule.bytes());
        let need = u64::from(short.size.max(1)) + slack + guard(short.group, granule);
        let need = page.round_up(need)?;
        let largest = self.runs.largest();
        let pool = self.pool(short.group);
        // Where little is left, other groups of the same request need some of it too.
        let fair = page.round_up(largest / 2)?;
        let mut size = page.round_up(pool.next_size.min(fair).max(need))?;
        pool.next_size = (pool.next_size * CHUNK_FACTOR).min(most);
        let executable = short.group.protection.executable();
        let from = if executable { From::Bottom } else { From::Top };
        let offset = loop {
            match self.runs.take(size, page, from) {
                Some(offset) => break offset,
                None if size > need => size = page.round_up(size / 2)?.max(need),
                None => return None,
            }
        };
        self.chunks += 1;
        let range = self
            .range
            .part(offset, size)
            .expect("runs lie inside their window");
        Some((range, need))
    }

    /// Gives the run of a chunk back.
    pub(super) fn shrink(&mut self, chunk: AddressRange) {
        self.chunks -= 1;
        self.runs
            .give(chunk.start() - self.range.start(), chunk.size());
    }

    /// Lets the next chunk of a group be smaller than one that was not to be had.
    pub(super) fn try_smaller(&mut self, group: AllocGroup, size: u64) -> bool {
        let least = self.page.bytes();
        let pool = self.pool(group);
        pool.next_size = (size / 2).max(least);
        pool.next_size < size
    }

    /// Makes sure that the ranges of a request can be noted; `false` if the heap is full.
    pub(super) fn make_spare(&mut self, planned: &[PlannedSegment]) -> bool {
        // Each takes one record, and up to two for what is left in front of it and behind it.
        let count = planned.len() as u32 * 3;
        planned
            .iter()
            .all(|planned| match &mut self.pools[pool_index(planned.group)] {
                Some(pool) => pool.ranges.make_spare(count),
                None => true,
            })
    }

    /// Adds a chunk that the mapper prepared.
    pub(super) fn add_chunk(&mut self, range: AddressRange, group: AllocGroup, prepared: Prepared) {
        let offset = narrow(range.start() - self.origin);
        self.insert(
            group,
            PoolChunk {
                offset,
                size: narrow(range.size()),
                working: prepared.working,
                mappings: prepared.mappings,
                used_up_to: offset,
                live: 0,
                fresh: true,
            },
        );
    }

    /// Adds an empty chunk to its pool.
    pub(super) fn insert(&mut self, group: AllocGroup, chunk: PoolChunk) {
        let (start, size) = usable(&chunk, group, self.granule);
        let pool = self.pool(group);
        let region = match pool.chunks.iter().position(Option::is_none) {
            Some(vacant) => vacant,
            None => {
                pool.chunks.push(None);
                pool.chunks.len() - 1
            }
        };
        pool.ranges.add_region(region as RegionId, start, size);
        pool.chunks[region] = Some(chunk);
    }

    /// Takes an empty chunk out of a pool, the largest first, unless the empty ones have at most
    /// `keep` bytes together.
    pub(super) fn detach(
        &mut self,
        pool: usize,
        keep: u64,
    ) -> Option<(AddressRange, AllocGroup, PoolChunk)> {
        let (granule, first) = (self.granule, self.first_chunk());
        let pool = self.pools[pool].as_mut()?;
        let empty = pool.chunks.iter().enumerate().filter_map(|(index, chunk)| {
            let chunk = chunk.as_ref()?;
            // What others have just made is left to them, unless everything is needed.
            (chunk.live == 0 && (keep == 0 || !chunk.fresh)).then_some((chunk.size, index))
        });
        let (bytes, largest) = empty.fold((0, None), |(bytes, largest), chunk| {
            (bytes + u64::from(chunk.0), largest.max(Some(chunk)))
        });
        let (_, index) = largest?;
        if bytes <= keep {
            return None;
        }
        let chunk = pool.chunks[index].take()?;
        // So that a group that goes on with little gets chunks of a size that is kept.
        pool.next_size = (u64::from(chunk.size) / CHUNK_FACTOR).max(first);
        let (start, size) = usable(&chunk, pool.group, granule);
        let removed = pool.ranges.remove_region(start, size);
        debug_assert!(removed, "an empty chunk is one free range");
        Some((
            addresses(self.origin, chunk.offset, chunk.size),
            pool.group,
            chunk,
        ))
    }

    // ---- looking ----

    /// Whether no further chunk may be made.
    pub(super) fn crowded(&self) -> bool {
        self.chunks >= MOST_CHUNKS
    }

    /// Bytes that are not handed out.
    pub(super) fn room(&self) -> u64 {
        let pools: u64 = self
            .pools
            .iter()
            .flatten()
            .map(|pool| pool.ranges.free_bytes())
            .sum();
        pools + self.runs.total()
    }

    /// The largest run of pages that is in no chunk.
    pub(super) fn largest_run(&self) -> u64 {
        self.runs.largest()
    }

    pub(super) fn add_to(&self, sums: &mut Sums) {
        sums.reserved += self.range.size();
        sums.smallest_window = sums.smallest_window.min(self.range.size());
        sums.out_of_reach += u64::from(!self.in_reach);
        sums.mappings += self.runs.count() as u64;
        let mut live = (u64::MAX, 0);
        for pool in self.pools.iter().flatten() {
            sums.free += pool.ranges.free_bytes();
            for chunk in pool.chunks.iter().flatten() {
                sums.chunks += 1;
                sums.committed += u64::from(chunk.size);
                sums.mappings += chunk.mappings;
                if chunk.live > 0 {
                    live.0 = live.0.min(chunk.offset.into());
                    live.1 = live.1.max(chunk.used_up_to.into());
                }
            }
        }
        sums.span = sums.span.max(u64::saturating_sub(live.1, live.0));
    }

    /// Shows the window and its chunks.
    pub(super) fn visit(&self, visit: &mut impl FnMut(LayoutItem)) {
        visit(LayoutItem {
            kind: LayoutKind::Window,
            range: self.range,
            group: None,
        });
        for pool in self.pools.iter().flatten() {
            for chunk in pool.chunks.iter().flatten() {
                let range = addresses(self.origin, chunk.offset, chunk.size);
                visit(LayoutItem {
                    kind: LayoutKind::Chunk,
                    range,
                    group: Some(pool.group),
                });
            }
        }
    }
}
