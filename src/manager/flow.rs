// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What all requests to managers of one kind share.
//!
//! Whatever calls the mapper or a completion may find the host's last handle gone afterwards, so
//! it holds an `Arc` of its own; the path that calls neither does without.

use super::Options;
use super::arenas::{Arenas, MOST_ARENAS};
use super::huge_pages::HugePageCounts;
use super::in_flight::ContentWriters;
use super::lookup::{Location, ManagerReader};
use super::space::{Memory, Space};
use super::stats::{self, LayoutItem, Stats};
use super::tracking::Tracking;
use super::writers::WriterAccess;
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, invalid_argument, invalid_handle};
use crate::lock::Condvar;
use crate::mapper::{Kind, MapperBase};
use crate::memory::buffer::BufferPool;
use crate::memory::placement::random;
use crate::sys::{self, AtForkMutex, OwnerProcess, heap};
use crate::transport::deadlines::limited;
use crate::transport::limits::Asked;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

pub(super) struct Flow<M: Memory> {
    pub(super) mapper: Arc<M::Mapper>,
    pub(super) options: Options,
    pub(super) space: AtForkMutex<Space<M>>,
    /// What look-ups have of the manager, which take no lock.
    pub(super) reader: Arc<ManagerReader>,
    pub(super) unlocked: M::Unlocked,
    /// A chunk is held no more, so that it may be written; or a trim has ended.
    pub(super) unheld: Condvar,
    /// What is known of allocations besides.
    pub(super) tracking: Arc<Tracking>,
    /// Working memory of content that the mapper copies.
    pub(super) buffers: Arc<BufferPool>,
    /// The process that made the manager, if no other may use it.
    owner: Option<OwnerProcess>,
    /// The mapper shares working memory, and has not copied for any chunk yet.
    shared: AtomicBool,
    /// What is written there is there for the executor at once.
    coherent: bool,
    /// The host has freed the manager.
    closed: AtomicBool,
    pub(super) huge_pages: HugePageCounts,
    /// The mapper limits how long requests may take.
    limited: bool,
    /// Of a manager that closes its writer views.
    pub(super) writer_access: Option<WriterAccess>,
    /// The first arena, if this is another one.
    pub(super) first: Option<Arc<Flow<M>>>,
    /// All arenas, for the first one of a manager that divides windows.
    pub(super) arenas: OnceLock<Weak<Arenas>>,
    /// What arenas had that are gone, for the first one.
    left: AtForkMutex<Vec<Space<M>>>,
}

pub(super) fn manager_freed() -> Error {
    invalid_handle("the manager was freed while the request waited")
}

/// The error in a process where locks may be held by threads that it does not have.
#[cold]
pub(super) fn child_without_handlers() -> Error {
    invalid_handle(
        "this process was made by _Fork or clone, without fork handlers, so that jitmem can't be used \
         in it; it may run what was linked before; make it by fork, or start another program in it; if fork \
         made it, a fork handler asks that was registered before jitmem's and runs first: ask after those",
    )
}

impl<M: Memory> Flow<M> {
    pub(super) fn new(mapper: Arc<M::Mapper>, memory: M, options: Options) -> Arc<Self> {
        let mut space = Space::new(memory, options.quota, random());
        let here = mapper.capabilities().in_this_process;
        let reader = ManagerReader::new(here, space.records.reader());
        space.memory.read_by(&reader);
        let tracking = Tracking::new(&options);
        if let Some(executor) = mapper.executor() {
            tracking.hear_of_restarts(&executor);
        }
        Arc::new(Flow::of(mapper, space, reader, tracking, options, None))
    }

    /// Another arena of a manager, with memory of its own.
    pub(super) fn of_arena(first: &Arc<Self>, memory: M, arena: usize) -> Arc<Self> {
        let records = first.space.lock().records.of_arena(arena);
        let mut space = Space::of(memory, records, None);
        let reader = first.reader.of_arena(space.records.reader());
        space.memory.read_by(&reader);
        let (mapper, tracking) = (Arc::clone(&first.mapper), Arc::clone(&first.tracking));
        // So that there is room for what it has when it goes.
        first.left.lock().reserve(MOST_ARENAS);
        let options = first.options.clone();
        let first = Some(Arc::clone(first));
        Arc::new(Flow::of(mapper, space, reader, tracking, options, first))
    }

    fn of(
        mapper: Arc<M::Mapper>,
        space: Space<M>,
        reader: Arc<ManagerReader>,
        tracking: Arc<Tracking>,
        options: Options,
        first: Option<Arc<Flow<M>>>,
    ) -> Self {
        let capabilities = mapper.capabilities();
        // A child has a process's own memory too, and only a host can know what its mapper does there.
        let limited = |asked| mapper.deadline(asked).is_some();
        let limited = limited(Asked::Memory) || limited(Asked::Code);
        let here = matches!(
            capabilities.kind,
            Kind::TwoViews | Kind::Mprotect | Kind::InPlace | Kind::Custom
        );
        Flow {
            owner: (!here).then(OwnerProcess::current),
            shared: AtomicBool::new(capabilities.shared),
            coherent: capabilities.coherent,
            reader,
            unlocked: space.memory.unlocked(),
            unheld: Condvar::new(),
            space: AtForkMutex::new(space, |space, forked| {
                space.memory.forked(forked);
                if forked.in_child {
                    space.scopes.keep_own();
                }
            }),
            tracking,
            limited,
            mapper,
            writer_access: options.close_writers.then(WriterAccess::new),
            options,
            buffers: Arc::default(),
            closed: AtomicBool::new(false),
            huge_pages: HugePageCounts::default(),
            first,
            arenas: OnceLock::new(),
            left: AtForkMutex::default(),
        }
    }

    /// Answers what waits; nothing new comes.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        if self.check_process().is_ok() {
            let (waiting, deallocations) = {
                let mut space = self.space.lock();
                (space.memory.take_waiting(), space.scopes.take_waiting())
            };
            waiting
                .into_iter()
                .for_each(|waiting| waiting.done.complete(Err(manager_freed())));
            deallocations
                .into_iter()
                .for_each(|waiting| waiting.done.complete(Err(manager_freed())));
        }
    }

    /// What is written to working memory is written in the executor.
    pub(super) fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Acquire)
    }

    /// And the executor runs it without more ado.
    pub(super) fn is_coherent(&self) -> bool {
        self.coherent && self.is_shared()
    }

    /// Notes that a mapper that shares pages copies for a chunk.
    pub(super) fn set_copying(&self) {
        self.shared.store(false, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn check_process(&self) -> Result<()> {
        match &self.owner {
            _ if !sys::children_are_known() => Err(child_without_handlers()),
            Some(owner) if !owner.is_current() => Err(invalid_handle(
                "this manager belongs to the parent process: a forked child shares its connection to the \
                 executor and must leave it alone; connect to an executor of the child's own, and make a \
                 mapper and a manager over that",
            )),
            _ => Ok(()),
        }
    }

    /// Counts a failure. Not in a forked child, where another thread may have held the lock.
    #[inline]
    pub(super) fn counted<T>(&self, answer: Result<T>) -> Result<T> {
        if answer.is_err() {
            self.count_failure();
        }
        answer
    }

    #[cold]
    fn count_failure(&self) {
        if self.check_process().is_ok() {
            self.space.lock().usage.counters.failures += 1;
        }
    }

    pub(super) fn failed<T>(&self, error: Error, done: Completion<T>, delivery: &mut Delivery) {
        done.complete_with(self.counted(Err(error)), delivery);
    }

    /// The completion of a request that must be answered in time. The memory that it is about is not free
    /// before the executor has answered: then `late` does what the host can't do any more.
    pub(super) fn in_time<T: Send + 'static>(
        self: &Arc<Self>,
        asked: Asked,
        done: Completion<T>,
        late: impl FnOnce(Arc<Self>, Result<T>, &mut Delivery) + Send + 'static,
    ) -> Completion<T> {
        let deadline = match self.limited {
            true => self.mapper.deadline(asked),
            false => None,
        };
        let Some(deadline) = deadline else {
            return done;
        };
        let (flow, transport) = (Arc::clone(self), self.mapper.transport().cloned());
        limited(done, deadline, transport, move |answer, delivery| {
            if let (Some(executor), true) = (flow.mapper.executor(), answer.is_ok()) {
                executor.dropped_late();
            }
            late(flow, answer, delivery)
        })
    }

    /// Answers as the last thing: a callback that frees the manager finds it the last holder.
    pub(super) fn answer_last<T>(
        self: Arc<Self>,
        answer: Result<T>,
        done: Completion<T>,
        delivery: &mut Delivery,
    ) {
        let answer = self.counted(answer);
        drop(self);
        done.complete_with(answer, delivery);
    }

    /// Gives pages of the tables of allocations back, of which nothing is used. The lock is not held
    /// while the system takes them.
    #[cold]
    pub(super) fn discard_records(&self) {
        let tables = self.space.lock().tables();
        for table in tables.into_iter().flatten() {
            loop {
                let idle = {
                    let _guard = self.space.lock();
                    table.take_idle()
                };
                if idle.is_empty() {
                    break;
                }
                table.discard(&idle);
                let _guard = self.space.lock();
                table.give_blocks(&idle);
            }
        }
    }

    /// Gives all memory back of what is noted of allocations that are gone.
    pub(super) fn trim_records(&self) {
        self.discard_records();
        self.space.lock().records.trim();
    }

    // ---- looking and writing ----

    #[allow(unsafe_code)]
    pub(super) fn write(
        &self,
        handle: u64,
        segment: usize,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        self.check_process()?;
        let space = &mut *self.space.lock();
        // SAFETY: the lock is held until the end, so it stays in flight.
        let content = unsafe { space.content(handle, segment) }?;
        let end = offset.checked_add(bytes.len() as u64);
        let writer = content.filter(|content| end.is_some_and(|end| end <= content.size()));
        let writer = writer.ok_or_else(|| {
            invalid_argument(format!(
                "write {} bytes at offset {offset} of segment {segment}: outside its content",
                bytes.len()
            ))
        })?;
        writer.write(offset, bytes);
        Ok(())
    }

    /// What writes the content of an allocation's segments.
    ///
    /// # Safety
    /// It is used only as long as the allocation is in flight.
    #[allow(unsafe_code)]
    pub(super) unsafe fn contents(&self, handle: u64, segments: usize) -> Result<ContentWriters> {
        self.check_process()?;
        let space = &mut *self.space.lock();
        let contents = (0..segments).map(|segment| {
            // SAFETY: as the caller says.
            let content = unsafe { space.content(handle, segment) }?;
            content.ok_or_else(|| invalid_argument(format!("segment {segment} has no memory")))
        });
        contents.collect()
    }

    pub(super) fn set_quota(&self, quota: Option<u64>) -> Result<()> {
        self.check_process()?;
        self.space.lock().usage.quota = quota;
        Ok(())
    }

    /// See [`Manager::walk`](super::Manager::walk).
    #[cold]
    pub(super) fn walk(&self, visit: &mut dyn FnMut(&Location)) -> Result<()> {
        self.check_process()?;
        let mut next = Some(0);
        while let Some(from) = next {
            let mut batch = Vec::new();
            next = self.space.lock().locate(&self.reader, from, &mut batch)?;
            batch.iter().for_each(&mut *visit);
        }
        Ok(())
    }

    pub(super) fn stats(&self) -> Stats {
        let window_size = self.options.window_size;
        let traffic = self.mapper.traffic();
        let executor = self.mapper.executor();
        stats::collect(
            &self.space.lock(),
            self.mapper.capabilities(),
            traffic,
            self.mapper.frames(),
            executor.as_deref(),
            &self.huge_pages,
            window_size,
        )
    }

    pub(super) fn layout(&self) -> Result<Vec<LayoutItem>> {
        let mut items = Vec::new();
        self.add_layout(&mut items)?;
        let named = self.tracking.name_ranges(&mut items);
        named.map_err(|_| heap::exhausted("layout"))?;
        stats::sort_layout(&mut items);
        Ok(items)
    }

    /// Adds windows, chunks and ranges, in no order and without names.
    pub(super) fn add_layout(&self, items: &mut Vec<LayoutItem>) -> Result<()> {
        let mut room = Ok(());
        self.space.lock().visit(&mut |item| {
            if room.is_ok() {
                room = items.try_reserve(1);
            }
            if room.is_ok() {
                items.push(item);
            }
        });
        room.map_err(|_| heap::exhausted("layout"))
    }
}

impl<M: Memory> Drop for Flow<M> {
    /// The mapper lives on in the completions until it has answered.
    fn drop(&mut self) {
        if self.check_process().is_err() {
            return;
        }
        if let Some(first) = &self.first {
            // What is left ends with what all others have left, last to first.
            let space = M::take(&mut self.space.lock(), &self.mapper);
            return first.left.lock().extend(space);
        }
        self.tracking.end();
        let others = std::mem::take(&mut *self.left.lock());
        let end = M::end(&mut self.space.lock(), others, Arc::clone(&self.mapper));
        match self.mapper.patience() {
            // When the host has freed a manager, its actions are done and its memory is gone.
            Some(patience) => patience.wait(end),
            None => {
                let keep = Arc::clone(&self.mapper);
                end(Completion::new(move |_| drop(keep)));
            }
        }
    }
}
