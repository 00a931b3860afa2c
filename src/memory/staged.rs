// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Content that is read before it has a place in a window, in pages that can get one.

use super::reservation::unmap;
use crate::group::Protection;
use crate::page::AddressRange;
use crate::sys::{self, OwnFile, OwnerProcess};
use smallvec::SmallVec;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

/// A file's content in a memfd that is mapped to be read. Nothing writes there.
#[derive(Debug)]
pub(crate) struct StagedFile {
    memfd: OwnedFd,
    start: u64,
    size: u64,
    /// Pages that are not mapped here any more.
    taken: SmallVec<[Range<u64>; 2]>,
    /// The process that copied it. Its forked children may read it.
    owner: OwnerProcess,
}

/// Pages of a staged file that a part of a chunk shall show.
pub(crate) struct Adoption<'a> {
    /// Which part: one that was just handed out.
    pub(crate) part: AddressRange,
    /// What the executor may do there.
    pub(crate) protection: Protection,
    /// Nothing was ever written there, so that it has no memory.
    pub(crate) empty: bool,
    /// The file.
    pub(crate) staged: &'a mut StagedFile,
    /// As many bytes of it.
    pub(crate) pages: Range<u64>,
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
        let Ok(start) = sys::map_part(memfd.as_fd(), 0, size, Protection::READ) else {
            return Ok(None);
        };
        Ok(Some(StagedFile {
            memfd,
            start,
            size,
            taken: SmallVec::new(),
            owner: OwnerProcess::current(),
        }))
    }

    /// Some of its bytes; `None` if they were taken.
    pub(crate) fn bytes(&self, range: Range<u64>) -> Option<&[u8]> {
        assert!(
            range.start <= range.end && range.end <= self.size,
            "{range:?} is outside"
        );
        let overlaps = |taken: &Range<u64>| taken.start < range.end && range.start < taken.end;
        if self.taken.iter().any(overlaps) {
            return None;
        }
        let start = std::ptr::with_exposed_provenance((self.start + range.start) as usize);
        // SAFETY: mapped by this value, filled before, and written by nothing: what is taken is not mapped here any
        // more, and to take it, this value is borrowed alone.
        Some(unsafe { std::slice::from_raw_parts(start, (range.end - range.start) as usize) })
    }

    /// Whether some bytes are whole pages that this process can take.
    pub(super) fn has_pages(&self, range: &Range<u64>) -> bool {
        let page = sys::page_size();
        let whole = page.divides(range.start) && page.divides(range.end) && range.start < range.end;
        self.owner.is_current()
            && whole
            && range.end <= self.size
            && self.bytes(range.clone()).is_some()
    }

    /// Maps pages a second time, with the protection that an executor has of them, at a place that the kernel chooses.
    /// It is the caller's to unmap.
    pub(super) fn map_again(&self, pages: &Range<u64>, protection: Protection) -> io::Result<u64> {
        let size = pages.end - pages.start;
        sys::map_part(self.memfd.as_fd(), pages.start, size, protection)
    }

    /// Takes pages that it [has](StagedFile::has_pages), to be written by this process alone. On failure they are gone.
    pub(super) fn take(&mut self, pages: Range<u64>) -> io::Result<TakenPages> {
        assert!(self.has_pages(&pages), "{pages:?} are not there");
        let (start, size) = (self.start + pages.start, pages.end - pages.start);
        self.taken.push(pages);
        let taken = TakenPages { start, size };
        // Forked children must not have them once they can be written; a core dump has them where they run.
        // SAFETY: mapped by what was this value until now, and no borrow of it is left.
        unsafe {
            sys::dont_fork(start, size)?;
            sys::dont_dump(start, size)?;
            sys::protect(start, size, Protection::READ_WRITE)?;
        }
        Ok(taken)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        self.taken.sort_unstable_by_key(|pages| pages.start);
        let mut start = 0;
        let ends = self.taken.iter().map(|pages| (pages.start, pages.end));
        for (end, next) in ends.chain([(self.size, self.size)]) {
            if start < end {
                // SAFETY: mapped by this value alone, in a forked child too, and no borrow of it is left.
                unsafe { unmap(self.start + start, end - start) };
            }
            start = next;
        }
    }
}

/// Pages that were taken; unmapped when dropped.
pub(super) struct TakenPages {
    start: u64,
    size: u64,
}

impl TakenPages {
    /// Moves them in place of what is mapped at `address`.
    ///
    /// # Safety
    /// As many bytes at `address` are the caller's, and nothing of Rust's lies there.
    pub(super) unsafe fn move_to(self, address: u64) -> io::Result<()> {
        // SAFETY: mapped by this value, which is gone then; the rest is as the caller says.
        unsafe { sys::move_mapping(self.start, self.size, address) }?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for TakenPages {
    fn drop(&mut self) {
        // SAFETY: mapped by this value alone, in the process that took them: no other has a value.
        unsafe { unmap(self.start, self.size) };
    }
}
