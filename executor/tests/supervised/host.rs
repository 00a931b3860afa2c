// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A host in Rust of a supervised executor, and code that it links by hand.

use jitmem::mapper::ExecutorService;
use jitmem::transport::{self, Stream, Transport};
use jitmem::{
    Action, AllocationHandle, Completion, Dylib, Error, Manager, Mapper, Observer, Options,
    Protection, Segment, WrapperCall,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

pub(crate) const RUN: &str = "__llvm_orc_bootstrap_run_as_int_function_wrapper";

pub(crate) struct Host {
    pub(crate) process: Child,
    pub(crate) transport: Arc<dyn Transport>,
}

pub(crate) fn start(options: &[&str]) -> Host {
    start_through(options, |socket| socket)
}

/// The same with something between the executor's socket and the one that is gone on with.
pub(crate) fn start_through(
    options: &[&str],
    between: impl FnOnce(UnixStream) -> UnixStream,
) -> Host {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let process = Command::new(env!("CARGO_BIN_EXE_jitmem-executor"))
        .args(options)
        .arg("filedescs=0,0")
        .stdin(OwnedFd::from(theirs))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stream = Stream::connect(Arc::new(between(ours).into())).unwrap();
    let transport: Arc<dyn Transport> = Arc::new(stream);
    Host { process, transport }
}

/// Whether this line of /proc/PID/maps has an inode.
fn is_of_a_file(line: &str) -> bool {
    line.split_whitespace()
        .nth(4)
        .is_some_and(|inode| inode != "0")
}

/// Waits until something is as it was, where no event tells; a minute at most.
pub(crate) fn becomes<T: PartialEq + Debug>(before: &T, now: impl Fn() -> T) {
    let start = Instant::now();
    loop {
        let is = now();
        if is == *before {
            return;
        }
        let limit = Duration::from_secs(60);
        assert!(start.elapsed() < limit, "{is:?}\nafter {before:?}");
        std::thread::yield_now();
    }
}

/// What there is now beyond what was there before.
pub(crate) fn beyond(mut now: Vec<String>, before: &[String]) -> Vec<String> {
    for one in before {
        if let Some(index) = now.iter().position(|other| other == one) {
            now.swap_remove(index);
        }
    }
    now
}

impl Host {
    pub(crate) fn mapper(&self) -> Mapper {
        let service = ExecutorService::default();
        Mapper::shared(Arc::clone(&self.transport), service).unwrap()
    }

    pub(crate) fn manager(&self) -> Manager {
        Manager::new(&self.mapper(), Options::default()).unwrap()
    }

    pub(crate) fn observed(&self, observer: Observer) -> Manager {
        let options = Options {
            observer: Some(observer),
            ..Options::default()
        };
        Manager::new(&self.mapper(), options).unwrap()
    }

    /// The children of the supervisor, those that were not waited for among them.
    pub(crate) fn children(&self) -> BTreeSet<i32> {
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

    /// Kills the child and waits until it has ended. Gives when it was killed.
    pub(crate) fn kill_child(&self) -> Instant {
        let mut killed = Instant::now();
        for child in self.children() {
            let child = Pid::from_raw(child).unwrap();
            // One that has just ended is as good.
            let Ok(process) = pidfd_open(child, PidfdFlags::empty()) else {
                continue;
            };
            killed = Instant::now();
            let _ = pidfd_send_signal(&process, Signal::KILL);
            poll(&mut [PollFd::new(&process, PollFlags::IN)], None).unwrap();
        }
        killed
    }

    pub(crate) fn child(&self) -> i32 {
        let children = self.children();
        assert_eq!(children.len(), 1);
        *children.first().unwrap()
    }

    /// What its descriptors are, without the numbers of sockets.
    pub(crate) fn descriptors(&self) -> Vec<String> {
        let folder = fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap();
        // One that is closed meanwhile is none.
        let files = folder.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        let kind = |file: PathBuf| {
            let name = file.to_string_lossy();
            name.split_once(":[")
                .map_or(&*name, |(kind, _)| kind)
                .into()
        };
        let mut kinds: Vec<String> = files.map(kind).collect();
        kinds.sort();
        kinds
    }

    /// What it has mapped of files and of shared memory: addresses, access, and names.
    pub(crate) fn mapped(&self) -> Vec<String> {
        let all = self.mappings();
        let lines = all.lines().filter(|line| is_of_a_file(line));
        lines.map(str::to_owned).collect()
    }

    /// How many further mappings it has: stacks and heaps.
    pub(crate) fn stacks_and_heaps(&self) -> usize {
        let all = self.mappings();
        all.lines().filter(|line| !is_of_a_file(line)).count()
    }

    fn mappings(&self) -> String {
        fs::read_to_string(format!("/proc/{}/maps", self.process.id())).unwrap()
    }

    /// Has the executor run int(int).
    pub(crate) fn run(&self, function: u64) -> Result<i32, Error> {
        self.run_with(function, 0)
    }

    /// The same with an argument. What hangs fails after a minute.
    pub(crate) fn run_with(&self, function: u64, argument: i32) -> Result<i32, Error> {
        let run = self.transport.symbol(RUN).unwrap();
        let mut args = function.to_le_bytes().to_vec();
        args.extend(argument.to_le_bytes());
        let (tell, told) = channel();
        let done = Completion::new(move |answer| tell.send(answer).unwrap());
        let limit = Some(Duration::from_secs(60));
        let _call = transport::start(&self.transport, run, args, limit, done);
        let answer = told.recv().unwrap()?;
        Ok(i32::from_le_bytes(answer.try_into().unwrap()))
    }

    /// The same once there is a child that does it.
    pub(crate) fn run_at_last(&self, function: u64) -> i32 {
        loop {
            match self.run(function) {
                Ok(answer) => return answer,
                Err(error) => {
                    let why = error.message();
                    let replaced = why.contains("killed by signal 9") && !why.contains("no other");
                    assert!(replaced, "{error}");
                }
            }
        }
    }

    pub(crate) fn end(mut self, manager: Manager) {
        drop(manager);
        drop(self.transport);
        assert!(self.process.wait().unwrap().success());
    }
}

/// Code without data.
pub(crate) fn link(manager: &Manager, code: &[u8]) -> (u64, AllocationHandle) {
    let segment = Segment::new(Protection::READ_EXEC, code.len() as u64);
    let mut graph = manager.allocate([segment], Dylib::NONE).unwrap();
    graph.write(0, 0, code).unwrap();
    let address = graph.address(0);
    (address, graph.finalize([]).unwrap())
}

/// A wrapper function that adds 1 to the number at the address that it is given.
pub(crate) const COUNT: &[u8] = &[
    0x48, 0x8b, 0x07, // mov rax, [rdi]
    0xff, 0x00, // inc dword ptr [rax]
    0x31, 0xc0, 0x8d, 0x50, 0x01, 0xc3, // xor eax, eax; lea edx, [rax + 1]; ret
];

/// mov byte ptr [64], 1; ret
pub(crate) const CRASH: &[u8] = &[0xc6, 0x04, 0x25, 0x40, 0, 0, 0, 1, 0xc3];

/// A function that gives its number and adds 1 to it, and one that tells how often the finalize action has run.
pub(crate) struct Graph {
    pub(crate) value: u64,
    pub(crate) runs: u64,
}

/// Functions with data: a number that they count on, and one that the finalize action does.
pub(crate) fn graph(manager: &Manager, number: i32, count: u64) -> (Graph, AllocationHandle) {
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
