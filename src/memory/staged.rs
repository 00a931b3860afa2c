// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Content that is read before it has a place in a window, in pages that can get one.

use super::reservation::unmap;
use crate::group::Protection;
use crate::sys::{self, OwnFile, OwnerProcess};
use smallvec::SmallVec;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

/// A file's content in a memfd that this process alone has mapped. Nothing else ever writes there.
#[derive(Debug)]
pub(crate) struct StagedFile {
    memfd: OwnedFd,
    start: u64,
    size: u64,
    /// Pages that show elsewhere by now.
    moved: SmallVec<[Range<u64>; 2]>,
    /// The process that has it mapped: its forked children do not.
    owner: OwnerProcess,
}

impl StagedFile {
    /// Copies a file; `None` where the system does not do it in this way.
    ///
    /// # Errors
    /// What the system says of the file; `UnexpectedEof` if it has become smaller.
    pub(crate) fn copy(file: &OwnFile) -> io::Result<Option<StagedFile>> {
        let Some(memfd) = file.copy_in_memory(c"jitmem-image")? else {
            return Ok(None);
        };
        let size = sys::page_size().round_up(file.size());
        let size = size.expect("files of images are smaller");
        let protection = Protection::READ_WRITE;
        let Ok(start) = sys::map_part(memfd.as_fd(), 0, size, protection) else {
            return Ok(None);
        };
        let staged = StagedFile {
            memfd,
            start,
            size,
            moved: SmallVec::new(),
            owner: OwnerProcess::current(),
        };
        // SAFETY: it was just mapped, and what is done with it asks for the process first.
        let kept =
            unsafe { sys::dont_fork(start, size).and_then(|()| sys::dont_dump(start, size)) };
        Ok(kept.is_ok().then_some(staged))
    }

    /// Whether this is the process that has it.
    pub(crate) fn is_here(&self) -> bool {
        self.owner.is_current()
    }

    /// Some of its bytes; `None` if they were moved.
    pub(crate) fn bytes(&self, range: Range<u64>) -> Option<&[u8]> {
        assert!(self.is_here(), "it is the parent process's");
        assert!(
            range.start <= range.end && range.end <= self.size,
            "{range:?} is outside"
        );
        let overlaps = |moved: &Range<u64>| moved.start < range.end && range.start < moved.end;
        if self.moved.iter().any(overlaps) {
            return None;
        }
        let start = std::ptr::with_exposed_provenance((self.start + range.start) as usize);
        // SAFETY: mapped by this value, filled before, and written by nothing; it is moved only where this is not
        // borrowed.
        Some(unsafe { std::slice::from_raw_parts(start, (range.end - range.start) as usize) })
    }

    /// Whether some bytes are whole pages that are here still.
    pub(super) fn has_pages(&self, range: &Range<u64>) -> bool {
        let page = sys::page_size();
        let whole = page.divides(range.start) && page.divides(range.end) && range.start < range.end;
        self.is_here() && whole && range.end <= self.size && self.bytes(range.clone()).is_some()
    }

    /// Maps pages a second time, with the protection that an executor has of them, at a place that the kernel chooses.
    /// It is the caller's to unmap.
    pub(super) fn map_again(&self, pages: &Range<u64>, protection: Protection) -> io::Result<u64> {
        let size = pages.end - pages.start;
        sys::map_part(self.memfd.as_fd(), pages.start, size, protection)
    }

    /// Moves pages that it [has](StagedFile::has_pages) in place of what is mapped at `address`.
    ///
    /// # Safety
    /// As many bytes at `address` are the caller's, and nothing of Rust's lies there.
    pub(super) unsafe fn move_to(&mut self, pages: Range<u64>, address: u64) -> io::Result<()> {
        assert!(self.has_pages(&pages), "{pages:?} are not here");
        let size = pages.end - pages.start;
        // SAFETY: mapped by this value, which knows them no more then; the rest is as the caller says.
        unsafe { sys::move_mapping(self.start + pages.start, size, address) }?;
        self.moved.push(pages);
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        // A forked child does not have it mapped, and something else may lie there.
        if !self.owner.is_current() {
            return;
        }
        self.moved.sort_unstable_by_key(|pages| pages.start);
        let mut start = 0;
        let ends = self.moved.iter().map(|pages| (pages.start, pages.end));
        for (end, next) in ends.chain([(self.size, self.size)]) {
            if start < end {
                // SAFETY: mapped by this value alone, and no borrow of it is left.
                unsafe { unmap(self.start + start, end - start) };
            }
            start = next;
        }
    }
}
