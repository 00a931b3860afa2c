// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A host in Rust: links a function in this process and in a second one, looks at the statistics, and
//! shows what an error says.
//!
//! Usage: jitmem-rust-example [path of jitmem-executor]

#![deny(unsafe_code)]

use jitmem::mapper::ExecutorService;
use jitmem::transport::{self, Stream, Transport};
use jitmem::{
    AllocGroup, AllocationHandle, Dylib, InProcessKind, Lifetime, Manager, Mapper, Options,
    Protection, Segment, Status,
};
use std::error::Error;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

/// `int add_one(int number) { return number + 1; }`, as a compiler would have written it.
#[cfg(target_arch = "x86_64")]
const ADD_ONE: &[u8] = &[0x8d, 0x47, 0x01, 0xc3];
#[cfg(target_arch = "aarch64")]
const ADD_ONE: &[u8] = &[0x00, 0x04, 0x00, 0x11, 0xc0, 0x03, 0x5f, 0xd6];
#[cfg(target_arch = "riscv64")]
const ADD_ONE: &[u8] = &[0x1b, 0x05, 0x15, 0x00, 0x67, 0x80, 0x00, 0x00];

/// LLVM's service that calls `int32_t f(int32_t)` in an executor.
const RUN: &str = "__llvm_orc_bootstrap_run_as_int_function_wrapper";

fn main() -> Result<(), Box<dyn Error>> {
    let executor = std::env::args_os().nth(1);
    in_this_process()?;
    in_a_second_process(executor.map_or_else(|| "jitmem-executor".into(), PathBuf::from))
}

/// Links the function with a table of 1,024 zeros beside it. Gives its address as well.
fn link(manager: &Manager) -> jitmem::Result<(AllocationHandle, u64)> {
    let code = Segment::new(Protection::READ_EXEC, ADD_ONE.len() as u64);
    let table = Segment::new(Protection::READ_WRITE, 0).zero_fill(4096);
    // What only a linker needs is freed when the graph is finalized.
    let scratch = AllocGroup::new(Protection::READ, Lifetime::Finalize);
    let scratch = Segment::new(scratch, 64);
    let mut graph = manager.allocate([code, table, scratch], Dylib::NONE)?;
    graph.write(0, 0, ADD_ONE)?;
    let address = graph.address(0);
    Ok((graph.finalize([])?, address))
}

fn in_this_process() -> Result<(), Box<dyn Error>> {
    let mapper = Mapper::in_process(InProcessKind::Auto)?;
    let manager = Manager::new(&mapper, Options::default())?;
    let (allocation, address) = link(&manager)?;
    let answer = call(address, 41);
    println!("{}: add_one(41) = {answer}", mapper.name());
    assert_eq!(answer, 42);
    statistics(&manager);
    manager.deallocate([allocation])?;
    errors(&manager, allocation);
    Ok(())
}

/// The one thing that is for the host to know: that a function of this type is there, and stays there
/// until it has returned.
#[allow(unsafe_code)]
fn call(address: u64, argument: i32) -> i32 {
    // SAFETY: `link` has written it, and it is deallocated after the call.
    let function: extern "C" fn(i32) -> i32 = unsafe { std::mem::transmute(address as usize) };
    function(argument)
}

fn statistics(manager: &Manager) {
    let stats = manager.stats();
    println!(
        "  {} bytes live in {} chunks of {} window, {} mappings",
        stats.live, stats.chunks, stats.windows, stats.mappings
    );
    if let Some(reason) = stats.fallback {
        println!("  not as wished: {reason}");
    }
}

fn errors(manager: &Manager, gone: AllocationHandle) {
    let error = manager.deallocate([gone]).expect_err("it is gone");
    assert_eq!(error.status(), Status::InvalidHandle);
    println!("  {error}");
    let huge = Segment::new(Protection::READ_WRITE, 0).zero_fill(3 << 30);
    let error = manager
        .allocate([huge], Dylib::NONE)
        .expect_err("windows are below 2 GiB");
    assert_eq!(error.status(), Status::WindowFull);
    println!("  {error}");
}

fn in_a_second_process(program: PathBuf) -> Result<(), Box<dyn Error>> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut executor = Command::new(&program)
        .arg("filedescs=0,0")
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .map_err(|error| format!("start {}: {error}", program.display()))?;
    let transport = Arc::new(Stream::connect(Arc::new(ours.into()))?);
    let mapper = Mapper::shared(transport.clone(), ExecutorService::default())?;
    let manager = Manager::new(&mapper, Options::default())?;
    let (allocation, address) = link(&manager)?;

    let run = transport.symbol(RUN).ok_or("the executor runs nothing")?;
    let arguments = [&address.to_le_bytes()[..], &41i32.to_le_bytes()].concat();
    let answer = transport::call(&*transport, run, arguments)?;
    let answer = i32::from_le_bytes(answer.as_slice().try_into()?);
    println!("{}: add_one(41) = {answer}", mapper.name());
    assert_eq!(answer, 42);
    statistics(&manager);

    manager.deallocate([allocation])?;
    drop((manager, mapper, transport));
    let status = executor.wait()?;
    println!("  the executor has ended: {status}");
    Ok(())
}
