// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Chunks, and whether the executor has mapped them.

use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::Result;
use crate::memory::view::WriterView;
use crate::page::AddressRange;
use crate::sys::MemFile;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One chunk.
pub(super) struct ChunkState {
    pub(super) range: AddressRange,
    /// Bits.
    pub(super) protection: u8,
    pub(super) commit: bool,
    /// Where we write; none where content travels in messages.
    pub(super) _view: Option<WriterView>,
    /// Counts the chunks that are not mapped.
    pub(super) unsettled: Arc<AtomicUsize>,
    pub(super) progress: Mutex<Progress>,
}

pub(super) enum Progress {
    /// The executor was told; these wait for its answer.
    UnderWay(Option<MemFile>, Vec<Completion<()>>),
    Mapped,
    /// The executor could not; the next allocation in it tries again.
    Failed(Option<MemFile>),
}

impl Drop for ChunkState {
    fn drop(&mut self) {
        if !matches!(self.progress.get_mut(), Progress::Mapped) {
            self.unsettled.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl ChunkState {
    pub(super) fn mapped(&self) -> bool {
        matches!(*self.progress.lock(), Progress::Mapped)
    }

    pub(super) fn answered(&self, answer: Result<()>, delivery: &mut Delivery) {
        let waiting = {
            let mut progress = self.progress.lock();
            let (file, waiting) = match std::mem::replace(&mut *progress, Progress::Mapped) {
                Progress::UnderWay(file, waiting) => (file, waiting),
                _ => (None, Vec::new()),
            };
            match &answer {
                Ok(()) => {
                    self.unsettled.fetch_sub(1, Ordering::AcqRel);
                }
                Err(_) => *progress = Progress::Failed(file),
            }
            waiting
        };
        for done in waiting {
            done.complete_with(answer.clone(), delivery);
        }
    }

    /// Completes once the executor has mapped it; `true` if it must be told again.
    pub(super) fn when_mapped(&self, done: Completion<()>) -> bool {
        let mut progress = self.progress.lock();
        match &mut *progress {
            Progress::Mapped => {
                drop(progress);
                done.complete(Ok(()));
                false
            }
            Progress::UnderWay(_, waiting) => {
                waiting.push(done);
                false
            }
            Progress::Failed(file) => {
                *progress = Progress::UnderWay(file.take(), vec![done]);
                true
            }
        }
    }
}
