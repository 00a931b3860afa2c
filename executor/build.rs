// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Exports what debuggers and linked programs look for by name.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for name in [
        "_Unwind_Find_FDE",
        "__jit_debug_descriptor",
        "__jit_debug_register_code",
        "llvm_orc_*",
    ] {
        println!("cargo:rustc-link-arg-bins=-Wl,--export-dynamic-symbol={name}");
    }
}
