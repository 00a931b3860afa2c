// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What controllers send through a session's own channel, in order and not.

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
    controller.attach_channel();
    while !input.is_empty() {
        if !controller.has_channel() {
            // A session that goes on after the end of its channel gets another one.
            controller.step(&mut input);
            controller.attach_channel();
        }
        controller.step(&mut input);
    }
    controller.end();
});
