// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Filters of system calls.

use super::gate;
use libc::sock_filter;
use std::io;

/// The calls of this program by their numbers' architecture, as filters are told (AUDIT_ARCH of linux/audit.h).
pub(crate) const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") {
    0xc000_003e
} else if cfg!(target_arch = "aarch64") {
    0xc000_00b7
} else {
    0xc000_00f3 // riscv64
};

/// Refuses new privileges, without which the kernel takes a filter from root only, and puts a filter in force for
/// all threads and for those that they start, for good.
pub(crate) fn filter_calls(filter: &mut [sock_filter]) -> io::Result<()> {
    gate("seccomp")?;
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_mut_ptr(),
    };
    let (set, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: what programs that are started may become changes, and no memory.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, set, unused, unused, unused) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel copies `program`, which holds as many instructions as it says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        // A thread that has a filter of its own.
        _ => Err(io::ErrorKind::ResourceBusy.into()),
    }
}
