// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Serving a controller from a process in which no linked code runs. That runs in a child, which is forked from
//! this one; when it ends another one takes its place.
//!
//! This process maps all that the controller has mapped. It never writes into it, so a child that is forked from it has
//! code, constants and data at the same addresses as they were finalized. What maps is done in both processes; all
//! else that the controller calls is handed on to the child, and what linked code calls to the controller.
//!
//! | thread | does |
//! |---|---|
//! | those of the controller's connection | hand calls on; answer what maps |
//! | one that waits for the child's process | ends its connections, which what it has forked may have open |
//! | the child's reader | hands answers and the child's calls on, sees the child's end, forks the next one |
//! | one that watches the child's limits of time | kills it a while after it should have ended |
//! | one that sends | what the child has no room for |
//! | one that replays | has the new child run the finalize actions of all that is live |

mod child;
mod restarts;

pub use self::restarts::Restarts;

use self::child::{Child, NO_ANSWER, Phase, answers, why_ended};
use self::restarts::Recent;
use super::connection::ServerConnection;
use super::programs::{Limit, Limits, Programs, say, say_goodbye};
use super::replay::{Replay, ReplayedItem};
use super::writer::{MessageWriter, Unread};
use crate::completion::{Completion, wait};
use crate::error::{Error, Result, Status};
use crate::executor::service::{self, Function, Supervise};
use crate::lock::{Condvar, Mutex, MutexGuard};
use crate::sys::{self, ChildProcess, ClosedInChild, StreamWriter, explain, explain_fork, socket};
use crate::transport::channel::Channel;
use crate::transport::messages::{Message, MessageReader};
use crate::transport::pending::PendingCalls;
use crate::wire::frame::{FIRST_OWN_CALL, Header, OUT_OF_BAND, Opcode, Setup, SetupLayout};
use crate::wire::service::{
    At, Change, Functions, Item, Reply, Reserve, ReservedAt, Restarted, Step,
};
use crate::wire::sps::{self, Decode, Encode, Outcome, Reader, from_bytes, said, to_bytes};
use std::collections::HashSet;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// How often another place is looked for where a child has something at the one that was found.
const MOST_PLACES: usize = 16;

/// Bytes of what a child answers, or passes to the controller, at most.
const MOST_BODY: u64 = 256 << 20;
/// And of what it says of its end.
const MOST_WORDS: u64 = 64 << 10;
/// Calls of linked code that wait for the controller's answer, at most: more than a process has threads.
const MOST_CALLS: usize = 1 << 16;

/// What a child does: serves what is at these sockets, the second one being for what maps; gives its exit code.
pub(super) type RunChild = Box<dyn Fn(OwnedFd, OwnedFd) -> c_int + Send + Sync>;

/// Is told why this process ends where no other child shall take the place of one.
pub(super) type GiveUp = Box<dyn Fn(&Error) + Send + Sync>;

/// How the last child has ended.
#[derive(Clone)]
pub(super) struct End {
    /// Its exit code; 1 for a signal.
    pub(super) code: c_int,
    /// In words.
    pub(super) why: String,
}

/// What a host has chosen for the session.
pub(super) struct Choices {
    pub(super) restarts: Restarts,
    pub(super) unread: Unread,
    pub(super) layout: SetupLayout,
    /// For how long linked code may run. A child sees to it itself, unless that is what it runs that stops.
    pub(super) limits: Limits,
    /// The addresses of functions that run no program.
    pub(super) brief: HashSet<u64>,
}

/// So much later than a child its supervisor sees to the limits: longer than a controller may take to read why it ends.
const LATER: Duration = Duration::from_secs(2);

/// A call that waits for a child that is ready.
type Held = (u64, Vec<u8>, Completion<Vec<u8>>);

#[derive(Default)]
struct State {
    child: Option<Arc<Child>>,
    /// The child takes calls: what is live has been initialized there, or an action that does so calls the
    /// controller, which may need it for that.
    ready: bool,
    held: Vec<Held>,
    recent: Recent,
    /// How often, all in all.
    restarts: u64,
    /// What no other child would have.
    lasting: Option<String>,
    /// Why no other child shall take the place of this one.
    failed: Option<Error>,
    /// The controller has gone; what it has called may not have returned.
    orphaned: bool,
    /// And nothing is called any more.
    closing: bool,
    /// How the last child has ended.
    end: Option<End>,
}

pub(super) struct Supervisor {
    choices: Choices,
    functions: Functions,
    run: RunChild,
    give_up: GiveUp,
    connection: OnceLock<Weak<ServerConnection>>,
    /// The first child's introduction.
    setup: OnceLock<Setup>,
    state: Mutex<State>,
    changed: Condvar,
    /// Held while something is mapped in both processes, and while a child is forked.
    mapping: Mutex<()>,
    replay: Replay,
    /// Calls of linked code, of all children, that the controller has not answered.
    calls: Arc<AtomicUsize>,
}

impl Supervisor {
    /// Starts the first child. Gives what it reads from too.
    pub(super) fn start(
        choices: Choices,
        run: RunChild,
        give_up: GiveUp,
    ) -> Result<(Arc<Supervisor>, MessageReader, Setup)> {
        sys::prepare_for_children();
        sys::share_crashes().map_err(|error| explain("map a page", error))?;
        let supervisor = Arc::new(Supervisor {
            choices,
            functions: service::functions(),
            run,
            give_up,
            connection: OnceLock::new(),
            setup: OnceLock::new(),
            state: Mutex::default(),
            changed: Condvar::new(),
            mapping: Mutex::default(),
            replay: Replay::new()?,
            calls: Arc::default(),
        });
        service::share_places(supervisor.replay.places());
        service::set_forks_successors(true);
        let leaves = service::leave_to(Arc::clone(&supervisor) as Arc<dyn Supervise>);
        if !leaves {
            return Err(Error::new(
                Status::Unsupported,
                "supervise a second session: a process supervises one for its whole life",
            ));
        }
        let (child, mut input) = supervisor.fork()?;
        let setup = supervisor
            .introduced(&mut input)
            .inspect_err(|_| child.process.end())?;
        let _ = supervisor.setup.set(setup.clone());
        supervisor.state.lock().ready = true;
        Ok((supervisor, input, setup))
    }

    /// Serves the child, and those that take its place, from now on.
    pub(super) fn serve(
        self: &Arc<Self>,
        connection: &Arc<ServerConnection>,
        input: MessageReader,
    ) -> Result<()> {
        let _ = self.connection.set(Arc::downgrade(connection));
        let supervisor = Arc::clone(self);
        let spawned = sys::spawn("jitmem-child", move || supervisor.read(input));
        spawned.map_err(|error| {
            if let Some(child) = self.state.lock().child.take() {
                child.process.end();
            }
            explain("start a thread that reads what the child says", error)
        })
    }

    /// The controller has gone.
    pub(super) fn orphaned(&self) {
        let mut state = self.state.lock();
        state.orphaned = true;
        if let Some(child) = &state.child {
            child.programs.orphaned();
        }
    }

    /// Ends the child and waits for that.
    pub(super) fn finish(&self) -> End {
        let mut state = self.state.lock();
        state.closing = true;
        if let Some(child) = &state.child {
            socket::end_of_writing(&child.socket);
        }
        loop {
            if let Some(end) = &state.end {
                return end.clone();
            }
            state = self.changed.wait(state);
        }
    }

    // ---- the child ----

    /// Forks a child, which is the one there is from then on.
    fn fork(&self) -> Result<(Arc<Child>, MessageReader)> {
        let failed = |error| explain("make sockets for a child", error);
        let (here, there) = UnixStream::pair().map_err(failed)?;
        let (channel, its_channel) = socket::packet_pair().map_err(failed)?;
        let (here, there) = (Arc::new(OwnedFd::from(here)), OwnedFd::from(there));
        let output = here.try_clone().map_err(failed)?;
        // All ends of this process are dead ones in the child.
        let socket = ClosedInChild::new(Arc::clone(&here));
        let mut input = MessageReader::new(here);
        input.refuse_descriptors().map_err(failed)?;
        let writer = StreamWriter::new(output).map_err(failed)?;
        let channel = Channel::new(channel, Arc::default())?;
        let mapping = self.mapping.lock();
        let run = || {
            service::succeed();
            service::set_forks_successors(false);
            (self.run)(there, its_channel)
        };
        // SAFETY: the child serves anew, by objects of its own; what it goes on with lies behind locks that forks see
        // to. It leaves those of this connection alone.
        let process = unsafe { ChildProcess::start(run) };
        let process =
            process.map_err(|error| explain_fork("fork a child for linked code", error))?;
        let child = Arc::new(Child {
            process,
            number: self.replay.child(),
            socket,
            writer: MessageWriter::new(writer, self.choices.unread),
            pending: PendingCalls::numbered_from(FIRST_OWN_CALL),
            channel,
            killed_for: OnceLock::new(),
            programs: Programs::default(),
            phase: Mutex::new(Phase::Starts),
            changed: Condvar::new(),
        });
        let awaited = Arc::clone(&child);
        let await_end = move || {
            awaited.process.await_end();
            // What it has said is read first.
            socket::hang_up(&awaited.socket);
            awaited.programs.over();
        };
        sys::spawn("jitmem-end", await_end).map_err(|error| {
            child.process.end();
            explain("start a thread that waits for a child's end", error)
        })?;
        if self.choices.limits.are_set() {
            self.watch(&child).inspect_err(|_| child.process.end())?;
        }
        // What is mapped from here on is mapped there too.
        let mut state = self.state.lock();
        state.child = Some(Arc::clone(&child));
        if state.orphaned {
            child.programs.orphaned();
        }
        drop((state, mapping));
        Ok((child, input))
    }

    /// Sees to the limits where the child does not: what it runs can have it stop.
    fn watch(&self, child: &Arc<Child>) -> Result<()> {
        let (child, limits) = (Arc::clone(child), self.choices.limits);
        let watch = move || {
            let Some(limit) = child.programs.wait_for_limit(limits.later(LATER)) else {
                return;
            };
            let seconds = |limit: Option<Duration>| limit.unwrap_or_default().as_secs();
            child.kill_for(match limit {
                Limit::Program(_) => {
                    let limit = seconds(limits.program);
                    format!("time limit: a program ran for {limit} s, and its process did not end")
                }
                Limit::Orphaned => {
                    let limit = seconds(limits.orphaned);
                    format!("the controller has been gone for {limit} s and linked code still ran")
                }
            });
        };
        sys::spawn("jitmem-watchdog", watch)
            .map_err(|error| explain("start the thread that watches the time limits", error))
    }

    /// What the child says first.
    fn introduced(&self, input: &mut MessageReader) -> Result<Setup> {
        let wrong = |why: String| {
            let why = format!("start a child for linked code: {why}");
            Error::new(Status::Disconnected, why)
        };
        match input.next() {
            Ok(Some(Message { header, body, .. })) if header.opcode == Opcode::Setup => {
                Setup::decode(&body, self.choices.layout).map_err(|error| wrong(error.to_string()))
            }
            Ok(Some(Message { header, body, .. })) if header.opcode == Opcode::Hangup => {
                Err(wrong(farewell(&body).unwrap_or_default()))
            }
            Ok(_) => Err(wrong("it has ended before it served".to_owned())),
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    /// Reads what children say, one after the other.
    fn read(self: &Arc<Self>, mut input: MessageReader) {
        let mut child = self.state.lock().child.clone();
        while let Some(current) = child.take() {
            let said = self.read_one(&current, &mut input);
            // One that has no connection any more goes on with nothing; at the end it has actions to run, and output
            // to write.
            if !self.state.lock().closing {
                current.process.kill();
            }
            let status = current.process.wait();
            let why = why_ended(current.killed_for.get().cloned().or(said), &status);
            let next = self.child_ended(&current, &why, status);
            if let Some((next, reader)) = next {
                input = reader;
                child = Some(next);
            }
        }
    }

    /// Hands on what a child says until it ends. Gives what it has said of that.
    fn read_one(self: &Arc<Self>, child: &Arc<Child>, input: &mut MessageReader) -> Option<String> {
        loop {
            let message = input.next_within(|header| self.most(child, header));
            let Message { header, body, .. } = match message {
                Ok(Some(message)) => message,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Some(format!("it has sent what is no message: {error}"));
                }
                _ => return None,
            };
            let Header {
                opcode,
                sequence,
                tag,
                ..
            } = header;
            let size = header.body_size();
            let withheld = size > body.len() as u64;
            match opcode {
                Opcode::Result => {
                    let Some(done) = child.pending.take(sequence) else {
                        return Some(format!("it has answered {sequence}, which is no call"));
                    };
                    done.complete(match tag {
                        _ if withheld => Err(Error::new(
                            Status::MapperFailed,
                            format!(
                                "an answer of {size} bytes: the supervisor has room for {MOST_BODY} at most"
                            ),
                        )),
                        OUT_OF_BAND => Err(Error::new(Status::MapperFailed, said(&body))),
                        _ => Ok(body),
                    });
                }
                _ if withheld => {
                    return Some(format!("it has sent {size} bytes in one message"));
                }
                Opcode::CallWrapper => {
                    if self.calls.load(Ordering::Relaxed) >= MOST_CALLS {
                        return Some(format!(
                            "{MOST_CALLS} calls of linked code wait for the controller's answer"
                        ));
                    }
                    self.release();
                    self.call_controller(child, sequence, tag, &body);
                }
                Opcode::Hangup => return farewell(&body),
                Opcode::Setup => {
                    match (Setup::decode(&body, self.choices.layout), self.setup.get()) {
                        (Ok(setup), Some(first)) if setup == *first => child.enter(Phase::Serves),
                        _ => return Some("it has not what the first one has had".to_owned()),
                    }
                }
            }
        }
    }

    /// Bytes that a message of a child's may have. What it runs may say anything.
    fn most(&self, child: &Child, header: &Header) -> u64 {
        match header.opcode {
            Opcode::Result => child.pending.most(header.sequence),
            Opcode::CallWrapper => MOST_BODY,
            Opcode::Hangup => MOST_WORDS,
            Opcode::Setup => {
                let first = self.setup.get();
                first.map_or(0, |setup| setup.encode(self.choices.layout).len() as u64)
            }
        }
    }

    /// Linked code calls the controller.
    fn call_controller(&self, child: &Arc<Child>, sequence: u64, tag: u64, args: &[u8]) {
        let Some(connection) = self.connection.get().and_then(Weak::upgrade) else {
            return;
        };
        let (child, calls) = (Arc::clone(child), Arc::clone(&self.calls));
        calls.fetch_add(1, Ordering::Relaxed);
        let done = Completion::new(move |answer: Result<Vec<u8>>| {
            calls.fetch_sub(1, Ordering::Relaxed);
            // There is no way to say an error, as from any controller.
            let body = answer.unwrap_or_default();
            let header = Header::new(Opcode::Result, sequence, 0, body.len());
            child.send(header, body);
        });
        connection.call_without_waiting(tag, args.to_vec(), done);
    }

    /// Answers what waited for a child, and starts another one, if there shall be one.
    fn child_ended(
        self: &Arc<Self>,
        child: &Child,
        why: &str,
        status: io::Result<ExitStatus>,
    ) -> Option<(Arc<Child>, MessageReader)> {
        let failed = {
            let mut state = self.state.lock();
            (state.child, state.ready) = (None, false);
            if state.closing {
                drop(state);
                child.no_more(why);
                let mut state = self.state.lock();
                state.end = Some(End {
                    code: status.ok().and_then(|status| status.code()).unwrap_or(1),
                    why: why.to_owned(),
                });
                self.changed.notify_all();
                return None;
            }
            state.failed.take()
        };
        child.no_more(why);
        if let Some(error) = failed {
            return self.end(&error);
        }
        self.replay.child_is_gone();
        match self.replacement(why) {
            Ok(next) => {
                say(&format!("{why}; another one takes its place"));
                Some(next)
            }
            Err(error) => self.end(&Error::new(
                error.status(),
                format!("{why}; {}", error.message()),
            )),
        }
    }

    /// Another child for one that has ended.
    fn replacement(self: &Arc<Self>, why: &str) -> Result<(Arc<Child>, MessageReader)> {
        let restarted = {
            let mut state = self.state.lock();
            if let Some(lasting) = &state.lasting {
                let why = format!("no other one takes its place: {lasting} would not be there");
                return Err(Error::new(Status::Disconnected, why));
            }
            state.recent.add(self.choices.restarts, Instant::now())?;
            state.restarts += 1;
            Restarted {
                restarts: state.restarts,
                why: why.to_owned(),
            }
        };
        let (child, input) = self.fork()?;
        if self.state.lock().closing {
            // The controller has gone since.
            socket::end_of_writing(&child.socket);
        }
        let (supervisor, replayed) = (Arc::clone(self), Arc::clone(&child));
        let spawned = sys::spawn("jitmem-replay", move || {
            if supervisor.replay(&replayed) {
                service::tell_restarted(&restarted);
            }
        });
        spawned.map_err(|error| explain("start a thread that replays actions", error))?;
        Ok((child, input))
    }

    /// Has a new child run the finalize actions of all that is live. Whether it has, and has not ended since.
    fn replay(&self, child: &Arc<Child>) -> bool {
        if !child.serves() {
            return false;
        }
        let same = |current: &Arc<Child>| Arc::ptr_eq(current, child);
        while let Some((keys, message)) = self.replay.next(child.number) {
            let answer = child.ask(self.functions.apply.0, &message, &[]);
            let answers = answer.and_then(|bytes| {
                let wrong = || Error::new(Status::Internal, NO_ANSWER);
                answers(&bytes, keys.len()).ok_or_else(wrong)?
            });
            let replayed = answers.and_then(|answers| {
                let keys = keys.iter().copied().zip(answers);
                let done = keys.map(|(key, answer)| Ok((key, answer.map_err(Error::from)?)));
                done.collect::<Result<Vec<(u64, u64)>>>()
            });
            match replayed {
                Ok(done) => self.replay.done(child.number, &done),
                // That it has ended while it did is for the thread that reads.
                Err(_) if child.channel.has_ended() => {
                    child.process.kill();
                    return false;
                }
                Err(error) => {
                    let operation = "a finalize action has failed in the child that took the place of one that ended";
                    let mut state = self.state.lock();
                    if state.child.as_ref().is_some_and(same) {
                        state.failed = Some(error.context(operation));
                    }
                    drop(state);
                    // The thread that reads does the rest.
                    child.process.kill();
                    return false;
                }
            }
        }
        let mut state = self.state.lock();
        let lives = state.child.as_ref().is_some_and(same);
        if lives {
            self.set_ready(&mut state);
        }
        lives
    }

    /// Lets calls through that wait for the actions of what is live: one of those waits for the controller, and
    /// the controller may need the child to answer.
    fn release(&self) {
        let mut state = self.state.lock();
        if !state.ready && state.child.is_some() {
            self.set_ready(&mut state);
        }
    }

    fn set_ready(&self, state: &mut State) {
        state.ready = true;
        self.changed.notify_all();
        let held = std::mem::take(&mut state.held);
        if let Some(child) = state.child.clone() {
            for (tag, args, done) in held {
                self.hand_on(&child, tag, args, done);
            }
        }
    }

    /// Ends this process: its starter and the controller are told why. Called by the thread that reads.
    fn end<T>(&self, why: &Error) -> Option<T> {
        if let Some(child) = self.state.lock().child.take() {
            child.process.end();
        }
        (self.give_up)(why);
        if let Some(connection) = self.connection.get() {
            say_goodbye(connection, why.message().to_owned());
        }
        sys::exit_now(1)
    }

    // ---- calls ----

    /// Hands a call of the controller's on to the child.
    pub(super) fn call(&self, tag: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        let mut state = self.state.lock();
        if state.lasting.is_none() {
            state.lasting = self.lasting(tag, &args);
        }
        match state.child.clone().filter(|_| state.ready) {
            Some(child) => {
                drop(state);
                self.hand_on(&child, tag, args, done);
            }
            None => state.held.push((tag, args, done)),
        }
    }

    fn hand_on(&self, child: &Arc<Child>, tag: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        if self.choices.limits.program.is_none() || self.choices.brief.contains(&tag) {
            return child.call(tag, args, done);
        }
        let number = child.programs.started(tag);
        let runs = Arc::clone(child);
        let done = done.map(move |answer| {
            runs.programs.ended(number);
            answer
        });
        child.call(tag, args, done);
    }

    /// What a call makes in the child that no other child would have.
    fn lasting(&self, tag: u64, args: &[u8]) -> Option<String> {
        let symbols = &self.setup.get()?.bootstrap_symbols;
        let (name, _) = symbols.iter().find(|(_, address)| address.0 == tag)?;
        if name.ends_with("_reserve_wrapper") || name.ends_with("Service_Reserve") {
            return Some("memory of LLVM's own memory managers".to_owned());
        }
        if name.ends_with("DylibManager_open_wrapper") {
            let mut args = Reader::new(args);
            let _instance = u64::decode(&mut args).ok()?;
            let path = sps::Bytes::decode(&mut args).ok()?;
            return (!path.0.is_empty()).then(|| format!("the library {}", said(path.0)));
        }
        None
    }

    /// The child, once it takes calls.
    fn ready_child(&self) -> Arc<Child> {
        let mut state = self.state.lock();
        loop {
            match &state.child {
                Some(child) if state.ready => return Arc::clone(child),
                _ => state = self.changed.wait(state),
            }
        }
    }

    fn apply(&self, args: &[u8]) -> Result<Vec<Reply<u64>>> {
        let mut reader = Reader::new(args);
        let malformed = |error: sps::Malformed| {
            let message = format!("jitmem's executor service: malformed arguments: {error}");
            Error::new(Status::InvalidArgument, message)
        };
        let session = u64::decode(&mut reader).map_err(malformed)?;
        let mut items = <Vec<Item<'_>>>::decode(&mut reader).map_err(malformed)?;
        let (child, plan) = loop {
            let child = self.ready_child();
            if let Some(plan) = self.replay.plan(child.number, &mut items) {
                break (child, plan);
            }
        };
        let sent: Vec<&Item<'_>> = plan.iter().filter_map(ReplayedItem::sent).collect();
        let answer = match sent.len() {
            0 => Ok(Some(Ok(Vec::new()))),
            count => {
                let mut message = to_bytes(&session);
                (count as u64).encode(&mut message);
                sent.iter().for_each(|item| item.encode(&mut message));
                let answer = child.ask(self.functions.apply.0, &message, &[]);
                answer.map(|bytes| answers(&bytes, count))
            }
        };
        let answered = match answer {
            // A session that it does not have: nothing was done.
            Ok(Some(Err(refused))) => return Err(refused),
            Ok(Some(Ok(answers))) => self.replay.answered(child.number, session, &plan, answers),
            // What it has done is not known.
            Ok(None) => {
                child.kill_for(NO_ANSWER.to_owned());
                None
            }
            Err(_) if child.channel.has_ended() => {
                child.process.kill();
                None
            }
            Err(error) => {
                child.kill_for(format!("it can't be called: {}", error.message()));
                None
            }
        };
        Ok(answered.unwrap_or_else(|| lost(&plan, &child.why())))
    }

    fn reserve(&self, args: &[u8]) -> Vec<u8> {
        let _mapping = self.mapping.lock();
        let here = |function, args: &[u8]| service::call_here(function, args, Vec::new());
        let mut reader = Reader::new(args);
        let (Ok(session), Ok(_)) = (u64::decode(&mut reader), Reserve::decode(&mut reader)) else {
            return here(Function::Reserve, args).unwrap_or_default();
        };
        for _ in 0..MOST_PLACES {
            let answer = here(Function::Reserve, args).unwrap_or_default();
            let Ok(Reply(Ok(reserved))) = from_bytes::<Reply<ReservedAt>>(&answer) else {
                return answer;
            };
            let Some(child) = self.state.lock().child.clone() else {
                return answer;
            };
            let range = reserved.range;
            let (address, size) = (range.start.0, range.end.0 - range.start.0);
            let mut message = to_bytes(&session);
            let at = At::Fixed { address };
            Reserve {
                size,
                least: size,
                at,
            }
            .encode(&mut message);
            let there = child.ask(self.functions.reserve.0, &message, &[]);
            match there.map(|there| from_bytes::<Reply<ReservedAt>>(&there)) {
                Ok(Ok(Reply(Ok(there)))) if there.range == range => return answer,
                // The next child has it.
                Err(_) => return answer,
                _ => {
                    let mut message = to_bytes(&session);
                    let changes = vec![Step::Release { range }];
                    Change { changes }.encode(&mut message);
                    let _ = here(Function::Change, &message);
                }
            }
        }
        let why = Error::new(
            Status::OutOfMemory,
            format!("reserve a window: the child has something at each of {MOST_PLACES} places"),
        );
        to_bytes(&Reply::<ReservedAt>::from(Err(why)))
    }

    /// Done in both processes. A child in which it has another outcome is replaced by one that has it from here.
    fn change(&self, args: &[u8], descriptors: Vec<OwnedFd>) -> Vec<u8> {
        let _mapping = self.mapping.lock();
        let copies: io::Result<Vec<OwnedFd>> = descriptors
            .iter()
            .map(|one| one.as_fd().try_clone_to_owned())
            .collect();
        let copies = match copies {
            Ok(copies) => copies,
            Err(error) => {
                let error = explain("duplicate a memfd for the child", error);
                return to_bytes(&Reply::<Vec<Reply<()>>>::from(Err(error)));
            }
        };
        let answer = service::call_here(Function::Change, args, descriptors).unwrap_or_default();
        // The lock is not held while the child is asked.
        let child = self.state.lock().child.clone();
        if let Some(child) = child {
            match child.ask(self.functions.change.0, args, &copies) {
                Ok(there) if there == answer => {}
                _ => child.process.kill(),
            }
        }
        answer
    }

    fn close(&self, args: &[u8]) -> Vec<u8> {
        let session = u64::decode(&mut Reader::new(args)).unwrap_or_default();
        let child = self.ready_child();
        self.replay.forget(session);
        let there = child.ask(self.functions.close.0, args, &[]);
        let _mapping = self.mapping.lock();
        let here = service::call_here(Function::Close, args, Vec::new()).unwrap_or_default();
        // One that was forked meanwhile has it too, with nothing that would run.
        let now = self.state.lock().child.clone();
        if let Some(now) = now.filter(|now| !Arc::ptr_eq(now, &child)) {
            let _ = now.ask(self.functions.close.0, args, &[]);
        }
        there.unwrap_or(here)
    }

    /// The child, once it takes calls, and the lock that keeps another one from being forked.
    fn only_child(&self) -> (Arc<Child>, MutexGuard<'_, ()>) {
        loop {
            let child = self.ready_child();
            let mapping = self.mapping.lock();
            let now = self.state.lock().child.clone();
            if now.is_some_and(|now| Arc::ptr_eq(&now, &child)) {
                return (child, mapping);
            }
        }
    }
}

impl Supervise for Supervisor {
    fn open(&self, args: &[u8], here: &dyn Fn() -> Vec<u8>) -> Vec<u8> {
        let (child, _mapping) = self.only_child();
        let answer = here();
        if !matches!(answer.first(), Some(1)) {
            return answer;
        }
        let function = service::entry_points()[0].address;
        let there = wait(|done| child.call(function, args.to_vec(), done));
        if there.as_ref() != Ok(&answer) {
            // The next child has it.
            child.process.kill();
        }
        answer
    }

    fn call(&self, function: Function, args: &[u8], descriptors: Vec<OwnedFd>) -> Vec<u8> {
        match function {
            Function::Attach => service::call_here(function, args, descriptors).unwrap_or_default(),
            Function::Reserve => self.reserve(args),
            Function::Change => self.change(args, descriptors),
            Function::Apply => to_bytes(&Reply::<Vec<Reply<u64>>>::from(self.apply(args))),
            Function::Close => self.close(args),
        }
    }
}

/// What is answered where a child has ended before it did.
fn lost(plan: &[ReplayedItem<'_>], why: &str) -> Vec<Reply<u64>> {
    let why = format!("{why}; another one takes its place");
    service::fitting(Replay::lost(plan, &Error::new(Status::ActionFailed, why)))
}

/// What a child says of its end.
fn farewell(body: &[u8]) -> Option<String> {
    match from_bytes::<Outcome>(body) {
        Ok(Outcome(Err(why))) => Some(why),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::packet::MOST_ANSWER;

    #[test]
    fn what_is_lost_together_fits_into_one_answer() {
        let item = || Item::InitializeData {
            data: Vec::new(),
            code: Vec::new(),
            actions: Vec::new(),
        };
        let sent = |_| ReplayedItem::Sent(item(), None);
        let plan: Vec<ReplayedItem<'_>> = (0..2048).map(sent).collect();
        let answer = Reply::<Vec<Reply<u64>>>::from(Ok(lost(&plan, &"why ".repeat(30))));
        assert!(to_bytes(&answer).len() <= MOST_ANSWER);
    }
}
