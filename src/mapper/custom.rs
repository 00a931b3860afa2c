// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A mapper from outside: every answer is checked before the manager believes it.

use super::{
    Action, Capabilities, Chunk, Deinitialization, Kind, MapperBase, MemoryMapper, Prepared,
    Reserved, SegmentContent, Teardown, Working,
};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::memory::placement::Placement;
use crate::page::{AddressRange, Alignment};
use crate::sys::AtForkMutex;
use smallvec::SmallVec;
use std::sync::Arc;

/// A mapper that a host makes: memory of a device, of a simulator, of another machine. It becomes a
/// [`Mapper`](super::Mapper) with [`Mapper::custom`](super::Mapper::custom).
///
/// The methods are called with no lock held, from any thread, several at a time. Those that are given
/// a [`Completion`] answer it now or later, from any thread. What is answered is checked: a window
/// that overlaps another, or is not where or as large as it can be, is refused.
pub trait CustomMapper: Send + Sync {
    /// How finely the memory can be divided; the answer never changes.
    fn granularity(&self) -> Granularity;

    /// Reserves a window of `size` bytes, or of a smaller multiple of the page size, and answers its
    /// addresses in the executor.
    fn reserve(&self, size: u64, placement: Placement, done: Completion<AddressRange>);

    /// Makes a chunk usable: [`Prepared::copied`], or memory that both sides see.
    ///
    /// # Errors
    /// The request that needs the chunk fails with what this answers.
    fn prepare(&self, _chunk: Chunk) -> Result<Prepared> {
        Err(neither("prepare"))
    }

    /// Whether [`CustomMapper::prepare_async`] and [`CustomMapper::reclaim_async`] are to be called in
    /// place of [`CustomMapper::prepare`] and [`CustomMapper::reclaim`]; the answer never changes. An
    /// allocation that needs a chunk is then one that waits: the `try_` forms decline it.
    fn answers_later(&self) -> bool {
        false
    }

    /// [`CustomMapper::prepare`] with an answer now or later, from any thread.
    fn prepare_async(&self, chunk: Chunk, done: Completion<Prepared>) {
        done.complete(self.prepare(chunk));
    }

    /// Makes an allocation's content visible with its final protection, and runs its finalize actions
    /// first to last. If one fails, the deallocation twins of those before it run last to first, and
    /// the answer is the error. Answers a key for [`CustomMapper::deinitialize`]; 0 if there is
    /// nothing to do then.
    fn initialize(
        &self,
        segments: Vec<SegmentContent>,
        actions: Vec<Action>,
        done: Completion<u64>,
    );

    /// Runs the deallocation actions of allocations, the last one first. All are run even if some
    /// fail. The memory is free afterwards in either case.
    fn deinitialize(&self, allocations: Vec<Deinitialization>, done: Completion<()>);

    /// Takes back the pages of a chunk that holds no allocation.
    ///
    /// # Errors
    /// The chunk stays in use then.
    fn reclaim(&self, _chunk: AddressRange) -> Result<()> {
        Err(neither("reclaim"))
    }

    /// [`CustomMapper::reclaim`] with an answer now or later, from any thread.
    fn reclaim_async(&self, chunk: AddressRange, done: Completion<()>) {
        done.complete(self.reclaim(chunk));
    }

    /// Gives a window back, with every chunk that is left in it.
    fn release(&self, window: AddressRange, done: Completion<()>);
}

/// How finely the memory of a [`CustomMapper`] can be divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granularity {
    /// Windows and chunks are multiples of this many bytes; at most 64 MiB.
    pub page_size: Alignment,
    /// Allocations are kept multiples of this many bytes apart; at most `page_size`. Less than that
    /// where different allocations may share a page.
    pub granule: Alignment,
}

/// A host's mapper, every answer of which is checked.
pub(crate) struct Checked<M> {
    host: M,
    capabilities: Capabilities,
    windows: Arc<AtForkMutex<Vec<AddressRange>>>,
}

impl<M: CustomMapper> Checked<M> {
    /// # Errors
    /// `InvalidArgument` for a granule above the page size.
    pub(crate) fn new(host: M) -> Result<Checked<M>> {
        let Granularity { page_size, granule } = host.granularity();
        if granule > page_size || page_size.bytes() > 1 << 26 {
            return Err(crate::error::invalid_argument(format!(
                "custom mapper with granule {} and page size {}: the granule may not exceed the \
                 page size, and the page size not 64 MiB",
                granule.bytes(),
                page_size.bytes()
            )));
        }
        let capabilities = Capabilities {
            granule,
            ..Capabilities::new(Kind::Custom, "custom", page_size)
        };
        Ok(Checked {
            host,
            capabilities,
            windows: Arc::default(),
        })
    }
}

fn neither(operation: &str) -> Error {
    Error::new(
        Status::Unsupported,
        format!("custom mapper: it implements neither {operation} nor {operation}_async"),
    )
}

fn broken(message: String) -> Error {
    Error::new(Status::MapperFailed, message)
        .remedy("the custom mapper's callback, or the executor, breaks its contract")
}

/// A window that others made must be aligned, not larger than asked for, and apart from all others.
pub(super) fn check_window(
    reserved: Reserved,
    size: u64,
    others: &[AddressRange],
    page: u64,
) -> Result<()> {
    let range = reserved.range;
    let aligned = range.start() % page == 0 && range.size() % page == 0;
    if range.start() == 0 || range.size() == 0 || !aligned || range.size() > size {
        return Err(broken(format!(
            "reserve of {size} bytes answered {range:?}: want a multiple of {page}, not 0, and no \
             more than was asked for"
        )));
    }
    match others.iter().find(|other| other.overlaps(range)) {
        Some(other) => Err(broken(format!(
            "reserve of {size} bytes answered {range:?}, which overlaps the window {other:?}"
        ))),
        None => Ok(()),
    }
}

/// Working memory must be as large as its chunk.
fn check_chunk(chunk: Chunk, prepared: Prepared) -> Result<Prepared> {
    match prepared.working {
        Working::Shared(writer) if writer.size() != chunk.range.size() => Err(broken(format!(
            "prepare of {} bytes answered working memory of {}",
            chunk.range.size(),
            writer.size()
        ))),
        _ => Ok(prepared),
    }
}

impl<M: CustomMapper> MapperBase for Checked<M> {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
}

impl<M: CustomMapper> MemoryMapper for Checked<M> {
    fn reserve(&self, size: u64, _least: u64, placement: Placement, done: Completion<Reserved>) {
        let windows = Arc::clone(&self.windows);
        let page = self.capabilities.page_size.bytes();
        let checked = done.map(move |answer: Result<AddressRange>| {
            let range = answer?;
            let reserved = Reserved {
                range,
                in_reach: true,
            };
            let mut windows = windows.lock();
            // A window that can't be is not released either: it may be another's.
            check_window(reserved, size, &windows, page)?;
            windows.push(range);
            Ok(reserved)
        });
        self.host.reserve(size, placement, checked);
    }

    fn prepare(&self, chunk: Chunk) -> Result<Prepared> {
        check_chunk(chunk, self.host.prepare(chunk)?)
    }

    fn changes_chunks_later(&self) -> bool {
        self.host.answers_later()
    }

    fn prepare_later(&self, chunk: Chunk, done: Completion<Prepared>) {
        let checked = done.map(move |answer: Result<Prepared>| check_chunk(chunk, answer?));
        self.host.prepare_async(chunk, checked);
    }

    fn reclaim_later(&self, chunk: AddressRange, done: Completion<()>) {
        self.host.reclaim_async(chunk, done);
    }

    fn initialize(
        &self,
        segments: SmallVec<[SegmentContent; 4]>,
        actions: Vec<Action>,
        done: Completion<Teardown>,
    ) {
        let done = done.map(|key: Result<u64>| key.map(Teardown::of_key));
        self.host.initialize(segments.into_vec(), actions, done);
    }

    fn deinitialize(
        &self,
        allocations: Vec<Deinitialization>,
        done: Completion<()>,
        _: &mut Delivery,
    ) {
        self.host.deinitialize(allocations, done);
    }

    fn reclaim(&self, chunk: AddressRange) -> Result<()> {
        self.host.reclaim(chunk)
    }

    fn release(&self, window: AddressRange, done: Completion<()>) {
        self.windows.lock().retain(|known| *known != window);
        self.host.release(window, done);
    }
}
