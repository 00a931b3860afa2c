// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Pages that have their content already: both views of a part show them in place of what they showed, so that nothing
//! is copied.
//!
//! As in [`renewal`](super::renewal), what is shown is mapped elsewhere and moved. perf keeps what it was told of the
//! chunk, since it is not told of what is moved. Of the two moves, which a limit of mappings can refuse, the first one
//! leaves the part as it was, and the second one loses it.

use super::{View, Written};
use crate::error::{Error, Result, Status};
use crate::memory::reservation::unmap;
use crate::memory::staged::Adoption;
use crate::sys;

impl View {
    /// Has a part show pages of a staged file. Nothing was written into the part since it was handed out, and nothing runs
    /// there. `false` if the view or the system can't; the part is zero then, or as it was.
    ///
    /// # Errors
    /// If the executor's view shows other pages than the writer's from now on, so that the part must never be used again.
    pub(crate) fn adopt(&mut self, adoption: Adoption<'_>) -> Result<bool> {
        let Adoption {
            part,
            protection,
            empty,
            staged,
            pages,
        } = adoption;
        let Written::Elsewhere(writer) = &mut self.written else {
            return Ok(false);
        };
        assert!(self.executor.contains(part), "{part:?} is outside");
        let (offset, size) = (part.start() - self.executor.start(), part.size());
        let fits = pages.end - pages.start == size && sys::page_size().divides(part.start());
        if !fits || !staged.has_pages(&pages) {
            return Ok(false);
        }
        // Pages that nothing shows would keep their memory as long as the chunk is there.
        if !empty && writer.discard(offset, size).is_err() {
            return Ok(false);
        }
        let Ok(again) = staged.map_again(&pages, protection) else {
            return Ok(false);
        };
        let taken = staged.take(pages).and_then(|taken| {
            // SAFETY: `again` was mapped for this; the part is this view's, in a reservation that it holds.
            unsafe { sys::move_mapping(again, size, part.start()) }.map(|()| taken)
        });
        let Ok(taken) = taken else {
            // SAFETY: as above, and it was not moved.
            unsafe { unmap(again, size) };
            return Ok(false);
        };
        let written = writer.adopt(offset, size, taken);
        written.map(|()| true).map_err(|error| {
            let what = format!("map {size} bytes of a chunk for writing");
            let error = Error::system(Status::OutOfMemory, what, error);
            error.remedy("raise /proc/sys/vm/max_map_count")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::Protection;
    use crate::memory::placement::Placement;
    use crate::memory::reservation::Reservation;
    use crate::memory::staged::StagedFile;
    use crate::memory::view::Pages;
    use crate::page::AddressRange;
    use crate::sys::OwnFile;
    use crate::sys::fault::Faults;
    use crate::sys::testing::reading;
    use std::ops::Range;

    const CODE: Protection = Protection::READ_EXEC;

    /// A view of so many pages, and what keeps its addresses.
    fn view(pages: Pages, count: u64) -> View {
        let size = count * sys::page_size().bytes();
        let reservation = Reservation::new(size, Placement::Default).unwrap();
        View::two(pages, &reservation, reservation.range(), CODE, false).unwrap()
    }

    /// Pages each of which holds its number.
    fn staged(count: u8) -> StagedFile {
        let page = sys::page_size().bytes() as usize;
        let bytes: Vec<u8> = (0..count).flat_map(|number| vec![number; page]).collect();
        StagedFile::copy(&OwnFile::holding(&bytes))
            .unwrap()
            .unwrap()
    }

    fn page_of(number: u64) -> Range<u64> {
        let page = sys::page_size().bytes();
        number * page..(number + 1) * page
    }

    fn part_of(view: &View, number: u64) -> AddressRange {
        let pages = page_of(number);
        view.executor()
            .part(pages.start, pages.end - pages.start)
            .unwrap()
    }

    fn adopt(
        view: &mut View,
        part: AddressRange,
        staged: &mut StagedFile,
        pages: Range<u64>,
    ) -> Result<bool> {
        view.adopt(Adoption {
            part,
            protection: CODE,
            empty: false,
            staged,
            pages,
        })
    }

    fn seen(view: &View, number: u64) -> u8 {
        reading().load(part_of(view, number).start()).unwrap()
    }

    #[test]
    fn both_views_of_a_part_show_the_pages_and_those_beside_it_stay() {
        let (mut view, mut staged) = (view(Pages::Anonymous, 4), staged(3));
        // SAFETY: the view is there until the end of the test.
        let writer = unsafe { view.writer() }.unwrap();
        let page = sys::page_size().bytes();
        writer.write(0, &vec![9; 4 * page as usize]);
        let part = part_of(&view, 1);
        assert_eq!(adopt(&mut view, part, &mut staged, page_of(2)), Ok(true));
        assert_eq!([0, 1, 2, 3].map(|number| seen(&view, number)), [9, 2, 9, 9]);
        writer.write(page, &[7]);
        let mut read = [0; 2];
        writer.read(page, &mut read);
        assert_eq!((read, seen(&view, 1)), ([7, 2], 7));
        // The pages are there once.
        assert_eq!(staged.bytes(page_of(2)), None);
        let part = part_of(&view, 3);
        assert_eq!(adopt(&mut view, part, &mut staged, page_of(2)), Ok(false));
        assert_eq!(seen(&view, 3), 9);
        drop(staged);
        assert_eq!(seen(&view, 1), 7);
        view.unmap().unwrap();
    }

    #[test]
    fn what_can_not_be_shown_is_left_alone() {
        let page = sys::page_size().bytes();
        let mut sealed = view(Pages::Memfd, 2);
        let part = part_of(&sealed, 0);
        assert_eq!(
            adopt(&mut sealed, part, &mut staged(1), page_of(0)),
            Ok(false)
        );
        let mut view = view(Pages::Anonymous, 2);
        // Neither is pages, or not as many.
        for (part, pages) in [
            (view.executor().part(16, page), page_of(0)),
            (view.executor().part(0, page), 16..page + 16),
            (view.executor().part(0, 2 * page), page_of(0)),
            (view.executor().part(0, page), page_of(1)),
        ] {
            let adopted = adopt(&mut view, part.unwrap(), &mut staged(1), pages);
            assert_eq!(adopted, Ok(false));
        }
        view.unmap().unwrap();
        sealed.unmap().unwrap();
    }

    #[test]
    fn whatever_call_fails_the_part_shows_what_it_did_or_is_lost() {
        // Its memory is given back first.
        let calls = [
            "madvise", "mmap", "madvise", "madvise", "mprotect", "mremap", "mremap",
        ];
        for (skip, call) in calls.into_iter().enumerate() {
            let (mut view, mut staged) = (view(Pages::Anonymous, 1), staged(1));
            let part = part_of(&view, 0);
            let faults = Faults::one(skip as u32, libc::ENOMEM);
            let adopted = adopt(&mut view, part, &mut staged, page_of(0));
            assert_eq!(faults.failed(), Some(call));
            drop(faults);
            match skip {
                6 => assert!(adopted.unwrap_err().message().contains("max_map_count")),
                _ => assert_eq!(adopted, Ok(false)),
            }
            view.unmap().unwrap();
        }
    }
}
