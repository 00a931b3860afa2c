// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Packets of a session's own channel, as they shall be and as they shall not.

use crate::input::Input;
use jitmem::wire::frame::{HEADER_SIZE, Header, Opcode};
use memfd::{Memfd, MemfdOptions};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Bytes of a packet at most.
const MOST_BYTES: usize = 64 << 10;

/// As many descriptors go with one, and as many the other side takes.
const MOST_SENT: usize = 100;
const MOST_TAKEN: usize = 64;

/// What the other side shall do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Take it for what it is.
    Taken,
    /// Fail the call that it belongs to, for it can't be read.
    Lost,
    /// End the connection.
    Broken,
}

pub(crate) struct Packet {
    bytes: Vec<u8>,
    along: Vec<OwnedFd>,
    pub(crate) fate: Fate,
}

/// A file with these bytes.
pub(crate) fn file_of(bytes: &[u8]) -> Memfd {
    let options = MemfdOptions::default().allow_sealing(true);
    let file = options.create("jitmem-fuzz").expect("memfd_create");
    file.as_file().write_all_at(bytes, 0).expect("pwrite");
    file
}

fn owned(file: Memfd) -> OwnedFd {
    file.into_file().into()
}

impl Packet {
    /// As jitmem itself sends it.
    pub(crate) fn plain(header: Header, body: &[u8], along: Vec<OwnedFd>) -> Packet {
        let mut packet = Packet {
            bytes: header.encode().to_vec(),
            along,
            fate: Fate::Taken,
        };
        if HEADER_SIZE + body.len() <= MOST_BYTES {
            packet.bytes.extend(body);
        } else {
            packet.along.push(owned(file_of(body)));
        }
        packet
    }

    /// As it should be, or not. `body` has a byte at least.
    pub(crate) fn any(
        input: &mut Input<'_>,
        header: Header,
        body: &[u8],
        mut along: Vec<OwnedFd>,
    ) -> Packet {
        let kind = input.below(16);
        let more = input.number().max(1);
        let mut bytes = [&header.encode()[..], body].concat();
        let lie = |size| Header { size, ..header }.encode();
        let file = |bytes: &[u8]| owned(file_of(bytes));
        let mut fate = Fate::Broken;
        match kind {
            // The header says more, or less, than there is.
            0 => bytes[..8].copy_from_slice(&lie(header.size.saturating_add(more))[..8]),
            1 => {
                let behind = HEADER_SIZE as u64 + more % body.len() as u64;
                let size = [behind, more % HEADER_SIZE as u64][input.below(2)];
                bytes[..8].copy_from_slice(&lie(size)[..8]);
            }
            2 => {
                along.clear();
                bytes.truncate(HEADER_SIZE);
            }
            3 => bytes.truncate(input.below(HEADER_SIZE)),
            4 => bytes[8..16].copy_from_slice(&more.saturating_add(3).to_le_bytes()),
            5 => bytes[8] = [0, 1, 5 - header.opcode as u8][input.below(3)],
            6 => {
                bytes.resize(MOST_BYTES + 1, 0);
                let size = bytes.len() as u64;
                bytes[..8].copy_from_slice(&lie(size)[..8]);
            }
            // The body is in a file, which may be shorter, longer, closed to readers, or none.
            7 => {
                // Not so much more that an answer may not have it, which is lost alone.
                bytes = lie(header.size + more.min(1000)).to_vec();
                along.push(file(body));
            }
            8 => {
                bytes.truncate(HEADER_SIZE);
                let none = File::open("/proc/self").expect("/proc/self");
                along.push(none.into());
            }
            9 => {
                bytes.truncate(HEADER_SIZE);
                along.push(write_only(&file_of(body)));
                fate = Fate::Lost;
            }
            10 => {
                bytes.truncate(HEADER_SIZE);
                along.push(file(&[body, &[0; 300]].concat()));
                fate = Fate::Taken;
            }
            11 => {
                bytes.truncate(HEADER_SIZE);
                along.push(file(body));
                fate = Fate::Taken;
            }
            // More descriptors than are wanted, or than are taken.
            12 | 13 => {
                let count = [3, MOST_SENT][kind - 12];
                along.resize_with(count.max(along.len()), || file(&[0]));
                fate = Fate::Taken;
            }
            _ => return Packet::plain(header, body, along),
        }
        Packet { bytes, along, fate }
    }
}

/// Another descriptor of a file, that can't be read through.
fn write_only(file: &Memfd) -> OwnedFd {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_file().as_raw_fd());
    let file = File::options().write(true).open(path);
    file.expect("open a memfd").into()
}

impl Packet {
    /// What becomes of it as an answer, with which no descriptor may come.
    pub(crate) fn fate_as_answer(&self) -> Fate {
        match self.along.is_empty() {
            true => self.fate,
            false => Fate::Broken,
        }
    }
}

/// Sends a packet to who may be gone. One with descriptors may be refused, by a controller's socket from Linux
/// 6.16 on (SO_PASSRIGHTS); then the connection ends here.
pub(crate) fn send(socket: &OwnedFd, packet: &Packet) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SENT))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let along: Vec<BorrowedFd<'_>> = packet.along.iter().map(AsFd::as_fd).collect();
    assert!(along.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&along)));
    let parts = [IoSlice::new(&packet.bytes)];
    let sent = again(|| rustix::net::sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL));
    match sent {
        Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => {}
        Err(Errno::PERM) if !along.is_empty() => hang_up(socket),
        Err(error) => panic!("sendmsg: {error}"),
    }
}

/// Until no signal comes in between; libFuzzer's alarm is one.
fn again<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Waits for a message; `None` at the end.
pub(crate) fn receive(socket: &OwnedFd) -> Option<(Header, Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_TAKEN))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; MOST_BYTES];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = again(|| rustix::net::recvmsg(socket, &mut parts, &mut ancillary, flags));
    let size = match received {
        Ok(message) => message.bytes,
        Err(Errno::CONNRESET) => 0,
        Err(error) => panic!("recvmsg: {error}"),
    };
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let mut descriptors: Vec<OwnedFd> = descriptors.flatten().collect();
    let (header, body) = bytes[..size].split_first_chunk::<HEADER_SIZE>()?;
    let header = Header::decode(header).expect("jitmem sends well-formed headers");
    let mut body = body.to_vec();
    if body.is_empty() && header.body_size() > 0 {
        let file = descriptors
            .pop()
            .expect("a body that is elsewhere is in a file");
        body.resize(header.body_size() as usize, 0);
        File::from(file).read_exact_at(&mut body, 0).expect("pread");
    }
    assert_eq!(header.body_size(), body.len() as u64);
    Some((header, body, descriptors))
}

/// Ends a connection in both directions.
pub(crate) fn hang_up(socket: &OwnedFd) {
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

/// An answer to a call.
pub(crate) fn answer_header(sequence: u64, tag: u64, body: &[u8]) -> Header {
    Header::new(Opcode::Result, sequence, tag, body.len())
}
