// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a group has: who belongs to it, and what an executor that joins must be told.
//!
//! All of it changes under one lock, and nothing is called with that held. So what an executor that joins finds
//! here and what it is told of afterwards are together all that there is.

use crate::completion::Completion;
use crate::error::Error;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What an executor has answered for an allocation; 0: it has nothing to do when that goes.
type Key = u64;

/// A live allocation of which executors were told.
struct Live {
    /// The item that makes it visible, encoded; it is the same for all.
    item: Arc<[u8]>,
    /// By the number of the executor.
    keys: Vec<(u64, Key)>,
}

/// The live allocations that executors were told of, by numbers in the order in which they were finalized; and how far
/// those are that join.
pub(super) struct Allocations {
    live: BTreeMap<u64, Live>,
    next: u64,
    joining: BTreeMap<u64, Joining>,
}

/// How far an executor is that joins.
#[derive(Default)]
struct Joining {
    has: BTreeMap<u64, Key>,
    /// The last one that it was told of; later ones have higher numbers.
    last: u64,
    /// What it is being told of; those that have gone meanwhile, with who waits for it to forget them.
    under_way: BTreeMap<u64, Option<Completion<()>>>,
}

/// Allocations that an executor which joins is to be told of.
pub(super) type Untold = Vec<(u64, Arc<[u8]>)>;

/// What is to be done before the memory of an allocation is free.
#[derive(Default)]
pub(super) struct Forgetting {
    /// Keys by the number of the executor that has them.
    pub(super) keys: BTreeMap<u64, Vec<Key>>,
    /// Allocations of which an executor is being told, by its number.
    pub(super) being_told: BTreeMap<u64, Vec<u64>>,
}

impl Allocations {
    pub(super) fn new() -> Allocations {
        Allocations {
            live: BTreeMap::new(),
            // 0 is no key.
            next: 1,
            joining: BTreeMap::new(),
        }
    }

    /// Adds one that all members have, and gives its number.
    pub(super) fn add(&mut self, item: Arc<[u8]>, keys: Vec<(u64, Key)>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.live.insert(number, Live { item, keys });
        number
    }

    /// Takes one out, and adds what is to be done before its memory is free.
    pub(super) fn remove(&mut self, number: u64, forgetting: &mut Forgetting) {
        let Some(live) = self.live.remove(&number) else {
            return;
        };
        let mut add = |executor: u64, key: Key| {
            if key != 0 {
                forgetting.keys.entry(executor).or_default().push(key);
            }
        };
        live.keys
            .iter()
            .for_each(|(number, key)| add(*number, *key));
        for (executor, joining) in &mut self.joining {
            if let Some(key) = joining.has.remove(&number) {
                add(*executor, key);
            } else if joining.under_way.contains_key(&number) {
                let being_told = forgetting.being_told.entry(*executor);
                being_told.or_default().push(number);
            }
        }
    }

    /// Has `done` called once an executor that is being told of an allocation has forgotten it.
    pub(super) fn wait_for(&mut self, executor: u64, number: u64, done: Completion<()>) {
        let joining = self.joining.get_mut(&executor);
        match joining.and_then(|joining| joining.under_way.get_mut(&number)) {
            Some(waiting) => *waiting = Some(done),
            None => debug_assert!(false, "found under the same lock"),
        }
    }

    // ---- executors that join ----

    pub(super) fn begin_joining(&mut self, executor: u64) {
        self.joining.insert(executor, Joining::default());
    }

    /// What an executor that joins is to be told of next, which is being told from now on: so many and as many bytes at
    /// most, but one at least. Nothing: it has all, and is a member from now on.
    pub(super) fn untold(&mut self, executor: u64, most: usize, most_bytes: usize) -> Untold {
        let Some(joining) = self.joining.get_mut(&executor) else {
            return Vec::new();
        };
        let untold = self.live.range(joining.last + 1..);
        let mut bytes = 0;
        let untold: Untold = untold
            .take(most)
            .take_while(|(_, live)| {
                let is_first = bytes == 0;
                bytes += live.item.len();
                is_first || bytes <= most_bytes
            })
            .map(|(number, live)| (*number, Arc::clone(&live.item)))
            .collect();
        for (number, _) in &untold {
            joining.under_way.insert(*number, None);
            joining.last = *number;
        }
        if untold.is_empty() {
            let joined = self.joining.remove(&executor).unwrap_or_default();
            for (number, key) in joined.has {
                if let Some(live) = self.live.get_mut(&number) {
                    live.keys.push((executor, key));
                }
            }
        }
        untold
    }

    /// An executor that joins has an allocation; the answer is who waits for it to forget that again.
    pub(super) fn told(&mut self, executor: u64, number: u64, key: Key) -> Option<Completion<()>> {
        let joining = self.joining.get_mut(&executor)?;
        let waiting = joining.under_way.remove(&number)?;
        if waiting.is_none() {
            joining.has.insert(number, key);
        }
        waiting
    }

    // ---- the end of an executor ----

    /// Forgets an executor; the answer is who waits for what it was being told.
    pub(super) fn forget(&mut self, executor: u64) -> Vec<Completion<()>> {
        for live in self.live.values_mut() {
            live.keys.retain(|(number, _)| *number != executor);
        }
        let joining = self.joining.remove(&executor).unwrap_or_default();
        joining.under_way.into_values().flatten().collect()
    }
}

/// How an executor came to leave a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum GroupChange {
    /// It has joined: it has all that the others have, and what is finalized from then on.
    Joined = 1,
    /// The host has removed it.
    Removed = 2,
    /// It has ended, or its connection has, for instance because it broke the protocol of that.
    Died = 3,
    /// It was put out: its answer was none, it refused a whole message, or it did not answer within a limit.
    PutOut = 4,
}

/// Something that has happened to a group.
#[derive(Clone, Debug)]
pub struct GroupEvent {
    /// What.
    pub change: GroupChange,
    /// The number of the executor.
    pub executor: u64,
    /// What the host calls it.
    pub name: String,
    /// Why, unless it has joined.
    pub reason: Option<Error>,
    /// How many executors the group has now.
    pub executors: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn item(byte: u8) -> Arc<[u8]> {
        Arc::from([byte].as_slice())
    }

    #[test]
    fn what_goes_while_it_is_told_is_waited_for() {
        let mut all = Allocations::new();
        let first = all.add(item(1), vec![(1, 10)]);
        all.begin_joining(2);
        assert_eq!(all.untold(2, 9, 9).len(), 1);
        let mut forgetting = Forgetting::default();
        all.remove(first, &mut forgetting);
        assert_eq!(forgetting.keys[&1], [10]);
        assert_eq!(forgetting.being_told[&2], [first]);
        let forgotten = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&forgotten);
        let done = Completion::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        all.wait_for(2, first, done);
        let waiting = all.told(2, first, 77).expect("it must forget it again");
        assert_eq!(forgotten.load(Ordering::Relaxed), 0);
        waiting.complete(Ok(()));
        assert_eq!(forgotten.load(Ordering::Relaxed), 1);
        assert!(all.untold(2, 9, 9).is_empty());
        assert!(all.live.is_empty());
    }

    #[test]
    fn the_end_of_an_executor_ends_what_waits_for_it() {
        let mut all = Allocations::new();
        let first = all.add(item(1), vec![(1, 10)]);
        all.begin_joining(2);
        all.untold(2, 9, 9);
        let mut forgetting = Forgetting::default();
        all.remove(first, &mut forgetting);
        all.wait_for(2, first, Completion::new(|_| ()));
        assert_eq!(all.forget(2).len(), 1);
        assert!(all.told(2, first, 7).is_none());
        assert!(all.untold(2, 9, 9).is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add,
        Remove(usize),
        Join,
        /// One of those that join asks for what it was not told yet.
        Ask(usize),
        /// And has what it was told first.
        Told(usize),
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Add),
            3 => (0usize..64).prop_map(Step::Remove),
            1 => Just(Step::Join),
            3 => (0usize..8).prop_map(Step::Ask),
            6 => (0usize..8).prop_map(Step::Told),
            1 => (0usize..8).prop_map(Step::Leave),
        ]
    }

    /// What an executor has by its own account.
    #[derive(Default)]
    struct Executor {
        joined: bool,
        /// Allocations by key.
        has: BTreeMap<u64, u64>,
        asked: Vec<u64>,
    }

    proptest! {
        #[test]
        fn each_member_has_what_is_live_and_nothing_else(steps in prop::collection::vec(step(), 1..100)) {
            let mut all = Allocations::new();
            let mut executors: BTreeMap<u64, Executor> = BTreeMap::new();
            let (mut live, mut next_executor, mut next_key) = (BTreeSet::new(), 1u64, 1u64);
            executors.insert(0, Executor { joined: true, ..Executor::default() });
            // Allocations that are gone, with how many still know of them.
            let unfinished = Arc::new(AtomicUsize::new(0));
            for step in steps {
                let nth = |place: usize| executors.keys().nth(place % executors.len()).copied();
                match step {
                    Step::Add => {
                        let mut keys = Vec::new();
                        let number = all.next;
                        for (executor, state) in executors.iter_mut().filter(|(_, state)| state.joined) {
                            keys.push((*executor, next_key));
                            state.has.insert(next_key, number);
                            next_key += 1;
                        }
                        prop_assert_eq!(all.add(item(0), keys), number);
                        live.insert(number);
                    }
                    Step::Remove(place) if !live.is_empty() => {
                        let number = *live.iter().nth(place % live.len()).unwrap();
                        live.remove(&number);
                        let mut forgetting = Forgetting::default();
                        all.remove(number, &mut forgetting);
                        for (executor, keys) in forgetting.keys {
                            for key in keys {
                                let had = executors.get_mut(&executor).unwrap().has.remove(&key);
                                prop_assert_eq!(had, Some(number));
                            }
                        }
                        let being_told = forgetting.being_told.into_iter();
                        let numbers = being_told.flat_map(|(executor, numbers)| {
                            numbers.into_iter().map(move |number| (executor, number))
                        });
                        for (executor, number) in numbers {
                            unfinished.fetch_add(1, Ordering::Relaxed);
                            let finished = Arc::clone(&unfinished);
                            all.wait_for(executor, number, Completion::new(move |_| {
                                finished.fetch_sub(1, Ordering::Relaxed);
                            }));
                        }
                    }
                    Step::Join => {
                        all.begin_joining(next_executor);
                        executors.insert(next_executor, Executor::default());
                        next_executor += 1;
                    }
                    Step::Ask(place) => {
                        let number = nth(place).unwrap();
                        let state = executors.get_mut(&number).unwrap();
                        if !state.joined && state.asked.is_empty() {
                            let untold = all.untold(number, 3, 9);
                            state.joined = untold.is_empty();
                            state.asked = untold.iter().map(|(number, _)| *number).collect();
                            prop_assert!(state.asked.is_sorted());
                        }
                    }
                    Step::Told(place) => {
                        let executor = nth(place).unwrap();
                        let state = executors.get_mut(&executor).unwrap();
                        if !state.asked.is_empty() {
                            let number = state.asked.remove(0);
                            let key = next_key;
                            next_key += 1;
                            match all.told(executor, number, key) {
                                Some(waiting) => waiting.complete(Ok(())),
                                None => drop(state.has.insert(key, number)),
                            }
                        }
                    }
                    Step::Leave(place) => {
                        let number = nth(place).unwrap();
                        if number != 0 {
                            executors.remove(&number);
                            all.forget(number).into_iter().for_each(|done| done.complete(Ok(())));
                        }
                    }
                    Step::Remove(_) => {}
                }
                for state in executors.values() {
                    let has: BTreeSet<u64> = state.has.values().copied().collect();
                    prop_assert!(has.is_subset(&live));
                    prop_assert!(!state.joined || has == live);
                }
                let asked = executors.values().map(|state| &state.asked);
                let gone = asked.flatten().filter(|number| !live.contains(number)).count();
                prop_assert_eq!(unfinished.load(Ordering::Relaxed), gone);
            }
        }
    }
}
