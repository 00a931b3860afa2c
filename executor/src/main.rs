// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! An executor program: runs what an ORC controller links. It takes what LLVM's
//! llvm-jitlink-executor takes, with the same messages and exit codes.

#![cfg_attr(not(test), no_main)]

mod cgroup;
mod connection;
mod contain;
mod exports;
mod isolation;
mod options;
mod parent;
mod serve;
mod standard_streams;
mod token;

use anyhow::{Context, Result};
use connection::Listener;
use contain::{Bound, Containment};
use jitmem::executor::program;
use jitmem::executor::server::{self, SetupLayout, Supervision};
use jitmem::{Error, Status};
use options::{Command, CxxRuntime, Options};
use serve::Sessions;
use standard_streams::Missing;
use std::env;
use std::ffi::{OsString, c_int};
use std::io::{Write, stderr, stdout};
use token::Token;

/// What the program itself needs is there when linked code has used up the heap.
#[global_allocator]
static HEAP: jitmem::Heap = jitmem::Heap;

/// The controller's LLVM, where no arguments can be given.
const LLVM_VARIABLE: &str = "JITMEM_EXECUTOR_LLVM";

/// The release whose protocol is spoken when nothing tells.
const NEWEST: u32 = 22;

/// Called by the C library: Rust's own beginning would change how signals are handled, for linked code
/// too.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main() -> c_int {
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| "jitmem-executor".into());
    let name = name.to_string_lossy();
    let mut options = match options::parse(arguments) {
        Ok(Command::Serve(options)) => options,
        Ok(Command::Diagnose(containment)) => return diagnose(&name, containment),
        Ok(Command::Help) => return say(stdout(), options::USAGE),
        Ok(Command::Version) => {
            let version = concat!("jitmem-executor ", env!("CARGO_PKG_VERSION"), "\n");
            return say(stdout(), version);
        }
        Err(error) => {
            say(stderr(), &format!("error: {error}\n\n{}", options::USAGE));
            return 1;
        }
    };
    let served =
        standard_streams::open_missing().and_then(|missing| run(&name, &mut options, &missing));
    match served {
        // The C library goes on: what linked code has printed is still in its buffers.
        Ok(code) => code,
        Err(error) => {
            say(stderr(), &format!("{name}: {error:#}\n"));
            1
        }
    }
}

/// Writes, and gives the exit code that says whether that worked.
fn say(mut stream: impl Write, text: &str) -> c_int {
    let written = stream.write_all(text.as_bytes());
    written.and_then(|()| stream.flush()).is_err().into()
}

/// Bounds this process as it would before it serves, and says how each bound holds.
fn diagnose(name: &str, mut containment: Containment) -> c_int {
    let bounds = containment.begin().and_then(|mut bounds| {
        bounds.extend(containment.close()?);
        Ok(bounds)
    });
    match bounds {
        Ok(bounds) => {
            let lines = bounds.iter().map(|bound| format!("{}\n", bound.text));
            say(stdout(), &lines.collect::<String>())
        }
        Err(error) => {
            say(stderr(), &format!("{name}: {error:#}\n"));
            1
        }
    }
}

/// Tells the user of bounds that hold for less than their names say.
fn note_bounds(name: &str, bounds: &[Bound]) {
    for bound in bounds.iter().filter(|bound| bound.is_less) {
        say(stderr(), &format!("{name}: {}\n", bound.text));
    }
}

/// Gives the exit code.
fn run(name: &str, options: &mut Options, missing: &Missing) -> Result<c_int> {
    let llvm = controllers_llvm(options)?;
    let token = match &options.token_file {
        _ if options.endpoint.is_connected() => None,
        Some(path) => Some(Token::from_file(path)?),
        None => Token::from_environment()?,
    };
    if let Some((most, words)) = &options.serve {
        return serve_sessions(name, options, token, *most, words).map(|()| 0);
    }
    program::report_crashes(name);
    for signal in options.containment.signals() {
        program::report_limit(name, signal);
    }
    if options.share_with_children {
        program::share_memory_with_children();
    }
    options.containment.supervised = options.supervise.is_some();
    note_bounds(name, &options.containment.begin()?);
    program::fit_heap_to_limit();
    if let Some(bytes) = options.stack_size {
        program::set_stack_size(usize::try_from(bytes)?).context("--stack-size")?;
    }
    let note = |note: &str| {
        say(stderr(), &format!("{name}: {note}\n"));
    };
    let taken = options.endpoint.descriptors();
    taken
        .iter()
        .try_for_each(|number| missing.refuse(*number))?;
    let (input, output) = connection::connect(&options.endpoint, token.as_ref(), note)?;
    standard_streams::separate(&taken)?;
    let cxx_ahead = match options.cxx_runtime {
        // Each process that takes another one's place has it at the same addresses.
        CxxRuntime::WhenNeeded => {
            options.supervise.is_some() || options.containment.refuses_files()
        }
        choice => choice == CxxRuntime::Ahead,
    };
    if cxx_ahead {
        program::load_cxx_runtime();
    }
    let session = server::Options {
        layout: SetupLayout::of_llvm(llvm),
        cxx_runtime: options.cxx_runtime != CxxRuntime::Never,
        exit_when_orphaned: options.exit_when_orphaned,
        time_limit: options.time_limit,
        unread: options.unread,
        ..server::Options::default()
    };
    let print_debug_list = || {
        if options.print_debug_list {
            let last = program::oldest_debug_entry();
            let line = format!("__jit_debug_descriptor.last_entry = {last:#018x}\n");
            say(stderr(), &line);
        }
    };
    print_debug_list();
    if let Some(restarts) = options.supervise {
        let containment = std::mem::take(&mut options.containment);
        let name = name.to_owned();
        let prepare = move || {
            let closed = containment.close();
            let closed = closed.map_err(|error| Error::new(Status::Denied, format!("{error:#}")));
            closed.map(|bounds| note_bounds(&name, &bounds))
        };
        let supervision = Supervision {
            restarts,
            prepare: Box::new(prepare),
        };
        // SAFETY: to do what the controller asks for is what this program is for; it has no threads of its own that
        // hold a lock.
        return Ok(unsafe { server::supervise(input, output, &session, supervision) }?);
    }
    note_bounds(name, &options.containment.close()?);
    // SAFETY: to do what the controller asks for is what this program is for.
    let served = unsafe { server::serve(input, output, &session) };
    print_debug_list();
    let Err(error) = served else { return Ok(0) };
    // No error that takes a backtrace: frames of linked code may be among what the unwinder knows.
    say(stderr(), &format!("{name}: {error}\n"));
    Ok(1)
}

fn serve_sessions(
    name: &str,
    options: &Options,
    token: Option<Token>,
    most: usize,
    words: &[OsString],
) -> Result<()> {
    // All other bounds are each session's.
    let mut bounds = Containment {
        die_with_parent: options.containment.die_with_parent,
        ..Containment::default()
    };
    bounds.begin()?;
    let called = name.to_owned();
    let note = move |note: &str| {
        say(stderr(), &format!("{called}: {note}\n"));
    };
    let listener = Listener::new(&options.endpoint, token.is_some(), &note)?;
    let sessions = Sessions {
        name: name.to_owned(),
        options: words.to_vec(),
        token,
        most,
    };
    serve::serve(&listener, sessions, note)
}

fn controllers_llvm(options: &Options) -> Result<u32> {
    if let Some(llvm) = options.llvm {
        return Ok(llvm);
    }
    if let Some(text) = env::var_os(LLVM_VARIABLE) {
        return options::release(&text.to_string_lossy()).context(LLVM_VARIABLE);
    }
    let found = if options.endpoint.is_connected() {
        parent::llvm()
    } else {
        None
    };
    Ok(found.unwrap_or(NEWEST))
}
