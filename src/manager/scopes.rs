// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which finalized allocations are being written, and what waits until they are not.

use super::space::heap_is_full;
use crate::completion::Completion;
use crate::error::{Error, Result, invalid_argument, invalid_handle};
use crate::sys::{heap, thread_number};
use smallvec::SmallVec;
use std::collections::HashMap;

/// A deallocation of something that is being written.
pub(super) struct WaitingDeallocation {
    pub(super) handles: Vec<u64>,
    pub(super) done: Completion<()>,
}

/// The write scopes of a manager. It has none most of the time, so that is asked first.
#[derive(Default)]
pub(super) struct Scopes {
    /// By allocation, the numbers of the threads that began its scopes.
    open: HashMap<u64, SmallVec<[u64; 2]>>,
    waiting: Vec<WaitingDeallocation>,
}

impl Scopes {
    /// Whether one of these allocations is being written.
    pub(super) fn hold(&self, handles: &[u64]) -> bool {
        !self.open.is_empty() && handles.iter().any(|handle| self.open.contains_key(handle))
    }

    /// Fails if a thread that waited for these allocations would wait for itself.
    pub(super) fn check_own(&self, handles: &[u64]) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let here = thread_number();
        let own = |handle: &&u64| {
            let threads = self.open.get(handle);
            threads.is_some_and(|threads| threads.contains(&here))
        };
        match handles.iter().find(own) {
            None => Ok(()),
            Some(handle) => Err(invalid_argument(format!(
                "wait for the deallocation of allocation {handle:#x}: this thread has a write \
                 scope of it, which it would wait for; end the scope first, or deallocate without \
                 waiting"
            ))),
        }
    }

    /// Notes a scope of this allocation. None begins once a deallocation waits, so that it waits for
    /// few.
    pub(super) fn begin(&mut self, handle: u64, thread: u64) -> Result<()> {
        let mut waiting = self.waiting.iter();
        if waiting.any(|waiting| waiting.handles.contains(&handle)) {
            return Err(invalid_handle(format!(
                "allocation {handle:#x} is being deallocated, once its write scopes have ended"
            )));
        }
        self.open.try_reserve(1).map_err(|_| heap_is_full())?;
        let threads = self.open.entry(handle).or_default();
        let reserved = threads.try_reserve(1).map_err(|_| heap_is_full());
        match reserved {
            Ok(()) => threads.push(thread),
            Err(_) if threads.is_empty() => drop(self.open.remove(&handle)),
            Err(_) => {}
        }
        reserved
    }

    /// Forgets a scope. Gives the deallocations that may be done now.
    pub(super) fn end(&mut self, handle: u64, thread: u64) -> Vec<WaitingDeallocation> {
        if let Some(threads) = self.open.get_mut(&handle) {
            let own = threads.iter().position(|known| *known == thread);
            own.map(|own| threads.swap_remove(own));
            if !threads.is_empty() {
                return Vec::new();
            }
        }
        self.open.remove(&handle);
        std::mem::take(&mut self.waiting)
    }

    /// In a child: of its parent's threads only the one that forked is there, and what waits is answered in the
    /// parent.
    pub(super) fn keep_own(&mut self) {
        std::mem::forget(std::mem::take(&mut self.waiting));
        let here = thread_number();
        self.open.retain(|_, threads| {
            threads.retain(|thread| *thread == here);
            !threads.is_empty()
        });
    }

    /// Keeps a deallocation until the scopes that hold it back have ended. Without memory for that it gives
    /// back what is to be told, once no lock is held.
    pub(super) fn wait(
        &mut self,
        handles: &[u64],
        done: Completion<()>,
    ) -> Option<(Error, Completion<()>)> {
        let room = self.waiting.try_reserve(1).map_err(|_| heap_is_full());
        match room.and_then(|()| heap::copy_of(handles, "deallocate")) {
            Ok(handles) => self.waiting.push(WaitingDeallocation { handles, done }),
            Err(error) => return Some((error, done)),
        }
        None
    }

    /// Everything that waits, at the end of the manager.
    pub(super) fn take_waiting(&mut self) -> Vec<WaitingDeallocation> {
        std::mem::take(&mut self.waiting)
    }
}
