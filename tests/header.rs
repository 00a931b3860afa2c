// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The committed C header is the one that the sources generate, and keeps to its own rules.

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

/// A struct that is alone says its size; one that stands in an array ends with reserved fields.
#[test]
fn every_struct_can_grow() {
    // LLVM's, which is what it is.
    let fixed = ["jitmem_wrapper_call", "jitmem_wrapper_result"];
    let mut seen = 0;
    for part in GENERATED.split("\ntypedef struct ").skip(1) {
        let Some((name, rest)) = part.split_once(" {\n") else {
            continue; // an opaque one
        };
        let body = rest.split("\n} ").next().expect("a struct ends");
        if name.contains(';') || fixed.contains(&name) {
            continue;
        }
        let mut fields = body.lines().filter(|line| line.ends_with(';'));
        let sized = fields.next() == Some("  size_t struct_size;");
        let reserved = fields
            .next_back()
            .is_some_and(|field| field.contains(" reserved["));
        assert!(sized || reserved, "{name} can't grow");
        seen += 1;
    }
    assert!(seen >= 13, "only {seen} structs found");
}
