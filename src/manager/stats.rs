// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a manager holds and has done.

use super::AllocationHandle;
use super::huge_pages::HugePageCounts;
use super::space::{Memory, Space};
use crate::group::{AllocGroup, CodeHint};
use crate::mapper::{Capabilities, FoundBy, FrameCounts, Kind};
use crate::memory::reservation::unmap_failures;
use crate::page::AddressRange;
use crate::sys;
use crate::transport::{DroppedAnswers, ExecutorState};
use std::sync::atomic::Ordering::Relaxed;

/// Figures of one moment; sizes in bytes.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Address space of all windows.
    pub reserved: u64,
    /// Pages that may hold memory: those of which something was handed out since they were last given
    /// back to the system.
    pub committed: u64,
    /// Address space of all chunks.
    pub chunk_bytes: u64,
    /// Asked for by what is live.
    pub live: u64,
    /// Lost to rounding in what is live.
    pub padding: u64,
    /// In chunks and not handed out.
    pub free: u64,
    /// Memory of this process for what is noted of allocations and of free ranges.
    pub records: u64,
    /// Deallocated, and waiting for [`Manager::reclaim`](super::Manager::reclaim); rounding included.
    pub waiting: u64,
    /// Freed and kept as it was, because other processes that were forked may see it.
    pub frozen: u64,
    /// Kernel mappings at most, writer views and reserved gaps included.
    pub mappings: u64,
    /// Windows.
    pub windows: u64,
    /// Chunks in all windows.
    pub chunks: u64,
    /// Allocations that are not finalized yet.
    pub in_flight: u64,
    /// Allocations that are finalized and not deallocated.
    pub finalized: u64,
    /// Allocations made so far.
    pub allocate_calls: u64,
    /// Allocations finalized so far.
    pub finalize_calls: u64,
    /// Allocations abandoned so far.
    pub abandon_calls: u64,
    /// Allocations deallocated so far.
    pub deallocate_calls: u64,
    /// Requests that ended in an error.
    pub failures: u64,
    /// Times jitmem entered the kernel in this process, for all managers together.
    pub system_calls: u64,
    /// From the lowest to the highest byte of the chunks in use, widest window.
    pub span: u64,
    /// Ranges that the kernel refused to unmap in this process; lost until it exits.
    pub unmap_failures: u64,
    /// Messages sent to the executor for the mapper's purposes.
    pub messages: u64,
    /// Bytes of these messages and of their answers.
    pub message_bytes: u64,
    /// What the executor has answered for nothing to all that goes through the mapper's transport.
    pub dropped_answers: DroppedAnswers,
    /// How often another process has taken the place of the one that ran the executor's linked code, as far as
    /// the executor has said: [`EventKind::ExecutorRestarted`](super::EventKind::ExecutorRestarted).
    pub executor_restarts: u64,
    /// How frames of linked code become known to the unwinder.
    pub frames_found_by: FoundBy,
    /// Allocations so far whose frames are found by an index, so that no action registers them. This and the
    /// next one: of all managers over the mapper.
    pub frames_indexed: u64,
    /// Allocations so far whose frames an action registers.
    pub frames_registered: u64,
    /// Huge pages that the system has granted so far.
    pub huge_pages: u64,
    /// Those that it has refused; [`Manager::collapse`](super::Manager::collapse) says why.
    pub huge_pages_refused: u64,
    /// Windows that lie out of reach of the process's images.
    pub windows_out_of_reach: u64,
    /// A window is smaller than asked for, because address space is limited.
    pub smaller_window: bool,
    /// Which mapper.
    pub mapper: Kind,
    /// The same in words.
    pub mapper_name: &'static str,
    /// A better mapper was tried and refused.
    pub mapper_fallback: bool,
    /// What was fallen back from and why: mapper, window size, reach.
    pub fallback: Option<String>,
}

/// From where to where nothing is in use.
pub(super) const NO_SPAN: (u64, u64) = (u64::MAX, 0);

impl Stats {
    /// Adds what another arena of the same manager has; `span` stays.
    pub(super) fn add(&mut self, other: &Stats) {
        let sums = [
            (&mut self.committed, other.committed),
            (&mut self.chunk_bytes, other.chunk_bytes),
            (&mut self.live, other.live),
            (&mut self.padding, other.padding),
            (&mut self.free, other.free),
            (&mut self.records, other.records),
            (&mut self.frozen, other.frozen),
            (&mut self.mappings, other.mappings),
            (&mut self.chunks, other.chunks),
            (&mut self.in_flight, other.in_flight),
            (&mut self.finalized, other.finalized),
            (&mut self.allocate_calls, other.allocate_calls),
            (&mut self.finalize_calls, other.finalize_calls),
            (&mut self.abandon_calls, other.abandon_calls),
            (&mut self.deallocate_calls, other.deallocate_calls),
            (&mut self.failures, other.failures),
            (&mut self.huge_pages, other.huge_pages),
            (&mut self.huge_pages_refused, other.huge_pages_refused),
        ];
        for (sum, more) in sums {
            *sum += more;
        }
    }
}

/// What a [`LayoutItem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum LayoutKind {
    /// A reserved window.
    Window = 0,
    /// A chunk of a window.
    Chunk = 1,
    /// A range of a chunk that is handed out.
    Range = 2,
}

/// One piece of the picture.
#[derive(Clone, Copy, Debug)]
pub struct LayoutItem {
    /// What it is.
    pub kind: LayoutKind,
    /// Where it is.
    pub range: AddressRange,
    /// Its group; `None` for a window.
    pub group: Option<AllocGroup>,
    /// What the code of its chunk is for, which may be less than was asked for.
    pub hint: CodeHint,
    /// Whose range it is, where the manager knows: of what has a label, or with an observer or the
    /// option `usage`.
    pub allocation: Option<AllocationHandle>,
}

/// Sums over windows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums {
    pub(super) windows: u64,
    pub(super) reserved: u64,
    pub(super) committed: u64,
    pub(super) chunk_bytes: u64,
    pub(super) free: u64,
    pub(super) frozen: u64,
    pub(super) mappings: u64,
    pub(super) chunks: u64,
    pub(super) span: u64,
    pub(super) out_of_reach: u64,
    pub(super) smallest_window: u64,
}

impl Sums {
    pub(super) const NONE: Sums = Sums {
        windows: 0,
        reserved: 0,
        committed: 0,
        chunk_bytes: 0,
        free: 0,
        frozen: 0,
        mappings: 0,
        chunks: 0,
        span: 0,
        out_of_reach: 0,
        smallest_window: u64::MAX,
    };
}

/// What was fallen back from and why, in words.
fn fallbacks(mapper: &Capabilities, sums: &Sums, window_size: u64) -> Option<String> {
    let mut reasons: Vec<String> = mapper.fallback.iter().cloned().collect();
    if sums.smallest_window < window_size {
        reasons.push(format!(
            "a window has {} bytes instead of {window_size}: no more address space was to be had \
             in reach of the process's images or under its limits (RLIMIT_AS)",
            sums.smallest_window
        ));
    }
    if sums.out_of_reach > 0 {
        reasons.push(format!(
            "{} window(s) lie out of 32-bit reach of the process's images: nothing was free near \
             them; make the manager earlier, or its window smaller",
            sums.out_of_reach
        ));
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

pub(super) fn collect<M: Memory>(
    space: &Space<M>,
    mapper: &Capabilities,
    traffic: (u64, u64),
    frames: FrameCounts,
    executor: Option<&ExecutorState>,
    huge_pages: &HugePageCounts,
    window_size: u64,
) -> Stats {
    let sums = space.sums();
    let usage = &space.usage;
    let counters = usage.counters;
    Stats {
        reserved: sums.reserved,
        committed: sums.committed,
        chunk_bytes: sums.chunk_bytes,
        live: usage.live,
        padding: usage.taken - usage.live - usage.waiting,
        waiting: usage.waiting,
        free: sums.free,
        records: space.bytes_of_records(),
        frozen: sums.frozen,
        mappings: sums.mappings,
        windows: sums.windows,
        chunks: sums.chunks,
        in_flight: usage.in_flight,
        finalized: usage.finalized,
        allocate_calls: counters.allocate,
        finalize_calls: counters.finalize,
        abandon_calls: counters.abandon,
        deallocate_calls: counters.deallocate,
        failures: counters.failures,
        system_calls: sys::system_calls(),
        span: sums.span,
        unmap_failures: unmap_failures(),
        messages: traffic.0,
        message_bytes: traffic.1,
        dropped_answers: executor.map_or_else(DroppedAnswers::default, |it| it.dropped_answers()),
        executor_restarts: executor.map_or(0, ExecutorState::restarts),
        frames_found_by: frames.found_by,
        frames_indexed: frames.indexed,
        frames_registered: frames.registered,
        huge_pages: huge_pages.granted.load(Relaxed),
        huge_pages_refused: huge_pages.refused.load(Relaxed),
        windows_out_of_reach: sums.out_of_reach,
        smaller_window: sums.smallest_window < window_size,
        mapper: mapper.kind,
        mapper_name: mapper.name,
        mapper_fallback: mapper.fallback.is_some(),
        fallback: fallbacks(mapper, &sums, window_size),
    }
}

/// Containers before what they contain, everything by address.
pub(super) fn sort_layout(items: &mut [LayoutItem]) {
    items.sort_unstable_by_key(|item| (item.range.start(), item.kind));
}
