// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which allocations of a message a child has begun to initialize again. Its supervisor sees that before the message
//! is answered, and takes out what has not begun: an action may wait for the controller, which may wait until an
//! allocation of the same message is gone.

use crate::error::{Result, invalid_argument};
use crate::sys::{self, SharedWord, explain};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

/// Allocations that one message initializes again, at most.
pub(in crate::executor) const TOGETHER: usize = 256;

/// Memory that a supervisor shares with its children: a word for each allocation of the message under way.
#[derive(Clone, Debug)]
pub(in crate::executor) struct Places {
    words: &'static [SharedWord; TOGETHER],
    waits: Arc<Waits>,
}

/// Which waits there are. It is not shared: linked code can write the words, and a child may end before it wakes,
/// so whether a wait is over is not for the words alone to say.
#[derive(Debug, Default)]
struct Waits {
    /// The message under way.
    message: AtomicU32,
    /// Threads that wait for one of its allocations, or of one before.
    threads: AtomicUsize,
}

/// The largest number of a message.
pub(in crate::executor) const MOST_MESSAGES: u32 = u32::MAX >> BITS;

/// What a word says in its lowest bits; the others number the message.
const WAITS: u32 = 0;
const RUNS: u32 = 1;
/// It runs, and is waited for.
const AWAITED: u32 = 2;
const ENDED: u32 = 3;
const TAKEN: u32 = 4;
const BITS: u32 = 3;

fn word(message: u32, phase: u32) -> u32 {
    (message << BITS) | phase
}

/// How far an allocation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::executor) enum Progress {
    /// It had not begun, and will not.
    Taken,
    Runs,
    /// With this key.
    Ended(u64),
}

impl Places {
    pub(in crate::executor) fn new() -> Result<Places> {
        let words = sys::shared_words().map_err(|error| explain("map a page", error))?;
        let waits = Arc::default();
        Ok(Places { words, waits })
    }

    /// What an allocation of a message is sent with.
    pub(in crate::executor) fn place(message: u32, index: usize) -> u64 {
        u64::from(message) << 32 | index as u64
    }

    /// Nothing of a message has begun. What waits for one before waits no more.
    pub(in crate::executor) fn begin(&self, message: u32) {
        self.waits.message.store(message, SeqCst);
        for one in self.words {
            one.set(word(message, WAITS), 0);
        }
        // A thread may have looked at the number before, and begin to sleep after it was woken, if linked code
        // writes the old word anew.
        while self.waits.threads.load(SeqCst) > 0 {
            self.words.iter().for_each(SharedWord::wake);
            std::thread::yield_now();
        }
    }

    /// Takes an allocation out, unless it has begun.
    pub(in crate::executor) fn take(&self, message: u32, index: usize) -> Progress {
        let one = &self.words[index];
        if one.change(word(message, WAITS), word(message, TAKEN)) {
            return Progress::Taken;
        }
        match one.load() {
            now if [RUNS, AWAITED].contains(&(now ^ word(message, 0))) => Progress::Runs,
            now if now == word(message, ENDED) => Progress::Ended(one.value()),
            _ => Progress::Taken,
        }
    }

    /// Waits for one that runs, while its message is under way.
    pub(in crate::executor) fn wait(&self, message: u32, index: usize) {
        let (one, waits) = (&self.words[index], &self.waits);
        waits.threads.fetch_add(1, SeqCst);
        one.change(word(message, RUNS), word(message, AWAITED));
        let under_way = || waits.message.load(SeqCst) == message;
        one.wait_while(word(message, AWAITED), under_way);
        waits.threads.fetch_sub(1, SeqCst);
    }

    /// In the child: initializes one, if it was not taken out.
    fn run(&self, place: u64, initialize: impl FnOnce() -> Result<u64>) -> Result<u64> {
        let (message, index) = ((place >> 32) as u32, place as u32 as usize);
        let one = self.words.get(index);
        let one = one.ok_or_else(|| invalid_argument(format!("there is no place {index}")))?;
        if !one.change(word(message, WAITS), word(message, RUNS)) {
            return Ok(0);
        }
        let key = initialize();
        let ended = *key.as_ref().unwrap_or(&0);
        if one.set(word(message, ENDED), ended) == word(message, AWAITED) {
            one.wake();
        }
        key
    }
}

static PLACES: OnceLock<Places> = OnceLock::new();

/// Has the children that are forked from now on use these. Those that were there before stay.
pub(in crate::executor) fn share_places(places: Places) {
    let _ = PLACES.set(places);
}

/// Initializes an allocation of a message, if it was not taken out.
pub(super) fn run(place: u64, initialize: impl FnOnce() -> Result<u64>) -> Result<u64> {
    let places = PLACES.get();
    let places =
        places.ok_or_else(|| invalid_argument("this process takes no other one's place"))?;
    places.run(place, initialize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Status};

    #[test]
    fn what_has_not_begun_can_be_taken_out() {
        let places = Places::new().unwrap();
        places.begin(7);
        assert_eq!(places.take(7, 3), Progress::Taken);
        let place = Places::place(7, 3);
        assert_eq!(places.run(place, || unreachable!()), Ok(0));
        let running = places.run(Places::place(7, 4), || {
            assert_eq!(places.take(7, 4), Progress::Runs);
            Ok(9)
        });
        assert_eq!(running, Ok(9));
        assert_eq!(places.take(7, 4), Progress::Ended(9));
        let failed = || Err(Error::new(Status::ActionFailed, "no"));
        assert!(places.run(Places::place(7, 5), failed).is_err());
        assert_eq!(places.take(7, 5), Progress::Ended(0));
        // Those of another message are others.
        places.begin(8);
        assert_eq!(places.run(Places::place(7, 6), || unreachable!()), Ok(0));
        let far = Places::place(8, TOGETHER);
        assert!(places.run(far, || unreachable!()).is_err());
    }

    #[test]
    fn what_runs_is_waited_for() {
        let places = Places::new().unwrap();
        for ends in [true, false] {
            let message = 1 + u32::from(ends);
            places.begin(message);
            let (begun, wait) = std::sync::mpsc::channel();
            let (go, may_go) = std::sync::mpsc::channel::<()>();
            let here = places.clone();
            let runs = std::thread::spawn(move || {
                here.run(Places::place(message, 0), || {
                    begun.send(()).unwrap();
                    let _ = may_go.recv();
                    Ok(5)
                })
            });
            wait.recv().unwrap();
            assert_eq!(places.take(message, 0), Progress::Runs);
            let here = places.clone();
            let waits = std::thread::spawn(move || here.wait(message, 0));
            match ends {
                true => drop(go),
                // Its process has ended.
                false => {
                    places.begin(9);
                    waits.join().unwrap();
                    drop(go);
                    runs.join().unwrap().unwrap();
                    continue;
                }
            }
            waits.join().unwrap();
            assert_eq!(places.take(message, 0), Progress::Ended(5));
            runs.join().unwrap().unwrap();
        }
    }
    /// A thread that waits for an allocation, and that sleeps.
    fn sleeping(places: &Places, message: u32) -> std::thread::JoinHandle<()> {
        assert!(places.words[0].change(word(message, WAITS), word(message, RUNS)));
        let (sender, receiver) = std::sync::mpsc::channel();
        let here = places.clone();
        let waits = std::thread::spawn(move || {
            let this = std::fs::read_link("/proc/thread-self").unwrap();
            sender.send(this).unwrap();
            here.wait(message, 0);
        });
        let stat = std::path::Path::new("/proc").join(receiver.recv().unwrap());
        let stat = stat.join("stat");
        let state = || std::fs::read_to_string(&stat).unwrap();
        while places.words[0].load() != word(message, AWAITED) || !state().contains(") S ") {
            std::thread::yield_now();
        }
        waits
    }

    #[test]
    fn a_wait_ends_with_its_child_whatever_that_has_written() {
        let places = Places::new().unwrap();
        places.begin(1);
        // It ends between what it says and waking.
        let waits = sleeping(&places, 1);
        places.words[0].set(word(1, ENDED), 5);
        places.begin(2);
        waits.join().unwrap();
        // It has children that go on writing what is waited for.
        let waits = sleeping(&places, 2);
        let (here, stop) = (places.clone(), Arc::new(AtomicU32::new(0)));
        let stopped = Arc::clone(&stop);
        let writes = std::thread::spawn(move || {
            while stopped.load(SeqCst) == 0 {
                here.words[0].set(word(2, AWAITED), 0);
            }
        });
        places.begin(3);
        waits.join().unwrap();
        stop.store(1, SeqCst);
        writes.join().unwrap();
    }
}
