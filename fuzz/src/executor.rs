// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! An executor in this process, and the controller's end of its stream.

use jitmem::executor::program::listen_for_controllers;
use jitmem::executor::server::{Options, SetupLayout, serve};
use jitmem::wire::frame::{HEADER_SIZE, Header, Opcode, Setup, message};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{JoinHandle, spawn, yield_now};
use std::time::{Duration, Instant};

pub struct Executor {
    stream: UnixStream,
    serving: JoinHandle<jitmem::Result<()>>,
    symbols: BTreeMap<String, u64>,
    sequence: u64,
    had: Belongings,
}

/// Threads that a process has for all its sessions. Each stays for a second or two when there is nothing to do.
const OF_THE_PROCESS: [&str; 2] = ["jitmem-watch", "jitmem-limits"];

/// Descriptors, threads of sessions, and mappings of memfds of jitmem's.
pub(crate) type Belongings = (usize, usize, usize);

/// After so long what is there is told: before libFuzzer ends the process, which shows where it waits and not for what.
const TOLD_AFTER: Duration = Duration::from_secs(2);

/// What the descriptors of this process lead to, with the one that looks.
fn descriptors() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").expect("/proc/self/fd");
    let target = |path| fs::read_link(path).map(|target| target.display().to_string());
    let targets = entries.flatten().map(|entry| target(entry.path()));
    targets.map(Result::unwrap_or_default).collect()
}

/// The names of the threads that belong to sessions or to the program.
fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc/self/task");
    let names = tasks.flatten().filter_map(|task| {
        // One that has gone meanwhile has no name.
        let name = fs::read_to_string(task.path().join("comm"));
        name.ok()
    });
    let names = names.map(|name| name.trim_end().to_owned());
    names
        .filter(|name| !OF_THE_PROCESS.contains(&name.as_str()))
        .collect()
}

fn views() -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    let views = maps.lines().filter(|line| line.contains("/memfd:jitmem"));
    views.map(str::to_owned).collect()
}

pub(crate) fn belongings() -> Belongings {
    (descriptors().len(), threads().len(), views().len())
}

/// Threads are still on their way out of the kernel when what they did is done.
pub(crate) fn wait_for(had: Belongings) {
    let mut told_at = Some(Instant::now() + TOLD_AFTER);
    while belongings() != had {
        if told_at.is_some_and(|at| at < Instant::now()) {
            told_at = None;
            let (descriptors, threads, views) = (descriptors(), threads(), views());
            eprintln!("{had:?} before, and now {descriptors:?}, {threads:?}, {views:?}");
        }
        yield_now();
    }
}

impl Executor {
    pub fn start(layout: SetupLayout) -> Executor {
        Executor::with(layout, Vec::new())
    }

    /// One that knows the addresses of further functions.
    pub fn with(layout: SetupLayout, functions: Vec<u64>) -> Executor {
        // The process keeps it.
        listen_for_controllers().expect("a listener");
        let had = belongings();
        let (mut stream, theirs) = UnixStream::pair().expect("socketpair");
        let output = theirs.try_clone().expect("dup");
        let options = Options {
            layout,
            cxx_runtime: false,
            functions,
            ..Options::default()
        };
        // SAFETY: what is asked of it by address is checked by those who ask.
        let serving = spawn(move || unsafe { serve(theirs.into(), output.into(), &options) });
        let (header, body) = receive(&mut stream).expect("an executor introduces itself");
        assert_eq!(header.opcode, Opcode::Setup);
        let setup = Setup::decode(&body, layout).expect("a well-formed Setup");
        let symbols = setup.bootstrap_symbols.into_iter();
        Executor {
            stream,
            serving,
            symbols: symbols.map(|(name, value)| (name, value.0)).collect(),
            sequence: 0,
            had,
        }
    }

    /// What the executor has published under a name.
    pub fn symbol(&self, name: &str) -> u64 {
        self.symbols[name]
    }

    /// All published names and values, in order.
    pub fn symbols(&self) -> impl Iterator<Item = (&str, u64)> {
        let symbols = self.symbols.iter();
        symbols.map(|(name, value)| (name.as_str(), *value))
    }

    /// A sequence number that no other call has.
    pub fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Calls, and waits for the answer.
    pub fn call(&mut self, tag: u64, args: &[u8]) -> Vec<u8> {
        let sequence = self.next();
        self.send(&message(Opcode::CallWrapper, sequence, tag, args));
        let (header, body) = receive(&mut self.stream).expect("every call is answered");
        assert_eq!(
            (header.opcode, header.sequence, header.tag),
            (Opcode::Result, sequence, 0)
        );
        body
    }

    /// Waits for a message.
    pub fn receive(&mut self) -> (Header, Vec<u8>) {
        receive(&mut self.stream).expect("the executor has more to say")
    }

    /// Sends bytes, which the executor may not want any more.
    pub fn send(&mut self, bytes: &[u8]) {
        // What it thinks of them is found when it ends.
        let _ = self.stream.write_all(bytes);
    }

    /// Hangs up, and gives the bodies of the answers that were not waited for, by their numbers, and
    /// how the executor ended. By then nothing of it is left; whatever stays is a hang.
    pub fn end(self) -> (BTreeMap<u64, Vec<u8>>, jitmem::Result<()>) {
        self.end_with(|header| panic!("no call is expected: {header:?}"))
    }

    /// [`Executor::end`] where linked code may still call.
    pub fn end_with(
        mut self,
        mut called: impl FnMut(Header),
    ) -> (BTreeMap<u64, Vec<u8>>, jitmem::Result<()>) {
        let _ = self.stream.shutdown(Shutdown::Write);
        let mut answers = BTreeMap::new();
        while let Ok((header, body)) = receive(&mut self.stream) {
            match header.opcode {
                Opcode::Result => {
                    let before = answers.insert(header.sequence, body);
                    assert!(before.is_none(), "{} is answered twice", header.sequence);
                }
                Opcode::CallWrapper => called(header),
                other => assert_eq!(other, Opcode::Hangup),
            }
        }
        let result = self.serving.join().expect("serving does not panic");
        drop(self.stream);
        wait_for(self.had);
        let own = format!("jitmem-{}-", std::process::id());
        for name in fs::read_dir("/dev/shm").expect("/dev/shm").flatten() {
            let name = name.file_name();
            assert!(!name.to_string_lossy().starts_with(&own), "{name:?} stays");
        }
        (answers, result)
    }
}

fn receive(stream: &mut UnixStream) -> io::Result<(Header, Vec<u8>)> {
    let mut header = [0; HEADER_SIZE];
    stream.read_exact(&mut header)?;
    let header = Header::decode(&header).expect("executors send well-formed headers");
    header.check().expect("executors keep to the protocol");
    let mut body = vec![0; header.body_size() as usize];
    stream.read_exact(&mut body)?;
    Ok((header, body))
}

/// A session ends in order, or with what its deallocation actions that were left have answered.
pub(crate) fn was_in_order(result: jitmem::Result<()>) {
    if let Err(error) = result {
        assert_eq!(error.status(), jitmem::Status::ActionFailed, "{error}");
    }
}
