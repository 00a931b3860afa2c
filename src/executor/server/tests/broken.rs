// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Controllers that break the protocol, or that can not hear.

use super::*;
use crate::error::Error;

fn ended_with(bytes: &[u8]) -> Error {
    let mut controller = over_pipes();
    controller.send(bytes);
    controller.finish().unwrap_err()
}

#[test]
fn a_broken_protocol_ends_the_session_in_the_words_of_stock_executors() {
    let mut small = message(Opcode::Hangup, 0, 0, &[]);
    small[0] = 31;
    let mut unknown = message(Opcode::Hangup, 0, 0, &[]);
    unknown[8] = 4;
    let whole = message(Opcode::CallWrapper, 0, 0, &[1, 2, 3]);
    let cases: [(&[u8], &str); 8] = [
        (&small, "Message size too small"),
        (&unknown, "Unexpected opcode"),
        (
            &message(Opcode::Setup, 0, 0, &[]),
            "Unexpected Setup opcode",
        ),
        (&whole[..7], "Unexpected end-of-file"),
        (&whole[..HEADER_SIZE], "Unexpected end-of-file"),
        (&whole[..HEADER_SIZE + 2], "Unexpected end-of-file"),
        (
            &message(Opcode::Result, 17, 0, &[]),
            "No call for sequence number 17",
        ),
        (
            &message(Opcode::Result, 0, 1, &[]),
            "Unexpected tag in a Result message",
        ),
    ];
    for (bytes, words) in cases {
        let error = ended_with(bytes);
        assert_eq!(error.message(), words);
        assert_eq!(error.status(), Status::Disconnected);
    }
}

#[test]
fn a_controller_that_can_not_hear_is_left() {
    let mut controller = over_pipes();
    let read = controller.symbol(READ);
    let (closed, _) = std::io::pipe().unwrap();
    drop(std::mem::replace(&mut controller.input, closed));
    controller.start(read, &nothing());
    // Calls that were read before the loss was noticed are done, but no session goes on for ever.
    let error = loop {
        let call = message(Opcode::CallWrapper, 1, read, &nothing());
        let gone = controller
            .output
            .as_mut()
            .unwrap()
            .write_all(&call)
            .is_err();
        if gone || controller.executor.is_finished() {
            break controller.finish().unwrap_err();
        }
        std::thread::yield_now();
    };
    assert!(
        error.message().starts_with("write to the controller: "),
        "{error}"
    );
    assert_eq!(error.os_code(), Some(libc::EPIPE));
}
