// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Our own service in the executor, one call after the other.

#![no_main]

use jitmem::wire::frame::SetupLayout;
use jitmem_fuzz::executor::Executor;
use jitmem_fuzz::input::Input;
use jitmem_fuzz::own::Controller;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let private_data = bytes.last().is_some_and(|byte| byte % 2 == 1);
    let executor = Executor::start(SetupLayout::MapAndSymbols);
    let mut controller = Controller::new(executor, private_data);
    while !input.is_empty() {
        controller.step(&mut input);
    }
    controller.end();
});
