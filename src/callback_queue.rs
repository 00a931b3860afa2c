// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Running callbacks of hosts, which may take long and wait for each other.
//!
//! The answers to many requests often arrive in one message. What jitmem itself does with them never
//! blocks and is done at once, in the thread that read the message. A [`Delivery`] goes along with the
//! answers and keeps the host's callbacks that follow. Then these run where the host wants them, all
//! of a message as one task: a task each costs more than most callbacks.
//!
//! A callback may wait for what a later one of the same task will do. So they stand in a queue that
//! any thread can take from, and the watch thread starts another thread where one callback has not
//! returned for a while.

use crate::lock::{Condvar, Mutex};
use crate::sys::{self, AtForkStatic, Forked, OwnerProcess};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// A callback that has taken longer than this may be waiting for one behind it.
pub(crate) const TOO_LONG: Duration = Duration::from_millis(2);
/// The watch ends after so many rounds with nothing to look after.
const IDLE_ROUNDS: u32 = 50;

/// Something to do once.
pub(crate) type Task = Box<dyn FnOnce() + Send>;

/// How the callbacks of hosts are delivered that follow from an answer. It is handed on with the
/// answer, through every completion that the answer reaches.
pub(crate) enum Delivery {
    /// Each runs as soon as it is come to, in the thread that completes.
    Inline,
    /// They are kept, and run as one task afterwards.
    AsOneTask(CallbackQueue),
}

/// Callbacks in the order in which they were come to.
#[derive(Default)]
pub(crate) struct CallbackQueue(VecDeque<Task>);

impl Delivery {
    /// Hands a delivery to `complete`; `dispatch` gets all callbacks that it was given, if any, as one
    /// task.
    pub(crate) fn as_one_task(complete: impl FnOnce(&mut Delivery), dispatch: impl FnOnce(Task)) {
        let mut delivery = Delivery::AsOneTask(CallbackQueue::default());
        complete(&mut delivery);
        if let Delivery::AsOneTask(CallbackQueue(callbacks)) = delivery {
            if !callbacks.is_empty() {
                dispatch(Box::new(move || run_all(callbacks)));
            }
        }
    }

    /// Runs a callback of a host's, or keeps it.
    pub(crate) fn run(&mut self, callback: impl FnOnce() + Send + 'static) {
        match self {
            Delivery::Inline => callback(),
            Delivery::AsOneTask(CallbackQueue(callbacks)) => {
                callbacks.push_back(Box::new(callback))
            }
        }
    }
}

/// Runs callbacks, which may wait for each other. When it returns all have begun.
fn run_all(callbacks: impl IntoIterator<IntoIter = impl Callbacks>) {
    let _ = run_watched(callbacks.into_iter());
}

/// Runs callbacks, which may wait for each other, and returns when all have returned. Each is made when it is about
/// to run.
pub(crate) fn run_all_to_the_end(callbacks: impl IntoIterator<IntoIter = impl Callbacks>) {
    if let Some(task) = run_watched(callbacks.into_iter()) {
        task.wait_for_end();
    }
}

fn run_watched(callbacks: impl Callbacks) -> Option<Arc<Running>> {
    if callbacks.len() < 2 {
        callbacks.for_each(|only| only());
        return None;
    }
    let task = Arc::new(Running {
        state: Mutex::new(RunningState {
            left: Box::new(callbacks),
            under_way: 0,
        }),
        ended: Condvar::new(),
    });
    WATCH.lock().add(&task);
    task.run();
    Some(task)
}

pub(crate) trait Callbacks: ExactSizeIterator<Item = Task> + Send + 'static {}

impl<I: ExactSizeIterator<Item = Task> + Send + 'static> Callbacks for I {}

/// A task that runs.
struct Running {
    state: Mutex<RunningState>,
    ended: Condvar,
}

struct RunningState {
    /// Callbacks that have not begun.
    left: Box<dyn Callbacks>,
    /// How many have begun and not returned.
    under_way: usize,
}

/// A callback that has begun, until it has returned.
struct UnderWay<'a>(&'a Running);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.state.lock().under_way -= 1;
        self.0.ended.notify_all();
    }
}

impl Running {
    /// Runs what is left; several threads may.
    fn run(&self) {
        loop {
            let callback = {
                let mut state = self.state.lock();
                let Some(callback) = state.left.next() else {
                    return;
                };
                state.under_way += 1;
                callback
            };
            let under_way = UnderWay(self);
            callback();
            drop(under_way);
        }
    }

    fn left(&self) -> usize {
        self.state.lock().left.len()
    }

    fn wait_for_end(&self) {
        let mut state = self.state.lock();
        while state.under_way > 0 {
            state = self.ended.wait(state);
        }
    }
}

/// Looks after the tasks that are running.
struct Watch {
    tasks: Vec<Watched>,
    /// The process in which the watch thread runs; a forked child has no such thread.
    runs_in: Option<OwnerProcess>,
}

struct Watched {
    task: Arc<Running>,
    /// How many callbacks were left at the last look.
    left: Option<usize>,
}

static WATCH: AtForkStatic<Watch> = AtForkStatic::with(
    Watch {
        tasks: Vec::new(),
        runs_in: None,
    },
    Watch::forked,
);

impl Watch {
    /// A child leaves tasks alone: they are run by threads that it does not have, which may hold their
    /// locks.
    fn forked(&mut self, forked: Forked) {
        if forked.in_child {
            std::mem::forget(std::mem::take(&mut self.tasks));
        }
    }

    fn add(&mut self, task: &Arc<Running>) {
        self.tasks.push(Watched {
            task: Arc::clone(task),
            left: None,
        });
        let here = OwnerProcess::current();
        if self.runs_in != Some(here) {
            let started = sys::spawn("jitmem-watch", watch);
            // Without a thread for it the next task tries again.
            self.runs_in = started.is_ok().then_some(here);
        }
    }

    /// Forgets tasks whose callbacks have all begun, and gives those of which none has begun since
    /// the last look.
    fn look(&mut self) -> Vec<Arc<Running>> {
        self.tasks.retain(|watched| watched.task.left() > 0);
        let stuck = |watched: &mut Watched| {
            let left = Some(watched.task.left());
            let before = std::mem::replace(&mut watched.left, left);
            (before == left).then(|| Arc::clone(&watched.task))
        };
        self.tasks.iter_mut().filter_map(stuck).collect()
    }
}

/// What the watch thread does.
fn watch() {
    let mut idle = 0;
    while idle < IDLE_ROUNDS {
        std::thread::sleep(TOO_LONG);
        let stuck = {
            let mut watch = WATCH.lock();
            let stuck = watch.look();
            idle = if watch.tasks.is_empty() { idle + 1 } else { 0 };
            if idle == IDLE_ROUNDS {
                watch.runs_in = None;
            }
            stuck
        };
        for task in stuck {
            // Where no thread is to be had, the next round tries again.
            let _ = sys::spawn("jitmem-answers", move || task.run());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn callbacks_may_wait_for_those_behind_them() {
        const COUNT: usize = 5;
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..COUNT).map(|_| channel::<()>()).unzip();
        let mut receivers = receivers.into_iter();
        let first = receivers.next().unwrap();
        let (finished, all) = channel();
        let complete = |delivery: &mut Delivery| {
            // Each waits for the next one; the last one waits for none.
            for (index, sender) in senders.into_iter().enumerate() {
                let (next, finished) = (receivers.next(), finished.clone());
                delivery.run(move || {
                    if let Some(next) = next {
                        next.recv().unwrap();
                    }
                    finished.send(index).unwrap();
                    sender.send(()).unwrap();
                });
            }
        };
        Delivery::as_one_task(complete, |task| task());
        first.recv().unwrap();
        let order: Vec<usize> = all.iter().take(COUNT).collect();
        assert_eq!(order, [4, 3, 2, 1, 0]);
    }

    #[test]
    fn what_is_kept_runs_in_order_as_one_task() {
        let (sender, receiver) = channel();
        let mut tasks = Vec::new();
        let complete = |delivery: &mut Delivery| {
            for index in 0..100 {
                let sender = sender.clone();
                delivery.run(move || sender.send(index).unwrap());
            }
        };
        Delivery::as_one_task(complete, |task| tasks.push(task));
        assert!(receiver.try_recv().is_err());
        assert_eq!(tasks.len(), 1);
        tasks.pop().unwrap()();
        assert_eq!(
            receiver.try_iter().collect::<Vec<_>>(),
            (0..100).collect::<Vec<_>>()
        );
        Delivery::Inline.run(move || sender.send(1000).unwrap());
        assert_eq!(receiver.try_recv(), Ok(1000), "it runs at once");
    }

    #[test]
    fn where_no_callback_follows_there_is_no_task() {
        Delivery::as_one_task(|_| (), |_| unreachable!("nothing to run"));
    }
}
