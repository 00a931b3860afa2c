// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The simple memory manager: a controller reserves slabs and sends content for parts of them.
//!
//! Until LLVM 19 a slab is finalized once, as a whole, and deallocated. In LLVM 22 any number of
//! regions are initialized and deinitialized inside one slab before it is released. Both work on
//! the same slabs.

mod slab;
#[cfg(test)]
mod tests;

use super::request::{last_to_first, pages_of, placed, protect, told};
use super::{InstanceRegistry, Told, expected, outcome};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::executor::actions::{from_wire, kept};
use crate::executor::fixed_code;
use crate::group::Protection;
use crate::lock::Mutex;
use crate::mapper::actions::{join, run_dealloc, run_finalize};
use crate::memory::reservation::Reservation;
use crate::memory::writer::Writer;
use crate::page::AddressRange;
use crate::sys::{self, Answer, MemFile, explain};
use crate::wire::llvm::{FinalizeRequest, SegFinalizeRequest};
use crate::wire::sps::ExecutorAddr;
use slab::{Segment, Slab, Slabs};
use std::os::fd::AsFd;
use std::sync::Arc;

static MANAGERS: InstanceRegistry<MemoryManager> = InstanceRegistry::new("memory manager");

/// The slabs of one session.
#[derive(Default)]
pub(super) struct MemoryManager {
    slabs: Mutex<Slabs>,
}

/// Which rules a request obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    /// LLVM 14 to 19: the whole slab, which is gone if an action fails.
    Finalize,
    /// LLVM 22: a region of a slab.
    Initialize,
}

fn segments<'a>(request: &[SegFinalizeRequest<'a>]) -> Result<Vec<Segment<'a>>> {
    let mut segments = Vec::with_capacity(request.len());
    for (group, address, size, content) in request {
        let content = content.0;
        if content.len() as u64 > *size {
            return Err(invalid_argument(format!(
                "Segment {:#x} content size ({:#x} bytes) exceeds segment size ({size:#x} bytes)",
                address.0,
                content.len()
            )));
        }
        let (range, protection) = placed(*group, *address, *size)?;
        segments.push(Segment {
            range,
            protection,
            content,
        });
    }
    segments.sort_by_key(|segment| segment.range.start());
    let shared = segments
        .windows(2)
        .find(|pair| pages_of(pair[0].range).overlaps(pages_of(pair[1].range)));
    match shared {
        Some(pair) => Err(invalid_argument(format!(
            "segments {:?} and {:?} share a page",
            pair[0].range, pair[1].range
        ))),
        None => Ok(segments),
    }
}

/// Bytes from which giving pages back is cheaper than writing zeros into them.
const MANY_ZEROS: u64 = 64 << 10;

/// Zeroes memory without touching pages that it need not.
///
/// # Safety
/// The range lies in a slab, is readable and writable, and nothing uses it.
unsafe fn zero(range: AddressRange) -> Result<()> {
    let page = sys::page_size();
    // SAFETY: a part of the range, which the caller vouches for.
    let write = |start, end| unsafe { Writer::new(start, end - start) }.zero(0, end - start);
    if range.size() < MANY_ZEROS {
        write(range.start(), range.end());
        return Ok(());
    }
    let start = page.round_up(range.start()).unwrap_or(range.end());
    let end = page.round_down(range.end());
    write(range.start(), start);
    write(end, range.end());
    let pages = AddressRange::new(start, end - start).unwrap_or(range);
    // SAFETY: as the caller says.
    unsafe { sys::discard(pages) }
        .map_err(|error| explain(format_args!("madvise {pages:?}"), error))
}

/// Writes content, then protects it: no segment is written when its neighbour is protected already.
///
/// # Safety
/// The segments lie in a region that was claimed, and nothing uses it.
unsafe fn fill(segments: &[Segment<'_>]) -> Result<()> {
    for Segment { range, content, .. } in segments {
        if range.size() == 0 {
            continue;
        }
        // SAFETY: as the caller says; regions that can be claimed are readable and writable.
        let writer = unsafe { Writer::new(range.start(), range.size()) };
        writer.write(0, content);
        let size = content.len() as u64;
        let rest = range.part(size, range.size() - size);
        // SAFETY: as above.
        unsafe { zero(rest.expect("content is no longer than its segment")) }?;
    }
    for segment in segments {
        let protection = segment.protection;
        if fixed_code::is_set() && !protection.writable() {
            // SAFETY: as the caller says.
            unsafe { replace_by_memfd(pages_of(segment.range), protection) }?;
        } else if protection != Protection::READ_WRITE {
            // SAFETY: as the caller says.
            unsafe { protect(segment.range, protection) }?;
        }
        if segment.protection.executable() {
            sys::flush_instruction_cache(segment.range.start(), segment.range.size());
        }
    }
    sys::synchronize_fetches();
    Ok(())
}

/// Puts pages that hold the same in the place of what was written, with their protection from the first and
/// for good.
///
/// # Safety
/// The pages lie in a region that was claimed, are readable, and nothing uses them.
unsafe fn replace_by_memfd(pages: AddressRange, protection: Protection) -> Result<()> {
    let (start, size) = (pages.start(), pages.size());
    let replace = || {
        let file = MemFile::new(c"jitmem-code", size)?;
        // SAFETY: as the caller says.
        unsafe { sys::write_pages(&file, 0, pages) }?;
        file.close_to_writers()?;
        // SAFETY: as the caller says.
        unsafe { sys::replace_by_file(start, size, protection, file.as_fd()) }
    };
    replace().map_err(|error| explain(format_args!("put {pages:?} into a memfd"), error))
}

/// Makes a region of a slab writable again.
///
/// # Safety
/// It is claimed, and nothing uses it.
unsafe fn reopen(extent: AddressRange) -> Result<()> {
    if !fixed_code::is_set() {
        // SAFETY: as the caller says.
        return unsafe { protect(extent, Protection::READ_WRITE) };
    }
    let pages = pages_of(extent);
    // SAFETY: as the caller says.
    unsafe { sys::replace_by_memory(pages.start(), pages.size(), Protection::READ_WRITE) }
        .map_err(|error| explain(format_args!("give back {pages:?}"), error))
}

impl MemoryManager {
    /// A manager, and its number.
    pub(super) fn publish() -> (Arc<MemoryManager>, u64) {
        let manager = Arc::new(MemoryManager::default());
        let number = MANAGERS.add(Arc::clone(&manager));
        (manager, number)
    }

    fn reserve(&self, size: u64) -> Result<u64> {
        if size == 0 {
            return Ok(self.slabs.lock().add(None));
        }
        let failed = |error: Error| error.context(format!("reserve {size} bytes"));
        let pages = sys::page_size().round_up(size).ok_or_else(|| {
            failed(Error::new(
                Status::OutOfMemory,
                "there is not as much address space",
            ))
        })?;
        // Reserved first, so that a slab of a gigabyte is not counted as if it were all used.
        let memory = Reservation::anywhere(pages).map_err(failed)?;
        // SAFETY: it was just reserved.
        unsafe { protect(memory.range(), Protection::READ_WRITE) }.map_err(failed)?;
        Ok(self.slabs.lock().add(Some(memory)))
    }

    fn install(&self, request: &FinalizeRequest<'_>, rules: Rules) -> Result<u64> {
        let (on_wire, pairs) = request;
        let Some(key) = on_wire.iter().map(|(_, address, ..)| address.0).min() else {
            return match rules {
                _ if !pairs.is_empty() => Err(invalid_argument(
                    "Finalization actions attached to empty finalization request",
                )),
                Rules::Finalize => Ok(0),
                Rules::Initialize => Err(invalid_argument("Finalization request is empty")),
            };
        };
        let segments = segments(on_wire)?;
        let end = segments.iter().map(|segment| segment.range.end()).max();
        let extent = AddressRange::new(key, end.unwrap_or(key) - key)
            .ok_or_else(|| invalid_argument("the segments end before they start"))?;
        let slab = self.slabs.lock().claim(extent, rules)?;
        // From here to `settle` the region is this thread's alone.
        // SAFETY: all segments lie in `extent`, which was just claimed.
        let filled = unsafe { fill(&segments) }.and_then(|()| run_finalize(from_wire(pairs)));
        match filled {
            Ok(dealloc) => {
                let dealloc = kept(dealloc);
                self.slabs.lock().settle(slab, key, dealloc);
                Ok(key)
            }
            Err(error) => Err(match self.take_back(slab, key, extent, rules) {
                Ok(()) => error,
                Err(second) => error.join(second),
            }),
        }
    }

    /// Makes a region whose actions failed what it was, or under the old rules nothing.
    fn take_back(&self, slab: u64, key: u64, extent: AddressRange, rules: Rules) -> Result<()> {
        if rules == Rules::Finalize {
            let gone = self.slabs.lock().remove(slab);
            drop(gone);
            return Ok(());
        }
        // SAFETY: a region of the slab, claimed until it is vacated.
        let restored = unsafe { reopen(extent) };
        self.slabs.lock().vacate(slab, key, restored.is_ok());
        restored
    }

    fn deinitialize(&self, key: u64) -> Result<()> {
        let Some((slab, extent, dealloc)) = self.slabs.lock().begin_to_end(key)? else {
            return Ok(());
        };
        let result = run_dealloc(&dealloc);
        // So that something else can be written there; stock executors leave it as it is.
        // SAFETY: a region of the slab, claimed until it is vacated.
        let restored = unsafe { reopen(extent) };
        self.slabs.lock().vacate(slab, key, restored.is_ok());
        join(result, restored)
    }

    fn release(&self, base: u64, rules: Rules) -> Result<()> {
        let slab = self.slabs.lock().take(base, rules)?;
        let result = run_dealloc(&Slab::dealloc_actions([&slab]));
        drop(slab);
        result
    }

    /// Ends the manager: what was not deallocated is now, the last region first.
    pub(super) fn shut_down(&self, number: u64) -> Result<()> {
        MANAGERS.remove(number);
        let slabs = self.slabs.lock().take_all();
        run_dealloc(&Slab::dealloc_actions(&slabs))
    }
}

/// `expected<addr> (addr manager, u64 size)`.
pub(super) fn reserve(args: &[u8]) -> Answer {
    expected(args, |(manager, size): (ExecutorAddr, u64)| {
        let base = MANAGERS.get(manager.0)?.reserve(size).map_err(told)?;
        Ok(ExecutorAddr(base))
    })
}

fn install(manager: ExecutorAddr, request: &FinalizeRequest<'_>, rules: Rules) -> Told<u64> {
    MANAGERS
        .get(manager.0)?
        .install(request, rules)
        .map_err(told)
}

/// LLVM 14 to 19: `error (addr manager, (sequence<segment>, sequence<action pair>))`.
pub(super) fn finalize(args: &[u8]) -> Answer {
    outcome(
        args,
        |(manager, request): (ExecutorAddr, FinalizeRequest<'_>)| {
            install(manager, &request, Rules::Finalize).map(drop)
        },
    )
}

/// LLVM 22: `expected<addr> (addr manager, (sequence<segment>, sequence<action pair>))`.
pub(super) fn initialize(args: &[u8]) -> Answer {
    expected(
        args,
        |(manager, request): (ExecutorAddr, FinalizeRequest<'_>)| {
            install(manager, &request, Rules::Initialize).map(ExecutorAddr)
        },
    )
}

/// LLVM 14 to 19: `error (addr manager, sequence<addr slab>)`.
pub(super) fn deallocate(args: &[u8]) -> Answer {
    outcome(
        args,
        |(manager, slabs): (ExecutorAddr, Vec<ExecutorAddr>)| {
            let manager = MANAGERS.get(manager.0)?;
            last_to_first(slabs, |slab| manager.release(slab, Rules::Finalize))
        },
    )
}

/// LLVM 22: `error (addr manager, sequence<addr key>)`.
pub(super) fn deinitialize(args: &[u8]) -> Answer {
    outcome(
        args,
        |(manager, keys): (ExecutorAddr, Vec<ExecutorAddr>)| {
            let manager = MANAGERS.get(manager.0)?;
            last_to_first(keys, |key| manager.deinitialize(key))
        },
    )
}

/// LLVM 22: `error (addr manager, sequence<addr slab>)`.
pub(super) fn release(args: &[u8]) -> Answer {
    outcome(
        args,
        |(manager, slabs): (ExecutorAddr, Vec<ExecutorAddr>)| {
            let manager = MANAGERS.get(manager.0)?;
            last_to_first(slabs, |slab| manager.release(slab, Rules::Initialize))
        },
    )
}
