// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The standard library's locks without poisoning: a panic while one is held leaves what it guards
//! usable, and the C API stops the panic.

use crate::tsan::Synchronization;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A lock that is one word of its own. The library has no table of waiting threads, which a forked
/// child would inherit locked.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Mutex<T> {
        Mutex(std::sync::Mutex::new(value))
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.held(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the lock if no thread has it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(self.held(guard)),
            Err(std::sync::TryLockError::Poisoned(error)) => Some(self.held(error.into_inner())),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }

    #[inline]
    fn held<'a>(&'a self, guard: std::sync::MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        MutexGuard {
            before: Synchronization::acquire(self),
            guard,
        }
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A [`Mutex`] that is locked.
#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T> {
    /// The first field, so that it is dropped before the lock is free.
    before: Synchronization,
    guard: std::sync::MutexGuard<'a, T>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// Waiting until what a [`Mutex`] guards has changed. Threads may wake without a reason. The standard
/// library's enters the kernel to wake none; this one does only where a thread waits.
#[derive(Debug, Default)]
pub(crate) struct Condvar {
    condvar: std::sync::Condvar,
    /// Threads that wait. They are counted while they have the lock, so one that has changed what it
    /// guards sees those that have not.
    waiting: AtomicUsize,
}

impl Condvar {
    pub(crate) const fn new() -> Condvar {
        Condvar {
            condvar: std::sync::Condvar::new(),
            waiting: AtomicUsize::new(0),
        }
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let MutexGuard { before, guard } = guard;
        let lock = before.release();
        let guard = self.condvar.wait(guard);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let guard = guard.unwrap_or_else(PoisonError::into_inner);
        let before = lock.acquire_again();
        MutexGuard { before, guard }
    }

    /// [`Condvar::wait`], but for no longer than `timeout`.
    pub(crate) fn wait_for<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> MutexGuard<'a, T> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let MutexGuard { before, guard } = guard;
        let lock = before.release();
        let waited = self.condvar.wait_timeout(guard, timeout);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        let before = lock.acquire_again();
        MutexGuard { before, guard }
    }

    /// [`Condvar::wait`], but no longer than until `deadline`.
    pub(crate) fn wait_until<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        deadline: Instant,
    ) -> MutexGuard<'a, T> {
        self.wait_for(guard, deadline.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn notify_one(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.condvar.notify_one();
        }
    }

    pub(crate) fn notify_all(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.condvar.notify_all();
        }
    }
}
