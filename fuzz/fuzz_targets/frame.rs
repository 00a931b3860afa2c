// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A stream of EPC messages.

#![no_main]

use jitmem::wire::frame::{HEADER_SIZE, Header, Opcode, Setup, SetupLayout};
use jitmem::wire::sps::Outcome;
use jitmem_fuzz::reread;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| {
    let mut rest = stream;
    while let Some((head, behind)) = rest.split_first_chunk::<HEADER_SIZE>() {
        let Ok(header) = Header::decode(head) else {
            break;
        };
        assert_eq!(&header.encode(), head);
        assert_eq!(header.body_size() + HEADER_SIZE as u64, header.size);
        let size = usize::try_from(header.body_size()).unwrap_or(usize::MAX);
        let Some((body, next)) = behind.split_at_checked(size) else {
            break;
        };
        match header.opcode {
            Opcode::Setup => setup(body),
            Opcode::Hangup => reread!(body => Outcome),
            Opcode::Result | Opcode::CallWrapper => {}
        }
        let _ = header.check();
        rest = next;
    }
});

fn setup(body: &[u8]) {
    let layouts = [SetupLayout::Symbols, SetupLayout::MapAndSymbols];
    for layout in layouts {
        if let Ok(setup) = Setup::decode(body, layout) {
            let again = Setup::decode(&setup.encode(layout), layout);
            assert_eq!(again, Ok(setup));
        }
    }
    if let Ok((setup, layout)) = Setup::recognize(body) {
        assert_eq!(Setup::decode(body, layout), Ok(setup));
    }
}
