// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Messages to the controller.

use crate::error::{Error, Result, Status};
use crate::lock::{Condvar, Mutex, MutexGuard};
use crate::sys::{self, StreamWriter, WRITTEN_AT_ONCE};
use crate::wire::frame::{HEADER_SIZE, Header};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Writes messages, each as a whole, for many threads.
///
/// A thread that sends while another one writes leaves its message there, and that one writes it as
/// well. So a controller that is slow to read holds up one thread only, until as much is left as may be:
/// then threads wait with what they have to say.
pub(super) struct MessageWriter {
    stream: StreamWriter,
    outgoing: Mutex<Outgoing>,
    /// What is left has become less.
    less: Condvar,
    most: Unread,
}

/// How much a controller may leave unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Bytes that are left for it to read, beyond what the stream takes; then threads wait with what they
    /// have to say. One message may exceed it. 64 MiB by default.
    pub bytes: usize,
    /// Calls of linked code that wait meanwhile; further ones fail. 1,024 by default.
    pub calls: usize,
}

impl Default for Unread {
    fn default() -> Unread {
        Unread {
            bytes: 64 << 20,
            calls: 1024,
        }
    }
}

#[derive(Default)]
struct Outgoing {
    /// A thread writes, and looks here before it stops.
    writing: bool,
    queue: VecDeque<Encoded>,
    /// Bytes that others have left and that are not written yet.
    left: usize,
    /// Calls of linked code that wait for room.
    calls: usize,
    /// How often something that was left has been written.
    written: u64,
    /// [`written`](Self::written) when a thread gave up waiting for room.
    given_up: Option<u64>,
    /// Why nothing more is written: part of a message may have been.
    failed: Option<Error>,
}

type Encoded = ([u8; HEADER_SIZE], Vec<u8>);

/// What one message that is left takes.
fn cost(body: &[u8]) -> usize {
    size_of::<Encoded>() + body.len()
}

type Guard<'a> = MutexGuard<'a, Outgoing>;

/// The duty to write what could not be written at once.
#[must_use]
pub(super) struct Unwritten(Option<Encoded>);

impl Unwritten {
    /// Has `write_on` called in a thread of its own. Gives itself back where there is none to be had.
    pub(super) fn elsewhere(
        self,
        write_on: impl FnOnce(Unwritten) + Send + 'static,
    ) -> Option<Unwritten> {
        let duty = Arc::new(Mutex::new(Some(self)));
        let theirs = Arc::clone(&duty);
        let act = move || {
            let duty = theirs.lock().take();
            if let Some(unwritten) = duty {
                write_on(unwritten);
            }
        };
        match sys::spawn("jitmem-send", act) {
            Ok(_) => None,
            Err(_) => duty.lock().take(),
        }
    }
}

/// Messages that are smaller are written together.
const TOGETHER: usize = 16 << 10;

impl MessageWriter {
    pub(super) fn new(stream: StreamWriter, most: Unread) -> MessageWriter {
        MessageWriter {
            stream,
            outgoing: Mutex::default(),
            less: Condvar::default(),
            most,
        }
    }

    /// Waits until the controller has read enough for more to be left.
    ///
    /// # Errors
    /// Why nothing reaches the controller any more.
    pub(super) fn wait_for_room(&self) -> Result<()> {
        self.with_room(self.outgoing.lock()).check()
    }

    /// # Errors
    /// Why nothing reaches the controller any more.
    pub(super) fn check(&self) -> Result<()> {
        self.outgoing.lock().check()
    }

    fn is_full(&self, outgoing: &Outgoing) -> bool {
        outgoing.left >= self.most.bytes && outgoing.failed.is_none()
    }

    fn with_room<'a>(&self, mut outgoing: Guard<'a>) -> Guard<'a> {
        while self.is_full(&outgoing) {
            outgoing = self.less.wait(outgoing);
        }
        outgoing
    }

    /// [`with_room`](Self::with_room) as long as the other side reads. `None` once it has read nothing for so long,
    /// and for each thread that asks until it reads again.
    fn with_room_within(&self, patience: Duration) -> Option<Guard<'_>> {
        let mut outgoing = self.outgoing.lock();
        while self.is_full(&outgoing) {
            let (before, end) = (outgoing.written, Instant::now() + patience);
            let reads = |outgoing: &Outgoing| !self.is_full(outgoing) || outgoing.written != before;
            while !reads(&outgoing) && outgoing.given_up != Some(before) {
                if Instant::now() >= end {
                    outgoing.given_up = Some(before);
                    self.less.notify_all();
                    break;
                }
                outgoing = self.less.wait_until(outgoing, end);
            }
            if !reads(&outgoing) {
                return None;
            }
        }
        Some(outgoing)
    }

    /// [`send`](Self::send) for a call of linked code.
    ///
    /// # Errors
    /// `WouldBlock` if too many calls wait for the controller to read; nothing was sent then.
    pub(super) fn send_call(&self, header: Header, body: &[u8]) -> Result<()> {
        let mut outgoing = self.outgoing.lock();
        if outgoing.left >= self.most.bytes {
            if outgoing.calls >= self.most.calls {
                return Err(unread(&outgoing));
            }
            outgoing.calls += 1;
            outgoing = self.with_room(outgoing);
            outgoing.calls -= 1;
        }
        drop(outgoing);
        self.send(header, body.into())
    }

    /// Sends a message, or leaves it to the thread that writes. What a failure keeps from being sent is
    /// lost; the thread that finds it out is told.
    pub(super) fn send(&self, header: Header, body: Cow<'_, [u8]>) -> Result<()> {
        match self.leave(self.with_room(self.outgoing.lock()), header, body) {
            Some((header, body)) => self.finish(self.stream.write(&header, &body)),
            None => Ok(()),
        }
    }

    /// Sends a message as far as that takes no waiting for the controller to read. What is left is to be
    /// given to [`write_on`](Self::write_on).
    pub(super) fn start_to_send(&self, header: Header, body: Vec<u8>) -> Result<Option<Unwritten>> {
        self.start(self.with_room(self.outgoing.lock()), header, body)
    }

    /// [`start_to_send`](Self::start_to_send), which does not wait for ever while as much is left as may be. `None` if
    /// the other side has read nothing for so long; nothing was sent then.
    pub(super) fn start_to_send_within(
        &self,
        header: Header,
        body: Vec<u8>,
        patience: Duration,
    ) -> Option<Result<Option<Unwritten>>> {
        let outgoing = self.with_room_within(patience)?;
        Some(self.start(outgoing, header, body))
    }

    fn start(
        &self,
        outgoing: Guard<'_>,
        header: Header,
        body: Vec<u8>,
    ) -> Result<Option<Unwritten>> {
        let Some((header, body)) = self.leave(outgoing, header, body.into()) else {
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
        mut outgoing: Guard<'_>,
        header: Header,
        body: Cow<'a, [u8]>,
    ) -> Option<([u8; HEADER_SIZE], Cow<'a, [u8]>)> {
        let header = header.encode();
        if outgoing.failed.is_some() {
            return None;
        }
        if outgoing.writing {
            outgoing.left += cost(&body);
            outgoing.queue.push_back((header, body.into_owned()));
            return None;
        }
        outgoing.writing = true;
        Some((header, body))
    }

    /// Writes what others have left, until there is nothing more, and stops writing.
    fn finish(&self, mut written: io::Result<()>) -> Result<()> {
        let mut done = 0;
        while written.is_ok() {
            let together = {
                let mut outgoing = self.outgoing.lock();
                outgoing.left -= done;
                outgoing.written += 1;
                self.less.notify_all();
                if outgoing.queue.is_empty() {
                    outgoing.writing = false;
                    return Ok(());
                }
                outgoing.take_together()
            };
            done = together.iter().map(|(_, body)| cost(body)).sum();
            written = self.write_all(&together);
        }
        let failed = written
            .map_err(|error| Error::system(Status::Disconnected, "write to the controller", error));
        let mut outgoing = self.outgoing.lock();
        outgoing.failed = failed.clone().err();
        outgoing.queue.clear();
        outgoing.left = 0;
        outgoing.writing = false;
        self.less.notify_all();
        failed
    }

    fn write_all(&self, messages: &[Encoded]) -> io::Result<()> {
        if let [(header, body)] = messages {
            return self.stream.write(header, body);
        }
        let mut together = Vec::new();
        for (header, body) in messages {
            together.extend(header);
            together.extend(body);
        }
        self.stream.write(&together, &[])
    }
}

impl Outgoing {
    fn check(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// The next message, and those behind it that are small enough to be written together with it.
    fn take_together(&mut self) -> Vec<Encoded> {
        let mut size = 0;
        let small = |(_, body): &&Encoded| {
            size += HEADER_SIZE + body.len();
            size <= TOGETHER
        };
        let count = self.queue.iter().take_while(small).count();
        self.queue.drain(..count.max(1)).collect()
    }
}

#[cold]
fn unread(Outgoing { left, calls, .. }: &Outgoing) -> Error {
    Error::new(
        Status::WouldBlock,
        format!(
            "the controller does not read what it is sent: {left} bytes and {calls} calls of linked code \
             wait for that"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::Opcode;
    use std::io::{PipeReader, Read, Write};
    use std::sync::Arc;
    use std::thread::JoinHandle;

    const BODY: [u8; 1000] = [7; 1000];
    const MOST: Unread = Unread {
        bytes: 64 << 10,
        calls: 2,
    };

    /// A writer whose pipe is full, so that nothing is written before the bytes that are given are read.
    fn writer() -> (Arc<MessageWriter>, PipeReader, usize) {
        let (reader, mut writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let mut filled = 0;
        while let Ok(written) = writer.write(&[0; 4096]) {
            filled += written;
        }
        rustix::io::ioctl_fionbio(&writer, false).unwrap();
        let stream = StreamWriter::new(writer.into()).unwrap();
        let writer = Arc::new(MessageWriter::new(stream, MOST));
        (writer, reader, filled)
    }

    fn header() -> Header {
        Header::new(Opcode::Result, 1, 0, BODY.len())
    }

    /// Threads that send so many messages each, once as much is left as may be.
    fn full(writer: &Arc<MessageWriter>, threads: usize, count: usize) -> Vec<JoinHandle<()>> {
        let start = |_| {
            let writer = Arc::clone(writer);
            std::thread::spawn(move || {
                for _ in 0..count {
                    let _ = writer.send(header(), BODY[..].into());
                }
            })
        };
        let senders = (0..threads).map(start).collect();
        while writer.outgoing.lock().left < MOST.bytes {
            std::thread::yield_now();
        }
        senders
    }

    #[test]
    fn what_is_left_for_a_controller_that_does_not_read_is_bounded() {
        let (writer, mut reader, filled) = writer();
        let senders = full(&writer, 4, 500);
        reader.read_exact(&mut vec![0; filled]).unwrap();
        let mut message = [0; HEADER_SIZE + BODY.len()];
        for _ in 0..4 * 500 {
            assert!(writer.outgoing.lock().left < MOST.bytes + cost(&BODY));
            reader.read_exact(&mut message).unwrap();
            assert_eq!(message[..HEADER_SIZE], header().encode());
            assert_eq!(message[HEADER_SIZE..], BODY);
        }
        senders
            .into_iter()
            .for_each(|sender| sender.join().unwrap());
        writer.wait_for_room().unwrap();
        assert_eq!(writer.outgoing.lock().left, 0);
    }

    #[test]
    fn what_is_sent_to_one_that_does_not_read_waits_no_longer_than_it_may() {
        const PATIENCE: Duration = Duration::from_millis(20);
        let (writer, mut reader, filled) = writer();
        let senders = full(&writer, 2, 200);
        let send = |patience| writer.start_to_send_within(header(), BODY.into(), patience);
        assert!(send(PATIENCE).is_none());
        // That it does not read is known then.
        assert!(send(Duration::from_secs(3600)).is_none());
        let message = HEADER_SIZE + BODY.len();
        reader
            .read_exact(&mut vec![0; filled + 400 * message])
            .unwrap();
        senders
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert!(matches!(send(PATIENCE), Some(Ok(None))));
        reader.read_exact(&mut vec![0; message]).unwrap();
        // What fails is no matter of reading.
        let senders = full(&writer, 2, 200);
        drop(reader);
        senders
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert!(matches!(send(PATIENCE), Some(Ok(None))));
        assert!(writer.check().is_err());
    }

    #[test]
    fn calls_wait_for_room_then_fail_and_the_end_wakes_all() {
        let (writer, reader, _) = writer();
        let mut waiting = full(&writer, 2, 1000);
        for _ in 0..MOST.calls {
            let writer = Arc::clone(&writer);
            waiting.push(std::thread::spawn(move || {
                let _ = writer.send_call(header(), &BODY);
            }));
        }
        while writer.outgoing.lock().calls < MOST.calls {
            std::thread::yield_now();
        }
        let error = writer.send_call(header(), &BODY).unwrap_err();
        assert_eq!(error.status(), Status::WouldBlock);
        assert!(error.message().contains("does not read"), "{error}");
        drop(reader);
        waiting
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert!(writer.wait_for_room().is_err());
    }
}
