// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The executors that LLVM ships, which have nothing but their own memory manager.

use super::*;
use crate::sys::testing::wrapper_call;
use crate::transport::{Stream, call as call_executor};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};

/// A stock executor and a connection to it.
struct Stock {
    child: Child,
    stream: Option<Arc<Stream>>,
}

impl Stock {
    fn start(version: u32) -> Stock {
        let path = format!("/usr/lib/llvm-{version}/bin/llvm-jitlink-executor");
        let (here, there) = UnixStream::pair().unwrap();
        let mut command = Command::new(&path);
        command.arg("filedescs=0,0").stdin(OwnedFd::from(there));
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("{path}: {error}; install llvm-{version}"));
        // Its end of the socket, but for which the connection would never end.
        drop(command);
        let stream = Stream::connect(Arc::new(here.into())).unwrap();
        let stream = Some(Arc::new(stream));
        Stock { child, stream }
    }

    fn stream(&self) -> Arc<Stream> {
        self.stream.clone().unwrap()
    }

    fn manager(&self) -> Manager {
        let mapper = Mapper::reserving(LlvmSimpleMapper::new(self.stream()).unwrap());
        wait(|done| Manager::create(&mapper, Options::default(), done)).unwrap()
    }

    /// Whether `bytes`, which are nowhere else, are at an address. Other things may be mapped there.
    fn holds(&self, address: u64, bytes: &[u8]) -> bool {
        let memory = File::open(format!("/proc/{}/mem", self.child.id())).unwrap();
        let mut there = vec![0; bytes.len()];
        memory.read_exact_at(&mut there, address).is_ok() && there == bytes
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        self.stream = None;
        if std::thread::panicking() {
            self.child.kill().ok();
        }
        let status = self.child.wait().unwrap();
        assert!(status.success() || std::thread::panicking(), "{status}");
    }
}

/// Code for x86-64. All take the address of a number and a digit: one appends the digit to the number
/// and answers a serialized success, one does so and answers what is no serialized error, and one
/// answers the number.
const NOTE: &[u8] = b"\x48\x8b\x07\x0f\xb6\x4f\x08\x48\x6b\x10\x0a\x48\x01\xca\x48\x89\x10\
                      \x31\xc0\xba\x01\0\0\0\xc3";
const NOTE_AND_FAIL: &[u8] =
    b"\x48\x8b\x07\x0f\xb6\x4f\x08\x48\x6b\x10\x0a\x48\x01\xca\x48\x89\x10\
                               \xb8\x01\0\0\0\xba\x01\0\0\0\xc3";
const READ: &[u8] = b"\x48\x8b\x07\x48\x8b\0\xba\x08\0\0\0\xc3";
/// Room for each of them.
const ROOM: u64 = 64;

/// What actions leave in the executor.
struct Notes {
    stream: Arc<Stream>,
    code: u64,
    number: u64,
}

impl Notes {
    /// Puts the functions and the number into the executor.
    fn new(stock: &Stock, manager: &Manager) -> Notes {
        let segments = [
            segment(3 * ROOM, 0, 16, Protection::READ_EXEC),
            segment(0, 8, 8, Protection::READ_WRITE),
        ];
        let allocated = allocate(manager, &segments).unwrap();
        for (index, code) in (0..).zip([NOTE, NOTE_AND_FAIL, READ]) {
            let offset = index * ROOM;
            manager
                .core
                .write(allocated.handle, 0, offset, code)
                .unwrap();
        }
        finalize(manager, allocated.handle).unwrap();
        Notes {
            stream: stock.stream(),
            code: allocated.segments[0].address,
            number: allocated.segments[1].address,
        }
    }

    fn call(&self, index: u64, digit: u8) -> WrapperCall {
        let mut args = self.number.to_le_bytes().to_vec();
        args.push(digit);
        let function = self.code + index * ROOM;
        wrapper_call(function, args)
    }

    fn note(&self, digit: u8) -> WrapperCall {
        self.call(0, digit)
    }

    fn note_and_fail(&self, digit: u8) -> WrapperCall {
        self.call(1, digit)
    }

    /// The digits so far.
    fn read(&self) -> String {
        let call = self.call(2, 0);
        let args = call.args().to_vec();
        let bytes = call_executor(&*self.stream, call.function(), args).unwrap();
        u64::from_le_bytes(bytes.try_into().unwrap()).to_string()
    }
}

#[test]
#[ignore = "needs llvm-jitlink-executor of LLVM 14, 19 and 22, and x86-64"]
fn stock_executors_run_all_actions_in_order_and_keep_nothing() {
    let none = WrapperCall::default;
    let pair = |finalize, dealloc| Action { finalize, dealloc };
    for version in [14, 19, 22] {
        let stock = Stock::start(version);
        let manager = stock.manager();
        let notes = Notes::new(&stock, &manager);
        assert_eq!(notes.read(), "0");
        let unique = random().to_le_bytes();
        let run = |segments: &[Segment], actions| {
            let allocated = allocate(&manager, segments).unwrap();
            let (handle, address) = (allocated.handle, allocated.segments[0].address);
            manager.core.write(handle, 0, 0, &unique).unwrap();
            let answer = wait(|done| manager.core.finalize(handle, actions, done));
            assert_eq!(stock.holds(address, &unique), answer.is_ok());
            answer.map(|handle| (handle, address))
        };
        let actions = vec![
            pair(notes.note(1), notes.note(9)),
            pair(none(), notes.note(8)),
            pair(notes.note(3), none()),
        ];
        let (handle, address) = run(&small_graph(), actions).unwrap();
        assert_eq!(notes.read(), "13");
        deallocate(&manager, &[handle]).unwrap();
        assert_eq!(notes.read(), "1389");
        assert!(!stock.holds(address, &unique));

        let actions = vec![
            pair(notes.note(1), none()),
            pair(notes.note(2), notes.note(7)),
            pair(none(), notes.note(6)),
            pair(notes.note_and_fail(3), notes.note(5)),
            pair(notes.note(4), notes.note(4)),
        ];
        // Aligned above a page, so that something else lies at the start of the reservation.
        let aligned = [segment(64, 0, 1 << 20, Protection::READ)];
        let error = run(&aligned, actions).unwrap_err();
        assert!(error.message().contains("deserialize"), "{error}");
        assert_eq!(notes.read(), concat!("1389", "12367"));

        let mut handles = Vec::new();
        for (first, last) in [(1, 2), (3, 4)] {
            // Actions alone.
            let handle = allocate(&manager, &[]).unwrap().handle;
            let actions = vec![pair(notes.note(first), notes.note(last))];
            handles.push(wait(|done| manager.core.finalize(handle, actions, done)).unwrap());
        }
        deallocate(&manager, &handles).unwrap();
        assert_eq!(notes.read(), concat!("1389", "12367", "1342"));
    }
}
