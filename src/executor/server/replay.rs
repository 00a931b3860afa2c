// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a child that takes another one's place has to run: the finalize actions of all that is live.
//!
//! The controller knows an allocation with actions by a key of ours, for each child has keys of its own.

use crate::error::Error;
use crate::lock::{Condvar, Mutex};
use crate::wire::service::{Failure, Item, Reply};
use crate::wire::sps::{Encode, to_bytes};
use std::collections::BTreeMap;

/// Allocations that are replayed by one message.
const TOGETHER: usize = 256;

#[derive(Default)]
pub(super) struct Replay {
    state: Mutex<ReplayState>,
    /// A message has been answered, or its child has ended.
    changed: Condvar,
}

#[derive(Default)]
struct ReplayState {
    last_key: u64,
    /// By our keys, in the order in which they were initialized.
    live: BTreeMap<u64, Live>,
    /// The last key that was sent to the child there is now.
    sent: u64,
}

struct Live {
    session: u64,
    /// Its actions, encoded.
    actions: Vec<u8>,
    /// Whether it is initialized in the child there is now.
    there: There,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    No,
    Asked,
    /// Under this key.
    Yes(u64),
}

/// An item of a message of the controller's.
pub(super) enum ReplayedItem<'a> {
    /// As it goes to the child; with its actions, if it is to be replayed.
    Sent(Item<'a>, Option<Vec<u8>>),
    /// It is of an allocation that the child knows nothing of.
    Done,
}

impl ReplayedItem<'_> {
    pub(super) fn sent(&self) -> Option<&Item<'_>> {
        match self {
            ReplayedItem::Sent(item, _) => Some(item),
            ReplayedItem::Done => None,
        }
    }
}

impl Replay {
    /// What of a message goes to the child. Waits for what is being replayed and shall go.
    pub(super) fn plan<'a>(&self, items: Vec<Item<'a>>) -> Vec<ReplayedItem<'a>> {
        items.into_iter().map(|item| self.plan_one(item)).collect()
    }

    fn plan_one<'a>(&self, item: Item<'a>) -> ReplayedItem<'a> {
        match item {
            Item::Deinitialize { key, traps } if key != 0 => match self.take(key) {
                // One that is not known is the child's to refuse.
                None => ReplayedItem::Sent(Item::Deinitialize { key, traps }, None),
                Some(There::Yes(key)) => {
                    ReplayedItem::Sent(Item::Deinitialize { key, traps }, None)
                }
                Some(_) => ReplayedItem::Done,
            },
            item => {
                let actions = match &item {
                    Item::Initialize { actions, .. } | Item::InitializeData { actions, .. } => {
                        actions
                    }
                    Item::Deinitialize { .. } => return ReplayedItem::Sent(item, None),
                };
                let encoded = (!actions.is_empty()).then(|| to_bytes(actions));
                ReplayedItem::Sent(item, encoded)
            }
        }
    }

    fn take(&self, key: u64) -> Option<There> {
        let mut state = self.state.lock();
        loop {
            match state.live.get(&key)?.there {
                There::Asked => state = self.changed.wait(state),
                there => {
                    state.live.remove(&key);
                    return Some(there);
                }
            }
        }
    }

    /// The child has answered what was sent.
    pub(super) fn answered(
        &self,
        session: u64,
        plan: &[ReplayedItem<'_>],
        answers: Vec<Result<u64, Failure>>,
    ) -> Vec<Reply<u64>> {
        let mut answers = answers.into_iter();
        let mut state = self.state.lock();
        let reply = |item: &ReplayedItem<'_>| {
            let ReplayedItem::Sent(_, actions) = item else {
                return Reply(Ok(0));
            };
            let answer = answers.next().unwrap_or(Ok(0));
            match (answer, actions) {
                (Ok(key), Some(actions)) => {
                    state.last_key += 1;
                    let live = Live {
                        session,
                        actions: actions.clone(),
                        there: There::Yes(key),
                    };
                    let ours = state.last_key;
                    state.live.insert(ours, live);
                    Reply(Ok(ours))
                }
                (answer, _) => Reply(answer),
            }
        };
        plan.iter().map(reply).collect()
    }

    /// The child has ended before it answered: nothing was initialized, and what was to go is gone.
    pub(super) fn lost(plan: &[ReplayedItem<'_>], why: &Error) -> Vec<Reply<u64>> {
        let reply = |item: &ReplayedItem<'_>| match item.sent() {
            Some(Item::Initialize { .. } | Item::InitializeData { .. }) => {
                Reply(Err(why.clone().into()))
            }
            _ => Reply(Ok(0)),
        };
        plan.iter().map(reply).collect()
    }

    /// Nothing is initialized any more.
    pub(super) fn child_is_gone(&self) {
        let mut state = self.state.lock();
        state.sent = 0;
        state
            .live
            .values_mut()
            .for_each(|live| live.there = There::No);
        self.changed.notify_all();
    }

    /// The next message for a new child: its session, our keys, and the encoded items.
    pub(super) fn next(&self) -> Option<(u64, Vec<u64>, Vec<u8>)> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let after = state.sent + 1;
        let mut keys = Vec::new();
        let mut items = Vec::new();
        let mut of = None;
        let waiting = state.live.range_mut(after..);
        for (key, live) in waiting
            .filter(|(_, live)| live.there == There::No)
            .take(TOGETHER)
        {
            if *of.get_or_insert(live.session) != live.session {
                break;
            }
            live.there = There::Asked;
            // InitializeData without data and code.
            items.push(2u8);
            (0u64, 0u64).encode(&mut items);
            items.extend(&live.actions);
            keys.push(*key);
        }
        state.sent = *keys.last()?;
        let mut message = to_bytes(&(keys.len() as u64));
        message.extend(items);
        Some((of?, keys, message))
    }

    /// What a message's allocations are known by in the child.
    pub(super) fn done(&self, keys: &[(u64, u64)]) {
        let mut state = self.state.lock();
        for (ours, there) in keys {
            if let Some(live) = state.live.get_mut(ours) {
                live.there = There::Yes(*there);
            }
        }
        self.changed.notify_all();
    }

    /// Forgets what a session has.
    pub(super) fn forget(&self, session: u64) {
        self.state
            .lock()
            .live
            .retain(|_, live| live.session != session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;
    use crate::wire::sps::{ActionPair, Bytes, Call, ExecutorAddr, from_bytes};

    fn action(number: u64) -> Vec<ActionPair<'static>> {
        let call = |function| Call {
            function: ExecutorAddr(function),
            args: Bytes(b"args"),
        };
        vec![ActionPair {
            finalize: call(number),
            dealloc: call(number + 1),
        }]
    }

    fn initialize(actions: Vec<ActionPair<'static>>) -> Item<'static> {
        let (data, code) = (Vec::new(), Vec::new());
        Item::InitializeData {
            data,
            code,
            actions,
        }
    }

    fn deinitialize(key: u64) -> Item<'static> {
        let traps = Vec::new();
        Item::Deinitialize { key, traps }
    }

    /// Initializes allocations whose keys in the child are these.
    fn initialized(replay: &Replay, there: &[u64]) -> Vec<u64> {
        let items = there.iter().map(|key| initialize(action(*key)));
        let plan = replay.plan(items.collect());
        let answers = there.iter().map(|key| Ok(*key)).collect();
        let replies = replay.answered(7, &plan, answers);
        replies
            .into_iter()
            .map(|Reply(reply)| reply.unwrap())
            .collect()
    }

    #[test]
    fn all_that_is_live_is_replayed_in_order() {
        let replay = Replay::default();
        let many: Vec<u64> = (100..100 + 2 * TOGETHER as u64).collect();
        let keys = initialized(&replay, &many);
        // Without actions there is nothing to replay, and no key.
        let plan = replay.plan(vec![initialize(Vec::new())]);
        assert_eq!(replay.answered(7, &plan, vec![Ok(0)]), [Reply(Ok(0))]);
        // What goes is known to the child by its own key.
        let plan = replay.plan(vec![deinitialize(keys[1])]);
        assert_eq!(plan[0].sent(), Some(&deinitialize(many[1])));
        replay.child_is_gone();
        let mut replayed = Vec::new();
        while let Some((session, keys, items)) = replay.next() {
            assert_eq!(session, 7);
            let items: Vec<Item<'_>> = from_bytes(&items).unwrap();
            assert!(items.len() == keys.len() && keys.len() <= TOGETHER);
            for (item, key) in items.iter().zip(&keys) {
                assert_eq!(*item, initialize(action(99 + key)));
            }
            let there: Vec<(u64, u64)> = keys.iter().map(|key| (*key, key + 1000)).collect();
            replay.done(&there);
            replayed.extend(keys);
        }
        let rest: Vec<u64> = keys.iter().copied().filter(|key| *key != keys[1]).collect();
        assert_eq!(replayed, rest);
        let plan = replay.plan(vec![deinitialize(keys[0])]);
        assert_eq!(plan[0].sent(), Some(&deinitialize(keys[0] + 1000)));
    }

    #[test]
    fn what_the_child_never_had_goes_without_it() {
        let replay = Replay::default();
        let keys = initialized(&replay, &[1, 2]);
        replay.child_is_gone();
        let plan = replay.plan(vec![deinitialize(keys[0])]);
        assert!(plan[0].sent().is_none());
        assert_eq!(replay.answered(7, &plan, Vec::new()), [Reply(Ok(0))]);
        let (_, left, _) = replay.next().unwrap();
        assert_eq!(left, keys[1..]);
        replay.forget(7);
        replay.child_is_gone();
        assert!(replay.next().is_none());
    }

    #[test]
    fn a_child_that_ends_has_initialized_nothing_and_freed_what_it_was_to() {
        let replay = Replay::default();
        let keys = initialized(&replay, &[1]);
        let plan = replay.plan(vec![initialize(action(5)), deinitialize(keys[0])]);
        let why = Error::new(Status::ActionFailed, "killed");
        let replies = Replay::lost(&plan, &why);
        assert!(replies[0].0.is_err());
        assert_eq!(replies[1], Reply(Ok(0)));
    }
}
