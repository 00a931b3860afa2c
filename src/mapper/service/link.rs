// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A session with an executor's service, and the way its memfds and messages go.

use crate::completion::{Completion, wait, wait_until};
use crate::error::{Error, Result, Status};
use crate::sys::{self, MemFile, OwnerProcess, explain, explain_mapping, explain_reach, socket};
use crate::transport::channel::Channel;
use crate::transport::{RESPONSE_TIMEOUT, Traffic, Transport, call, disconnected, dispatched};
use crate::wire::service::{
    Attach, Attached, Failure, File, Functions, Open, Opened, Reply, VERSION,
};
use crate::wire::sps::{
    Bytes, Decode, Encode, ExecutorAddr, Malformed, Reader, from_bytes, to_bytes,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How memfds reach the executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DescriptorPassing {
    /// Not at all.
    None,
    /// Through a channel that the transport brought along.
    SharedSocket,
    /// Through a channel that began at an abstract Unix socket.
    AbstractSocket,
    /// Through a channel whose end was taken out of the executor.
    TakenSocket,
    /// The executor opens them by our process and their number.
    Files,
}

/// An open session.
pub(super) struct Link {
    transport: Arc<dyn Transport>,
    channel: Option<Arc<Channel>>,
    opened: Opened,
    pub(super) passing: DescriptorPassing,
    /// Which ways to pass descriptors failed, and why.
    pub(super) failed: Vec<String>,
    traffic: Arc<Traffic>,
    closed: AtomicBool,
    /// The process that opened the session.
    owner: OwnerProcess,
    /// The transport has said that the executor is gone.
    lost: Arc<AtomicBool>,
}

/// The value in the bytes of a reply.
pub(super) fn decoded<T: for<'a> Decode<'a>>(bytes: &[u8]) -> Result<T> {
    match from_bytes::<Reply<T>>(bytes) {
        Ok(Reply(reply)) => reply.map_err(Error::from),
        Err(malformed) => Err(Error::new(
            Status::MapperFailed,
            format!(
                "the executor answered {} bytes that are no reply: {malformed}",
                bytes.len()
            ),
        )),
    }
}

/// The values in the bytes of a reply that must have `count` of them.
pub(super) fn decoded_list<T: for<'a> Decode<'a>>(
    bytes: &[u8],
    count: usize,
) -> Result<Vec<Result<T>>> {
    let mut reader = Reader::new(bytes);
    let mut list = || {
        if !bool::decode(&mut reader)? {
            return Ok(Err(Failure::decode(&mut reader)?));
        }
        // Before anything is made of them: each takes more room here than there.
        if u64::decode(&mut reader)? != count as u64 {
            return Err(Malformed::Length(count as u64));
        }
        let replies = (0..count).map(|_| {
            let Reply(reply) = Reply::decode(&mut reader)?;
            Ok(reply.map_err(Error::from))
        });
        replies.collect::<Result<_, Malformed>>().map(Ok)
    };
    match list() {
        Ok(list) => list.map_err(Error::from),
        Err(malformed) => Err(Error::new(
            Status::MapperFailed,
            format!(
                "the executor answered {} bytes that are no {count} replies: {malformed}",
                bytes.len()
            ),
        )),
    }
}

impl Link {
    /// Opens a session of the service whose `open` is at `service` in the executor.
    pub(super) fn open(transport: Arc<dyn Transport>, service: u64, instance: u64) -> Result<Link> {
        let open = Open {
            version: VERSION,
            instance,
        };
        let answer = call(&*transport, service, to_bytes(&open));
        let opened: Opened = answer
            .and_then(|bytes| decoded(&bytes))
            .map_err(|error| error.context("open a session with jitmem's executor service"))?;
        Ok(Link {
            transport,
            channel: None,
            opened,
            passing: DescriptorPassing::None,
            failed: Vec::new(),
            traffic: Arc::default(),
            closed: AtomicBool::new(false),
            owner: OwnerProcess::current(),
            lost: Arc::default(),
        })
    }

    pub(super) fn page_size(&self) -> u64 {
        self.opened.page_size
    }

    pub(super) fn functions(&self) -> &Functions {
        &self.opened.functions
    }

    /// The beginning of every message.
    pub(super) fn message(&self) -> Vec<u8> {
        to_bytes(&self.opened.session)
    }

    /// Sends a message; descriptors only where there is a channel. The callbacks of hosts that follow
    /// from its answer run where the transport's host wants them.
    pub(super) fn call(
        &self,
        function: ExecutorAddr,
        message: Vec<u8>,
        descriptors: &[OwnedFd],
        done: Completion<Vec<u8>>,
    ) {
        let done = dispatched(&self.transport, done);
        self.send(function, message, descriptors, done);
    }

    fn send(
        &self,
        function: ExecutorAddr,
        message: Vec<u8>,
        descriptors: &[OwnedFd],
        done: Completion<Vec<u8>>,
    ) {
        match &self.channel {
            Some(channel) => channel.call_with(function.0, &message, descriptors, done),
            None => {
                self.traffic.sent(message.len());
                let (lost, traffic) = (Arc::clone(&self.lost), Arc::clone(&self.traffic));
                let done = done.map(move |answer: Result<Vec<u8>>| {
                    match &answer {
                        Ok(bytes) => traffic.received(bytes.len()),
                        Err(error) if error.status() == Status::Disconnected => {
                            lost.store(true, Ordering::Release);
                        }
                        Err(_) => {}
                    }
                    answer
                });
                self.transport.call(function.0, message, done);
            }
        }
    }

    /// Asks and waits.
    pub(super) fn ask<T: for<'a> Decode<'a>>(
        &self,
        function: ExecutorAddr,
        request: &impl Encode,
    ) -> Result<T> {
        let mut message = self.message();
        request.encode(&mut message);
        let bytes = wait(|done| self.send(function, message, &[], done))?;
        decoded(&bytes)
    }

    /// Messages sent and bytes of both directions.
    pub(super) fn traffic(&self) -> (u64, u64) {
        let channel = self.channel.as_ref().map(|channel| channel.traffic());
        let all = [Some(&*self.traffic), channel];
        let all = all.iter().flatten();
        all.fold((0, 0), |(messages, bytes), traffic| {
            (messages + traffic.messages(), bytes + traffic.bytes())
        })
    }

    /// Ends the session, once. The executor runs what deallocation actions are left; with a channel
    /// whoever asked finds that done.
    pub(super) fn close(&self) {
        if !self.owner.is_current() || self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let function = self.opened.functions.close;
        // Nobody is left to tell; a channel that is gone has ended the session on both sides.
        let close = |done| self.send(function, self.message(), &[], done);
        if self.has_channel() {
            let _ = wait_until(Some(Instant::now() + RESPONSE_TIMEOUT), close);
        } else {
            // The host's own transport may need this very thread to answer.
            close(Completion::new(|_| ()));
        }
    }

    /// The process that opened the session. A forked child must leave it alone.
    pub(super) fn owner(&self) -> OwnerProcess {
        self.owner
    }

    /// Whether it is known that the executor is gone.
    pub(super) fn is_lost(&self) -> bool {
        match &self.channel {
            Some(channel) => channel.has_ended(),
            None => self.lost.load(Ordering::Acquire),
        }
    }

    /// Fails if it is known that the executor is gone.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_lost() {
            return Err(disconnected("its connection has ended"));
        }
        Ok(())
    }

    /// Whether answers come in threads of our own.
    pub(super) fn has_channel(&self) -> bool {
        self.channel.is_some()
    }

    // ---- descriptor passing ----

    /// Finds how memfds can be passed, the best way first.
    ///
    /// # Errors
    /// `Unsupported` with what each step said.
    pub(super) fn attach(&mut self) -> Result<()> {
        // Most transports bring none along, which is no failure.
        if let Some(socket) = self.transport.take_channel() {
            match self.attach_by_shared(socket) {
                Err(error) if error.status() != Status::Disconnected => {
                    self.failed
                        .push(format!("a socket that both share: {error}"));
                }
                done => return done,
            }
        }
        type Step = fn(&mut Link) -> Result<()>;
        let steps: [(&str, Step); 3] = [
            ("an abstract Unix socket", Link::attach_by_name),
            ("pidfd_getfd", Link::attach_by_taking),
            ("/proc/PID/fd", Link::attach_by_files),
        ];
        for (name, step) in steps {
            match step(self) {
                Ok(()) => return Ok(()),
                Err(error) if error.status() == Status::Disconnected => return Err(error),
                Err(error) => self.failed.push(format!("{name}: {error}")),
            }
        }
        Err(Error::new(
            Status::Unsupported,
            format!(
                "memfds can't be handed to the executor: {}; run it on this machine, as this user, \
                 and in the same network or process namespace",
                self.failed.join("; ")
            ),
        ))
    }

    fn step(&self, attach: Attach<'_>) -> Result<Attached> {
        self.ask(self.opened.functions.attach, &attach)
    }

    fn attach_by_shared(&mut self, socket: OwnedFd) -> Result<()> {
        let cookie =
            socket::cookie(&socket).map_err(|error| explain("ask for a socket's cookie", error))?;
        self.step(Attach::Shared { cookie })?;
        self.attached(socket, DescriptorPassing::SharedSocket)
    }

    fn attach_by_name(&mut self) -> Result<()> {
        let name = format!("jitmem-{:032x}", random()?);
        let token = random()?.to_le_bytes();
        let listener = socket::listen_at(name.as_bytes())
            .map_err(|error| explain("listen at an abstract Unix socket", error))?;
        self.step(Attach::Connect {
            name: Bytes(name.as_bytes()),
            token: Bytes(&token),
        })?;
        // The executor has connected and sent by now, and so may others have: any process may try.
        loop {
            let socket = socket::accept(&listener)
                .map_err(|error| explain("accept the executor's connection", error))?;
            if knows(&socket, &token) {
                return self.attached(socket, DescriptorPassing::AbstractSocket);
            }
        }
    }

    fn attach_by_taking(&mut self) -> Result<()> {
        let offer = self.step(Attach::Offer {})?;
        let taken = socket::take_from(self.opened.process, offer.descriptor)
            .map_err(|error| {
                let process = self.opened.process;
                explain_reach(format_args!("take a socket of process {process}"), error)
            })
            .and_then(|socket| match socket::cookie(&socket) {
                Ok(cookie) if cookie == offer.cookie && is_ours(&socket) => Ok(socket),
                _ => Err(Error::new(
                    Status::Unsupported,
                    format!(
                        "process {} is not the executor here: they count processes apart",
                        self.opened.process
                    ),
                )),
            });
        let told = self.step(Attach::Taken {
            taken: taken.is_ok(),
        });
        let socket = taken?;
        told?;
        self.attached(socket, DescriptorPassing::TakenSocket)
    }

    fn attach_by_files(&mut self) -> Result<()> {
        let probe = MemFile::new(c"jitmem-probe", sys::page_size().bytes())
            .map_err(|error| explain_mapping("memfd_create", error))?;
        self.step(Attach::Files {
            file: file_of(probe.as_fd())?,
        })?;
        self.passing = DescriptorPassing::Files;
        Ok(())
    }

    fn attached(&mut self, socket: OwnedFd, passing: DescriptorPassing) -> Result<()> {
        self.channel = Some(Arc::new(Channel::new(socket)?));
        self.passing = passing;
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// How an executor finds a file of ours.
pub(super) fn file_of(file: BorrowedFd<'_>) -> Result<File> {
    let (device, inode) =
        socket::identity(file).map_err(|error| explain("fstat of a memfd", error))?;
    Ok(File {
        process: socket::process(),
        descriptor: socket::number(file),
        device,
        inode,
    })
}

fn random() -> Result<u128> {
    socket::random().map_err(|error| explain("getrandom", error))
}

/// Whether a connection was made by the same user, or root.
fn is_ours(socket: &OwnedFd) -> bool {
    let trusted = |user| user == socket::user() || user == 0;
    socket::peer_user(socket).is_ok_and(trusted)
}

/// Whether whoever connected knows the token and is the same user, or root.
fn knows(socket: &OwnedFd, token: &[u8]) -> bool {
    let mut buffer = [0; 64];
    is_ours(socket)
        && socket::readable(socket.as_fd(), RESPONSE_TIMEOUT).unwrap_or(false)
        && socket::receive(socket, &mut buffer)
            .is_ok_and(|received| &buffer[..received.size] == token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::service::Service;
    use crate::executor::service::here::{Here, OPEN};

    #[test]
    fn a_session_ends_with_its_link() {
        let service = Service::new();
        let link = Link::open(Arc::new(Here), OPEN, service.instance()).unwrap();
        let function = link.functions().apply.0;
        let mut message = link.message();
        0u64.encode(&mut message); // items
        let apply = || {
            let bytes = wait(|done| Here.call(function, message.clone(), done)).unwrap();
            decoded_list::<u64>(&bytes, 0)
        };
        assert!(apply().is_ok());
        drop(link);
        let error = apply().unwrap_err();
        assert!(error.message().contains("it was closed before"), "{error}");
    }

    #[test]
    fn as_many_replies_as_were_asked_for_are_an_answer() {
        let two = || Ok(vec![Reply(Ok(7u64)), Reply(Ok(8))]);
        let bytes = to_bytes(&Reply::from(two()));
        let found = decoded_list::<u64>(&bytes, 2).unwrap();
        assert_eq!(found, [Ok(7), Ok(8)]);
        for count in [0, 1, 3] {
            let error = decoded_list::<u64>(&bytes, count).unwrap_err();
            assert_eq!(error.status(), Status::MapperFailed);
        }
    }

    #[test]
    fn whoever_connects_must_know_the_token() {
        let knows_after = |said: &[u8]| {
            let (here, there) = socket::packet_pair().unwrap();
            socket::send(&there, &[said], &[]).unwrap();
            knows(&here, b"sesame")
        };
        assert!(knows_after(b"sesame"));
        assert!(!knows_after(b"sesam"));
        assert!(!knows_after(b"sesame!"));
        let (here, there) = socket::packet_pair().unwrap();
        drop(there);
        assert!(!knows(&here, b"sesame"));
    }
}
