// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Ways to call a wrapper function in the executor: bytes there, bytes back.
//!
//! A host's EPC is one, a connected socket that speaks EPC's framing another ([`Stream`]), and a
//! session with our own service has a channel of its own, which can hand memfds
//! over and starts no thread per message.

pub(crate) mod channel;
pub(crate) mod deadlines;
mod executor_state;
pub(crate) mod limits;
pub(crate) mod messages;
pub(crate) mod packet;
pub(crate) mod pending;
pub(crate) mod reader_pool;
pub(crate) mod send_queue;
mod stream;
mod token;

pub use deadlines::Call;
pub(crate) use executor_state::ToldOfRestarts;
pub use executor_state::{DroppedAnswers, ExecutorState};
pub use limits::Limits;
pub use stream::Stream;
pub use token::{TOKEN_SIZES, send_token};

use crate::callback_queue::Delivery;
use crate::completion::{Completion, wait, wait_until};
use crate::error::{Error, Result, Status};
use crate::wire::frame::Header;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long the other side may take for what it does at once, unless it is stopped or stuck: to read
/// what was sent, to send the first packet of a connection that exists already, to end a session.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls wrapper functions in an executor. Thread-safe; called with no lock held.
pub trait Transport: Send + Sync {
    /// Calls the wrapper function at `function` with `args` and completes with its result bytes, or
    /// with its out-of-band error, or with [`Status::Disconnected`] when the executor is gone.
    fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>);

    /// The address that the executor published under a name when the connection was made.
    fn symbol(&self, _name: &str) -> Option<u64> {
        None
    }

    /// Whether calls can take descriptors to the executor, which keeps them.
    fn passes_descriptors(&self) -> bool {
        false
    }

    /// [`Transport::call`] that can be given up, if it answers a number for [`Transport::forget`].
    fn start(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) -> Option<u64> {
        self.call(function, args, done);
        None
    }

    /// [`Transport::start`] for a call whose answer has so many bytes at most. A larger one may fail.
    fn start_bounded(
        &self,
        function: u64,
        args: Vec<u8>,
        _most: u64,
        done: Completion<Vec<u8>>,
    ) -> Option<u64> {
        self.start(function, args, done)
    }

    /// [`Transport::start_bounded`] with a descriptor that goes along, where they [can](Transport::passes_descriptors).
    fn start_with(
        &self,
        function: u64,
        args: Vec<u8>,
        _descriptor: OwnedFd,
        most: u64,
        done: Completion<Vec<u8>>,
    ) -> Option<u64> {
        self.start_bounded(function, args, most, done)
    }

    /// Drops the completion of a call that [`Transport::start`] has made. Its answer may come later, and
    /// counts for nothing.
    fn forget(&self, _call: u64) {}

    /// How long the executor may take.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// What is known of the executor. One place for all that goes through this transport; none: each session
    /// has its own.
    fn executor(&self) -> Option<Arc<ExecutorState>> {
        None
    }

    /// Runs callbacks of the host's that follow from answers, which may block, where it wants them.
    fn dispatch(&self, task: Box<dyn FnOnce() + Send>) {
        task();
    }
}

/// Calls and waits.
pub fn call(transport: &dyn Transport, function: u64, args: Vec<u8>) -> Result<Vec<u8>> {
    wait(|done| transport.call(function, args, done))
}

/// [`call`], but no longer than until the deadline.
pub(crate) fn call_within(
    transport: &Arc<dyn Transport>,
    function: u64,
    args: Vec<u8>,
    deadline: Option<limits::Deadline>,
) -> Result<Vec<u8>> {
    match deadline {
        None => call(&**transport, function, args),
        Some(_) => wait_for_call(deadline, |call| call.start(transport, function, args)),
    }
}

/// Waits for the answer to a call that `start` makes, no longer than until the deadline. No other thread looks
/// after that.
pub(crate) fn wait_for_call(
    deadline: Option<limits::Deadline>,
    start: impl FnOnce(&Call),
) -> Result<Vec<u8>> {
    let mut waited = None;
    let answer = wait_until(deadline.map(|deadline| deadline.at), |done| {
        start(waited.insert(Call::new(None, done)));
    });
    match (answer, waited, deadline) {
        (Some(answer), _, _) => answer,
        (None, Some(call), Some(deadline)) => {
            call.end(deadline.error());
            Err(deadline.error())
        }
        _ => unreachable!("an answer is waited for until a deadline"),
    }
}

/// Calls a wrapper function without waiting. If the limit is over before the executor has answered,
/// `done` gets [`Status::TimedOut`].
pub fn start(
    transport: &Arc<dyn Transport>,
    function: u64,
    args: Vec<u8>,
    limit: Option<Duration>,
    done: Completion<Vec<u8>>,
) -> Call {
    let deadline = limit.and_then(|limit| limits::Deadline::after(limit, "call"));
    let call = Call::new(deadline, done);
    call.start(transport, function, args);
    call
}

/// Has the callbacks of hosts that follow from an answer run where the transport's host wants them.
pub(crate) fn dispatched(
    transport: &Arc<dyn Transport>,
    done: Completion<Vec<u8>>,
) -> Completion<Vec<u8>> {
    let transport = Arc::clone(transport);
    Completion::new(move |answer| {
        Delivery::as_one_task(
            |delivery| done.complete_with(answer, delivery),
            |task| transport.dispatch(task),
        );
    })
}

/// The executor is gone, and how that showed.
pub(crate) fn disconnected(how: impl std::fmt::Display) -> Error {
    Error::new(
        Status::Disconnected,
        format!("the executor is gone: {how}; it has exited, was killed, or closed its connection"),
    )
}

/// The answer to a call has more bytes than it may have.
#[cold]
pub(crate) fn too_large(header: &Header, most: u64) -> Error {
    let size = header.body_size();
    Error::new(
        Status::MapperFailed,
        format!(
            "the executor answered {size} bytes to a call whose answer may have {most}; if it is right, \
             raise the limit \"answer\""
        ),
    )
}

/// Whether nothing can be sent any more since the connection is gone, by what sending failed with.
fn is_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkDown,
        NetworkUnreachable, NotConnected, TimedOut,
    };
    let lost = [
        BrokenPipe,
        ConnectionAborted,
        ConnectionReset,
        HostUnreachable,
        NetworkDown,
        NetworkUnreachable,
        NotConnected,
        TimedOut,
    ];
    lost.contains(&error.kind())
}

/// What calls that wait for answers fail with when a connection can't be read any further.
fn unreadable(connection: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidData => Error::new(
            Status::Disconnected,
            format!("the executor broke the protocol, so its {connection} was closed: {error}"),
        ),
        _ => disconnected(error),
    }
}

/// What they fail with when a connection has ended.
fn end_of(connection: &str, why: Result<()>) -> Error {
    match why {
        Ok(()) => disconnected(format_args!("the end of its {connection} was reached")),
        Err(error) => error,
    }
}

/// What went through: messages there, and the bytes of both directions.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    pub(crate) fn sent(&self, bytes: usize) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}
