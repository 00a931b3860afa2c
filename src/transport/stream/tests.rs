// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The other end is an executor in name: bytes that a test writes, as they come or broken.

use super::*;
use crate::completion::wait;
use crate::sys::fault::Faults;
use crate::transport::DroppedAnswers;
use crate::wire::frame::{OUT_OF_BAND, SetupLayout, message};
use crate::wire::sps::{ExecutorAddr, to_bytes};
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// The far end of a connection.
struct Executor {
    socket: UnixStream,
    frames: MessageReader,
}

impl Executor {
    fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    fn answer(&mut self, call: &Message, body: &[u8]) {
        self.send(&message(Opcode::Result, call.header.sequence, 0, body));
    }

    fn call(&mut self) -> Message {
        self.frames.next().unwrap().unwrap()
    }

    fn sees_the_end(&mut self) -> bool {
        matches!(self.frames.next(), Ok(None))
    }
}

fn setup() -> Setup {
    Setup {
        triple: "x86_64-pc-linux-gnu".to_owned(),
        page_size: 4096,
        bootstrap_symbols: [("there".to_owned(), ExecutorAddr(0x1_0000))].into(),
        ..Setup::default()
    }
}

/// An executor that has sent so much, and our end of its connection.
fn executor(bytes: &[u8]) -> (Executor, Arc<OwnedFd>) {
    let (here, there) = UnixStream::pair().unwrap();
    let frames = MessageReader::new(Arc::new(there.try_clone().unwrap().into()));
    let mut executor = Executor {
        socket: there,
        frames,
    };
    executor.send(bytes);
    (executor, Arc::new(here.into()))
}

fn introduction() -> Vec<u8> {
    let body = setup().encode(SetupLayout::MapAndSymbols);
    message(Opcode::Setup, 0, 0, &body)
}

fn introduced(bytes: &[u8]) -> (Executor, Result<Stream>) {
    let (executor, here) = executor(bytes);
    executor.socket.shutdown(Shutdown::Write).ok();
    (executor, Stream::connect(here))
}

fn connected() -> (Executor, Stream) {
    let (executor, here) = executor(&introduction());
    (executor, Stream::connect(here).unwrap())
}

/// Makes calls whose answers come in with their numbers.
fn calls(stream: &Stream, count: u8) -> Receiver<(u8, Result<Vec<u8>>)> {
    let (sender, receiver) = channel();
    for number in 0..count {
        let sender = sender.clone();
        let done = Completion::new(move |answer| sender.send((number, answer)).unwrap());
        stream.call(7, vec![number], done);
    }
    receiver
}

#[test]
fn both_layouts_of_setup_name_symbols() {
    for layout in [SetupLayout::MapAndSymbols, SetupLayout::Symbols] {
        let body = setup().encode(layout);
        let (_executor, stream) = introduced(&message(Opcode::Setup, 0, 0, &body));
        let stream = stream.unwrap();
        assert_eq!(stream.symbol("there"), Some(0x1_0000));
        assert_eq!(stream.symbol("here"), None);
    }
}

#[test]
fn whoever_introduces_itself_otherwise_is_refused() {
    let body = setup().encode(SetupLayout::Symbols);
    let cut = message(Opcode::Setup, 0, 0, &body[..body.len() - 1]);
    let cases = [
        (vec![], Status::Disconnected, "without a word"),
        (vec![0; 31], Status::Disconnected, "end-of-file"),
        (vec![0; 32], Status::MapperFailed, "too small"),
        (cut, Status::MapperFailed, "no Setup"),
        (
            message(Opcode::Setup, 1, 0, &body),
            Status::MapperFailed,
            "number",
        ),
        (
            message(Opcode::Result, 0, 0, &body),
            Status::MapperFailed,
            "Result",
        ),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n......".into(),
            Status::MapperFailed,
            "no Setup",
        ),
    ];
    for (bytes, status, words) in cases {
        let (_executor, stream) = introduced(&bytes);
        let error = stream.err().unwrap();
        assert_eq!(error.status(), status, "{error}");
        assert!(error.message().contains(words), "{error}");
    }
    let (reader, _writer) = io::pipe().unwrap();
    let error = Stream::connect(Arc::new(reader.into())).err().unwrap();
    assert_eq!(error.status(), Status::InvalidArgument);
}

#[test]
fn answers_find_their_calls_in_any_order() {
    let (mut executor, stream) = connected();
    let answers = calls(&stream, 3);
    let made: Vec<Message> = (0..3).map(|_| executor.call()).collect();
    for call in made.iter().rev() {
        assert_eq!(call.header.tag, 7);
        executor.answer(call, &call.body.repeat(100_000));
        let (number, body) = answers.recv().unwrap();
        assert!(body.unwrap() == [number].repeat(100_000));
    }
    drop(stream);
    assert!(executor.sees_the_end());
}

#[test]
fn what_handles_an_answer_may_wait_for_the_next_ones() {
    let (mut executor, stream) = connected();
    let stream = Arc::new(stream);
    let (outer, answers) = channel();
    let inner = Arc::clone(&stream);
    let nested = Completion::new(move |_| {
        let second = wait(|done| {
            let deeper = Arc::clone(&inner);
            let nested = Completion::new(move |_| {
                done.complete(wait(|done| deeper.call(3, vec![], done)));
            });
            inner.call(2, vec![], nested);
        });
        outer.send(second).unwrap();
    });
    stream.call(1, vec![], nested);
    for expected in 1..=3 {
        let call = executor.call();
        assert_eq!(call.header.tag, expected);
        executor.answer(&call, &[expected as u8]);
    }
    assert_eq!(answers.recv().unwrap().unwrap(), [3]);
}

#[test]
fn the_executor_gets_an_empty_answer_to_its_own_calls() {
    let (mut executor, stream) = connected();
    let answers = calls(&stream, 1);
    let call = executor.call();
    for sequence in [call.header.sequence, 99] {
        executor.send(&message(Opcode::CallWrapper, sequence, 5, b"args"));
        let Message { header, body, .. } = executor.call();
        assert_eq!(header, Header::new(Opcode::Result, sequence, 0, 0));
        assert!(body.is_empty());
    }
    executor.answer(&call, b"");
    assert_eq!(answers.recv().unwrap().1.unwrap(), b"");
}

/// Why the executor has ended may still lie in the socket.
#[test]
fn a_call_that_can_not_be_sent_is_told_what_is_read_at_the_end() {
    let (executor, stream) = connected();
    executor.socket.shutdown(Shutdown::Read).unwrap();
    let (_, answer) = calls(&stream, 1).recv().unwrap();
    let error = answer.unwrap_err().to_string();
    assert!(error.contains("the end of its socket"), "{error}");
}

#[test]
fn every_call_is_answered_once_however_the_connection_ends() {
    type End = fn(&mut Executor, &Message);
    let ends: [(End, &str); 10] = [
        (
            |executor, _| executor.socket.shutdown(Shutdown::Both).unwrap(),
            "end of its socket",
        ),
        (
            |executor, _| executor.socket.shutdown(Shutdown::Write).unwrap(),
            "end of its socket",
        ),
        (
            |executor, _| {
                executor.send(&[0; 5]);
                executor.socket.shutdown(Shutdown::Write).unwrap();
            },
            "end-of-file",
        ),
        (|executor, _| executor.send(&[1; 64]), "Unexpected opcode"),
        (
            // Until the controller has had enough.
            |executor, _| {
                let call = message(Opcode::CallWrapper, 0, 0, b"");
                while executor.socket.write_all(&call).is_ok() {}
                while let Ok(Some(_)) = executor.frames.next() {}
            },
            "4096 calls without reading",
        ),
        (
            |executor, first| {
                executor.answer(first, b"");
                executor.answer(first, b"");
            },
            "No call for sequence number 9223372036854775808",
        ),
        (
            |executor, _| executor.send(&message(Opcode::Result, 0, 1, b"")),
            "tag in a Result",
        ),
        (
            |executor, _| executor.send(&message(Opcode::Setup, 0, 0, b"")),
            "Unexpected Setup",
        ),
        (
            |executor, _| executor.send(&message(Opcode::Hangup, 0, 0, &[0])),
            "hung up",
        ),
        (
            |executor, _| {
                let said = to_bytes(&Outcome(Err("enough".to_owned())));
                executor.send(&message(Opcode::Hangup, 0, 0, &said));
            },
            "it said \"enough\"",
        ),
    ];
    for (end, words) in ends {
        let (mut executor, stream) = connected();
        let answers = calls(&stream, 3);
        let made: Vec<Message> = (0..3).map(|_| executor.call()).collect();
        end(&mut executor, &made[0]);
        let errors: Vec<Error> = answers
            .iter()
            .filter_map(|(_, answer)| answer.err())
            .collect();
        assert_eq!(
            errors.len(),
            if words.starts_with("No call") { 2 } else { 3 }
        );
        for error in errors {
            assert_eq!(error.status(), Status::Disconnected);
            assert!(error.message().contains(words), "{error}");
        }
        assert!(executor.sees_the_end());
        let later = wait(|done| stream.call(1, vec![], done)).unwrap_err();
        assert!(later.message().contains(words), "{later}");
    }
}

#[test]
fn an_answer_that_came_before_the_end_is_one() {
    for _ in 0..500 {
        let (mut executor, stream) = connected();
        let answers = calls(&stream, 2);
        let call = executor.call();
        executor.answer(&call, b"yes");
        executor.socket.shutdown(Shutdown::Both).unwrap();
        let (answered, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|(_, one)| one.is_ok());
        assert_eq!((answered.len(), lost.len()), (1, 1));
    }
}

#[test]
fn dropping_it_answers_what_waits() {
    let (mut executor, stream) = connected();
    let answers = calls(&stream, 2);
    drop(stream);
    let errors = answers.iter().map(|(_, answer)| answer.unwrap_err());
    assert_eq!(
        errors
            .filter(|error| error.message().contains("freed"))
            .count(),
        2
    );
    executor.call();
    executor.call();
    assert!(executor.sees_the_end());
}

fn brief(limits: Limits) -> (Executor, Result<Stream>) {
    let (executor, here) = executor(&introduction());
    (executor, Stream::connect_within(here, limits))
}

const BRIEF: Duration = Duration::from_millis(20);

#[test]
fn an_executor_that_says_nothing_or_too_little_is_not_waited_for() {
    let setup = message(Opcode::Setup, 0, 0, &setup().encode(SetupLayout::Symbols));
    for part in [&[], &setup[..10], &setup[..40]] {
        let (here, mut there) = UnixStream::pair().unwrap();
        there.write_all(part).unwrap();
        let limits = Limits {
            set_up: Some(BRIEF),
            ..Limits::NONE
        };
        let error = Stream::connect_within(Arc::new(here.into()), limits)
            .err()
            .unwrap();
        assert_eq!(error.status(), Status::TimedOut);
        let text = error.message();
        assert!(
            text.contains("within 20 ms") && text.contains("\"set_up\""),
            "{text}"
        );
    }
}

#[test]
fn a_session_that_takes_too_long_ends_with_all_that_waits() {
    let limits = Limits {
        session: Some(BRIEF),
        ..Limits::NONE
    };
    let (mut executor, stream) = brief(limits);
    let stream = stream.unwrap();
    let answers = calls(&stream, 3);
    for (_, answer) in answers.iter() {
        assert_eq!(answer.unwrap_err().status(), Status::TimedOut);
    }
    let later = wait(|done| stream.call(1, vec![], done)).unwrap_err();
    assert_eq!(later.status(), Status::TimedOut);
    (0..3).for_each(|_| drop(executor.call()));
    assert!(executor.sees_the_end());
}

#[test]
fn calls_that_were_given_up_take_no_memory_and_their_answers_harm_nothing() {
    let (mut executor, stream) = connected();
    let connection = Arc::clone(&stream.connection);
    let stream: Arc<dyn Transport> = Arc::new(stream);
    let (sender, answers) = channel();
    let start = |number: u8, limit| {
        let sender = sender.clone();
        let done = Completion::new(move |answer: Result<Vec<u8>>| {
            sender
                .send((number, answer.map_err(|error| error.status())))
                .unwrap();
        });
        crate::transport::start(&stream, 7, vec![number], limit, done)
    };
    let [over, cancelled] = [start(0, Some(BRIEF)), start(1, None)];
    let kept = start(2, Some(Duration::from_secs(3600)));
    assert!(cancelled.cancel() && !cancelled.cancel());
    assert_eq!(answers.recv().unwrap(), (1, Err(Status::Cancelled)));
    assert_eq!(answers.recv().unwrap(), (0, Err(Status::TimedOut)));
    assert!(!over.cancel());
    // The call is answered before it is forgotten.
    while connection.pending.waiting() > 1 {
        std::thread::yield_now();
    }
    let made: Vec<Message> = (0..3).map(|_| executor.call()).collect();
    made.iter().for_each(|call| executor.answer(call, b"late"));
    assert_eq!(answers.recv().unwrap(), (2, Ok(b"late".to_vec())));
    assert!(!kept.cancel());
    // One answer too many is still told from a late one.
    executor.answer(&made[0], b"again");
    // Its text depends on what is found first, the end or the reason.
    let error = wait(|done| stream.call(1, vec![], done)).unwrap_err();
    assert_eq!(error.status(), Status::Disconnected, "{error}");
    let dropped = DroppedAnswers {
        late: 2,
        unexpected: 1,
        ..DroppedAnswers::default()
    };
    assert_eq!(connection.executor.dropped_answers(), dropped);
}

#[test]
fn a_call_that_never_went_is_taken_back() {
    let (mut executor, stream) = connected();
    let connection = Arc::clone(&stream.connection);
    let stream: Arc<dyn Transport> = Arc::new(stream);
    let done = || Completion::new(|_| ());
    // More than a socket takes.
    let large = crate::transport::start(&stream, 7, vec![0; 4 << 20], None, done());
    let unsent = crate::transport::start(&stream, 8, vec![], None, done());
    assert!(unsent.cancel() && large.cancel());
    let answers = channel();
    let sender = answers.0;
    let last = Completion::new(move |answer| sender.send(answer).unwrap());
    crate::transport::start(&stream, 9, vec![], None, last);
    let calls = [executor.call(), executor.call()];
    assert_eq!(calls.each_ref().map(|call| call.header.tag), [7, 9]);
    calls.iter().for_each(|call| executor.answer(call, b""));
    assert_eq!(answers.1.recv().unwrap().unwrap(), b"");
    assert_eq!(connection.pending.waiting(), 0);
}

#[test]
fn a_connection_whose_executor_reads_nothing_is_freed_in_time() {
    let limits = Limits {
        close: Some(BRIEF),
        ..Limits::NONE
    };
    let (_executor, stream) = brief(limits);
    let stream = stream.unwrap();
    let (sender, answers) = channel();
    let done = Completion::new(move |answer: Result<Vec<u8>>| {
        sender.send(answer.unwrap_err().status()).unwrap();
    });
    stream.call(7, vec![0; 4 << 20], done);
    drop(stream);
    assert_eq!(answers.recv().unwrap(), Status::Disconnected);
}

/// [`connected`], with a most for answers.
fn connected_with_most(answer: u64) -> (Executor, Stream) {
    let (here, there) = UnixStream::pair().unwrap();
    let frames = MessageReader::new(Arc::new(there.try_clone().unwrap().into()));
    let mut executor = Executor {
        socket: there,
        frames,
    };
    let body = setup().encode(SetupLayout::MapAndSymbols);
    executor.send(&message(Opcode::Setup, 0, 0, &body));
    let limits = Limits {
        answer,
        ..Limits::NONE
    };
    let stream = Stream::connect_within(Arc::new(here.into()), limits).unwrap();
    (executor, stream)
}

#[test]
fn an_answer_that_is_too_large_fails_its_call_and_no_other() {
    let (mut executor, stream) = connected_with_most(1000);
    let answers = calls(&stream, 3);
    for size in [1000, 1001, 1_000_000] {
        let call = executor.call();
        executor.answer(&call, &vec![7; size]);
        let (_, answer) = answers.recv().unwrap();
        match size {
            1000 => assert_eq!(answer.unwrap().len(), size),
            _ => {
                let error = answer.unwrap_err();
                assert_eq!(error.status(), Status::MapperFailed);
                let text = format!("answered {size} bytes to a call whose answer may have 1000");
                assert!(error.message().contains(&text), "{error}");
            }
        }
    }
    // It may have less, by what is asked.
    let bounded = wait(|done| {
        stream.start_bounded(7, vec![], 10, done);
        let call = executor.call();
        executor.answer(&call, &[7; 11]);
    });
    assert!(bounded.unwrap_err().message().contains("may have 10;"));
    let answer = wait(|done| {
        stream.call(7, vec![], done);
        let call = executor.call();
        // What linked code asks for with much is answered with nothing, and not kept.
        executor.send(&message(Opcode::CallWrapper, 5, 1, &vec![7; 100_000]));
        executor.answer(&call, b"yes");
    });
    assert_eq!(answer.unwrap(), b"yes");
    assert_eq!(executor.call().header, Header::new(Opcode::Result, 5, 0, 0));
    let dropped = DroppedAnswers {
        too_large: 3,
        ..DroppedAnswers::default()
    };
    assert_eq!(stream.connection.executor.dropped_answers(), dropped);
}

#[test]
fn callbacks_of_the_end_may_wait_for_each_other() {
    for freed in [false, true] {
        let (executor, stream) = connected();
        let met = Arc::new(std::sync::Barrier::new(3));
        let (sender, answers) = channel();
        for _ in 0..3 {
            let (met, sender) = (Arc::clone(&met), sender.clone());
            let done = Completion::new(move |answer: Result<Vec<u8>>| {
                met.wait();
                sender.send(answer.unwrap_err().status()).unwrap();
            });
            stream.call(7, vec![], done);
        }
        match freed {
            true => drop(stream),
            false => drop(executor),
        }
        let all: Vec<Status> = answers.iter().take(3).collect();
        assert_eq!(all, [Status::Disconnected; 3]);
    }
}

#[test]
fn a_socket_stays_whose_threads_can_not_be_started() {
    let mut refused = 0;
    for skip in 0..12 {
        let (_executor, here) = executor(&introduction());
        let faults = Faults::one(skip, libc::EAGAIN);
        let stream = Stream::connect(Arc::clone(&here));
        if faults.failed() == Some("clone") {
            refused += 1;
            assert_eq!(stream.err().unwrap().os_code(), Some(libc::EAGAIN));
            assert!(Arc::into_inner(here).is_some());
        }
    }
    assert_eq!(refused, 2);
}

#[test]
fn an_error_that_an_executor_answers_is_one() {
    let (mut executor, stream) = connected();
    let error = wait(|done| {
        stream.call(7, vec![], done);
        let number = executor.call().header.sequence;
        assert!(number >= FIRST_OWN_CALL);
        executor.send(&message(Opcode::Result, number, OUT_OF_BAND, b"no thread"));
    })
    .unwrap_err();
    assert_eq!(error.status(), Status::MapperFailed);
    assert_eq!(error.message(), "no thread");
    // Other tags are none of an answer's.
    let error = wait(|done| {
        stream.call(7, vec![], done);
        let number = executor.call().header.sequence;
        executor.send(&message(Opcode::Result, number, 2, b"what"));
    })
    .unwrap_err();
    assert_eq!(error.status(), Status::Disconnected);
    assert!(executor.sees_the_end());
}
