// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_manager_options` and the enumerations that go with segments and managers.

use super::events::{self, jitmem_observer};
use super::input;
use crate::error::{Result, invalid_argument};
use crate::manager::{ForkPolicy, GrowthPolicy, HugePages, Options};
use crate::memory::placement::Placement;
use smallvec::SmallVec;
use std::mem::{offset_of, size_of};

/// Bits of a segment's protection. Writable and executable together is refused.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_protection {
    /// The executor may read it.
    JITMEM_PROT_READ = 1,
    /// The executor may write it.
    JITMEM_PROT_WRITE = 2,
    /// The executor may run it.
    JITMEM_PROT_EXEC = 4,
}

/// How long a segment lives.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_lifetime {
    /// Until it is deallocated.
    JITMEM_LIFETIME_STANDARD = 0,
    /// Until the finalize actions have run.
    JITMEM_LIFETIME_FINALIZE = 1,
    /// Never in executor memory: it gets address 0 and no working memory.
    JITMEM_LIFETIME_NO_ALLOC = 2,
}

/// What the code of a segment is for. Code of one hint lies together, so that what runs often is dense: it
/// takes fewer pages of memory, and fewer entries of the processor's caches for addresses.
///
/// It has an effect on segments of standard lifetime that may be read and run, and not written; and in windows
/// of 32 MiB and more. Where no further chunk is to be had, and where half of a window's chunks are in use, code
/// lies among that of other hints. Of segments of one graph with different hints, parts may lie on both sides of
/// other graphs' code, where libgcc's search of sections of frames that were registered does not find
/// the later ones; an index of frames does.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_code_hint {
    /// Nothing is known.
    JITMEM_CODE_NORMAL = 0,
    /// It runs often.
    JITMEM_CODE_HOT = 1,
    /// It runs rarely: paths of errors, initializers.
    JITMEM_CODE_COLD = 2,
    /// Jumps to code that lies elsewhere.
    JITMEM_CODE_STUB = 3,
}

/// Where the first window goes.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_placement {
    /// Where the executor's own images are in reach of 32-bit references.
    JITMEM_PLACEMENT_DEFAULT = 0,
    /// So that jitmem_manager_options.address and every one of its addresses are in reach.
    JITMEM_PLACEMENT_NEAR = 1,
    /// Exactly at jitmem_manager_options.address, a multiple of the page size.
    JITMEM_PLACEMENT_FIXED = 2,
}

/// What happens when the window is full.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_growth {
    /// The request fails with JITMEM_WINDOW_FULL.
    JITMEM_GROWTH_ERROR = 0,
    /// Another window is reserved; what belongs to one JITDylib stays inside one.
    JITMEM_GROWTH_ANOTHER_WINDOW = 1,
}

/// What happens in this process to code and constants that forked children see, once they are
/// deallocated.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_fork_policy {
    /// They stay as they are for as long as any child of an earlier fork is there, and their chunk goes
    /// back as a whole. jitmem_stats.frozen says how many bytes do.
    JITMEM_FORK_FREEZE = 0,
    /// They are used again: children do not run what their parent has deallocated.
    JITMEM_FORK_REUSE = 1,
}

/// Whether fresh memory is taken in huge pages, 2 MiB on x86-64, in this process or, with shared pages, in
/// both.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_huge_pages {
    /// Only what jitmem_manager_collapse finds.
    JITMEM_HUGE_PAGES_ON_CALL = 0,
    /// Where memory of one protection has so much in use in a window, 32 MiB, that one more is little beside
    /// it. The allocation that begins one waits for it, some 100 µs.
    JITMEM_HUGE_PAGES_WHERE_LARGE = 1,
}

/// Sizes for jitmem_manager_options.window_size that have a name.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_window_size {
    /// 128 MiB, as far as a direct branch of AArch64 reaches: for code that branches to all else in its
    /// window without stubs.
    JITMEM_WINDOW_SIZE_BRANCH_REACH = 134217728,
}
const _: () =
    assert!(jitmem_window_size::JITMEM_WINDOW_SIZE_BRANCH_REACH as u64 == crate::BRANCH_REACH);

/// Choices for a manager. Set struct_size to sizeof(jitmem_manager_options) and the rest to zero
/// for the defaults.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_manager_options {
    /// sizeof(jitmem_manager_options).
    pub struct_size: usize,
    /// Bytes of address space per window, rounded up to pages; 64 KiB, or four pages of 64 KiB, to 2 GiB less 2 MiB. 0: 1 GiB. The
    /// smallest holds a graph of code, constants and data where 2 MiB of address space are left. One of
    /// jitmem_window_size may be meant.
    pub window_size: u64,
    /// For JITMEM_PLACEMENT_NEAR and _FIXED: the address; else 0.
    pub address: u64,
    /// Most bytes handed out at a time, rounding included; jitmem_manager_set_quota changes it. 0: no
    /// limit.
    pub quota: u64,
    /// One of jitmem_placement.
    pub placement: u32,
    /// One of jitmem_growth.
    pub growth: u32,
    /// 1: take the pages of a chunk when it is made, so that a shortage is an error then and not a
    /// kill later. 0: pages are taken when touched. A custom mapper is told by prepare_async.
    pub commit: u32,
    /// 1: close the writer views of this manager's memory, for reading too, while nothing is in flight.
    /// The first allocation that comes then opens them, the last one to be finalized or abandoned closes
    /// them, and deallocating code opens them for a moment: a system call per chunk each time. 0: they
    /// stay open. Data that linked code may write has no such view in this process; a custom mapper is
    /// not told, and a remote executor keeps its own open.
    pub close_writers: u32,
    /// For JITMEM_PLACEMENT_NEAR: further addresses that must be in reach of everything, read during
    /// the call. Two that are too far apart for one window are JITMEM_INVALID_ARGUMENT. A window may
    /// become smaller than asked for, so that it reaches all.
    pub addresses: *const u64,
    /// Number of them; `address` counts as well then, unless it is 0.
    pub address_count: usize,
    /// Who is told of what comes and goes; read during the call. NULL: no one. Costs the manager a
    /// table of its allocations.
    pub observer: *const jitmem_observer,
    /// 1: count how much each JITDylib and each tag has, for jitmem_manager_usage. Costs the same
    /// table.
    pub usage: u32,
    /// 1: what is deallocated is used again only once jitmem_manager_reclaim says so, since other
    /// threads may still run it. 0: at once.
    pub defer_reclamation: u32,
    /// One of jitmem_fork_policy.
    pub fork_policy: u32,
    /// One of jitmem_huge_pages.
    pub huge_pages: u32,
}

const OPTIONS_LEAST: usize = offset_of!(jitmem_manager_options, close_writers) + size_of::<u32>();

/// What the host chose.
///
/// # Safety
/// `options` is NULL or points to a struct of the size that it says, whose `addresses` are NULL or an
/// array of `address_count`; its observer is as [`events::observer`] wants it.
pub(super) unsafe fn chosen(options: *const jitmem_manager_options) -> Result<Options> {
    let mut chosen = Options::default();
    if options.is_null() {
        return Ok(chosen);
    }
    // SAFETY: plain numbers; the caller vouches for the size.
    let given = unsafe { input::versioned(options, OPTIONS_LEAST, "jitmem_manager_options") }?;
    // First, so that its context is destroyed if the rest is refused.
    // SAFETY: as the caller says.
    chosen.observer = unsafe { events::observer(given.observer) }?;
    if given.window_size != 0 {
        chosen.window_size = given.window_size;
    }
    chosen.placement = match given.placement {
        0 if given.address != 0 => {
            return Err(invalid_argument(format!(
                "address {:#x} without a placement: choose near 1 or fixed 2",
                given.address
            )));
        }
        0 | 2 if given.address_count != 0 => {
            return Err(invalid_argument(format!(
                "{} addresses with placement {}: they are for near 1",
                given.address_count, given.placement
            )));
        }
        0 => Placement::Default,
        1 if given.address_count == 0 => Placement::Near(given.address),
        1 => {
            // SAFETY: the caller says that the struct is right.
            let further =
                unsafe { input::array(given.addresses, given.address_count, "addresses") }?;
            let first = (given.address != 0).then_some(given.address);
            let all: SmallVec<[u64; 8]> =
                first.into_iter().chain(further.iter().copied()).collect();
            Placement::near_all(&all)?
        }
        2 => Placement::Fixed(given.address),
        other => {
            return Err(invalid_argument(format!(
                "placement {other} is none of default 0, near 1 and fixed 2"
            )));
        }
    };
    chosen.growth = match given.growth {
        0 => GrowthPolicy::Error,
        1 => GrowthPolicy::AnotherWindow,
        other => {
            return Err(invalid_argument(format!(
                "growth {other} is none of error 0 and another window 1"
            )));
        }
    };
    chosen.quota = (given.quota != 0).then_some(given.quota);
    chosen.commit = input::flag(given.commit, "commit")?;
    chosen.defer_reclamation = input::flag(given.defer_reclamation, "defer_reclamation")?;
    chosen.usage = input::flag(given.usage, "usage")?;
    chosen.close_writers = input::flag(given.close_writers, "close_writers")?;
    chosen.huge_pages = match given.huge_pages {
        0 => HugePages::OnCall,
        1 => HugePages::WhereLarge,
        other => {
            return Err(invalid_argument(format!(
                "huge_pages {other} is none of on call 0 and where large 1"
            )));
        }
    };
    chosen.fork = match given.fork_policy {
        0 => ForkPolicy::Freeze,
        1 => ForkPolicy::Reuse,
        other => {
            return Err(invalid_argument(format!(
                "fork_policy {other} is none of freeze 0 and reuse 1"
            )));
        }
    };
    Ok(chosen)
}
