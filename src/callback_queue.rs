// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Running callbacks of hosts, which may take long and wait for each other.
//!
//! The answers to many requests often arrive together. What jitmem itself does with them never
//! blocks and is done at once. The host's callbacks are collected meanwhile and then run where the
//! host wants them, all of a message as one task: a task each costs more than most callbacks. Run one
//! after the other, a callback that waits for what its neighbour will do would wait for ever. So they
//! stand in a list that one thread goes through, and a watch sees to it that another thread goes on
//! where one is stuck.

use crate::sys::{self, OwnerProcess};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// A callback that has taken longer than this may be waiting for one behind it.
const TOO_LONG: Duration = Duration::from_millis(2);
/// The watch ends after so many rounds with nothing to look after.
const IDLE_ROUNDS: u32 = 50;

/// Something to do once.
pub(crate) type Task = Box<dyn FnOnce() + Send>;

struct List {
    tasks: Mutex<VecDeque<Task>>,
}

struct Watch {
    /// Lists that are being gone through, with how many were left at the last look.
    lists: Vec<(Arc<List>, usize)>,
    /// The process in which a thread is watching; a forked child has no such thread.
    on: Option<OwnerProcess>,
}

static WATCH: Mutex<Watch> = Mutex::new(Watch {
    lists: Vec::new(),
    on: None,
});

thread_local! {
    /// What [`deliver`] has collected in this thread so far.
    static COLLECTED: RefCell<Option<VecDeque<Task>>> = const { RefCell::new(None) };
}

/// Runs a callback of a host's, unless it is to be collected.
pub(crate) fn run_callback(callback: impl FnOnce() + Send + 'static) {
    let mut callback = Some(callback);
    COLLECTED.with_borrow_mut(|collected| {
        if let Some(tasks) = collected {
            tasks.extend(callback.take().map(|callback| Box::new(callback) as Task));
        }
    });
    if let Some(callback) = callback {
        callback();
    }
}

/// Collects the callbacks that `body` comes to and has them run by `dispatch`, as one task.
pub(crate) fn deliver(body: impl FnOnce(), dispatch: impl FnOnce(Task)) {
    struct Collecting;
    impl Drop for Collecting {
        fn drop(&mut self) {
            COLLECTED.set(None);
        }
    }
    if COLLECTED.with_borrow(Option::is_some) {
        return body(); // whoever collects here already sees to them
    }
    COLLECTED.set(Some(VecDeque::new()));
    let collecting = Collecting;
    body();
    let tasks = COLLECTED.take().unwrap_or_default();
    drop(collecting);
    if !tasks.is_empty() {
        dispatch(Box::new(move || run_all(tasks)));
    }
}

fn run_all(mut tasks: VecDeque<Task>) {
    if tasks.len() < 2 {
        if let Some(only) = tasks.pop_front() {
            only();
        }
        return;
    }
    let list = Arc::new(List {
        tasks: Mutex::new(tasks),
    });
    watch(&list);
    list.go_through();
}

impl List {
    fn go_through(&self) {
        loop {
            let task = self.tasks.lock().pop_front();
            match task {
                Some(task) => task(),
                None => return,
            }
        }
    }
}

fn watch(list: &Arc<List>) {
    let mut watch = WATCH.lock();
    watch.lists.push((Arc::clone(list), usize::MAX));
    let here = OwnerProcess::current();
    if watch.on != Some(here) && sys::spawn("jitmem-watch", look_after).is_ok() {
        watch.on = Some(here);
    }
}

fn look_after() {
    let mut idle = 0;
    while idle < IDLE_ROUNDS {
        std::thread::park_timeout(TOO_LONG);
        let stuck: Vec<Arc<List>> = {
            let mut watch = WATCH.lock();
            watch
                .lists
                .retain(|(list, _)| !list.tasks.lock().is_empty());
            idle = if watch.lists.is_empty() { idle + 1 } else { 0 };
            if idle == IDLE_ROUNDS {
                watch.on = None;
            }
            let look = |(list, before): &mut (Arc<List>, usize)| {
                let left = list.tasks.lock().len();
                let stuck = *before == left;
                *before = left;
                stuck.then(|| Arc::clone(list))
            };
            watch.lists.iter_mut().filter_map(look).collect()
        };
        for list in stuck {
            // If there is no thread to be had, the next round tries again.
            let _ = sys::spawn("jitmem-answers", move || list.go_through());
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
        let body = || {
            // Each waits for the next one; the last waits for nobody.
            for (index, sender) in senders.into_iter().enumerate() {
                let (next, finished) = (receivers.next(), finished.clone());
                run_callback(move || {
                    if let Some(next) = next {
                        next.recv().unwrap();
                    }
                    finished.send(index).unwrap();
                    sender.send(()).unwrap();
                });
            }
        };
        deliver(body, |task| task());
        first.recv().unwrap();
        let order: Vec<usize> = all.iter().take(COUNT).collect();
        assert_eq!(order, [4, 3, 2, 1, 0]);
    }

    #[test]
    fn what_is_collected_runs_in_order_as_one_task() {
        let (sender, receiver) = channel();
        let mut tasks = Vec::new();
        let body = || {
            for index in 0..100 {
                let sender = sender.clone();
                // Nobody collects twice.
                let inner = || run_callback(move || sender.send(index).unwrap());
                deliver(inner, |_| unreachable!("the outer one dispatches"));
            }
        };
        deliver(body, |task| tasks.push(task));
        assert!(receiver.try_recv().is_err());
        assert_eq!(tasks.len(), 1);
        tasks.pop().unwrap()();
        assert_eq!(
            receiver.try_iter().collect::<Vec<_>>(),
            (0..100).collect::<Vec<_>>()
        );
        run_callback(move || sender.send(1000).unwrap());
        assert_eq!(receiver.try_recv(), Ok(1000), "nobody collects");
    }
}
