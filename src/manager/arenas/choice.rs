// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which arena a thread allocates in, in every manager that has it.
//!
//! A thread stays where it is until it has met another one that allocates there many times, close together; who
//! only frees does not count. Then it draws one of all arenas, because two that went to the next one together
//! would meet there again. Each time it becomes more patient, so that threads which meet wherever they are do
//! not make arenas for nothing.

use super::MOST_ARENAS;
use std::cell::Cell;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// A thread draws another arena after so many meetings,
const MEETINGS: u32 = 16;
/// twice as many each time, up to so many times.
const MOST_DOUBLED: u32 = 8;
/// Meetings count together if there are no more allocations of an arena between them.
const CLOSE: u64 = 64;

thread_local! {
    static CHOSEN: Cell<usize> = const { Cell::new(0) };
    static MEETING: Cell<Meetings> = const { Cell::new(Meetings { count: 0, last: 0, left: 0 }) };
}

/// How often a thread has met others.
#[derive(Clone, Copy)]
struct Meetings {
    count: u32,
    /// How many allocations its arena had made at the last one.
    last: u64,
    /// How often it has gone on.
    left: u32,
}

/// The number of this thread's arena.
#[inline]
pub(super) fn chosen() -> usize {
    CHOSEN.get()
}

/// This thread has found its arena taken, which has made so many allocations. Whether it stays.
#[cold]
pub(super) fn is_good(allocations: u64) -> bool {
    let mut meetings = MEETING.get();
    meetings.count = match allocations.wrapping_sub(meetings.last) <= CLOSE {
        true => meetings.count + 1,
        false => 1,
    };
    meetings.last = allocations;
    let stays = meetings.count < MEETINGS << meetings.left.min(MOST_DOUBLED);
    if !stays {
        meetings.count = 0;
        meetings.left += 1;
    }
    MEETING.set(meetings);
    stays
}

/// Has this thread draw an arena, by a random number; it keeps the one that it has drawn before, if the manager
/// does not have that yet.
#[cold]
pub(super) fn draw(random: u64, is_there: impl Fn(usize) -> bool) {
    if is_there(chosen()) {
        CHOSEN.set((random % most() as u64) as usize);
    }
}

/// A number that no other thread has which is there.
#[inline]
pub(super) fn this_thread() -> usize {
    CHOSEN.with(|chosen| std::ptr::from_ref(chosen).addr())
}

/// So many arenas are of use.
fn most() -> usize {
    static MOST: AtomicUsize = AtomicUsize::new(0);
    match MOST.load(Relaxed) {
        0 => {
            let processors = std::thread::available_parallelism();
            let most = processors.map_or(1, |number| number.get().min(MOST_ARENAS));
            MOST.store(most, Relaxed);
            most
        }
        most => most,
    }
}

/// Has this thread allocate in an arena.
#[cfg(test)]
pub(super) fn choose(number: usize) {
    CHOSEN.set(number);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Meets others so often, `apart` allocations apart; how often the thread does not want to stay.
    fn meet(often: u32, apart: u64) -> usize {
        let mut meetings = 0..u64::from(often);
        let allocations = |meeting: u64| 1_000_000 + meeting * apart;
        meetings
            .by_ref()
            .filter(|meeting| !is_good(allocations(*meeting)))
            .count()
    }

    /// What a thread of its own answers, which has met no others.
    fn fresh<R: Send>(body: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| scope.spawn(body).join().unwrap())
    }

    #[test]
    fn meetings_that_are_far_apart_do_not_count() {
        assert_eq!(fresh(|| meet(100_000, CLOSE + 1)), 0);
        assert_eq!(fresh(|| meet(MEETINGS - 1, 1)), 0);
        assert_eq!(fresh(|| meet(MEETINGS, 1)), 1);
    }

    #[test]
    fn a_thread_that_meets_others_everywhere_goes_on_more_and_more_seldom() {
        // 16, 32, ... and 2^12 for each further one.
        assert_eq!(fresh(|| meet(16 + 32 + 64, CLOSE)), 3);
        assert_eq!(fresh(|| meet(16 + 32 + 64 + 127, CLOSE)), 3);
        let first: u32 = (0..MOST_DOUBLED).map(|left| MEETINGS << left).sum();
        let patient = MEETINGS << MOST_DOUBLED;
        assert_eq!(fresh(move || meet(first + 5 * patient, 1)), 8 + 5);
    }

    #[test]
    fn an_arena_that_a_manager_does_not_have_is_not_drawn_again() {
        fresh(|| {
            choose(most() - 1);
            draw(0, |_| false);
            assert_eq!(chosen(), most() - 1);
            for random in 0..20 {
                draw(random, |_| true);
                assert_eq!(chosen(), random as usize % most());
            }
        });
    }

    #[test]
    fn threads_are_told_apart() {
        let here = this_thread();
        assert_eq!(this_thread(), here);
        assert_ne!(fresh(this_thread), here);
    }
}
