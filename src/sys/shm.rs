// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Named shared memory, which LLVM's own protocol for it asks for. Nothing else here has a name.

use super::gate;
use rustix::fs::Mode;
use rustix::process::Resource;
use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

/// A name under which shared memory can be opened, until this is dropped at the latest.
#[derive(Debug)]
pub(crate) struct SharedName(std::ffi::CString);

impl SharedName {
    /// Makes shared memory of `size` bytes, all zero. `EEXIST` if the name is taken.
    pub(crate) fn create(name: &CStr, size: u64) -> io::Result<(SharedName, OwnedFd)> {
        if super::limit(Resource::Fsize).is_some_and(|limit| size > limit) {
            // The call would not only fail, it would send SIGXFSZ.
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        gate("shm_open")?;
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
        let mode = Mode::RWXU.as_raw_mode();
        // SAFETY: a string and plain numbers.
        let fd = unsafe { libc::shm_open(name.as_ptr(), flags, mode) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor and no other owner knows it.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = SharedName(name.to_owned());
        gate("ftruncate")?;
        rustix::fs::ftruncate(&file, size)?;
        Ok((name, file))
    }

    /// The name, with its slash.
    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl Drop for SharedName {
    fn drop(&mut self) {
        // SAFETY: a string. The process that opened it has usually unlinked it long since.
        unsafe { libc::shm_unlink(self.0.as_ptr()) };
    }
}

/// Opens shared memory that another process has made, at least `size` bytes, and takes its name away.
pub(crate) fn take_shared_memory(name: &str, size: u64) -> io::Result<OwnedFd> {
    gate("shm_open")?;
    let file = rustix::shm::open(name, rustix::shm::OFlags::RDWR, Mode::empty());
    // The process that made it does not open it again.
    let unlinked = rustix::shm::unlink(name);
    let file = file?;
    unlinked?;
    let there = rustix::fs::fstat(&file)?.st_size;
    if u64::try_from(there).is_ok_and(|there| there >= size) {
        return Ok(file);
    }
    let message = format!("it has {there} bytes instead of {size}");
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

/// Takes the pages of a part of a file, so that a shortage is an error here and not a SIGBUS later.
pub(crate) fn take_part(file: BorrowedFd<'_>, offset: u64, size: u64) -> io::Result<()> {
    /// A signal undoes what a call has taken, in many versions of the kernel: a part is taken between two of them.
    const AT_ONCE: u64 = 4 << 20;
    let flags = rustix::fs::FallocateFlags::empty();
    let mut taken = 0;
    while taken < size {
        gate("fallocate")?;
        let part = AT_ONCE.min(size - taken);
        match rustix::fs::fallocate(file, flags, offset + taken, part) {
            Ok(()) => taken += part,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                // As a call that fails does: nothing stays taken.
                let _ = punch_hole(file, offset, taken);
                return Err(error.into());
            }
        }
    }
    Ok(())
}

/// Gives the pages of a part of a file back; it reads as zero afterwards.
pub(crate) fn punch_hole(file: BorrowedFd<'_>, offset: u64, size: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    gate("fallocate")?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, offset, size)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_once_and_goes_with_its_owner() {
        let text = std::ffi::CString::new(format!(
            "/jitmem-test-{:x}",
            super::super::random().unwrap()
        ))
        .unwrap();
        let (name, _file) = SharedName::create(&text, 4096).unwrap();
        assert_eq!(name.as_str(), text.to_str().unwrap());
        let taken = SharedName::create(&text, 4096).unwrap_err();
        assert_eq!(taken.raw_os_error(), Some(libc::EEXIST));
        drop(name);
        drop(SharedName::create(&text, 4096).unwrap());
    }
}
