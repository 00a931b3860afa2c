// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Arguments for our own service.

use super::{Controller, PAGE};
use crate::actions::encode_pairs;
use crate::input::Input;
use jitmem::wire::service::{At, Attach, File, Functions, Numbering, Reserve, Step};
use jitmem::wire::sps::{AddrRange, Bytes, Encode, ExecutorAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

impl Controller {
    pub(super) fn file(&self, input: &mut Input<'_>) -> File {
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

    pub(super) fn attach<'a>(&self, input: &mut Input<'a>) -> Attach<'a> {
        match input.below(5) {
            0 => Attach::Connect {
                // No socket listens there.
                name: Bytes(b"jitmem-fuzz-no-listener"),
                token: Bytes(input.bytes()),
            },
            1 => Attach::Files {
                numbering: Numbering {
                    boot: Bytes(input.bytes()),
                    device: input.number(),
                    namespace: input.number(),
                },
                file: self.file(input),
                token: Bytes(input.bytes()),
            },
            // A name is no way, but for those who ask for one.
            2 => Attach::Listening {},
            3 => Attach::Accept {
                expected: Bytes(input.bytes()),
                token: Bytes(input.bytes()),
            },
            _ => Attach::Shared {
                cookie: input.number(),
                token: Bytes(input.bytes()),
            },
        }
    }

    pub(super) fn reserve(&self, input: &mut Input<'_>) -> Reserve {
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
                lowest: self.range(input).start.0,
                highest: self.range(input).start.0,
            },
            _ => At::Fixed {
                address: self.range(input).start.0,
            },
        };
        Reserve { size, least, at }
    }

    /// A window or a chunk, a part of one, or what is none. It may be so only for the executor that it ends before
    /// it starts.
    pub(super) fn range(&self, input: &mut Input<'_>) -> AddrRange {
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

    pub(super) fn one_change(&self, input: &mut Input<'_>) -> Step {
        let kind = input.below(14);
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
            7 => Step::Release { range },
            8 => Step::Replace { range },
            9 => Step::ReplaceFile {
                range,
                file: self.file(input),
            },
            11 => self.index(input),
            12 => Step::MapPrivate { range, protection },
            13 => Step::MapPrivateFile {
                range,
                protection,
                file: self.file(input),
            },
            _ => Step::Keep {
                range,
                pages: input.some(3, Input::number),
            },
        }
    }

    /// An index for a window, or for what is none.
    fn index(&self, input: &mut Input<'_>) -> Step {
        let window = match input.below(4) {
            3 => self.range(input),
            _ => input.one_of(&self.windows).unwrap_or(self.windows[0]),
        };
        let file = self.file(input);
        match input.below(2) {
            0 => Step::Index { window },
            _ => Step::IndexFile { window, file },
        }
    }

    pub(super) fn ranges(&self, input: &mut Input<'_>, out: &mut Vec<u8>) {
        input.some(3, |input| self.range(input)).encode(out);
    }

    pub(super) fn item(&self, input: &mut Input<'_>, functions: &Functions, out: &mut Vec<u8>) {
        if input.below(3) == 0 {
            out.push(1);
            match input.byte() {
                0xff => input.number(),
                _ => input.one_of(&self.keys).unwrap_or(0),
            }
            .encode(out);
            return self.ranges(input, out);
        }
        if input.below(4) == 0 {
            out.push(2);
            self.ranges(input, out);
            self.ranges(input, out);
            return encode_pairs(input, out, |input| self.action(input, functions));
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
    pub(super) fn action(&self, input: &mut Input<'_>, functions: &Functions) -> (u64, Vec<u8>) {
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

pub(super) fn encode_steps(steps: &[Step], out: &mut Vec<u8>) {
    (steps.len() as u64).encode(out);
    steps.iter().for_each(|step| step.encode(out));
}
