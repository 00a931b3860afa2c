// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A connection to a controller: what it calls, and what is called there.
//!
//! The threads are those of a reader pool. The thread that reads also answers calls that wait for no
//! other thread, so a session of such calls has one thread, the one that serves. That never runs linked
//! code, whose thread-locals would outlive the session there, and which may need more stack than the
//! host has given it. All other calls are handled by the thread that has read them while another one
//! reads on.
//!
//! Only a program gets a thread of its own, beside the pool. It answers when nothing of the program is left
//! in it: a program may leave thread-locals behind whose destructors are code that the controller will take
//! away.

use super::programs::{Programs, say};
use super::supervisor::Supervisor;
use super::writer::{MessageWriter, Unread, Unwritten};
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::executor::llvm::{CallClass, FunctionBody, PublishedFunction, lookup_published};
use crate::sys::{self, Answer, OwnThread, OwnerProcess, StreamWriter, WrapperResult};
use crate::transport::messages::{Message, MessageReader};
use crate::transport::pending::PendingCalls;
use crate::transport::reader_pool;
use crate::wire::frame::{FIRST_OWN_CALL, FrameError, Header, OUT_OF_BAND, Opcode};
use crate::wire::sps::{ExecutorAddr, Outcome, to_bytes};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// How long the reader stays awake when calls have come one right after the other's answer. About as
/// long as two processors take to wake up, and two are asleep when each side waits for the other.
const AWAKE: Duration = Duration::from_micros(50);

/// The controller's end has broken the protocol.
fn broken(why: FrameError) -> Error {
    Error::new(Status::Disconnected, why.to_string())
}

/// The controller's end can't be read any further.
fn unreadable(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            Error::new(Status::Disconnected, error.to_string())
        }
        io::ErrorKind::OutOfMemory => Error::new(
            Status::OutOfMemory,
            format!("read from the controller: {error}"),
        ),
        _ => Error::system(Status::Disconnected, "read from the controller", error),
    }
}

/// A call of the controller's.
pub(super) struct Call {
    sequence: u64,
    tag: u64,
    args: Vec<u8>,
}

/// What the thread that has read it does while another one reads on.
pub(super) enum Work {
    Call(Call),
    /// An answer that the controller has no room for yet.
    Write(Unwritten),
}

/// Tells whether a controller is so quick to go on that sleeping meanwhile would take longer.
#[derive(Default)]
struct Pace {
    /// When this thread has answered last, unless something has come since.
    answered: Option<Instant>,
    quick: bool,
}

impl Pace {
    fn answered(&mut self) {
        self.answered = Some(Instant::now());
    }

    fn received(&mut self) {
        let answered = self.answered.take();
        self.quick = answered.is_some_and(|at| at.elapsed() < 2 * AWAKE);
    }
}

pub(super) struct ServerConnection {
    writer: MessageWriter,
    /// Calls of linked code to the controller.
    pending: PendingCalls,
    functions: HashMap<u64, PublishedFunction>,
    /// What is published beside functions of ours. Known before the controller is told.
    instances: OnceLock<BTreeMap<String, ExecutorAddr>>,
    programs: Arc<Programs>,
    /// Has what is no function of ours done by a child.
    supervisor: Option<Arc<Supervisor>>,
    /// For programs, which use the connection from threads of their own.
    this: Weak<ServerConnection>,
}

/// The message that answers a call. LLVM's controllers read bytes alone, so to them an error is none.
fn result(sequence: u64, answer: Answer) -> (Header, Vec<u8>) {
    let (tag, body) = match answer {
        Ok(body) => (0, body),
        Err(why) if sequence >= FIRST_OWN_CALL => (OUT_OF_BAND, why.into_bytes()),
        Err(_) => (0, Vec::new()),
    };
    (Header::new(Opcode::Result, sequence, tag, body.len()), body)
}

/// A program in a thread of its own.
struct Program {
    /// Until it has answered.
    connection: Option<Arc<ServerConnection>>,
    programs: Arc<Programs>,
    /// Among them.
    number: u64,
    call: Call,
    answer: Answer,
    process: OwnerProcess,
}

impl OwnThread for Program {
    fn run(&mut self) {
        if let Some(connection) = &self.connection {
            self.answer = connection.answer(&self.call);
        }
    }

    fn ended(&mut self) {
        // A child that the program has forked has no controller.
        if !self.process.is_current() {
            return;
        }
        if let Some(connection) = self.connection.take() {
            // A program that ends its thread leaves no answer.
            let nothing = Ok(Vec::new());
            connection.send_result(
                self.call.sequence,
                std::mem::replace(&mut self.answer, nothing),
            );
        }
        // Who waits for this may be the next to use the controller's descriptors.
        self.programs.ended(self.number);
    }
}

impl ServerConnection {
    /// `functions`: those that are known by their address. Whatever else is called may be a program.
    pub(super) fn new(
        output: StreamWriter,
        unread: Unread,
        functions: HashMap<u64, PublishedFunction>,
        supervisor: Option<Arc<Supervisor>>,
    ) -> Arc<ServerConnection> {
        Arc::new_cyclic(|this| ServerConnection {
            writer: MessageWriter::new(output, unread),
            pending: PendingCalls::new(),
            functions,
            instances: OnceLock::new(),
            programs: Arc::default(),
            supervisor,
            this: Weak::clone(this),
        })
    }

    pub(super) fn programs(&self) -> &Arc<Programs> {
        &self.programs
    }

    /// Tells the controller that this process ends, and why.
    pub(super) fn say_goodbye(&self, why: String) {
        let body = to_bytes(&Outcome(Err(why)));
        let header = Header::new(Opcode::Hangup, 0, 0, body.len());
        // A controller that is gone needs to be told nothing.
        let _ = self.writer.send(header, body.into());
    }

    /// Whether that is the address of a function that is known.
    pub(super) fn has_function(&self, address: u64) -> bool {
        self.functions.contains_key(&address)
    }

    /// What the controller may look up by name later; set once, before [`Self::send_setup`].
    pub(super) fn keep_instances(&self, instances: BTreeMap<String, ExecutorAddr>) {
        // There are none yet.
        let _ = self.instances.set(instances);
    }

    fn find_instance(&self, name: &[u8]) -> Option<u64> {
        let name = std::str::from_utf8(name).ok()?;
        self.instances.get()?.get(name).map(|address| address.0)
    }

    /// Introduces the executor, before anything else is sent.
    pub(super) fn send_setup(&self, setup: &[u8]) -> Result<()> {
        let header = Header::new(Opcode::Setup, 0, 0, setup.len());
        let sent = self.writer.send(header, setup.into());
        self.end_if_lost(sent.clone());
        sent
    }

    /// Calls the controller for linked code.
    pub(super) fn call(&self, tag: u64, args: &[u8], done: Completion<Vec<u8>>) {
        if let Some(sequence) = self.pending.add(done, u64::MAX) {
            let header = Header::new(Opcode::CallWrapper, sequence, tag, args.len());
            match self.writer.send_call(header, args) {
                Err(error) if error.status() == Status::WouldBlock => {
                    self.pending.fail(Some(sequence), error);
                }
                sent => self.end_if_lost(sent),
            }
        }
    }

    /// [`ServerConnection::call`] for a thread that must not wait for a controller that does not read, as far as
    /// no more is left for it than may be.
    pub(super) fn call_without_waiting(&self, tag: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        if let Some(sequence) = self.pending.add(done, u64::MAX) {
            let header = Header::new(Opcode::CallWrapper, sequence, tag, args.len());
            self.send_without_waiting(header, args);
        }
    }

    fn send_without_waiting(&self, header: Header, body: Vec<u8>) {
        match self.writer.start_to_send(header, body) {
            Ok(None) => {}
            Ok(Some(unwritten)) => {
                let connection = Weak::clone(&self.this);
                let write_on = move |unwritten| {
                    if let Some(connection) = connection.upgrade() {
                        connection.write_on(unwritten);
                    }
                };
                if let Some(unwritten) = unwritten.elsewhere(write_on) {
                    self.write_on(unwritten);
                }
            }
            Err(error) => self.pending.end_in_order(error),
        }
    }

    /// Where the controller can't be told anything any more, it answers nothing either.
    fn end_if_lost(&self, written: Result<()>) {
        if let Err(error) = written {
            self.pending.end_in_order(error);
        }
    }

    fn send_result(&self, sequence: u64, answer: Answer) {
        let (header, body) = result(sequence, answer);
        self.end_if_lost(self.writer.send(header, body.into()));
    }

    /// Reads until the controller calls; `None` when it has hung up. What it answers to calls of linked
    /// code is handed over on the way.
    fn read_call(&self, input: &mut MessageReader, pace: &mut Pace) -> Result<Option<Call>> {
        loop {
            if pace.quick {
                input.look_ahead(AWAKE);
            }
            let Some(Message { header, body, .. }) = input.next().map_err(unreadable)? else {
                return Ok(None);
            };
            pace.received();
            self.writer.check()?;
            header.check().map_err(broken)?;
            let sequence = header.sequence;
            match header.opcode {
                Opcode::Setup => return Err(broken(FrameError::UnexpectedSetup)),
                Opcode::Hangup => return Ok(None),
                Opcode::Result => {
                    let done = self.pending.take(sequence);
                    done.ok_or_else(|| broken(FrameError::UnknownSequence(sequence)))?
                        .complete(Ok(body));
                }
                Opcode::CallWrapper => {
                    // What is asked for by a controller that does not read would be kept for it.
                    self.writer.wait_for_room()?;
                    return Ok(Some(Call {
                        sequence,
                        tag: header.tag,
                        args: body,
                    }));
                }
            }
        }
    }

    fn class(&self, call: &Call) -> CallClass {
        let function = self.functions.get(&call.tag);
        function.map_or(CallClass::OwnThread, |function| function.class)
    }

    /// Does a call.
    fn answer(&self, call: &Call) -> Answer {
        let known = self.functions.get(&call.tag);
        let body = || -> Answer {
            match known.map(|function| function.body) {
                Some(FunctionBody::Ours(answer)) => answer(&call.args),
                Some(FunctionBody::LookUpPublished) => {
                    lookup_published(&call.args, |name| self.find_instance(name))
                }
                None if call.tag == 0 => Err("no function is at address 0".to_owned()),
                Some(FunctionBody::AtAddress) | None => {
                    // SAFETY: the controller says that a wrapper function is there; see `super::serve`.
                    match unsafe { sys::call_wrapper(call.tag, &call.args) } {
                        WrapperResult::Bytes(bytes) => Ok(bytes),
                        WrapperResult::OutOfBand(message) => Err(message),
                    }
                }
            }
        };
        let failed = |_| Err(format!("the function at {:#x} panicked", call.tag));
        catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(failed)
    }

    /// Answers a call in the thread that reads, as far as the controller has room for the answer.
    fn answer_inline(&self, call: &Call) -> Option<Unwritten> {
        self.start_to_answer(call.sequence, self.answer(call))
    }

    fn start_to_answer(&self, sequence: u64, answer: Answer) -> Option<Unwritten> {
        let (header, body) = result(sequence, answer);
        let started = self.writer.start_to_send(header, body);
        started.unwrap_or_else(|error| {
            self.pending.end_in_order(error);
            None
        })
    }

    /// Starts a program, which answers by itself.
    fn start_program(&self, call: Call) -> Option<Unwritten> {
        let sequence = call.sequence;
        if let Some(supervisor) = &self.supervisor {
            let connection = Weak::clone(&self.this);
            let done = Completion::new(move |answer: Result<Vec<u8>>| {
                if let Some(connection) = connection.upgrade() {
                    let answer = answer.map_err(|error| error.message().to_owned());
                    let (header, body) = result(sequence, answer);
                    connection.send_without_waiting(header, body);
                }
            });
            supervisor.call(call.tag, call.args, done);
            return None;
        }
        let number = self.programs.started(sequence);
        let program = Program {
            connection: self.this.upgrade(),
            programs: Arc::clone(&self.programs),
            number,
            call,
            answer: Ok(Vec::new()),
            process: OwnerProcess::current(),
        };
        let refused = sys::start_own_thread(Box::new(program)).err()?;
        self.programs.ended(number);
        let refusal = Self::refusal(sequence, &refused);
        self.start_to_answer(sequence, refusal)
    }

    /// Why there is no thread for a call. LLVM's controllers can't read it, so it is told here as well.
    fn refusal(sequence: u64, why: &io::Error) -> Answer {
        let why = format!(
            "no thread can be started for it ({why}); RLIMIT_NPROC, RLIMIT_AS or the cgroup's limit of \
             processes or memory is reached"
        );
        say(&format!(
            "call {sequence} of the controller was refused: {why}"
        ));
        Err(format!("the executor refused the call: {why}"))
    }

    fn write_on(&self, unwritten: Unwritten) {
        self.end_if_lost(self.writer.write_on(unwritten));
    }
}

impl reader_pool::Connection for ServerConnection {
    type Input = MessageReader;
    type Packet = Work;
    const RUNS_LINKED_CODE: bool = true;

    fn receive(&self, input: &mut MessageReader) -> Result<Option<Work>> {
        let mut pace = Pace::default();
        while let Some(call) = self.read_call(input, &mut pace)? {
            let unwritten = match self.class(&call) {
                CallClass::Inline => {
                    let unwritten = self.answer_inline(&call);
                    pace.answered();
                    unwritten
                }
                // The controller waits for what takes its time.
                CallClass::OwnThread => self.start_program(call),
                CallClass::Pooled => return Ok(Some(Work::Call(call))),
            };
            if let Some(unwritten) = unwritten {
                return Ok(Some(Work::Write(unwritten)));
            }
        }
        Ok(None)
    }

    fn handle(&self, work: Work) {
        match work {
            Work::Call(call) => self.send_result(call.sequence, self.answer(&call)),
            // The controller is slow to read. What it says meanwhile is read.
            Work::Write(unwritten) => self.write_on(unwritten),
        }
    }

    fn handle_unread(&self, work: Work) {
        match work {
            // A call that waits for another one would never return.
            Work::Call(call) => {
                let why = io::ErrorKind::WouldBlock.into();
                self.send_result(call.sequence, Self::refusal(call.sequence, &why));
            }
            Work::Write(unwritten) => self.write_on(unwritten),
        }
    }

    /// One thread reads, and that has found the end.
    fn hang_up(&self) {}

    fn ended(&self, _why: Result<()>) {
        let error = Error::new(Status::Disconnected, "disconnecting");
        self.programs.orphaned();
        // It knows before linked code has the answers that end its calls.
        if let Some(supervisor) = &self.supervisor {
            supervisor.orphaned();
        }
        self.pending.end_in_order(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{Condvar, Mutex};
    use crate::transport::reader_pool::ReaderPool;
    use crate::wire::frame::{HEADER_SIZE, message};
    use std::io::{PipeReader, PipeWriter, Read, Write};
    use std::thread::ThreadId;

    fn pool(
        input: PipeReader,
        output: PipeWriter,
        functions: HashMap<u64, PublishedFunction>,
        idle_time: Duration,
    ) -> Arc<ReaderPool<ServerConnection>> {
        let output = StreamWriter::new(output.into()).unwrap();
        let connection = ServerConnection::new(output, Unread::default(), functions, None);
        let input = MessageReader::new(Arc::new(input.into()));
        ReaderPool::new(connection, [input], idle_time)
    }

    #[test]
    fn brief_calls_are_answered_by_the_thread_that_serves_and_others_never() {
        static CALLED_IN: Mutex<Vec<ThreadId>> = Mutex::new(Vec::new());
        fn note(_: &[u8]) -> Answer {
            CALLED_IN.lock().push(std::thread::current().id());
            Ok(Vec::new())
        }
        const CLASSES: [CallClass; 3] =
            [CallClass::Inline, CallClass::Pooled, CallClass::OwnThread];
        let functions = (1..).zip(CLASSES).map(|(address, class)| {
            let function = PublishedFunction {
                address,
                body: FunctionBody::Ours(note),
                class,
            };
            (address, function)
        });
        let (their_input, mut output) = std::io::pipe().unwrap();
        let (mut input, their_output) = std::io::pipe().unwrap();
        let pool = pool(
            their_input,
            their_output,
            functions.collect(),
            Duration::MAX,
        );
        let serving = Arc::clone(&pool);
        let serving = std::thread::spawn(move || serving.run());
        let mut call = |tag| {
            let call = message(Opcode::CallWrapper, 0, tag, &[]);
            output.write_all(&call).unwrap();
            input.read_exact(&mut [0; HEADER_SIZE]).unwrap();
            *CALLED_IN.lock().last().unwrap() == serving.thread().id()
        };
        assert!(call(1));
        assert!(call(1));
        assert_eq!(pool.threads(), 1);
        assert!(!call(2));
        assert!(!call(3));
        assert!(!call(2));
        drop(output);
        serving.join().unwrap().unwrap();
        assert_eq!(pool.threads(), 0);
    }

    #[test]
    fn threads_that_are_not_needed_end_even_while_others_work() {
        static OPEN: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
        fn wait_until_open(_: &[u8]) -> Answer {
            let mut open = OPEN.0.lock();
            while !*open {
                open = OPEN.1.wait(open);
            }
            Ok(Vec::new())
        }
        const TAG: u64 = 1;
        const COUNT: u64 = 20;
        let function = PublishedFunction {
            address: TAG,
            body: FunctionBody::Ours(wait_until_open),
            class: CallClass::Pooled,
        };
        let (their_input, mut output) = std::io::pipe().unwrap();
        let (mut input, their_output) = std::io::pipe().unwrap();
        let pool = pool(
            their_input,
            their_output,
            [(TAG, function)].into(),
            Duration::from_millis(50),
        );
        let serving = Arc::clone(&pool);
        let serving = std::thread::spawn(move || serving.run());
        for number in 0..COUNT {
            let call = message(Opcode::CallWrapper, number, TAG, &[]);
            output.write_all(&call).unwrap();
        }
        let mut answers = vec![0; HEADER_SIZE];
        *OPEN.0.lock() = true;
        OPEN.1.notify_all();
        for _ in 0..COUNT {
            input.read_exact(&mut answers).unwrap();
        }
        let started = Instant::now();
        loop {
            output
                .write_all(&message(Opcode::CallWrapper, 0, TAG, &[]))
                .unwrap();
            input.read_exact(&mut answers).unwrap();
            let threads = pool.threads();
            if threads <= 3 {
                break;
            }
            let limit = Duration::from_secs(60);
            assert!(started.elapsed() < limit, "{threads} threads are left");
        }
        drop(output);
        serving.join().unwrap().unwrap();
        assert_eq!(pool.threads(), 0);
    }
}
