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
//! | one that waits for orphans | has nothing left of those that end by themselves |
//! | the child's reader | hands answers and the child's calls on, sees the child's end, forks the next one |
//! | one that watches the child's limits of time | kills it a while after it should have ended |
//! | one that sends | what the child has no room for |
//! | one that replays | has the new child run the finalize actions of all that is live |

mod calls;
mod child;
mod restarts;
mod said;

pub use self::restarts::Restarts;

use self::child::{Child, NO_ANSWER, Phase, answers, why_ended};
use self::restarts::Recent;
use self::said::Silence;
use super::connection::ServerConnection;
use super::programs::{Limit, Limits, Programs, say, say_goodbye};
use super::replay::Replay;
use super::writer::{MessageWriter, Unread};
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::executor::service::{self, Supervise};
use crate::lock::{Condvar, Mutex};
use crate::sys::{
    self, ChildProcess, ClosedInChild, Orphans, StreamWriter, explain, explain_fork, socket,
};
use crate::transport::channel::Channel;
use crate::transport::messages::MessageReader;
use crate::transport::pending::PendingCalls;
use crate::wire::frame::{FIRST_OWN_CALL, Setup, SetupLayout};
use crate::wire::service::{Functions, Restarted};
use std::collections::HashSet;
use std::ffi::c_int;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// Bytes of what a child answers, or passes to the controller, at most.
const MOST_BODY: u64 = 256 << 20;
/// And of what it says of its end.
const MOST_WORDS: u64 = 64 << 10;
/// For how long a child may read nothing before what does not fit into what is left for it fails.
const PATIENCE: Duration = Duration::from_secs(10);
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
    /// A thread hands on what is held, after which the child is ready.
    hands_on: bool,
    recent: Recent,
    /// How often, all in all.
    restarts: u64,
    /// Why no other child shall take the place of this one.
    failed: Option<Error>,
    /// The controller has gone; what it has called may not have returned.
    orphaned: bool,
    /// And nothing is called any more.
    closing: bool,
    /// How the last child has ended.
    end: Option<End>,
}

impl State {
    fn has(&self, child: &Arc<Child>) -> bool {
        let is_it = |current: &Arc<Child>| Arc::ptr_eq(current, child);
        self.child.as_ref().is_some_and(is_it)
    }
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
    /// What no other child would have.
    lasting: Arc<OnceLock<String>>,
    /// Calls of linked code, of all children, that the controller has not answered.
    calls: Arc<AtomicUsize>,
    /// What children leave; `None` where the system does not list it.
    orphans: Option<Arc<Orphans>>,
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
            lasting: Arc::default(),
            calls: Arc::default(),
            orphans: Orphans::adopt().ok(),
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
        let spawned = sys::spawn_to_fork("jitmem-child", move || supervisor.read(input));
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
        let forking = self.orphans.as_ref().map(|orphans| orphans.fork());
        // SAFETY: the child serves anew, by objects of its own; what it goes on with lies behind locks that forks see
        // to. It leaves those of this connection alone.
        let process = unsafe { ChildProcess::start(run) };
        let process =
            process.map_err(|error| explain_fork("fork a child for linked code", error))?;
        if let Some(forking) = forking {
            forking.forked(&process);
        }
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
                    format!("time limit: a call ran for {limit} s, and its process did not end")
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

    /// Reads what children say, one after the other.
    fn read(self: &Arc<Self>, mut input: MessageReader) {
        let mut child = self.state.lock().child.clone();
        while let Some(current) = child.take() {
            let said = match self.read_one(&current, &mut input) {
                // One that has no connection any more goes on with nothing; at the end it has actions to run, and
                // output to write.
                Silence::Ended(said) => {
                    self.replace(&current);
                    said
                }
                // Nothing tells whether it would end.
                Silence::Broken(why) => {
                    current.kill_for(why);
                    None
                }
            };
            let status = current.process.wait();
            let why = why_ended(current.killed_for.get().cloned().or(said), &status);
            let next = self.child_ended(&current, &why, status);
            if let Some((next, reader)) = next {
                input = reader;
                child = Some(next);
            }
        }
    }

    /// Answers what waited for a child, and starts another one, if there shall be one.
    fn child_ended(
        self: &Arc<Self>,
        child: &Child,
        why: &str,
        status: io::Result<ExitStatus>,
    ) -> Option<(Arc<Child>, MessageReader)> {
        self.end_orphans();
        let failed = {
            let mut state = self.state.lock();
            (state.child, state.ready, state.hands_on) = (None, false, false);
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

    /// Ends what a child has left, which was waited for.
    fn end_orphans(&self) {
        let Some(orphans) = &self.orphans else {
            return;
        };
        orphans.child_is_gone();
        if let Err(error) = orphans.end() {
            let what = "end the processes that linked code has started";
            say(&explain(what, error).to_string());
        }
    }

    /// Has another child take the place of one. When the controller has gone none does, and the last one ends by itself:
    /// it may have actions to run and output to write.
    fn replace(&self, child: &Child) {
        if !self.state.lock().closing {
            child.process.kill();
        }
    }

    /// Another child for one that has ended.
    fn replacement(self: &Arc<Self>, why: &str) -> Result<(Arc<Child>, MessageReader)> {
        let restarted = {
            let mut state = self.state.lock();
            if let Some(lasting) = self.lasting.get() {
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
        while let Some((keys, message)) = self.replay.next(child.number) {
            let answer = child.ask(self.functions.apply.0, &message, &[]);
            let answers = answer.and_then(|bytes| {
                let wrong = || Error::new(Status::Internal, NO_ANSWER);
                answers(&bytes, keys.len()).ok_or_else(wrong)?
            });
            match self.replay.done(child.number, &keys, answers) {
                Ok(()) => {}
                // That it has ended while it did is for the thread that reads.
                Err(error) if child.ended_by(&error) => {
                    self.replace(child);
                    return false;
                }
                Err(error) => {
                    let operation = "a finalize action has failed in the child that took the place of one that ended";
                    let mut state = self.state.lock();
                    if state.orphaned {
                        // What an action calls the controller for is not answered any more.
                        drop(state);
                        self.let_through(child);
                        return false;
                    }
                    if state.has(child) {
                        state.failed = Some(error.context(operation));
                    }
                    drop(state);
                    // The thread that reads does the rest.
                    child.process.kill();
                    return false;
                }
            }
        }
        self.let_through(child);
        self.state.lock().has(child)
    }

    /// Lets calls through that wait for the actions of what is live: one of those waits for the controller, and
    /// the controller may need the child to answer.
    fn release(self: &Arc<Self>, child: &Arc<Child>) {
        if !self.is_to_hand_on(child) {
            return;
        }
        // The child may not read before more is read of what it says.
        let (supervisor, released) = (Arc::clone(self), Arc::clone(child));
        let hand_on = move || supervisor.hand_on_held(&released);
        if sys::spawn("jitmem-release", hand_on).is_err() {
            self.hand_on_held(child);
        }
    }

    fn let_through(&self, child: &Arc<Child>) {
        if self.is_to_hand_on(child) {
            self.hand_on_held(child);
        }
    }

    /// Whether the caller is to hand on what is held; where nothing is, the child is ready.
    fn is_to_hand_on(&self, child: &Arc<Child>) -> bool {
        let mut state = self.state.lock();
        if state.ready || state.hands_on || !state.has(child) {
            return false;
        }
        state.hands_on = !state.held.is_empty();
        if !state.hands_on {
            state.ready = true;
            self.changed.notify_all();
        }
        state.hands_on
    }

    /// Hands on what is held, in its order, until there is no more: then the child is ready.
    fn hand_on_held(&self, child: &Arc<Child>) {
        loop {
            let held = {
                let mut state = self.state.lock();
                if !state.has(child) {
                    return;
                }
                if state.held.is_empty() {
                    (state.ready, state.hands_on) = (true, false);
                    self.changed.notify_all();
                    return;
                }
                std::mem::take(&mut state.held)
            };
            for (tag, args, done) in held {
                self.hand_on(child, tag, args, done);
            }
        }
    }

    /// Ends this process: its starter and the controller are told why. Called by the thread that reads.
    fn end<T>(&self, why: &Error) -> Option<T> {
        if let Some(child) = self.state.lock().child.take() {
            child.process.end();
        }
        self.end_orphans();
        (self.give_up)(why);
        if let Some(connection) = self.connection.get() {
            say_goodbye(connection, why.message().to_owned());
        }
        sys::exit_now(1)
    }
}
