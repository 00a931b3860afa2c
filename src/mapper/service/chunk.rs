// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The chunks of a session, and which of them the executor has mapped.
//!
//! The executor is told of a chunk as soon as it is made, while its first graph is still being linked.
//! Only what is finalized before the executor's answer waits for it.

use super::change::{Changes, is_unknown};
use crate::callback_queue::Delivery;
use crate::completion::{Completion, join_all};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::group::Protection;
use crate::lock::Mutex;
use crate::mapper::Chunk;
use crate::memory::pages::PageSet;
use crate::memory::writer::Writer;
use crate::memory::writer_view::WriterView;
use crate::page::AddressRange;
use crate::sys::{self, MemFile};
use crate::unwind::eh_frame::Bytes;
use crate::wire::service::Step;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The chunks that were made and not taken back.
pub(super) struct Chunks {
    changes: Changes,
    private_data: bool,
    by_start: Mutex<BTreeMap<u64, Arc<ExecutorChunk>>>,
    /// Those that the executor has not mapped yet.
    unsettled: Arc<AtomicUsize>,
}

struct ExecutorChunk {
    range: AddressRange,
    /// Bits of the final protection.
    protection: u8,
    commit: bool,
    /// How its content is written; not at all where content travels in messages.
    written: Mutex<Option<Written>>,
    /// [`Chunks::unsettled`]
    unsettled: Arc<AtomicUsize>,
    progress: Mutex<Progress>,
    /// The executor has had it mapped, so that linked code may lie there.
    was_mapped: AtomicBool,
}

/// Where content is written.
pub(super) struct Written {
    pub(super) view: WriterView,
    pub(super) open: bool,
}

/// How far the executor is with a chunk. The file is its memory, if that is shared.
enum Progress {
    /// The executor was told; these wait for its answer.
    UnderWay(Option<Arc<MemFile>>, Vec<Completion<()>>),
    Mapped,
    /// The executor could not, or it is not known; the next allocation in it tries again.
    Failed(Option<Arc<MemFile>>),
}

impl Chunks {
    pub(super) fn new(changes: Changes, private_data: bool) -> Chunks {
        Chunks {
            private_data,
            ..Chunks::counted(changes, Arc::default())
        }
    }

    /// The same without private data, and with the count of those that executors have not mapped yet, which is a
    /// group's.
    pub(super) fn counted(changes: Changes, unsettled: Arc<AtomicUsize>) -> Chunks {
        Chunks {
            changes,
            private_data: false,
            by_start: Mutex::default(),
            unsettled,
        }
    }

    /// Whether the executor has mapped them all.
    pub(super) fn settled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire) == 0
    }

    /// Has the executor map a new chunk: these pages, or pages of its own.
    pub(super) fn add(&self, chunk: Chunk, pages: Option<(WriterView, MemFile)>) {
        let (view, file) = pages.unzip();
        self.add_written(chunk, view, file.map(Arc::new));
    }

    /// The same with pages that are written through `view`, if here at all.
    pub(super) fn add_written(
        &self,
        chunk: Chunk,
        view: Option<WriterView>,
        file: Option<Arc<MemFile>>,
    ) {
        let Chunk {
            range,
            group,
            commit,
        } = chunk;
        let chunk = Arc::new(ExecutorChunk {
            range,
            protection: group.protection.bits() as u8,
            commit,
            written: Mutex::new(view.map(|view| Written { view, open: true })),
            unsettled: Arc::clone(&self.unsettled),
            progress: Mutex::new(Progress::UnderWay(file, Vec::new())),
            was_mapped: AtomicBool::new(false),
        });
        self.unsettled.fetch_add(1, Ordering::AcqRel);
        self.by_start
            .lock()
            .insert(range.start(), Arc::clone(&chunk));
        self.map(&chunk);
    }

    /// Has the executor map a chunk whose progress says that it is under way.
    fn map(&self, chunk: &Arc<ExecutorChunk>) {
        let mapped = Arc::clone(chunk);
        let done = Completion::with_delivery(move |answer, delivery| {
            mapped.answered(answer, delivery);
        });
        let (protection, commit) = (chunk.protection, chunk.commit);
        let range = chunk.range.into();
        // The lock is not held while the request is made: it may be answered inside.
        let file = match &mut *chunk.progress.lock() {
            Progress::UnderWay(file, _) => file.clone(),
            _ => None,
        };
        match file {
            Some(file) if chunk.was_mapped() => self.changes.replace(range, &file, done),
            Some(file) => {
                let private = self.private_data && chunk.is_writable();
                self.changes.map(range, protection, &file, private, done);
            }
            None => {
                let step = Step::MapOwn {
                    range,
                    protection,
                    commit,
                };
                self.changes.make(step, done);
            }
        }
    }

    /// Completes once the executor has mapped every chunk that holds one of these segments.
    pub(super) fn when_mapped(&self, segments: &[AddressRange], done: Completion<()>) {
        let chunks = self.unmapped(segments);
        let each = join_all(chunks.len(), done, &mut Delivery::Inline);
        for (chunk, mapped) in chunks.iter().zip(each) {
            if chunk.when_mapped(mapped) {
                // What came of the message before may not be known.
                if !chunk.was_mapped() {
                    self.unmap(chunk.range, Completion::new(|_| ()));
                }
                self.map(chunk);
            }
        }
    }

    /// The chunks that hold these segments and are not mapped yet.
    fn unmapped(&self, segments: &[AddressRange]) -> SmallVec<[Arc<ExecutorChunk>; 4]> {
        let mut found: SmallVec<[Arc<ExecutorChunk>; 4]> = SmallVec::new();
        if self.settled() {
            return found;
        }
        let chunks = self.by_start.lock();
        for segment in segments {
            let chunk = chunks.range(..=segment.start()).next_back();
            let chunk = chunk.map(|(_, chunk)| chunk);
            if let Some(chunk) = chunk.filter(|chunk| !chunk.is_mapped()) {
                if !found.iter().any(|known| Arc::ptr_eq(known, chunk)) {
                    found.push(Arc::clone(chunk));
                }
            }
        }
        found
    }

    /// Takes a chunk back that holds no allocation.
    pub(super) fn remove(&self, range: AddressRange) -> Result<()> {
        let removed = self.by_start.lock().remove(&range.start());
        let chunk = removed
            .ok_or_else(|| invalid_argument(format!("no chunk starts at {:#x}", range.start())))?;
        // If the executor can't, the chunk that comes in its place is refused there, and says so. What is
        // written goes nowhere until then.
        self.unmap(range, Completion::new(move |_| drop(chunk)));
        Ok(())
    }

    /// Has the executor unmap a chunk, if it has mapped it.
    fn unmap(&self, range: AddressRange, done: Completion<()>) {
        let step = Step::Unmap {
            range: range.into(),
        };
        self.changes.make(step, done);
    }

    /// Opens or closes the views through which these windows are written.
    pub(super) fn set_writers(&self, windows: &[AddressRange], open: bool) -> Result<()> {
        let chunks = self.by_start.lock();
        let mut inside = chunks
            .values()
            .filter(|chunk| windows.iter().any(|window| window.contains(chunk.range)));
        inside.try_for_each(|chunk| match &mut *chunk.written.lock() {
            Some(written) => written.set_open(open),
            None => Ok(()),
        })
    }

    /// Gives the memory of a chunk back, but for some pages: see [`MemoryMapper::keep_only`].
    ///
    /// [`MemoryMapper::keep_only`]: crate::mapper::MemoryMapper::keep_only
    pub(super) fn keep_only(
        &self,
        range: AddressRange,
        keep: PageSet,
        done: Completion<Option<Writer>>,
    ) {
        let chunk = self.by_start.lock().get(&range.start()).cloned();
        let Some(chunk) = chunk.filter(|chunk| chunk.range == range && chunk.is_mapped()) else {
            let message = format!("the executor has not mapped the chunk at {range:?}");
            return done.complete(Err(Error::new(Status::WouldBlock, message)));
        };
        let renewed = match (
            &*chunk.written.lock(),
            Protection::from_bits(chunk.protection.into()),
        ) {
            (Some(written), Ok(protection)) => written
                .view
                .renewed(chunk.range, protection, &keep)
                .map(Some),
            (_, protection) => protection.map(|_| None),
        };
        match renewed {
            Ok(Some((view, file))) => self.replace(chunk, view, file, done),
            Ok(None) => {
                let (range, pages) = (range.into(), keep.into_words());
                let done = done.map(|answer: Result<()>| answer.map(|()| None));
                self.changes.make(Step::Keep { range, pages }, done);
            }
            Err(error) => done.complete(Err(error)),
        }
    }

    /// Has the executor map new pages in place of those of a chunk, and writes them from then on.
    fn replace(
        &self,
        chunk: Arc<ExecutorChunk>,
        view: WriterView,
        file: MemFile,
        done: Completion<Option<Writer>>,
    ) {
        let (range, file) = (chunk.range.into(), Arc::new(file));
        let sent = Arc::clone(&file);
        let replaced = Completion::with_delivery(move |answer, delivery| {
            let writer = chunk.replaced(answer, view, file);
            done.complete_with(writer, delivery);
        });
        self.changes.replace(range, &sent, replaced);
    }

    /// The chunk that a range lies in.
    fn around(&self, part: AddressRange) -> Option<Arc<ExecutorChunk>> {
        let chunks = self.by_start.lock();
        let (_, chunk) = chunks.range(..=part.start()).next_back()?;
        chunk.range.contains(part).then(|| Arc::clone(chunk))
    }

    /// Reads what an allocation that is not finalized yet has in shared pages.
    pub(super) fn read<T>(&self, part: AddressRange, read: impl FnOnce(Bytes) -> T) -> Option<T> {
        let chunk = self.around(part)?;
        let written = chunk.written.lock();
        written.as_ref()?.read(chunk.range, part, read)
    }

    /// Gives back pages that both processes have.
    pub(super) fn discard(&self, pages: AddressRange) -> Result<()> {
        self.with_view(pages, |view, offset, size| {
            view.discard(offset, size).map_err(|error| {
                sys::explain_mapping(format_args!("give back {size} bytes of a chunk"), error)
            })
        })
    }

    /// Has the system put pages that both processes have into huge ones.
    pub(super) fn collapse(&self, pages: AddressRange) -> Result<()> {
        self.with_view(pages, |view, offset, size| {
            view.collapse(offset, size)
                .map_err(|error| sys::explain_mapping("make a huge page", error))
        })
    }

    /// Has something done with the view through which pages are written, from an offset on with so many bytes.
    fn with_view(
        &self,
        pages: AddressRange,
        act: impl FnOnce(&WriterView, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let chunk = self.around(pages);
        let elsewhere = || invalid_argument(format!("{pages:?} lies in no chunk of shared pages"));
        let chunk = chunk.ok_or_else(elsewhere)?;
        let (offset, size) = (pages.start() - chunk.range.start(), pages.size());
        match &*chunk.written.lock() {
            Some(written) => act(&written.view, offset, size),
            None => Err(elsewhere()),
        }
    }

    /// Forgets the chunks of a window that is given back.
    pub(super) fn forget_within(&self, window: AddressRange) {
        let mut chunks = self.by_start.lock();
        chunks.retain(|_, chunk| !window.contains(chunk.range));
    }
}

impl Written {
    /// Reads a part of a chunk that is not finalized yet, if the view is open.
    #[allow(unsafe_code)]
    pub(super) fn read<T>(
        &self,
        chunk: AddressRange,
        part: AddressRange,
        read: impl FnOnce(Bytes) -> T,
    ) -> Option<T> {
        if !self.open || !chunk.contains(part) {
            return None;
        }
        let address = self.view.address() + (part.start() - chunk.start());
        // SAFETY: the view is open and stays while it is borrowed. The linker, which alone writes there, has done.
        Some(read(unsafe { Bytes::new(part, address) }))
    }

    pub(super) fn set_open(&mut self, open: bool) -> Result<()> {
        self.view.set_open(open)?;
        self.open = open;
        Ok(())
    }
}

impl ExecutorChunk {
    fn is_writable(&self) -> bool {
        let protection = Protection::from_bits(self.protection.into());
        protection.is_ok_and(Protection::writable)
    }

    fn was_mapped(&self) -> bool {
        self.was_mapped.load(Ordering::Acquire)
    }

    /// The executor has answered whether it has new pages in place of those from before. Gives how they
    /// are written.
    #[allow(unsafe_code)]
    fn replaced(
        &self,
        answer: Result<()>,
        view: WriterView,
        file: Arc<MemFile>,
    ) -> Result<Option<Writer>> {
        match answer {
            // Both hold the same so far. Before anything new counts on it, the executor is told again.
            Err(error) if is_unknown(&error) => {
                let mut progress = self.progress.lock();
                if matches!(*progress, Progress::Mapped) {
                    *progress = Progress::Failed(Some(file));
                    self.unsettled.fetch_add(1, Ordering::AcqRel);
                }
            }
            answer => answer?,
        }
        let mut written = self.written.lock();
        let mut new = Written { view, open: true };
        if written.as_ref().is_some_and(|written| !written.open) {
            // One that stays open is closed the next time.
            let _ = new.set_open(false);
        }
        // SAFETY: the view stays as the one before it would have stayed, which the manager writes no more.
        let writer = unsafe { new.view.writer() };
        *written = Some(new);
        Ok(Some(writer))
    }

    fn is_mapped(&self) -> bool {
        matches!(*self.progress.lock(), Progress::Mapped)
    }

    fn answered(&self, answer: Result<()>, delivery: &mut Delivery) {
        let waiting = {
            let mut progress = self.progress.lock();
            let (file, waiting) = match std::mem::replace(&mut *progress, Progress::Mapped) {
                Progress::UnderWay(file, waiting) => (file, waiting),
                _ => (None, Vec::new()),
            };
            match &answer {
                Ok(()) => {
                    self.was_mapped.store(true, Ordering::Release);
                    self.unsettled.fetch_sub(1, Ordering::AcqRel);
                }
                Err(_) => *progress = Progress::Failed(file),
            }
            waiting
        };
        for done in waiting {
            done.complete_with(answer.clone(), delivery);
        }
    }

    /// Completes once the executor has mapped it; `true` if it must be told again.
    fn when_mapped(&self, done: Completion<()>) -> bool {
        let mut progress = self.progress.lock();
        match &mut *progress {
            Progress::Mapped => {
                drop(progress);
                done.complete(Ok(()));
                false
            }
            Progress::UnderWay(_, waiting) => {
                waiting.push(done);
                false
            }
            Progress::Failed(file) => {
                *progress = Progress::UnderWay(file.take(), vec![done]);
                true
            }
        }
    }
}

impl Drop for ExecutorChunk {
    fn drop(&mut self) {
        if !matches!(self.progress.get_mut(), Progress::Mapped) {
            self.unsettled.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
