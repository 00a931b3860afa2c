// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! An executor that goes while it has something to answer.

use super::*;
use crate::completion::Completion;
use crate::executor::service::here::functions;
use crate::sys::socket;
use crate::transport::packet::{self, Packet};
use crate::transport::{RESPONSE_TIMEOUT, Transport};
use crate::wire::frame::{Header, Opcode};
use crate::wire::service::{
    Attach, FrameFunctions, Opened, OpenedWithData, OpenedWithFrames, Reply, ReservedAt,
};
use crate::wire::sps::{AddrRange, Encode, ExecutorAddr, from_bytes, to_bytes};
use std::os::fd::OwnedFd;
use std::sync::mpsc::channel;
use std::time::Instant;

const SERVICE: u64 = 9;
const WINDOW: u64 = 1 << 20;

fn reply(value: impl Encode) -> Vec<u8> {
    to_bytes(&Reply(Ok(value)))
}

/// Opens a session, and keeps the socket that is sent along.
#[derive(Default)]
struct Opener(Mutex<Option<OwnedFd>>);

impl Transport for Opener {
    fn call(&self, function: u64, _args: Vec<u8>, done: Completion<Vec<u8>>) {
        let opened = Opened {
            session: 1,
            page_size: sys::page_size().bytes(),
            coherent: true,
            functions: functions(),
        };
        done.complete(Ok(match function {
            SERVICE => reply(OpenedWithData {
                opened: OpenedWithFrames {
                    opened,
                    frames: FrameFunctions::default(),
                },
                private_data: false,
            }),
            _ => reply(()),
        }));
    }

    fn passes_descriptors(&self) -> bool {
        true
    }

    fn start_with(
        &self,
        function: u64,
        args: Vec<u8>,
        descriptor: OwnedFd,
        _most: u64,
        done: Completion<Vec<u8>>,
    ) -> Option<u64> {
        let (_, Attach::Shared { token, .. }) = from_bytes::<(u64, Attach<'_>)>(&args).unwrap()
        else {
            unreachable!("a socket went along")
        };
        socket::send(&descriptor, &[token.0], &[]).unwrap();
        *self.0.lock() = Some(descriptor);
        self.call(function, args, done);
        None
    }
}

fn call(executor: &OwnedFd) -> Packet {
    packet::receive(executor, &mut Vec::new()).unwrap().unwrap()
}

#[test]
fn a_manager_that_was_freed_waits_for_no_executor_that_is_gone() {
    // What is answered first is a matter of chance.
    for _ in 0..16 {
        let opener = Arc::new(Opener::default());
        let mapper = Mapper::new(ServiceMapper::shared(opener.clone(), SERVICE, 0).unwrap());
        let executor = opener.0.lock().take().unwrap();
        let MapperInterface::Windows(memory) = mapper.interface() else {
            unreachable!("a service has windows")
        };
        let gone = Arc::downgrade(memory);
        let options = Options {
            window_size: WINDOW,
            growth: GrowthPolicy::AnotherWindow,
            ..Options::default()
        };
        let manager = wait(|done| {
            Manager::create(&mapper, options, done);
            drop(mapper);
            let sequence = call(&executor).header.sequence;
            let start = 1 << 40;
            let range = AddrRange {
                start: ExecutorAddr(start),
                end: ExecutorAddr(start + WINDOW),
            };
            let answer = reply(ReservedAt {
                range,
                in_reach: true,
            });
            let header = Header::new(Opcode::Result, sequence, 0, answer.len());
            packet::send(&executor, header, &answer, &[]).unwrap();
        })
        .unwrap();
        // A chunk, and a window, for there is no room for two of these in one.
        let large = segment(WINDOW / 8 * 5, 0, 16, Protection::READ);
        allocate(&manager, &[large]).unwrap();
        let (sender, receiver) = channel();
        let request = manager.request([Ok(large)], 0).unwrap();
        let done = Completion::new(move |answer: Result<Allocated>| {
            sender.send(answer.map(drop)).unwrap();
        });
        manager.core.allocate(request, done);
        drop(manager);
        let began = Instant::now();
        socket::hang_up(&executor);
        let error = receiver.recv().unwrap().unwrap_err();
        assert_eq!(error.status(), Status::Disconnected);
        while gone.strong_count() > 0 {
            assert!(
                began.elapsed() < RESPONSE_TIMEOUT / 2,
                "the manager is waited for"
            );
            std::thread::yield_now();
        }
    }
}
