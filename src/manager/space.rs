// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The state behind the manager's one lock: who has what in which window.
//!
//! Everything here is arithmetic; nothing calls the mapper or the system.

use super::records::{Key, Record, Records, State};
use super::request::{PlannedSegment, Request};
use super::reservations::Reservations;
use super::window::{
    MOST_CHUNKS, MOST_SPARE, POOLS, Piece, Pieces, Place, PoolChunk, RequestLayout, Sums, Window,
};
use super::{GrowthPolicy, LayoutItem, LayoutKind, Options, SegmentMemory};
use crate::error::{Error, Result, Status};
use crate::group::AllocGroup;
use crate::mapper::{Chunk, Prepared, Reserved, Teardown};
use crate::memory::view::{WorkingPointer, Writer};
use crate::page::{AddressRange, Alignment};
use smallvec::SmallVec;
use std::collections::HashMap;

/// A JITDylib is not begun in a window of which less than this part is free.
const ROOM_FOR_MORE: u64 = 4;
/// No manager opens more windows than this.
const MOST_WINDOWS: usize = 4096;

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
    pub(super) chunk: Chunk,
}

/// A chunk that was taken out of its pool and has yet to be reclaimed.
pub(super) struct Detached {
    window: usize,
    pub(super) range: AddressRange,
    group: AllocGroup,
    chunk: PoolChunk,
}

/// How far to go for a request.
#[derive(Clone, Copy)]
pub(super) struct Effort {
    /// A JITDylib may begin where there is little room for more of it.
    pub(super) last_resort: bool,
    /// Empty chunks may be given up for it.
    pub(super) reclaim: bool,
}

/// What came of trying to allocate.
pub(super) enum Attempt {
    Done(Key),
    /// This run needs the mapper's `prepare`.
    Grow(Growth),
    /// These chunks are empty; with their pages it may fit.
    Reclaim(Vec<Detached>),
    /// It may fit once what others are doing is done.
    Wait,
    /// It fits no window; another one may be reserved.
    Full(Error),
    /// It fits no window and another one does not help.
    Refused(Error),
}

/// Pieces on their way out of the executor, still taken.
#[derive(Default)]
pub(super) struct Freed {
    pub(super) pieces: Pieces,
    /// Shared code, which is made to trap before it is free.
    pub(super) traps: SmallVec<[(Writer, AddressRange); 1]>,
    /// Copied segments, which are the mapper's to change.
    pub(super) copied: SmallVec<[(AddressRange, AllocGroup); 4]>,
}

/// Counters of the statistics.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) allocate: u64,
    pub(super) finalize: u64,
    pub(super) abandon: u64,
    pub(super) deallocate: u64,
    pub(super) failures: u64,
}

pub(super) struct Space {
    page: Alignment,
    granule: Alignment,
    commit: bool,
    quota: Option<u64>,
    window_size: u64,
    windows: Vec<Window>,
    pub(super) records: Records,
    /// Whether there may be more than one window, so that JITDylibs must be kept together.
    many_windows: bool,
    homes: HashMap<u64, Home>,
    /// What takes the windows' place where the mapper does not divide any.
    pub(super) blocks: Option<Box<Reservations>>,
    next_order: u64,
    /// Growths, reclaims and reservations under way outside the lock.
    pub(super) changes: usize,
    pub(super) counters: Counters,
    /// Bytes handed out, and those of them that were asked for.
    pub(super) taken: u64,
    pub(super) live: u64,
    pub(super) in_flight: u64,
    pub(super) finalized: u64,
}

#[cold]
pub(super) fn heap_is_full() -> Error {
    let message = "allocate: the heap has no room for the manager's own records; free memory, or \
                   raise RLIMIT_AS or the memory limit";
    Error::new(Status::OutOfMemory, message)
}

impl Space {
    pub(super) fn new(
        page: Alignment,
        granule: Alignment,
        options: &Options,
        random: u64,
    ) -> Space {
        Space {
            page,
            granule,
            commit: options.commit,
            quota: options.quota,
            window_size: options.window_size,
            many_windows: options.growth == GrowthPolicy::AnotherWindow,
            windows: Vec::new(),
            records: Records::new(random),
            homes: HashMap::new(),
            blocks: None,
            next_order: 0,
            changes: 0,
            counters: Counters::default(),
            taken: 0,
            live: 0,
            in_flight: 0,
            finalized: 0,
        }
    }

    pub(super) fn add_window(&mut self, reserved: Reserved) {
        self.windows
            .push(Window::new(reserved, self.page, self.granule));
    }

    /// All windows, freed none.
    pub(super) fn take_windows(&mut self) -> Vec<AddressRange> {
        self.windows.drain(..).map(|window| window.range).collect()
    }

    // ---- records ----

    /// Marks it finalized and takes out its segments of finalize lifetime, which have served.
    pub(super) fn mark_finalized(&mut self, key: Key, teardown: Teardown) -> Freed {
        self.next_order += 1;
        self.counters.finalize += 1;
        self.in_flight -= 1;
        self.finalized += 1;
        let record = self.records.get(key);
        record.state = State::Finalized;
        record.order = self.next_order;
        record.teardown = match teardown {
            Teardown::Nothing => None,
            something => Some(Box::new(something)),
        };
        record.buffers = None;
        if !record.pieces.iter().any(Piece::is_for_finalize) {
            return Freed::default();
        }
        let gone: Pieces = record
            .pieces
            .iter()
            .copied()
            .filter(Piece::is_for_finalize)
            .collect();
        record.pieces.retain(|piece| !piece.is_for_finalize());
        let mut freed = Freed::default();
        self.leave(gone, &mut freed);
        freed
    }

    /// Takes an allocation's pieces out of its record.
    pub(super) fn take_pieces(&mut self, key: Key, freed: &mut Freed) {
        if self.blocks.is_some() {
            return self.drop_block(key);
        }
        let pieces = std::mem::take(&mut self.records.get(key).pieces);
        // Their ranges are noted in different places, most of them not in any cache by now: waiting
        // for all of them at once took a tenth off deallocating in random order.
        for piece in &pieces {
            self.windows[piece.window as usize].prefetch(piece);
        }
        self.leave(pieces, freed);
    }

    fn leave(&self, pieces: Pieces, freed: &mut Freed) {
        for piece in pieces.iter().filter(|piece| piece.needs_care()) {
            let Place {
                range,
                group,
                writer,
            } = self.place(piece);
            match writer {
                Some(writer) => freed.traps.push((writer, range)),
                None => freed.copied.push((range, group)),
            }
        }
        if freed.pieces.is_empty() {
            freed.pieces = pieces;
        } else {
            freed.pieces.extend(pieces);
        }
    }

    /// Where a piece is.
    pub(super) fn place(&self, piece: &Piece) -> Place {
        self.windows[piece.window as usize].place(piece)
    }

    /// Writes into the content of an in-flight allocation's segment; `None` if not all of the bytes
    /// belong there.
    pub(super) fn write(
        &mut self,
        key: Key,
        segment: usize,
        offset: u64,
        bytes: &[u8],
    ) -> Option<()> {
        let (position, content) = match &self.blocks {
            Some(blocks) => blocks.find(key, segment)?,
            None => {
                let pieces = &self.records.get(key).pieces;
                let mut all = pieces.iter();
                let position = all.position(|piece| piece.segment as usize == segment)?;
                (position, pieces[position].content.into())
            }
        };
        offset
            .checked_add(bytes.len() as u64)
            .filter(|end| *end <= content)?;
        let record = self.records.get(key);
        let buffers = record.buffers.as_mut();
        match buffers.and_then(|buffers| buffers[position].as_mut()) {
            Some(buffer) => buffer.write(offset, bytes),
            None => {
                let piece = record.pieces[position];
                self.place(&piece).writer?.write(offset, bytes);
            }
        }
        Some(())
    }

    /// Forgets an allocation whose pieces were taken out of its record.
    pub(super) fn forget(&mut self, key: Key) -> Record {
        let record = self.records.remove(key);
        match record.state {
            State::InFlight | State::Finalizing => self.in_flight -= 1,
            State::Finalized | State::Deallocating => self.finalized -= 1,
        }
        if record.dylib != 0 {
            if let Some(home) = self.homes.get_mut(&record.dylib) {
                home.allocations -= 1;
                if home.allocations == 0 {
                    self.homes.remove(&record.dylib);
                }
            }
        }
        record
    }

    /// The teardowns of what is finalized and still there, oldest first, each with its copied
    /// segments. Before them, reservations that nothing was finalized in.
    pub(super) fn take_finalized(&mut self) -> Vec<(Teardown, Freed)> {
        let mut left: Vec<Record> = self
            .records
            .drain()
            .filter(|record| record.state == State::Finalized || record.teardown.is_some())
            .collect();
        left.sort_by_key(|record| record.order);
        let out = |record: Record| {
            let mut freed = Freed::default();
            self.leave(record.pieces, &mut freed);
            (
                record
                    .teardown
                    .map_or(Teardown::Nothing, |teardown| *teardown),
                freed,
            )
        };
        left.into_iter().map(out).collect()
    }

    // ---- allocating ----

    /// Takes ranges for a request. A JITDylib that has no window yet goes where there is room for
    /// more of it.
    pub(super) fn allocate(
        &mut self,
        request: &Request,
        effort: Effort,
        layout: &mut RequestLayout,
    ) -> Attempt {
        if let Some(error) = self.over_quota(request) {
            return Attempt::Refused(error);
        }
        if let Err(error) = self.make_spare(request) {
            return Attempt::Refused(error);
        }
        let nothing = SegmentMemory {
            address: 0,
            working_memory: WorkingPointer::NULL,
        };
        layout.segments.resize(request.segments, nothing);
        if let ([window], false) = (self.windows.as_mut_slice(), self.many_windows) {
            if let Ok(pieces) = window.take_all(&request.planned, 0, false, layout) {
                let (key, handle) = self.admit(request, 0, pieces, layout);
                layout.handle = handle;
                return Attempt::Done(key);
            }
        }
        self.allocate_anywhere(request, effort, layout)
    }

    /// Goes through the windows, fast and then thoroughly, and says what would help.
    #[cold]
    fn allocate_anywhere(
        &mut self,
        request: &Request,
        effort: Effort,
        layout: &mut RequestLayout,
    ) -> Attempt {
        let windows = self.windows_for(request, effort.last_resort);
        for thorough in [false, true] {
            for index in &windows {
                let window = &mut self.windows[*index];
                match window.take_all(&request.planned, *index as u16, thorough, layout) {
                    Ok(pieces) => {
                        let (key, handle) = self.admit(request, *index, pieces, layout);
                        layout.handle = handle;
                        return Attempt::Done(key);
                    }
                    Err(short) => {
                        if let Some((range, need)) = window.grow(&short) {
                            self.changes += 1;
                            let (window, group, commit) = (*index, short.group, self.commit);
                            let chunk = Chunk {
                                range,
                                group,
                                commit,
                            };
                            return Attempt::Grow(Growth {
                                window,
                                need,
                                chunk,
                            });
                        }
                    }
                }
            }
        }
        if self.changes > 0 {
            return Attempt::Wait;
        }
        let mut empty = Vec::new();
        for window in windows.iter().filter(|_| effort.reclaim) {
            (0..POOLS).for_each(|pool| self.detach(*window, pool, 0, &mut empty));
        }
        if !empty.is_empty() {
            return Attempt::Reclaim(empty);
        }
        let bound = self.home(request.dylib).is_some();
        let full = self.full(request, &windows, bound);
        let hopeless = self.least_window(request) > self.window_size;
        if bound
            || hopeless
            || effort.last_resort
            || !self.many_windows
            || self.windows.len() >= MOST_WINDOWS
        {
            Attempt::Refused(full)
        } else {
            Attempt::Full(full)
        }
    }

    /// Makes sure that the records for a request can be made, so that a heap that is full is an
    /// error here and not the end of the process later.
    fn make_spare(&mut self, request: &Request) -> Result<()> {
        let spare = self.records.make_spare()
            && self
                .windows
                .iter_mut()
                .all(|window| window.make_spare(&request.planned));
        if spare { Ok(()) } else { Err(heap_is_full()) }
    }

    /// The windows that may hold a request, best first.
    fn windows_for(&self, request: &Request, last_resort: bool) -> SmallVec<[usize; 4]> {
        let mut windows = SmallVec::new();
        if !self.many_windows {
            windows.push(0);
            return windows;
        }
        if let Some(home) = self.home(request.dylib) {
            windows.push(home);
            return windows;
        }
        windows.extend(0..self.windows.len());
        windows.sort_by_key(|index| std::cmp::Reverse(self.windows[*index].room()));
        let fresh = request.dylib != 0 && !request.planned.is_empty() && !last_resort;
        if fresh && self.windows.len() < MOST_WINDOWS {
            // The rest of the JITDylib must fit the same window.
            windows.retain(|index| {
                let window = &self.windows[*index];
                window.room() >= window.range.size() / ROOM_FOR_MORE
            });
        }
        windows
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
    fn home(&self, dylib: u64) -> Option<usize> {
        if !self.many_windows || dylib == 0 {
            return None;
        }
        self.homes.get(&dylib).map(|home| home.window)
    }

    /// Bytes that a request takes, rounding included.
    fn wanted(&self, request: &Request) -> u64 {
        let rounded = |size: u32| {
            self.granule
                .round_up(size.max(1).into())
                .unwrap_or(u64::MAX)
        };
        request.planned.iter().fold(0, |sum: u64, planned| {
            sum.saturating_add(rounded(planned.size))
        })
    }

    fn over_quota(&self, request: &Request) -> Option<Error> {
        self.quota?;
        self.beyond_quota(self.wanted(request))
    }

    /// Why no more than there are bytes in use may be handed out.
    pub(super) fn beyond_quota(&self, wanted: u64) -> Option<Error> {
        let quota = self.quota?;
        if self.taken.saturating_add(wanted) <= quota {
            return None;
        }
        Some(Error::new(
            Status::QuotaExceeded,
            format!(
                "allocate {wanted} bytes: {} of a quota of {quota} bytes are in use; deallocate \
                 something or raise the quota",
                self.taken
            ),
        ))
    }

    fn full(&self, request: &Request, windows: &[usize], bound: bool) -> Error {
        let windows: Vec<&Window> = windows.iter().map(|index| &self.windows[*index]).collect();
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
        let remedy = if bound || self.many_windows {
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
                "allocate {} bytes in {} segment(s): {why} ({} bytes handed out, largest free run \
                 {largest} bytes){crowded}; {remedy}",
                self.wanted(request),
                request.planned.len(),
                self.taken
            ),
        )
    }

    pub(super) fn admit(
        &mut self,
        request: &Request,
        window: usize,
        pieces: Pieces,
        layout: &RequestLayout,
    ) -> (Key, u64) {
        self.taken += layout.taken;
        self.live += layout.live;
        self.in_flight += 1;
        self.counters.allocate += 1;
        let remember = self.many_windows && !pieces.is_empty();
        let dylib = if remember { request.dylib } else { 0 };
        if dylib != 0 {
            let home = self.homes.entry(dylib).or_insert(Home {
                window,
                allocations: 0,
            });
            home.allocations += 1;
        }
        self.records.insert(Record {
            state: State::InFlight,
            pieces,
            buffers: None,
            teardown: None,
            dylib,
            order: 0,
        })
    }

    /// Adds the chunk that the mapper prepared.
    pub(super) fn grown(&mut self, growth: &Growth, prepared: Prepared) {
        self.changes -= 1;
        let Chunk { range, group, .. } = growth.chunk;
        self.windows[growth.window].add_chunk(range, group, prepared);
    }

    /// Gives the run back that the mapper could not prepare.
    ///
    /// Says whether a smaller chunk would do, and will be tried next.
    pub(super) fn not_grown(&mut self, growth: &Growth) -> bool {
        self.changes -= 1;
        let window = &mut self.windows[growth.window];
        window.shrink(growth.chunk.range);
        window.try_smaller(growth.chunk.group, growth.chunk.range.size())
            && growth.chunk.range.size() > growth.need
    }

    // ---- freeing ----

    /// Takes pieces back. Chunks that are empty now, but for some spare ones of each pool, come out
    /// to be reclaimed.
    pub(super) fn free(&mut self, pieces: &Pieces, empty: &mut Vec<Detached>) {
        for piece in pieces {
            let window = &mut self.windows[piece.window as usize];
            let (size, empty_now) = window.free(piece);
            self.taken -= size;
            self.live -= u64::from(piece.requested);
            if empty_now {
                self.detach(
                    piece.window as usize,
                    piece.pool as usize,
                    MOST_SPARE,
                    empty,
                );
            }
        }
    }

    fn detach(&mut self, window: usize, pool: usize, keep: u64, out: &mut Vec<Detached>) {
        while let Some((range, group, chunk)) = self.windows[window].detach(pool, keep) {
            self.changes += 1;
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
        self.changes -= 1;
        self.windows[detached.window].shrink(detached.range);
    }

    /// Puts a chunk back that the mapper could not reclaim.
    pub(super) fn not_reclaimed(&mut self, detached: Detached) {
        self.changes -= 1;
        self.windows[detached.window].insert(detached.group, detached.chunk);
    }

    // ---- looking ----

    pub(super) fn windows(&self) -> usize {
        let blocks = self.blocks.as_ref().map_or(0, |blocks| blocks.count());
        self.windows.len() + blocks
    }

    pub(super) fn sums(&self) -> Sums {
        let mut sums = Sums::NONE;
        self.windows
            .iter()
            .for_each(|window| window.add_to(&mut sums));
        if let Some(blocks) = &self.blocks {
            blocks.add_to(&mut sums);
        }
        sums
    }

    /// Calls `visit` with every window, every chunk and every handed-out range.
    pub(super) fn visit(&self, mut visit: impl FnMut(LayoutItem)) {
        self.windows
            .iter()
            .for_each(|window| window.visit(&mut visit));
        if let Some(blocks) = &self.blocks {
            blocks.visit(&mut visit);
        }
        for piece in self.records.iter().flat_map(|record| &record.pieces) {
            let Place { range, group, .. } = self.place(piece);
            visit(LayoutItem {
                kind: LayoutKind::Range,
                range,
                group: Some(group),
            });
        }
    }
}
