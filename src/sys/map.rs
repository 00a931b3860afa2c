// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! mmap and its kin.

use super::gate;
use crate::group::Protection;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Where a mapping shall go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    /// Wherever the kernel likes.
    Anywhere,
    /// Exactly here, if nothing is there yet.
    Free(u64),
    /// Exactly here, in place of what we have there.
    Replace(u64),
}

fn flags(protection: Protection) -> libc::c_int {
    let mut flags = libc::PROT_NONE;
    if protection.readable() {
        flags |= libc::PROT_READ;
    }
    if protection.writable() {
        flags |= libc::PROT_WRITE;
    }
    if protection.executable() {
        flags |= libc::PROT_EXEC;
    }
    flags
}

fn size_of(size: u64) -> io::Result<usize> {
    usize::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))
}

fn pointer(address: u64) -> *mut libc::c_void {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

fn mmap(
    at: At,
    size: u64,
    prot: libc::c_int,
    mut flags: libc::c_int,
    file: libc::c_int,
    offset: u64,
) -> io::Result<u64> {
    gate("mmap")?;
    let address = match at {
        At::Anywhere => 0,
        At::Free(address) => {
            flags |= libc::MAP_FIXED_NOREPLACE;
            address
        }
        At::Replace(address) => {
            flags |= libc::MAP_FIXED;
            address
        }
    };
    let length = size_of(size)?;
    let offset =
        libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    // SAFETY: MAP_FIXED replaces only a range that the caller owns (this module's precondition);
    // every other form maps where nothing was.
    let start = unsafe { libc::mmap(pointer(address), length, prot, flags, file, offset) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = start.expose_provenance() as u64;
    if matches!(at, At::Free(_)) && start != address {
        // A kernel before 4.17 (and some emulators) takes MAP_FIXED_NOREPLACE for a hint.
        unmap(start, size)?;
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    Ok(start)
}

/// Reserves address space without memory: PROT_NONE, not counted against overcommit.
pub(crate) fn reserve(at: At, size: u64) -> io::Result<u64> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    mmap(at, size, libc::PROT_NONE, flags, -1, 0)
}

/// Maps private zeroed memory.
pub(crate) fn map_anonymous(at: At, size: u64, protection: Protection) -> io::Result<u64> {
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    mmap(at, size, flags(protection), kind, -1, 0)
}

/// Maps the first `size` bytes of `file`, shared.
pub(crate) fn map_file(
    at: At,
    size: u64,
    protection: Protection,
    file: BorrowedFd<'_>,
) -> io::Result<u64> {
    let file = file.as_raw_fd();
    mmap(at, size, flags(protection), libc::MAP_SHARED, file, 0)
}

/// Maps `size` bytes of `file` from `offset` on, shared and for writing, anywhere.
pub(crate) fn map_part(file: BorrowedFd<'_>, offset: u64, size: u64) -> io::Result<u64> {
    let protection = flags(Protection::READ_WRITE);
    let file = file.as_raw_fd();
    mmap(
        At::Anywhere,
        size,
        protection,
        libc::MAP_SHARED,
        file,
        offset,
    )
}

/// Turns a mapped range back into reserved address space and frees its pages.
pub(crate) fn decommit(address: u64, size: u64) -> io::Result<()> {
    reserve(At::Replace(address), size).map(drop)
}

/// Unmaps.
pub(crate) fn unmap(address: u64, size: u64) -> io::Result<()> {
    gate("munmap")?;
    let length = size_of(size)?;
    // SAFETY: the caller owns the range and gives it up here.
    check(unsafe { libc::munmap(pointer(address), length) })
}

/// Changes protection.
pub(crate) fn protect(address: u64, size: u64, protection: Protection) -> io::Result<()> {
    gate("mprotect")?;
    let length = size_of(size)?;
    // SAFETY: the caller owns the range; no reference of ours points into executor memory.
    check(unsafe { libc::mprotect(pointer(address), length, flags(protection)) })
}

fn advise(address: u64, size: u64, advice: libc::c_int) -> io::Result<()> {
    gate("madvise")?;
    let length = size_of(size)?;
    // SAFETY: the caller owns the range; no reference of ours points into executor memory.
    check(unsafe { libc::madvise(pointer(address), length, advice) })
}

/// Takes the pages of writable memory now, so that a shortage is an error here and not a kill later.
pub(crate) fn populate(address: u64, size: u64) -> io::Result<()> {
    advise(address, size, libc::MADV_POPULATE_WRITE)
}

/// Keeps a range out of children, so that a fork never writes into its parent's code.
pub(crate) fn dont_fork(address: u64, size: u64) -> io::Result<()> {
    advise(address, size, libc::MADV_DONTFORK)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
