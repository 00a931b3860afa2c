// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Our own service in the executor: windows, chunks, allocations and their actions, for any number
//! of controllers' sessions. What is said is in `wire::service`.
//!
//! It is in one of three programs: a program that links jitmem, a stock executor that has loaded the library,
//! and `jitmem-executor`.

mod again;
mod channel_server;
mod children;
mod entry_points;
mod files;
mod listener;
mod session;
mod supervised;
mod teardowns;
mod windows;

pub(super) use again::{MOST_MESSAGES, Places, Progress, TOGETHER, share_places};
pub(super) use channel_server::serve as serve_channel;
pub(super) use children::set_forks_successors;
pub(super) use children::share_memory as share_memory_with_children;
pub(super) use entry_points::functions;
pub(crate) use entry_points::{
    EntryPoint, entry_points, open as open_session, open_by_session, session_symbols, symbols,
};
pub(super) use listener::{descriptor as listeners_descriptor, listen};
pub(super) use supervised::{Supervise, leave_to, leave_to_parent, succeed, tell_restarted};

use crate::error::{Error, Result, Status, invalid_handle};
use crate::sys::{self, Answer, AtForkStatic};
use crate::transport::packet::MOST_ANSWER;
use crate::unwind::unwinder;
use crate::wire::service::{
    Attach, Change, Failure, FrameFunctions, Functions, INDEX_VERSION, Item, OLDEST_VERSION, Open,
    Opened, OpenedWithData, OpenedWithFrames, PRIVATE_VERSION, Reply, Reserve, VERSION,
};
use crate::wire::sps::{Decode, Encode, ExecutorAddr, Malformed, Reader, to_bytes};
use session::Session;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of the service that a process has without asking for one.
const OWN_INSTANCE: u64 = 0;

/// The services and sessions of this process.
struct Registry {
    /// Those that were asked for.
    services: BTreeSet<u64>,
    /// In the order in which they were opened.
    sessions: BTreeMap<u64, Arc<Session>>,
    /// The number of the last one that was opened: a process and the one that it was forked from give the same.
    last: u64,
}

static REGISTRY: AtForkStatic<Registry> = AtForkStatic::new(Registry {
    services: BTreeSet::new(),
    sessions: BTreeMap::new(),
    last: 0,
});

/// A service with sessions of its own. Dropping it ends them: their deallocation actions run, last
/// to first, and their memory goes.
#[derive(Debug)]
pub struct Service {
    instance: u64,
}

impl Service {
    /// A service that no controller knows yet.
    pub fn new() -> Service {
        static NEXT: AtomicU64 = AtomicU64::new(OWN_INSTANCE + 1);
        let instance = NEXT.fetch_add(1, Ordering::Relaxed);
        REGISTRY.lock().services.insert(instance);
        Service { instance }
    }

    /// The number that controllers open sessions of this service with.
    pub fn instance(&self) -> u64 {
        self.instance
    }
}

impl Default for Service {
    fn default() -> Service {
        Service::new()
    }
}

impl Service {
    /// Ends the sessions, the last one first; no more are opened.
    pub(super) fn close(&self) {
        let mine: Vec<u64> = {
            let mut registry = REGISTRY.lock();
            registry.services.remove(&self.instance);
            let sessions = registry.sessions.iter();
            let mine = sessions.filter(|(_, session)| session.is_of(self.instance));
            mine.map(|(id, _)| *id).collect()
        };
        for id in mine.into_iter().rev() {
            let session = REGISTRY.lock().sessions.remove(&id);
            if let Some(session) = session {
                // No more comes through its channel, and no controller hears of a failure.
                session.hang_up();
                let _ = session.close();
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.close();
    }
}

/// The process's own service ends with the process, when its threads may still run linked code:
/// deallocation actions run, but memory stays.
pub(super) fn at_exit() {
    let sessions: Vec<Arc<Session>> = REGISTRY.lock().sessions.values().cloned().collect();
    for session in sessions
        .into_iter()
        .rev()
        .filter(|session| session.is_of(OWN_INSTANCE))
    {
        let _ = session.tear_down();
    }
}

/// Sockets that controllers have sent along with calls, until sessions ask for them by the kernel's numbers.
static SENT_ALONG: AtForkStatic<BTreeMap<u64, OwnedFd>> = AtForkStatic::new(BTreeMap::new());

/// What one controller has sent along. Dropping it closes what no session has asked for.
#[derive(Default)]
pub(crate) struct SentAlong(VecDeque<u64>);

impl SentAlong {
    /// So many are kept; then the oldest goes. A session asks at once.
    const MOST: usize = 64;

    pub(crate) fn keep(&mut self, descriptor: OwnedFd) {
        // What is no socket has no number, and goes.
        let Ok(cookie) = sys::socket::cookie(&descriptor) else {
            return;
        };
        SENT_ALONG.lock().insert(cookie, descriptor);
        self.0.push_back(cookie);
        if self.0.len() > Self::MOST {
            self.0.pop_front().and_then(Self::take);
        }
    }

    fn take(cookie: u64) -> Option<OwnedFd> {
        SENT_ALONG.lock().remove(&cookie)
    }
}

impl Drop for SentAlong {
    fn drop(&mut self) {
        for cookie in self.0.drain(..) {
            SentAlong::take(cookie);
        }
    }
}

/// What a function of the service does, apart from `open`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Attach,
    Reserve,
    Change,
    Apply,
    Close,
}

/// Answers a call of `open`; `functions` are the addresses of the others in this process.
pub(crate) fn open(args: &[u8], functions: &Functions) -> Answer {
    match supervised::supervisor() {
        Some(supervisor) => Ok(supervisor.open(args, &|| open_here(args, functions))),
        None => Ok(open_here(args, functions)),
    }
}

fn open_here(args: &[u8], functions: &Functions) -> Vec<u8> {
    let body = || {
        let args = &mut Reader::new(args);
        let open: Open = decoded(args)?;
        if !(OLDEST_VERSION..=VERSION).contains(&open.version) {
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "open a session: the controller's jitmem speaks version {} of the service and \
                     this executor's version {VERSION}; use the same release on both sides",
                    open.version
                ),
            ));
        }
        let asked = match open.version {
            PRIVATE_VERSION.. => decoded(args)?,
            _ => false,
        };
        let private_data = asked || supervised::is_supervised();
        if private_data && open.version < PRIVATE_VERSION {
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "open a session: this executor is supervised, so its data is private, which the \
                     controller's version {} of the service does not know; use the same release on both \
                     sides",
                    open.version
                ),
            ));
        }
        if let Some(reason) = sys::debugging() {
            // Pages of both kinds that this service has are shared mappings.
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "open a session: {reason}; this service has no pages that take them: use \
                     LLVM's memory manager service of this executor"
                ),
            ));
        }
        // Without a lock: it asks the dynamic linker and the unwinder.
        let frames = match open.version {
            INDEX_VERSION.. => unwinder::frame_functions(),
            _ => FrameFunctions::default(),
        };
        if open.instance == OWN_INSTANCE {
            sys::at_exit_once(at_exit);
        }
        let mut session = Session::new(&open, functions.clone(), private_data);
        let mut registry = REGISTRY.lock();
        if open.instance != OWN_INSTANCE && !registry.services.contains(&open.instance) {
            return Err(invalid_handle(format!(
                "open a session: this executor has no service {}: it was freed before",
                open.instance
            )));
        }
        registry.last += 1;
        let id = registry.last;
        session.number(id);
        registry.sessions.insert(id, Arc::new(session));
        drop(registry);
        let opened = Opened {
            session: id,
            page_size: sys::page_size().bytes(),
            coherent: sys::COHERENT_FETCH && !sys::is_translated(),
            functions: functions.clone(),
        };
        let with_frames = |opened| OpenedWithFrames { opened, frames };
        Ok(match open.version {
            PRIVATE_VERSION.. => to_bytes(&Reply::<OpenedWithData>(Ok(OpenedWithData {
                opened: with_frames(opened),
                private_data,
            }))),
            INDEX_VERSION => to_bytes(&Reply::<OpenedWithFrames>(Ok(with_frames(opened)))),
            _ => to_bytes(&Reply::<Opened>(Ok(opened))),
        })
    };
    body().unwrap_or_else(|error| to_bytes(&Reply::<Opened>::from(Err(error))))
}

/// For tests: the number of a new session.
#[cfg(test)]
pub(crate) fn opened(service: &Service) -> u64 {
    let request = Open {
        version: INDEX_VERSION,
        instance: service.instance(),
    };
    let answer = open(&to_bytes(&request), &here::functions()).expect("it always answers");
    let Reply::<OpenedWithFrames>(reply) = crate::wire::sps::from_bytes(&answer).expect("a reply");
    reply.expect("the service is there").opened.session
}

/// Answers a call of any other function. Descriptors come only through a channel.
pub(crate) fn call(function: Function, args: &[u8], descriptors: Vec<OwnedFd>) -> Answer {
    match supervised::supervisor() {
        Some(supervisor) => Ok(supervisor.call(function, args, descriptors)),
        None => call_here(function, args, descriptors),
    }
}

/// The same in this process, whether or not it is supervised.
pub(super) fn call_here(function: Function, args: &[u8], descriptors: Vec<OwnedFd>) -> Answer {
    let mut args = Reader::new(args);
    let session = decoded::<u64>(&mut args).and_then(find);
    let bytes = match function {
        Function::Attach => match session.and_then(|session| {
            let attach: Attach<'_> = decoded(&mut args)?;
            Ok((session, attach))
        }) {
            Ok((_, Attach::Listening {})) => reply(listener::name()),
            Ok((session, attach)) => reply(session.attach(attach)),
            Err(error) => reply::<()>(Err(error)),
        },
        Function::Reserve => reply(session.and_then(|session| {
            let request: Reserve = decoded(&mut args)?;
            session.windows.reserve(request)
        })),
        Function::Change => reply(session.and_then(|session| {
            let change: Change = decoded(&mut args)?;
            Ok(fitting(session.windows.change(change.changes, descriptors)))
        })),
        Function::Apply => reply(session.and_then(|session| {
            let items: Vec<Item<'_>> = decoded(&mut args)?;
            let answers = items
                .into_iter()
                .map(|item| Reply::from(session.apply(item)));
            Ok(fitting(answers.collect::<Vec<Reply<u64>>>()))
        })),
        Function::Close => reply(session.and_then(|session| {
            REGISTRY.lock().sessions.remove(&session.id());
            session.close()
        })),
    };
    Ok(bytes)
}

/// Shortens what is said of failures where all of it would not fit into one answer.
pub(super) fn fitting<T>(mut replies: Vec<Reply<T>>) -> Vec<Reply<T>> {
    // Of an outcome, apart from what is said: a flag, a status or value, a size.
    const REST: usize = 16;
    let said = |Reply(reply): &Reply<T>| {
        reply
            .as_ref()
            .map_or_else(|failure| failure.message.len(), |_| 0)
    };
    let size = REST * replies.len() + replies.iter().map(said).sum::<usize>();
    if size > MOST_ANSWER {
        let room = MOST_ANSWER / 2 / replies.len();
        let failures = replies
            .iter_mut()
            .filter_map(|Reply(reply)| reply.as_mut().err());
        for Failure { message, .. } in failures {
            let ends = |end: &usize| message.is_char_boundary(*end);
            message.truncate((0..=room).rev().find(ends).unwrap_or(0));
        }
    }
    replies
}

fn reply<T: Encode>(result: Result<T>) -> Vec<u8> {
    to_bytes(&Reply::from(result))
}

fn decoded<'a, T: Decode<'a>>(args: &mut Reader<'a>) -> Result<T> {
    T::decode(args).map_err(|malformed: Malformed| {
        Error::new(
            Status::InvalidArgument,
            format!("jitmem's executor service: malformed arguments: {malformed}"),
        )
    })
}

fn find(id: u64) -> Result<Arc<Session>> {
    let session = REGISTRY.lock().sessions.get(&id).cloned();
    session.ok_or_else(|| {
        invalid_handle(format!(
            "jitmem's executor service: no session {id}: it was closed before"
        ))
    })
}

/// Which function an address is, if it is one of `functions`.
fn function_at(functions: &Functions, address: u64) -> Option<Function> {
    let Functions {
        attach,
        reserve,
        change,
        apply,
        close,
    } = functions;
    let all = [
        (attach, Function::Attach),
        (reserve, Function::Reserve),
        (change, Function::Change),
        (apply, Function::Apply),
        (close, Function::Close),
    ];
    let found = all
        .into_iter()
        .find(|(known, _)| **known == ExecutorAddr(address));
    found.map(|(_, function)| function)
}

/// For tests: an executor in the controller's own process.
#[cfg(test)]
pub(crate) mod here {
    use super::*;
    use crate::completion::Completion;
    use crate::transport::Transport;

    pub(crate) const OPEN: u64 = 100;

    pub(crate) fn functions() -> Functions {
        let [attach, reserve, change, apply, close] = [1, 2, 3, 4, 5].map(ExecutorAddr);
        Functions {
            attach,
            reserve,
            change,
            apply,
            close,
        }
    }

    /// Calls the service directly, in the calling thread.
    pub(crate) struct Here;

    impl Transport for Here {
        fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
            let answer = match function_at(&functions(), function) {
                Some(function) => super::call(function, &args, Vec::new()),
                None if function == OPEN => open(&args, &functions()),
                None => Err(format!("nothing is at {function:#x}")),
            };
            done.complete(answer.map_err(|message| Error::new(Status::MapperFailed, message)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_fits_into_a_packet_whatever_is_said() {
        let failure = |said: &str| Reply::<u64>(Err(Error::new(Status::ActionFailed, said).into()));
        for (count, said) in [(1, 100_000), (64, 4096), (2048 + 64, 4096), (2, 10)] {
            let mut replies: Vec<_> = (0..count)
                .map(|_| failure(&"\u{e4}".repeat(said)))
                .collect();
            replies.push(Reply(Ok(7)));
            let fitted = fitting(replies);
            let size = to_bytes(&fitted).len();
            assert!(size <= MOST_ANSWER, "{count}: {size}");
            assert_eq!(fitted.len(), count + 1);
            assert!(fitted.iter().take(count).all(|reply| reply.0.is_err()));
            assert_eq!(fitted[count], Reply(Ok(7)));
        }
        let short = fitting(vec![failure("short")]);
        assert_eq!(short, [failure("short")]);
    }
}
