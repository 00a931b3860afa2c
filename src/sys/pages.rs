// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Private memory that comes from the kernel directly, so that parts of it can be given back.

use super::{map_memory, unmap};
use crate::page::AddressRange;
use std::io;

/// Pages of this process, zero until they are written; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Pages {
    start: *mut u8,
    range: AddressRange,
}

// SAFETY: it is an address and a size; what is done with the bytes is up to who uses the pointer.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps `size` bytes, a multiple of the page size.
    pub(crate) fn new(size: usize) -> io::Result<Pages> {
        let start = map_memory(size as u64)?;
        let range = AddressRange::new(start, size as u64).expect("mappings end");
        Ok(Pages {
            start: std::ptr::with_exposed_provenance_mut(start as usize),
            range,
        })
    }

    /// The first byte.
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.start
    }

    /// Whether an address lies in them.
    pub(crate) fn contains(&self, address: usize) -> bool {
        let offset = (address as u64).checked_sub(self.range.start());
        offset.is_some_and(|offset| offset < self.range.size())
    }

    /// Gives some of the pages back, from an address on, so that they are zero again and take no memory until written.
    ///
    /// # Safety
    /// Zero is a value of all that lies there.
    pub(crate) unsafe fn discard(&self, start: usize, size: usize) -> io::Result<()> {
        let offset = start as u64 - self.range.start();
        let part = self.range.part(offset, size as u64);
        let part = part.expect("the part lies in the pages");
        // SAFETY: the pages are private and this value's own; the rest is as the caller says.
        unsafe { super::discard(part) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: they are this value's own, and its pointers go with it. The kernel refuses nothing
        // that it has mapped as a whole.
        let _ = unsafe { unmap(self.range.start(), self.range.size()) };
    }
}
