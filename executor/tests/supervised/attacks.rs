// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Linked code that attacks its supervisor, or whose process is in the way of another's.

use super::actions::{CALL, RESULT, acting, action, start_with_calls};
use super::host::{Host, becomes, link, start, start_through};
use jitmem::{
    Completion, Dylib, Error, GrowthPolicy, Manager, Options, Protection, Segment, transport,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::Shutdown;

/// mov eax, 7; ret
const SEVEN: &[u8] = &[0xb8, 7, 0, 0, 0, 0xc3];

/// The sockets of a process: their descriptors, and what tells them apart.
fn sockets(process: i32) -> Vec<(i32, String)> {
    let folder = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let sockets = folder.filter_map(|entry| {
        let entry = entry.unwrap();
        // One that is closed meanwhile is none.
        let file = fs::read_link(entry.path()).ok()?;
        let inode = file.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        let number = entry.file_name().to_str()?.parse().unwrap();
        Some((number, inode.to_owned()))
    });
    sockets.collect()
}

const STREAM: &str = "0001";
const PACKETS: &str = "0005";

/// Its Unix sockets of a kind: one stream is its connection, and what keeps packets apart its channel.
fn sockets_of(process: i32, kind: &str) -> Vec<i32> {
    let table = fs::read_to_string(format!("/proc/{process}/net/unix")).unwrap();
    let is_one = |inode: &str| {
        table.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(4) == Some(&kind) && fields.get(6) == Some(&inode)
        })
    };
    let sockets = sockets(process).into_iter();
    let found = sockets.filter(|(_, inode)| is_one(inode));
    found.map(|(number, _)| number).collect()
}

fn supervisor(host: &Host) -> i32 {
    host.process.id().try_into().unwrap()
}

#[test]
fn a_child_has_no_socket_of_its_supervisors() {
    let host = start(&["--supervise"]);
    let manager = host.manager();
    let (seven, code) = link(&manager, SEVEN);
    for round in 0..3 {
        if round > 0 {
            host.kill_child();
        }
        assert_eq!(host.run_at_last(seven), 7);
        let name = fs::read_to_string(format!("/proc/{}/comm", host.child())).unwrap();
        assert_eq!(name, "jitmem-executor\n");
        let inodes = |process| -> BTreeSet<String> {
            let sockets = sockets(process).into_iter();
            sockets.map(|(_, inode)| inode).collect()
        };
        let (child, own) = (inodes(host.child()), inodes(supervisor(&host)));
        assert!(!child.is_empty() && !own.is_empty());
        assert!(child.is_disjoint(&own), "{child:?} and {own:?}");
    }
    manager.deallocate([code]).unwrap();
    host.end(manager);
}

/// fork, by the system call alone; what is forked waits for ever: jz 1f; ret; 1: pause; jmp 1b
const FORK: &[u8] = &[
    0xb8, 57, 0, 0, 0, 0x0f, 0x05, 0x85, 0xc0, 0x74, 1, 0xc3, 0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb,
    0xf7,
];

fn is_there(process: &Pid) -> bool {
    test_kill_process(*process).is_ok()
}

#[test]
fn what_a_child_has_forked_ends_with_it() {
    let host = start(&["--supervise"]);
    let manager = host.manager();
    let (fork, forking) = link(&manager, FORK);
    let (seven, code) = link(&manager, SEVEN);
    let forked = || Pid::from_raw(host.run(fork).unwrap()).unwrap();
    for _ in 0..3 {
        assert_eq!(host.run_at_last(seven), 7);
        let forked = [forked(), forked()];
        assert!(forked.iter().all(is_there));
        host.kill_child();
        assert_eq!(host.run_at_last(seven), 7);
        assert!(!forked.iter().any(is_there));
    }
    let last = forked();
    manager.deallocate([forking, code]).unwrap();
    host.end(manager);
    assert!(!is_there(&last));
}

/// The same, and what is forked forks another process before:
/// fork; jnz 1f; fork; 2: pause; jmp 2b; 1: ret
const FORK_TWICE: &[u8] = &[
    0xb8, 57, 0, 0, 0, 0x0f, 0x05, 0x85, 0xc0, 0x75, 0x10, 0xb8, 57, 0, 0, 0, 0x0f, 0x05, 0xb8, 34,
    0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7, 0xc3,
];

/// What a process has started, and what that has.
fn descendants(process: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).unwrap();
    let listed = threads
        .map(|thread| fs::read_to_string(thread.unwrap().path().join("children")).unwrap())
        .collect::<String>();
    let numbers = listed.split_whitespace().map(|number| number.parse());
    let children = numbers.map(|number| Pid::from_raw(number.unwrap()).unwrap());
    let with_theirs = |child| [vec![child], descendants(child)].concat();
    children.flat_map(with_theirs).collect()
}

#[test]
fn what_a_child_has_forked_ends_with_it_however_far_it_is() {
    const FORKS: usize = 20;
    let host = start(&["--supervise"]);
    let manager = host.manager();
    let (fork, forking) = link(&manager, FORK_TWICE);
    let (seven, code) = link(&manager, SEVEN);
    for _ in 0..3 {
        assert_eq!(host.run_at_last(seven), 7);
        (0..FORKS).for_each(|_| assert!(host.run(fork).unwrap() > 0));
        let child = Pid::from_raw(host.child()).unwrap();
        becomes(&(2 * FORKS), || descendants(child).len());
        let all = descendants(child);
        host.kill_child();
        assert_eq!(host.run_at_last(seven), 7);
        assert!(!all.iter().any(is_there));
    }
    manager.deallocate([forking, code]).unwrap();
    host.end(manager);
}

/// Sends a header of EPC's so many times to the descriptor that it is given, then waits for ever; -1 if it can't.
fn saying(fields: [u64; 4], times: u32) -> Vec<u8> {
    let header = fields.map(u64::to_le_bytes).concat();
    [
        &[0x53, 0xbb][..],
        &times.to_le_bytes(),               // push rbx; mov ebx, times
        &[0x48, 0x8d, 0x35, 0x2f, 0, 0, 0], // 1: lea rsi, [header]
        &[0xba, 32, 0, 0, 0, 0x41, 0xba, 0, 0x40, 0, 0], // mov edx, 32; mov r10d, MSG_NOSIGNAL
        &[0x45, 0x31, 0xc0, 0x45, 0x31, 0xc9], // xor r8d, r8d; xor r9d, r9d
        &[0xb8, 44, 0, 0, 0, 0x0f, 0x05],   // sendto
        &[0x83, 0xf8, 32, 0x75, 0x0d, 0xff, 0xcb, 0x75, 0xd8], // cmp eax, 32; jne 3f; dec ebx; jnz 1b
        &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7],          // 2: pause; jmp 2b
        &[0x83, 0xc8, 0xff, 0x5b, 0xc3],                       // 3: or eax, -1; pop rbx; ret
        &header,
    ]
    .concat()
}

/// Has the child say something to its supervisor; what becomes of it.
fn said(host: &Host, function: u64) -> Error {
    let streams = sockets_of(host.child(), STREAM);
    let answers = streams
        .iter()
        .map(|number| host.run_with(function, *number));
    // The ends of its supervisor are dead ones.
    let mut answers = answers.filter(|answer| !matches!(answer, Ok(-1)));
    answers.next().unwrap().unwrap_err()
}

#[test]
fn what_a_child_says_takes_no_more_memory_than_it_may() {
    const SIZE: u64 = 1 << 30;
    let host = start(&["--supervise", "--seccomp=sealed"]);
    let manager = host.manager();
    let (seven, code) = link(&manager, SEVEN);
    let one = "has ended: it has sent 1073741792 bytes in one message";
    let unknown = "has ended: it has answered 5, which is no call";
    for (kind, why) in [(0, one), (1, one), (RESULT, unknown), (CALL, one)] {
        assert_eq!(host.run_at_last(seven), 7);
        let (function, attack) = link(&manager, &saying([SIZE, kind, 5, 1], 1));
        let error = said(&host, function);
        assert!(error.message().contains(why), "{error}");
        assert_eq!(host.run(seven).unwrap(), 7);
        manager.deallocate([attack]).unwrap();
    }
    manager.deallocate([code]).unwrap();
    host.end(manager);
}

#[test]
fn calls_of_a_child_that_are_not_answered_are_bounded() {
    let (host, called) = start_with_calls(&["--supervise"]);
    let manager = host.manager();
    let (function, attack) = link(&manager, &saying([32, CALL, 5, 1], 70_000));
    let (seven, code) = link(&manager, SEVEN);
    let error = said(&host, function);
    let why = "65536 calls of linked code wait for the controller's answer";
    assert!(error.message().contains(why), "{error}");
    assert_eq!(called.iter().take(65_536).count(), 65_536);
    assert_eq!(host.run(seven).unwrap(), 7);
    manager.deallocate([attack, code]).unwrap();
    host.end(manager);
}

/// getpid, kill(it, SIGSTOP), then pause for ever
const STOP: &[u8] = &[
    0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x89, 0xc7, 0xbe, 19, 0, 0, 0, 0xb8, 62, 0, 0, 0, 0x0f, 0x05,
    0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7,
];

#[test]
fn a_child_that_stops_itself_ends_at_the_time_limit() {
    let host = start(&["--supervise", "--seccomp=sealed", "--time-limit=1"]);
    let manager = host.manager();
    let (stop, stopping) = link(&manager, STOP);
    let (seven, code) = link(&manager, SEVEN);
    for _ in 0..2 {
        let error = host.run(stop).unwrap_err();
        let why = "time limit: a call ran for 1 s, and its process did not end";
        assert!(error.message().contains(why), "{error}");
        assert_eq!(host.run(seven).unwrap(), 7);
    }
    manager.deallocate([stopping, code]).unwrap();
    host.end(manager);
}

#[test]
fn a_child_that_stops_itself_ends_when_the_controller_has_gone() {
    // Of 16 MiB each, with which more is left for the child than may be.
    for calls in [0, 1, 6] {
        let mut connection = None;
        let options = ["--supervise", "--seccomp=sealed", "--exit-when-orphaned=1"];
        let host = start_through(&options, |socket| {
            connection = Some(socket.try_clone().unwrap());
            socket
        });
        let manager = host.manager();
        let (stop, stopping) = link(&manager, STOP);
        let run = host.transport.symbol(super::host::RUN).unwrap();
        let mut args = stop.to_le_bytes().to_vec();
        args.extend(0i32.to_le_bytes());
        let _call = transport::start(&host.transport, run, args, None, Completion::new(drop));
        let state = format!("/proc/{}/stat", host.child());
        becomes(&true, || {
            fs::read_to_string(&state).unwrap().contains(") T ")
        });
        let mut connection = connection.unwrap();
        // More than the child has room for. When all is written the supervisor has it, or will read it.
        let args = vec![0; 16 << 20];
        for number in 0..calls {
            let header = [32 + args.len() as u64, CALL, 5 + number, run].map(u64::to_le_bytes);
            connection.write_all(&header.concat()).unwrap();
            connection.write_all(&args).unwrap();
        }
        connection.shutdown(Shutdown::Write).unwrap();
        let process = RefCell::new(host.process);
        becomes(&true, || process.borrow_mut().try_wait().unwrap().is_some());
        drop((stopping, manager));
    }
}

#[test]
fn a_session_is_opened_though_the_child_has_stopped() {
    let host = start(&["--supervise", "--time-limit=1"]);
    let manager = host.manager();
    let (seven, code) = link(&manager, SEVEN);
    let child = Pid::from_raw(host.child()).unwrap();
    kill_process(child, Signal::STOP).unwrap();
    let second = host.manager();
    let (eight, other) = link(&second, &[0xb8, 8, 0, 0, 0, 0xc3]);
    assert_eq!(host.run(seven).unwrap(), 7);
    assert_eq!(host.run(eight).unwrap(), 8);
    second.deallocate([other]).unwrap();
    drop(second);
    manager.deallocate([code]).unwrap();
    host.end(manager);
}

#[test]
fn memory_is_to_be_had_though_the_child_has_stopped() {
    const HALF: u64 = 9 << 20;
    let host = start(&["--supervise", "--time-limit=1"]);
    let options = Options {
        window_size: 2 * HALF,
        growth: GrowthPolicy::AnotherWindow,
        ..Options::default()
    };
    let manager = Manager::new(&host.mapper(), options).unwrap();
    let (seven, code) = link(&manager, SEVEN);
    let child = Pid::from_raw(host.child()).unwrap();
    kill_process(child, Signal::STOP).unwrap();
    let state = format!("/proc/{}/stat", child.as_raw_nonzero());
    becomes(&true, || {
        fs::read_to_string(&state).unwrap().contains(") T ")
    });
    // They fit no window together. No call of a function runs meanwhile.
    let allocate = |_| manager.allocate([Segment::new(Protection::READ_EXEC, HALF)], Dylib::NONE);
    let graphs: Vec<_> = (0..2).map(allocate).collect();
    for graph in &graphs {
        assert!(graph.is_ok(), "{graph:?}");
    }
    assert_eq!(host.run_at_last(seven), 7);
    assert!(!is_there(&child));
    drop(graphs);
    manager.deallocate([code]).unwrap();
    host.end(manager);
}

/// Sends nothing to the descriptor that it is given; 0 if there is another end.
const NOTHING_SENT: &[u8] = &[
    0x31, 0xf6, 0x31, 0xd2, 0x41, 0xba, 0, 0x40, 0, 0, // no bytes, MSG_NOSIGNAL
    0x45, 0x31, 0xc0, 0x45, 0x31, 0xc9, 0xb8, 44, 0, 0, 0, 0x0f, 0x05, 0xc3, // sendto; ret
];

#[test]
fn a_child_that_breaks_the_protocol_at_its_end_is_ended() {
    let mut connection = None;
    let mut host = start_through(&["--supervise", "--seccomp=sealed"], |socket| {
        connection = Some(socket.try_clone().unwrap());
        socket
    });
    let manager = host.manager();
    let (probe, probing) = link(&manager, NOTHING_SENT);
    let mut streams = sockets_of(host.child(), STREAM).into_iter();
    let stream = streams.find(|number| host.run_with(probe, *number) == Ok(0));
    // mov edi, [rdi]
    let saying = [&[0x8b, 0x3f][..], &saying([32, RESULT, 5, 0], 1)].concat();
    let (say, attack) = link(&manager, &saying);
    // xor eax, eax; lea edx, [rax + 1]; ret
    let (succeed, succeeding) = link(&manager, &[0x31, 0xc0, 0x8d, 0x50, 0x01, 0xc3]);
    let acting = acting(
        &manager,
        [succeed, say],
        stream.unwrap().try_into().unwrap(),
    );
    // The action runs when the controller has gone.
    connection.unwrap().shutdown(Shutdown::Write).unwrap();
    let process = RefCell::new(&mut host.process);
    becomes(&true, || process.borrow_mut().try_wait().unwrap().is_some());
    drop((probing, attack, succeeding, acting, manager));
}

#[test]
fn limits_that_end_a_process_are_the_childs() {
    let host = start(&["--supervise", "--rlimit-cpu=1"]);
    let manager = host.manager();
    let (forever, looping) = link(&manager, &[0xeb, 0xfe]);
    let (seven, code) = link(&manager, SEVEN);
    let of = |process: i32, file: &str| fs::read_to_string(format!("/proc/{process}/{file}"));
    let limit = |process| {
        let limits = of(process, "limits").unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max cpu time"));
        line.unwrap().split_whitespace().nth(3).unwrap().to_owned()
    };
    for _ in 0..2 {
        assert_eq!(host.run(seven).unwrap(), 7);
        let (child, own, here) = (host.child(), supervisor(&host), std::process::id() as i32);
        assert_eq!(of(child, "oom_score_adj").unwrap(), "1000\n");
        assert_eq!(limit(child), "1");
        // The kernel's choice of a process where memory is short, and what the supervisor may use.
        for process in [own, here] {
            assert_eq!(
                of(process, "oom_score_adj").unwrap(),
                of(here, "oom_score_adj").unwrap()
            );
            assert_eq!(limit(process), limit(here));
        }
        let error = host.run(forever).unwrap_err();
        assert!(error.message().contains("SIGXCPU"), "{error}");
    }
    manager.deallocate([looping, code]).unwrap();
    host.end(manager);
}

/// A wrapper function that sends bytes which lie behind it to the descriptor that it is given, and succeeds.
fn sending(bytes: &[u8]) -> Vec<u8> {
    [
        &[0x48, 0x8b, 0x3f, 0x48, 0x8d, 0x35, 0x1e, 0, 0, 0][..], // mov rdi, [rdi]; lea rsi, [bytes]
        &[0xba],
        &(bytes.len() as u32).to_le_bytes(), // mov edx, size
        &[
            0x41, 0xba, 0, 0x40, 0, 0, 0x45, 0x31, 0xc0, 0x45, 0x31, 0xc9,
        ], // flags, no address
        &[0xb8, 44, 0, 0, 0, 0x0f, 0x05],    // sendto
        &[0x31, 0xc0, 0x8d, 0x50, 0x01, 0xc3], // xor eax, eax; lea edx, [rax + 1]; ret
        bytes,
    ]
    .concat()
}

#[test]
fn a_child_whose_answer_is_none_has_not_initialized_anything() {
    let host = start(&["--supervise", "--seccomp=sealed"]);
    let manager = host.manager();
    // It answers the first call at a channel.
    let header = [33, RESULT, 0, 0].map(u64::to_le_bytes).concat();
    let (send, forging) = link(&manager, &sending(&[&header[..], &[0xff]].concat()));
    let (seven, code) = link(&manager, SEVEN);
    let segment = Segment::new(Protection::READ_EXEC, 1);
    let mut graph = manager.allocate([segment], Dylib::NONE).unwrap();
    graph.write(0, 0, &[0xc3]).unwrap();
    host.kill_child();
    assert_eq!(host.run_at_last(seven), 7);
    let child = host.child();
    let channels = sockets_of(child, PACKETS);
    let &[channel] = &channels[..] else {
        panic!("{channels:?}")
    };
    let action = action([send, send], channel.try_into().unwrap());
    let error = graph.finalize([action]).unwrap_err();
    let why = "has ended: the child has answered what is no answer; another one takes its place";
    assert!(error.message().contains(why), "{error}");
    assert_eq!(host.run(seven).unwrap(), 7);
    assert_ne!(host.child(), child);
    manager.deallocate([forging, code]).unwrap();
    host.end(manager);
}

#[test]
fn a_change_for_a_child_that_never_answers_keeps_nothing_waiting() {
    let host = start(&["--supervise", "--time-limit=1"]);
    let manager = host.manager();
    let [(seven, code), (fork, forking), (stop, stopping)] =
        [SEVEN, FORK, STOP].map(|code| link(&manager, code));
    // What holds the child's sockets once it has ended.
    let forked = Pid::from_raw(host.run(fork).unwrap()).unwrap();
    let run = host.transport.symbol(super::host::RUN).unwrap();
    let args = [&stop.to_le_bytes()[..], &0i32.to_le_bytes()].concat();
    let (tell, told) = std::sync::mpsc::channel();
    let done = Completion::new(move |answer| tell.send(answer).unwrap());
    let call = transport::start(&host.transport, run, args, None, done);
    let state = format!("/proc/{}/stat", host.child());
    becomes(&true, || {
        fs::read_to_string(&state).unwrap().contains(") T ")
    });
    // It waits for the child, which is killed by and by.
    let large = [Segment::new(Protection::READ_EXEC, 64 << 20)];
    let graph = manager.allocate(large, Dylib::NONE);
    assert!(told.recv().unwrap().is_err());
    assert_eq!(host.run_at_last(seven), 7);
    assert!(!is_there(&forked));
    drop((graph, call));
    manager.deallocate([code, forking, stopping]).unwrap();
    host.end(manager);
}

#[test]
fn a_controller_that_does_not_read_for_a_while_costs_no_child() {
    use std::io::Read;
    use std::sync::{Arc, Condvar, Mutex};
    use std::time::Duration;
    // Between the two: hands on what the executor says, unless it is told to wait.
    let paused = Arc::new((Mutex::new(false), Condvar::new()));
    let gate = Arc::clone(&paused);
    let host = start_through(&["--supervise", "--time-limit=1"], move |socket| {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (mut from, mut to) = (socket.try_clone().unwrap(), ours.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut bytes = vec![0; 4096];
            loop {
                let (paused, changed) = &*gate;
                drop(
                    changed
                        .wait_while(paused.lock().unwrap(), |paused| *paused)
                        .unwrap(),
                );
                match from.read(&mut bytes).unwrap_or(0) {
                    0 => break,
                    count => to.write_all(&bytes[..count]).unwrap(),
                }
            }
            let _ = to.shutdown(Shutdown::Write);
        });
        let (mut from, mut to) = (ours, socket);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        theirs
    });
    let manager = host.manager();
    let (seven, code) = link(&manager, SEVEN);
    assert_eq!(host.run(seven).unwrap(), 7);
    let child = host.child();
    let run = host.transport.symbol(super::host::RUN).unwrap();
    *paused.0.lock().unwrap() = true;
    let (tell, told) = std::sync::mpsc::channel();
    // More answers than the socket takes.
    const CALLS: usize = 450;
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let args = [&seven.to_le_bytes()[..], &0i32.to_le_bytes()].concat();
            let tell = tell.clone();
            let done = Completion::new(move |answer: Result<Vec<u8>, Error>| {
                tell.send(answer.is_ok()).unwrap();
            });
            transport::start(&host.transport, run, args, None, done)
        })
        .collect();
    // Nothing comes for longer than the limit, and what the supervisor adds to it.
    let mut answered = 0;
    while let Ok(answer) = told.recv_timeout(Duration::from_secs(5)) {
        answered += usize::from(answer);
    }
    assert!(answered < CALLS, "{answered}");
    *paused.0.lock().unwrap() = false;
    paused.1.notify_all();
    drop(tell);
    answered += told.iter().filter(|answer| *answer).count();
    assert_eq!(answered, CALLS);
    assert_eq!(host.child(), child);
    drop(calls);
    manager.deallocate([code]).unwrap();
    host.end(manager);
}
