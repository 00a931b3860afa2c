// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Packets of a channel: EPC's header and a body, and descriptors of the controller's. A body of the controller's
//! that is too large for one packet travels in a memfd; an executor's answers fit into packets.

use crate::sys::socket::Received;
use crate::sys::{MemFile, heap, socket};
use crate::wire::frame::{HEADER_SIZE, Header};
use smallvec::SmallVec;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of a packet at most; well below what a Unix socket takes by default.
pub(crate) const MOST_BYTES: usize = 64 << 10;

/// No body is larger, whatever a header says.
const MOST_BODY: u64 = 1 << 30;

#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// This process could not take or read the body, and this is why; the rest of the connection is as good as
    /// before.
    pub(crate) lost: Option<String>,
}

impl Packet {
    fn copy(&mut self, body: &[u8]) {
        match heap::copy_of(body, "message") {
            Ok(copy) => self.body = copy,
            Err(error) => self.lost = Some(error.to_string()),
        }
    }
}

fn malformed(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_string())
}

fn malformed_size(header: &Header) -> io::Error {
    malformed(format!("a packet whose header says {} bytes", header.size))
}

/// Bytes of an answer at most.
pub(crate) const MOST_ANSWER: usize = MOST_BYTES - HEADER_SIZE;

/// Whether a body of this size can be sent: what is too large for a packet needs a file.
pub(crate) fn can_carry(size: usize) -> bool {
    HEADER_SIZE + size <= MOST_BYTES || MemFile::largest().is_none_or(|most| size as u64 <= most)
}

/// Sends a packet whole, or not at all; waits until there is room for it.
pub(crate) fn send(
    socket: &OwnedFd,
    header: Header,
    body: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    with_parts(header, body, descriptors, |parts, descriptors| {
        socket::send(socket, &parts, descriptors)
    })
}

/// Gives `send` the bytes and descriptors of a packet.
pub(crate) fn with_parts(
    header: Header,
    body: &[u8],
    descriptors: &[BorrowedFd<'_>],
    send: impl FnOnce([&[u8]; 2], &[BorrowedFd<'_>]) -> io::Result<()>,
) -> io::Result<()> {
    let bytes = header.encode();
    if HEADER_SIZE + body.len() <= MOST_BYTES {
        return send([&bytes, body], descriptors);
    }
    let file = MemFile::holding(c"jitmem-message", body)?;
    let mut all = descriptors.to_vec();
    all.push(file.as_fd());
    send([&bytes, &[]], &all)
}

/// Buffers to receive packets into, made before any thread needs one.
pub(crate) fn buffers(count: usize) -> io::Result<SmallVec<[Vec<u8>; 2]>> {
    let buffer = |_| {
        let mut buffer = Vec::new();
        match buffer.try_reserve_exact(MOST_BYTES) {
            Ok(()) => Ok(buffer),
            Err(_) => Err(io::Error::from(ErrorKind::OutOfMemory)),
        }
    };
    (0..count).map(buffer).collect()
}

/// Waits for a packet of a controller's; `None` at the end. The buffer is for whatever comes next as well.
pub(crate) fn receive(socket: &OwnedFd, buffer: &mut Vec<u8>) -> io::Result<Option<Packet>> {
    let Some((received, header, rest)) = received(socket, buffer, socket::receive)? else {
        return Ok(None);
    };
    let size = header.body_size();
    let mut packet = Packet {
        header,
        body: Vec::new(),
        descriptors: received.descriptors,
        lost: None,
    };
    if size == rest.len() as u64 {
        packet.copy(rest);
        return Ok(Some(packet));
    }
    if !rest.is_empty() || size > MOST_BODY {
        return Err(malformed_size(&header));
    }
    match packet
        .descriptors
        .pop()
        .map(|file| MemFile::content(file, size))
    {
        Some(Ok(body)) => packet.body = body,
        Some(Err(error)) if error.kind() == ErrorKind::InvalidData => return Err(error),
        Some(Err(error)) => packet.lost = Some(format!("read a message of {size} bytes: {error}")),
        None if received.brought_descriptors => {
            packet.lost = Some(format!(
                "take a message of {size} bytes: this process has as many descriptors as it may; \
                 raise RLIMIT_NOFILE (ulimit -n)"
            ));
        }
        None => return Err(malformed("a packet without its body")),
    }
    Ok(Some(packet))
}

/// Waits for a packet of an executor's, which brings nothing but bytes; `None` at the end.
///
/// # Errors
/// `InvalidData` if it brings descriptors.
pub(crate) fn receive_answer(socket: &OwnedFd, buffer: &mut Vec<u8>) -> io::Result<Option<Packet>> {
    let Some((received, header, rest)) = received(socket, buffer, socket::receive_bytes)? else {
        return Ok(None);
    };
    if received.brought_descriptors {
        return Err(malformed("a packet with descriptors"));
    }
    if header.body_size() != rest.len() as u64 {
        return Err(malformed_size(&header));
    }
    let mut packet = Packet {
        header,
        body: Vec::new(),
        descriptors: Vec::new(),
        lost: None,
    };
    packet.copy(rest);
    Ok(Some(packet))
}

/// What was received, its header, and the bytes behind that.
fn received<'a>(
    socket: &OwnedFd,
    buffer: &'a mut Vec<u8>,
    receive: impl FnOnce(&OwnedFd, &mut [u8]) -> io::Result<Received>,
) -> io::Result<Option<(Received, Header, &'a [u8])>> {
    buffer.resize(MOST_BYTES, 0);
    let received = match receive(socket, buffer) {
        // The other side has ended without reading everything.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
        received => received?,
    };
    if received.size == 0 {
        return Ok(None);
    }
    let packet = buffer.get(..received.size).filter(|_| !received.truncated);
    let (header, rest) = packet
        .and_then(|packet| packet.split_first_chunk::<HEADER_SIZE>())
        .ok_or_else(|| malformed(format!("a packet of {} bytes", received.size)))?;
    let header = Header::decode(header).map_err(malformed)?;
    Ok(Some((received, header, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::Opcode;

    fn header(body: usize) -> Header {
        Header::new(Opcode::CallWrapper, 3, 4, body)
    }

    #[test]
    fn packets_of_any_size_come_back_with_their_descriptors() {
        let (here, there) = socket::packet_pair().unwrap();
        let mut buffer = Vec::new();
        for size in [0, 1, MOST_BYTES - HEADER_SIZE, MOST_BYTES, 1 << 20] {
            let body: Vec<u8> = (0..size).map(|index| index as u8).collect();
            send(&here, header(size), &body, &[here.as_fd()]).unwrap();
            let packet = receive(&there, &mut buffer).unwrap().unwrap();
            assert_eq!(packet.header, header(size));
            assert_eq!(packet.descriptors.len(), 1);
            assert!(packet.body == body, "{size}");
        }
    }

    #[test]
    fn packets_that_lie_are_refused() {
        let (here, there) = socket::packet_pair().unwrap();
        let mut buffer = Vec::new();
        let refused = |bytes: &[u8], descriptors: &[BorrowedFd<'_>], buffer: &mut Vec<u8>| {
            socket::send(&here, &[bytes], descriptors).unwrap();
            receive(&there, buffer).unwrap_err().kind() == ErrorKind::InvalidData
        };
        assert!(refused(&[1; 31], &[], &mut buffer));
        assert!(refused(&[0; 32], &[], &mut buffer));
        assert!(refused(&header(usize::MAX - 64).encode(), &[], &mut buffer));
        assert!(refused(&header(9).encode(), &[], &mut buffer));
        let short = MemFile::holding(c"short", &[1; 8]).unwrap();
        assert!(refused(
            &header(1 << 20).encode(),
            &[short.as_fd()],
            &mut buffer
        ));
        assert!(refused(&header(9).encode(), &[here.as_fd()], &mut buffer));
        // Only memory is read, no file that may be another process's to answer for.
        let file = std::fs::File::open("/proc/self/maps").unwrap();
        assert!(refused(&header(9).encode(), &[file.as_fd()], &mut buffer));
        let long = [&header(9).encode()[..], &[0; 8]].concat();
        assert!(refused(&long, &[], &mut buffer));
    }

    #[test]
    fn a_body_that_can_not_be_read_is_lost_alone_and_says_why() {
        let (here, there) = socket::packet_pair().unwrap();
        let mut buffer = Vec::new();
        let file = MemFile::holding(c"body", &[7; 100]).unwrap();
        let path = format!("/proc/self/fd/{}", socket::number(file.as_fd()));
        let unreadable = std::fs::File::options().write(true).open(path).unwrap();
        let mut lost = |file: BorrowedFd<'_>| {
            socket::send(&here, &[&header(100).encode()], &[file]).unwrap();
            let packet = receive(&there, &mut buffer).unwrap().unwrap();
            packet.lost.ok_or(packet.body)
        };
        let why = lost(unreadable.as_fd()).unwrap();
        assert!(why.contains("read a message of 100 bytes"), "{why}");
        assert_eq!(lost(file.as_fd()), Err(vec![7; 100]));
    }

    #[test]
    fn an_executors_packets_are_bytes_alone() {
        let (here, there) = socket::packet_pair().unwrap();
        let mut buffer = Vec::new();
        send(&here, header(3), b"abc", &[]).unwrap();
        let packet = receive_answer(&there, &mut buffer).unwrap().unwrap();
        assert_eq!((packet.header, &packet.body[..]), (header(3), &b"abc"[..]));
        let file = MemFile::holding(c"body", &[7; 100]).unwrap();
        for (size, body) in [(3, &b"abc"[..]), (100, &[])] {
            socket::send(&here, &[&header(size).encode(), body], &[file.as_fd()]).unwrap();
            let error = receive_answer(&there, &mut buffer).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
        }
        drop(here);
        assert!(receive_answer(&there, &mut buffer).unwrap().is_none());
    }
}
