// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which window serves a request, and where each JITDylib is at home.

use super::{Home, MOST_WINDOWS, Windows};
use crate::error::{Error, Status};
use crate::manager::huge_pages::FreshHugePages;
use crate::manager::piece::RequestLayout;
use crate::manager::pool::MOST_CHUNKS;
use crate::manager::request::{PlannedSegment, Request};
use crate::manager::window::Window;
use smallvec::SmallVec;
use std::collections::TryReserveError;
use std::collections::hash_map::Entry;

/// Alignment that may be why there is no room.
const MUCH_ALIGNMENT: u32 = 1 << 20;

impl Windows {
    /// The window that most likely holds a request, in constant time.
    pub(in crate::manager) fn likely_window(&self, request: &Request) -> Option<usize> {
        if let Some(home) = self.home(request.dylib) {
            // Another arena's, which this one has not entered yet.
            return self.has(home).then_some(home);
        }
        let current = self.windows.get(self.current)?.as_ref()?;
        let suits = !self.begins_dylib(request) || current.has_room_for_more();
        suits.then_some(self.current)
    }

    /// Whether more of its JITDylib may follow, for which there is no window yet.
    fn begins_dylib(&self, request: &Request) -> bool {
        self.many && request.dylib != 0 && !request.planned.is_empty()
    }

    /// The windows that may hold a request, best first.
    pub(in crate::manager) fn windows_for(
        &mut self,
        request: &Request,
        last_resort: bool,
    ) -> SmallVec<[usize; 4]> {
        if let Some(home) = self.home(request.dylib) {
            return self.enter(home).then_some(home).into_iter().collect();
        }
        if self.arena != 0 {
            self.enter(self.common.serving());
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
    pub(in crate::manager) fn served_by(&mut self, number: usize, request: &Request) {
        if self.home(request.dylib).is_none() {
            self.current = number;
        }
    }

    /// The smallest window that serves a request by itself.
    pub(in crate::manager) fn least_window(&self, request: &Request) -> u64 {
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
    pub(in crate::manager) fn home(&self, dylib: u64) -> Option<usize> {
        if !self.many || dylib == 0 {
            return None;
        }
        match self.homes.get(&dylib) {
            Some(home) => Some(home.window),
            None if self.is_one_of_many => self.common.home(dylib),
            None => None,
        }
    }

    /// Bytes that a request takes, rounding included.
    pub(in crate::manager) fn wanted(&self, request: &Request) -> u64 {
        let rounded = |size: u32| {
            self.granule
                .round_up(size.max(1).into())
                .unwrap_or(u64::MAX)
        };
        request.planned.iter().fold(0, |sum: u64, planned| {
            sum.saturating_add(rounded(planned.size))
        })
    }

    /// Notes that an allocation of a JITDylib is made in a window; `false`, and nothing is noted, if another
    /// arena has begun the JITDylib in another window meanwhile.
    fn enter_home(&mut self, dylib: u64, window: usize) -> bool {
        match self.homes.entry(dylib) {
            Entry::Occupied(mut home) => home.get_mut().allocations += 1,
            Entry::Vacant(home) => {
                if self.is_one_of_many && !self.common.begin_home(dylib, window) {
                    return false;
                }
                home.insert(Home {
                    window,
                    allocations: 1,
                });
                self.window_mut(window).homes += 1;
            }
        }
        true
    }

    /// From now on there are other arenas, if the heap has room for noting what they share.
    pub(in crate::manager) fn be_one_of_many(&mut self) -> Result<(), TryReserveError> {
        if !self.is_one_of_many {
            self.common.reserve_homes(self.homes.len())?;
            self.is_one_of_many = true;
            for (dylib, home) in &self.homes {
                self.common.begin_home(*dylib, home.window);
            }
        }
        Ok(())
    }

    /// Notes that a request has got its pieces from this window. Gives the number of its JITDylib; `None`,
    /// and nothing is noted, if that has another window, where another arena has begun it meanwhile.
    pub(in crate::manager) fn hold(
        &mut self,
        request: &Request,
        window: usize,
        layout: &mut RequestLayout,
    ) -> Option<u32> {
        let dylib = match request.planned.is_empty() {
            true => 0,
            false => request.dylib,
        };
        if self.many && dylib != 0 && !self.enter_home(dylib, window) {
            return None;
        }
        if !layout.untouched.is_empty() {
            let mut fresh = FreshHugePages::new(self.huge);
            self.committed += self.window_mut(window).touch(&layout.untouched, &mut fresh);
            if !fresh.ranges.is_empty() {
                layout.huge = Some(Box::new(fresh.ranges));
            }
        }
        Some(match dylib {
            0 => 0,
            dylib => self.dylibs.enter(dylib),
        })
    }

    /// An allocation of a JITDylib, by its number, is gone.
    pub(in crate::manager) fn leave_home(&mut self, number: u32) {
        if number == 0 {
            return;
        }
        let dylib = self.dylibs.leave(number);
        if let Some(home) = self.homes.get_mut(&dylib) {
            home.allocations -= 1;
            if home.allocations == 0 {
                let number = home.window;
                self.homes.remove(&dylib);
                if self.is_one_of_many {
                    self.common.end_home(dylib);
                }
                let window = self.window_mut(number);
                window.homes -= 1;
                let unused = window.is_empty();
                self.unused |= unused;
            }
        }
    }

    pub(in crate::manager) fn full(
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
        let alignment = request.planned.iter().map(|planned| planned.alignment);
        let alignment = alignment.max().unwrap_or(0);
        let misaligned = alignment >= MUCH_ALIGNMENT && largest >= self.wanted(request);
        let why = if bound {
            format!(
                "the window that holds JITDylib {:#x} is full and a JITDylib never straddles two",
                request.dylib
            )
        } else {
            let windows = windows.len();
            let state = match misaligned {
                true => "have no free place that is so aligned",
                false => "are full",
            };
            format!("{windows} window(s) of {size} bytes in all {state}")
        };
        let remedy = if size < self.window_size * windows.len() as u64 {
            "deallocate something, or make the manager earlier: its windows are smaller than asked \
             for, for want of address space in reach or under RLIMIT_AS"
        } else if misaligned {
            "deallocate something, choose windows of twice that alignment (below 2 GiB), which have such a place \
             wherever they lie, or align less"
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
        let aligned = match alignment {
            much @ MUCH_ALIGNMENT.. => format!(", aligned to {much}"),
            _ => String::new(),
        };
        Error::new(
            Status::WindowFull,
            format!(
                "allocate {} bytes in {} segment(s){aligned}: {why} ({taken} bytes handed out, largest free \
                 run {largest} bytes){crowded}; {remedy}",
                self.wanted(request),
                request.planned.len(),
            ),
        )
    }
}
