// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Linked code that calls the controller.

use super::*;
use crate::sys::WrapperResult;
use crate::sys::testing::call_wrapper;

/// A wrapper function that dispatches: arguments are function, context, tag; what the controller
/// answers comes back, an out-of-band error as text behind an exclamation mark.
fn dispatching(args: &[u8]) -> Answer {
    let (dispatch, context, tag): (u64, u64, u64) = from_bytes(args).unwrap();
    let answer = crate::sys::testing::call_dispatch(dispatch, context, tag, b"question");
    Ok(match answer {
        WrapperResult::Bytes(bytes) => bytes,
        WrapperResult::OutOfBand(message) => format!("!{message}").into_bytes(),
    })
}

fn dispatch_args(controller: &OverPipes, tag: u64) -> Vec<u8> {
    to_bytes(&(controller.symbol(DISPATCH), controller.symbol(CONTEXT), tag))
}

#[test]
fn linked_code_calls_the_controller_and_calls_nest() {
    let mut controller = over_pipes();
    let function = wrapper_address(dispatching);
    let outer = controller.start(function, &dispatch_args(&controller, 0xabc));
    let (question, body) = controller.receive();
    assert_eq!(question, Header::new(Opcode::CallWrapper, 0, 0xabc, 8));
    assert_eq!(body, b"question");
    // The controller calls back before it answers, and that dispatches as well.
    let inner = controller.start(function, &dispatch_args(&controller, 0xdef));
    let (nested, _) = controller.receive();
    assert_eq!((nested.sequence, nested.tag), (1, 0xdef));
    let large = vec![9; 100_000];
    controller.send(&message(Opcode::Result, 1, 0, &large));
    assert!(controller.result(inner) == large);
    controller.send(&message(Opcode::Result, 0, 0, b""));
    assert_eq!(controller.result(outer), b"");
    controller.finish().unwrap();
}

#[test]
fn the_end_fails_what_is_outstanding_and_waits_for_what_runs() {
    let mut controller = over_pipes();
    let function = wrapper_address(dispatching);
    let args = dispatch_args(&controller, 1);
    let call = controller.start(function, &args);
    let _question = controller.receive();
    controller.output = None;
    assert_eq!(controller.result(call), b"!disconnecting");
    assert_eq!(controller.executor.join().unwrap(), Ok(()));
    let late = call_wrapper(function, &args);
    let expected = b"!jit_dispatch not available (EPC server shut down)".to_vec();
    assert_eq!(late, WrapperResult::Bytes(expected));
}

#[test]
fn a_dispatch_that_does_not_reach_the_controller_is_told_so() {
    let mut controller = over_pipes();
    let (closed, _) = std::io::pipe().unwrap();
    drop(std::mem::replace(&mut controller.input, closed));
    // The session goes on: nothing has been read since.
    let args = dispatch_args(&controller, 1);
    let (told, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send(call_wrapper(wrapper_address(dispatching), &args)));
    let answer = answer.recv_timeout(std::time::Duration::from_secs(60));
    let WrapperResult::Bytes(answer) = answer.unwrap() else {
        panic!("it answers bytes");
    };
    assert!(answer.starts_with(b"!write to the controller: "));
    drop(controller.output);
    let _ = controller.executor.join().unwrap();
}
