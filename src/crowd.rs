// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Running many callbacks of hosts that may wait for each other.
//!
//! The answers to many requests often arrive together. Run one after the other, a callback that
//! waits for what its neighbour will do would wait for ever. So they stand in a list that one thread
//! goes through, and a watch sees to it that another thread goes on where one is stuck.

use crate::completion::Completion;
use crate::error::Result;
use crate::sys;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// A callback that has taken longer than this may be waiting for one behind it.
const TOO_LONG: Duration = Duration::from_millis(2);
/// The watch ends after so many rounds with nothing to look after.
const IDLE_ROUNDS: u32 = 50;

type Task = Box<dyn FnOnce() + Send>;

struct List {
    tasks: Mutex<VecDeque<Task>>,
}

struct Watch {
    /// Lists that are being gone through, with how many were left at the last look.
    lists: Vec<(Arc<List>, usize)>,
    /// The process in which a thread is watching; see [`sys::fork_generation`].
    on: Option<u32>,
}

static WATCH: Mutex<Watch> = Mutex::new(Watch {
    lists: Vec::new(),
    on: None,
});

/// Completes all, in order; one that blocks does not keep the others from going on.
pub(crate) fn complete_all<T: Send + 'static>(
    answered: impl IntoIterator<Item = (Completion<T>, Result<T>)>,
) {
    let task = |(done, answer): (Completion<T>, Result<T>)| -> Task {
        Box::new(move || done.complete(answer))
    };
    run_all(answered.into_iter().map(task).collect());
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
    let here = sys::fork_generation();
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
        // Each waits for the next one; the last waits for nobody.
        let done = senders.into_iter().enumerate().map(|(index, sender)| {
            let next = receivers.next();
            let finished = finished.clone();
            let done = Completion::new(move |answer: Result<usize>| {
                if let Some(next) = next {
                    next.recv().unwrap();
                }
                sender.send(()).unwrap();
                finished.send(answer.unwrap()).unwrap();
            });
            (done, Ok(index))
        });
        complete_all(done.collect::<Vec<_>>());
        first.recv().unwrap();
        let order: Vec<usize> = all.iter().take(COUNT).collect();
        assert_eq!(order, [4, 3, 2, 1, 0]);
    }

    #[test]
    fn those_that_wait_for_nobody_run_in_order_in_one_thread() {
        let (sender, receiver) = channel();
        let done = (0..100).map(|index| {
            let sender = sender.clone();
            let done = Completion::new(move |answer: Result<u32>| {
                let here = std::thread::current().id();
                sender.send((answer.unwrap(), here)).unwrap();
            });
            (done, Ok(index))
        });
        complete_all(done.collect::<Vec<_>>());
        let here = std::thread::current().id();
        for index in 0..100 {
            assert_eq!(receiver.recv().unwrap(), (index, here));
        }
    }
}
