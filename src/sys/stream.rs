// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Byte streams that the host or its parent made: pipes, sockets, terminals, blocking or not.

use super::{ClosedInChild, gate, socket};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendFlags, SocketType};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// A descriptor of our own for what is open under a number.
///
/// # Safety
/// The number is a descriptor that the caller may use, or none.
pub(crate) unsafe fn duplicate(descriptor: RawFd) -> io::Result<OwnedFd> {
    gate("fcntl")?;
    // SAFETY: asks for a copy; a number that is no descriptor is an error.
    let copy = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and no other owner knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Fails unless a number is a descriptor.
pub(crate) fn check_open(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: asks about a number.
    match unsafe { libc::fcntl(descriptor, libc::F_GETFD) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Has a descriptor lead nowhere: to /dev/null, which programs may write to, or, where there is none, to a socket
/// whose other end is closed.
///
/// # Safety
/// Nothing in this process needs what it has led to.
pub(crate) unsafe fn disconnect(descriptor: RawFd) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    gate("dup3")?;
    let nowhere = match open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(null) => null,
        Err(_) => socket::packet_pair()?.0,
    };
    // Programs that linked code starts inherit standard streams.
    let flags = match descriptor {
        ..=libc::STDERR_FILENO => 0,
        _ => libc::O_CLOEXEC,
    };
    // SAFETY: as the caller says.
    match unsafe { libc::dup3(nowhere.as_raw_fd(), descriptor, flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Closes what was left open for this process to own. Standard streams stay: linked code uses them too.
///
/// # Safety
/// The descriptor has no other owner in this process, or is a standard stream.
pub(crate) unsafe fn close_handed_over(descriptor: RawFd) {
    if descriptor > libc::STDERR_FILENO {
        // SAFETY: as the caller says.
        unsafe { libc::close(descriptor) };
    }
}

/// Writes a text to descriptor 2, by one call and without a lock. What can't be written is lost.
pub(crate) fn write_to_stderr(text: &[u8]) {
    // SAFETY: bytes that are there.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

/// Waits until something can be read or written, or the other side is gone.
fn wait(stream: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
    let mut polled = [PollFd::from_borrowed_fd(stream, what)];
    loop {
        match rustix::event::poll(&mut polled, None) {
            Err(Errno::INTR) => continue,
            ready => return Ok(ready.map(drop)?),
        }
    }
}

/// Looks for something to read until it is there or the time is over, without sleeping: a processor that
/// sleeps takes longer to wake up than many a controller to go on.
pub(crate) fn look_for_input(stream: &OwnedFd, time: Duration) {
    let began = Instant::now();
    let now = rustix::event::Timespec::default();
    let mut polled = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)];
    // Whatever goes wrong, reading tells.
    while matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(0)) && began.elapsed() < time {
        std::thread::yield_now();
    }
}

/// Reads what is there, up to `most` bytes and at least one unless the stream has ended, behind what
/// `buffer` holds and into the room that it has left.
pub(crate) fn read(stream: &OwnedFd, buffer: &mut Vec<u8>, most: usize) -> io::Result<usize> {
    gate("read")?;
    let room = buffer.spare_capacity_mut();
    let size = room.len().min(most);
    let count = loop {
        match rustix::io::read(stream, &mut room[..size]) {
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => wait(stream.as_fd(), PollFlags::IN)?,
            result => break result?.0.len(),
        }
    };
    // SAFETY: as many bytes behind the others were just written.
    unsafe { buffer.set_len(buffer.len() + count) };
    Ok(count)
}

/// [`read`] of a stream that [`passes_descriptors`], with those that are sent along.
pub(crate) fn receive(stream: &OwnedFd, buffer: &mut Vec<u8>) -> io::Result<(usize, Vec<OwnedFd>)> {
    /// Room for most messages, and not for more: it is zeroed each time.
    const MOST: usize = 4096;
    let before = buffer.len();
    buffer.resize(buffer.capacity().min(before + MOST), 0);
    let received = or_wait(stream, || socket::receive(stream, &mut buffer[before..]));
    buffer.truncate(before + received.as_ref().map_or(0, |received| received.size));
    received.map(|received| (received.size, received.descriptors))
}

/// [`await_plain_bytes`](socket::await_plain_bytes) of a stream that may be one that does not block.
pub(crate) fn await_plain_bytes(stream: &OwnedFd) -> io::Result<usize> {
    or_wait(stream, || socket::await_plain_bytes(stream))
}

/// Calls again once there is something to read, for as long as there is nothing.
fn or_wait<T>(stream: &OwnedFd, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(stream.as_fd(), PollFlags::IN)?;
            }
            result => return result,
        }
    }
}

/// Whether a stream is one that descriptors can be sent along with.
pub(crate) fn passes_descriptors(stream: &OwnedFd) -> bool {
    use rustix::net::sockopt::{socket_domain, socket_type};
    // What is no socket has neither.
    socket_domain(stream).is_ok_and(|domain| domain == AddressFamily::UNIX)
        && socket_type(stream).is_ok_and(|kind| kind == SocketType::STREAM)
}

/// The writing end of a stream. Where there is no reader any more, writing is an error and no signal.
#[derive(Debug)]
pub(crate) struct StreamWriter {
    stream: ClosedInChild,
    socket: bool,
}

/// What POSIX promises to be written at once where there is room at all.
pub(crate) const WRITTEN_AT_ONCE: usize = libc::PIPE_BUF;

impl StreamWriter {
    pub(crate) fn new(stream: OwnedFd) -> io::Result<StreamWriter> {
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&stream)?.st_mode);
        let socket = kind == rustix::fs::FileType::Socket;
        let stream = ClosedInChild::new(stream);
        Ok(StreamWriter { stream, socket })
    }

    /// Whether [`WRITTEN_AT_ONCE`] bytes can be written now without waiting for the other side.
    pub(crate) fn has_room(&self) -> bool {
        let mut polled = [PollFd::from_borrowed_fd(
            self.stream.as_fd(),
            PollFlags::OUT,
        )];
        let now = rustix::event::Timespec::default();
        matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(1))
    }

    /// Writes both parts, one behind the other.
    pub(crate) fn write(&self, first: &[u8], second: &[u8]) -> io::Result<()> {
        gate("write")?;
        let quiet = (!self.socket).then(NoPipeSignal::new);
        let mut parts = [IoSlice::new(first), IoSlice::new(second)];
        let mut left = &mut parts[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            let sent = if self.socket {
                let mut nothing = SendAncillaryBuffer::new(&mut []);
                rustix::net::sendmsg(&self.stream, left, &mut nothing, SendFlags::NOSIGNAL)
            } else {
                rustix::io::writev(&self.stream, left)
            };
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut left, count),
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => wait(self.stream.as_fd(), PollFlags::OUT)?,
                Err(error) => {
                    if let (Errno::PIPE, Some(quiet)) = (error, &quiet) {
                        quiet.take_signal();
                    }
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }
}

/// While it lives, this thread gets no SIGPIPE. The process's own handling of the signal is not
/// touched: a program's output may go through a pipe as well, and end with it.
struct NoPipeSignal {
    before: libc::sigset_t,
    /// Whether one was pending before and has not been taken.
    pending: bool,
}

fn pipe_signal() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset fills the set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
        set.assume_init()
    }
}

fn is_pending() -> bool {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigpending fills the set; it fails only for a bad address.
    unsafe {
        libc::sigpending(set.as_mut_ptr());
        libc::sigismember(set.as_ptr(), libc::SIGPIPE) == 1
    }
}

impl NoPipeSignal {
    fn new() -> NoPipeSignal {
        let mut before = MaybeUninit::uninit();
        // SAFETY: two sets, one filled and one to fill; the call fails only for a bad `how`.
        let before = unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &pipe_signal(), before.as_mut_ptr());
            before.assume_init()
        };
        // SAFETY: a set that was filled.
        let blocked = unsafe { libc::sigismember(&before, libc::SIGPIPE) } == 1;
        NoPipeSignal {
            before,
            pending: blocked && is_pending(),
        }
    }

    /// Takes the signal that our write has raised.
    fn take_signal(&self) {
        if !self.pending {
            let now = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            // SAFETY: a set and a time to read; it waits for nothing.
            unsafe { libc::sigtimedwait(&pipe_signal(), std::ptr::null_mut(), &now) };
        }
    }
}

impl Drop for NoPipeSignal {
    fn drop(&mut self) {
        // SAFETY: the mask that this thread had before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

    fn pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        (reader.into(), writer.into())
    }

    #[test]
    fn large_parts_arrive_whole_through_a_stream_that_does_not_block() {
        let (reader, writer) = pipe();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let large = vec![7; 1 << 20];
        let sent = large.clone();
        let sender = std::thread::spawn(move || {
            let output = StreamWriter::new(writer).unwrap();
            output.write(b"head", &sent).unwrap();
            output.write(b"", b"").unwrap();
        });
        let mut all = Vec::with_capacity(large.len() + 5);
        while read(&reader, &mut all, usize::MAX).unwrap() > 0 {}
        sender.join().unwrap();
        assert_eq!(&all[..4], b"head");
        assert!(all[4..] == large);
    }

    #[test]
    fn nobody_reading_is_an_error_and_no_signal() {
        // Rust programs ignore the signal; here it shall be noticed, in this thread.
        static WATCHED: AtomicI32 = AtomicI32::new(0);
        static HIT: AtomicBool = AtomicBool::new(false);
        extern "C" fn notice(_: libc::c_int) {
            // SAFETY: asks the kernel for a number.
            if unsafe { libc::gettid() } == WATCHED.load(Ordering::Relaxed) {
                HIT.store(true, Ordering::Relaxed);
            }
        }
        // SAFETY: asks the kernel for a number.
        WATCHED.store(unsafe { libc::gettid() }, Ordering::Relaxed);
        let handler: extern "C" fn(libc::c_int) = notice;
        // SAFETY: the handler touches two atomics.
        let before = unsafe { libc::signal(libc::SIGPIPE, handler as libc::sighandler_t) };
        let (reader, writer) = pipe();
        let output = StreamWriter::new(writer).unwrap();
        drop(reader);
        let error = output.write(b"a", b"b").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert!(!is_pending());
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let output = StreamWriter::new(there.into()).unwrap();
        drop(here);
        let error = output.write(b"a", b"b").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert!(!HIT.load(Ordering::Relaxed));
        // SAFETY: what it was.
        unsafe { libc::signal(libc::SIGPIPE, before) };
    }

    #[test]
    fn room_is_known() {
        let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let output = StreamWriter::new(there.into()).unwrap();
        assert!(output.has_room());
        let (_reader, writer) = pipe();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let output = StreamWriter::new(writer.try_clone().unwrap()).unwrap();
        assert!(output.has_room());
        let mut file = std::fs::File::from(writer);
        while file.write(&[0; 4096]).is_ok() {}
        assert!(!output.has_room());
        here.write_all(b"x").unwrap();
    }
}
