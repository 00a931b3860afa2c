// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Where this process writes pages that another mapping shows.

use super::pages::PageSet;
use super::placement::{far_place, random_below};
use super::reservation::{count_lost, range, unmap};
use super::staged::TakenPages;
use super::writer::Writer;
use crate::error::{Error, Result};
use crate::group::Protection;
use crate::page::AddressRange;
use crate::sys::{self, At, OwnerProcess, explain_mapping};
use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

/// How many places are tried before the kernel chooses one.
const MOST_TRIES: usize = 4;

/// Maps a writer view at a random place that is far from the window, so that it does not crowd the
/// neighbourhood that the window shares with the process's images, and that an address of code does
/// not tell. Where huge pages fit the executor's view, they fit this one.
pub(super) fn far_from(
    executor: AddressRange,
    map: impl Fn(At) -> io::Result<u64>,
) -> io::Result<u64> {
    let huge = sys::huge_page_size();
    let fits = huge.divides(executor.start()) && executor.size() >= huge.bytes();
    let alignment = if fits { huge } else { sys::page_size() };
    for _ in 0..MOST_TRIES {
        let Some(place) = far_place(executor, alignment, random_below) else {
            break;
        };
        match map(At::Free(place)) {
            Err(error) if is_of_the_place(&error) => continue,
            other => return other,
        }
    }
    map(At::Anywhere)
}

/// Whether a mapping can't be there and may well be elsewhere: something is mapped there, or a sanitizer
/// keeps the addresses for itself.
fn is_of_the_place(error: &io::Error) -> bool {
    use libc::{EEXIST, EINVAL, EPERM};
    let errno = error.raw_os_error();
    errno.is_some_and(|errno| [EEXIST, EINVAL, EPERM].contains(&errno))
}

/// Whether the system refuses this to the process, and not for a shortage.
fn is_denied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}

/// Where this process writes pages that another mapping shows; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct WriterView {
    start: u64,
    size: u64,
    /// The process that mapped it.
    owner: OwnerProcess,
}

/// The error of a step on the way to a chunk of `size` bytes.
pub(super) fn failed(size: u64) -> impl Fn(&str, io::Error) -> Error {
    move |what, error| explain_mapping(format_args!("{what} for a chunk of {size} bytes"), error)
}

/// What /proc/PID/maps calls a chunk's memfd.
pub(super) fn name_of(protection: Protection) -> &'static CStr {
    match (protection.executable(), protection.writable()) {
        (true, _) => c"jitmem-code",
        (false, true) => c"jitmem-data",
        (false, false) => c"jitmem-constants",
    }
}

impl WriterView {
    /// What the kernel has just mapped, without the right to write: that comes once forked children do not
    /// have the view, since another thread may fork at any moment.
    pub(super) fn at(start: u64, size: u64) -> Result<WriterView> {
        let view = WriterView::kept(start, size)?;
        view.make_writable()
            .map_err(|e| failed(size)("mprotect of the writer view", e))?;
        Ok(view)
    }

    /// [`WriterView::at`] for a mapping of `file` from its beginning on. Where mprotect is forbidden, the
    /// file is mapped anew with the right to write; a child that another thread forks in that moment has
    /// the view.
    pub(super) fn at_file(start: u64, size: u64, file: BorrowedFd<'_>) -> Result<WriterView> {
        let view = WriterView::kept(start, size)?;
        let failed = |error| failed(size)("mprotect of the writer view", error);
        let writable = match view.make_writable() {
            Err(error) if is_denied(&error) => {
                // SAFETY: the view was just made, and nothing has accessed it.
                unsafe { sys::replace_by_file(start, size, Protection::READ_WRITE, file) }
                    .map_err(|_| failed(error))
                    .and_then(|()| view.keep())
            }
            other => other.map_err(failed),
        };
        writable.map(|()| view)
    }

    /// What was just mapped, for this process alone.
    fn kept(start: u64, size: u64) -> Result<WriterView> {
        let view = WriterView {
            start,
            size,
            owner: OwnerProcess::current(),
        };
        view.keep()?;
        Ok(view)
    }

    /// Keeps it from forked children and core dumps: a child that could write here would write into its
    /// parent's code; a core dump would have every page twice.
    fn keep(&self) -> Result<()> {
        let (start, size) = (self.start, self.size);
        // SAFETY: the view was just made, and nothing has accessed it; what is done with it asks for the
        // process first.
        unsafe { sys::dont_fork(start, size).and_then(|()| sys::dont_dump(start, size)) }
            .map_err(|e| failed(size)("madvise of the writer view", e))
    }

    fn make_writable(&self) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { sys::protect(self.start, self.size, Protection::READ_WRITE) }
    }

    /// A second mapping of shared memory that has just been mapped at `executor`. It loses the right to
    /// execute in the step that gives it the right to write.
    pub(super) fn again(executor: AddressRange, commit: bool) -> Result<WriterView> {
        let size = executor.size();
        let failed = failed(size);
        // mremap knows no MAP_FIXED_NOREPLACE, so the place is reserved before it is replaced.
        let start = far_from(executor, |at| sys::reserve(at, size))
            .map_err(|e| failed("reserve the writer view", e))?;
        Self::map_again(executor, start).map_err(|e| failed("mremap to the writer view", e))?;
        let view = WriterView::at(start, size)?;
        if commit {
            // SAFETY: mapped for this view alone, and nothing has accessed it.
            unsafe { sys::populate(start, size) }
                .map_err(|e| failed("madvise(MADV_POPULATE_WRITE)", e))?;
        }
        Ok(view)
    }

    /// Maps the pages at `executor` in place of what is reserved at `place`.
    pub(super) fn map_again(executor: AddressRange, place: u64) -> io::Result<()> {
        let size = executor.size();
        // SAFETY: the executor's view was just mapped and is shared, and the place was just reserved for
        // this.
        unsafe { sys::map_again(executor.start(), size, place) }.inspect_err(|error| {
            // With these the kernel may have unmapped the place before, and another thread may have
            // mapped something there since. No program has a reservation at a place that is drawn here.
            let unmapped = matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN));
            let ours = || {
                sys::reserve(At::Free(place), size).is_ok()
                    || sys::is_reserved(range(place, size)).unwrap_or(false)
            };
            if unmapped && !ours() {
                return count_lost();
            }
            // SAFETY: reserved here, and used by nothing.
            unsafe { unmap(place, size) };
        })
    }

    /// New pages that an executor shall have at some addresses, and the memfd that it maps there with
    /// `protection`. Unless that is writable, no process can ever map it writable again.
    pub(crate) fn new(
        executor: AddressRange,
        protection: Protection,
        commit: bool,
    ) -> Result<(WriterView, sys::MemFile)> {
        let size = executor.size();
        Self::of_new(executor, protection, &|file| match commit {
            true => file.commit(size).map_err(|e| failed(size)("fallocate", e)),
            false => Ok(()),
        })
    }

    /// [`WriterView::new`] for data of which the executor has a copy of its own: no other process can ever map
    /// it writable but so.
    pub(crate) fn new_private(
        executor: AddressRange,
        commit: bool,
    ) -> Result<(WriterView, sys::MemFile)> {
        // The seals are those of constants; the name is that of data.
        let size = executor.size();
        Self::sealed(
            executor,
            name_of(Protection::READ_WRITE),
            true,
            &|file| match commit {
                true => file.commit(size).map_err(|e| failed(size)("fallocate", e)),
                false => Ok(()),
            },
        )
    }

    /// A view of new pages that hold the same as those of this one where `keep` says so, and nothing
    /// elsewhere; and their memfd, as [`WriterView::new`] has it.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn renewed(
        &self,
        executor: AddressRange,
        protection: Protection,
        keep: &PageSet,
    ) -> Result<(WriterView, sys::MemFile)> {
        let (page, size) = (sys::page_size().bytes(), self.size);
        let pages = (size / page) as u32;
        Self::of_new(executor, protection, &|file| {
            // By write, so that a shortage of memory is an error and no signal.
            keep.runs(0..pages).try_for_each(|run| {
                let offset = u64::from(run.start) * page;
                let from = range(self.start + offset, run.len() as u64 * page);
                // SAFETY: a part of this view.
                unsafe { sys::write_pages(file, offset, from) }
                    .map_err(|e| failed(size)("copy what is in use", e))
            })
        })
    }

    /// New pages that `fill` gives their first content.
    fn of_new(
        executor: AddressRange,
        protection: Protection,
        fill: &dyn Fn(&sys::MemFile) -> Result<()>,
    ) -> Result<(WriterView, sys::MemFile)> {
        let closed = !protection.writable();
        Self::sealed(executor, name_of(protection), closed, fill)
    }

    /// New pages of a memfd with that name, which others can or can't write.
    fn sealed(
        executor: AddressRange,
        name: &CStr,
        closed: bool,
        fill: &dyn Fn(&sys::MemFile) -> Result<()>,
    ) -> Result<(WriterView, sys::MemFile)> {
        use std::os::fd::AsFd;
        let size = executor.size();
        let failed = failed(size);
        let file = sys::MemFile::new(name, size).map_err(|e| failed("memfd_create", e))?;
        fill(&file)?;
        let none = Protection::NONE;
        let start = far_from(executor, |at| sys::map_file(at, size, none, file.as_fd()))
            .map_err(|e| failed("map the writer view", e))?;
        let view = WriterView::at_file(start, size, file.as_fd())?;
        let sealed = match closed {
            true => file.close_to_writers(),
            false => file.fix_size(),
        };
        sealed.map_err(|e| failed("seal the memfd", e))?;
        Ok((view, file))
    }

    /// A view of `size` bytes of a file from `offset` on.
    pub(crate) fn of(file: BorrowedFd<'_>, offset: u64, size: u64) -> Result<WriterView> {
        let failed = failed(size);
        // Where the file system may be small, a page that is not there would be a SIGBUS later.
        sys::take_part(file, offset, size).map_err(|e| failed("fallocate", e))?;
        let start = sys::map_part(file, offset, size, Protection::NONE)
            .map_err(|e| failed("map the writer view", e))?;
        WriterView::at(start, size)
    }

    /// Lets this process access the view, or not. A seal against writers leaves this one alone, which is
    /// older.
    pub(crate) fn set_open(&self, open: bool) -> Result<()> {
        if !self.owner.is_current() {
            // A forked child does not have the view, and something else may lie there.
            return Ok(());
        }
        let protection = if open {
            Protection::READ_WRITE
        } else {
            Protection::NONE
        };
        // SAFETY: mapped by this view alone; a manager closes it only where none of its writers is used.
        unsafe { sys::protect(self.start, self.size, protection) }
            .map_err(|e| failed(self.size)("mprotect of the writer view", e))
    }

    /// Gives the pages of a part back, in every view of them; `offset` is its place.
    ///
    /// # Errors
    /// What the system says; nothing is changed then.
    pub(crate) fn discard(&self, offset: u64, size: u64) -> io::Result<()> {
        let end = offset.checked_add(size);
        assert!(end.is_some_and(|end| end <= self.size), "outside the view");
        // SAFETY: mapped by this view alone; the caller of the mapper uses nothing there.
        unsafe { sys::remove(self.start + offset, size) }
    }

    /// Shows other pages in place of `size` bytes from `offset` on.
    ///
    /// # Errors
    /// What the system says; the view is as it was then.
    pub(super) fn adopt(&self, offset: u64, size: u64, pages: TakenPages) -> io::Result<()> {
        let end = offset.checked_add(size);
        assert!(end.is_some_and(|end| end <= self.size), "outside the view");
        // SAFETY: a part of this view, of which the caller of the mapper has written nothing.
        unsafe { pages.move_to(self.start + offset) }
    }

    /// Where it is.
    pub(crate) fn address(&self) -> u64 {
        self.start
    }

    /// Has the system put the pages of a part into huge ones; `offset` is its place.
    ///
    /// # Errors
    /// What the system says; the pages may be as they were then.
    pub(crate) fn collapse(&self, offset: u64, size: u64) -> io::Result<()> {
        let end = offset.checked_add(size);
        assert!(end.is_some_and(|end| end <= self.size), "outside the view");
        // SAFETY: mapped by this view alone; content stays.
        unsafe { sys::collapse(self.start + offset, size) }
    }

    /// Its bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The right to write there.
    ///
    /// # Safety
    /// The view is not dropped as long as the writer or a copy or part of it is used.
    pub(crate) unsafe fn writer(&self) -> Writer {
        // SAFETY: mapped for writing, and only for what the caller vouches for.
        unsafe { Writer::new(self.start, self.size) }
    }
}

impl Drop for WriterView {
    fn drop(&mut self) {
        // A forked child does not have the view, and something else may lie there.
        if self.owner.is_current() {
            // SAFETY: mapped by this view alone, which is used no more.
            unsafe { unmap(self.start, self.size) };
        }
    }
}
