// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The heap, with a reserve for when it has nothing left.
//!
//! Rust's collections, boxes and threads end the process where the allocator answers NULL. So the
//! allocator of the C library and of `jitmem-executor` answers small requests from a reserve then.
//! What a call has begun it can end, or take back, and calls fail in an orderly way until the heap has
//! memory again ([`check`], [`Watch`]). What grows with a request is asked for in ways that may fail.

use crate::error::{Error, Result, Status};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Bytes of a block, which is also its alignment.
const BLOCK: usize = 64;
/// A group is as many blocks as a word of the table has bits. What is larger has whole groups.
const GROUP: usize = BLOCK * BLOCKS;
const BLOCKS: usize = u64::BITS as usize;
const GROUPS: usize = 64;
/// No allocation has more groups than this.
const MOST_GROUPS: usize = 4;
/// How much of the reserve must be there, or had from the heap, for a call to begin. The largest need
/// of one call that was seen is a tenth of this.
const LEAST: usize = GROUP * GROUPS / 2;

/// The system's allocator, and a reserve of 256 KiB that serves allocations of up to 16 KiB when the
/// system has none. The C library has it built in; a Rust program may choose it, and then this crate,
/// too, reports that the heap is exhausted with [`Status::OutOfMemory`] where Rust would abort:
///
/// ```
/// #[global_allocator]
/// static HEAP: jitmem::Heap = jitmem::Heap;
/// ```
///
/// The reserve is part of the program's zero-initialized data and takes no memory until it is used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

/// Has the C library give the pages of its heap back to the system that hold nothing: the memory of small values
/// that were freed stays there otherwise, for as long as anything behind them is in use.
#[cold]
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the heap's own locks, and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

struct Reserve {
    memory: Memory,
    /// A bit for each block, set while it is in use. No lock guards it: a forked child may find it in
    /// any state, and so may an allocation in another thread.
    used: [AtomicU64; GROUPS],
    /// Blocks in use.
    blocks: AtomicUsize,
    /// How often the reserve has served, or could not.
    calls: AtomicUsize,
}

#[repr(align(4096))]
struct Memory(UnsafeCell<[u8; GROUP * GROUPS]>);

// SAFETY: a block belongs to the thread that set its bit; the rest is atomic.
unsafe impl Sync for Reserve {}

static RESERVE: Reserve = Reserve::new();

impl Reserve {
    const fn new() -> Reserve {
        Reserve {
            memory: Memory(UnsafeCell::new([0; GROUP * GROUPS])),
            used: [const { AtomicU64::new(0) }; GROUPS],
            blocks: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
        }
    }

    fn start(&self) -> *mut u8 {
        self.memory.0.get().cast()
    }

    /// The offset of memory in the reserve; `None` for memory of the system's allocator.
    fn offset_of(&self, memory: *mut u8) -> Option<usize> {
        let offset = memory.addr().wrapping_sub(self.start().addr());
        (offset < GROUP * GROUPS).then_some(offset)
    }

    /// Memory out of the reserve; NULL if it has none.
    #[cold]
    fn take(&self, layout: Layout) -> *mut u8 {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if layout.align() > GROUP || layout.size() > MOST_GROUPS * GROUP {
            return ptr::null_mut();
        }
        let found = match layout.size() > GROUP {
            true => self.take_groups(layout.size().div_ceil(GROUP)),
            false => self.take_blocks(blocks_of(layout.size()), layout.align().div_ceil(BLOCK)),
        };
        // SAFETY: the offset is one of the memory's.
        found.map_or(ptr::null_mut(), |offset| unsafe {
            self.start().add(offset)
        })
    }

    fn take_blocks(&self, count: usize, step: usize) -> Option<usize> {
        for (group, used) in self.used.iter().enumerate() {
            let mut now = used.load(Ordering::Relaxed);
            while let Some(first) = find(now, count, step) {
                let wanted = now | mask(first, count);
                match used.compare_exchange(now, wanted, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => {
                        self.blocks.fetch_add(count, Ordering::Relaxed);
                        return Some(group * GROUP + first * BLOCK);
                    }
                    Err(other) => now = other,
                }
            }
        }
        None
    }

    /// From the end, where blocks are taken last.
    fn take_groups(&self, count: usize) -> Option<usize> {
        let whole = |used: &AtomicU64| {
            used.compare_exchange(0, u64::MAX, Ordering::Acquire, Ordering::Relaxed)
        };
        for first in (0..=GROUPS - count).rev() {
            let groups = &self.used[first..first + count];
            let got = groups.iter().take_while(|used| whole(used).is_ok()).count();
            if got == count {
                self.blocks.fetch_add(count * BLOCKS, Ordering::Relaxed);
                return Some(first * GROUP);
            }
            let back = groups[..got].iter();
            back.for_each(|used| used.store(0, Ordering::Release));
        }
        None
    }

    /// Takes back what [`Reserve::take`] gave at this offset.
    #[cold]
    fn give_back(&self, offset: usize, size: usize) {
        let (group, first) = (offset / GROUP, offset % GROUP / BLOCK);
        let count = match size > GROUP {
            true => {
                let groups = &self.used[group..group + size.div_ceil(GROUP)];
                let used = groups.iter();
                used.for_each(|used| used.store(0, Ordering::Release));
                groups.len() * BLOCKS
            }
            false => {
                let count = blocks_of(size);
                self.used[group].fetch_and(!mask(first, count), Ordering::Release);
                count
            }
        };
        self.blocks.fetch_sub(count, Ordering::Relaxed);
    }
}

fn blocks_of(size: usize) -> usize {
    size.div_ceil(BLOCK).max(1)
}

fn mask(first: usize, count: usize) -> u64 {
    (u64::MAX >> (BLOCKS - count)) << first
}

/// The first of `count` blocks that are not in use, at a multiple of `step`.
fn find(used: u64, count: usize, step: usize) -> Option<usize> {
    (0..=BLOCKS - count)
        .step_by(step)
        .find(|first| used & mask(*first, count) == 0)
}

// SAFETY: memory is the system allocator's, or blocks of the reserve that nothing else has; neither
// unwinds. What is given back is told apart by its address, and its layout says how many blocks it has.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller says.
        let memory = unsafe { System.alloc(layout) };
        if memory.is_null() {
            return RESERVE.take(layout);
        }
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller says.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if !memory.is_null() {
            return memory;
        }
        let memory = RESERVE.take(layout);
        if !memory.is_null() {
            // SAFETY: it has as many bytes; blocks that served before are not zero.
            unsafe { memory.write_bytes(0, layout.size()) };
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        match RESERVE.offset_of(memory) {
            // SAFETY: as the caller says; it is not the reserve's.
            None => unsafe { System.dealloc(memory, layout) },
            Some(offset) => RESERVE.give_back(offset, layout.size()),
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if RESERVE.offset_of(memory).is_none() {
            // SAFETY: as the caller says; it is not the reserve's.
            let moved = unsafe { System.realloc(memory, layout, size) };
            if !moved.is_null() {
                return moved;
            }
        }
        // SAFETY: the caller says that the size is right for this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the size is not 0, as the caller says.
        let moved = unsafe { self.alloc(wanted) };
        if !moved.is_null() {
            // SAFETY: both have as many bytes, and no other thread has the new one.
            unsafe { moved.copy_from_nonoverlapping(memory, layout.size().min(size)) };
            // SAFETY: as the caller says.
            unsafe { self.dealloc(memory, layout) };
        }
        moved
    }
}

/// Room for `count` elements.
///
/// # Errors
/// `OutOfMemory`, for `what`.
pub(crate) fn room_for<T>(count: usize, what: &str) -> Result<Vec<T>> {
    let mut room = Vec::new();
    match room.try_reserve_exact(count) {
        Ok(()) => Ok(room),
        Err(_) => Err(exhausted(what)),
    }
}

/// A copy of `elements`.
///
/// # Errors
/// `OutOfMemory`, for `what`.
pub(crate) fn copy_of<T: Clone>(elements: &[T], what: &str) -> Result<Vec<T>> {
    let mut copy = room_for(elements.len(), what)?;
    copy.extend_from_slice(elements);
    Ok(copy)
}

/// A copy of a text.
///
/// # Errors
/// `OutOfMemory`, for `what`.
pub(crate) fn text(text: &str, what: &str) -> Result<String> {
    let mut copy = String::new();
    match copy.try_reserve_exact(text.len()) {
        Ok(()) => copy.push_str(text),
        Err(_) => return Err(exhausted(what)),
    }
    Ok(copy)
}

/// The heap gave no memory for `what`.
#[cold]
pub(crate) fn exhausted(what: &str) -> Error {
    Error::new(
        Status::OutOfMemory,
        format!(
            "{what}: the heap is exhausted (malloc gives no memory); free memory, or raise \
             RLIMIT_AS or the memory cgroup's limit"
        ),
    )
}

/// Fails where the reserve is used up to a half and the heap still has nothing. Costs one comparison
/// while the reserve is not in use. The error has no text, because that would take memory.
#[inline]
pub(crate) fn check() -> Result<()> {
    match RESERVE.blocks.load(Ordering::Relaxed) {
        0 => Ok(()),
        used => check_heap(used),
    }
}

#[cold]
fn check_heap(used: usize) -> Result<()> {
    if used * BLOCK <= GROUP * GROUPS - LEAST {
        return Ok(());
    }
    let layout = Layout::new::<[u8; LEAST]>();
    // Without the black box the compiler leaves out both calls, and takes it that there was memory.
    // SAFETY: the size is not 0.
    let memory = std::hint::black_box(unsafe { System.alloc(layout) });
    if memory.is_null() {
        return Err(Error::new(Status::OutOfMemory, String::new()));
    }
    // SAFETY: made above.
    unsafe { System.dealloc(memory, layout) };
    Ok(())
}

/// Tells whether the heap was exhausted since this was made, in any thread.
pub(crate) struct Watch(usize);

impl Watch {
    /// # Errors
    /// As [`check`].
    #[inline]
    pub(crate) fn begin() -> Result<Watch> {
        check()?;
        Ok(Watch(RESERVE.calls.load(Ordering::Relaxed)))
    }

    /// Fails if the heap was exhausted meanwhile, for `what`.
    #[inline]
    pub(crate) fn check(&self, what: &str) -> Result<()> {
        match RESERVE.calls.load(Ordering::Relaxed) == self.0 {
            true => Ok(()),
            false => Err(exhausted(what)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn what_the_reserve_gives_is_apart_aligned_and_used_again() {
        let reserve = Box::new(Reserve::new());
        let sizes = [1, 64, 65, 640, 4096, 3, 200, 4097, 12_000];
        let aligns = [1, 8, 64, 256, 4096];
        for _ in 0..3 {
            let mut taken: Vec<(usize, Layout)> = Vec::new();
            for (size, align) in sizes.iter().flat_map(|s| aligns.map(|a| (*s, a))) {
                let layout = layout(size, align);
                let memory = reserve.take(layout);
                assert!(!memory.is_null(), "{layout:?}");
                let offset = reserve.offset_of(memory).unwrap();
                assert_eq!(memory.addr() % align, 0, "{layout:?}");
                let apart = |(other, of): &(usize, Layout)| {
                    offset + size <= *other || other + of.size() <= offset
                };
                assert!(taken.iter().all(apart), "{layout:?}");
                taken.push((offset, layout));
            }
            for (offset, layout) in taken {
                reserve.give_back(offset, layout.size());
            }
            assert_eq!(reserve.blocks.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn a_reserve_that_is_used_up_answers_null() {
        let reserve = Box::new(Reserve::new());
        let whole = layout(GROUP, 1);
        assert!(reserve.take(layout(MOST_GROUPS * GROUP + 1, 1)).is_null());
        assert!(reserve.take(layout(1, 2 * GROUP)).is_null());
        for _ in 0..GROUPS {
            assert!(!reserve.take(whole).is_null());
        }
        assert!(reserve.take(layout(1, 1)).is_null());
        reserve.give_back(5 * GROUP, GROUP);
        let again = reserve.take(layout(1, 1));
        assert_eq!(reserve.offset_of(again), Some(5 * GROUP));
    }

    #[test]
    fn blocks_are_taken_by_many_threads_at_once() {
        let reserve = Box::new(Reserve::new());
        std::thread::scope(|scope| {
            for thread in 1..=8u8 {
                let reserve = &reserve;
                scope.spawn(move || {
                    for round in 1..2000usize {
                        let size = 1 + round * 37 % 9000;
                        let memory = reserve.take(layout(size, 1));
                        assert!(!memory.is_null());
                        // SAFETY: it has so many bytes, which are this thread's.
                        let bytes = unsafe { std::slice::from_raw_parts_mut(memory, size) };
                        bytes.fill(thread);
                        std::thread::yield_now();
                        assert!(bytes.iter().all(|byte| *byte == thread));
                        reserve.give_back(reserve.offset_of(memory).unwrap(), size);
                    }
                });
            }
        });
        assert_eq!(reserve.blocks.load(Ordering::Relaxed), 0);
    }
}
