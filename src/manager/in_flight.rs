// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! An allocation while its content is written, as Rust hosts have it.

use super::core::Core;
use super::{Allocated, AllocationHandle, SegmentMemory};
use crate::completion::{Completion, wait};
use crate::error::{Result, invalid_handle};
use crate::group::Protection;
use crate::mapper::{Action, Registration};
use crate::memory::staged::{Adoption, StagedFile};
use crate::memory::writer::Writer;
use crate::page::AddressRange;
use crate::sys::OwnFile;
use smallvec::SmallVec;
use std::fmt;
use std::io;
use std::ops::Range;

/// An allocation whose content is being written: from [`Manager::allocate`](super::Manager::allocate)
/// to [`InFlight::finalize`]. Dropping it gives it up.
///
/// It keeps the manager's memory, which is given back once neither is left.
#[must_use = "dropping it gives the memory back"]
pub struct InFlight {
    core: Core,
    /// 0 once it was handed on.
    handle: u64,
    segments: SmallVec<[SegmentMemory; 4]>,
}

impl InFlight {
    pub(super) fn new(core: &Core, allocated: Allocated) -> InFlight {
        InFlight {
            core: core.clone(),
            handle: allocated.handle,
            segments: allocated.segments,
        }
    }

    /// Number of segments, those without memory included.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Where a segment is in the executor; 0 for one without memory. It is nothing that may be read,
    /// written or called before finalize.
    ///
    /// # Panics
    /// If there is no such segment.
    pub fn address(&self, segment: usize) -> u64 {
        self.segments[segment].address
    }

    /// Where a segment's content is written, for linkers that write it in place; null for one without
    /// memory. Content is as aligned as the segment asks for, up to a page.
    ///
    /// As many bytes as the segment's content has may be written there, in one thread at a time, until
    /// finalize or abandon is called or this value is dropped. It is no Rust object: another process
    /// may have the same pages, so no reference may be made of it.
    ///
    /// # Panics
    /// If there is no such segment.
    pub fn working_memory(&self, segment: usize) -> *mut u8 {
        self.segments[segment].working_memory.get()
    }

    /// Writes bytes into a segment's content, from `offset` on. Content that is never written is zero
    /// or what lay there before.
    ///
    /// # Errors
    /// `InvalidArgument` for bytes outside the content; `InvalidHandle` in a forked child.
    pub fn write(&mut self, segment: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.core.write(self.handle, segment, offset, bytes)
    }

    /// The content of all segments. Each of them has memory.
    ///
    /// # Errors
    /// `InvalidHandle` in a forked child.
    #[allow(unsafe_code)]
    pub(crate) fn contents(&mut self) -> Result<Contents<'_>> {
        // SAFETY: what has it borrows this value, which alone ends its flight.
        let writers = unsafe { self.core.contents(self.handle, self.segments.len()) }?;
        Ok(Contents {
            writers,
            graph: self,
        })
    }

    /// Makes the content visible in the executor and runs the finalize actions, first to last. Waits
    /// for the mapper. For a mapper of this process the actions run in this thread.
    ///
    /// # Errors
    /// `ActionFailed`: the deallocation twins of the actions before the one that failed have run, last
    /// to first. `OutOfMemory`, `Denied`, what the mapper answers. `InvalidHandle` if the manager was dropped: nothing
    /// else would keep its memory then. The memory is free again.
    pub fn finalize(self, actions: impl IntoIterator<Item = Action>) -> Result<AllocationHandle> {
        self.check_manager()?;
        self.finalize_kept(actions)
    }

    /// [`InFlight::finalize`] where something else keeps the manager's memory.
    pub(super) fn finalize_kept(
        self,
        actions: impl IntoIterator<Item = Action>,
    ) -> Result<AllocationHandle> {
        let actions = actions.into_iter().collect();
        let (core, handle) = self.hand_on();
        core.finalize_and_wait(handle, actions)
            .map(AllocationHandle)
    }

    /// [`InFlight::finalize`] without waiting.
    pub fn finalize_async(
        self,
        actions: impl IntoIterator<Item = Action>,
        callback: impl FnOnce(Result<AllocationHandle>) + Send + 'static,
    ) {
        if let Err(error) = self.check_manager() {
            drop(self);
            return callback(Err(error));
        }
        let actions = actions.into_iter().collect();
        let (core, handle) = self.hand_on();
        let callback = move |answer: Result<u64>| callback(answer.map(AllocationHandle));
        core.finalize(handle, actions, Completion::for_host(callback));
    }

    /// [`InFlight::finalize`] without actions if that takes no waiting.
    ///
    /// # Errors
    /// The allocation itself if it does, and nothing is done.
    pub fn try_finalize(mut self) -> Result<Result<AllocationHandle>, InFlight> {
        if let Err(error) = self.check_manager() {
            return Ok(Err(error));
        }
        match self.core.try_finalize(self.handle) {
            Some(answer) => {
                let handle = std::mem::take(&mut self.handle);
                Ok(answer.map(|()| AllocationHandle(handle)))
            }
            None => Err(self),
        }
    }

    /// Gives the memory back. Waits for the mapper.
    ///
    /// # Errors
    /// What the mapper answers; the memory is free all the same.
    pub fn abandon(self) -> Result<()> {
        let (core, handle) = self.hand_on();
        wait(|done| core.abandon(handle, done))
    }

    /// [`InFlight::abandon`] without waiting. Dropping it is the same without a callback.
    pub fn abandon_async(self, callback: impl FnOnce(Result<()>) + Send + 'static) {
        let (core, handle) = self.hand_on();
        core.abandon(handle, Completion::for_host(callback));
    }

    /// What registers frames in its executor.
    pub(crate) fn registration(&self) -> Result<Registration> {
        self.core.registration()
    }

    fn check_manager(&self) -> Result<()> {
        match self.core.is_closed() {
            true => Err(invalid_handle(
                "finalize: the manager was freed while this was in flight; link it into another",
            )),
            false => Ok(()),
        }
    }

    fn hand_on(mut self) -> (Core, u64) {
        let handle = std::mem::take(&mut self.handle);
        (self.core.clone(), handle)
    }
}

/// What writes the content of each segment.
pub(super) type ContentWriters = SmallVec<[Writer; 4]>;

/// The content of an allocation in flight, which stays so meanwhile. Each function panics if it is called for no
/// segment, or for bytes outside of its content.
pub(crate) struct Contents<'a> {
    writers: ContentWriters,
    graph: &'a mut InFlight,
}

impl Contents<'_> {
    /// Makes staged pages the content of a segment of which nothing was written, where its mapper can do that.
    ///
    /// # Errors
    /// If its memory can never be used again. The manager keeps all of the allocation then.
    pub(crate) fn adopt(
        &mut self,
        segment: usize,
        protection: Protection,
        staged: &mut StagedFile,
        pages: Range<u64>,
    ) -> Result<bool> {
        let InFlight { core, handle, .. } = &*self.graph;
        let size = self.writers[segment].size();
        let part = AddressRange::new(self.graph.address(segment), size);
        let adoption = Adoption {
            part: part.expect("an allocation ends"),
            protection,
            empty: false,
            staged,
            pages,
        };
        let adopted = core.adopt(*handle, segment, adoption);
        adopted.inspect_err(|_| self.graph.handle = 0)
    }

    /// Fills the content of some segments, one behind the other, with the bytes of a file from `at` on.
    pub(crate) fn read_from(
        &mut self,
        segments: Range<usize>,
        file: &OwnFile,
        at: u64,
    ) -> io::Result<()> {
        Writer::read_from(&self.writers[segments], file, at)
    }

    /// Writes all of a segment's content.
    pub(crate) fn write_all(&mut self, segment: usize, bytes: &[u8]) -> io::Result<()> {
        self.writers[segment].write_all(bytes)
    }

    /// Copies bytes of a segment out. An executor that shares writable ones may have changed them.
    pub(crate) fn read(&self, segment: usize, offset: u64, bytes: &mut [u8]) {
        self.writers[segment].read(offset, bytes);
    }

    /// [`Contents::read`] of as many bytes as the answer has.
    #[inline]
    pub(crate) fn read_array<const N: usize>(&self, segment: usize, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(segment, offset, &mut bytes);
        bytes
    }

    #[inline]
    pub(crate) fn write(&mut self, segment: usize, offset: u64, bytes: &[u8]) {
        self.writers[segment].write(offset, bytes);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.handle != 0 {
            self.core.abandon(self.handle, Completion::new(|_| ()));
        }
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<u64> = self
            .segments
            .iter()
            .map(|segment| segment.address)
            .collect();
        f.debug_struct("InFlight")
            .field("addresses", &addresses)
            .finish()
    }
}
