// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which jitmem this is. The macros of the header say which one a program was compiled against.

use std::ffi::{CStr, c_char};

const fn number(text: &str) -> u32 {
    let mut value = 0;
    let mut index = 0;
    while index < text.len() {
        value = value * 10 + (text.as_bytes()[index] - b'0') as u32;
        index += 1;
    }
    value
}

const VERSION: u32 = number(env!("CARGO_PKG_VERSION_MAJOR")) << 16
    | number(env!("CARGO_PKG_VERSION_MINOR")) << 8
    | number(env!("CARGO_PKG_VERSION_PATCH"));

const VERSION_STRING: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a version has no NUL inside"),
    };

/// The version of the library that runs: major << 16 | minor << 8 | patch, as JITMEM_VERSION.
///
/// Thread-safe; never fails.
#[unsafe(no_mangle)]
pub extern "C" fn jitmem_version() -> u32 {
    VERSION
}

/// The version of the library that runs, as text such as "0.1.0". Static; do not free.
///
/// Thread-safe; never fails.
#[unsafe(no_mangle)]
pub extern "C" fn jitmem_version_string() -> *const c_char {
    VERSION_STRING.as_ptr()
}
