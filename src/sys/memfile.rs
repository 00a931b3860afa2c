// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Sealed anonymous files: the pages behind two views.

use super::gate;
use memfd::{FileSeal, Memfd};
use rustix::process::Resource;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// A memfd of a fixed size.
pub(crate) struct MemFile(Memfd);

fn create(name: &CStr, flags: libc::c_uint) -> io::Result<File> {
    gate("memfd_create")?;
    // SAFETY: `name` is NUL-terminated and only read.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor and no other owner knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn create_without_exec(name: &CStr) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // NOEXEC_SEAL forbids exec of the file, not executable mappings, and is all that
    // vm.memfd_noexec=2 admits; kernels before 6.3 do not know it and answer EINVAL.
    match create(name, flags | libc::MFD_NOEXEC_SEAL) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => create(name, flags),
        other => other,
    }
}

/// A memfd that holds the first `size` bytes of a file, which are copied without being mapped. `None` where the system
/// does not do that.
pub(crate) fn copy_in_memory(
    name: &CStr,
    file: impl AsFd,
    size: u64,
) -> io::Result<Option<OwnedFd>> {
    // Beyond it the call would not only fail, it would send SIGXFSZ.
    if MemFile::largest().is_some_and(|most| size > most) {
        return Ok(None);
    }
    let Ok(copy) = create_without_exec(name) else {
        return Ok(None);
    };
    let mut copied = 0;
    while copied < size {
        let left = (size - copied) as usize;
        let sent = gate("sendfile").and_then(|()| {
            let sent = rustix::fs::sendfile(&copy, &file, Some(&mut copied), left);
            Ok(sent?)
        });
        match sent {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // If the file can't be read, who reads it in another way is told.
            Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
    Ok(Some(copy.into()))
}

fn not_a_memfd(error: impl std::fmt::Debug) -> io::Error {
    io::Error::other(format!("the descriptor is no sealable memfd: {error:?}"))
}

/// Bytes of another process's file that are read first; then as many as there are.
const PART: usize = 1 << 20;

impl MemFile {
    /// How large a file may be (RLIMIT_FSIZE); `None` if any size will do.
    pub(crate) fn largest() -> Option<u64> {
        super::limit(Resource::Fsize)
    }

    /// A file of `size` bytes.
    pub(crate) fn new(name: &CStr, size: u64) -> io::Result<MemFile> {
        let file = create_without_exec(name)?;
        // Beyond it the call would not only fail, it would send SIGXFSZ.
        if MemFile::largest().is_some_and(|most| size > most) {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        gate("ftruncate")?;
        file.set_len(size)?;
        Ok(MemFile(Memfd::try_from_file(file).map_err(not_a_memfd)?))
    }

    fn seal(&self, seals: &[FileSeal]) -> io::Result<()> {
        gate("fcntl(F_ADD_SEALS)")?;
        self.0.add_seals(seals).map_err(|error| match error {
            memfd::Error::AddSeals(io) => io,
            other => not_a_memfd(other),
        })
    }

    /// Fixes the size, so that no access to a mapping can ever raise SIGBUS for lack of file, and
    /// allows no new writable mapping; those that exist stay writable.
    ///
    /// F_SEAL_FUTURE_WRITE came with Linux 5.1; an older kernel answers EINVAL and goes without.
    pub(crate) fn close_to_writers(&self) -> io::Result<()> {
        use FileSeal::{SealFutureWrite, SealGrow, SealShrink};
        match self.seal(&[SealShrink, SealGrow, SealFutureWrite]) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.seal(&[SealShrink, SealGrow])
            }
            other => other,
        }
    }

    /// A file that holds these bytes, for another process to read.
    pub(crate) fn holding(name: &CStr, bytes: &[u8]) -> io::Result<MemFile> {
        let file = MemFile::new(name, bytes.len() as u64)?;
        gate("pwrite")?;
        file.0.as_file().write_all_at(bytes, 0)?;
        Ok(file)
    }

    /// The first `size` bytes of another process's memfd, read and not mapped: it may shrink. Of other files none is
    /// read: they may be on a file system of that process's, which answers when it likes. Room is made as
    /// they come.
    pub(crate) fn content(file: OwnedFd, size: u64) -> io::Result<Vec<u8>> {
        let wrong = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        let Ok(file) = Memfd::try_from_file(File::from(file)) else {
            return wrong("a body in a file that is no memfd".to_owned());
        };
        let file = file.as_file();
        let there = file.metadata()?.len();
        if there < size {
            return wrong(format!("a file of {there} bytes instead of {size}"));
        }
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < size {
            let before = bytes.len();
            let next = (size - before as u64).min(before.max(PART) as u64);
            bytes
                .try_reserve_exact(next as usize)
                .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
            bytes.resize(before + next as usize, 0);
            gate("pread")?;
            file.read_exact_at(&mut bytes[before..], before as u64)?;
        }
        Ok(bytes)
    }

    /// Another process's file, if it is as large as `size` and can't become smaller.
    pub(crate) fn of_fixed_size(file: OwnedFd, size: u64) -> io::Result<MemFile> {
        let wrong = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        let file = Memfd::try_from_file(File::from(file)).map_err(not_a_memfd)?;
        let there = file.as_file().metadata()?.len();
        if there < size {
            return wrong(format!("it has {there} bytes"));
        }
        match file.seals() {
            Ok(seals) if seals.contains(&FileSeal::SealShrink) => Ok(MemFile(file)),
            Ok(_) => wrong("it is not sealed against shrinking".to_owned()),
            Err(memfd::Error::GetSeals(error)) => Err(error),
            Err(other) => Err(not_a_memfd(other)),
        }
    }

    /// Fixes the size of a file that another process will map writable.
    pub(crate) fn fix_size(&self) -> io::Result<()> {
        self.seal(&[FileSeal::SealShrink, FileSeal::SealGrow, FileSeal::SealSeal])
    }

    /// Takes all pages now, so that a shortage is an error here and not a kill later.
    pub(crate) fn commit(&self, size: u64) -> io::Result<()> {
        super::take_part(self.as_fd(), 0, size)
    }
}

impl AsFd for MemFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_file().as_fd()
    }
}
