// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What one controller has in this executor.

use super::Offered;
use super::channel_server;
use crate::error::{Error, Result, Status, invalid_argument, invalid_handle};
use crate::executor::actions::from_wire;
use crate::executor::llvm::forget_within;
use crate::group::Protection;
use crate::mapper::WrapperCall;
use crate::mapper::actions::{join, run_dealloc, run_finalize};
use crate::memory::placement::REACH;
use crate::memory::view::{Placement, Reservation, View, Writer};
use crate::memory::window::reserve_window;
use crate::page::AddressRange;
use crate::sys::{self, OwnerProcess, explain, explain_reach, socket};
use crate::transport::RESPONSE_TIMEOUT;
use crate::wire::service::{
    At, Attach, Attached, Content, File, Functions, Item, Reply, Reserve, ReservedAt, Step,
};
use crate::wire::sps::{ActionPair, AddrRange};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

pub(super) struct Session {
    id: u64,
    instance: u64,
    /// The process that opened it.
    owner: OwnerProcess,
    functions: Functions,
    windows: Mutex<Vec<Window>>,
    teardowns: Mutex<Teardowns>,
    /// Rung when nothing is running.
    quiet: Condvar,
    /// Our end of a pair, and the end that the controller is about to take.
    offered: Mutex<Option<(OwnedFd, OwnedFd)>>,
    channel: Mutex<Option<Arc<OwnedFd>>>,
}

struct Window {
    reservation: Reservation,
    /// By their first addresses.
    chunks: BTreeMap<u64, View>,
    /// What the controller has given back, but the kernel would not take: until its place is wanted.
    refused: Vec<View>,
}

/// Deallocation actions by key; keys grow, so the last one is the latest.
#[derive(Default)]
struct Teardowns {
    last: u64,
    calls: BTreeMap<u64, Vec<WrapperCall>>,
    /// Allocations that are being initialized or deinitialized.
    running: usize,
    /// No more will be.
    closed: bool,
}

fn range_of(range: AddrRange) -> Result<AddressRange> {
    range
        .range()
        .filter(|range| range.size() > 0)
        .ok_or_else(|| invalid_argument(format!("{range:x?} is no range of addresses")))
}

impl Session {
    pub(super) fn new(id: u64, instance: u64, functions: Functions) -> Session {
        Session {
            id,
            instance,
            owner: OwnerProcess::current(),
            functions,
            windows: Mutex::default(),
            teardowns: Mutex::default(),
            quiet: Condvar::new(),
            offered: Mutex::default(),
            channel: Mutex::default(),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Whether it is that service's. In a forked child none of the parent's is: controllers reach
    /// those there.
    pub(super) fn is_of(&self, instance: u64) -> bool {
        self.instance == instance && self.owner.is_current()
    }

    // ---- the channel ----

    /// Tries one way to pass descriptors.
    pub(super) fn attach(&self, attach: Attach<'_>) -> Result<Attached> {
        let nothing = Attached {
            descriptor: 0,
            cookie: 0,
        };
        match attach {
            Attach::Connect { name, token } => {
                let socket = socket::connect_to(name.0)
                    .and_then(|socket| {
                        socket::send(&socket, &[token.0], &[])?;
                        Ok(socket)
                    })
                    .map_err(|error| explain("connect to the controller's socket", error))?;
                self.serve(socket)?;
                Ok(nothing)
            }
            Attach::Offer {} => {
                let (ours, theirs) = socket::packet_pair()
                    .map_err(|error| explain("make a pair of sockets", error))?;
                let cookie = socket::cookie(&theirs)
                    .map_err(|error| explain("ask for a socket's cookie", error))?;
                let descriptor = socket::number(theirs.as_fd());
                *self.offered.lock() = Some((ours, theirs));
                Ok(Attached { descriptor, cookie })
            }
            Attach::Taken { taken } => match (self.offered.lock().take(), taken) {
                (Some((ours, _theirs)), true) => self.serve(ours).map(|()| nothing),
                (None, true) => Err(invalid_argument("no socket was offered")),
                (_, false) => Ok(nothing),
            },
            Attach::Files { file } => open(&file, false).map(|_| nothing),
            Attach::Shared { cookie } => {
                let ours = Offered::take(cookie)
                    .ok_or_else(|| invalid_argument("this socket was not sent along"))?;
                self.serve(ours).map(|()| nothing)
            }
        }
    }

    fn serve(&self, socket: OwnedFd) -> Result<()> {
        let socket = Arc::new(socket);
        channel_server::serve(Arc::clone(&socket), self.functions.clone())
            .map_err(|error| explain("start a thread that serves the channel", error))?;
        let before = self.channel.lock().replace(socket);
        if let Some(before) = before {
            socket::hang_up(&before);
        }
        Ok(())
    }

    pub(super) fn hang_up(&self) {
        if let Some(channel) = self.channel.lock().take() {
            socket::hang_up(&channel);
        }
    }

    // ---- memory ----

    pub(super) fn reserve(&self, request: Reserve) -> Result<ReservedAt> {
        let page = sys::page_size();
        let Reserve { size, least, at } = request;
        if size == 0 || size > REACH || !page.divides(size) || least > size {
            return Err(invalid_argument(format!(
                "reserve {size} bytes, at least {least}: want a multiple of the executor's page \
                 size {}, below 2 GiB",
                page.bytes()
            )));
        }
        let placement = match at {
            At::Default {} => Placement::Default,
            At::Near { address } => Placement::Near(address),
            At::Fixed { address } => Placement::Fixed(address),
        };
        let reservation = reserve_window(size, least, placement)?;
        let reserved = ReservedAt {
            range: reservation.range().into(),
            in_reach: reservation.in_reach(),
        };
        self.windows.lock().push(Window {
            reservation,
            chunks: BTreeMap::new(),
            refused: Vec::new(),
        });
        Ok(reserved)
    }

    pub(super) fn change(&self, steps: Vec<Step>, descriptors: Vec<OwnedFd>) -> Vec<Reply<()>> {
        let mut descriptors = descriptors.into_iter();
        let mut windows = self.windows.lock();
        let steps = steps.into_iter();
        steps
            .map(|step| Self::step(&mut windows, step, &mut descriptors).into())
            .collect()
    }

    fn step(
        windows: &mut Vec<Window>,
        step: Step,
        descriptors: &mut impl Iterator<Item = OwnedFd>,
    ) -> Result<()> {
        match step {
            Step::Map { range, protection } => {
                let file = descriptors.next().ok_or_else(|| {
                    invalid_argument("a chunk without its memfd: the message carried too few")
                })?;
                Self::map(windows, range, protection, |window, range, protection| {
                    View::foreign(window, range, protection, file)
                })
            }
            Step::MapFile {
                range,
                protection,
                file,
            } => Self::map(windows, range, protection, |window, range, protection| {
                let file = open(&file, protection.writable())?;
                View::foreign(window, range, protection, file)
            }),
            Step::MapOwn {
                range,
                protection,
                commit,
            } => Self::map(windows, range, protection, |window, range, protection| {
                if protection.writable() {
                    View::one(window, range, protection, commit)
                } else {
                    View::two(window, range, protection, commit)
                }
            }),
            Step::Unmap { range } => Self::unmap(windows, range_of(range)?),
            Step::Release { range } => {
                let range = range_of(range)?;
                let position = windows
                    .iter()
                    .position(|window| window.reservation.range() == range);
                let position = position.ok_or_else(|| {
                    invalid_argument(format!("no window is reserved at {range:?}"))
                })?;
                drop(windows.swap_remove(position));
                Ok(())
            }
        }
    }

    fn map(
        windows: &mut [Window],
        range: AddrRange,
        protection: u8,
        make: impl FnOnce(&Reservation, AddressRange, Protection) -> Result<View>,
    ) -> Result<()> {
        let range = range_of(range)?;
        let protection = Protection::from_bits(protection.into())?;
        let page = sys::page_size();
        if !page.divides(range.start()) || !page.divides(range.size()) {
            return Err(invalid_argument(format!(
                "chunk {range:?} does not consist of pages"
            )));
        }
        let window = window_of(windows, range)?;
        if let Some(view) = window.overlapping(range) {
            return Err(invalid_argument(format!(
                "chunk {range:?} overlaps the chunk at {:?}",
                view.executor()
            )));
        }
        window.clear(range)?;
        let view = make(&window.reservation, range, protection)?;
        window.chunks.insert(range.start(), view);
        Ok(())
    }

    fn unmap(windows: &mut [Window], range: AddressRange) -> Result<()> {
        let window = window_of(windows, range)?;
        let whole = window.chunks.get(&range.start()).map(View::executor) == Some(range);
        let view = whole
            .then(|| window.chunks.remove(&range.start()))
            .flatten();
        let Some(view) = view else {
            return Err(invalid_argument(format!("no chunk is at {range:?}")));
        };
        view.unmap().map_err(|(view, error)| {
            window.refused.push(view);
            error
        })
    }

    // ---- allocations ----

    pub(super) fn apply(&self, item: Item<'_>) -> Result<u64> {
        {
            let mut teardowns = self.teardowns.lock();
            if teardowns.closed {
                return Err(invalid_handle("the session is closed"));
            }
            teardowns.running += 1;
        }
        let answer = self.do_item(item);
        let mut teardowns = self.teardowns.lock();
        teardowns.running -= 1;
        if teardowns.running == 0 {
            self.quiet.notify_all();
        }
        answer
    }

    fn do_item(&self, item: Item<'_>) -> Result<u64> {
        match item {
            Item::Initialize {
                content,
                code,
                actions,
            } => {
                let initialized = self.initialize(&content, code, &actions);
                initialized.inspect_err(|_| {
                    // What did not come to life must not run.
                    for content in &content {
                        let _ = self.trap(content.range);
                    }
                })
            }
            Item::Deinitialize { key, traps } => {
                let calls = match key {
                    0 => Ok(Vec::new()),
                    key => self.teardowns.lock().calls.remove(&key).ok_or_else(|| {
                        invalid_argument(format!("no allocation has the key {key}"))
                    }),
                };
                // The memory is free afterwards in either case.
                let result = calls.and_then(|calls| run_dealloc(&calls));
                let trapped = traps.into_iter().try_for_each(|range| self.trap(range));
                join(result, trapped).map(|()| 0)
            }
        }
    }

    fn initialize(
        &self,
        content: &[Content<'_>],
        code: Vec<AddrRange>,
        actions: &[ActionPair<'_>],
    ) -> Result<u64> {
        content.iter().try_for_each(|content| self.write(content))?;
        for range in code {
            let range = range_of(range)?;
            window_of(&mut self.windows.lock(), range)?;
            sys::flush_instruction_cache(range.start(), range.size());
        }
        let calls = run_finalize(from_wire(actions))?;
        Ok(self.teardowns.lock().add(calls))
    }

    /// Writes content into pages of our own; code in them is seen by the processor at once.
    fn write(&self, content: &Content<'_>) -> Result<()> {
        let range = range_of(content.range)?;
        self.writing(range, |writer| {
            let size = content.bytes.0.len() as u64;
            if size > range.size() {
                return Err(invalid_argument(format!(
                    "{size} bytes of content for a segment of {} bytes",
                    range.size()
                )));
            }
            writer.write(0, content.bytes.0);
            if !content.zeroed {
                writer.zero(size, range.size() - size);
            }
            Ok(())
        })
    }

    fn trap(&self, range: AddrRange) -> Result<()> {
        self.writing(range_of(range)?, |writer| {
            writer.fill_with_traps();
            Ok(())
        })
    }

    fn writing(&self, range: AddressRange, write: impl FnOnce(Writer) -> Result<()>) -> Result<()> {
        let mut windows = self.windows.lock();
        let window = window_of(&mut windows, range)?;
        let chunk = window
            .overlapping(range)
            .filter(|view| view.executor().contains(range));
        // SAFETY: the lock is held, so the view stays until the writer goes. Data can be written, and
        // other pages of the executor's own have a view for it.
        let writer = chunk.and_then(|view| unsafe { view.writer() });
        let (Some(executor), Some(writer)) = (chunk.map(View::executor), writer) else {
            return Err(invalid_argument(format!(
                "{range:?} lies in no chunk of the executor's own pages"
            )));
        };
        let offset = range.start() - executor.start();
        // Windows are below 2 GiB, so both fit.
        write(writer.part_of(offset as u32, range.size() as u32))?;
        sys::flush_instruction_cache(range.start(), range.size());
        Ok(())
    }

    /// Runs the deallocation actions that are left, last to first.
    pub(super) fn tear_down(&self) -> Result<()> {
        let left = std::mem::take(&mut self.teardowns.lock().calls);
        let mut result = Ok(());
        for calls in left.values().rev() {
            result = join(result, run_dealloc(calls));
        }
        result
    }

    /// Ends the session: actions, then memory. The channel stays until the controller hangs up, for
    /// the answer may go through it. Memory in which an action still runs after a while stays.
    pub(super) fn close(&self) -> Result<()> {
        let deadline = Instant::now() + RESPONSE_TIMEOUT;
        let stuck = {
            let mut teardowns = self.teardowns.lock();
            teardowns.closed = true;
            let mut late = false;
            while teardowns.running > 0 && !late {
                late = self.quiet.wait_until(&mut teardowns, deadline).timed_out();
            }
            teardowns.running > 0
        };
        let result = self.tear_down();
        let windows = std::mem::take(&mut *self.windows.lock());
        if !stuck {
            for window in &windows {
                forget_within(window.reservation.range());
            }
            return result;
        }
        std::mem::forget(windows);
        let message = "close a session: an allocation action has not returned; its memory stays";
        join(result, Err(Error::new(Status::ActionFailed, message)))
    }
}

fn window_of(windows: &mut [Window], range: AddressRange) -> Result<&mut Window> {
    let window = windows
        .iter_mut()
        .find(|window| window.reservation.range().contains(range));
    window.ok_or_else(|| invalid_argument(format!("{range:?} lies in no window of this session")))
}

impl Window {
    fn overlapping(&self, range: AddressRange) -> Option<&View> {
        let (_, view) = self.chunks.range(..range.end()).next_back()?;
        view.executor().overlaps(range).then_some(view)
    }

    /// Unmaps what lies in a range that is about to be mapped anew, though it was given back before.
    fn clear(&mut self, range: AddressRange) -> Result<()> {
        let overlaps = |view: &View| view.executor().overlaps(range);
        while let Some(index) = self.refused.iter().position(overlaps) {
            if let Err((view, error)) = self.refused.swap_remove(index).unmap() {
                self.refused.push(view);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Teardowns {
    /// Remembers calls; 0 if there are none.
    fn add(&mut self, calls: Vec<WrapperCall>) -> u64 {
        if calls.is_empty() {
            return 0;
        }
        self.last += 1;
        self.calls.insert(self.last, calls);
        self.last
    }
}

/// Opens a memfd of the controller's, and makes sure that it is the one that was meant.
fn open(file: &File, write: bool) -> Result<OwnedFd> {
    let File {
        process,
        descriptor,
        device,
        inode,
    } = *file;
    let what = format!("open /proc/{process}/fd/{descriptor}, a memfd of the controller's");
    let opened = socket::open_from(process, descriptor, write)
        .map_err(|error| explain_reach(&what, error))?;
    match socket::identity(opened.as_fd()) {
        Ok(identity) if identity == (device, inode) => Ok(opened),
        Ok(_) => Err(Error::new(
            Status::Unsupported,
            format!("{what}: it is another file; controller and executor count processes apart"),
        )),
        Err(error) => Err(explain(what, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::service::here::functions;
    use crate::sys::fault::Faults;
    use crate::wire::sps::{Bytes, Call, ExecutorAddr};

    fn outcome(session: &Session, step: Step) -> Result<()> {
        let [Reply(reply)] = session.change(vec![step], Vec::new()).try_into().unwrap();
        reply.map_err(Error::from)
    }

    #[test]
    fn a_place_that_was_given_back_can_be_taken_though_the_kernel_refused_it() {
        let session = Session::new(1, 0, functions());
        let page = sys::page_size().bytes();
        let (size, least, at) = (64 * page, 64 * page, At::Default {});
        let window = session.reserve(Reserve { size, least, at }).unwrap().range;
        let part = |first: u64, pages: u64| AddrRange {
            start: ExecutorAddr(window.start.0 + first * page),
            end: ExecutorAddr(window.start.0 + (first + pages) * page),
        };
        let map = |range| Step::MapOwn {
            range,
            protection: 1,
            commit: false,
        };
        outcome(&session, map(part(0, 8))).unwrap();
        let kept = Faults::one(0, libc::ENOMEM);
        let error = outcome(&session, Step::Unmap { range: part(0, 8) }).unwrap_err();
        assert_eq!(error.status(), Status::OutOfMemory);
        assert!(kept.failed().is_some());
        drop(kept);
        // It was given back all the same.
        let again = outcome(&session, Step::Unmap { range: part(0, 8) }).unwrap_err();
        assert!(again.message().contains("no chunk is at"), "{again}");
        {
            let _faults = Faults::all_after(0, libc::ENOMEM);
            assert!(outcome(&session, map(part(4, 8))).is_err());
        }
        outcome(&session, map(part(4, 8))).unwrap();
        outcome(&session, map(part(0, 4))).unwrap();
        let overlap = outcome(&session, map(part(3, 2))).unwrap_err();
        assert!(overlap.message().contains("overlaps"), "{overlap}");
    }

    /// A session, a page of its one window, and how that is mapped.
    fn with_a_page() -> (Session, AddrRange) {
        let session = Session::new(1, 0, functions());
        let size = sys::page_size().bytes();
        let (least, at) = (size, At::Default {});
        let reserved = session.reserve(Reserve { size, least, at });
        let page = reserved.unwrap().range;
        (session, page)
    }

    #[test]
    fn code_whose_actions_fail_can_not_run() {
        let (session, range) = with_a_page();
        let (protection, commit) = (5, false);
        let map = Step::MapOwn {
            range,
            protection,
            commit,
        };
        outcome(&session, map).unwrap();
        let failing = sys::wrapper_address(|_: &[u8]| Err("bad".to_owned()));
        let call = |function| Call {
            function: ExecutorAddr(function),
            args: Bytes(&[]),
        };
        let item = Item::Initialize {
            content: vec![Content {
                range,
                zeroed: true,
                bytes: Bytes(&[0x90; 64]),
            }],
            code: vec![],
            actions: vec![ActionPair {
                finalize: call(failing),
                dealloc: call(0),
            }],
        };
        let error = session.apply(item).unwrap_err();
        assert!(error.message().contains("bad"), "{error}");
        let mut memory = sys::testing::reading();
        let first: u32 = memory.load(range.start.0).unwrap();
        let traps = sys::TRAP.iter().copied().cycle().take(4);
        assert_eq!(first.to_le_bytes().to_vec(), traps.collect::<Vec<u8>>());
    }

    #[test]
    fn memfds_that_could_shrink_are_refused() {
        let (session, range) = with_a_page();
        let file = sys::MemFile::holding(c"jitmem", &vec![0; range.size() as usize]).unwrap();
        let take = || {
            let file = file.as_fd().try_clone_to_owned().unwrap();
            let map = Step::Map {
                range,
                protection: 1,
            };
            let [Reply(reply)] = session.change(vec![map], vec![file]).try_into().unwrap();
            reply.map_err(Error::from)
        };
        let error = take().unwrap_err();
        assert!(error.message().contains("not sealed"), "{error}");
        file.close_to_writers().unwrap();
        take().unwrap();
    }

    #[test]
    fn a_file_that_was_not_meant_is_refused() {
        let file = sys::MemFile::holding(c"jitmem", b"x").unwrap();
        let (device, inode) = socket::identity(file.as_fd()).unwrap();
        let meant = |inode| File {
            process: socket::process(),
            descriptor: socket::number(file.as_fd()),
            device,
            inode,
        };
        open(&meant(inode), false).unwrap();
        let error = open(&meant(inode + 1), false).unwrap_err();
        assert!(error.message().contains("another file"), "{error}");
    }
}
