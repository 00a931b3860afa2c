// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The controller's end of a channel to our executor service.

use super::deadlines::{self, Timer};
use super::limits::Deadline;
use super::packet::{self, MOST_ANSWER, Packet};
use super::pending::{Answered, PendingCalls};
use super::send_queue::{self, SendQueue, Sender};
use super::{
    ExecutorState, Traffic, Transport, disconnected, end_of, is_lost, reader_pool, unreadable,
};
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::lock::Mutex;
use crate::sys::{ClosedInChild, explain, socket};
use crate::wire::frame::{Header, OUT_OF_BAND, Opcode};
use crate::wire::service::{RESTARTED, Restarted};
use crate::wire::sps::{from_bytes, said};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Threads that read a channel at once: one handles a packet while the next one reads.
pub(crate) const READERS: usize = 2;

/// Where a thread looks for descriptors before it reads: no other one may read what that has looked at.
const CAREFUL_READERS: usize = 1;

/// Calls through a Unix socket of our own. Hangs up when dropped; what is unanswered then is
/// answered with an error.
pub(crate) struct Channel {
    connection: Arc<ChannelConnection>,
    /// When it ends by itself.
    end: Option<Timer>,
}

struct ChannelConnection {
    socket: ClosedInChild,
    queue: SendQueue,
    pending: PendingCalls,
    traffic: Traffic,
    executor: Arc<ExecutorState>,
    /// The kernel lets the executor send no descriptors.
    refuses_descriptors: bool,
    /// What is called when it has ended.
    told: Mutex<Option<Told>>,
}

/// Is told why a channel has ended.
type Told = Box<dyn FnOnce(Error) + Send>;

impl Channel {
    /// Serves a connected socket, at which descriptors are refused if the kernel can do that.
    pub(crate) fn new(socket: OwnedFd, executor: Arc<ExecutorState>) -> Result<Channel> {
        let refuses_descriptors = socket::refuse_descriptors(&socket);
        let connection = Arc::new(ChannelConnection {
            socket: ClosedInChild::new(socket),
            queue: SendQueue::default(),
            pending: PendingCalls::new(),
            traffic: Traffic::default(),
            executor,
            refuses_descriptors,
            told: Mutex::default(),
        });
        let readers = match refuses_descriptors {
            true => READERS,
            false => CAREFUL_READERS,
        };
        packet::buffers(readers)
            .and_then(|buffers| reader_pool::start(Arc::clone(&connection), buffers))
            .map_err(|error| explain("start a thread that reads a channel", error))?;
        Ok(Channel {
            connection,
            end: None,
        })
    }

    /// [`Transport::call`] that hands descriptors over.
    pub(crate) fn call_with(
        &self,
        function: u64,
        args: &[u8],
        descriptors: &[OwnedFd],
        done: Completion<Vec<u8>>,
    ) {
        let connection = &self.connection;
        let Some(sequence) = connection.pending.add(done, MOST_ANSWER as u64) else {
            return;
        };
        let header = Header::new(Opcode::CallWrapper, sequence, function, args.len());
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        connection.traffic.sent(header.size as usize);
        let sent = packet::with_parts(header, args, &borrowed, |parts, descriptors| {
            send_queue::send(connection, Some(sequence), parts, descriptors)
        });
        if let Err(error) = sent {
            connection.not_sent(Some(sequence), error);
        }
    }

    /// Has it end by itself at a time.
    pub(crate) fn end_at(&mut self, deadline: Deadline) {
        let connection = Arc::downgrade(&self.connection);
        self.end = Some(deadlines::at(deadline, move |error| {
            if let Some(connection) = connection.upgrade() {
                connection.end(error);
            }
        }));
    }

    /// Whether nothing can be sent any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.connection.pending.has_ended()
    }

    /// What everything is answered with from now on, if it has ended.
    pub(crate) fn why_ended(&self) -> Option<Error> {
        self.connection.pending.why_ended()
    }

    /// Has `then` called once it has ended, in the thread that finds that; at once if it has.
    pub(crate) fn when_ended(&self, then: Told) {
        *self.connection.told.lock() = Some(then);
        if self.has_ended() {
            self.connection.tell();
        }
    }

    /// Ends it: what waits and what comes is answered with `error`.
    pub(crate) fn cut(&self, error: Error) {
        self.connection.end(error);
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.connection.traffic
    }
}

impl ChannelConnection {
    /// Answers everything, now and later, with an error, and hangs up.
    fn end(&self, error: Error) {
        self.pending.end(error);
        socket::hang_up(&self.socket);
        self.tell();
    }

    /// Tells of its end, once.
    fn tell(&self) {
        let told = self.told.lock().take();
        if let (Some(told), Some(why)) = (told, self.pending.why_ended()) {
            told(why);
        }
    }
}

impl Sender for ChannelConnection {
    fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    fn queue(&self) -> &SendQueue {
        &self.queue
    }

    fn not_sent(&self, call: Option<u64>, error: io::Error) {
        let error = match is_lost(&error) {
            true => disconnected("its channel is closed"),
            false => explain("send a message to the executor", error),
        };
        self.pending.fail(call, error);
    }
}

impl Transport for Channel {
    fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        self.call_with(function, &args, &[], done);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if self.connection.pending.owner().is_current() {
            self.connection.end(disconnected("its session was closed"));
        }
    }
}

/// What an executor says.
enum Said {
    Answer(Answered, Packet),
    Restarted(Restarted),
}

impl reader_pool::Connection for ChannelConnection {
    type Input = Vec<u8>;
    type Packet = Said;

    fn receive(&self, buffer: &mut Vec<u8>) -> Result<Option<Self::Packet>> {
        let received = match self.refuses_descriptors {
            true => Ok(()),
            false => socket::await_plain_bytes(&self.socket).map(drop),
        };
        let received = received.and_then(|()| packet::receive_answer(&self.socket, buffer));
        let Some(packet) = received.map_err(|error| unreadable("channel", error))? else {
            return Ok(None);
        };
        let Header {
            opcode,
            sequence,
            size,
            tag,
        } = packet.header;
        if (opcode, tag) == (Opcode::CallWrapper, RESTARTED) {
            // It is none of the bytes that the manager's messages take.
            return match from_bytes(&packet.body) {
                Ok(restarted) => Ok(Some(Said::Restarted(restarted))),
                Err(malformed) => Err(unreadable(
                    "channel",
                    io::Error::new(io::ErrorKind::InvalidData, malformed.to_string()),
                )),
            };
        }
        self.traffic.received(size as usize);
        let answered = match opcode {
            Opcode::Result => self.pending.answered(sequence),
            _ => Answered::Nothing,
        };
        if matches!(answered, Answered::Nothing) {
            self.executor.dropped_unexpected();
            let message = format!("{opcode:?} {sequence}, which answers no call");
            let error = io::Error::new(io::ErrorKind::InvalidData, message);
            return Err(unreadable("channel", error));
        }
        Ok(Some(Said::Answer(answered, packet)))
    }

    fn handle(&self, what: Said) {
        let (done, packet) = match what {
            Said::Answer(Answered::Call(done), packet) => (done, packet),
            Said::Answer(..) => return,
            Said::Restarted(Restarted { restarts, why }) => {
                return self.executor.restarted(restarts, &said(why.as_bytes()));
            }
        };
        let failed = |message| Err(Error::new(Status::MapperFailed, message));
        done.complete(match (packet.lost, packet.header.tag) {
            (Some(why), _) => failed(why),
            (None, OUT_OF_BAND) => failed(said(&packet.body)),
            (None, _) => Ok(packet.body),
        });
    }

    fn hang_up(&self) {
        socket::hang_up(&self.socket);
    }

    fn ended(&self, why: Result<()>) {
        if !self.refuses_descriptors {
            socket::discard_unread(&self.socket);
        }
        self.pending.end(end_of("channel", why));
        self.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::completion::wait;

    fn receive(socket: &OwnedFd) -> Packet {
        packet::receive(socket, &mut Vec::new()).unwrap().unwrap()
    }

    fn answer(socket: &OwnedFd, sequence: u64, tag: u64, body: &[u8]) {
        let header = Header::new(Opcode::Result, sequence, tag, body.len());
        packet::send(socket, header, body, &[]).unwrap();
    }

    #[test]
    fn answers_find_their_calls_in_any_order() {
        let (here, there) = socket::packet_pair().unwrap();
        let channel = Channel::new(here, Arc::default()).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        for number in 0..3u64 {
            let sender = sender.clone();
            channel.call(
                7,
                vec![number as u8],
                Completion::new(move |answer| {
                    sender.send((number, answer)).unwrap();
                }),
            );
        }
        let calls: Vec<Packet> = (0..3).map(|_| receive(&there)).collect();
        for call in calls.iter().rev() {
            assert_eq!(call.header.tag, 7);
            answer(&there, call.header.sequence, 0, &call.body);
            let (number, body) = receiver.recv().unwrap();
            assert_eq!(body.unwrap(), [number as u8]);
        }
        assert_eq!(channel.traffic().messages(), 3);
    }

    #[test]
    fn an_executor_can_send_no_descriptors() {
        for before_the_channel in [true, false] {
            let (here, there) = socket::packet_pair().unwrap();
            let file = std::fs::File::open("/dev/null").unwrap();
            let along: &[std::os::fd::BorrowedFd<'_>] = &[file.as_fd()];
            let send = |sequence, descriptors: &[std::os::fd::BorrowedFd<'_>]| {
                let header = Header::new(Opcode::Result, sequence, 0, 0);
                packet::send(&there, header, &[], descriptors)
            };
            if before_the_channel {
                // The first number of a call.
                send(0, along).unwrap();
            }
            let channel = Channel::new(here, Arc::default()).unwrap();
            // By the kernel, if it can, or when the message comes.
            let by_the_kernel = channel.connection.refuses_descriptors && !before_the_channel;
            let answer = wait(|done| {
                channel.call(7, vec![], done);
                // Where the connection has ended already, there is no message.
                if !before_the_channel {
                    let call = receive(&there).header.sequence;
                    let sent = send(call, along);
                    assert_eq!(sent.is_err(), by_the_kernel);
                    if let Err(error) = sent {
                        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
                        send(call, &[]).unwrap();
                    }
                }
            });
            match by_the_kernel {
                true => assert_eq!(answer.unwrap(), []),
                false => {
                    assert_eq!(answer.unwrap_err().status(), Status::Disconnected);
                    let (told, why) = std::sync::mpsc::channel();
                    channel.when_ended(Box::new(move |error| told.send(error).unwrap()));
                    let why = why.recv().unwrap();
                    assert!(why.message().contains("descriptors"), "{why}");
                }
            }
        }
    }

    #[test]
    fn an_answer_is_as_large_as_a_packet_at_most() {
        let (here, there) = socket::packet_pair().unwrap();
        let channel = Channel::new(here, Arc::default()).unwrap();
        let call = |header: usize, size: usize| {
            wait(|done| {
                channel.call(7, vec![], done);
                let sequence = receive(&there).header.sequence;
                let header = Header::new(Opcode::Result, sequence, 0, header);
                let _ = socket::send(&there, &[&header.encode(), &vec![7; size]], &[]);
            })
        };
        assert_eq!(call(MOST_ANSWER, MOST_ANSWER).unwrap().len(), MOST_ANSWER);
        let error = call(MOST_ANSWER + 1, MOST_ANSWER + 1).unwrap_err();
        assert_eq!(error.status(), Status::Disconnected);
        assert!(error.message().contains("broke the protocol"), "{error}");
    }

    #[test]
    fn an_answer_that_came_before_the_end_is_one() {
        for _ in 0..500 {
            let (here, there) = socket::packet_pair().unwrap();
            let channel = Channel::new(here, Arc::default()).unwrap();
            let (sender, receiver) = std::sync::mpsc::channel();
            for _ in 0..2 {
                let sender = sender.clone();
                let done = Completion::new(move |answer: Result<Vec<u8>>| {
                    sender.send(answer.is_ok()).unwrap();
                });
                channel.call(7, vec![], done);
            }
            drop(sender);
            let first = receive(&there).header.sequence;
            answer(&there, first, 0, b"yes");
            socket::hang_up(&there);
            assert_eq!(receiver.iter().filter(|answered| *answered).count(), 1);
        }
    }

    #[test]
    fn an_executor_that_answers_twice_or_hangs_up_ends_every_call_once() {
        for twice in [true, false] {
            let (here, there) = socket::packet_pair().unwrap();
            let channel = Channel::new(here, Arc::default()).unwrap();
            let executor = std::thread::spawn(move || {
                let first = receive(&there);
                let second = receive(&there);
                if twice {
                    answer(&there, first.header.sequence, OUT_OF_BAND, b"no");
                    answer(&there, first.header.sequence, 0, b"");
                    // The controller hangs up.
                    assert!(packet::receive(&there, &mut Vec::new()).unwrap().is_none());
                }
                drop(second);
            });
            let (sender, receiver) = std::sync::mpsc::channel();
            for _ in 0..2 {
                let sender = sender.clone();
                channel.call(
                    1,
                    vec![],
                    Completion::new(move |answer| sender.send(answer).unwrap()),
                );
            }
            drop(sender);
            let errors: Vec<Error> = receiver.iter().map(|answer| answer.unwrap_err()).collect();
            assert_eq!(errors.len(), 2);
            let first = if twice {
                Status::MapperFailed
            } else {
                Status::Disconnected
            };
            assert!(
                errors.iter().any(|error| error.status() == first),
                "{errors:?}"
            );
            executor.join().unwrap();
            let later = wait(|done| channel.call(1, vec![], done)).unwrap_err();
            assert_eq!(later.status(), Status::Disconnected);
            let dropped = channel.connection.executor.dropped_answers();
            assert_eq!(dropped.unexpected, u64::from(twice));
            // What has not been asked for yet is told why as well.
            assert_eq!(channel.why_ended(), Some(later.clone()));
            assert_eq!(
                later.message().contains("answers no call"),
                twice,
                "{later}"
            );
        }
    }
}
