// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A host in Rust whose code crashes, loops, takes memory, writes code and floods its output, one after the other, in
//! executors that bound it. After each the host links a function and gets its answer.

#![cfg(target_arch = "x86_64")]

use jitmem::mapper::ExecutorService;
use jitmem::transport::{self, Limits, Stream, Transport};
use jitmem::{Completion, Dylib, Manager, Mapper, Options, Protection, Result, Segment, Status};
use std::arch::global_asm;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

// Functions of the type int(int) that call nothing.
global_asm!(
    ".pushsection .rodata",
    "untrusted_twice: lea eax, [rdi + rdi]",
    "ret",
    "untrusted_crash: mov byte ptr [64], 1",
    "ret",
    "untrusted_loop: jmp untrusted_loop",
    // mmap(NULL, 1 MiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0)
    "untrusted_allocate: mov eax, 9",
    "xor edi, edi",
    "mov esi, 0x100000",
    "mov edx, 3",
    "mov r10d, 0x8022",
    "mov r8, -1",
    "xor r9d, r9d",
    "syscall",
    "test rax, rax",
    "jns untrusted_allocate",
    "ret",
    "untrusted_write_code: mov byte ptr [rip + untrusted_write_code], 0",
    "ret",
    // write(1, this code, 64)
    "untrusted_flood: mov eax, 1",
    "mov edi, 1",
    "lea rsi, [rip + untrusted_twice]",
    "mov edx, 64",
    "syscall",
    "jmp untrusted_flood",
    "untrusted_end:",
    ".popsection",
);

unsafe extern "C" {
    static untrusted_twice: u8;
    static untrusted_crash: u8;
    static untrusted_loop: u8;
    static untrusted_allocate: u8;
    static untrusted_write_code: u8;
    static untrusted_flood: u8;
    static untrusted_end: u8;
}

const OPTIONS: [&str; 6] = [
    "--seccomp=sealed",
    "--memory=512M",
    "--rlimit-as=2G",
    "--rlimit-core=0",
    "--time-limit=1",
    "--die-with-parent",
];

const RUN: &str = "__llvm_orc_bootstrap_run_as_int_function_wrapper";

/// A process that runs linked code, and where the functions are there.
struct Executor {
    process: Child,
    output: JoinHandle<()>,
    transport: Arc<dyn Transport>,
    manager: Manager,
    start: u64,
}

fn start() -> Executor {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_jitmem-executor"))
        .args(OPTIONS)
        .arg("filedescs=0,0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // What is not read an executor waits with.
    let mut output = process.stdout.take().unwrap();
    let output = std::thread::spawn(move || {
        let mut block = [0; 65536];
        while output.read(&mut block).is_ok_and(|size| size > 0) {}
    });
    let limits = Limits {
        code: Some(Duration::from_secs(10)),
        memory: Some(Duration::from_secs(10)),
        ..Limits::default()
    };
    let stream = Stream::connect_within(Arc::new(ours.into()), limits).unwrap();
    let transport: Arc<dyn Transport> = Arc::new(stream);
    let mapper = Mapper::shared(Arc::clone(&transport), ExecutorService::default()).unwrap();
    let manager = Manager::new(&mapper, Options::default()).unwrap();
    // SAFETY: the section's bytes, from its first label to its last.
    let code = unsafe {
        let first = &raw const untrusted_twice;
        std::slice::from_raw_parts(first, (&raw const untrusted_end).addr() - first.addr())
    };
    let segment = Segment::new(Protection::READ_EXEC, code.len() as u64);
    let mut graph = manager.allocate([segment], Dylib::NONE).unwrap();
    graph.write(0, 0, code).unwrap();
    let start = graph.address(0);
    graph.finalize([]).unwrap();
    Executor {
        process,
        output,
        transport,
        manager,
        start,
    }
}

impl Executor {
    /// Calls a function and waits, for as long as a limit says.
    fn run(&self, function: *const u8, argument: i32) -> Result<i32> {
        let offset = function.addr() - (&raw const untrusted_twice).addr();
        let address = self.start + offset as u64;
        let arguments = [&address.to_le_bytes()[..], &argument.to_le_bytes()].concat();
        let run = self.transport.symbol(RUN).unwrap();
        let (answered, answer) = channel();
        let limit = self.transport.limits().code;
        let done = Completion::new(move |answer| answered.send(answer).unwrap());
        transport::start(&self.transport, run, arguments, limit, done);
        let answer = answer.recv().unwrap()?;
        Ok(i32::from_le_bytes(answer.as_slice().try_into().unwrap()))
    }

    fn works(&self) -> bool {
        matches!(self.run(&raw const untrusted_twice, 21), Ok(42))
    }

    /// What is freed while the process is there waits for it.
    fn end(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        drop((self.manager, self.transport));
        self.output.join().unwrap();
    }
}

/// What came of a call is what it must be.
type Check = fn(Result<i32>) -> bool;

#[test]
fn a_host_goes_on_through_all_of_it() {
    let ended: Check = |answer| answer.unwrap_err().status() == Status::Disconnected;
    let timed_out: Check = |answer| answer.unwrap_err().message().contains("time limit: ");
    // An error that it sees, or the kernel ends it.
    let short: Check = |answer| match answer {
        Ok(errno) => errno == -12,
        Err(error) => error.status() == Status::Disconnected,
    };
    let attempts = [
        (&raw const untrusted_crash, ended),
        (&raw const untrusted_loop, timed_out),
        (&raw const untrusted_allocate, short),
        (&raw const untrusted_write_code, ended),
        (&raw const untrusted_flood, timed_out),
    ];
    for (number, (function, right)) in attempts.into_iter().enumerate() {
        // One that has taken its memory may have no room for a thread.
        let executor = start();
        assert!(executor.works(), "{number}");
        assert!(right(executor.run(function, 0)), "{number}");
        executor.end();
    }
}
