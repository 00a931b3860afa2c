// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! LLVM's services in the executor, one call after the other.

#![no_main]

use jitmem::wire::frame::SetupLayout;
use jitmem_fuzz::executor::Executor;
use jitmem_fuzz::input::Input;
use jitmem_fuzz::llvm::Controller;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let layout = match input.below(2) {
        0 => SetupLayout::MapAndSymbols,
        _ => SetupLayout::Symbols,
    };
    let mut controller = Controller::new(Executor::start(layout));
    while !input.is_empty() {
        controller.step(&mut input);
    }
    controller.end();
});
