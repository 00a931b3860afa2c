// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! An executor that answers its controller as it likes.

use crate::input::Input;
use crate::packets::{Fate, Packet, answer_header, hang_up, receive, send};
use jitmem::transport::Transport;
use jitmem::wire::frame::{Header, Opcode};
use jitmem::wire::service::*;
use jitmem::wire::sps::{AddrRange, Decode, Encode, ExecutorAddr, from_bytes, to_bytes};
use jitmem::{Completion, Status};
use rustix::net::SendFlags;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, spawn};

/// Where the service's functions are.
pub(crate) const OPEN: u64 = 1;
const ATTACH: u64 = 2;
const RESERVE: u64 = 3;
const CHANGE: u64 = 4;
const RUN: u64 = 5;
const CLOSE: u64 = 6;

const PAGE: u64 = 4096;

/// No controller shall ever look what is there.
const FIRST_WINDOW: u64 = 0x5000_0000_0000;

/// The executor: the controller's transport, and who is at the other end of the channel.
pub(crate) struct Hostile {
    /// Comes along with the controller's first message.
    socket: OnceLock<OwnedFd>,
    state: Mutex<State>,
    changed: Condvar,
}

pub(crate) struct State {
    script: Vec<u8>,
    /// What is to be answered late, and whether anything may be.
    held: Vec<(Header, Vec<u8>)>,
    holds: bool,
    /// A call that has its answer.
    last: Option<u64>,
    /// What it has said that it has reserved.
    pub(crate) windows: Vec<AddrRange>,
    /// It has broken the protocol, or hung up.
    pub(crate) broken: bool,
    /// Requests of the host's, and how many of them have come to an end.
    pub(crate) asked: usize,
    pub(crate) ended: usize,
}

fn fine<T: Encode>(value: T) -> Vec<u8> {
    to_bytes(&Reply(Ok(value)))
}

fn failure(status: u64, message: &[u8]) -> Vec<u8> {
    to_bytes(&Reply::<()>(Err(Failure {
        status: status as u32,
        message: String::from_utf8_lossy(message).into_owned(),
    })))
}

fn sent<'a, T: Decode<'a>>(bytes: &'a [u8]) -> T {
    let (session, value): (u64, T) =
        from_bytes(bytes).expect("controllers send well-formed arguments");
    assert_eq!(session, 1);
    value
}

impl Hostile {
    /// One that does what the script says, and what is right when that is at its end.
    pub(crate) fn start(script: &[u8]) -> (Arc<Hostile>, JoinHandle<()>) {
        let hostile = Arc::new(Hostile {
            socket: OnceLock::new(),
            state: Mutex::new(State {
                script: script.to_vec(),
                held: Vec::new(),
                holds: true,
                last: None,
                windows: Vec::new(),
                broken: false,
                asked: 0,
                ended: 0,
            }),
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&hostile);
        let thread = spawn(move || {
            let socket = serving.socket.wait();
            while let Some((header, body, _along)) = receive(socket) {
                serving.state().react(socket, header, body);
                serving.changed.notify_all();
            }
        });
        (hostile, thread)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The callback of a request of the host's.
    pub(crate) fn request<T, F>(
        self: &Arc<Self>,
        done: F,
    ) -> impl FnOnce(jitmem::Result<T>) + Send + 'static + use<T, F>
    where
        F: FnOnce(&mut State, jitmem::Result<T>) + Send + 'static,
    {
        self.state().asked += 1;
        let this = Arc::clone(self);
        move |answer| {
            let mut state = this.state();
            state.ended += 1;
            done(&mut state, answer);
            this.changed.notify_all();
        }
    }

    /// Waits until all requests have come to an end, or one may not because its answer is held back.
    pub(crate) fn settle(&self) {
        let busy = |state: &mut State| state.ended < state.asked && state.held.is_empty();
        drop(self.changed.wait_while(self.state(), busy));
    }

    /// Waits until all requests have come to an end, in whatever thread; one that does not is a hang.
    pub(crate) fn all_end(&self) {
        let busy = |state: &mut State| state.ended < state.asked;
        let state = self.changed.wait_while(self.state(), busy);
        let State { asked, ended, .. } = *state.unwrap_or_else(PoisonError::into_inner);
        assert_eq!(asked, ended, "a request has ended twice");
    }

    /// Answers what was held back, the last first.
    pub(crate) fn catch_up(&self) {
        self.state().catch_up(self.socket.wait());
    }

    /// [`Hostile::catch_up`], and nothing is held back until the next [`Hostile::hold`].
    pub(crate) fn hurry(&self) {
        self.state().holds = false;
        self.catch_up();
        self.settle();
    }

    pub(crate) fn hold(&self) {
        self.state().holds = true;
    }

    /// Dies.
    pub(crate) fn end(&self) {
        self.state().broken = true;
        hang_up(self.socket.wait());
    }
}

impl State {
    fn catch_up(&mut self, socket: &OwnedFd) {
        while let Some((header, body)) = self.held.pop() {
            if !self.broken {
                let answer = self.right_answer(header.tag, &body);
                self.answer(socket, header.sequence, &answer);
            }
        }
    }

    fn answer(&mut self, socket: &OwnedFd, sequence: u64, body: &[u8]) {
        let header = answer_header(sequence, 0, body);
        send(socket, &Packet::plain(header, body, Vec::new()));
        self.last = Some(sequence);
    }

    /// Deals with a call.
    fn react(&mut self, socket: &OwnedFd, header: Header, body: Vec<u8>) {
        assert_eq!(header.opcode, Opcode::CallWrapper);
        if self.broken {
            return;
        }
        let script = std::mem::take(&mut self.script);
        let mut input = Input::new(&script);
        self.follow(&mut input, socket, header, body);
        self.script = input.rest().to_vec();
    }

    fn follow(&mut self, input: &mut Input<'_>, socket: &OwnedFd, header: Header, body: Vec<u8>) {
        let Header { sequence, tag, .. } = header;
        let kind = input.below(32);
        // Whose answer it is, or is not.
        match kind {
            11..=14 if self.holds && tag != CLOSE => return self.held.push((header, body)),
            15 => return self.hang_up_on(socket),
            16 | 17 => {
                let unknown = u64::MAX - input.number() % (1 << 32);
                let number = self.last.filter(|_| kind == 16).unwrap_or(unknown);
                self.answer(socket, number, input.bytes());
                self.broken = true;
                return;
            }
            18 => self.catch_up(socket),
            _ => {}
        }
        let (mut answer_tag, mut answer) = (0, self.right_answer(tag, &body));
        // What it says.
        match kind {
            19 => answer = failure(input.number(), input.bytes()),
            20 => answer = input.bytes().to_vec(),
            21 => answer.truncate(input.below(answer.len())),
            22 => (answer_tag, answer) = (1, input.bytes().to_vec()),
            23 => answer_tag = input.number(),
            24 | 25 => answer = self.lie(input, tag, &body),
            _ => {}
        }
        let header = answer_header(sequence, answer_tag, &answer);
        let packet = match kind {
            26.. => Packet::any(input, header, &answer, Vec::new()),
            _ => Packet::plain(header, &answer, Vec::new()),
        };
        send(socket, &packet);
        self.broken = packet.fate_as_answer() == Fate::Broken;
        self.last = Some(sequence);
    }

    fn hang_up_on(&mut self, socket: &OwnedFd) {
        hang_up(socket);
        self.broken = true;
    }

    fn reserved(&mut self, start: u64, size: u64) -> Vec<u8> {
        let range = AddrRange {
            start: ExecutorAddr(start),
            end: ExecutorAddr(start.wrapping_add(size)),
        };
        self.windows.push(range);
        let in_reach = size.is_multiple_of(2);
        fine(ReservedAt { range, in_reach })
    }

    fn right_answer(&mut self, tag: u64, body: &[u8]) -> Vec<u8> {
        match tag {
            RESERVE => {
                let Reserve { size, .. } = sent(body);
                self.reserved(FIRST_WINDOW + ((self.windows.len() as u64) << 32), size)
            }
            CHANGE => {
                let Change { changes } = sent(body);
                fine(vec![Reply(Ok(())); changes.len()])
            }
            RUN => {
                let items: Vec<Item<'_>> = sent(body);
                let keys = items.iter().map(|item| match item {
                    Item::Initialize { actions, .. }
                    | Item::InitializeData { actions, .. }
                    | Item::InitializeAgain { actions, .. } => Reply(Ok(actions.len() as u64)),
                    Item::Deinitialize { .. } => Reply(Ok(0)),
                });
                fine(keys.collect::<Vec<_>>())
            }
            CLOSE => fine(()),
            other => panic!("a call of {other}"),
        }
    }

    /// An answer of the right form.
    fn lie(&mut self, input: &mut Input<'_>, tag: u64, body: &[u8]) -> Vec<u8> {
        match tag {
            RESERVE => {
                let Reserve { size, .. } = sent(body);
                let known = self.windows.iter().map(|window| window.start.0);
                let known: Vec<u64> = known.collect();
                let start = match input.below(4) {
                    0 => input.number().wrapping_mul(PAGE),
                    1 => input.one_of(&known).unwrap_or(0),
                    2 => 0u64.wrapping_sub(size),
                    _ => input.number(),
                };
                let other = input.number();
                let size = [size, other.wrapping_mul(PAGE), other, size * 2][input.below(4)];
                self.reserved(start, size)
            }
            RUN => {
                let items: Vec<Item<'_>> = sent(body);
                let count = [items.len(), input.below(32)][input.below(2)];
                let key = input.number();
                fine(vec![Reply(Ok(key)); count])
            }
            CHANGE => {
                let Change { changes } = sent(body);
                let wrong = Failure::from(jitmem::Error::new(Status::OutOfMemory, "no"));
                let count = [changes.len(), input.below(32)][input.below(2)];
                let mut replies = vec![Reply(Ok(())); count];
                let failed = input.byte().into();
                replies
                    .iter_mut()
                    .skip(failed)
                    .for_each(|reply| *reply = Reply(Err(wrong.clone())));
                fine(replies)
            }
            _ => input.bytes().to_vec(),
        }
    }
}

impl Transport for Hostile {
    fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        let [attach, reserve, change, apply, close] =
            [ATTACH, RESERVE, CHANGE, RUN, CLOSE].map(ExecutorAddr);
        let functions = Functions {
            attach,
            reserve,
            change,
            apply,
            close,
        };
        done.complete(Ok(match function {
            OPEN => fine(OpenedWithData {
                opened: OpenedWithFrames {
                    opened: Opened {
                        session: 1,
                        page_size: PAGE,
                        coherent: true,
                        functions,
                    },
                    frames: FrameFunctions::default(),
                },
                private_data: false,
            }),
            ATTACH => {
                let Attach::Shared { token, .. } = sent(&args) else {
                    panic!("a socket came along")
                };
                // Of an executor that shows no token the controller takes no channel.
                let sent = rustix::net::send(self.socket.wait(), token.0, SendFlags::NOSIGNAL);
                assert_eq!(sent, Ok(token.0.len()));
                fine(())
            }
            other => panic!("a call of {other} beside the channel"),
        }));
    }

    fn passes_descriptors(&self) -> bool {
        true
    }

    fn start_with(
        &self,
        function: u64,
        args: Vec<u8>,
        descriptor: OwnedFd,
        _most: u64,
        done: Completion<Vec<u8>>,
    ) -> Option<u64> {
        let first = self.socket.set(descriptor).is_ok();
        assert!(first, "a second socket");
        self.call(function, args, done);
        None
    }
}
