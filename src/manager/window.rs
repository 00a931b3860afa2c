// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! One window, as one arena has it: the pools that have its chunks. The runs of pages that are in no chunk are
//! every arena's.

use super::arenas::SharedWindow;
use super::huge_pages::FreshHugePages;
use super::lookup::{Readers, WindowIndex};
use super::piece::{Piece, Pieces, Place, RequestLayout, Untouched};
use super::pool::number::{self, POOLS};
use super::pool::{FIRST_CHUNK, Keep, MOST_CHUNKS, Origin, Pool, PoolChunk, Thawed, guard, narrow};
use super::request::{LARGEST_ALIGNMENT, PlannedSegment};
use super::space::heap_is_full;
use super::stats::Sums;
use super::{LayoutItem, LayoutKind};
use crate::error::Result;
use crate::group::{AllocGroup, CodeHint};
use crate::mapper::{Chunk, Prepared};
use crate::memory::pages::PageSet;
use crate::memory::published::Publication;
use crate::memory::ranges::{Handed, Nodes, RegionId};
use crate::memory::runs::From;
use crate::page::{AddressRange, Alignment};
use crate::sys::{self, Forked, ForksInUse};
use std::sync::Arc;

/// A JITDylib is not begun in a window of which less than this part is free.
const ROOM_FOR_MORE: u64 = 4;
/// A chunk grows to at most this share of its window.
const CHUNK_SHARE: u64 = 64;
/// A window of this size has room for chunks of every hint.
const LEAST_FOR_HINTS: u64 = 32 << 20;
/// Chunks of small windows are not smaller than this for the share's sake.
const SMALL_CHUNK: u64 = 64 << 10;

pub(super) struct Window {
    /// Which of the manager's it is.
    number: u16,
    nodes: Arc<Nodes>,
    /// What readers without the lock find it by.
    index: Publication<WindowIndex>,
    pub(super) range: AddressRange,
    /// What offsets count from: aligned to [`LARGEST_ALIGNMENT`], so that an aligned offset is an
    /// aligned address. At most that much below the window, so offsets fit 32 bits.
    origin: u64,
    shared: Arc<SharedWindow>,
    /// Of another arena than the first, which counts what all have.
    is_share: bool,
    pools: [Option<Box<Pool>>; POOLS],
    /// The mapper had no memory for a chunk of code, and none was made or given back since.
    code_is_short: bool,
    chunks: usize,
    chunk_bytes: u64,
    /// Bytes handed out.
    taken: u64,
    /// JITDylibs that have it as their home.
    pub(super) homes: usize,
    /// Growths, reclaims and discards under way outside the lock.
    pub(super) changes: usize,
    page: Alignment,
    granule: Alignment,
    /// The last fork.
    epoch: u32,
}

/// Where room for a segment is looked for, each way in more places than the one before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Search {
    /// In chunks of its alloc group and hint, if hints get chunks of their own.
    OwnChunks,
    /// For code, in chunks of other hints too.
    AnyCode,
    /// In every free range, for when there is no other way.
    Thorough,
}

const PIECES_HAVE_A_POOL: &str = "pieces have a pool";

impl Window {
    /// What offsets count from in a window.
    pub(super) fn origin_of(range: AddressRange) -> u64 {
        range.start() & !(LARGEST_ALIGNMENT - 1)
    }

    /// `is_share`: for another arena than the first.
    pub(super) fn new(
        number: u16,
        shared: Arc<SharedWindow>,
        is_share: bool,
        readers: &Readers,
        (page, granule): (Alignment, Alignment),
        epoch: u32,
    ) -> Window {
        let (range, origin) = (shared.range, Window::origin_of(shared.range));
        Window {
            number,
            nodes: Arc::clone(&readers.nodes),
            index: WindowIndex::publish(readers, number, range, origin),
            range,
            origin,
            shared,
            is_share,
            pools: Default::default(),
            code_is_short: false,
            chunks: 0,
            chunk_bytes: 0,
            taken: 0,
            homes: 0,
            changes: 0,
            page,
            granule,
            epoch,
        }
    }

    /// What a chunk grows to, unless one segment needs more.
    fn largest_chunk(&self) -> u64 {
        let share = self.range.size() / CHUNK_SHARE;
        self.page.round_down(share.max(SMALL_CHUNK))
    }

    /// The size that a pool's chunks begin with, and that they come back to.
    fn first_chunk(&self) -> u64 {
        FIRST_CHUNK.min(self.largest_chunk())
    }

    fn pool(&mut self, pool: u8) -> &mut Pool {
        let (first, granule) = (self.first_chunk(), self.granule);
        let (number, nodes) = (self.number, (&self.nodes, &self.index.pages));
        self.pools[usize::from(pool)]
            .get_or_insert_with(|| Box::new(Pool::new(number, pool, nodes, granule, first)))
    }

    /// Whether a hint gets chunks of its own. Else all code lies together: in a small window, where they
    /// would be missing for something else; where each chunk must count, and where there is no memory.
    fn makes_chunks_for_hints(&self) -> bool {
        !self.code_is_short
            && self.range.size() >= LEAST_FOR_HINTS
            && self.shared.free().chunks < MOST_CHUNKS / 2
    }

    #[inline]
    fn pool_of(&self, piece: &Piece) -> &Pool {
        let pool = self.pools[usize::from(piece.pool)].as_ref();
        pool.expect(PIECES_HAVE_A_POOL)
    }

    // ---- pieces ----

    /// Takes a range for each segment, or none at all and says which segment found no room.
    pub(super) fn take_all(
        &mut self,
        planned: &[PlannedSegment],
        search: Search,
        layout: &mut RequestLayout,
    ) -> std::result::Result<Pieces, PlannedSegment> {
        let origin = Origin {
            window: self.number,
            address: self.origin,
        };
        let thorough = search == Search::Thorough;
        let mut pieces = Pieces::new();
        layout.start_over();
        for planned in planned {
            let mut from = planned.pool;
            // One place that takes, so that it is inlined.
            let piece = loop {
                let pool = self.pools[usize::from(from)].as_mut();
                match pool.and_then(|pool| pool.take(planned, origin, thorough, layout)) {
                    Some(piece) => break piece,
                    None => match self.take_next_from(planned.pool, from, search) {
                        Some(next) => from = next,
                        None => {
                            for piece in &pieces {
                                let pool = self.pools[usize::from(piece.pool)].as_mut();
                                pool.expect(PIECES_HAVE_A_POOL).free(piece.id);
                            }
                            return Err(*planned);
                        }
                    },
                }
            };
            pieces.push(piece);
        }
        self.taken += layout.taken;
        Ok(pieces)
    }

    /// The pool that may have room for code of which `tried` had none.
    #[cold]
    fn take_next_from(&self, own: u8, tried: u8, search: Search) -> Option<u8> {
        let mut others = number::instead_of(own);
        match tried == own {
            true if self.looks_everywhere(search) => others.next(),
            true => None,
            false => others.skip_while(|other| *other != tried).nth(1),
        }
    }

    /// Notes that pages of a request are about to be written, and gives the bytes that hold memory
    /// since.
    pub(super) fn touch(&mut self, untouched: &[Untouched], huge: &mut FreshHugePages) -> u64 {
        let origin = self.origin;
        let touched = untouched.iter().map(|untouched| {
            let pool = self.pools[usize::from(untouched.pool)].as_mut();
            let pool = pool.expect(PIECES_HAVE_A_POOL);
            pool.begin_huge_pages(untouched, origin, huge) + pool.touch(untouched)
        });
        touched.sum()
    }

    /// [`Pool::fill_huge_pages`] of all pools.
    pub(super) fn fill_huge_pages(&mut self, huge: &mut FreshHugePages) -> u64 {
        let origin = self.origin;
        let pools = self.pools.iter_mut().flatten();
        pools.map(|pool| pool.fill_huge_pages(origin, huge)).sum()
    }

    /// Whether it holds no allocation and no JITDylib.
    pub(super) fn is_empty(&self) -> bool {
        self.taken == 0 && self.homes == 0
    }

    /// The bytes that a live piece was asked for, and their group.
    pub(super) fn extent(&self, piece: &Piece) -> (AddressRange, AllocGroup) {
        let pool = self.pool_of(piece);
        (pool.extent(piece, self.origin), pool.group)
    }

    /// Where a live piece is.
    pub(super) fn place(&self, piece: &Piece) -> Place {
        self.pool_of(piece).place(piece.id, self.origin)
    }

    /// Takes a piece back. Gives its bytes, rounding included, and whether its chunk is empty now.
    #[inline]
    pub(super) fn free(&mut self, piece: &Piece) -> (u64, bool) {
        let pool = self.pools[usize::from(piece.pool)].as_mut();
        let (size, empty_now) = pool.expect(PIECES_HAVE_A_POOL).free(piece.id);
        self.taken -= size;
        (size, empty_now)
    }

    /// Which of the window's chunks a live piece lies in.
    pub(super) fn chunk_of(&self, piece: &Piece) -> (u8, RegionId) {
        (piece.pool, self.pool_of(piece).region(piece.id))
    }

    /// [`Pool::may_adopt`]
    pub(super) fn may_adopt(&mut self, piece: &Piece) -> bool {
        let pool = self.pools[usize::from(piece.pool)].as_mut();
        pool.expect(PIECES_HAVE_A_POOL).may_adopt(piece.id)
    }

    /// [`Pool::adopted`]
    pub(super) fn adopted(&mut self, piece: &Piece) {
        let pool = self.pools[usize::from(piece.pool)].as_mut();
        pool.expect(PIECES_HAVE_A_POOL).adopted(piece.id);
    }

    /// Whether the chunk of a piece is given up once this many pieces in it are free.
    pub(super) fn goes_without(&self, piece: &Piece, pieces: u32) -> bool {
        let pool = self.pool_of(piece);
        pool.goes_without(pool.region(piece.id), pieces)
    }

    // ---- chunks ----

    /// Whether room for a segment is looked for in all chunks that may have it.
    pub(super) fn looks_everywhere(&self, search: Search) -> bool {
        search != Search::OwnChunks || !self.makes_chunks_for_hints()
    }

    /// Takes a run of pages for a segment that fits no chunk, if the window has one, where huge pages fit it
    /// if there is such a place. Gives it with the bytes that the segment needs of it, and room to note its pages.
    pub(super) fn grow(
        &mut self,
        short: &PlannedSegment,
        pool: u8,
    ) -> Result<Option<(AddressRange, u64, PageSet)>> {
        let Some((range, need)) = self.take_run(short, pool) else {
            return Ok(None);
        };
        match PageSet::new(narrow(range.size() / self.page.bytes())) {
            Some(touched) => Ok(Some((range, need, touched))),
            None => {
                self.shrink(range);
                Err(heap_is_full())
            }
        }
    }

    fn take_run(&mut self, short: &PlannedSegment, pool: u8) -> Option<(AddressRange, u64)> {
        let shared = Arc::clone(&self.shared);
        let free = &mut *shared.free();
        if free.chunks >= MOST_CHUNKS {
            return None;
        }
        let runs = &mut free.runs;
        let (page, granule) = (self.page, self.granule);
        let huge = sys::huge_page_size();
        let most = self.largest_chunk();
        // Room to align inside the chunk.
        let slack = u64::from(short.alignment).saturating_sub(granule.bytes());
        let need = u64::from(short.size.max(1)) + slack + guard(short.group(), granule);
        let need = page.round_up(need)?;
        // Where little is left, other groups of the same request need some of it too.
        let fair = page.round_up(runs.largest() / 2)?;
        let next_size = self.pool(pool).next_size(most);
        let mut size = page.round_up(next_size.min(fair).max(need))?;
        let executable = short.group().protection.executable();
        let from = if executable { From::Bottom } else { From::Top };
        let offset = loop {
            let aligned = (size >= huge.bytes()).then(|| runs.take(size, huge, from));
            match aligned.flatten().or_else(|| runs.take(size, page, from)) {
                Some(offset) => break offset,
                None if size > need => size = page.round_up(size / 2)?.max(need),
                None => return None,
            }
        };
        free.chunks += 1;
        free.chunk_bytes += size;
        self.chunks += 1;
        self.chunk_bytes += size;
        let range = AddressRange::new(self.origin + offset, size);
        Some((range.expect("runs lie inside their window"), need))
    }

    /// Gives the run of a chunk back.
    pub(super) fn shrink(&mut self, chunk: AddressRange) {
        self.chunks -= 1;
        self.chunk_bytes -= chunk.size();
        let mut free = self.shared.free();
        free.chunks -= 1;
        free.chunk_bytes -= chunk.size();
        free.runs.give(chunk.start() - self.origin, chunk.size());
    }

    /// Lets the next chunk of a pool be smaller than one that was not to be had.
    pub(super) fn try_smaller(&mut self, pool: u8, size: u64) -> bool {
        let least = self.page.bytes();
        self.pool(pool).try_smaller(size, least)
    }

    /// There is no memory for a chunk. Says whether it was for code, which then may lie among that of other
    /// hints.
    pub(super) fn do_with_any_code(&mut self, pool: u8) -> bool {
        let is_code = number::instead_of(pool).next().is_some();
        self.code_is_short |= is_code;
        is_code
    }

    /// There is memory for chunks again.
    pub(super) fn has_memory(&mut self) {
        self.code_is_short = false;
    }

    /// Adds a chunk that the mapper prepared.
    pub(super) fn add_chunk(
        &mut self,
        pool: u8,
        chunk: Chunk,
        touched: PageSet,
        prepared: Prepared,
    ) {
        let Chunk { range, commit, .. } = chunk;
        let (offset, size) = (narrow(range.start() - self.origin), narrow(range.size()));
        let chunk = PoolChunk::new(
            offset, size, commit, self.page, touched, prepared, self.epoch,
        );
        self.insert(pool, chunk);
    }

    /// Adds an empty chunk to its pool.
    pub(super) fn insert(&mut self, pool: u8, chunk: PoolChunk) {
        self.pool(pool).insert(chunk);
    }

    /// This process has forked, or is the child, and children see what no segment can write.
    pub(super) fn forked(&mut self, forked: Forked) {
        self.epoch = forked.epoch;
        let pools = self.pools.iter_mut().flatten();
        for pool in pools.filter(|pool| !pool.group.protection.writable()) {
            pool.forked(forked);
        }
    }

    pub(super) fn is_inherited(&self, piece: &Piece) -> bool {
        self.pool_of(piece).is_inherited(piece.id)
    }

    /// [`Pool::take_thawed`] of one pool.
    pub(super) fn take_thawed(&mut self, pool: usize, forks: &ForksInUse, out: &mut Vec<Thawed>) {
        let origin = self.origin;
        if let Some(pool) = &mut self.pools[pool] {
            pool.take_thawed(forks, origin, out);
        }
    }

    pub(super) fn thawed(&mut self, pool: usize, thawed: &Thawed) -> bool {
        let pool = self.pools[pool].as_mut();
        pool.expect(PIECES_HAVE_A_POOL).thawed(thawed.id)
    }

    /// [`Pool::next_to_go`]
    pub(super) fn next_to_go(&self, pool: usize, keep: Keep) -> Option<RegionId> {
        self.pools[pool].as_ref()?.next_to_go(keep)
    }

    /// Takes a chunk out that [`Window::next_to_go`] named.
    pub(super) fn detach(&mut self, pool: usize, region: RegionId) -> (AddressRange, PoolChunk) {
        let first = self.first_chunk();
        let pool = self.pools[pool].as_mut().expect(PIECES_HAVE_A_POOL);
        let chunk = pool.detach(region, first);
        (chunk.range(self.origin), chunk)
    }

    /// [`Pool::give_up_fresh`] of all pools.
    pub(super) fn give_up_fresh(&mut self) {
        let pools = self.pools.iter_mut().flatten();
        pools.for_each(|pool| pool.give_up_fresh());
    }

    // ---- giving back ----

    /// A pool, if it ever had a chunk, and what its offsets count from.
    pub(super) fn pool_at(&mut self, pool: usize) -> Option<(&mut Pool, u64)> {
        Some((self.pools[pool].as_mut()?, self.origin))
    }

    /// [`Pool::is_held`]
    pub(super) fn is_held(&self, piece: &Piece) -> bool {
        self.pool_of(piece).is_held(piece.id)
    }

    /// [`Pool::take_idle`], with the pages of each range.
    pub(super) fn take_idle(
        &mut self,
        pool: usize,
        below: &mut Option<usize>,
        least: u32,
        most: usize,
    ) -> impl Iterator<Item = (Handed, AddressRange)> {
        let taken = match &mut self.pools[pool] {
            Some(pool) => pool.take_idle(below, least, most),
            None => {
                *below = None;
                Vec::new()
            }
        };
        let (pool, origin) = (self.pools[pool].as_ref(), self.origin);
        taken.into_iter().map(move |handed| {
            let pool = pool.expect(PIECES_HAVE_A_POOL);
            (handed, pool.pages_of(&handed, origin))
        })
    }

    /// [`Pool::discarded`]
    pub(super) fn discarded(&mut self, pool: usize, handed: &Handed, success: bool) -> (u64, bool) {
        let pool = self.pools[pool].as_mut().expect(PIECES_HAVE_A_POOL);
        pool.discarded(handed, success)
    }

    // ---- looking ----

    /// Whether no further chunk may be made.
    pub(super) fn crowded(&self) -> bool {
        self.shared.free().chunks >= MOST_CHUNKS
    }

    /// Whether this arena has no chunk of it.
    pub(super) fn is_bare(&self) -> bool {
        self.chunks == 0
    }

    /// Bytes that are not handed out, and in no other arena's chunk.
    pub(super) fn room(&self) -> u64 {
        let of_others = self.shared.free().chunk_bytes - self.chunk_bytes;
        self.range.size() - self.taken - of_others
    }

    /// Whether the rest of a JITDylib fits too, by all likelihood.
    pub(super) fn has_room_for_more(&self) -> bool {
        self.room() >= self.range.size() / ROOM_FOR_MORE
    }

    /// Bytes of pages that may hold memory.
    pub(super) fn committed(&self) -> u64 {
        let chunks = self.pools.iter().flatten().flat_map(|pool| pool.chunks());
        chunks.map(PoolChunk::committed).sum()
    }

    /// The largest run of pages that is in no chunk.
    pub(super) fn largest_run(&self) -> u64 {
        self.shared.free().runs.largest()
    }

    /// Adds its sums, and gives from where to where it is in use.
    pub(super) fn add_to(&self, sums: &mut Sums) -> (u64, u64) {
        if !self.is_share {
            sums.windows += 1;
            sums.reserved += self.range.size();
            sums.smallest_window = sums.smallest_window.min(self.range.size());
            sums.out_of_reach += u64::from(!self.shared.in_reach);
            sums.mappings += self.shared.free().runs.count() as u64;
        }
        let mut live = (u64::MAX, 0);
        for pool in self.pools.iter().flatten() {
            pool.add_to(sums, &mut live);
        }
        sums.span = sums.span.max(u64::saturating_sub(live.1, live.0));
        live
    }

    /// Shows the window, if it is not a share, and its chunks.
    pub(super) fn visit(&self, visit: &mut dyn FnMut(LayoutItem)) {
        if !self.is_share {
            visit(LayoutItem {
                kind: LayoutKind::Window,
                range: self.range,
                group: None,
                hint: CodeHint::Normal,
                allocation: None,
            });
        }
        for pool in self.pools.iter().flatten() {
            for chunk in pool.chunks() {
                visit(LayoutItem {
                    kind: LayoutKind::Chunk,
                    range: chunk.range(self.origin),
                    group: Some(pool.group),
                    hint: pool.hint(),
                    allocation: None,
                });
            }
        }
    }
}
