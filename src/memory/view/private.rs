// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Data of this process's own over another process's memfd: a page is copied when this process first writes it,
//! and the memfd stays as the other process has written it.
//!
//! A page that was copied does not show what the other process writes later. So what is to be seen of that is taken
//! out of a second mapping of the memfd, which is shared and can't be written.

use super::{View, Written};
use crate::error::Result;
use crate::group::Protection;
use crate::memory::reservation::Reservation;
use crate::memory::writer_view::failed;
use crate::page::AddressRange;
use crate::sys::{self, MemFile};
use std::os::fd::{AsFd, OwnedFd};

impl View {
    /// A view of another process's memfd at `executor` whose writes this process keeps to itself.
    pub(crate) fn private(
        reservation: &Reservation,
        executor: AddressRange,
        protection: Protection,
        file: OwnedFd,
    ) -> Result<View> {
        let failed = failed(executor.size());
        let file = MemFile::of_fixed_size(file, executor.size())
            .map_err(|error| failed("take the controller's memfd", error))?;
        let source = Reservation::far_from(executor, executor.size())?;
        source
            .take_file(source.range(), Protection::READ, file.as_fd())
            .and_then(|()| reservation.take_private_file(executor, protection, file.as_fd()))
            .map_err(|error| failed("map the controller's memfd", error))?;
        Ok(View {
            reservation: reservation.clone(),
            executor,
            written: Written::Privately(source),
        })
    }

    /// Has a part show what the memfd holds there. Pages that show it already are not copied. Nothing else uses
    /// the part meanwhile; `false` if the view is of another kind.
    pub(crate) fn take_content(&self, part: AddressRange) -> bool {
        let Written::Privately(source) = &self.written else {
            return false;
        };
        assert!(self.executor.contains(part), "{part:?} is outside");
        let take = |start: u64, end: u64| {
            let from = source.range().start() + (start - self.executor.start());
            // SAFETY: both are mapped for this view, and the part is the caller's.
            unsafe {
                if start < end && !sys::same(from, start, end - start) {
                    sys::copy(from, start, end - start);
                }
            }
        };
        let page = sys::page_size();
        let whole = (page.round_up(part.start()), page.round_down(part.end()));
        match whole {
            (Some(first), end) if first < end => {
                take(part.start(), first);
                let pages = AddressRange::new(first, end - first).expect("it lies in the view");
                // Without a copy of its own this process sees the memfd's pages again, zero-fill without memory.
                // SAFETY: private pages of this view; the part is the caller's.
                if unsafe { sys::discard(pages) }.is_err() {
                    // The kernel refuses it for locked pages.
                    take(first, end);
                }
                take(end, part.end());
            }
            _ => take(part.start(), part.end()),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::placement::Placement;
    use crate::memory::writer_view::WriterView;
    use crate::sys::testing::{reading, writing};

    #[test]
    fn what_is_written_is_its_own_until_content_is_taken() {
        let page = sys::page_size().bytes();
        let window = Reservation::new(8 * page, Placement::Default).unwrap();
        let (chunk, data) = (window.range(), Protection::READ_WRITE);
        let (writer, file) = WriterView::new_private(chunk, false).unwrap();
        let file = file.as_fd().try_clone_to_owned().unwrap();
        let view = View::private(&window, chunk, data, file).unwrap();
        // SAFETY: the view is there until the end of the test.
        let writer = unsafe { writer.writer() };
        let load = |offset: u64| reading().load::<u8>(chunk.start() + offset).unwrap();
        let store = |offset: u64, byte: u8| writing().store(chunk.start() + offset, byte).unwrap();
        writer.write(0, &vec![1; 8 * page as usize]);
        assert_eq!(load(page), 1);
        for offset in [0, page, 2 * page + 100] {
            store(offset, 2);
        }
        assert_eq!([load(0), load(1), load(page)], [2, 1, 2]);
        writer.write(0, &vec![3; 8 * page as usize]);
        assert_eq!(
            [load(1), load(page), load(2 * page), load(3 * page)],
            [1, 2, 1, 3]
        );
        // From within one page into another: nothing beside it changes.
        assert!(view.take_content(chunk.part(1, 2 * page).unwrap()));
        assert_eq!([load(0), load(1), load(page), load(2 * page)], [2, 3, 3, 3]);
        assert_eq!([load(2 * page + 1), load(2 * page + 100)], [1, 2]);
        assert!(view.take_content(chunk.part(2 * page + 100, 4).unwrap()));
        assert_eq!([load(2 * page + 99), load(2 * page + 100)], [1, 3]);
        assert!(view.take_content(chunk));
        assert!((0..8 * page).all(|offset| load(offset) == 3));
        view.unmap().unwrap();
    }

    #[test]
    fn what_this_process_could_write_for_others_is_refused() {
        let page = sys::page_size().bytes();
        let window = Reservation::new(page, Placement::Default).unwrap();
        let (_writer, file) = WriterView::new_private(window.range(), false).unwrap();
        let refused = window.take_file(window.range(), Protection::READ_WRITE, file.as_fd());
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}
