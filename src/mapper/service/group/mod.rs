// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! One set of linked code in several executors: what is linked once lies at the same addresses in all of them.
//!
//! Code and constants are one memfd for each chunk, which all map. Writable data is each executor's own: its content
//! goes in the messages that finalize, and stays here, encoded, for executors that join. Each executor has a session,
//! as the mapper of one executor has it; [`Inner`] is what they have in common.

mod initialize;
mod join;
mod member;
mod reserve;
mod state;
mod views;

pub use state::{GroupChange, GroupEvent};

use super::unwind::{IndexedFrames, Unwinding};
use crate::callback_queue::Delivery;
use crate::completion::{Completion, join_all};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::lock::Mutex;
use crate::mapper::{
    Action, Capabilities, Chunk, Deinitialization, FrameCounts, Kind, MapperBase, MemoryMapper,
    Prepared, Registration, Reserved, SegmentContents, Teardown,
};
use crate::memory::placement::Placement;
use crate::page::{AddressRange, PACKING_GRANULE};
use crate::sys::{self, MemFile, OwnerProcess};
use crate::transport::limits::{Asked, Patience};
use crate::transport::{Transport, disconnected};
use crate::wire::service::{FrameFunctions, Functions};
use initialize::Initializing;
use member::{Common, Dispatcher, Member, gather};
use reserve::Reserving;
use state::{Allocations, Forgetting};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use views::GroupChunk;

pub(crate) use join::Candidate;

/// Is told what happens to a group, with no lock held and in any thread, which it must not keep.
pub type GroupObserver = Box<dyn Fn(&GroupEvent) + Send + Sync>;

/// A mapper over the services of several executors.
pub(crate) struct GroupMapper {
    capabilities: Capabilities,
    pub(super) inner: Arc<Inner>,
}

/// What the executors of a group have in common.
pub(super) struct Inner {
    state: Mutex<State>,
    common: Common,
    unwinding: Unwinding,
    /// What the first executor has, and with it all.
    layout: Layout,
    observer: Option<GroupObserver>,
    /// The process that made it.
    owner: OwnerProcess,
}

/// Where an executor has what linked code is given the addresses of, and what its pages are.
#[derive(Clone, Debug, PartialEq)]
struct Layout {
    page_size: u64,
    coherent: bool,
    functions: Functions,
    frames: FrameFunctions,
}

struct State {
    /// Those that have all, in the order in which they came.
    members: Vec<Arc<Member>>,
    /// Those that are told of windows and chunks as the members are, and have not all yet.
    joining: Vec<Arc<Member>>,
    /// Those that end their sessions, with who waits until they have run their deallocation actions.
    leaving: BTreeMap<u64, Vec<Completion<()>>>,
    windows: Vec<GroupWindow>,
    chunks: BTreeMap<u64, Arc<GroupChunk>>,
    allocations: Allocations,
    next_executor: u64,
    /// Messages and bytes of those that have left.
    past_traffic: (u64, u64),
    /// Why the last one left.
    last_reason: Option<Error>,
    closed: bool,
}

/// A window that all have.
#[derive(Clone)]
struct GroupWindow {
    range: AddressRange,
    /// Its index of frames, if there is one.
    index: Option<Arc<MemFile>>,
}

impl State {
    /// All that are told of windows and chunks.
    fn mapping(&self) -> Vec<Arc<Member>> {
        self.members.iter().chain(&self.joining).cloned().collect()
    }
}

/// What one executor is to forget.
struct Part {
    /// `None`: it has left.
    member: Option<Arc<Member>>,
    keys: Vec<u64>,
    done: Vec<Completion<()>>,
}

/// What hosts see of an executor of a group.
#[derive(Clone, Debug)]
pub struct GroupExecutor {
    /// Its number, given once in a group.
    pub number: u64,
    /// What the host calls it.
    pub name: String,
    /// Messages that were sent to it.
    pub messages: u64,
    /// Bytes of messages in both directions.
    pub bytes: u64,
}

impl GroupMapper {
    /// A group of these executors, which must be at least one.
    ///
    /// # Errors
    /// As [`GroupMapper::add`]; `InvalidArgument` for none.
    pub(crate) fn new(
        executors: Vec<Candidate>,
        observer: Option<GroupObserver>,
    ) -> Result<GroupMapper> {
        let mut executors = executors.into_iter();
        let first = executors.next().ok_or_else(|| {
            invalid_argument("make a group of no executors: it needs one at least")
        })?;
        let common = Common {
            // That it has no executor yet.
            unsettled: Arc::new(AtomicUsize::new(1)),
            dispatcher: Arc::new(Dispatcher::new(Arc::clone(&first.transport))),
        };
        let first = first.open(1, &common)?;
        let layout = Layout::of(&first);
        let page_size = sys::page_size();
        if layout.page_size != page_size.bytes() {
            return Err(first.named(Error::new(
                Status::Unsupported,
                format!(
                    "its pages have {} bytes and the controller's {}: they can't share any",
                    layout.page_size,
                    page_size.bytes()
                ),
            )));
        }
        let failed = first.link.failed_passing();
        let name = "shared memory, one set of code in a group of executors";
        let capabilities = Capabilities {
            granule: PACKING_GRANULE,
            shared: true,
            coherent: layout.coherent,
            keeps_served: true,
            fallback: (!failed.is_empty()).then(|| failed.join("; ")),
            ..Capabilities::new(Kind::Shared, name, page_size)
        };
        let inner = Arc::new(Inner {
            state: Mutex::new(State {
                members: Vec::new(),
                joining: Vec::new(),
                leaving: BTreeMap::new(),
                windows: Vec::new(),
                chunks: BTreeMap::new(),
                allocations: Allocations::new(),
                next_executor: 2,
                past_traffic: (0, 0),
                last_reason: None,
                closed: false,
            }),
            common,
            unwinding: Unwinding::new(layout.frames, true),
            layout,
            observer,
            owner: OwnerProcess::current(),
        });
        let group = GroupMapper {
            capabilities,
            inner,
        };
        group.inner.join(first)?;
        for executor in executors {
            group.add(executor)?;
        }
        Ok(group)
    }

    /// Has an executor join, and waits until it has all that the others have. Gives its number.
    ///
    /// # Errors
    /// Why it can't, and which one it is; it is left as it was before then.
    pub(crate) fn add(&self, executor: Candidate) -> Result<u64> {
        let number = {
            let mut state = self.inner.state.lock();
            let next = state.next_executor;
            state.next_executor += 1;
            next
        };
        let member = executor.open(number, &self.inner.common)?;
        self.inner.join(member)
    }

    /// Removes an executor: it runs its deallocation actions and gives the group's memory back. Waits for that.
    ///
    /// # Errors
    /// `InvalidArgument` for a number that no executor has, or the last one.
    pub(crate) fn remove(&self, number: u64) -> Result<()> {
        self.inner.remove(number)
    }

    /// The executors that have joined.
    pub(crate) fn executors(&self) -> Vec<GroupExecutor> {
        let see = |member: &Arc<Member>| {
            let (messages, bytes) = member.link.traffic();
            GroupExecutor {
                number: member.number,
                name: member.name.clone(),
                messages,
                bytes,
            }
        };
        self.inner.members().iter().map(see).collect()
    }
}

impl Layout {
    fn of(member: &Member) -> Layout {
        Layout {
            page_size: member.link.page_size(),
            coherent: member.link.is_coherent(),
            functions: member.link.functions().clone(),
            frames: member.link.frame_functions(),
        }
    }
}

impl Inner {
    fn members(&self) -> Vec<Arc<Member>> {
        self.state.lock().members.clone()
    }

    fn is_empty(&self) -> bool {
        self.state.lock().members.is_empty()
    }

    /// Whether all executors have mapped all chunks, and there is one.
    fn settled(&self) -> bool {
        self.common.unsettled.load(Ordering::Acquire) == 0
    }

    /// Why there is no executor left.
    fn why_empty(&self) -> Error {
        let why = self.state.lock().last_reason.clone();
        why.unwrap_or_else(|| disconnected("the group has no executor left"))
    }

    // ---- the end of members ----

    /// Has an executor that is of no use leave: what is asked of it is answered with an error, which counts for
    /// nothing in a group.
    fn put_out(&self, member: &Member, change: GroupChange, why: Error) {
        self.leave(member, change, why, false);
    }

    /// Has an executor leave; `close`: after it has ended its session as at the end of a mapper.
    fn leave(&self, member: &Member, change: GroupChange, why: Error, close: bool) {
        let number = member.number;
        let (mut waiting, event, runs_actions) = {
            let mut state = self.state.lock();
            let mut everyone = state.members.iter().chain(&state.joining);
            let runs_actions = close && everyone.any(|one| one.number == number);
            let was_member = self.take_out(&mut state, member, &why);
            let waiting = state.allocations.forget(number);
            if runs_actions {
                state.leaving.insert(number, Vec::new());
            }
            let event = was_member.then(|| self.event(&state, member, change, Some(&why)));
            (waiting, event.flatten(), runs_actions)
        };
        if close {
            member.link.close();
        }
        member.link.cut(why);
        if runs_actions {
            waiting.extend(
                self.state
                    .lock()
                    .leaving
                    .remove(&number)
                    .unwrap_or_default(),
            );
        }
        self.answer(waiting);
        self.tell(event);
    }

    /// Answers what waited for an executor: callbacks of hosts follow, which may wait for each other.
    fn answer(&self, waiting: Vec<Completion<()>>) {
        let waiting = waiting.into_iter();
        Delivery::as_one_task(
            |delivery| waiting.for_each(|done| done.complete_with(Ok(()), delivery)),
            |task| self.common.dispatcher.dispatch(task),
        );
    }

    /// Takes an executor out of the lists; whether it was a member.
    fn take_out(&self, state: &mut State, member: &Member, why: &Error) -> bool {
        let is_other = |one: &Arc<Member>| one.number != member.number;
        let (members, joining) = (state.members.len(), state.joining.len());
        state.members.retain(is_other);
        state.joining.retain(is_other);
        let was_member = state.members.len() < members;
        // The executor has it still.
        drop(self.common.dispatcher.follow(&state.members));
        if !was_member && state.joining.len() == joining {
            return false;
        }
        if was_member && state.members.is_empty() {
            self.common.unsettled.fetch_add(1, Ordering::AcqRel);
        }
        let (messages, bytes) = member.link.traffic();
        state.past_traffic.0 += messages;
        state.past_traffic.1 += bytes;
        member.leave(why.clone());
        state.last_reason = Some(member.named(why.clone()));
        was_member
    }

    fn event(
        &self,
        state: &State,
        member: &Member,
        change: GroupChange,
        reason: Option<&Error>,
    ) -> Option<GroupEvent> {
        self.observer.as_ref()?;
        (!state.closed).then(|| GroupEvent {
            change,
            executor: member.number,
            name: member.name.clone(),
            reason: reason.cloned(),
            executors: state.members.len(),
        })
    }

    fn tell(&self, event: Option<GroupEvent>) {
        if let (Some(observer), Some(event)) = (&self.observer, event) {
            observer(&event);
        }
    }

    fn remove(&self, number: u64) -> Result<()> {
        let member = {
            let mut state = self.state.lock();
            let found = state.members.iter().find(|one| one.number == number);
            let member = Arc::clone(found.ok_or_else(|| {
                invalid_argument(format!(
                    "remove executor {number}: the group has none of this number; it may have left"
                ))
            })?);
            if state.members.len() == 1 {
                return Err(invalid_argument(format!(
                    "remove executor {}: it is the last one of its group; free the managers and the mapper instead",
                    member.name
                )));
            }
            let why = Error::new(Status::Disconnected, "it was removed from its group");
            self.take_out(&mut state, &member, &why);
            state.allocations.forget(number);
            state.leaving.insert(number, Vec::new());
            member
        };
        // Its deallocation actions run meanwhile, so what is deallocated now waits for that.
        member.link.close();
        member
            .link
            .cut(disconnected("it was removed from its group"));
        let (waiting, event) = {
            let mut state = self.state.lock();
            let waiting = state.leaving.remove(&number).unwrap_or_default();
            let event = self.event(&state, &member, GroupChange::Removed, None);
            (waiting, event)
        };
        self.answer(waiting);
        self.tell(event);
        Ok(())
    }

    /// Looks after why an executor has not done what it was asked: one that is of no use any more leaves. Whether
    /// it counts.
    fn counts(&self, member: &Member, error: &Error) -> bool {
        // What could not be sent may be known before the connection has ended.
        let gone = || (error.status() == Status::Disconnected).then(|| error.clone());
        match member.why_out().or_else(gone) {
            None => true,
            // It may be ending its session.
            Some(_) if member.has_left() => false,
            Some(why) => {
                let change = match why.status() {
                    Status::Disconnected => GroupChange::Died,
                    _ => GroupChange::PutOut,
                };
                self.put_out(member, change, why);
                false
            }
        }
    }

    // ---- allocations ----

    /// Has executors forget what they were told, and completes once all have.
    fn forget(
        self: &Arc<Self>,
        what: impl FnOnce(&mut Allocations) -> Forgetting,
        done: Completion<()>,
        delivery: &mut Delivery,
    ) {
        let mut asked = Vec::new();
        let nothing_to_do = {
            let mut state = self.state.lock();
            let Forgetting {
                keys,
                mut being_told,
            } = what(&mut state.allocations);
            let told = |(executor, numbers): (&u64, &Vec<u64>)| match keys.contains_key(executor) {
                true => 1,
                false => numbers.len(),
            };
            let count = keys.values().map(Vec::len).sum::<usize>()
                + being_told.iter().map(told).sum::<usize>()
                + state.leaving.len();
            if count == 0 {
                Some(done)
            } else {
                // Nothing completes here: each is handed to one that has not ended.
                let mut each = join_all(count, done, delivery).into_iter();
                for waiting in state.leaving.values_mut() {
                    waiting.extend(each.next());
                }
                let everyone = state.mapping();
                for (executor, keys) in keys {
                    let member = everyone.iter().find(|one| one.number == executor);
                    let part = Part {
                        done: each.by_ref().take(keys.len()).collect(),
                        member: member.cloned(),
                        keys,
                    };
                    let Some(numbers) = being_told.remove(&executor) else {
                        asked.push(part);
                        continue;
                    };
                    // What it was told before goes after what it is being told.
                    let (group, told) = (Arc::clone(self), each.next());
                    let then = Completion::with_delivery(move |answer, delivery| {
                        group.ask_to_forget(part, delivery);
                        if let Some(told) = told {
                            told.complete_with(answer, delivery);
                        }
                    });
                    let waiting = join_all(numbers.len(), then, delivery);
                    for (number, done) in numbers.into_iter().zip(waiting) {
                        state.allocations.wait_for(executor, number, done);
                    }
                }
                for (executor, numbers) in being_told {
                    for (number, done) in numbers.into_iter().zip(each.by_ref()) {
                        state.allocations.wait_for(executor, number, done);
                    }
                }
                None
            }
        };
        if let Some(done) = nothing_to_do {
            return done.complete_with(Ok(()), delivery);
        }
        for part in asked {
            self.ask_to_forget(part, delivery);
        }
    }

    fn ask_to_forget(self: &Arc<Self>, part: Part, delivery: &mut Delivery) {
        let done = part.done.into_iter();
        let Some(member) = part.member else {
            // It has left, and with it all that it had.
            return done.for_each(|done| done.complete_with(Ok(()), delivery));
        };
        let late = || self.putting_out(&member);
        let named =
            done.map(|done| member.in_time(Asked::Code, self.of_member(&member, done), late()));
        member.deinitialize(&part.keys, named.collect());
    }

    /// A completion of one executor's part: its errors have its name, and count only while it belongs to the group.
    fn of_member(self: &Arc<Self>, member: &Arc<Member>, done: Completion<()>) -> Completion<()> {
        let (group, member) = (Arc::clone(self), Arc::clone(member));
        done.map(move |answer: Result<()>| match answer {
            Err(error) if group.counts(&member, &error) => Err(member.named(error)),
            _ => Ok(()),
        })
    }

    /// Ends all sessions.
    fn close(&self) {
        let members = {
            let mut state = self.state.lock();
            state.closed = true;
            state.joining.clear();
            std::mem::take(&mut state.members)
        };
        members.iter().for_each(|member| member.link.close());
    }
}

impl Drop for GroupMapper {
    fn drop(&mut self) {
        if self.inner.owner.is_current() {
            self.inner.close();
        }
    }
}

impl MapperBase for GroupMapper {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn patience(&self) -> Option<Patience> {
        let members = self.inner.members();
        let limits = members.iter().map(|one| one.link.session().limits.close);
        // None is without limit.
        let limit = limits.reduce(|one, other| Some(one?.max(other?)))?;
        Some(Patience::new(limit, Arc::default()))
    }

    fn traffic(&self) -> (u64, u64) {
        let state = self.inner.state.lock();
        let all = state.members.iter().chain(&state.joining);
        all.fold(state.past_traffic, |(messages, bytes), member| {
            let (more, longer) = member.link.traffic();
            (messages + more, bytes + longer)
        })
    }

    fn registration(&self) -> Option<Registration> {
        self.inner.unwinding.registration()
    }

    fn frames(&self) -> FrameCounts {
        self.inner.unwinding.frames()
    }
}

impl MemoryMapper for GroupMapper {
    fn group(&self) -> Option<&GroupMapper> {
        Some(self)
    }

    fn settled(&self) -> bool {
        self.inner.settled()
    }

    fn reserve(&self, size: u64, least: u64, placement: Placement, done: Completion<Reserved>) {
        Reserving::start(Arc::clone(&self.inner), size, least, placement, done);
    }

    fn prepare(&self, chunk: Chunk) -> Result<Prepared> {
        self.inner.prepare(chunk)
    }

    fn initialize(
        &self,
        segments: SegmentContents,
        actions: Vec<Action>,
        done: Completion<Teardown>,
    ) {
        Initializing::start(Arc::clone(&self.inner), segments, actions, done);
    }

    fn deinitialize(
        &self,
        allocations: Vec<Deinitialization>,
        done: Completion<()>,
        delivery: &mut Delivery,
    ) {
        let numbers: Vec<u64> = allocations
            .iter()
            .rev()
            .map(Deinitialization::key)
            .collect();
        let frames: Vec<IndexedFrames> = allocations
            .into_iter()
            .filter_map(Deinitialization::into_frames)
            .collect();
        // Actions may throw: frames leave the index after them, and before the memory is free.
        let done = Completion::with_delivery(move |answer, delivery| {
            frames.iter().for_each(IndexedFrames::take_out);
            done.complete_with(answer, delivery);
        });
        let forgetting = move |live: &mut Allocations| {
            let mut forgetting = Forgetting::default();
            numbers
                .iter()
                .for_each(|number| live.remove(*number, &mut forgetting));
            forgetting
        };
        self.inner.forget(forgetting, done, delivery);
    }

    fn set_writers(&self, windows: &[AddressRange], open: bool) -> Result<()> {
        self.inner.set_writers(windows, open)
    }

    fn reclaim(&self, chunk: AddressRange) -> Result<()> {
        self.inner.reclaim(chunk)
    }

    fn collapse(&self, pages: AddressRange) -> Result<()> {
        self.inner.collapse(pages)
    }

    fn release(&self, window: AddressRange, done: Completion<()>) {
        let members = {
            let mut state = self.inner.state.lock();
            state.windows.retain(|one| one.range != window);
            state
                .chunks
                .retain(|_, chunk| !window.contains(chunk.chunk.range));
            state.mapping()
        };
        self.inner.unwinding.forget(window);
        let inner = Arc::clone(&self.inner);
        let release = |member: &Arc<Member>, done| {
            member.chunks.forget_within(window);
            self.inner.give_back(member, window, done);
        };
        let finished = move |answers: member::Answers<()>, delivery: &mut Delivery| {
            let mut result = Ok(());
            for (member, answer) in answers {
                if let Err(error) = answer {
                    if inner.counts(&member, &error) {
                        result = joined(result, member.named(error));
                    }
                }
            }
            done.complete_with(result, delivery);
        };
        gather(members, &mut Delivery::Inline, release, finished);
    }
}

/// One failure more.
fn joined(result: Result<()>, error: Error) -> Result<()> {
    match result {
        Ok(()) => Err(error),
        Err(first) => Err(first.join(error)),
    }
}
