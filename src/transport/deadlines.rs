// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Answers that are given before the executor's, because a deadline is over or the host gives up.
//!
//! One thread looks after all deadlines of the process. It ends when there are none for a while, and no
//! connection has limits.

use super::Transport;
use super::limits::{Deadline, Limits};
use crate::callback_queue::{Delivery, Task};
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::lock::{Condvar, Mutex};
use crate::sys::{self, AtForkStatic, Forked, OwnerProcess, explain};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The thread ends after this time without a deadline, unless it is kept.
const IDLE_TIME: Duration = Duration::from_secs(1);

/// What a deadline is for.
trait Expire: Send + Sync {
    fn expire(self: Arc<Self>, delivery: &mut Delivery);
}

/// By time, and in the order in which they came.
type Key = (Instant, u64);

struct Deadlines {
    /// The earliest first. Most new ones are the last, and most that go are among the first.
    waiting: VecDeque<(Key, Weak<dyn Expire>)>,
    next: u64,
    /// The process in which the thread runs; a forked child has no such thread.
    runs_in: Option<OwnerProcess>,
    /// Those that want it to stay.
    kept_by: usize,
}

static DEADLINES: AtForkStatic<Deadlines> = AtForkStatic::with(
    Deadlines {
        waiting: VecDeque::new(),
        next: 0,
        runs_in: None,
        kept_by: 0,
    },
    Deadlines::forked,
);

/// There is an earlier deadline than before, or none.
static CHANGED: Condvar = Condvar::new();

impl Deadlines {
    /// A child has no connections, so no deadlines either.
    fn forked(&mut self, forked: Forked) {
        if forked.in_child {
            std::mem::forget(std::mem::take(&mut self.waiting));
        }
    }

    /// Makes sure that the thread is there.
    fn start(&mut self) -> Result<()> {
        let here = OwnerProcess::current();
        if self.runs_in != Some(here) {
            sys::spawn("jitmem-limits", look_after_deadlines)
                .map_err(|error| explain("start a thread that looks after limits", error))?;
            self.runs_in = Some(here);
        }
        Ok(())
    }

    /// Adds a deadline, though nothing looks after it where this fails.
    fn add(&mut self, at: Instant, what: Weak<dyn Expire>) -> (Key, Result<()>) {
        let key = (at, self.next);
        self.next += 1;
        let place = self.place_of(key);
        self.waiting.insert(place, (key, what));
        let started = self.start();
        if place == 0 {
            CHANGED.notify_one();
        }
        (key, started)
    }

    /// Where it is or would be.
    fn place_of(&self, key: Key) -> usize {
        self.waiting.partition_point(|(other, _)| *other < key)
    }

    fn remove(&mut self, key: Key) -> Option<Weak<dyn Expire>> {
        let place = self.place_of(key);
        if self.waiting.get(place)?.0 != key {
            return None;
        }
        let gone = self.waiting.remove(place);
        if self.waiting.is_empty() {
            CHANGED.notify_one();
        }
        gone.map(|(_, what)| what)
    }

    fn take_due(&mut self) -> Vec<Arc<dyn Expire>> {
        let now = Instant::now();
        let mut due = Vec::new();
        while self.waiting.front().is_some_and(|((at, _), _)| *at <= now) {
            let first = self.waiting.pop_front();
            due.extend(first.and_then(|(_, what)| what.upgrade()));
        }
        due
    }
}

fn look_after_deadlines() {
    let mut deadlines = DEADLINES.lock();
    let mut idle_since = None;
    loop {
        let due = deadlines.take_due();
        if !due.is_empty() {
            drop(deadlines);
            expire(due);
            idle_since = None;
            deadlines = DEADLINES.lock();
            continue;
        }
        let until = match deadlines.waiting.front() {
            Some(((at, _), _)) => {
                idle_since = None;
                *at
            }
            None if deadlines.kept_by > 0 => {
                idle_since = None;
                deadlines = CHANGED.wait(deadlines);
                continue;
            }
            None => *idle_since.get_or_insert_with(Instant::now) + IDLE_TIME,
        };
        if idle_since.is_some() && until <= Instant::now() {
            deadlines.runs_in = None;
            return;
        }
        deadlines = CHANGED.wait_until(deadlines, until);
    }
}

/// Keeps the thread that looks after deadlines, so that none has to be started when one is over: by then there
/// may be no thread to be had.
pub(crate) struct Watched(());

impl Watched {
    /// None if the limits want no watching.
    ///
    /// # Errors
    /// What the system says if there is no thread to be had.
    pub(crate) fn begin(limits: &Limits) -> Result<Option<Watched>> {
        if !limits.need_watching() {
            return Ok(None);
        }
        let mut deadlines = DEADLINES.lock();
        deadlines.start()?;
        deadlines.kept_by += 1;
        Ok(Some(Watched(())))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // In a child that no handler knows of, a thread that is not there may have it.
        let Some(mut deadlines) = DEADLINES.lock_if_any() else {
            return;
        };
        deadlines.kept_by -= 1;
        if deadlines.kept_by == 0 {
            CHANGED.notify_one();
        }
    }
}

/// Hosts' callbacks may block, and run in another thread.
fn expire(due: Vec<Arc<dyn Expire>>) {
    let complete = |delivery: &mut Delivery| due.into_iter().for_each(|one| one.expire(delivery));
    Delivery::as_one_task(complete, |task: Task| {
        let task = Arc::new(Mutex::new(Some(task)));
        let thread = Arc::clone(&task);
        let run = |task: &Mutex<Option<Task>>| {
            let task = task.lock().take();
            task.into_iter().for_each(|task| task());
        };
        if sys::spawn("jitmem-answers", move || run(&thread)).is_err() {
            run(&task);
        }
    });
}

/// A completion that may be answered early.
pub(crate) struct Early<T> {
    state: Mutex<State<T>>,
    deadline: Option<Deadline>,
    /// By which the host says where its callbacks run, if not in threads of ours.
    transport: Option<Arc<dyn Transport>>,
}

enum State<T> {
    /// With what is to be done if it is given up.
    Waiting(Completion<T>, Option<Task>),
    Answered,
    GivenUp,
}

impl<T: Send + 'static> Early<T> {
    fn new(
        done: Completion<T>,
        deadline: Option<Deadline>,
        transport: Option<Arc<dyn Transport>>,
    ) -> Arc<Early<T>> {
        Arc::new(Early {
            state: Mutex::new(State::Waiting(done, None)),
            deadline,
            transport,
        })
    }

    /// The completion for the side that answers. An answer that comes later than the early one goes to `late`.
    fn completion(
        self: Arc<Self>,
        late: impl FnOnce(Result<T>, &mut Delivery) + Send + 'static,
    ) -> Completion<T> {
        let key = self.deadline.map(|deadline| {
            let weak: Weak<Self> = Arc::downgrade(&self);
            let (key, watched) = DEADLINES.lock().add(deadline.at, weak);
            if let Err(error) = watched {
                self.give_up(|| error, &mut Delivery::Inline);
            }
            key
        });
        Completion::with_delivery(move |answer, delivery| {
            if let Some(key) = key {
                let gone = DEADLINES.lock().remove(key);
                drop(gone);
            }
            let state = {
                let mut state = self.state.lock();
                let end = match &*state {
                    State::GivenUp => State::GivenUp,
                    _ => State::Answered,
                };
                std::mem::replace(&mut *state, end)
            };
            match state {
                State::Waiting(done, _) => {
                    // What the callback frees has no other holder here.
                    drop(late);
                    done.complete_with(answer, delivery);
                }
                State::Answered | State::GivenUp => late(answer, delivery),
            }
        })
    }

    /// Answers, unless that was done; whether it was not.
    fn give_up(&self, error: impl FnOnce() -> Error, delivery: &mut Delivery) -> bool {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::GivenUp) {
            State::Waiting(done, given_up) => {
                drop(state);
                // It may drop the transport, which takes a while.
                given_up.into_iter().for_each(|task| delivery.run(task));
                done.complete_with(Err(error()), delivery);
                true
            }
            other => {
                *state = other;
                false
            }
        }
    }

    /// Has something done if it is given up, or was.
    fn when_given_up(&self, task: Task) {
        let mut state = self.state.lock();
        match &mut *state {
            State::Waiting(_, given_up) => *given_up = Some(task),
            State::Answered => {}
            State::GivenUp => {
                drop(state);
                task();
            }
        }
    }
}

impl<T: Send + 'static> Expire for Early<T> {
    fn expire(self: Arc<Self>, delivery: &mut Delivery) {
        let Some(deadline) = self.deadline else {
            return;
        };
        let Some(transport) = self.transport.clone() else {
            self.give_up(|| deadline.error(), delivery);
            return;
        };
        // It may run them in the thread that hands them over, which the one for deadlines can't be.
        delivery.run(move || {
            let answer = |delivery: &mut Delivery| {
                self.give_up(|| deadline.error(), delivery);
            };
            Delivery::as_one_task(answer, |task| transport.dispatch(task));
        });
    }
}

/// `done`, answered with an error when the deadline is over. The answer that comes later goes to `late`.
pub(crate) fn limited<T: Send + 'static>(
    done: Completion<T>,
    deadline: Deadline,
    transport: Option<Arc<dyn Transport>>,
    late: impl FnOnce(Result<T>, &mut Delivery) + Send + 'static,
) -> Completion<T> {
    Early::new(done, Some(deadline), transport).completion(late)
}

/// A call of a wrapper function that is under way. Dropping it changes nothing.
#[derive(Clone)]
pub struct Call(Arc<Early<Vec<u8>>>, OwnerProcess);

impl Call {
    /// A call that was not made yet.
    pub(crate) fn new(deadline: Option<Deadline>, done: Completion<Vec<u8>>) -> Call {
        Call(Early::new(done, deadline, None), OwnerProcess::current())
    }

    pub(crate) fn start(&self, transport: &Arc<dyn Transport>, function: u64, args: Vec<u8>) {
        self.start_with(transport, function, args, None, u64::MAX);
    }

    /// [`Transport::start_with`], or without a descriptor [`Transport::start_bounded`].
    pub(crate) fn start_with(
        &self,
        transport: &Arc<dyn Transport>,
        function: u64,
        args: Vec<u8>,
        descriptor: Option<OwnedFd>,
        most: u64,
    ) {
        let executor = transport.executor();
        // Of a transport that forgets no calls.
        let late = |answer: Result<Vec<u8>>, _: &mut Delivery| {
            if let (Some(executor), Ok(_)) = (executor, answer) {
                executor.dropped_late();
            }
        };
        let done = Arc::clone(&self.0).completion(late);
        // It could not be watched, and is not made: the host may make it again.
        if matches!(&*self.0.state.lock(), State::GivenUp) {
            return;
        }
        let number = match descriptor {
            None => transport.start_bounded(function, args, most, done),
            Some(descriptor) => transport.start_with(function, args, descriptor, most, done),
        };
        if let Some(number) = number {
            let transport = Arc::downgrade(transport);
            self.0.when_given_up(Box::new(move || {
                if let Some(transport) = transport.upgrade() {
                    transport.forget(number);
                }
            }));
        }
    }

    /// Answers the call with [`Status::Cancelled`], in this thread, unless it has been answered; whether it
    /// had not. The executor is not told, and goes on with it; what it answers is dropped.
    pub fn cancel(&self) -> bool {
        let error = || {
            Error::new(
                Status::Cancelled,
                "the host has cancelled the call; the executor may still be doing it",
            )
        };
        self.owner().is_current() && self.0.give_up(error, &mut Delivery::Inline)
    }

    /// Answers the call with an error, in this thread, unless it has been answered.
    pub(crate) fn end(&self, error: Error) {
        self.0.give_up(|| error, &mut Delivery::Inline);
    }

    /// The process that has made the call. What it holds may be locked in a child.
    fn owner(&self) -> OwnerProcess {
        self.1
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").finish_non_exhaustive()
    }
}

/// Something that is to be done at a time, unless this is dropped before.
pub(crate) struct Timer {
    key: Key,
    _then: Arc<Then>,
}

type Told = Box<dyn FnOnce(Error) + Send>;

struct Then {
    deadline: Deadline,
    then: Mutex<Option<Told>>,
}

impl Expire for Then {
    fn expire(self: Arc<Self>, delivery: &mut Delivery) {
        let then = self.then.lock().take();
        let error = self.deadline.error();
        // It may answer hosts.
        if let Some(then) = then {
            delivery.run(move || then(error));
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let gone = DEADLINES
            .lock_if_any()
            .map(|mut deadlines| deadlines.remove(self.key));
        drop(gone);
    }
}

/// Has something done at a time.
pub(crate) fn at(deadline: Deadline, then: impl FnOnce(Error) + Send + 'static) -> Timer {
    let then = Arc::new(Then {
        deadline,
        then: Mutex::new(Some(Box::new(then))),
    });
    let weak: Weak<Then> = Arc::downgrade(&then);
    // Where no thread is to be had, the next deadline tries again; connections that have limits keep one.
    let (key, _) = DEADLINES.lock().add(deadline.at, weak);
    Timer { key, _then: then }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fault::Faults;
    use crate::transport::wait_for_call;
    use std::sync::mpsc::channel;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_millis(5), "code").unwrap()
    }

    fn distant() -> Deadline {
        Deadline::after(Duration::from_secs(3600), "code").unwrap()
    }

    #[test]
    fn deadlines_are_met_in_their_order_and_late_answers_go_elsewhere() {
        let (sender, answers) = channel();
        let (late_sender, late) = channel();
        let mut kept = Vec::new();
        for (number, deadline) in [(0, distant()), (1, soon()), (2, soon())] {
            let (sender, late) = (sender.clone(), late_sender.clone());
            let done = Completion::new(move |answer: Result<u32>| {
                sender
                    .send((number, answer.map_err(|error| error.status())))
                    .unwrap();
            });
            kept.push(limited(done, deadline, None, move |answer, _| {
                late.send(answer.unwrap()).unwrap();
            }));
        }
        for number in [1, 2] {
            assert_eq!(answers.recv().unwrap(), (number, Err(Status::TimedOut)));
        }
        for (number, done) in kept.into_iter().enumerate() {
            done.complete(Ok(number as u32 + 10));
        }
        assert_eq!(answers.try_recv(), Ok((0, Ok(10))));
        assert_eq!(late.try_iter().collect::<Vec<_>>(), [11, 12]);
        assert!(answers.try_recv().is_err());
    }

    #[test]
    fn callbacks_of_deadlines_may_wait_for_each_other() {
        let (first, second) = channel::<()>();
        let (sender, answers) = channel();
        let deadline = soon();
        let waits = Completion::for_host({
            let sender = sender.clone();
            move |_: Result<()>| {
                second.recv().unwrap();
                sender.send("first").unwrap();
            }
        });
        let wakes = Completion::for_host(move |_: Result<()>| {
            first.send(()).unwrap();
            sender.send("second").unwrap();
        });
        let kept = [waits, wakes].map(|done| limited(done, deadline, None, |_, _| ()));
        let mut all: Vec<_> = answers.iter().take(2).collect();
        all.sort_unstable();
        assert_eq!(all, ["first", "second"]);
        drop(kept);
    }

    #[test]
    fn an_answer_takes_its_deadline_along() {
        let done = limited(
            Completion::new(|_: Result<()>| ()),
            distant(),
            None,
            |_, _| (),
        );
        let last = |deadlines: &Deadlines| deadlines.waiting.back().map(|(key, _)| *key);
        let key = last(&DEADLINES.lock()).unwrap();
        done.complete(Ok(()));
        let deadlines = DEADLINES.lock();
        assert!(deadlines.waiting.iter().all(|(other, _)| *other != key));
    }

    #[test]
    fn limits_hold_where_no_thread_is_to_be_had() {
        let limits = Limits {
            code: Some(Duration::from_secs(1)),
            ..Limits::NONE
        };
        // Other tests have their thread here.
        assert!(sys::in_a_child(|| {
            let faults = Faults::all_after(0, libc::EAGAIN);
            // Those that wait look after their limit themselves.
            let mut call = None;
            let answer = wait_for_call(Some(soon()), |made| call = Some(made.clone()));
            assert_eq!(answer.unwrap_err().status(), Status::TimedOut);
            assert!(!call.unwrap().cancel(), "it was given up");

            let refused = Watched::begin(&limits).err().unwrap();
            assert!(refused.message().contains("looks after limits"));
            assert_eq!(faults.failed(), Some("clone"));
            let (sender, answers) = channel();
            let done = Completion::new(move |answer: Result<()>| sender.send(answer).unwrap());
            let done = limited(done, distant(), None, |_, _| ());
            let refused = answers.try_recv().unwrap().unwrap_err();
            assert!(refused.message().contains("looks after limits"));
            done.complete(Ok(()));
            drop(faults);

            // What is refused so is not done.
            struct Made;
            impl Transport for Made {
                fn call(&self, _: u64, _: Vec<u8>, _: Completion<Vec<u8>>) {
                    panic!("it was refused");
                }
            }
            let faults = Faults::all_after(0, libc::EAGAIN);
            let (sender, answers) = channel();
            let done = Completion::new(move |answer| sender.send(answer).unwrap());
            let made: Arc<dyn Transport> = Arc::new(Made);
            Call::new(Some(distant()), done).start(&made, 7, vec![]);
            assert!(answers.try_recv().unwrap().is_err());
            drop(faults);

            let kept = Watched::begin(&limits).unwrap();
            assert!(kept.is_some());
            let _faults = Faults::all_after(0, libc::EAGAIN);
            let (sender, answers) = channel();
            let done = Completion::new(move |answer: Result<()>| sender.send(answer).unwrap());
            let _done = limited(done, soon(), None, |_, _| ());
            answers.recv().unwrap().unwrap_err().status() == Status::TimedOut
        }));
    }

    #[test]
    fn what_is_to_be_done_at_a_time_is_done_unless_that_is_dropped() {
        let (sender, receiver) = channel();
        let later = {
            let sender = sender.clone();
            at(distant(), move |_| sender.send(1).unwrap())
        };
        let sooner = at(soon(), move |error| {
            assert_eq!(error.status(), Status::TimedOut);
            sender.send(2).unwrap();
        });
        assert_eq!(receiver.recv(), Ok(2));
        drop((later, sooner));
        assert!(receiver.recv().is_err());
    }
}
