// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The threads of a session.
//!
//! One of them reads. When it gets a call it lets another one read, starting it only if none is
//! idle, and does the call itself: nothing is handed over, and however many calls block, somebody
//! reads. In the steady state no thread is started. What is answered without waiting for anybody
//! is answered by the reader, which reads on.
//!
//! The thread that serves is the first to read, so a session begins with one thread, and one of brief
//! calls has no other. It never runs linked code, whose thread-locals would outlive the session there,
//! and which may need more stack than the host has given it.
//!
//! Only a program gets a thread of its own, which has ended before the answer goes out: it may leave
//! thread-locals behind whose destructors are code that the controller will take away.

use super::writer::Calls;
use crate::error::{Error, Result, Status};
use crate::executor::llvm::{CallClass, PublishedFunction};
use crate::sys::{self, Answer, WrapperResult};
use crate::transport::messages::{Message, MessageReader};
use crate::wire::frame::{FrameError, Opcode};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// As many threads as were idle all through such a time end, but for one.
const PERIOD: Duration = Duration::from_secs(5);

/// How long the reader stays awake when calls have come one right after the other's answer. About as
/// long as two processors take to wake up, and two are asleep when each side waits for the other.
const AWAKE: Duration = Duration::from_micros(50);

/// The controller's end has broken the protocol.
fn broken(why: FrameError) -> Error {
    Error::new(Status::Disconnected, why.to_string())
}

/// Nothing more can be had of the controller's end.
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

pub(super) struct Workers {
    input: Mutex<MessageReader>,
    calls: Arc<Calls>,
    functions: HashMap<u64, PublishedFunction>,
    state: Mutex<State>,
    /// Somebody may read now, or the session has ended.
    turn: Condvar,
    /// The last thread has gone.
    gone: Condvar,
    period: Duration,
}

struct State {
    /// One of the threads reads, or will.
    reading: bool,
    threads: usize,
    idle: usize,
    /// The fewest that were idle since `since`.
    least_idle: usize,
    since: Instant,
    /// How many were idle all through the last period, and have not ended yet.
    surplus: usize,
    ended: Option<Result<()>>,
}

impl State {
    /// Whether a thread that is about to be idle is one too many.
    fn too_many(&mut self, period: Duration) -> bool {
        let now = Instant::now();
        if now - self.since >= period {
            self.surplus = self.least_idle;
            self.least_idle = self.idle;
            self.since = now;
        }
        let too_many = self.surplus > 0 && self.idle > 0;
        if too_many {
            self.surplus -= 1;
        }
        too_many
    }
}

/// A call that was read.
struct Call {
    sequence: u64,
    tag: u64,
    args: Vec<u8>,
}

impl Workers {
    pub(super) fn new(
        input: MessageReader,
        calls: Arc<Calls>,
        functions: HashMap<u64, PublishedFunction>,
    ) -> Arc<Workers> {
        Workers::with_period(input, calls, functions, PERIOD)
    }

    fn with_period(
        input: MessageReader,
        calls: Arc<Calls>,
        functions: HashMap<u64, PublishedFunction>,
        period: Duration,
    ) -> Arc<Workers> {
        Arc::new(Workers {
            input: Mutex::new(input),
            calls,
            functions,
            state: Mutex::new(State {
                reading: false,
                threads: 0,
                idle: 0,
                least_idle: 0,
                since: Instant::now(),
                surplus: 0,
                ended: None,
            }),
            turn: Condvar::new(),
            gone: Condvar::new(),
            period,
        })
    }

    /// Has everything done until the session ends, and all calls have returned.
    pub(super) fn serve(self: Arc<Workers>) -> Result<()> {
        let mut state = self.state.lock();
        state.threads = 1;
        state.reading = true;
        drop(state);
        let first = Worker(Arc::clone(&self));
        // A panic ends the session, as it does in the other threads, and those are waited for.
        let _ = catch_unwind(AssertUnwindSafe(|| first.lead()));
        let mut state = self.state.lock();
        while state.threads > 0 {
            self.gone.wait(&mut state);
        }
        state.ended.take().unwrap_or(Ok(()))
    }

    /// Starts a thread, which has the turn to read if it is given the call that was read last.
    fn start(self: &Arc<Workers>, call: Option<Call>) -> std::io::Result<()> {
        self.state.lock().threads += 1;
        let worker = Worker(Arc::clone(self));
        // If there is no thread to be had, the worker is dropped, and counted off.
        sys::spawn_for_programs(move || worker.work(call))
    }

    fn end(&self, why: Result<()>) {
        let mut state = self.state.lock();
        state.reading = false;
        state.ended.get_or_insert(why);
        drop(state);
        self.calls.end();
        self.turn.notify_all();
    }

    /// Waits for its turn to read; `false` if this thread is not needed any more.
    fn take_turn(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.ended.is_some() {
                return false;
            }
            if !state.reading {
                state.reading = true;
                return true;
            }
            if state.too_many(self.period) {
                return false;
            }
            state.idle += 1;
            if state.idle == 1 {
                // One stays, however long nothing happens.
                self.turn.wait(&mut state);
            } else {
                self.turn.wait_for(&mut state, self.period);
            }
            state.idle -= 1;
            state.least_idle = state.least_idle.min(state.idle);
        }
    }

    /// Lets another thread read; `false` if there is none.
    fn pass_turn(self: &Arc<Workers>) -> bool {
        let mut state = self.state.lock();
        state.reading = false;
        if state.idle > 0 {
            drop(state);
            self.turn.notify_one();
            return true;
        }
        drop(state);
        let started = self.start(None).is_ok();
        if !started {
            // An idle thread may have come meanwhile and be reading.
            let mut state = self.state.lock();
            if state.reading {
                return true;
            }
            state.reading = true;
        }
        started
    }

    /// Reads until there is a call that may take its time; `None` when the session has ended.
    fn read(self: &Arc<Workers>) -> Option<Call> {
        let mut input = self.input.lock();
        // When this thread has answered, and whether the controller was quick to go on last time.
        let (mut answered, mut quick): (Option<Instant>, bool) = (None, false);
        let end = loop {
            if quick {
                input.look_ahead(AWAKE);
            }
            let message = match input.next() {
                Ok(Some(message)) => message,
                Ok(None) => break Ok(()),
                Err(error) => break Err(unreadable(error)),
            };
            quick = answered.take().is_some_and(|at| at.elapsed() < 2 * AWAKE);
            if let Some(lost) = self.calls.lost() {
                break Err(lost);
            }
            let Message { header, body } = message;
            if let Err(error) = header.check() {
                break Err(broken(error));
            }
            match header.opcode {
                Opcode::Setup => break Err(broken(FrameError::UnexpectedSetup)),
                Opcode::Hangup => break Ok(()),
                Opcode::Result => {
                    if !self.calls.answer(header.sequence, body) {
                        break Err(broken(FrameError::UnknownSequence(header.sequence)));
                    }
                }
                Opcode::CallWrapper => {
                    let call = Call {
                        sequence: header.sequence,
                        tag: header.tag,
                        args: body,
                    };
                    let brief = self.class(&call) == CallClass::Inline;
                    if !brief {
                        return Some(call);
                    }
                    let answer = self.answer(&call);
                    let unwritten = self.calls.start_to_send_result(call.sequence, answer);
                    if let Some(unwritten) = unwritten {
                        // The controller is slow to read. Whatever it says meanwhile is heard.
                        drop(input);
                        let passed = self.pass_turn();
                        self.calls.write_on(unwritten);
                        if passed && !self.take_turn() {
                            return None;
                        }
                        input = self.input.lock();
                    }
                    answered = Some(Instant::now());
                }
            }
        };
        drop(input);
        self.end(end);
        None
    }

    fn class(&self, call: &Call) -> CallClass {
        let function = self.functions.get(&call.tag);
        function.map_or(CallClass::OwnThread, |function| function.class)
    }

    /// Does a call. What is no answer but an error travels as an answer without bytes.
    fn answer(&self, call: &Call) -> Vec<u8> {
        let known = self.functions.get(&call.tag);
        let body = || -> Answer {
            match known.and_then(|function| function.answer) {
                Some(answer) => answer(&call.args),
                None if call.tag == 0 => Err("no function is at address 0".to_owned()),
                // SAFETY: the controller says that a wrapper function is there; see `super::serve`.
                None => match unsafe { sys::call_wrapper(call.tag, &call.args) } {
                    WrapperResult::Bytes(bytes) => Ok(bytes),
                    WrapperResult::OutOfBand(message) => Err(message),
                },
            }
        };
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }

    /// Answers a call that there is no thread for. All that travels is an answer without bytes.
    fn refuse(&self, sequence: u64) {
        // What can't be written is lost; a macro of Rust's would panic.
        let _ = writeln!(
            io::stderr(),
            "jitmem: call {sequence} of the controller was refused: no thread can be started for it; \
             RLIMIT_NPROC, RLIMIT_AS or the cgroup's limit of processes or memory is reached"
        );
        self.calls.send_result(sequence, Vec::new());
    }

    /// Does a call that was read, and sends its answer.
    fn handle(&self, call: Call) {
        let sequence = call.sequence;
        let answer = if self.class(&call) == CallClass::OwnThread {
            match sys::run_in_own_thread(|| self.answer(&call)) {
                // A program that ends its thread leaves no answer.
                Ok(answer) => answer.unwrap_or_default(),
                // No thread is to be had. That is no reason not to run.
                Err(_) => self.answer(&call),
            }
        } else {
            self.answer(&call)
        };
        self.calls.send_result(sequence, answer);
    }
}

/// One of the threads, while it lives.
struct Worker(Arc<Workers>);

impl Worker {
    /// Reads, and leaves the session to another thread when there is a call that is not brief.
    fn lead(self) {
        let workers = &self.0;
        while let Some(call) = workers.read() {
            let sequence = call.sequence;
            if workers.start(Some(call)).is_ok() {
                return;
            }
            workers.refuse(sequence);
        }
    }

    /// Takes its turns, beginning with a call for which it has one already, if any.
    fn work(self, mut call: Option<Call>) {
        let workers = &self.0;
        loop {
            if call.is_none() && workers.take_turn() {
                call = workers.read();
            }
            let Some(call) = call.take() else { return };
            if workers.pass_turn() {
                workers.handle(call);
            } else {
                // Whoever waits inside a call would wait for ever if nobody reads.
                workers.refuse(call.sequence);
                workers.state.lock().reading = false;
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Err(Error::new(
                Status::Internal,
                "jitmem panicked while it served a controller, which is a defect in it",
            )));
        }
        let mut state = self.0.state.lock();
        state.threads -= 1;
        if state.threads == 0 {
            self.0.gone.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::StreamWriter;
    use crate::wire::frame::{HEADER_SIZE, message};
    use std::io::{Read, Write};
    use std::thread::ThreadId;

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
                answer: Some(note),
                class,
            };
            (address, function)
        });
        let (their_input, mut output) = std::io::pipe().unwrap();
        let (mut input, their_output) = std::io::pipe().unwrap();
        let workers = Workers::new(
            MessageReader::new(Arc::new(their_input.into())),
            Arc::new(Calls::new(StreamWriter::new(their_output.into()).unwrap())),
            functions.collect(),
        );
        let serving = Arc::clone(&workers);
        let serving = std::thread::spawn(move || serving.serve());
        let mut call = |tag| {
            let call = message(Opcode::CallWrapper, 0, tag, &[]);
            output.write_all(&call).unwrap();
            input.read_exact(&mut [0; HEADER_SIZE]).unwrap();
            *CALLED_IN.lock().last().unwrap() == serving.thread().id()
        };
        assert!(call(1));
        assert!(call(1));
        assert_eq!(workers.state.lock().threads, 1);
        assert!(!call(2));
        assert!(!call(3));
        assert!(!call(2));
        drop(output);
        serving.join().unwrap().unwrap();
        assert_eq!(workers.state.lock().threads, 0);
    }

    #[test]
    fn threads_that_are_not_needed_end_even_while_others_work() {
        static OPEN: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
        fn wait_until_open(_: &[u8]) -> Answer {
            let mut open = OPEN.0.lock();
            while !*open {
                OPEN.1.wait(&mut open);
            }
            Ok(Vec::new())
        }
        const TAG: u64 = 1;
        const COUNT: u64 = 20;
        let function = PublishedFunction {
            address: TAG,
            answer: Some(wait_until_open),
            class: CallClass::Pooled,
        };
        let (their_input, mut output) = std::io::pipe().unwrap();
        let (mut input, their_output) = std::io::pipe().unwrap();
        let calls = Arc::new(Calls::new(StreamWriter::new(their_output.into()).unwrap()));
        let workers = Workers::with_period(
            MessageReader::new(Arc::new(their_input.into())),
            calls,
            [(TAG, function)].into(),
            Duration::from_millis(50),
        );
        let serving = Arc::clone(&workers);
        let serving = std::thread::spawn(move || serving.serve());
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
            let threads = workers.state.lock().threads;
            if threads <= 3 {
                break;
            }
            let limit = Duration::from_secs(60);
            assert!(started.elapsed() < limit, "{threads} threads are left");
        }
        drop(output);
        serving.join().unwrap().unwrap();
        assert_eq!(workers.state.lock().threads, 0);
    }
}
