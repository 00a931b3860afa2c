// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Serving one controller over a stream, as LLVM's `llvm-jitlink-executor` does.
//!
//! `connection` are the threads that take messages off the stream and do what they ask,
//! `writer` is what goes the other way.

mod connection;
#[cfg(test)]
mod tests;
mod writer;

pub use crate::wire::frame::SetupLayout;

use super::llvm::{CallClass, PublishedFunction, PublishedSymbol, Services};
use super::service::Offered;
use crate::error::Result;
use crate::mapper::actions::join;
use crate::sys::{self, StreamWriter, explain};
use crate::transport::messages::MessageReader;
use crate::wire::frame::Setup;
use crate::wire::sps::ExecutorAddr;
use connection::Workers;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use writer::Calls;

/// Choices for a session.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the controller expects: [`SetupLayout::Symbols`] if it is of LLVM 14 to 16. Nothing on
    /// the stream tells.
    pub layout: SetupLayout,
    /// Whether libgcc_s, libm and libstdc++ are loaded when the controller looks for a symbol that
    /// the process has not, as programs in C++ need it.
    pub cxx_runtime: bool,
    /// Names and values that are published beside the services' own, or in place of them.
    pub symbols: Vec<(String, u64)>,
    /// Addresses of further wrapper functions that run no program, but at most actions and the like.
    /// Such calls share threads; what may run a program gets a thread of its own each time.
    pub services: Vec<u64>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            layout: SetupLayout::MapAndSymbols,
            cxx_runtime: true,
            symbols: Vec::new(),
            services: Vec::new(),
        }
    }
}

/// The target triple of this process, as LLVM writes it.
fn triple() -> String {
    let vendor = if cfg!(target_arch = "x86_64") {
        "pc"
    } else {
        "unknown"
    };
    let abi = if cfg!(target_env = "musl") {
        "musl"
    } else {
        "gnu"
    };
    format!("{}-{vendor}-linux-{abi}", std::env::consts::ARCH)
}

/// What the session introduces itself with, and the functions that it knows by address.
fn introduce(
    services: &Services,
    context: u64,
    options: &Options,
) -> (Setup, HashMap<u64, PublishedFunction>) {
    let mut symbols = BTreeMap::new();
    let mut functions = HashMap::new();
    for (name, symbol) in services.symbols(options.layout) {
        let value = match symbol {
            PublishedSymbol::Instance(number) => number,
            PublishedSymbol::Function(function) => {
                functions.insert(function.address, function);
                function.address
            }
        };
        symbols.insert(name.to_owned(), ExecutorAddr(value));
    }
    let dispatch = [
        ("__llvm_orc_SimpleRemoteEPC_dispatch_ctx", context),
        (
            "__llvm_orc_SimpleRemoteEPC_dispatch_fn",
            sys::dispatch_address(writer::dispatch),
        ),
    ];
    let dispatch = dispatch.map(|(name, value)| (name.to_owned(), value));
    let more = dispatch.iter().chain(&options.symbols);
    symbols.extend(more.map(|(name, value)| (name.clone(), ExecutorAddr(*value))));
    let setup = Setup {
        triple: triple(),
        page_size: sys::page_size().bytes(),
        bootstrap_map: BTreeMap::new(),
        bootstrap_symbols: symbols,
    };
    (setup, functions)
}

/// Serves the controller that reads `output` and writes `input`, which may be one socket, until it
/// hangs up. Linked code runs in other threads; this one waits for all of them.
///
/// When this returns, deallocation actions that were left have run, last to first, and all memory
/// that the controller had is gone.
///
/// # Errors
/// `Disconnected` if the controller breaks the protocol or the stream fails, with the words that
/// LLVM's own executor has for it; whatever the system refuses before the first message.
///
/// # Safety
/// The controller may have this process do anything: it writes memory by address and calls what it has
/// written. So it is one that is trusted as much as the program itself, and it keeps to its own memory
/// and to what is published to it. The functions of [`Options::services`] are wrapper functions.
pub unsafe fn serve(input: OwnedFd, output: OwnedFd, options: &Options) -> Result<()> {
    let stream = StreamWriter::new(output)
        .map_err(|error| explain("look at the controller's descriptor", error))?;
    let calls = Arc::new(Calls::new(stream));
    // A controller that reads bytes alone never sees the socket, which is closed then. Where there is
    // no descriptor to be had, there are other ways.
    let offered = match calls.passes_descriptors() {
        true => Offered::new().ok(),
        false => None,
    };
    let (_offered, along) = offered.unzip();
    let services = Services::new(options.cxx_runtime);
    let context = writer::publish(Arc::clone(&calls));
    let (setup, mut functions) = introduce(&services, context, options);
    functions.extend(options.services.iter().map(|address| {
        let function = PublishedFunction {
            address: *address,
            answer: None,
            class: CallClass::Pooled,
        };
        (*address, function)
    }));
    let sent = calls.send_setup(
        &setup.encode(options.layout),
        along.as_ref().map(AsFd::as_fd),
    );
    drop((along, setup));
    // The reader's buffer comes to lie where all that was.
    let input = MessageReader::new(Arc::new(input));
    let result = sent.and_then(|()| Workers::new(input, Arc::clone(&calls), functions).serve());
    // A protocol that was broken comes first; neither keeps the other from being done.
    let result = join(result, services.shut_down());
    writer::forget(context);
    result
}
