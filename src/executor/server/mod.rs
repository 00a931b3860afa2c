// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Serving one controller over a stream, as LLVM's `llvm-jitlink-executor` does, with LLVM's services
//! and with ours.
//!
//! `connection` does what the controller asks for, `dispatch` is how linked code calls the
//! controller, and `writer` is what both write their messages with. `supervised` has a child do what is asked for.

mod connection;
mod dispatch;
mod programs;
mod replay;
mod supervised;
mod supervisor;
#[cfg(test)]
mod tests;
mod writer;

pub use crate::wire::frame::SetupLayout;
pub use supervised::{Supervision, serve_supervised, supervise};
pub use supervisor::Restarts;
pub use writer::Unread;

use super::llvm::{CallClass, FunctionBody, PublishedFunction, PublishedSymbol, Services};
use super::service::{self, SentAlong, Service};
use crate::error::Result;
use crate::mapper::actions::join;
use crate::sys::{self, StreamWriter, explain};
use crate::transport::messages::MessageReader;
use crate::transport::reader_pool;
use crate::wire::frame::Setup;
use crate::wire::service::TAKES_DESCRIPTORS;
use crate::wire::sps::ExecutorAddr;
use connection::ServerConnection;
use dispatch::DispatchContext;
use programs::{Limits, Watchdog};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Choices for a session.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// What the controller expects: [`SetupLayout::Symbols`] if it is of LLVM 14 to 16. Nothing on
    /// the stream tells.
    pub layout: SetupLayout,
    /// Whether libgcc_s, libm and libstdc++ are loaded when the controller looks for a symbol that
    /// the process has not, as programs in C++ need it.
    pub cxx_runtime: bool,
    /// Names and values that are published beside the services' own, or in place of them.
    pub symbols: Vec<(String, u64)>,
    /// The service that controllers with jitmem open sessions with. `None`: one that ends with the
    /// session.
    pub service: Option<&'a Service>,
    /// Addresses of further wrapper functions that run no program, but at most actions and the like.
    /// Such calls share threads; what may run a program gets a thread of its own each time.
    pub functions: Vec<u64>,
    /// After so long the process ends in which a program still runs: with exit code 124, and the controller is
    /// told why. Programs are what the controller has run by LLVM's run-as functions and by addresses that are not
    /// published.
    pub time_limit: Option<Duration>,
    /// So long after the controller has gone the process ends, with exit code 1, if linked code still runs.
    pub exit_when_orphaned: Option<Duration>,
    /// What a controller that does not read may leave.
    pub unread: Unread,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            layout: SetupLayout::MapAndSymbols,
            cxx_runtime: true,
            symbols: Vec::new(),
            service: None,
            functions: Vec::new(),
            time_limit: None,
            exit_when_orphaned: None,
            unread: Unread::default(),
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

/// What is published to the controller.
#[derive(Default)]
struct Published {
    symbols: BTreeMap<String, ExecutorAddr>,
    /// The functions among them, by address.
    functions: HashMap<u64, PublishedFunction>,
}

impl Published {
    fn add(&mut self, name: &str, value: u64) {
        self.symbols.insert(name.to_owned(), ExecutorAddr(value));
    }

    fn add_functions(&mut self, functions: impl IntoIterator<Item = PublishedFunction>) {
        let by_address = |function: PublishedFunction| (function.address, function);
        self.functions.extend(functions.into_iter().map(by_address));
    }

    fn add_llvm(&mut self, services: &Services, layout: SetupLayout) {
        for (name, symbol) in services.symbols(layout) {
            match symbol {
                PublishedSymbol::Instance(number) => self.add(name, number),
                PublishedSymbol::Function(function) => {
                    self.add(name, function.address);
                    self.add_functions([function]);
                }
            }
        }
    }

    /// Ours. Its functions run actions at most.
    fn add_service(&mut self, service: &Service) {
        for (name, value) in service::symbols(service) {
            self.add(&name.to_string_lossy(), value);
        }
        let function = |function: service::EntryPoint| PublishedFunction {
            address: function.address,
            body: FunctionBody::Ours(function.answer),
            class: CallClass::Pooled,
        };
        self.add_functions(service::entry_points().map(function));
    }
}

/// Serves the controller that reads `output` and writes `input`, which may be one socket, until it
/// hangs up. Linked code runs in other threads; this one waits for all of them. Several controllers may
/// be served at a time.
///
/// When this returns, deallocation actions that were left have run, last to first, and all memory
/// that the controller had is gone, but for what belongs to sessions with a service of the caller's.
///
/// # Errors
/// `Disconnected` if the controller breaks the protocol or the stream fails, with the words that
/// LLVM's own executor has for it; `ActionFailed` if deallocation actions that were left answered so;
/// what the system refuses before the first message.
///
/// # Safety
/// The controller may have this process do anything: it writes memory by address and calls what it has
/// written. So it is one that is trusted as much as the program itself, and it keeps to its own memory
/// and to what is published to it. At the addresses of [`Options::functions`] are wrapper functions.
pub unsafe fn serve(input: OwnedFd, output: OwnedFd, options: &Options<'_>) -> Result<()> {
    // SAFETY: as the caller says.
    unsafe { serve_and_then(input, output, options, || ()) }
}

/// [`serve`]; `end` is what is left to do then, for which the limits of time hold as well.
///
/// # Safety
/// As [`serve`].
unsafe fn serve_and_then(
    input: OwnedFd,
    output: OwnedFd,
    options: &Options<'_>,
    end: impl FnOnce(),
) -> Result<()> {
    // Dropped last.
    let own_service = options.service.is_none().then(Service::new);
    let output = StreamWriter::new(output)
        .map_err(|error| explain("look at the controller's descriptor", error))?;
    let services = Services::new(options.cxx_runtime);
    let mut published = Published::default();
    published.add_llvm(&services, options.layout);
    if let Some(service) = options.service.or(own_service.as_ref()) {
        published.add_service(service);
    }
    published.add_functions(options.functions.iter().map(|address| PublishedFunction {
        address: *address,
        body: FunctionBody::AtAddress,
        class: CallClass::Pooled,
    }));
    let functions = std::mem::take(&mut published.functions);
    let connection = ServerConnection::new(output, options.unread, functions, None);
    let limits = Limits {
        program: options.time_limit,
        orphaned: options.exit_when_orphaned,
    };
    // Until deallocation actions that were left have run as well.
    let _watchdog = match limits.are_set() {
        true => Some(Watchdog::start(&connection, limits)?),
        false => None,
    };
    let context = DispatchContext::new(Arc::clone(&connection));
    for (name, value) in context.symbols() {
        published.add(name, value);
    }
    if sys::passes_descriptors(&input) {
        published.add(TAKES_DESCRIPTORS, 1);
    }
    for (name, value) in &options.symbols {
        published.add(name, *value);
    }
    let setup = Setup {
        triple: triple(),
        page_size: sys::page_size().bytes(),
        bootstrap_map: BTreeMap::new(),
        bootstrap_symbols: published.symbols,
    };
    let encoded = setup.encode(options.layout);
    let mut instances = setup.bootstrap_symbols;
    instances.retain(|_, value| !connection.has_function(value.0));
    connection.keep_instances(instances);
    let sent = connection.send_setup(&encoded);
    drop(encoded);
    // The reader's buffer comes to lie where all that was.
    let mut input = MessageReader::new(Arc::new(input));
    let mut sent_along = SentAlong::default();
    input.take_descriptors(Box::new(move |descriptor| sent_along.keep(descriptor)));
    let result = sent.and_then(|()| reader_pool::run(Arc::clone(&connection), [input]));
    connection.programs().wait_for_all();
    // A protocol that was broken comes first; neither keeps the other from being done.
    let result = join(result, services.shut_down());
    // Deallocation actions that are left are linked code.
    if let Some(service) = &own_service {
        service.close();
    }
    end();
    result
}
