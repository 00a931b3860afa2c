// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Calls of our own service with arguments that make sense often.

mod arguments;

use crate::channel::{Channel, Introduced};
use crate::executor::Executor;
use crate::input::Input;
use arguments::encode_steps;
use jitmem::executor::exports::{FoundFrames, unwind_find_fde};
use jitmem::wire::service::{
    Attach, Functions, INDEX_VERSION, ListenerName, Open, OpenWithWish, Opened, OpenedWithData,
    OpenedWithFrames, PRIVATE_VERSION, Reply, ReservedAt, Step, VERSION,
};
use jitmem::wire::sps::{AddrRange, Bytes, Encode, ExecutorAddr, from_bytes, to_bytes};
use memfd::{FileSeal, Memfd, MemfdOptions};
use std::ffi::c_void;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;

/// Pages of memfds of the controller's: those for chunks, and that for indexes.
const FILE_PAGES: u64 = 8;
const INDEX_PAGES: u64 = 20;

/// The memfd whose size is not sealed, and that for indexes.
const UNSEALED: usize = 1;
const INDEX: usize = 2;

/// Bytes of a window that have an entry in its index.
const GRANULE: u64 = 16;

pub struct Controller {
    executor: Executor,
    functions: Option<Functions>,
    sessions: Vec<u64>,
    windows: Vec<AddrRange>,
    /// What was mapped, and may be gone again.
    chunks: Vec<AddrRange>,
    keys: Vec<u64>,
    /// Windows that have an index, and may be gone again.
    indexed: Vec<AddrRange>,
    /// All but [`UNSEALED`] can't shrink.
    files: [Memfd; 3],
    /// The way of all calls, while there is one.
    channel: Option<Channel>,
    /// Connections to the executor's listener that no session has asked for.
    unasked: Vec<Introduced>,
    /// What the first session was asked for, and most others are.
    private_data: bool,
}

fn file(pages: u64) -> Memfd {
    let file = MemfdOptions::default().allow_sealing(true);
    let file = file.create("jitmem-fuzz").expect("memfd_create");
    file.as_file().set_len(pages * PAGE).expect("ftruncate");
    file
}

/// Bytes of the index of a window.
fn index_size(window: AddrRange) -> u64 {
    let size = window.end.0 - window.start.0;
    (size.div_ceil(PAGE) + size / GRANULE) * 4
}

impl Controller {
    /// Opens a session, whose data is private or not, and has chunks made where these need no descriptor.
    pub fn new(executor: Executor, private_data: bool) -> Controller {
        let files = [file(FILE_PAGES), file(FILE_PAGES), file(INDEX_PAGES)];
        for sealed in [&files[0], &files[INDEX]] {
            sealed.add_seal(FileSeal::SealShrink).expect("seal");
        }
        let mut controller = Controller {
            executor,
            functions: None,
            sessions: Vec::new(),
            windows: Vec::new(),
            chunks: Vec::new(),
            keys: Vec::new(),
            indexed: Vec::new(),
            files,
            channel: None,
            unasked: Vec::new(),
            private_data,
        };
        // Something to work with.
        controller.step(&mut Input::new(&[]));
        controller.call(3, &mut Input::new(&[]));
        let map = [[3, 0, 0], [5, 16, 0]].map(|[protection, page, commit]| {
            let start = controller.windows[0].start.0 + page * PAGE;
            Step::MapOwn {
                range: AddrRange {
                    start: ExecutorAddr(start),
                    end: ExecutorAddr(start + 8 * PAGE),
                },
                protection: protection as u8,
                commit: commit == 1,
            }
        });
        controller.change(&mut Input::new(&[]), &map);
        // Where data is private, the executor refuses chunks of its own.
        let made = if private_data { 0 } else { map.len() };
        assert_eq!(controller.chunks.len(), made);
        controller
    }

    /// Calls something with something.
    pub fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.below(16);
        self.call(kind, input);
    }

    fn call(&mut self, kind: usize, input: &mut Input<'_>) {
        let functions = match &self.functions {
            Some(functions) if kind != 0 => functions.clone(),
            _ => return self.open(input),
        };
        if (6..=8).contains(&kind) {
            let steps = input.some(4, |input| self.one_change(input));
            return self.change(input, &steps);
        }
        if kind == 2 {
            return self.attach_at_listener(input, &functions);
        }
        let mut out = Vec::new();
        match input.byte() {
            0xff => input.number(),
            // The windows are mostly the first one's.
            byte if byte % 4 != 3 => self.sessions[0],
            _ => input.one_of(&self.sessions).unwrap_or(0),
        }
        .encode(&mut out);
        let function = match kind {
            1 => {
                self.attach(input).encode(&mut out);
                functions.attach
            }
            3..=5 => {
                self.reserve(input).encode(&mut out);
                functions.reserve
            }
            9..=14 => {
                let count = [1, 2, 3, 0][input.below(4)];
                (count as u64).encode(&mut out);
                for _ in 0..count {
                    self.item(input, &functions, &mut out);
                }
                functions.apply
            }
            _ => functions.close,
        };
        if input.below(16) == 1 {
            out.truncate(input.byte().into());
        }
        let answer = self.ask(input, function, &out, Vec::new());
        if function == functions.reserve {
            if let Ok(Reply(Ok(ReservedAt { range, .. }))) = from_bytes(&answer) {
                self.windows.push(range);
            }
        } else if function == functions.apply {
            if let Ok(Reply(Ok(replies))) = from_bytes::<Reply<Vec<Reply<u64>>>>(&answer) {
                let keys = replies.into_iter().filter_map(|reply| reply.0.ok());
                self.keys.extend(keys);
            }
        } else if function == functions.attach {
            let _ = from_bytes::<Reply<()>>(&answer);
        }
    }

    /// Calls through the channel if there is one, else through the stream.
    fn ask(
        &mut self,
        input: &mut Input<'_>,
        function: ExecutorAddr,
        args: &[u8],
        along: Vec<OwnedFd>,
    ) -> Vec<u8> {
        let Some(channel) = self.channel.take() else {
            return self.executor.call(function.0, args);
        };
        let (channel, answer) = channel.call(input, function, args, along);
        self.channel = channel;
        answer
    }

    /// Makes a channel for the first session, unless that is closed.
    pub fn attach_channel(&mut self) {
        let functions = self.functions.as_ref().expect("a session was opened");
        let connect = |attach: Attach<'_>| {
            let args = to_bytes(&(self.sessions[0], attach));
            let answer = self.executor.call(functions.attach.0, &args);
            matches!(from_bytes::<Reply<()>>(&answer), Ok(Reply(Ok(_))))
        };
        self.channel = Channel::listen(connect);
    }

    /// Attaches through the executor's listener, by the stream: with the token that has come through the
    /// connection, with another one, or not at all.
    fn attach_at_listener(&mut self, input: &mut Input<'_>, functions: &Functions) {
        let asked = to_bytes(&(self.sessions[0], Attach::Listening {}));
        let answer = self.executor.call(functions.attach.0, &asked);
        let Ok(Reply(Ok(name))) = from_bytes::<Reply<ListenerName>>(&answer) else {
            // The session is closed.
            return;
        };
        let mut connection = Introduced::connect(name, input);
        let asks = match input.below(8) {
            6 => Some(input.bytes().to_vec()),
            7 => None,
            _ => Some(connection.said.to_vec()),
        };
        if let Some(expected) = asks {
            if let Some(channel) = self.accept(&expected, &mut connection, functions) {
                // The executor has hung up the one before.
                self.channel = Some(channel);
                return;
            }
        }
        self.unasked.push(connection);
    }

    /// Has the first session take a connection; the channel that this is then.
    fn accept(
        &mut self,
        expected: &[u8],
        connection: &mut Introduced,
        functions: &Functions,
    ) -> Option<Channel> {
        let attach = Attach::Accept {
            expected: Bytes(expected),
            token: Bytes(b"token"),
        };
        let args = to_bytes(&(self.sessions[0], attach));
        let answer = self.executor.call(functions.attach.0, &args);
        let accepted = matches!(from_bytes::<Reply<()>>(&answer), Ok(Reply(Ok(()))));
        if !accepted {
            let silent = !connection.is_introduced();
            assert!(silent || expected != connection.said, "a token was lost");
            return None;
        }
        assert_eq!(expected, connection.said, "another's connection");
        connection.take()
    }

    /// Takes the connections back that wait at the executor's listener.
    fn take_back(&mut self) {
        let unasked = std::mem::take(&mut self.unasked);
        self.sessions.clear();
        self.open(&mut Input::new(&[]));
        let functions = self.functions.clone().expect("a session was opened");
        // One that said nothing of use goes when the next one is asked for.
        let (waiting, silent): (Vec<_>, Vec<_>) =
            unasked.into_iter().partition(Introduced::is_introduced);
        drop(silent);
        for mut connection in waiting {
            let expected = connection.said.to_vec();
            self.channel = self.accept(&expected, &mut connection, &functions);
        }
        let attach = Attach::Accept {
            expected: Bytes(&[0; 16]),
            token: Bytes(&[]),
        };
        let args = to_bytes(&(self.sessions[0], attach));
        let answer = self.executor.call(functions.attach.0, &args);
        assert!(matches!(
            from_bytes::<Reply<()>>(&answer),
            Ok(Reply(Err(_)))
        ));
    }

    pub fn has_channel(&self) -> bool {
        self.channel.is_some()
    }

    /// Changes what lies where, in the first session.
    fn change(&mut self, input: &mut Input<'_>, steps: &[Step]) {
        let Some(functions) = &self.functions else {
            return;
        };
        let mut out = to_bytes(&self.sessions[0]);
        encode_steps(steps, &mut out);
        // A message that maps what comes along may come without, and with what can shrink.
        let (mut along, mut fixed) = (Vec::new(), Vec::new());
        let mapped = steps.iter().filter(|step| takes_descriptor(step));
        let wanted = if self.channel.is_some() {
            mapped.count()
        } else {
            0
        };
        let kept = kept(steps);
        for _ in 0..wanted {
            let kind = input.below(8);
            let number = match kind {
                0..=4 => 0,
                5 => INDEX,
                _ => UNSEALED,
            };
            if kind < 7 {
                let file = self.files[number].as_file();
                along.push(file.try_clone().expect("dup").into());
                let size = file.metadata().expect("fstat").len();
                fixed.push((number != UNSEALED).then_some(size));
            }
        }
        let answer = self.ask(input, functions.change, &out, along);
        for (page, before) in kept {
            assert!(
                read(page) == before,
                "{page:#x} has other content: {steps:?}"
            );
        }
        let Ok(Reply(Ok(replies))) = from_bytes::<Reply<Vec<Reply<()>>>>(&answer) else {
            return;
        };
        assert_eq!(replies.len(), steps.len());
        let mut fixed = fixed.into_iter();
        let stays = |step: &Step| !matches!(step, Step::Unmap { .. } | Step::Release { .. });
        let all_stay = steps.iter().all(stays);
        for (step, reply) in steps.iter().zip(replies) {
            // How long the file stays that this step was given, if the executor takes it from the message.
            let length = takes_descriptor(step).then(|| fixed.next().flatten().unwrap_or(0));
            let fixed = length != Some(0);
            if let (Step::Index { window } | Step::IndexFile { window, .. }, Ok(())) =
                (step, &reply.0)
            {
                self.has_index(*window, length, all_stay);
            }
            if let (Step::Replace { range } | Step::ReplaceFile { range, .. }, Ok(())) =
                (step, &reply.0)
            {
                assert!(fixed, "{step:?} maps what may shrink");
                if all_stay {
                    look_at(*range);
                }
            }
            let (Step::Map { range, protection }
            | Step::MapFile {
                range, protection, ..
            }
            | Step::MapPrivate { range, protection }
            | Step::MapPrivateFile {
                range, protection, ..
            }
            | Step::MapOwn {
                range, protection, ..
            }) = step
            else {
                continue;
            };
            if reply.0.is_ok() {
                assert!(fixed, "{step:?} maps what may shrink");
                self.chunks.push(*range);
                if all_stay && protection & 1 != 0 {
                    look_at(*range);
                }
            }
        }
    }

    /// The executor has taken the index of a window, which describes no function.
    fn has_index(&mut self, window: AddrRange, length: Option<u64>, stays: bool) {
        assert!(self.windows.contains(&window), "{window:?} is no window");
        let enough = |length| length >= index_size(window);
        assert!(
            length.is_none_or(enough),
            "the index of {window:?} is short"
        );
        if !stays {
            // What is reserved there later has an index of its own.
            return;
        }
        assert!(!self.indexed.contains(&window), "a second index");
        self.indexed.push(window);
        for place in [window.start.0, window.end.0 - 1] {
            let place: *const c_void = std::ptr::without_provenance(place as usize);
            let mut found = MaybeUninit::<FoundFrames>::uninit();
            // SAFETY: what is found can be written there; nothing is, for no code is in the window.
            let description = unsafe { unwind_find_fde(place, found.as_mut_ptr()) };
            assert!(description.is_null(), "{place:?} is described");
        }
    }

    pub fn end(mut self) {
        if !self.unasked.is_empty() {
            self.take_back();
        }
        drop((self.files, self.channel));
        let (answers, result) = self.executor.end();
        assert!(answers.is_empty());
        crate::executor::was_in_order(result);
        crate::actions::all_are_closed();
    }

    fn open(&mut self, input: &mut Input<'_>) {
        let version = if input.byte() == 0xff {
            input.byte().into()
        } else {
            VERSION
        };
        let instance = match input.byte() {
            // Not 0: what belongs to the process stays until it ends.
            0xff => input.number().max(1),
            _ => self.executor.symbol("jitmem_service_instance"),
        };
        let function = self.executor.symbol("jitmem_service_open");
        let open = OpenWithWish {
            open: Open { version, instance },
            private_data: self.private_data == (input.below(4) != 3),
        };
        let answer = self.executor.call(function, &to_bytes(&open));
        let opened = match version {
            PRIVATE_VERSION.. => from_bytes::<Reply<OpenedWithData>>(&answer)
                .map(|Reply(reply)| Reply(reply.map(|reply| reply.opened.opened))),
            INDEX_VERSION.. => from_bytes::<Reply<OpenedWithFrames>>(&answer)
                .map(|Reply(reply)| Reply(reply.map(|reply| reply.opened))),
            _ => from_bytes::<Reply<Opened>>(&answer),
        };
        if let Ok(Reply(Ok(opened))) = opened {
            self.sessions.push(opened.session);
            self.functions = Some(opened.functions);
        }
    }
}

/// Whether a change takes the next descriptor of its message.
fn takes_descriptor(step: &Step) -> bool {
    let index = matches!(step, Step::Index { .. });
    let chunk = matches!(step, Step::Map { .. } | Step::MapPrivate { .. });
    index || chunk || matches!(step, Step::Replace { .. })
}

/// Content of a page; `None` if nothing is there to be read.
fn read(page: u64) -> Option<Vec<u8>> {
    let memory = File::open("/proc/self/mem").expect("/proc/self/mem");
    let mut content = vec![0; PAGE as usize];
    let read = memory.read_exact_at(&mut content, page);
    read.ok().map(|()| content)
}

/// The pages that a message without other changes says are to be kept, and their content, which must be the
/// same afterwards whatever is answered.
fn kept(steps: &[Step]) -> Vec<(u64, Option<Vec<u8>>)> {
    let [Step::Keep { range, pages }] = steps else {
        return Vec::new();
    };
    let bits = pages.iter().enumerate().flat_map(|(index, word)| {
        let set = (0..64).filter(move |bit| word >> bit & 1 == 1);
        set.map(move |bit| index as u64 * 64 + bit)
    });
    let addresses = bits.map(|page| range.start.0.wrapping_add(page * PAGE));
    let inside = addresses.filter(|page| (range.start.0..range.end.0).contains(page));
    inside.map(|page| (page, read(page))).collect()
}

/// Every page of a chunk is there.
fn look_at(range: AddrRange) {
    for page in (range.start.0..range.end.0).step_by(PAGE as usize) {
        assert!(read(page).is_some(), "{page:#x} of {range:x?} is not there");
    }
}
