// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Pages that have their content already: both views of a part show them in place of what they showed, so that nothing
//! is copied.
//!
//! As in [`renewal`](super::renewal), what is shown is mapped elsewhere and moved, and nothing is changed until all is
//! done that a limit can refuse. perf keeps what it was told of the chunk, since it is not told of what is moved.

use super::{View, Written};
use crate::error::{Error, Result, Status};
use crate::group::Protection;
use crate::memory::reservation::unmap;
use crate::memory::staged::StagedFile;
use crate::page::AddressRange;
use crate::sys;
use std::ops::Range;

impl View {
    /// Has a part show pages of a staged file, with the protection that the view has. Nothing was written into the part
    /// since it was handed out, and nothing runs there. `false` if the view or the system can't; the part is zero then, or as
    /// it was.
    ///
    /// # Errors
    /// If the executor's view shows other pages than the writer's from now on, so that the part must never be used again.
    pub(crate) fn adopt(
        &mut self,
        part: AddressRange,
        protection: Protection,
        staged: &mut StagedFile,
        pages: Range<u64>,
    ) -> Result<bool> {
        let Written::Elsewhere(writer) = &mut self.written else {
            return Ok(false);
        };
        assert!(self.executor.contains(part), "{part:?} is outside");
        let (offset, size) = (part.start() - self.executor.start(), part.size());
        let fits = pages.end - pages.start == size && sys::page_size().divides(part.start());
        if !fits || !staged.has_pages(&pages) || !writer.may_adopt() {
            return Ok(false);
        }
        // Pages that nothing shows would keep their memory as long as the chunk is there.
        if writer.discard(offset, size).is_err() {
            return Ok(false);
        }
        let Ok(again) = staged.map_again(&pages, protection) else {
            return Ok(false);
        };
        // SAFETY: `again` was mapped for this; the part is this view's, in a reservation that it holds.
        if unsafe { sys::move_mapping(again, size, part.start()) }.is_err() {
            // SAFETY: as above, and it was not moved.
            unsafe { unmap(again, size) };
            return Ok(false);
        }
        let written = writer.adopt(offset, staged, pages);
        written.map(|()| true).map_err(|error| {
            let what = format!("map {size} bytes of a chunk for writing");
            let error = Error::system(Status::OutOfMemory, what, error);
            error.remedy("raise /proc/sys/vm/max_map_count")
        })
    }
}
