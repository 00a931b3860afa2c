// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What one controller has in this executor.

use super::teardowns::Teardowns;
use super::windows::Windows;
use super::{SentAlong, again, channel_server, files, listener};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::executor::actions::from_wire;
use crate::mapper::actions::{join, run_dealloc, run_finalize};
use crate::sys::{self, AtForkMutex, OwnerCell, explain, socket};
use crate::transport::{RESPONSE_TIMEOUT, packet};
use crate::wire::frame::{Header, Opcode};
use crate::wire::service::{
    Attach, Content, Functions, Item, Open, RESTARTED, RESTARTED_VERSION, Restarted,
};
use crate::wire::sps::{ActionPair, AddrRange, Bytes, to_bytes};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

pub(super) struct Session {
    id: u64,
    instance: u64,
    /// The process that opened it, or goes on with it.
    owner: OwnerCell,
    functions: Functions,
    /// The controller is told of restarts.
    hears_of_restarts: bool,
    pub(super) windows: Windows,
    teardowns: Teardowns,
    /// A child that goes on with the session hangs up.
    channel: AtForkMutex<Option<Arc<OwnedFd>>>,
}

impl Session {
    /// One without a number.
    pub(super) fn new(open: &Open, functions: Functions, private_data: bool) -> Session {
        let owner = OwnerCell::new();
        owner.claim();
        Session {
            id: 0,
            instance: open.instance,
            owner,
            functions,
            hears_of_restarts: open.version >= RESTARTED_VERSION,
            windows: Windows::new(private_data),
            teardowns: Teardowns::new(),
            channel: AtForkMutex::default(),
        }
    }

    pub(super) fn number(&mut self, id: u64) {
        self.id = id;
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Whether it is that service's. In a forked child none of the parent's is: controllers reach
    /// those there.
    pub(super) fn is_of(&self, instance: u64) -> bool {
        self.instance == instance && self.owner.is_current()
    }

    /// Makes it this process's, which was forked from the one before.
    pub(super) fn claim(&self) {
        self.owner.claim();
    }

    // ---- the channel ----

    /// Tries one way to pass descriptors.
    pub(super) fn attach(&self, attach: Attach<'_>) -> Result<()> {
        match attach {
            Attach::Connect { name, token } => {
                let socket = socket::connect_to(name.0)
                    .map_err(|error| explain("connect to the controller's socket", error))?;
                self.introduce(socket, token)
            }
            Attach::Files {
                numbering,
                file,
                token,
            } => files::attach(&numbering, &file, token),
            Attach::Shared { cookie, token } => {
                let socket = SentAlong::take(cookie)
                    .ok_or_else(|| invalid_argument("this socket was not sent along"))?;
                self.introduce(socket, token)
            }
            Attach::Accept { expected, token } => {
                let expected = expected.0.try_into();
                let expected = expected.map_err(|_| invalid_argument("a token has 16 bytes"))?;
                self.introduce(listener::accept(expected)?, token)
            }
            Attach::Listening {} => Err(invalid_argument("a name is no way")),
        }
    }

    /// Shows the controller that it is this executor at the other end of a socket, and serves that.
    fn introduce(&self, socket: OwnedFd, token: Bytes<'_>) -> Result<()> {
        socket::send(&socket, &[token.0], &[])
            .map_err(|error| explain("send a token through the controller's socket", error))?;
        self.serve(socket)
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
        let channel = self.channel.lock().take();
        if let Some(channel) = channel {
            socket::hang_up(&channel);
        }
    }

    /// Tells the controller that another process runs linked code, if it has asked for that and there is a channel.
    /// Waits for room in that.
    pub(super) fn tell(&self, restarted: &Restarted) {
        let channel = self.channel.lock().clone();
        if let Some(channel) = channel.filter(|_| self.hears_of_restarts) {
            let body = to_bytes(restarted);
            let header = Header::new(Opcode::CallWrapper, 0, RESTARTED, body.len());
            // A controller that is gone needs to be told nothing.
            let _ = packet::send(&channel, header, &body, &[]);
        }
    }

    // ---- allocations ----

    pub(super) fn apply(&self, item: Item<'_>) -> Result<u64> {
        let _running = self.teardowns.begin()?;
        match item {
            Item::Initialize {
                content,
                code,
                actions,
            } => self.initialize(&content, code, &actions).inspect_err(|_| {
                // Code of an allocation that was not initialized must not run.
                for content in &content {
                    let _ = self.windows.trap(content.range);
                }
            }),
            Item::InitializeData {
                data,
                code,
                actions,
            } => {
                let mut data = data.into_iter();
                data.try_for_each(|range| self.windows.take_data(range))?;
                self.initialize(&[], code, &actions)
            }
            Item::InitializeAgain { place, actions } => {
                again::run(place, || self.initialize(&[], Vec::new(), &actions))
            }
            Item::Deinitialize { key, traps } => self.deinitialize(key, traps).map(|()| 0),
        }
    }

    fn initialize(
        &self,
        content: &[Content<'_>],
        code: Vec<AddrRange>,
        actions: &[ActionPair<'_>],
    ) -> Result<u64> {
        let mut content = content.iter();
        content.try_for_each(|content| self.windows.write(content))?;
        code.into_iter()
            .try_for_each(|range| self.windows.flush(range))?;
        sys::synchronize_fetches();
        let calls = run_finalize(from_wire(actions))?;
        let added = self.teardowns.add(&calls);
        added.or_else(|error| join(Err(error), run_dealloc(&calls)).map(|()| 0))
    }

    /// The memory is free afterwards, whatever fails.
    fn deinitialize(&self, key: u64, traps: Vec<AddrRange>) -> Result<()> {
        let calls = self.teardowns.take(key);
        let result = calls.and_then(|calls| run_dealloc(&calls));
        let mut traps = traps.into_iter();
        let trapped = traps.try_for_each(|range| self.windows.trap(range));
        join(result, trapped)
    }

    // ---- the end ----

    /// Runs the deallocation actions that are left, last to first.
    pub(super) fn tear_down(&self) -> Result<()> {
        let mut result = Ok(());
        while let Some(calls) = self.teardowns.take_last() {
            result = join(result, run_dealloc(&calls));
        }
        result
    }

    /// Ends the session: actions, then memory. The channel stays until the controller hangs up, for
    /// the answer may go through it. Memory in which an action still runs after a while stays.
    pub(super) fn close(&self) -> Result<()> {
        let deadline = Instant::now() + RESPONSE_TIMEOUT;
        let quiet = self.teardowns.close(deadline);
        let result = self.tear_down();
        if quiet {
            self.windows.release_all();
            return result;
        }
        self.windows.leave_all();
        let message = "close a session: an allocation action has not returned; its memory stays";
        join(result, Err(Error::new(Status::ActionFailed, message)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::service::here::functions;
    use crate::sys;
    use crate::wire::service::{At, Reply, Reserve, Step, VERSION};
    use crate::wire::sps::{Bytes, Call, ExecutorAddr};
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_child_can_hang_up_a_session_that_is_told_of_something_meanwhile() {
        let open = Open {
            version: VERSION,
            instance: 0,
        };
        let session = Arc::new(Session::new(&open, functions(), false));
        let (told, over) = (Arc::clone(&session), Arc::new(AtomicBool::new(false)));
        let until = Arc::clone(&over);
        let tells = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let channel = told.channel.lock();
                (0..1000).for_each(|_| std::hint::spin_loop());
                drop(channel);
            }
        });
        for _ in 0..50 {
            let is_free = || session.channel.try_lock().is_some();
            assert!(sys::in_a_child(is_free));
        }
        over.store(true, Ordering::Relaxed);
        tells.join().unwrap();
    }

    #[test]
    fn code_whose_actions_fail_can_not_run() {
        let open = Open {
            version: VERSION,
            instance: 0,
        };
        let session = Session::new(&open, functions(), false);
        let size = sys::page_size().bytes();
        let (least, at) = (size, At::Default {});
        let reserved = session.windows.reserve(Reserve { size, least, at });
        let range = reserved.unwrap().range;
        let (protection, commit) = (5, false);
        let map = Step::MapOwn {
            range,
            protection,
            commit,
        };
        let [Reply(reply)] = session
            .windows
            .change(vec![map], Vec::new())
            .try_into()
            .unwrap();
        reply.unwrap();
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
        assert_eq!(first.to_le_bytes().to_vec(), sys::traps(4));
    }
}
