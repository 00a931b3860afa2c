// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Where callbacks of hosts run that follow from messages.

use super::*;
use crate::callback_queue::Task;
use crate::executor::service::Service;
use crate::lock::Condvar;
use crate::transport::Transport;
use std::sync::mpsc::{Receiver, channel};

/// A call that waits for its answer.
struct Held {
    function: u64,
    args: Vec<u8>,
    done: Completion<Vec<u8>>,
}

/// An executor in this process, which answers at once or when the test wants it, and a host that keeps
/// the tasks that it is given.
#[derive(Default)]
struct Host {
    held: Mutex<Option<Vec<Held>>>,
    changed: Condvar,
    tasks: Mutex<Vec<Task>>,
}

impl Transport for Host {
    fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        match &mut *self.held.lock() {
            Some(held) => held.push(Held {
                function,
                args,
                done,
            }),
            None => return Here.call(function, args, done),
        }
        self.changed.notify_all();
    }

    fn dispatch(&self, task: Task) {
        self.tasks.lock().push(task);
    }
}

impl Host {
    /// The next message that waits for its answer.
    fn next(&self) -> Held {
        let mut held = self.held.lock();
        loop {
            match held.as_mut().filter(|held| !held.is_empty()) {
                Some(held) => return held.remove(0),
                None => held = self.changed.wait(held),
            }
        }
    }

    /// Answers messages with items of the group commit, until `count` callbacks have run.
    fn answer(&self, count: usize, ran: &Receiver<Result<()>>) {
        let mut answered = 0;
        while answered < count {
            let Held {
                function,
                args,
                done,
            } = self.next();
            // Behind the session's number.
            let items = u64::from_le_bytes(args[8..16].try_into().unwrap()) as usize;
            Here.call(function, args, done);
            assert!(ran.try_recv().is_err(), "a callback ran before its task");
            let mut tasks = std::mem::take(&mut *self.tasks.lock());
            assert_eq!(tasks.len(), 1, "for {items} callbacks");
            tasks.pop().unwrap()();
            for _ in 0..items {
                ran.recv().unwrap().unwrap();
            }
            assert!(ran.try_recv().is_err());
            answered += items;
        }
        assert_eq!(answered, count);
    }
}

#[test]
fn callbacks_that_follow_from_one_message_are_one_task() {
    const COUNT: usize = 40;
    let (host, service) = (Arc::new(Host::default()), Service::new());
    let mapper = ServiceMapper::remote(host.clone(), OPEN, service.instance()).unwrap();
    let manager = Manager::new(&Mapper::new(mapper), Options::default()).unwrap();
    // What goes once it has served is freed before the callback.
    let mut served = segment(64, 0, 8, Protection::READ_WRITE);
    served.group.lifetime = Lifetime::Finalize;
    let graph = [segment(64, 0, 16, Protection::READ_EXEC), served];
    let handles: Vec<u64> = (0..COUNT)
        .map(|_| allocate(&manager, &graph).unwrap().handle)
        .collect();
    let (sender, ran) = channel();
    *host.held.lock() = Some(Vec::new());
    for handle in &handles {
        let sender = sender.clone();
        let callback = move |answer: Result<u64>| sender.send(answer.map(drop)).unwrap();
        let done = Completion::for_host(callback);
        manager.core.finalize(*handle, Vec::new(), done);
    }
    host.answer(COUNT, &ran);
    for handle in handles {
        let sender = sender.clone();
        let done = Completion::for_host(move |answer| sender.send(answer).unwrap());
        manager.core.deallocate(&[handle], done);
    }
    host.answer(COUNT, &ran);
    *host.held.lock() = None;
}
