// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a manager tells its host of: windows, chunks and allocations that come and go, forks, and restarts of linked
//! code.

use super::label::Label;
use super::request::Request;
use super::space::heap_is_full;
use super::{Allocated, AllocationHandle, Dylib};
use crate::error::Result;
use crate::group::{AllocGroup, Lifetime};
use crate::page::AddressRange;
use smallvec::SmallVec;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Memory of one segment of an [`Allocation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocatedSegment {
    /// Its place in the request.
    pub index: usize,
    /// Where it is in the executor, content and zero-fill.
    pub range: AddressRange,
    /// Protection and lifetime.
    pub group: AllocGroup,
}

/// What a manager knows of an allocation: where it is and what the host calls it.
#[derive(Debug)]
pub struct Allocation {
    handle: u64,
    dylib: Dylib,
    label: Option<Arc<Label>>,
    /// Those that stay until deallocate come first.
    segments: SmallVec<[AllocatedSegment; 4]>,
    lasting: usize,
}

impl Allocation {
    /// For a request that is not answered yet: the addresses are still to come. Fails if the heap has
    /// no room.
    pub(super) fn new(request: &Request) -> Result<Allocation> {
        let mut segments = SmallVec::<[AllocatedSegment; 4]>::new();
        let count = request.planned.len();
        segments.try_reserve(count).map_err(|_| heap_is_full())?;
        segments.extend(request.planned.iter().filter_map(|planned| {
            Some(AllocatedSegment {
                index: planned.index.into(),
                range: AddressRange::new(0, planned.size.into())?,
                group: planned.group(),
            })
        }));
        let lasts = |segment: &AllocatedSegment| segment.group.lifetime == Lifetime::Standard;
        segments.sort_unstable_by_key(|segment| (!lasts(segment), segment.index));
        Ok(Allocation {
            handle: 0,
            dylib: Dylib(request.dylib),
            label: request.label.clone(),
            lasting: segments.iter().filter(|segment| lasts(segment)).count(),
            segments,
        })
    }

    /// Takes over what was answered.
    pub(super) fn answered(&mut self, allocated: &Allocated) {
        self.handle = allocated.handle;
        for segment in &mut self.segments {
            let start = allocated.segments[segment.index].address;
            if let Some(range) = AddressRange::new(start, segment.range.size()) {
                segment.range = range;
            }
        }
    }

    /// Its handle, which is good from the moment when it is finalized.
    pub fn handle(&self) -> AllocationHandle {
        AllocationHandle(self.handle)
    }

    /// The JITDylib that it was allocated for.
    pub fn dylib(&self) -> Dylib {
        self.dylib
    }

    /// The host's tag; 0 if it has none.
    pub fn tag(&self) -> u64 {
        self.label.as_ref().map_or(0, |label| label.tag_number())
    }

    /// Its name.
    pub fn name(&self) -> Option<&str> {
        Some(self.label.as_ref()?.own_name()?.as_str())
    }

    /// The name of its JITDylib.
    pub fn dylib_name(&self) -> Option<&str> {
        Some(self.label.as_ref()?.name_of_dylib()?.as_str())
    }

    /// Every segment that has memory until the finalize actions have run.
    pub fn segments(&self) -> &[AllocatedSegment] {
        &self.segments
    }

    /// Those of them that stay until deallocate.
    pub fn lasting_segments(&self) -> &[AllocatedSegment] {
        &self.segments[..self.lasting]
    }

    /// What the host said of it.
    pub(crate) fn label(&self) -> Option<&Arc<Label>> {
        self.label.as_ref()
    }
}

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EventKind {
    /// Address space for a window was reserved.
    WindowReserved(AddressRange),
    /// A window is being given back, with all that is in it.
    WindowReleased(AddressRange),
    /// A chunk of a window has memory now.
    ChunkMade(AddressRange, AllocGroup),
    /// The memory of a chunk was given back; its addresses are free for another chunk.
    ChunkReclaimed(AddressRange, AllocGroup),
    /// Memory was allocated; its content is still to be written.
    Allocated(Arc<Allocation>),
    /// Its content is in place and its finalize actions have run, the answer is still to be given.
    Finalized(Arc<Allocation>),
    /// It is being deallocated: its deallocation actions are still to be run and its memory is still its
    /// own.
    Deallocated(Arc<Allocation>),
    /// It goes without having been finalized: it was abandoned, or its finalize failed.
    Abandoned(Arc<Allocation>),
    /// This process has forked; told in the thread that did.
    ForkedParent,
    /// This process is the child of a fork and has the same memory and the same allocations. It has one
    /// thread, in which this is told before `fork` returns.
    ForkedChild,
    /// Another process has taken the place of the one that ran the executor's linked code
    /// ([`serve_supervised`](crate::executor::server::serve_supervised)): code, constants and data are at the same
    /// addresses, data as it was finalized, and finalize actions have run again. It is told in a thread of jitmem's
    /// and to each manager of the executor, perhaps before or after the errors of calls that were pending. Where
    /// processes end one after the other before their actions have run, once for all of them. Only where the session
    /// has a socket of its own.
    ExecutorRestarted {
        /// How often that has happened since the executor began to serve.
        restarts: u64,
        /// What has ended the process before.
        why: Arc<str>,
    },
}

/// What an [`Observer`] is told.
#[derive(Clone, Debug)]
pub struct Event {
    /// Grows by one with each event of a manager, from 1 on.
    pub sequence: u64,
    /// CLOCK_MONOTONIC when it happened, if the observer asked for times.
    pub time: Option<Duration>,
    /// What happened.
    pub kind: EventKind,
}

type Callback = dyn Fn(&Event) + Send + Sync;

/// A function of the host's that a manager calls when something happens; see
/// [`Options::observer`](super::Options::observer).
///
/// No lock is held meanwhile, so it may use any manager; other threads may be calling it at the same
/// time. For a finalize, allocate, abandon or deallocate it runs before their answer is given: in the thread
/// that waits for the answer, else where the callback with the answer runs, before that. What an answer of an
/// executor leads to besides (windows, chunks) is told in callbacks too, perhaps later than what follows;
/// [`Event::sequence`] has the order in which things happened.
///
/// - An allocation's events come in its order. `Finalized` comes when its content can be read and
///   executed; `Deallocated` before its deallocation actions run, and so before its addresses can
///   be another allocation's. An allocation whose finalize failed is told with that answer, when its
///   addresses may be used again.
/// - When the manager goes, what is left is told as deallocated, last to first, or as abandoned,
///   and then each window as released, before any of it happens.
/// - A fork is told in both processes, before `fork` returns. In the child no other thread exists.
/// - It must not panic.
#[derive(Clone)]
pub struct Observer {
    callback: Arc<Callback>,
    times: bool,
}

impl Observer {
    /// Calls `callback` for each event.
    pub fn new(callback: impl Fn(&Event) + Send + Sync + 'static) -> Observer {
        Observer {
            callback: Arc::new(callback),
            times: false,
        }
    }

    /// The same with the time in each event, which costs a look at the clock.
    #[must_use]
    pub fn with_times(self) -> Observer {
        Observer {
            times: true,
            ..self
        }
    }

    pub(super) fn wants_times(&self) -> bool {
        self.times
    }

    pub(super) fn tell(&self, event: &Event) {
        (self.callback)(event);
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer")
            .field("times", &self.times)
            .finish_non_exhaustive()
    }
}
