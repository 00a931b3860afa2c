// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A stream of messages to the executor's server, many under way at a time, ending anywhere.

#![no_main]

use jitmem::wire::frame::{Header, Opcode, SetupLayout, message};
use jitmem_fuzz::executor::Executor;
use jitmem_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;

/// Functions that take any bytes without touching memory that a controller must vouch for: of the
/// others some call, some write, and some read wherever they are told to, AddressSanitizer's own
/// memory included.
const TAKES_ANYTHING: [&str; 13] = [
    "__llvm_orc_SimpleExecutorMemoryManager_reserve_wrapper",
    "__llvm_orc_SimpleExecutorMemoryManager_finalize_wrapper",
    "__llvm_orc_SimpleExecutorMemoryManager_initialize_wrapper",
    "__llvm_orc_SimpleExecutorMemoryManager_deallocate_wrapper",
    "__llvm_orc_SimpleExecutorMemoryManager_deinitialize_wrapper",
    "__llvm_orc_SimpleExecutorMemoryManager_release_wrapper",
    "__llvm_orc_ExecutorSharedMemoryMapperService_Reserve",
    "__llvm_orc_ExecutorSharedMemoryMapperService_Initialize",
    "__llvm_orc_ExecutorSharedMemoryMapperService_Deinitialize",
    "__llvm_orc_ExecutorSharedMemoryMapperService_Release",
    "__llvm_orc_SimpleExecutorDylibManager_lookup_wrapper",
    "__llvm_orc_SimpleExecutorDylibManager_resolve_wrapper",
    "jitmem_service_open",
];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut executor = Executor::start(SetupLayout::MapAndSymbols);
    let tags = TAKES_ANYTHING.map(|name| executor.symbol(name));
    let mut called = BTreeSet::new();
    // Whether it was told to stop, and whether that was in order.
    let mut broken = false;
    let mut ended = false;
    while !input.is_empty() && !broken && !ended {
        let kind = input.below(16);
        let sequence = executor.next();
        let mut frame = match kind {
            // What is behind a message of a wrong size could be taken for a call of anything, so
            // such a one is the last.
            0 => {
                broken = true;
                let size = input.number() % 32;
                let header = Header {
                    size,
                    opcode: Opcode::CallWrapper,
                    sequence,
                    tag: 0,
                };
                header.encode().to_vec()
            }
            1 => {
                broken = true;
                let mut frame = message(Opcode::CallWrapper, sequence, tags[0], input.bytes());
                let longer = (frame.len() as u64).saturating_add(input.number().max(1));
                frame[..8].copy_from_slice(&longer.to_le_bytes());
                frame
            }
            2 => {
                broken = true;
                message(
                    Opcode::Result,
                    input.number(),
                    input.number(),
                    input.bytes(),
                )
            }
            3 => {
                broken = true;
                let mut frame = message(Opcode::Setup, sequence, 0, input.bytes());
                frame[8] = [0, 4, 0xff][input.below(3)];
                frame
            }
            4 => {
                ended = true;
                message(Opcode::Hangup, sequence, input.number(), input.bytes())
            }
            5 => {
                called.insert(sequence);
                message(Opcode::CallWrapper, sequence, 0, input.bytes())
            }
            _ => {
                called.insert(sequence);
                let tag = tags[input.below(tags.len())];
                message(Opcode::CallWrapper, sequence, tag, input.bytes())
            }
        };
        if input.byte() == 0xff {
            frame.truncate(input.below(frame.len()));
            called.remove(&sequence);
            broken = !frame.is_empty();
            ended = true;
        }
        executor.send(&frame);
    }
    let (answers, result) = executor.end();
    assert_eq!(result.is_err(), broken, "{result:?}");
    if !broken {
        // Each call that was sent whole is answered, whatever came of it.
        assert!(answers.keys().eq(&called), "{answers:?} for {called:?}");
    }
});
