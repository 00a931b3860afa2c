// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Packets of a channel: EPC's header and a body, and descriptors. A body that is too large for one
//! packet travels in a memfd.

use super::too_large;
use crate::sys::{MemFile, heap, socket};
use crate::wire::frame::{HEADER_SIZE, Header};
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
    /// The body was in a file that this process could not take or read, and this is why; the rest of
    /// the connection is as good as before.
    pub(crate) lost: Option<String>,
}

fn malformed(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_string())
}

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
pub(crate) fn buffers<const COUNT: usize>() -> io::Result<[Vec<u8>; COUNT]> {
    let mut buffers = [const { Vec::new() }; COUNT];
    for buffer in &mut buffers {
        buffer
            .try_reserve_exact(MOST_BYTES)
            .map_err(|_| io::Error::from(ErrorKind::OutOfMemory))?;
    }
    Ok(buffers)
}

/// Waits for a packet; `None` at the end. The buffer is for whatever comes next as well.
pub(crate) fn receive(socket: &OwnedFd, buffer: &mut Vec<u8>) -> io::Result<Option<Packet>> {
    receive_within(socket, buffer, |_| MOST_BODY)
}

/// [`receive`] without a body that has more bytes than `most` says, which is lost then.
pub(crate) fn receive_within(
    socket: &OwnedFd,
    buffer: &mut Vec<u8>,
    most: impl FnOnce(&Header) -> u64,
) -> io::Result<Option<Packet>> {
    buffer.resize(MOST_BYTES, 0);
    let received = match socket::receive(socket, buffer) {
        // The other side has ended without reading everything.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
        received => received?,
    };
    if received.size == 0 {
        return Ok(None);
    }
    let mut descriptors = received.descriptors;
    let packet = buffer.get(..received.size).filter(|_| !received.truncated);
    let (header, rest) = packet
        .and_then(|packet| packet.split_first_chunk::<HEADER_SIZE>())
        .ok_or_else(|| malformed(format!("a packet of {} bytes", received.size)))?;
    let header = Header::decode(header).map_err(malformed)?;
    let size = header.body_size();
    let most = most(&header);
    let mut lost = None;
    let is_there = size == rest.len() as u64;
    let is_in_file = rest.is_empty() && size <= MOST_BODY && !descriptors.is_empty();
    let body = if size > most && (is_there || is_in_file) {
        lost = Some(too_large(&header, most).message().to_owned());
        Vec::new()
    } else if is_there {
        heap::copy_of(rest, "message").unwrap_or_else(|error| {
            lost = Some(error.to_string());
            Vec::new()
        })
    } else if rest.is_empty() && size <= MOST_BODY {
        match descriptors.pop().map(|file| MemFile::content(file, size)) {
            Some(Ok(body)) => body,
            Some(Err(error)) if error.kind() == ErrorKind::InvalidData => return Err(error),
            Some(Err(error)) => {
                lost = Some(format!("read a message of {size} bytes: {error}"));
                Vec::new()
            }
            None if received.short_of_descriptors => {
                lost = Some(format!(
                    "take a message of {size} bytes: this process has as many descriptors as it may; \
                     raise RLIMIT_NOFILE (ulimit -n)"
                ));
                Vec::new()
            }
            None => return Err(malformed("a packet without its body")),
        }
    } else {
        return Err(malformed(format!(
            "a packet whose header says {} bytes",
            header.size
        )));
    };
    Ok(Some(Packet {
        header,
        body,
        descriptors,
        lost,
    }))
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
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(refused(&header(9).encode(), &[file.as_fd()], &mut buffer));
        let long = [&header(9).encode()[..], &[0; 8]].concat();
        assert!(refused(&long, &[], &mut buffer));
    }
}
