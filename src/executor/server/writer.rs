// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Messages to the controller.

use crate::error::{Error, Result, Status};
use crate::lock::Mutex;
use crate::sys::{StreamWriter, WRITTEN_AT_ONCE};
use crate::wire::frame::{HEADER_SIZE, Header};
use std::borrow::Cow;
use std::io;
use std::os::fd::BorrowedFd;

/// Writes messages, each as a whole, for many threads.
///
/// A thread that sends while another one writes leaves its message there, and that one writes it as
/// well. So a controller that is slow to read holds up one thread only.
pub(super) struct MessageWriter {
    stream: StreamWriter,
    outgoing: Mutex<Outgoing>,
}

#[derive(Default)]
struct Outgoing {
    /// A thread writes, and looks here before it stops.
    writing: bool,
    queue: Vec<Encoded>,
    /// Why nothing more is written: part of a message may have been.
    failed: Option<Error>,
}

type Encoded = ([u8; HEADER_SIZE], Vec<u8>);

/// The duty to write what could not be written at once.
#[must_use]
pub(super) struct Unwritten(Option<Encoded>);

/// Messages that are smaller are written together.
const TOGETHER: usize = 16 << 10;

impl MessageWriter {
    pub(super) fn new(stream: StreamWriter) -> MessageWriter {
        MessageWriter {
            stream,
            outgoing: Mutex::default(),
        }
    }

    /// Why nothing reaches the controller any more.
    pub(super) fn failed(&self) -> Option<Error> {
        self.outgoing.lock().failed.clone()
    }

    /// Sends a message, or leaves it to the thread that writes. What a failure keeps from being sent is
    /// lost; the thread that finds it out is told.
    pub(super) fn send(&self, header: Header, body: Cow<'_, [u8]>) -> Result<()> {
        match self.leave(header, body) {
            Some((header, body)) => self.finish(self.stream.write(&header, &body)),
            None => Ok(()),
        }
    }

    /// [`send`](Self::send) for a stream that nothing was written to yet. The descriptor comes with the
    /// first byte, if the system allows that.
    pub(super) fn send_with(
        &self,
        header: Header,
        body: &[u8],
        descriptor: BorrowedFd<'_>,
    ) -> Result<()> {
        match self.leave(header, body.into()) {
            Some((header, body)) => {
                let sent = self.stream.write_with(&header, descriptor);
                self.finish(sent.and_then(|()| self.stream.write(&body, &[])))
            }
            None => Ok(()),
        }
    }

    /// Sends a message as far as that takes no waiting for the controller to read. What is left is to be
    /// given to [`write_on`](Self::write_on).
    pub(super) fn start_to_send(&self, header: Header, body: Vec<u8>) -> Result<Option<Unwritten>> {
        let Some((header, body)) = self.leave(header, body.into()) else {
            return Ok(None);
        };
        let at_once = HEADER_SIZE + body.len() <= WRITTEN_AT_ONCE && self.stream.has_room();
        if !at_once {
            return Ok(Some(Unwritten(Some((header, body.into_owned())))));
        }
        let written = self.stream.write(&header, &body);
        let mut outgoing = self.outgoing.lock();
        if outgoing.queue.is_empty() && written.is_ok() {
            outgoing.writing = false;
            return Ok(None);
        }
        drop(outgoing);
        match written {
            Ok(()) => Ok(Some(Unwritten(None))),
            Err(_) => self.finish(written).map(|()| None),
        }
    }

    /// Writes on, which may take as long as the controller likes.
    pub(super) fn write_on(&self, Unwritten(message): Unwritten) -> Result<()> {
        let written = message.map_or(Ok(()), |(header, body)| self.stream.write(&header, &body));
        self.finish(written)
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
        if outgoing.failed.is_some() {
            return None;
        }
        if outgoing.writing {
            outgoing.queue.push((header, body.into_owned()));
            return None;
        }
        outgoing.writing = true;
        Some((header, body))
    }

    /// Writes what others have left, until there is nothing more, and stops writing.
    fn finish(&self, mut written: io::Result<()>) -> Result<()> {
        while written.is_ok() {
            let left = {
                let mut outgoing = self.outgoing.lock();
                if outgoing.queue.is_empty() {
                    outgoing.writing = false;
                    return Ok(());
                }
                std::mem::take(&mut outgoing.queue)
            };
            written = self.write_all(left);
        }
        let failed = written
            .map_err(|error| Error::system(Status::Disconnected, "write to the controller", error));
        let mut outgoing = self.outgoing.lock();
        outgoing.failed = failed.clone().err();
        outgoing.queue.clear();
        outgoing.writing = false;
        failed
    }

    fn write_all(&self, messages: Vec<Encoded>) -> io::Result<()> {
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
}
