// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a child that takes another one's place has to run: the finalize actions of all that is live.
//!
//! The controller knows an allocation with actions by a key of ours, for each child has keys of its own. What a child
//! has answered counts while no other one has taken its place; children are numbered for that.

use crate::error::{Error, Result as Outcome};
use crate::executor::service::{MOST_MESSAGES, Places, Progress, TOGETHER};
use crate::lock::Mutex;
use crate::wire::service::{Failure, Item, Reply};
use crate::wire::sps::{Encode, to_bytes};
use std::collections::BTreeMap;

pub(super) struct Replay {
    state: Mutex<ReplayState>,
    /// How far the child is with the message under way.
    places: Places,
}

#[derive(Default)]
struct ReplayState {
    /// Which child there is, or comes next.
    child: u64,
    last_key: u64,
    /// By our keys, in the order in which they were initialized.
    live: BTreeMap<u64, Live>,
    /// The last key that was sent to the child there is now.
    sent: u64,
    /// The number of the message under way.
    message: u32,
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
    /// By the message under way, at this place of it.
    Asked(usize),
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

    /// Whether something stays in the child that is to go, if this is not sent.
    pub(super) fn deinitializes(&self) -> bool {
        matches!(self.sent(), Some(Item::Deinitialize { .. }))
    }
}

impl ReplayState {
    /// Which of these allocations the child is initializing again. All others are known to be there or not.
    fn running(&mut self, items: &[Item<'_>], places: &Places) -> Option<usize> {
        items.iter().find_map(|item| {
            let Item::Deinitialize { key, .. } = item else {
                return None;
            };
            let live = self.live.get_mut(key)?;
            let There::Asked(index) = live.there else {
                return None;
            };
            live.there = match places.take(self.message, index) {
                Progress::Runs => return Some(index),
                Progress::Taken => There::No,
                Progress::Ended(key) => There::Yes(key),
            };
            None
        })
    }

    fn plan<'a>(&mut self, item: Item<'a>) -> ReplayedItem<'a> {
        let actions = match item {
            Item::Deinitialize { key, traps } => {
                let key = match self.live.remove(&key).map(|live| live.there) {
                    // One that is not known is the child's to refuse.
                    None => key,
                    Some(There::Yes(key)) => key,
                    Some(There::No | There::Asked(_)) => return ReplayedItem::Done,
                };
                return ReplayedItem::Sent(Item::Deinitialize { key, traps }, None);
            }
            Item::Initialize { ref actions, .. }
            | Item::InitializeData { ref actions, .. }
            | Item::InitializeAgain { ref actions, .. } => actions,
        };
        let encoded = (!actions.is_empty()).then(|| to_bytes(actions));
        ReplayedItem::Sent(item, encoded)
    }
}

impl Replay {
    pub(super) fn new() -> Outcome<Replay> {
        Ok(Replay {
            state: Mutex::default(),
            places: Places::new()?,
        })
    }

    /// What the children shall share with this.
    pub(super) fn places(&self) -> Places {
        self.places.clone()
    }

    /// The number of the child there is, or comes next.
    pub(super) fn child(&self) -> u64 {
        self.state.lock().child
    }

    /// What of a message goes to this child. Waits for an allocation that shall go and whose actions run again in
    /// this moment. `None` if the child has ended; the items are left then.
    pub(super) fn plan<'a>(
        &self,
        child: u64,
        items: &mut Vec<Item<'a>>,
    ) -> Option<Vec<ReplayedItem<'a>>> {
        let mut state = self.state.lock();
        loop {
            if state.child != child {
                return None;
            }
            let Some(index) = state.running(items, &self.places) else {
                break;
            };
            let message = state.message;
            drop(state);
            self.places.wait(message, index);
            state = self.state.lock();
        }
        let items = std::mem::take(items).into_iter();
        Some(items.map(|item| state.plan(item)).collect())
    }

    /// The child has answered what was sent. `None` if it has ended since.
    pub(super) fn answered(
        &self,
        child: u64,
        session: u64,
        plan: &[ReplayedItem<'_>],
        answers: Vec<Result<u64, Failure>>,
    ) -> Option<Vec<Reply<u64>>> {
        let mut answers = answers.into_iter();
        let mut state = self.state.lock();
        if state.child != child {
            return None;
        }
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
        Some(plan.iter().map(reply).collect())
    }

    /// The child has ended before it answered, or was not asked: nothing was initialized, and what was to go is gone.
    pub(super) fn lost(plan: &[ReplayedItem<'_>], why: &Error) -> Vec<Reply<u64>> {
        let reply = |item: &ReplayedItem<'_>| match item.sent() {
            Some(Item::Initialize { .. } | Item::InitializeData { .. }) => {
                Reply(Err(why.clone().into()))
            }
            _ => Reply(Ok(0)),
        };
        plan.iter().map(reply).collect()
    }

    /// Nothing is initialized any more, and another child comes.
    pub(super) fn child_is_gone(&self) {
        let mut state = self.state.lock();
        state.child += 1;
        state.sent = 0;
        // What waits for an allocation of the message under way looks again.
        state.message = (state.message + 1) & MOST_MESSAGES;
        self.places.begin(state.message);
        state
            .live
            .values_mut()
            .for_each(|live| live.there = There::No);
    }

    /// The next message for this child: our keys of what it initializes again, and the arguments of the call.
    pub(super) fn next(&self, child: u64) -> Option<(Vec<u64>, Vec<u8>)> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.child != child {
            return None;
        }
        state.message = (state.message + 1) & MOST_MESSAGES;
        self.places.begin(state.message);
        let waiting = state.live.range_mut(state.sent + 1..);
        let mut waiting = waiting
            .filter(|(_, live)| live.there == There::No)
            .peekable();
        let session = waiting.peek()?.1.session;
        let together: Vec<(&u64, &mut Live)> = waiting
            .take_while(|(_, live)| live.session == session)
            .take(TOGETHER)
            .collect();
        // Of each a byte for its kind, and its place.
        const FIXED: usize = 9;
        let sizes = together.iter().map(|(_, live)| FIXED + live.actions.len());
        let mut message = Vec::with_capacity(16 + sizes.sum::<usize>());
        (session, together.len() as u64).encode(&mut message);
        let mut keys = Vec::with_capacity(together.len());
        for (index, (key, live)) in together.into_iter().enumerate() {
            live.there = There::Asked(index);
            // InitializeAgain.
            message.push(3u8);
            Places::place(state.message, index).encode(&mut message);
            message.extend(&live.actions);
            keys.push(*key);
        }
        state.sent = *keys.last()?;
        Some((keys, message))
    }

    /// What this child has answered to a message: by what it knows the allocations, or that it knows none of them.
    ///
    /// # Errors
    /// Why an allocation that is live still was not initialized again. Those whose session was closed meanwhile the
    /// child may have refused.
    pub(super) fn done(
        &self,
        child: u64,
        keys: &[u64],
        answers: Outcome<Vec<Result<u64, Failure>>>,
    ) -> Outcome<()> {
        let mut state = self.state.lock();
        if state.child != child {
            return Ok(());
        }
        let answers = match answers {
            Ok(answers) => answers,
            Err(refused) if keys.iter().any(|key| state.live.contains_key(key)) => {
                return Err(refused);
            }
            Err(_) => return Ok(()),
        };
        let mut outcome = Ok(());
        for (ours, answer) in keys.iter().zip(answers) {
            let Some(live) = state.live.get_mut(ours) else {
                continue;
            };
            match answer {
                Ok(there) if matches!(live.there, There::Asked(_)) => {
                    live.there = There::Yes(there);
                }
                Ok(_) => {}
                Err(failure) => outcome = outcome.and(Err(failure.into())),
            }
        }
        outcome
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

    fn what_goes<'a>(replay: &Replay, mut items: Vec<Item<'a>>) -> Vec<ReplayedItem<'a>> {
        replay.plan(replay.child(), &mut items).unwrap()
    }

    /// Initializes allocations whose keys in the child are these.
    fn initialized(replay: &Replay, there: &[u64]) -> Vec<u64> {
        let items = there.iter().map(|key| initialize(action(*key)));
        let plan = what_goes(replay, items.collect());
        let answers = there.iter().map(|key| Ok(*key)).collect();
        let replies = replay.answered(replay.child(), 7, &plan, answers).unwrap();
        replies
            .into_iter()
            .map(|Reply(reply)| reply.unwrap())
            .collect()
    }

    #[test]
    fn all_that_is_live_is_replayed_in_order() {
        let replay = Replay::new().unwrap();
        let many: Vec<u64> = (100..100 + 2 * TOGETHER as u64).collect();
        let keys = initialized(&replay, &many);
        // Without actions there is nothing to replay, and no key.
        let plan = what_goes(&replay, vec![initialize(Vec::new())]);
        let replies = replay.answered(0, 7, &plan, vec![Ok(0)]);
        assert_eq!(replies.unwrap(), [Reply(Ok(0))]);
        // What goes is known to the child by its own key.
        let plan = what_goes(&replay, vec![deinitialize(keys[1])]);
        assert_eq!(plan[0].sent(), Some(&deinitialize(many[1])));
        replay.child_is_gone();
        let mut replayed = Vec::new();
        while let Some((keys, message)) = replay.next(replay.child()) {
            let (session, items): (u64, Vec<Item<'_>>) = from_bytes(&message).unwrap();
            assert_eq!(session, 7);
            assert!(items.len() == keys.len() && keys.len() <= TOGETHER);
            for (item, key) in items.iter().zip(&keys) {
                let Item::InitializeAgain { actions, .. } = item else {
                    panic!("{item:?}");
                };
                assert_eq!(*actions, action(99 + key));
            }
            let there = keys.iter().map(|key| Ok(key + 1000)).collect();
            replay.done(1, &keys, Ok(there)).unwrap();
            replayed.extend(keys);
        }
        let rest: Vec<u64> = keys.iter().copied().filter(|key| *key != keys[1]).collect();
        assert_eq!(replayed, rest);
        let plan = what_goes(&replay, vec![deinitialize(keys[0])]);
        assert_eq!(plan[0].sent(), Some(&deinitialize(keys[0] + 1000)));
    }

    #[test]
    fn what_the_child_never_had_goes_without_it() {
        let replay = Replay::new().unwrap();
        let keys = initialized(&replay, &[1, 2]);
        replay.child_is_gone();
        let plan = what_goes(&replay, vec![deinitialize(keys[0])]);
        assert!(plan[0].sent().is_none());
        let replies = replay.answered(1, 7, &plan, Vec::new());
        assert_eq!(replies.unwrap(), [Reply(Ok(0))]);
        let (left, _) = replay.next(replay.child()).unwrap();
        assert_eq!(left, keys[1..]);
        replay.forget(7);
        replay.child_is_gone();
        assert!(replay.next(replay.child()).is_none());
    }

    #[test]
    fn a_child_that_ends_has_initialized_nothing_and_freed_what_it_was_to() {
        let replay = Replay::new().unwrap();
        let keys = initialized(&replay, &[1]);
        let plan = what_goes(&replay, vec![initialize(action(5)), deinitialize(keys[0])]);
        let why = Error::new(Status::ActionFailed, "killed");
        let replies = Replay::lost(&plan, &why);
        assert!(replies[0].0.is_err());
        assert_eq!(replies[1], Reply(Ok(0)));
    }

    #[test]
    fn what_a_child_says_counts_until_it_has_ended() {
        let replay = Replay::new().unwrap();
        let keys = initialized(&replay, &[1, 2]);
        let late = what_goes(&replay, vec![initialize(action(5))]);
        replay.child_is_gone();
        let mut items = vec![deinitialize(keys[0])];
        assert!(replay.plan(0, &mut items).is_none() && items.len() == 1);
        assert!(replay.answered(0, 7, &late, vec![Ok(3)]).is_none());
        assert!(replay.next(0).is_none());
        let (sent, _) = replay.next(1).unwrap();
        assert_eq!(sent, keys);
        // The thread that replayed for the one before.
        replay.done(0, &keys, Ok(vec![Ok(8)])).unwrap();
        replay.done(1, &keys, Ok(vec![Ok(9), Ok(10)])).unwrap();
        let planned = what_goes(&replay, items);
        assert_eq!(planned[0].sent(), Some(&deinitialize(9)));
    }

    #[test]
    fn what_goes_is_taken_out_of_the_message_under_way() {
        let replay = Replay::new().unwrap();
        let keys = initialized(&replay, &[1, 2]);
        replay.child_is_gone();
        let (sent, _) = replay.next(1).unwrap();
        assert_eq!(sent, keys);
        let planned = what_goes(&replay, vec![deinitialize(keys[1])]);
        assert!(planned[0].sent().is_none());
        replay.done(1, &keys, Ok(vec![Ok(3), Ok(0)])).unwrap();
        // It is not known any more.
        let planned = what_goes(&replay, vec![deinitialize(keys[1])]);
        assert_eq!(planned[0].sent(), Some(&deinitialize(keys[1])));
    }

    #[test]
    fn what_fails_of_a_session_that_was_closed_meanwhile_does_not_count() {
        let failure = || Error::new(Status::InvalidHandle, "closed");
        let failed = || -> Vec<Result<u64, Failure>> { vec![Ok(5), Err(failure().into())] };
        for closed in [false, true] {
            let replay = Replay::new().unwrap();
            let keys = initialized(&replay, &[1, 2]);
            for child in [1, 2] {
                replay.child_is_gone();
                let (sent, _) = replay.next(child).unwrap();
                assert_eq!(sent, keys);
                if closed && child == 2 {
                    replay.forget(7);
                }
                // One of it, then all of it.
                for answers in [Ok(failed()), Err(failure())] {
                    let outcome = replay.done(child, &sent, answers);
                    assert_eq!(outcome.is_err(), !(closed && child == 2));
                }
            }
            // Nor what was deallocated before it failed.
            replay.child_is_gone();
            if let Some((sent, _)) = replay.next(3) {
                what_goes(&replay, vec![deinitialize(sent[1])]);
                replay.done(3, &sent, Ok(failed())).unwrap();
                replay.done(3, &sent, Err(failure())).unwrap_err();
            }
        }
    }

    #[test]
    fn what_stays_in_a_child_that_was_not_asked_is_known() {
        let replay = Replay::new().unwrap();
        let keys = initialized(&replay, &[1]);
        let plan = what_goes(&replay, vec![initialize(action(5)), deinitialize(keys[0])]);
        assert!(!plan[0].deinitializes() && plan[1].deinitializes());
        let keys = initialized(&replay, &[2]);
        replay.child_is_gone();
        let plan = what_goes(&replay, vec![deinitialize(keys[0])]);
        assert!(!plan[0].deinitializes());
    }
}
