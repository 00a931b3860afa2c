// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The controller's side of EPC over one connected stream socket: any ORC executor.

#[cfg(test)]
mod tests;

use super::deadlines::{self, Timer, Watched};
use super::limits::{Asked, Limits, Patience};
use super::messages::{Message, MessageReader, Withheld, broken};
use super::pending::{Answered, PendingCalls};
use super::send_queue::{self, SendQueue, Sender};
use super::{
    ExecutorState, Transport, disconnected, end_of, is_lost, reader_pool, too_large, unreadable,
};
use crate::completion::Completion;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::sys::{self, ClosedInChild, explain, heap, socket};
use crate::wire::frame::{FIRST_OWN_CALL, FrameError, Header, Opcode, Setup};
use crate::wire::service::TAKES_DESCRIPTORS;
use crate::wire::sps::{Outcome, from_bytes, said};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

/// A connection to an ORC executor, such as one that was started with `filedescs=N,N`. Hangs up when
/// dropped; what is unanswered then is answered with an error.
pub struct Stream {
    connection: Arc<StreamConnection>,
    _end: Option<Timer>,
    _watched: Option<Watched>,
}

struct StreamConnection {
    /// Itself, for the thread that sends answers.
    this: Weak<StreamConnection>,
    socket: ClosedInChild,
    queue: SendQueue,
    pending: PendingCalls,
    setup: Setup,
    limits: Limits,
    /// [`Transport::executor`]
    executor: Arc<ExecutorState>,
}

impl Stream {
    /// [`Stream::connect_within`] the default limits.
    ///
    /// # Errors
    /// As there.
    pub fn connect(socket: Arc<OwnedFd>) -> Result<Stream> {
        Stream::connect_within(socket, Limits::default())
    }

    /// Waits until the executor has introduced itself at the other end of `socket`. The limits are those
    /// of all that goes through the connection.
    ///
    /// # Errors
    /// `InvalidArgument` if it is no connected stream socket; `TimedOut`; `Disconnected`; `MapperFailed`
    /// if something else than an executor introduces itself. Nothing of `socket` is kept then.
    pub fn connect_within(socket: Arc<OwnedFd>, limits: Limits) -> Result<Stream> {
        socket::check_stream(&socket)
            .map_err(|error| invalid_argument(format!("no connected stream socket: {error}")))?;
        let mut input = MessageReader::new(Arc::clone(&socket));
        let deadline = limits.deadline(Asked::SetUp);
        input.read_until(deadline.map(|deadline| deadline.at));
        let unable = |error| explain("look at the executor's socket", error);
        input.refuse_descriptors().map_err(unable)?;
        let setup = first(&mut input).map_err(|error| match deadline {
            Some(deadline) if error.status() == Status::Disconnected && deadline.is_over() => {
                deadline.error()
            }
            _ => error,
        })?;
        input.read_until(None);
        let watched = Watched::begin(&limits)?;
        let connection = Arc::new_cyclic(|this| StreamConnection {
            this: Weak::clone(this),
            socket: ClosedInChild::new(socket),
            queue: SendQueue::default(),
            pending: PendingCalls::numbered_from(FIRST_OWN_CALL),
            setup,
            limits,
            executor: Arc::default(),
        });
        reader_pool::start(Arc::clone(&connection), [input])
            .map_err(|error| explain("start a thread that reads a socket", error))?;
        socket::close_on_exec(&connection.socket);
        let end = limits.session_end().map(|end| {
            let connection = Arc::downgrade(&connection);
            deadlines::at(end, move |error| {
                if let Some(connection) = connection.upgrade() {
                    connection.end(error);
                }
            })
        });
        Ok(Stream {
            connection,
            _end: end,
            _watched: watched,
        })
    }
}

/// Answers that are kept for an executor that does not read, beyond what its socket takes.
const MOST_ANSWERS: usize = 4096;

/// Bytes of a Setup message: names of symbols.
const MOST_SETUP: u64 = 16 << 20;

/// Bytes of the reason that an executor gives for its end.
const MOST_REASON: u64 = 64 << 10;

/// What the executor says of itself, before everything else.
fn first(input: &mut MessageReader) -> Result<Setup> {
    let foreign = |what: &dyn std::fmt::Display| {
        let message = format!("what the executor sent first is no Setup message of EPC: {what}");
        Error::new(Status::MapperFailed, message)
    };
    let message = match input.next_within(|_| MOST_SETUP) {
        Ok(Some(message)) => message,
        Ok(None) => return Err(disconnected("it closed the socket without a word")),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(foreign(&error)),
        Err(error) => return Err(disconnected(error)),
    };
    let Message {
        header,
        body,
        withheld,
    } = message;
    header.check().map_err(|error| foreign(&error))?;
    if withheld.is_some() {
        return Err(foreign(&format_args!("{} bytes", header.size)));
    }
    if header.opcode != Opcode::Setup {
        return Err(foreign(&format_args!("{:?}", header.opcode)));
    }
    let setup = Setup::recognize(&body);
    setup
        .map(|(setup, _)| setup)
        .map_err(|error| foreign(&error))
}

impl Transport for Stream {
    fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        self.start(function, args, done);
    }

    fn start(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) -> Option<u64> {
        self.start_bounded(function, args, u64::MAX, done)
    }

    fn start_bounded(
        &self,
        function: u64,
        args: Vec<u8>,
        most: u64,
        done: Completion<Vec<u8>>,
    ) -> Option<u64> {
        self.connection.call(function, &args, &[], most, done)
    }

    fn start_with(
        &self,
        function: u64,
        args: Vec<u8>,
        descriptor: OwnedFd,
        most: u64,
        done: Completion<Vec<u8>>,
    ) -> Option<u64> {
        self.connection
            .call(function, &args, &[descriptor.as_fd()], most, done)
    }

    fn forget(&self, call: u64) {
        let StreamConnection { pending, queue, .. } = &*self.connection;
        pending.forget(call, || queue.take_back(call));
    }

    fn limits(&self) -> Limits {
        self.connection.limits
    }

    fn executor(&self) -> Option<Arc<ExecutorState>> {
        Some(Arc::clone(&self.connection.executor))
    }

    fn symbol(&self, name: &str) -> Option<u64> {
        let symbol = self.connection.setup.bootstrap_symbols.get(name);
        symbol.map(|address| address.0)
    }

    /// Another executor would have the kernel close them.
    fn passes_descriptors(&self) -> bool {
        self.symbol(TAKES_DESCRIPTORS).is_some() && sys::passes_descriptors(&self.connection.socket)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let StreamConnection {
            queue,
            pending,
            limits,
            executor,
            ..
        } = &*self.connection;
        if pending.owner().is_current() {
            let patience = Patience::new(limits.close, Arc::clone(executor));
            // The ends of sessions are for the executor to read.
            queue.wait_until_sent(patience.deadline());
            self.connection
                .end(disconnected("its connection was freed"));
        }
    }
}

impl Sender for StreamConnection {
    fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    fn queue(&self) -> &SendQueue {
        &self.queue
    }

    fn not_sent(&self, call: Option<u64>, error: io::Error) {
        match is_lost(&error) {
            // Answers may still lie in the socket, and why the executor has ended. They are read before the end is
            // found there, with which the call is answered.
            true => socket::hang_up(&self.socket),
            false => {
                // Part of the message may be under way, so nothing can follow it.
                let error = explain("send a message to the executor", error);
                self.end(error.clone());
                self.pending.fail(call, error);
            }
        }
    }
}

impl StreamConnection {
    /// Answers everything, and hangs up.
    fn end(&self, error: Error) {
        self.pending.end(error);
        socket::hang_up(&self.socket);
    }

    fn call(
        self: &Arc<Self>,
        function: u64,
        args: &[u8],
        descriptors: &[BorrowedFd<'_>],
        most: u64,
        done: Completion<Vec<u8>>,
    ) -> Option<u64> {
        let sequence = self.pending.add(done, most.min(self.limits.answer))?;
        let header = Header::new(Opcode::CallWrapper, sequence, function, args.len());
        self.send(Some(sequence), header, args, descriptors);
        Some(sequence)
    }

    fn send(
        self: &Arc<Self>,
        call: Option<u64>,
        header: Header,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) {
        let parts = [&header.encode()[..], body];
        if let Err(error) = send_queue::send(self, call, parts, descriptors) {
            self.not_sent(call, error);
        }
    }

    /// How many bytes of a body are wanted. Of the executor's own calls only the number is.
    fn most(&self, header: &Header) -> u64 {
        match header.opcode {
            Opcode::Result => self.pending.most(header.sequence),
            Opcode::Hangup => MOST_REASON,
            Opcode::CallWrapper | Opcode::Setup => 0,
        }
    }

    fn sort(&self, message: Message, most: u64) -> io::Result<Work> {
        let Message {
            header,
            body,
            withheld,
        } = message;
        header.check().map_err(broken)?;
        let sequence = header.sequence;
        match header.opcode {
            Opcode::Result => match self.pending.answered(sequence) {
                Answered::Call(done) if withheld == Some(Withheld::TooLarge) => {
                    self.executor.dropped_too_large();
                    Ok(Work::Answer(done, Err(too_large(&header, most))))
                }
                Answered::Call(done) if withheld == Some(Withheld::NoRoom) => {
                    let no_room = heap::exhausted("answer of an executor");
                    Ok(Work::Answer(done, Err(no_room)))
                }
                Answered::Call(done) if header.is_out_of_band() => {
                    let why = said(&body);
                    Ok(Work::Answer(
                        done,
                        Err(Error::new(Status::MapperFailed, why)),
                    ))
                }
                Answered::Call(done) => Ok(Work::Answer(done, Ok(body))),
                Answered::Forgotten => {
                    self.executor.dropped_late();
                    Ok(Work::Nothing)
                }
                Answered::Nothing => {
                    self.executor.dropped_unexpected();
                    Err(broken(FrameError::UnknownSequence(sequence)))
                }
            },
            Opcode::CallWrapper => match self.queue.kept_answers() {
                0..MOST_ANSWERS => Ok(Work::Call(sequence)),
                _ => Err(io::Error::other(format!(
                    "it made {MOST_ANSWERS} calls without reading the answers"
                ))),
            },
            Opcode::Hangup => Err(io::Error::other(match from_bytes(&body) {
                Ok(Outcome(Err(message))) => format!("it said \"{message}\""),
                _ => "it hung up".to_owned(),
            })),
            Opcode::Setup => Err(broken(FrameError::UnexpectedSetup)),
        }
    }
}

enum Work {
    Answer(Completion<Vec<u8>>, Result<Vec<u8>>),
    /// An answer that nothing waits for.
    Nothing,
    /// Of the executor's own, with its number.
    Call(u64),
}

impl reader_pool::Connection for StreamConnection {
    type Input = MessageReader;
    type Packet = Work;

    fn receive(&self, input: &mut MessageReader) -> Result<Option<Work>> {
        let mut most = 0;
        let message = input.next_within(|header| {
            most = self.most(header);
            most
        });
        let work =
            message.and_then(|message| message.map(|message| self.sort(message, most)).transpose());
        work.map_err(|error| unreadable("socket", error))
    }

    fn handle(&self, work: Work) {
        match work {
            Work::Answer(done, answer) => done.complete(answer),
            Work::Nothing => {}
            // Linked code asks for something of an ORC runtime's; there is none here.
            Work::Call(sequence) => {
                if let Some(this) = self.this.upgrade() {
                    this.send(None, Header::new(Opcode::Result, sequence, 0, 0), &[], &[]);
                }
            }
        }
    }

    fn hang_up(&self) {
        socket::hang_up(&self.socket);
    }

    fn ended(&self, why: Result<()>) {
        // Descriptors may have come before they were refused.
        if sys::passes_descriptors(&self.socket) {
            socket::discard_unread(&self.socket);
        }
        self.pending.end(end_of("socket", why));
    }
}
