// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! All windows of a manager: which may serve a request, what chunks they can have, and why they are full.

use super::allocate::Waiting;
use super::arenas::{SharedWindow, SharedWindows};
use super::deferred::Deferred;
use super::dylibs::Dylibs;
use super::huge_pages::{self, FreshHugePages, HugeRanges};
use super::lookup::{ManagerReader, Readers};
use super::piece::{Piece, Pieces, Place};
use super::pool::number::{self, POOLS};
use super::pool::{Keep, PoolChunk, Thawed};
use super::request::{PlannedSegment, Request};
use super::space::{heap_is_full, no_pages};
use super::stats::{NO_SPAN, Sums};
use super::window::{Search, Window};
use super::{ForkPolicy, GrowthPolicy, Options};
use crate::error::{Result, invalid_handle};
use crate::group::AllocGroup;
use crate::mapper::{Capabilities, Chunk, Kind, Prepared, Reserved};
use crate::memory::pages::PageSet;
use crate::memory::ranges::{Nodes, RangeId};
use crate::page::{AddressRange, Alignment};
use crate::sys::{self, Forked, ForksInUse};
use std::collections::HashMap;
use std::sync::Arc;

mod choose;
mod idle;

pub(super) use idle::IdleSearch;

const WINDOWS_IN_USE_STAY: &str = "a window stays while anything lies in it";
/// No manager opens more windows than this.
pub(super) const MOST_WINDOWS: usize = 4096;

/// The window that holds a JITDylib's code.
struct Home {
    window: usize,
    allocations: usize,
}

/// A run of pages taken for a new chunk that has yet to be prepared.
#[derive(Debug)]
pub(super) struct Growth {
    window: usize,
    pool: u8,
    looked_everywhere: bool,
    /// The bytes that it takes at least.
    need: u64,
    /// Room to note which of its pages are used.
    touched: PageSet,
    pub(super) chunk: Chunk,
}

/// A chunk that was taken out of its pool and has yet to be reclaimed.
pub(super) struct Detached {
    window: usize,
    pool: u8,
    pub(super) range: AddressRange,
    pub(super) chunk: PoolChunk,
}

impl Detached {
    pub(super) fn group(&self) -> AllocGroup {
        number::group(self.pool)
    }
}

pub(super) struct Windows {
    /// Of all ranges in all windows.
    pub(super) nodes: Arc<Nodes>,
    pub(super) dylibs: Dylibs,
    /// What they have of the manager that take no lock.
    readers: Option<Readers>,
    page: Alignment,
    granule: Alignment,
    commit: bool,
    /// Bytes of a huge page, if fresh memory shall have them.
    huge: Option<u64>,
    pub(super) deferred: Deferred,
    pub(super) window_size: u64,
    /// By number; those that were released leave their numbers to others.
    windows: Vec<Option<Window>>,
    /// Whether there may be more than one window, so that JITDylibs must be kept together.
    pub(super) many: bool,
    /// The window that serves what is not bound to another.
    current: usize,
    /// Bytes of pages that may hold memory.
    pub(super) committed: u64,
    /// Bytes that were freed since idle pages were last looked for.
    pub(super) freed: u64,
    /// A thread gives idle pages back.
    pub(super) trimming: bool,
    /// A window may have become empty since they were last looked for.
    pub(super) unused: bool,
    /// A chunk was made since those that were made for requests which failed were last looked for.
    pub(super) grew: bool,
    homes: HashMap<u64, Home>,
    /// Whose these are; the first is 0, and opens and releases windows.
    pub(super) arena: usize,
    pub(super) common: Arc<SharedWindows>,
    /// There are other arenas, with which homes are shared.
    pub(super) is_one_of_many: bool,
    /// Growths, reclaims and reservations under way outside the lock.
    pub(super) changes: usize,
    /// Requests that make room: what was made for one is about to be taken.
    pub(super) making_room: usize,
    /// Requests that can be answered only once a change is done.
    pub(super) waiting: Vec<Waiting>,
    /// Children see pages that this process can write.
    seen_by_children: bool,
    /// What they see stays as it is here.
    freezes: bool,
    /// The last fork that froze anything.
    epoch: u32,
    /// The parent made it, and this process is a child.
    pub(super) inherited: bool,
    /// Segments of finalize lifetime stay until deallocate.
    pub(super) keeps_served: bool,
}

impl Windows {
    pub(super) fn new(mapper: &Capabilities, options: &Options) -> Windows {
        if mapper.kind == Kind::TwoViews && options.fork == ForkPolicy::Freeze {
            sys::witness_forks();
        }
        Windows {
            nodes: Arc::new(Nodes::new()),
            dylibs: Dylibs::new(),
            readers: None,
            page: mapper.page_size,
            granule: mapper.granule,
            commit: options.commit,
            huge: huge_pages::size(options.huge_pages),
            deferred: Deferred::new(options.defer_reclamation),
            window_size: options.window_size,
            windows: Vec::new(),
            many: options.growth == GrowthPolicy::AnotherWindow,
            current: 0,
            committed: 0,
            freed: 0,
            trimming: false,
            unused: false,
            grew: false,
            homes: HashMap::new(),
            arena: 0,
            common: Arc::default(),
            is_one_of_many: false,
            changes: 0,
            making_room: 0,
            waiting: Vec::new(),
            seen_by_children: mapper.kind == Kind::TwoViews,
            freezes: options.fork == ForkPolicy::Freeze,
            epoch: sys::fork_epoch(),
            inherited: false,
            keeps_served: mapper.keeps_served,
        }
    }

    /// Those of another arena, which is in none of the windows yet.
    pub(super) fn of_arena(
        arena: usize,
        shared: Arc<SharedWindows>,
        mapper: &Capabilities,
        options: &Options,
    ) -> Windows {
        Windows {
            arena,
            common: shared,
            is_one_of_many: true,
            ..Windows::new(mapper, options)
        }
    }

    /// Lets addresses be looked up without the lock, before there is a window.
    pub(super) fn read_by(&mut self, manager: &Arc<ManagerReader>) {
        self.readers = Some(Readers {
            manager: Arc::clone(manager),
            nodes: Arc::clone(&self.nodes),
            dylibs: Arc::clone(self.dylibs.ids()),
        });
    }

    /// Adds a window, which serves from now on what is not bound to another.
    pub(super) fn add(&mut self, reserved: Reserved) {
        self.current = match self.windows.iter().position(Option::is_none) {
            Some(vacant) => vacant,
            None => {
                self.windows.push(None);
                self.windows.len() - 1
            }
        };
        let origin = Window::origin_of(reserved.range);
        let window = Arc::new(SharedWindow::new(reserved, origin));
        self.common.add(self.current, &window);
        self.windows[self.current] = Some(self.share(self.current, window));
    }

    /// This arena's share of a window.
    fn share(&self, number: usize, window: Arc<SharedWindow>) -> Window {
        let Some(readers) = &self.readers else {
            unreachable!("a manager's flow is made before its windows")
        };
        let (is_share, units) = (self.arena != 0, (self.page, self.granule));
        Window::new(number as u16, window, is_share, readers, units, self.epoch)
    }

    /// Whether this arena has a share of a window.
    pub(super) fn has(&self, number: usize) -> bool {
        self.windows.get(number).is_some_and(Option::is_some)
    }

    /// Makes sure that this arena has a share of a window; `false` if there is no such window.
    pub(super) fn enter(&mut self, number: usize) -> bool {
        if self.has(number) {
            return true;
        }
        // The first arena has all of them.
        let Some(window) = (self.arena != 0)
            .then(|| self.common.enter(number))
            .flatten()
        else {
            return false;
        };
        if self.windows.len() <= number {
            self.windows.resize_with(number + 1, || None);
        }
        self.windows[number] = Some(self.share(number, window));
        true
    }

    #[inline]
    pub(super) fn window(&self, number: usize) -> &Window {
        self.windows[number].as_ref().expect(WINDOWS_IN_USE_STAY)
    }

    #[inline]
    pub(super) fn window_mut(&mut self, number: usize) -> &mut Window {
        self.windows[number].as_mut().expect(WINDOWS_IN_USE_STAY)
    }

    /// One more than the highest number of a window.
    pub(super) fn windows_ever(&self) -> usize {
        self.windows.len()
    }

    /// The window of a number, if there is one.
    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut Window> {
        self.windows.get_mut(number)?.as_mut()
    }

    /// Whether a piece must not be written now.
    pub(super) fn is_held(&self, piece: &Piece) -> bool {
        self.window(piece.window.into()).is_held(piece)
    }

    /// All windows.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Window> {
        self.windows.iter().flatten()
    }

    /// From where to where each window is in use, by number.
    pub(super) fn spans(&self) -> Vec<(u64, u64)> {
        let span = |window: &Option<Window>| match window {
            Some(window) => window.add_to(&mut Sums::NONE.clone()),
            None => NO_SPAN,
        };
        self.windows.iter().map(span).collect()
    }

    /// The numbers of all windows.
    pub(super) fn numbers(&self) -> impl Iterator<Item = usize> {
        (0..self.windows.len()).filter(|number| self.windows[*number].is_some())
    }

    /// Takes all windows out.
    pub(super) fn drain(&mut self) -> Vec<AddressRange> {
        let windows = std::mem::take(&mut self.windows);
        windows.into_iter().flatten().map(|one| one.range).collect()
    }

    /// Where a piece is.
    pub(super) fn place(&self, piece: &Piece) -> Place {
        self.window(piece.window.into()).place(piece)
    }

    /// Makes sure that the ranges of a request can be noted, and the chunks that are being made.
    pub(super) fn make_spare(&mut self, request: &Request) -> Result<()> {
        // Each segment takes one node, and up to two for what is left in front of it and behind it.
        let count = request.planned.len() * 3 + self.changes + 1;
        self.nodes.make_spare(count as u32).map_err(no_pages)?;
        if self.many && request.dylib != 0 && !self.homes.contains_key(&request.dylib) {
            self.homes.try_reserve(1).map_err(|_| heap_is_full())?;
            if self.is_one_of_many {
                self.common.reserve_homes(0).map_err(|_| heap_is_full())?;
            }
        }
        self.dylibs.make_spare(request.dylib)
    }

    /// The pieces of an allocation, by what its record holds.
    pub(super) fn pieces(&self, holding: u32) -> Pieces {
        let mut pieces = Pieces::new();
        self.each_piece(holding, |piece| pieces.push(piece));
        pieces
    }

    /// Shows the pieces of an allocation.
    #[inline]
    pub(super) fn each_piece(&self, holding: u32, mut visit: impl FnMut(Piece)) {
        let first = RangeId::of_number(holding);
        self.nodes
            .chained(first, |chained| visit(Piece::new(chained)));
    }

    /// What the record of an allocation holds that has these pieces.
    pub(super) fn first(pieces: &Pieces) -> u32 {
        RangeId::number(pieces.first().map(|piece| piece.id))
    }

    /// Makes the pieces of an allocation one chain.
    #[inline]
    pub(super) fn chain(&self, pieces: &Pieces, owner: u32) {
        self.nodes.chain(pieces.iter().map(|piece| piece.id), owner);
    }

    /// Takes pieces back that no allocation has got.
    #[cold]
    pub(super) fn take_back(&mut self, pieces: &Pieces) {
        for piece in pieces {
            let _ = self.free(piece);
        }
    }

    /// Notes how much this arena has handed out, for the first one, which checks quotas.
    #[inline]
    pub(super) fn note_taken(&self, bytes: u64) {
        if self.arena != 0 {
            self.common.set_taken(self.arena, bytes);
        }
    }

    /// Takes a piece back. Gives its bytes, rounding included, to be added to `freed`, and whether its
    /// chunk is empty now.
    #[inline]
    pub(super) fn free(&mut self, piece: &Piece) -> (u64, bool) {
        let window = self.window_mut(piece.window.into());
        let freed = window.free(piece);
        if window.is_empty() {
            self.unused = true;
        }
        freed
    }

    // ---- huge pages ----

    /// The huge pages that are nearly full of touched pages, which are all taken to be touched from now on.
    pub(super) fn fill_huge_pages(&mut self) -> HugeRanges {
        let mut fresh = FreshHugePages::new(Some(sys::huge_page_size().bytes()));
        let windows = self.windows.iter_mut().flatten();
        let bytes: u64 = windows
            .map(|window| window.fill_huge_pages(&mut fresh))
            .sum();
        self.committed += bytes;
        fresh.ranges
    }

    // ---- chunks ----

    /// A run of pages for a segment that fits no chunk of a window, if the window has one.
    pub(super) fn grow(
        &mut self,
        window: usize,
        short: &PlannedSegment,
        search: Search,
    ) -> Result<Option<Growth>> {
        let looked_everywhere = self.window(window).looks_everywhere(search);
        let pool = match looked_everywhere {
            true => number::without_hint(short.pool),
            false => short.pool,
        };
        let Some((range, need, touched)) = self.window_mut(window).grow(short, pool)? else {
            return Ok(None);
        };
        self.begin_change(window);
        let (group, commit) = (short.group(), self.commit);
        let chunk = Chunk {
            range,
            group,
            commit,
        };
        Ok(Some(Growth {
            window,
            pool,
            looked_everywhere,
            need,
            touched,
            chunk,
        }))
    }

    /// Adds the chunk that the mapper prepared.
    pub(super) fn grown(&mut self, growth: Growth, prepared: Prepared) {
        self.end_change(growth.window);
        self.grew = true;
        if growth.chunk.commit {
            self.committed += growth.chunk.range.size();
        }
        let window = self.window_mut(growth.window);
        window.has_memory();
        window.add_chunk(growth.pool, growth.chunk, growth.touched, prepared);
    }

    /// Gives the run back that the mapper was not asked to prepare.
    pub(super) fn not_begun(&mut self, growth: &Growth) {
        self.end_change(growth.window);
        self.window_mut(growth.window).shrink(growth.chunk.range);
    }

    /// Gives the run back that the mapper could not prepare.
    ///
    /// Says whether, for want of memory, a smaller chunk would do, which will be tried next, or for code those of
    /// other hints.
    pub(super) fn not_grown(&mut self, growth: &Growth, is_short: bool) -> bool {
        self.end_change(growth.window);
        let window = self.window_mut(growth.window);
        window.shrink(growth.chunk.range);
        let unused = window.is_empty();
        let size = growth.chunk.range.size();
        let smaller = window.try_smaller(growth.pool, size) && size > growth.need;
        let otherwise = is_short
            && (smaller || !growth.looked_everywhere && window.do_with_any_code(growth.pool));
        self.unused |= unused;
        otherwise
    }

    /// Takes the empty chunks of a pool out that need not be kept.
    pub(super) fn detach(
        &mut self,
        window: usize,
        pool: usize,
        keep: Keep,
        out: &mut Vec<Detached>,
    ) {
        while let Some(region) = self.window(window).next_to_go(pool, keep) {
            // Without memory to note it an empty chunk stays, to be used again.
            if out.try_reserve(1).is_err() {
                break;
            }
            let (range, chunk) = self.window_mut(window).detach(pool, region);
            self.begin_change(window);
            self.committed -= chunk.committed();
            out.push(Detached {
                window,
                pool: pool as u8,
                range,
                chunk,
            });
        }
    }

    /// Returns the run of a chunk that the mapper has reclaimed.
    pub(super) fn reclaimed(&mut self, detached: Detached) {
        self.end_change(detached.window);
        let window = self.window_mut(detached.window);
        window.has_memory();
        window.shrink(detached.range);
    }

    /// Puts a chunk back that the mapper could not reclaim.
    pub(super) fn not_reclaimed(&mut self, detached: Detached) {
        self.end_change(detached.window);
        self.committed += detached.chunk.committed();
        let window = self.window_mut(detached.window);
        window.insert(detached.pool, detached.chunk);
    }

    // ---- forks ----

    pub(super) fn forked(&mut self, forked: Forked) {
        if forked.in_child {
            // Changes are under way in threads that the child does not have, and what waits for them is
            // answered in the parent. Their callbacks must not run here.
            self.changes = 0;
            self.making_room = 0;
            self.trimming = false;
            std::mem::forget(std::mem::take(&mut self.waiting));
            let windows = self.windows.iter_mut().flatten();
            windows.for_each(|window| window.changes = 0);
        }
        if self.seen_by_children && (self.freezes || forked.in_child) {
            self.epoch = forked.epoch;
            self.inherited |= forked.in_child;
            let windows = self.windows.iter_mut().flatten();
            windows.for_each(|window| window.forked(forked));
        }
    }

    /// Fails for an allocation in flight whose working memory only the parent has.
    #[cold]
    pub(super) fn check_in_flight(&self, holding: u32) -> Result<()> {
        if !self.inherited {
            return Ok(());
        }
        let inherited = |piece: &Piece| self.window(piece.window.into()).is_inherited(piece);
        if self.pieces(holding).iter().any(inherited) {
            return Err(invalid_handle(
                "this allocation was in flight when the process was forked, and its working memory is \
                 the parent's; allocate anew in the child",
            ));
        }
        Ok(())
    }

    /// Bytes that were freed and stay as they are.
    pub(super) fn has_frozen(&self) -> bool {
        let mut sums = Sums::NONE;
        for window in self.iter() {
            window.add_to(&mut sums);
        }
        self.epoch > 0 && sums.frozen > 0
    }

    /// Takes what no other process sees any more, by window and pool.
    pub(super) fn take_thawed(&mut self, forks: &ForksInUse) -> Vec<(usize, usize, Vec<Thawed>)> {
        let mut out = Vec::new();
        for (number, window) in self.windows.iter_mut().enumerate() {
            let Some(window) = window else { continue };
            for pool in 0..POOLS {
                let mut thawed = Vec::new();
                window.take_thawed(pool, forks, &mut thawed);
                if !thawed.is_empty() {
                    out.push((number, pool, thawed));
                }
            }
        }
        out
    }

    pub(super) fn begin_change(&mut self, window: usize) {
        self.changes += 1;
        self.window_mut(window).changes += 1;
    }

    pub(super) fn end_change(&mut self, number: usize) {
        // A child has forgotten its parent's changes, with the one that it is inside.
        self.changes = self.changes.saturating_sub(1);
        let window = self.window_mut(number);
        window.changes = window.changes.saturating_sub(1);
        let unused = window.is_empty();
        self.unused |= unused;
    }
}
