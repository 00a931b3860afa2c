// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Calls of LLVM's services with arguments that make sense often, and never have the executor touch
//! what is not theirs: what the protocol lets a controller do anywhere is done here in memory of
//! their own.

use crate::actions::{encode_pairs, int_function, main_function};
use crate::executor::Executor;
use crate::input::Input;
use jitmem::wire::sps::{Bytes, Encode, ExecutorAddr, Expected, from_bytes};
use std::sync::atomic::AtomicU64;

const MANAGER: &str = "__llvm_orc_SimpleExecutorMemoryManager_";
const MAPPER: &str = "__llvm_orc_ExecutorSharedMemoryMapperService_";
const DYLIBS: &str = "__llvm_orc_SimpleExecutorDylibManager_";
const MEMORY: &str = "__llvm_orc_bootstrap_mem_";
const RUN: &str = "__llvm_orc_bootstrap_run_as_";

const PAGE: u64 = 4096;

/// A frame description for 16 bytes of code, as compilers write them, and its end.
static FRAMES: [u8; 52] = [
    16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0x78, 16, 12, 7, 8, 0x90, 1, 0, 0, // what they share
    24, 0, 0, 0, 24, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, // it
    0, 0, 0, 0,
];

static ZEROS: [u8; 64] = [0; 64];

/// Memory to be read and written by address. Whole pages: strings are read by them. No address in
/// the last one is given out, so that every string ends in it.
#[repr(align(4096))]
struct Arena([AtomicU64; 3 * PAGE as usize / 8]);

static ARENA: Arena = Arena([const { AtomicU64::new(0) }; 3 * PAGE as usize / 8]);

/// What a controller knows of the executor.
pub struct Controller {
    executor: Executor,
    /// First addresses of what was reserved, or was once.
    slabs: Vec<u64>,
    shared: Vec<u64>,
    /// What initialized memory is known by.
    keys: Vec<u64>,
    libraries: Vec<u64>,
}

/// What is called, and what becomes of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Reserve,
    Finalize,
    Initialize,
    Deallocate,
    Deinitialize,
    Release,
    SharedReserve,
    SharedInitialize,
    SharedDeinitialize,
    SharedRelease,
    Open,
    Lookup,
    Resolve,
    Register,
    Deregister,
    RegisterDebug,
    Write,
    Read,
    RunMain,
    RunInt,
}

use Service::*;

/// Those that change what is where are called most.
const ALL: [Service; 32] = [
    Initialize,
    Initialize,
    Initialize,
    Initialize,
    Finalize,
    Finalize,
    Finalize,
    SharedInitialize,
    SharedInitialize,
    SharedInitialize,
    Deinitialize,
    Deinitialize,
    Deinitialize,
    Deallocate,
    Release,
    SharedDeinitialize,
    SharedDeinitialize,
    SharedRelease,
    Reserve,
    Reserve,
    SharedReserve,
    Open,
    Lookup,
    Resolve,
    Register,
    Deregister,
    RegisterDebug,
    Write,
    Read,
    Read,
    RunMain,
    RunInt,
];

fn address_of<T>(what: &[T]) -> u64 {
    what.as_ptr().expose_provenance() as u64
}

impl Controller {
    pub fn new(executor: Executor) -> Controller {
        let mut controller = Controller {
            executor,
            slabs: Vec::new(),
            shared: Vec::new(),
            keys: Vec::new(),
            libraries: Vec::new(),
        };
        // Something to work with.
        let mut nothing = Input::new(&[]);
        for service in [Reserve, Reserve, SharedReserve, Open] {
            controller.call(service, &mut nothing);
        }
        controller
    }

    /// Calls something with something.
    pub fn step(&mut self, input: &mut Input<'_>) {
        let service = ALL[input.below(ALL.len())];
        self.call(service, input);
    }

    fn call(&mut self, service: Service, input: &mut Input<'_>) {
        let (function, mut args) = self.prepare(service, input, 2);
        if input.below(16) == 1 {
            // Cut short: nothing is done then.
            args.truncate(input.byte().into());
        }
        let answer = self.executor.call(function, &args);
        let address = || match from_bytes(&answer) {
            Ok(Expected(Ok(ExecutorAddr(address)))) => Some(address),
            _ => None,
        };
        match service {
            Reserve => self.slabs.extend(address()),
            Initialize | SharedInitialize => self.keys.extend(address()),
            Open => self.libraries.extend(address()),
            SharedReserve => {
                if let Ok(Expected(Ok((base, name)))) =
                    from_bytes::<Expected<(ExecutorAddr, &str)>>(&answer)
                {
                    assert!(name.starts_with('/'));
                    self.shared.push(base.0);
                }
            }
            _ => {}
        }
    }

    /// Forgets what outlives a session, and ends it.
    pub fn end(mut self) {
        let forget = self
            .executor
            .symbol("llvm_orc_deregisterEHFrameAllocAction");
        for section in [&FRAMES[..], &ZEROS] {
            let mut args = Vec::new();
            let start = address_of(section);
            (
                ExecutorAddr(start),
                ExecutorAddr(start + section.len() as u64),
            )
                .encode(&mut args);
            if section[0] != 0 {
                while self.executor.call(forget, &args) == [0] {}
            }
        }
        let (answers, result) = self.executor.end();
        assert!(answers.is_empty());
        crate::executor::was_in_order(result);
        crate::actions::all_are_closed();
    }

    fn instance(&self, input: &mut Input<'_>, of: &str) -> u64 {
        match input.byte() {
            0xff => input.number(),
            // Another service's.
            0xfe => self.executor.symbol(&format!("{DYLIBS}Instance")),
            _ => self.executor.symbol(&format!("{of}Instance")),
        }
    }

    /// An address in the arena, or none that a process can have: what was given back may be used by another part of the process
    /// by now.
    fn accessible(&self, input: &mut Input<'_>) -> u64 {
        match input.below(8) {
            0 => input.number() | 1 << 63,
            kind => {
                let offset = kind as u64 % 2 * PAGE + u64::from(input.byte());
                address_of(&ARENA.0) + offset
            }
        }
    }

    /// Where memory is reserved, or was once, or never.
    fn address(&self, input: &mut Input<'_>) -> u64 {
        let near = |input: &mut Input<'_>, base: Option<u64>| {
            let offset = match input.below(4) {
                0 => 0,
                1 => u64::from(input.byte()),
                _ => u64::from(input.byte()) % 16 * PAGE,
            };
            base.unwrap_or(0).wrapping_add(offset)
        };
        match input.below(16) {
            0..=6 => {
                let base = input.one_of(&self.slabs);
                near(input, base)
            }
            7..=10 => {
                let base = input.one_of(&self.shared);
                near(input, base)
            }
            11..=13 => input.one_of(&self.keys).unwrap_or(0),
            14 => address_of(&ARENA.0) + u64::from(input.byte()),
            // Beyond what any process has.
            _ => input.number() | 1 << 63,
        }
    }

    /// Of something to reserve.
    fn size(&self, input: &mut Input<'_>) -> u64 {
        match input.below(8) {
            5 => PAGE,
            6 => 1 << 30,
            7 => input.number(),
            _ => 64 * PAGE,
        }
    }

    /// Of a segment.
    fn part(&self, input: &mut Input<'_>) -> u64 {
        match input.below(8) {
            0..=2 => u64::from(input.byte()) + 1,
            3..=5 => (u64::from(input.byte()) % 4 + 1) * PAGE,
            6 => u64::from(input.byte()) * PAGE / 4,
            _ => input.number(),
        }
    }

    fn addresses(&self, input: &mut Input<'_>, out: &mut Vec<u8>) {
        let addresses = input.some(4, |input| {
            ExecutorAddr(match input.below(4) {
                0 => self.address(input),
                1 => input.one_of(&self.slabs).unwrap_or(0),
                2 => input.one_of(&self.shared).unwrap_or(0),
                _ => input.one_of(&self.keys).unwrap_or(0),
            })
        });
        addresses.encode(out);
    }

    /// Where one of these is: its first address, or a page of it.
    fn place(&self, input: &mut Input<'_>, bases: &[u64]) -> u64 {
        match input.below(8) {
            0..=2 => input.one_of(bases).unwrap_or(0),
            3..=6 => {
                let base = input.one_of(bases).unwrap_or(0);
                base.wrapping_add(input.below(24) as u64 * PAGE)
            }
            _ => self.address(input),
        }
    }

    /// Segments, then actions. The segments of one request mostly lie side by side.
    fn request(&self, input: &mut Input<'_>, content: bool, depth: usize, out: &mut Vec<u8>) {
        let bases = if content { &self.slabs } else { &self.shared };
        let count = [1, 2, 3, 0][input.below(4)];
        let mut next = self.place(input, bases);
        (count as u64).encode(out);
        for _ in 0..count {
            let other = input.below(8) == 1;
            let address = if other {
                self.place(input, bases)
            } else {
                next
            };
            let size = self.part(input);
            let group = match input.below(16) {
                0 => input.byte(),
                kind => [5, 3, 1, 13, 11][kind % 5],
            };
            (group, ExecutorAddr(address), size).encode(out);
            if content {
                let bytes = input.bytes();
                let too_long = input.below(16) == 1;
                let most = if too_long { usize::MAX } else { size as usize };
                Bytes(&bytes[..bytes.len().min(most)]).encode(out);
            }
            let end = address.wrapping_add(size);
            next = end.checked_next_multiple_of(PAGE).unwrap_or(end);
        }
        encode_pairs(input, out, |input| {
            let service = match depth {
                0 => Reserve,
                _ => ALL[input.below(ALL.len())],
            };
            self.prepare(service, input, depth.saturating_sub(1))
        });
    }

    /// A function and arguments for it.
    fn prepare(&self, service: Service, input: &mut Input<'_>, depth: usize) -> (u64, Vec<u8>) {
        let mut out = Vec::new();
        let name = match service {
            Reserve => {
                (self.instance(input, MANAGER), self.size(input)).encode(&mut out);
                format!("{MANAGER}reserve_wrapper")
            }
            Finalize | Initialize => {
                self.instance(input, MANAGER).encode(&mut out);
                self.request(input, true, depth, &mut out);
                let verb = if service == Finalize {
                    "finalize"
                } else {
                    "initialize"
                };
                format!("{MANAGER}{verb}_wrapper")
            }
            Deallocate | Deinitialize | Release => {
                self.instance(input, MANAGER).encode(&mut out);
                self.addresses(input, &mut out);
                let verb = match service {
                    Deallocate => "deallocate",
                    Deinitialize => "deinitialize",
                    _ => "release",
                };
                format!("{MANAGER}{verb}_wrapper")
            }
            SharedReserve => {
                (self.instance(input, MAPPER), self.size(input)).encode(&mut out);
                format!("{MAPPER}Reserve")
            }
            SharedInitialize => {
                let base = match input.byte() {
                    0xff => input.number(),
                    _ => input.one_of(&self.shared).unwrap_or(0),
                };
                (self.instance(input, MAPPER), ExecutorAddr(base)).encode(&mut out);
                self.request(input, false, depth, &mut out);
                format!("{MAPPER}Initialize")
            }
            SharedDeinitialize | SharedRelease => {
                self.instance(input, MAPPER).encode(&mut out);
                self.addresses(input, &mut out);
                let release = service == SharedRelease;
                format!(
                    "{MAPPER}{}",
                    if release { "Release" } else { "Deinitialize" }
                )
            }
            Open => {
                self.instance(input, DYLIBS).encode(&mut out);
                let path: &[u8] = match input.below(4) {
                    0 => b"",
                    1 => b"libm.so.6",
                    2 => b"/nonexistent",
                    _ => b"with a \0 inside",
                };
                (Bytes(path), u64::from(input.byte() == 1)).encode(&mut out);
                format!("{DYLIBS}open_wrapper")
            }
            Lookup | Resolve => {
                if service == Lookup {
                    self.instance(input, DYLIBS).encode(&mut out);
                }
                let library = input.one_of(&self.libraries);
                library.unwrap_or_else(|| input.number()).encode(&mut out);
                let names = input.some(4, |input| {
                    let name: &[u8] = match input.below(4) {
                        0 => b"",
                        1 => b"malloc",
                        2 => b"llvm_orc_registerJITLoaderGDBWrapper",
                        _ => input.bytes(),
                    };
                    (Bytes(name), input.below(2) == 0)
                });
                names.encode(&mut out);
                let verb = if service == Lookup {
                    "lookup"
                } else {
                    "resolve"
                };
                format!("{DYLIBS}{verb}_wrapper")
            }
            Register | Deregister => {
                // An unwinder believes what is in a section: only these hold any frames.
                let (start, end) = match input.below(4) {
                    0 => (address_of(&FRAMES), FRAMES.len()),
                    1 => (address_of(&ZEROS), ZEROS.len()),
                    2 => (address_of(&FRAMES), input.below(FRAMES.len())),
                    _ => (input.number() | 1 << 63, input.byte().into()),
                };
                let end = start.wrapping_add(end as u64);
                (ExecutorAddr(start), ExecutorAddr(end)).encode(&mut out);
                let register = service == Register;
                let verb = if register { "register" } else { "deregister" };
                format!("llvm_orc_{verb}EHFrameAllocAction")
            }
            RegisterDebug => {
                let start = self.address(input);
                let end = start.wrapping_add(self.part(input));
                (ExecutorAddr(start), ExecutorAddr(end)).encode(&mut out);
                match input.below(3) {
                    0 => {}
                    other => out.push(other as u8 - 1),
                }
                "llvm_orc_registerJITLoaderGDBAllocAction".to_owned()
            }
            Write => {
                let count = input.below(5);
                (count as u64).encode(&mut out);
                let kind = input.below(6);
                for _ in 0..count {
                    ExecutorAddr(self.accessible(input)).encode(&mut out);
                    match kind {
                        0 => input.byte().encode(&mut out),
                        1 => (input.number() as u16).encode(&mut out),
                        2 => (input.number() as u32).encode(&mut out),
                        3 | 4 => input.number().encode(&mut out),
                        _ => Bytes(input.bytes()).encode(&mut out),
                    }
                }
                let kinds = [
                    "uint8s", "uint16s", "uint32s", "uint64s", "pointers", "buffers",
                ];
                format!("{MEMORY}write_{}_wrapper", kinds[kind])
            }
            Read => {
                let kinds = [
                    "uint8s", "uint16s", "uint32s", "uint64s", "pointers", "strings", "buffers",
                ];
                let kind = kinds[input.below(kinds.len())];
                let ranges = kind == "buffers";
                let count = input.below(5);
                (count as u64).encode(&mut out);
                for _ in 0..count {
                    let start = self.accessible(input);
                    ExecutorAddr(start).encode(&mut out);
                    if ranges {
                        ExecutorAddr(start.wrapping_add(input.byte().into())).encode(&mut out);
                    }
                }
                format!("{MEMORY}read_{kind}_wrapper")
            }
            RunMain => {
                let args = input.some(5, |input| Bytes(input.bytes()));
                (ExecutorAddr(main_function()), args).encode(&mut out);
                format!("{RUN}main_wrapper")
            }
            RunInt => {
                (ExecutorAddr(int_function()), input.number() as i32).encode(&mut out);
                let with = input.below(2) == 0;
                let kind = if with { "int" } else { "void" };
                format!("{RUN}{kind}_function_wrapper")
            }
        };
        (self.executor.symbol(&name), out)
    }
}
