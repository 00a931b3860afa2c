// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Memory that holds nothing: idle ranges, and windows.

use super::{Detached, Windows};
use crate::manager::pool::Keep;
use crate::manager::pool::number::POOLS;
use crate::manager::window::Window;
use crate::memory::ranges::{Handed, Ranges};
use crate::page::AddressRange;

/// About so many ranges are taken at a time to be given back.
const MOST_IDLE: usize = 128;

impl Windows {
    /// Free ranges whose pages may hold memory, of the pool and size where `at` stands and of those
    /// behind it; each has at least `least` pages. There may be more until the answer is none.
    pub(in crate::manager) fn take_idle(
        &mut self,
        at: &mut IdleSearch,
        least: u32,
    ) -> Option<Vec<Idle>> {
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
    pub(in crate::manager) fn discarded(
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

    /// Takes the empty chunks out that are not kept, if any was made for a request since this was last done.
    pub(in crate::manager) fn detach_fresh(&mut self, out: &mut Vec<Detached>) {
        if !std::mem::take(&mut self.grew) {
            return;
        }
        let numbers: Vec<usize> = self.numbers().collect();
        for number in numbers {
            self.window_mut(number).give_up_fresh();
            (0..POOLS).for_each(|pool| self.detach(number, pool, Keep::Spare, out));
            self.unused |= self.window(number).is_empty();
        }
    }

    /// Treats chunks that were made for requests as any others, unless one is about to take from them. It may have
    /// got what another thread has freed meanwhile.
    pub(in crate::manager) fn settle_fresh(&mut self) {
        if self.making_room == 0 && self.changes == 0 {
            let windows = self.windows.iter_mut().flatten();
            windows.for_each(Window::give_up_fresh);
        }
    }

    /// Takes all empty chunks out.
    pub(in crate::manager) fn detach_all(&mut self, out: &mut Vec<Detached>) {
        let numbers: Vec<usize> = self.numbers().collect();
        for number in numbers {
            (0..POOLS).for_each(|pool| self.detach(number, pool, Keep::None, out));
        }
    }

    /// Whether nothing of any arena lies in a window, or changes there.
    fn is_unused(&self, number: usize) -> bool {
        let window = self.windows[number].as_ref();
        window.is_some_and(|window| window.is_empty() && window.changes == 0)
            && !self.common.is_used(number)
    }

    /// The windows of another arena than the first in which nothing of it lies, but for the one that serves
    /// if that is to be kept.
    pub(in crate::manager) fn empty_shares(&self, keep: usize) -> Vec<usize> {
        let empty = |number: &usize| {
            let window = self.window(*number);
            window.is_empty() && window.changes == 0 && (keep == 0 || *number != self.current)
        };
        self.numbers().filter(empty).collect()
    }

    /// Leaves windows of which this arena, which is not the first, has no chunk; whether it did.
    pub(in crate::manager) fn leave_bare(&mut self, numbers: &[usize]) -> bool {
        let mut any = false;
        for number in numbers {
            let bare =
                |window: &mut Window| window.is_empty() && window.is_bare() && window.changes == 0;
            if self.windows[*number].take_if(bare).is_some() {
                self.common.leave(*number);
                any = true;
            }
        }
        any
    }

    /// Takes windows out in which nothing lies, but for `keep` of them and the last one.
    pub(in crate::manager) fn take_empty(&mut self, keep: usize) -> Vec<AddressRange> {
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
            if !self.common.release(number) {
                continue; // an arena has entered it meanwhile
            }
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
            self.common.set_serving(self.current);
        }
        released
    }
}

/// A free range whose pages are being given back.
pub(in crate::manager) struct Idle {
    window: usize,
    pool: usize,
    handed: Handed,
    pub(in crate::manager) pages: AddressRange,
}

/// How far a search for idle ranges has come: the pools of all windows, one after the other, in each from
/// the largest range down.
pub(in crate::manager) struct IdleSearch {
    pool: usize,
    below: Option<usize>,
}

impl IdleSearch {
    pub(in crate::manager) fn new() -> IdleSearch {
        IdleSearch::from_pool(0)
    }

    fn from_pool(pool: usize) -> IdleSearch {
        let below = Ranges::LARGEST;
        IdleSearch { pool, below }
    }
}
