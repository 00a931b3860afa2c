// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The controller's side of EPC over one connected stream socket: any ORC executor.

use super::messages::{Message, MessageReader, broken};
use super::pending::PendingCalls;
use super::{Transport, disconnected, end_of, reader_pool, unreadable};
use crate::completion::Completion;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::sys::{StreamWriter, explain, socket};
use crate::wire::frame::{FrameError, Header, Opcode, Setup};
use crate::wire::sps::{Outcome, from_bytes};
use parking_lot::Mutex;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A connection to an ORC executor, such as one that was started with `filedescs=N,N`. Hangs up when
/// dropped; what is unanswered then is answered with an error.
pub struct Stream(Arc<StreamConnection>);

struct StreamConnection {
    socket: Arc<OwnedFd>,
    output: Mutex<StreamWriter>,
    pending: PendingCalls,
    setup: Setup,
    /// Calls of the executor's that are being answered.
    answering: AtomicUsize,
    /// What the executor has sent along, until a session takes it.
    channel: Mutex<Option<OwnedFd>>,
}

impl Stream {
    /// Waits until the executor has introduced itself at the other end of `socket`.
    ///
    /// # Errors
    /// `InvalidArgument` if it is no connected stream socket; `Disconnected`; `MapperFailed` if
    /// something else than an executor introduces itself. Nothing of `socket` is kept then.
    pub fn connect(socket: Arc<OwnedFd>) -> Result<Stream> {
        socket::check_stream(&socket)
            .map_err(|error| invalid_argument(format!("no connected stream socket: {error}")))?;
        let mut input = MessageReader::new(Arc::clone(&socket));
        let mut sent_along = input.receive().map_err(disconnected)?;
        let setup = first(&mut input)?;
        let output = socket
            .try_clone()
            .and_then(StreamWriter::new)
            .map_err(|error| explain("duplicate a socket", error))?;
        let connection = Arc::new(StreamConnection {
            socket,
            output: Mutex::new(output),
            pending: PendingCalls::new(),
            setup,
            answering: AtomicUsize::new(0),
            channel: Mutex::new(sent_along.pop()),
        });
        reader_pool::start(Arc::clone(&connection), [input])
            .map_err(|error| explain("start a thread that reads a socket", error))?;
        socket::close_on_exec(&connection.socket);
        Ok(Stream(connection))
    }
}

/// Each of them has a thread, which waits for as long as the executor does not read.
const MOST_ANSWERING: usize = 64;

/// What the executor says of itself, before everything else.
fn first(input: &mut MessageReader) -> Result<Setup> {
    let foreign = |what: &dyn std::fmt::Display| {
        let message = format!("what the executor sent first is no Setup message of EPC: {what}");
        Error::new(Status::MapperFailed, message)
    };
    let message = match input.next() {
        Ok(Some(message)) => message,
        Ok(None) => return Err(disconnected("it closed the socket without a word")),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(foreign(&error)),
        Err(error) => return Err(disconnected(error)),
    };
    let Message { header, body } = message;
    header.check().map_err(|error| foreign(&error))?;
    if header.opcode != Opcode::Setup {
        return Err(foreign(&format_args!("{:?}", header.opcode)));
    }
    let setup = Setup::recognize(&body);
    setup
        .map(|(setup, _)| setup)
        .map_err(|error| foreign(&error))
}

impl Transport for Stream {
    fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        let connection = &self.0;
        let Some(sequence) = connection.pending.add(done) else {
            return;
        };
        let header = Header::new(Opcode::CallWrapper, sequence, function, args.len());
        if let Err(error) = connection.send(header, &args) {
            // Unless the end of the connection has answered it already.
            if let Some(done) = connection.pending.take(sequence) {
                done.complete(Err(error));
            }
        }
    }

    fn symbol(&self, name: &str) -> Option<u64> {
        let symbol = self.0.setup.bootstrap_symbols.get(name);
        symbol.map(|address| address.0)
    }

    fn take_channel(&self) -> Option<OwnedFd> {
        self.0.channel.lock().take()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let StreamConnection {
            socket, pending, ..
        } = &*self.0;
        if pending.owner().is_current() {
            pending.end(disconnected("its connection was freed"));
            socket::hang_up(socket);
        }
    }
}

impl StreamConnection {
    fn send(&self, header: Header, body: &[u8]) -> Result<()> {
        let sent = self.output.lock().write(&header.encode(), body);
        sent.map_err(|error| match error.kind() {
            // Answers may still lie in the socket; they are read before the end is found there.
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                disconnected("its socket is closed")
            }
            _ => {
                // Part of the message may be under way, so nothing can follow it.
                let what = format!("send {} bytes to the executor", header.size);
                let error = explain(what, error);
                self.pending.end(error.clone());
                socket::hang_up(&self.socket);
                error
            }
        })
    }

    fn sort(&self, message: Message) -> io::Result<Work> {
        let Message { header, body } = message;
        header.check().map_err(broken)?;
        let sequence = header.sequence;
        match header.opcode {
            Opcode::Result => match self.pending.take(sequence) {
                Some(done) => Ok(Work::Answer(done, body)),
                None => Err(broken(FrameError::UnknownSequence(sequence))),
            },
            Opcode::CallWrapper => match self.answering.fetch_add(1, Ordering::Relaxed) {
                0..MOST_ANSWERING => Ok(Work::Call(sequence)),
                _ => Err(io::Error::other(format!(
                    "it made {MOST_ANSWERING} calls without reading the answers"
                ))),
            },
            Opcode::Hangup => Err(io::Error::other(match from_bytes(&body) {
                Ok(Outcome(Err(message))) => format!("it said \"{message}\""),
                _ => "it hung up".to_owned(),
            })),
            Opcode::Setup => Err(broken(FrameError::UnexpectedSetup)),
        }
    }
}

enum Work {
    Answer(Completion<Vec<u8>>, Vec<u8>),
    /// Of the executor's own, with its number.
    Call(u64),
}

impl reader_pool::Connection for StreamConnection {
    type Input = MessageReader;
    type Packet = Work;

    fn receive(&self, input: &mut MessageReader) -> Result<Option<Work>> {
        let work = input
            .next()
            .and_then(|message| message.map(|message| self.sort(message)).transpose());
        work.map_err(|error| unreadable("socket", error))
    }

    fn handle(&self, work: Work) {
        match work {
            Work::Answer(done, body) => done.complete(Ok(body)),
            // Linked code asks for something of an ORC runtime's; there is none here.
            Work::Call(sequence) => {
                let _ = self.send(Header::new(Opcode::Result, sequence, 0, 0), &[]);
                self.answering.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn hang_up(&self) {
        socket::hang_up(&self.socket);
    }

    fn ended(&self, why: Result<()>) {
        self.pending.end(end_of("socket", why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::completion::wait;
    use crate::wire::frame::{SetupLayout, message};
    use crate::wire::sps::{ExecutorAddr, to_bytes};
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, channel};

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

    fn introduced(bytes: &[u8]) -> (Executor, Result<Stream>) {
        let (here, there) = UnixStream::pair().unwrap();
        let frames = MessageReader::new(Arc::new(there.try_clone().unwrap().into()));
        let mut executor = Executor {
            socket: there,
            frames,
        };
        executor.send(bytes);
        executor.socket.shutdown(Shutdown::Write).ok();
        let stream = Stream::connect(Arc::new(here.into()));
        (executor, stream)
    }

    fn connected() -> (Executor, Stream) {
        let (here, there) = UnixStream::pair().unwrap();
        let frames = MessageReader::new(Arc::new(there.try_clone().unwrap().into()));
        let mut executor = Executor {
            socket: there,
            frames,
        };
        let body = setup().encode(SetupLayout::MapAndSymbols);
        executor.send(&message(Opcode::Setup, 0, 0, &body));
        (executor, Stream::connect(Arc::new(here.into())).unwrap())
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
            let Message { header, body } = executor.call();
            assert_eq!(header, Header::new(Opcode::Result, sequence, 0, 0));
            assert!(body.is_empty());
        }
        executor.answer(&call, b"");
        assert_eq!(answers.recv().unwrap().1.unwrap(), b"");
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
                "64 calls without reading",
            ),
            (
                |executor, first| {
                    executor.answer(first, b"");
                    executor.answer(first, b"");
                },
                "No call for sequence number 0",
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
            let (answered, lost): (Vec<_>, Vec<_>) =
                answers.iter().partition(|(_, one)| one.is_ok());
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
}
