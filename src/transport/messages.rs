// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Messages off a stream.

use crate::sys::{self, ClosedInChild};
use crate::wire::frame::{FrameError, HEADER_SIZE, Header};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that are asked for at once: most messages, and often several.
const BUFFER: usize = 64 << 10;
/// And where the heap has no room for so many; small enough for the reserve.
const SMALL_BUFFER: usize = 4 << 10;

/// A message.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
    /// Why it has no body, which is passed over.
    pub(crate) withheld: Option<Withheld>,
}

/// Why a body was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Withheld {
    /// It has more bytes than were wanted.
    TooLarge,
    /// The heap has no room for it.
    NoRoom,
}

/// The other side has broken the protocol.
pub(crate) fn broken(why: FrameError) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

fn ended_early() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, FrameError::EndOfFile)
}

/// What is done with descriptors that come along with messages.
pub(crate) type TakeDescriptor = Box<dyn FnMut(OwnedFd) + Send>;

/// The reading end of a stream.
pub(crate) struct MessageReader {
    stream: ClosedInChild,
    buffer: Vec<u8>,
    /// What of the buffer was taken already.
    taken: usize,
    /// Bytes of a body that is passed over.
    unwanted: u64,
    /// Until when bytes are waited for.
    until: Option<Instant>,
    /// Without it they are closed by the kernel.
    take_descriptor: Option<TakeDescriptor>,
    /// How many of the next bytes may come with descriptors, which ends the stream.
    suspicious: u64,
}

impl MessageReader {
    pub(crate) fn new(stream: Arc<OwnedFd>) -> MessageReader {
        let mut buffer = Vec::new();
        if buffer.try_reserve_exact(BUFFER).is_err() {
            buffer.reserve_exact(SMALL_BUFFER);
        }
        MessageReader {
            stream: ClosedInChild::new(stream),
            buffer,
            taken: 0,
            unwanted: 0,
            until: None,
            take_descriptor: None,
            suspicious: 0,
        }
    }

    /// Takes descriptors that come along, where the stream passes any.
    pub(crate) fn take_descriptors(&mut self, take: TakeDescriptor) {
        if sys::passes_descriptors(&self.stream) {
            self.take_descriptor = Some(take);
        }
    }

    /// Makes descriptors that come along an error, and has none become one of this process.
    pub(crate) fn refuse_descriptors(&mut self) -> io::Result<()> {
        if sys::passes_descriptors(&self.stream) {
            self.suspicious = match sys::socket::refuse_descriptors(&self.stream) {
                // What came before that.
                true => sys::socket::unread(&self.stream)?,
                false => u64::MAX,
            };
        }
        Ok(())
    }

    /// How long bytes are waited for; without a limit, until they come.
    pub(crate) fn read_until(&mut self, deadline: Option<Instant>) {
        self.until = deadline;
    }

    /// Fails if no bytes come in time.
    fn wait(&self) -> io::Result<()> {
        let Some(until) = self.until else {
            return Ok(());
        };
        let left = until.saturating_duration_since(Instant::now());
        match sys::socket::readable(self.stream.as_fd(), left)? {
            true => Ok(()),
            false => Err(ErrorKind::TimedOut.into()),
        }
    }

    fn read(&mut self, into: Into<'_>) -> io::Result<usize> {
        self.wait()?;
        match self.read_now(into) {
            // The other side has ended without reading everything.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(0),
            count => count,
        }
    }

    fn read_now(&mut self, into: Into<'_>) -> io::Result<usize> {
        let (buffer, mut most) = match (into, &mut self.take_descriptor) {
            (Into::Buffer, Some(take)) => {
                let (count, descriptors) = sys::receive(&self.stream, &mut self.buffer)?;
                descriptors.into_iter().for_each(take);
                return Ok(count);
            }
            (Into::Buffer, None) => (&mut self.buffer, usize::MAX),
            // Descriptors come with the first byte of a message.
            (Into::Body(body, most), _) => (body, most),
        };
        if self.suspicious > 0 {
            most = most.min(sys::await_plain_bytes(&self.stream)?);
        }
        let count = sys::read(&self.stream, buffer, most)?;
        self.suspicious = self.suspicious.saturating_sub(count as u64);
        Ok(count)
    }

    /// Stays awake for a while, unless bytes are there already or come.
    pub(crate) fn look_ahead(&self, time: Duration) {
        if self.there().is_empty() {
            sys::look_for_input(&self.stream, time);
        }
    }

    fn there(&self) -> &[u8] {
        &self.buffer[self.taken..]
    }

    /// Reads on behind what is in the buffer; `false` at the end of the stream.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        Ok(self.read(Into::Buffer)? > 0)
    }

    /// Leaves a body behind that is not wanted.
    fn pass_over(&mut self) -> io::Result<()> {
        while self.unwanted > 0 {
            let count = self.unwanted.min(self.there().len() as u64);
            self.taken += count as usize;
            self.unwanted -= count;
            if self.unwanted > 0 && !self.fill()? {
                return Err(ended_early());
            }
        }
        Ok(())
    }

    /// The next message with its body; `None` if the stream ends where one could begin.
    pub(crate) fn next(&mut self) -> io::Result<Option<Message>> {
        match self.next_within(|_| u64::MAX)? {
            Some(message) if message.withheld.is_some() => {
                let size = message.header.body_size();
                let what = format!("a message of {size} bytes, for which the heap has no room");
                Err(io::Error::new(ErrorKind::OutOfMemory, what))
            }
            message => Ok(message),
        }
    }

    /// [`next`](Self::next) without a body that has more bytes than `most` says, which costs no memory.
    pub(crate) fn next_within(
        &mut self,
        most: impl FnOnce(&Header) -> u64,
    ) -> io::Result<Option<Message>> {
        self.pass_over()?;
        while self.there().len() < HEADER_SIZE {
            if !self.fill()? {
                return match self.there() {
                    [] => Ok(None),
                    _ => Err(ended_early()),
                };
            }
        }
        let (header, _) = self
            .there()
            .split_first_chunk()
            .expect("as many bytes are there");
        let header = Header::decode(header).map_err(broken)?;
        self.taken += HEADER_SIZE;
        let body = match header.body_size() > most(&header) {
            false => self.body(header.body_size())?.ok_or(Withheld::NoRoom),
            true => {
                self.unwanted = header.body_size();
                Err(Withheld::TooLarge)
            }
        };
        let withheld = body.as_ref().err().copied();
        Ok(Some(Message {
            header,
            body: body.unwrap_or_default(),
            withheld,
        }))
    }

    /// Takes a body. Room is made as its bytes arrive, so a size that is a lie costs nothing. `None`: the heap
    /// has no room, and the rest is passed over.
    fn body(&mut self, size: u64) -> io::Result<Option<Vec<u8>>> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut body = Vec::new();
        loop {
            let missing = size - body.len();
            let count = missing.min(self.there().len());
            if body.try_reserve(count).is_err() {
                self.unwanted = missing as u64;
                return Ok(None);
            }
            body.extend_from_slice(&self.there()[..count]);
            self.taken += count;
            let missing = missing - count;
            let more = match missing {
                0 => return Ok(Some(body)),
                1..BUFFER if self.take_descriptor.is_none() => self.fill()?,
                _ => {
                    let room = missing.min(body.len().max(BUFFER));
                    if body.try_reserve(room).is_err() {
                        self.unwanted = missing as u64;
                        return Ok(None);
                    }
                    self.read(Into::Body(&mut body, missing))? > 0
                }
            };
            if !more {
                return Err(ended_early());
            }
        }
    }
}

/// Where bytes are read to.
enum Into<'a> {
    Buffer,
    /// And at most how many.
    Body(&'a mut Vec<u8>, usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{Opcode, message};
    use proptest::prelude::*;
    use std::io::Write;

    /// What comes out when `bytes` go in, in pieces of these sizes.
    fn read_all(bytes: &[u8], pieces: &[usize]) -> (Vec<Message>, io::Result<()>) {
        let (reader, mut writer) = std::io::pipe().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut rest = bytes;
                for size in pieces.iter().copied().chain(std::iter::repeat(bytes.len())) {
                    let (piece, behind) =
                        rest.split_at(size.clamp(1, rest.len().max(1)).min(rest.len()));
                    writer.write_all(piece).unwrap();
                    rest = behind;
                    if rest.is_empty() {
                        break;
                    }
                }
            });
            let mut input = MessageReader::new(Arc::new(reader.into()));
            let mut messages = Vec::new();
            loop {
                match input.next() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => return (messages, Ok(())),
                    Err(error) => return (messages, Err(error)),
                }
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn messages_come_out_whole_however_they_arrive(
            sizes in proptest::collection::vec(
                prop_oneof![0usize..100, Just(BUFFER - 32), Just(BUFFER), 0usize..300_000], 0..6
            ),
            pieces in proptest::collection::vec(1usize..100_000, 0..8),
        ) {
            let mut bytes = Vec::new();
            for (number, size) in sizes.iter().enumerate() {
                let body = vec![number as u8; *size];
                bytes.extend(message(Opcode::CallWrapper, number as u64, 1, &body));
            }
            let (messages, end) = read_all(&bytes, &pieces);
            prop_assert!(end.is_ok());
            prop_assert_eq!(messages.len(), sizes.len());
            for (number, (message, size)) in messages.iter().zip(&sizes).enumerate() {
                prop_assert_eq!(message.header.sequence, number as u64);
                prop_assert!(message.body == vec![number as u8; *size]);
            }
        }

        #[test]
        fn an_end_inside_a_message_is_an_error(body in 0usize..200_000, cut: proptest::sample::Index) {
            let whole = message(Opcode::Result, 1, 0, &vec![7; body]);
            let short = &whole[..1 + cut.index(whole.len() - 1)];
            let (messages, end) = read_all(short, &[]);
            prop_assert!(messages.is_empty());
            let error = end.unwrap_err();
            prop_assert_eq!(error.to_string(), "Unexpected end-of-file");
        }
    }

    #[test]
    fn a_size_that_is_a_lie_costs_nothing() {
        for size in [1 << 40, u64::MAX] {
            let mut lie = Header::new(Opcode::CallWrapper, 0, 1, 0);
            lie.size = size;
            let (messages, end) = read_all(&lie.encode(), &[]);
            assert!(messages.is_empty());
            assert_eq!(end.unwrap_err().to_string(), "Unexpected end-of-file");
        }
    }

    #[test]
    fn a_body_that_is_not_wanted_is_passed_over() {
        for size in [0, 1, 99, 100, 101, BUFFER, 300_000] {
            let large = message(Opcode::Result, 1, 0, &vec![7; size]);
            let bytes = [large, message(Opcode::Result, 2, 0, b"next")].concat();
            let (reader, mut writer) = std::io::pipe().unwrap();
            let writing = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
            let mut input = MessageReader::new(Arc::new(reader.into()));
            let first = input.next_within(|_| 100).unwrap().unwrap();
            assert_eq!(
                (first.withheld, first.body.len()),
                match size {
                    ..=100 => (None, size),
                    _ => (Some(Withheld::TooLarge), 0),
                }
            );
            let next = input.next_within(|_| 100).unwrap().unwrap();
            assert_eq!((next.header.sequence, &next.body[..]), (2, &b"next"[..]));
            assert!(input.next().unwrap().is_none());
            writing.join().unwrap();
        }
    }

    #[test]
    fn what_is_no_header_is_refused_in_the_words_of_stock_executors() {
        let mut small = Header::new(Opcode::Hangup, 0, 0, 0);
        small.size = 31;
        let end = read_all(&small.encode(), &[]).1;
        assert_eq!(end.unwrap_err().to_string(), "Message size too small");
        let mut bytes = small.encode();
        bytes[..16].copy_from_slice(&[32u64.to_le_bytes(), 4u64.to_le_bytes()].concat());
        let end = read_all(&bytes, &[]).1;
        assert_eq!(end.unwrap_err().to_string(), "Unexpected opcode");
    }
}
