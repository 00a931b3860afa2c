// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! An executor program: runs what an ORC controller links. It takes what LLVM's
//! llvm-jitlink-executor takes, with the same messages and exit codes.

mod channel;
mod contain;
mod options;
mod parent;
mod seccomp;

use anyhow::{Context, Result};
use jitmem::capi::serve_controller;
use jitmem::executor::program;
use jitmem::executor::server;
use options::{Channel, Command, CxxRuntime, Options};
use std::env;
use std::process::exit;

/// The controller's LLVM, for who can't give arguments.
const LLVM_VARIABLE: &str = "JITMEM_EXECUTOR_LLVM";

/// The release whose protocol is spoken when nothing tells.
const NEWEST: u32 = 22;

fn main() {
    program::behave_as_c();
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| "jitmem-executor".into());
    let name = name.to_string_lossy();
    let options = match options::parse(arguments) {
        Ok(Command::Serve(options)) => options,
        Ok(Command::Help) => return print!("{}", options::USAGE),
        Ok(Command::Version) => return println!("jitmem-executor {}", env!("CARGO_PKG_VERSION")),
        Err(error) => {
            eprint!("error: {error}\n\n{}", options::USAGE);
            exit(1);
        }
    };
    if let Err(error) = run(&name, &options) {
        eprintln!("{name}: {error:#}");
        exit(1);
    }
    // Through the C library: what linked code has printed is still in its buffers.
    exit(0);
}

fn run(name: &str, options: &Options) -> Result<()> {
    let llvm = controllers_llvm(options)?;
    program::report_crashes(name);
    options.containment.begin()?;
    let (input, output) = channel::connect(&options.channel, |note| eprintln!("{name}: {note}"))?;
    let cxx_ahead = match options.cxx_runtime {
        CxxRuntime::WhenNeeded => options.containment.refuses_files(),
        choice => choice == CxxRuntime::Ahead,
    };
    if cxx_ahead {
        program::load_cxx_runtime();
    }
    let server = server::Options {
        layout: options::layout(llvm),
        cxx_runtime: options.cxx_runtime != CxxRuntime::Never,
        ..server::Options::default()
    };
    let print_debug_list = || {
        if options.print_debug_list {
            let last = program::oldest_debug_entry();
            eprintln!("__jit_debug_descriptor.last_entry = {last:#018x}");
        }
    };
    print_debug_list();
    options.containment.close()?;
    let served = serve_controller(input, output, server);
    print_debug_list();
    Ok(served?)
}

fn controllers_llvm(options: &Options) -> Result<u32> {
    if let Some(llvm) = options.llvm {
        return Ok(llvm);
    }
    if let Some(text) = env::var_os(LLVM_VARIABLE) {
        return options::release(&text.to_string_lossy()).context(LLVM_VARIABLE);
    }
    let is_child = matches!(options.channel, Channel::Descriptors(..));
    let found = if is_child { parent::llvm() } else { None };
    Ok(found.unwrap_or(NEWEST))
}
