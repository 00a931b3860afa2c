// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Files by name that hold what is run later: replaced as a whole, read as a whole.

use super::{MemFile, gate};
use rustix::buffer::spare_capacity;
use rustix::fs::FlockOperation;
use rustix::io::{Errno, retry_on_intr};
use smallvec::SmallVec;
use std::ffi::CStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Its owner may read and write it, and no other user.
const OWN_MODE: u32 = 0o600;

/// Who may write a file beside its owner.
const WRITABLE_BY_OTHERS: u32 = 0o022;

fn refused(kind: io::ErrorKind, why: impl Into<String>) -> io::Error {
    io::Error::new(kind, why.into())
}

/// The system takes no more parts in one call.
const IOV_MAX: usize = 1024;

/// A file that is open to be read.
pub(crate) struct OwnFile {
    file: File,
    size: u64,
}

/// Opens a file of at most `most` bytes that none but this user or root can have written.
/// What is no such file is refused before it is read: a pipe would keep its reader waiting.
pub(crate) fn open_own_file(path: &Path, most: u64) -> io::Result<OwnFile> {
    gate("open")?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    gate("fstat")?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(refused(
            io::ErrorKind::InvalidInput,
            "it is no regular file",
        ));
    }
    let owner = metadata.uid();
    if owner != 0 {
        let user = rustix::process::geteuid().as_raw();
        if owner != user {
            let why = format!("it belongs to user {owner}, not to {user} or root");
            return Err(refused(io::ErrorKind::PermissionDenied, why));
        }
    }
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        let mode = metadata.mode() & 0o777;
        let why = format!("its mode {mode:o} lets other users write it; chmod go-w it");
        return Err(refused(io::ErrorKind::PermissionDenied, why));
    }
    let size = metadata.len();
    if size > most {
        let why = format!("it has {size} bytes, and the most is {most}");
        return Err(refused(io::ErrorKind::InvalidInput, why));
    }
    Ok(OwnFile { file, size })
}

impl OwnFile {
    /// How many bytes it had when it was opened.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// A memfd with the same content; `None` where the system makes none. `UnexpectedEof` if the file has become
    /// smaller.
    pub(crate) fn copy_in_memory(&self, name: &CStr) -> io::Result<Option<OwnedFd>> {
        super::copy_in_memory(name, &self.file, self.size)
    }

    /// Reads `size` bytes from `at` on to the end of a buffer that has room for them, or some more where it has room for
    /// more. `UnexpectedEof` if there are not as many.
    pub(crate) fn read(&self, buffer: &mut Vec<u8>, size: usize, at: u64) -> io::Result<()> {
        let start = buffer.len();
        while buffer.len() < start + size {
            gate("pread")?;
            let at = at + (buffer.len() - start) as u64;
            match rustix::io::pread(&self.file, spare_capacity(buffer), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads bytes from `at` on into parts of memory that are no Rust objects, one behind the other: each has an address
    /// and a size. `UnexpectedEof` if there are not as many, `OutOfMemory` if the system has no memory for their pages.
    ///
    /// # Safety
    /// The parts are mapped and writable, and no Rust object lies there.
    pub(crate) unsafe fn read_to(&self, parts: &[(u64, u64)], mut at: u64) -> io::Result<()> {
        let part = |(address, size): &(u64, u64)| libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(*address as usize),
            iov_len: *size as usize,
        };
        let mut parts: SmallVec<[libc::iovec; 8]> = parts.iter().map(part).collect();
        let mut left = &mut parts[..];
        loop {
            left = skip_empty(left);
            if left.is_empty() {
                return Ok(());
            }
            gate("preadv")?;
            let count = left.len().min(IOV_MAX) as libc::c_int;
            let from = at as libc::off_t;
            // SAFETY: as the caller says.
            let read = unsafe { libc::preadv(self.file.as_raw_fd(), left.as_ptr(), count, from) };
            let mut read = match read {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read if read > 0 => read as usize,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error if error.raw_os_error() == Some(libc::EFAULT) => {
                        return Err(io::ErrorKind::OutOfMemory.into());
                    }
                    error => return Err(error),
                },
            };
            at += read as u64;
            for part in left.iter_mut() {
                let here = read.min(part.iov_len);
                part.iov_base = part.iov_base.wrapping_byte_add(here);
                part.iov_len -= here;
                read -= here;
            }
        }
    }

    /// A file that has these bytes.
    #[cfg(test)]
    pub(crate) fn holding(bytes: &[u8]) -> OwnFile {
        use std::os::fd::AsFd;
        let file = MemFile::holding(c"jitmem-test", bytes).unwrap();
        OwnFile {
            file: File::from(file.as_fd().try_clone_to_owned().unwrap()),
            size: bytes.len() as u64,
        }
    }
}

/// The parts from the first one on of which something is left.
fn skip_empty(parts: &mut [libc::iovec]) -> &mut [libc::iovec] {
    let empty = parts.iter().take_while(|part| part.iov_len == 0).count();
    &mut parts[empty..]
}

/// The name under which a file is written until it is whole.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// A file with a lock of its own. A child that another thread forks has the same open file, so that to close it would
/// leave the lock to the child.
struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Opens the unfinished file and has it alone. The one who had it before has renamed it, so that what was
/// opened may be the finished file by now.
fn open_alone(path: &Path) -> io::Result<Locked> {
    loop {
        gate("open")?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(OWN_MODE)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        // Another user may keep a file of its own locked.
        must_be_own(&file.metadata()?)?;
        gate("flock")?;
        retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
        let file = Locked(file);
        let opened = file.0.metadata()?;
        match fs::symlink_metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (opened.dev(), opened.ino()) => {
                must_be_own(&opened)?;
                // What an earlier process has left may have been given another mode.
                if opened.mode() & 0o777 != OWN_MODE {
                    gate("fchmod")?;
                    file.0.set_permissions(Permissions::from_mode(OWN_MODE))?;
                }
                return Ok(file);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// What another one left there, or links to, is not written. It may have lost its name meanwhile.
fn must_be_own(opened: &Metadata) -> io::Result<()> {
    let own = opened.uid() == rustix::process::geteuid().as_raw();
    if !opened.is_file() || opened.nlink() > 1 || !own {
        let why = "the file that it is written to until it is whole, whose name ends with .new, is there and is \
                   another user's, has another name, or is no regular file: remove it";
        return Err(refused(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

/// Fills a file and gives it its name. The answer is its directory, which must be opened before that, unless this user may
/// not read it.
fn write(mut file: &File, parts: &[&[u8]], from: &Path, to: &Path) -> io::Result<Option<File>> {
    gate("ftruncate")?;
    file.set_len(0)?;
    for part in parts {
        gate("write")?;
        file.write_all(part)?;
    }
    gate("fsync")?;
    file.sync_all()?;
    let directory = to.parent().filter(|parent| *parent != Path::new(""));
    let opened = gate("open").and_then(|()| File::open(directory.unwrap_or(Path::new("."))));
    let directory = match opened {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        opened => Some(opened?),
    };
    gate("rename")?;
    fs::rename(from, to)?;
    Ok(directory)
}

/// What became of a file that was to be replaced.
#[derive(Debug)]
pub(crate) enum Replaced {
    /// Its name is on the disk too.
    Durably,
    /// It is replaced, but may be the old one again after a crash of the system.
    NotDurably(io::Error),
}

/// Makes `parts`, one behind the other, the content of a file. A process that opens it has the old
/// content or the new one, also after a crash of the system. Waits while another process does the same.
pub(crate) fn replace_own_file(path: &Path, parts: &[&[u8]]) -> io::Result<Replaced> {
    let size: u64 = parts.iter().map(|part| part.len() as u64).sum();
    // Beyond it the call would not only fail, it would send SIGXFSZ.
    if MemFile::largest().is_some_and(|most| size > most) {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    let unfinished = unfinished(path);
    let file = open_alone(&unfinished)?;
    let directory = write(&file.0, parts, &unfinished, path).inspect_err(|_| {
        // Once it is renamed, that is the name of another process's file.
        let _ = fs::remove_file(&unfinished);
    })?;
    let directory_synced =
        directory.map(|directory| gate("fsync").and_then(|()| directory.sync_all()));
    // The name is on the disk once its directory is. Some file systems sync directories only with all else.
    let synced = match directory_synced {
        Some(Err(error)) if error.kind() != io::ErrorKind::InvalidInput => Err(error),
        Some(Ok(())) => Ok(()),
        _ => gate("syncfs").and_then(|()| Ok(rustix::fs::syncfs(&file.0)?)),
    };
    Ok(synced.map_or_else(Replaced::NotDurably, |()| Replaced::Durably))
}

#[cfg(test)]
mod tests {
    use super::super::ChildProcess;
    use super::super::fault::Faults;
    use super::*;
    use std::rc::Rc;

    #[test]
    fn a_forked_child_does_not_keep_the_lock() {
        let path = std::env::temp_dir().join(format!("jitmem-lock-{}", std::process::id()));
        let child = Rc::new(std::cell::OnceCell::new());
        let forked = Rc::clone(&child);
        // While the file is locked.
        let faults = Faults::before(2, move || {
            // SAFETY: the child only waits to be killed.
            let process = unsafe { ChildProcess::start(|| libc::pause()) };
            forked.set(process.unwrap()).unwrap();
        });
        replace_own_file(&path, &[b"whole"]).unwrap();
        assert_eq!(faults.failed(), Some("ftruncate"));
        let file = File::open(&path).unwrap();
        let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        child.get().unwrap().end();
        fs::remove_file(&path).unwrap();
        locked.unwrap();
    }
}
