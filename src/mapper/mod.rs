// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Where memory comes from: [`Mapper`] is what hosts choose, [`CustomMapper`] what they make themselves.
//!
//! A mapper reserves executor address space, gives working memory, makes content visible, runs actions,
//! and releases. The manager works over any mapper. The five operations are those of LLVM's
//! MemoryMapper; `reclaim` is the inverse of `prepare`. All but `prepare` and `reclaim` may take long
//! (another process, another machine), so they answer through a [`Completion`]. A mapper is called with
//! no lock held and from any thread; a completion may run inside the call. Operations that the manager
//! asks for while it deals with an answer take the `Delivery` of that answer, for what they complete
//! inside the call.

pub(crate) mod actions;
mod custom;
mod handle;
mod in_place;
mod in_process;
mod llvm;
mod service;

pub use crate::sys::WrapperCall;
pub use actions::Action;
pub use custom::{CustomMapper, Granularity};
pub use handle::{ExecutorService, Mapper, NewExecutor};
pub use in_process::InProcessKind;

pub(crate) use custom::Checked;
pub(crate) use in_process::InProcess;
pub(crate) use llvm::{LlvmSharedMapper, LlvmSimpleMapper};
pub(crate) use service::{Candidate, GroupMapper, IndexedFrames, ServiceMapper};
pub use service::{GroupChange, GroupEvent, GroupExecutor, GroupObserver};

use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::group::AllocGroup;
use crate::memory::buffer::Buffer;
use crate::memory::pages::PageSet;
use crate::memory::placement::Placement;
use crate::memory::staged::Adoption;
use crate::memory::writer::Writer;
use crate::page::{AddressRange, Alignment};
use crate::sys;
use crate::transport::limits::{Asked, Deadline, Patience};
use crate::transport::{ExecutorState, Transport};
use crate::unwind::registration;
use smallvec::SmallVec;
use std::sync::Arc;

/// What the manager must know of a mapper before it divides anything.
#[derive(Clone, Debug)]
pub(crate) struct Capabilities {
    /// Which mapper it is, in words, for the statistics.
    pub(crate) name: &'static str,
    /// The same as a number of the C API.
    pub(crate) kind: Kind,
    /// Chunks are multiples of this.
    pub(crate) page_size: Alignment,
    /// Different allocations keep this apart: a few bytes where pages are shared, a page where
    /// protection is set per allocation.
    pub(crate) granule: Alignment,
    /// Working memory is the executor's own pages, so that `deinitialize` has nothing to do for an
    /// allocation without actions or copied segments.
    pub(crate) shared: bool,
    /// What is written there is there for the executor at once, so that `initialize` has nothing to do
    /// either.
    pub(crate) coherent: bool,
    /// Data is the executor's own once it is finalized: what is written here later is not seen there.
    pub(crate) private_data: bool,
    /// Segments of finalize lifetime stay until deallocate: an executor that comes later runs the finalize actions
    /// too.
    pub(crate) keeps_served: bool,
    /// Executor memory is this process's own, so a forked child must not use it.
    pub(crate) in_this_process: bool,
    /// Why a better mapper was not taken, if one was tried.
    pub(crate) fallback: Option<String>,
}

impl Capabilities {
    /// Those of a mapper that writes content elsewhere, page by page, on finalize.
    pub(crate) fn new(kind: Kind, name: &'static str, page_size: Alignment) -> Capabilities {
        Capabilities {
            name,
            kind,
            page_size,
            granule: page_size,
            shared: false,
            coherent: false,
            private_data: false,
            keeps_served: false,
            in_this_process: false,
            fallback: None,
        }
    }

    /// Says why a better mapper was not taken, in front of reasons that are there.
    pub(crate) fn taken_instead(&mut self, reason: String) {
        self.fallback = Some(match self.fallback.take() {
            Some(before) => format!("{reason}; {before}"),
            None => reason,
        });
    }
}

/// The mappers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// This process, two views of the same pages.
    TwoViews = 1,
    /// This process, one view whose protection changes.
    Mprotect = 2,
    /// What the host supplied.
    Custom = 3,
    /// Another process on this machine, shared pages.
    Shared = 4,
    /// A process anywhere, content in messages.
    Remote = 5,
    /// Another process on this machine, through LLVM's own shared-memory service.
    LlvmShared = 6,
    /// A process anywhere, through LLVM's own memory manager service.
    LlvmSimple = 7,
    /// This process, one view that is written in place until finalize.
    InPlace = 8,
}

/// A reserved window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reserved {
    /// Its addresses; may be smaller than asked for, never larger.
    pub(crate) range: AddressRange,
    /// Whether everything the placement asked for is in reach.
    pub(crate) in_reach: bool,
}

/// A run of pages that shall become a chunk.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// Where, inside a reserved window.
    pub range: AddressRange,
    /// Final protection, and lifetime.
    pub group: AllocGroup,
    /// Take the pages now, so that a shortage is an error here.
    pub commit: bool,
}

/// How content gets into a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Working {
    /// Written directly: what is written here is what the executor sees.
    Shared(Writer),
    /// Written where the executor has it, which `initialize` gives its protection; what is deallocated is
    /// the mapper's to make new.
    InPlace(Writer),
    /// Handed to `initialize`, which copies it.
    Copied,
}

/// How content gets into a chunk that was made usable.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) working: Working,
    /// Kernel mappings that the chunk takes.
    pub(crate) mappings: u64,
    pub(crate) discards: Discards,
}

/// How parts of a chunk are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discards {
    /// They are not.
    Nothing,
    /// By [`MemoryMapper::discard`].
    Pages,
    /// By [`MemoryMapper::keep_only`].
    AllBut,
}

impl Prepared {
    /// Content of `chunk` is written at `pointer`, and the executor sees it there.
    ///
    /// # Safety
    /// Until the chunk is reclaimed or its window released, as many bytes as the chunk has can be
    /// written at `pointer`, from any thread; no Rust object lies there; and they are all zero now.
    #[allow(unsafe_code)]
    pub unsafe fn shared(chunk: Chunk, pointer: *mut u8) -> Prepared {
        // SAFETY: as the caller says; the manager writes there only as long as it has the chunk.
        let writer = unsafe { Writer::new(pointer.expose_provenance() as u64, chunk.range.size()) };
        Prepared::written(writer, 0)
    }

    /// Content is handed to [`CustomMapper::initialize`].
    pub fn copied() -> Prepared {
        Prepared::elsewhere(0)
    }

    /// Whether content is handed to `initialize`.
    pub(crate) fn is_copied(&self) -> bool {
        matches!(self.working, Working::Copied)
    }

    /// Content is written directly.
    pub(crate) fn written(writer: Writer, mappings: u64) -> Prepared {
        Prepared {
            working: Working::Shared(writer),
            mappings,
            discards: Discards::Nothing,
        }
    }

    /// Content is handed to `initialize`.
    pub(crate) fn elsewhere(mappings: u64) -> Prepared {
        Prepared {
            working: Working::Copied,
            mappings,
            discards: Discards::Nothing,
        }
    }

    pub(crate) fn discarding(self, discards: Discards) -> Prepared {
        Prepared { discards, ..self }
    }
}

/// One segment of an allocation on its way into the executor.
pub struct SegmentContent {
    /// Its executor addresses, zero-fill included.
    pub range: AddressRange,
    /// Protection and lifetime.
    pub group: AllocGroup,
    /// The content if the mapper copies; `None` if it is in place already.
    pub(crate) content: Option<Buffer>,
    /// Whether the zero-fill is known to be zero in the executor.
    pub zeroed: bool,
}

impl SegmentContent {
    pub(crate) fn is_writable(&self) -> bool {
        self.group.protection.writable()
    }

    /// The content, if the mapper copies.
    pub fn content(&self) -> Option<&[u8]> {
        self.content.as_ref().map(|buffer| buffer.content())
    }
}

/// What is left to do when an allocation goes.
#[derive(Debug, Default)]
pub(crate) enum Teardown {
    /// Nothing.
    #[default]
    Nothing,
    /// The mapper's own name for it.
    Key(u64),
    /// Deallocation actions in the order of their finalize twins; they run last to first.
    /// Boxed, because every live allocation has a teardown: 16 bytes instead of 24.
    #[allow(clippy::box_collection)]
    Calls(Box<Vec<WrapperCall>>),
    /// The mapper's own name for it, 0 for none, and what leaves an index besides.
    Indexed(Box<Indexed>),
}

/// What is left to do for an allocation with frames in an index.
#[derive(Debug)]
pub(crate) struct Indexed {
    key: u64,
    frames: IndexedFrames,
}

impl Teardown {
    /// [`Teardown::of_key`] for an allocation that may have frames in an index.
    pub(crate) fn new(key: u64, frames: Option<IndexedFrames>) -> Teardown {
        match frames {
            Some(frames) => Teardown::Indexed(Box::new(Indexed { key, frames })),
            None => Teardown::of_key(key),
        }
    }

    /// What a mapper's name for an allocation says: 0 is nothing.
    pub(crate) fn of_key(key: u64) -> Teardown {
        match key {
            0 => Teardown::Nothing,
            key => Teardown::Key(key),
        }
    }

    fn key(&self) -> u64 {
        match self {
            Teardown::Key(key) => *key,
            Teardown::Indexed(indexed) => indexed.key,
            Teardown::Nothing | Teardown::Calls(_) => 0,
        }
    }

    /// Whether the mapper has nothing to do.
    pub(crate) fn is_nothing(&self) -> bool {
        matches!(self, Teardown::Nothing)
    }
}

/// What there is to do for one allocation before its memory is free.
#[derive(Debug)]
pub struct Deinitialization {
    /// What `initialize` said is to be done.
    pub(crate) teardown: Teardown,
    /// Its copied segments, whose code the mapper makes trap, and those in place, which it makes new.
    pub(crate) copied: SmallVec<[(AddressRange, AllocGroup); 4]>,
}

impl Deinitialization {
    /// `None` if there is nothing to do.
    pub(crate) fn new(
        teardown: Teardown,
        copied: SmallVec<[(AddressRange, AllocGroup); 4]>,
    ) -> Option<Deinitialization> {
        let nothing = teardown.is_nothing() && copied.is_empty();
        (!nothing).then_some(Deinitialization { teardown, copied })
    }

    /// What [`CustomMapper::initialize`] answered; 0 if it had nothing to remember.
    pub fn key(&self) -> u64 {
        self.teardown.key()
    }

    /// What leaves an index.
    pub(crate) fn into_frames(self) -> Option<IndexedFrames> {
        match self.teardown {
            Teardown::Indexed(indexed) => Some(indexed.frames),
            _ => None,
        }
    }

    /// Its copied segments: their code must not run any more, and is best made to trap.
    pub fn segments(&self) -> &[(AddressRange, AllocGroup)] {
        &self.copied
    }
}

/// The segments of an allocation on its way into the executor.
pub(crate) type SegmentContents = SmallVec<[SegmentContent; 4]>;

/// A mapper, by what it reserves.
#[derive(Clone)]
pub(crate) enum MapperInterface {
    /// Windows, which the manager divides.
    Windows(Arc<dyn MemoryMapper>),
    /// A reservation for each allocation.
    Reservations(Arc<dyn ReservingMapper>),
}

/// How frames of linked code become known to the unwinder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum FoundBy {
    /// By actions of the host's, of which nothing is known.
    #[default]
    Actions = 0,
    /// By an index that the executor's unwinder reads. Where content is shared no message is needed for them; else an
    /// action enters them.
    Index = 1,
    /// By actions that register them, since the executor's unwinder asks for no index: that is another program than
    /// jitmem-executor or one that exports jitmem's `_Unwind_Find_FDE`, or its unwinder is not libgcc's.
    UnwinderAsksNone = 2,
    /// By actions that register them, since there was no room for an index of some window.
    NoRoom = 3,
}

/// How frames became known, and of how many allocations.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FrameCounts {
    pub(crate) found_by: FoundBy,
    pub(crate) indexed: u64,
    pub(crate) registered: u64,
}

/// Wrapper functions in the executor, each of which takes an `.eh_frame` section's range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    /// Has the unwinder know it.
    pub(crate) register: u64,
    /// Has it forget it.
    pub(crate) deregister: u64,
}

impl Registration {
    /// The functions of an executor of LLVM's that publishes them.
    pub(crate) fn published(transport: &dyn Transport) -> Option<Registration> {
        let find = |register, deregister| {
            Some(Registration {
                register: transport.symbol(register)?,
                deregister: transport.symbol(deregister)?,
            })
        };
        find(
            "llvm_orc_registerEHFrameAllocAction",
            "llvm_orc_deregisterEHFrameAllocAction",
        )
        .or_else(|| {
            find(
                "__llvm_orc_bootstrap_register_ehframe_section_wrapper",
                "__llvm_orc_bootstrap_deregister_ehframe_section_wrapper",
            )
        })
    }

    /// Leaves one of several actions that register the same section: LLJIT's platforms add LLVM's plugin to a layer
    /// that may have one.
    pub(crate) fn once(self, actions: &mut Vec<Action>) {
        let mut place = 1;
        while place < actions.len() {
            let (before, here) = (&actions[..place], &actions[place]);
            match here.finalize.function() == self.register && before.contains(here) {
                true => drop(actions.remove(place)),
                false => place += 1,
            }
        }
    }

    /// Of this process.
    pub(crate) fn own() -> Registration {
        Registration {
            register: sys::wrapper_address(registration::register_own),
            deregister: sys::wrapper_address(registration::deregister_own),
        }
    }
}

/// What every mapper tells of itself.
pub(crate) trait MapperBase: Send + Sync {
    /// What this mapper is and needs; the answer never changes.
    fn capabilities(&self) -> &Capabilities;

    /// How long the end of a manager is waited for. Only where that may be done in any thread: answers
    /// come in threads of our own, never in one of the host's that may be waiting.
    fn patience(&self) -> Option<Patience> {
        None
    }

    /// When what is asked for now must be answered, if ever.
    fn deadline(&self, _asked: Asked) -> Option<Deadline> {
        None
    }

    /// Through which the executor is asked.
    fn transport(&self) -> Option<&Arc<dyn Transport>> {
        None
    }

    /// Messages sent to the executor, and the bytes of both directions.
    fn traffic(&self) -> (u64, u64) {
        (0, 0)
    }

    /// How frames of linked code become known to the unwinder.
    fn frames(&self) -> FrameCounts {
        FrameCounts::default()
    }

    /// What registers frames in the executor, where that is known.
    fn registration(&self) -> Option<Registration> {
        Registration::published(&**self.transport()?)
    }

    /// What is known of the executor.
    fn executor(&self) -> Option<Arc<ExecutorState>> {
        self.transport().and_then(|transport| transport.executor())
    }
}

/// A mapper whose reservations are windows of chunks. Addresses of a window can be used again once an
/// allocation is gone.
pub(crate) trait MemoryMapper: MapperBase {
    /// Whether all chunks are as they were prepared. Until then an allocation without actions goes
    /// through `initialize` even where the executor sees what is written at once.
    fn settled(&self) -> bool {
        true
    }

    /// Completes once what `reclaim` and `prepare` have begun is done, where a host may end the
    /// connection as soon as it has been told that its memory is free.
    fn quiesce(&self, done: Completion<()>, delivery: &mut Delivery) {
        done.complete_with(Ok(()), delivery);
    }

    /// Reserves a window of `size` bytes or, where that is not to be had, of fewer, down to `least`.
    fn reserve(&self, size: u64, least: u64, placement: Placement, done: Completion<Reserved>);

    /// Gives a chunk its pages and working memory.
    fn prepare(&self, chunk: Chunk) -> Result<Prepared>;

    /// Makes memory writable that was prepared as [`Working::InPlace`] and is about to be handed out. It is,
    /// unless the system refused that when it was deallocated.
    fn open(&self, _memory: AddressRange) -> Result<()> {
        Ok(())
    }

    /// Makes an allocation's content visible with its final protection and runs its finalize
    /// actions first to last. If the n-th fails, the deallocation twins of those before it run
    /// last to first and the answer is the failure of all of them.
    fn initialize(
        &self,
        segments: SegmentContents,
        actions: Vec<Action>,
        done: Completion<Teardown>,
    );

    /// Runs the deallocation actions of a batch, last allocation first. All are run even if some
    /// fail; the answer then holds all failures. The memory is free afterwards in either case.
    fn deinitialize(
        &self,
        allocations: Vec<Deinitialization>,
        done: Completion<()>,
        delivery: &mut Delivery,
    );

    /// Opens or closes the writers of all chunks in these windows. On failure some are open.
    fn set_writers(&self, _windows: &[AddressRange], _open: bool) -> Result<()> {
        Ok(())
    }

    /// Takes back the pages of a chunk that holds no allocation, and whose writer the manager does not use
    /// any more. On failure the chunk stays.
    fn reclaim(&self, chunk: AddressRange) -> Result<()>;

    /// Gives back the memory of some pages of a chunk that was prepared as [`Discards::Pages`]. They hold no
    /// allocation, and read zero afterwards. On failure they may be as they were.
    fn discard(&self, pages: AddressRange) -> Result<()> {
        Err(crate::error::invalid_argument(format!(
            "{pages:?} lies in no chunk of which parts can be given back"
        )))
    }

    /// Has the system put the memory of pages into huge ones, which they are aligned to. What lies there stays;
    /// so does all of it on failure.
    fn collapse(&self, _pages: AddressRange) -> Result<()> {
        Err(Error::new(
            Status::Unsupported,
            "make a huge page: a host's own mapper has its pages itself; have it ask for them",
        ))
    }

    /// Has a part of a chunk show staged pages, so that their content need not be written there. It is an allocation
    /// that was just handed out, of whole pages. `false` if it is to be written.
    ///
    /// # Errors
    /// If the part can never be used again.
    fn adopt(&self, _adoption: Adoption<'_>) -> Result<bool> {
        Ok(false)
    }

    /// Gives back the memory of a chunk that was prepared as [`Discards::AllBut`], but for the pages in
    /// `keep`. Nothing else of it holds an allocation, and it reads zero afterwards. Until the answer no
    /// content that is shared is written there; if there is a writer in the answer, it is the one from then
    /// on. On failure the chunk may be as it was.
    fn keep_only(&self, chunk: AddressRange, _keep: PageSet, done: Completion<Option<Writer>>) {
        done.complete(Err(crate::error::invalid_argument(format!(
            "{chunk:?} is no chunk of which parts can be given back"
        ))));
    }

    /// Whether [`MemoryMapper::prepare_later`] and [`MemoryMapper::reclaim_later`] are to be called in place
    /// of `prepare` and `reclaim`, and may answer after they have returned.
    fn changes_chunks_later(&self) -> bool {
        false
    }

    /// [`MemoryMapper::prepare`] with an answer by completion.
    fn prepare_later(&self, chunk: Chunk, done: Completion<Prepared>) {
        done.complete(self.prepare(chunk));
    }

    /// [`MemoryMapper::reclaim`] with an answer by completion.
    fn reclaim_later(&self, chunk: AddressRange, done: Completion<()>) {
        done.complete(self.reclaim(chunk));
    }

    /// Gives a window back, with every chunk that is left in it. The manager uses none of their writers
    /// any more.
    fn release(&self, window: AddressRange, done: Completion<()>);

    /// The mapper of a group of executors, if it is one.
    fn group(&self) -> Option<&GroupMapper> {
        None
    }
}

/// A mapper whose addresses can't be used again: each allocation has a reservation of its own, which
/// goes as a whole.
pub(crate) trait ReservingMapper: MapperBase {
    /// Reserves `size` bytes, wherever the executor has them.
    fn reserve(&self, size: u64, done: Completion<AddressRange>);

    /// [`MemoryMapper::initialize`] of an allocation that lies in `reservation`. On failure the
    /// reservation is given back.
    fn initialize(
        &self,
        reservation: AddressRange,
        segments: SegmentContents,
        actions: Vec<Action>,
        done: Completion<()>,
    );

    /// Runs the deallocation actions of what lies in reservations, the last reservation first, and gives
    /// all of them back. Takes reservations in which nothing was initialized as well.
    fn release(&self, reservations: Vec<AddressRange>, done: Completion<()>);
}
