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

/// Which pages of a mapping may hold something. One that was swapped out is not told from one that was
/// never there, so where anything was, all may; so they may where the system does not say.
pub(crate) fn resident(range: AddressRange) -> Vec<bool> {
    let pages = (range.size() / page_size().bytes()) as usize;
    let mut states = vec![1u8; pages];
    if nothing_is_swapped_out() && gate("mincore").is_ok() {
        // SAFETY: room for a byte per page; a range that is not mapped is an error.
        let result = unsafe {
            libc::mincore(
                pointer(range.start()),
                range.size() as usize,
                states.as_mut_ptr(),
            )
        };
        if result != 0 || !nothing_is_swapped_out() {
            states.fill(1);
        }
    }
    states.into_iter().map(|state| state & 1 == 1).collect()
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
