// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! All windows of a manager: which may serve a request, what chunks they can have, and why they are full.

use super::allocate::Waiting;
use super::piece::{Piece, Pieces, Place};
use super::pool::{MOST_CHUNKS, PoolChunk};
use super::request::{PlannedSegment, Request};
use super::window::Window;
use super::{GrowthPolicy, Options};
use crate::error::{Error, Status};
use crate::group::AllocGroup;
use crate::mapper::{Capabilities, Chunk, Prepared, Reserved};
use crate::page::{AddressRange, Alignment};
use smallvec::SmallVec;
use std::collections::HashMap;

/// A JITDylib is not begun in a window of which less than this part is free.
const ROOM_FOR_MORE: u64 = 4;
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
    /// The bytes that it takes at least.
    need: u64,
    pub(super) chunk: Chunk,
}

/// A chunk that was taken out of its pool and has yet to be reclaimed.
pub(super) struct Detached {
    window: usize,
    pub(super) range: AddressRange,
    pub(super) group: AllocGroup,
    pub(super) chunk: PoolChunk,
}

/// What an allocation has of the windows.
#[derive(Default)]
pub(super) struct Holding {
    pub(super) pieces: Pieces,
    /// 0 if its window need not be remembered.
    pub(super) dylib: u64,
}

pub(super) struct Windows {
    page: Alignment,
    granule: Alignment,
    commit: bool,
    pub(super) window_size: u64,
    pub(super) windows: Vec<Window>,
    /// Whether there may be more than one window, so that JITDylibs must be kept together.
    pub(super) many: bool,
    homes: HashMap<u64, Home>,
    /// Growths, reclaims and reservations under way outside the lock.
    pub(super) changes: usize,
    /// Requests that can be answered only once a change is done.
    pub(super) waiting: Vec<Waiting>,
}

impl Windows {
    pub(super) fn new(mapper: &Capabilities, options: &Options) -> Windows {
        Windows {
            page: mapper.page_size,
            granule: mapper.granule,
            commit: options.commit,
            window_size: options.window_size,
            windows: Vec::new(),
            many: options.growth == GrowthPolicy::AnotherWindow,
            homes: HashMap::new(),
            changes: 0,
            waiting: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, reserved: Reserved) {
        self.windows
            .push(Window::new(reserved, self.page, self.granule));
    }

    /// Where a piece is.
    pub(super) fn place(&self, piece: &Piece) -> Place {
        self.windows[piece.window as usize].place(piece)
    }

    // ---- choosing a window ----

    /// Makes sure that the ranges of a request can be noted; `false` if the heap is full.
    pub(super) fn make_spare(&mut self, request: &Request) -> bool {
        self.windows
            .iter_mut()
            .all(|window| window.make_spare(&request.planned))
    }

    /// The windows that may hold a request, best first.
    pub(super) fn windows_for(&self, request: &Request, last_resort: bool) -> SmallVec<[usize; 4]> {
        let mut windows = SmallVec::new();
        if !self.many {
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

    /// What a request holds that has got its pieces from this window.
    pub(super) fn hold(&mut self, request: &Request, window: usize, pieces: Pieces) -> Holding {
        let remember = self.many && !pieces.is_empty();
        let dylib = if remember { request.dylib } else { 0 };
        if dylib != 0 {
            let home = self.homes.entry(dylib).or_insert(Home {
                window,
                allocations: 0,
            });
            home.allocations += 1;
        }
        Holding { pieces, dylib }
    }

    /// An allocation of a JITDylib is gone.
    pub(super) fn leave_home(&mut self, dylib: u64) {
        if dylib == 0 {
            return;
        }
        if let Some(home) = self.homes.get_mut(&dylib) {
            home.allocations -= 1;
            if home.allocations == 0 {
                self.homes.remove(&dylib);
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

    // ---- chunks ----

    /// A run of pages for a segment that fits no chunk of a window, if the window has one.
    pub(super) fn grow(&mut self, window: usize, short: &PlannedSegment) -> Option<Growth> {
        let (range, need) = self.windows[window].grow(short)?;
        self.changes += 1;
        let (group, commit) = (short.group, self.commit);
        let chunk = Chunk {
            range,
            group,
            commit,
        };
        Some(Growth {
            window,
            need,
            chunk,
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

    pub(super) fn detach(
        &mut self,
        window: usize,
        pool: usize,
        keep: u64,
        out: &mut Vec<Detached>,
    ) {
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
}
