// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A host in Rust with a group of executors that were started apart, without address-space randomization.

#![cfg(target_arch = "x86_64")]

use jitmem::mapper::{ExecutorService, NewExecutor};
use jitmem::transport::{Limits, Stream, Transport};
use jitmem::{
    Action, Dylib, Manager, Mapper, Options, Protection, Result, Segment, Status, WrapperCall,
};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Sleeps for 10 ms, by the system call alone, and answers success:
/// push 10000000; push 0; mov rdi, rsp; xor esi, esi; mov eax, 35; syscall; pop rax; pop rax; xor eax, eax;
/// lea edx, [rax + 1]; ret
const SLEEP: &[u8] = &[
    0x68, 0x80, 0x96, 0x98, 0x00, 0x6a, 0x00, 0x48, 0x89, 0xe7, 0x31, 0xf6, 0xb8, 35, 0, 0, 0,
    0x0f, 0x05, 0x58, 0x58, 0x31, 0xc0, 0x8d, 0x50, 0x01, 0xc3,
];
const SLEPT: Duration = Duration::from_millis(10);

struct Executor {
    process: Child,
    transport: Arc<dyn Transport>,
}

fn start(options: &[&str], limits: Limits) -> Executor {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let process = Command::new("setarch")
        .args(["-R", env!("CARGO_BIN_EXE_jitmem-executor")])
        .args(options)
        .arg("filedescs=0,0")
        // Arenas of its threads would take the place of the group's window now and then.
        .env("MALLOC_ARENA_MAX", "2")
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let stream = Stream::connect_within(Arc::new(ours.into()), limits).unwrap();
    let transport: Arc<dyn Transport> = Arc::new(stream);
    Executor { process, transport }
}

impl Executor {
    fn candidate(&self) -> NewExecutor {
        NewExecutor {
            transport: Arc::clone(&self.transport),
            service: ExecutorService::default(),
            name: None,
        }
    }

    /// It ends when its controller's side of the connection has gone.
    fn end(mut self) {
        drop(self.transport);
        assert!(self.process.wait().unwrap().success());
    }
}

fn group(executors: &[&Executor]) -> Result<Mapper> {
    Mapper::group(executors.iter().map(|one| one.candidate()), None)
}

#[test]
fn an_executor_joins_once() {
    let [first, second] = [(); 2].map(|()| start(&[], Limits::default()));
    let error = group(&[&first, &first]).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
    let says = "it is executor 1 of the group already; connect to another one";
    assert!(error.message().contains(says), "{error}");
    let mapper = group(&[&first]).unwrap();
    let manager = Manager::new(&mapper, Options::default()).unwrap();
    mapper.add_executor(second.candidate()).unwrap();
    let error = mapper.add_executor(second.candidate()).unwrap_err();
    assert!(error.message().contains("already"), "{error}");
    assert_eq!(mapper.executors().unwrap().len(), 2);
    manager
        .allocate([Segment::new(Protection::READ_EXEC, 1)], Dylib::NONE)
        .unwrap()
        .finalize([])
        .unwrap();
    drop((manager, mapper));
    first.end();
    second.end();
}

/// Each of them has its time, also where they come in one message.
#[test]
fn actions_are_not_late_together_when_an_executor_joins() {
    const GRAPHS: u32 = 60;
    let limits = Limits {
        code: Some(SLEPT * GRAPHS / 2),
        ..Limits::default()
    };
    let [first, second] = [(); 2].map(|()| start(&[], limits));
    let mapper = group(&[&first]).unwrap();
    let manager = Manager::new(&mapper, Options::default()).unwrap();
    let code = |bytes: &[u8], actions: Vec<Action>| {
        let segment = Segment::new(Protection::READ_EXEC, bytes.len() as u64);
        let mut graph = manager.allocate([segment], Dylib::NONE).unwrap();
        graph.write(0, 0, bytes).unwrap();
        let address = graph.address(0);
        graph.finalize(actions).unwrap();
        address
    };
    let sleep = code(SLEEP, Vec::new());
    for _ in 0..GRAPHS {
        let action = Action {
            // SAFETY: it is there as long as the manager is.
            finalize: unsafe { WrapperCall::new(sleep, vec![0; 8]) },
            dealloc: WrapperCall::default(),
        };
        code(&[0xc3], vec![action]);
    }
    let begun = Instant::now();
    mapper.add_executor(second.candidate()).unwrap();
    assert!(begun.elapsed() >= SLEPT * GRAPHS);
    drop((manager, mapper));
    first.end();
    second.end();
}

#[test]
fn a_supervised_executor_is_refused_with_the_reason() {
    let executor = start(&["--supervise"], Limits::default());
    let error = group(&[&executor]).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
    assert!(
        error.message().contains("start it without --supervise"),
        "{error}"
    );
    executor.end();
}
