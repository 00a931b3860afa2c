// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A host in Rust whose linked code crashes in a supervised executor. Another process takes the place of the one that has
//! ended: at the same addresses, with data as it was finalized.

#![cfg(target_arch = "x86_64")]

use jitmem::mapper::ExecutorService;
use jitmem::transport::{self, Stream, Transport};
use jitmem::{
    Action, AllocationHandle, Completion, Dylib, Error, EventKind, Manager, Mapper, Observer,
    Options, Protection, Segment, WrapperCall,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const GRAPHS: usize = 2000;
const RUN: &str = "__llvm_orc_bootstrap_run_as_int_function_wrapper";

/// How often the child is killed.
fn restarts() -> usize {
    let chosen = std::env::var("JITMEM_TEST_RESTARTS");
    chosen.map_or(20, |count| count.parse().unwrap())
}

struct Host {
    process: Child,
    transport: Arc<dyn Transport>,
}

fn start(options: &[&str]) -> Host {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let process = Command::new(env!("CARGO_BIN_EXE_jitmem-executor"))
        .args(options)
        .arg("filedescs=0,0")
        .stdin(OwnedFd::from(theirs))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stream = Stream::connect(Arc::new(ours.into())).unwrap();
    let transport: Arc<dyn Transport> = Arc::new(stream);
    Host { process, transport }
}

impl Host {
    fn mapper(&self) -> Mapper {
        let service = ExecutorService::default();
        Mapper::shared(Arc::clone(&self.transport), service).unwrap()
    }

    fn manager(&self) -> Manager {
        Manager::new(&self.mapper(), Options::default()).unwrap()
    }

    /// The children of the supervisor, those that were not waited for among them.
    fn children(&self) -> BTreeSet<i32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children"));
        let all = tasks.filter_map(|task| of(task.unwrap()).ok());
        let numbers = all.flat_map(|line| {
            let numbers = line
                .split_whitespace()
                .map(|number| number.parse().unwrap());
            numbers.collect::<Vec<i32>>()
        });
        numbers.collect()
    }

    /// Kills the child and waits until it has ended.
    fn kill_child(&self) {
        for child in self.children() {
            let child = Pid::from_raw(child).unwrap();
            // One that has just ended is as good.
            let Ok(process) = pidfd_open(child, PidfdFlags::empty()) else {
                continue;
            };
            let _ = pidfd_send_signal(&process, Signal::KILL);
            poll(&mut [PollFd::new(&process, PollFlags::IN)], None).unwrap();
        }
    }

    fn count(&self, what: &str) -> usize {
        let path = format!("/proc/{}/{what}", self.process.id());
        match what {
            "fd" => fs::read_dir(path).unwrap().count(),
            _ => fs::read_to_string(path).unwrap().lines().count(),
        }
    }

    /// Has the executor run int(int).
    fn run(&self, function: u64) -> Result<i32, Error> {
        let run = self.transport.symbol(RUN).unwrap();
        let mut args = function.to_le_bytes().to_vec();
        args.extend(0i32.to_le_bytes());
        let answer = transport::call(&*self.transport, run, args)?;
        Ok(i32::from_le_bytes(answer.try_into().unwrap()))
    }

    /// The same once there is a child that does it.
    fn run_at_last(&self, function: u64) -> i32 {
        loop {
            match self.run(function) {
                Ok(answer) => return answer,
                Err(error) => assert!(error.message().contains("killed by signal 9"), "{error}"),
            }
        }
    }

    fn end(mut self, manager: Manager) {
        drop(manager);
        drop(self.transport);
        assert!(self.process.wait().unwrap().success());
    }
}

/// Code without data.
fn link(manager: &Manager, code: &[u8]) -> (u64, AllocationHandle) {
    let segment = Segment::new(Protection::READ_EXEC, code.len() as u64);
    let mut graph = manager.allocate([segment], Dylib::NONE).unwrap();
    graph.write(0, 0, code).unwrap();
    let address = graph.address(0);
    (address, graph.finalize([]).unwrap())
}

/// A wrapper function that adds 1 to the number at the address that it is given.
const COUNT: &[u8] = &[
    0x48, 0x8b, 0x07, // mov rax, [rdi]
    0xff, 0x00, // inc dword ptr [rax]
    0x31, 0xc0, 0x8d, 0x50, 0x01, 0xc3, // xor eax, eax; lea edx, [rax + 1]; ret
];

/// mov byte ptr [64], 1; ret
const CRASH: &[u8] = &[0xc6, 0x04, 0x25, 0x40, 0, 0, 0, 1, 0xc3];

/// A function that gives its number and adds 1 to it, and one that tells how often the finalize action has run.
struct Graph {
    value: u64,
    runs: u64,
}

/// Functions with data: a number that they count on, and one that the finalize action does.
fn graph(manager: &Manager, number: i32, count: u64) -> (Graph, AllocationHandle) {
    let code = Segment::new(Protection::READ_EXEC, 20);
    let mut data = Segment::new(Protection::READ_WRITE, 4);
    data.zero_fill_size = 4;
    let mut graph = manager.allocate([code, data], Dylib::NONE).unwrap();
    let (start, data) = (graph.address(0), graph.address(1));
    let to = |address: u64, end: u64| (address.wrapping_sub(start + end) as u32).to_le_bytes();
    let code: Vec<u8> = [
        &[0x8b, 0x05],
        &to(data, 6)[..], // mov eax, [number]
        &[0xff, 0x05],
        &to(data, 12), // inc dword ptr [number]
        &[0xc3],
        &[0x8b, 0x05],
        &to(data + 4, 19), // mov eax, [runs]
        &[0xc3],
    ]
    .concat();
    graph.write(0, 0, &code).unwrap();
    graph.write(1, 0, &number.to_le_bytes()).unwrap();
    // SAFETY: both are there, and this is deallocated before what it calls.
    let call = |argument: u64| unsafe { WrapperCall::new(count, argument.to_le_bytes().to_vec()) };
    let action = Action {
        finalize: call(data + 4),
        dealloc: call(data + 4),
    };
    let functions = Graph {
        value: start,
        runs: start + 13,
    };
    (functions, graph.finalize([action]).unwrap())
}

#[test]
fn a_child_that_is_killed_is_replaced_with_all_that_is_linked() {
    let restarts = restarts();
    let host = start(&[&format!("--supervise={}/3600", restarts + 1)]);
    let manager = host.manager();
    let (count, counter) = link(&manager, COUNT);
    let (graphs, mut allocations): (Vec<Graph>, Vec<AllocationHandle>) = (0..GRAPHS)
        .map(|number| graph(&manager, number as i32, count))
        .unzip();
    assert_eq!(host.run(graphs[7].value).unwrap(), 7);
    assert_eq!(host.run(graphs[7].value).unwrap(), 8);
    let there = |what| host.count(what);
    let before = (manager.stats().messages, there("fd"), there("maps"));
    let mut times: Vec<Duration> = Vec::new();
    for round in 0..restarts {
        let killed = Instant::now();
        host.kill_child();
        let number = (round * 37) % GRAPHS;
        let answer = host.run_at_last(graphs[number].value);
        times.push(killed.elapsed());
        // One that was called in the child before it was killed has counted on.
        assert_eq!(answer, number as i32, "in round {round}");
        for other in [0, number, GRAPHS - 1] {
            assert_eq!(host.run(graphs[other].runs).unwrap(), 1);
        }
    }
    for (number, graph) in graphs.iter().enumerate().skip(GRAPHS - 20) {
        let last = (restarts.saturating_sub(1) * 37) % GRAPHS;
        let expected = number + usize::from(number == last && restarts > 0);
        assert_eq!(host.run(graph.value).unwrap(), expected as i32);
    }
    assert_eq!(host.children().len(), 1);
    let after = (manager.stats().messages, there("fd"), there("maps"));
    assert_eq!(after.0, before.0, "no message goes for a restart");
    // Stacks of threads that are idle come and go.
    assert!(
        after.1 <= before.1 + 4 && after.2 <= before.2 + 16,
        "{before:?} {after:?}"
    );
    times.sort();
    let part = |part: usize| times[(times.len() - 1) * part / 100];
    println!(
        "{restarts} restarts with {GRAPHS} graphs: p50 {:?}, p99 {:?}",
        part(50),
        part(99)
    );
    // What was linked before can go, and more can be linked.
    let (more, last) = graph(&manager, 5, count);
    assert_eq!(host.run(more.value).unwrap(), 5);
    allocations.push(last);
    manager.deallocate(allocations).unwrap();
    manager.deallocate([counter]).unwrap();
    host.end(manager);
}

#[test]
fn calls_that_were_pending_are_told_what_has_ended_the_child() {
    let host = start(&["--supervise"]);
    let manager = host.manager();
    let (crash, crashing) = link(&manager, CRASH);
    let (forever, looping) = link(&manager, &[0xeb, 0xfe]);
    let (called, answers) = channel();
    let run = host.transport.symbol(RUN).unwrap();
    for _ in 0..3 {
        let mut args = forever.to_le_bytes().to_vec();
        args.extend(0i32.to_le_bytes());
        let called = called.clone();
        let done = Completion::new(move |answer| called.send(answer).unwrap());
        transport::start(&host.transport, run, args, None, done);
    }
    let error = host.run(crash).unwrap_err();
    let others = answers.iter().take(3).map(Result::unwrap_err);
    for error in others.chain([error]) {
        let message = error.message();
        assert!(
            message.contains("killed by signal 11 (SIGSEGV) at address 0x40"),
            "{error}"
        );
    }
    let (seven, last) = link(&manager, &[0xb8, 7, 0, 0, 0, 0xc3]);
    assert_eq!(host.run(seven).unwrap(), 7);
    manager.deallocate([crashing, looping, last]).unwrap();
    host.end(manager);
}

#[test]
fn managers_are_told_of_restarts() {
    let host = start(&["--supervise"]);
    // Each has a session of its own.
    let (told, events) = channel();
    let observed = || {
        let told = told.clone();
        let observer = Observer::new(move |event| {
            if let EventKind::ExecutorRestarted { restarts, why } = &event.kind {
                told.send((*restarts, why.to_string())).unwrap();
            }
        });
        let options = Options {
            observer: Some(observer),
            ..Options::default()
        };
        Manager::new(&host.mapper(), options).unwrap()
    };
    let managers = [observed(), observed()];
    let (crash, crashing) = link(&managers[0], CRASH);
    let (seven, last) = link(&managers[1], &[0xb8, 7, 0, 0, 0, 0xc3]);
    for restarts in 1..=3 {
        host.run(crash).unwrap_err();
        for (number, why) in events.iter().take(managers.len()) {
            assert_eq!(number, restarts);
            assert!(why.contains("SIGSEGV"), "{why}");
        }
        for manager in &managers {
            assert_eq!(manager.stats().executor_restarts, restarts);
        }
        assert_eq!(host.run(seven).unwrap(), 7);
    }
    let [first, second] = managers;
    first.deallocate([crashing]).unwrap();
    second.deallocate([last]).unwrap();
    drop(first);
    host.end(second);
    drop(told);
    assert_eq!(events.iter().count(), 0);
}

#[test]
fn a_child_that_ends_too_often_ends_the_executor_with_the_reason() {
    let mut host = start(&["--supervise=1/3600"]);
    let manager = host.manager();
    let (crash, crashing) = link(&manager, CRASH);
    host.run(crash).unwrap_err();
    let error = host.run(crash).unwrap_err();
    assert!(error.message().contains("SIGSEGV"), "{error}");
    assert_eq!(host.process.wait().unwrap().code(), Some(1));
    let error = host.run(crash).unwrap_err();
    assert!(
        error.message().contains("have ended within 3600 s"),
        "{error}"
    );
    drop((crashing, manager));
}

#[test]
fn what_no_other_child_would_have_is_said() {
    let mut host = start(&["--supervise"]);
    let mapper = Mapper::llvm_simple(Arc::clone(&host.transport), None).unwrap();
    let manager = Manager::new(&mapper, Options::default()).unwrap();
    let (crash, crashing) = link(&manager, CRASH);
    host.run(crash).unwrap_err();
    assert_eq!(host.process.wait().unwrap().code(), Some(1));
    let error = host.run(crash).unwrap_err();
    assert!(
        error
            .message()
            .contains("memory of LLVM's own memory managers"),
        "{error}"
    );
    drop((crashing, manager));
}

#[test]
fn content_in_messages_is_refused() {
    let mut host = start(&["--supervise"]);
    let mapper = Mapper::remote(Arc::clone(&host.transport), ExecutorService::default());
    let error = mapper.map(drop).unwrap_err();
    assert!(error.message().contains("data is private"), "{error}");
    drop(host.transport);
    assert!(host.process.wait().unwrap().success());
}

#[test]
fn bounded_children_are_replaced_too() {
    let host = start(&["--supervise=5", "--seccomp=sealed", "--rlimit-core=0"]);
    let manager = host.manager();
    let (count, counter) = link(&manager, COUNT);
    let (functions, allocation) = graph(&manager, 3, count);
    for _ in 0..3 {
        assert_eq!(host.run(functions.value).unwrap(), 3);
        host.kill_child();
        assert_eq!(host.run_at_last(functions.runs), 1);
    }
    manager.deallocate([allocation]).unwrap();
    manager.deallocate([counter]).unwrap();
    host.end(manager);
}
