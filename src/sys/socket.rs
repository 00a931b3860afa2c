// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Unix sockets between controller and executor, and the ways to hand a descriptor over.

use super::gate;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// At most as many descriptors go with one packet; the kernel's own limit is 253.
pub(crate) const MOST_DESCRIPTORS: usize = 64;

/// Bits that can't be guessed, for names and tokens.
pub(crate) fn random() -> io::Result<u128> {
    let mut bytes = [0; 16];
    gate("getrandom")?;
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u128::from_ne_bytes(bytes))
}

/// A connected pair that keeps packets apart and delivers each whole or not at all.
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    gate("socketpair")?;
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socketpair(
        family,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn packet_socket() -> io::Result<OwnedFd> {
    gate("socket")?;
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socket_with(
        family,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Listens at a name that is in no file system and goes with the socket.
pub(crate) fn listen_at(name: &[u8]) -> io::Result<OwnedFd> {
    let socket = packet_socket()?;
    listen(&socket, name)?;
    Ok(socket)
}

/// [`listen_at`] for those who take no descriptors from there.
pub(crate) fn listen_refusing(name: &[u8]) -> io::Result<OwnedFd> {
    let socket = packet_socket()?;
    refuse_descriptors(&socket);
    listen(&socket, name)?;
    Ok(socket)
}

fn listen(socket: &OwnedFd, name: &[u8]) -> io::Result<()> {
    gate("bind")?;
    rustix::net::bind(socket, &SocketAddrUnix::new_abstract_name(name)?)?;
    gate("listen")?;
    Ok(rustix::net::listen(socket, 16)?)
}

/// Connects to [`listen_at`].
pub(crate) fn connect_to(name: &[u8]) -> io::Result<OwnedFd> {
    let socket = packet_socket()?;
    connect(&socket, name)?;
    Ok(socket)
}

/// [`connect_to`] for those who take no descriptors from there.
pub(crate) fn connect_refusing(name: &[u8]) -> io::Result<OwnedFd> {
    let socket = packet_socket()?;
    refuse_descriptors(&socket);
    connect(&socket, name)?;
    Ok(socket)
}

fn connect(socket: &OwnedFd, name: &[u8]) -> io::Result<()> {
    gate("connect")?;
    // Where others have filled the listener's queue this fails and does not wait for its turn.
    rustix::io::ioctl_fionbio(socket, true)?;
    rustix::net::connect(socket, &SocketAddrUnix::new_abstract_name(name)?)?;
    Ok(rustix::io::ioctl_fionbio(socket, false)?)
}

/// The next connection that was made already; none is waited for.
pub(crate) fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    gate("accept")?;
    if !readable(listener.as_fd(), Duration::ZERO)? {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?)
}

/// Whether there is something to read, or the end, before the time is over.
pub(crate) fn readable(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(timeout).unwrap_or(Timespec {
        tv_sec: i64::MAX,
        tv_nsec: 0,
    });
    let mut polled = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Err(Errno::INTR) => continue,
            ready => return Ok(ready? > 0),
        }
    }
}

/// The user that made the other end of a connection, as the kernel noted it.
pub(crate) fn peer_user(socket: &OwnedFd) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw())
}

/// The user that this process acts as.
pub(crate) fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// This process, as it knows itself.
pub(crate) fn process() -> u32 {
    std::process::id()
}

/// A number that the kernel gives to one socket only.
pub(crate) fn cookie(socket: &OwnedFd) -> io::Result<u64> {
    Ok(rustix::net::sockopt::socket_cookie(socket)?)
}

/// The file behind a descriptor of another process, not opened: it can be asked for its identity alone.
pub(crate) fn find_in(process: u32, descriptor: u32) -> io::Result<OwnedFd> {
    gate("open(/proc/PID/fd)")?;
    let path = format!("/proc/{process}/fd/{descriptor}");
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens what [`find_in`] has found.
pub(crate) fn open_again(found: &OwnedFd, write: bool) -> io::Result<OwnedFd> {
    let access = match write {
        true => OFlags::RDWR,
        false => OFlags::RDONLY,
    };
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(rustix::fs::open(
        path,
        access | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// The number of a descriptor, for another process to open it by.
pub(crate) fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().unsigned_abs()
}

/// Device and inode: what tells one file from all others.
pub(crate) fn identity(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Sends one packet, whole, with descriptors.
pub(crate) fn send(
    socket: &OwnedFd,
    parts: &[&[u8]],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send_with(socket, parts, descriptors, SendFlags::NOSIGNAL).map(drop)
}

/// Sends what there is room for without waiting: of a packet all or nothing, of a stream any part. Says how
/// many bytes that was.
pub(crate) fn send_now(
    socket: &OwnedFd,
    parts: &[&[u8]],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match send_with(socket, parts, descriptors, flags) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        sent => sent,
    }
}

fn send_with(
    socket: &OwnedFd,
    parts: &[&[u8]],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<usize> {
    gate("sendmsg")?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let parts: smallvec::SmallVec<[IoSlice<'_>; 4]> =
        parts.iter().map(|part| IoSlice::new(part)).collect();
    loop {
        match rustix::net::sendmsg(socket, &parts, &mut ancillary, flags) {
            Err(Errno::INTR) => continue,
            sent => return Ok(sent?),
        }
    }
}

/// Waits until something can be sent, or the connection has ended.
pub(crate) fn wait_for_room(socket: &OwnedFd) {
    let mut polled = [PollFd::new(socket, PollFlags::OUT)];
    while rustix::event::poll(&mut polled, None) == Err(Errno::INTR) {}
}

/// Has the kernel refuse what the other side sends along from now on, at its call; whether the kernel can, which
/// is since Linux 6.16. Of a listener, those that are accepted refuse it from the beginning.
///
/// A descriptor that has come can't be got rid of without its maker: to close a file asks its file system, which may
/// be a process that never answers, and a socket may linger.
pub(crate) fn refuse_descriptors(socket: &OwnedFd) -> bool {
    const SO_PASSRIGHTS: libc::c_int = 83;
    let no: libc::c_int = 0;
    let size = size_of_val(&no) as libc::socklen_t;
    // SAFETY: an option with a value of that size, which is only read.
    let set = unsafe {
        let value = (&raw const no).cast();
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            value,
            size,
        )
    };
    set == 0
}

/// Reads what is left in a socket that was hung up, in a thread of its own, so that no one who closes the socket
/// closes the descriptors that lie in it: that may take as long as their maker likes.
pub(crate) fn discard_unread(socket: &OwnedFd) {
    // What has no descriptor or no thread for that closes them as it comes.
    if let Ok(own) = socket.try_clone() {
        let discard =
            move || while receive_bytes(&own, &mut [0; 4096]).is_ok_and(|read| read.size > 0) {};
        let _ = super::spawn("jitmem-discard", discard);
    }
}

/// Bytes that a stream has received and that were not read.
pub(crate) fn unread(socket: &OwnedFd) -> io::Result<u64> {
    Ok(rustix::io::ioctl_fionread(socket)?)
}

/// Waits for bytes and leaves them there; says how many the next read may take, 0 at the end. For sockets of which
/// one thread reads.
///
/// # Errors
/// `InvalidData` if descriptors come with the first of them, or may come out of band.
pub(crate) fn await_plain_bytes(socket: &OwnedFd) -> io::Result<usize> {
    let received = match receive_without(socket, &mut [0; 4096], RecvFlags::PEEK) {
        // The other side has ended without reading everything.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(0),
        received => received?,
    };
    // Out-of-band data are left out, and reading closes what came with them. What is sent after this lies behind the
    // bytes that were found.
    match received.brought_descriptors || has_urgent_data(socket)? {
        true => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "descriptors, of which none is taken",
        )),
        false => Ok(received.size),
    }
}

fn has_urgent_data(socket: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(socket, PollFlags::PRI)];
    loop {
        match rustix::event::poll(&mut polled, Some(&Timespec::default())) {
            Err(Errno::INTR) => continue,
            ready => ready?,
        };
        return Ok(polled[0].revents().contains(PollFlags::PRI));
    }
}

/// What was taken.
pub(crate) struct Received {
    /// Bytes written to the buffer; 0 at the end.
    pub(crate) size: usize,
    /// The packet was longer than the buffer.
    pub(crate) truncated: bool,
    /// Descriptors came with it that are not among `descriptors`.
    pub(crate) brought_descriptors: bool,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Whether a descriptor of the host's is a connected stream socket.
pub(crate) fn check_stream(socket: &OwnedFd) -> io::Result<()> {
    if rustix::net::sockopt::socket_type(socket)? != SocketType::STREAM {
        return Err(Errno::PROTOTYPE.into());
    }
    Ok(rustix::net::getpeername(socket).map(drop)?)
}

/// Has a descriptor go when this process starts another program.
pub(crate) fn close_on_exec(socket: &OwnedFd) {
    // Fails for nothing that is a descriptor.
    let _ = rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::CLOEXEC);
}

/// Waits for the next packet, and takes its descriptors. For those who trust the other side.
pub(crate) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut received = receive_with(socket, buffer, RecvFlags::CMSG_CLOEXEC, &mut ancillary)?;
    received.descriptors = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(received)
}

/// Waits for the next packet. No descriptor becomes one of this process.
pub(crate) fn receive_bytes(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Received> {
    receive_without(socket, buffer, RecvFlags::empty())
}

/// A packet that has come already, as [`receive_bytes`] takes it.
pub(crate) fn receive_now(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Received> {
    receive_without(socket, buffer, RecvFlags::DONTWAIT)
}

fn receive_without(socket: &OwnedFd, buffer: &mut [u8], flags: RecvFlags) -> io::Result<Received> {
    receive_with(
        socket,
        buffer,
        flags,
        &mut RecvAncillaryBuffer::new(&mut []),
    )
}

fn receive_with(
    socket: &OwnedFd,
    buffer: &mut [u8],
    flags: RecvFlags,
    ancillary: &mut RecvAncillaryBuffer<'_>,
) -> io::Result<Received> {
    gate("recvmsg")?;
    let message = loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(socket, &mut parts, ancillary, flags) {
            Err(Errno::INTR) => continue,
            message => break message?,
        }
    };
    Ok(Received {
        size: message.bytes,
        truncated: message.flags.contains(rustix::net::ReturnFlags::TRUNC),
        brought_descriptors: message.flags.contains(rustix::net::ReturnFlags::CTRUNC),
        descriptors: Vec::new(),
    })
}

/// Ends a connection in both directions: a thread that waits for a packet sees the end.
pub(crate) fn hang_up(socket: &OwnedFd) {
    // A connection that has ended already is what was wanted.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

/// Ends one direction of a connection: the other side reads what was sent and then the end.
pub(crate) fn end_of_writing(socket: &OwnedFd) {
    // As above.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_stay_whole_and_carry_descriptors() {
        let (here, there) = packet_pair().unwrap();
        send(&here, &[b"ab", b"c"], &[there.as_fd()]).unwrap();
        send(&here, &[b"toolong"], &[]).unwrap();
        let mut buffer = [0; 4];
        let first = receive(&there, &mut buffer).unwrap();
        assert_eq!((first.size, first.truncated), (3, false));
        assert_eq!(&buffer[..3], b"abc");
        let same = |a: &OwnedFd, b: &OwnedFd| cookie(a).unwrap() == cookie(b).unwrap();
        assert!(same(&first.descriptors[0], &there) && !same(&first.descriptors[0], &here));
        assert!(receive(&there, &mut buffer).unwrap().truncated);
        hang_up(&here);
        assert_eq!(receive(&there, &mut buffer).unwrap().size, 0);
        assert_eq!(
            send(&here, &[b"x"], &[]).unwrap_err().raw_os_error(),
            Some(libc::EPIPE)
        );
    }

    #[test]
    fn bytes_with_descriptors_are_left_where_they_are() {
        let pair = || {
            let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
            (OwnedFd::from(here), OwnedFd::from(there))
        };
        let refused = |socket: &OwnedFd| {
            let error = await_plain_bytes(socket).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        };
        let (here, there) = pair();
        let along = [there.as_fd()];
        send(&there, &[b"abc"], &[]).unwrap();
        assert_eq!(await_plain_bytes(&here).unwrap(), 3);
        send(&there, &[b"d"], &along).unwrap();
        refused(&here);
        // Out of band, before other bytes and behind them.
        for before in [&b"abc"[..], b""] {
            let (here, there) = pair();
            if !before.is_empty() {
                send(&there, &[before], &[]).unwrap();
            }
            send_with(&there, &[b"d"], &along, SendFlags::OOB).unwrap();
            send(&there, &[b"e"], &[]).unwrap();
            refused(&here);
        }
        let (here, there) = pair();
        drop(there);
        assert_eq!(await_plain_bytes(&here).unwrap(), 0);
    }

    #[test]
    fn abstract_names_lead_to_the_listener_and_end_with_it() {
        let name = format!("jitmem-test-{}", process());
        let listener = listen_at(name.as_bytes()).unwrap();
        assert_eq!(
            accept(&listener).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        let there = connect_to(name.as_bytes()).unwrap();
        let here = accept(&listener).unwrap();
        assert_eq!(peer_user(&here).unwrap(), user());
        send(&there, &[b"x"], &[]).unwrap();
        assert!(readable(here.as_fd(), Duration::from_secs(10)).unwrap());
        drop(listener);
        assert!(connect_to(name.as_bytes()).is_err());
    }

    #[test]
    fn a_file_of_a_process_is_found_and_opened() {
        let file = super::super::MemFile::new(c"jitmem-test", 4096).unwrap();
        let found = find_in(process(), number(file.as_fd())).unwrap();
        let opened = open_again(&found, false).unwrap();
        assert_eq!(
            identity(opened.as_fd()).unwrap(),
            identity(file.as_fd()).unwrap()
        );
    }
}
