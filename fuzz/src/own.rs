// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Calls of our own service with arguments that make sense often.

use crate::actions::encode_pairs;
use crate::executor::Executor;
use crate::input::Input;
use jitmem::wire::service::{
    At, Attach, Attached, File, Functions, Open, Opened, Reply, Reserve, ReservedAt, Step, VERSION,
};
use jitmem::wire::sps::{AddrRange, Bytes, Encode, ExecutorAddr, from_bytes, to_bytes};
use memfd::{FileSeal, Memfd, MemfdOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

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
        controller.change(&map);
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
            return self.change(&steps);
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
                functions.run
            }
            _ => functions.close,
        };
        if input.below(16) == 1 {
            out.truncate(input.byte().into());
        }
        let answer = self.executor.call(function.0, &out);
        if function == functions.reserve {
            if let Ok(Reply(Ok(ReservedAt { range, .. }))) = from_bytes(&answer) {
                self.windows.push(range);
            }
        } else if function == functions.run {
            if let Ok(Reply(Ok(replies))) = from_bytes::<Reply<Vec<Reply<u64>>>>(&answer) {
                let keys = replies.into_iter().filter_map(|reply| reply.0.ok());
                self.keys.extend(keys);
            }
        } else if function == functions.attach {
            // Whatever is offered is the controller's to take, or not.
            let _ = from_bytes::<Reply<Attached>>(&answer);
        }
    }

    /// Changes what lies where, in the first session.
    fn change(&mut self, steps: &[Step]) {
        let Some(functions) = &self.functions else {
            return;
        };
        let mut out = to_bytes(&self.sessions[0]);
        encode_steps(steps, &mut out);
        let answer = self.executor.call(functions.change.0, &out);
        let Ok(Reply(Ok(replies))) = from_bytes::<Reply<Vec<Reply<()>>>>(&answer) else {
            return;
        };
        assert_eq!(replies.len(), steps.len());
        for (step, reply) in steps.iter().zip(replies) {
            match step {
                Step::MapOwn { range, .. } | Step::MapFile { range, .. } if reply.0.is_ok() => {
                    self.chunks.push(*range);
                }
                _ => {}
            }
        }
    }

    pub fn end(self) {
        drop(self.files);
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
        if let Ok(Reply(Ok(opened))) = from_bytes::<Reply<Opened>>(&answer) {
            self.sessions.push(opened.session);
            self.functions = Some(opened.functions);
        }
    }

    fn file(&self, input: &mut Input<'_>) -> File {
        let file = &self.files[input.below(self.files.len())];
        let data = file.as_file().metadata().expect("fstat");
        let descriptor = file.as_file().as_raw_fd().unsigned_abs();
        let wrong = |input: &mut Input<'_>| input.byte() == 0xff;
        File {
            process: if wrong(input) {
                u32::MAX
            } else {
                std::process::id()
            },
            descriptor: if wrong(input) { u32::MAX } else { descriptor },
            device: data.dev(),
            inode: if wrong(input) {
                input.number()
            } else {
                data.ino()
            },
        }
    }

    fn attach<'a>(&self, input: &mut Input<'a>) -> Attach<'a> {
        match input.below(5) {
            0 => Attach::Connect {
                // Nobody listens there.
                name: Bytes(b"jitmem-fuzz-nobody"),
                token: Bytes(input.bytes()),
            },
            1 => Attach::Offer {},
            2 => Attach::Taken {
                taken: input.below(2) == 0,
            },
            3 => Attach::Files {
                file: self.file(input),
            },
            _ => Attach::Shared {
                cookie: input.number(),
            },
        }
    }

    fn reserve(&self, input: &mut Input<'_>) -> Reserve {
        let size = match input.below(8) {
            0 => 64 * PAGE,
            5 => input.number(),
            6 => 2 << 30,
            7 => PAGE,
            pages => pages as u64 * 16 * PAGE,
        };
        let least = if input.byte() == 0xff {
            input.number()
        } else {
            0
        };
        let at = match input.below(4) {
            0 | 1 => At::Default {},
            2 => At::Near {
                address: self.range(input).start.0,
            },
            _ => At::Fixed {
                address: self.range(input).start.0,
            },
        };
        Reserve { size, least, at }
    }

    /// A window or a chunk, a part of one, or what is none. It may be so only for the executor that it ends before
    /// it starts.
    fn range(&self, input: &mut Input<'_>) -> AddrRange {
        let all = match input.below(4) {
            0 => &self.windows,
            _ => &self.chunks,
        };
        let window = input.one_of(all);
        let window = window.unwrap_or(AddrRange {
            start: ExecutorAddr(input.number() << 12),
            end: ExecutorAddr(input.number() << 12),
        });
        let start = window.start.0;
        let part = |from: u64, size: u64| AddrRange {
            start: ExecutorAddr(start.wrapping_add(from)),
            end: ExecutorAddr(start.wrapping_add(from).wrapping_add(size)),
        };
        match input.below(8) {
            0 => window,
            1..=3 => {
                let from = input.below(16) as u64 * PAGE;
                part(from, input.below(16) as u64 * PAGE)
            }
            4..=6 => {
                let from = input.below(16) as u64 * PAGE + u64::from(input.byte());
                part(from, u64::from(input.byte()) * 16)
            }
            _ => part(input.number(), input.number()),
        }
    }

    fn one_change(&self, input: &mut Input<'_>) -> Step {
        let kind = input.below(8);
        let range = self.range(input);
        let protection = match input.below(8) {
            0 => input.byte(),
            other => [1, 3, 5, 3, 5, 3, 5][other - 1],
        };
        match kind {
            0 => Step::Map { range, protection },
            1 | 2 => Step::MapFile {
                range,
                protection,
                file: self.file(input),
            },
            3..=5 => Step::MapOwn {
                range,
                protection,
                commit: input.below(2) == 0,
            },
            6 => Step::Unmap { range },
            _ => Step::Release { range },
        }
    }

    fn ranges(&self, input: &mut Input<'_>, out: &mut Vec<u8>) {
        input.some(3, |input| self.range(input)).encode(out);
    }

    fn item(&self, input: &mut Input<'_>, functions: &Functions, out: &mut Vec<u8>) {
        if input.below(3) == 0 {
            out.push(1);
            match input.byte() {
                0xff => input.number(),
                _ => input.one_of(&self.keys).unwrap_or(0),
            }
            .encode(out);
            return self.ranges(input, out);
        }
        out.push(0);
        let content = input.some(3, |input| {
            let range = self.range(input);
            (range, input.below(2) == 0, Bytes(input.bytes()))
        });
        content.encode(out);
        self.ranges(input, out);
        encode_pairs(input, out, |input| self.action(input, functions));
    }

    /// What an action may call: the service itself, but for what runs actions.
    fn action(&self, input: &mut Input<'_>, functions: &Functions) -> (u64, Vec<u8>) {
        let mut out = Vec::new();
        let session = input.one_of(&self.sessions).unwrap_or(0);
        session.encode(&mut out);
        let function = match input.below(3) {
            0 => {
                self.reserve(input).encode(&mut out);
                functions.reserve
            }
            1 => {
                let steps = input.some(2, |input| self.one_change(input));
                encode_steps(&steps, &mut out);
                functions.change
            }
            _ => {
                self.attach(input).encode(&mut out);
                functions.attach
            }
        };
        (function.0, out)
    }
}

fn encode_steps(steps: &[Step], out: &mut Vec<u8>) {
    (steps.len() as u64).encode(out);
    steps.iter().for_each(|step| step.encode(out));
}
