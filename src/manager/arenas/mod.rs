// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Arenas: a manager that several threads allocate from at the same time is divided by each of them on its
//! own.
//!
//! An arena is a whole [`Flow`], with a lock, records and chunks of its own. The first one is there from the
//! beginning, and is all that a manager has whose threads do not meet. A thread that has met others in its
//! arena many times draws another one, which is made if it is not there. All arenas take their chunks
//! from the same windows. Whatever needs waiting, another window or a quota is the first one's.

mod batch;
mod choice;
mod shared;
mod whole;

pub(super) use shared::{SharedWindow, SharedWindows};

use super::allocate::Tried;
use super::divide::{Attempt, Effort};
use super::flow::Flow;
use super::piece::RequestLayout;
use super::records::arena_of;
use super::space::Space;
use super::window::Search;
use super::windows::Windows;
use super::{Allocated, Request};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::lock::MutexGuard;
use crate::mapper::Kind;
use crate::memory::placement::random;
use crate::sys::heap;
use std::sync::{Arc, OnceLock};

/// A manager has so many at most.
pub(super) const MOST_ARENAS: usize = 8;

/// What no other thread's data shares a cache line with; some processors read two at a time.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct OnOwnLine<T>(pub(super) T);

/// The arenas of a manager that divides windows.
pub(super) struct Arenas {
    pub(super) first: Arc<Flow<Windows>>,
    /// Those with the numbers from 1 on. Set with the lock of the first one, so no fork finds one half set.
    others: [OnceLock<Arc<Flow<Windows>>>; MOST_ARENAS - 1],
    cookie: u64,
    /// There may be several.
    several: bool,
    shared: Arc<SharedWindows>,
}

impl Arenas {
    pub(super) fn new(first: Arc<Flow<Windows>>) -> Arc<Arenas> {
        let options = &first.options;
        // Elsewhere a chunk takes a message, or an allocation takes system calls, which costs more than the
        // lock; and writer views are closed once nothing of the whole manager is in flight.
        let several = first.mapper.capabilities().kind == Kind::TwoViews
            && !first.mapper.changes_chunks_later()
            && !options.close_writers
            && !options.defer_reclamation;
        let (cookie, shared) = {
            let space = first.space.lock();
            (space.records.cookie(), Arc::clone(&space.memory.common))
        };
        shared.set_only_first(options.quota.is_some());
        Arc::new_cyclic(|arenas| {
            let set = first.arenas.set(arenas.clone());
            debug_assert!(set.is_ok(), "a flow is one manager's");
            Arenas {
                first,
                others: Default::default(),
                cookie,
                several,
                shared,
            }
        })
    }

    fn other(&self, number: usize) -> Option<&Arc<Flow<Windows>>> {
        self.others.get(number.checked_sub(1)?)?.get()
    }

    /// All arenas that there are.
    fn all(&self) -> impl Iterator<Item = &Arc<Flow<Windows>>> {
        std::iter::once(&self.first).chain(self.others())
    }

    fn others(&self) -> impl Iterator<Item = &Arc<Flow<Windows>>> {
        self.others.iter().filter_map(OnceLock::get)
    }

    fn is_single(&self) -> bool {
        self.others().next().is_none()
    }

    /// The number of the arena that has an allocation; of some arena, if none has.
    #[inline]
    fn number_of(&self, handle: u64) -> usize {
        arena_of(handle, self.cookie)
    }

    /// The arena that has an allocation; the first one if none has.
    #[inline]
    pub(super) fn of(&self, handle: u64) -> &Arc<Flow<Windows>> {
        self.numbered(self.number_of(handle))
    }

    #[inline]
    fn numbered(&self, number: usize) -> &Arc<Flow<Windows>> {
        match number {
            0 => &self.first,
            number => self.other(number).unwrap_or(&self.first),
        }
    }

    /// The arena that has all of these allocations; `None` if there is none.
    #[inline]
    pub(super) fn of_all(&self, handles: &[u64]) -> Option<&Arc<Flow<Windows>>> {
        let Some((one, others)) = handles.split_first() else {
            return Some(&self.first);
        };
        let arena = self.of(*one);
        let same = |other: &u64| Arc::ptr_eq(self.of(*other), arena);
        others.iter().all(same).then_some(arena)
    }

    // ---- allocating ----

    /// [`Flow::try_allocate`] in the arena of this thread.
    #[inline]
    pub(super) fn try_allocate(&self, request: &Request) -> Option<Result<Allocated>> {
        match self.try_in_other(request) {
            None => self.first.try_allocate(request),
            answer => answer,
        }
    }

    /// [`Flow::allocate`] in the arena of this thread.
    pub(super) fn allocate(&self, request: Request, done: Completion<Allocated>) {
        match self.try_in_other(&request) {
            None => self.first.allocate(request, done),
            Some(answer) => done.complete(answer),
        }
    }

    /// Allocates in the arena of this thread if that is not the first one and takes no waiting.
    #[inline]
    fn try_in_other(&self, request: &Request) -> Option<Result<Allocated>> {
        match choice::chosen() {
            0 => None,
            number => self.other(number)?.try_here(request, false),
        }
    }

    /// Makes an arena, if there may be one.
    #[cold]
    fn make(&self, number: usize) {
        let wanted = number != 0 && self.other(number).is_none();
        // Memory for one is made where there is some.
        let may_be = self.several && !self.shared.is_only_first() && heap::check().is_ok();
        if !wanted || !may_be {
            return;
        }
        let first = &self.first;
        if first.space.lock().memory.be_one_of_many().is_err() {
            return;
        }
        let (shared, mapper) = (Arc::clone(&self.shared), first.mapper.capabilities());
        let memory = Windows::of_arena(number, shared, mapper, &first.options);
        let made = Flow::of_arena(first, memory, number);
        // If another thread has made it meanwhile, this one goes, after the lock was given back.
        let refused = {
            let _guard = first.space.lock();
            self.others[number - 1].set(made)
        };
        drop(refused);
    }
}

#[cfg(test)]
impl super::core::Core {
    fn arenas(&self) -> Arc<Arenas> {
        let arenas = self.windows().and_then(|first| first.arenas());
        arenas.expect("the manager divides windows")
    }

    /// Has this thread allocate in an arena, which is made if there may be one.
    pub(super) fn choose_arena(&self, number: usize) {
        choice::choose(number);
        self.arenas().make(number);
    }

    /// The arena of an allocation.
    pub(super) fn arena_of(&self, handle: u64) -> usize {
        self.arenas().number_of(handle)
    }
}

impl Flow<Windows> {
    /// The arenas of the manager, while its host has it.
    pub(super) fn arenas(&self) -> Option<Arc<Arenas>> {
        let first = self.first.as_deref().unwrap_or(self);
        first.arenas.get()?.upgrade()
    }

    /// The lock, for an allocation.
    #[inline]
    pub(super) fn lock_to_allocate(&self) -> MutexGuard<'_, Space<Windows>> {
        let mut guard = match self.space.try_lock() {
            Some(guard) => guard,
            None => self.lock_taken(),
        };
        guard.allocator = choice::this_thread();
        guard
    }

    /// The lock, which another thread has. A thread that meets others too often draws another arena.
    #[cold]
    fn lock_taken(&self) -> MutexGuard<'_, Space<Windows>> {
        let guard = self.space.lock();
        // The other one may only have freed what it has here of before.
        let alone = guard.allocator == choice::this_thread();
        if alone || choice::is_good(guard.usage.counters.allocate) {
            return guard;
        }
        drop(guard);
        if let Some(arenas) = self.arenas().filter(|arenas| arenas.several) {
            let is_there = |number| number == 0 || arenas.other(number).is_some();
            choice::draw(random(), is_there);
            arenas.make(choice::chosen());
        }
        self.space.lock()
    }

    /// Serves a request in an arena besides the first one, if that takes no waiting and no other window;
    /// `thoroughly` looks at every free range.
    pub(super) fn try_here(
        self: &Arc<Self>,
        request: &Request,
        thoroughly: bool,
    ) -> Option<Result<Allocated>> {
        let (mut layout, delivery) = (RequestLayout::default(), &mut Delivery::Inline);
        let effort = Effort {
            last_resort: thoroughly,
            reclaim: false,
            search: match thoroughly {
                true => Search::AnyCode,
                false => Search::OwnChunks,
            },
        };
        loop {
            let attempt = {
                let mut space = self.lock_to_allocate();
                if space.memory.common.is_only_first() {
                    return None;
                }
                space.try_allocate(request, effort, &mut layout)
            };
            match attempt {
                Attempt::Done(key) => {
                    return Some(self.make_ready(request, key, &mut layout, delivery));
                }
                Attempt::Grow(growth) => {
                    self.thaw(delivery);
                    self.grow(growth, delivery).ok()?;
                }
                Attempt::Reclaim(empty) => {
                    self.do_not_reclaim(empty, delivery);
                    return None;
                }
                Attempt::Wait | Attempt::Full(_) | Attempt::Refused(_) => return None,
            }
        }
    }

    /// Whether a request that has no room here may be served with what other arenas have.
    pub(super) fn may_ask_others(&self, tried: Tried, error: &Error) -> bool {
        let full = error.status() == Status::WindowFull;
        full && !tried.others && self.arenas().is_some_and(|arenas| !arenas.is_single())
    }
}

/// What came of asking other arenas for room.
pub(super) enum Others {
    Answer(Result<Allocated>),
    /// A change is under way in this one, after which the request may be served.
    Change(Arc<Flow<Windows>>),
    /// They have given back what they could.
    Asked,
}

impl Arenas {
    /// Serves a request for which the first arena has no room, or makes room.
    #[cold]
    pub(super) fn ask_others(&self, request: &Request, delivery: &mut Delivery) -> Others {
        let served = |other: &Arc<Flow<Windows>>| other.try_here(request, true);
        if let Some(answer) = self.others().find_map(served) {
            return Others::Answer(answer);
        }
        for other in self.others() {
            let mut empty = Vec::new();
            other.space.lock().memory.detach_all(&mut empty);
            // What the system does not take back stays in use.
            let _ = other.reclaim(empty, delivery);
            if other.space.lock().memory.changes > 0 {
                return Others::Change(Arc::clone(other));
            }
        }
        Others::Asked
    }
}
