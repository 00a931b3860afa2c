// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Serving a controller by a child that runs the linked code, and by another one when that has ended: from a process
//! that is there for nothing else, or from a host's, which has such a process made.

use super::connection::ServerConnection;
use super::programs::{Limits, say};
use super::supervisor::{Choices, End, GiveUp, Restarts, RunChild, Supervisor};
use super::{Options, Published, serve_and_then};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::executor::llvm::{CallClass, Services, load_cxx_runtime};
use crate::executor::service::{self, SentAlong, Service};
use crate::sys::{self, ChildProcess, ClosedInChild, StreamWriter, explain, explain_fork, socket};
use crate::transport::messages::MessageReader;
use crate::transport::reader_pool;
use crate::wire::frame::{Header, Opcode};
use crate::wire::service::{Reply, TAKES_DESCRIPTORS};
use crate::wire::sps::{ExecutorAddr, Outcome, from_bytes, to_bytes};
use std::collections::HashSet;
use std::ffi::c_int;
use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// How a session goes on when linked code has ended its process.
pub struct Supervision {
    /// How often another process takes its place.
    pub restarts: Restarts,
    /// What each such process does before it serves, such as to bound itself. One that fails has ended with that
    /// reason.
    pub prepare: Box<dyn Fn() -> Result<()> + Send + Sync>,
}

/// Bytes of a reason that are told.
const LONGEST_REASON: usize = 4000;

/// [`serve`](super::serve) by a child of this process, which runs the linked code, for a program that is there for
/// nothing else. When the child ends by a signal, by exit or at its time limit, another one takes its place: with the
/// code, constants and data of all that is live, at the same addresses and as they were finalized, and with the
/// finalize actions run again in their order. What was asked of the one before fails with what has ended it. This
/// process runs no linked code. Gives the exit code of the last child. Where no other child takes the place of one,
/// this process ends with exit code 1, says why on stderr, and tells the controller.
///
/// Children of this process that it starts while this serves are taken for what linked code has left, and ended: those
/// that were there before are left alone.
///
/// Only for controllers with jitmem on both sides, and once in a process. Data is private: see
/// `docs/second-process.md`. A service of the caller's ([`Options::service`]) is refused: it would be another
/// process's.
///
/// # Errors
/// As [`serve`](super::serve); `InvalidArgument` for restarts of 0 or within no time, and for a service; `Unsupported`
/// the second time; `Disconnected` if the first child ends before it serves.
///
/// # Safety
/// As [`serve`](super::serve). No thread of this process holds a lock that the child needs when another one calls this,
/// or while it serves, but for those that forks see to: the C library's and this library's.
pub unsafe fn supervise(
    input: OwnedFd,
    output: OwnedFd,
    options: &Options<'_>,
    supervision: Supervision,
) -> Result<i32> {
    check(options, &supervision)?;
    let Supervision { restarts, prepare } = supervision;
    // What the program has for its end is done by the C library.
    let child = Child {
        prepare,
        end: |code| code,
    };
    let give_up: GiveUp = Box::new(|why| say(why.message()));
    // SAFETY: as the caller says.
    let end = unsafe { supervise_by(input, output, options, restarts, child, give_up) }?;
    Ok(end.code)
}

/// [`supervise`] for a host: by a process that is forked for it and that is waited for. So of this process only the
/// calling thread takes part, and nothing is left in it: when this returns, the processes are gone. Several controllers
/// may be served at a time.
///
/// The processes have this one's memory and descriptors as they are now, and none of its threads. Where they end,
/// handlers for the end of this process (atexit) do not run, unless linked code calls exit, and what C's streams hold
/// is written; so a host that has printed calls fflush before. They are killed when the calling thread ends.
/// Handlers that this process has for forks (`pthread_atfork`) run in this process once, and in the one that is
/// forked once for each child.
///
/// # Errors
/// As [`serve`](super::serve) and [`supervise`]; `Disconnected`, with what has ended the last child, where no other one
/// takes its place, after the controller was told; `ActionFailed` where a finalize action has failed when it was run
/// again, or the last child has failed at its end; what the system says of the fork, above all `Denied` where this
/// process was bounded before: that is for [`Supervision::prepare`].
///
/// # Safety
/// As [`serve`](super::serve). No other thread of this process holds a lock now that linked code, functions that are
/// published, or [`Supervision::prepare`] need, but for those that forks see to: the C library's and this library's.
pub unsafe fn serve_supervised(
    input: OwnedFd,
    output: OwnedFd,
    options: &Options<'_>,
    supervision: Supervision,
) -> Result<()> {
    check(options, &supervision)?;
    if options.cxx_runtime {
        // Each child has it at the same addresses.
        load_cxx_runtime();
    }
    let (here, there) =
        socket::packet_pair().map_err(|error| explain("make a socket pair", error))?;
    let here = ClosedInChild::new(here);
    // What it is given is closed here once the process is there.
    let body = move || {
        let told = Arc::new(ClosedInChild::new(there));
        let supervised = || {
            // SAFETY: as the caller says.
            unsafe { serve_forked(input, output, options, supervision, &told) }
        };
        let outcome = catch_unwind(AssertUnwindSafe(supervised));
        let panicked = |_| Err(unknown("panicked"));
        tell(&told, outcome.unwrap_or_else(panicked));
        sys::exit_now(0)
    };
    // SAFETY: as the caller says; what this library has behind locks is seen to.
    let process = unsafe { ChildProcess::start(body) };
    let operation = "fork a process that supervises linked code";
    let process = process.map_err(|error| explain_fork(operation, error))?;
    let status = process.wait();
    let mut buffer = [0; LONGEST_REASON + 100];
    // The host may wait for all children by itself; what was told is certain.
    match socket::receive_now(&here, &mut buffer) {
        Ok(received) if received.size > 0 => match from_bytes(&buffer[..received.size]) {
            Ok(Reply(outcome)) => outcome.map_err(Error::from),
            Err(_) => Err(unknown("has told what is no outcome")),
        },
        _ => Err(unknown(match status {
            Ok(status) => format!("has ended by itself ({status})"),
            Err(error) => format!("can't be waited for ({error})"),
        })),
    }
}

fn check(options: &Options<'_>, supervision: &Supervision) -> Result<()> {
    supervision.restarts.check()?;
    match options.service {
        None => Ok(()),
        Some(_) => Err(invalid_argument(
            "supervise linked code with a service of the caller's: the one that runs it has a service of its own; \
             leave it out",
        )),
    }
}

fn unknown(how: impl Display) -> Error {
    let message = format!("serve a controller: the process that supervises linked code {how}");
    Error::new(Status::Disconnected, message)
}

/// Tells the host what the session has come to; it waits for this process, and takes the first that it is told.
fn tell(told: &OwnedFd, outcome: Result<()>) {
    let outcome = outcome.map_err(|error| {
        let mut words = error.message();
        while words.len() > LONGEST_REASON {
            let mut shorter = words.chars();
            shorter.next_back();
            words = shorter.as_str();
        }
        Error::new(error.status(), words)
    });
    // A host that is gone needs to be told nothing.
    let _ = socket::send(told, &[&to_bytes(&Reply::from(outcome))], &[]);
}

/// In the process that was forked for a host.
///
/// # Safety
/// As [`serve_supervised`].
unsafe fn serve_forked(
    input: OwnedFd,
    output: OwnedFd,
    options: &Options<'_>,
    supervision: Supervision,
    told: &Arc<ClosedInChild>,
) -> Result<()> {
    service::leave_to_parent();
    let Supervision { restarts, prepare } = supervision;
    let child = Child {
        prepare: Box::new(move || {
            sys::report_crashes("jitmem");
            prepare()
        }),
        end: |code| {
            service::at_exit();
            sys::flush_and_exit(code)
        },
    };
    let told = Arc::clone(told);
    let give_up: GiveUp =
        Box::new(move |why| tell(&told, Err(why.clone().context("serve a controller"))));
    // SAFETY: as the caller says.
    let end = unsafe { supervise_by(input, output, options, restarts, child, give_up) }?;
    match end.code {
        0 => Ok(()),
        _ => Err(Error::new(
            Status::ActionFailed,
            format!("serve a controller: once it had hung up, {}", end.why),
        )),
    }
}

/// How children differ.
struct Child {
    prepare: Box<dyn Fn() -> Result<()> + Send + Sync>,
    /// What it does when it has served, with its exit code; gives that.
    end: fn(c_int) -> c_int,
}

/// # Safety
/// As [`supervise`].
unsafe fn supervise_by(
    input: OwnedFd,
    output: OwnedFd,
    options: &Options<'_>,
    restarts: Restarts,
    child: Child,
    give_up: GiveUp,
) -> Result<End> {
    let service = Arc::new(Service::new());
    let passes_descriptors = sys::passes_descriptors(&input);
    // Both are dead ones in each child from here on.
    let mut input = MessageReader::new(Arc::new(input));
    let output = StreamWriter::new(output)
        .map_err(|error| explain("look at the controller's descriptor", error))?;
    let run = child_of(options, Arc::clone(&service), child);
    let choices = Choices {
        restarts,
        unread: options.unread,
        layout: options.layout,
        limits: Limits {
            program: options.time_limit,
            orphaned: options.exit_when_orphaned,
        },
        brief: brief(options),
    };
    let (supervisor, its_input, mut setup) = Supervisor::start(choices, run, give_up)?;
    let mut published = Published::default();
    published.add_service(&service);
    let functions = std::mem::take(&mut published.functions);
    let connection = ServerConnection::new(
        output,
        options.unread,
        functions,
        Some(Arc::clone(&supervisor)),
    );
    // The child's socket takes descriptors; what counts is the controller's.
    setup.bootstrap_symbols.remove(TAKES_DESCRIPTORS);
    if passes_descriptors {
        let name = TAKES_DESCRIPTORS.to_owned();
        setup.bootstrap_symbols.insert(name, ExecutorAddr(1));
    }
    let sent = connection.send_setup(&setup.encode(options.layout));
    let mut sent_along = SentAlong::default();
    input.take_descriptors(Box::new(move |descriptor| sent_along.keep(descriptor)));
    supervisor.serve(&connection, its_input)?;
    let result = sent.and_then(|()| reader_pool::run(Arc::clone(&connection), [input]));
    let end = supervisor.finish();
    result.map(|()| end)
}

/// The addresses of functions that run no program.
fn brief(options: &Options<'_>) -> HashSet<u64> {
    let mut published = Published::default();
    published.add_llvm(&Services::new(false), options.layout);
    let functions = published.functions.into_values();
    let brief = functions.filter(|function| function.class != CallClass::OwnThread);
    let brief = brief.map(|function| function.address);
    brief.chain(options.functions.iter().copied()).collect()
}

/// What a child of a supervised session does.
fn child_of(options: &Options<'_>, service: Arc<Service>, child: Child) -> RunChild {
    let (symbols, functions) = (options.symbols.clone(), options.functions.clone());
    let options = Options {
        layout: options.layout,
        cxx_runtime: options.cxx_runtime,
        time_limit: options.time_limit,
        exit_when_orphaned: options.exit_when_orphaned,
        unread: options.unread,
        ..Options::default()
    };
    Box::new(move |socket, channel| {
        let begin = || {
            (child.prepare)()?;
            let output = socket
                .try_clone()
                .map_err(|error| explain("duplicate a socket", error))?;
            service::serve_channel(Arc::new(channel), service::functions())
                .map_err(|error| explain("start a thread that serves what maps", error))?;
            Ok(output)
        };
        let begun: Result<OwnedFd> = begin().inspect_err(|why| say_farewell(&socket, why));
        let served = begun.and_then(|output| {
            let options = Options {
                symbols: symbols.clone(),
                functions: functions.clone(),
                service: Some(&service),
                ..options
            };
            // SAFETY: as the caller of `supervise` says.
            unsafe { serve_and_then(socket, output, &options, || service.close()) }
        });
        (child.end)(match served {
            Ok(()) => 0,
            Err(error) => {
                say(error.message());
                1
            }
        })
    })
}

/// Tells the supervisor why a child ends before it has served.
fn say_farewell(socket: &OwnedFd, why: &Error) {
    let body = to_bytes(&Outcome(Err(why.message().to_owned())));
    let header = Header::new(Opcode::Hangup, 0, 0, body.len());
    // A supervisor that is gone needs to be told nothing.
    let _ = socket::send(socket, &[&header.encode(), &body], &[]);
}
