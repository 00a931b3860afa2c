// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Writer views that are closed while nothing is in flight, if the host chose so.

use super::flow::Flow;
use super::space::heap_is_full;
use super::windows::Windows;
use crate::error::Result;
use crate::lock::{Condvar, MutexGuard};
use crate::page::AddressRange;
use crate::sys::{AtForkMutex, Forked, thread_number};
use smallvec::SmallVec;

/// Whether the writer views of a manager can be accessed.
pub(super) struct WriterAccess {
    access: AtForkMutex<Access>,
    /// A thread has opened or closed them.
    changed: Condvar,
}

#[derive(Default)]
struct Access {
    /// The numbers of the threads that are writing, as often as each has begun.
    users: SmallVec<[u64; 4]>,
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    /// A thread is opening or closing them, or looks whether it may.
    Changing,
    Open,
}

impl WriterAccess {
    pub(super) fn new() -> WriterAccess {
        let forked = |access: &mut Access, forked: Forked| {
            if !forked.in_child {
                return;
            }
            // The other threads are not there.
            let here = thread_number();
            access.users.retain(|user| *user == here);
            // Nor is the one that changed it, nor are the views.
            if access.state == State::Changing {
                access.state = State::Closed;
            }
        };
        WriterAccess {
            access: AtForkMutex::new(Access::default(), forked),
            changed: Condvar::new(),
        }
    }

    /// Waits until no thread is changing it.
    fn settled(&self) -> MutexGuard<'_, Access> {
        let mut access = self.access.lock();
        while access.state == State::Changing {
            access = self.changed.wait(access);
        }
        access
    }

    fn set(&self, state: State) {
        self.access.lock().state = state;
        self.changed.notify_all();
    }
}

/// Keeps the writer views open until it is dropped, and then for as long as anything is in flight.
#[must_use]
pub(super) struct OpenWriters<'a>(#[allow(dead_code)] Option<User<'a>>);

/// A thread that has the writer views open, of a manager that ever closes them.
struct User<'a> {
    flow: &'a Flow<Windows>,
    shared: &'a WriterAccess,
    thread: u64,
}

impl Flow<Windows> {
    /// Has the writer views opened, where they are ever closed. What is in flight keeps them open.
    #[inline]
    pub(super) fn open_writers(&self) -> Result<OpenWriters<'_>> {
        match &self.writer_access {
            None => Ok(OpenWriters(None)),
            Some(shared) => self.open_closed(shared),
        }
    }

    #[cold]
    fn open_closed<'a>(&'a self, shared: &'a WriterAccess) -> Result<OpenWriters<'a>> {
        let mut access = shared.settled();
        if access.state == State::Closed {
            access.state = State::Changing;
            drop(access);
            let opened = self.mapper.set_writers(&self.windows(), true);
            shared.set(if opened.is_ok() {
                State::Open
            } else {
                State::Closed
            });
            opened?;
            return self.open_closed(shared);
        }
        access.users.try_reserve(1).map_err(|_| heap_is_full())?;
        let thread = thread_number();
        access.users.push(thread);
        Ok(OpenWriters(Some(User {
            flow: self,
            shared,
            thread,
        })))
    }

    /// Undoes an [`OpenWriters::keep`] of a thread.
    pub(super) fn end_keeping_writers(&self, thread: u64) {
        if let Some(shared) = &self.writer_access {
            let flow = self;
            drop(User {
                flow,
                shared,
                thread,
            });
        }
    }

    /// Closes the writer views, if nothing is in flight or being written any more.
    #[inline]
    pub(super) fn close_idle_writers(&self) {
        if let Some(shared) = &self.writer_access {
            self.close_idle(shared);
        }
    }

    #[cold]
    fn close_idle(&self, shared: &WriterAccess) {
        let mut access = shared.settled();
        if !access.users.is_empty() || access.state != State::Open {
            return;
        }
        access.state = State::Changing;
        drop(access);
        // Nothing new can be in flight meanwhile: it would have to open them.
        if self.space.lock().usage.in_flight > 0 {
            return shared.set(State::Open);
        }
        // What could not be closed stays open, and is closed the next time.
        let _ = self.counted(self.mapper.set_writers(&self.windows(), false));
        shared.set(State::Closed);
    }

    fn windows(&self) -> SmallVec<[AddressRange; 4]> {
        let space = self.space.lock();
        let windows = space.memory.iter();
        windows.map(|window| window.range).collect()
    }
}

impl OpenWriters<'_> {
    /// Keeps them open until [`Flow::end_keeping_writers`] is called, as often as this was.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for User<'_> {
    #[cold]
    fn drop(&mut self) {
        let User {
            flow,
            shared,
            thread,
        } = *self;
        {
            let users = &mut shared.access.lock().users;
            // In a forked child, what another thread had begun is none.
            let own = users.iter().position(|user| *user == thread);
            own.map(|own| users.swap_remove(own));
        }
        flow.close_idle_writers();
    }
}
