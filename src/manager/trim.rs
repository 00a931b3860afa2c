// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Memory that is given back to the system: idle pages, which hold nothing and may still be there,
//! and windows in which nothing lies.
//!
//! Idle pages go when they are many beside what is in use and much was freed since they went last, so
//! a steady load makes no system call. The work is done by the thread that freed, without the lock.

use super::flow::Flow;
use super::lookup;
use super::pool::Keep;
use super::pool::number::POOLS;
use super::space::Space;
use super::windows::{IdleSearch, Windows};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result};
use std::sync::Arc;
use std::time::Instant;

/// Idle pages stay while they are less than this part of what is handed out, and these bytes.
const IDLE_SHARE: u64 = 8;
const IDLE_SLACK: u64 = 512 << 10;
/// Fewer idle pages in a row are left where they are, as long as idle pages are not very many: each
/// run costs a system call.
const LEAST_PAGES: u32 = 4;
/// So many times the slack is very many.
const VERY_MANY: u64 = 2;
/// So many times the slack is freed before idle pages are looked for again.
const PATIENCE: u64 = 2;
/// Where memory is given back by the chunk, at least one of so many pages of it must hold nothing: in a trim,
/// and where idle pages are very many or not.
const PART_OF_TRIM: u32 = 16;
const PART_IF_MANY: u32 = 4;
const PART: u32 = 2;
/// Windows in which nothing lies that are kept for what may come.
const EMPTY_WINDOWS: usize = 1;

impl Space<Windows> {
    /// Whether idle pages are to be given back now, and from how many in a row on. Says so once until
    /// [`Flow::end_trim`].
    pub(super) fn begin_trim(&mut self) -> Option<u32> {
        let slack = self.usage.taken / IDLE_SHARE + IDLE_SLACK;
        let memory = &mut self.memory;
        let idle = memory.committed.saturating_sub(self.usage.taken);
        if idle <= slack || memory.trimming {
            return None;
        }
        if memory.freed <= PATIENCE * slack {
            return None;
        }
        let least = match idle > VERY_MANY * slack {
            true => 1,
            false => LEAST_PAGES,
        };
        (memory.trimming, memory.freed) = (true, 0);
        Some(least)
    }
}

impl Flow<Windows> {
    /// Gives everything back that holds nothing. The bytes of memory that were given back.
    pub(super) fn trim(self: &Arc<Self>) -> Result<u64> {
        self.check_process()?;
        let delivery = &mut Delivery::Inline;
        let deadline = self.shrinking_deadline();
        let alone = self.trim_alone(deadline);
        self.thaw(delivery);
        let mut empty = Vec::new();
        {
            let memory = &mut self.space.lock().memory;
            memory.settle_fresh();
            let windows: Vec<usize> = memory.numbers().collect();
            for window in windows {
                (0..POOLS).for_each(|pool| memory.detach(window, pool, Keep::Fresh, &mut empty));
            }
        }
        let reclaimed = self.reclaim(empty, delivery);
        let discarded = self.discard_idle(1, delivery);
        let shrunk = self.shrink_chunks_until(deadline, PART_OF_TRIM);
        let released = self.release_windows(0, delivery);
        self.close_idle_writers();
        self.trim_records();
        if alone {
            self.end_trim();
        }
        let done = [&reclaimed, &discarded, &shrunk];
        let done = done.into_iter().flatten().sum::<u64>();
        let bytes = done + released;
        match reclaimed.and(discarded).and(shrunk) {
            Err(error) if bytes == 0 => self.counted(Err(error.context("trim"))),
            _ => Ok(bytes),
        }
    }

    /// Waits until no other thread gives idle pages back: what that has taken looks as it was then. Whether
    /// this thread alone does so until [`Flow::end_trim`].
    fn trim_alone(&self, deadline: Instant) -> bool {
        let mut space = self.space.lock();
        while space.memory.trimming && Instant::now() < deadline {
            space = self.unheld.wait_until(space, deadline);
        }
        !std::mem::replace(&mut space.memory.trimming, true)
    }

    pub(super) fn end_trim(&self) {
        self.space.lock().memory.trimming = false;
        self.unheld.notify_all();
    }

    /// Gives the idle pages back that [`Space::begin_trim`] has found to be many.
    pub(super) fn trim_idle(self: &Arc<Self>, least: u32, delivery: &mut Delivery) {
        // What the system does not take back stays in use: nothing is lost.
        let _ = self.discard_idle(least, delivery);
        let flow = Arc::downgrade(self);
        let part = if least == 1 { PART_IF_MANY } else { PART };
        let ended = Completion::with_delivery(move |_, delivery| {
            if let Some(flow) = flow.upgrade() {
                flow.end_trim();
                // Much may have been freed since it began.
                let again = flow.space.lock().begin_trim();
                if let Some(least) = again {
                    flow.trim_idle(least, delivery);
                }
            }
        });
        self.shrink_chunks(part, ended);
    }

    /// Gives back the memory of free ranges in which it may be in at least `least` pages. An error
    /// means that none was given back.
    fn discard_idle(self: &Arc<Self>, least: u32, delivery: &mut Delivery) -> Result<u64> {
        // Shared pages are given back through a view that may write.
        let writers = self.open_writers()?;
        let (mut bytes, mut failure) = (0, None);
        let mut search = IdleSearch::new();
        loop {
            let idle = self.space.lock().memory.take_idle(&mut search, least);
            let Some(idle) = idle else { break };
            if idle.is_empty() {
                continue;
            }
            let inside = self.enter_mapper();
            let answers = idle.iter().map(|idle| self.mapper.discard(idle.pages));
            let answers: Vec<Result<()>> = answers.collect();
            drop(inside);
            let mut empty = Vec::new();
            {
                let memory = &mut self.space.lock().memory;
                for (idle, answer) in idle.iter().zip(answers) {
                    bytes += memory.discarded(idle, answer.is_ok(), &mut empty);
                    failure = answer.err().or(failure);
                }
            }
            // Nothing of them is left to be given back but what could not be.
            let _ = self.reclaim(empty, delivery);
            self.wake(delivery);
        }
        self.release_unused_windows(delivery);
        drop(writers);
        none_or_all(bytes, failure)
    }

    /// Has the mapper release windows in which nothing lies, but for `keep` of them. Gives the bytes
    /// of memory that were there.
    fn release_windows(self: &Arc<Self>, keep: usize, delivery: &mut Delivery) -> u64 {
        if let Some(first) = &self.first {
            self.leave_windows(first, keep, delivery);
            return 0;
        }
        let (windows, bytes) = {
            let memory = &mut self.space.lock().memory;
            let before = memory.committed;
            let windows = memory.take_empty(keep);
            (windows, before - memory.committed)
        };
        for window in windows {
            self.tracking.window_released(window, delivery);
            // The address space of a window that is not to be released is lost; the mapper counts it.
            self.mapper.release(window, Completion::new(|_| ()));
        }
        lookup::collect();
        bytes
    }

    /// Leaves the windows in which an arena besides the first has nothing, so that this can release them.
    fn leave_windows(self: &Arc<Self>, first: &Arc<Self>, keep: usize, delivery: &mut Delivery) {
        let mut empty = Vec::new();
        let shares = {
            let memory = &mut self.space.lock().memory;
            memory.unused = false;
            let shares = match memory.many {
                true => memory.empty_shares(keep),
                false => Vec::new(),
            };
            for share in &shares {
                (0..POOLS).for_each(|pool| memory.detach(*share, pool, Keep::None, &mut empty));
            }
            shares
        };
        // A chunk that the system does not take back keeps its window.
        let _ = self.reclaim(empty, delivery);
        let left = self.space.lock().memory.leave_bare(&shares);
        lookup::collect();
        if left {
            first.release_spare_windows(delivery);
        }
    }

    /// Releases the windows, but for a spare one, that others have emptied while something in them was
    /// being changed here.
    pub(super) fn release_unused_windows(self: &Arc<Self>, delivery: &mut Delivery) {
        let unused = {
            let memory = &self.space.lock().memory;
            memory.many && memory.unused
        };
        if unused {
            self.release_spare_windows(delivery);
        }
    }

    /// Releases the windows that are empty now, but for a spare one.
    pub(super) fn release_spare_windows(self: &Arc<Self>, delivery: &mut Delivery) {
        self.release_windows(EMPTY_WINDOWS, delivery);
    }
}

pub(super) fn none_or_all(bytes: u64, failure: Option<Error>) -> Result<u64> {
    match failure {
        Some(error) if bytes == 0 => Err(error),
        _ => Ok(bytes),
    }
}
