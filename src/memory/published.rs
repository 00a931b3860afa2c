// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Values that signal handlers and other threads read without a lock while they come and go.
//!
//! A reader counts itself in one of two counters while it reads. A value that is taken back is freed once
//! each counter was seen to be 0 since; new readers count in the other one meanwhile. Neither side ever
//! waits for the other: what can't be freed yet is looked at again by the next call of
//! [`Published::collect`].

use std::alloc::{self, Layout};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize};

/// A place for one value; zero is a vacant one. Places are never freed; one without a value is used again.
struct Place<T> {
    /// What readers find.
    value: AtomicPtr<T>,
    /// A value that was taken back and is still to be freed.
    retired: AtomicPtr<T>,
    /// Bits of the counters that were seen to be 0 since.
    drained: AtomicU32,
    taken: AtomicBool,
}

/// Each part of the places has twice as many as the one before, from the first on.
const FIRST_PART: usize = 16;
/// Until they have so many, which the heap's reserve has room for.
const LARGEST_PART: usize = 512;
const PARTS: usize = 2048;
const BOTH: u32 = 0b11;

fn places_of(part: usize) -> usize {
    (FIRST_PART << part.min(usize::BITS as usize / 2)).min(LARGEST_PART)
}

/// The values.
pub(crate) struct Published<T: 'static> {
    parts: [AtomicPtr<Place<T>>; PARTS],
    /// Which counter new readers use, in its lowest bit.
    phase: AtomicUsize,
    readers: [AtomicUsize; 2],
    /// A thread frees what was taken back.
    collecting: AtomicBool,
    /// How many forks lie behind this process: readers of its parent's are not its own.
    forks: AtomicUsize,
}

/// Keeps a value published until it is dropped, which frees nothing and takes no lock.
pub(crate) struct Publication<T: Send + Sync + 'static> {
    place: &'static Place<T>,
    value: Arc<T>,
}

/// Counts a reader.
struct Reading<'a> {
    counter: &'a AtomicUsize,
    forks: &'a AtomicUsize,
    began: usize,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        // A child that was made inside a signal handler has forgotten its count.
        if self.forks.load(Relaxed) == self.began {
            self.counter.fetch_sub(1, SeqCst);
        }
    }
}

impl<T: Send + Sync + 'static> Published<T> {
    pub(crate) const fn new() -> Published<T> {
        Published {
            parts: [const { AtomicPtr::new(ptr::null_mut()) }; PARTS],
            phase: AtomicUsize::new(0),
            readers: [AtomicUsize::new(0), AtomicUsize::new(0)],
            collecting: AtomicBool::new(false),
            forks: AtomicUsize::new(0),
        }
    }

    /// Lets readers find a value. Takes no lock.
    pub(crate) fn publish(&'static self, value: Arc<T>) -> Publication<T> {
        let take = &mut |place: &'static Place<T>| {
            let taken = &place.taken;
            taken.compare_exchange(false, true, AcqRel, Relaxed).is_ok()
        };
        let place = loop {
            match self.find_place(take) {
                Some(place) => break place,
                None => self.add_part(),
            }
        };
        let pointer = Arc::into_raw(Arc::clone(&value)).cast_mut();
        place.value.store(pointer, SeqCst);
        Publication { place, value }
    }

    /// Adds a part, unless another thread does.
    #[cold]
    fn add_part(&self) {
        let vacant = |(_, part): &(usize, &AtomicPtr<Place<T>>)| part.load(Acquire).is_null();
        let (number, part) = (self.parts.iter().enumerate().find(vacant))
            .expect("fewer windows are there than address space has room for");
        let layout = Layout::array::<Place<T>>(places_of(number));
        let layout = layout.expect("a part is small");
        // SAFETY: a part is not empty, and zero is a value of places.
        let new = unsafe { alloc::alloc_zeroed(layout) };
        if new.is_null() {
            alloc::handle_alloc_error(layout);
        }
        let added = part.compare_exchange(ptr::null_mut(), new.cast(), AcqRel, Relaxed);
        if added.is_err() {
            // SAFETY: it was made above, with this layout, and no other thread knows of it.
            unsafe { alloc::dealloc(new, layout) };
        }
    }

    /// Shows places until `wanted` says so of one, and gives that.
    fn find_place(
        &'static self,
        wanted: &mut dyn FnMut(&'static Place<T>) -> bool,
    ) -> Option<&'static Place<T>> {
        for (number, part) in self.parts.iter().enumerate() {
            let first = part.load(Acquire);
            if first.is_null() {
                break;
            }
            for index in 0..places_of(number) {
                // SAFETY: a part has so many places, and none is ever freed.
                let place = unsafe { &*first.wrapping_add(index) };
                if wanted(place) {
                    return Some(place);
                }
            }
        }
        None
    }

    /// What `look` answers for the first value for which it answers anything. Takes no lock, allocates
    /// nothing and waits for nothing.
    pub(crate) fn find<R>(&'static self, mut look: impl FnMut(&T) -> Option<R>) -> Option<R> {
        let counter = &self.readers[self.phase.load(Relaxed) & 1];
        let reading = Reading {
            counter,
            forks: &self.forks,
            began: self.forks.load(Relaxed),
        };
        counter.fetch_add(1, SeqCst);
        let mut found = None;
        self.find_place(&mut |place| {
            let value = place.value.load(SeqCst);
            // SAFETY: a value that was in its place after this reader was counted is freed only once its
            // counter was seen to be 0.
            found = unsafe { value.as_ref() }.and_then(&mut look);
            found.is_some()
        });
        drop(reading);
        found
    }

    /// Frees what was taken back and is read no more. Called without a lock.
    pub(crate) fn collect(&'static self) {
        if self.collecting.swap(true, Acquire) {
            return;
        }
        // Readers are short: they have most often left one counter by the time that the other is looked at.
        for _ in 0..2 {
            self.find_place(&mut |place| {
                self.free_if_unread(place);
                false
            });
            let phase = self.phase.load(Relaxed);
            if self.readers[(phase + 1) & 1].load(SeqCst) == 0 {
                self.phase.store(phase + 1, SeqCst);
            }
        }
        self.collecting.store(false, Release);
    }

    fn free_if_unread(&self, place: &Place<T>) {
        let retired = place.retired.load(Acquire);
        if retired.is_null() {
            return;
        }
        let zero = |(bit, readers): (u32, &AtomicUsize)| match readers.load(SeqCst) {
            0 => 1 << bit,
            _ => 0,
        };
        let seen: u32 = (0..).zip(&self.readers).map(zero).sum();
        let drained = place.drained.load(Relaxed) | seen;
        place.drained.store(drained, Relaxed);
        if drained == BOTH {
            place.retired.store(ptr::null_mut(), Relaxed);
            place.drained.store(0, Relaxed);
            place.taken.store(false, Release);
            // SAFETY: `publish` made it of an `Arc`, only one thread collects, and each reader that found
            // it has kept its counter above 0 from before it was taken back until it had done.
            drop(unsafe { Arc::from_raw(retired.cast_const()) });
        }
    }

    /// In a forked child: the threads are gone that were reading, or collecting.
    pub(crate) fn forked_child(&self) {
        self.forks.fetch_add(1, Relaxed);
        self.readers
            .iter()
            .for_each(|readers| readers.store(0, SeqCst));
        self.collecting.store(false, Release);
    }
}

impl<T: Send + Sync + 'static> Drop for Publication<T> {
    fn drop(&mut self) {
        let value = self.place.value.swap(ptr::null_mut(), SeqCst);
        self.place.retired.store(value, Release);
    }
}

impl<T: Send + Sync + 'static> std::ops::Deref for Publication<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    /// A number that says when it is gone.
    struct Number {
        value: AtomicU64,
        live: Arc<AtomicUsize>,
    }

    impl Number {
        fn new(value: u64, live: &Arc<AtomicUsize>) -> Arc<Number> {
            live.fetch_add(1, SeqCst);
            Arc::new(Number {
                value: AtomicU64::new(value),
                live: Arc::clone(live),
            })
        }
    }

    impl Drop for Number {
        fn drop(&mut self) {
            self.value.store(0, SeqCst);
            self.live.fetch_sub(1, SeqCst);
        }
    }

    #[test]
    fn what_is_being_read_stays_until_it_is_not() {
        static NUMBERS: Published<Number> = Published::new();
        let live = Arc::new(AtomicUsize::new(0));
        let first = NUMBERS.publish(Number::new(7, &live));
        let kept = std::cell::Cell::new(Some(first));
        let read = NUMBERS.find(|number| {
            drop(kept.take());
            for _ in 0..3 {
                NUMBERS.collect();
            }
            Some(number.value.load(SeqCst))
        });
        assert_eq!((read, live.load(SeqCst)), (Some(7), 1));
        assert_eq!(NUMBERS.find(|number| Some(number.value.load(SeqCst))), None);
        NUMBERS.collect();
        assert_eq!(live.load(SeqCst), 0);
    }

    #[test]
    fn places_are_used_again() {
        static NUMBERS: Published<Number> = Published::new();
        let live = Arc::new(AtomicUsize::new(0));
        for round in 0..100 {
            let all: Vec<_> = (1..50)
                .map(|value| NUMBERS.publish(Number::new(value, &live)))
                .collect();
            for value in 1..50 {
                let same = |number: &Number| (number.value.load(SeqCst) == value).then_some(());
                assert!(NUMBERS.find(same).is_some(), "{value} in round {round}");
            }
            assert_eq!(all[3].value.value.load(SeqCst), 4);
            drop(all);
            NUMBERS.collect();
            assert_eq!(live.load(SeqCst), 0);
        }
        let mut places = 0;
        NUMBERS.find_place(&mut |_| {
            places += 1;
            false
        });
        assert_eq!(places, 7 * FIRST_PART);
    }

    #[test]
    fn readers_find_whole_values_while_they_come_and_go() {
        static NUMBERS: Published<Number> = Published::new();
        let live = Arc::new(AtomicUsize::new(0));
        let _always = NUMBERS.publish(Number::new(1_000_000, &live));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Relaxed) {
                        let sum = AtomicU64::new(0);
                        NUMBERS.find(|number| {
                            let value = number.value.load(SeqCst);
                            assert_ne!(value, 0, "freed");
                            sum.fetch_max(value, Relaxed);
                            None::<()>
                        });
                        assert_eq!(sum.into_inner(), 1_000_000);
                    }
                });
            }
            for value in 1..if cfg!(miri) { 20 } else { 20_000 } {
                drop(NUMBERS.publish(Number::new(value, &live)));
                NUMBERS.collect();
            }
            stop.store(true, Relaxed);
        });
        NUMBERS.collect();
        NUMBERS.collect();
        assert_eq!(live.load(SeqCst), 1);
    }

    #[test]
    fn a_child_forgets_readers_that_it_does_not_have() {
        static NUMBERS: Published<Number> = Published::new();
        let live = Arc::new(AtomicUsize::new(0));
        NUMBERS.readers[0].fetch_add(1, SeqCst);
        drop(NUMBERS.publish(Number::new(1, &live)));
        NUMBERS.collect();
        assert_eq!(live.load(SeqCst), 1);
        NUMBERS.find(|_| None::<()>);
        NUMBERS.forked_child();
        NUMBERS.collect();
        assert_eq!(live.load(SeqCst), 0);
        assert!(
            NUMBERS
                .readers
                .iter()
                .all(|readers| readers.load(SeqCst) == 0)
        );
    }
}
