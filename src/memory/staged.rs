// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Content that is read before it has a place in a window, in pages of which some can get one.

use super::reservation::unmap;
use crate::group::Protection;
use crate::page::AddressRange;
use crate::sys::{self, OwnFile, OwnerProcess};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

/// A file's content in a memfd that is mapped to be read. Nothing writes there.
#[derive(Debug)]
pub(crate) struct StagedFile {
    /// Closed once pages were taken, so that nothing else gets a way to write them.
    memfd: Option<OwnedFd>,
    start: u64,
    size: u64,
    /// Pages that are not mapped here any more.
    taken: Option<Range<u64>>,
    /// The process that copied it. In its forked children it is mapped too, and may show what the parent has made of
    /// pages that it has taken since.
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
            memfd: Some(memfd),
            start,
            size,
            taken: None,
            owner: OwnerProcess::current(),
        }))
    }

    /// Whether this is the process that copied it, and not a forked child.
    pub(crate) fn is_here(&self) -> bool {
        self.owner.is_current()
    }

    /// Some of its bytes; `None` if they were taken.
    pub(crate) fn bytes(&self, range: Range<u64>) -> Option<&[u8]> {
        assert!(self.is_here(), "it is the parent process's");
        assert!(
            range.start <= range.end && range.end <= self.size,
            "{range:?} is outside"
        );
        let taken = self.taken.as_ref();
        if taken.is_some_and(|taken| taken.start < range.end && range.start < taken.end) {
            return None;
        }
        let start = std::ptr::with_exposed_provenance((self.start + range.start) as usize);
        // SAFETY: mapped by this value, filled before, and written by nothing: what is taken is not mapped here any
        // more, and to take it, this value is borrowed alone.
        Some(unsafe { std::slice::from_raw_parts(start, (range.end - range.start) as usize) })
    }

    /// Whether some bytes are whole pages that this process can take. None can be once some were.
    pub(super) fn has_pages(&self, range: &Range<u64>) -> bool {
        let page = sys::page_size();
        let whole = page.divides(range.start) && page.divides(range.end) && range.start < range.end;
        self.is_here() && self.memfd.is_some() && whole && range.end <= self.size
    }

    /// Maps pages that it [has](StagedFile::has_pages) a second time, with the protection that an executor has of them, at a
    /// place that the kernel chooses. It is the caller's to unmap.
    pub(super) fn map_again(&self, pages: &Range<u64>, protection: Protection) -> io::Result<u64> {
        let size = pages.end - pages.start;
        let memfd = self.memfd.as_ref().expect("no pages were taken");
        sys::map_part(memfd.as_fd(), pages.start, size, protection)
    }

    /// Takes pages that it [has](StagedFile::has_pages), to be written by this process alone. On failure they are gone.
    pub(super) fn take(&mut self, pages: Range<u64>) -> io::Result<TakenPages> {
        assert!(self.has_pages(&pages), "{pages:?} are not there");
        let (start, size) = (self.start + pages.start, pages.end - pages.start);
        self.taken = Some(pages);
        self.memfd = None;
        let taken = TakenPages { start, size };
        // SAFETY: mapped by what was this value until now, and no borrow of it is left.
        unsafe { make_writable(start, size) }?;
        Ok(taken)
    }
}

/// Lets this process write pages of the memfd. Forked children do not have them then, which could write the code that is
/// in it, and core dumps have them where they run.
///
/// # Safety
/// The range is the caller's.
unsafe fn make_writable(start: u64, size: u64) -> io::Result<()> {
    // SAFETY: as the caller says.
    unsafe {
        sys::dont_fork(start, size)?;
        sys::dont_dump(start, size)?;
        sys::protect(start, size, Protection::READ_WRITE)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        let shares = self.taken.is_some() && self.is_here();
        let taken = self.taken.take().unwrap_or(self.size..self.size);
        for rest in [0..taken.start, taken.end..self.size] {
            let (start, size) = (self.start + rest.start, rest.end - rest.start);
            if size == 0 {
                continue;
            }
            // SAFETY: mapped by this value alone, in a forked child too, and no borrow of it is left.
            unsafe {
                if shares {
                    // Else the memory would be there as long as that of the pages that were taken. The kernel asks for a
                    // mapping that can be written.
                    let _ = make_writable(start, size).and_then(|()| sys::remove(start, size));
                }
                unmap(start, size);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn what_was_not_taken_has_no_memory_any_more() {
        let page = sys::page_size().bytes();
        let bytes: Vec<u8> = (0..5)
            .flat_map(|number| vec![number; page as usize])
            .collect();
        let mut staged = StagedFile::copy(&OwnFile::holding(&bytes))
            .unwrap()
            .unwrap();
        let memfd = staged.memfd.as_ref().unwrap().try_clone().unwrap();
        let mut file = Vec::new();
        let holds = |file: &mut Vec<u8>| {
            use std::os::unix::fs::{FileExt, MetadataExt};
            let memfd = File::from(memfd.try_clone().unwrap());
            file.resize(bytes.len(), 0);
            memfd.read_exact_at(file, 0).unwrap();
            memfd.metadata().unwrap().blocks() * 512
        };
        assert_eq!((holds(&mut file), &file), (5 * page, &bytes));
        let taken = staged.take(page..3 * page).unwrap();
        assert_eq!(staged.bytes(page - 1..page + 1), None);
        assert_eq!(staged.bytes(3 * page..3 * page + 1), Some(&[3][..]));
        drop(staged);
        assert_eq!(holds(&mut file), 2 * page);
        let expected = [0, 1, 2, 0, 0]
            .map(|number| vec![number; page as usize])
            .concat();
        assert_eq!(file, expected);
        drop(taken);
    }
}
