// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which allocations of a message a child has begun to initialize again. Its supervisor sees that before the message
//! is answered, and takes out what has not begun: an action may wait for the controller, which may wait until an
//! allocation of the same message is gone.

use crate::error::{Result, invalid_argument};
use crate::sys::{self, SharedWord, explain};
use std::sync::OnceLock;

/// Allocations that one message initializes again, at most.
pub(in crate::executor) const TOGETHER: usize = 256;

/// Memory that a supervisor shares with its children: a word for each allocation of the message under way.
#[derive(Clone, Copy, Debug)]
pub(in crate::executor) struct Places(&'static [SharedWord; TOGETHER]);

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

/// Wakes those that wait for what the word has said.
fn wake(one: &SharedWord, before: u32) {
    if before & ((1 << BITS) - 1) == AWAITED {
        one.wake();
    }
}

impl Places {
    pub(in crate::executor) fn new() -> Result<Places> {
        let words = sys::shared_words().map_err(|error| explain("map a page", error))?;
        Ok(Places(words))
    }

    /// What an allocation of a message is sent with.
    pub(in crate::executor) fn place(message: u32, index: usize) -> u64 {
        u64::from(message) << 32 | index as u64
    }

    /// Nothing of a message has begun. What waits for one before looks again.
    pub(in crate::executor) fn begin(&self, message: u32) {
        for one in self.0 {
            let before = one.set(word(message, WAITS), 0);
            wake(one, before);
        }
    }

    /// Takes an allocation out, unless it has begun.
    pub(in crate::executor) fn take(&self, message: u32, index: usize) -> Progress {
        let one = &self.0[index];
        if one.change(word(message, WAITS), word(message, TAKEN)) {
            return Progress::Taken;
        }
        match one.load() {
            now if [RUNS, AWAITED].contains(&(now ^ word(message, 0))) => Progress::Runs,
            now if now == word(message, ENDED) => Progress::Ended(one.value()),
            _ => Progress::Taken,
        }
    }

    /// Waits for one that runs.
    pub(in crate::executor) fn wait(&self, message: u32, index: usize) {
        let one = &self.0[index];
        one.change(word(message, RUNS), word(message, AWAITED));
        one.wait_while(word(message, AWAITED));
    }

    /// In the child: initializes one, if it was not taken out.
    fn run(&self, place: u64, initialize: impl FnOnce() -> Result<u64>) -> Result<u64> {
        let (message, index) = ((place >> 32) as u32, place as u32 as usize);
        let one = self.0.get(index);
        let one = one.ok_or_else(|| invalid_argument(format!("there is no place {index}")))?;
        if !one.change(word(message, WAITS), word(message, RUNS)) {
            return Ok(0);
        }
        let key = initialize();
        let ended = *key.as_ref().unwrap_or(&0);
        wake(one, one.set(word(message, ENDED), ended));
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
            let runs = std::thread::spawn(move || {
                places.run(Places::place(message, 0), || {
                    begun.send(()).unwrap();
                    let _ = may_go.recv();
                    Ok(5)
                })
            });
            wait.recv().unwrap();
            assert_eq!(places.take(message, 0), Progress::Runs);
            let waits = std::thread::spawn(move || places.wait(message, 0));
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
}
