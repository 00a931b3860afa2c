// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! LLVM's ExecutorSharedMemoryMapperService: windows are POSIX shared memory that the executor makes
//! under a name of its own. The name is unlinked as soon as the window is open here.

use super::{outcome, symbol, value};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, Status, invalid_argument};
use crate::group::Lifetime;
use crate::lock::Mutex;
use crate::mapper::custom::check_window;
use crate::mapper::{
    Action, Capabilities, Chunk, Deinitialization, Kind, MapperBase, MemoryMapper, Prepared,
    Reserved, SegmentContent, Teardown,
};
use crate::memory::placement::Placement;
use crate::memory::writer_view::WriterView;
use crate::page::AddressRange;
use crate::sys::{self, explain};
use crate::transport::limits::{Asked, Deadline, SessionLimits};
use crate::transport::{Transport, dispatched};
use crate::wire::llvm::{SharedMemoryFinalizeRequest, SharedMemorySegFinalizeRequest};
use crate::wire::sps::{ActionPair, Encode, ExecutorAddr, to_bytes};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

const PREFIX: &str = "__llvm_orc_ExecutorSharedMemoryMapperService_";

/// A mapper over LLVM's shared-memory service.
pub(crate) struct LlvmSharedMapper {
    capabilities: Capabilities,
    client: Arc<Client>,
}

/// What answers are handled with.
struct Client {
    transport: Arc<dyn Transport>,
    session: SessionLimits,
    service: Service,
    windows: Mutex<Vec<SharedWindow>>,
}

struct Service {
    instance: ExecutorAddr,
    reserve: ExecutorAddr,
    initialize: ExecutorAddr,
    deinitialize: ExecutorAddr,
    release: ExecutorAddr,
}

struct SharedWindow {
    range: AddressRange,
    memory: OwnedFd,
    views: BTreeMap<u64, WriterView>,
}

impl LlvmSharedMapper {
    /// Speaks with the executor's service, found by its published names.
    ///
    /// # Errors
    /// `Unsupported` if a name is missing.
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Result<LlvmSharedMapper> {
        let find = |name: &str| symbol(&*transport, &format!("{PREFIX}{name}"));
        let service = Service {
            instance: find("Instance")?,
            reserve: find("Reserve")?,
            initialize: find("Initialize")?,
            deinitialize: find("Deinitialize")?,
            release: find("Release")?,
        };
        let name = "shared memory, LLVM's service";
        let capabilities = Capabilities::new(Kind::LlvmShared, name, sys::page_size());
        let client = Client {
            session: SessionLimits::begin(transport.limits()),
            transport,
            service,
            windows: Mutex::default(),
        };
        Ok(LlvmSharedMapper {
            capabilities,
            client: Arc::new(client),
        })
    }

    /// Says why a better mapper was not taken.
    pub(crate) fn instead_of(mut self, reason: String) -> LlvmSharedMapper {
        self.capabilities.taken_instead(reason);
        self
    }
}

impl Client {
    fn call(&self, function: ExecutorAddr, args: &impl Encode, done: Completion<Vec<u8>>) {
        if let Err(error) = self.session.check() {
            return done.complete(Err(error));
        }
        let done = dispatched(&self.transport, done);
        self.transport.call(function.0, to_bytes(args), done);
    }

    /// The window that holds a segment.
    fn window_of(&self, segments: &[SegmentContent]) -> Result<ExecutorAddr> {
        let first = segments.first().map(|segment| segment.range);
        let windows = self.windows.lock();
        let window = match first {
            Some(range) => windows.iter().find(|window| window.range.contains(range)),
            // Actions alone: any window will do.
            None => windows.first(),
        };
        let start = window.map(|window| ExecutorAddr(window.range.start()));
        start.ok_or_else(|| invalid_argument("no window of this mapper holds the allocation"))
    }

    /// Sets protections and, with actions, runs them. Answers the allocation's key.
    fn install(
        &self,
        window: ExecutorAddr,
        segments: Vec<SharedMemorySegFinalizeRequest>,
        actions: &[Action],
        done: Completion<u64>,
    ) {
        let pairs = actions.iter().map(ActionPair::from).collect();
        let request: SharedMemoryFinalizeRequest<'_> = (segments, pairs);
        let request = (self.service.instance, window, request);
        let done = done.map(|answer: Result<Vec<u8>>| {
            let key = value::<ExecutorAddr>("Initialize", &answer?)?;
            Ok(key.0)
        });
        self.call(self.service.initialize, &request, done);
    }

    /// The executor has made a window: opens it, or gives it back if that can't be.
    fn reserved(
        &self,
        size: u64,
        placement: Placement,
        answer: Result<Vec<u8>>,
        done: Completion<Reserved>,
        delivery: &mut Delivery,
    ) {
        let answer = answer.and_then(|bytes| value::<(ExecutorAddr, String)>("Reserve", &bytes));
        let (base, name) = match answer {
            Ok(answer) => answer,
            Err(error) => return done.complete_with(Err(error), delivery),
        };
        let window = match open_window(base.0, &name, size) {
            Ok(window) => window,
            Err(error) => return self.release(base, done.map(|_| Err(error))),
        };
        let (range, in_reach) = (window.range, true);
        let reserved = Reserved { range, in_reach };
        let mut windows = self.windows.lock();
        let others: SmallVec<[AddressRange; 4]> = windows.iter().map(|one| one.range).collect();
        let page = sys::page_size().bytes();
        // A window that can't be is not released either: it may be another's.
        if let Err(error) = check_window(reserved, size, &others, page) {
            drop(windows);
            return done.complete_with(Err(error), delivery);
        }
        if let Err(error) = check_place(placement, range) {
            drop(windows);
            return self.release(base, done.map(|_| Err(error)));
        }
        windows.push(window);
        drop(windows);
        done.complete_with(Ok(reserved), delivery);
    }

    fn release(&self, base: ExecutorAddr, done: Completion<Vec<u8>>) {
        let request = (self.service.instance, vec![base]);
        self.call(self.service.release, &request, done);
    }
}

/// Opens the memory behind a window and takes its name away.
fn open_window(base: u64, name: &str, size: u64) -> Result<SharedWindow> {
    let what = format!("open the executor's shared memory {name}");
    let range = AddressRange::new(base, size)
        .filter(|range| sys::page_size().divides(range.start()))
        .ok_or_else(|| {
            Error::new(
                Status::MapperFailed,
                format!("{what}: a window at {base:#x}"),
            )
        })?;
    let memory = sys::take_shared_memory(name, size).map_err(|error| {
        explain(what, error).remedy(
            "controller and executor must share /dev/shm (user, mount and IPC namespace), mounted \
             without noexec; jitmem's own service needs none of it",
        )
    })?;
    Ok(SharedWindow {
        range,
        memory,
        views: BTreeMap::new(),
    })
}

/// Fails for a window that is not where the host wants it; this service puts it where it likes.
fn check_place(placement: Placement, range: AddressRange) -> Result<()> {
    let near = |address: u64| {
        let reach = 1 << 31;
        range.start().abs_diff(address) < reach && range.end().abs_diff(address) < reach
    };
    let good = match placement {
        Placement::Default => true,
        Placement::Near(address) => near(address),
        Placement::NearAll { lowest, highest } => near(lowest) && near(highest),
        Placement::Fixed(address) => address == range.start(),
    };
    match good {
        true => Ok(()),
        false => Err(Error::new(
            Status::Unsupported,
            format!("LLVM's service put the window at {range:?}, not where it was wanted"),
        )),
    }
}

fn on_wire(segment: &SegmentContent) -> SharedMemorySegFinalizeRequest {
    let (group, range) = (segment.group.into(), segment.range);
    (group, ExecutorAddr(range.start()), range.size())
}

impl MapperBase for LlvmSharedMapper {
    fn deadline(&self, asked: Asked) -> Option<Deadline> {
        self.client.session.deadline(asked)
    }

    fn transport(&self) -> Option<&Arc<dyn Transport>> {
        Some(&self.client.transport)
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
}

impl MemoryMapper for LlvmSharedMapper {
    fn reserve(&self, size: u64, _least: u64, placement: Placement, done: Completion<Reserved>) {
        let client = Arc::clone(&self.client);
        let done = Completion::with_delivery(move |answer, delivery| {
            client.reserved(size, placement, answer, done, delivery);
        });
        let Service {
            instance, reserve, ..
        } = self.client.service;
        self.client.call(reserve, &(instance, size), done);
    }

    #[allow(unsafe_code)]
    fn prepare(&self, chunk: Chunk) -> Result<Prepared> {
        let range = chunk.range;
        let mut windows = self.client.windows.lock();
        let window = windows
            .iter_mut()
            .find(|window| window.range.contains(range));
        let window =
            window.ok_or_else(|| invalid_argument(format!("chunk {range:?} lies in no window")))?;
        let offset = range.start() - window.range.start();
        if window.views.contains_key(&range.start()) {
            return Err(invalid_argument(format!(
                "chunk {range:?} is there already"
            )));
        }
        let view = WriterView::of(window.memory.as_fd(), offset, range.size())?;
        // SAFETY: the view stays until `reclaim` or `release`, when the manager writes there no more.
        let prepared = Prepared::written(unsafe { view.writer() }, 2);
        window.views.insert(range.start(), view);
        Ok(prepared)
    }

    fn initialize(
        &self,
        segments: SmallVec<[SegmentContent; 4]>,
        actions: Vec<Action>,
        done: Completion<Teardown>,
    ) {
        if segments.is_empty() && actions.is_empty() {
            return done.complete(Ok(Teardown::Nothing));
        }
        let window = match self.client.window_of(&segments) {
            Ok(window) => window,
            Err(error) => return done.complete(Err(error)),
        };
        let (serving, staying): (Vec<_>, Vec<_>) = segments
            .iter()
            .partition(|segment| segment.group.lifetime == Lifetime::Finalize);
        let serving: Vec<_> = serving.into_iter().map(on_wire).collect();
        let staying: Vec<_> = staying.into_iter().map(on_wire).collect();
        if staying.is_empty() && actions.iter().any(|action| !action.dealloc.is_none()) {
            // Another allocation will have their address, and its actions would take their place.
            return done.complete(Err(Error::new(
                Status::Unsupported,
                "LLVM's shared-memory service remembers deallocation actions by an address of the \
                 allocation that stays, and this one has none: give it a segment of standard \
                 lifetime, or have the executor load libjitmem.so",
            )));
        }
        let keep = !actions.is_empty();
        let done = done.map(move |answer: Result<u64>| {
            let key = answer?;
            // Without actions the executor has nothing to remember.
            Ok(match keep {
                true => Teardown::Key(key),
                false => Teardown::Nothing,
            })
        });
        if serving.is_empty() || staying.is_empty() {
            let all = [serving, staying].concat();
            return self.client.install(window, all, &actions, done);
        }
        // The executor knows an allocation by its lowest address, and what is given back after
        // finalize must not be the name of what stays.
        let client = Arc::clone(&self.client);
        let then = Completion::with_delivery(move |answer: Result<u64>, delivery| match answer {
            Ok(_) => client.install(window, staying, &actions, done),
            Err(error) => done.complete_with(Err(error), delivery),
        });
        self.client.install(window, serving, &[], then);
    }

    fn deinitialize(
        &self,
        allocations: Vec<Deinitialization>,
        done: Completion<()>,
        delivery: &mut Delivery,
    ) {
        let keys = allocations.iter().map(Deinitialization::key);
        // It goes through them last to first.
        let keys: Vec<ExecutorAddr> = keys.filter(|key| *key != 0).map(ExecutorAddr).collect();
        if keys.is_empty() {
            return done.complete_with(Ok(()), delivery);
        }
        let done = done.map(|answer: Result<Vec<u8>>| outcome("Deinitialize", &answer?));
        let Service {
            instance,
            deinitialize,
            ..
        } = self.client.service;
        self.client.call(deinitialize, &(instance, keys), done);
    }

    fn reclaim(&self, chunk: AddressRange) -> Result<()> {
        let mut windows = self.client.windows.lock();
        let window = windows
            .iter_mut()
            .find(|window| window.range.contains(chunk));
        let Some(window) = window else {
            return Err(invalid_argument(format!(
                "chunk {chunk:?} lies in no window"
            )));
        };
        let offset = chunk.start() - window.range.start();
        // The executor keeps its mapping, of pages that are not there any more.
        sys::punch_hole(window.memory.as_fd(), offset, chunk.size()).map_err(|error| {
            explain(
                format_args!("give back a chunk of {} bytes", chunk.size()),
                error,
            )
        })?;
        window.views.remove(&chunk.start());
        Ok(())
    }

    fn set_writers(&self, windows: &[AddressRange], open: bool) -> Result<()> {
        let mapped = self.client.windows.lock();
        let mapped = mapped
            .iter()
            .filter(|window| windows.contains(&window.range));
        let mut views = mapped.flat_map(|window| window.views.values());
        views.try_for_each(|view| view.set_open(open))
    }

    fn release(&self, window: AddressRange, done: Completion<()>) {
        let known = {
            let mut windows = self.client.windows.lock();
            let position = windows.iter().position(|known| known.range == window);
            position.map(|position| windows.swap_remove(position))
        };
        if known.is_none() {
            let message = format!("no window is reserved at {window:?}");
            return done.complete(Err(invalid_argument(message)));
        }
        let done = done.map(|answer: Result<Vec<u8>>| outcome("Release", &answer?));
        self.client.release(ExecutorAddr(window.start()), done);
    }
}
