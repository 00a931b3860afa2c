// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The chunks of a group: where their content is written, and what executors map.

use super::super::chunk::Written;
use super::Inner;
use crate::error::{Result, invalid_argument};
use crate::lock::Mutex;
use crate::mapper::{Chunk, Prepared};
use crate::memory::writer_view::WriterView;
use crate::page::AddressRange;
use crate::sys::{self, MemFile};
use crate::unwind::eh_frame::Bytes;
use std::sync::Arc;

/// A chunk that every executor has or is about to have.
pub(super) struct GroupChunk {
    pub(super) chunk: Chunk,
    /// What it is written through; none where each executor has pages of its own.
    written: Mutex<Option<Written>>,
    /// Its pages; kept, for executors that join.
    pub(super) file: Option<Arc<MemFile>>,
}

impl Inner {
    /// Makes a chunk: one set of pages for code and constants, none here for what each executor writes.
    #[allow(unsafe_code)]
    pub(super) fn prepare(&self, chunk: Chunk) -> Result<Prepared> {
        let Chunk {
            range,
            group,
            commit,
        } = chunk;
        let own = group.protection.writable();
        let pages = match own {
            true => None,
            false => Some(WriterView::new(range, group.protection, commit)?),
        };
        let prepared = match &pages {
            // SAFETY: the view stays until `reclaim` or `release`, when the manager writes there no more.
            Some((view, _)) => Prepared::written(unsafe { view.writer() }, 2),
            None => Prepared::elsewhere(1),
        };
        let (view, file) = pages.unzip();
        let file = file.map(Arc::new);
        let made = Arc::new(GroupChunk {
            chunk,
            written: Mutex::new(view.map(|view| Written { view, open: true })),
            file: file.clone(),
        });
        let members = {
            let mut state = self.state.lock();
            state.chunks.insert(range.start(), made);
            state.mapping()
        };
        for member in members {
            member.chunks.add_written(chunk, None, file.clone());
        }
        Ok(prepared)
    }

    /// Takes a chunk back that holds nothing.
    pub(super) fn reclaim(&self, range: AddressRange) -> Result<()> {
        let (chunk, members) = {
            let mut state = self.state.lock();
            (state.chunks.remove(&range.start()), state.mapping())
        };
        if chunk.is_none() {
            return Err(invalid_argument(format!(
                "no chunk starts at {:#x}",
                range.start()
            )));
        }
        for member in members {
            // One that was told of it too late to have it has nothing to take back.
            let _ = member.chunks.remove(range);
        }
        Ok(())
    }

    /// The chunk that a range lies in.
    fn around(&self, part: AddressRange) -> Option<Arc<GroupChunk>> {
        let state = self.state.lock();
        let (_, chunk) = state.chunks.range(..=part.start()).next_back()?;
        let inside = chunk.chunk.range.contains(part);
        inside.then(|| Arc::clone(chunk))
    }

    /// Shows what an allocation that is not finalized yet has in shared pages.
    pub(super) fn read(&self, part: AddressRange, see: &mut dyn FnMut(Bytes)) {
        if let Some(chunk) = self.around(part) {
            let written = chunk.written.lock();
            if let Some(written) = &*written {
                let _ = written.read(chunk.chunk.range, part, see);
            }
        }
    }

    /// Opens or closes the views through which these windows are written.
    pub(super) fn set_writers(&self, windows: &[AddressRange], open: bool) -> Result<()> {
        let chunks: Vec<Arc<GroupChunk>> = {
            let state = self.state.lock();
            let inside = |chunk: &&Arc<GroupChunk>| {
                let range = chunk.chunk.range;
                windows.iter().any(|window| window.contains(range))
            };
            state.chunks.values().filter(inside).cloned().collect()
        };
        chunks
            .iter()
            .try_for_each(|chunk| match &mut *chunk.written.lock() {
                Some(written) => written.set_open(open),
                None => Ok(()),
            })
    }

    /// Has the system put pages that all processes have into huge ones.
    pub(super) fn collapse(&self, pages: AddressRange) -> Result<()> {
        let elsewhere = || invalid_argument(format!("{pages:?} lies in no chunk of shared pages"));
        let chunk = self.around(pages).ok_or_else(elsewhere)?;
        let offset = pages.start() - chunk.chunk.range.start();
        match &*chunk.written.lock() {
            Some(written) => {
                let collapsed = written.view.collapse(offset, pages.size());
                collapsed.map_err(|error| sys::explain_mapping("make a huge page", error))
            }
            None => Err(elsewhere()),
        }
    }
}
