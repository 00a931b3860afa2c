// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Views: the mappings through which this process writes and runs memory.

use super::reservation::Reservation;
use super::writer::Writer;
use super::writer_view::{WriterView, failed, far_from, name_of};
use crate::error::{Error, Result};
use crate::group::Protection;
use crate::page::AddressRange;
use crate::sys::{self, At, explain_mapping};
use std::os::fd::OwnedFd;

mod adoption;
mod private;
mod renewal;

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
    /// By another process as well, but what is written in place is this process's own. Here is where the
    /// memfd is seen as it is.
    Privately(Reservation),
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
        match WriterView::again(executor, commit) {
            Ok(writer) => Ok(View {
                written: Written::Elsewhere(writer),
                ..view
            }),
            Err(error) => Err(view.undo(error)),
        }
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
        let file =
            sys::MemFile::new(name_of(protection), size).map_err(|e| failed("memfd_create", e))?;
        if commit {
            file.commit(size).map_err(|e| failed("fallocate", e))?;
        }
        let none = Protection::NONE;
        let writer = far_from(executor, |at| sys::map_file(at, size, none, file.as_fd()))
            .map_err(|e| failed("map the writer view", e))?;
        let writer = WriterView::at_file(writer, size, file.as_fd())?;
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
                touch(start);
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

    /// One private view of new zeroed pages at `executor` that are writable, parts of which will get another
    /// protection.
    pub(crate) fn unsealed(
        reservation: &Reservation,
        executor: AddressRange,
        commit: bool,
    ) -> Result<View> {
        let view = Self::one(reservation, executor, Protection::READ_WRITE, commit)?;
        if !commit {
            touch(executor.start());
        }
        Ok(view)
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
        let taken = match protection.executable() {
            true => reservation.take_code(executor, protection, file.as_fd()),
            false => reservation.take_file(executor, protection, file.as_fd()),
        };
        taken.map_err(|error| failed("map the controller's memfd", error))?;
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

    /// Whether another process writes it.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.written, Written::Remotely | Written::Privately(_))
    }

    /// Whether forked children have pages of their own by themselves.
    pub(crate) fn is_private(&self) -> bool {
        matches!(self.written, Written::InPlace)
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
            Written::Remotely | Written::Privately(_) => None,
        }
    }

    /// Lets this process write through a second mapping, or not.
    pub(crate) fn set_open(&self, open: bool) -> Result<()> {
        match &self.written {
            Written::Elsewhere(view) => view.set_open(open),
            Written::InPlace | Written::Remotely | Written::Privately(_) => Ok(()),
        }
    }

    /// Gives pages of it back that hold nothing: they are zero afterwards, and cost nothing until they
    /// are touched.
    ///
    /// # Errors
    /// What the system says, which refuses it for sealed memfds; the pages may be as they were then.
    pub(crate) fn discard(&self, part: AddressRange) -> Result<()> {
        let (start, size) = (self.executor.start(), part.size());
        assert!(self.executor.contains(part), "{part:?} is outside");
        let discarded = match &self.written {
            Written::Elsewhere(writer) => writer.discard(part.start() - start, size),
            // SAFETY: private pages of this view, which the caller says are used no more.
            Written::InPlace => unsafe { sys::discard(part) },
            Written::Remotely | Written::Privately(_) => {
                Err(std::io::ErrorKind::Unsupported.into())
            }
        };
        discarded.map_err(|error| {
            explain_mapping(format_args!("give back {size} bytes of a chunk"), error)
        })
    }

    /// Has the system put the pages of a part into huge ones, in all their mappings.
    ///
    /// # Errors
    /// What the system says; the pages may be as they were then.
    pub(crate) fn collapse(&self, part: AddressRange) -> Result<()> {
        let (start, size) = (self.executor.start(), part.size());
        assert!(self.executor.contains(part), "{part:?} is outside");
        let collapsed = match &self.written {
            Written::Elsewhere(writer) => writer.collapse(part.start() - start, size),
            // SAFETY: pages of this view, whose content stays.
            Written::InPlace => unsafe { sys::collapse(part.start(), size) },
            Written::Remotely | Written::Privately(_) => {
                Err(std::io::ErrorKind::Unsupported.into())
            }
        };
        collapsed.map_err(|error| explain_mapping("make a huge page", error))
    }

    /// Number of kernel mappings.
    pub(crate) fn mappings(&self) -> u64 {
        match self.written {
            Written::Elsewhere(_) | Written::Privately(_) => 2,
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
            // Kernels before 6.12 may have unmapped it all the same.
            if sys::reserve(At::Free(executor.start()), executor.size()).is_ok() {
                return Ok(());
            }
            let what = format!("give back a chunk of {} bytes", executor.size());
            return Err((self, explain_mapping(what, error)));
        }
        Ok(())
    }
}

/// Touches the first of new pages, parts of which will get another protection for a time. They join again
/// only if the kernel has made its record of private pages (anon_vma) for the whole before it is split.
fn touch(start: u64) {
    // SAFETY: the caller has just mapped the pages for writing, and the writer goes at once.
    unsafe { Writer::new(start, 1) }.zero(0, 1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::placement::{Placement, WRITER_DISTANCE, WRITER_SPAN};
    use crate::memory::reservation::{range, unmap_failures};

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
            assert_eq!(read(chunk.start(), 4), sys::traps(4));
            let writer = writer.pointer().get() as u64;
            assert!(
                writer.abs_diff(chunk.start()) >= WRITER_DISTANCE,
                "{writer:#x}"
            );
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

    #[test]
    fn code_tells_nothing_of_its_writer_view() {
        let page = sys::page_size().bytes();
        let reservation = Reservation::new(8 * page, Placement::Default).unwrap();
        for pages in [Pages::Anonymous, Pages::Memfd] {
            let mut distances = std::collections::HashSet::new();
            for index in 0..8 {
                let chunk = reservation.range().part(index * page, page).unwrap();
                let code = Protection::READ_EXEC;
                let view = View::two(pages, &reservation, chunk, code, false).unwrap();
                // SAFETY: the view is there until the end of the round.
                let writer = unsafe { view.writer() }.unwrap().pointer().get() as u64;
                assert!(distances.insert(writer.wrapping_sub(chunk.start())));
                view.unmap().unwrap();
            }
        }
    }

    #[test]
    fn a_writer_view_replaces_nothing() {
        let page = sys::page_size().bytes();
        let reservation = Reservation::new(page, Placement::Near(0x3000_0000_0000)).unwrap();
        let chunk = reservation.range();
        let code = Protection::READ_EXEC;
        reservation.take_shared_memory(chunk, code).unwrap();
        let taken = std::cell::Cell::new(None);
        let start = far_from(chunk, |at| match (at, taken.get()) {
            (At::Free(place), None) => {
                sys::reserve(at, page)?;
                // SAFETY: the test's own page.
                unsafe { sys::replace_by_memory(place, page, Protection::READ_WRITE) }?;
                sys::testing::writing().store(place, 7u64).unwrap();
                taken.set(Some(place));
                sys::reserve(at, page)
            }
            _ => sys::reserve(at, page),
        });
        let (start, taken) = (start.unwrap(), taken.get().unwrap());
        assert_ne!(start, taken);
        assert_eq!(sys::testing::reading().load::<u64>(taken), Ok(7));
        for place in [start, taken] {
            // SAFETY: the test's own page.
            unsafe { sys::unmap(place, page) }.unwrap();
        }
    }

    /// What another thread maps where the kernel has unmapped a place and then failed.
    #[test]
    fn another_threads_mapping_outlives_a_failed_mremap() {
        let page = sys::page_size().bytes();
        let near = Placement::Near(0x2800_0000_0000);
        let reservation = Reservation::new(page, near).unwrap();
        let chunk = reservation.range();
        reservation
            .take_shared_memory(chunk, Protection::READ_EXEC)
            .unwrap();
        for (errno, mapped) in [(libc::ENOMEM, true), (libc::ENOMEM, false)] {
            let place = sys::reserve(At::Free(chunk.start() - (1 << 40)), page).unwrap();
            let meanwhile = move || {
                // SAFETY: what the kernel does to the test's own page, and another thread after it.
                unsafe { sys::unmap(place, page) }.unwrap();
                if mapped {
                    sys::reserve(At::Free(place), page).unwrap();
                    // SAFETY: the test's own page.
                    unsafe { sys::replace_by_memory(place, page, Protection::READ_WRITE) }.unwrap();
                    sys::testing::writing().store(place, 7u64).unwrap();
                }
            };
            let lost = unmap_failures();
            let faults = sys::fault::Faults::one_while(0, errno, meanwhile);
            let error = WriterView::map_again(chunk, place).unwrap_err();
            assert_eq!(faults.failed(), Some("mremap"));
            drop(faults);
            assert_eq!(error.raw_os_error(), Some(errno));
            if mapped {
                assert_eq!(sys::testing::reading().load::<u64>(place), Ok(7));
                assert!(unmap_failures() > lost);
                // SAFETY: the test's own page.
                unsafe { sys::unmap(place, page) }.unwrap();
            } else {
                // Nothing is left there.
                sys::reserve(At::Free(place), page).unwrap();
                // SAFETY: the test's own page.
                unsafe { sys::unmap(place, page) }.unwrap();
            }
        }
    }

    #[test]
    fn another_threads_mapping_in_a_window_is_left_alone() {
        let page = sys::page_size().bytes();
        let near = Placement::Near(0x2c00_0000_0000);
        let reservation = Reservation::new(3 * page, near).unwrap();
        let window = reservation.range();
        let part = window.part(page, page).unwrap();
        let meanwhile = move || {
            // SAFETY: what the kernel does to the test's own page, and another thread after it.
            unsafe {
                sys::unmap(part.start(), page).unwrap();
                sys::reserve(At::Free(part.start()), page).unwrap();
                sys::replace_by_memory(part.start(), page, Protection::READ_WRITE).unwrap();
            }
            sys::testing::writing().store(part.start(), 7u64).unwrap();
        };
        let code = Protection::READ_EXEC;
        let two = |part| View::two(Pages::Anonymous, &reservation, part, code, false);
        let faults = sys::fault::Faults::one_while(0, libc::ENOMEM, meanwhile);
        two(part).unwrap_err();
        drop(faults);
        // Neither the next chunk nor the end of the window touches it; the rest of the window serves.
        assert_eq!(two(part).unwrap_err().os_code(), Some(libc::EEXIST));
        let rest = two(window.part(2 * page, page).unwrap()).unwrap();
        rest.unmap().unwrap();
        drop(reservation);
        assert_eq!(sys::testing::reading().load::<u64>(part.start()), Ok(7));
        for free in [window.start(), window.start() + 2 * page] {
            sys::reserve(At::Free(free), page).unwrap();
        }
        // SAFETY: the test's own pages.
        unsafe { sys::unmap(window.start(), window.size()) }.unwrap();
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
                "mprotect",
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
        let mapped = |place: AddressRange| {
            let mappings = sys::mappings().unwrap();
            mappings.iter().any(|mapping| mapping.range.overlaps(place))
        };
        let writers = range(chunk.start() - WRITER_DISTANCE - WRITER_SPAN, WRITER_SPAN);
        for (pages, calls) in CALLS {
            let mut failed = Vec::new();
            for skip in 0.. {
                let faults = sys::fault::Faults::one(skip, libc::EACCES);
                let code = Protection::READ_EXEC;
                let result = View::two(pages, &reservation, chunk, code, true);
                let failed_call = faults.failed();
                drop(faults);
                let Some(call) = failed_call else {
                    result.unwrap().unmap().unwrap();
                    break;
                };
                failed.push(call);
                // A file is mapped anew in its place.
                if (pages, call) == (Pages::Memfd, "mprotect") {
                    result.unwrap().unmap().unwrap();
                    continue;
                }
                assert_eq!(result.unwrap_err().os_code(), Some(libc::EACCES));
                assert!(!mapped(writers), "{call}");
                assert!(mapped(chunk), "{call}");
            }
            assert_eq!(asked_once(failed), calls);
        }
    }

    /// Kernels before 6.3 are asked for a memfd twice, first with a flag that they do not know.
    fn asked_once(mut calls: Vec<&'static str>) -> Vec<&'static str> {
        if calls.starts_with(&["memfd_create", "memfd_create"]) {
            calls.remove(0);
        }
        calls
    }

    /// Whether anything can be written in a range.
    fn writable_in(place: AddressRange) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| {
            let (bounds, rest) = line.split_once(' ').unwrap();
            let (start, end) = bounds.split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            let (start, end) = (number(start), number(end));
            place.overlaps(range(start, end - start)) && rest.as_bytes()[1] == b'w'
        })
    }

    /// Another thread may fork between any two steps.
    #[test]
    fn no_child_can_write_a_chunk_that_is_being_made() {
        let page = sys::page_size().bytes();
        let near = Placement::Near(0x3400_0000_0000);
        let reservation = Reservation::new(page, near).unwrap();
        let chunk = reservation.range();
        let writers = range(chunk.start() - WRITER_DISTANCE - WRITER_SPAN, WRITER_SPAN);
        for (pages, calls) in CALLS {
            let mut called = Vec::new();
            for before in 0.. {
                let child = move || assert!(sys::in_a_child(|| !writable_in(writers)));
                let forks = sys::fault::Faults::before(before, child);
                let code = Protection::READ_EXEC;
                let view = View::two(pages, &reservation, chunk, code, true).unwrap();
                let call = forks.failed();
                drop(forks);
                assert!(writable_in(writers));
                view.unmap().unwrap();
                match call {
                    Some(call) => called.push(call),
                    None => break,
                }
            }
            assert_eq!(asked_once(called), calls);
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
}
