// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What the arenas of a manager have in common: the windows, with the runs of pages that are in no
//! arena's chunk, and which window each JITDylib is in.
//!
//! The locks here are taken by threads that have the lock of one arena, and for arithmetic only. So a fork,
//! which has the locks of all arenas, finds them free.

use super::{MOST_ARENAS, OnOwnLine};
use crate::lock::{Mutex, MutexGuard};
use crate::mapper::Reserved;
use crate::memory::runs::Runs;
use crate::page::AddressRange;
use std::collections::{HashMap, TryReserveError};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// What no arena has of a window, and how much all have.
pub(in crate::manager) struct FreeRuns {
    pub(in crate::manager) runs: Runs,
    /// Chunks of all arenas.
    pub(in crate::manager) chunks: usize,
    /// Bytes of these.
    pub(in crate::manager) chunk_bytes: u64,
}

/// A window, of which every arena may have chunks.
pub(in crate::manager) struct SharedWindow {
    pub(in crate::manager) range: AddressRange,
    pub(in crate::manager) in_reach: bool,
    free: Mutex<FreeRuns>,
}

impl SharedWindow {
    /// `origin` is what its offsets count from.
    pub(in crate::manager) fn new(reserved: Reserved, origin: u64) -> SharedWindow {
        let Reserved { range, in_reach } = reserved;
        SharedWindow {
            range,
            in_reach,
            free: Mutex::new(FreeRuns {
                runs: Runs::new(range.start() - origin, range.size()),
                chunks: 0,
                chunk_bytes: 0,
            }),
        }
    }

    /// With the lock of an arena.
    pub(in crate::manager) fn free(&self) -> MutexGuard<'_, FreeRuns> {
        self.free.lock()
    }
}

struct Listed {
    window: Arc<SharedWindow>,
    /// Arenas besides the first that may have something in it.
    arenas: usize,
}

struct SharedHome {
    window: usize,
    /// Arenas that have something of the JITDylib.
    arenas: usize,
}

#[derive(Default)]
struct List {
    /// By number.
    windows: Vec<Option<Listed>>,
    /// The number of the window that serves what is bound to none.
    serving: usize,
    /// Of JITDylibs that have anything, once there is more than one arena.
    homes: HashMap<u64, SharedHome>,
}

/// The windows of a manager.
#[derive(Default)]
pub(in crate::manager) struct SharedWindows {
    list: Mutex<List>,
    /// What each arena but the first has handed out, as of its last change.
    taken: [OnOwnLine<AtomicU64>; MOST_ARENAS],
    /// All is to be allocated in the first one: there is a quota.
    only_first: AtomicBool,
}

impl SharedWindows {
    /// Adds a window, with a number that no other has. With the lock of the first arena, as
    /// [`SharedWindows::release`].
    pub(in crate::manager) fn add(&self, number: usize, window: &Arc<SharedWindow>) {
        let list = &mut *self.list.lock();
        if list.windows.len() <= number {
            list.windows.resize_with(number + 1, || None);
        }
        list.windows[number] = Some(Listed {
            window: Arc::clone(window),
            arenas: 0,
        });
        list.serving = number;
    }

    /// Takes a window out; `false`, and it stays, if an arena has something in it.
    pub(in crate::manager) fn release(&self, number: usize) -> bool {
        let list = &mut *self.list.lock();
        let free = |listed: &mut Listed| listed.arenas == 0;
        list.windows[number].take_if(free).is_some()
    }

    /// Whether an arena besides the first has something in a window.
    pub(in crate::manager) fn is_used(&self, number: usize) -> bool {
        let list = self.list.lock();
        let listed = list.windows.get(number).and_then(Option::as_ref);
        listed.is_some_and(|listed| listed.arenas > 0)
    }

    /// The window that serves what is bound to none.
    pub(in crate::manager) fn serving(&self) -> usize {
        self.list.lock().serving
    }

    pub(in crate::manager) fn set_serving(&self, number: usize) {
        self.list.lock().serving = number;
    }

    /// A window that stays until [`SharedWindows::leave`], for an arena besides the first.
    pub(in crate::manager) fn enter(&self, number: usize) -> Option<Arc<SharedWindow>> {
        let list = &mut *self.list.lock();
        let listed = list.windows.get_mut(number)?.as_mut()?;
        listed.arenas += 1;
        Some(Arc::clone(&listed.window))
    }

    pub(in crate::manager) fn leave(&self, number: usize) {
        let list = &mut *self.list.lock();
        if let Some(listed) = list.windows[number].as_mut() {
            listed.arenas -= 1;
        }
    }

    // ---- JITDylibs ----

    /// The window that a JITDylib is in.
    pub(in crate::manager) fn home(&self, dylib: u64) -> Option<usize> {
        let list = self.list.lock();
        list.homes.get(&dylib).map(|home| home.window)
    }

    /// Makes room for that many more JITDylibs, and one of each arena that is about to begin one.
    pub(in crate::manager) fn reserve_homes(&self, more: usize) -> Result<(), TryReserveError> {
        let list = &mut *self.list.lock();
        list.homes.try_reserve(more + MOST_ARENAS)
    }

    /// Notes that an arena that has made room has something of a JITDylib in a window; `false`, and nothing is noted, if another
    /// arena has begun it in another window.
    pub(in crate::manager) fn begin_home(&self, dylib: u64, window: usize) -> bool {
        let list = &mut *self.list.lock();
        let home = list
            .homes
            .entry(dylib)
            .or_insert(SharedHome { window, arenas: 0 });
        let same = home.window == window;
        home.arenas += usize::from(same);
        same
    }

    /// An arena has nothing of a JITDylib any more.
    pub(in crate::manager) fn end_home(&self, dylib: u64) {
        let list = &mut *self.list.lock();
        if let Some(home) = list.homes.get_mut(&dylib) {
            home.arenas -= 1;
            if home.arenas == 0 {
                list.homes.remove(&dylib);
            }
        }
    }

    // ---- quota ----

    /// With the lock of an arena, that holds until the lock is given back.
    #[inline]
    pub(in crate::manager) fn is_only_first(&self) -> bool {
        self.only_first.load(Relaxed)
    }

    /// With the lock of the first arena, and to be followed by taking that of each other one.
    pub(in crate::manager) fn set_only_first(&self, only: bool) {
        self.only_first.store(only, Relaxed);
    }

    /// Notes what an arena besides the first has handed out.
    #[inline]
    pub(in crate::manager) fn set_taken(&self, arena: usize, bytes: u64) {
        self.taken[arena].0.store(bytes, Relaxed);
    }

    /// What the arenas besides the first have handed out.
    pub(in crate::manager) fn taken_by_others(&self) -> u64 {
        self.taken.iter().map(|taken| taken.0.load(Relaxed)).sum()
    }
}
