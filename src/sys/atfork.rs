// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Locks that a forking thread holds across the fork, so that a child finds them free and what they
//! guard whole, whatever other threads were doing.
//!
//! A thread that holds one of them takes no other and does not fork; so the order in which a fork takes
//! them does not matter.

use super::fork::{children_are_known, enter_child};
use super::witness::{ForksInUse, Witnesses};
use crate::lock::{Mutex, MutexGuard};
use std::cell::{Cell, UnsafeCell};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Which process goes on after a fork, for what has to change there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forked {
    /// The child, where only the thread that has forked exists.
    pub(crate) in_child: bool,
    /// How many forks this process has begun, and those that it descends from before it was made.
    pub(crate) epoch: u32,
}

static EPOCH: AtomicU32 = AtomicU32::new(0);

/// See [`Forked::epoch`].
pub(crate) fn fork_epoch() -> u32 {
    EPOCH.load(Ordering::Relaxed)
}

/// Forks are witnessed from the first manager on that asks for it.
static WITNESSED: AtomicBool = AtomicBool::new(false);

/// Has it be known of all further forks whether their children are still there.
pub(crate) fn witness_forks() {
    WITNESSED.store(true, Ordering::Relaxed);
}

/// The forks whose children may still be there, if `witness_forks` was called before them. Makes system
/// calls.
pub(crate) fn forks_in_use() -> ForksInUse {
    LIST.lock().witnesses.in_use()
}

/// What the list of all locks knows of one.
struct Header {
    listed: AtomicBool,
    before: Cell<*const Header>,
    after: Cell<*const Header>,
    hold: unsafe fn(*const Header),
    release: unsafe fn(*const Header, Forked),
}

/// A lock that stays where it is for as long as it is listed.
#[repr(C)]
struct Lock<T: 'static> {
    header: Header,
    mutex: Mutex<T>,
    /// The forking thread's.
    held: UnsafeCell<Option<MutexGuard<'static, T>>>,
    before: fn(&mut T),
    forked: fn(&mut T, Forked),
}

// SAFETY: the header's neighbours change under the lock of the list, and `held` belongs to the thread
// that forks, which has the list locked.
unsafe impl<T: Send> Sync for Lock<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Lock<T> {}

impl<T: 'static> Lock<T> {
    const fn new(value: T, before: fn(&mut T), forked: fn(&mut T, Forked)) -> Lock<T> {
        Lock {
            header: Header {
                listed: AtomicBool::new(false),
                before: Cell::new(ptr::null()),
                after: Cell::new(ptr::null()),
                hold: Self::hold,
                release: Self::release,
            },
            mutex: Mutex::new(value),
            held: UnsafeCell::new(None),
            before,
            forked,
        }
    }

    /// # Safety
    /// `header` is that of a listed lock of this type, the list is locked, and the caller does not hold
    /// the lock.
    unsafe fn hold(header: *const Header) {
        // SAFETY: a header is the first field of its lock.
        let lock: &'static Lock<T> = unsafe { &*header.cast() };
        let mut guard = lock.mutex.lock();
        (lock.before)(&mut guard);
        // SAFETY: only a thread that has locked the list comes here.
        unsafe { *lock.held.get() = Some(guard) };
    }

    /// # Safety
    /// As [`Lock::hold`], which the calling thread has called before.
    unsafe fn release(header: *const Header, forked: Forked) {
        // SAFETY: a header is the first field of its lock.
        let lock: &'static Lock<T> = unsafe { &*header.cast() };
        // SAFETY: only a thread that has locked the list comes here.
        if let Some(mut guard) = unsafe { (*lock.held.get()).take() } {
            (lock.forked)(&mut guard, forked);
        }
    }
}

/// All locks, and what is known of children.
struct List {
    first: *const Header,
    witnesses: Witnesses,
}

// SAFETY: headers are shared, and what is in them changes under the list's lock.
unsafe impl Send for List {}

static LIST: Mutex<List> = Mutex::new(List {
    first: ptr::null(),
    witnesses: Witnesses::NONE,
});

/// What the forking thread holds of the list.
struct HeldList(UnsafeCell<Option<MutexGuard<'static, List>>>);

// SAFETY: only the thread that has locked the list touches it.
unsafe impl Sync for HeldList {}

static HELD: HeldList = HeldList(UnsafeCell::new(None));

thread_local! {
    /// This thread has locked the list, and is between the two handlers.
    static FORKING: Cell<bool> = const { Cell::new(false) };
}

impl List {
    /// # Safety
    /// The header stays where it is until it is removed.
    unsafe fn add(&mut self, header: *const Header) {
        // SAFETY: as the caller says; those in the list are there.
        unsafe {
            if (*header).listed.swap(true, Ordering::Release) {
                return;
            }
            (*header).after.set(self.first);
            if !self.first.is_null() {
                (*self.first).before.set(header);
            }
        }
        self.first = header;
    }

    /// # Safety
    /// The header is in the list.
    unsafe fn remove(&mut self, header: *const Header) {
        // SAFETY: as the caller says; those in the list are there.
        unsafe {
            let (before, after) = ((*header).before.get(), (*header).after.get());
            match before.is_null() {
                true => self.first = after,
                false => (*before).after.set(after),
            }
            if !after.is_null() {
                (*after).before.set(before);
            }
        }
    }

    fn each(&self, mut act: impl FnMut(&Header)) {
        let mut header = self.first;
        while !header.is_null() {
            // SAFETY: those in the list are there as long as it is locked.
            let listed = unsafe { &*header };
            act(listed);
            header = listed.after.get();
        }
    }
}

extern "C" fn before_fork() {
    // A child that these handlers know nothing of may find the list locked, or locks that are gone.
    if !children_are_known() {
        return;
    }
    super::page_size(); // so that no other thread is in the middle of finding it out
    let mut list = LIST.lock();
    // SAFETY: those in the list are listed, and a thread that holds one of the locks does not fork.
    list.each(|header| unsafe { (header.hold)(header) });
    if WITNESSED.load(Ordering::Relaxed) {
        list.witnesses.before_fork(fork_epoch().wrapping_add(1));
    }
    // SAFETY: this thread has locked the list.
    unsafe { *HELD.0.get() = Some(list) };
    FORKING.set(true);
}

fn after_fork(in_child: bool) {
    // What another thread of a parent has locked is not this one's, in a child that no handler knows of.
    if !FORKING.replace(false) {
        return;
    }
    // SAFETY: this thread has locked the list.
    let Some(mut list) = (unsafe { (*HELD.0.get()).take() }) else {
        return;
    };
    match in_child {
        true => {
            enter_child();
            list.witnesses.in_child();
        }
        false => list.witnesses.in_parent(),
    }
    let epoch = fork_epoch().wrapping_add(1);
    EPOCH.store(epoch, Ordering::Relaxed);
    let forked = Forked { in_child, epoch };
    // SAFETY: `before_fork` has held all of them, and the list has not changed since.
    list.each(|header| unsafe { (header.release)(header, forked) });
    drop(list);
    if let Some(call) = AFTER_FORKS.get() {
        call(forked);
    }
}

/// What to call once all locks are free again.
static AFTER_FORKS: OnceLock<fn(Forked)> = OnceLock::new();

/// Has `call` called in both processes after each fork of those that children are known of, without a
/// lock held; the first one that is given stays.
pub(crate) fn call_after_forks(call: fn(Forked)) {
    AFTER_FORKS.get_or_init(|| call);
}

extern "C" fn in_parent() {
    after_fork(false);
}

extern "C" fn in_child() {
    after_fork(true);
}

/// Has the handlers called at each fork of this process and of its children.
pub(super) fn install() {
    // SAFETY: the handlers do what they may: they take and release locks, and in a child they make
    // system calls. Without memory for them children go undetected.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(in_parent), Some(in_child)) };
}

/// A lock in an object that comes and goes.
#[derive(Debug)]
pub(crate) struct AtForkMutex<T: Send + 'static>(&'static Lock<T>);

impl<T> std::fmt::Debug for Lock<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lock").finish_non_exhaustive()
    }
}

impl<T: Send + 'static> AtForkMutex<T> {
    /// `forked` runs in both processes after each fork, with the lock held.
    pub(crate) fn new(value: T, forked: fn(&mut T, Forked)) -> AtForkMutex<T> {
        AtForkMutex::prepared(value, |_| (), forked)
    }

    /// As [`AtForkMutex::new`]; `before` runs before each fork, with the lock held. It takes no lock
    /// of these.
    pub(crate) fn prepared(
        value: T,
        before: fn(&mut T),
        forked: fn(&mut T, Forked),
    ) -> AtForkMutex<T> {
        let lock: &'static Lock<T> = Box::leak(Box::new(Lock::new(value, before, forked)));
        // A child that is not known makes no further ones, and may find the list locked.
        if children_are_known() {
            // SAFETY: it stays until it is dropped, which removes it.
            unsafe { LIST.lock().add(&raw const lock.header) };
        }
        AtForkMutex(lock)
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.mutex.lock()
    }

    /// Takes the lock if no thread has it.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.mutex.try_lock()
    }
}

impl<T: Send + Default + 'static> Default for AtForkMutex<T> {
    fn default() -> Self {
        AtForkMutex::new(T::default(), |_, _| ())
    }
}

impl<T: Send + 'static> Drop for AtForkMutex<T> {
    fn drop(&mut self) {
        // In a child that is not known the list may be locked for ever, and is not used any more.
        if children_are_known() {
            // SAFETY: it is in the list since it was made.
            unsafe { LIST.lock().remove(&raw const self.0.header) };
        }
        let lock = ptr::from_ref(self.0).cast_mut();
        // SAFETY: it was leaked when this was made; no guard of it is left, and no fork is under way
        // that has locked it.
        drop(unsafe { Box::from_raw(lock) });
    }
}

/// A lock in a static.
pub(crate) struct AtForkStatic<T: Send + 'static>(Lock<T>);

impl<T: Send + 'static> AtForkStatic<T> {
    pub(crate) const fn new(value: T) -> AtForkStatic<T> {
        AtForkStatic::with(value, |_, _| ())
    }

    /// `forked` runs in both processes after each fork, with the lock held.
    pub(crate) const fn with(value: T, forked: fn(&mut T, Forked)) -> AtForkStatic<T> {
        AtForkStatic(Lock::new(value, |_| (), forked))
    }

    pub(crate) fn lock(&'static self) -> MutexGuard<'static, T> {
        if !self.0.header.listed.load(Ordering::Acquire) && children_are_known() {
            // SAFETY: statics stay where they are.
            unsafe { LIST.lock().add(&raw const self.0.header) };
        }
        self.0.mutex.lock()
    }

    /// [`AtForkStatic::lock`], but `None` in a child that no handler knows of, where a thread that
    /// does not exist has the lock.
    pub(crate) fn lock_if_any(&'static self) -> Option<MutexGuard<'static, T>> {
        match children_are_known() {
            true => Some(self.lock()),
            false => self.0.mutex.try_lock(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fork::testing::in_a_child;
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn a_child_finds_locks_free_and_what_they_guard_whole() {
        /// Two numbers that are the same whenever the lock is free.
        type Pair = (u64, u64);
        static FIXED: AtForkStatic<Pair> = AtForkStatic::new((0, 0));
        let made = Arc::new(AtForkMutex::<Pair>::default());
        let stop = Arc::new(AtomicU64::new(0));
        let others: Vec<_> = (0..2)
            .map(|_| {
                let (made, stop) = (Arc::clone(&made), Arc::clone(&stop));
                std::thread::spawn(move || {
                    while stop.load(Ordering::Relaxed) == 0 {
                        let change = |mut pair: MutexGuard<'_, Pair>| {
                            pair.0 += 1;
                            std::hint::black_box(&mut *pair);
                            pair.1 += 1;
                        };
                        change(made.lock());
                        change(FIXED.lock());
                        // Others come and go.
                        drop(AtForkMutex::<Pair>::default());
                    }
                })
            })
            .collect();
        for _ in 0..300 {
            assert!(in_a_child(|| {
                let whole = |pair: MutexGuard<'_, Pair>| pair.0 == pair.1;
                whole(made.lock()) && whole(FIXED.lock())
            }));
        }
        stop.store(1, Ordering::Relaxed);
        for other in others {
            other.join().unwrap();
        }
    }

    #[test]
    fn both_processes_are_told_of_a_fork() {
        let told = AtForkMutex::new(None, |told, forked| *told = Some(forked));
        assert!(in_a_child(|| told
            .lock()
            .is_some_and(|forked: Forked| forked.in_child)));
        assert!(told.lock().is_some_and(|forked| !forked.in_child));
    }
}
