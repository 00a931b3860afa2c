// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! From errno to an error that says the likely cause and what to do about it.

use crate::error::{Error, Status};
use rustix::process::{Resource, getrlimit};
use std::fmt::Display;
use std::io::{self, Read};

fn setting(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Counted without the heap: where mappings are short, a large block is not to be had.
fn mapping_count() -> Option<u64> {
    let mut file = std::fs::File::open("/proc/self/maps").ok()?;
    let mut buffer = [0; 4096];
    let mut count = 0;
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(count),
            size => {
                count += buffer[..size].iter().filter(|byte| **byte == b'\n').count() as u64;
            }
        }
    }
}

/// A resource limit of this process; `None` if there is none.
pub(super) fn limit(resource: Resource) -> Option<u64> {
    getrlimit(resource).current
}

/// Bytes of address space that this process may have; `None` if there is no limit.
pub(crate) fn address_space_limit() -> Option<u64> {
    limit(Resource::As)
}

/// Bytes of address space that this process uses.
fn address_space() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    pages.checked_mul(super::page_size().bytes())
}

/// KiB that this process has locked.
fn locked_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let locked = status
        .lines()
        .find_map(|line| line.strip_prefix("VmLck:"))?;
    locked.split_ascii_whitespace().next()?.parse().ok()
}

/// Why there may be no memory: the limits that this process has, most telling first.
fn out_of_memory() -> String {
    if let (Some(count), Some(max)) = (mapping_count(), setting("/proc/sys/vm/max_map_count")) {
        // Reading the list may itself merge or lag by a few mappings.
        if count + 16 >= max {
            return format!(
                "this process has {count} mappings and vm.max_map_count is {max}: raise it with \
                 sysctl, or find what makes so many mappings"
            );
        }
    }
    if let (Some(limit), Some(used)) = (limit(Resource::As), address_space()) {
        return format!(
            "RLIMIT_AS limits this process to {limit} bytes of address space, of which {used} are \
             in use: raise it with ulimit -v, or have less mapped"
        );
    }
    if let Some(limit) = limit(Resource::Data) {
        return format!(
            "RLIMIT_DATA limits this process to {limit} bytes of data: raise it with ulimit -d"
        );
    }
    match setting("/proc/sys/vm/overcommit_memory") {
        Some(2) => "vm.overcommit_memory is 2 and the commit limit is reached: raise \
                    vm.overcommit_ratio or add swap"
            .to_owned(),
        _ => "the system or its memory cgroup has no memory left: raise the cgroup's limit or \
              free memory"
            .to_owned(),
    }
}

/// Why the kernel gave no more for now: where all memory is locked (mlockall with MCL_FUTURE), mmap
/// answers so at the limit of what may be locked.
fn not_now() -> String {
    let Some(limit) = limit(Resource::Memlock).filter(|_| locked_memory() > Some(0)) else {
        return out_of_memory();
    };
    format!(
        "this process locks its memory (mlockall) and RLIMIT_MEMLOCK limits that to {limit} bytes: raise \
         it with ulimit -l, or lock less"
    )
}

fn denied() -> String {
    if let Some(value @ 1..) = setting("/proc/sys/vm/memfd_noexec") {
        return format!(
            "vm.memfd_noexec is {value}; with 2, a memfd that is not MFD_NOEXEC_SEAL is refused; \
             a seccomp filter or SELinux can refuse too: allow mremap, or memfd_create, and \
             executable mappings of shared memory, or choose the mprotect mapper"
        );
    }
    "a seccomp filter, SELinux (execmem, execmod) or MemoryDenyWriteExecute forbids it: allow it \
     for this service; the two-view mapper needs mremap, or memfd_create, and executable mappings \
     of shared memory, the mprotect mapper needs pages that were writable to become executable"
        .to_owned()
}

/// Why another process is out of reach.
fn out_of_reach() -> String {
    let scope = match setting("/proc/sys/kernel/yama/ptrace_scope") {
        Some(scope @ 1..) => format!(", which kernel.yama.ptrace_scope of {scope} narrows down"),
        _ => String::new(),
    };
    format!(
        "the kernel asks whether this process may ptrace the other{scope}: both must have the same user, and \
         no user namespace between them; a seccomp filter can refuse too"
    )
}

fn forbidden() -> String {
    "a seccomp filter or the system's security module forbids it: allow it for this process"
        .to_owned()
}

fn no_processes() -> String {
    "a seccomp filter forbids new processes: have children that run linked code put it in force, not the process \
     that starts them"
        .to_owned()
}

const LACKING: &str = "this kernel or sandbox lacks the call";

/// Turns the failure of `operation` (with its sizes and addresses) into an [`Error`].
pub(crate) fn explain(operation: impl Display, error: io::Error) -> Error {
    explain_by(operation, error, forbidden, LACKING)
}

/// [`explain`] for what the mappers need of the system: memfds, and executable mappings.
pub(crate) fn explain_mapping(operation: impl Display, error: io::Error) -> Error {
    let lacking = "this kernel or sandbox lacks the call: choose the mprotect mapper";
    explain_by(operation, error, denied, lacking)
}

/// [`explain`] for what is asked of the kernel about another process.
pub(crate) fn explain_reach(operation: impl Display, error: io::Error) -> Error {
    explain_by(operation, error, out_of_reach, LACKING)
}

/// [`explain`] for a process that is to be forked.
pub(crate) fn explain_fork(operation: impl Display, error: io::Error) -> Error {
    if error.raw_os_error() == Some(libc::EAGAIN) {
        let remedy = "RLIMIT_NPROC or the cgroup's limit of processes is reached: raise it";
        return Error::system(Status::OutOfMemory, operation, error).remedy(remedy);
    }
    explain_by(operation, error, no_processes, LACKING)
}

fn explain_by(
    operation: impl Display,
    error: io::Error,
    denied: fn() -> String,
    lacking: &str,
) -> Error {
    let (status, remedy) = match error.raw_os_error() {
        Some(libc::ENOMEM) => (Status::OutOfMemory, out_of_memory()),
        Some(libc::EAGAIN) => (Status::OutOfMemory, not_now()),
        Some(libc::ENOSPC) => (
            Status::OutOfMemory,
            "the memory cgroup or shared memory is full: raise its limit".to_owned(),
        ),
        Some(libc::EFBIG) => (
            Status::OutOfMemory,
            "RLIMIT_FSIZE limits files, memfds too: raise it with ulimit -f".to_owned(),
        ),
        Some(libc::EMFILE) => (
            Status::OutOfMemory,
            "RLIMIT_NOFILE is reached: raise it with ulimit -n".to_owned(),
        ),
        Some(libc::ENFILE) => (
            Status::OutOfMemory,
            "the system's file table is full: raise fs.file-max".to_owned(),
        ),
        Some(libc::EPERM | libc::EACCES) => (Status::Denied, denied()),
        Some(libc::ENOSYS) => (Status::Unsupported, lacking.to_owned()),
        _ => return Error::system(Status::System, operation, error),
    };
    Error::system(status, operation, error).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_keeps_its_number_and_names_the_operation() {
        for errno in [
            libc::ENOMEM,
            libc::EMFILE,
            libc::ENFILE,
            libc::EPERM,
            libc::EACCES,
            libc::ENOSYS,
            libc::ENOSPC,
            libc::EIO,
        ] {
            for explain in [explain, explain_mapping, explain_reach] {
                let error = explain("mmap of 4096 bytes", io::Error::from_raw_os_error(errno));
                assert_eq!(error.os_code(), Some(errno));
                assert!(
                    error.to_string().starts_with("mmap of 4096 bytes: "),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn what_is_denied_is_explained_by_what_was_asked() {
        let remedy = |explain: fn(&'static str, io::Error) -> Error| {
            explain("it", io::Error::from_raw_os_error(libc::EPERM)).to_string()
        };
        assert!(remedy(explain_mapping).contains("mprotect mapper"));
        assert!(remedy(explain_reach).contains("ptrace"));
        let plain = remedy(explain);
        assert!(
            plain.contains("seccomp") && !plain.contains("mapper"),
            "{plain}"
        );
    }
}
