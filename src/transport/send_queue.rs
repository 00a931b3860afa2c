// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Messages on their way to the executor.
//!
//! To send never waits for the other side to read. What the socket has no room for is kept, and a thread
//! of ours sends it when there is room. So an executor that is stopped, by a debugger or a freezer, holds
//! up no thread of the host's, and goes on with everything when it is continued.

use crate::lock::{Condvar, Mutex};
use crate::sys::{self, socket};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A connection that sends through a queue.
pub(crate) trait Sender: Send + Sync + 'static {
    /// Where messages go.
    fn socket(&self) -> &OwnedFd;

    fn queue(&self) -> &SendQueue;

    /// A message that was kept could not be sent: this call, or an answer.
    fn not_sent(&self, call: Option<u64>, error: io::Error);
}

/// What one connection has not sent yet.
#[derive(Default)]
pub(crate) struct SendQueue {
    state: Mutex<State>,
    /// How many messages are kept, for those who look without the lock.
    kept: AtomicUsize,
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    kept: VecDeque<Kept>,
    /// How many of them are answers.
    answers: usize,
    /// A thread sends them.
    sending: bool,
}

struct Kept {
    /// The number of a call; none of an answer.
    call: Option<u64>,
    bytes: Vec<u8>,
    /// Bytes that are gone; of a packet none or all.
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

impl Kept {
    /// `None` where the heap has no room for it, or the process no descriptor.
    fn new(
        call: Option<u64>,
        parts: [&[u8]; 2],
        sent: usize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Option<Kept> {
        let mut bytes = Vec::new();
        let size = parts[0].len() + parts[1].len();
        bytes.try_reserve_exact(size).ok()?;
        bytes.extend_from_slice(parts[0]);
        bytes.extend_from_slice(parts[1]);
        let descriptors = descriptors.iter().map(BorrowedFd::try_clone_to_owned);
        Some(Kept {
            call,
            bytes,
            sent,
            descriptors: descriptors.collect::<io::Result<_>>().ok()?,
        })
    }
}

/// Sends what is left of a message, whenever there is room.
fn send_waiting(
    socket: &OwnedFd,
    parts: [&[u8]; 2],
    mut sent: usize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let size = parts[0].len() + parts[1].len();
    while sent < size {
        socket::wait_for_room(socket);
        let left = match parts[0].get(sent..) {
            Some(first) => [first, parts[1]],
            None => [&[][..], &parts[1][sent - parts[0].len()..]],
        };
        sent += socket::send_now(socket, &left, descriptors)?;
    }
    Ok(())
}

/// Whether all of a message went, or what failed.
type Sent = Result<bool, (Option<u64>, io::Error)>;

/// Sends a call with this number, or an answer, or keeps it to be sent.
pub(crate) fn send<S: Sender>(
    sender: &Arc<S>,
    call: Option<u64>,
    parts: [&[u8]; 2],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if !sender
        .queue()
        .send(sender.socket(), call, parts, descriptors)?
    {
        return Ok(());
    }
    let thread: Arc<dyn Sender> = Arc::clone(sender) as _;
    if sys::spawn("jitmem-send", move || send_kept(&*thread)).is_err() {
        // Without a thread for it this one waits.
        send_kept(&**sender);
    }
    Ok(())
}

impl SendQueue {
    /// Sends or keeps; `true` if the caller is to see to it that what is kept is sent.
    fn send(
        &self,
        socket: &OwnedFd,
        call: Option<u64>,
        parts: [&[u8]; 2],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<bool> {
        let mut state = self.state.lock();
        let sent = match state.kept.is_empty() {
            true => socket::send_now(socket, &parts, descriptors)?,
            false => 0,
        };
        if sent == parts[0].len() + parts[1].len() {
            return Ok(false);
        }
        let kept = Kept::new(call, parts, sent, descriptors);
        let Some(kept) = kept.filter(|_| state.kept.try_reserve(1).is_ok()) else {
            // Without memory or a descriptor to keep it this thread waits.
            while !state.kept.is_empty() {
                state = self.emptied.wait(state);
            }
            return send_waiting(socket, parts, sent, descriptors).map(|()| false);
        };
        state.kept.push_back(kept);
        state.answers += usize::from(call.is_none());
        self.kept.store(state.kept.len(), Ordering::Release);
        Ok(!std::mem::replace(&mut state.sending, true))
    }

    /// Sends the first message that is kept, as far as there is room; `None` if there is none.
    fn send_first(&self, socket: &OwnedFd) -> Option<Sent> {
        let mut state = self.state.lock();
        let Some(first) = state.kept.front_mut() else {
            state.sending = false;
            self.emptied.notify_all();
            return None;
        };
        let descriptors: Vec<_> = first.descriptors.iter().map(AsFd::as_fd).collect();
        let answer = match socket::send_now(socket, &[&first.bytes[first.sent..]], &descriptors) {
            Ok(count) if first.sent + count < first.bytes.len() => {
                first.sent += count;
                return Some(Ok(false));
            }
            Ok(_) => Ok(true),
            Err(error) => Err((first.call, error)),
        };
        state.answers -= usize::from(first.call.is_none());
        let gone = state.kept.pop_front();
        self.kept.store(state.kept.len(), Ordering::Release);
        drop(state);
        drop(gone);
        Some(answer)
    }

    /// Takes a call back of which nothing has gone; whether it was there.
    pub(crate) fn take_back(&self, call: u64) -> bool {
        let mut state = self.state.lock();
        let unsent = |kept: &Kept| kept.call == Some(call) && kept.sent == 0;
        let place = state.kept.iter().position(unsent);
        let taken = place.and_then(|place| state.kept.remove(place));
        self.kept.store(state.kept.len(), Ordering::Release);
        drop(state);
        taken.is_some()
    }

    /// How many answers are kept.
    pub(crate) fn kept_answers(&self) -> usize {
        match self.kept.load(Ordering::Acquire) {
            0 => 0,
            _ => self.state.lock().answers,
        }
    }

    /// Waits until nothing is kept, but no longer than until `deadline`; whether that is so.
    pub(crate) fn wait_until_sent(&self, deadline: Option<Instant>) -> bool {
        if self.kept.load(Ordering::Acquire) == 0 {
            return true;
        }
        let mut state = self.state.lock();
        while !state.kept.is_empty() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            state = match deadline {
                None => self.emptied.wait(state),
                Some(deadline) => self.emptied.wait_until(state, deadline),
            };
        }
        state.kept.is_empty()
    }
}

/// Sends what is kept, whenever there is room, until nothing is left.
fn send_kept(sender: &dyn Sender) {
    while let Some(sent) = sender.queue().send_first(sender.socket()) {
        match sent {
            Ok(true) => {}
            // The end of the connection makes room, too.
            Ok(false) => socket::wait_for_room(sender.socket()),
            Err((call, error)) => sender.not_sent(call, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Duration;

    struct Connection {
        socket: OwnedFd,
        queue: SendQueue,
        failed: Mutex<mpsc::Sender<u64>>,
    }

    impl Sender for Connection {
        fn socket(&self) -> &OwnedFd {
            &self.socket
        }

        fn queue(&self) -> &SendQueue {
            &self.queue
        }

        fn not_sent(&self, call: Option<u64>, _: io::Error) {
            self.failed.lock().send(call.unwrap()).unwrap();
        }
    }

    fn connection(socket: impl Into<OwnedFd>) -> (Arc<Connection>, mpsc::Receiver<u64>) {
        let (failed, failures) = mpsc::channel();
        let connection = Arc::new(Connection {
            socket: socket.into(),
            queue: SendQueue::default(),
            failed: Mutex::new(failed),
        });
        (connection, failures)
    }

    fn kept(connection: &Connection) -> usize {
        connection.queue.state.lock().kept.len()
    }

    const PACKET: usize = 32 << 10;
    const COUNT: u64 = 100;

    #[test]
    fn packets_that_find_no_room_go_later_with_their_descriptors() {
        let (here, there) = socket::packet_pair().unwrap();
        let (connection, _failures) = connection(here);
        for sequence in 0..COUNT {
            let body = [sequence as u8; PACKET];
            let descriptors = [there.as_fd()];
            send(&connection, Some(sequence), [b"head", &body], &descriptors).unwrap();
        }
        assert!(kept(&connection) > 0);
        let soon = Instant::now() + Duration::from_millis(1);
        assert!(!connection.queue.wait_until_sent(Some(soon)));
        let mut buffer = vec![0; 2 * PACKET];
        for sequence in 0..COUNT {
            let received = socket::receive(&there, &mut buffer).unwrap();
            assert_eq!((received.size, received.descriptors.len()), (PACKET + 4, 1));
            assert_eq!(u64::from(buffer[4]), sequence);
        }
        let later = Instant::now() + Duration::from_secs(60);
        assert!(connection.queue.wait_until_sent(Some(later)));
    }

    #[test]
    fn a_stream_keeps_the_order_of_its_bytes() {
        use std::io::Read;
        let (here, mut there) = UnixStream::pair().unwrap();
        let (connection, _failures) = connection(here);
        for sequence in 0..COUNT {
            let body = [sequence as u8; PACKET - 1];
            send(&connection, Some(sequence), [&[sequence as u8], &body], &[]).unwrap();
        }
        assert!(kept(&connection) > 0);
        let mut message = vec![0; PACKET];
        for sequence in 0..COUNT {
            there.read_exact(&mut message).unwrap();
            assert!(message.iter().all(|byte| u64::from(*byte) == sequence));
        }
    }

    #[test]
    fn a_thread_that_can_keep_nothing_waits() {
        use std::io::Read;
        let (here, mut there) = UnixStream::pair().unwrap();
        let (here, large) = (OwnedFd::from(here), vec![7; 4 << 20]);
        let parts: [&[u8]; 2] = [b"head", &large];
        let sent = socket::send_now(&here, &parts, &[]).unwrap();
        assert!((5..large.len()).contains(&sent));
        let reader = std::thread::spawn(move || {
            let mut read = Vec::new();
            there.read_to_end(&mut read).unwrap();
            read
        });
        send_waiting(&here, parts, sent, &[]).unwrap();
        drop(here);
        assert!(reader.join().unwrap() == parts.concat());
        // From each place in front, at the joint and behind it.
        for sent in 0..=8 {
            let (here, mut there) = UnixStream::pair().unwrap();
            send_waiting(&here.into(), [b"head", b"body"], sent, &[]).unwrap();
            let mut read = Vec::new();
            there.read_to_end(&mut read).unwrap();
            assert_eq!(read, &b"headbody"[sent..]);
        }
    }

    #[test]
    fn what_the_end_of_the_connection_keeps_from_going_is_told() {
        let (here, there) = socket::packet_pair().unwrap();
        let (connection, failures) = connection(here);
        for sequence in 0..COUNT {
            send(&connection, Some(sequence), [b"head", &[0; PACKET]], &[]).unwrap();
        }
        let kept = kept(&connection);
        socket::hang_up(&there);
        let last = failures.iter().take(kept).last();
        assert_eq!(last, Some(COUNT - 1));
    }
}
