// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What executors answer through a session's own channel, in order and not.

#![no_main]

use jitmem_fuzz::host::Host;
use jitmem_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let died = input.below(2) == 1;
    let host = Host::new(input.bytes());
    while !input.is_empty() {
        host.step(&mut input);
    }
    host.end(died);
});
