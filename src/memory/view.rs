// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Views: the mappings through which this process writes and runs memory.
//!
//! Executor memory is never a Rust reference, because linked code changes it behind Rust's back;
//! it is an address. Writing goes through [`Writer`], which checks bounds.

use super::placement::{WRITER_DISTANCE, candidates, images_around};
use crate::error::{Error, Result, Status};
use crate::group::Protection;
use crate::page::AddressRange;
use crate::sys::{self, At, Mapping, OwnerProcess, explain_mapping};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

static UNMAP_FAILURES: AtomicU64 = AtomicU64::new(0);

/// How many ranges the kernel refused to unmap in this process; each is lost until it exits.
pub(crate) fn unmap_failures() -> u64 {
    UNMAP_FAILURES.load(Ordering::Relaxed)
}

/// Unmaps; that the kernel refuses is counted.
///
/// # Safety
/// As [`sys::unmap`] has it.
unsafe fn unmap(address: u64, size: u64) {
    // SAFETY: as the caller says.
    if unsafe { sys::unmap(address, size) }.is_err() {
        UNMAP_FAILURES.fetch_add(1, Ordering::Relaxed);
    }
}

/// The right to write into one run of working memory. It does not keep the memory mapped; the one who
/// makes it sees to that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    start: *mut u8,
    size: u64,
}

// SAFETY: a Writer is an address and a size; disjoint allocations write disjoint bytes, and the
// manager hands each range to one owner at a time.
unsafe impl Send for Writer {}
// SAFETY: as above.
unsafe impl Sync for Writer {}

impl Writer {
    /// A writer of `size` bytes at `address`.
    ///
    /// # Safety
    /// As long as the writer or a copy or part of it is used, the bytes are mapped and writable, and
    /// no Rust object lies there.
    pub(crate) unsafe fn new(address: u64, size: u64) -> Writer {
        Writer {
            start: std::ptr::with_exposed_provenance_mut(address as usize),
            size,
        }
    }

    /// Number of bytes.
    pub(crate) fn size(self) -> u64 {
        self.size
    }

    /// Where the first byte is written.
    pub(crate) fn pointer(self) -> WorkingPointer {
        WorkingPointer(self.start)
    }

    /// A writer of some of the bytes.
    pub(crate) fn part_of(self, offset: u32, size: u32) -> Writer {
        Writer {
            start: self.part(offset.into(), size.into()),
            size: size.into(),
        }
    }

    fn part(self, offset: u64, size: u64) -> *mut u8 {
        let end = offset.checked_add(size);
        assert!(
            end.is_some_and(|end| end <= self.size),
            "{offset}+{size} is outside"
        );
        self.start.wrapping_add(offset as usize)
    }

    /// Zeroes a part.
    pub(crate) fn zero(self, offset: u64, size: u64) {
        let pointer = self.part(offset, size);
        // SAFETY: the part is inside the working memory, which is mapped and ours to write.
        unsafe { pointer.write_bytes(0, size as usize) }
    }

    /// Fills everything with instructions that trap.
    pub(crate) fn fill_with_traps(self) {
        let Writer { start, size } = self;
        if let [byte] = sys::TRAP {
            // SAFETY: the working memory is mapped and ours to write.
            unsafe { start.write_bytes(*byte, size as usize) }
            return;
        }
        let traps = sys::TRAP.iter().copied().cycle();
        for (index, byte) in (0..size as usize).zip(traps) {
            // SAFETY: `index` is below `size`, so inside the working memory.
            unsafe { start.add(index).write(byte) }
        }
    }

    /// Writes bytes.
    pub(crate) fn write(self, offset: u64, bytes: &[u8]) {
        let pointer = self.part(offset, bytes.len() as u64);
        // SAFETY: the part is as long as `bytes`, mapped, and no Rust object lies there.
        unsafe { pointer.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }
}

/// Where a linker outside the crate writes; only a number in here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct WorkingPointer(*mut u8);

// SAFETY: nothing in the crate dereferences it.
unsafe impl Send for WorkingPointer {}
// SAFETY: as above.
unsafe impl Sync for WorkingPointer {}

impl WorkingPointer {
    /// Working memory of a segment that has none.
    pub(crate) const NULL: WorkingPointer = WorkingPointer(std::ptr::null_mut());

    pub(super) fn new(pointer: *mut u8) -> WorkingPointer {
        WorkingPointer(pointer)
    }

    /// The pointer.
    pub(crate) fn get(self) -> *mut u8 {
        self.0
    }
}

/// Where the host wants a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Where the executor's own images are in reach of 32-bit references.
    Default,
    /// So that this address is in reach.
    Near(u64),
    /// Exactly here.
    Fixed(u64),
}

impl Placement {
    /// What a window of `size` bytes shall have in reach.
    pub(super) fn target(self, mappings: &[Mapping], size: u64) -> AddressRange {
        match self {
            Placement::Default => images_around(mappings, sys::libc_address(), size),
            Placement::Near(address) | Placement::Fixed(address) => {
                range(address.min(u64::MAX - 1), 1)
            }
        }
    }
}

/// Reserved address space of this process; unmapped when it and all views in it are dropped.
#[derive(Clone, Debug)]
pub(crate) struct Reservation(Arc<Reserved>);

#[derive(Debug)]
struct Reserved {
    range: AddressRange,
    in_reach: bool,
}

impl Reservation {
    /// Reserves `size` bytes, a multiple of the page size, where `placement` says.
    ///
    /// # Errors
    /// `OutOfMemory` where no such place is free or address space is short.
    pub(crate) fn new(size: u64, placement: Placement) -> Result<Reservation> {
        match placement {
            Placement::Fixed(address) => Self::fixed(address, size),
            Placement::Near(_) | Placement::Default => Self::near(size, placement),
        }
    }

    /// Reserves `size` bytes anywhere: the process's images may be out of reach.
    pub(crate) fn anywhere(size: u64) -> Result<Reservation> {
        let start = sys::reserve(At::Anywhere, size)
            .map_err(|error| explain_mapping(format_args!("reserve {size} bytes"), error))?;
        Ok(Reservation::of(start, size, false))
    }

    /// What the kernel has just reserved.
    fn of(start: u64, size: u64, in_reach: bool) -> Reservation {
        let range = range(start, size);
        Reservation(Arc::new(Reserved { range, in_reach }))
    }

    fn fixed(address: u64, size: u64) -> Result<Reservation> {
        if address == 0 || !sys::page_size().divides(address) {
            return Err(crate::error::invalid_argument(format!(
                "window at fixed address {address:#x}: must be a multiple of the page size {}",
                sys::page_size().bytes()
            )));
        }
        let start = sys::reserve(At::Free(address), size).map_err(|error| {
            let taken = error.raw_os_error() == Some(libc::EEXIST);
            let error =
                explain_mapping(format_args!("reserve {size} bytes at {address:#x}"), error);
            if taken {
                error.remedy("something is mapped there: choose another address, or near instead")
            } else {
                error
            }
        })?;
        Ok(Reservation::of(start, size, true))
    }

    fn near(size: u64, placement: Placement) -> Result<Reservation> {
        // Without /proc the kernel's own choice is the best there is.
        let mappings = sys::mappings().unwrap_or_default();
        let target = placement.target(&mappings, size);
        for start in candidates(&mappings, target, size, sys::page_size()) {
            match sys::reserve(At::Free(start), size) {
                Ok(start) => return Ok(Reservation::of(start, size, true)),
                // Another thread was faster, or the kernel keeps a guard gap there.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => continue,
                Err(error) => {
                    return Err(explain_mapping(format_args!("reserve {size} bytes"), error));
                }
            }
        }
        let what = match placement {
            Placement::Near(address) => format!("within 2 GiB of {address:#x}"),
            _ => "within 2 GiB of the process's images".to_owned(),
        };
        Err(Error::new(
            Status::OutOfMemory,
            format!(
                "reserve {size} bytes {what}: no gap there is large enough; choose a smaller \
                 window, another address, or make the manager before the large reservations"
            ),
        ))
    }

    /// The reserved addresses.
    pub(crate) fn range(&self) -> AddressRange {
        self.0.range
    }

    /// Whether everything that the placement asked for is in reach.
    pub(crate) fn in_reach(&self) -> bool {
        self.0.in_reach
    }

    /// Fails unless `part` is a part of it.
    fn check(&self, part: AddressRange) -> io::Result<()> {
        if self.range().contains(part) {
            return Ok(());
        }
        let message = format!("{part:?} does not lie in {:?}", self.range());
        Err(io::Error::new(io::ErrorKind::InvalidInput, message))
    }

    /// Puts private zeroed pages in the place of a part.
    fn take_memory(&self, part: AddressRange, protection: Protection) -> io::Result<()> {
        self.check(part)?;
        // SAFETY: the part is this reservation's, where nothing but linked code's memory ever lies.
        let taken = unsafe { sys::replace_by_memory(part.start(), part.size(), protection) };
        taken.inspect_err(|_| restore(part))
    }

    /// Puts shared zeroed pages in the place of a part.
    fn take_shared_memory(&self, part: AddressRange, protection: Protection) -> io::Result<()> {
        self.check(part)?;
        let (start, size) = (part.start(), part.size());
        // SAFETY: the part is this reservation's, where nothing but linked code's memory ever lies.
        let taken = unsafe { sys::replace_by_shared_memory(start, size, protection) };
        taken.inspect_err(|_| restore(part))
    }

    /// Puts the first pages of a file in the place of a part.
    pub(crate) fn take_file(
        &self,
        part: AddressRange,
        protection: Protection,
        file: BorrowedFd<'_>,
    ) -> io::Result<()> {
        self.check(part)?;
        // SAFETY: the part is this reservation's, where nothing but linked code's memory ever lies.
        let taken = unsafe { sys::replace_by_file(part.start(), part.size(), protection, file) };
        taken.inspect_err(|_| restore(part))
    }

    /// Changes the protection of a part.
    pub(crate) fn protect(&self, part: AddressRange, protection: Protection) -> io::Result<()> {
        self.check(part)?;
        // SAFETY: the part is this reservation's, where nothing but linked code's memory ever lies.
        unsafe { sys::protect(part.start(), part.size(), protection) }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: the views in it, which hold it, are gone.
        unsafe { unmap(self.range.start(), self.range.size()) };
    }
}

fn range(start: u64, size: u64) -> AddressRange {
    AddressRange::new(start, size).expect("the kernel hands out ranges that end")
}

/// After a mapping over reserved address space has failed: kernels before 6.12 may have unmapped what
/// was there. Where the reservation is whole, nothing is free and nothing is changed.
fn restore(executor: AddressRange) {
    let _ = sys::reserve(At::Free(executor.start()), executor.size());
}

/// Maps a writer view far from the window, so that it does not crowd the neighbourhood that the
/// window shares with the process's images.
fn far_from(executor: AddressRange, map: impl Fn(At) -> io::Result<u64>) -> io::Result<u64> {
    let start = executor.start();
    for step in 1..=4 {
        let distance = step * WRITER_DISTANCE;
        let at = start.checked_sub(distance).unwrap_or(start + distance);
        match map(At::Free(at)) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => continue,
            other => return other,
        }
    }
    map(At::Anywhere)
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
fn failed(size: u64) -> impl Fn(&str, io::Error) -> Error {
    move |what, error| explain_mapping(format_args!("{what} for a chunk of {size} bytes"), error)
}

impl WriterView {
    /// What the kernel has just mapped. Forked children do not have it.
    fn at(start: u64, size: u64) -> io::Result<WriterView> {
        let view = WriterView {
            start,
            size,
            owner: OwnerProcess::current(),
        };
        // A child that could write here would write into its parent's code; a core dump would have
        // every page twice.
        // SAFETY: the view was just made; what is done with it asks for the process first.
        unsafe {
            sys::dont_fork(start, size)?;
            sys::dont_dump(start, size)?;
        }
        Ok(view)
    }

    /// New pages of `size` bytes, and the memfd that an executor shall map with `protection`. Unless
    /// that is writable, no process can ever map it writable again.
    pub(crate) fn new(
        size: u64,
        protection: Protection,
        commit: bool,
    ) -> Result<(WriterView, sys::MemFile)> {
        use std::os::fd::AsFd;
        let failed = failed(size);
        let file = sys::MemFile::new(c"jitmem", size).map_err(|e| failed("memfd_create", e))?;
        if commit {
            file.commit(size).map_err(|e| failed("fallocate", e))?;
        }
        let start = sys::map_file(At::Anywhere, size, Protection::READ_WRITE, file.as_fd())
            .map_err(|e| failed("map the writer view", e))?;
        let view =
            WriterView::at(start, size).map_err(|e| failed("madvise of the writer view", e))?;
        let sealed = match protection.writable() {
            true => file.fix_size(),
            false => file.close_to_writers(),
        };
        sealed.map_err(|e| failed("seal the memfd", e))?;
        Ok((view, file))
    }

    /// A view of `size` bytes of a file from `offset` on.
    pub(crate) fn of(file: BorrowedFd<'_>, offset: u64, size: u64) -> Result<WriterView> {
        let failed = failed(size);
        // Where the file system may be small, a page that is not there would be a SIGBUS later.
        sys::take_part(file, offset, size).map_err(|e| failed("fallocate", e))?;
        let start =
            sys::map_part(file, offset, size).map_err(|e| failed("map the writer view", e))?;
        let view =
            WriterView::at(start, size).map_err(|e| failed("madvise of the writer view", e))?;
        Ok(view)
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

/// Pages inside a [`Reservation`] with their final protection, and the way to write them.
#[derive(Debug)]
pub(crate) struct View {
    /// Keeps the addresses reserved.
    reservation: Reservation,
    executor: AddressRange,
    written: Written,
}

/// What two views are views of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Shared anonymous memory: no descriptor, and tools treat it as they treat other JITs'. The
    /// process can make the executor's view writable with mprotect.
    Anonymous,
    /// A sealed memfd: no mapping of it can become writable.
    Memfd,
}

/// How a view's pages are written.
#[derive(Debug)]
enum Written {
    /// Through a second mapping of the same pages, the executor's being never writable.
    Elsewhere(WriterView),
    /// In place, in a private mapping: data that the executor may write anyway, or, under the
    /// mprotect mapper, pages that are opened for each copy.
    InPlace,
    /// By another process, whose memfd it is.
    Remotely,
}

impl View {
    /// Two views of new pages at `executor`.
    pub(crate) fn two(
        pages: Pages,
        reservation: &Reservation,
        executor: AddressRange,
        protection: Protection,
        commit: bool,
    ) -> Result<View> {
        match pages {
            Pages::Anonymous => Self::two_anonymous(reservation, executor, protection, commit),
            Pages::Memfd => Self::two_of_memfd(reservation, executor, protection, commit),
        }
    }

    /// The executor's view comes first, by mmap, which is what profilers are told of; the writer's is
    /// a second mapping of it that loses the right to execute before it gets the right to write.
    fn two_anonymous(
        reservation: &Reservation,
        executor: AddressRange,
        protection: Protection,
        commit: bool,
    ) -> Result<View> {
        let failed = failed(executor.size());
        reservation
            .take_shared_memory(executor, protection)
            .map_err(|e| failed("map the executor view", e))?;
        let view = View {
            reservation: reservation.clone(),
            executor,
            written: Written::Remotely,
        };
        match Self::writer_of(executor, commit) {
            Ok(writer) => Ok(View {
                written: Written::Elsewhere(writer),
                ..view
            }),
            Err(error) => Err(view.undo(error)),
        }
    }

    /// A writer view of shared anonymous memory that has just been mapped.
    fn writer_of(executor: AddressRange, commit: bool) -> Result<WriterView> {
        let size = executor.size();
        let failed = failed(size);
        let start = far_from(executor, |at| Self::map_again(executor, at))
            .map_err(|e| failed("mremap to the writer view", e))?;
        let writer =
            WriterView::at(start, size).map_err(|e| failed("madvise of the writer view", e))?;
        // SAFETY: mapped for this view alone, and nothing has accessed it.
        unsafe { sys::protect(start, size, Protection::READ_WRITE) }
            .map_err(|e| failed("mprotect of the writer view", e))?;
        if commit {
            // SAFETY: as above.
            unsafe { sys::populate(start, size) }
                .map_err(|e| failed("madvise(MADV_POPULATE_WRITE)", e))?;
        }
        Ok(writer)
    }

    /// mremap knows no MAP_FIXED_NOREPLACE, so a place is reserved before it is replaced.
    fn map_again(executor: AddressRange, at: At) -> io::Result<u64> {
        let (from, size) = (executor.start(), executor.size());
        let At::Free(place) = at else {
            // SAFETY: the executor's view was just mapped, and is shared.
            return unsafe { sys::map_again(from, size, None) };
        };
        sys::reserve(at, size)?;
        // SAFETY: as above, and the place was just reserved for this.
        unsafe { sys::map_again(from, size, Some(place)) }.inspect_err(|_| {
            restore(range(place, size));
            // SAFETY: reserved here, and used by nothing.
            unsafe { unmap(place, size) };
        })
    }

    fn two_of_memfd(
        reservation: &Reservation,
        executor: AddressRange,
        protection: Protection,
        commit: bool,
    ) -> Result<View> {
        use std::os::fd::AsFd;
        let size = executor.size();
        let failed = failed(size);
        let file = sys::MemFile::new(c"jitmem", size).map_err(|e| failed("memfd_create", e))?;
        if commit {
            file.commit(size).map_err(|e| failed("fallocate", e))?;
        }
        let data = Protection::READ_WRITE;
        let writer = far_from(executor, |at| sys::map_file(at, size, data, file.as_fd()))
            .map_err(|e| failed("map the writer view", e))?;
        let writer =
            WriterView::at(writer, size).map_err(|e| failed("madvise of the writer view", e))?;
        file.close_to_writers()
            .map_err(|e| failed("seal the memfd", e))?;
        reservation
            .take_file(executor, protection, file.as_fd())
            .map_err(|e| failed("map the executor view", e))?;
        Ok(View {
            reservation: reservation.clone(),
            executor,
            written: Written::Elsewhere(writer),
        })
    }

    /// One private view of new zeroed pages at `executor`.
    pub(crate) fn one(
        reservation: &Reservation,
        executor: AddressRange,
        protection: Protection,
        commit: bool,
    ) -> Result<View> {
        let (start, size) = (executor.start(), executor.size());
        let failed = failed(size);
        reservation
            .take_memory(executor, Protection::READ_WRITE)
            .map_err(|error| failed("mmap", error))?;
        let view = View {
            reservation: reservation.clone(),
            executor,
            written: Written::InPlace,
        };
        let finish = || {
            if commit {
                // SAFETY: the pages were just mapped for writing, for this view alone.
                unsafe { sys::populate(start, size) }
                    .map_err(|error| failed("madvise(MADV_POPULATE_WRITE)", error))?;
            } else if !protection.writable() {
                // Parts of it will be opened for writing. They join again only if the kernel has
                // made its record of private pages (anon_vma) for the whole before it is split,
                // so one page is touched now.
                // SAFETY: the pages were just mapped for writing, and the writer goes at once.
                unsafe { Writer::new(start, 1) }.zero(0, 1);
            }
            if !protection.writable() {
                reservation
                    .protect(executor, protection)
                    .map_err(|error| failed("mprotect", error))?;
            }
            Ok(())
        };
        match finish() {
            Ok(()) => Ok(view),
            Err(error) => Err(view.undo(error)),
        }
    }

    /// A view of another process's memfd at `executor`.
    pub(crate) fn foreign(
        reservation: &Reservation,
        executor: AddressRange,
        protection: Protection,
        file: OwnedFd,
    ) -> Result<View> {
        use std::os::fd::AsFd;
        let failed = failed(executor.size());
        // So that no access to it can ever raise SIGBUS.
        let file = sys::MemFile::of_fixed_size(file, executor.size())
            .map_err(|error| failed("take the controller's memfd", error))?;
        reservation
            .take_file(executor, protection, file.as_fd())
            .map_err(|error| failed("map the controller's memfd", error))?;
        Ok(View {
            reservation: reservation.clone(),
            executor,
            written: Written::Remotely,
        })
    }

    /// The executor's addresses.
    pub(crate) fn executor(&self) -> AddressRange {
        self.executor
    }

    /// Where the content is written, unless another process writes it.
    ///
    /// # Safety
    /// As long as the writer or a copy or part of it is used, the view is neither unmapped nor
    /// dropped, and its pages are writable: those of a private view whose protection is another are
    /// opened first.
    pub(crate) unsafe fn writer(&self) -> Option<Writer> {
        match &self.written {
            // SAFETY: as the caller says.
            Written::Elsewhere(view) => Some(unsafe { view.writer() }),
            Written::InPlace => {
                let (start, size) = (self.executor.start(), self.executor.size());
                // SAFETY: mapped, and the caller says that it is writable.
                Some(unsafe { Writer::new(start, size) })
            }
            Written::Remotely => None,
        }
    }

    /// Number of kernel mappings.
    pub(crate) fn mappings(&self) -> u64 {
        match self.written {
            Written::Elsewhere(_) => 2,
            Written::InPlace | Written::Remotely => 1,
        }
    }

    /// Gives back what a failed attempt has mapped.
    fn undo(self, error: Error) -> Error {
        match self.unmap() {
            Ok(()) => error,
            Err((_, second)) => error.join(second),
        }
    }

    /// Frees the pages and leaves reserved address space. If the kernel refuses, the view is
    /// whole and comes back with the error. A view that is dropped instead leaves the executor's
    /// mapping to the end of the reservation.
    pub(crate) fn unmap(self) -> std::result::Result<(), (View, Error)> {
        let View {
            executor,
            reservation,
            ..
        } = &self;
        debug_assert!(reservation.range().contains(*executor));
        // SAFETY: the pages are this view's, in a reservation that it holds.
        if let Err(error) = unsafe { sys::decommit(executor.start(), executor.size()) } {
            restore(*executor);
            let what = format!("give back a chunk of {} bytes", executor.size());
            return Err((self, explain_mapping(what, error)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(address: u64, size: usize) -> Vec<u8> {
        let start: *const u8 = std::ptr::with_exposed_provenance(address as usize);
        // SAFETY: the tests read mapped executor memory.
        unsafe { std::slice::from_raw_parts(start, size) }.to_vec()
    }

    #[test]
    fn both_views_show_the_same_bytes_and_a_memfd_is_sealed() {
        for pages in [Pages::Anonymous, Pages::Memfd] {
            let page = sys::page_size().bytes();
            let reservation = Reservation::new(16 * page, Placement::Default).unwrap();
            assert!(reservation.in_reach());
            let chunk = reservation.range().part(page, 2 * page).unwrap();
            let code = Protection::READ_EXEC;
            let view = View::two(pages, &reservation, chunk, code, true).unwrap();
            // SAFETY: the view is there until the end of the test.
            let writer = unsafe { view.writer() }.unwrap();
            writer.write(page - 1, b"ab");
            assert_eq!(read(chunk.start() + page - 1, 2), b"ab");
            writer.part_of(0, 4).fill_with_traps();
            assert_eq!(read(chunk.start(), 4), vec![sys::TRAP[0]; 4]);
            let writer = writer.pointer().get() as u64;
            assert!(writer.abs_diff(chunk.start()) > 32 << 30, "{writer:#x}");
            if pages == Pages::Memfd {
                // The pages of the executor's view can not be made writable.
                let error = reservation
                    .protect(chunk, Protection::READ_WRITE)
                    .unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EACCES));
            }
            view.unmap().unwrap();
        }
    }

    /// Two chunks that want their writer views at the same place, and what is there stays.
    #[test]
    fn a_writer_view_replaces_nothing() {
        let page = sys::page_size().bytes();
        let reservation = Reservation::new(page, Placement::Near(0x3000_0000_0000)).unwrap();
        let chunk = reservation.range();
        let taken = sys::reserve(At::Free(chunk.start() - WRITER_DISTANCE), page).unwrap();
        // SAFETY: the test's own page.
        unsafe { sys::replace_by_memory(taken, page, Protection::READ_WRITE) }.unwrap();
        sys::testing::writing().store(taken, 7u64).unwrap();
        let code = Protection::READ_EXEC;
        let view = View::two(Pages::Anonymous, &reservation, chunk, code, false).unwrap();
        // SAFETY: the view is there until the end of the test.
        let writer = unsafe { view.writer() }.unwrap();
        assert_eq!(
            writer.pointer().get() as u64,
            chunk.start() - 2 * WRITER_DISTANCE
        );
        assert_eq!(sys::testing::reading().load::<u64>(taken), Ok(7));
        // SAFETY: the test's own page.
        unsafe { sys::unmap(taken, page) }.unwrap();
    }

    /// The system calls that two views take, in their order.
    const CALLS: [(Pages, &[&str]); 2] = [
        (
            Pages::Anonymous,
            &[
                "mmap", "mmap", "mremap", "madvise", "madvise", "mprotect", "madvise",
            ],
        ),
        (
            Pages::Memfd,
            &[
                "memfd_create",
                "ftruncate",
                "fallocate",
                "mmap",
                "madvise",
                "madvise",
                "fcntl(F_ADD_SEALS)",
                "mmap",
            ],
        ),
    ];

    #[test]
    fn a_failed_attempt_leaves_reserved_space_and_no_writer_view() {
        let page = sys::page_size().bytes();
        let near = Placement::Near(0x3800_0000_0000);
        let reservation = Reservation::new(page, near).unwrap();
        let chunk = reservation.range();
        let mapped = |at: u64| {
            let place = range(at, page);
            let mappings = sys::mappings().unwrap();
            mappings.iter().any(|mapping| mapping.range.overlaps(place))
        };
        for (pages, calls) in CALLS {
            let mut failed = Vec::new();
            for skip in 0.. {
                let faults = sys::fault::Faults::one(skip, libc::EPERM);
                let code = Protection::READ_EXEC;
                let result = View::two(pages, &reservation, chunk, code, true);
                let failed_call = faults.failed();
                drop(faults);
                let Some(call) = failed_call else {
                    result.unwrap().unmap().unwrap();
                    break;
                };
                assert_eq!(result.unwrap_err().os_code(), Some(libc::EPERM));
                assert!(!mapped(chunk.start() - WRITER_DISTANCE), "{call}");
                assert!(mapped(chunk.start()), "{call}");
                failed.push(call);
            }
            assert_eq!(failed, calls);
        }
    }

    #[test]
    fn a_core_dump_has_the_pages_once() {
        let page = sys::page_size().bytes();
        let reservation = Reservation::new(page, Placement::Default).unwrap();
        let chunk = reservation.range();
        let code = Protection::READ_EXEC;
        let view = View::two(Pages::Anonymous, &reservation, chunk, code, false).unwrap();
        // SAFETY: the view is there until the end of the test.
        let writer = unsafe { view.writer() }.unwrap();
        let left_out = |address: u64| {
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let start = format!("{address:x}-");
            let mapping = smaps.lines().skip_while(|line| !line.starts_with(&start));
            let mut flags = mapping.filter_map(|line| line.strip_prefix("VmFlags:"));
            flags
                .next()
                .unwrap()
                .split_whitespace()
                .any(|flag| flag == "dd")
        };
        assert!(left_out(writer.pointer().get() as u64));
        assert!(!left_out(chunk.start()));
    }

    #[test]
    fn near_and_fixed_are_obeyed() {
        let page = sys::page_size().bytes();
        let first = Reservation::new(page, Placement::Default).unwrap();
        let taken = Reservation::new(page, Placement::Fixed(first.range().start())).unwrap_err();
        assert_eq!(taken.os_code(), Some(libc::EEXIST));
        assert!(Reservation::new(page, Placement::Fixed(12345)).is_err());
        let near = 0x2000_0000_0000;
        let reservation = Reservation::new(1 << 30, Placement::Near(near)).unwrap();
        assert!(reservation.range().start().abs_diff(near) < 1 << 31);
        assert!(reservation.range().end().abs_diff(near) < 1 << 31);
        assert!(Reservation::new(page, Placement::Near(u64::MAX)).is_err());
    }
}
