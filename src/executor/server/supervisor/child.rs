// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A process that runs linked code, as the one that supervises it sees it.

use super::{MOST_BODY, PATIENCE};
use crate::completion::{Completion, wait};
use crate::error::{Error, Result, Status};
use crate::executor::server::programs::Programs;
use crate::executor::server::writer::MessageWriter;
use crate::lock::{Condvar, Mutex};
use crate::sys::{self, ChildProcess, ClosedInChild};
use crate::transport::channel::Channel;
use crate::transport::pending::PendingCalls;
use crate::wire::frame::{Header, Opcode};
use crate::wire::service::{Failure, Reply};
use crate::wire::sps::from_bytes;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, OnceLock};

/// One child.
pub(super) struct Child {
    pub(super) process: ChildProcess,
    /// Which one it is of those there were.
    pub(super) number: u64,
    /// Its connection, as a controller's would be.
    pub(super) socket: ClosedInChild,
    pub(super) writer: MessageWriter,
    pub(super) pending: PendingCalls,
    /// For calls of the service.
    pub(super) channel: Channel,
    /// Why its supervisor has killed it, where that has a reason.
    pub(super) killed_for: OnceLock<String>,
    /// Those that have a time limit.
    pub(super) programs: Programs,
    pub(super) phase: Mutex<Phase>,
    pub(super) changed: Condvar,
}

/// How far a child is.
pub(super) enum Phase {
    Starts,
    /// It has introduced itself, so what it runs can call the controller.
    Serves,
    /// For this reason.
    Ended(String),
}

impl Child {
    /// Calls a function of the service and waits.
    pub(super) fn ask(
        &self,
        function: u64,
        message: &[u8],
        descriptors: &[OwnedFd],
    ) -> Result<Vec<u8>> {
        wait(|done| self.channel.call_with(function, message, descriptors, done))
    }

    /// Whether what it was asked has failed because it has ended: a message may find that before what reads does.
    pub(super) fn ended_by(&self, error: &Error) -> bool {
        self.channel.has_ended() || error.status() == Status::Disconnected
    }

    /// [`Child::ask`] of what runs no linked code, and takes no longer than a program may: a child that has stopped never
    /// answers.
    pub(super) fn ask_briefly(
        &self,
        function: u64,
        message: &[u8],
        descriptors: &[OwnedFd],
    ) -> Result<Vec<u8>> {
        let number = self.programs.started(function);
        let answer = self.ask(function, message, descriptors);
        self.programs.ended(number);
        answer
    }

    /// Waits for its end, which must be certain.
    pub(super) fn why(&self) -> String {
        let mut phase = self.phase.lock();
        loop {
            match &*phase {
                Phase::Ended(why) => return why.clone(),
                Phase::Starts | Phase::Serves => phase = self.changed.wait(phase),
            }
        }
    }

    /// Waits until it serves; `false` if it has ended.
    pub(super) fn serves(&self) -> bool {
        let mut phase = self.phase.lock();
        loop {
            match &*phase {
                Phase::Starts => phase = self.changed.wait(phase),
                Phase::Serves => return true,
                Phase::Ended(_) => return false,
            }
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        *self.phase.lock() = phase;
        self.changed.notify_all();
    }

    /// Hands a call on.
    pub(super) fn call(self: &Arc<Self>, tag: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        if let Some(sequence) = self.pending.add(done, MOST_BODY) {
            let header = Header::new(Opcode::CallWrapper, sequence, tag, args.len());
            if !self.send(header, args) {
                let why = Error::new(Status::WouldBlock, DOES_NOT_READ);
                self.pending.fail(Some(sequence), why);
            }
        }
    }

    /// Answers a call of its linked code.
    pub(super) fn answer(self: &Arc<Self>, sequence: u64, body: Vec<u8>) {
        let header = Header::new(Opcode::Result, sequence, 0, body.len());
        if !self.send(header, body) {
            self.kill_for(DOES_NOT_READ.to_owned());
        }
    }

    /// Sends a message. A child that does not read holds up a thread for it, and for a while the caller where as much
    /// is left as may be; `false` if it has read nothing in that time.
    fn send(self: &Arc<Self>, header: Header, body: Vec<u8>) -> bool {
        let Some(started) = self.writer.start_to_send_within(header, body, PATIENCE) else {
            return false;
        };
        // Of a child that is gone, the thread that reads learns why.
        if let Ok(Some(unwritten)) = started {
            let child = Arc::clone(self);
            let write_on = move |unwritten| drop(child.writer.write_on(unwritten));
            if let Some(unwritten) = unwritten.elsewhere(write_on) {
                self.kill_for(NO_THREAD.to_owned());
                // Its end is the socket's.
                drop(self.writer.write_on(unwritten));
            }
        }
        true
    }

    /// Kills it for a reason that is told.
    pub(super) fn kill_for(&self, why: String) {
        let _ = self.killed_for.set(why);
        self.process.kill();
    }

    /// Nothing more comes of it.
    pub(super) fn no_more(&self, why: &str) {
        self.enter(Phase::Ended(why.to_owned()));
        let error = Error::new(Status::ActionFailed, why);
        self.pending.end_in_order(error.clone());
        self.channel.cut(error);
    }
}

/// Why a call fails, or its process is ended.
const NO_THREAD: &str = "no thread can be started that writes what it has no room for";
const DOES_NOT_READ: &str = "the process that runs linked code does not read what it is sent, and as much waits for \
                             that as may";

/// Why one is ended whose answer is none.
pub(super) const NO_ANSWER: &str = "the child has answered what is no answer";

/// What is answered to each of some items.
type Answers = Vec<std::result::Result<u64, Failure>>;

/// What the child has answered to so many items; `None` if that is no answer.
pub(super) fn answers(bytes: &[u8], count: usize) -> Option<Result<Answers>> {
    let Reply(reply) = from_bytes::<Reply<Vec<Reply<u64>>>>(bytes).ok()?;
    match reply {
        Err(refused) => Some(Err(refused.into())),
        Ok(replies) if replies.len() == count => {
            let replies = replies.into_iter();
            Some(Ok(replies.map(|Reply(reply)| reply).collect()))
        }
        Ok(_) => None,
    }
}

/// How a child has ended, in words.
pub(super) fn why_ended(said: Option<String>, status: &io::Result<ExitStatus>) -> String {
    const WHO: &str = "the process that ran linked code";
    let crash = sys::take_crash();
    if let Some(said) = said {
        return format!("{WHO} has ended: {said}");
    }
    let status = match status {
        Ok(status) => status,
        Err(error) => return format!("{WHO} has ended: {error}"),
    };
    match (status.signal(), crash, status.code()) {
        (Some(signal), crash, _) => {
            let name = sys::signal_name(signal).map_or(String::new(), |name| format!(" ({name})"));
            let at = crash.filter(|crash| crash.signal == signal);
            let at = at.and_then(|crash| crash.address);
            let at = at.map_or(String::new(), |at| format!(" at address {at:#x}"));
            format!("{WHO} was killed by signal {signal}{name}{at}")
        }
        (None, _, code) => format!("{WHO} has exited with code {}", code.unwrap_or_default()),
    }
}
