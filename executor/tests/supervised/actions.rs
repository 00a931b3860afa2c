// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Actions that call the controller, or end their process, in a supervised executor.

use super::host::{COUNT, Host, graph, link, start, start_through};
use jitmem::{
    Action, AllocGroup, AllocationHandle, Dylib, EventKind, Lifetime, Manager, Observer,
    Protection, Segment, WrapperCall,
};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Of EPC's messages: a header's size, and the numbers of an answer and of a call.
const HEADER: usize = 32;
pub(crate) const RESULT: u64 = 2;
pub(crate) const CALL: u64 = 3;

/// What a finalize action answers that has succeeded.
const SUCCESS: &[u8] = &[0];

/// A call of linked code to the controller, which is to be answered.
pub(crate) struct Called {
    tag: u64,
    sequence: u64,
    executor: Arc<Mutex<UnixStream>>,
}

impl Called {
    fn answer(self, body: &[u8]) {
        let fields = [(HEADER + body.len()) as u64, RESULT, self.sequence, 0];
        let mut message = fields.map(u64::to_le_bytes).concat();
        message.extend(body);
        // An executor whose linked code has ended has no use for it.
        let _ = self.executor.lock().unwrap().write_all(&message);
    }

    /// Ends the connection on which it came.
    fn hang_up(self) {
        let executor = self.executor.lock().unwrap();
        executor.shutdown(Shutdown::Both).unwrap();
    }
}

/// One message.
fn read(from: &mut UnixStream) -> Option<Vec<u8>> {
    let mut message = vec![0; HEADER];
    from.read_exact(&mut message).ok()?;
    message.resize(field(&message, 0) as usize, 0);
    from.read_exact(&mut message[HEADER..]).ok()?;
    Some(message)
}

fn field(message: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(message[8 * index..][..8].try_into().unwrap())
}

/// Takes the calls of linked code out of what an executor says to its controller.
fn take_calls(executor: UnixStream, calls: Sender<Called>) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let copy = |socket: &UnixStream| socket.try_clone().unwrap();
    let (mut reads, mut tells) = (copy(&executor), copy(&ours));
    let writes = Arc::new(Mutex::new(executor));
    let answers = Arc::clone(&writes);
    std::thread::spawn(move || {
        while let Some(message) = read(&mut reads) {
            match field(&message, 1) {
                CALL => {
                    let called = Called {
                        tag: field(&message, 3),
                        sequence: field(&message, 2),
                        executor: Arc::clone(&answers),
                    };
                    let _ = calls.send(called);
                }
                _ => tells.write_all(&message).unwrap(),
            }
        }
        let _ = tells.shutdown(Shutdown::Both);
    });
    let mut asks = ours;
    std::thread::spawn(move || {
        while let Some(message) = read(&mut asks) {
            writes.lock().unwrap().write_all(&message).unwrap();
        }
        let _ = writes.lock().unwrap().shutdown(Shutdown::Write);
    });
    theirs
}

pub(crate) fn start_with_calls(options: &[&str]) -> (Host, Receiver<Called>) {
    let (calls, called) = channel();
    let host = start_through(options, |executor| take_calls(executor, calls));
    (host, called)
}

/// A wrapper function that answers what the controller answers.
fn calling(host: &Host, tag: u64) -> Vec<u8> {
    let symbol = |name: &str| {
        let name = format!("__llvm_orc_SimpleRemoteEPC_dispatch_{name}");
        host.transport.symbol(&name).unwrap().to_le_bytes()
    };
    [
        &[0x48, 0x89, 0xfa, 0x48, 0x89, 0xf1][..], // mov rdx, rdi; mov rcx, rsi
        &[0x48, 0xbf],
        &symbol("ctx"), // mov rdi, context
        &[0x48, 0xbe],
        &tag.to_le_bytes(), // mov rsi, tag
        &[0x48, 0xb8],
        &symbol("fn"), // mov rax, function
        &[0xff, 0xe0], // jmp rax
    ]
    .concat()
}

/// An allocation with an action whose functions are these.
pub(crate) fn acting(
    manager: &Manager,
    [finalize, dealloc]: [u64; 2],
    argument: u64,
) -> AllocationHandle {
    let segment = Segment::new(Protection::READ_EXEC, 1);
    let mut graph = manager.allocate([segment], Dylib::NONE).unwrap();
    graph.write(0, 0, &[0xc3]).unwrap();
    graph
        .finalize([action([finalize, dealloc], argument)])
        .unwrap()
}

pub(crate) fn action([finalize, dealloc]: [u64; 2], argument: u64) -> Action {
    // SAFETY: both are there, and this is deallocated before what it calls.
    let call = |function| unsafe { WrapperCall::new(function, argument.to_le_bytes().to_vec()) };
    Action {
        finalize: call(finalize),
        dealloc: call(dealloc),
    }
}

/// A number, and a function that gives it.
fn counter(manager: &Manager) -> ([u64; 2], AllocationHandle) {
    let code = Segment::new(Protection::READ_EXEC, 7);
    let data = Segment::new(Protection::READ_WRITE, 4);
    let mut graph = manager.allocate([code, data], Dylib::NONE).unwrap();
    let (start, number) = (graph.address(0), graph.address(1));
    let to = (number.wrapping_sub(start + 6) as u32).to_le_bytes();
    // mov eax, [number]; ret
    graph
        .write(0, 0, &[&[0x8b, 0x05], &to[..], &[0xc3]].concat())
        .unwrap();
    graph.write(1, 0, &[0; 4]).unwrap();
    ([start, number], graph.finalize([]).unwrap())
}

/// Copies 4 bytes: mov rax, [rdi]; mov rcx, [rdi + 8]; mov ecx, [rcx]; mov [rax], ecx; xor eax, eax; lea edx, [rax + 1];
/// ret
const COPY: &[u8] = &[
    0x48, 0x8b, 0x07, 0x48, 0x8b, 0x4f, 0x08, 0x8b, 0x09, 0x89, 0x08, 0x31, 0xc0, 0x8d, 0x50, 0x01,
    0xc3,
];

/// A function that gives a number, which a finalize action copies out of a segment that lives until then.
fn copying(manager: &Manager, copy: u64, number: i32) -> (u64, AllocationHandle) {
    let constant = AllocGroup::new(Protection::READ, Lifetime::Finalize);
    let segments = [
        Segment::new(Protection::READ_EXEC, 7),
        Segment::new(constant, 4),
        Segment::new(Protection::READ_WRITE, 4),
    ];
    let mut graph = manager.allocate(segments, Dylib::NONE).unwrap();
    let [start, from, to] = [0, 1, 2].map(|segment| graph.address(segment));
    let distance = (to.wrapping_sub(start + 6) as u32).to_le_bytes();
    // mov eax, [to]; ret
    let code = [&[0x8b, 0x05], &distance[..], &[0xc3]].concat();
    graph.write(0, 0, &code).unwrap();
    graph.write(1, 0, &number.to_le_bytes()).unwrap();
    graph.write(2, 0, &[0; 4]).unwrap();
    let args = [to, from].map(u64::to_le_bytes).concat();
    let action = Action {
        // SAFETY: it is there, and this is deallocated before it.
        finalize: unsafe { WrapperCall::new(copy, args) },
        dealloc: WrapperCall::default(),
    };
    (start, graph.finalize([action]).unwrap())
}

#[test]
fn what_lives_until_finalize_is_there_when_actions_run_again() {
    let host = start(&["--supervise"]);
    let manager = host.manager();
    let (copy, copier) = link(&manager, COPY);
    let made = [111, 222, 333].map(|number| (number, copying(&manager, copy, number)));
    for round in 0..3 {
        if round > 0 {
            host.kill_child();
        }
        for (number, (function, _)) in &made {
            assert_eq!(host.run_at_last(*function), *number, "{round}");
        }
    }
    manager
        .deallocate(made.map(|(_, (_, graph))| graph))
        .unwrap();
    manager.deallocate([copier]).unwrap();
    assert_eq!(manager.stats().live, 0);
    host.end(manager);
}

/// A message that finds the connection cut says nothing of an action.
#[test]
fn a_child_may_be_killed_at_any_time_while_many_actions_run_again() {
    const GRAPHS: usize = 3000;
    let host = start(&["--supervise=1000000/3600"]);
    let manager = host.manager();
    let (count, counting) = link(&manager, COUNT);
    let ([counted, number], counter) = counter(&manager);
    let graphs: Vec<_> = (0..GRAPHS)
        .map(|_| acting(&manager, [count, count], number))
        .collect();
    for round in 0..150 {
        host.kill_child();
        // Up to a few milliseconds, which is how long they take.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_micros(40 * round) {
            std::hint::spin_loop();
        }
    }
    assert_eq!(host.run_at_last(counted), GRAPHS as i32);
    manager.deallocate(graphs).unwrap();
    manager.deallocate([counter, counting]).unwrap();
    host.end(manager);
}

#[test]
fn an_action_that_runs_again_may_have_others_deallocated() {
    let (host, called) = start_with_calls(&["--supervise"]);
    let manager = host.manager();
    let (count, counting) = link(&manager, COUNT);
    let (call, calls) = link(&manager, &calling(&host, 1));
    let ([begun_count, begun], first) = counter(&manager);
    let ([gone_count, gone], second) = counter(&manager);
    // One message has all three again.
    let (counted, number) = graph(&manager, 7, count);
    let before = acting(&manager, [count, count], gone);
    let (answered, answers) = channel();
    let answering = std::thread::spawn(move || {
        for (round, call) in called.iter().enumerate() {
            assert_eq!(call.tag, 1);
            answered.send((round, call)).unwrap();
        }
    });
    let caller = std::thread::scope(|scope| {
        let finalize = scope.spawn(|| acting(&manager, [call, count], gone));
        let (_, call) = answers.recv().unwrap();
        call.answer(SUCCESS);
        finalize.join().unwrap()
    });
    let after = acting(&manager, [count, count], begun);
    assert_eq!(host.run(begun_count).unwrap(), 1);
    host.kill_child();
    let (round, call) = answers.recv().unwrap();
    assert_eq!(round, 1);
    // It has one that ran before the call and one that would run after it.
    manager.deallocate([before, after]).unwrap();
    call.answer(SUCCESS);
    assert_eq!(host.run_at_last(counted.runs), 1);
    // It has counted when it was finalized again and when it was deallocated.
    assert_eq!(host.run(gone_count).unwrap(), 2);
    // Neither of it has run.
    assert_eq!(host.run(begun_count).unwrap(), 0);
    manager.deallocate([caller, number]).unwrap();
    manager
        .deallocate([first, second, calls, counting])
        .unwrap();
    host.end(manager);
    answering.join().unwrap();
}

#[test]
fn a_child_that_is_killed_while_actions_run_again_is_replaced() {
    let (host, called) = start_with_calls(&["--supervise"]);
    let (told, events) = channel();
    let observer = Observer::new(move |event| {
        if let EventKind::ExecutorRestarted { restarts, .. } = event.kind {
            told.send(restarts).unwrap();
        }
    });
    let manager = host.observed(observer);
    let (count, counting) = link(&manager, COUNT);
    let (call, calls) = link(&manager, &calling(&host, 1));
    let ([_, number], counting_number) = counter(&manager);
    let (counted, before) = graph(&manager, 7, count);
    let caller = std::thread::scope(|scope| {
        let finalize = scope.spawn(|| acting(&manager, [call, count], number));
        called.recv().unwrap().answer(SUCCESS);
        finalize.join().unwrap()
    });
    let (others, after) = graph(&manager, 8, count);
    for _ in 0..3 {
        host.kill_child();
        // The action of the next one waits.
        drop(called.recv().unwrap());
    }
    host.kill_child();
    called.recv().unwrap().answer(SUCCESS);
    // That is told once all have run.
    assert_eq!(events.recv(), Ok(4));
    for runs in [counted.runs, others.runs] {
        assert_eq!(host.run(runs).unwrap(), 1);
    }
    manager.deallocate([before, caller, after]).unwrap();
    manager
        .deallocate([counting_number, calls, counting])
        .unwrap();
    host.end(manager);
}

#[test]
fn a_child_ends_by_itself_when_the_controller_goes_while_actions_run_again() {
    let (mut host, called) = start_with_calls(&["--supervise"]);
    let manager = host.manager();
    let (count, counting) = link(&manager, COUNT);
    let (call, calls) = link(&manager, &calling(&host, 1));
    let ([_, number], counting_number) = counter(&manager);
    let caller = std::thread::scope(|scope| {
        let finalize = scope.spawn(|| acting(&manager, [call, count], number));
        called.recv().unwrap().answer(SUCCESS);
        finalize.join().unwrap()
    });
    host.kill_child();
    called.recv().unwrap().hang_up();
    assert_eq!(host.process.wait().unwrap().code(), Some(0));
    drop((counting, calls, counting_number, caller, manager));
}

/// getpid, kill(it, SIGKILL)
pub(crate) const KILLED: &[u8] = &[
    0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x89, 0xc7, 0xbe, 9, 0, 0, 0, 0xb8, 62, 0, 0, 0, 0x0f, 0x05,
    0xc3,
];

#[test]
fn what_is_being_finalized_fails_with_what_has_ended_the_child() {
    let host = start(&["--supervise"]);
    let manager = host.manager();
    let (count, counting) = link(&manager, COUNT);
    let (killed, killing) = link(&manager, KILLED);
    let ([_, number], counting_number) = counter(&manager);
    let (counted, before) = graph(&manager, 7, count);
    for _ in 0..3 {
        let segment = Segment::new(Protection::READ_EXEC, 1);
        let mut code = manager.allocate([segment], Dylib::NONE).unwrap();
        code.write(0, 0, &[0xc3]).unwrap();
        let error = code
            .finalize([action([killed, count], number)])
            .unwrap_err();
        assert!(error.message().contains("killed by signal 9"), "{error}");
        // What is not finalized does not run again.
        assert_eq!(host.run(counted.runs).unwrap(), 1);
    }
    assert_eq!(manager.stats().finalized, 4);
    // One that ends the child when it goes is gone with it.
    let ends = acting(&manager, [count, killed], number);
    manager.deallocate([ends]).unwrap();
    assert_eq!(host.run_at_last(counted.runs), 1);
    manager.deallocate([before]).unwrap();
    manager
        .deallocate([counting_number, killing, counting])
        .unwrap();
    host.end(manager);
}
