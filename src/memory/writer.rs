// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Bounds-checked writing.
//!
//! Executor memory is never a Rust reference, because linked code changes it behind Rust's back;
//! it is an address. Writing goes through [`Writer`], which checks bounds.

use crate::error::{Error, Result, Status};
use crate::page::AddressRange;
use crate::sys::{self, OwnFile};
use smallvec::SmallVec;
use std::io;
use std::sync::atomic::Ordering::Release;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Bytes that are stored at once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word {
    Four(u32),
    Eight(u64),
    Sixteen(u128),
}

impl Word {
    pub(crate) fn size(self) -> u64 {
        match self {
            Word::Four(_) => 4,
            Word::Eight(_) => 8,
            Word::Sixteen(_) => 16,
        }
    }
}

/// From so many bytes on it takes less time to have the system take all their pages ahead.
const TAKEN_AT_ONCE: u64 = 32 << 10;

/// Patterns are copied in blocks of at most so many bytes, which stay in the processor's first cache.
const PATTERN_BLOCK: usize = 4096;

/// The right to write into one run of working memory. It does not keep the memory mapped; the one who
/// makes it sees to that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    start: *mut u8,
    size: u64,
}

// SAFETY: a Writer is an address and a size; disjoint allocations write disjoint bytes, and the
// manager hands each range to one owner at a time.
unsafe impl Send for Writer {}
// SAFETY: as above.
unsafe impl Sync for Writer {}

#[cold]
fn outside(offset: u64, size: u64) -> ! {
    panic!("{offset}+{size} is outside");
}

/// Whether there is no memory for pages.
fn is_of_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EFAULT))
}

impl Writer {
    /// A writer of `size` bytes at `address`.
    ///
    /// # Safety
    /// As long as the writer or a copy or part of it is used, the bytes are mapped and writable, and
    /// no Rust object lies there.
    pub(crate) unsafe fn new(address: u64, size: u64) -> Writer {
        Writer {
            start: std::ptr::with_exposed_provenance_mut(address as usize),
            size,
        }
    }

    /// Number of bytes.
    pub(crate) fn size(self) -> u64 {
        self.size
    }

    /// Where the first byte is written.
    pub(crate) fn pointer(self) -> WorkingPointer {
        WorkingPointer(self.start)
    }

    /// A writer of some of the bytes.
    pub(crate) fn part_of(self, offset: u32, size: u32) -> Writer {
        Writer {
            start: self.part(offset.into(), size.into()),
            size: size.into(),
        }
    }

    fn part(self, offset: u64, size: u64) -> *mut u8 {
        let end = offset.checked_add(size);
        if end.is_none_or(|end| end > self.size) {
            outside(offset, size);
        }
        self.start.wrapping_add(offset as usize)
    }

    /// Zeroes a part.
    pub(crate) fn zero(self, offset: u64, size: u64) {
        let pointer = self.part(offset, size);
        // SAFETY: the part is inside the working memory, which is mapped and ours to write.
        unsafe { pointer.write_bytes(0, size as usize) }
    }

    /// Fills the pages that may hold something with instructions that trap; the others are not touched.
    pub(crate) fn fill_resident_with_traps(self) {
        let start = self.start.expose_provenance() as u64;
        let range = AddressRange::new(start, self.size).expect("a mapped range ends");
        let pages = range.rounded_out(sys::page_size()).expect("as above");
        let page = sys::page_size().bytes();
        let each = (pages.start()..pages.end()).step_by(page as usize);
        for (first, resident) in each.zip(sys::resident(pages)) {
            let from = first.max(range.start());
            let size = (first + page).min(range.end()) - from;
            if resident {
                // Windows are below 2 GiB, so both fit.
                self.part_of((from - start) as u32, size as u32)
                    .fill_with_traps();
            }
        }
    }

    /// Fills everything with instructions that trap.
    pub(crate) fn fill_with_traps(self) {
        self.fill(sys::TRAP);
    }

    /// Fills everything with one pattern after the other, the last as far as there is room.
    #[inline]
    fn fill(self, pattern: &[u8]) {
        let Writer { start, size } = self;
        if let [byte] = pattern {
            // SAFETY: the working memory is mapped and ours to write.
            unsafe { start.write_bytes(*byte, size as usize) }
            return;
        }
        debug_assert!(PATTERN_BLOCK % pattern.len() == 0);
        let size = size as usize;
        let mut filled = pattern.len().min(size);
        // SAFETY: the working memory is mapped and ours to write, and has so many bytes.
        unsafe { start.copy_from_nonoverlapping(pattern.as_ptr(), filled) }
        // What is filled is copied behind itself until a block is full, and the block from then on.
        while filled < size {
            let block = filled.min(PATTERN_BLOCK).min(size - filled);
            // SAFETY: `block` bytes from the start are filled, and as many behind `filled` are inside.
            unsafe { start.add(filled).copy_from_nonoverlapping(start, block) }
            filled += block;
        }
    }

    /// Stores a word as the first bytes, at once, after everything that this thread wrote before.
    ///
    /// # Errors
    /// `Unsupported` where the processor stores no 16 bytes at once.
    ///
    /// # Panics
    /// If the first byte is not aligned to the word's size.
    pub(crate) fn store(self, word: Word) -> Result<()> {
        let pointer = self.part(0, word.size());
        assert_eq!(pointer.addr() as u64 % word.size(), 0, "misaligned");
        // SAFETY: mapped, ours to write, aligned, and no Rust object lies there: it is accessed by
        // atomic stores here and by linked code.
        unsafe {
            match word {
                Word::Four(value) => AtomicU32::from_ptr(pointer.cast()).store(value, Release),
                Word::Eight(value) => AtomicU64::from_ptr(pointer.cast()).store(value, Release),
                Word::Sixteen(value) if sys::stores_16_bytes() => sys::store_16(pointer, value),
                Word::Sixteen(_) => {
                    return Err(Error::new(
                        Status::Unsupported,
                        "store 16 bytes at once: this processor has no instruction for it; store \
                         8 bytes",
                    ));
                }
            }
        }
        Ok(())
    }

    /// Copies bytes out that were written.
    pub(crate) fn read(self, offset: u64, bytes: &mut [u8]) {
        let pointer = self.part(offset, bytes.len() as u64);
        // SAFETY: the part is as long as `bytes`, mapped, and no Rust object lies there.
        unsafe { pointer.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Fills all of several parts, one behind the other, with the bytes of a file from `at` on.
    pub(crate) fn read_from(writers: &[Writer], file: &OwnFile, at: u64) -> io::Result<()> {
        let part = |writer: &Writer| (writer.start.expose_provenance() as u64, writer.size);
        let parts: SmallVec<[_; 8]> = writers.iter().map(part).collect();
        for (address, size) in parts.iter().filter(|(_, size)| *size >= TAKEN_AT_ONCE) {
            // Where the system refuses it, each page is taken when it is written.
            let _ = sys::take(*address, *size);
        }
        // SAFETY: mapped and ours to write, and no Rust objects lie there.
        unsafe { file.read_to(&parts, at) }
    }

    /// Writes as many bytes as there are, and has the system take the pages before. `OutOfMemory` if it has none for them.
    pub(crate) fn write_all(self, bytes: &[u8]) -> io::Result<()> {
        if self.size >= TAKEN_AT_ONCE {
            match sys::take(self.start.expose_provenance() as u64, self.size) {
                Err(error) if is_of_memory(&error) => {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                // Where the system refuses it, each page is taken when it is written.
                _ => {}
            }
        }
        self.write(0, bytes);
        Ok(())
    }

    /// Writes bytes.
    pub(crate) fn write(self, offset: u64, bytes: &[u8]) {
        let pointer = self.part(offset, bytes.len() as u64);
        // A host may move what it has written: they may overlap.
        // SAFETY: the part is as long as `bytes`, mapped, and no Rust object lies there.
        unsafe { pointer.copy_from(bytes.as_ptr(), bytes.len()) }
    }
}

/// Where a linker outside the crate writes; only a number in here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct WorkingPointer(*mut u8);

// SAFETY: nothing in the crate dereferences it.
unsafe impl Send for WorkingPointer {}
// SAFETY: as above.
unsafe impl Sync for WorkingPointer {}

impl WorkingPointer {
    /// Working memory of a segment that has none.
    pub(crate) const NULL: WorkingPointer = WorkingPointer(std::ptr::null_mut());

    pub(super) fn new(pointer: *mut u8) -> WorkingPointer {
        WorkingPointer(pointer)
    }

    /// The pointer.
    pub(crate) fn get(self) -> *mut u8 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a pattern fills so many bytes with, in front of others that stay.
    fn filled(pattern: &[u8], size: usize) -> Vec<u8> {
        const BEHIND: usize = 8;
        let mut memory: Vec<u8> = vec![0xee; size + BEHIND];
        let start = memory.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: the vector has more bytes than that, and is used by nothing else meanwhile.
        unsafe { Writer::new(start, size as u64) }.fill(pattern);
        assert_eq!(memory.split_off(size), [0xee; BEHIND]);
        memory
    }

    #[test]
    fn instructions_of_any_size_fill_any_number_of_bytes() {
        for pattern in [&[0xcc][..], &[0x02, 0x90], &[0x00, 0x00, 0x20, 0xd4]] {
            for size in [0, 1, 3, 4, 5, 63, 4096, 4099, 3 * PATTERN_BLOCK + 6] {
                let expected: Vec<u8> = pattern.iter().copied().cycle().take(size).collect();
                assert!(filled(pattern, size) == expected, "{pattern:x?}, {size}");
            }
        }
    }
}
