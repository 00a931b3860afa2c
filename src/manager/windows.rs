// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! All windows of a manager: which may serve a request, what chunks they can have, and why they are full.

use super::allocate::Waiting;
use super::deferred::Deferred;
use super::dylibs::Dylibs;
use super::huge_pages::{self, FreshHugePages, HugeRanges};
use super::lookup::{ManagerReader, Readers};
use super::piece::{Piece, Pieces, Place, RequestLayout};
use super::pool::{Keep, MOST_CHUNKS, POOLS, PoolChunk, Thawed};
use super::request::{PlannedSegment, Request};
use super::space::no_pages;
use super::stats::Sums;
use super::window::Window;
use super::{ForkPolicy, GrowthPolicy, Options};
use crate::error::{Error, Result, Status, invalid_handle};
use crate::group::AllocGroup;
use crate::mapper::{Capabilities, Chunk, Kind, Prepared, Reserved};
use crate::memory::pages::PageSet;
use crate::memory::ranges::{Handed, Nodes, RangeId, Ranges};
use crate::page::{AddressRange, Alignment};
use crate::sys::{self, Forked, ForksInUse};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;

const WINDOWS_IN_USE_STAY: &str = "a window stays while anything lies in it";
/// No manager opens more windows than this.
pub(super) const MOST_WINDOWS: usize = 4096;

/// About so many ranges are taken at a time to be given back.
const MOST_IDLE: usize = 128;

/// The window that holds a JITDylib's code.
struct Home {
    window: usize,
    allocations: usize,
}

/// A run of pages taken for a new chunk that has yet to be prepared.
#[derive(Debug)]
pub(super) struct Growth {
    window: usize,
    /// The bytes that it takes at least.
    need: u64,
    /// Room to note which of its pages are used.
    touched: PageSet,
    pub(super) chunk: Chunk,
}

/// A chunk that was taken out of its pool and has yet to be reclaimed.
pub(super) struct Detached {
    window: usize,
    pub(super) range: AddressRange,
    pub(super) group: AllocGroup,
    pub(super) chunk: PoolChunk,
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
    homes: HashMap<u64, Home>,
    /// Growths, reclaims and reservations under way outside the lock.
    pub(super) changes: usize,
    /// Requests that can be answered only once a change is done.
    pub(super) waiting: Vec<Waiting>,
    /// Children see pages that this process can write.
    shared: bool,
    /// What they see stays as it is here.
    freezes: bool,
    /// The last fork that froze anything.
    epoch: u32,
    /// The parent made it, and this process is a child.
    pub(super) inherited: bool,
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
            homes: HashMap::new(),
            changes: 0,
            waiting: Vec::new(),
            shared: mapper.kind == Kind::TwoViews,
            freezes: options.fork == ForkPolicy::Freeze,
            epoch: sys::fork_epoch(),
            inherited: false,
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
        let Some(readers) = &self.readers else {
            unreachable!("a manager's flow is made before its windows")
        };
        let (number, page, granule) = (self.current as u16, self.page, self.granule);
        let window = Window::new(number, reserved, readers, page, granule, self.epoch);
        self.windows[self.current] = Some(window);
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

    // ---- choosing a window ----

    /// The window that most likely holds a request, in constant time.
    pub(super) fn likely_window(&self, request: &Request) -> Option<usize> {
        if let Some(home) = self.home(request.dylib) {
            return Some(home);
        }
        let current = self.windows[self.current].as_ref()?;
        let suits = !self.begins_dylib(request) || current.has_room_for_more();
        suits.then_some(self.current)
    }

    /// Whether more of its JITDylib may follow, for which there is no window yet.
    fn begins_dylib(&self, request: &Request) -> bool {
        self.many && request.dylib != 0 && !request.planned.is_empty()
    }

    /// Makes sure that the ranges of a request can be noted, and the chunks that are being made.
    pub(super) fn make_spare(&mut self, request: &Request) -> Result<()> {
        // Each segment takes one node, and up to two for what is left in front of it and behind it.
        let count = request.planned.len() * 3 + self.changes + 1;
        self.nodes.make_spare(count as u32).map_err(no_pages)?;
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

    /// The windows that may hold a request, best first.
    pub(super) fn windows_for(&self, request: &Request, last_resort: bool) -> SmallVec<[usize; 4]> {
        if let Some(home) = self.home(request.dylib) {
            return SmallVec::from_slice(&[home]);
        }
        let mut windows: SmallVec<[usize; 4]> = self.numbers().collect();
        // What is in use is filled first, so that others become empty.
        windows.sort_by_key(|number| {
            let room = self.window(*number).room();
            (*number != self.current, std::cmp::Reverse(room))
        });
        if self.begins_dylib(request) && !last_resort && self.iter().count() < MOST_WINDOWS {
            // The rest of the JITDylib must fit the same window.
            windows.retain(|number| self.window(*number).has_room_for_more());
        }
        windows
    }

    /// This window has served what was not bound to any.
    pub(super) fn served_by(&mut self, number: usize, request: &Request) {
        if self.home(request.dylib).is_none() {
            self.current = number;
        }
    }

    /// The smallest window that serves a request by itself.
    pub(super) fn least_window(&self, request: &Request) -> u64 {
        let pages = |planned: &PlannedSegment| {
            let size = u64::from(planned.size.max(1)) + u64::from(planned.alignment);
            // A page for what code keeps off.
            self.page
                .round_up(size + self.page.bytes())
                .unwrap_or(u64::MAX)
        };
        request
            .planned
            .iter()
            .map(pages)
            .fold(0, u64::saturating_add)
    }

    /// The window that holds a JITDylib already.
    pub(super) fn home(&self, dylib: u64) -> Option<usize> {
        if !self.many || dylib == 0 {
            return None;
        }
        self.homes.get(&dylib).map(|home| home.window)
    }

    /// Bytes that a request takes, rounding included.
    pub(super) fn wanted(&self, request: &Request) -> u64 {
        let rounded = |size: u32| {
            self.granule
                .round_up(size.max(1).into())
                .unwrap_or(u64::MAX)
        };
        request.planned.iter().fold(0, |sum: u64, planned| {
            sum.saturating_add(rounded(planned.size))
        })
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

    /// Notes that a request has got its pieces from this window. Gives the number of its JITDylib.
    pub(super) fn hold(
        &mut self,
        request: &Request,
        window: usize,
        layout: &mut RequestLayout,
    ) -> u32 {
        if !layout.untouched.is_empty() {
            let mut fresh = FreshHugePages::new(self.huge);
            self.committed += self.window_mut(window).touch(&layout.untouched, &mut fresh);
            if !fresh.ranges.is_empty() {
                layout.huge = Some(Box::new(fresh.ranges));
            }
        }
        let dylib = request.dylib;
        if dylib == 0 || request.planned.is_empty() {
            return 0;
        }
        if self.many {
            let home = self.homes.entry(dylib).or_insert(Home {
                window,
                allocations: 0,
            });
            home.allocations += 1;
            if home.allocations == 1 {
                self.window_mut(window).homes += 1;
            }
        }
        self.dylibs.enter(dylib)
    }

    /// An allocation of a JITDylib, by its number, is gone.
    pub(super) fn leave_home(&mut self, number: u32) {
        if number == 0 {
            return;
        }
        let dylib = self.dylibs.leave(number);
        if let Some(home) = self.homes.get_mut(&dylib) {
            home.allocations -= 1;
            if home.allocations == 0 {
                let number = home.window;
                self.homes.remove(&dylib);
                let window = self.window_mut(number);
                window.homes -= 1;
                let unused = window.is_empty();
                self.unused |= unused;
            }
        }
    }

    pub(super) fn full(
        &self,
        request: &Request,
        windows: &[usize],
        bound: bool,
        taken: u64,
    ) -> Error {
        let windows: Vec<&Window> = windows.iter().map(|number| self.window(*number)).collect();
        let largest = windows
            .iter()
            .map(|window| window.largest_run())
            .max()
            .unwrap_or(0);
        let size: u64 = windows.iter().map(|window| window.range.size()).sum();
        let why = if bound {
            format!(
                "the window that holds JITDylib {:#x} is full and a JITDylib never straddles two",
                request.dylib
            )
        } else {
            format!(
                "{} window(s) of {size} bytes in all are full",
                windows.len()
            )
        };
        let remedy = if size < self.window_size * windows.len() as u64 {
            "deallocate something, or make the manager earlier: its windows are smaller than asked \
             for, for want of address space in reach or under RLIMIT_AS"
        } else if bound || self.many {
            "deallocate something or choose larger windows (below 2 GiB)"
        } else {
            "deallocate something, choose a larger window (below 2 GiB), or let the manager open \
             another window"
        };
        let crowded = if windows.iter().any(|window| window.crowded()) {
            format!(" and {MOST_CHUNKS} chunks, the most for one window, are in use")
        } else {
            String::new()
        };
        Error::new(
            Status::WindowFull,
            format!(
                "allocate {} bytes in {} segment(s): {why} ({taken} bytes handed out, largest free \
                 run {largest} bytes){crowded}; {remedy}",
                self.wanted(request),
                request.planned.len(),
            ),
        )
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
    pub(super) fn grow(&mut self, window: usize, short: &PlannedSegment) -> Result<Option<Growth>> {
        let Some((range, need, touched)) = self.window_mut(window).grow(short)? else {
            return Ok(None);
        };
        self.begin_change(window);
        let (group, commit) = (short.group, self.commit);
        let chunk = Chunk {
            range,
            group,
            commit,
        };
        Ok(Some(Growth {
            window,
            need,
            touched,
            chunk,
        }))
    }

    /// Adds the chunk that the mapper prepared.
    pub(super) fn grown(&mut self, growth: Growth, prepared: Prepared) {
        self.end_change(growth.window);
        if growth.chunk.commit {
            self.committed += growth.chunk.range.size();
        }
        let window = self.window_mut(growth.window);
        window.add_chunk(growth.chunk, growth.touched, prepared);
    }

    /// Gives the run back that the mapper was not asked to prepare.
    pub(super) fn not_begun(&mut self, growth: &Growth) {
        self.end_change(growth.window);
        self.window_mut(growth.window).shrink(growth.chunk.range);
    }

    /// Gives the run back that the mapper could not prepare.
    ///
    /// Says whether a smaller chunk would do, and will be tried next.
    pub(super) fn not_grown(&mut self, growth: &Growth) -> bool {
        self.end_change(growth.window);
        let window = self.window_mut(growth.window);
        window.shrink(growth.chunk.range);
        window.try_smaller(growth.chunk.group, growth.chunk.range.size())
            && growth.chunk.range.size() > growth.need
    }

    pub(super) fn detach(
        &mut self,
        window: usize,
        pool: usize,
        keep: Keep,
        out: &mut Vec<Detached>,
    ) {
        // Without memory to note it an empty chunk stays, to be used again.
        while out.try_reserve(1).is_ok() {
            let Some((range, group, chunk)) = self.window_mut(window).detach(pool, keep) else {
                break;
            };
            self.begin_change(window);
            self.committed -= chunk.committed();
            out.push(Detached {
                window,
                range,
                group,
                chunk,
            });
        }
    }

    /// Returns the run of a chunk that the mapper has reclaimed.
    pub(super) fn reclaimed(&mut self, detached: Detached) {
        self.end_change(detached.window);
        self.window_mut(detached.window).shrink(detached.range);
    }

    /// Puts a chunk back that the mapper could not reclaim.
    pub(super) fn not_reclaimed(&mut self, detached: Detached) {
        self.end_change(detached.window);
        self.committed += detached.chunk.committed();
        let window = self.window_mut(detached.window);
        window.insert(detached.group, detached.chunk);
    }

    // ---- forks ----

    pub(super) fn forked(&mut self, forked: Forked) {
        if forked.in_child {
            // Changes are under way in threads that the child does not have, and what waits for them is
            // answered in the parent. Their callbacks must not run here.
            self.changes = 0;
            self.trimming = false;
            std::mem::forget(std::mem::take(&mut self.waiting));
            let windows = self.windows.iter_mut().flatten();
            windows.for_each(|window| window.changes = 0);
        }
        if self.shared && (self.freezes || forked.in_child) {
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
        self.iter().for_each(|window| window.add_to(&mut sums));
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

    // ---- giving back ----

    /// Free ranges whose pages may hold memory, of the pool and size where `at` stands and of those
    /// behind it; each has at least `least` pages. There may be more until the answer is none.
    pub(super) fn take_idle(&mut self, at: &mut IdleSearch, least: u32) -> Option<Vec<Idle>> {
        let (window, pool) = (at.pool / POOLS, at.pool % POOLS);
        let mut found = Vec::new();
        match self.windows.get_mut(window)? {
            Some(divided) => {
                let idle = divided.take_idle(pool, &mut at.below, least, MOST_IDLE);
                found.extend(idle.map(|(handed, pages)| Idle {
                    window,
                    pool,
                    handed,
                    pages,
                }));
            }
            None => at.below = None,
        }
        if at.below.is_none() {
            *at = IdleSearch::from_pool(at.pool + 1);
        }
        found.iter().for_each(|_| self.begin_change(window));
        Some(found)
    }

    /// Frees an idle range again, whose pages hold memory no more after a success. Gives their bytes.
    pub(super) fn discarded(
        &mut self,
        idle: &Idle,
        success: bool,
        empty: &mut Vec<Detached>,
    ) -> u64 {
        self.end_change(idle.window);
        let window = self.window_mut(idle.window);
        let (bytes, empty_now) = window.discarded(idle.pool, &idle.handed, success);
        self.committed -= bytes;
        if empty_now {
            self.detach(idle.window, idle.pool, Keep::Spare, empty);
        }
        bytes
    }

    fn is_unused(&self, number: usize) -> bool {
        let window = self.windows[number].as_ref();
        window.is_some_and(|window| window.is_empty() && window.changes == 0)
    }

    /// Takes windows out in which nothing lies, but for `keep` of them and the last one.
    pub(super) fn take_empty(&mut self, keep: usize) -> Vec<AddressRange> {
        self.unused = false;
        if !self.many {
            return Vec::new();
        }
        let unused = self.numbers().filter(|number| self.is_unused(*number));
        let mut unused: Vec<usize> = unused.collect();
        let kept = keep.max(usize::from(unused.len() == self.iter().count()));
        // The one that serves is the first to stay.
        unused.sort_by_key(|number| *number != self.current);
        let mut released = Vec::new();
        for number in unused.into_iter().skip(kept) {
            if let Some(window) = self.windows[number].take() {
                self.committed -= window.committed();
                released.push(window.range);
            }
        }
        if self.windows[self.current].is_none() {
            let most_room = self
                .numbers()
                .max_by_key(|number| self.window(*number).room());
            self.current = most_room.expect("one window stays");
        }
        released
    }
}

/// A free range whose pages are being given back.
pub(super) struct Idle {
    window: usize,
    pool: usize,
    handed: Handed,
    pub(super) pages: AddressRange,
}

/// How far a search for idle ranges has come: the pools of all windows, one after the other, in each from
/// the largest range down.
pub(super) struct IdleSearch {
    pool: usize,
    below: Option<usize>,
}

impl IdleSearch {
    pub(super) fn new() -> IdleSearch {
        IdleSearch::from_pool(0)
    }

    fn from_pool(pool: usize) -> IdleSearch {
        let below = Ranges::LARGEST;
        IdleSearch { pool, below }
    }
}
