// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Linked code that calls its controller, and answers of all kinds.

#![no_main]

use jitmem_fuzz::dispatch::Controller;
use jitmem_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let ending = input.below(4);
    let mut controller = Controller::new(&mut input);
    while !input.is_empty() && controller.step(&mut input) {}
    controller.end(ending % 2 == 0, ending / 2 == 1);
});
