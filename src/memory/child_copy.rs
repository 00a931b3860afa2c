// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What forked children see in place of pages that another process or another mapping writes.
//!
//! Such pages are a shared mapping, in children too. A copy of them is brought up to date before each
//! fork, and a child puts it in their place. Where nothing has changed, children share the pages of one
//! copy; where something has, the kernel or a new copy keeps the older children's.

use super::reservation::unmap;
use crate::group::Protection;
use crate::page::AddressRange;
use crate::sys::{self, At, MemFile};
use std::io;
use std::os::fd::AsFd;

/// A copy of a chunk's pages, elsewhere in this process.
#[derive(Debug)]
pub(crate) struct ChildCopy {
    range: AddressRange,
}

impl ChildCopy {
    /// Has `slot` hold what the chunk holds now. Threads that write meanwhile may be half seen.
    ///
    /// # Safety
    /// The chunk is mapped with this protection, which allows to read.
    pub(crate) unsafe fn update(
        slot: &mut Option<ChildCopy>,
        chunk: AddressRange,
        protection: Protection,
    ) -> io::Result<()> {
        if !protection.writable() {
            // SAFETY: as the caller says.
            if !matches!(slot, Some(copy) if unsafe { copy.is_same(chunk) }) {
                *slot = None;
                // SAFETY: as the caller says.
                *slot = Some(unsafe { ChildCopy::sealed(chunk, protection) }?);
            }
            return Ok(());
        }
        if slot.is_none() {
            *slot = Some(ChildCopy::private(chunk.size())?);
        }
        match slot {
            // SAFETY: as the caller says.
            Some(copy) => unsafe { copy.refresh(chunk) },
            None => Ok(()),
        }
    }

    /// Private pages, which each child may write: their own from then on.
    fn private(size: u64) -> io::Result<ChildCopy> {
        let start = sys::reserve(At::Anywhere, size)?;
        let copy = ChildCopy::at(start, size);
        // SAFETY: just reserved, for this.
        unsafe { sys::replace_by_memory(start, size, Protection::READ_WRITE) }?;
        Ok(copy)
    }

    /// Pages that are never written again, with the chunk's protection from the first.
    ///
    /// # Safety
    /// The chunk can be read.
    unsafe fn sealed(chunk: AddressRange, protection: Protection) -> io::Result<ChildCopy> {
        let file = MemFile::new(c"jitmem-child", chunk.size())?;
        for page in pages(chunk, sys::resident(chunk)) {
            // SAFETY: as the caller says.
            unsafe { sys::write_pages(&file, page.start() - chunk.start(), page) }?;
        }
        file.close_to_writers()?;
        let start = sys::map_file(At::Anywhere, chunk.size(), protection, file.as_fd())?;
        Ok(ChildCopy::at(start, chunk.size()))
    }

    fn at(start: u64, size: u64) -> ChildCopy {
        let range = AddressRange::new(start, size);
        let range = range.expect("the kernel hands out ranges that end");
        ChildCopy { range }
    }

    /// # Safety
    /// The chunk can be read.
    unsafe fn is_same(&self, chunk: AddressRange) -> bool {
        let both = sys::resident(self.range).zip(sys::resident(chunk));
        let mut pages = pages(chunk, both.map(|(here, there)| here || there));
        pages.all(|page| {
            // SAFETY: as the caller says, and the copy is there.
            unsafe { sys::same(page.start(), self.place_of(page, chunk), page.size()) }
        })
    }

    /// Copies the pages that differ. Children keep theirs: a page that is written here is copied by the
    /// kernel first.
    ///
    /// # Safety
    /// The chunk can be read.
    unsafe fn refresh(&self, chunk: AddressRange) -> io::Result<()> {
        let size = sys::page_size().bytes();
        let both = sys::resident(chunk).zip(sys::resident(self.range));
        for (number, (there, here)) in (0u64..).zip(both) {
            let part = |of: AddressRange| of.part(number * size, size);
            let (Some(from), Some(to)) = (part(chunk), part(self.range)) else {
                continue;
            };
            // SAFETY: as the caller says, and the copy is there, for this alone.
            unsafe {
                match (there, here) {
                    (true, _) if !sys::same(from.start(), to.start(), size) => {
                        sys::copy(from.start(), to.start(), size);
                    }
                    (false, true) => sys::discard(to)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn place_of(&self, page: AddressRange, chunk: AddressRange) -> u64 {
        self.range.start() + (page.start() - chunk.start())
    }

    /// Puts the copy in the chunk's place, in a child.
    ///
    /// # Safety
    /// The calling process is a child in which nothing else runs, and the chunk is what was copied.
    pub(crate) unsafe fn replace(self, chunk: AddressRange) -> io::Result<()> {
        // SAFETY: as the caller says; the copy is this value's.
        unsafe { sys::move_mapping(self.range.start(), self.range.size(), chunk.start()) }?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for ChildCopy {
    fn drop(&mut self) {
        // SAFETY: mapped by this value alone; children have mappings of their own.
        unsafe { unmap(self.range.start(), self.range.size()) };
    }
}

/// The pages of a range of which that is said.
fn pages(
    range: AddressRange,
    said: impl Iterator<Item = bool>,
) -> impl Iterator<Item = AddressRange> {
    let size = sys::page_size().bytes();
    let numbers = (0u64..).zip(said).filter(|(_, said)| *said);
    numbers.filter_map(move |(number, _)| range.part(number * size, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::placement::Placement;
    use crate::memory::reservation::Reservation;
    use crate::memory::view::{Pages, View};
    use crate::sys::in_a_child;
    use crate::sys::testing::{reading, writing};

    fn page() -> u64 {
        sys::page_size().bytes()
    }

    fn update(slot: &mut Option<ChildCopy>, chunk: AddressRange, protection: Protection) -> u64 {
        // SAFETY: the tests' chunks can be read.
        unsafe { ChildCopy::update(slot, chunk, protection) }.unwrap();
        slot.as_ref().unwrap().range.start()
    }

    #[test]
    fn a_copy_of_code_is_the_same_until_the_code_changes() {
        let reservation = Reservation::new(8 * page(), Placement::Default).unwrap();
        let (chunk, code) = (reservation.range(), Protection::READ_EXEC);
        let view = View::two(Pages::Memfd, &reservation, chunk, code, false).unwrap();
        // SAFETY: the view is there until the end of the test.
        let writer = unsafe { view.writer() }.unwrap();
        writer.write(page(), b"code");
        let mut slot = None;
        let first = update(&mut slot, chunk, code);
        assert_eq!(update(&mut slot, chunk, code), first);
        let old = slot.take().unwrap();
        writer.write(3 * page(), b"more");
        slot = Some(old);
        // SAFETY: both are mapped.
        let differs = |slot: &Option<ChildCopy>| unsafe {
            !sys::same(
                slot.as_ref().unwrap().range.start(),
                chunk.start(),
                chunk.size(),
            )
        };
        assert!(differs(&slot));
        update(&mut slot, chunk, code);
        assert!(!differs(&slot));
        assert!(in_a_child(|| {
            // SAFETY: the child has one thread, and the chunk was copied.
            let replaced = unsafe { slot.take().unwrap().replace(chunk) };
            replaced.is_ok() && reading().load::<u8>(chunk.start() + page()) == Ok(b'c')
        }));
    }

    #[test]
    fn a_child_has_the_data_of_the_fork() {
        let reservation = Reservation::new(4 * page(), Placement::Default).unwrap();
        let (chunk, data) = (reservation.range(), Protection::READ_WRITE);
        let file = MemFile::new(c"jitmem-test", chunk.size()).unwrap();
        reservation.take_file(chunk, data, file.as_fd()).unwrap();
        let store = |page_number: u64, value: u64| {
            writing()
                .store(chunk.start() + page_number * page(), value)
                .unwrap();
        };
        let load = |page_number: u64| {
            let address = chunk.start() + page_number * page();
            reading().load::<u64>(address).unwrap()
        };
        let mut slot = None;
        store(0, 1);
        store(2, 1);
        let first = update(&mut slot, chunk, data);
        store(0, 2);
        sys::punch_hole(file.as_fd(), 2 * page(), page()).unwrap();
        assert_eq!(update(&mut slot, chunk, data), first);
        assert!(in_a_child(|| {
            // SAFETY: the child has one thread, and the chunk was copied.
            unsafe { slot.take().unwrap().replace(chunk) }.unwrap();
            let right = [load(0), load(1), load(2)] == [2, 0, 0];
            store(0, 3);
            store(3, 3);
            right
        }));
        assert_eq!([load(0), load(3)], [2, 0]);
    }
}
