// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A session with an executor's service, and how its messages and memfds go.

use super::descriptor_passing::{self, Attachment, DescriptorPassing};
use super::reply::{decoded, decoded_list, parsed};
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::sys::OwnerProcess;
use crate::transport::channel::Channel;
use crate::transport::limits::{Asked, Deadline, Patience, SessionLimits};
use crate::transport::packet;
use crate::transport::{
    ExecutorState, Traffic, Transport, disconnected, dispatched, wait_for_call,
};
use crate::wire::service::{
    Attach, FrameFunctions, Functions, INDEX_VERSION, ListenerName, OLDEST_VERSION, Open,
    OpenWithWish, Opened, OpenedWithData, OpenedWithFrames, PARTS_VERSION, PRIVATE_VERSION,
    VERSION, most_answer,
};
use crate::wire::sps::{Decode, Encode, ExecutorAddr, to_bytes};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// An open session.
pub(super) struct Link {
    transport: Arc<dyn Transport>,
    /// Where callbacks of hosts run that follow from answers.
    dispatcher: Arc<dyn Transport>,
    opened: Opened,
    frames: FrameFunctions,
    private_data: bool,
    /// Which version of the service's messages the executor takes.
    version: u32,
    /// None where content travels in messages.
    attachment: Option<Attachment>,
    /// Of the transport; a channel counts its own.
    traffic: Arc<Traffic>,
    closed: AtomicBool,
    /// The process that opened the session.
    owner: OwnerProcess,
    /// The transport has said that the executor is gone.
    lost: Arc<AtomicBool>,
    /// It has answered what is no reply, or refused a whole message.
    broken: OnceLock<Error>,
    /// When it must be set up.
    set_up: Option<Deadline>,
    session: SessionLimits,
    /// See [`Transport::executor`].
    executor: Arc<ExecutorState>,
}

impl Link {
    /// Opens a session of the service whose `open` is at `service` in the executor; `private` asks for private
    /// data, which an older release does not know.
    pub(super) fn open(
        transport: Arc<dyn Transport>,
        service: u64,
        instance: u64,
        private: bool,
    ) -> Result<Link> {
        let limits = transport.limits();
        let set_up = limits.deadline(Asked::SetUp);
        let open = |version| -> Result<(u32, OpenedWithData)> {
            let open = Open { version, instance };
            let open = match version {
                PRIVATE_VERSION.. => to_bytes(&OpenWithWish {
                    open,
                    private_data: private,
                }),
                _ => to_bytes(&open),
            };
            let answer = asked(&transport, service, open, None, set_up)?;
            let frames = FrameFunctions::default();
            let shared = |opened| OpenedWithData {
                opened,
                private_data: false,
            };
            let opened = match version {
                PRIVATE_VERSION.. => decoded(&answer)?,
                INDEX_VERSION => decoded(&answer).map(shared)?,
                _ => decoded(&answer).map(|opened| shared(OpenedWithFrames { opened, frames }))?,
            };
            Ok((version, opened))
        };
        // An executor of an older release refuses what it does not speak.
        let older = |opened: Result<_>, version| {
            opened.or_else(|error: Error| match error.status() {
                Status::Unsupported => open(version),
                _ => Err(error),
            })
        };
        let versions = (OLDEST_VERSION..VERSION).rev();
        let opened = versions.fold(open(VERSION), older);
        let (version, opened) = opened
            .map_err(|error| error.context("open a session with jitmem's executor service"))?;
        let OpenedWithData {
            opened: OpenedWithFrames { opened, frames },
            private_data,
        } = opened;
        let executor = transport.executor().unwrap_or_default();
        Ok(Link {
            dispatcher: Arc::clone(&transport),
            transport,
            opened,
            frames,
            private_data,
            version,
            attachment: None,
            traffic: Arc::default(),
            closed: AtomicBool::new(false),
            owner: OwnerProcess::current(),
            lost: Arc::default(),
            broken: OnceLock::new(),
            set_up,
            session: SessionLimits::begin(limits),
            executor,
        })
    }

    /// Has callbacks of hosts run where another transport's host wants them.
    pub(super) fn dispatch_by(&mut self, dispatcher: Arc<dyn Transport>) {
        self.dispatcher = dispatcher;
    }

    /// Finds a way to pass descriptors.
    ///
    /// # Errors
    /// `Unsupported` with what each way said.
    pub(super) fn find_passing(&mut self) -> Result<DescriptorPassing> {
        let mut found = descriptor_passing::attach(self)?;
        if let (Some(channel), Some(end)) = (&mut found.channel, self.session.end) {
            channel.end_at(end);
        }
        let passing = found.passing;
        self.attachment = Some(found);
        Ok(passing)
    }

    /// A channel of this session's.
    pub(super) fn channel_over(&self, socket: OwnedFd) -> Result<Channel> {
        Channel::new(socket, Arc::clone(&self.executor))
    }

    /// Tries a way to pass descriptors.
    pub(super) fn attach(&self, attach: Attach<'_>) -> Result<()> {
        self.ask(self.opened.functions.attach, &attach)
    }

    /// [`attach`](Self::attach) with a socket that goes along; only where the transport passes descriptors.
    pub(super) fn attach_with(&self, attach: Attach<'_>, socket: OwnedFd) -> Result<()> {
        self.ask_with(self.opened.functions.attach, &attach, Some(socket))
    }

    /// Whether the transport takes descriptors to the executor.
    pub(super) fn passes_descriptors(&self) -> bool {
        self.transport.passes_descriptors()
    }

    /// Asks for the name of the executor's listener.
    pub(super) fn listeners_name(&self) -> Result<ListenerName> {
        self.ask(self.opened.functions.attach, &Attach::Listening {})
    }

    /// How descriptors are passed, if they are.
    pub(super) fn passing(&self) -> Option<DescriptorPassing> {
        self.attachment.as_ref().map(|found| found.passing)
    }

    /// Which better ways to pass descriptors failed, and why.
    pub(super) fn failed_passing(&self) -> &[String] {
        self.attachment.as_ref().map_or(&[], |found| &found.failed)
    }

    fn channel(&self) -> Option<&Channel> {
        self.attachment.as_ref()?.channel.as_ref()
    }

    pub(super) fn page_size(&self) -> u64 {
        self.opened.page_size
    }

    /// Whether the executor sees code that is written to shared pages without being told.
    pub(super) fn is_coherent(&self) -> bool {
        self.opened.coherent
    }

    /// Whether it gives the memory of parts of code back.
    pub(super) fn gives_parts_back(&self) -> bool {
        self.version >= PARTS_VERSION
    }

    /// Whether data is private.
    pub(super) fn has_private_data(&self) -> bool {
        self.private_data
    }

    /// The calls that an index stands for.
    pub(super) fn frame_functions(&self) -> FrameFunctions {
        self.frames
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
        if let Err(error) = self.session.check() {
            return done.complete(Err(error));
        }
        let done = dispatched(&self.dispatcher, done);
        self.send(function, message, descriptors, done);
    }

    fn send(
        &self,
        function: ExecutorAddr,
        message: Vec<u8>,
        descriptors: &[OwnedFd],
        done: Completion<Vec<u8>>,
    ) {
        // Where RLIMIT_FSIZE admits no file for a large message, the transport takes it.
        let fits = |_: &&Channel| !descriptors.is_empty() || packet::can_carry(message.len());
        match self.channel().filter(fits) {
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
                let most = most_answer(message.len());
                self.transport
                    .start_bounded(function.0, message, most, done);
            }
        }
    }

    /// What a reply says.
    pub(super) fn reply<T: for<'a> Decode<'a>>(&self, bytes: &[u8]) -> Result<T> {
        let reply = parsed(bytes).inspect_err(|error| {
            let _ = self.broken.set(error.clone());
        });
        reply.and_then(|reply| reply)
    }

    /// The outcomes of the parts of a message.
    pub(super) fn replies<T: for<'a> Decode<'a>>(
        &self,
        bytes: &[u8],
        count: usize,
    ) -> Result<Vec<Result<T>>> {
        decoded_list(bytes, count).inspect_err(|error| {
            // The first one counts.
            let _ = self.broken.set(error.clone());
        })
    }

    /// Why the session is of no use though there is a connection: the executor has answered what is no reply, or
    /// refused a whole message.
    pub(super) fn why_broken(&self) -> Option<&Error> {
        self.broken.get()
    }

    /// Has `then` called once the channel has ended, in a thread that must not be kept; at once if it has.
    pub(super) fn when_ended(&self, then: impl FnOnce(Error) + Send + 'static) {
        if let Some(channel) = self.channel() {
            channel.when_ended(Box::new(then));
        }
    }

    /// Ends the channel: what waits and what comes is answered with `error`.
    pub(super) fn cut(&self, error: Error) {
        if let Some(channel) = self.channel() {
            channel.cut(error);
        }
    }

    /// Asks and waits while the session is set up.
    pub(super) fn ask<T: for<'a> Decode<'a>>(
        &self,
        function: ExecutorAddr,
        request: &impl Encode,
    ) -> Result<T> {
        self.ask_with(function, request, None)
    }

    fn ask_with<T: for<'a> Decode<'a>>(
        &self,
        function: ExecutorAddr,
        request: &impl Encode,
        descriptor: Option<OwnedFd>,
    ) -> Result<T> {
        let mut message = self.message();
        request.encode(&mut message);
        self.traffic.sent(message.len());
        let bytes = asked(
            &self.transport,
            function.0,
            message,
            descriptor,
            self.set_up,
        )?;
        self.traffic.received(bytes.len());
        decoded(&bytes)
    }

    /// Messages sent and bytes of both directions.
    pub(super) fn traffic(&self) -> (u64, u64) {
        let channel = self.channel().map(Channel::traffic);
        let all = [Some(&*self.traffic), channel];
        let all = all.iter().flatten();
        all.fold((0, 0), |(messages, bytes), traffic| {
            (messages + traffic.messages(), bytes + traffic.bytes())
        })
    }

    pub(super) fn executor(&self) -> &Arc<ExecutorState> {
        &self.executor
    }

    /// Ends the session, once. The executor runs what deallocation actions are left; with a channel
    /// this waits until that is done.
    pub(super) fn close(&self) {
        if !self.owner.is_current() || self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let function = self.opened.functions.close;
        // There is no request to answer; a channel that is gone has ended the session on both sides.
        let close = |done: Completion<()>| {
            let done = done.map(|answer: Result<Vec<u8>>| answer.map(drop));
            self.send(function, self.message(), &[], done);
        };
        if self.has_channel() {
            self.patience().wait(close);
        } else {
            // The host's own transport may need this very thread to answer.
            close(Completion::new(|_| ()));
        }
    }

    /// How long the end of something in the executor is waited for.
    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.session.limits.close, Arc::clone(&self.executor))
    }

    pub(super) fn session(&self) -> &SessionLimits {
        &self.session
    }

    pub(super) fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// The process that opened the session. A forked child must leave it alone.
    pub(super) fn owner(&self) -> OwnerProcess {
        self.owner
    }

    /// Whether it is known that the executor is gone.
    pub(super) fn is_lost(&self) -> bool {
        match self.channel() {
            Some(channel) => channel.has_ended(),
            None => self.lost.load(Ordering::Acquire),
        }
    }

    /// Fails if it is known that the executor is gone.
    pub(super) fn check(&self) -> Result<()> {
        self.session.check()?;
        match self.is_lost() {
            true => Err(self.why_lost()),
            false => Ok(()),
        }
    }

    #[cold]
    fn why_lost(&self) -> Error {
        let why = self.channel().and_then(Channel::why_ended);
        why.unwrap_or_else(|| disconnected("its connection has ended"))
    }

    /// Whether answers come in threads of our own.
    pub(super) fn has_channel(&self) -> bool {
        self.channel().is_some()
    }
}

/// Calls a function of the service's and waits for the answer.
fn asked(
    transport: &Arc<dyn Transport>,
    function: u64,
    message: Vec<u8>,
    descriptor: Option<OwnedFd>,
    deadline: Option<Deadline>,
) -> Result<Vec<u8>> {
    let most = most_answer(message.len());
    wait_for_call(deadline, |call| {
        call.start_with(transport, function, message, descriptor, most);
    })
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply::decoded_list;
    use super::*;
    use crate::completion::wait;
    use crate::executor::service::Service;
    use crate::executor::service::here::{Here, OPEN};

    #[test]
    fn a_session_ends_with_its_link() {
        let service = Service::new();
        let link = Link::open(Arc::new(Here), OPEN, service.instance(), false).unwrap();
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
}
