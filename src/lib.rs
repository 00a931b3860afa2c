// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! jitmem is the memory manager for JIT-linked code.
//!
//! A JIT linker asks a [`Manager`] for the memory of a link graph, writes its content, finalizes it and
//! has it run. The manager divides large reservations of a [`Mapper`] among many graphs: functions
//! share pages, and everything is in reach of 32-bit references. Every page has two views: the
//! executor's, which has its final protection from the first day, and the writer's, which is never
//! executable. So nothing is ever writable and executable at once, finalize makes no system call, and
//! the number of mappings does not grow with the number of graphs.
//!
//! # In this process
//!
//! ```
//! use jitmem::{Dylib, InProcessKind, Manager, Mapper, Options, Protection, Segment};
//!
//! // int add_one(int number) { return number + 1; }
//! #[cfg(target_arch = "x86_64")]
//! const ADD_ONE: &[u8] = &[0x8d, 0x47, 0x01, 0xc3];
//! #[cfg(target_arch = "aarch64")]
//! const ADD_ONE: &[u8] = &[0x00, 0x04, 0x00, 0x11, 0xc0, 0x03, 0x5f, 0xd6];
//! #[cfg(target_arch = "riscv64")]
//! const ADD_ONE: &[u8] = &[0x1b, 0x05, 0x15, 0x00, 0x67, 0x80, 0x00, 0x00];
//!
//! let mapper = Mapper::in_process(InProcessKind::Auto)?;
//! let manager = Manager::new(&mapper, Options::default())?;
//!
//! let code = Segment::new(Protection::READ_EXEC, ADD_ONE.len() as u64);
//! let mut graph = manager.allocate([code], Dylib::NONE)?;
//! let address = graph.address(0);
//! graph.write(0, 0, ADD_ONE)?;
//! let allocation = graph.finalize([])?;
//!
//! // SAFETY: a function of this type was just written there, and it is not deallocated yet.
//! let add_one: extern "C" fn(i32) -> i32 = unsafe { std::mem::transmute(address as usize) };
//! assert_eq!(add_one(41), 42);
//!
//! manager.deallocate([allocation])?;
//! # Ok::<(), jitmem::Error>(())
//! ```
//!
//! # In a second process
//!
//! What is linked can't harm the linker if it runs elsewhere. The second process may be
//! `jitmem-executor`, any ORC executor that has loaded libjitmem.so, or, as here, a program that serves
//! a controller itself: this one starts itself once more, and has a socket for standard input then.
//!
//! ```standalone_crate
//! use jitmem::executor::server;
//! use jitmem::mapper::ExecutorService;
//! use jitmem::transport::{self, Stream, Transport};
//! use jitmem::{Dylib, Manager, Mapper, Options, Protection, Segment};
//! use std::error::Error;
//! use std::os::fd::{AsFd, OwnedFd};
//! use std::os::unix::net::UnixStream;
//! use std::process::Command;
//! use std::sync::Arc;
//!
//! # #[cfg(target_arch = "x86_64")]
//! # const ADD_ONE: &[u8] = &[0x8d, 0x47, 0x01, 0xc3];
//! # #[cfg(target_arch = "aarch64")]
//! # const ADD_ONE: &[u8] = &[0x00, 0x04, 0x00, 0x11, 0xc0, 0x03, 0x5f, 0xd6];
//! # #[cfg(target_arch = "riscv64")]
//! # const ADD_ONE: &[u8] = &[0x1b, 0x05, 0x15, 0x00, 0x67, 0x80, 0x00, 0x00];
//! fn main() -> Result<(), Box<dyn Error>> {
//!     match std::env::var_os("EXECUTOR") {
//!         Some(_) => execute(),
//!         None => control(),
//!     }
//! }
//!
//! fn execute() -> Result<(), Box<dyn Error>> {
//!     let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
//!     let again = socket.try_clone()?;
//!     // SAFETY: this process is there to do what the controller says.
//!     Ok(unsafe { server::serve(socket, again, &server::Options::default()) }?)
//! }
//!
//! fn control() -> Result<(), Box<dyn Error>> {
//!     let (ours, theirs) = UnixStream::pair()?;
//!     let mut executor = Command::new(std::env::current_exe()?)
//!         .env("EXECUTOR", "1")
//!         .stdin(OwnedFd::from(theirs))
//!         .spawn()?;
//!     let transport = Arc::new(Stream::connect(Arc::new(ours.into()))?);
//!     let mapper = Mapper::shared(transport.clone(), ExecutorService::default())?;
//!     let manager = Manager::new(&mapper, Options::default())?;
//!
//!     let code = Segment::new(Protection::READ_EXEC, ADD_ONE.len() as u64);
//!     let mut graph = manager.allocate([code], Dylib::NONE)?;
//!     let address = graph.address(0);
//!     graph.write(0, 0, ADD_ONE)?;
//!     let allocation = graph.finalize([])?;
//!
//!     // LLVM's own service that calls a function: its address and its argument, little-endian.
//!     let run = transport.symbol("__llvm_orc_bootstrap_run_as_int_function_wrapper");
//!     let arguments = [&address.to_le_bytes()[..], &41i32.to_le_bytes()].concat();
//!     let answer = transport::call(&*transport, run.expect("every executor has it"), arguments)?;
//!     assert_eq!(answer, 42i32.to_le_bytes());
//!
//!     manager.deallocate([allocation])?;
//!     drop((manager, mapper, transport));
//!     assert!(executor.wait()?.success());
//!     Ok(())
//! }
//! ```
//!
//! # What to choose when
//!
//! | the linked code runs | mapper |
//! |---|---|
//! | in this process | [`Mapper::in_process`] |
//! | in another process on this machine, which has jitmem | [`Mapper::shared`]: no content is copied or sent |
//! | on another machine, which has jitmem | [`Mapper::remote`] |
//! | in an executor that knows nothing of jitmem | [`Mapper::llvm_shared`], [`Mapper::llvm_simple`] |
//! | anywhere else | [`Mapper::custom`] with a [`mapper::CustomMapper`] |
//!
//! A [`transport`] is the way to another process: a [`transport::Stream`] over a connected socket, or
//! the host's own. [`executor`] is the other end.
//!
//! # Errors, threads, memory
//!
//! An [`Error`] says what was done, with which value, why it failed, and what helps; its [`Status`] says
//! which kind it is. Sizes are bytes, addresses are the executor's. Everything may be used from any
//! thread. What a request would wait for is in its description; each has a form that takes a callback
//! instead, and those of the hot path one that declines to wait ([`Manager::try_allocate`]).
//!
//! # Safety
//!
//! A program without `unsafe` can't have undefined behaviour through this crate. What the crate can't
//! check is promised where it is made: a call that runs by itself ([`WrapperCall::new`]), memory that a
//! host supplies ([`mapper::Prepared::shared`], [`Mapper::llvm_shared`]), and to serve a controller
//! ([`executor::server::serve`]). To call linked code is the caller's own `unsafe`: it is to know that
//! the code is right, is finalized, and is not deallocated before it has returned.
//!
//! C and C++ have the same library: `include/jitmem.h` and `include/jitmem/orc.hpp`.

#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod tsan;

mod error;
mod lock;
mod page;

mod group;

#[allow(unsafe_code)]
mod sys;

mod memory;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod wire;
#[cfg(not(feature = "internals"))]
#[allow(unreachable_pub)]
mod wire;

mod unwind;

mod callback_queue;
mod completion;
pub mod transport;

pub mod mapper;

mod manager;

pub mod executor;

pub mod image;

// Its functions are exported to C; its declarations are public for cbindgen, which reads enumerations
// that only C uses.
#[allow(unsafe_code, unreachable_pub, dead_code)]
mod capi;

#[cfg(feature = "c-library")]
#[global_allocator]
static HEAP: Heap = Heap;

pub use completion::Completion;
pub use error::{Error, Result, Status};
pub use group::{AllocGroup, CodeHint, Lifetime, Protection};
pub use manager::{
    AllocatedSegment, Allocation, AllocationHandle, AllocationPhase, Dylib, Event, EventKind,
    ForkPolicy, GrowthPolicy, HugePages, InFlight, Label, LayoutItem, LayoutKind, Location,
    Manager, Observer, Options, SectionGroup, SectionKind, Segment, Stats, Usage, UsageBy,
    WriteScope, lookup,
};
pub use mapper::{Action, FoundBy, InProcessKind, Mapper, WrapperCall};
pub use memory::placement::{BRANCH_REACH, Placement};
pub use page::{AddressRange, Alignment};
pub use sys::heap::Heap;
