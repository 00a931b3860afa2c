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
}

/// The other side has broken the protocol.
pub(crate) fn broken(why: FrameError) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

fn ended_early() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, FrameError::EndOfFile)
}

/// The reading end of a stream.
pub(crate) struct MessageReader {
    stream: ClosedInChild,
    buffer: Vec<u8>,
    /// What of the buffer was taken already.
    taken: usize,
    /// Until when bytes are waited for.
    until: Option<Instant>,
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
            until: None,
        }
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
        let (buffer, most) = match into {
            Into::Buffer => (&mut self.buffer, usize::MAX),
            Into::Body(body, most) => (body, most),
        };
        match sys::read(&self.stream, buffer, most) {
            // The other side has ended without reading everything.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(0),
            count => count,
        }
    }

    /// Reads on, once, and takes descriptors that are sent along.
    pub(crate) fn receive(&mut self) -> io::Result<Vec<OwnedFd>> {
        self.wait()?;
        sys::receive(&self.stream, &mut self.buffer)
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

    /// The next message; `None` if the stream ends where one could begin.
    pub(crate) fn next(&mut self) -> io::Result<Option<Message>> {
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
        let body = self.body(header.body_size())?;
        Ok(Some(Message { header, body }))
    }

    /// Takes a body. Room is made as its bytes arrive, so a size that is a lie costs nothing.
    fn body(&mut self, size: u64) -> io::Result<Vec<u8>> {
        let too_large = |there: usize| {
            let message =
                format!("a message of {size} bytes: after {there} of them the heap has no room");
            io::Error::new(ErrorKind::OutOfMemory, message)
        };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut body = Vec::new();
        loop {
            let missing = size - body.len();
            let count = missing.min(self.there().len());
            body.try_reserve(count).map_err(|_| too_large(body.len()))?;
            body.extend_from_slice(&self.there()[..count]);
            self.taken += count;
            let missing = missing - count;
            let more = match missing {
                0 => return Ok(body),
                1..BUFFER => self.fill()?,
                _ => {
                    let room = missing.min(body.len().max(BUFFER));
                    body.try_reserve(room).map_err(|_| too_large(body.len()))?;
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
