// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! mmap and its kin.

use super::gate;
use crate::group::Protection;
use crate::tsan;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Where a new mapping shall go. Neither place has anything mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    /// Wherever the kernel likes.
    Anywhere,
    /// Exactly here, if nothing is there yet.
    Free(u64),
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

/// What a mapping shows, and how.
struct Content {
    protection: libc::c_int,
    flags: libc::c_int,
    file: libc::c_int,
    offset: u64,
}

impl Content {
    /// Address space without memory: PROT_NONE, not counted against overcommit.
    const NOTHING: Content = Content {
        protection: libc::PROT_NONE,
        flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        file: -1,
        offset: 0,
    };

    fn anonymous(protection: Protection) -> Content {
        Content {
            protection: flags(protection),
            flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            file: -1,
            offset: 0,
        }
    }

    /// Zeroed memory that other mappings can show too. As with a memfd, pages count against
    /// overcommit once they are touched.
    fn shared(protection: Protection) -> Content {
        Content {
            protection: flags(protection),
            flags: libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            file: -1,
            offset: 0,
        }
    }

    /// A file from `offset` on, shared.
    fn file(file: BorrowedFd<'_>, offset: u64, protection: Protection) -> Content {
        Content {
            protection: flags(protection),
            flags: libc::MAP_SHARED,
            file: file.as_raw_fd(),
            offset,
        }
    }

    /// A file from its beginning on; what is written there is this process's own.
    fn private_file(file: BorrowedFd<'_>, protection: Protection) -> Content {
        Content {
            flags: libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            ..Content::file(file, 0, protection)
        }
    }
}

/// # Safety
/// With MAP_FIXED in `place`, the range is the caller's to replace.
unsafe fn mmap(address: u64, size: u64, place: libc::c_int, content: Content) -> io::Result<u64> {
    gate("mmap")?;
    let Content {
        protection,
        flags,
        file,
        offset,
    } = content;
    let length = size_of(size)?;
    let offset =
        libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
    let (address, flags) = (pointer(address), flags | place);
    // SAFETY: MAP_FIXED replaces only what the caller vouches for; every other form maps where
    // nothing was.
    let start = unsafe { libc::mmap(address, length, protection, flags, file, offset) };
    match start {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        start => Ok(start.expose_provenance() as u64),
    }
}

fn map(at: At, size: u64, content: Content) -> io::Result<u64> {
    let (address, place) = match at {
        At::Anywhere => (0, 0),
        // ThreadSanitizer asks for address 0 in place of one that it keeps for itself, and the kernel gives that to root.
        At::Free(address) if tsan::is_there() => (address, 0),
        At::Free(address) => (address, libc::MAP_FIXED_NOREPLACE),
    };
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
    let start = unsafe { mmap(address, size, place, content) }?;
    if matches!(at, At::Free(_)) && start != address {
        // A kernel before 4.17 (and some emulators) takes MAP_FIXED_NOREPLACE for a hint, and without it it is one.
        // SAFETY: the kernel has just mapped it, for this call alone.
        unsafe { unmap(start, size) }?;
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    Ok(start)
}

/// # Safety
/// The range is the caller's, and nothing of Rust's lies there.
unsafe fn replace(address: u64, size: u64, content: Content) -> io::Result<()> {
    // SAFETY: as the caller says.
    unsafe { mmap(address, size, libc::MAP_FIXED, content) }.map(drop)
}

/// Reserves address space without memory.
pub(crate) fn reserve(at: At, size: u64) -> io::Result<u64> {
    map(at, size, Content::NOTHING)
}

/// Maps private zeroed memory for this process's own records.
pub(super) fn map_memory(size: u64) -> io::Result<u64> {
    let content = Content::anonymous(Protection::READ_WRITE);
    map(At::Anywhere, size, content)
}

/// Maps the first `size` bytes of `file`, shared.
pub(crate) fn map_file(
    at: At,
    size: u64,
    protection: Protection,
    file: BorrowedFd<'_>,
) -> io::Result<u64> {
    map(at, size, Content::file(file, 0, protection))
}

/// Maps `size` bytes of `file` from `offset` on, shared, anywhere.
pub(crate) fn map_part(
    file: BorrowedFd<'_>,
    offset: u64,
    size: u64,
    protection: Protection,
) -> io::Result<u64> {
    map(At::Anywhere, size, Content::file(file, offset, protection))
}

/// Maps private zeroed memory in place of what is there.
///
/// # Safety
/// The range is the caller's, and nothing of Rust's lies there.
pub(crate) unsafe fn replace_by_memory(
    address: u64,
    size: u64,
    protection: Protection,
) -> io::Result<()> {
    // SAFETY: as the caller says.
    unsafe { replace(address, size, Content::anonymous(protection)) }
}

/// Maps shared zeroed memory in place of what is there.
///
/// # Safety
/// The range is the caller's, and nothing of Rust's lies there.
pub(crate) unsafe fn replace_by_shared_memory(
    address: u64,
    size: u64,
    protection: Protection,
) -> io::Result<()> {
    // SAFETY: as the caller says.
    unsafe { replace(address, size, Content::shared(protection)) }
}

/// Maps the pages of a shared mapping a second time, with its protection, in place of what is at
/// `target`. Linux does so where the old size is 0. With ENOMEM and EAGAIN it may have unmapped what was
/// at `target`: it checks its limits afterwards.
///
/// # Safety
/// `from` is the start of a shared mapping of `size` bytes. The range at `target` is the caller's, and
/// nothing of Rust's lies there.
pub(crate) unsafe fn map_again(from: u64, size: u64, target: u64) -> io::Result<()> {
    gate("mremap")?;
    let length = size_of(size)?;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: nothing is moved from `from`, and what lies at the target is the caller's.
    match unsafe { libc::mremap(pointer(from), 0, length, flags, pointer(target)) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Maps the first `size` bytes of `file`, shared, in place of what is there.
///
/// # Safety
/// The range is the caller's, and nothing of Rust's lies there.
pub(crate) unsafe fn replace_by_file(
    address: u64,
    size: u64,
    protection: Protection,
    file: BorrowedFd<'_>,
) -> io::Result<()> {
    // SAFETY: as the caller says.
    unsafe { replace(address, size, Content::file(file, 0, protection)) }
}

/// Maps the first `size` bytes of `file`, private, in place of what is there.
///
/// # Safety
/// The range is the caller's, and nothing of Rust's lies there.
pub(crate) unsafe fn replace_by_private_file(
    address: u64,
    size: u64,
    protection: Protection,
    file: BorrowedFd<'_>,
) -> io::Result<()> {
    // SAFETY: as the caller says.
    unsafe { replace(address, size, Content::private_file(file, protection)) }
}

/// Turns a mapped range back into reserved address space and frees its pages.
///
/// # Safety
/// The range is the caller's, and what lies there is not used any more.
pub(crate) unsafe fn decommit(address: u64, size: u64) -> io::Result<()> {
    // SAFETY: as the caller says.
    unsafe { replace(address, size, Content::NOTHING) }
}

/// Has the kernel refuse this process memory that is writable and executable, and refuse to make what is there
/// executable (Linux 6.3, on x86-64 and AArch64). For good, and for its children.
pub(crate) fn deny_new_code() -> io::Result<()> {
    gate("prctl(PR_SET_MDWE)")?;
    let (refuse, unused): (libc::c_ulong, libc::c_ulong) =
        (libc::PR_MDWE_REFUSE_EXEC_GAIN.into(), 0);
    // SAFETY: what may be done with mappings from here on changes, and none of them.
    match unsafe { libc::prctl(libc::PR_SET_MDWE, refuse, unused, unused, unused) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Unmaps.
///
/// # Safety
/// The range is the caller's, and what lies there is not used any more.
pub(crate) unsafe fn unmap(address: u64, size: u64) -> io::Result<()> {
    gate("munmap")?;
    let length = size_of(size)?;
    // SAFETY: as the caller says.
    check(unsafe { libc::munmap(pointer(address), length) })
}

/// Changes protection.
///
/// # Safety
/// The range is the caller's, and nothing accesses it in a way that it does not allow afterwards.
pub(crate) unsafe fn protect(address: u64, size: u64, protection: Protection) -> io::Result<()> {
    gate("mprotect")?;
    let length = size_of(size)?;
    // SAFETY: as the caller says.
    check(unsafe { libc::mprotect(pointer(address), length, flags(protection)) })
}

/// Takes the pages of new memory now, so that a shortage is an error here and not a kill later. Before
/// Linux 5.14, which knows no such advice, it writes a zero into each.
///
/// # Safety
/// The range is the caller's, mapped for writing and still zero, and nothing accesses it meanwhile.
pub(crate) unsafe fn populate(address: u64, size: u64) -> io::Result<()> {
    gate("madvise")?;
    let length = size_of(size)?;
    // SAFETY: this advice changes no content; where nothing can be written it is an error.
    let taken =
        check(unsafe { libc::madvise(pointer(address), length, libc::MADV_POPULATE_WRITE) });
    match taken {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            for page in (0..length).step_by(super::page_size().bytes() as usize) {
                // SAFETY: as the caller says.
                unsafe { pointer(address).cast::<u8>().add(page).write_volatile(0) };
            }
            Ok(())
        }
        other => other,
    }
}

/// Linux 6.1; libc does not name it.
const MADV_COLLAPSE: libc::c_int = 25;

/// Has the system put the memory of a range that is aligned to [`huge_page_size`] into one huge page for
/// each, in every mapping that shows it. What lies there stays; pages that held no memory are zero.
///
/// # Errors
/// Besides a shortage of the moment: `EINVAL` before Linux 6.1, or where the system has no huge pages.
///
/// # Safety
/// The range is the caller's, and mapped for writing.
///
/// [`huge_page_size`]: super::huge_page_size
pub(crate) unsafe fn collapse(address: u64, size: u64) -> io::Result<()> {
    gate("madvise")?;
    let (length, page) = (size_of(size)?, super::page_size().bytes() as usize);
    // Where there is no page at all, it is refused.
    // SAFETY: this advice changes no content; where nothing can be written it is an error.
    check(unsafe { libc::madvise(pointer(address), page, libc::MADV_POPULATE_WRITE) })?;
    gate("madvise")?;
    // SAFETY: as the caller says; content stays.
    check(unsafe { libc::madvise(pointer(address), length, MADV_COLLAPSE) })
}

/// Gives the pages of shared memory back, so that every mapping of them reads zero and they cost nothing
/// until they are touched. Only through a mapping that may write: a memfd that is sealed against
/// writers refuses it.
///
/// # Safety
/// The range is the caller's, and its content is not used any more.
pub(crate) unsafe fn remove(address: u64, size: u64) -> io::Result<()> {
    gate("madvise")?;
    let length = size_of(size)?;
    // SAFETY: as the caller says.
    check(unsafe { libc::madvise(pointer(address), length, libc::MADV_REMOVE) })
}

/// Keeps a range out of children, so that a fork never writes into its parent's code.
///
/// # Safety
/// The range is the caller's, and forked children do not use it.
pub(crate) unsafe fn dont_fork(address: u64, size: u64) -> io::Result<()> {
    gate("madvise")?;
    let length = size_of(size)?;
    // SAFETY: as the caller says.
    check(unsafe { libc::madvise(pointer(address), length, libc::MADV_DONTFORK) })
}

/// Keeps a range out of core dumps, which have its pages already where another mapping shows them.
///
/// # Safety
/// The range is the caller's.
pub(crate) unsafe fn dont_dump(address: u64, size: u64) -> io::Result<()> {
    gate("madvise")?;
    let length = size_of(size)?;
    // SAFETY: as the caller says.
    check(unsafe { libc::madvise(pointer(address), length, libc::MADV_DONTDUMP) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
