// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Writing what is finalized, while linked code may run.

use super::core::Core;
use super::flow::{Flow, manager_freed};
use super::piece::Place;
use super::windows::Windows;
use crate::callback_queue::Delivery;
use crate::completion::{Completion, wait};
use crate::error::{Error, Result, Status, invalid_argument, invalid_handle};
use crate::group::AllocGroup;
use crate::mapper::{Kind, SegmentContent, Teardown};
use crate::memory::writer::{Word, Writer};
use crate::page::AddressRange;
use crate::sys::{self, OwnerProcess};
use crate::transport::limits::Asked;
use smallvec::SmallVec;
use std::fmt;
use std::sync::Arc;

/// A segment of an allocation that is being written.
pub(super) struct OpenSegment {
    pub(super) range: AddressRange,
    pub(super) group: AllocGroup,
    /// `None` where content is not written in place.
    pub(super) writer: Option<Writer>,
    /// Forked children see it, or the parent.
    frozen: bool,
    /// Offsets from the first to behind the last byte that may have been changed.
    changed: Option<(u64, u64)>,
}

impl OpenSegment {
    pub(super) fn new(place: Place) -> Self {
        let Place {
            range,
            group,
            writer,
            frozen,
        } = place;
        OpenSegment {
            range,
            group,
            writer,
            frozen,
            changed: None,
        }
    }

    fn note(&mut self, offset: u64, size: u64) {
        let (first, end) = self.changed.unwrap_or((offset, offset + size));
        self.changed = Some((first.min(offset), end.max(offset + size)));
    }

    /// Where code may have been changed.
    fn changed_code(&self) -> Option<AddressRange> {
        let executable = self.group.protection.executable();
        let (first, end) = self.changed.filter(|_| executable)?;
        self.range.part(first, end - first)
    }
}

pub(super) type OpenSegments = SmallVec<[OpenSegment; 3]>;

/// The right to write code and data of one finalized allocation while linked code may run them: inline
/// caches, the targets of stubs, breakpoints of a host's own. [`Manager::write_scope`](super::Manager::write_scope)
/// makes it; [`WriteScope::end`] or dropping it ends it.
///
/// Addresses are the executor's. What is stored is seen by linked code at once, in another process too,
/// and no page is writable and executable for it. When the scope has ended, every thread of this process
/// has done what its processor asks for before it runs code that was changed before the end. Scopes
/// do not exclude each other: threads that write the same bytes agree among themselves on the order.
///
/// An allocation whose scope is open is not deallocated: a deallocation waits until it ends.
///
/// After a fork its code and constants are the other process's too and are not stored to any more; a
/// [`WriteScope::pointer`] of before must not be used for them.
pub struct WriteScope {
    flow: Arc<Flow<Windows>>,
    handle: u64,
    thread: u64,
    /// The last fork that its segments were looked at after.
    forks: u32,
    segments: OpenSegments,
    /// The process that has the writer views.
    owner: OwnerProcess,
    ended: bool,
}

impl Core {
    /// Opens a finalized allocation for writing.
    pub(crate) fn write_scope(&self, handle: u64) -> Result<WriteScope> {
        match self.windows_of(handle) {
            Some(flow) => flow.counted(WriteScope::begin(flow, handle)),
            None => Err(refused(Kind::LlvmSimple)),
        }
    }
}

/// Why content is not written in place, and what to choose.
fn refused(kind: Kind) -> Error {
    let why = match kind {
        Kind::Mprotect => {
            "write code or constants after finalize: this process's mprotect mapper has one view, \
             whose protection would have to change under running code; choose two views \
             (JITMEM_IN_PROCESS_TWO_VIEWS, or JITMEM_DEBUG=0), or keep what changes in writable data"
        }
        Kind::InPlace => {
            "write code or constants after finalize: memory in place has one view, which is sealed then; \
             choose two views (JITMEM_IN_PROCESS_TWO_VIEWS), or keep what changes in writable data"
        }
        Kind::Custom => {
            "write after finalize: the memory is the host's own mapper's; write it there"
        }
        _ => {
            "write after finalize: the memory is written by messages, which can't store while linked \
             code runs; choose a mapper with shared pages, or have a function in the executor write it"
        }
    };
    Error::new(Status::Unsupported, why)
}

#[cold]
fn private_data(address: u64, size: u64) -> Error {
    Error::new(
        Status::Unsupported,
        format!(
            "write {size} bytes at {address:#x}: data is the executor's own once it is finalized, and is \
             as it was then in another process that takes its place; have a function in the executor \
             write it"
        ),
    )
}

impl WriteScope {
    fn begin(flow: &Arc<Flow<Windows>>, handle: u64) -> Result<WriteScope> {
        flow.check_process()?;
        let kind = flow.mapper.capabilities().kind;
        if ![Kind::TwoViews, Kind::Mprotect, Kind::InPlace, Kind::Shared].contains(&kind) {
            return Err(refused(kind));
        }
        let thread = sys::thread_number();
        let forks = sys::fork_epoch();
        let writers = flow.open_writers()?;
        let space = &mut *flow.lock_to_write(handle)?;
        let segments = space.open_segments(handle)?;
        space.scopes.begin(handle, thread)?;
        writers.keep();
        Ok(WriteScope {
            flow: Arc::clone(flow),
            handle,
            thread,
            forks,
            segments,
            owner: OwnerProcess::current(),
            ended: false,
        })
    }

    /// What was no other process's when the scope began may be by now.
    fn look_again_after_forks(&mut self) -> Result<()> {
        let forks = sys::fork_epoch();
        if forks != self.forks {
            let now = self.flow.space.lock().open_segments(self.handle)?;
            for (segment, now) in self.segments.iter_mut().zip(now) {
                segment.frozen = now.frozen;
            }
            self.forks = forks;
        }
        Ok(())
    }

    /// The writer of `size` bytes at an address of the executor's, which count as changed.
    fn writer(&mut self, address: u64, size: u64) -> Result<Writer> {
        if !self.owner.is_current() {
            return Err(invalid_handle(
                "this write scope belongs to the parent process; begin one here",
            ));
        }
        self.look_again_after_forks()?;
        let wanted = AddressRange::new(address, size);
        let contains = |segment: &&mut OpenSegment| {
            wanted.is_some_and(|wanted| segment.range.contains(wanted))
        };
        let Some(segment) = self.segments.iter_mut().find(contains) else {
            return Err(invalid_argument(format!(
                "write {size} bytes at {address:#x}: they are not inside one segment of allocation \
                 {:#x}",
                self.handle
            )));
        };
        if segment.frozen {
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "write {size} bytes at {address:#x}: this process was forked since they were \
                     allocated, and the other process sees the same page; link it anew, keep what \
                     changes in writable data, or choose JITMEM_FORK_REUSE"
                ),
            ));
        }
        let kind = self.flow.mapper.capabilities().kind;
        let writable = segment.group.protection.writable();
        if writable && self.flow.mapper.capabilities().private_data {
            return Err(private_data(address, size));
        }
        let sealed = kind == Kind::InPlace && !writable;
        let writer = segment.writer.filter(|_| !sealed);
        let writer = writer.ok_or_else(|| refused(kind))?;
        let offset = address - segment.range.start();
        segment.note(offset, size);
        Ok(writer.part_of(offset as u32, size as u32))
    }

    fn store(&mut self, address: u64, word: Word) -> Result<()> {
        let size = word.size();
        if address % size != 0 {
            return Err(invalid_argument(format!(
                "store {size} bytes at {address:#x}: an address that is no multiple of {size} is \
                 not stored at once"
            )));
        }
        self.writer(address, size)?.store(word)
    }

    /// Stores 4 bytes at once: linked code sees all of the new value or all of the old one.
    ///
    /// # Errors
    /// `InvalidArgument` for an address that is outside the allocation or no multiple of 4;
    /// `Unsupported` for a segment that this mapper does not write in place.
    pub fn store_4(&mut self, address: u64, value: u32) -> Result<()> {
        self.store(address, Word::Four(value))
    }

    /// Stores 8 bytes at once, as [`WriteScope::store_4`].
    ///
    /// # Errors
    /// As [`WriteScope::store_4`], for multiples of 8.
    pub fn store_8(&mut self, address: u64, value: u64) -> Result<()> {
        self.store(address, Word::Eight(value))
    }

    /// Stores 16 bytes at once, as [`WriteScope::store_4`].
    ///
    /// # Errors
    /// As [`WriteScope::store_4`], for multiples of 16; `Unsupported` also on a processor that has no
    /// such store.
    pub fn store_16(&mut self, address: u64, value: u128) -> Result<()> {
        self.store(address, Word::Sixteen(value))
    }

    /// Writes any number of bytes, in no order: for what linked code does not use meanwhile.
    ///
    /// # Errors
    /// `InvalidArgument` for bytes that are not inside one segment; `Unsupported` as
    /// [`WriteScope::store_4`].
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        let writer = self.writer(address, bytes.len() as u64)?;
        writer.write(0, bytes);
        Ok(())
    }

    /// Where `size` bytes are written, for hosts that write themselves, until the scope ends. It is no
    /// Rust object, so no reference may be made of it.
    ///
    /// # Errors
    /// As [`WriteScope::write`].
    pub fn pointer(&mut self, address: u64, size: u64) -> Result<*mut u8> {
        Ok(self.writer(address, size)?.pointer().get())
    }

    /// Ends the scope: what was written before is what every thread of this process runs from now on.
    /// Waits for an executor only where its processor needs cache maintenance.
    ///
    /// # Errors
    /// What the executor answers. The scope has ended all the same.
    pub fn end(mut self) -> Result<()> {
        self.end_and_wait()
    }

    pub(crate) fn end_and_wait(&mut self) -> Result<()> {
        wait(|done| self.finish(done))
    }

    fn finish(&mut self, done: Completion<()>) {
        if std::mem::replace(&mut self.ended, true) {
            return done.complete(Ok(()));
        }
        let (flow, handle, thread) = (Arc::clone(&self.flow), self.handle, self.thread);
        let done = flow.in_time(Asked::Memory, done, |_, _, _| ());
        let visible = Completion::with_delivery(move |answer: Result<Teardown>, delivery| {
            flow.end_scope(handle, thread);
            done.complete_with(answer.map(drop), delivery);
        });
        let code: SmallVec<[SegmentContent; 4]> =
            self.segments.iter().filter_map(changed).collect();
        if code.is_empty() || self.flow.is_coherent() {
            self.flow.publish(&code);
            return visible.complete(Ok(Teardown::Nothing));
        }
        // Without actions and content it is no more than cache maintenance.
        let mapper = Arc::clone(&self.flow.mapper);
        mapper.initialize(code, Vec::new(), visible);
    }
}

/// What of a segment must be made visible to instruction fetch.
fn changed(segment: &OpenSegment) -> Option<SegmentContent> {
    Some(SegmentContent {
        range: segment.changed_code()?,
        group: segment.group,
        content: None,
        zeroed: true,
    })
}

impl Drop for WriteScope {
    fn drop(&mut self) {
        self.finish(Completion::new(|_| ()));
    }
}

impl fmt::Debug for WriteScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<AddressRange> = self.segments.iter().map(|one| one.range).collect();
        f.debug_tuple("WriteScope").field(&ranges).finish()
    }
}

impl Flow<Windows> {
    /// Has every core of this process forget what it has fetched of code that was changed, where that
    /// is coherent with stores.
    fn publish(&self, code: &[SegmentContent]) {
        for segment in code {
            self.flush_here(segment.range);
        }
        if !code.is_empty() && self.mapper.capabilities().in_this_process {
            sys::synchronize_cores();
        }
    }

    fn end_scope(self: &Arc<Self>, handle: u64, thread: u64) {
        // A forked child has no part in what its parent writes.
        if self.check_process().is_err() {
            return;
        }
        let waiting = self.space.lock().scopes.end(handle, thread);
        self.end_keeping_writers(thread);
        for waiting in waiting {
            // It may be about other arenas' allocations too.
            match self.arenas() {
                Some(arenas) => arenas.deallocate(&waiting.handles, waiting.done),
                None => waiting.done.complete(Err(manager_freed())),
            }
        }
    }

    /// Deallocates once no write scope holds the allocations back.
    pub(super) fn deallocate_after_scopes(self: &Arc<Self>, handles: &[u64], done: Completion<()>) {
        let mut space = self.space.lock();
        if space.scopes.hold(handles) {
            let refused = space.scopes.wait(handles, done);
            drop(space);
            if let Some((error, done)) = refused {
                self.failed(error, done, &mut Delivery::Inline);
            }
            return;
        }
        drop(space);
        // They have ended in the meantime.
        self.deallocate(handles, done);
    }
}
