// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Huge pages: a table of page entries less for the processor to look up, and one fault instead of hundreds.
//!
//! A pool that is large beside a huge page takes its fresh memory in such pages, each when its first byte is
//! handed out: the system zeroes it in one go, which takes a seventh of the time of as many faults. It never
//! commits more than a 16th of what the pool has in use. What has no huge page gets one by
//! [`Manager::collapse`](super::Manager::collapse), where nearly all of it is in use.

use super::flow::Flow;
use super::windows::Windows;
use crate::error::Result;
use crate::page::AddressRange;
use crate::sys;
use smallvec::SmallVec;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Whether fresh memory is taken in huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// No: only what [`Manager::collapse`](super::Manager::collapse) finds.
    #[default]
    OnCall,
    /// Where a pool has so much in use that one more is little beside it.
    WhereLarge,
}

/// Huge pages are few beside so many times their size.
const FEW: u64 = 16;
/// A huge page is nearly full if no more than this part of it is not in use.
const EMPTY_PART: u32 = 8;

pub(super) type HugeRanges = SmallVec<[AddressRange; 1]>;

/// Huge pages that are to be asked for.
pub(super) struct FreshHugePages {
    /// Bytes of one, if they are wanted.
    pub(super) size: Option<u64>,
    pub(super) ranges: HugeRanges,
}

impl FreshHugePages {
    pub(super) fn new(size: Option<u64>) -> FreshHugePages {
        let ranges = HugeRanges::new();
        FreshHugePages { size, ranges }
    }
}

/// Bytes of a huge page, if fresh memory shall have them.
pub(super) fn size(wanted: HugePages) -> Option<u64> {
    (wanted == HugePages::WhereLarge).then(|| sys::huge_page_size().bytes())
}

/// Whether one more is little beside what is in use.
pub(super) fn are_few(size: u64, in_use: u64) -> bool {
    in_use / FEW >= size
}

/// Whether so many of its pages are in use that it is worth to commit the rest.
pub(super) fn is_nearly_full(touched: u32, all: u32) -> bool {
    all - touched <= all / EMPTY_PART
}

/// What came of asking for huge pages.
#[derive(Default)]
pub(super) struct HugePageCounts {
    pub(super) granted: AtomicU64,
    pub(super) refused: AtomicU64,
}

impl Flow<Windows> {
    /// Asks for huge pages that an allocation has begun.
    #[cold]
    pub(super) fn begin_huge_pages(&self, ranges: &[AddressRange]) {
        // Memory comes in small pages then.
        let _ = self.ask_for_huge_pages(ranges);
    }

    /// Has what is nearly full put into huge pages. The bytes of memory in them, those from before too.
    pub(super) fn collapse(&self) -> Result<u64> {
        self.check_process()?;
        // The system changes shared pages through a view that may write.
        let _writers = self.open_writers()?;
        let ranges = self.space.lock().memory.fill_huge_pages();
        let granted = self.ask_for_huge_pages(&ranges);
        self.counted(granted.map_err(|error| error.context("collapse")))
    }

    /// The bytes that were granted; the last refusal if none were.
    fn ask_for_huge_pages(&self, ranges: &[AddressRange]) -> Result<u64> {
        let (mut bytes, mut failure) = (0, None);
        for range in ranges {
            match self.mapper.collapse(*range) {
                Ok(()) => {
                    self.huge_pages.granted.fetch_add(1, Relaxed);
                    bytes += range.size();
                }
                Err(error) => {
                    self.huge_pages.refused.fetch_add(1, Relaxed);
                    failure = Some(error);
                }
            }
        }
        match failure {
            Some(error) if bytes == 0 => Err(error),
            _ => Ok(bytes),
        }
    }
}
