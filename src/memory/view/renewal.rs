// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! New pages in place of a view's old ones, with the same content where that is in use: how sealed pages
//! are given back in parts, since the kernel punches no hole into a memfd that keeps writers out.
//!
//! Threads may run what lies there meanwhile. The new mapping is made elsewhere and moved over the old one:
//! the kernel takes the old one away and puts the new one there without letting a page fault of the process
//! in between, so a thread that touches the place waits and then finds equal bytes. All is done that can
//! fail for a limit (address space, number of mappings, descriptors) before the old one is touched; Linux
//! before 5.2 looks at the number of mappings too late. The pages are new to each processor, which
//! has forgotten the old translation in an interrupt, so nothing that it fetched from the old ones is left;
//! where fetches are not coherent, the kernel cleans a page of a file when it is first mapped to run.

use super::{View, Written};
use crate::error::Result;
use crate::group::Protection;
use crate::memory::pages::PageSet;
use crate::memory::writer_view::failed;
use crate::sys::{self, MemFile};
use std::os::fd::OwnedFd;

impl View {
    /// Shows another file of another process's, which holds the same where that is in use. On failure the
    /// view is as it was.
    pub(crate) fn replace(&self, protection: Protection, file: OwnedFd) -> Result<()> {
        let size = self.executor.size();
        let file = MemFile::of_fixed_size(file, size);
        let replaced =
            file.and_then(|file| self.reservation.exchange(self.executor, protection, &file));
        replaced.map_err(|error| failed(size)("replace the controller's memfd", error))
    }

    /// Gives the memory of its pages back, but for those in `keep`. Nothing is written into it meanwhile.
    /// On failure the view is as it was, or some of the pages are there still.
    pub(crate) fn keep_only(&mut self, protection: Protection, keep: &PageSet) -> Result<()> {
        let page = sys::page_size().bytes();
        let pages = (self.executor.size() / page) as u32;
        let mut gaps = keep.gaps(0..pages);
        let discarded = gaps.try_for_each(|gap| {
            let (offset, size) = (u64::from(gap.start) * page, gap.len() as u64 * page);
            let part = self.executor.part(offset, size);
            self.discard(part.expect("the pages are the view's"))
        });
        match (&discarded, &mut self.written) {
            (Err(error), Written::Elsewhere(writer)) if error.os_code() == Some(libc::EPERM) => {
                let (renewed, file) = writer.renewed(self.executor, protection, keep)?;
                let shown = self.reservation.exchange(self.executor, protection, &file);
                shown.map_err(|error| failed(renewed.size())("map the executor view", error))?;
                *writer = renewed;
                Ok(())
            }
            _ => discarded,
        }
    }
}
