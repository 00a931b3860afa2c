// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! An executor that answers late, and limits that do not wait for it.

use super::*;
use crate::callback_queue::Task;
use crate::completion::Completion;
use crate::executor::service::Service;
use crate::sys::testing::wrapper_call;
use crate::transport::{Limits, Transport};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

type Call = Box<dyn FnOnce() + Send>;

/// An executor in this process that can be stopped, and does what it was asked when it is continued.
struct Executor {
    inner: Arc<dyn Transport>,
    kept: Mutex<Option<Vec<Call>>>,
    /// Callbacks, where the host runs them itself.
    tasks: Mutex<Option<Vec<Task>>>,
    limits: Limits,
}

impl Executor {
    fn new(inner: impl Transport + 'static, limits: Limits) -> Arc<Executor> {
        Arc::new(Executor {
            inner: Arc::new(inner),
            kept: Mutex::default(),
            tasks: Mutex::default(),
            limits,
        })
    }

    fn stop(&self) {
        *self.kept.lock() = Some(Vec::new());
    }

    /// Goes on; how many calls had come.
    fn go_on(&self) -> usize {
        let kept = self.kept.lock().take().unwrap_or_default();
        let count = kept.len();
        kept.into_iter().for_each(|call| call());
        count
    }
}

impl Transport for Executor {
    fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        let inner = Arc::clone(&self.inner);
        if let Some(kept) = &mut *self.kept.lock() {
            return kept.push(Box::new(move || inner.call(function, args, done)));
        }
        inner.call(function, args, done);
    }

    fn symbol(&self, name: &str) -> Option<u64> {
        self.inner.symbol(name)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn dispatch(&self, task: Task) {
        if let Some(tasks) = &mut *self.tasks.lock() {
            return tasks.push(task);
        }
        task();
    }
}

const BRIEF: Option<Duration> = Some(Duration::from_millis(100));
/// Long enough for what comes before the executor stops.
const SESSION: Option<Duration> = Some(Duration::from_secs(2));

fn over(limits: Limits) -> (Arc<Executor>, Service, Result<Mapper>) {
    let executor = Executor::new(Here, limits);
    let service = Service::new();
    let transport = Arc::clone(&executor) as Arc<dyn Transport>;
    let mapper = ServiceMapper::remote(transport, OPEN, service.instance());
    (executor, service, mapper.map(Mapper::new))
}

fn timed_out<T>(answer: Result<T>, name: &str) {
    let error = answer.err().expect("the executor is stopped");
    assert_eq!(error.status(), Status::TimedOut, "{error}");
    assert!(error.message().contains(name), "{error}");
}

static RUN: AtomicU64 = AtomicU64::new(0);

#[repr(C)]
struct Answer(u64, usize);

extern "C" fn count(_: *const u8, _: usize) -> Answer {
    RUN.fetch_add(1, Ordering::Relaxed);
    Answer(0, 1)
}

fn counted() -> Vec<Action> {
    let call = || wrapper_call(count as *const () as u64, vec![]);
    vec![Action {
        finalize: call(),
        dealloc: call(),
    }]
}

#[test]
fn set_up_is_limited() {
    let limits = Limits {
        set_up: BRIEF,
        ..Limits::NONE
    };
    let (executor, _service, mapper) = over(limits);
    executor.stop();
    timed_out(Manager::new(&mapper.unwrap(), Options::default()), "set_up");
    executor.go_on();
    let service = Service::new();
    executor.stop();
    let transport = Arc::clone(&executor) as Arc<dyn Transport>;
    timed_out(
        ServiceMapper::remote(transport, OPEN, service.instance()),
        "set_up",
    );
    executor.go_on();
}

#[test]
fn what_is_late_is_undone_and_its_memory_used_again_only_then() {
    let limits = Limits {
        code: BRIEF,
        memory: BRIEF,
        ..Limits::NONE
    };
    let (executor, _service, mapper) = over(limits);
    let manager = Manager::new(&mapper.unwrap(), Options::default()).unwrap();
    let first = allocate(&manager, &small_graph()).unwrap();
    let finalize = |handle| wait(|done| manager.core.finalize(handle, counted(), done));
    finalize(first.handle).unwrap();
    assert_eq!(RUN.load(Ordering::Relaxed), 1);

    let late = allocate(&manager, &small_graph()).unwrap();
    executor.stop();
    timed_out(finalize(late.handle), "code");
    // It is neither the host's any more nor free.
    let error = deallocate(&manager, &[late.handle]).unwrap_err();
    assert_eq!(error.status(), Status::InvalidHandle);
    timed_out(deallocate(&manager, &[first.handle]), "code");
    let live = manager.stats().live;
    let other = allocate(&manager, &small_graph()).unwrap();
    let known = [&first, &late].map(|one| one.segments[0].address);
    assert!(!known.contains(&other.segments[0].address));
    timed_out(finalize(other.handle), "code");
    assert!(manager.stats().live > live);
    executor.go_on();
    // The late one and the other have run, and are torn down like the first.
    while manager.stats().live > 0 {
        std::thread::yield_now();
    }
    assert_eq!(RUN.load(Ordering::Relaxed), 6);
    let again = allocate(&manager, &small_graph()).unwrap();
    finalize(again.handle).unwrap();
    deallocate(&manager, &[again.handle]).unwrap();
}

#[test]
fn hosts_are_told_where_they_want_their_callbacks() {
    let limits = Limits {
        code: BRIEF,
        ..Limits::NONE
    };
    let (executor, _service, mapper) = over(limits);
    let manager = Manager::new(&mapper.unwrap(), Options::default()).unwrap();
    let one = allocate(&manager, &small_graph()).unwrap();
    executor.stop();
    *executor.tasks.lock() = Some(Vec::new());
    let (sender, answers) = std::sync::mpsc::channel();
    let done = Completion::for_host(move |answer: Result<u64>| sender.send(answer).unwrap());
    manager
        .core
        .finalize(one.handle, vec![Action::default()], done);
    let task = loop {
        if let Some(task) = executor.tasks.lock().as_mut().and_then(Vec::pop) {
            break task;
        }
        std::thread::yield_now();
    };
    assert!(answers.try_recv().is_err());
    task();
    timed_out(answers.recv().unwrap(), "code");
    *executor.tasks.lock() = None;
    executor.go_on();
}

#[test]
fn without_limits_a_stopped_executor_answers_everything_when_it_goes_on() {
    const COUNT: usize = 600;
    let (executor, _service, mapper) = over(Limits::default());
    let manager = Manager::new(&mapper.unwrap(), Options::default()).unwrap();
    executor.stop();
    let (sender, answers) = std::sync::mpsc::channel();
    for _ in 0..COUNT {
        let sender = sender.clone();
        let handle = allocate(&manager, &small_graph()).unwrap().handle;
        let done = Completion::new(move |answer: Result<u64>| sender.send(answer).unwrap());
        manager.core.finalize(handle, vec![Action::default()], done);
    }
    assert!(answers.try_recv().is_err());
    executor.go_on();
    assert!(answers.iter().take(COUNT).all(|answer| answer.is_ok()));
}

#[test]
fn a_session_that_is_over_refuses_and_answers() {
    let limits = Limits {
        session: SESSION,
        ..Limits::NONE
    };
    let (executor, _service, mapper) = over(limits);
    let manager = Manager::new(&mapper.unwrap(), Options::default()).unwrap();
    let one = allocate(&manager, &small_graph()).unwrap();
    executor.stop();
    timed_out(
        wait(|done| {
            manager
                .core
                .finalize(one.handle, vec![Action::default()], done)
        }),
        "session",
    );
    executor.go_on();
    let other = allocate(&manager, &small_graph());
    let later = other.and_then(|it| wait(|done| manager.core.finalize(it.handle, vec![], done)));
    timed_out(later, "session");
}

#[test]
fn llvms_services_have_limits_as_well() {
    let limits = Limits {
        code: BRIEF,
        memory: BRIEF,
        ..Limits::NONE
    };
    for generation in GENERATIONS {
        let executor = Executor::new(SimpleExecutor::new(generation), limits);
        let transport = Arc::clone(&executor) as Arc<dyn Transport>;
        let mapper = Mapper::reserving(LlvmSimpleMapper::new(transport).unwrap());
        let manager = Manager::new(&mapper, Options::default()).unwrap();
        let first = allocate(&manager, &small_graph()).unwrap();
        executor.stop();
        timed_out(allocate(&manager, &small_graph()), "memory");
        let actions = vec![Action::default()];
        timed_out(
            wait(|done| manager.core.finalize(first.handle, actions, done)),
            "code",
        );
        executor.go_on();
        assert_eq!(manager.stats().live, 0);
    }
}

#[test]
fn sessions_of_llvms_services_end_as_well() {
    let limits = Limits {
        session: SESSION,
        ..Limits::NONE
    };
    for generation in GENERATIONS {
        let executor = Executor::new(SimpleExecutor::new(generation), limits);
        let transport = Arc::clone(&executor) as Arc<dyn Transport>;
        let mapper = LlvmSimpleMapper::new(transport).unwrap();
        let manager = Manager::new(&Mapper::reserving(mapper), Options::default()).unwrap();
        executor.stop();
        timed_out(allocate(&manager, &small_graph()), "session");
        executor.go_on();
        timed_out(allocate(&manager, &small_graph()), "session");
    }
}
