// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A host in Rust whose executor is stopped for a while, which is not dead: what was asked of it is
//! answered when it is continued.

#![cfg(target_arch = "x86_64")]

use jitmem::mapper::ExecutorService;
use jitmem::transport::{self, Stream, Transport};
use jitmem::{
    Action, Dylib, InFlight, Manager, Mapper, Options, Protection, Result, Segment, WrapperCall,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Of each kind.
const IN_FLIGHT: usize = 300;

/// A wrapper function that answers success: xor eax, eax; lea edx, [rax + 1]; ret.
const SUCCEED: &[u8] = &[0x31, 0xc0, 0x8d, 0x50, 0x01, 0xc3];

/// Longer than anything in the library ever waited by itself.
fn time_stopped() -> Duration {
    let chosen = std::env::var("JITMEM_TEST_STOPPED_SECONDS");
    Duration::from_secs(chosen.map_or(11, |seconds| seconds.parse().unwrap()))
}

fn start() -> (Child, Arc<dyn Transport>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let executor = Command::new(env!("CARGO_BIN_EXE_jitmem-executor"))
        .arg("filedescs=0,0")
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let stream = Stream::connect(Arc::new(ours.into())).unwrap();
    (executor, Arc::new(stream))
}

fn allocate(manager: &Manager) -> InFlight {
    let code = Segment::new(Protection::READ_EXEC, SUCCEED.len() as u64);
    let mut graph = manager.allocate([code], Dylib::NONE).unwrap();
    graph.write(0, 0, SUCCEED).unwrap();
    graph
}

fn goes_on(mapper: impl FnOnce(Arc<dyn Transport>) -> Result<Mapper>) {
    let (mut executor, transport) = start();
    let mapper = mapper(Arc::clone(&transport)).unwrap();
    let manager = Manager::new(&mapper, Options::default()).unwrap();
    let function = allocate(&manager);
    let succeed = function.address(0);
    let function = function.finalize([]).unwrap();
    let graphs: Vec<InFlight> = (0..IN_FLIGHT).map(|_| allocate(&manager)).collect();

    let process = Pid::from_child(&executor);
    kill_process(process, Signal::STOP).unwrap();
    // Until it has stopped it may still answer.
    waitpid(Some(process), WaitOptions::UNTRACED).unwrap();
    let (finalized, allocations) = channel();
    let (called, answers) = channel();
    for graph in graphs {
        // SAFETY: it is there, and is deallocated last.
        let call = || unsafe { WrapperCall::new(succeed, Vec::new()) };
        let action = Action {
            finalize: call(),
            dealloc: call(),
        };
        let finalized = finalized.clone();
        graph.finalize_async([action], move |answer| finalized.send(answer).unwrap());
        let called = called.clone();
        let done = jitmem::Completion::new(move |answer| called.send(answer).unwrap());
        transport::start(&transport, succeed, Vec::new(), None, done);
    }
    // It is the time itself that is tried.
    std::thread::sleep(time_stopped());
    assert!(allocations.try_recv().is_err() && answers.try_recv().is_err());
    kill_process(process, Signal::CONT).unwrap();
    for answer in answers.iter().take(IN_FLIGHT) {
        assert_eq!(answer.unwrap(), [0]);
    }
    let allocations = allocations.iter().take(IN_FLIGHT);
    let allocations: Vec<_> = allocations.map(|answer| answer.unwrap()).collect();
    manager.deallocate(allocations).unwrap();
    manager.deallocate([function]).unwrap();
    drop((manager, mapper, transport));
    assert!(executor.wait().unwrap().success());
}

#[test]
fn with_shared_pages() {
    goes_on(|transport| Mapper::shared(transport, ExecutorService::default()));
}

#[test]
fn with_content_in_messages() {
    goes_on(|transport| Mapper::remote(transport, ExecutorService::default()));
}

#[test]
fn with_llvms_memory_manager() {
    goes_on(|transport| Mapper::llvm_simple(transport, None));
}
