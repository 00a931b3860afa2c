// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Generates the C header and names the shared library.

use anyhow::{Context, Result};
use std::env;
use std::path::PathBuf;

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=src/capi");
    println!("cargo:rerun-if-changed=cbindgen.toml");
    println!("cargo:rerun-if-changed=build.rs");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").context("cargo names the crate")?);
    let out = PathBuf::from(env::var("OUT_DIR").context("cargo gives a place to write")?);
    write_header(&root, &out)?;

    // Before 1.0 every minor version may change the ABI.
    let major = env::var("CARGO_PKG_VERSION_MAJOR")?;
    let minor = env::var("CARGO_PKG_VERSION_MINOR")?;
    let abi = if major == "0" {
        format!("0.{minor}")
    } else {
        major
    };
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libjitmem.so.{abi}");
    // Code that the library runs in threads of its own, and the fork handler, must outlive a dlclose.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    Ok(())
}

/// Into OUT_DIR: a build never changes the source tree. A test compares it with the committed one.
fn write_header(root: &std::path::Path, out: &std::path::Path) -> Result<()> {
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml"))
        .map_err(anyhow::Error::msg)
        .context("read cbindgen.toml")?;
    let version = env::var("CARGO_PKG_VERSION")?;
    let parts: Vec<&str> = version.split('.').collect();
    config.after_includes = Some(format!(
        "\n/* The version that a program is compiled against; jitmem_version() is the one it runs with. */\n\
         #define JITMEM_VERSION_MAJOR {major}\n\
         #define JITMEM_VERSION_MINOR {minor}\n\
         #define JITMEM_VERSION_PATCH {patch}\n\
         #define JITMEM_VERSION_STRING \"{version}\"\n\
         #define JITMEM_VERSION \\\n  \
         (JITMEM_VERSION_MAJOR << 16 | JITMEM_VERSION_MINOR << 8 | JITMEM_VERSION_PATCH)",
        major = parts[0],
        minor = parts[1],
        patch = parts[2],
    ));
    let builder = cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/capi/mod.rs"));
    let mut header = Vec::new();
    builder
        .generate()
        .context("generate jitmem.h")?
        .write(&mut header);
    // Rust's heading for what a caller must see to, in C's words.
    let header = String::from_utf8(header)?.replace("# Safety", "Requires:");
    std::fs::write(out.join("jitmem.h"), header).context("write jitmem.h")
}
