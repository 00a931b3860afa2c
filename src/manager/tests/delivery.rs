// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Where callbacks of hosts run that follow from messages.

use super::*;
use crate::callback_queue::Task;
use crate::executor::service::Service;
use crate::lock::Condvar;
use crate::sys::testing::wrapper_call;
use crate::transport::Transport;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
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

/// The deallocation action of what a manager leaves has run.
static ENDED: AtomicBool = AtomicBool::new(false);

/// `CWrapperFunctionResult`.
#[repr(C)]
struct Answer(u64, usize);

extern "C" fn end(_args: *const u8, _size: usize) -> Answer {
    ENDED.store(true, SeqCst);
    Answer(0, 1)
}

#[test]
fn the_answer_to_a_finalize_leaves_its_caller_the_last_holder() {
    let (host, service) = (Arc::new(Host::default()), Service::new());
    let mapper = ServiceMapper::remote(host.clone(), OPEN, service.instance()).unwrap();
    let manager = Manager::new(&Mapper::new(mapper), Options::default()).unwrap();
    let ends = Action {
        finalize: WrapperCall::default(),
        dealloc: wrapper_call(end as *const () as u64, Vec::new()),
    };
    let stays = allocate(&manager, &small_graph()).unwrap().handle;
    wait(|done| manager.core.finalize(stays, vec![ends], done)).unwrap();
    let mut served = segment(64, 0, 8, Protection::READ_WRITE);
    served.group.lifetime = Lifetime::Finalize;
    let handle = allocate(&manager, &[served]).unwrap().handle;
    *host.held.lock() = Some(Vec::new());
    // The answer's callback frees the manager, and is told of its end before it goes on.
    let last = Arc::new(Mutex::new(None));
    let holder = Arc::clone(&last);
    let (sender, ended) = channel();
    let frees = move |answer: Result<u64>| {
        answer.unwrap();
        drop(holder.lock().take());
        sender.send(ENDED.load(SeqCst)).unwrap();
    };
    manager
        .core
        .finalize(handle, Vec::new(), Completion::new(frees));
    *last.lock() = Some(manager);
    let finalizes = host.next();
    *host.held.lock() = None;
    Here.call(finalizes.function, finalizes.args, finalizes.done);
    assert!(ended.recv().unwrap());
}
