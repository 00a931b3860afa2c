// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Landlock (Linux 5.13): rules about paths, which the calling thread and those that it starts keep for good.
//! The kernel's documentation is userspace-api/landlock.rst. Its three calls are made here and not by a crate, whose
//! choices for all that may be asked for are 50 KB of program.

use super::gate;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Rights to what a path names (LANDLOCK_ACCESS_FS).
pub(crate) mod access {
    pub(crate) const READ_FILE: u64 = 1 << 2;
    pub(crate) const READ_DIR: u64 = 1 << 3;
    pub(crate) const REFER: u64 = 1 << 13;
    const TRUNCATE: u64 = 1 << 14;
    const IOCTL_DEV: u64 = 1 << 15;
    /// All of the kernel's first version.
    pub(crate) const FIRST: u64 = (1 << 13) - 1;
    pub(crate) const ALL: u64 = FIRST | REFER | TRUNCATE | IOCTL_DEV;
    /// Those that files have: to execute, write and read, too.
    pub(super) const OF_FILES: u64 = 0b111 | TRUNCATE | IOCTL_DEV;

    /// All that a version of the kernel's knows.
    pub(super) fn of_version(version: i64) -> u64 {
        match version {
            ..=1 => FIRST,
            2 => FIRST | REFER,
            3 | 4 => FIRST | REFER | TRUNCATE,
            _ => ALL,
        }
    }
}

/// Asks for the version, in landlock_create_ruleset.
const VERSION: u32 = 1;

/// A rule of landlock_add_rule about a folder with all in it, or about a file.
const PATH_BENEATH: u32 = 1;

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: RawFd,
}

/// What is allowed where; all else of what this kernel knows is refused.
pub(crate) struct PathRules {
    rules: OwnedFd,
    handled: u64,
}

/// What a call answers: a descriptor, a version, or 0.
fn answer(result: libc::c_long) -> io::Result<i64> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(result),
    }
}

impl PathRules {
    /// Rules that allow nothing. All of `needed` must be known to the kernel.
    #[cold]
    pub(crate) fn new(needed: u64) -> io::Result<PathRules> {
        gate("landlock_create_ruleset")?;
        // SAFETY: no memory is named.
        let version = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                std::ptr::null::<u64>(),
                0usize,
                VERSION,
            )
        };
        let handled = access::of_version(answer(version)?);
        if needed & !handled != 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // SAFETY: `handled` is the first field of `struct landlock_ruleset_attr`, and the size says that there is
        // no other.
        let made = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const handled,
                size_of_val(&handled),
                0u32,
            )
        };
        let made = answer(made)? as RawFd;
        // SAFETY: a descriptor that the kernel has made just now, and that is nothing else's.
        let rules = unsafe { OwnedFd::from_raw_fd(made) };
        Ok(PathRules { rules, handled })
    }

    /// Allows access to a file, or to a folder with all in it. A path that can't be opened can't be opened
    /// afterwards either.
    #[cold]
    pub(crate) fn allow(&self, path: &Path, access: u64) -> io::Result<()> {
        gate("landlock_add_rule")?;
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: `name` ends with a zero.
        let opened = unsafe { libc::open(name.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
        if opened < 0 {
            return Ok(());
        }
        // SAFETY: a descriptor that the kernel has made just now, and that is nothing else's.
        let opened = unsafe { OwnedFd::from_raw_fd(opened) };
        let files_only = match rustix::fs::fstat(&opened)?.st_mode & libc::S_IFMT == libc::S_IFDIR {
            true => u64::MAX,
            false => access::OF_FILES,
        };
        let rule = PathBeneath {
            allowed: access & self.handled & files_only,
            parent: opened.as_raw_fd(),
        };
        // SAFETY: the kernel reads a rule of this kind.
        let added = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.rules.as_raw_fd(),
                PATH_BENEATH,
                &raw const rule,
                0u32,
            )
        };
        answer(added).map(drop)
    }

    /// Puts the rules in force. New privileges must be refused already.
    pub(crate) fn restrict_thread(self) -> io::Result<()> {
        gate("landlock_restrict_self")?;
        // SAFETY: what may be opened from here on changes, and no memory.
        let result = unsafe {
            libc::syscall(
                libc::SYS_landlock_restrict_self,
                self.rules.as_raw_fd(),
                0u32,
            )
        };
        answer(result).map(drop)
    }
}
