// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The command line of `jitmem-executor`, a word in each line of the input.

#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;
use options::{Command, Endpoint, Options, parse};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

#[path = "../../executor/src/cgroup.rs"]
mod cgroup;
#[path = "../../executor/src/connection.rs"]
mod connection;
#[path = "../../executor/src/contain.rs"]
mod contain;
#[path = "../../executor/src/isolation.rs"]
mod isolation;
#[path = "../../executor/src/options.rs"]
mod options;
#[path = "../../executor/src/serve.rs"]
mod serve;
#[path = "../../executor/src/token.rs"]
mod token;

fn served(words: Vec<OsString>) -> Option<Options> {
    match parse(words) {
        Ok(Command::Serve(options)) => Some(options),
        Ok(Command::Diagnose(_) | Command::Help | Command::Version) | Err(_) => None,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let words = bytes.split(|byte| *byte == b'\n');
    let words = words
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect();
    let Some(mut options) = served(words) else {
        return;
    };
    // A server starts its sessions with its own options, but for those of the server.
    if let Some((most, mut own)) = options.serve.take() {
        assert!(most > 0);
        own.push("filedescs=0,0".into());
        options.endpoint = Endpoint::Descriptors(0, 0);
        options.token_file = None;
        options.print_debug_list = false;
        let mut session = served(own.clone()).unwrap_or_else(|| panic!("{own:?} is refused"));
        session.print_debug_list = false;
        assert_eq!(session, options, "{own:?}");
    }
});
