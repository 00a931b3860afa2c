// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Compiles jitmem/llvm_c.cpp with the LLVM that llvm-sys has found.

use std::env::{self, VarError};
use std::path::Path;
use std::process::Command;

fn main() -> Result<(), VarError> {
    let headers = env::var("DEP_JITMEM_INCLUDE")?;
    let flags = Command::new(env::var("DEP_LLVM_22_CONFIG_PATH")?)
        .arg("--cxxflags")
        .output()
        .expect("llvm-config runs");
    let mut build = cc::Build::new();
    for flag in String::from_utf8_lossy(&flags.stdout).split_whitespace() {
        build.flag(flag);
    }
    build
        .cpp(true)
        .warnings(false) // in LLVM's headers
        .file(Path::new(&headers).join("jitmem/llvm_c.cpp"))
        .compile("jitmem_llvm_c");
    Ok(())
}
