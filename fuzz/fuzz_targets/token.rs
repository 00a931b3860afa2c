// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What controllers send first to `jitmem-executor --token-file`.

#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use token::Token;

#[path = "../../executor/src/token.rs"]
mod token;

const WORDS: &[u8] = b"sixteen random..";

static TOKEN: LazyLock<Token> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("jitmem-fuzz-{}", std::process::id()));
    let mut file = File::create(&path).expect("a file");
    file.set_permissions(Permissions::from_mode(0o600))
        .expect("chmod");
    file.write_all(WORDS).expect("write");
    let token = Token::from_file(&path).expect("a token");
    fs::remove_file(&path).expect("unlink");
    token
});

fuzz_target!(|bytes: &[u8]| {
    let (mut controller, own) = UnixStream::pair().expect("socketpair");
    controller.write_all(bytes).expect("a short message");
    drop(controller);
    let right = [&(WORDS.len() as u64).to_le_bytes(), WORDS].concat();
    let answer = TOKEN.check(&own.into());
    assert_eq!(answer.is_ok(), bytes.starts_with(&right), "{answer:?}");
});
