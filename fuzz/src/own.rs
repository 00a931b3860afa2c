// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Calls of our own service with arguments that make sense often.

mod arguments;

use crate::channel::Channel;
use crate::executor::Executor;
use crate::input::Input;
use arguments::encode_steps;
use jitmem::wire::service::{
    Attach, Functions, INDEX_VERSION, Open, Opened, OpenedWithFrames, Reply, ReservedAt, Step,
    VERSION,
};
use jitmem::wire::sps::{AddrRange, Encode, ExecutorAddr, from_bytes, to_bytes};
use memfd::{FileSeal, Memfd, MemfdOptions};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;

/// Pages of a memfd of the controller's.
const FILE_PAGES: u64 = 8;

pub struct Controller {
    executor: Executor,
    functions: Option<Functions>,
    sessions: Vec<u64>,
    windows: Vec<AddrRange>,
    /// What was mapped, and may be gone again.
    chunks: Vec<AddrRange>,
    keys: Vec<u64>,
    /// One that can't shrink, and one that can.
    files: [Memfd; 2],
    /// The way of all calls, while there is one.
    channel: Option<Channel>,
}

fn file() -> Memfd {
    let file = MemfdOptions::default().allow_sealing(true);
    let file = file.create("jitmem-fuzz").expect("memfd_create");
    file.as_file()
        .set_len(FILE_PAGES * PAGE)
        .expect("ftruncate");
    file
}

impl Controller {
    pub fn new(executor: Executor) -> Controller {
        let files = [file(), file()];
        files[0].add_seal(FileSeal::SealShrink).expect("seal");
        let mut controller = Controller {
            executor,
            functions: None,
            sessions: Vec::new(),
            windows: Vec::new(),
            chunks: Vec::new(),
            keys: Vec::new(),
            files,
            channel: None,
        };
        // Something to work with.
        controller.step(&mut Input::new(&[]));
        controller.call(3, &mut Input::new(&[]));
        let map = [[3, 0, 0], [5, 16, 0]].map(|[protection, page, commit]| {
            let start = controller.windows[0].start.0 + page * PAGE;
            Step::MapOwn {
                range: AddrRange {
                    start: ExecutorAddr(start),
                    end: ExecutorAddr(start + 8 * PAGE),
                },
                protection: protection as u8,
                commit: commit == 1,
            }
        });
        controller.change(&mut Input::new(&[]), &map);
        assert_eq!(controller.chunks.len(), 2);
        controller
    }

    /// Calls something with something.
    pub fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.below(16);
        self.call(kind, input);
    }

    fn call(&mut self, kind: usize, input: &mut Input<'_>) {
        let functions = match &self.functions {
            Some(functions) if kind != 0 => functions.clone(),
            _ => return self.open(input),
        };
        if (6..=8).contains(&kind) {
            let steps = input.some(4, |input| self.one_change(input));
            return self.change(input, &steps);
        }
        let mut out = Vec::new();
        match input.byte() {
            0xff => input.number(),
            // The windows are mostly the first one's.
            byte if byte % 4 != 3 => self.sessions[0],
            _ => input.one_of(&self.sessions).unwrap_or(0),
        }
        .encode(&mut out);
        let function = match kind {
            1 | 2 => {
                self.attach(input).encode(&mut out);
                functions.attach
            }
            3..=5 => {
                self.reserve(input).encode(&mut out);
                functions.reserve
            }
            9..=14 => {
                let count = [1, 2, 3, 0][input.below(4)];
                (count as u64).encode(&mut out);
                for _ in 0..count {
                    self.item(input, &functions, &mut out);
                }
                functions.apply
            }
            _ => functions.close,
        };
        if input.below(16) == 1 {
            out.truncate(input.byte().into());
        }
        let answer = self.ask(input, function, &out, Vec::new());
        if function == functions.reserve {
            if let Ok(Reply(Ok(ReservedAt { range, .. }))) = from_bytes(&answer) {
                self.windows.push(range);
            }
        } else if function == functions.apply {
            if let Ok(Reply(Ok(replies))) = from_bytes::<Reply<Vec<Reply<u64>>>>(&answer) {
                let keys = replies.into_iter().filter_map(|reply| reply.0.ok());
                self.keys.extend(keys);
            }
        } else if function == functions.attach {
            let _ = from_bytes::<Reply<()>>(&answer);
        }
    }

    /// Calls through the channel if there is one, else through the stream.
    fn ask(
        &mut self,
        input: &mut Input<'_>,
        function: ExecutorAddr,
        args: &[u8],
        along: Vec<OwnedFd>,
    ) -> Vec<u8> {
        let Some(channel) = self.channel.take() else {
            return self.executor.call(function.0, args);
        };
        let (channel, answer) = channel.call(input, function, args, along);
        self.channel = channel;
        answer
    }

    /// Makes a channel for the first session, unless that is closed.
    pub fn attach_channel(&mut self) {
        let functions = self.functions.as_ref().expect("a session was opened");
        let connect = |attach: Attach<'_>| {
            let args = to_bytes(&(self.sessions[0], attach));
            let answer = self.executor.call(functions.attach.0, &args);
            matches!(from_bytes::<Reply<()>>(&answer), Ok(Reply(Ok(_))))
        };
        self.channel = Channel::listen(connect);
    }

    pub fn has_channel(&self) -> bool {
        self.channel.is_some()
    }

    /// Changes what lies where, in the first session.
    fn change(&mut self, input: &mut Input<'_>, steps: &[Step]) {
        let Some(functions) = &self.functions else {
            return;
        };
        let mut out = to_bytes(&self.sessions[0]);
        encode_steps(steps, &mut out);
        // A message that maps what comes along may come without, and with what can shrink.
        let (mut along, mut fixed) = (Vec::new(), Vec::new());
        let mapped = steps.iter().filter(|step| matches!(step, Step::Map { .. }));
        let wanted = if self.channel.is_some() {
            mapped.count()
        } else {
            0
        };
        for _ in 0..wanted {
            let kind = input.below(8);
            if kind < 7 {
                let file = &self.files[usize::from(kind == 6)];
                along.push(file.as_file().try_clone().expect("dup").into());
                fixed.push(kind != 6);
            }
        }
        let answer = self.ask(input, functions.change, &out, along);
        let Ok(Reply(Ok(replies))) = from_bytes::<Reply<Vec<Reply<()>>>>(&answer) else {
            return;
        };
        assert_eq!(replies.len(), steps.len());
        let mut fixed = fixed.into_iter();
        let stays = |step: &Step| !matches!(step, Step::Unmap { .. } | Step::Release { .. });
        let all_stay = steps.iter().all(stays);
        for (step, reply) in steps.iter().zip(replies) {
            let fixed = match step {
                Step::Map { .. } => fixed.next() == Some(true),
                _ => true,
            };
            let (Step::Map { range, protection }
            | Step::MapFile {
                range, protection, ..
            }
            | Step::MapOwn {
                range, protection, ..
            }) = step
            else {
                continue;
            };
            if reply.0.is_ok() {
                assert!(fixed, "{step:?} maps what may shrink");
                self.chunks.push(*range);
                if all_stay && protection & 1 != 0 {
                    look_at(*range);
                }
            }
        }
    }

    pub fn end(self) {
        drop((self.files, self.channel));
        let (answers, result) = self.executor.end();
        assert!(answers.is_empty());
        crate::executor::was_in_order(result);
        crate::actions::all_are_closed();
    }

    fn open(&mut self, input: &mut Input<'_>) {
        let version = if input.byte() == 0xff {
            input.byte().into()
        } else {
            VERSION
        };
        let instance = match input.byte() {
            // Not 0: what belongs to the process stays until it ends.
            0xff => input.number().max(1),
            _ => self.executor.symbol("jitmem_service_instance"),
        };
        let function = self.executor.symbol("jitmem_service_open");
        let answer = self
            .executor
            .call(function, &to_bytes(&Open { version, instance }));
        let opened = match version {
            INDEX_VERSION.. => from_bytes::<Reply<OpenedWithFrames>>(&answer)
                .map(|Reply(reply)| Reply(reply.map(|reply| reply.opened))),
            _ => from_bytes::<Reply<Opened>>(&answer),
        };
        if let Ok(Reply(Ok(opened))) = opened {
            self.sessions.push(opened.session);
            self.functions = Some(opened.functions);
        }
    }
}

/// Every page of a chunk is there.
fn look_at(range: AddrRange) {
    let memory = File::open("/proc/self/mem").expect("/proc/self/mem");
    for page in (range.start.0..range.end.0).step_by(PAGE as usize) {
        let there = memory.read_at(&mut [0], page).is_ok();
        assert!(there, "{page:#x} of {range:x?} is not there");
    }
}
