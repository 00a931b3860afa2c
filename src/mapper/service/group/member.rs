// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! One executor of a group: its session, and what is asked of it.

use super::super::batch::Batches;
use super::super::change::Changes;
use super::super::chunk::Chunks;
use super::super::link::Link;
use crate::callback_queue::{Delivery, Task};
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::lock::Mutex;
use crate::transport::Transport;
use crate::transport::deadlines;
use crate::transport::limits::Asked;
use crate::wire::service::{Item, Reserve, ReservedAt};
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// What the members of a group share.
pub(super) struct Common {
    /// Chunks that executors have not mapped yet.
    pub(super) unsettled: Arc<AtomicUsize>,
    pub(super) dispatcher: Arc<Dispatcher>,
}

/// Where callbacks of hosts run: the transport of the first of the members, whichever has answered. One that has
/// left may have no place for them any more.
pub(super) struct Dispatcher(Mutex<Arc<dyn Transport>>);

impl Dispatcher {
    pub(super) fn new(transport: Arc<dyn Transport>) -> Dispatcher {
        Dispatcher(Mutex::new(transport))
    }

    /// Takes the first one's; if there is none, that of the last one stays. Gives the one before, whose end runs a
    /// function of the host's if nothing else has it.
    #[must_use]
    pub(super) fn follow(&self, members: &[Arc<Member>]) -> Option<Arc<dyn Transport>> {
        let first = Arc::clone(members.first()?.link.transport());
        Some(mem::replace(&mut *self.0.lock(), first))
    }

    fn current(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.0.lock())
    }
}

impl Transport for Dispatcher {
    fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        self.current().call(function, args, done);
    }

    fn dispatch(&self, task: Task) {
        self.current().dispatch(task);
    }
}

/// An executor of a group.
pub(super) struct Member {
    /// Given once in a group.
    pub(super) number: u64,
    /// What errors and events call it.
    pub(super) name: String,
    pub(super) link: Arc<Link>,
    pub(super) changes: Changes,
    pub(super) chunks: Chunks,
    pub(super) batches: Batches,
    /// Why it belongs to the group no more.
    left: OnceLock<Error>,
}

impl Member {
    /// Opens a session with an executor that may become a member. Its changes are held.
    ///
    /// # Errors
    /// `Unsupported` if memfds can't be handed over through a channel; what the transport says.
    pub(super) fn open(
        transport: Arc<dyn Transport>,
        (service, instance): (u64, u64),
        (number, name): (u64, String),
        shared: &Common,
    ) -> Result<Arc<Member>> {
        let mut link = Link::open(transport, service, instance, false)?;
        link.dispatch_by(shared.dispatcher.clone());
        if link.has_private_data() {
            return Err(Error::new(
                Status::Unsupported,
                "the executor has private data, which a group does not serve: start it without --supervise and with \
                 --fork-memory=shared, or have its host serve without supervision",
            ));
        }
        let passing = link.find_passing()?;
        if !link.has_channel() {
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "a group needs a channel to each executor, and this one has {}: {}",
                    passing.mapper_name(),
                    link.failed_passing().join("; ")
                ),
            ));
        }
        let link = Arc::new(link);
        let changes = Changes::held(Arc::clone(&link));
        Ok(Arc::new(Member {
            number,
            name,
            chunks: Chunks::counted(changes.clone(), Arc::clone(&shared.unsettled)),
            changes,
            batches: Batches::new(Arc::clone(&link)),
            link,
            left: OnceLock::new(),
        }))
    }

    /// Says which executor an error is of.
    pub(super) fn named(&self, error: Error) -> Error {
        error.context(format!("executor {} of the group", self.name))
    }

    /// It belongs to the group no more; the first reason counts.
    pub(super) fn leave(&self, why: Error) {
        let _ = self.left.set(why);
    }

    pub(super) fn has_left(&self) -> bool {
        self.left.get().is_some()
    }

    /// Why nothing that it answers counts any more: it has left, or is about to be put out.
    pub(super) fn why_out(&self) -> Option<Error> {
        if let Some(why) = self.left.get() {
            return Some(why.clone());
        }
        if let Some(why) = self.link.why_broken() {
            return Some(why.clone());
        }
        self.link.check().err()
    }

    /// Reserves a window, in its turn among the changes: what was released before may lie there, and a release whose
    /// answer was lost must not be sent again after it.
    pub(super) fn reserve(&self, request: Reserve, done: Completion<ReservedAt>) {
        self.changes.reserve(request, done);
    }

    /// Has items done that are encoded, one after the other.
    pub(super) fn apply(&self, items: &[u8], done: Vec<Completion<u64>>) {
        self.batches.handle().submit_encoded(items, done);
    }

    /// Runs the deallocation actions of what it has answered these keys for, in this order.
    pub(super) fn deinitialize(&self, keys: &[u64], done: Vec<Completion<()>>) {
        let item = |key: &u64| Item::Deinitialize {
            key: *key,
            traps: Vec::new(),
        };
        let items: Vec<Item<'_>> = keys.iter().map(item).collect();
        let done = done
            .into_iter()
            .map(|done| done.map(|answer: Result<u64>| answer.map(drop)));
        self.batches
            .handle()
            .submit_in_order(&items, done.collect());
    }

    /// `done`, at which `late` is called if it is not answered within the limit of what is asked.
    pub(super) fn in_time<T: 'static>(
        self: &Arc<Self>,
        asked: Asked,
        done: Completion<T>,
        late: impl FnOnce(Error) + Send + 'static,
    ) -> Completion<T> {
        self.in_time_of_many(asked, 1, done, late)
    }

    /// [`Member::in_time`] for one of so much that is asked for together.
    pub(super) fn in_time_of_many<T: 'static>(
        self: &Arc<Self>,
        asked: Asked,
        count: usize,
        done: Completion<T>,
        late: impl FnOnce(Error) + Send + 'static,
    ) -> Completion<T> {
        let Some(deadline) = self.link.session().deadline_of_many(asked, count) else {
            return done;
        };
        let timer = deadlines::at(deadline, late);
        Completion::with_delivery(move |answer, delivery| {
            drop(timer);
            done.complete_with(answer, delivery);
        })
    }
}

/// What several executors have answered.
pub(super) type Answers<T> = Vec<(Arc<Member>, Result<T>)>;

/// What has come of a question to several executors.
struct Gathered<T, F> {
    members: Vec<Arc<Member>>,
    answers: Mutex<Vec<Option<Result<T>>>>,
    done: Mutex<Option<F>>,
    left: AtomicUsize,
}

/// Asks several executors at once; `done` gets what all of them have answered, in their order.
pub(super) fn gather<T: Send + 'static>(
    members: Vec<Arc<Member>>,
    delivery: &mut Delivery,
    ask: impl Fn(&Arc<Member>, Completion<T>),
    done: impl FnOnce(Answers<T>, &mut Delivery) + Send + 'static,
) {
    if members.is_empty() {
        return done(Vec::new(), delivery);
    }
    let answers: Vec<Option<Result<T>>> = members.iter().map(|_| None).collect();
    let state = Arc::new(Gathered {
        members,
        left: AtomicUsize::new(answers.len()),
        answers: Mutex::new(answers),
        done: Mutex::new(Some(done)),
    });
    for (place, member) in state.members.iter().enumerate() {
        let state = Arc::clone(&state);
        let answered = Completion::with_delivery(move |answer, delivery| {
            state.answers.lock()[place] = Some(answer);
            if state.left.fetch_sub(1, Ordering::AcqRel) > 1 {
                return;
            }
            let answers = std::mem::take(&mut *state.answers.lock());
            let done = state.done.lock().take();
            let answers = state
                .members
                .iter()
                .cloned()
                .zip(answers.into_iter().flatten());
            if let Some(done) = done {
                done(answers.collect(), delivery);
            }
        });
        ask(member, answered);
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::executor::service::here::OPEN;

    /// A member without a channel, whose changes are not held.
    pub(in super::super) fn member_over(
        transport: Arc<dyn Transport>,
        instance: u64,
    ) -> Arc<Member> {
        let link = Arc::new(Link::open(transport, OPEN, instance, false).unwrap());
        let changes = Changes::new(Arc::clone(&link));
        Arc::new(Member {
            number: 1,
            name: "1".to_owned(),
            chunks: Chunks::counted(changes.clone(), Arc::default()),
            changes,
            batches: Batches::new(Arc::clone(&link)),
            link,
            left: OnceLock::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::change::testing::{Losing, Lost, use_window};
    use super::testing::member_over;
    use super::*;
    use crate::completion::wait;
    use crate::executor::service::Service;
    use crate::sys::page_size;
    use crate::wire::service::{At, Step};

    #[test]
    fn a_release_that_was_lost_takes_no_window_that_is_reserved_after_it() {
        let (service, transport) = (Service::new(), Arc::new(Losing::default()));
        let member = member_over(transport.clone(), service.instance());
        let page = page_size().bytes();
        let (size, least) = (16 * page, 16 * page);
        let reserve = |at| {
            let request = Reserve { size, least, at };
            wait(|done| member.reserve(request, done)).map(|at| at.range)
        };
        let make = |step| wait(|done| member.changes.make(step, done));
        let range = reserve(At::Default {}).unwrap();
        let address = range.start.0;
        for fate in [Lost::Done, Lost::NotDone] {
            transport.0.lock().push_back(Some(fate));
            make(Step::Release { range }).unwrap_err();
            assert_eq!(reserve(At::Fixed { address }).unwrap(), range);
            use_window(&member.changes, range);
        }
        // What is no answer counts as one of any other kind does.
        transport.0.lock().push_back(Some(Lost::Nonsense));
        reserve(At::Default {}).unwrap_err();
        assert!(member.link.why_broken().is_some());
    }
}
