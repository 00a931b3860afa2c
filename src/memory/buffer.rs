// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Working memory on the heap, for content that a mapper copies.

use super::writer::{WorkingPointer, Writer};
use crate::error::{Error, Result, Status};
use crate::lock::Mutex;
use crate::sys;
use std::cell::UnsafeCell;
use std::sync::Arc;

/// Bytes on the heap that the linker writes through a raw pointer.
type Bytes = Box<[UnsafeCell<u128>]>;

/// What blocks are made of, and aligned to without any slack.
const UNIT: usize = size_of::<u128>();
const _: () = assert!(align_of::<u128>() == UNIT);

/// Working memory for content that a mapper copies, in blocks that serve again: graphs come and go
/// in batches, and a heap that shrinks and grows with them takes page faults for each.
#[derive(Default)]
pub(crate) struct BufferPool([Mutex<Vec<Bytes>>; CLASSES]);

/// Blocks of the smallest class; each further one is twice as large.
const SMALLEST_BLOCK: usize = 64;
/// Up to 64 KiB; larger buffers come from the heap and go back to it.
const CLASSES: usize = 11;
/// Bytes of one class that are kept at most.
const MOST_KEPT: usize = 256 << 10;

// SAFETY: blocks in the pool have no owner; a block is handed to one owner at a time.
unsafe impl Send for BufferPool {}
// SAFETY: as above, and the lists are behind locks.
unsafe impl Sync for BufferPool {}

/// Bytes of heap that must remain after a buffer is made.
const SMALL_BLOCKS: usize = 64 << 10;

impl BufferPool {
    /// The class of buffers of `size` bytes, and the size of its blocks.
    fn class(size: usize) -> Option<(usize, usize)> {
        let block = size.max(SMALLEST_BLOCK).checked_next_power_of_two()?;
        let class = (block / SMALLEST_BLOCK).ilog2() as usize;
        (class < CLASSES).then_some((class, block))
    }

    /// A buffer of `size` zero bytes that is aligned to `alignment`, or to the page size if that is
    /// less.
    pub(crate) fn get(self: &Arc<Self>, size: usize, alignment: usize) -> Result<Buffer> {
        let alignment = alignment.min(sys::page_size().bytes() as usize);
        let slack = alignment.saturating_sub(UNIT);
        let needed = size.saturating_add(slack);
        let class = Self::class(needed);
        // Never waits: in a forked child the lock may be held by a thread that is not there.
        let kept = class.and_then(|(class, _)| self.0[class].try_lock()?.pop());
        let (bytes, used) = match kept {
            Some(bytes) => (bytes, true),
            None => (Self::make(class.map_or(needed, |(_, block)| block))?, false),
        };
        let offset = bytes.as_ptr().addr().wrapping_neg() & (alignment - 1);
        debug_assert!(offset <= slack, "units are aligned");
        let buffer = Buffer {
            bytes,
            offset,
            size,
            pool: Arc::clone(self),
        };
        if used {
            // SAFETY: a block has at least `size` bytes from the buffer's start on, and nothing else
            // uses it yet.
            unsafe { buffer.start().write_bytes(0, size) };
        }
        Ok(buffer)
    }

    fn make(size: usize) -> Result<Bytes> {
        // What is left over is for small blocks, which are not counted.
        let mut left_over: Vec<u8> = Vec::new();
        let units = size.div_ceil(UNIT);
        let mut bytes = Vec::new();
        left_over
            .try_reserve_exact(SMALL_BLOCKS)
            .and_then(|()| bytes.try_reserve_exact(units))
            .map_err(|_| {
                Error::new(
                    Status::OutOfMemory,
                    format!(
                        "working memory of {size} bytes: the heap has no room for it; free memory, \
                         or raise RLIMIT_AS or the memory limit"
                    ),
                )
            })?;
        bytes.resize_with(units, || UnsafeCell::new(0));
        Ok(bytes.into_boxed_slice())
    }

    fn put(&self, bytes: Bytes) {
        if let Some((class, block)) = Self::class(bytes.len() * UNIT) {
            let kept = self.0[class].try_lock();
            if let Some(mut kept) = kept.filter(|kept| (kept.len() + 1) * block <= MOST_KEPT) {
                kept.push(bytes);
            }
        }
    }
}

/// A block of a [`BufferPool`], which takes it back.
pub(crate) struct Buffer {
    bytes: Bytes,
    /// Where the bytes in use begin, so that they are aligned.
    offset: usize,
    /// Bytes in use.
    size: usize,
    pool: Arc<BufferPool>,
}

// SAFETY: the bytes are written by the holder of the in-flight allocation and read only after
// finalize took it, so the accesses of different threads are ordered by that hand-over.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn start(&self) -> *mut u8 {
        let start = self.bytes.as_ptr().cast::<u8>().cast_mut();
        start.wrapping_add(self.offset)
    }

    /// Where the linker writes.
    pub(crate) fn pointer(&self) -> WorkingPointer {
        WorkingPointer::new(self.start())
    }

    /// What content is written with.
    ///
    /// # Safety
    /// As long as the writer or a copy or part of it is used, the buffer is not dropped, and [`Buffer::content`] is
    /// not called.
    pub(crate) unsafe fn writer(&self) -> Writer {
        // SAFETY: the block is this buffer's own, and the caller sees to the rest.
        unsafe { Writer::new(self.start().expose_provenance() as u64, self.size as u64) }
    }

    /// The content, once it is written.
    pub(crate) fn content(&self) -> &[u8] {
        // SAFETY: a block has at least `size` bytes from there on and lives as long as `self`; finalize ended the
        // linker's writing.
        unsafe { std::slice::from_raw_parts(self.start(), self.size) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(buffer: &Buffer, offset: u64, bytes: &[u8]) {
        // SAFETY: the buffer is borrowed meanwhile.
        unsafe { buffer.writer() }.write(offset, bytes);
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn writing_outside_is_caught() {
        let pool: Arc<BufferPool> = Arc::default();
        write(&pool.get(4, 1).unwrap(), 2, b"abc");
    }

    #[test]
    fn buffers_serve_again_and_are_zero_each_time() {
        let pool: Arc<BufferPool> = Arc::default();
        for size in [0, 1, 64, 65, 4096, 65_536, 65_537, 1 << 20] {
            let first = pool.get(size, 16).unwrap();
            let second = pool.get(size, 16).unwrap();
            let places = [&first, &second].map(|buffer| buffer.bytes.as_ptr());
            assert!(size == 0 || places[0] != places[1]);
            write(&first, 0, &vec![7; size]);
            assert_eq!(first.content(), vec![7; size]);
            drop(first);
            let third = pool.get(size, 16).unwrap();
            assert_eq!(third.content(), vec![0; size]);
            assert!(size > 65_536 || third.bytes.as_ptr() == places[0], "{size}");
        }
        let many: Vec<Buffer> = (0..100).map(|_| pool.get(65_536, 1).unwrap()).collect();
        drop(many);
        let kept: usize = pool.0.iter().map(|class| class.lock().len()).sum();
        assert!(kept <= 8 + CLASSES, "{kept}");
    }

    #[test]
    fn buffers_are_aligned_up_to_a_page() {
        let pool: Arc<BufferPool> = Arc::default();
        let page = sys::page_size().bytes() as usize;
        for alignment in (0..13).map(|shift| 1 << shift).chain([1 << 21, 1 << 30]) {
            for size in [1, 60, 4096, 65_536, 100_000] {
                // The second is a block that was used.
                for _ in 0..2 {
                    let buffer = pool.get(size, alignment).unwrap();
                    let address = buffer.pointer().get().addr();
                    assert_eq!(address % alignment.min(page), 0, "{size} to {alignment}");
                    assert_eq!(buffer.content(), vec![0; size]);
                    write(&buffer, 0, &vec![7; size]);
                    assert_eq!(buffer.content(), vec![7; size]);
                }
            }
        }
    }
}
