// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Messages of a byte stream.

use super::packet::{MOST_BODY, Packet};
use crate::sys;
use crate::wire::frame::{FrameError, HEADER_SIZE, Header};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Room for what is read at once.
const AHEAD: usize = 64 << 10;

/// The reading end of a stream that carries EPC's messages.
pub(crate) struct Frames {
    stream: Arc<OwnedFd>,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are done with.
    used: usize,
}

fn malformed(error: FrameError) -> io::Error {
    let kind = match error {
        FrameError::EndOfFile => ErrorKind::UnexpectedEof,
        _ => ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}

impl Frames {
    pub(crate) fn new(stream: Arc<OwnedFd>) -> Frames {
        Frames {
            stream,
            buffer: Vec::new(),
            used: 0,
        }
    }

    /// Waits for the next message; `None` at the end. Room for a body is made as it arrives. What
    /// is malformed stays, and is so again the next time.
    pub(crate) fn next(&mut self) -> io::Result<Option<Packet>> {
        if !self.fill(HEADER_SIZE)? {
            return Ok(None);
        }
        let header = self.buffer[self.used..].first_chunk();
        let header = Header::decode(header.expect("filled above")).map_err(malformed)?;
        if header.body_size() > MOST_BODY {
            let message = format!("Message of {} bytes, more than {MOST_BODY}", header.size);
            return Err(io::Error::new(ErrorKind::InvalidData, message));
        }
        let size = header.size as usize;
        if !self.fill(size)? {
            return Err(malformed(FrameError::EndOfFile));
        }
        let body = self.buffer[self.used..][HEADER_SIZE..size].to_vec();
        self.used += size;
        Ok(Some(Packet {
            header,
            body,
            descriptors: Vec::new(),
            lost: None,
        }))
    }

    /// Reads until that many bytes are there; `false` if there will be none at all.
    fn fill(&mut self, size: usize) -> io::Result<bool> {
        if self.buffer.len() - self.used >= size {
            return Ok(true);
        }
        self.buffer.drain(..self.used);
        self.used = 0;
        // A large message does not keep its room for ever.
        self.buffer.shrink_to(AHEAD);
        while self.buffer.len() < size {
            if self.buffer.len() == self.buffer.capacity() {
                self.buffer.reserve(AHEAD);
            }
            if sys::read(&self.stream, &mut self.buffer, usize::MAX)? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(false),
                    false => Err(malformed(FrameError::EndOfFile)),
                };
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{Opcode, message};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn stream() -> (UnixStream, Frames) {
        let (here, there) = UnixStream::pair().unwrap();
        (there, Frames::new(Arc::new(here.into())))
    }

    #[test]
    fn messages_come_back_however_they_are_cut() {
        let bodies: Vec<Vec<u8>> = [0, 1, 31, 4096, AHEAD, 3 * AHEAD + 5]
            .map(|size| (0..size).map(|index| index as u8).collect())
            .into();
        let all: Vec<u8> = (1..)
            .zip(&bodies)
            .flat_map(|(number, body)| message(Opcode::Result, number, 0, body))
            .collect();
        for step in [1 << 20, 1000, 31] {
            let (mut there, mut frames) = stream();
            let all = all.clone();
            let sender = std::thread::spawn(move || {
                all.chunks(step)
                    .for_each(|part| there.write_all(part).unwrap());
            });
            for (number, body) in (1..).zip(&bodies) {
                let packet = frames.next().unwrap().unwrap();
                assert_eq!(
                    packet.header,
                    Header::new(Opcode::Result, number, 0, body.len())
                );
                assert!(packet.body == *body, "{number}");
            }
            assert!(frames.next().unwrap().is_none());
            assert!(frames.buffer.capacity() <= 2 * AHEAD);
            sender.join().unwrap();
        }
    }

    #[test]
    fn what_is_cut_off_or_lies_is_an_error_each_time() {
        let whole = message(Opcode::Result, 0, 0, &[7; 10]);
        let header = |size: u64| [&size.to_le_bytes()[..], &[2; 24]].concat();
        let lies = [
            (whole[..1].to_vec(), "Unexpected end-of-file"),
            (whole[..32].to_vec(), "Unexpected end-of-file"),
            (whole[..41].to_vec(), "Unexpected end-of-file"),
            (header(31), "Message size too small"),
            (header(42), "Unexpected opcode"),
            (
                Header::new(Opcode::Result, 0, 0, 1 << 40).encode().into(),
                "Message of 10995",
            ),
            (
                Header::new(Opcode::Result, 0, 0, 1 << 29).encode().into(),
                "Unexpected end-of-file",
            ),
        ];
        for (bytes, words) in lies {
            let (mut there, mut frames) = stream();
            there.write_all(&bytes).unwrap();
            drop(there);
            for _ in 0..2 {
                let error = frames.next().unwrap_err().to_string();
                assert!(error.contains(words), "{error}");
            }
            assert!(frames.buffer.capacity() <= 2 * AHEAD);
        }
    }
}
