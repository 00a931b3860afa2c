// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Pages as a whole: which there are, whether two are the same, copies of them, and ending a child that
//! can't have its own.

use super::{MemFile, gate, page_size};
use crate::page::AddressRange;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

fn pointer(address: u64) -> *mut libc::c_void {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

/// As many pages are asked for at once.
const PAGES_AT_ONCE: usize = 1024;

/// Which pages of a mapping may hold something, in their order. One that was swapped out is not told from one
/// that was never there, so where anything was, all may; so they may where the system does not say. Takes no
/// memory of the heap, which a fork or a deallocation may find exhausted.
pub(crate) fn resident(range: AddressRange) -> impl Iterator<Item = bool> {
    Resident {
        left: range,
        states: [1; PAGES_AT_ONCE],
        taken: PAGES_AT_ONCE,
    }
}

struct Resident {
    /// What was not asked for yet.
    left: AddressRange,
    /// Of the pages in front of it, of which so many were taken.
    states: [u8; PAGES_AT_ONCE],
    taken: usize,
}

impl Resident {
    /// Asks for the next pages, which are the last of the states.
    fn ask(&mut self) {
        let page = page_size().bytes();
        let size = self.left.size().min(PAGES_AT_ONCE as u64 * page);
        self.taken = PAGES_AT_ONCE - (size / page) as usize;
        let states = &mut self.states[self.taken..];
        states.fill(1);
        if nothing_is_swapped_out() && gate("mincore").is_ok() {
            let (start, size) = (pointer(self.left.start()), size as usize);
            // SAFETY: room for a byte per page; a range that is not mapped is an error.
            let result = unsafe { libc::mincore(start, size, states.as_mut_ptr()) };
            if result != 0 || !nothing_is_swapped_out() {
                states.fill(1);
            }
        }
        let left = self.left.part(size, self.left.size() - size);
        self.left = left.expect("a part of a range");
    }
}

impl Iterator for Resident {
    type Item = bool;

    fn next(&mut self) -> Option<bool> {
        if self.taken == PAGES_AT_ONCE {
            if self.left.size() == 0 {
                return None;
            }
            self.ask();
        }
        let state = *self.states.get(self.taken)?;
        self.taken += 1;
        Some(state & 1 == 1)
    }
}

fn nothing_is_swapped_out() -> bool {
    // SAFETY: all zero is a value of the struct, which the call fills.
    let mut system: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: room for the answer.
    let known = gate("sysinfo").is_ok() && unsafe { libc::sysinfo(&raw mut system) } == 0;
    known && system.totalswap == system.freeswap
}

/// Whether two ranges of that many bytes hold the same.
///
/// # Safety
/// Both can be read.
pub(crate) unsafe fn same(one: u64, other: u64, size: u64) -> bool {
    // SAFETY: as the caller says; what is read is compared as bytes and kept nowhere.
    unsafe { libc::memcmp(pointer(one), pointer(other), size as usize) == 0 }
}

/// Copies bytes from one place to another.
///
/// # Safety
/// The ranges do not overlap, one can be read and the other written, and no Rust object lies there.
pub(crate) unsafe fn copy(from: u64, to: u64, size: u64) {
    // SAFETY: as the caller says.
    unsafe { libc::memcpy(pointer(to), pointer(from), size as usize) };
}

/// Writes bytes of memory into a file, at `offset`.
///
/// # Safety
/// The range can be read.
pub(crate) unsafe fn write_pages(
    file: &MemFile,
    mut offset: u64,
    from: AddressRange,
) -> io::Result<()> {
    let (mut address, mut left) = (from.start(), from.size());
    while left > 0 {
        gate("pwrite")?;
        let descriptor = file.as_fd().as_raw_fd();
        let place =
            libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        // SAFETY: as the caller says.
        let written = unsafe { libc::pwrite(descriptor, pointer(address), left as usize, place) };
        match u64::try_from(written) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
            Ok(count) => (offset, address, left) = (offset + count, address + count, left - count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => (),
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Moves a mapping, in place of what is at `to`.
///
/// # Safety
/// Both ranges are the caller's, and nothing of Rust's lies there.
pub(crate) unsafe fn move_mapping(from: u64, size: u64, to: u64) -> io::Result<()> {
    gate("mremap")?;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let length = size as usize;
    // SAFETY: as the caller says.
    match unsafe { libc::mremap(pointer(from), length, length, flags, pointer(to)) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Ends a forked child, before any of the program's code has run in it.
pub(crate) fn end_child(why: &str) -> ! {
    // SAFETY: bytes to write; that nothing reads them is no matter.
    unsafe {
        libc::write(libc::STDERR_FILENO, why.as_ptr().cast(), why.len());
        libc::_exit(127)
    }
}
