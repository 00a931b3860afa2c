// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A host in Rust whose linked code crashes in a supervised executor. Another process takes the place of the one that has
//! ended: at the same addresses, with data as it was finalized.

#![cfg(target_arch = "x86_64")]

mod actions;
mod attacks;
mod host;

use host::{COUNT, CRASH, Graph, RUN, becomes, beyond, graph, link, start};
use jitmem::mapper::ExecutorService;
use jitmem::transport;
use jitmem::{AllocationHandle, Completion, EventKind, Manager, Mapper, Observer, Options};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

const GRAPHS: usize = 2000;

/// How often the child is killed.
fn restarts() -> usize {
    let chosen = std::env::var("JITMEM_TEST_RESTARTS");
    chosen.map_or(20, |count| count.parse().unwrap())
}

#[test]
fn a_child_that_is_killed_is_replaced_with_all_that_is_linked() {
    let restarts = restarts();
    let host = start(&[&format!("--supervise={}/3600", restarts + 2)]);
    let manager = host.manager();
    let (count, counter) = link(&manager, COUNT);
    let (graphs, mut allocations): (Vec<Graph>, Vec<AllocationHandle>) = (0..GRAPHS)
        .map(|number| graph(&manager, number as i32, count))
        .unzip();
    assert_eq!(host.run(graphs[7].value).unwrap(), 7);
    assert_eq!(host.run(graphs[7].value).unwrap(), 8);
    // Once there was another one, all is there that a restart makes once.
    host.kill_child();
    assert_eq!(host.run_at_last(graphs[7].value), 7);
    let messages = manager.stats().messages;
    let (descriptors, mapped) = (host.descriptors(), host.mapped());
    let anonymous = host.stacks_and_heaps();
    let mut times: Vec<Duration> = Vec::new();
    for round in 0..restarts {
        let killed = host.kill_child();
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
    let now = manager.stats().messages;
    assert_eq!(now, messages, "no message goes for a restart");
    // What the first of them had was perhaps still there when that was looked at.
    let none = Vec::<String>::new();
    becomes(&none, || beyond(host.descriptors(), &descriptors));
    becomes(&none, || beyond(host.mapped(), &mapped));
    // Of threads that have ended the C library keeps stack and guard, heap and what that grows into; four more may
    // have been there at a time than before.
    let now = host.stacks_and_heaps();
    assert!(now <= anonymous + 4 * 4, "{now} after {anonymous}");
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
        host.observed(observer)
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
fn a_library_that_could_not_be_loaded_would_be_in_any_child() {
    let host = start(&["--supervise"]);
    let manager = host.manager();
    let (seven, code) = link(&manager, &[0xb8, 7, 0, 0, 0, 0xc3]);
    let symbol = |name: &str| {
        let name = format!("__llvm_orc_SimpleExecutorDylibManager_{name}");
        host.transport.symbol(&name).unwrap()
    };
    let path = b"/nowhere/libnone.so";
    let args = [
        &symbol("Instance").to_le_bytes()[..],
        &(path.len() as u64).to_le_bytes(),
        path,
        &0u64.to_le_bytes(),
    ]
    .concat();
    let (tell, told) = channel();
    let done = Completion::new(move |answer| tell.send(answer).unwrap());
    let _call = transport::start(&host.transport, symbol("open_wrapper"), args, None, done);
    assert_eq!(told.recv().unwrap().unwrap()[0], 0);
    host.kill_child();
    assert_eq!(host.run_at_last(seven), 7);
    manager.deallocate([code]).unwrap();
    host.end(manager);
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
fn a_session_that_is_refused_costs_no_child() {
    let host = start(&["--supervise"]);
    let manager = host.manager();
    let (seven, code) = link(&manager, &[0xb8, 7, 0, 0, 0, 0xc3]);
    let child = host.child();
    let unknown = ExecutorService {
        instance: Some(999),
        ..ExecutorService::default()
    };
    let error = Mapper::shared(Arc::clone(&host.transport), unknown).map(drop);
    assert!(error.unwrap_err().message().contains("no service 999"));
    let second = host.manager();
    let (_, last) = link(&second, &[0xc3]);
    assert_eq!(host.run(seven).unwrap(), 7);
    assert_eq!(host.child(), child);
    assert_eq!(manager.stats().executor_restarts, 0);
    second.deallocate([last]).unwrap();
    drop(second);
    manager.deallocate([code]).unwrap();
    host.end(manager);
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

/// exit_group(3)
const EXIT: &[u8] = &[0xbf, 3, 0, 0, 0, 0xb8, 231, 0, 0, 0, 0x0f, 0x05];

#[test]
fn a_child_that_exits_or_runs_too_long_is_replaced() {
    let host = start(&["--supervise", "--time-limit=1"]);
    let manager = host.manager();
    let (exit, exiting) = link(&manager, EXIT);
    let (forever, looping) = link(&manager, &[0xeb, 0xfe]);
    let (seven, last) = link(&manager, &[0xb8, 7, 0, 0, 0, 0xc3]);
    for (function, why) in [
        (exit, "has exited with code 3"),
        (forever, "time limit: the program of call"),
    ] {
        let error = host.run(function).unwrap_err();
        assert!(error.message().contains(why), "{error}");
        assert_eq!(host.run(seven).unwrap(), 7);
    }
    manager.deallocate([exiting, looping, last]).unwrap();
    host.end(manager);
}
