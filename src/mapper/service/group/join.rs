// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How an executor joins a group: it gets the windows, the chunks and then what the live allocations need, in the
//! order in which they were finalized. The others go on meanwhile. Nothing is linked.

use super::super::change::Changes;
use super::member::{Common, Member};
use super::reserve::{exactly, wrong_place};
use super::{GroupChange, Inner, Layout};
use crate::completion::{Completion, wait};
use crate::error::{Error, Result, Status};
use crate::page::AddressRange;
use crate::transport::Transport;
use crate::transport::limits::Asked;
use crate::wire::service::Step;
use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

/// Bytes of items that go in one message, unless one alone has more.
const MOST_BYTES: usize = 256 << 10;
/// And that many items, whose outcomes must fit into one packet.
const MOST_ITEMS: usize = 1024;
/// And that many where linked code has a limit of time: so many times that is waited for the outcomes of a message.
const MOST_LIMITED_ITEMS: usize = 16;

/// An executor that may join a group.
pub(crate) struct Candidate {
    pub(crate) transport: Arc<dyn Transport>,
    /// Executor address of the service's `open`, and its number.
    pub(crate) service: (u64, u64),
    /// What errors call it; `None`: its number.
    pub(crate) name: Option<String>,
}

impl Candidate {
    pub(super) fn open(self, number: u64, common: &Common) -> Result<Arc<Member>> {
        let name = self.name.unwrap_or_else(|| number.to_string());
        let called = (number, name.clone());
        Member::open(self.transport, self.service, called, common)
            .map_err(|error| error.context(format_args!("executor {name} of the group")))
    }
}

impl Inner {
    /// Makes a member of an executor, or fails and ends its session.
    pub(super) fn join(self: &Arc<Self>, member: Arc<Member>) -> Result<u64> {
        let joined = self.agrees(&member).and_then(|()| self.bring_in(&member));
        match joined {
            Ok(()) => Ok(member.number),
            Err(error) => {
                // What it was put out for comes before what followed from that.
                let why = member
                    .why_out()
                    .filter(|_| error.status() == Status::Disconnected);
                let why = why.unwrap_or(error);
                self.leave(&member, GroupChange::PutOut, why.clone(), true);
                Err(member.named(why))
            }
        }
    }

    /// Linked code has the addresses of the first executor.
    fn agrees(&self, member: &Member) -> Result<()> {
        if let Some(other) = self.same_executor(member) {
            return Err(Error::new(
                Status::InvalidArgument,
                format!("it is executor {other} of the group already; connect to another one"),
            ));
        }
        let (ours, its) = (&self.layout, Layout::of(member));
        if *ours == its {
            return Ok(());
        }
        let (there, here) = (its.functions.apply.0, ours.functions.apply.0);
        Err(Error::new(
            Status::Unsupported,
            match there == here {
                true => format!(
                    "it differs from the group's first one: it has pages of {} bytes instead of {}, or finds frames \
                     otherwise; start the same program in the same way",
                    its.page_size, ours.page_size
                ),
                false => format!(
                    "its service is at {there:#x} and the group's at {here:#x}, so linked code would call what is not \
                     there; fork executors from one process, or start them without address-space randomization"
                ),
            },
        ))
    }

    /// The name of a member that is reached by the same connection.
    fn same_executor(&self, member: &Member) -> Option<String> {
        let its = member.link.executor();
        let state = self.state.lock();
        let members = state.members.iter().chain(&state.joining);
        let mut others = members.filter(|other| other.number != member.number);
        let same = others.find(|other| Arc::ptr_eq(other.link.executor(), its));
        same.map(|other| other.name.clone())
    }

    fn bring_in(self: &Arc<Self>, member: &Arc<Member>) -> Result<()> {
        let late = self.putting_out(member);
        let timer = member.in_time(Asked::SetUp, Completion::new(|_: Result<()>| ()), late);
        self.bring_windows(member)?;
        let (group, left) = (Arc::downgrade(self), Arc::downgrade(member));
        member.link.when_ended(move |why| {
            if let (Some(group), Some(member)) = (group.upgrade(), left.upgrade()) {
                group.put_out(&member, GroupChange::Died, why);
            }
        });
        member.changes.let_go();
        self.await_chunks(member)?;
        timer.complete(Ok(()));
        let most_items = match member.link.session().deadline(Asked::Code) {
            Some(_) => MOST_LIMITED_ITEMS,
            None => MOST_ITEMS,
        };
        loop {
            let untold = {
                let mut state = self.state.lock();
                let untold = state
                    .allocations
                    .untold(member.number, most_items, MOST_BYTES);
                if untold.is_empty() {
                    let Some(place) = state
                        .joining
                        .iter()
                        .position(|one| one.number == member.number)
                    else {
                        let gone = Error::new(Status::Disconnected, "it has left the group");
                        return Err(member.why_out().unwrap_or(gone));
                    };
                    let joined = state.joining.remove(place);
                    if state.members.is_empty() {
                        self.common.unsettled.fetch_sub(1, Ordering::AcqRel);
                    }
                    state.members.push(joined);
                    let before = self.common.dispatcher.follow(&state.members);
                    let event = self.event(&state, member, GroupChange::Joined, None);
                    drop(state);
                    drop(before);
                    self.tell(event);
                    break;
                }
                untold
            };
            // Chunks that were made meanwhile.
            self.await_chunks(member)?;
            self.tell_live(member, &untold)?;
        }
        // Calls of the host's may come as soon as this has returned.
        self.await_chunks(member)
    }

    /// Reserves what the others have, and has the member told of all windows and chunks from then on.
    fn bring_windows(self: &Arc<Self>, member: &Arc<Member>) -> Result<()> {
        let mut reserved: Vec<AddressRange> = Vec::new();
        // Its own are held.
        let changes = Changes::new(Arc::clone(&member.link));
        loop {
            let (gone, missing) = {
                let mut state = self.state.lock();
                let windows = state.windows.iter().map(|window| window.range);
                let is_there = |range: &AddressRange| windows.clone().any(|one| one == *range);
                let (kept, gone): (Vec<_>, Vec<_>) = reserved.into_iter().partition(is_there);
                let is_missing = |range: &AddressRange| !kept.contains(range);
                let missing: Vec<AddressRange> = windows.clone().filter(is_missing).collect();
                reserved = kept;
                if gone.is_empty() && missing.is_empty() {
                    // Its changes are held, so these calls only note what is to be told.
                    for window in &state.windows {
                        if let Some(index) = &window.index {
                            let shown = self.showing(member);
                            member.changes.index(window.range.into(), index, shown);
                        }
                    }
                    for chunk in state.chunks.values() {
                        let file = chunk.file.clone();
                        member.chunks.add_written(chunk.chunk, None, file);
                    }
                    state.allocations.begin_joining(member.number);
                    state.joining.push(Arc::clone(member));
                    return Ok(());
                }
                (gone, missing)
            };
            // First, for what is missing may lie there.
            for range in gone {
                let range = range.into();
                wait(|done| changes.make(Step::Release { range }, done))?;
            }
            for window in missing {
                let answer = wait(|done| changes.reserve(exactly(window), done));
                let answer = answer.map_err(|error| {
                    let start = window.start();
                    let error = error.context(format_args!("reserve the group's window at {start:#x}"));
                    error.remedy(
                        "start it with MALLOC_ARENA_MAX=2 in its environment, or place the group's windows where no \
                         program has anything (JITMEM_PLACEMENT_FIXED, Placement::Fixed), such as at 0x600000000000",
                    )
                })?;
                if answer.range != window.into() {
                    return Err(wrong_place(window, &answer));
                }
                reserved.push(window);
            }
        }
    }

    /// An executor that joins and can't look in an index would not find the frames that the others find.
    fn showing(self: &Arc<Self>, member: &Arc<Member>) -> Completion<()> {
        let (group, member) = (Arc::clone(self), Arc::clone(member));
        Completion::new(move |answer: Result<()>| {
            if let Err(error) = answer {
                group.put_out(&member, GroupChange::PutOut, error);
            }
        })
    }

    /// Waits until a member has mapped all chunks that there are.
    fn await_chunks(&self, member: &Member) -> Result<()> {
        let chunks: Vec<AddressRange> = {
            let state = self.state.lock();
            let chunks = state.chunks.values().map(|chunk| chunk.chunk.range);
            chunks.collect()
        };
        wait(|done| member.chunks.when_mapped(&chunks, done))
    }

    /// Has a member do what others have done for live allocations, in one message.
    fn tell_live(self: &Arc<Self>, member: &Arc<Member>, live: &[(u64, Arc<[u8]>)]) -> Result<()> {
        let bytes: Vec<u8> = live.iter().flat_map(|(_, item)| &**item).copied().collect();
        let (sender, answers) = mpsc::channel();
        let done = live.iter().map(|(number, _)| {
            let (number, sender) = (*number, sender.clone());
            let done = Completion::new(move |answer: Result<u64>| {
                let _ = sender.send((number, answer));
            });
            member.in_time_of_many(Asked::Code, live.len(), done, self.putting_out(member))
        });
        member.apply(&bytes, done.collect());
        drop(sender);
        let mut result = Ok(());
        let mut gone = Vec::new();
        for (number, answer) in answers {
            match answer {
                Ok(key) => {
                    let waiting = self
                        .state
                        .lock()
                        .allocations
                        .told(member.number, number, key);
                    gone.extend(waiting.map(|waiting| (number, key, waiting)));
                }
                Err(error) => {
                    result = result.and(Err(error.context("run the actions of what is linked")));
                }
            }
        }
        // The last one first, each once the one before has ended.
        gone.sort_unstable_by_key(|(number, ..)| Reverse(*number));
        let (mut keys, mut forgotten, mut nothing) = (Vec::new(), Vec::new(), Vec::new());
        for (_, key, waiting) in gone {
            match key {
                0 => nothing.push(waiting),
                key => {
                    keys.push(key);
                    forgotten.push(self.of_member(member, waiting));
                }
            }
        }
        self.answer(nothing);
        if !keys.is_empty() {
            member.deinitialize(&keys, forgotten);
        }
        result
    }

    /// What is done with a member that does not answer in time.
    pub(super) fn putting_out(
        self: &Arc<Self>,
        member: &Arc<Member>,
    ) -> impl FnOnce(Error) + Send + 'static + use<> {
        let (group, member) = (Arc::downgrade(self), Arc::downgrade(member));
        move |error| {
            if let (Some(group), Some(member)) = (group.upgrade(), member.upgrade()) {
                group.put_out(&member, GroupChange::PutOut, error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::member::testing::member_over;
    use super::super::{GroupMapper, GroupWindow};
    use super::*;
    use crate::executor::service::Service;
    use crate::executor::service::here::{Here, OPEN};
    use crate::lock::Mutex;
    use crate::sys::page_size;

    type BeforeCall = Box<dyn FnOnce() + Send>;

    /// An executor in this process, and what happens before the next call of a function.
    #[derive(Default)]
    struct Watched(Mutex<Option<(u64, BeforeCall)>>);

    impl Transport for Watched {
        fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
            let before = self.0.lock().take_if(|(watched, _)| *watched == function);
            if let Some((_, before)) = before {
                before();
            }
            Here.call(function, args, done);
        }
    }

    #[test]
    fn a_window_that_goes_while_an_executor_joins_is_in_no_way() {
        let window = |first: u64| {
            let (page, index) = (page_size().bytes(), None);
            let range = AddressRange::new(0x6700_0000_0000 + first * page, 16 * page).unwrap();
            GroupWindow { range, index }
        };
        let services = [Service::new(), Service::new()];
        let first = Candidate {
            transport: Arc::new(Here),
            service: (OPEN, services[0].instance()),
            name: None,
        };
        let mapper = GroupMapper::new(vec![first], None).unwrap();
        let group = &mapper.inner;
        let transport = Arc::new(Watched::default());
        let member = member_over(transport.clone(), services[1].instance());
        group.state.lock().windows = vec![window(0), window(100)];
        // While the second one is reserved the first one goes, and another one comes that overlaps it.
        let inner = Arc::clone(group);
        let replace: BeforeCall =
            Box::new(move || inner.state.lock().windows = vec![window(8), window(100)]);
        let reserve = member.link.functions().reserve.0;
        let watched = Arc::clone(&transport);
        let second: BeforeCall = Box::new(move || *watched.0.lock() = Some((reserve, replace)));
        *transport.0.lock() = Some((reserve, second));
        group.bring_windows(&member).unwrap();
        assert!(transport.0.lock().is_none());
        assert_eq!(group.state.lock().joining.len(), 1);
    }
}
