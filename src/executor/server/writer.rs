// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What goes to the controller: results, and calls of linked code that its ORC runtime dispatches.

use crate::completion::{Completion, wait};
use crate::error::{Error, Result, Status};
use crate::executor::llvm::InstanceRegistry;
use crate::sys::{Answer, OwnerCell, StreamWriter, WRITTEN_AT_ONCE};
use crate::wire::frame::{HEADER_SIZE, Header, Opcode};
use parking_lot::Mutex;
use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// The sessions that linked code can dispatch calls through.
static SESSIONS: InstanceRegistry<Calls> = InstanceRegistry::new("session");

/// The process that serves them.
static OWNER: OwnerCell = OwnerCell::new();

/// Makes a session known to linked code, by the number that is given back.
pub(super) fn publish(calls: Arc<Calls>) -> u64 {
    OWNER.claim();
    SESSIONS.add(calls)
}

/// The end of [`publish`].
pub(super) fn forget(context: u64) {
    SESSIONS.remove(context);
}

/// What linked code calls to call the controller; waits for the answer.
pub(super) fn dispatch(context: u64, tag: u64, args: &[u8]) -> Answer {
    // Before any lock: in a child it may be held by a thread that is not there.
    if !OWNER.is_current() {
        return Err("jit_dispatch not available (forked from the executor's process)".to_owned());
    }
    let calls = SESSIONS
        .get(context)
        .map_err(|_| "jit_dispatch not available (EPC server shut down)".to_owned())?;
    let answer = wait(|done| calls.call(tag, args, done));
    answer.map_err(|error| error.message().to_owned())
}

/// The writing end of a session.
///
/// Whoever sends while another thread writes leaves its message there, and that thread writes it as
/// well. So each message is whole, and a controller that is slow to read holds up one thread only.
pub(super) struct Calls {
    stream: StreamWriter,
    outgoing: Mutex<Outgoing>,
    state: Mutex<State>,
}

#[derive(Default)]
struct Outgoing {
    /// A thread writes, and looks here before it stops.
    writing: bool,
    queue: Vec<Message>,
    /// Nothing more is sent: part of a message may have been written.
    broken: bool,
}

#[derive(Default)]
struct State {
    next: u64,
    waiting: HashMap<u64, Completion<Vec<u8>>>,
    /// Why no call is made any more.
    ended: Option<Error>,
    /// Why nothing can be written any more.
    lost: Option<Error>,
}

type Message = ([u8; HEADER_SIZE], Vec<u8>);

/// The duty to write what could not be written at once.
#[must_use]
pub(super) struct Unwritten(Option<Message>);

/// Messages that are smaller are written together.
const TOGETHER: usize = 16 << 10;

impl Calls {
    pub(super) fn new(stream: StreamWriter) -> Calls {
        Calls {
            stream,
            outgoing: Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// Leaves a message to the thread that writes; if there is none, this one is it now and has the
    /// message back.
    fn leave<'a>(
        &self,
        header: Header,
        body: Cow<'a, [u8]>,
    ) -> Option<([u8; HEADER_SIZE], Cow<'a, [u8]>)> {
        let header = header.encode();
        let mut outgoing = self.outgoing.lock();
        if outgoing.broken {
            return None;
        }
        if outgoing.writing {
            outgoing.queue.push((header, body.into_owned()));
            return None;
        }
        outgoing.writing = true;
        Some((header, body))
    }

    /// Sends a message. If that fails, [`Calls::lost`] says so, and nobody waits any more.
    fn send(&self, header: Header, body: Cow<'_, [u8]>) {
        if let Some((header, body)) = self.leave(header, body) {
            let written = self.stream.write(&header, &body);
            self.finish(written);
        }
    }

    /// Writes what others have left, until there is nothing more, and stops writing.
    fn finish(&self, mut written: io::Result<()>) {
        loop {
            let left = {
                let mut outgoing = self.outgoing.lock();
                if outgoing.queue.is_empty() || written.is_err() {
                    outgoing.broken |= written.is_err();
                    outgoing.queue.clear();
                    outgoing.writing = false;
                    break;
                }
                std::mem::take(&mut outgoing.queue)
            };
            written = self.write_all(left);
        }
        if let Err(error) = written {
            let error = Error::system(Status::Disconnected, "write to the controller", error);
            self.state.lock().lost.get_or_insert_with(|| error.clone());
            self.end_with(error);
        }
    }

    fn write_all(&self, messages: Vec<Message>) -> io::Result<()> {
        let mut together = Vec::new();
        for (header, body) in messages {
            if together.len() + body.len() > TOGETHER {
                self.stream.write(&together, &header)?;
                together.clear();
                self.stream.write(&body, &[])?;
            } else {
                together.extend(header);
                together.extend(body);
            }
        }
        self.stream.write(&together, &[])
    }

    /// Whether a descriptor can be sent along.
    pub(super) fn passes_descriptors(&self) -> bool {
        self.stream.passes_descriptors()
    }

    /// Introduces the executor, before anything else is sent.
    pub(super) fn send_setup(&self, setup: &[u8], along: Option<BorrowedFd<'_>>) -> Result<()> {
        let header = Header::new(Opcode::Setup, 0, 0, setup.len());
        if let Some((header, setup)) = self.leave(header, setup.into()) {
            let sent = match along {
                Some(descriptor) => self.stream.write_with(&header, descriptor),
                None => self.stream.write(&header, &[]),
            };
            self.finish(sent.and_then(|()| self.stream.write(&setup, &[])));
        }
        self.lost().map_or(Ok(()), Err)
    }

    /// Sends the answer of a call.
    pub(super) fn send_result(&self, sequence: u64, body: Vec<u8>) {
        self.send(
            Header::new(Opcode::Result, sequence, 0, body.len()),
            body.into(),
        );
    }

    /// Sends the answer of a call, as far as that can be done without waiting for the controller to
    /// read. What is left is to be given to [`Calls::write_on`].
    pub(super) fn start_to_send_result(&self, sequence: u64, body: Vec<u8>) -> Option<Unwritten> {
        let header = Header::new(Opcode::Result, sequence, 0, body.len());
        let (header, body) = self.leave(header, body.into())?;
        let at_once = HEADER_SIZE + body.len() <= WRITTEN_AT_ONCE && self.stream.has_room();
        if !at_once {
            return Some(Unwritten(Some((header, body.into_owned()))));
        }
        let written = self.stream.write(&header, &body);
        let mut outgoing = self.outgoing.lock();
        if outgoing.queue.is_empty() && written.is_ok() {
            outgoing.writing = false;
            return None;
        }
        drop(outgoing);
        match written {
            Ok(()) => Some(Unwritten(None)),
            Err(_) => {
                self.finish(written);
                None
            }
        }
    }

    /// Writes on, which may take as long as the controller likes.
    pub(super) fn write_on(&self, Unwritten(message): Unwritten) {
        let written = message.map_or(Ok(()), |(header, body)| self.stream.write(&header, &body));
        self.finish(written);
    }

    /// Why nothing reaches the controller any more.
    pub(super) fn lost(&self) -> Option<Error> {
        self.state.lock().lost.clone()
    }

    fn call(&self, tag: u64, args: &[u8], done: Completion<Vec<u8>>) {
        let sequence = {
            let mut state = self.state.lock();
            if let Some(error) = state.ended.clone() {
                drop(state);
                return done.complete(Err(error));
            }
            let sequence = state.next;
            state.next += 1;
            state.waiting.insert(sequence, done);
            sequence
        };
        let header = Header::new(Opcode::CallWrapper, sequence, tag, args.len());
        self.send(header, args.into());
    }

    /// Hands the answer of one of our calls over; `false` if there is no such call.
    pub(super) fn answer(&self, sequence: u64, body: Vec<u8>) -> bool {
        let done = self.state.lock().waiting.remove(&sequence);
        done.map(|done| done.complete(Ok(body))).is_some()
    }

    /// Nothing will be answered any more.
    pub(super) fn end(&self) {
        self.end_with(Error::new(Status::Disconnected, "disconnecting"));
    }

    fn end_with(&self, error: Error) {
        let waiting = {
            let mut state = self.state.lock();
            state.ended.get_or_insert_with(|| error.clone());
            std::mem::take(&mut state.waiting)
        };
        for done in waiting.into_values() {
            done.complete(Err(error.clone()));
        }
    }
}
