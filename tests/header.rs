// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The committed C header is the one that the sources generate.

const GENERATED: &str = include_str!(concat!(env!("OUT_DIR"), "/jitmem.h"));

/// With JITMEM_UPDATE_HEADER set (`make header`), writes it anew instead.
#[test]
fn the_committed_header_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/include/jitmem.h");
    if std::env::var_os("JITMEM_UPDATE_HEADER").is_some() {
        std::fs::write(path, GENERATED).expect("include/ is writable");
    }
    let committed = std::fs::read_to_string(path).expect("include/jitmem.h is committed");
    assert!(
        committed == GENERATED,
        "include/jitmem.h is out of date: run `make header`"
    );
}
